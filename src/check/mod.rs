//! Checks that everything the snapshots need is present and intact. Changes nothing.
//!
//! Structure: every snapshot opens and has a known signer; every tree node is present and verifies; every block that a
//! file needs is within a pack of the right length; and no snapshot is missing from the chain in which each refers to
//! the previous one. The writer's documents open, lists of sums agree with the signed indexes, and keys match the
//! fingerprints in their names. Packs in indexes are present and have the right length, and what trees refer to is in an
//! index at the same place: otherwise an index is missing or false, and a rebuilt catalog would not know the data. The
//! documents are those that the last run counted. With `read_data`: every block of an index has its check, every chunk
//! verifies, and every pack has its digest.
//!
//! A run may write and remove objects at the same time. Objects that are missing for this reason are not problems: see
//! [`report`].
//!
//! Forgotten snapshots and replaced documents are ignored. Packs that were removed on purpose need not be there: their
//! blocks are in carriers, and the shards of moves say where.
//!
//! - `indexes`: reads indexes and tombstones; `moves`: carriers and shards of moves
//! - `packs`: all packs; `record`: packs in a temporary file
//! - `data`: reads all packs, each once; `pack`: reads one
//! - `trees`: snapshots and their trees; `content`: content of files; `visited`: parts of trees that no index has
//! - `documents`: documents and keys that only writers need; `sums`: lists of sums
//! - `census`: documents and snapshots that are missing or were added
//! - `report`: problems, and what seems to be missing while another run writes
//!
//! Subtrees, extent nodes and chunks that are used several times are checked once: the time of a check is bounded by the
//! stored data, however often a snapshot refers to it. Memory: the caches of the reader, about 50 bytes per pack, and 3
//! bits per chunk. Only for parts of trees whose packs are in no index, or differ from it, a set is kept. No more of a
//! pack is read than the length in the signed index. Of a server, up to 8 packs are read at the same time, each in parts of
//! about 5 MiB.

mod census;
mod content;
mod data;
mod documents;
mod indexes;
mod moves;
mod pack;
mod packs;
mod record;
mod report;
mod sums;
mod trees;
mod visited;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::crypt::Fingerprint;
use crate::failure::{Failure, FailureKind};
use crate::format::PackId;
use crate::format::census::KnownDocuments;
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::name::{self, SnapshotName};
use crate::monitor::{self, Monitor, Total, Unit};
use crate::reader::{self, Reader};
use crate::repository;
use crate::storage::{self, Ahead, ObjectInfo};
use content::Loss;
use packs::PackTable;
use report::Report;
use visited::Visited;

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
    /// The temporary file cannot be used.
    #[error("cannot use a temporary file for indexes: {0}; set TMPDIR to a directory with more free space")]
    Temporary(#[from] io::Error),
    /// The stop flag was set.
    #[error("interrupted")]
    Interrupted,
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Reader(error) => error.kind(),
            Error::Temporary(_) => FailureKind::Failed,
            Error::Interrupted => FailureKind::Interrupted,
        }
    }
}

fn of_target(error: storage::Error) -> Error {
    reader::Error::from(repository::Error::from(error)).into()
}

/// Checks a repository; with `read_data`, reads and verifies all data too.
pub fn check(reader: &Reader, read_data: bool, monitor: &dyn Monitor, stop: &AtomicBool) -> Result<Summary, Error> {
    let mut report = Report::new(reader.repository(), monitor);
    let (counts_chunks, mut read_data, mut packs) = (!read_data, read_data, 0);
    loop {
        let mut pass = Checker::new(reader, read_data, counts_chunks, monitor, stop, report)?;
        let result = match pass.check() {
            // Doubts stay doubts: the target cannot be asked about them.
            Err(error) if error.kind() == FailureKind::Unavailable => return Err(error),
            result => result,
        };
        packs += pass.summary.packs;
        let is_outdated = pass.report.end_pass().map_err(of_target)?;
        result?;
        if !is_outdated {
            return Ok(Summary { packs, problems: pass.report.problems(), ..pass.summary });
        }
        // Later passes look only for missing objects.
        read_data = false;
        report = pass.report;
    }
}

/// A pack that cannot be read, and what needs it. Shared directories and files are counted once.
#[derive(Debug, Default)]
struct LostPack {
    /// Its defect, if it was found without reading the pack.
    flaw: Option<String>,
    /// The number of other defects that are not reported yet.
    others: u64,
    /// Whether it is damaged. Otherwise it seems to be missing, and may have been removed on purpose.
    is_damaged: bool,
    /// How a file failed that needs it.
    loss: Option<Loss>,
    files: u64,
    directories: u64,
    snapshots: u64,
}

impl LostPack {
    /// Whether nothing was found that needs the pack.
    fn is_unneeded(&self) -> bool {
        self.files == 0 && self.directories == 0
    }

    /// What needs the pack. If `is_cut`, not everything that is needed is known.
    fn needed(&self, is_cut: bool) -> String {
        let LostPack { files, directories, snapshots, .. } = self;
        let mut entries = Vec::new();
        if *files > 0 {
            entries.push(monitor::count(*files, "file", "files"));
        }
        if *directories > 0 {
            entries.push(monitor::count(*directories, "directory", "directories"));
        }
        match entries.is_empty() {
            true if is_cut => "what needs it is not known".to_owned(),
            true => "no snapshot needs it".to_owned(),
            false => {
                let snapshots = monitor::count(*snapshots, "snapshot", "snapshots");
                format!("{} in {snapshots} cannot be read", entries.join(" and "))
            }
        }
    }
}

/// One pass of a check.
struct Checker<'a> {
    reader: &'a Reader,
    read_data: bool,
    /// Whether the progress counts chunks of files and trees. Otherwise, it counts packs that are read.
    counts_chunks: bool,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    report: Report<'a>,
    packs: PackTable,
    /// Indexes by number.
    indexes: Vec<ObjectId>,
    /// The snapshots that indexes name, with the number of the index.
    indexed_snapshots: Vec<(SnapshotName, u32)>,
    /// The shard of moves that counts, by prefix.
    last_shards: BTreeMap<u8, ObjectId>,
    known: KnownDocuments,
    visited: Visited,
    /// Packs that cannot be read.
    lost: BTreeMap<PackId, LostPack>,
    /// Packs and carriers with chunks that were lost and stored again.
    restored: BTreeSet<PackId>,
    /// Whether a part of a tree was not checked, because it cannot be read or the check ended early.
    is_cut: bool,
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

impl<'a> Checker<'a> {
    fn new(
        reader: &'a Reader,
        read_data: bool,
        counts_chunks: bool,
        monitor: &'a dyn Monitor,
        stop: &'a AtomicBool,
        report: Report<'a>,
    ) -> Result<Self, Error> {
        Ok(Checker {
            reader,
            read_data,
            counts_chunks,
            monitor,
            stop,
            report,
            packs: PackTable::new(Vec::new())?,
            indexes: Vec::new(),
            indexed_snapshots: Vec::new(),
            last_shards: BTreeMap::new(),
            known: KnownDocuments::default(),
            visited: Visited::default(),
            lost: BTreeMap::new(),
            restored: BTreeSet::new(),
            is_cut: false,
            unindexed: BTreeSet::new(),
            all_indexed: false,
            unreadable: None,
            signers: HashSet::new(),
            opened: false,
            summary: Summary::default(),
        })
    }

    fn check(&mut self) -> Result<(), Error> {
        // A concurrent backup writes packs first, then the indexes and snapshots that refer to them, so these are listed before
        // packs. Its generation is older than all of them.
        let generations = self.list(name::GENERATION)?;
        // All of them, also forgotten ones.
        let names = self.reader.repository().snapshots().map_err(reader::Error::from)?;
        let folders = [name::INDEX, name::MOVED, name::FORGOTTEN];
        self.begin(&folders);
        let [indexes, moved, forgotten] = folders.map(|folder| self.list(folder));
        let mut foreign = Vec::new();
        self.packs = PackTable::new(self.listed_packs(&mut foreign)?)?;
        self.indexes(&indexes?)?;
        let forgotten = self.tombstones(&forgotten?)?;
        let hidden = indexes::ids(&forgotten);
        let kept: Vec<_> = names.iter().filter(|name| !hidden.contains(&name.id)).cloned().collect();
        self.lengths()?;
        self.carriers()?;
        self.shards(&moved?)?;
        // Before the rest, which may take long.
        self.report.settle();
        self.all_indexed = (0..self.packs.len()).all(|row| self.packs.is_indexed(row));
        self.expect_chunks();
        let content = self.content(&kept, &hidden);
        self.is_cut |= content.is_err();
        // Also if the check ends early.
        self.lost_packs();
        content?;
        self.end_chunks();
        self.unreferenced_packs();
        self.documents()?;
        let last = self.generations(&generations)?;
        self.census(last.as_ref(), &names, &forgotten)?;
        self.sums()?;
        self.keys()?;
        self.foreign(foreign)
    }

    /// Sets the total of the progress to the number of chunks in indexes. It is an estimate: no snapshot may need some of them.
    fn expect_chunks(&self) {
        if self.counts_chunks {
            let progress = self.monitor.progress();
            progress.count(Unit::Chunks);
            // An earlier pass has counted them, too.
            let files = progress.snapshot().files + u64::from(self.packs.chunks());
            progress.expect(Total { files, bytes: 0, estimated: true });
        }
    }

    /// Sets the total to the number of chunks that were counted.
    fn end_chunks(&self) {
        if self.counts_chunks {
            let progress = self.monitor.progress();
            progress.expect(Total { files: progress.snapshot().files, bytes: 0, estimated: true });
        }
    }

    /// Counts a chunk in the progress.
    fn count_chunk(&self) {
        if self.counts_chunks {
            self.monitor.progress().file();
        }
    }

    fn content(&mut self, kept: &[SnapshotName], hidden: &HashSet<SnapshotId>) -> Result<(), Error> {
        if self.read_data {
            self.data(kept)?;
        }
        self.snapshots(kept, hidden)
    }

    /// Notes what is wrong with a pack. It is reported once it is known what needs the pack; more of it at once.
    fn flaw(&mut self, pack: PackId, why: String) {
        let lost = self.lost.entry(pack).or_default();
        lost.is_damaged = true;
        match &mut lost.flaw {
            flaw @ None => *flaw = Some(why),
            // They are of no interest if nothing needs the pack any more.
            Some(_) if self.restored.contains(&pack) => lost.others += 1,
            Some(_) => self.problem(Path::new(&name::pack(pack)), &why),
        }
    }

    /// Reports the packs that are missing, have another length, or are damaged, each with what needs it.
    fn lost_packs(&mut self) {
        for (pack, lost) in std::mem::take(&mut self.lost) {
            let (needed, is_unneeded) = (lost.needed(self.is_cut), lost.is_unneeded());
            let mut flaw = lost.flaw.unwrap_or_else(|| "it is missing or damaged".to_owned());
            if lost.others > 0 {
                flaw = format!("{flaw}; {}", monitor::count(lost.others, "more defect", "more defects"));
            }
            let object = name::pack(pack);
            let is_there = self.packs.find(pack).is_some_and(|row| self.packs.length(row).is_some());
            if !self.is_cut && is_unneeded && self.restored.contains(&pack) {
                let consequence = match is_there {
                    true => "no snapshot needs its damaged part; keep the pack, as other data in it may be needed",
                    false => "no snapshot needs it, since its data was stored again",
                };
                self.report.note(format!("{object}: {flaw}; {consequence}"));
                continue;
            }
            let why = format!("{flaw}; {needed}");
            match lost.is_damaged {
                true => self.problem(Path::new(&object), &why),
                false => self.report.doubt(Path::new(&object), why),
            }
        }
    }

    /// Lists packs with their lengths, and adds other files in their folder to `foreign`.
    fn listed_packs(&self, foreign: &mut Vec<String>) -> Result<Vec<(PackId, u64)>, Error> {
        let mut packs = Vec::new();
        let mut found = |ObjectInfo { name, length }| match name::parse_pack(&name) {
            Some(pack) => packs.push((pack, length)),
            None => foreign.push(name),
        };
        let listed = self.reader.repository().target().visit(name::PACKS, &mut found);
        listed.map_err(of_target)?;
        Ok(packs)
    }

    /// Begins to list folders, so that [`Checker::list`] waits less for a server.
    fn begin(&self, folders: &[&str]) {
        let lists = folders.iter().map(|folder| Ahead::List((*folder).to_owned()));
        self.reader.repository().target().begin(lists.collect());
    }

    /// Lists objects, unless the check was interrupted.
    fn list(&mut self, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        self.check_interrupted()?;
        let objects = self.reader.repository().target().list(prefix).map_err(of_target)?;
        let names: Vec<_> = objects.iter().map(|object| object.name.clone()).collect();
        self.report.listed(prefix, &names);
        Ok(objects)
    }

    /// Reports the number of packs that are neither in an index nor needed by a snapshot.
    fn unreferenced_packs(&mut self) {
        let (mut count, mut bytes) = (0u64, 0u64);
        for row in 0..self.packs.len() {
            let is_listed = self.packs.is_indexed(row) || self.packs.is_condemned(row);
            let (Some(pack), Some(length)) = (self.packs.id(row), self.packs.length(row)) else { continue };
            if !is_listed && !self.unindexed.contains(&pack) {
                count += 1;
                bytes = bytes.saturating_add(length);
            }
        }
        if count > 0 {
            let packs = monitor::count(count, "pack", "packs");
            self.report.note(format!(
                "{} has {packs} ({bytes} bytes) in no index and needed by no snapshot, written by a running or interrupted backup; this takes space and is harmless",
                name::PACKS
            ));
        }
    }

    /// Reports an object that cannot be opened. If no snapshot has opened and the error is one of the key, the key is
    /// probably wrong, and the check ends.
    fn unopened(&mut self, object: &Path, error: reader::Error) -> Result<(), Error> {
        if error.is_key_problem() && !self.opened {
            return Err(error.into());
        }
        self.failed(object, &error)
    }

    /// Reports an object that cannot be read. If the target is away, the check ends, as that says nothing about the object.
    fn failed(&mut self, path: &Path, error: &reader::Error) -> Result<(), Error> {
        if error.kind() == FailureKind::Unavailable {
            return Err(error.clone().into());
        }
        let (object, why) = (error.lost_object(), error.to_string());
        if error.is_absent() {
            self.report.doubt_of(object, path, why);
        } else {
            self.report.problem_of(object.as_deref(), path, &why);
        }
        Ok(())
    }

    /// The same for an error of the target.
    fn unread(&mut self, path: &Path, error: storage::Error) -> Result<(), Error> {
        if error.is_away() {
            return Err(of_target(error));
        }
        self.problem(path, &error.to_string());
        Ok(())
    }

    fn check_interrupted(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The name of an index.
    fn index_name(&self, number: u32) -> String {
        self.indexes.get(number as usize).map_or_else(|| name::INDEX.to_owned(), |id| name::index(*id))
    }

    fn problem(&mut self, path: &Path, why: &str) {
        self.report.problem(path, why);
    }
}
