//! Checks that everything the snapshots need is present and intact. Changes nothing.
//!
//! Structure: every snapshot opens and has a known signer; every tree node is present and verifies; every block that a
//! file needs is within a pack of the right length; and no snapshot is missing from the chain in which each refers to
//! the previous one. The writer's documents open, lists of sums agree with the signed indexes, and keys match the
//! fingerprints in their names. Packs in indexes are present and have the right length. Each pack that a snapshot needs
//! is in an index: otherwise an index is missing, and a rebuilt catalog would not know the pack. With `read_data`:
//! every chunk verifies, including those that are only in an index, and every pack in an index has the digest given
//! there.
//!
//! Subtrees, extent nodes and chunks that are used several times are checked once; for each of them, the head of a
//! digest and a location are kept in memory. The time of a check is therefore bounded by the stored data, however often
//! a snapshot refers to it, and no more of a pack is read than the length in the signed index.

mod content;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::archive::{Archive, EntryHandle, SnapshotDirectory, TreeWalk, WalkStep};
use crate::crypt::{Certificate, Fingerprint};
use crate::failure::{Failure, FailureKind};
use crate::format::id::ObjectId;
use crate::format::name::{GenerationName, SnapshotName};
use crate::format::pack::IndexedPack;
use crate::format::sums::{PackSum, SUMS_SIZE};
use crate::format::{BLOCK_SIZE, BlockLocation, ChunkRef, Digest, PackId, name, sums};
use crate::monitor::{self, Monitor};
use crate::reader::{self, FileReader, Reader, root_of, top_node};
use crate::storage::{ErrorKind, ObjectInfo};
use content::{CheckedContent, FileCheck};

/// Numbers of checked items.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Snapshots in the repository, including damaged ones.
    pub snapshots: u64,
    /// Directories, counting shared ones once.
    pub directories: u64,
    /// Files, counting those in shared directories once.
    pub files: u64,
    /// Chunks of files, counting shared ones once.
    pub chunks: u64,
    /// Packs whose digest was computed.
    pub packs: u64,
    /// Problems; each was reported.
    pub problems: u64,
}

/// An error that ends a check.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be read, or the key opens no snapshot.
    #[error(transparent)]
    Reader(#[from] reader::Error),
    /// The stop flag was set.
    #[error("interrupted")]
    Interrupted,
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Reader(error) => error.kind(),
            Error::Interrupted => FailureKind::Interrupted,
        }
    }
}

/// Checks a repository; with `read_data`, reads and verifies all data too.
pub fn check(reader: &Reader, read_data: bool, monitor: &dyn Monitor, stop: &AtomicBool) -> Result<Summary, Error> {
    // List these before packs: a concurrent backup writes packs first, then the snapshots and indexes that refer to
    // them.
    let names = reader.snapshots()?;
    let indexes = list(reader, name::INDEX)?;
    let (mut packs, mut foreign) = (HashMap::new(), Vec::new());
    let listed =
        reader.repository().target().visit(
            name::PACKS,
            &mut |ObjectInfo { name, length }| match name::parse_pack(&name) {
                Some(pack) => _ = packs.insert(pack, length),
                None => foreign.push(name),
            },
        );
    listed.map_err(|e| reader::Error::from(crate::repository::Error::from(e)))?;
    let mut checker = Checker {
        reader,
        read_data,
        monitor,
        stop,
        packs,
        directories: HashSet::new(),
        checked: CheckedContent::default(),
        indexed: HashMap::new(),
        misfits: HashSet::new(),
        lacking: HashMap::new(),
        unindexed: BTreeSet::new(),
        all_indexed: false,
        unreadable: None,
        signers: HashSet::new(),
        opened: false,
        summary: Summary::default(),
    };
    checker.indexes(&indexes)?;
    checker.all_indexed = checker.packs.keys().all(|pack| checker.indexed.contains_key(pack));
    checker.snapshots(names)?;
    if read_data {
        checker.unread_chunks(&indexes)?;
    }
    checker.unreferenced_packs();
    checker.documents()?;
    checker.sums()?;
    checker.keys()?;
    checker.foreign(foreign)?;
    Ok(checker.summary)
}

struct Checker<'a> {
    reader: &'a Reader,
    read_data: bool,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    packs: HashMap<PackId, u64>,
    /// Checked directories, with the number of entries that each claims to have below it.
    directories: HashSet<(ChunkKey, u64)>,
    checked: CheckedContent,
    /// Packs in indexes: one of their indexes, and the digest.
    indexed: HashMap<PackId, (ObjectId, Digest)>,
    /// Packs that are missing or whose length differs from the index.
    misfits: HashSet<PackId>,
    /// Packs in no index that each checked directory needs.
    lacking: HashMap<(ChunkKey, u64), BTreeSet<PackId>>,
    /// All packs in no index that snapshots need.
    unindexed: BTreeSet<PackId>,
    /// Whether all packs in the repository are in indexes.
    all_indexed: bool,
    /// The first unreadable index.
    unreadable: Option<String>,
    /// Host keys that signed snapshots.
    signers: HashSet<Fingerprint>,
    /// Whether any snapshot opened, so that the key is known to be right.
    opened: bool,
    summary: Summary,
}

/// Identifies a chunk at a location: the head of its digest XOR that of the pack's id, and the chunk's position in the
/// pack. A chunk that is stored in two places has two keys.
type ChunkKey = (i64, u64);

fn chunk_key(at: &BlockLocation, chunk: &ChunkRef) -> ChunkKey {
    let [a, b, c, d, e, f, g, h, ..] = *at.pack.as_bytes();
    let place = at.offset.wrapping_mul(BLOCK_SIZE as u64).wrapping_add(chunk.start.into());
    (chunk.digest.head() ^ i64::from_be_bytes([a, b, c, d, e, f, g, h]), place)
}

/// A directory on the path of the walk.
struct OpenDirectory {
    key: Option<(ChunkKey, u64)>,
    /// Packs in no index that the directory and its entries so far need.
    lacking: BTreeSet<PackId>,
}

/// Identifies a directory; `None` if it is empty.
fn key(directory: &SnapshotDirectory) -> Option<(ChunkKey, u64)> {
    top_node(directory).map(|(location, chunk)| (chunk_key(&location, &chunk), directory.below))
}

impl Checker<'_> {
    fn snapshots(&mut self, names: Vec<SnapshotName>) -> Result<(), Error> {
        // Only snapshots that verify are counted as present: a copy under another name does not replace a missing one.
        let (mut there, mut chained) = (HashSet::new(), Vec::new());
        // Snapshots that the key does not open. The key is wrong only if it opens none at all.
        let mut closed = Vec::new();
        for name in names {
            self.check_interrupted()?;
            self.summary.snapshots += 1;
            let object = PathBuf::from(name.object());
            let opened = self.reader.snapshot(&name);
            if let Ok((snapshot, signer)) = &opened {
                there.insert(name.id);
                chained.extend(snapshot.previous.map(|previous| (object.clone(), previous)));
                self.signers.insert(signer.clone());
            }
            let root = match opened.and_then(|(snapshot, _)| root_of(&snapshot)) {
                Ok(root) => root,
                Err(error) if error.is_key_problem() && !self.opened => {
                    closed.push((object, error));
                    if self.reader.is_hopeless(closed.len()) {
                        break;
                    }
                    continue;
                }
                Err(error) => {
                    self.unopened(&object, error)?;
                    continue;
                }
            };
            self.opened = true;
            let source = self.reader.access().source(self.reader.repository(), name.source);
            if let Err(error) = &source {
                self.problem(&object, &error.to_string());
            }
            let shown = self.reader.source_name(name.source).unwrap_or_else(|_| name.source.to_string());
            let lacking = self.tree(&root, PathBuf::from(shown).join(&name.time))?;
            if let Some(first) = lacking.first() {
                let (count, first) = (lacking.len() as u64, name::pack(*first));
                let packs = monitor::count(count, "pack that it needs is", "packs that it needs are");
                let cause = match &self.unreadable {
                    Some(index) => format!("{index} cannot be read"),
                    None => format!("an object is missing from {}", name::INDEX),
                };
                let why = format!(
                    "{packs} in no index (such as {first}): {cause}; a rebuilt catalog will not know such packs"
                );
                self.problem(&object, &why);
                self.unindexed.extend(lacking);
            }
        }
        for (object, error) in closed {
            self.unopened(&object, error)?;
        }
        for (object, previous) in chained.into_iter().filter(|(_, previous)| !there.contains(previous)) {
            if self.reader.forgotten_with_id(&previous.to_string()).is_some() {
                continue;
            }
            self.problem(&object, &format!("the previous snapshot ({previous}) is missing"));
        }
        Ok(())
    }

    /// Reports an object that cannot be opened. If no snapshot has opened and the error is one of the key, the key is
    /// probably wrong, and the check ends.
    fn unopened(&mut self, object: &Path, error: reader::Error) -> Result<(), Error> {
        if error.is_key_problem() && !self.opened {
            return Err(error.into());
        }
        self.problem(object, &error.to_string());
        Ok(())
    }

    /// Checks the tree below a root, except for subtrees that were checked before. Returns the packs in no index that
    /// the tree needs.
    fn tree(&mut self, root: &EntryHandle, mut path: PathBuf) -> Result<BTreeSet<PackId>, Error> {
        let Some(top) = self.new_directory(root) else { return Ok(self.lacking_below(root)) };
        let mut open = vec![self.open_directory(&top)];
        let mut walk = TreeWalk::new(self.reader, top);
        let mut whole = BTreeSet::new();
        while let Some(step) = walk.step() {
            self.check_interrupted()?;
            match step {
                WalkStep::Entry(child) => {
                    path.push(OsStr::from_bytes(child.entry().name));
                    let lacking = match (child.directory().is_some(), self.new_directory(&child)) {
                        (true, Some(below)) => {
                            open.push(self.open_directory(&below));
                            walk.enter(below);
                            continue;
                        }
                        (true, None) => self.lacking_below(&child),
                        (false, _) => self.file(&child, &path)?,
                    };
                    path.pop();
                    if let Some(directory) = open.last_mut() {
                        directory.lacking.extend(lacking);
                    }
                }
                WalkStep::Failed(error) => self.problem(&path, &error.to_string()),
                WalkStep::Leave => {
                    path.pop();
                    let Some(OpenDirectory { key, lacking }) = open.pop() else { continue };
                    open.last_mut().map_or(&mut whole, |above| &mut above.lacking).extend(&lacking);
                    if let (Some(key), false) = (key, lacking.is_empty()) {
                        self.lacking.insert(key, lacking);
                    }
                }
            }
        }
        Ok(whole)
    }

    /// Begins the check of a directory.
    fn open_directory(&self, directory: &SnapshotDirectory) -> OpenDirectory {
        let mut lacking = BTreeSet::new();
        // Skipped if possible, since it reads the index nodes of large directories a second time.
        if !self.all_indexed {
            // Ignore errors: the walk reports them.
            let _ = self.reader.each_node(directory, &mut |location| {
                lacking.extend(Some(location.pack).filter(|pack| self.is_unindexed(*pack)));
            });
        }
        OpenDirectory { key: key(directory), lacking }
    }

    /// The packs in no index that a directory needs which was checked before.
    fn lacking_below(&self, listed: &EntryHandle) -> BTreeSet<PackId> {
        let key = listed.directory().and_then(|directory| key(&directory));
        key.and_then(|key| self.lacking.get(&key)).cloned().unwrap_or_default()
    }

    fn is_unindexed(&self, pack: PackId) -> bool {
        is_unindexed(&self.packs, &self.indexed, pack)
    }

    /// Reports the number of packs that are neither in an index nor needed by a snapshot.
    fn unreferenced_packs(&self) {
        let unreferenced = |pack: &PackId| !self.indexed.contains_key(pack) && !self.unindexed.contains(pack);
        let (mut count, mut bytes) = (0u64, 0u64);
        for (_, length) in self.packs.iter().filter(|(pack, _)| unreferenced(pack)) {
            count += 1;
            bytes = bytes.saturating_add(*length);
        }
        if count > 0 {
            let packs = monitor::count(count, "pack", "packs");
            self.monitor.note(&format!(
                "{} has {packs} ({bytes} bytes) in no index and needed by no snapshot, written by a running or interrupted backup; this takes space and is harmless",
                name::PACKS
            ));
        }
    }

    /// Returns the directory if this is one that was not checked yet.
    fn new_directory(&mut self, listed: &EntryHandle) -> Option<SnapshotDirectory> {
        let directory = listed.directory()?;
        let new = key(&directory).is_none_or(|key| self.directories.insert(key));
        self.summary.directories += u64::from(new);
        new.then_some(directory)
    }

    /// Checks a file. Returns the packs in no index that it needs.
    fn file(&mut self, listed: &EntryHandle, path: &Path) -> Result<BTreeSet<PackId>, Error> {
        self.summary.files += 1;
        let progress = self.monitor.progress();
        progress.at(path);
        let file = FileReader::new(self.reader, listed)?;
        let (packs, indexed) = (&self.packs, &self.indexed);
        let mut check = FileCheck {
            reader: self.reader,
            checked: &mut self.checked,
            packs,
            is_unindexed: &|pack| is_unindexed(packs, indexed, pack),
            read_data: self.read_data,
            progress,
            stop: self.stop,
            chunks: 0,
            lacking: BTreeSet::new(),
            open: Vec::new(),
        };
        let result = check.check_file(&file);
        let (chunks, lacking) = (check.chunks, check.lacking);
        self.summary.chunks += chunks;
        self.check_interrupted()?;
        progress.file();
        if let Err(error) = result {
            self.problem(path, &error.to_string());
        }
        Ok(lacking)
    }

    /// Opens indexes and compares them with packs. Ignores objects whose names are not those of indexes.
    fn indexes(&mut self, objects: &[String]) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        for object in objects {
            let Some(id) = name::parse_index(object) else { continue };
            self.check_interrupted()?;
            match access.index(repository, id) {
                Ok(index) => {
                    for pack in &index.packs {
                        // Without a digest, the pack was removed on purpose.
                        if let Some(digest) = pack.digest {
                            self.indexed_pack(object, pack.id, pack.length);
                            self.indexed.insert(pack.id, (id, digest));
                        }
                    }
                    for carrier in &index.carriers {
                        let length = carrier.blocks.iter().map(|block| u64::from(block.length)).sum();
                        self.indexed_pack(object, carrier.id, length);
                        self.indexed.insert(carrier.id, (id, carrier.digest));
                    }
                }
                Err(error) => {
                    self.unopened(Path::new(object), error.into())?;
                    self.unreadable.get_or_insert_with(|| object.clone());
                }
            }
        }
        Ok(())
    }

    /// Verifies chunks that are in indexes but were not found through files.
    fn unread_chunks(&mut self, objects: &[String]) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        for object in objects {
            // Indexes that do not open, and packs of another length, were reported before.
            let index = name::parse_index(object).and_then(|id| access.index(repository, id).ok());
            for pack in index.into_iter().flat_map(|index| index.packs) {
                if self.packs.get(&pack.id) == Some(&pack.length) {
                    self.unread_blocks(object, &pack)?;
                }
            }
        }
        Ok(())
    }

    fn check_interrupted(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Opens the documents that only writers need. Ignores objects whose names are not those of documents.
    fn documents(&mut self) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        for object in self.list(name::SOURCES)? {
            self.check_interrupted()?;
            let Some(id) = name::parse_source(&object) else { continue };
            if let Err(error) = access.source(repository, id) {
                self.unopened(Path::new(&object), error.into())?;
            }
        }
        let (mut recipients, mut damaged) = (None, false);
        for object in self.list(name::SECRETS)? {
            self.check_interrupted()?;
            let Some(id) = name::parse_secrets(&object) else { continue };
            match access.secrets(repository, id) {
                Ok(secrets) => recipients = Some(secrets.recipients),
                Err(error) => {
                    damaged = true;
                    self.unopened(Path::new(&object), error.into())?;
                }
            }
        }
        match recipients {
            Some(recipients) => self.certificates(&recipients)?,
            // Damaged ones were reported.
            None if damaged => {}
            None => {
                self.problem(Path::new(name::SECRETS), "the secrets document is missing; the next backup writes one");
            }
        }
        for object in self.list(name::GENERATION)? {
            self.check_interrupted()?;
            let Some(name) = GenerationName::parse(&object) else { continue };
            if let Err(error) = access.generation(repository, name) {
                self.unopened(Path::new(&object), error.into())?;
            }
        }
        Ok(())
    }

    /// Compares the length of a pack in an index with the actual length.
    fn indexed_pack(&mut self, index: &str, pack: PackId, length: u64) {
        match self.packs.get(&pack) {
            Some(found) if *found == length => {}
            found => {
                let found = found.map_or("it is missing".to_owned(), |found| format!("it has {found} bytes"));
                let why = format!("{found}, but should have {length} bytes according to {index}");
                self.problem(Path::new(&name::pack(pack)), &why);
                self.misfits.insert(pack);
            }
        }
    }

    /// Verifies those blocks of a pack that contain a chunk not yet checked.
    fn unread_blocks(&mut self, index: &str, pack: &IndexedPack) -> Result<(), Error> {
        let object = name::pack(pack.id);
        for block in &pack.blocks {
            self.check_interrupted()?;
            let at = BlockLocation { pack: pack.id, offset: block.offset, length: block.length };
            let mut start = 0u32;
            let known = block.chunks.iter().all(|(digest, length)| {
                let chunk = ChunkRef { digest: *digest, block: 0, start, length: *length };
                start = start.saturating_add(*length);
                self.checked.chunks.contains(&chunk_key(&at, &chunk))
            });
            if known {
                continue;
            }
            self.monitor.progress().read(block.length.into());
            if let Err(error) = self.reader.verify_block(&at, &block.chunks) {
                self.problem(Path::new(&object), &format!("it does not match {index}: {error}"));
            }
        }
        Ok(())
    }

    /// Lists the names of objects, unless the check was interrupted.
    fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.check_interrupted()?;
        Ok(list(self.reader, prefix)?)
    }

    /// Compares lists of sums with indexes and, with `read_data`, with every pack.
    fn sums(&mut self) -> Result<(), Error> {
        let mut summed = HashSet::new();
        for name in self.list(name::SUMS)?.into_iter().filter(|name| name::parse_sums(name).is_some()) {
            let object = PathBuf::from(&name);
            let list = match self.reader.repository().target().get(&name, SUMS_SIZE) {
                Ok(list) => list,
                // A concurrent run may remove leftovers of a killed one.
                Err(error) if error.kind == ErrorKind::NotFound => continue,
                Err(error) => {
                    self.problem(&object, &error.to_string());
                    continue;
                }
            };
            if !sums::is_complete(&list) {
                self.problem(&object, "its last line is truncated");
            }
            for line in sums::lines(&list) {
                self.check_interrupted()?;
                let Some(PackSum { pack: id, digest: sum }) = line else {
                    self.problem(&object, "it has a line that is not the sum of a pack");
                    continue;
                };
                let Some((index, digest)) = self.indexed.get(&id).copied() else { continue };
                let pack = name::pack(id);
                if sum != Some(digest) {
                    let index = name::index(index);
                    self.problem(&object, &format!("its sum of {pack} differs from {index}"));
                }
                if summed.insert(id) && self.read_data {
                    self.sum(&pack, id, digest, &name)?;
                }
            }
        }
        let unsummed: Vec<_> = self.indexed.iter().filter(|(pack, _)| !summed.contains(pack)).collect();
        let unsummed: Vec<_> = unsummed.into_iter().map(|(pack, (index, _))| (*pack, *index)).collect();
        for (pack, index) in unsummed {
            let why = format!("it is in {}, but no list in {} has its sum", name::index(index), name::SUMS);
            self.problem(Path::new(&name::pack(pack)), &why);
        }
        Ok(())
    }

    /// Compares a pack with its digest. A pack of another length was reported before and is not read, since it may be
    /// huge.
    fn sum(&mut self, pack: &str, id: PackId, expected: Digest, list: &str) -> Result<(), Error> {
        let Some(length) = self.packs.get(&id).copied().filter(|_| !self.misfits.contains(&id)) else { return Ok(()) };
        self.summary.packs += 1;
        let progress = self.monitor.progress();
        progress.at(Path::new(pack));
        let mut hasher = blake3::Hasher::new();
        let read = self.reader.repository().target().pieces(pack, length, self.stop, |bytes| {
            hasher.update(bytes);
            progress.read(bytes.len() as u64);
        });
        self.check_interrupted()?;
        match read {
            Ok(_) if Digest::from(hasher.finalize()) == expected => {}
            // A concurrent run removed leftovers of a killed one: first the list, then the packs.
            Err(error) if error.kind == ErrorKind::NotFound && self.is_gone(list) => {}
            Ok(_) => {
                let why = format!("its bytes are not those that were stored: its sum differs from {list}");
                self.problem(Path::new(pack), &why);
            }
            Err(error) => self.problem(Path::new(pack), &error.to_string()),
        }
        Ok(())
    }

    fn is_gone(&self, object: &str) -> bool {
        let length = self.reader.repository().target().length(object);
        length.is_err_and(|error| error.kind == ErrorKind::NotFound)
    }

    /// Checks that the certificates of recipients, and of hosts that signed snapshots, are present. Readers also find
    /// the latter in secrets documents, but users of other OpenPGP programs do not.
    fn certificates(&mut self, recipients: &[Vec<u8>]) -> Result<(), Error> {
        let keys = self.reader.repository().keys();
        let recipients = recipients.iter().filter_map(|bytes| Certificate::parse(bytes).ok());
        let mut objects: Vec<_> =
            recipients.map(|recipient| name::recipient(&recipient.fingerprint().to_string())).collect();
        objects.extend(self.signers.iter().map(|signer| name::host(&signer.to_string())));
        for object in objects {
            if keys.is_missing(&object).map_err(reader::Error::from)? {
                self.problem(Path::new(&object), "it is missing; the next backup puts it back");
            }
        }
        Ok(())
    }

    /// Reports files that brackfs did not write, such as those of file managers: `found` and those in other folders.
    fn foreign(&mut self, mut found: Vec<String>) -> Result<(), Error> {
        for folder in name::FOLDERS.into_iter().filter(|folder| *folder != name::PACKS) {
            found.extend(self.list(folder)?.into_iter().filter(|object| !name::is_object(object)));
        }
        found.sort();
        if let Some(first) = found.first() {
            let files = monitor::count(found.len() as u64, "file in the repository does", "files in the repository do");
            self.monitor.note(&format!("{files} not belong to it (such as {first}); this is harmless"));
        }
        Ok(())
    }

    /// Checks descriptions, and compares keys with the fingerprints in their names.
    fn keys(&mut self) -> Result<(), Error> {
        for object in self.reader.repository().lost_descriptions().map_err(reader::Error::from)? {
            self.problem(Path::new(object), "it is missing or damaged; the next backup puts it back");
        }
        for object in self.list(name::KEYS)? {
            self.check_interrupted()?;
            if let Err(error) = self.reader.repository().keys().check(&object) {
                self.problem(Path::new(&object), &error.to_string());
            }
        }
        Ok(())
    }

    fn problem(&mut self, path: &Path, why: &str) {
        self.summary.problems += 1;
        self.monitor.problem(path, why);
    }
}

/// Whether a pack is present and in no index. Missing packs are reported elsewhere.
fn is_unindexed(packs: &HashMap<PackId, u64>, indexed: &HashMap<PackId, (ObjectId, Digest)>, pack: PackId) -> bool {
    !indexed.contains_key(&pack) && packs.contains_key(&pack)
}

/// Lists the names of objects.
fn list(reader: &Reader, prefix: &str) -> Result<Vec<String>, reader::Error> {
    let objects = reader.repository().target().list(prefix).map_err(crate::repository::Error::from)?;
    Ok(objects.into_iter().map(|object| object.name).collect())
}
