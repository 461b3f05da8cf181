//! Directories whose content nobody wants kept: an entry in them says so.
//!
//! What is left of a tagged directory is the directory itself and the tags, as `tar --exclude-caches` has it,
//! so that a restored cache is known as one again. A tag that is a directory keeps what is in it.
//!
//! Only a tag of the directory's owner, or of root, counts: in a directory that others may write to, a user could take
//! the files of all others out of the backup.

use std::ffi::{OsStr, OsString};
use std::io::Read;

use super::{Directory, Stat};
use crate::format::Kind;

/// The name of the file that marks a cache.
const CACHE_TAG: &str = "CACHEDIR.TAG";
/// What it begins with (<https://bford.info/cachedir/>). A file of this name that does not is no tag.
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// Which entries make a directory one whose content is left out.
#[derive(Debug, Clone, Default)]
pub struct Tags {
    /// A valid `CACHEDIR.TAG` does.
    pub caches: bool,
    /// Anything of one of these names does.
    pub names: Vec<OsString>,
}

impl Tags {
    /// The tags that a directory has. If any count, its other content is not wanted.
    ///
    /// A tag that can't be looked at is none; whoever reads the directory meets the error again.
    pub fn in_directory(&self, directory: &Directory) -> FoundTags {
        let mut tagged = FoundTags::default();
        for name in &self.names {
            if let Ok(stat) = directory.stat_child(name) {
                tagged.add(directory, name.clone(), &stat);
            }
        }
        if self.caches {
            let name = OsStr::new(CACHE_TAG);
            match directory.stat_child(name) {
                Ok(stat) if is_cache(directory, name, &stat) => tagged.add(directory, name.to_owned(), &stat),
                _ => {}
            }
        }
        for tags in [&mut tagged.tags, &mut tagged.disregarded] {
            tags.sort_unstable();
            tags.dedup();
        }
        tagged
    }
}

/// The tags in a directory, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundTags {
    /// Those that count.
    pub tags: Vec<OsString>,
    /// Those of others than root and the directory's owner.
    pub disregarded: Vec<OsString>,
}

impl FoundTags {
    fn add(&mut self, directory: &Directory, name: OsString, tag: &Stat) {
        match tag.uid == 0 || directory.stat().is_ok_and(|directory| directory.uid == tag.uid) {
            true => self.tags.push(name),
            false => self.disregarded.push(name),
        }
    }
}

fn is_cache(directory: &Directory, name: &OsStr, stat: &Stat) -> bool {
    // Looked at before it is opened: opening a device can do things.
    if stat.kind != Kind::File {
        return false;
    }
    let mut start = [0; CACHE_SIGNATURE.len()];
    let read = directory.open_file(name).map(|mut file| file.read_exact(&mut start));
    matches!(read, Ok(Ok(()))) && start == *CACHE_SIGNATURE
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn caches(content: &[u8]) -> Vec<OsString> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CACHE_TAG), content).unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        Tags { caches: true, names: Vec::new() }.in_directory(&directory).tags
    }

    #[test]
    fn a_cache_tag_counts_by_its_signature_at_the_start() {
        let longer = [CACHE_SIGNATURE.as_slice(), b"\n# made by a test\n"].concat();
        assert_eq!(caches(CACHE_SIGNATURE), [CACHE_TAG]);
        assert_eq!(caches(&longer), [CACHE_TAG]);
        for wrong in [&b""[..], b"Signature: ", &[b" ", CACHE_SIGNATURE.as_slice()].concat(), &[b'x'; 43]] {
            assert!(caches(wrong).is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn a_cache_tag_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("real"), CACHE_SIGNATURE).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join(CACHE_TAG)).unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        assert!(Tags { caches: true, names: Vec::new() }.in_directory(&directory).tags.is_empty());
    }

    #[test]
    fn anything_of_a_name_is_a_tag_if_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        let tags = Tags { caches: true, names: ["z", ".nobackup", "z"].map(OsString::from).into() };
        assert_eq!(tags.in_directory(&directory), FoundTags::default());
        fs::create_dir(folder.path().join("z")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join(".nobackup")).unwrap();
        fs::write(folder.path().join(CACHE_TAG), CACHE_SIGNATURE).unwrap();
        assert_eq!(tags.in_directory(&directory).tags, [".nobackup", CACHE_TAG, "z"]);
        assert_eq!(Tags::default().in_directory(&directory), FoundTags::default());
    }
}
