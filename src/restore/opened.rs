//! A directory of the destination that is open, and the names in it.
//!
//! Some file systems take different names for the same: they ignore case, normalize Unicode, or drop dots and blanks at
//! the end. Two entries of a snapshot can so come to one name, and the second must not replace or skip the first. In a
//! directory that this run made, whatever has the name of an entry is such a clash. In one that was there before, the
//! names that it had are compared with those of the entries, both sorted, as the walk goes. An entry whose name is taken
//! without having been listed has the name of something that is spelled otherwise; if that is another entry, they clash.
//! Of entries nothing is remembered unless this happens, so memory does not grow with the directory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::iter::Peekable;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::draft;
use super::mark::{Mark, Marks};
use super::metadata::{Inode, inode};
use super::temporary;
use crate::source::{Listing, SharedPath};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How many entries of one directory are looked at to find those whose names are the same as others'.
const LOOKS: u64 = 4_000_000;

/// An open directory of the destination.
pub(super) struct Opened {
    pub(super) fd: Arc<OwnedFd>,
    /// This run made it, or an earlier one did and was interrupted.
    pub(super) mark: Option<Mark>,
    /// Names that it had before this run. Without any it was empty.
    earlier: Option<Mutex<Earlier>>,
    aliases: Mutex<HashMap<Inode, Vec<u8>>>,
    /// Entries that were looked at to find those of the same names.
    looks: AtomicU64,
}

/// The entry whose name cannot be told from another's. Empty: it was not found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clash(Vec<u8>);

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            b"" => write!(f, "the file system at the destination takes its name for that of another entry"),
            other => {
                let other = Path::new(OsStr::from_bytes(other)).display();
                write!(f, "the file system at the destination takes its name for the same as {other}")
            }
        }
    }
}

impl Opened {
    /// Makes a directory. It has its name only once it is marked; an error if the name is taken.
    pub(super) fn create(above: &OwnedFd, name: &[u8], marks: &Marks) -> io::Result<Self> {
        let temporary = temporary::name();
        let made = make(above, temporary.as_bytes(), marks);
        let named = made.and_then(|made| Ok(draft::rename(above, temporary.as_bytes(), name).map(|()| made)?));
        let (fd, mark) = match named {
            Ok(made) => made,
            Err(e) => {
                temporary::remove(above, temporary.as_bytes(), marks.file());
                match Errno::from_io_error(&e) {
                    // Some file systems cannot rename directories.
                    Some(Errno::XDEV | Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => make(above, name, marks)?,
                    _ => return Err(e),
                }
            }
        };
        temporary::lock(&fd);
        Ok(Opened::new(fd, Some(mark), None))
    }

    /// Opens a directory that is there. A link in its place is not followed.
    pub(super) fn existing(above: &OwnedFd, name: &[u8], path: &Path, marks: &Marks) -> io::Result<Self> {
        let fd = rustix::fs::openat(above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        let earlier = Earlier::of(&fd, path)?;
        let mark = marks.find(&fd);
        Ok(Opened::new(fd, mark, Some(earlier)))
    }

    /// Opens the destination. If it is empty, and `take` is set, it becomes one that this run made.
    pub(super) fn top(path: &Path, take: bool, marks: &Marks) -> io::Result<Self> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let mut earlier = Earlier::of(&fd, path)?;
        if !earlier.is_empty() {
            let mark = marks.find(&fd).filter(|_| take);
            return Ok(Opened::new(fd, mark, Some(earlier)));
        }
        let mut mark = None;
        if take {
            let set = marks.set(&fd);
            // Until it is complete nobody else needs to look.
            match rustix::fs::fchmod(&fd, Mode::RWXU) {
                Ok(()) => mark = Some(set),
                Err(_) => marks.remove(&fd, set)?,
            }
        }
        Ok(Opened::new(fd, mark, None))
    }

    /// Only to look at: in a dry run.
    pub(super) fn to_look_at(path: &Path) -> io::Result<Option<Self>> {
        match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Opened::new(fd, None, None))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn new(fd: OwnedFd, mark: Option<Mark>, earlier: Option<Earlier>) -> Self {
        Opened {
            fd: Arc::new(fd),
            mark,
            earlier: earlier.map(Mutex::new),
            aliases: Mutex::default(),
            looks: AtomicU64::new(0),
        }
    }

    /// Whether nothing was in it before this run.
    pub(super) fn is_new(&self) -> bool {
        self.earlier.is_none()
    }

    /// Whether it had an entry of exactly this name before this run. Names are asked for in ascending order; leftovers
    /// of earlier restores that come before go to `leftover`.
    pub(super) fn had(&self, name: &[u8], leftover: impl FnMut(&[u8])) -> bool {
        self.earlier().is_some_and(|mut earlier| earlier.advance(Some(name), leftover))
    }

    /// The walk asks for no more names.
    pub(super) fn walked(&self, leftover: impl FnMut(&[u8])) {
        if let Some(mut earlier) = self.earlier() {
            earlier.advance(None, leftover);
            earlier.names = None;
        }
    }

    fn earlier(&self) -> Option<MutexGuard<'_, Earlier>> {
        self.earlier.as_ref().map(|earlier| earlier.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the entry `name` clashes with another one, since `there` has its name. `had`: the name was listed before
    /// this run. `entries` calls its argument with the names of the snapshot's entries here, until it returns true.
    pub(super) fn clash(
        &self,
        name: &[u8],
        had: bool,
        there: Inode,
        entries: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool),
    ) -> Option<Clash> {
        let alias = self.aliases().get(&there).cloned();
        if let Some(alias) = alias {
            return (alias != name).then_some(Clash(alias));
        }
        if had {
            return None;
        }
        let other = self.other_name(name, there, entries);
        if other.is_some() || self.is_new() {
            return other.or(Some(Clash(Vec::new())));
        }
        if self.lists(name) {
            // Somebody else made it meanwhile.
            return None;
        }
        // It was there before, and no entry has its name as it is spelled. The first entry that comes to it gets it.
        match self.aliases().insert(there, name.to_vec()) {
            Some(earlier) if earlier != name => Some(Clash(earlier)),
            _ => None,
        }
    }

    /// Another entry that `there` has the name of, too. Empty if there are too many to look at.
    fn other_name(
        &self,
        name: &[u8],
        there: Inode,
        entries: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool),
    ) -> Option<Clash> {
        let mut found = None;
        entries(&mut |other| {
            if self.looks.fetch_add(1, Ordering::Relaxed) >= LOOKS {
                found = Some(Clash(Vec::new()));
            } else if other != name {
                let stat = rustix::fs::statat(&self.fd, other, AtFlags::SYMLINK_NOFOLLOW);
                found = stat.is_ok_and(|stat| inode(&stat) == there).then(|| Clash(other.to_vec()));
            }
            found.is_some()
        });
        found
    }

    /// Whether the directory lists this name.
    fn lists(&self, name: &[u8]) -> bool {
        let listed = Dir::read_from(&self.fd).into_iter().flatten();
        listed.map_while(Result::ok).any(|entry| entry.file_name().to_bytes() == name)
    }

    /// Remembers that what replaces `old` has the name of the same entry, if that is spelled otherwise here.
    pub(super) fn replaces(&self, old: Inode, new: Inode) {
        let mut aliases = self.aliases();
        if let Some(name) = aliases.get(&old).cloned() {
            aliases.insert(new, name);
        }
    }

    fn aliases(&self) -> MutexGuard<'_, HashMap<Inode, Vec<u8>>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a directory and marks it.
fn make(above: &OwnedFd, name: &[u8], marks: &Marks) -> io::Result<(OwnedFd, Mark)> {
    rustix::fs::mkdirat(above, name, Mode::RWXU)?;
    let fd = rustix::fs::openat(above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    // Between the two calls somebody else could have put a directory of another owner there.
    if !draft::is_own(above, &rustix::fs::fstat(&fd)?)? {
        return Err(io::Error::other("something else took its place while it was made"));
    }
    let mark = marks.set(&fd);
    Ok((fd, mark))
}

/// Names that a directory had before this run, as far as the walk has not passed them.
struct Earlier {
    names: Option<Peekable<Listing>>,
    /// No other restore was in the directory when they were listed.
    alone: bool,
}

impl Earlier {
    fn of(directory: &OwnedFd, path: &Path) -> io::Result<Self> {
        let alone = temporary::lock_alone(directory);
        let names = Listing::read(directory.as_fd(), &SharedPath::from(path)).map_err(io::Error::other);
        temporary::lock(directory);
        Ok(Earlier { names: Some(names?.peekable()), alone })
    }

    fn is_empty(&mut self) -> bool {
        self.names.as_mut().is_none_or(|names| names.peek().is_none())
    }

    /// Goes on to `name`, or to the end, and returns whether the name is there.
    fn advance(&mut self, name: Option<&[u8]>, mut leftover: impl FnMut(&[u8])) -> bool {
        let Some(names) = &mut self.names else { return false };
        // A name that cannot be read is not there; an entry that is there all the same is searched for.
        while let Some(Ok(next)) = names.peek() {
            let next = next.name.as_bytes();
            match name {
                Some(name) if next == name => return true,
                Some(name) if next > name => return false,
                _ => {}
            }
            if self.alone && temporary::is_one(next) {
                leftover(next);
            }
            names.next();
        }
        false
    }
}
