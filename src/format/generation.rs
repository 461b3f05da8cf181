//! Generations: one object for each writing run, created exclusively.
//!
//! A catalog records the number and id of its last run. If the last generation in the repository is a different one, then
//! the repository or this machine was reverted to an older state, a clone of this machine wrote to the repository, or
//! another machine took over (its catalog has another id).

use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{CatalogId, RepositoryId, RunId};
use super::name;

/// A writing run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The number of the run: the previous number plus one.
    pub number: u64,
    /// The catalog of the run.
    pub catalog: CatalogId,
    /// The id of the run. Distinguishes runs with the same number, which exist after a revert.
    pub run: RunId,
}

impl Generation {
    fn header(repository: RepositoryId, number: u64) -> Header {
        Header { repository, kind: DocumentKind::Generation, name: name::generation(number) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Generation::header(repository, self.number).begin(3);
        w.uint(3).uint(self.number);
        w.uint(4).bytes(self.catalog.as_bytes());
        w.uint(5).bytes(self.run.as_bytes());
        w.finish()
    }

    /// Decodes generation `number`.
    pub fn decode(repository: RepositoryId, number: u64, bytes: &[u8]) -> Result<Self, Error> {
        let (mut found, mut catalog, mut run) = (None, None, None);
        let r = Generation::header(repository, number).read(bytes, |r, key| {
            match key {
                3 => found = Some(r.uint()?),
                4 => catalog = Some(CatalogId::from_slice(r.bytes()?)?),
                5 => run = Some(RunId::from_slice(r.bytes()?)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if found != Some(number) {
            return Err(r.wrong("the number differs from the object's name"));
        }
        Ok(Generation { number, catalog: r.need("catalog", catalog)?, run: r.need("run", run)? })
    }
}
