//! Reads that begin before their results are needed.
//!
//! A command makes many small reads, one after the other, and over a distance each takes at least a round trip. Here several
//! of them are made at the same time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::contract::{ObjectInfo, Storage};
use super::error::Error;
use super::retry;

/// Reads that are made at the same time, each by a thread, and whose results are in memory at the same time.
pub(super) const AT_ONCE: usize = 16;
/// The size, in bytes, of the largest objects that are read ahead.
pub(super) const SMALL: usize = 1 << 20;
/// Items in turn whose reads are made at the same time.
const IN_TURN: usize = 8;
/// How long a result can be used: the user may be asked for a passphrase in the meantime, and objects that were damaged or
/// out of date are replaced.
pub(super) const FRESH: Duration = Duration::from_secs(10);

/// A read that will be needed soon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ahead {
    /// [`Target::get`](super::Target::get) of an object of at most this size. A large object is not read ahead.
    Get(String, usize),
    /// [`Target::list`](super::Target::list) of a prefix.
    List(String),
}

/// The result of a read.
#[derive(Debug)]
enum Answer {
    Bytes(Vec<u8>),
    Objects(Vec<ObjectInfo>),
}

/// A result, and what it took.
#[derive(Debug)]
struct Made {
    /// `None` if the read failed: then whoever needs it makes it again.
    answer: Option<Answer>,
    at: Instant,
    /// How long the thread waited for a target that was away.
    waited: Duration,
}

impl Made {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

/// A read that a thread makes or has made.
#[derive(Debug)]
struct Begun {
    result: Receiver<Made>,
    /// The result, if it was looked at.
    made: Option<Made>,
}

impl Begun {
    /// Whether the result is still to come, or can be used.
    fn is_useful(&mut self) -> bool {
        if self.made.is_none() {
            match self.result.try_recv() {
                Ok(made) => self.made = Some(made),
                Err(error) => return error == TryRecvError::Empty,
            }
        }
        self.made.as_ref().is_some_and(|made| made.answer.is_some() && made.is_fresh())
    }

    /// Waits for the result. `None` if the thread ended without one.
    fn wait(self) -> Option<Made> {
        self.made.or_else(|| self.result.recv().ok())
    }
}

/// Reads that begin in their order. Each result is used once, and only while it is fresh.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<Reads>>);

#[derive(Debug, Default)]
struct Reads {
    queue: VecDeque<Ahead>,
    /// Those in the queue that are still needed.
    waiting: HashSet<Ahead>,
    begun: HashMap<Ahead, Begun>,
    threads: usize,
}

impl UnderWay {
    /// Begins reads, except those that were begun and whose results can still be used.
    pub(super) fn begin(&self, storage: &Arc<dyn Storage>, reads: Vec<Ahead>) {
        let mut state = lock(&self.0);
        state.drop_useless();
        for read in reads {
            if !state.begun.contains_key(&read) && state.waiting.insert(read.clone()) {
                state.queue.push_back(read);
            }
        }
        self.start(&mut state, storage);
    }

    /// Starts threads for reads that wait, as far as there is room for results.
    fn start(&self, state: &mut Reads, storage: &Arc<dyn Storage>) {
        if state.waiting.is_empty() {
            return;
        }
        let room = AT_ONCE.saturating_sub(state.begun.len().max(state.threads));
        for _ in 0..state.waiting.len().min(room) {
            let (reads, storage) = (self.0.clone(), storage.clone());
            let work = move || work_through(&reads, &*storage);
            // If no thread can be started, the reads are made when they are needed.
            if thread::Builder::new().name("read-ahead".into()).spawn(work).is_err() {
                break;
            }
            state.threads += 1;
        }
    }

    /// Drops these reads if they are not needed any more.
    pub(super) fn forget(&self, reads: &[Ahead]) {
        let mut state = lock(&self.0);
        for read in reads {
            state.waiting.remove(read);
            state.begun.remove(read);
        }
        if state.waiting.is_empty() {
            state.queue.clear();
        }
    }

    /// The bytes of an object, if they were read just now or are being read.
    pub(super) fn bytes(&self, storage: &Arc<dyn Storage>, name: &str, limit: usize) -> Option<Vec<u8>> {
        match self.wait(storage, &Ahead::Get(name.to_owned(), limit))? {
            Answer::Bytes(bytes) => Some(bytes),
            Answer::Objects(_) => None,
        }
    }

    /// The objects with a prefix, in any order, if they were listed just now or are being listed.
    pub(super) fn objects(&self, storage: &Arc<dyn Storage>, prefix: &str) -> Option<Vec<ObjectInfo>> {
        match self.wait(storage, &Ahead::List(prefix.to_owned()))? {
            Answer::Objects(objects) => Some(objects),
            Answer::Bytes(_) => None,
        }
    }

    /// The result of a read. `None` if it has not begun, failed, or is too old: then the caller makes it.
    fn wait(&self, storage: &Arc<dyn Storage>, read: &Ahead) -> Option<Answer> {
        let begun = {
            let mut state = lock(&self.0);
            state.waiting.remove(read);
            let begun = state.begun.remove(read);
            state.drop_useless();
            self.start(&mut state, storage);
            begun?
        };
        let asked = Instant::now();
        let made = begun.wait()?;
        // The thread may have waited before this one did.
        retry::add_waited(made.waited.min(asked.elapsed()));
        if made.is_fresh() { made.answer } else { None }
    }
}

impl Reads {
    /// Drops results that cannot be used any more, which would take the room of others, and what is not needed any more from
    /// the queue.
    fn drop_useless(&mut self) {
        self.begun.retain(|_, begun| begun.is_useful());
        if self.queue.len() > self.waiting.len() {
            self.queue.retain(|read| self.waiting.contains(read));
        }
    }

    /// The next read, if there is room for its result.
    fn next(&mut self) -> Option<(Ahead, Sender<Made>)> {
        while self.begun.len() < AT_ONCE {
            let read = self.queue.pop_front()?;
            if self.waiting.remove(&read) {
                let (sender, result) = bounded(1);
                self.begun.insert(read.clone(), Begun { result, made: None });
                return Some((read, sender));
            }
        }
        None
    }
}

/// Makes the reads that wait, until none is left or there is no room for results.
fn work_through(reads: &Mutex<Reads>, storage: &dyn Storage) {
    loop {
        let next = {
            let mut state = lock(reads);
            let next = state.next();
            if next.is_none() {
                state.threads -= 1;
            }
            next
        };
        let Some((read, sender)) = next else { return };
        let before = retry::waited();
        let answer = read.make(storage).ok();
        // Nobody may need it any more.
        let _ = sender.send(Made { answer, at: Instant::now(), waited: retry::waited() - before });
    }
}

impl Ahead {
    /// [`Ahead::Get`] of a listed object; `None` if it is large.
    pub fn of(object: &ObjectInfo, limit: usize) -> Option<Ahead> {
        (object.length <= SMALL as u64).then(|| Ahead::Get(object.name.clone(), limit))
    }

    fn make(&self, storage: &dyn Storage) -> Result<Answer, Error> {
        Ok(match self {
            // For lack of a length, it may be a large object.
            Ahead::Get(name, limit) => Answer::Bytes(storage.get(name, SMALL.min(*limit))?),
            Ahead::List(prefix) => {
                let mut objects = Vec::new();
                storage.visit(prefix, &mut |object| objects.push(object))?;
                Answer::Objects(objects)
            }
        })
    }
}

/// Items in order. Before each, the reads of the next ones begin, once each. What was begun for items that the caller has
/// passed, or does not come to, is dropped.
pub struct InTurn<'t, I, B: Fn(&'t [I]), F: Fn(&'t [I])> {
    items: &'t [I],
    /// The number of items so far.
    at: usize,
    /// The number of items whose reads were begun.
    begun: usize,
    begin: B,
    forget: F,
}

impl<'t, I, B: Fn(&'t [I]), F: Fn(&'t [I])> InTurn<'t, I, B, F> {
    /// `begin` begins the reads of items, and `forget` drops them.
    pub fn new(items: &'t [I], begin: B, forget: F) -> Self {
        InTurn { items, at: 0, begun: 0, begin, forget }
    }

    fn part(&self, from: usize, to: usize) -> &'t [I] {
        self.items.get(from..to).unwrap_or_default()
    }
}

impl<'t, I, B: Fn(&'t [I]), F: Fn(&'t [I])> Iterator for InTurn<'t, I, B, F> {
    type Item = &'t I;

    fn next(&mut self) -> Option<&'t I> {
        (self.forget)(self.part(self.at.saturating_sub(1), self.at));
        let item = self.items.get(self.at)?;
        let end = self.items.len().min(self.at + IN_TURN);
        (self.begin)(self.part(self.begun, end));
        self.begun = end;
        self.at += 1;
        Some(item)
    }
}

impl<'t, I, B: Fn(&'t [I]), F: Fn(&'t [I])> Drop for InTurn<'t, I, B, F> {
    fn drop(&mut self) {
        (self.forget)(self.part(self.at.saturating_sub(1), self.begun));
    }
}

fn lock(reads: &Mutex<Reads>) -> MutexGuard<'_, Reads> {
    reads.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::testing::{Faulty, Memory, Recording, Records};
    use super::super::{DirectoryStorage, Target};
    use super::*;

    /// A storage with objects `0` to `99`.
    fn storage() -> (Arc<dyn Storage>, Records) {
        let memory = Memory::default();
        for number in 0..100 {
            let mut spool = memory.spool(&number.to_string(), Uuid::nil()).unwrap();
            spool.append(&[number]).unwrap();
            memory.store(&spool).unwrap();
        }
        let (recording, records) = Recording::new(Box::new(memory));
        (Arc::new(recording), records)
    }

    fn get(number: u8) -> Ahead {
        Ahead::Get(number.to_string(), 10)
    }

    #[test]
    fn a_result_is_used_once() {
        let (storage, records) = storage();
        let ahead = UnderWay::default();
        ahead.begin(&storage, vec![get(1), Ahead::List(String::new())]);
        ahead.begin(&storage, vec![get(1)]);
        while !lock(&ahead.0).waiting.is_empty() {
            thread::yield_now();
        }
        assert_eq!(ahead.bytes(&storage, "1", 10).unwrap(), [1]);
        assert_eq!(ahead.objects(&storage, "").unwrap().len(), 100);
        assert!(ahead.bytes(&storage, "1", 10).is_none() && ahead.objects(&storage, "").is_none());
        assert_eq!(records.take().len(), 2);
    }

    #[test]
    fn many_reads_are_made_once_each_and_few_results_wait() {
        let (storage, records) = storage();
        let ahead = UnderWay::default();
        let reads = || (0..100).map(get).collect::<Vec<_>>();
        ahead.begin(&storage, reads());
        // Of the last ones, none has begun.
        for number in (0..100).rev() {
            let name = number.to_string();
            let read = ahead.bytes(&storage, &name, 10).unwrap_or_else(|| storage.get(&name, 10).unwrap());
            assert_eq!(read, [number]);
            assert!(lock(&ahead.0).begun.len() <= AT_ONCE);
        }
        assert!(ahead.bytes(&storage, "0", 10).is_none());
        assert_eq!(records.take().len(), 100);
        // They may be dropped early.
        ahead.begin(&storage, reads());
        let first = ahead.bytes(&storage, "0", 10);
        assert!(first.is_none_or(|read| read == [0]));
        ahead.forget(&reads());
        assert!(records.take().len() <= 2 * AT_ONCE + 1);
        let state = lock(&ahead.0);
        assert!(state.waiting.is_empty() && state.queue.is_empty() && state.begun.is_empty());
    }

    #[test]
    fn dropped_reads_leave_nothing() {
        let (storage, _) = storage();
        let ahead = UnderWay::default();
        ahead.begin(&storage, vec![get(1), get(2)]);
        ahead.forget(&[get(1), get(2)]);
        assert!(ahead.bytes(&storage, "1", 10).is_none());
        let state = lock(&ahead.0);
        assert!(state.begun.is_empty() && state.waiting.is_empty());
    }

    /// Waits until these reads were made.
    fn wait_for(ahead: &UnderWay, reads: &[Ahead]) {
        let is_made = |state: &Reads, read| state.begun.get(read).is_some_and(|begun| !begun.result.is_empty());
        while !reads.iter().all(|read| is_made(&lock(&ahead.0), read)) {
            thread::yield_now();
        }
    }

    /// A read that ended in this state.
    fn add(ahead: &UnderWay, read: Ahead, answer: Option<Answer>, at: Instant) {
        let (sender, result) = bounded(1);
        sender.send(Made { answer, at, waited: Duration::from_secs(3) }).unwrap();
        lock(&ahead.0).begun.insert(read, Begun { result, made: None });
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(2 * FRESH).unwrap()
    }

    #[test]
    fn an_old_result_is_not_used() {
        let (storage, _) = storage();
        for age in [Duration::ZERO, 2 * FRESH] {
            let (ahead, is_fresh) = (UnderWay::default(), age.is_zero());
            let at = Instant::now().checked_sub(age).unwrap();
            add(&ahead, get(1), Some(Answer::Bytes(vec![1])), at);
            assert_eq!(ahead.bytes(&storage, "1", 10).is_some(), is_fresh);
            add(&ahead, Ahead::List(String::new()), Some(Answer::Objects(Vec::new())), at);
            assert_eq!(ahead.objects(&storage, "").is_some(), is_fresh);
        }
    }

    #[test]
    fn an_error_is_not_used() {
        let (faulty, faults) = Faulty::new(Box::new(Memory::default()));
        let target = Target::new(Box::new(faulty), "memory".into());
        target.put("x", b"x").unwrap();
        faults.set_away(true);
        let reads = [Ahead::Get("x".into(), 10), Ahead::List(String::new())];
        target.begin(reads.to_vec());
        while faults.failures() < 2 {
            thread::yield_now();
        }
        faults.set_away(false);
        assert_eq!(target.get("x", 10).unwrap(), b"x");
        assert_eq!(target.list("").unwrap().len(), 1);
    }

    #[test]
    fn the_wait_of_a_thread_counts_as_far_as_another_one_waited_for_it() {
        let (storage, _) = storage();
        let ahead = UnderWay::default();
        let read_after = |waited| {
            let (sender, result) = bounded(1);
            sender.send(Made { answer: None, at: Instant::now(), waited }).unwrap();
            lock(&ahead.0).begun.insert(get(1), Begun { result, made: None });
            let (before, asked) = (retry::waited(), Instant::now());
            assert!(ahead.bytes(&storage, "1", 10).is_none());
            (retry::waited() - before, asked.elapsed())
        };
        let (counted, took) = read_after(Duration::from_secs(3600));
        assert!(!counted.is_zero() && counted <= took, "{counted:?} of {took:?}");
        // The wait was shorter than the time in which the result was awaited.
        let shortest = Duration::from_nanos(1);
        assert_eq!(read_after(shortest).0, shortest);
    }

    #[test]
    fn results_that_nobody_takes_leave_room_for_others() {
        let (storage, records) = storage();
        let ahead = UnderWay::default();
        for number in 0..AT_ONCE as u8 {
            let (answer, at) = match number % 2 {
                0 => (None, Instant::now()),
                _ => (Some(Answer::Bytes(vec![number])), long_ago()),
            };
            add(&ahead, get(number), answer, at);
        }
        // Those of some are needed again.
        ahead.begin(&storage, vec![get(0), get(1), get(50)]);
        wait_for(&ahead, &[get(0), get(1), get(50)]);
        assert_eq!((lock(&ahead.0).begun.len(), records.take().len()), (3, 3));
        // Results become old while reads wait for room.
        ahead.forget(&[get(0), get(1), get(50)]);
        for number in 0..AT_ONCE as u8 {
            add(&ahead, get(number), Some(Answer::Bytes(vec![number])), Instant::now());
        }
        ahead.begin(&storage, vec![get(60), get(61)]);
        for number in 0..AT_ONCE as u8 {
            add(&ahead, get(number), Some(Answer::Bytes(vec![number])), long_ago());
        }
        assert!(ahead.bytes(&storage, "60", 10).is_none());
        wait_for(&ahead, &[get(61)]);
    }

    #[test]
    fn the_queue_does_not_grow() {
        let (storage, _) = storage();
        let ahead = UnderWay::default();
        // No thread can take anything from the queue.
        lock(&ahead.0).threads = AT_ONCE;
        for _ in 0..100 {
            ahead.begin(&storage, vec![get(1), get(2)]);
            assert!(ahead.bytes(&storage, "1", 10).is_none());
            assert!(lock(&ahead.0).queue.len() <= 3);
        }
    }

    #[test]
    fn large_objects_are_not_read_ahead() {
        let target = Target::new(Box::new(Memory::default()), "memory".into());
        let [small, large] = [SMALL, SMALL + 1].map(|length| vec![7; length]);
        target.put("x/small", &small).unwrap();
        target.put("x/large", &large).unwrap();
        let found = target.list("x/").unwrap();
        let reads: Vec<_> = found.iter().filter_map(|object| Ahead::of(object, usize::MAX)).collect();
        assert_eq!(reads, [Ahead::Get("x/small".into(), usize::MAX)]);
        // The length may be unknown.
        let (storage, ahead) = (target.storage(), UnderWay::default());
        let reads = ["x/small", "x/large"].map(|name| Ahead::Get(name.into(), usize::MAX));
        ahead.begin(storage, reads.to_vec());
        wait_for(&ahead, &reads);
        // An array of a megabyte is no message.
        assert!(ahead.bytes(storage, "x/small", usize::MAX) == Some(small));
        assert!(ahead.bytes(storage, "x/large", usize::MAX).is_none());
        assert!(target.get("x/large", usize::MAX).unwrap() == large);
    }

    #[test]
    fn only_reads_from_a_server_need_room() {
        let folder = tempfile::tempdir().unwrap();
        let local = Target::new(Box::new(DirectoryStorage::open(folder.path()).unwrap()), "directory".into());
        let remote = Target::new(Box::new(Memory::default()), "memory".into());
        assert_eq!((local.read_ahead(), remote.read_ahead()), ((0, 0), (16, 16 << 20)));
    }

    #[test]
    fn items_in_turn_leave_nothing() {
        let (storage, records) = storage();
        let ahead = UnderWay::default();
        let items: Vec<u8> = (0..30).collect();
        let reads = |items: &[u8]| items.iter().copied().map(get).collect::<Vec<_>>();
        let in_turn =
            || InTurn::new(&items, |next| ahead.begin(&storage, reads(next)), |passed| ahead.forget(&reads(passed)));
        for number in in_turn() {
            // Some are passed over.
            if number % 2 == 0 {
                let name = number.to_string();
                let read = ahead.bytes(&storage, &name, 10).unwrap_or_else(|| storage.get(&name, 10).unwrap());
                assert_eq!(read, [*number]);
            }
            let state = lock(&ahead.0);
            let known = state.begun.keys().chain(&state.waiting);
            assert!(known.into_iter().all(|read| (*number..*number + 8).any(|next| *read == get(next))));
        }
        assert!(records.take().len() <= 30);
        for number in in_turn() {
            if *number == 9 {
                break;
            }
        }
        let state = lock(&ahead.0);
        assert!(state.begun.is_empty() && state.waiting.is_empty());
    }
}
