//! Is the repository as this catalog left it?
//!
//! The writer of a repository is the catalog of its last generation, and a generation names its run. So one look tells
//! whether anything happened that the catalog does not know of.

use super::generations::Generations;
use super::{Error, Inventory};
use crate::catalog::{Catalog, LastRun};
use crate::format::id::RunId;

/// How a repository stands to a catalog that is its writer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// As it was left.
    AsLeft,
    /// As it was left by a run that was killed before it could note that it had begun.
    Begun {
        /// Its number.
        number: u64,
        /// Its id.
        run: RunId,
    },
    /// The last run that the catalog knows of is not there any more.
    SetBack {
        /// The last generation that is there; 0: none.
        found: u64,
        /// The last one that the catalog knows.
        known: u64,
    },
    /// There are runs of this catalog that it does not remember.
    Forgotten {
        /// The last generation that is there.
        found: u64,
        /// The last one that the catalog knows.
        known: u64,
    },
}

impl Divergence {
    /// What it means, for people; none if there is nothing to say.
    pub fn message(self) -> Option<String> {
        match self {
            Divergence::AsLeft | Divergence::Begun { .. } => None,
            Divergence::SetBack { found, known } => Some(format!(
                "the repository is older than this machine's catalog (generation {found}, the catalog knows {known}): it was set back, or lost objects"
            )),
            Divergence::Forgotten { found, known } => Some(format!(
                "the repository has runs of this machine that its catalog does not know (generation {found}, the catalog knows {known}): either this machine's state was set back to an older copy, or another machine uses a copy of it; in that case run `brackfs adopt` on the one that shall go on"
            )),
        }
    }
}

impl Inventory<'_> {
    /// Compares the last generation with what the catalog knows. A repository whose writer is another one is refused.
    pub fn divergence(&self, catalog: &Catalog) -> Result<Divergence, Error> {
        self.generations(&catalog.strange_generations()?)?.divergence(catalog)
    }
}

impl Generations {
    /// Compares the last of them with what the catalog knows. A repository whose writer is another one is refused.
    pub fn divergence(&self, catalog: &Catalog) -> Result<Divergence, Error> {
        let (known, intended) = catalog.runs()?;
        let Some(last) = &self.last else {
            return Ok(match known.number {
                0 => Divergence::AsLeft,
                known => Divergence::SetBack { found: 0, known },
            });
        };
        let found = last.number;
        if last.catalog != catalog.trust().catalog {
            return Err(Error::OtherWriter { found, known: known.number });
        }
        let run = LastRun { number: found, run: Some(last.run) };
        Ok(match () {
            () if run == known => Divergence::AsLeft,
            () if run == intended => Divergence::Begun { number: found, run: last.run },
            () if found < known.number => Divergence::SetBack { found, known: known.number },
            () => Divergence::Forgotten { found, known: known.number },
        })
    }
}
