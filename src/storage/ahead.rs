//! Reads that begin before their results are needed.
//!
//! A command makes many small reads, one after the other, and over a distance each takes at least a round trip. Here several
//! of them are made at the same time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::contract::{ObjectInfo, Storage};
use super::error::Error;
use super::retry;

/// Reads that are made at the same time, each by a thread, and whose results are in memory at the same time.
const AT_ONCE: usize = 16;
/// Objects in turn that are read at the same time.
pub(super) const IN_TURN: usize = 8;
/// How long a listing can be used: the user may have been asked for a passphrase in the meantime.
const FRESH: Duration = Duration::from_secs(10);

/// A read that will be needed soon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ahead {
    /// [`Target::get`](super::Target::get) of an object of at most this size.
    Get(String, usize),
    /// [`Target::list`](super::Target::list) of a prefix.
    List(String),
}

/// The result of a read.
#[derive(Debug)]
enum Answer {
    Bytes(Result<Vec<u8>, Error>),
    Objects(Result<Vec<ObjectInfo>, Error>),
}

/// A result, and what it took.
#[derive(Debug)]
struct Made {
    answer: Answer,
    at: Instant,
    /// How long the thread waited for a target that was away.
    waited: Duration,
}

/// Reads that begin in their order. Each result is used once.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<Reads>>);

#[derive(Debug, Default)]
struct Reads {
    queue: VecDeque<Ahead>,
    /// Those in the queue that are still needed.
    waiting: HashSet<Ahead>,
    begun: HashMap<Ahead, Receiver<Made>>,
    threads: usize,
}

impl UnderWay {
    /// Begins reads, except those that were begun and not used yet. Results may be as old as this call.
    pub(super) fn begin(&self, storage: &Arc<dyn Storage>, reads: Vec<Ahead>) {
        let mut state = lock(&self.0);
        for read in reads {
            if !state.begun.contains_key(&read) && state.waiting.insert(read.clone()) {
                state.queue.push_back(read);
            }
        }
        self.start(&mut state, storage);
    }

    /// Starts threads for reads that wait, as far as there is room for results.
    fn start(&self, state: &mut Reads, storage: &Arc<dyn Storage>) {
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

    /// The bytes of an object, if they are being read.
    pub(super) fn bytes(&self, storage: &Arc<dyn Storage>, name: &str, limit: usize) -> Option<Result<Vec<u8>, Error>> {
        match self.wait(storage, &Ahead::Get(name.to_owned(), limit))? {
            Answer::Bytes(bytes) => Some(bytes),
            Answer::Objects(_) => None,
        }
    }

    /// The objects with a prefix, if they are being listed.
    pub(super) fn objects(&self, storage: &Arc<dyn Storage>, prefix: &str) -> Option<Result<Vec<ObjectInfo>, Error>> {
        match self.wait(storage, &Ahead::List(prefix.to_owned()))? {
            Answer::Objects(objects) => Some(objects),
            Answer::Bytes(_) => None,
        }
    }

    /// The result of a read. `None` if it has not begun: then the caller makes it.
    fn wait(&self, storage: &Arc<dyn Storage>, read: &Ahead) -> Option<Answer> {
        let result = {
            let mut state = lock(&self.0);
            state.waiting.remove(read);
            let result = state.begun.remove(read)?;
            self.start(&mut state, storage);
            result
        };
        let Made { answer, at, waited } = result.recv().ok()?;
        retry::add_waited(waited);
        // Objects do not change.
        let is_fresh = matches!(read, Ahead::Get(..)) || at.elapsed() < FRESH;
        is_fresh.then_some(answer)
    }
}

impl Reads {
    /// The next read, if there is room for its result.
    fn next(&mut self) -> Option<(Ahead, Sender<Made>)> {
        while self.begun.len() < AT_ONCE {
            let read = self.queue.pop_front()?;
            if self.waiting.remove(&read) {
                let (sender, result) = bounded(1);
                self.begun.insert(read.clone(), result);
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
        let answer = read.make(storage);
        // Nobody may need it any more.
        let _ = sender.send(Made { answer, at: Instant::now(), waited: retry::waited() - before });
    }
}

impl Ahead {
    fn make(&self, storage: &dyn Storage) -> Answer {
        match self {
            Ahead::Get(name, limit) => Answer::Bytes(storage.get(name, *limit)),
            Ahead::List(prefix) => {
                let mut objects = Vec::new();
                let listed = storage.visit(prefix, &mut |object| objects.push(object));
                Answer::Objects(listed.map(|()| objects))
            }
        }
    }
}

fn lock(reads: &Mutex<Reads>) -> MutexGuard<'_, Reads> {
    reads.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::testing::{Memory, Recording, Records};
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
        assert_eq!(ahead.bytes(&storage, "1", 10).unwrap().unwrap(), [1]);
        assert_eq!(ahead.objects(&storage, "").unwrap().unwrap().len(), 100);
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
            let read = ahead.bytes(&storage, &name, 10).unwrap_or_else(|| storage.get(&name, 10));
            assert_eq!(read.unwrap(), [number]);
            assert!(lock(&ahead.0).begun.len() <= AT_ONCE);
        }
        assert!(ahead.bytes(&storage, "0", 10).is_none());
        assert_eq!(records.take().len(), 100);
        // They may be dropped early.
        ahead.begin(&storage, reads());
        let first = ahead.bytes(&storage, "0", 10);
        assert!(first.is_none_or(|read| read.unwrap() == [0]));
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

    #[test]
    fn an_old_listing_is_not_used_and_an_old_object_is() {
        let (storage, _) = storage();
        let ahead = UnderWay::default();
        let old = Instant::now().checked_sub(2 * FRESH).unwrap();
        let answers =
            [(get(1), Answer::Bytes(Ok(vec![1]))), (Ahead::List(String::new()), Answer::Objects(Ok(Vec::new())))];
        for (read, answer) in answers {
            let (sender, result) = bounded(1);
            sender.send(Made { answer, at: old, waited: Duration::from_secs(3) }).unwrap();
            lock(&ahead.0).begun.insert(read, result);
        }
        let before = retry::waited();
        assert!(ahead.objects(&storage, "").is_none());
        assert_eq!(ahead.bytes(&storage, "1", 10).unwrap().unwrap(), [1]);
        assert_eq!(retry::waited() - before, Duration::from_secs(6));
    }
}
