//! A cache on disk for blocks that are read from a target on another machine.
//!
//! Each range that was read is a file, named after the object and the range, with the bytes as they are in the object
//! (ciphertext, in an encrypted repository) and their BLAKE3 hash. Objects never change, so a file is never out of date. A
//! damaged file is removed, and its range is read from the target. So are bytes that the reader finds wrong: the target may
//! have sent them so, once.
//!
//! Processes share a cache without locks: a file gets its name when it is complete, and may vanish at any time. If files
//! take more than the limit, those of the objects whose ranges were used least recently are removed, and preferred objects
//! (packs with trees, without which no file is found) last, if they were used in the last weeks: others may have been pruned.
//! The cache is best effort: if it cannot be read or written, everything is read from the target.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::debug;
use uuid::Uuid;

use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::error::Error;
use super::parts::Parts;
use super::spool::Spool;
use crate::sys::owner::{create_folders, create_private, open_private};

/// Bytes of a hash.
const HASH: usize = blake3::OUT_LEN;
/// How exactly the time of the last use is known.
const USE_TIME: Duration = Duration::from_secs(60);
/// Age of a file without its final name that no process writes any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// How long after their last use objects are preferred.
const PREFERENCE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Prefix of files that are being written.
const UNFINISHED: &str = ".tmp-";
/// An empty file with this name marks a preferred object.
const PREFERRED: &str = "preferred";
/// Marks the folder for backup programs, which then leave it out. See <https://bford.info/cachedir/>.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of brackfs.\n";

/// A storage whose reads are cached on disk.
#[derive(Debug)]
pub struct DiskCache {
    inner: Box<dyn Storage>,
    directory: PathBuf,
    /// Objects below this prefix are cached.
    prefix: &'static str,
    /// Most bytes of files.
    limit: u64,
    /// Whether ranges that were read from the target are added.
    fills: bool,
    /// About as many bytes as there are; other processes add to them, too.
    used: AtomicU64,
    /// Held while files are removed.
    removal: Mutex<()>,
    /// Objects that this process has marked as preferred.
    marked: Mutex<HashSet<String>>,
}

/// The files with ranges of an object.
struct CachedObject {
    directory: PathBuf,
    is_preferred: bool,
    used_at: SystemTime,
    bytes: u64,
}

impl DiskCache {
    /// Caches reads of objects below `prefix`, which ends in `/` and has one level of folders, in at most `limit` bytes of
    /// files in `directory`. Unless it `fills`, the cache is only read.
    pub fn new(inner: Box<dyn Storage>, directory: PathBuf, prefix: &'static str, limit: u64, fills: bool) -> Self {
        let (used, removal, marked) = (AtomicU64::new(0), Mutex::new(()), Mutex::default());
        let cache = DiskCache { inner, directory, prefix, limit, fills, used, removal, marked };
        if fills {
            let tag = cache.directory.join("CACHEDIR.TAG");
            let made =
                create_folders(&cache.directory).and_then(|()| open_private(&tag, OpenOptions::new().write(true)));
            _ = made.and_then(|mut file| file.write_all(TAG.as_bytes()));
            // Other limits may have been in force before.
            cache.make_room();
        }
        cache
    }

    /// The folder of the ranges of an object; `None` if it is not cached.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        let (folder, object) = name.strip_prefix(self.prefix)?.split_once('/')?;
        let is_plain = |part: &str| !part.starts_with('.') && !part.is_empty() && !part.contains('/');
        (is_plain(folder) && is_plain(object)).then(|| self.directory.join(folder).join(object))
    }

    fn marked(&self) -> MutexGuard<'_, HashSet<String>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a range.
    fn add(&self, folder: &Path, range: &str, bytes: &[u8]) {
        let size = (bytes.len() + HASH) as u64;
        if size > self.limit {
            return;
        }
        if let Err(error) = write(folder, range, bytes) {
            debug!(%error, folder = %folder.display(), "cannot write to the cache");
            return;
        }
        if self.used.fetch_add(size, Ordering::Relaxed).saturating_add(size) > self.limit {
            self.make_room();
        }
    }

    /// Removes the objects that were used least recently if files take more than the limit, until a tenth of it is free, and
    /// preferred ones after all others.
    fn make_room(&self) {
        // Another thread is at it.
        let Ok(_alone) = self.removal.try_lock() else { return };
        let mut objects = cached_objects(&self.directory);
        objects.sort_unstable_by_key(|object| (object.is_preferred, object.used_at));
        let mut used: u64 = objects.iter().map(|object| object.bytes).sum();
        let most = if used > self.limit { self.limit / 10 * 9 } else { self.limit };
        for object in objects {
            if used <= most {
                break;
            }
            if fs::remove_dir_all(&object.directory).is_ok() {
                used -= object.bytes;
            }
        }
        self.marked().clear();
        debug!(bytes = used, "the cache was looked through");
        self.used.store(used, Ordering::Relaxed);
    }
}

impl Storage for DiskCache {
    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let Some(folder) = self.folder(name) else { return self.inner.read(name, offset, length, bytes) };
        let range = range_name(offset, length);
        if find(&folder, &range, length, bytes) {
            return Ok(());
        }
        self.inner.read(name, offset, length, bytes)?;
        if self.fills {
            self.add(&folder, &range, bytes);
        }
        Ok(())
    }

    /// Parts that are not cached and follow each other are read with one request.
    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        let Some(folder) = self.folder(name) else { return self.inner.read_parts(name, parts) };
        let Parts { mut offset, lengths: mut left, bytes, take } = parts;
        while let Some((first, others)) = left.split_first() {
            if find(&folder, &range_name(offset, *first), *first, bytes) {
                take(bytes);
                (offset, left) = (offset.saturating_add(*first as u64), others);
                continue;
            }
            let mut next = offset.saturating_add(*first as u64);
            let is_missing = |length: &&usize| {
                let is_missing = !self.has_copy(name, next, **length);
                next = next.saturating_add(**length as u64);
                is_missing
            };
            let (missing, others) = left.split_at(1 + others.iter().take_while(is_missing).count());
            let begin = offset;
            let mut add = |part: &[u8]| {
                if self.fills {
                    self.add(&folder, &range_name(offset, part.len()), part);
                }
                offset = offset.saturating_add(part.len() as u64);
                take(part);
            };
            self.inner.read_parts(name, Parts { offset: begin, lengths: missing, bytes, take: &mut add })?;
            left = others;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.inner.remove(name)?;
        if let Some(folder) = self.folder(name) {
            _ = fs::remove_dir_all(folder);
        }
        Ok(())
    }

    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        self.inner.remove_all(names, &mut |at, result| {
            if let (Ok(()), Some(folder)) = (&result, names.get(at).and_then(|name| self.folder(name))) {
                _ = fs::remove_dir_all(folder);
            }
            ended(at, result);
        })
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.inner.spool(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        self.inner.store(spool)
    }

    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        self.inner.get(name, limit)
    }

    fn evict(&self, name: &str, offset: u64, length: usize) {
        self.inner.evict(name, offset, length);
    }

    fn prefer(&self, name: &str) {
        let Some(folder) = self.folder(name).filter(|_| self.fills) else { return };
        if !self.marked().contains(name) && mark(&folder.join(PREFERRED)).is_ok() {
            self.marked().insert(name.to_owned());
        }
    }

    fn has_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.folder(name).is_some_and(|folder| folder.join(range_name(offset, length)).exists())
    }

    fn drop_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.folder(name).is_some_and(|folder| fs::remove_file(folder.join(range_name(offset, length))).is_ok())
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        self.inner.length(name)
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        self.inner.stamp(name)
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        self.inner.visit(prefix, found)
    }

    fn settle(&self, prefixes: &[&str]) -> Result<(), Error> {
        self.inner.settle(prefixes)
    }

    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        self.inner.discard(prefixes, runs)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.inner.abandon(is_ours)
    }
}

/// The name of the file with a range.
fn range_name(offset: u64, length: usize) -> String {
    format!("{offset}-{length}")
}

/// Reads a range. Returns false if it is not cached.
fn find(folder: &Path, range: &str, length: usize, bytes: &mut Vec<u8>) -> bool {
    let path = folder.join(range);
    let Ok(mut file) = File::open(&path) else { return false };
    bytes.clear();
    let is_right = read_verified(&mut file, length, bytes);
    if is_right {
        note_use(folder);
    } else {
        debug!(path = %path.display(), "a damaged file of the cache is removed");
        _ = fs::remove_file(&path);
    }
    is_right
}

/// Reads `length` bytes and compares them with the hash after them.
fn read_verified(file: &mut File, length: usize, bytes: &mut Vec<u8>) -> bool {
    bytes.reserve_exact(length + HASH);
    let read = file.take((length + HASH + 1) as u64).read_to_end(bytes);
    if read.ok() != Some(length + HASH) {
        return false;
    }
    let is_right = blake3::hash(&bytes[..length]).as_bytes() == &bytes[length..];
    bytes.truncate(length);
    is_right
}

/// Writes a range to a file that gets its name when it is complete.
fn write(folder: &Path, range: &str, bytes: &[u8]) -> io::Result<()> {
    create_folders(folder)?;
    let unfinished = folder.join(format!("{UNFINISHED}{}", Uuid::new_v4()));
    let fill = || {
        let mut file = create_private(&unfinished)?;
        file.write_all(bytes)?;
        file.write_all(blake3::hash(bytes).as_bytes())?;
        fs::rename(&unfinished, folder.join(range))
    };
    fill().inspect_err(|_| _ = fs::remove_file(&unfinished))
}

/// Notes the time of a use of an object.
fn note_use(folder: &Path) {
    let now = SystemTime::now();
    let is_noted = |at: SystemTime| now.duration_since(at).is_ok_and(|ago| ago < USE_TIME);
    if fs::metadata(folder).and_then(|found| found.modified()).is_ok_and(|at| !is_noted(at)) {
        _ = File::open(folder).and_then(|folder| folder.set_modified(now));
    }
}

/// The objects of which there are files. Removes what processes left that were killed while they wrote.
fn cached_objects(directory: &Path) -> Vec<CachedObject> {
    let mut objects = Vec::new();
    for folder in folders(directory) {
        for object in folders(&folder) {
            let Ok(used_at) = fs::metadata(&object).and_then(|found| found.modified()) else { continue };
            let is_current = used_at.elapsed().map_or(true, |age| age < PREFERENCE);
            let (mut bytes, is_preferred) = (0, is_current && object.join(PREFERRED).exists());
            for file in fs::read_dir(&object).into_iter().flatten().flatten() {
                let Ok(found) = file.metadata() else { continue };
                let is_old = |at: SystemTime| at.elapsed().is_ok_and(|age| age > ABANDONED);
                let is_unfinished = file.file_name().to_string_lossy().starts_with(UNFINISHED);
                if is_unfinished && found.modified().is_ok_and(is_old) {
                    _ = fs::remove_file(file.path());
                } else {
                    bytes += found.len();
                }
            }
            objects.push(CachedObject { directory: object, is_preferred, used_at, bytes });
        }
    }
    objects
}

fn folders(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Makes an empty file, readable by its user only, unless there is one.
fn mark(path: &Path) -> io::Result<()> {
    open_private(path, OpenOptions::new().write(true)).map(drop)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::storage::ErrorKind;
    use crate::storage::testing::{Memory, Recording, Records};

    const PACKS: [&str; 3] = ["packs/ab/abcd", "packs/ab/abef", "packs/cd/cdef"];
    const INDEX: &str = "index/1";

    /// Some objects of 1000 bytes, a cache for them, and a record of what is read from the target.
    struct Cached {
        place: TempDir,
        memory: Memory,
    }

    impl Cached {
        fn new() -> Cached {
            let memory = Memory::default();
            for name in PACKS.into_iter().chain([INDEX]) {
                let mut spool = memory.spool(name, Uuid::new_v4()).unwrap();
                spool.append(&content(name)).unwrap();
                memory.store(&spool).unwrap();
            }
            Cached { place: tempfile::tempdir().unwrap(), memory }
        }

        fn directory(&self) -> PathBuf {
            self.place.path().join("cache")
        }

        fn open(&self, limit: u64, fills: bool) -> (DiskCache, Records) {
            let (storage, records) = Recording::new(Box::new(self.memory.clone()));
            (DiskCache::new(Box::new(storage), self.directory(), "packs/", limit, fills), records)
        }

        fn files(&self) -> Vec<PathBuf> {
            let folders_of = |folder: &PathBuf| folders(folder).collect::<Vec<_>>();
            let objects = folders_of(&self.directory()).into_iter().flat_map(|folder| folders_of(&folder));
            let mut files: Vec<_> =
                objects.flat_map(|object| fs::read_dir(object).unwrap()).map(|file| file.unwrap().path()).collect();
            files.sort();
            files
        }
    }

    fn content(name: &str) -> Vec<u8> {
        name.bytes().cycle().take(1000).collect()
    }

    fn assert_reads(cache: &DiskCache, name: &str, offset: usize, length: usize) {
        let mut bytes = vec![1; 3];
        cache.read(name, offset as u64, length, &mut bytes).unwrap();
        assert!(bytes == content(name)[offset..offset + length]);
    }

    #[test]
    fn parts_that_are_not_cached_are_read_together_and_cached_one_by_one() {
        let cached = Cached::new();
        let (cache, records) = cached.open(1 << 20, true);
        let read = |name: &str, lengths: &[usize]| {
            let (mut taken, mut bytes) = (Vec::new(), Vec::new());
            let mut take = |part: &[u8]| taken.push(part.to_vec());
            let parts = Parts { offset: 100, lengths, bytes: &mut bytes, take: &mut take };
            let result = cache.read_parts(name, parts).map_err(|error| error.kind);
            let mut at = 100;
            for part in &taken {
                assert!(*part == content(name)[at..at + part.len()]);
                at += part.len();
            }
            let read: Vec<_> = records.take().iter().map(|record| record.bytes).collect();
            (taken.iter().map(Vec::len).collect::<Vec<_>>(), read, result)
        };
        assert_reads(&cache, PACKS[0], 130, 40);
        records.take();
        let lengths = [10, 20, 40, 50, 60];
        assert_eq!(read(PACKS[0], &lengths), (lengths.into(), vec![30, 110], Ok(())));
        assert_eq!(read(PACKS[0], &lengths), (lengths.into(), vec![], Ok(())));
        assert_reads(&cache, PACKS[0], 170, 50);
        assert_eq!(records.take().len(), 0);
        assert_eq!(read(INDEX, &[10, 20]), (vec![10, 20], vec![30], Ok(())));
        // What was read before an error is cached.
        let (taken, _, result) = read(PACKS[1], &[800, 200]);
        assert_eq!((taken, result), (vec![800], Err(ErrorKind::Truncated)));
        assert_eq!(read(PACKS[1], &[800]), (vec![800], vec![], Ok(())));
        let copies = [(0, PACKS[1], 800), (1, PACKS[1], 800), (0, PACKS[2], 800), (0, INDEX, 10)];
        let has = copies.map(|(at, name, length)| cache.has_copy(name, 100 - at, length));
        assert_eq!(has, [true, false, false, false]);
    }

    #[test]
    fn a_range_of_a_pack_is_read_from_the_target_once_also_by_another_process() {
        let cached = Cached::new();
        let (cache, records) = cached.open(1 << 20, true);
        for _ in 0..3 {
            assert_reads(&cache, PACKS[0], 10, 500);
            assert_reads(&cache, PACKS[0], 10, 501);
            assert_reads(&cache, PACKS[0], 999, 0);
        }
        assert_eq!(records.take().len(), 3);
        let (other, records) = cached.open(1 << 20, true);
        assert_reads(&other, PACKS[0], 10, 500);
        assert_eq!(records.take().len(), 0);
        for _ in 0..2 {
            assert_reads(&other, INDEX, 0, 7);
        }
        assert_eq!(records.take().len(), 2);
        assert!(fs::read_to_string(cached.directory().join("CACHEDIR.TAG")).unwrap().starts_with("Signature: "));
    }

    #[test]
    fn an_error_is_not_cached() {
        let cached = Cached::new();
        let (cache, _) = cached.open(1 << 20, true);
        let mut bytes = Vec::new();
        assert!(cache.read(PACKS[0], 900, 200, &mut bytes).is_err());
        assert!(cache.read("packs/no/none", 0, 1, &mut bytes).is_err());
        assert_eq!(cached.files(), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_damaged_file_is_read_from_the_target_again() {
        let cached = Cached::new();
        let (cache, records) = cached.open(1 << 20, true);
        for damage in [0, 700, 719, 720, 731] {
            assert_reads(&cache, PACKS[1], 0, 700);
            let [file] = cached.files().try_into().unwrap();
            let mut bytes = fs::read(&file).unwrap();
            match bytes.get_mut(damage) {
                Some(byte) => *byte ^= 1,
                None => bytes.push(0),
            }
            fs::write(&file, bytes).unwrap();
            records.take();
            assert_reads(&cache, PACKS[1], 0, 700);
            assert_eq!(records.take().len(), 1, "byte {damage}");
        }
        let [file] = cached.files().try_into().unwrap();
        fs::write(&file, "short").unwrap();
        assert_reads(&cache, PACKS[1], 0, 700);
        assert_eq!(records.take().len(), 1);
    }

    #[test]
    fn ranges_of_the_object_that_was_used_least_recently_are_removed_first() {
        let cached = Cached::new();
        let (cache, records) = cached.open(3000, true);
        for (name, age) in [(PACKS[0], 300), (PACKS[1], 200)] {
            assert_reads(&cache, name, 0, 600);
            assert_reads(&cache, name, 600, 300);
            let folder = File::open(cache.folder(name).unwrap()).unwrap();
            folder.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        // A use counts.
        assert_reads(&cache, PACKS[0], 0, 600);
        assert_reads(&cache, PACKS[2], 0, 1000);
        assert_reads(&cache, PACKS[2], 0, 400);
        let total: u64 = cached.files().iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(total <= 3000, "{total}");
        records.take();
        assert_reads(&cache, PACKS[0], 600, 300);
        assert_eq!(records.take().len(), 0);
        assert_reads(&cache, PACKS[1], 0, 600);
        assert_eq!(records.take().len(), 1);
        // A lower limit counts at once, and a range above the limit is not kept.
        let (small, _) = cached.open(500, true);
        assert_eq!(cached.files(), [] as [PathBuf; 0]);
        assert_reads(&small, PACKS[0], 0, 600);
        assert_eq!(cached.files(), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_copy_that_the_reader_finds_wrong_is_dropped() {
        let cached = Cached::new();
        let (cache, records) = cached.open(1 << 20, true);
        assert!(!cache.drop_copy(PACKS[0], 0, 100));
        assert_reads(&cache, PACKS[0], 0, 100);
        assert_reads(&cache, PACKS[0], 100, 100);
        assert!(!cache.drop_copy(INDEX, 0, 100));
        assert!(cache.drop_copy(PACKS[0], 0, 100));
        assert!(!cache.drop_copy(PACKS[0], 0, 100));
        records.take();
        assert_reads(&cache, PACKS[0], 0, 100);
        assert_reads(&cache, PACKS[0], 100, 100);
        assert_eq!(records.take().len(), 1);
    }

    #[test]
    fn a_cache_that_does_not_fill_is_only_read() {
        let cached = Cached::new();
        assert_reads(&cached.open(1 << 20, true).0, PACKS[0], 0, 100);
        let (cache, records) = cached.open(1 << 20, false);
        assert_reads(&cache, PACKS[0], 0, 100);
        assert_reads(&cache, PACKS[1], 0, 100);
        assert_eq!((records.take().len(), cached.files().len()), (1, 1));
    }

    #[test]
    fn without_a_usable_directory_everything_is_read_from_the_target() {
        let cached = Cached::new();
        fs::write(cached.directory(), "a file").unwrap();
        let (cache, records) = cached.open(1 << 20, true);
        for _ in 0..2 {
            assert_reads(&cache, PACKS[0], 0, 100);
        }
        assert_eq!(records.take().len(), 2);
    }

    #[test]
    fn preferred_objects_are_removed_last() {
        let cached = Cached::new();
        let (cache, records) = cached.open(3000, true);
        assert_reads(&cache, PACKS[0], 0, 1000);
        cache.prefer(PACKS[0]);
        let folder = File::open(cache.folder(PACKS[0]).unwrap()).unwrap();
        folder.set_modified(SystemTime::now() - Duration::from_secs(300)).unwrap();
        // Nothing is marked that is not there.
        cache.prefer(PACKS[1]);
        for name in [PACKS[1], PACKS[2]] {
            assert_reads(&cache, name, 0, 1000);
        }
        records.take();
        assert_reads(&cache, PACKS[0], 0, 1000);
        assert_eq!(records.take().len(), 0);
        assert_reads(&cache, PACKS[1], 0, 1000);
        assert_eq!(records.take().len(), 1);
        // The limit holds for them, too, and they are marked again when they come back.
        cached.open(500, true);
        assert_eq!(cached.files(), [] as [PathBuf; 0]);
        let (cache, _) = cached.open(3000, true);
        assert_reads(&cache, PACKS[0], 0, 1000);
        cache.prefer(PACKS[0]);
        assert_eq!(cached.files().len(), 2);
        let (reading, _) = cached.open(3000, false);
        reading.prefer(PACKS[2]);
        assert_eq!(cached.files().len(), 2);
    }

    #[test]
    fn a_preference_ends_if_the_object_is_not_used() {
        for (age, stays) in [(PREFERENCE / 2, true), (2 * PREFERENCE, false)] {
            let cached = Cached::new();
            let (cache, records) = cached.open(3000, true);
            assert_reads(&cache, PACKS[0], 0, 1000);
            cache.prefer(PACKS[0]);
            let folder = File::open(cache.folder(PACKS[0]).unwrap()).unwrap();
            folder.set_modified(SystemTime::now() - age).unwrap();
            for name in [PACKS[1], PACKS[2]] {
                assert_reads(&cache, name, 0, 1000);
            }
            records.take();
            assert_reads(&cache, PACKS[0], 0, 1000);
            assert_eq!(records.take().is_empty(), stays);
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let cached = Cached::new();
        assert_reads(&cached.open(1 << 20, true).0, PACKS[0], 0, 100);
        let folder = cached.files()[0].parent().unwrap().to_owned();
        let (old, new) = (folder.join(".tmp-old"), folder.join(".tmp-new"));
        for path in [&old, &new] {
            fs::write(path, "half").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        OpenOptions::new().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        cached.open(1 << 20, true);
        assert!(!old.exists() && new.exists());
    }
}
