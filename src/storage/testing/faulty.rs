//! Storage that fails on request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::removal::one_by_one;
use crate::storage::wrapper::{Call, Try, Wrapper};
use crate::storage::{Ended, Error, ErrorKind, Operation, Parts, Storage};

/// Operations that fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The kind of operation; `None` for all.
    pub operation: Option<Operation>,
    /// The number of such operations that succeed first.
    pub after: u64,
    /// The number of operations that fail then.
    pub times: u64,
    /// The kind of their error.
    pub kind: ErrorKind,
    /// Whether they take effect, as if only the reply was lost.
    pub takes_effect: bool,
}

impl Fault {
    /// The next operation of this kind fails, and takes no effect.
    pub fn next(operation: Operation, kind: ErrorKind) -> Self {
        Fault { operation: Some(operation), after: 0, times: 1, kind, takes_effect: false }
    }
}

/// Controls the failures of a [`Faulty`]. Clones control the same storage.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    away: bool,
    failures: u64,
}

impl State {
    fn take_fault(&mut self, operation: Operation) -> Option<(ErrorKind, bool)> {
        let fits = |fault: &&mut Fault| fault.times > 0 && fault.operation.is_none_or(|wanted| wanted == operation);
        let fault = self.faults.iter_mut().find(fits)?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times -= 1;
        Some((fault.kind, fault.takes_effect))
    }
}

impl Faults {
    /// Lets operations fail. Of several faults that fit an operation, the first one counts.
    pub fn add(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Lets operations succeed again.
    pub fn clear(&self) {
        self.state().faults.clear();
    }

    /// Takes the storage away, so that every operation is [`ErrorKind::Unavailable`], or brings it back.
    pub fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    /// The number of operations that failed so far.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// The kind of error of the next operation, and whether it takes effect.
    fn next(&self, operation: Operation) -> Option<(ErrorKind, bool)> {
        let mut state = self.state();
        let fails = if state.away { Some((ErrorKind::Unavailable, false)) } else { state.take_fault(operation) };
        state.failures += u64::from(fails.is_some());
        fails
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A storage whose operations fail when its [`Faults`] say so.
#[derive(Debug)]
pub struct Faulty {
    inner: Box<dyn Storage>,
    faults: Faults,
}

impl Faulty {
    /// A storage around `inner`, and the handle that controls its failures. At first nothing fails.
    pub fn new(inner: Box<dyn Storage>) -> (Self, Faults) {
        let faults = Faults::default();
        (Faulty { inner, faults: faults.clone() }, faults)
    }
}

impl Wrapper for Faulty {
    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let Some((kind, takes_effect)) = self.faults.next(call.operation) else { return attempt().map(drop) };
        if takes_effect {
            attempt()?;
        }
        let action = match call.operation {
            Operation::Spool => "write",
            Operation::Store => "store",
            Operation::Read | Operation::Length => "read",
            Operation::List => "list",
            Operation::Remove => "remove",
            Operation::Settle => "settle",
            Operation::Discard => "discard remains in",
        };
        Err(Error::new(kind, action, call.name, "the test wants it to fail"))
    }

    /// One after the other, so that each part can fail.
    fn around_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        parts.one_by_one(|offset, length, bytes| self.read(name, offset, length, bytes))
    }

    /// One after the other, so that each removal can fail.
    fn around_removals(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        one_by_one(1, names, &|name| self.remove(name), ended)
    }
}
