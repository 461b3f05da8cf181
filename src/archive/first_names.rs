//! The first path of each hard-linked file, to which restore and dump link the others.
//!
//! A file is removed once all its names have been seen. Names outside the selected subtree are never seen, so entries may
//! stay until the end; the table's memory is bounded (see [`super::spill`]).

use super::spill::{Error, SpillTable};
use crate::format::Digest;
use crate::format::entry::HardLink;

/// First paths by hard link id.
#[derive(Default)]
pub struct FirstNames(SpillTable);

/// The result of [`FirstNames::find`].
#[derive(Debug, PartialEq, Eq)]
pub enum LinkLookup {
    /// The id is new: this is the file's first name.
    Nothing,
    /// The path of the file's first name.
    Named(Vec<u8>),
    /// The id belongs to another file, with another content, owner, mode or attributes.
    Other,
}

impl FirstNames {
    /// Looks up a name of a hard-linked file. `file` is the digest of everything its names share,
    /// [`EntryHandle::file_digest`](super::EntryHandle::file_digest).
    pub fn find(&mut self, link: HardLink, file: Digest) -> Result<LinkLookup, Error> {
        let Some(value) = self.0.take(link.id)? else { return Ok(LinkLookup::Nothing) };
        let Some((known, left, path)) = decode(&value) else { return Ok(LinkLookup::Nothing) };
        let found = if known == file { LinkLookup::Named(path.to_vec()) } else { LinkLookup::Other };
        if left > 1 {
            let value = encode(known, left - 1, path);
            self.0.put(link.id, value)?;
        }
        Ok(found)
    }

    /// Stores the first path of a file with `left` more names.
    pub fn add(&mut self, id: u64, file: Digest, left: u32, path: &[u8]) -> Result<(), Error> {
        match left {
            0 => Ok(()),
            left => self.0.put(id, encode(file, left, path)),
        }
    }
}

/// Returns a message about names stored as separate files because their id belonged to another file; `None` for 0 names.
pub fn apart(names: u64) -> Option<String> {
    let what = match names {
        0 => return None,
        1 => "1 name of a hard-linked file became a separate file".to_owned(),
        more => format!("{more} names of hard-linked files became separate files"),
    };
    Some(format!("{what}: its content, owner, mode or attributes in the snapshot differ from those of the first name"))
}

fn encode(file: Digest, left: u32, path: &[u8]) -> Vec<u8> {
    [&file.0, left.to_le_bytes().as_slice(), path].concat()
}

fn decode(value: &[u8]) -> Option<(Digest, u32, &[u8])> {
    let (file, rest) = value.split_first_chunk()?;
    let (left, path) = rest.split_first_chunk()?;
    Some((Digest(*file), u32::from_le_bytes(*left), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_until_its_last_name() {
        let mut names = FirstNames::default();
        let (link, file, other) = (HardLink { id: 7, count: 3 }, Digest::of(b"file"), Digest::of(b"other"));
        assert_eq!(names.find(link, file).unwrap(), LinkLookup::Nothing);
        names.add(link.id, file, link.count - 1, b"a/first").unwrap();
        assert_eq!(names.find(link, other).unwrap(), LinkLookup::Other);
        assert_eq!(names.find(link, file).unwrap(), LinkLookup::Named(b"a/first".to_vec()));
        assert_eq!(names.find(link, file).unwrap(), LinkLookup::Nothing);
        names.add(link.id, file, 0, b"alone").unwrap();
        assert_eq!(names.find(link, file).unwrap(), LinkLookup::Nothing);
    }
}
