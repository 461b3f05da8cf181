//! Removal of objects from a repository.
//!
//! A [`Remover`] is the only way to remove packs, documents and temporary files of other runs. It is made only once the
//! run is announced: from then on, a run with a copy of this catalog fails before it relies on an object
//! that is removed here. Clippy refuses other calls (see clippy.toml), except these in `repository` and `storage`, which
//! need no session:
//!
//! - a damaged small object is removed before a correct one takes its name: keys, certificates, the description;
//! - an `init` that fails removes the description that it wrote, and the objects of an interrupted `init`.

use super::error::Error;
use super::open::Session;
use crate::catalog::Catalog;
use crate::format::id::RunId;
use crate::format::name;
use crate::storage::{self, ErrorKind, Target};

/// Removes objects from a repository.
pub struct Remover<'s> {
    target: &'s Target,
}

impl Session<'_> {
    /// Announces the run, and returns its remover.
    pub fn remover(&self, catalog: &mut Catalog) -> Result<Remover<'_>, Error> {
        self.announce(catalog)?;
        Ok(Remover::after_announcement(self.repository().target()))
    }
}

impl<'s> Remover<'s> {
    /// The remover of a run that is announced.
    pub(super) fn after_announcement(target: &'s Target) -> Self {
        Remover { target }
    }

    /// Removes an object, durably.
    #[expect(clippy::disallowed_methods, reason = "the place that others must use")]
    pub fn remove(&self, object: &str) -> Result<(), storage::Error> {
        self.target.remove(object)
    }

    /// Removes an object, durably, unless it is gone already.
    pub fn remove_if_there(&self, object: &str) -> Result<(), storage::Error> {
        match self.remove(object) {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes objects, durably, and in any order. Calls `ended` with the position of each name, and whether the object is
    /// gone now. An error of a target that is away ends the call.
    #[expect(clippy::disallowed_methods, reason = "the place that others must use")]
    pub fn remove_all(
        &self,
        objects: &[&str],
        mut ended: impl FnMut(usize, Result<(), storage::Error>),
    ) -> Result<(), storage::Error> {
        self.target.remove_all(objects, &mut |at, result| match result {
            Err(error) if error.kind == ErrorKind::NotFound => ended(at, Ok(())),
            other => ended(at, other),
        })
    }

    /// The number of objects to remove with one call of [`Remover::remove_all`].
    pub fn batch(&self) -> usize {
        self.target.capabilities().removals.max(1)
    }

    /// Removes the temporary files of these runs, which must not be active.
    #[expect(clippy::disallowed_methods, reason = "the place that others must use")]
    pub(super) fn remove_temporaries(&self, runs: &[RunId]) -> Result<(), storage::Error> {
        let runs: Vec<_> = runs.iter().map(|run| run.writer()).collect();
        self.target.discard(&name::FOLDERS, &runs).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use crate::format::{PackId, name};
    use crate::session::fixture::Site;

    #[test]
    fn a_run_is_announced_before_it_removes_anything() {
        let site = Site::new();
        let pack = name::pack(PackId::random());
        site.repository.target().put(&pack, b"orphan").unwrap();
        site.with_session(|session, mut catalog| {
            assert_eq!(site.count(name::GENERATION), 0);
            let remover = session.remover(&mut catalog).unwrap();
            assert_eq!([name::GENERATION, name::PACKS].map(|folder| site.count(folder)), [1, 1]);
            remover.remove(&pack).unwrap();
        });
        assert_eq!(site.count(name::PACKS), 0);
    }
}
