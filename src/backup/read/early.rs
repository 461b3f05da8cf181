//! Small files that have kept still for a minute: they are read several at once, with the fewest calls.
//!
//! Their stats are those of the walk. If one is the same after the file was read, the file did not change: a change since the
//! walk would have left newer stamps. See [`super::verdict`]. All other files take the longer way of [`super::opened`], also
//! those that can't be read.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use super::jobs::{JobFile, ReadSetup};
use crate::format::Kind;
use crate::source::{self, Clock, Directory, Extended, Stat, WholeReader, now};

/// A small file that was read before it is known whether it kept still.
pub(super) struct EarlyFile {
    file: File,
    bytes: Vec<u8>,
}

/// Reads those of the files that are small and seem to keep still. `None` for each other one.
pub(super) fn read_early(
    directory: &Directory,
    files: &[JobFile],
    setup: &ReadSetup,
    reader: &mut WholeReader,
) -> Vec<Option<EarlyFile>> {
    let opened = now();
    let is_early = |JobFile { seen, .. }: &JobFile| {
        let is_small = seen.size > 0 && seen.size < setup.whole_below && !seen.may_have_holes();
        is_small && seen.nlink == 1 && !seen.is_young(opened) && setup.mounts.of(seen).clock == Clock::Ours
    };
    let names = files.iter().map(|file| OsStr::from_bytes(&file.name));
    let call = setup.calls.about_names(directory.shared_path(), names.clone());
    let mut handles = Vec::with_capacity(files.len());
    for (file, name) in files.iter().zip(names) {
        // Something else may have taken the place of the file, such as a FIFO, whose read would wait for a writer.
        let is_file = |there: Stat| there.kind == Kind::File && there.inode() == file.seen.inode();
        let is_it = |handle: &File| Stat::of_fd(handle).is_ok_and(is_file);
        let handle = if is_early(file) { directory.open_file(name).ok().filter(is_it) } else { None };
        if let Some(handle) = handle.as_ref().filter(|_| file.seen.is_recent(opened)) {
            source::have_changes_stamped(handle);
        }
        handles.push(handle);
        call.next();
    }
    let sizes = files.iter().map(|file| file.seen.size);
    let all: Vec<_> = handles.iter().zip(sizes).filter_map(|(file, size)| Some((file.as_ref()?, size))).collect();
    let mut read = if all.is_empty() { Vec::new() } else { reader.read(&all) }.into_iter();
    let early = handles.into_iter().map(|file| {
        let (file, bytes) = (file?, read.next()?.ok()?);
        Some(EarlyFile { file, bytes })
    });
    early.collect()
}

impl EarlyFile {
    /// Returns the content and the attributes. `None` if the file is not as the walk saw it.
    pub(super) fn settled(self, seen: &Stat) -> Option<(Vec<u8>, Extended)> {
        let extended = Extended::of_fd(&self.file);
        let after = Stat::of_fd(&self.file).ok()?;
        let is_same = after.inode() == seen.inode() && seen.same_content_as(&after);
        (is_same && self.bytes.len() as u64 == seen.size).then_some((self.bytes, extended))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::budget::Budget;
    use super::super::hard_links::HardLinkCache;
    use super::super::verdict::Patience;
    use super::*;
    use crate::source::{Chunker, MountTable};

    /// A file as it was read when the walk had just seen it.
    fn read(folder: &Path, name: &str) -> (EarlyFile, Stat) {
        let path = folder.join(name);
        fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let seen = Stat::of_fd(&file).unwrap();
        (EarlyFile { file, bytes: b"content".to_vec() }, seen)
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name");
        fs::write(&path, "content").unwrap();
        let old = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        let file = File::open(&path).unwrap();
        file.set_times(old).unwrap();
        let mut seen = Stat::of_fd(&file).unwrap();
        seen.ctime.seconds = 0;
        let setup = ReadSetup {
            chunker: Chunker::new(1, 1 << 20),
            files_at_once: 1,
            whole_below: 1 << 20,
            attributes: Budget::new(1),
            hard_links: HardLinkCache::default(),
            mounts: MountTable::read().unwrap(),
            calls: Arc::default(),
        };
        let (name, patience) = (b"name".to_vec(), Patience::default());
        let files = [JobFile { name, number: 0, loan: None, patience, seen }];
        let directory = Directory::open_root(folder.path()).unwrap();
        let read = || read_early(&directory, &files, &setup, &mut WholeReader::default()).remove(0);
        assert_eq!(read().unwrap().bytes, b"content");

        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        // A writer that writes nothing.
        let _writer = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(read().is_none());
    }

    #[test]
    fn a_file_that_is_not_as_the_walk_saw_it_is_not_settled() {
        let folder = tempfile::tempdir().unwrap();
        let (early, seen) = read(folder.path(), "same");
        let (bytes, extended) = early.settled(&seen).unwrap();
        assert_eq!((bytes, extended), (b"content".to_vec(), Extended::default()));

        let (early, seen) = read(folder.path(), "other size");
        fs::write(folder.path().join("other size"), "more content").unwrap();
        assert!(early.settled(&seen).is_none());

        let (early, mut seen) = read(folder.path(), "other stamp");
        seen.ctime.nanos ^= 1;
        assert!(early.settled(&seen).is_none());

        // Another file was opened under the name that the walk saw.
        let (early, mut seen) = read(folder.path(), "replaced");
        seen.ino += 1;
        assert!(early.settled(&seen).is_none());

        let (early, seen) = read(folder.path(), "short");
        let bytes = b"conten".to_vec();
        assert!(EarlyFile { bytes, ..early }.settled(&seen).is_none());
    }
}
