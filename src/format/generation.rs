//! Generations: one object for each run that writes, created exclusively.
//!
//! A catalog remembers the number of its last run. Another number at the target means that someone else
//! wrote: a second machine, a clone, or this one before it was set back to an old image.

use super::Error;
use super::document::{DocumentKind, Header};
use super::id::{CatalogId, RepositoryId};
use super::name;

/// A run that writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number, one above the last.
    pub number: u64,
    /// The catalog of the run.
    pub catalog: CatalogId,
}

impl Generation {
    fn header(repository: RepositoryId, number: u64) -> Header {
        Header { repository, kind: DocumentKind::Generation, name: name::generation(number) }
    }

    /// The document's bytes.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Generation::header(repository, self.number).begin(2);
        w.uint(3).uint(self.number);
        w.uint(4).bytes(self.catalog.as_bytes());
        w.finish()
    }

    /// Reads the document of generation `number`.
    pub fn decode(repository: RepositoryId, number: u64, bytes: &[u8]) -> Result<Self, Error> {
        let (mut said, mut catalog) = (None, None);
        let r = Generation::header(repository, number).read(bytes, |r, key| {
            match key {
                3 => said = Some(r.uint()?),
                4 => catalog = Some(CatalogId::from_slice(r.bytes()?)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if said != Some(number) {
            return Err(r.wrong("another number inside than outside"));
        }
        Ok(Generation { number, catalog: r.need("catalog", catalog)? })
    }
}
