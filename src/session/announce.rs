//! Announces a run that writes.

use tracing::debug;

use super::error::Error;
use crate::catalog::Catalog;
use crate::format::generation::{Generation, Role};
use crate::format::id::RunId;
use crate::format::name::{self, GenerationName};
use crate::inventory::Strange;
use crate::repository::{self, Access, Ahead, Repository, Writer};
use crate::storage::ErrorKind;

/// What is needed to see the generations of other runs.
pub(super) struct Rivals<'a> {
    pub(super) repository: &'a Repository,
    pub(super) access: &'a Access,
    /// Objects that do not verify.
    pub(super) strange: Vec<Strange>,
}

impl Rivals<'_> {
    /// Fails if a run other than `own` has its number or a higher one. Returns whether `own` is listed.
    pub(super) fn look(&mut self, own: GenerationName) -> Result<bool, Error> {
        let mut listed = false;
        for (name, length) in self.repository.generations()? {
            listed |= name == own;
            let known = self.strange.iter().position(|strange| (strange.name, strange.length) == (name, length));
            // One that could not be read may be readable by now.
            let was_unread = known.and_then(|at| self.strange.get(at)).is_some_and(|known| known.unread.is_some());
            if name.number < own.number || name == own || known.is_some() && !was_unread {
                continue;
            }
            match self.access.generation(self.repository, name) {
                Ok(_) => return Err(Error::ConcurrentWriter { found: name.number }),
                // It may be that of a rival.
                Err(repository::Error::Target(_)) if was_unread => {}
                Err(error) if is_unknown(&error) => return Err(error.into()),
                // Anyone may have created it.
                Err(error) => {
                    known.map(|at| self.strange.swap_remove(at));
                    self.strange.push(Strange::new((name, length), &error));
                }
            }
        }
        Ok(listed)
    }
}

/// Whether an error says nothing about the object, such as that of a target that is away.
fn is_unknown(error: &repository::Error) -> bool {
    matches!(error, repository::Error::Target(error) if error.is_away() || error.kind == ErrorKind::Other)
}

/// Announces a run, before it writes anything else: writes its generation, and then looks for those of other runs. Of two
/// runs that do this at the same time, at most one continues.
///
/// The catalog knows the number durably before it is used, so that after a crash in between the machine recognizes its own
/// generation. What the caller changed in the catalog before is committed, too.
pub(super) fn announce(
    catalog: &mut Catalog,
    writer: &Writer<'_>,
    rivals: &mut Rivals<'_>,
    number: u64,
    run: RunId,
) -> Result<(), Error> {
    catalog.intend_run(number, run)?;
    catalog.commit()?;
    let census = catalog.census(number)?;
    let generation = Generation { number, run, catalog: catalog.trust().catalog, role: Role::Host, census };
    writer.put_generation(&generation)?;
    // One that was begun before might lack a rival.
    rivals.repository.target().forget_begun(&[Ahead::List(name::GENERATION.to_owned())]);
    rivals.look(generation.name())?;
    debug!(generation = number, %run, "run announced");
    Ok(catalog.set_run(number, run)?)
}
