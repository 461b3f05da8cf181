//! Storage that logs all operations: kinds, objects, sizes and durations.

use std::time::Instant;

use tracing::{Level, debug, enabled};

use super::contract::{Ended, Storage};
use super::error::Error;
use super::wrapper::{Call, Operation, Try, Wrapper};

/// A storage that logs each operation on another one.
#[derive(Debug)]
struct Logged(Box<dyn Storage>);

/// Adds a log to the storage, if there is one.
pub(super) fn logged(storage: Box<dyn Storage>) -> Box<dyn Storage> {
    if enabled!(Level::DEBUG) { Box::new(Logged(storage)) } else { storage }
}

impl Wrapper for Logged {
    fn inner(&self) -> &dyn Storage {
        &*self.0
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let start = Instant::now();
        let result = attempt();
        let micros = start.elapsed().as_micros();
        let Call { operation, name: object, .. } = call;
        match &result {
            Ok(_) if operation == Operation::Spool => {}
            Ok(bytes) => debug!(?operation, object, bytes, micros, "storage"),
            // Not the message: it may have a path.
            Err(error) => debug!(?operation, object, micros, error = ?error.kind, "storage failed"),
        }
        result.map(drop)
    }

    /// Logs each removal. The durations count from the beginning of all of them.
    fn around_removals(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        let (start, operation) = (Instant::now(), Operation::Remove);
        let log = |object: &str, result: &Result<(), Error>| {
            let micros = start.elapsed().as_micros();
            match result {
                Ok(()) => debug!(?operation, object, bytes = 0, micros, "storage"),
                Err(error) => debug!(?operation, object, micros, error = ?error.kind, "storage failed"),
            }
        };
        let removed = self.0.remove_all(names, &mut |at, result| {
            log(names.get(at).copied().unwrap_or_default(), &result);
            ended(at, result);
        });
        if removed.is_err() {
            log("", &removed);
        }
        removed
    }
}
