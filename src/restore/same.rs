//! Whether what has the name of an entry is that entry already: as far as the place can hold it.
//!
//! Of a link the target counts, of a device its number, of a file its size and the time of its last change. A file
//! system may keep times in coarser steps, or only those of some years, or none that is set. So a time that differs is
//! compared with what the place makes of the right one; if it makes something else each time, the content decides.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::draft::Draft;
use super::metadata::{Inode, inode, times};
use crate::format::entry::Content;
use crate::format::{Entry, Kind, Timestamp};
use crate::reader::{self, EntryHandle, FileReader, Reader};

/// Steps in which file systems keep times, in nanoseconds: NTFS, 1 µs, 1 ms, 10 ms, whole seconds, FAT.
const STEPS: [i128; 6] = [100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000];

/// Bytes that are compared at once.
const BUFFER: usize = 64 << 10;

/// What has the name of an entry already.
#[derive(Debug, Clone, Copy)]
pub(super) struct There {
    /// It looks like the entry.
    pub(super) same: bool,
    /// It is a directory, which no file takes the place of.
    pub(super) directory: bool,
    pub(super) inode: Inode,
    /// It differs from the entry in its time only, which it has instead.
    time: Option<Timestamp>,
}

/// What has the entry's name, if anything.
pub(super) fn there(directory: &OwnedFd, entry: &Entry) -> Option<There> {
    let stat = rustix::fs::statat(directory, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut time = None;
    let same = kind == file_type(entry.kind)
        && match &entry.content {
            Content::Target(target) => rustix::fs::readlinkat(directory, entry.name.as_slice(), Vec::new())
                .is_ok_and(|found| found.as_bytes() == target),
            Content::Device(major, minor) => stat.st_rdev == rustix::fs::makedev(*major, *minor),
            _ if entry.kind != Kind::File => true,
            _ if stat.st_size as u64 != entry.size => false,
            _ => {
                let found = modified(&stat);
                let agrees = found == entry.mtime || is_rounded(found, entry.mtime);
                time = (!agrees).then_some(found);
                agrees
            }
        };
    Some(There { same, directory: kind == FileType::Directory, inode: inode(&stat), time })
}

impl There {
    /// Asks the place what it makes of the entry's time, and compares contents if it keeps no time that is set.
    pub(super) fn look_closer(mut self, directory: &OwnedFd, listed: &EntryHandle, reader: &Reader) -> There {
        if let Some(found) = self.time {
            let wanted = listed.entry().mtime;
            self.same = match kept(directory, wanted) {
                Some(kept) if kept == found => true,
                Some(kept) if kept == wanted || is_rounded(kept, wanted) => false,
                _ => self.has_content_of(directory, listed, reader),
            };
        }
        self
    }

    fn has_content_of(&self, directory: &OwnedFd, listed: &EntryHandle, reader: &Reader) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, listed.entry().name.as_slice(), flags, Mode::empty());
        let Ok(file) = opened else { return false };
        if rustix::fs::fstat(&file).map(|stat| inode(&stat)) != Ok(self.inode) {
            return false;
        }
        let (mut file, mut buffer) = (File::from(file), vec![0; BUFFER]);
        let compared = FileReader::new(listed.clone()).each(reader, |stretch| {
            let length = stretch.map_or_else(|hole| hole, |bytes| bytes.len() as u64);
            let mut at = 0;
            while at < length {
                let some = BUFFER.min(usize::try_from(length - at).unwrap_or(BUFFER));
                let found = buffer.get_mut(..some).unwrap_or_default();
                file.read_exact(found)?;
                let same = match stretch {
                    Ok(bytes) => bytes.get(at as usize..).is_some_and(|rest| rest.starts_with(found)),
                    Err(_) => found.iter().all(|byte| *byte == 0),
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

/// Contents differ, or can't be compared.
struct Differs;

impl From<reader::Error> for Differs {
    fn from(_: reader::Error) -> Self {
        Differs
    }
}

impl From<io::Error> for Differs {
    fn from(_: io::Error) -> Self {
        Differs
    }
}

/// What becomes of a time that is set there. `None`: it can't be set.
fn kept(directory: &OwnedFd, time: Timestamp) -> Option<Timestamp> {
    let set = || -> Result<Timestamp, Errno> {
        let draft = Draft::file(directory)?;
        rustix::fs::futimens(&draft.fd, &times(time))?;
        Ok(modified(&rustix::fs::fstat(&draft.fd)?))
    };
    set().ok()
}

fn modified(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() }
}

/// Whether `found` is `wanted`, rounded down to one of the steps.
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
    fn a_time_agrees_with_what_a_coarser_clock_makes_of_it() {
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
