//! Storage that records all operations.

use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::wrapper::{Call, Try, Wrapper};
use crate::storage::{Ended, Error, ErrorKind, Operation, Storage};

/// An operation that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The kind of operation.
    pub operation: Operation,
    /// The object or the prefix; empty if there are several.
    pub name: String,
    /// The bytes transferred.
    pub bytes: u64,
    /// The error, if it failed.
    pub error: Option<ErrorKind>,
}

/// The operations so far, in the order of their ends. Clones are the same records.
#[derive(Debug, Clone, Default)]
pub struct Records(Arc<Mutex<Vec<Record>>>);

impl Records {
    fn add(&self, operation: Operation, name: &str, result: &Result<u64, Error>) {
        let error = result.as_ref().err().map(|error| error.kind);
        let record = Record { operation, name: name.to_owned(), bytes: *result.as_ref().unwrap_or(&0), error };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// Returns the records so far and removes them.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A storage that records all operations on another one.
#[derive(Debug)]
pub struct Recording {
    inner: Box<dyn Storage>,
    records: Records,
}

impl Recording {
    /// A storage that records operations on `inner`, and the records.
    pub fn new(inner: Box<dyn Storage>) -> (Self, Records) {
        let records = Records::default();
        (Recording { inner, records: records.clone() }, records)
    }
}

impl Wrapper for Recording {
    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let result = attempt();
        self.records.add(call.operation, call.name, &result);
        result.map(drop)
    }

    /// Records each removal, and an error that ends all of them.
    fn around_removals(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        let removed = self.inner.remove_all(names, &mut |at, result| {
            let result = result.map(|()| 0);
            self.records.add(Operation::Remove, names.get(at).copied().unwrap_or_default(), &result);
            ended(at, result.map(drop));
        });
        if let Err(error) = removed {
            let result = Err(error);
            self.records.add(Operation::Remove, "", &result);
            return result.map(drop);
        }
        Ok(())
    }
}
