//! Sources: the name behind an opaque id.

use super::Error;
use super::document::{DocumentKind, Header};
use super::id::{RepositoryId, SourceId};
use super::name;

/// What is backed up under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its id, which names its snapshots.
    pub id: SourceId,
    /// Its name, for people.
    pub name: String,
}

impl Source {
    fn header(repository: RepositoryId, id: SourceId) -> Header {
        Header { repository, kind: DocumentKind::Source, name: name::source(id) }
    }

    /// The document's bytes.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Source::header(repository, self.id).begin(1);
        w.uint(3).text(&self.name);
        w.finish()
    }

    /// Reads the document of source `id`.
    pub fn decode(repository: RepositoryId, id: SourceId, bytes: &[u8]) -> Result<Self, Error> {
        let mut name = None;
        let r = Source::header(repository, id).read(bytes, |r, key| {
            if key == 3 {
                name = Some(r.text()?.to_owned());
            }
            Ok(key == 3)
        })?;
        let name = r.need("name", name)?;
        match is_source_name(&name) {
            true => Ok(Source { id, name }),
            false => Err(r.wrong(format!("the source name {name:?}"))),
        }
    }
}

/// Whether `name` may name a source: it becomes a folder of the mount and stands before a `/` on the
/// command line.
pub fn is_source_name(name: &str) -> bool {
    super::entry::is_name(name.as_bytes()) && name != "latest" && !name.contains([':', '\n'])
}
