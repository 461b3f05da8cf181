//! Reads that begin before their results are needed.
//!
//! A command makes many small reads, one after the other, and over a distance each takes at least a round trip. Here some
//! of them are made at the same time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::contract::{ObjectInfo, Storage};
use super::error::Error;

/// Reads that are made at the same time, and whose results are in memory at the same time.
const AT_ONCE: usize = 16;

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

/// Reads that begin in their order, and of which each result is used once.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    reads: Mutex<Reads>,
    /// A result was used, or none is needed any more.
    used: Condvar,
}

#[derive(Debug, Default)]
struct Reads {
    waiting: VecDeque<Ahead>,
    begun: HashMap<Ahead, Receiver<Answer>>,
}

impl UnderWay {
    /// Runs `work` while these reads are made.
    pub(super) fn during<T>(&self, storage: &dyn Storage, reads: Vec<Ahead>, work: impl FnOnce() -> T) -> T {
        let count = reads.len().min(AT_ONCE);
        self.lock().waiting.extend(reads);
        thread::scope(|threads| {
            let _end = End(self);
            let make = || {
                while let Some((read, answer)) = self.begin() {
                    // Its result may not be needed any more.
                    let _ = answer.send(read.make(storage));
                }
            };
            for _ in 0..count {
                // If no thread can be started, the reads are only made later.
                let _ = thread::Builder::new().name("read-ahead".into()).spawn_scoped(threads, make);
            }
            work()
        })
    }

    /// The next read, once there is room for its result. `None` if there is none.
    fn begin(&self) -> Option<(Ahead, Sender<Answer>)> {
        let full = |reads: &mut Reads| !reads.waiting.is_empty() && reads.begun.len() >= AT_ONCE;
        let mut reads = self.used.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        let read = reads.waiting.pop_front()?;
        let (sender, answer) = bounded(1);
        reads.begun.insert(read.clone(), answer);
        Some((read, sender))
    }

    /// The bytes of an object, if they are being read.
    pub(super) fn bytes(&self, name: &str, limit: usize) -> Option<Result<Vec<u8>, Error>> {
        match self.wait(&Ahead::Get(name.to_owned(), limit))? {
            Answer::Bytes(bytes) => Some(bytes),
            Answer::Objects(_) => None,
        }
    }

    /// The objects with a prefix, if they are being listed.
    pub(super) fn objects(&self, prefix: &str) -> Option<Result<Vec<ObjectInfo>, Error>> {
        match self.wait(&Ahead::List(prefix.to_owned()))? {
            Answer::Objects(objects) => Some(objects),
            Answer::Bytes(_) => None,
        }
    }

    /// The result of a read. `None` if it has not begun: then the caller makes it.
    fn wait(&self, read: &Ahead) -> Option<Answer> {
        let mut reads = self.lock();
        let begun = reads.begun.remove(read);
        match begun {
            Some(_) => self.used.notify_one(),
            None => reads.waiting.retain(|waiting| waiting != read),
        }
        drop(reads);
        begun?.recv().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends all reads on drop, including unwinding.
struct End<'u>(&'u UnderWay);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.lock() = Reads::default();
        self.0.used.notify_all();
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::testing::{Memory, Recording};
    use super::*;

    #[test]
    fn many_reads_are_made_once_each_and_few_results_wait() {
        let memory = Memory::default();
        let names: Vec<_> = (0..100u8).map(|number| format!("index/{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            let mut spool = memory.spool(name, Uuid::nil()).unwrap();
            spool.append(&[number as u8]).unwrap();
            memory.store(&spool).unwrap();
        }
        let (storage, records) = Recording::new(Box::new(memory));
        let under_way = UnderWay::default();
        let reads = || names.iter().map(|name| Ahead::Get(name.clone(), 1)).collect();
        under_way.during(&storage, reads(), || {
            // Of the last ones, none has begun.
            for (number, name) in names.iter().enumerate().rev() {
                let read = under_way.bytes(name, 1).unwrap_or_else(|| storage.get(name, 1)).unwrap();
                assert_eq!(read, [number as u8]);
                assert!(under_way.lock().begun.len() <= AT_ONCE);
            }
            assert!(under_way.bytes(&names[0], 1).is_none());
        });
        assert_eq!(records.take().len(), names.len());
        // Work may end early.
        let first = under_way.during(&storage, reads(), || under_way.bytes(&names[0], 1));
        assert!(first.is_none_or(|read| read.unwrap() == [0]));
        assert!(records.take().len() <= 2 * AT_ONCE + 1);
        assert!(under_way.lock().waiting.is_empty() && under_way.lock().begun.is_empty());
    }
}
