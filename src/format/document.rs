//! The header of all signed documents: repository, type and object name.
//!
//! A signature proves who wrote a document, but not where it was stored. So readers compare all three fields, which
//! detects documents that were moved, renamed or copied from another repository.

use super::cbor::{CborReader, CborWriter};
use super::error::Error;
use super::id::RepositoryId;

/// The type of a signed document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// [`super::snapshot`]
    Snapshot,
    /// [`super::index`]
    Index,
    /// [`super::secrets`]
    Secrets,
    /// [`super::generation`]
    Generation,
    /// [`super::source`]
    Source,
    /// [`super::moved`]
    Moved,
    /// [`super::forgotten`]
    Forgotten,
}

impl DocumentKind {
    /// The type's name in the format.
    pub fn word(self) -> &'static str {
        match self {
            DocumentKind::Snapshot => "snapshot",
            DocumentKind::Index => "index",
            DocumentKind::Secrets => "secrets",
            DocumentKind::Generation => "generation",
            DocumentKind::Source => "source",
            DocumentKind::Moved => "moved",
            DocumentKind::Forgotten => "forgotten",
        }
    }
}

/// The header of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The repository that the document belongs to.
    pub repository: RepositoryId,
    /// The document's type.
    pub kind: DocumentKind,
    /// The name of the document's object.
    pub name: String,
}

/// The first key of a document's own fields. Keys 0 to 2 belong to the header.
pub const FIRST_KEY: u64 = 3;

impl Header {
    /// Starts a document with this header and `fields` fields of its own.
    pub(super) fn begin(&self, fields: usize) -> CborWriter {
        let mut w = CborWriter::default();
        w.map(3 + fields);
        w.uint(0).bytes(self.repository.as_bytes());
        w.uint(1).text(self.kind.word());
        w.uint(2).text(&self.name);
        w
    }

    /// Reads a document, which must have this header. Calls `field` for the keys from [`FIRST_KEY`] on.
    pub(super) fn read<'b>(
        &self,
        bytes: &'b [u8],
        mut field: impl FnMut(&mut CborReader<'b>, u64) -> Result<bool, Error>,
    ) -> Result<CborReader<'b>, Error> {
        let mut r = CborReader::new(self.kind.word(), bytes);
        let mut seen = 0;
        r.fields(|r, key| {
            let (what, found, expected) = match key {
                0 => ("repository", RepositoryId::from_slice(r.bytes()?)?.to_string(), self.repository.to_string()),
                1 => ("type", r.text()?.to_owned(), self.kind.word().to_owned()),
                2 => ("name", r.text()?.to_owned(), self.name.clone()),
                _ => return field(r, key),
            };
            seen += 1;
            if found != expected {
                return Err(Error::Mismatch { field: what, found, expected });
            }
            Ok(true)
        })?;
        if seen != 3 {
            return Err(r.wrong("incomplete header"));
        }
        r.end()?;
        Ok(r)
    }
}
