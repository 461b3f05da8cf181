//! An object that is still being written, in a temporary file.
//!
//! For a directory the file is the final one: it is on the target's file system and later gets the object's name. For other
//! storage it is an unnamed file on this machine, from [`Spools`], which bounds the number and the size of such files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rustix::fs::{AtFlags, unlinkat};
use uuid::Uuid;

use super::cut_off::CutOff;
use super::error::{Error, ErrorKind};
use super::pace::Pace;
use crate::sys::owner::create_folders;

/// An object being written. Its bytes are in a file, not in memory. Dropping it removes the file.
///
/// It is appended to by one thread and stays as it is while it is stored, so storing can be tried again.
#[derive(Debug)]
pub struct Spool {
    pub(super) file: File,
    object: String,
    run: Uuid,
    length: u64,
    /// The maximum length.
    limit: u64,
    /// Where the file is, if it is in the target's directory.
    pub(super) home: Option<Home>,
    /// The folder of the file, if it is not in the target's directory.
    folder: Option<PathBuf>,
    /// The rate of uploads.
    pace: OnceLock<Arc<Pace>>,
    /// When an upload is given up.
    cut_off: CutOff,
    /// Held until the file is gone.
    _slot: Option<Slot>,
}

/// The folder of an object in a target's directory, and the file's temporary name in it.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) folder: OwnedFd,
    /// The target's directory.
    root: PathBuf,
    /// `None` for an unnamed file (`O_TMPFILE`).
    pub(super) temporary: Option<String>,
    /// The temporary name was renamed to the object's name.
    pub(super) renamed: AtomicBool,
}

impl Spool {
    /// A spool for a directory. Its file system has its own limit.
    pub(super) fn in_folder(file: File, object: &str, run: Uuid, home: Home) -> Self {
        Spool {
            file,
            object: object.to_owned(),
            run,
            length: 0,
            limit: u64::MAX,
            home: Some(home),
            folder: None,
            pace: OnceLock::new(),
            cut_off: CutOff::default(),
            _slot: None,
        }
    }

    /// The name of the object.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The run that writes it.
    pub fn run(&self) -> Uuid {
        self.run
    }

    /// Appends bytes to the object. Beyond the size limit of the target the error is [`ErrorKind::TooLarge`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = self.length.saturating_add(bytes.len() as u64);
        if length > self.limit {
            let why = format!("the target stores at most {} bytes per object", self.limit);
            return Err(Error::new(ErrorKind::TooLarge, "write", &self.object, why));
        }
        self.file.write_all(bytes).map_err(|e| match &self.folder {
            Some(folder) => Error::io("write a temporary file in", &folder.display().to_string(), e),
            None => {
                let error = Error::io("write", &self.object, e);
                match &self.home {
                    // Which disk is full.
                    Some(home) if error.kind == ErrorKind::Full => error.at(&home.root.display().to_string()),
                    _ => error,
                }
            }
        })?;
        self.length = length;
        Ok(())
    }

    /// The number of bytes appended so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads the object from its start; it can be read any number of times.
    pub fn contents(&self) -> SpoolReader<'_> {
        SpoolReader { spool: self, at: 0, pace: None, cut_off: None }
    }

    /// The same for an upload to another machine, at the rate of [`Spool::upload_at`]. Fails once it is cut off.
    pub fn upload(&self) -> SpoolReader<'_> {
        SpoolReader { pace: self.pace.get(), cut_off: Some(&self.cut_off), ..self.contents() }
    }

    /// Gives an upload up at this time.
    pub fn set_cut_off(&mut self, cut_off: &CutOff) {
        self.cut_off = cut_off.clone();
    }

    /// Whether an upload is given up.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off.has_passed()
    }

    /// Sets the rate of uploads. Returns false for a spool that is not uploaded, as its file is in the target's directory.
    pub(super) fn upload_at(&self, pace: &Arc<Pace>) -> bool {
        // A spool that is stored again keeps the rate that it has.
        let _ = self.pace.set(pace.clone());
        self.home.is_none()
    }
}

impl Home {
    pub(super) fn new(root: &Path, folder: OwnedFd, temporary: Option<String>) -> Self {
        Home { folder, root: root.to_owned(), temporary, renamed: AtomicBool::default() }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(name) = self.temporary.take().filter(|_| !self.renamed.load(Ordering::Relaxed)) {
            // Best effort: a file that stays has a temporary name, so listings skip it.
            let _ = unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// Reads a [`Spool`]. Readers are independent of each other.
#[derive(Debug)]
pub struct SpoolReader<'s> {
    spool: &'s Spool,
    at: u64,
    pace: Option<&'s Arc<Pace>>,
    cut_off: Option<&'s CutOff>,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.spool.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = bytes.len().min(left);
        if self.cut_off.is_some_and(CutOff::has_passed) {
            return Err(io::Error::other("the upload was interrupted"));
        }
        let begun = Instant::now();
        let read = self.spool.file.read_at(bytes.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        if let Some(pace) = self.pace {
            pace.pay(begun, read as u64);
        }
        Ok(read)
    }
}

impl Seek for SpoolReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.spool.length.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// Temporary files for the spools of storage that is not a directory. Clones share the bound.
#[derive(Debug, Clone)]
pub struct Spools {
    /// `None` for the folder of the system's temporary files.
    folder: Option<PathBuf>,
    limit: u64,
    slots: Arc<Slots>,
}

#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to have one spool.
#[derive(Debug)]
struct Slot(Arc<Slots>);

impl Spools {
    /// At most `count` spools at a time, of at most `limit` bytes each. A backup needs at least four: one for each of two
    /// open packs, one that is being stored, and one for a document.
    pub fn new(folder: Option<PathBuf>, count: usize, limit: u64) -> Self {
        Spools { folder, limit, slots: Arc::new(Slots { free: Mutex::new(count), freed: Condvar::new() }) }
    }

    /// Opens a spool for the object `object`, which `run` writes. Waits while all are in use.
    pub fn open(&self, object: &str, run: Uuid) -> Result<Spool, Error> {
        let slot = Slot::take(&self.slots);
        let folder = self.folder.clone().unwrap_or_else(std::env::temp_dir);
        let failed = |e| Error::io("create a temporary file in", &folder.display().to_string(), e);
        let file = self.file().map_err(failed)?;
        let object = object.to_owned();
        Ok(Spool {
            file,
            object,
            run,
            length: 0,
            limit: self.limit,
            home: None,
            folder: Some(folder),
            pace: OnceLock::new(),
            cut_off: CutOff::default(),
            _slot: Some(slot),
        })
    }

    /// Creates an unnamed file.
    fn file(&self) -> io::Result<File> {
        let Some(folder) = &self.folder else { return tempfile::tempfile() };
        match tempfile::tempfile_in(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_folders(folder)?;
                tempfile::tempfile_in(folder)
            }
            file => file,
        }
    }
}

impl Slot {
    fn take(slots: &Arc<Slots>) -> Slot {
        let free = slots.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = slots.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Slot(slots.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const RUN: Uuid = Uuid::from_u128(7);

    #[test]
    fn a_spool_is_read_from_any_place_and_any_number_of_times() {
        let mut spool = Spools::new(None, 1, 100).open("x", RUN).unwrap();
        spool.append(b"01234").unwrap();
        spool.append(b"56789").unwrap();
        for _ in 0..2 {
            let mut text = String::new();
            spool.contents().read_to_string(&mut text).unwrap();
            assert_eq!(text, "0123456789");
        }
        let mut contents = spool.contents();
        for (to, expected) in [(SeekFrom::Start(7), "789"), (SeekFrom::End(-1), "9"), (SeekFrom::Start(20), "")] {
            contents.seek(to).unwrap();
            let mut text = String::new();
            contents.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
        contents.seek(SeekFrom::Current(-100)).unwrap_err();
        spool.append(b"more").unwrap();
        assert_eq!(spool.length(), 14);
    }

    #[test]
    fn size_and_number_of_spools_are_bounded() {
        let spools = Spools::new(Some(std::env::temp_dir()), 2, 10);
        let mut one = spools.open("one", RUN).unwrap();
        one.append(&[0; 10]).unwrap();
        assert_eq!(one.append(&[0]).unwrap_err().kind, ErrorKind::TooLarge);
        assert_eq!(one.length(), 10);
        // Often, since a thread that does not wait may happen to be late.
        for _ in 0..100 {
            let two = spools.open("two", RUN).unwrap();
            let is_dropped = AtomicBool::new(false);
            let (begins, begun) = mpsc::channel();
            thread::scope(|threads| {
                let third = threads.spawn(|| {
                    begins.send(()).unwrap();
                    drop(spools.clone().open("three", RUN).unwrap());
                    is_dropped.load(Ordering::Relaxed)
                });
                begun.recv().unwrap();
                is_dropped.store(true, Ordering::Relaxed);
                drop(two);
                assert!(third.join().unwrap(), "it did not wait");
            });
        }
    }
}
