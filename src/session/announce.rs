//! Announces a run that writes.

use tracing::debug;

use super::error::Error;
use crate::catalog::Catalog;
use crate::format::generation::Generation;
use crate::repository::{self, Writer};
use crate::storage::ErrorKind;

/// Announces a run, before it writes anything else: writes its generation, which only one run can have.
///
/// The catalog knows the number durably before it is used, so that after a crash in between the machine recognizes its own
/// generation. What the caller changed in the catalog before is committed, too.
pub(super) fn announce(catalog: &mut Catalog, writer: &Writer<'_>, generation: &Generation) -> Result<(), Error> {
    let Generation { number, run, .. } = *generation;
    catalog.intend_run(number, run)?;
    catalog.commit()?;
    match writer.put_generation(generation) {
        Err(repository::Error::Target(error)) if error.kind == ErrorKind::AlreadyExists => {
            return Err(Error::ConcurrentWriter { found: number });
        }
        other => other?,
    }
    debug!(generation = number, %run, "run announced");
    Ok(catalog.set_run(number, run)?)
}
