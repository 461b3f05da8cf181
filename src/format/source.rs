//! Source documents, which map an opaque id to the source's name.

use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{RepositoryId, SourceId};
use super::name;

/// A source: files and directories that are backed up under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The source's id, part of the names of its snapshots.
    pub id: SourceId,
    /// The source's name for users.
    pub name: String,
}

impl Source {
    fn header(repository: RepositoryId, id: SourceId) -> Header {
        Header { repository, kind: DocumentKind::Source, name: name::source(id) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Source::header(repository, self.id).begin(1);
        w.uint(3).text(&self.name);
        w.finish()
    }

    /// Decodes the document of source `id`.
    pub fn decode(repository: RepositoryId, id: SourceId, bytes: &[u8]) -> Result<Self, Error> {
        let mut name = None;
        let r = Source::header(repository, id).read(bytes, |r, key| {
            if key == 3 {
                name = Some(r.text()?.to_owned());
            }
            Ok(key == 3)
        })?;
        let name = r.need("name", name)?;
        if !is_source_name(&name) {
            return Err(r.wrong(format!("invalid source name {name:?}")));
        }
        Ok(Source { id, name })
    }
}

/// What [`is_source_name`] requires.
pub const SOURCE_NAME: &str = "a name has up to 255 bytes, without slashes, colons and line breaks, and is not latest";

/// Whether `name` is allowed for a source. It becomes a directory in the mount and precedes a `/` on the command line.
pub fn is_source_name(name: &str) -> bool {
    super::entry::is_name(name.as_bytes()) && name != "latest" && !name.contains([':', '\n'])
}
