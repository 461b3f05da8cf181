//! The first reads of a session, over a network begun while the repository is being opened.

use std::path::Path;
use std::time::Duration;

use crate::catalog::{self, Catalog, LastRun};
use crate::format::name::{self, GenerationName};
use crate::repository::Access;
use crate::state::RepositoryState;
use crate::storage::Ahead;

/// The runs of this machine that the catalog knew before the repository was opened. A listing of generations that was begun
/// then shows the same as a later one, as far as this machine is concerned, unless a run of it began in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyRuns {
    last: LastRun,
    intended: LastRun,
}

impl EarlyRuns {
    /// The runs of the repository that the last backup to this place was made to. `None` if that is not known.
    pub fn at(state: &Path, place: &str) -> Option<Self> {
        let (id, known) = RepositoryState::looked_at(state, place, Duration::MAX)?;
        Catalog::view(&known.catalog_path(), id).ok()?.read(|catalog| EarlyRuns::of(&catalog)).ok()
    }

    pub(super) fn of(catalog: &Catalog) -> Result<Self, catalog::Error> {
        let (last, intended) = catalog.runs()?;
        Ok(EarlyRuns { last, intended })
    }

    /// The listing of generations, and the last one.
    pub fn reads(&self) -> Vec<Ahead> {
        let LastRun { number, run } = self.last;
        let last = run.map(|run| Access::read_of_generation(GenerationName::of_run(number, run)));
        last.into_iter().chain([Ahead::List(name::GENERATION.to_owned())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Repository;
    use crate::session::fixture::Site;
    use crate::storage::testing::{Memory, Record, Recording, Records};
    use crate::storage::{Operation, Target};

    fn open(memory: &Memory) -> (Repository, Records) {
        let (recording, records) = Recording::new(Box::new(memory.clone()));
        (Repository::at(Target::new(Box::new(recording), "memory".into())).unwrap(), records)
    }

    /// Makes a run. Returns the runs that are known after it.
    fn make_run(site: &Site) -> EarlyRuns {
        site.with_session(|session, mut catalog| {
            session.announce(&mut catalog).unwrap();
            catalog.set_finished().unwrap();
            catalog.commit().unwrap();
            EarlyRuns::of(&catalog).unwrap()
        })
    }

    #[test]
    fn a_listing_is_made_again_only_if_a_run_of_this_machine_began_after_it() {
        let (site, memory) = Site::in_memory();
        make_run(&site);
        let early = make_run(&site);
        for run_in_between in [false, true] {
            let (repository, records) = open(&memory);
            repository.target().begin(early.reads());
            // The listing and the object.
            let mut made = 0;
            while made < early.reads().len() {
                made += records.take().iter().filter(|record| record.name.starts_with(name::GENERATION)).count();
            }
            let expected = if run_in_between { make_run(&site).last.number } else { early.last.number };
            site.with_session_in(&repository, Some(early), |session, _| {
                assert_eq!(session.generation(), expected + 1);
            });
            let listings = records.take().into_iter().filter(|record| record.operation == Operation::List);
            let listings = listings.filter(|record| record.name == name::GENERATION).count();
            assert_eq!(listings, usize::from(run_in_between));
        }
    }

    #[test]
    fn a_look_for_rivals_is_not_older_than_its_beginning() {
        let (site, memory) = Site::in_memory();
        let (repository, records) = open(&memory);
        let listing = |record: &Record| record.operation == Operation::List && record.name == name::GENERATION;
        site.with_session_in(&repository, None, |session, mut catalog| {
            session.announce(&mut catalog).unwrap();
            records.take();
            for _ in 0..2 {
                session.begin_to_look();
                while !records.take().iter().any(listing) {
                    std::thread::yield_now();
                }
            }
            session.still_alone().unwrap();
            assert!(!records.take().iter().any(listing));
        });
    }

    #[test]
    fn rivals_are_looked_for_in_a_listing_that_begins_after_the_announcement() {
        let (site, memory) = Site::in_memory();
        let (repository, records) = open(&memory);
        let listing = |record: &Record| record.operation == Operation::List && record.name == name::GENERATION;
        site.with_session_in(&repository, None, |session, mut catalog| {
            records.take();
            session.begin_to_look();
            while !records.take().iter().any(listing) {
                std::thread::yield_now();
            }
            session.announce(&mut catalog).unwrap();
            let after = records.take();
            let stored = after.iter().position(|record| record.operation == Operation::Store);
            assert!(after.iter().skip(stored.unwrap()).any(listing), "{after:?}");
        });
    }
}
