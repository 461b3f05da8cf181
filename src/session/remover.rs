//! Removal of objects from a repository.
//!
//! A [`Remover`] is the only way to remove packs, documents and temporary files of other runs. Only a session makes one,
//! and only once the run is announced: from then on, a run with a copy of this catalog fails before it relies on an object
//! that is removed here. Clippy refuses other calls (see clippy.toml), except these in `repository` and `storage`, which
//! need no session:
//!
//! - a damaged small object is removed before a correct one takes its name: keys, certificates, the description;
//! - an `init` that fails removes the description that it wrote, and the objects of an interrupted `init`.

use super::{Error, Session};
use crate::catalog::Catalog;
use crate::format::id::RunId;
use crate::format::name;
use crate::storage::{self, Target};

/// Removes objects from a repository.
pub struct Remover<'s> {
    target: &'s Target,
}

impl Session<'_> {
    /// Announces the run, and returns its remover.
    pub fn remover(&self, catalog: &mut Catalog) -> Result<Remover<'_>, Error> {
        self.announce(catalog)?;
        Ok(Remover { target: self.repository().target() })
    }
}

impl Remover<'_> {
    /// Removes an object, durably.
    #[expect(clippy::disallowed_methods, reason = "the place that others must use")]
    pub fn remove(&self, object: &str) -> Result<(), storage::Error> {
        self.target.remove(object)
    }

    /// Removes the temporary files of these runs, which must not be active.
    #[expect(clippy::disallowed_methods, reason = "the place that others must use")]
    pub fn remove_temporaries(&self, runs: &[RunId]) -> Result<(), storage::Error> {
        let runs: Vec<_> = runs.iter().map(|run| run.writer()).collect();
        self.target.discard(&name::FOLDERS, &runs).map(drop)
    }
}
