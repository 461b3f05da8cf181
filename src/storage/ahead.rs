//! Reads that begin before their results are needed.
//!
//! A command makes many small reads, one after the other, and over a distance each takes at least a round trip. Here some
//! of them are made at the same time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use super::contract::{ObjectInfo, Storage};
use super::error::Error;

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

/// Reads under way. Each result is used once.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<Ahead, Receiver<Answer>>>);

impl UnderWay {
    /// Runs `work` while these reads are made.
    pub(super) fn during<T>(&self, storage: &dyn Storage, reads: Vec<Ahead>, work: impl FnOnce() -> T) -> T {
        thread::scope(|threads| {
            for read in reads {
                let (sender, answer) = bounded(1);
                let task = read.clone();
                let make = move || _ = sender.send(task.make(storage));
                // If no thread can be started, the read is only made later.
                if thread::Builder::new().name("read-ahead".into()).spawn_scoped(threads, make).is_ok() {
                    self.lock(|reads| reads.insert(read, answer));
                }
            }
            let result = work();
            self.lock(HashMap::clear);
            result
        })
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

    fn wait(&self, read: &Ahead) -> Option<Answer> {
        let answer = self.lock(|reads| reads.remove(read))?;
        answer.recv().ok()
    }

    fn lock<T>(&self, work: impl FnOnce(&mut HashMap<Ahead, Receiver<Answer>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
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
