//! An open directory of the destination, and detection of name clashes.
//!
//! Some file systems treat different names as equal: they ignore case, normalize Unicode, or strip trailing dots and
//! blanks. Two entries of a snapshot may then have the same name, and the second must neither replace nor skip the
//! first.
//!
//! In a directory created by this restore, any existing file with an entry's name is a clash. In an existing directory,
//! the walk merges the sorted names listed before the restore with the sorted entries. If an entry's name exists but
//! was not listed, it is an alias of a file with a different spelling; if that file belongs to another entry, it is a
//! clash. Only aliases are stored, so memory does not grow with the directory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::iter::Peekable;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::draft;
use super::mark::{Mark, Marks};
use super::metadata::{FileId, inode};
use super::temporary;
use crate::source::{Extended, Listing, SharedPath};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The maximum number of entries of one directory that are compared to find clashes.
const LOOKS: u64 = 4_000_000;

/// An open directory of the destination.
pub(super) struct OpenOutput {
    pub(super) fd: Arc<OwnedFd>,
    /// The mark, if this restore or an earlier interrupted one created the directory.
    pub(super) mark: Option<Mark>,
    /// The names before this restore; `None` if the directory is new or was empty.
    earlier: Option<Mutex<EarlierNames>>,
    /// Files with a different spelling than the entry that they belong to.
    aliases: Mutex<HashMap<FileId, Vec<u8>>>,
    /// The number of entries compared to find clashes.
    looks: AtomicU64,
    /// The names of the attributes of a new file.
    inherited: OnceLock<Vec<Vec<u8>>>,
}

/// A name clash with the entry of this name, or of an unknown name if it is empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clash(Vec<u8>);

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            b"" => write!(f, "the file system at the destination treats its name and that of another entry as equal"),
            other => {
                let other = Path::new(OsStr::from_bytes(other)).display();
                write!(f, "the file system at the destination treats its name and {other} as equal")
            }
        }
    }
}

impl OpenOutput {
    /// Creates a directory, and marks it before it gets its name. Fails if the name exists.
    pub(super) fn create(above: &OwnedFd, name: &[u8], marks: &Marks) -> io::Result<Self> {
        let temporary = temporary::name();
        let made = make(above, temporary.as_bytes(), marks);
        let named = made.and_then(|made| Ok(draft::rename(above, temporary.as_bytes(), name).map(|()| made)?));
        let (fd, mark) = match named {
            Ok(made) => made,
            Err(e) => {
                temporary::remove(above, temporary.as_bytes(), marks.file());
                match Errno::from_io_error(&e) {
                    // The file system cannot rename directories.
                    Some(Errno::XDEV | Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => make(above, name, marks)?,
                    _ => return Err(e),
                }
            }
        };
        temporary::lock(&fd);
        Ok(OpenOutput::new(fd, Some(mark), None))
    }

    /// Opens an existing directory; fails for a symlink.
    pub(super) fn existing(above: &OwnedFd, name: &[u8], path: &Path, marks: &Marks) -> io::Result<Self> {
        let fd = rustix::fs::openat(above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        let earlier = EarlierNames::of(&fd, path)?;
        let mark = marks.find(&fd);
        Ok(OpenOutput::new(fd, mark, Some(earlier)))
    }

    /// Opens the destination. With `take`, an empty destination is treated as created by this restore.
    pub(super) fn top(path: &Path, take: bool, marks: &Marks) -> io::Result<Self> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let mut earlier = EarlierNames::of(&fd, path)?;
        if !earlier.is_empty() {
            let mark = marks.find(&fd).filter(|_| take);
            return Ok(OpenOutput::new(fd, mark, Some(earlier)));
        }
        let mut mark = None;
        if take {
            let set = marks.set(&fd);
            // Private until it is complete.
            match rustix::fs::fchmod(&fd, Mode::RWXU) {
                Ok(()) => mark = Some(set),
                Err(_) => marks.remove(&fd, set)?,
            }
        }
        Ok(OpenOutput::new(fd, mark, None))
    }

    /// Opens an existing destination for a dry run; `None` if it is missing.
    pub(super) fn open_for_dry_run(path: &Path) -> io::Result<Option<Self>> {
        match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(OpenOutput::new(fd, None, None))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn new(fd: OwnedFd, mark: Option<Mark>, earlier: Option<EarlierNames>) -> Self {
        OpenOutput {
            fd: Arc::new(fd),
            mark,
            earlier: earlier.map(Mutex::new),
            aliases: Mutex::default(),
            looks: AtomicU64::new(0),
            inherited: OnceLock::new(),
        }
    }

    /// Whether the directory was empty before this restore.
    pub(super) fn is_new(&self) -> bool {
        self.earlier.is_none()
    }

    /// The names of the attributes of a new file here, which it inherits from the directory. All files inherit the same ones
    /// from a directory that this restore created, since it is private until it is complete.
    pub(super) fn inherited(&self, file: &File) -> Cow<'_, [Vec<u8>]> {
        match self.is_new() && self.mark.is_some() {
            true => self.inherited.get_or_init(|| Extended::names_of(file)).into(),
            false => Extended::names_of(file).into(),
        }
    }

    /// Whether the directory contained exactly this name before this restore. Call it with ascending names. Names of
    /// temporary files that sort before `name` are passed to `leftover`.
    pub(super) fn had(&self, name: &[u8], leftover: impl FnMut(&[u8])) -> bool {
        self.earlier().is_some_and(|mut earlier| earlier.advance(Some(name), leftover))
    }

    /// Called after the last [`OpenOutput::had`].
    pub(super) fn walked(&self, leftover: impl FnMut(&[u8])) {
        if let Some(mut earlier) = self.earlier() {
            earlier.advance(None, leftover);
            earlier.names = None;
        }
    }

    fn earlier(&self) -> Option<MutexGuard<'_, EarlierNames>> {
        self.earlier.as_ref().map(|earlier| earlier.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether an existing file `there` with the entry's name belongs to another entry. `had`: the name was listed
    /// before this restore. `entries` calls its argument with the names of all entries here, until it returns true.
    pub(super) fn clash(
        &self,
        name: &[u8],
        had: bool,
        there: FileId,
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
            // Another process created it after the listing.
            return None;
        }
        // An existing file that no entry has the exact name of. The first entry with an equal name gets it.
        match self.aliases().insert(there, name.to_vec()) {
            Some(earlier) if earlier != name => Some(Clash(earlier)),
            _ => None,
        }
    }

    /// Finds another entry whose name also refers to `there`. An unknown clash if there are too many entries to
    /// compare.
    fn other_name(
        &self,
        name: &[u8],
        there: FileId,
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

    /// Whether the directory currently lists exactly this name.
    fn lists(&self, name: &[u8]) -> bool {
        let listed = Dir::read_from(&self.fd).into_iter().flatten();
        listed.map_while(Result::ok).any(|entry| entry.file_name().to_bytes() == name)
    }

    /// Transfers the alias of the replaced file `old`, if it has one, to the file `new`.
    pub(super) fn replaces(&self, old: FileId, new: FileId) {
        let mut aliases = self.aliases();
        if let Some(name) = aliases.get(&old).cloned() {
            aliases.insert(new, name);
        }
    }

    fn aliases(&self) -> MutexGuard<'_, HashMap<FileId, Vec<u8>>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates a directory and marks it.
fn make(above: &OwnedFd, name: &[u8], marks: &Marks) -> io::Result<(OwnedFd, Mark)> {
    rustix::fs::mkdirat(above, name, Mode::RWXU)?;
    let fd = rustix::fs::openat(above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    // Another process may have replaced the directory between the two calls.
    if !draft::is_own(above, &rustix::fs::fstat(&fd)?)? {
        return Err(io::Error::other("another process replaced it while it was created"));
    }
    let mark = marks.set(&fd);
    Ok((fd, mark))
}

/// The names in a directory before this restore, from the walk's position on.
struct EarlierNames {
    names: Option<Peekable<Listing>>,
    /// Whether no other restore used the directory when it was listed.
    alone: bool,
}

impl EarlierNames {
    fn of(directory: &OwnedFd, path: &Path) -> io::Result<Self> {
        let alone = temporary::lock_alone(directory);
        let names = Listing::read(directory.as_fd(), &SharedPath::from(path), usize::MAX).map_err(io::Error::other);
        temporary::lock(directory);
        Ok(EarlierNames { names: Some(names?.peekable()), alone })
    }

    fn is_empty(&mut self) -> bool {
        self.names.as_mut().is_none_or(|names| names.peek().is_none())
    }

    /// Advances to `name`, or to the end, and returns whether the name exists.
    fn advance(&mut self, name: Option<&[u8]>, mut leftover: impl FnMut(&[u8])) -> bool {
        let Some(names) = &mut self.names else { return false };
        // After a read error, names count as missing; a file that exists nevertheless is handled as an alias.
        while let Some(Ok(next)) = names.peek() {
            let next = next.name.as_bytes();
            match name {
                Some(name) if next == name => return true,
                Some(name) if next > name => return false,
                _ => {}
            }
            if self.alone && temporary::is_temporary(next) {
                leftover(next);
            }
            names.next();
        }
        false
    }
}
