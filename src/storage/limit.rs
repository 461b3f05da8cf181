//! Storage that bounds the bytes per second.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use super::contract::Storage;
use super::error::Error;
use super::interrupt::Interrupt;
use super::pace::Pace;
use super::spool::Spool;
use super::wrapper::{Call, Operation, Try, Wrapper};

/// Maximum bytes per second; `None` for no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// From here to the target.
    pub upload: Option<NonZeroU64>,
    /// From the target to here.
    pub download: Option<NonZeroU64>,
}

/// A storage that transfers a bounded number of bytes per second, summed over all threads. Only the content of objects
/// counts. Storage on another machine gets an object piece by piece at the rate. In a directory, an object is stored at once
/// and paid for afterwards, as is every read, so the bound holds on average.
#[derive(Debug)]
pub struct Limit {
    inner: Box<dyn Storage>,
    upload: Option<Arc<Pace>>,
    download: Option<Pace>,
}

impl Limit {
    /// A storage that transfers to and from `inner` at these rates, until the interrupt.
    pub fn new(inner: Box<dyn Storage>, rates: Rates, interrupt: &Interrupt) -> Self {
        let pace = |rate: NonZeroU64| Pace::new(rate, interrupt.clone());
        Limit { inner, upload: rates.upload.map(pace).map(Arc::new), download: rates.download.map(pace) }
    }
}

impl Wrapper for Limit {
    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let begun = Instant::now();
        let Call { operation, spool, .. } = call;
        if operation != Operation::Store {
            let bytes = attempt()?;
            if let (Some(pace), 1..) = (&self.download, bytes) {
                pace.pay(begun, bytes);
            }
            return Ok(());
        }
        let Some(pace) = &self.upload else { return attempt().map(drop) };
        let is_paid = spool.is_some_and(|spool: &Spool| spool.upload_at(pace));
        let bytes = attempt()?;
        if !is_paid {
            pace.pay(begun, bytes);
        }
        Ok(())
    }
}
