//! What all signed documents share: they say what they are and where they belong.
//!
//! A signature proves who wrote a document, not that it lies where its writer put it. So each names the
//! repository, its type and its own object name, and a reader compares all three.

use super::Error;
use super::cbor::{Reader, Writer};
use super::id::RepositoryId;

/// What a signed document is.
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
}

impl DocumentKind {
    /// The word that stands for it in the format.
    pub fn word(self) -> &'static str {
        match self {
            DocumentKind::Snapshot => "snapshot",
            DocumentKind::Index => "index",
            DocumentKind::Secrets => "secrets",
            DocumentKind::Generation => "generation",
            DocumentKind::Source => "source",
        }
    }
}

/// Where a document belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The repository.
    pub repository: RepositoryId,
    /// What it is.
    pub kind: DocumentKind,
    /// The object that holds it.
    pub name: String,
}

/// Keys 0 to 2 of every document are its header's; its own fields follow from here.
pub const FIRST_KEY: u64 = 3;

impl Header {
    /// Starts a document of `fields` pairs beside the header's own.
    pub(super) fn begin(&self, fields: usize) -> Writer {
        let mut w = Writer::default();
        w.map(3 + fields);
        w.uint(0).bytes(self.repository.as_bytes());
        w.uint(1).text(self.kind.word());
        w.uint(2).text(&self.name);
        w
    }

    /// Reads a document that should have this header; `field` gets the keys from [`FIRST_KEY`] on.
    pub(super) fn read<'b>(
        &self,
        bytes: &'b [u8],
        mut field: impl FnMut(&mut Reader<'b>, u64) -> Result<bool, Error>,
    ) -> Result<Reader<'b>, Error> {
        let mut r = Reader::new(self.kind.word(), bytes);
        let mut seen = 0;
        r.fields(|r, key| {
            let (what, found, expected) = match key {
                0 => ("repository", RepositoryId::from_slice(r.bytes()?)?.to_string(), self.repository.to_string()),
                1 => ("type", r.text()?.to_owned(), self.kind.word().to_owned()),
                2 => ("name", r.text()?.to_owned(), self.name.clone()),
                _ => return field(r, key),
            };
            seen += 1;
            match found == expected {
                true => Ok(true),
                false => Err(Error::Mismatch { field: what, found, expected }),
            }
        })?;
        if seen != 3 {
            return Err(r.wrong("no header"));
        }
        r.end()?;
        Ok(r)
    }
}
