//! Deferred files are visited again when the walk is done, before the snapshot is made.
//!
//! A file is deferred if it changed while it was read, was missing or replaced, or has stamps so fresh that one more change
//! could leave them as they are. The follower commits what it has, and the walk visits the directories of such files once
//! more; all other entries there are taken over from the catalog. That is repeated, with pauses, until no file is deferred
//! any more, for as long as the user allows. A changing file is tried only so often. The last attempt is stored in any case.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tracing::debug;

use super::event::{EnterDirectory, Event, KeptEntry, OldSegment};
use super::listing::StatEntry;
use super::path_set::Subset;
use super::place::{Here, Position};
use super::recognize::{KnownDirectory, KnownParent};
use super::segments::{EntryWithBlocks, OldEntry, Segments, read_segment};
use super::siblings::Siblings;
use super::stop::WalkStop;
use super::tree::{InSegment, ReadAttempt, SourceWalk};
use crate::backup::entry::CHANGED;
use crate::backup::read::verdict::Patience;
use crate::catalog::{DeferredFile, SegmentRow, StoredState};
use crate::format::Kind;
use crate::source::{Directory, now};

/// Files that are read from the catalog at once, so that their names take little memory.
const FILES_AT_ONCE: usize = 4096;
/// The first pause, in which most files settle: a few ticks of the clock.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a pause checks whether the run is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);
/// The message about a file that vanished before anything of it was read.
const VANISHED: &str = "it vanished before it could be read";

/// How long, and how often, files may be deferred. The default is never.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::backup) struct Settling {
    /// How often a file may be found changing before its content is taken as it is.
    pub(in crate::backup) retries: u32,
    /// Total time to wait for files.
    pub(in crate::backup) longest: Duration,
}

impl Settling {
    /// The first attempt at a file.
    pub(in crate::backup) fn first(self) -> ReadAttempt {
        self.attempt(0, self.longest)
    }

    /// An attempt at a file that was found changing `tries` times, `left` before the end.
    fn attempt(self, tries: u32, left: Duration) -> ReadAttempt {
        ReadAttempt { tries, patience: Patience { changed: tries < self.retries, fresh: left } }
    }
}

/// Deferred files by directory.
#[derive(Default)]
struct DeferredTree {
    files: BTreeMap<Vec<u8>, DeferredFile>,
    below: BTreeMap<Vec<u8>, DeferredTree>,
}

impl DeferredTree {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.below.is_empty()
    }

    /// Adds a file in the directory that `names` lead to.
    fn add(&mut self, names: Vec<Vec<u8>>, file: DeferredFile) {
        let directory = names.into_iter().fold(self, |directory, name| directory.below.entry(name).or_default());
        directory.files.insert(file.name.clone(), file);
    }

    /// Takes everything before the name `end`, or all.
    fn take_before(&mut self, end: Option<&[u8]>) -> DeferredTree {
        let Some(end) = end else { return std::mem::take(self) };
        let (files, below) = (self.files.split_off(end), self.below.split_off(end));
        std::mem::replace(self, DeferredTree { files, below })
    }
}

/// Visits the deferred files of a walk that is otherwise done.
pub(in crate::backup) struct Retry<'w, 'a> {
    walk: &'w mut SourceWalk<'a>,
    settling: Settling,
    part: Subset<'w>,
    /// Time until the last pass over the files.
    left: Duration,
}

impl<'w, 'a> Retry<'w, 'a> {
    /// `part` is the wanted part of the root.
    pub(in crate::backup) fn new(walk: &'w mut SourceWalk<'a>, settling: Settling, part: Subset<'w>) -> Self {
        Retry { walk, settling, part, left: settling.longest }
    }

    /// Visits deferred files until there are none. The follower says through `go` that it has committed everything it was
    /// sent, and that files are deferred; it drops its end when none are. `root` is the path of the tree.
    pub(in crate::backup) fn settle(mut self, go: &Receiver<()>, root: &Path) -> Result<(), WalkStop> {
        if go.recv().is_err() {
            return Ok(());
        }
        debug!("waiting for files that have just changed");
        let end = Instant::now() + self.settling.longest;
        let mut pause = FIRST_PAUSE;
        loop {
            self.left = end.saturating_duration_since(Instant::now());
            let Pass::Continue { visited } = self.pass(go)? else { return Ok(()) };
            if !self.left.is_zero() {
                self.pause(pause.min(self.left))?;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else if !visited {
                return self.give_up(root);
            }
        }
    }

    /// Goes through all deferred files once.
    fn pass(&mut self, go: &Receiver<()>) -> Result<Pass, WalkStop> {
        let (mut after, mut visited) = (None, false);
        loop {
            let files = self.walk.recognizer.past.deferred(after.as_ref(), FILES_AT_ONCE)?;
            let Some(last) = files.last() else { return Ok(Pass::Continue { visited }) };
            after = Some(last.clone());
            debug!(files = files.len(), left_ms = self.left.as_millis(), "visiting deferred files");
            let files = self.ready(files)?;
            if !files.is_empty() && self.visit(files)? {
                visited = true;
                self.walk.flush()?;
                if go.recv().is_err() {
                    return Ok(Pass::Done);
                }
            }
        }
    }

    fn pause(&self, time: Duration) -> Result<(), WalkStop> {
        let end = Instant::now() + time;
        loop {
            self.walk.check_stop()?;
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => sleep(left.min(STOP_POLL)),
            }
        }
    }

    /// The files of this source that would not be deferred again right away, by directory.
    fn ready(&self, files: Vec<DeferredFile>) -> Result<DeferredTree, WalkStop> {
        let mut tree = DeferredTree::default();
        let Some(root) = self.walk.recognizer.root() else { return Ok(tree) };
        let mut place = None;
        for file in files {
            if place.as_ref().is_none_or(|(directory, _)| *directory != file.directory) {
                place = Some((file.directory, self.walk.recognizer.past.place(file.directory)?));
            }
            if let Some((_, Some(place))) = &place
                && Some(place.source) == self.walk.recognizer.source()
            {
                tree.add(place.names.clone(), file);
            }
        }
        self.retain_ready(root, &mut tree);
        Ok(tree)
    }

    /// Drops files that would be deferred again, and directories that can't be opened now.
    fn retain_ready(&self, directory: &Directory, tree: &mut DeferredTree) {
        let names = tree.files.keys().map(|name| OsStr::from_bytes(name));
        let call = self.walk.context.calls.about_names(directory.shared_path(), names);
        tree.files.retain(|name, _| {
            let stat = directory.stat_child(OsStr::from_bytes(name));
            call.next();
            match stat {
                Ok(stat) if stat.kind == Kind::File => {
                    let fresh = self.walk.recognizer.fresh_for(&stat, now());
                    self.left.is_zero() || fresh.is_none_or(|fresh| fresh > self.left)
                }
                _ => true,
            }
        });
        drop(call);
        tree.below.retain(|name, below| {
            let name = OsStr::from_bytes(name);
            let call = self.walk.context.calls.about_names(directory.shared_path(), [name]);
            let child = directory.open_child(name);
            drop(call);
            child.is_ok_and(|child| {
                self.retain_ready(&child, below);
                !below.is_empty()
            })
        });
    }

    /// Walks the tree once more, for these files only. Returns false if they can't be reached, and nothing was sent.
    fn visit(&mut self, files: DeferredTree) -> Result<bool, WalkStop> {
        let Some(directory) = self.walk.recognizer.root().cloned() else { return Ok(false) };
        let looked = now();
        let stat = directory.stat()?;
        let parent = KnownParent::above(self.walk.recognizer.source());
        let known = self.walk.recognizer.find(parent, b"", &stat)?;
        let Some(known) = known.filter(is_whole) else { return Ok(false) };
        let (mounted, mounts) = self.walk.context.rules.mounts.find(&directory.path());
        let place = Position::root(self.part, mounts.as_ref(), mounted.map(|mounted| mounted.device), &stat);
        let here = Here { directory: &directory, known: Some(&known), place, below: &RefCell::default() };
        self.enter_again(&here, StatEntry { name: Default::default(), stat, looked, mounted: None })?;
        self.visit_entries(&here, files)?;
        Ok(true)
    }

    /// Enters a directory again.
    fn enter_again(&mut self, here: &Here<'_>, entry: StatEntry) -> Result<(), WalkStop> {
        let StatEntry { name, stat, looked, .. } = entry;
        // Missing metadata was reported before.
        let extended = {
            let _call = self.walk.context.calls.about(here.directory.shared_path());
            here.directory.extended()
        };
        let enter = EnterDirectory {
            name: name.as_bytes().to_vec(),
            device: self.walk.recognizer.device_of(&stat),
            untrusted: self.walk.recognizer.is_fresh(&stat, looked) || extended.missing.is_some(),
            stat,
            lent: self.walk.outbox.lend(&extended.xattrs)?,
            extended,
            row: here.known.map(|known| known.row.clone()),
            again: true,
        };
        self.walk.outbox.send(Event::Enter(Box::new(enter)))
    }

    /// Visits deferred files in and below a directory that was entered, and leaves it.
    fn visit_entries(&mut self, here: &Here<'_>, mut files: DeferredTree) -> Result<(), WalkStop> {
        let mut segments = Segments::new(here.known, false);
        let mut segment = segments.next(&self.walk.recognizer.past)?;
        loop {
            let next = segments.next(&self.walk.recognizer.past)?;
            let here_in = files.take_before(next.as_ref().map(|next| next.first.as_slice()));
            match segment {
                Some(row) if here_in.files.is_empty() => self.visit_old_segment(here, row, here_in)?,
                None if here_in.files.is_empty() => {}
                row => self.rewrite_segment(here, row, here_in)?,
            }
            if next.is_none() {
                return self.walk.outbox.send(Event::Leave { removed: Vec::new() });
            }
            segment = next;
        }
    }

    /// Visits the directories in a segment without deferred files.
    fn visit_old_segment(&mut self, here: &Here<'_>, row: SegmentRow, files: DeferredTree) -> Result<(), WalkStop> {
        self.walk.outbox.send(Event::OldSegment(Box::new(OldSegment { row, stats: None })))?;
        for (name, below) in files.below {
            self.visit_child(here, &name, below)?;
        }
        self.walk.outbox.send(Event::EndSegment)
    }

    /// Sends a segment again, with its deferred files.
    fn rewrite_segment(
        &mut self,
        here: &Here<'_>,
        row: Option<SegmentRow>,
        files: DeferredTree,
    ) -> Result<(), WalkStop> {
        let mut old_entries = VecDeque::new();
        let mut replaces = Vec::new();
        if let Some(row) = &row {
            read_segment(&self.walk.recognizer.past, row, &mut old_entries)?;
            replaces.push(row.id);
        }
        self.walk.outbox.send(Event::NewSegment { replaces })?;
        let DeferredTree { files, mut below } = files;
        for (name, file) in files {
            while let Some(old) = take_if(&mut old_entries, |old| old < name.as_slice()) {
                self.keep_or_visit(here, old, &mut below)?;
            }
            let old = take_if(&mut old_entries, |old| old == name.as_slice());
            self.visit_file(here, file, old)?;
        }
        for old in old_entries {
            self.keep_or_visit(here, old, &mut below)?;
        }
        self.walk.outbox.send(Event::EndSegment)
    }

    /// Sends an entry that is not deferred: a directory is visited if there are deferred files below it.
    fn keep_or_visit(
        &mut self,
        here: &Here<'_>,
        old: OldEntry,
        below: &mut BTreeMap<Vec<u8>, DeferredTree>,
    ) -> Result<(), WalkStop> {
        let visited = match below.remove(&old.entry.name) {
            Some(files) => self.visit_child(here, &old.entry.name, files)?,
            None => false,
        };
        if visited { Ok(()) } else { self.keep(old) }
    }

    /// Sends an entry as it is in the catalog.
    fn keep(&mut self, mut old: OldEntry) -> Result<(), WalkStop> {
        let identity = std::mem::take(&mut old.identity);
        let EntryWithBlocks { entry, blocks } = old.detach();
        let lent = self.walk.outbox.lend(&entry.xattrs)?;
        self.walk.outbox.send(Event::Kept(Box::new(KeptEntry { entry, identity, blocks, lent })))
    }

    /// Visits a directory with deferred files below it. Returns false if it is not the one that was walked, and nothing was
    /// sent.
    fn visit_child(&mut self, here: &Here<'_>, name: &[u8], files: DeferredTree) -> Result<bool, WalkStop> {
        let name = OsStr::from_bytes(name);
        let looked = now();
        let call = self.walk.context.calls.about_names(here.directory.shared_path(), [name]);
        let opened = here.directory.open_child(name).and_then(|directory| Ok((directory.stat()?, directory)));
        drop(call);
        let Ok((stat, directory)) = opened else { return Ok(false) };
        let directory = Arc::new(directory);
        if here.known.is_none() {
            return Ok(false);
        }
        let parent = KnownParent::of(here.known).in_place();
        let known = self.walk.recognizer.find(parent, name.as_bytes(), &stat)?;
        let Some(known) = known.filter(is_whole) else { return Ok(false) };
        let entry = StatEntry { name: name.to_owned(), stat, looked, mounted: None };
        let Some(place) = self.walk.passage(here, &entry) else { return Ok(false) };
        let below = Here { directory: &directory, known: Some(&known), place, below: &RefCell::default() };
        self.enter_again(&below, entry)?;
        self.visit_entries(&below, files)?;
        Ok(true)
    }

    /// Visits a deferred file, or another entry that has its name now. `old` is its entry, if it has one.
    fn visit_file(&mut self, here: &Here<'_>, file: DeferredFile, old: Option<OldEntry>) -> Result<(), WalkStop> {
        let name = OsStr::from_bytes(&file.name);
        self.walk.outbox.send(Event::Again { name: file.name.clone() })?;
        let looked = now();
        let stat = {
            let _call = self.walk.context.calls.about_names(here.directory.shared_path(), [name]);
            here.directory.stat_child(name)
        };
        let stat = match stat {
            Ok(stat) => stat,
            Err(e) => {
                let why = if e.is_vanished() { VANISHED.to_owned() } else { e.to_string() };
                self.report_gone(&here.directory.child_path(name), file.stored, &why);
                return old.map_or(Ok(()), |old| self.keep(old));
            }
        };
        if self.walk.context.rules.leaves_out(here.directory, name, &stat) {
            self.walk.counts.files -= 1;
            return Ok(());
        }
        let entry = StatEntry { name: name.to_owned(), stat, looked, mounted: None };
        if entry.stat.kind == Kind::Directory {
            self.walk.counts.files -= 1;
            self.walk.counts.add(&entry.stat);
            self.walk.attempt = self.settling.attempt(0, self.left);
            let mut siblings = Siblings::of(here, std::slice::from_ref(&entry), &self.walk.context);
            return self.walk.child(here, &entry, InSegment::New, &mut siblings);
        }
        self.walk.attempt = self.settling.attempt(file.tries, self.left);
        let counts = self.walk.counts;
        if entry.stat.kind != Kind::File {
            self.walk.counts.files -= 1;
            self.walk.counts.add(&entry.stat);
        }
        self.walk.store(here, entry, file.existed)?;
        // It was counted when it was deferred.
        (self.walk.counts.new, self.walk.counts.changed) = (counts.new, counts.changed);
        Ok(())
    }

    /// Reports a deferred file that can't be read any more.
    fn report_gone(&mut self, path: &Path, stored: StoredState, why: &str) {
        match stored {
            StoredState::Nothing => {
                self.walk.counts.files -= 1;
                self.walk.problem(path, why);
            }
            StoredState::Changed => self.walk.problem(path, CHANGED),
            // The stored content is a state that the file was in.
            StoredState::Fresh => {}
        }
    }

    /// Reports the deferred files in directories that are not where they were.
    fn give_up(&mut self, root: &Path) -> Result<(), WalkStop> {
        let mut after = None;
        loop {
            let files = self.walk.recognizer.past.deferred(after.as_ref(), FILES_AT_ONCE)?;
            let Some(last) = files.last() else { return Ok(()) };
            after = Some(last.clone());
            for file in files {
                let names =
                    self.walk.recognizer.past.place(file.directory)?.map(|place| place.names).unwrap_or_default();
                let mut path: PathBuf = root.to_owned();
                path.extend(names.iter().chain([&file.name]).map(|name| OsStr::from_bytes(name)));
                self.report_gone(&path, file.stored, VANISHED);
            }
        }
    }
}

/// The result of a pass over deferred files.
enum Pass {
    /// No file is deferred any more.
    Done,
    Continue {
        /// Some files were visited.
        visited: bool,
    },
}

/// Takes the first entry if its name is meant.
fn take_if(entries: &mut VecDeque<OldEntry>, is_meant: impl FnOnce(&[u8]) -> bool) -> Option<OldEntry> {
    let is_meant = entries.front().is_some_and(|old| is_meant(&old.entry.name));
    if is_meant { entries.pop_front() } else { None }
}

/// Whether a directory is where it was walked, and all of it is in the catalog.
fn is_whole(known: &KnownDirectory) -> bool {
    known.in_place && known.row.in_place && known.row.subtree.is_some()
}
