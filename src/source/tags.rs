//! Tags: entries, such as `CACHEDIR.TAG`, that exclude the content of their directory.
//!
//! A tagged directory is stored with only its tags, as with `tar --exclude-caches`, so that a restored cache is
//! recognized as one. If a tag is a directory, its content is stored.
//!
//! A tag is ignored unless it belongs to root or to the directory's owner: otherwise any user could exclude the files
//! of others in a shared directory.

use std::ffi::{OsStr, OsString};
use std::io::Read;

use super::directory::Directory;
use super::stat::Stat;
use crate::format::Kind;

/// The name of the tag of a cache directory.
const CACHE_TAG: &str = "CACHEDIR.TAG";
/// The required first bytes of a cache tag (<https://bford.info/cachedir/>).
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// The entries that count as tags.
#[derive(Debug, Clone, Default)]
pub struct Tags {
    /// Whether a valid `CACHEDIR.TAG` is a tag.
    pub caches: bool,
    /// Names that are tags, for entries of any kind.
    pub names: Vec<OsString>,
}

impl Tags {
    /// Finds the tags in a directory. If any of them counts, the other content is excluded.
    ///
    /// Errors are ignored; the later read of the directory reports them.
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
    /// Tags that count.
    pub tags: Vec<OsString>,
    /// Tags ignored because they belong neither to root nor to the directory's owner.
    pub disregarded: Vec<OsString>,
}

impl FoundTags {
    fn add(&mut self, directory: &Directory, name: OsString, tag: &Stat) {
        let counts = tag.uid == 0 || directory.stat().is_ok_and(|directory| directory.uid == tag.uid);
        let list = if counts { &mut self.tags } else { &mut self.disregarded };
        list.push(name);
    }
}

fn is_cache(directory: &Directory, name: &OsStr, stat: &Stat) -> bool {
    // Checked first, because opening a device can have side effects.
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
    fn a_cache_tag_begins_with_the_signature() {
        let longer = [CACHE_SIGNATURE.as_slice(), b"\n# made by a test\n"].concat();
        assert_eq!(caches(CACHE_SIGNATURE), [CACHE_TAG]);
        assert_eq!(caches(&longer), [CACHE_TAG]);
        for wrong in [&b""[..], b"Signature: ", &[b" ", CACHE_SIGNATURE.as_slice()].concat(), &[b'x'; 43]] {
            assert!(caches(wrong).is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn a_symlink_is_not_a_cache_tag() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("real"), CACHE_SIGNATURE).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join(CACHE_TAG)).unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        assert!(Tags { caches: true, names: Vec::new() }.in_directory(&directory).tags.is_empty());
    }

    #[test]
    fn an_entry_of_any_kind_with_a_given_name_is_a_tag() {
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
