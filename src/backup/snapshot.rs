//! The follower of a backup: stores the files of the walk, and makes a snapshot of them.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roaring::RoaringTreemap;

use super::entry::entry_of;
use super::error::Error;
use super::options::{Reading, RunPolicy};
use super::pipeline::Follower;
use super::store::assembler::{AssembledTree, Assembler, ReadCounts};
use super::store::frames::FinishedDirectory;
use super::store::packer::{Packer, StoredCounts};
use super::summary::Summary;
use super::walk::event::Event;
use super::walk::scope::{Origin, Scope};
use super::walk::tree::WalkCounts;
use crate::catalog::stats::Stats;
use crate::catalog::{Parent, Presence, SnapshotRow, SourceRow};
use crate::format::Timestamp;
use crate::format::entry::{Content, Subtree};
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::usage::Labels;
use crate::monitor::{Monitor, count};
use crate::session::{NewSnapshot, Session};
use crate::source::{EntryMount, now};

/// The source of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnapshotSource {
    pub(super) row: SourceRow,
    pub(super) id: SourceId,
}

/// The snapshot that a run is to make.
pub(super) struct SnapshotPlan<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) scope: &'a Scope,
    pub(super) source: SnapshotSource,
    pub(super) reading: &'a Reading,
    pub(super) policy: &'a RunPolicy,
    pub(super) started: Timestamp,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a AtomicBool,
}

/// Follows the walk with the assembler, and makes the snapshot in the end.
pub(super) struct SnapshotMaker<'a> {
    plan: SnapshotPlan<'a>,
    assembler: Assembler<'a>,
}

impl<'a> SnapshotMaker<'a> {
    pub(super) fn new(plan: SnapshotPlan<'a>, assembler: Assembler<'a>) -> Self {
        SnapshotMaker { plan, assembler }
    }
}

impl Follower for SnapshotMaker<'_> {
    fn event(&mut self, event: Event) -> Result<(), Error> {
        self.assembler.event(event)
    }

    fn root_left(&mut self) -> Result<bool, Error> {
        self.assembler.prepare_retry()
    }

    fn finish(mut self, walked: WalkCounts) -> Result<Summary, Error> {
        match self.assembler.settle() {
            Err(Error::Interrupted) => return Err(self.interrupt()),
            settled => settled?,
        }
        let mut tree = self.assembler.finish()?;
        match self.plan.conclude(&mut tree, walked) {
            Err(Error::Interrupted) => Err(tree.nodes.keep_stored().err().unwrap_or(Error::Interrupted)),
            result => result,
        }
    }

    fn interrupt(self) -> Error {
        self.assembler.interrupt().err().unwrap_or(Error::Interrupted)
    }
}

/// Removes the rows of directories that were not found again.
fn remove_vanished(tree: &mut AssembledTree<'_>) -> Result<(), Error> {
    let catalog = tree.nodes.catalog();
    for gone in &tree.vanished {
        catalog.remove_directory(Parent::Directory(gone.parent), &gone.name, gone.id)?;
    }
    Ok(catalog.remove_displaced()?)
}

impl SnapshotPlan<'_> {
    /// Ends a run whose tree is complete, with a snapshot unless there is a reason to make none.
    fn conclude(&self, tree: &mut AssembledTree<'_>, mut walked: WalkCounts) -> Result<Summary, Error> {
        // An interrupt that ended the program that fills a pipe may look like the end of the pipe at first.
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let previous = tree.nodes.catalog().latest_snapshot(self.source.row)?;
        let base = tree.nodes.catalog().newest_base(self.source.row)?;
        // The walk found the tree unchanged since the base. That may be forgotten, and the one before it differ.
        let is_base = previous.as_ref().map(|row| &row.name) == base.as_ref().map(|(name, _)| name);
        let is_same = is_base && self.is_unchanged(&tree.root, &walked, previous.as_ref());
        let before = previous.as_ref().map(|row| row.files);
        let refusal = self.policy.guard.as_ref().and_then(|guard| guard.refusal(before, walked.files, walked.others));
        if before.is_none() && walked.files == 0 && walked.others == 0 && walked.problems == 0 {
            let why = "it has no files; if it should have some, check that its file system is mounted";
            self.monitor.note(&format!("{}: {why}", self.scope.root().display()));
        }
        if let Some(why) = refusal {
            // The catalog goes on from the last snapshot, and stored content is not stored again.
            self.keep_stored(tree)?;
            self.monitor.main_problem(self.scope.root(), &why);
            walked.problems += 1;
            let stored = tree.nodes.blocks().packer().counts();
            return Ok(Summary { shrunk: true, ..self.summary(None, walked, tree.counts, stored) });
        }
        let snapshot = if is_same && self.policy.skip_if_unchanged && previous.is_some() {
            tree.nodes.catalog().link_directories(&[tree.root.id])?;
            self.keep_stored(tree)?;
            None
        } else {
            Some(self.write(tree, &walked, previous.map(|row| row.name.id), base)?)
        };
        let stored = tree.nodes.blocks().packer().counts();
        Ok(self.summary(snapshot, walked, tree.counts, stored))
    }

    /// Whether the tree is as it was in the previous snapshot.
    fn is_unchanged(&self, root: &FinishedDirectory, walked: &WalkCounts, previous: Option<&SnapshotRow>) -> bool {
        match self.scope.origin {
            // The file of a pipe is always written again, with another time.
            Origin::Stream(_) => walked.unmodified == 1 || !root.changed,
            Origin::Tree { .. } => {
                let now = identity(root, false);
                !root.changed && previous.is_some_and(|row| now.same_as(&row.root, self.reading.identity))
            }
        }
    }

    /// Writes the snapshot, last of all, after everything that it refers to.
    fn write(
        &self,
        tree: &mut AssembledTree<'_>,
        walked: &WalkCounts,
        previous: Option<SnapshotId>,
        base: Option<(SnapshotName, Option<RoaringTreemap>)>,
    ) -> Result<SnapshotName, Error> {
        tree.nodes.blocks_mut().packer_mut().announce()?;
        remove_vanished(tree)?;
        let mut used = tree.nodes.take_used();
        if tree.repeated {
            used = tree.nodes.catalog().blocks_below(tree.root.id)?;
        }
        // A subset: a run that broke off may have left directories that have vanished since.
        debug_assert!(used.is_subset(&tree.nodes.catalog().blocks_below(tree.root.id)?));
        let base = base.and_then(|(name, blocks)| Some((name, blocks?)));
        let name = SnapshotName {
            source: self.source.id,
            sequence: self.session.generation(),
            time: name::time(self.time().seconds),
            id: SnapshotId::random(),
        };
        let root = tree.nodes.root(tree.root.id, |below, node| {
            let FinishedDirectory { stat, extended, .. } = &tree.root;
            entry_of(Vec::new(), stat, extended.clone(), Content::Directory(Subtree { below, node }))
        })?;
        let row = self.row(&name, tree, walked);
        tree.nodes.commit_snapshot(&NewSnapshot { row, used, base }, self.source.row)?;
        // The last packs are counted only now.
        let statistics = statistics(walked, &tree.counts, &tree.nodes.blocks().packer().counts());
        let Labels { host, paths, tags } = self.labels();
        let snapshot = Snapshot {
            name,
            source: self.scope.name.clone(),
            host,
            started: self.time(),
            finished: self.policy.time.unwrap_or_else(now),
            paths,
            root_path: self.scope.root_path(),
            tags,
            encrypted: self.session.trust().encrypted,
            previous,
            statistics,
            program: concat!("brackfs ", env!("CARGO_PKG_VERSION")).into(),
            root,
        };
        let packer = tree.nodes.blocks_mut().packer_mut();
        packer.put_snapshot(&snapshot)?;
        self.heal(packer);
        packer.finish_snapshot(&snapshot)?;
        Ok(snapshot.name)
    }

    /// Ends a run that makes no snapshot.
    fn keep_stored(&self, tree: &mut AssembledTree<'_>) -> Result<(), Error> {
        tree.nodes.commit()?;
        self.heal(tree.nodes.blocks_mut().packer_mut());
        tree.nodes.keep_stored()
    }

    /// Makes lost data that was stored again readable in older snapshots. All that the run has made is safe by now, so an error is
    /// only noted; the next run tries again.
    fn heal(&self, packer: &mut Packer<'_>) {
        match packer.heal(self.stop) {
            Ok(0) | Err(Error::Interrupted) => {}
            Ok(chunks) => {
                let chunks = count(chunks, "lost chunk is", "lost chunks are");
                self.monitor.note(&format!("{chunks} in the repository again, also for older snapshots"));
            }
            Err(error) => {
                let why =
                    "older snapshots cannot yet read lost data that was stored again; the next backup tries again";
                self.monitor.note(&format!("{why}: {error}"));
            }
        }
    }

    /// The time of the snapshot: the start of the run, unless another one was given.
    fn time(&self) -> Timestamp {
        self.policy.time.unwrap_or(self.started)
    }

    fn labels(&self) -> Labels {
        let mut tags: Vec<String> = Vec::new();
        for tag in &self.policy.tags {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        let this_machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        Labels {
            host: self.policy.host.clone().unwrap_or_else(this_machine),
            paths: self.scope.paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect(),
            tags,
        }
    }

    fn row(&self, name: &SnapshotName, tree: &AssembledTree<'_>, walked: &WalkCounts) -> SnapshotRow {
        let statistics = statistics(walked, &tree.counts, &tree.nodes.blocks().packer().counts());
        SnapshotRow {
            name: name.clone(),
            source: self.scope.name.clone(),
            labels: self.labels(),
            files: statistics.files,
            bytes: statistics.bytes,
            stored_bytes: statistics.stored_bytes,
            presence: Presence::Intended,
            is_held: false,
            root: identity(&tree.root, tree.root.untrusted),
        }
    }

    fn summary(
        &self,
        snapshot: Option<SnapshotName>,
        walked: WalkCounts,
        read: ReadCounts,
        stored: StoredCounts,
    ) -> Summary {
        let Statistics { files, directories, others, bytes, .. } = statistics(&walked, &read, &stored);
        Summary {
            snapshot,
            source: self.scope.name.clone(),
            shrunk: false,
            dry_run: false,
            new_files: walked.new,
            changed_files: walked.changed,
            unmodified_files: walked.unmodified,
            read_files: read.read_files,
            files,
            directories,
            others,
            bytes,
            read_bytes: read.read_bytes,
            added_bytes: stored.added_bytes,
            data_packs: stored.data_packs,
            tree_packs: stored.tree_packs,
            data_bytes: stored.data_bytes,
            tree_bytes: stored.tree_bytes,
            problems: walked.problems + read.problems,
            lost_paths: walked.lost_paths,
            duration: Duration::ZERO,
        }
    }
}

/// The identity of a root directory.
fn identity(root: &FinishedDirectory, untrusted: bool) -> Stats {
    let mut stats = Stats::default();
    if untrusted {
        stats.push_untrusted(b"");
    } else {
        stats.push(b"", &root.stat, EntryMount::default());
    }
    stats
}

fn statistics(walked: &WalkCounts, read: &ReadCounts, stored: &StoredCounts) -> Statistics {
    Statistics {
        files: walked.files.saturating_sub(read.missing_files),
        directories: walked.directories,
        others: walked.others,
        bytes: walked.bytes,
        stored_bytes: stored.pack_bytes(),
    }
}
