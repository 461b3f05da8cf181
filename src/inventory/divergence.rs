//! Detects whether the repository is still as this catalog left it.
//!
//! A repository's writer is the catalog named in its last generation, and a generation names its run. Reading the last
//! generation is therefore enough to find writes and losses that the catalog does not know.

use super::context::Inventory;
use super::error::Error;
use super::generations::Generations;
use crate::catalog::{Catalog, LastRun};
use crate::format::id::RunId;

/// The state of a repository relative to its writer's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// Unchanged since the catalog's last run.
    AsLeft,
    /// The last generation is that of an intended run, which was killed before the catalog recorded its start.
    Begun {
        /// The number of the run's generation.
        number: u64,
        /// The id of the run.
        run: RunId,
    },
    /// The last run in the catalog is missing from the repository.
    SetBack {
        /// The last generation in the repository; 0 if there is none.
        found: u64,
        /// The last generation in the catalog.
        known: u64,
    },
    /// The repository has runs of this catalog that the catalog does not contain.
    Forgotten {
        /// The last generation in the repository.
        found: u64,
        /// The last generation in the catalog.
        known: u64,
    },
}

impl Divergence {
    /// A message for the user, or `None` if all is well.
    pub fn message(self) -> Option<String> {
        match self {
            Divergence::AsLeft | Divergence::Begun { .. } => None,
            Divergence::SetBack { found, known } => Some(format!(
                "the repository is older than this machine's catalog (generation {found}, the catalog knows {known}): it was set back to an older copy, or lost objects"
            )),
            Divergence::Forgotten { found, known } => Some(format!(
                "the repository has runs that this machine's catalog does not know (generation {found}, the catalog knows {known}): its state was set back to an older copy, or another machine uses a copy of it (then run `brackfs adopt` on one of them)"
            )),
        }
    }
}

impl Inventory<'_> {
    /// Compares the last generation with the catalog. Fails if the repository has another writer.
    pub fn divergence(&self, catalog: &Catalog) -> Result<Divergence, Error> {
        self.generations(catalog)?.divergence(catalog)
    }
}

impl Generations {
    /// Compares the last generation with the catalog. Fails if the repository has another writer.
    pub fn divergence(&self, catalog: &Catalog) -> Result<Divergence, Error> {
        let (known, intended) = catalog.runs()?;
        let found = self.number();
        if self.last.iter().any(|last| last.catalog != catalog.trust().catalog) {
            return Err(Error::OtherWriter { found, known: known.number });
        }
        let run = match self.last.as_slice() {
            [] => {
                return Ok(match known.number {
                    0 => Divergence::AsLeft,
                    known => Divergence::SetBack { found: 0, known },
                });
            }
            [last] => LastRun { number: found, run: Some(last.run) },
            // Copies of this catalog began at the same time.
            _ => return Ok(Divergence::Forgotten { found, known: known.number }),
        };
        Ok(match run.run {
            _ if run == known => Divergence::AsLeft,
            Some(id) if run == intended => Divergence::Begun { number: found, run: id },
            _ if found < known.number => Divergence::SetBack { found, known: known.number },
            _ => Divergence::Forgotten { found, known: known.number },
        })
    }
}
