//! Generations: one object for each run that writes, created exclusively.
//!
//! A catalog remembers number and id of its last run. If the last one at the target is another, something is not as it
//! was left: the repository was set back to an older state, this machine was, a clone of it wrote, or another machine
//! took over (its catalog has another id).

use super::Error;
use super::document::{DocumentKind, Header};
use super::id::{CatalogId, RepositoryId, RunId};
use super::name;

/// A run that writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number, one above the last.
    pub number: u64,
    /// The catalog of the run.
    pub catalog: CatalogId,
    /// The run. Two that had the same number, one of them in a state that was done away with, are told apart by it.
    pub run: RunId,
}

impl Generation {
    fn header(repository: RepositoryId, number: u64) -> Header {
        Header { repository, kind: DocumentKind::Generation, name: name::generation(number) }
    }

    /// The document's bytes.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Generation::header(repository, self.number).begin(3);
        w.uint(3).uint(self.number);
        w.uint(4).bytes(self.catalog.as_bytes());
        w.uint(5).bytes(self.run.as_bytes());
        w.finish()
    }

    /// Reads the document of generation `number`.
    pub fn decode(repository: RepositoryId, number: u64, bytes: &[u8]) -> Result<Self, Error> {
        let (mut said, mut catalog, mut run) = (None, None, None);
        let r = Generation::header(repository, number).read(bytes, |r, key| {
            match key {
                3 => said = Some(r.uint()?),
                4 => catalog = Some(CatalogId::from_slice(r.bytes()?)?),
                5 => run = Some(RunId::from_slice(r.bytes()?)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if said != Some(number) {
            return Err(r.wrong("another number inside than outside"));
        }
        Ok(Generation { number, catalog: r.need("catalog", catalog)?, run: r.need("run", run)? })
    }
}
