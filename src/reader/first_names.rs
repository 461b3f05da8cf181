//! The first names of files that have several, for those who make the other names links to them.
//!
//! A file is forgotten when as many of its names were seen as it had. Names outside of what is read never come, so that
//! files may stay to the end; the table takes little memory all the same.

use super::spill::{Error, SpillTable};
use crate::format::Digest;
use crate::format::entry::HardLink;

/// First names, by the ids of hard links.
#[derive(Default)]
pub struct FirstNames(SpillTable);

/// What is known of a file when one of its names comes.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkLookup {
    /// Nothing: this is its first name.
    Nothing,
    /// It has this name already.
    Named(Vec<u8>),
    /// The id belongs to another file, with another content, owner, mode or attributes.
    Other,
}

impl FirstNames {
    /// What is known of the file with this id, of which a name came. `file`: what all its names have in common, that is
    /// [`Entry::file_digest`](crate::format::Entry::file_digest).
    pub fn find(&mut self, link: HardLink, file: Digest) -> Result<LinkLookup, Error> {
        let Some(value) = self.0.take(link.id)? else { return Ok(LinkLookup::Nothing) };
        let Some((known, left, path)) = decode(&value) else { return Ok(LinkLookup::Nothing) };
        let found = match known == file {
            true => LinkLookup::Named(path.to_vec()),
            false => LinkLookup::Other,
        };
        if left > 1 {
            let value = encode(known, left - 1, path);
            self.0.put(link.id, value)?;
        }
        Ok(found)
    }

    /// Remembers the first name of a file, of which `left` names are still to come.
    pub fn add(&mut self, id: u64, file: Digest, left: u32, path: &[u8]) -> Result<(), Error> {
        match left {
            0 => Ok(()),
            left => self.0.put(id, encode(file, left, path)),
        }
    }
}

/// What to say of names that became files of their own, since the id belonged to another file.
pub fn apart(names: u64) -> Option<String> {
    let what = match names {
        0 => return None,
        1 => "a name of a hard-linked file is a file of its own".to_owned(),
        more => format!("{more} names of hard-linked files are files of their own"),
    };
    Some(format!("{what}: its content, owner, mode or attributes in the snapshot are not those of the first name"))
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
