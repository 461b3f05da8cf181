//! Removal of objects from a repository.
//!
//! A [`Remover`] is the only way to remove packs, documents and temporary files of other runs. It is made only once the
//! run is announced: from then on, a run with a copy of this catalog fails before it relies on an object
//! that is removed here. Clippy refuses other calls (see clippy.toml), except these in `repository` and `storage`, which
//! need no session:
//!
//! - a damaged small object is removed before a correct one takes its name: keys, certificates, the description;
//! - an `init` that fails removes the description that it wrote, and the objects of an interrupted `init`.

use std::iter;

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

    /// Divides objects into batches for [`Remover::remove_all`]. The size of each is decided when it is its turn: the target may
    /// have turned out to need a request for each object.
    pub fn batches<'o, T>(&self, objects: &'o [T]) -> impl Iterator<Item = &'o [T]> {
        let (mut left, target) = (objects, self.target);
        iter::from_fn(move || {
            let size = target.capabilities().removals.clamp(1, left.len().max(1));
            let (batch, rest) = left.split_at_checked(size)?;
            left = rest;
            Some(batch)
        })
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
    fn a_batch_is_as_large_as_the_target_likes_when_it_is_its_turn() {
        let (site, memory) = Site::in_memory();
        site.with_session(|session, mut catalog| {
            let remover = session.remover(&mut catalog).unwrap();
            memory.set_removals(5);
            let objects: Vec<_> = (0..12).collect();
            let mut batches = remover.batches(&objects);
            assert_eq!(batches.next().unwrap(), [0, 1, 2, 3, 4]);
            memory.set_removals(3);
            assert_eq!(batches.next().unwrap(), [5, 6, 7]);
            memory.set_removals(0);
            assert_eq!(batches.next().unwrap(), [8]);
            memory.set_removals(1000);
            assert_eq!((batches.next().unwrap(), batches.next()), (&[9, 10, 11][..], None));
        });
    }

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
