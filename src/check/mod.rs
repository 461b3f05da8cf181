//! Checking: is everything there that the snapshots need, and is it what was written?
//!
//! The structure: every snapshot opens and is signed by a known host, every tree node is there and verifies,
//! every block that a file needs lies within a pack of the right length, and no snapshot is missing from the
//! chain in which each names the one before. With the data: every chunk verifies,
//! and every pack has the digest that its sums say. Nothing is changed.
//!
//! Subtrees and chunks that several snapshots share are looked at once; of each, a digest's head is held.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::entry::Content;
use crate::format::{BlockLocation, PackId, name};
use crate::monitor::{Monitor, Progress};
use crate::reader::{self, Directory, FileReader, Listed, Reader};
use crate::target::ObjectInfo;

/// Bytes of a pack that are read at once.
const READ: usize = 1 << 20;
/// Most bytes of a list of sums.
const SUMS_SIZE: usize = 64 << 20;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Snapshots.
    pub snapshots: u64,
    /// Directories, shared ones once.
    pub directories: u64,
    /// Files, shared ones once.
    pub files: u64,
    /// Chunks of files, shared ones once.
    pub chunks: u64,
    /// Packs whose digest was computed.
    pub packs: u64,
    /// What is wrong.
    pub problems: u64,
}

/// What ends a check before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing can be read: no repository, no key.
    #[error(transparent)]
    Reader(#[from] reader::Error),
    /// The run was told to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Checks a repository; with `read_data` also every byte of it.
pub fn check(reader: &Reader, read_data: bool, monitor: &dyn Monitor, stop: &AtomicBool) -> Result<Summary, Error> {
    let mut packs = HashMap::new();
    let listed = reader.repository().target().visit(name::PACKS, &mut |ObjectInfo { name, length }| {
        if let Some(pack) = name::parse_pack(&name) {
            packs.insert(pack, length);
        }
    });
    listed.map_err(|e| reader::Error::from(crate::repository::Error::from(e)))?;
    let mut run = Run {
        reader,
        read_data,
        monitor,
        stop,
        packs,
        directories: HashSet::new(),
        chunks: HashSet::new(),
        summary: Summary::default(),
        bytes: 0,
    };
    run.snapshots()?;
    if read_data {
        run.sums()?;
    }
    Ok(run.summary)
}

struct Run<'a> {
    reader: &'a Reader,
    read_data: bool,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    packs: HashMap<PackId, u64>,
    /// Directories that were looked at, by the heads of their nodes' digests.
    directories: HashSet<i64>,
    /// Chunks that were looked at: the head of the digest, and where the block begins.
    chunks: HashSet<(i64, u64)>,
    summary: Summary,
    bytes: u64,
}

impl Run<'_> {
    fn snapshots(&mut self) -> Result<(), Error> {
        let names = self.reader.snapshots()?;
        let there: HashSet<_> = names.iter().map(|name| name.id).collect();
        for name in names {
            self.summary.snapshots += 1;
            let object = PathBuf::from(name.object());
            let opened = self.reader.snapshot(&name).map(|(snapshot, _)| snapshot);
            if let Some(previous) = opened.as_ref().ok().and_then(|snapshot| snapshot.previous)
                && !there.contains(&previous)
            {
                self.problem(&object, &format!("the snapshot before it ({previous}) is missing"));
            }
            let root = match opened.and_then(Listed::root) {
                Ok(root) => root,
                // Without the right key nothing can be said of any of them.
                Err(error) if error.is_key_problem() => return Err(error.into()),
                Err(error) => {
                    self.problem(&object, &error.to_string());
                    continue;
                }
            };
            let source = self.reader.source_name(name.source);
            if let Err(error) = &source {
                self.problem(&object, &error.to_string());
            }
            let shown = PathBuf::from(source.unwrap_or_else(|_| name.source.to_string())).join(&name.time);
            if let Some(directory) = root.directory() {
                self.directory(&root, &directory, &shown)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, listed: &Listed, directory: &Directory, path: &Path) -> Result<(), Error> {
        if let Content::Directory(subtree) = &listed.entry().content
            && let Some(node) = &subtree.node
            && !self.directories.insert(node.digest.head())
        {
            return Ok(());
        }
        self.summary.directories += 1;
        let reader = self.reader;
        let result = reader.each(directory, |child| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let path = path.join(OsStr::from_bytes(&child.entry().name));
            match child.directory() {
                Some(below) => self.directory(&child, &below, &path),
                None => self.file(child, &path),
            }
        });
        match result {
            Err(Error::Reader(error)) => {
                self.problem(path, &error.to_string());
                Ok(())
            }
            other => other,
        }
    }

    fn file(&mut self, listed: Listed, path: &Path) -> Result<(), Error> {
        self.summary.files += 1;
        let file = FileReader::new(listed);
        let (reader, read_data) = (self.reader, self.read_data);
        let result = file.each_chunk(reader, |_, at, chunk| {
            if !self.chunks.insert((chunk.digest.head(), at.offset)) {
                return Ok(());
            }
            self.summary.chunks += 1;
            self.bytes += u64::from(chunk.length);
            let (files, bytes) = (self.summary.files, self.bytes);
            self.monitor.progress(Progress { files, bytes, stored_bytes: 0 });
            self.placed(at)?;
            if read_data {
                reader.verify(at, chunk)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            self.problem(path, &error.to_string());
        }
        Ok(())
    }

    /// Checks that a block lies within its pack.
    fn placed(&self, at: &BlockLocation) -> Result<(), reader::Error> {
        let wrong = |why: String| reader::Error::Tree(format!("its data is lost: pack {} {why}", at.pack));
        let end = at.offset.saturating_add(at.length.into());
        match self.packs.get(&at.pack) {
            None => Err(wrong("is missing".into())),
            Some(length) if *length < end => Err(wrong(format!("has {length} bytes, and {end} are needed"))),
            Some(_) => Ok(()),
        }
    }

    /// Compares every pack with the digest that its sums say.
    fn sums(&mut self) -> Result<(), Error> {
        let target = self.reader.repository().target();
        let failed = |e| reader::Error::from(crate::repository::Error::from(e));
        for ObjectInfo { name, .. } in target.list(name::SUMS).map_err(failed)? {
            let object = PathBuf::from(&name);
            let text = match target.get(&name, SUMS_SIZE) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) => {
                    self.problem(&object, &error.to_string());
                    continue;
                }
            };
            for line in text.lines() {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                match line.split_once("  ") {
                    Some((sum, pack)) if name::parse_pack(pack).is_some() => self.sum(pack, sum),
                    _ => self.problem(&object, "it holds a line that is no sum of a pack"),
                }
            }
        }
        Ok(())
    }

    fn sum(&mut self, pack: &str, sum: &str) {
        self.summary.packs += 1;
        match self.digest(pack) {
            Ok(digest) if digest == sum => {}
            Ok(_) => self.problem(Path::new(pack), "its bytes are not those that were stored: the sum differs"),
            Err(error) => self.problem(Path::new(pack), &error.to_string()),
        }
    }

    fn digest(&self, pack: &str) -> Result<String, crate::target::Error> {
        let target = self.reader.repository().target();
        let length = target.length(pack)?;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < length {
            let bytes = target.read(pack, at, READ.min(usize::try_from(length - at).unwrap_or(READ)))?;
            hasher.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn problem(&mut self, path: &Path, why: &str) {
        self.summary.problems += 1;
        self.monitor.problem(path, why);
    }
}
