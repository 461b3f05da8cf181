//! Compares an existing file with an entry.
//!
//! Symlinks are compared by target, devices by number, files by size and mtime. The destination's file system may round
//! times, limit their range, or ignore changes of them. So if the times differ, the entry's time is set on a temporary
//! file, and the result is compared. If the file system does not store the time, the contents are compared.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::draft::Draft;
use super::metadata::{FileId, PRIVATE, inode, times};
use crate::archive::{self, Archive, EntryHandle, EntryRef, FileData};
use crate::format::{Kind, Timestamp};

/// Timestamp granularities of file systems in nanoseconds: NTFS, 1 µs, 1 ms, 10 ms, whole seconds, FAT.
const STEPS: [i128; 6] = [100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000];

/// Size in bytes of the buffer for comparing contents.
const BUFFER: usize = 64 << 10;

/// An existing file with the name of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExistingEntry {
    /// Whether it equals the entry.
    pub(super) same: bool,
    /// Whether it is a directory, which is never replaced by a file.
    pub(super) directory: bool,
    pub(super) inode: FileId,
    /// Its mtime, if that is the only difference from the entry.
    time: Option<Timestamp>,
}

/// Finds the existing file with the entry's name, if any.
pub(super) fn find(directory: &OwnedFd, entry: &EntryRef<'_>) -> Option<ExistingEntry> {
    let stat = rustix::fs::statat(directory, entry.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut time = None;
    let same = kind == file_type(entry.kind)
        && match entry.kind {
            Kind::Symlink => rustix::fs::readlinkat(directory, entry.name, Vec::new())
                .is_ok_and(|found| found.as_bytes() == entry.target),
            Kind::CharDevice | Kind::BlockDevice => stat.st_rdev == rustix::fs::makedev(entry.device.0, entry.device.1),
            Kind::Directory | Kind::Fifo | Kind::Socket => true,
            Kind::File if stat.st_size as u64 != entry.size => false,
            Kind::File => {
                let found = modified(&stat);
                let agrees = found == entry.mtime || is_rounded(found, entry.mtime);
                time = (!agrees).then_some(found);
                agrees
            }
        };
    Some(ExistingEntry { same, directory: kind == FileType::Directory, inode: inode(&stat), time })
}

impl ExistingEntry {
    /// If only the times differ, checks whether the file system can store the entry's time, and compares contents if it
    /// cannot.
    pub(super) fn look_closer(
        mut self,
        directory: &OwnedFd,
        listed: &EntryHandle,
        archive: &dyn Archive,
    ) -> ExistingEntry {
        if let Some(found) = self.time {
            let wanted = listed.entry().mtime;
            self.same = match kept(directory, wanted) {
                Some(kept) if kept == found => true,
                Some(kept) if kept == wanted || is_rounded(kept, wanted) => false,
                _ => self.has_content_of(directory, listed, archive),
            };
        }
        self
    }

    fn has_content_of(&self, directory: &OwnedFd, listed: &EntryHandle, archive: &dyn Archive) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, listed.entry().name, flags, Mode::empty());
        let Ok(file) = opened else { return false };
        if rustix::fs::fstat(&file).map(|stat| inode(&stat)) != Ok(self.inode) {
            return false;
        }
        let (mut file, mut buffer) = (File::from(file), vec![0; BUFFER]);
        let Ok(content) = archive.content(listed) else { return false };
        let compared = content.each(|data| {
            let length = data.length();
            let mut at = 0;
            while at < length {
                let some = BUFFER.min(usize::try_from(length - at).unwrap_or(BUFFER));
                let found = buffer.get_mut(..some).unwrap_or_default();
                file.read_exact(found)?;
                let same = match data {
                    FileData::Bytes(bytes) => bytes.get(at as usize..).is_some_and(|rest| rest.starts_with(found)),
                    FileData::Hole(_) => found.iter().all(|byte| *byte == 0),
                };
                if !same {
                    return Err(Differs);
                }
                at += some as u64;
            }
            Ok(())
        });
        compared.is_ok()
    }
}

/// Contents differ or cannot be compared.
struct Differs;

impl From<archive::Error> for Differs {
    fn from(_: archive::Error) -> Self {
        Differs
    }
}

impl From<io::Error> for Differs {
    fn from(_: io::Error) -> Self {
        Differs
    }
}

/// The mtime that a file in `directory` has after setting `time`. `None` if it cannot be set.
fn kept(directory: &OwnedFd, time: Timestamp) -> Option<Timestamp> {
    let set = || -> Result<Timestamp, Errno> {
        let draft = Draft::file(directory, PRIVATE)?;
        rustix::fs::futimens(&draft.fd, &times(time))?;
        Ok(modified(&rustix::fs::fstat(&draft.fd)?))
    };
    set().ok()
}

fn modified(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() }
}

/// Whether `found` is `wanted` rounded down to one of the granularities.
fn is_rounded(found: Timestamp, wanted: Timestamp) -> bool {
    let [found, wanted] = [found, wanted].map(|time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos));
    STEPS.iter().any(|step| wanted - wanted.rem_euclid(*step) == found)
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_rounded_down_to_a_known_granularity_is_equal() {
        let time = |seconds, nanos| Timestamp { seconds, nanos };
        let wanted = time(1_000_000_001, 123_456_789);
        for (seconds, nanos) in [(1, 123_456_700), (1, 123_456_000), (1, 123_000_000), (1, 120_000_000), (1, 0), (0, 0)]
        {
            assert!(is_rounded(time(1_000_000_000 + seconds, nanos), wanted), "{seconds} {nanos}");
        }
        for (seconds, nanos) in [(1, 123_456_788), (1, 123_456_800), (1, 100_000_000), (2, 0), (-1, 0)] {
            assert!(!is_rounded(time(1_000_000_000 + seconds, nanos), wanted), "{seconds} {nanos}");
        }
        assert!(is_rounded(time(-2, 0), time(-1, 5)));
    }
}
