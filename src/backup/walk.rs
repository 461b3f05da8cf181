//! The walk: lists directories, compares them with the catalog, and asks for what changed to be read.
//!
//! Memory holds one group of entries for each directory that is open, from the root down to where the walk
//! is; groups are bounded. Names come sorted, so a group lines up with a segment of the
//! catalog, and if nothing changed the two are equal as bytes.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};

use super::Error;
use super::budget::Budget;
use super::event::{Enter, Event, NewFile, Plain, Reused};
use super::read::Job;
use super::selection::Part;
use crate::catalog::stats::{Identity, Stats, StatsReader};
use crate::catalog::{DirectoryId, DirectoryRow, Past, SegmentId, SegmentNode, SegmentRow};
use crate::format::{Content, Entry, Kind, Timestamp};
use crate::monitor::{Monitor, Total};
use crate::source::{Directory, Extended, MountTable, Patterns, Stat, Tags, now};

/// Most entries of a segment: as many as were there before may come again, and be compared as a whole.
const SEGMENT_MAX: usize = 1500;
/// Entries of the part that is split off a segment that has grown above that.
const SEGMENT: usize = 1000;
/// A segment that shrank below this many takes the next one in.
const SEGMENT_MIN: usize = 300;
/// Events that go out together at most.
const BATCH: usize = 32;
/// Segments that are read from the catalog at once.
const SEGMENTS_AT_ONCE: usize = 4;
/// Messages that a file's content may be ahead of the engine.
pub(super) const AHEAD: usize = 4;

/// What the walk counted.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) others: u64,
    pub(super) bytes: u64,
    pub(super) unmodified: u64,
    pub(super) new: u64,
    pub(super) changed: u64,
    pub(super) problems: u64,
}

impl Counts {
    /// What there was to do, as the walk found out if it came to its `end`.
    pub(super) fn expect_if(&self, end: bool, monitor: &dyn Monitor) {
        if end {
            monitor.progress().expect(Total { files: self.files, bytes: self.bytes, estimated: false });
        }
    }
}

/// What the walk needs to know.
pub(super) struct Rules {
    pub(super) exclude: Patterns,
    /// What makes a directory one whose content is left out.
    pub(super) tags: Tags,
    /// Leave out what has the attribute.
    pub(super) exclude_nodump: bool,
    pub(super) identity: Identity,
    pub(super) one_file_system: bool,
    /// Believe no identity: read every file.
    pub(super) reread: bool,
    /// Files from this size on are read one after the other.
    pub(super) large: u64,
    pub(super) mounts: MountTable,
    /// Directories that are never entered: the repository and this program's state, by device and inode.
    pub(super) forbidden: HashSet<(u64, u64)>,
}

/// Walks a source and sends events, until it is done or nobody listens.
pub(super) struct Walk<'a> {
    pub(super) past: Past,
    pub(super) rules: Rules,
    pub(super) events: Sender<Vec<Event>>,
    /// Events that go out together: waking the engine for each would take longer than what it does about it.
    pub(super) batch: RefCell<Vec<Event>>,
    pub(super) small: Sender<Job>,
    pub(super) large: Sender<Job>,
    pub(super) budget: &'a Budget,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a AtomicBool,
    pub(super) counts: Counts,
    /// Files that the engine was told of, and that are read.
    pub(super) files_sent: u64,
}

/// Why the walk ends early.
pub(super) enum Stop {
    /// Nobody listens: the engine has an error of its own.
    Gone,
    /// The walk itself failed.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// What the catalog has of a directory that is being walked.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) row: DirectoryRow,
    /// The directory is where it was. Otherwise its entries are good to reuse, but its rows stay behind.
    pub(super) in_place: bool,
}

/// Entries of one directory that belong together, and what the catalog has of them.
#[derive(Default)]
struct Group {
    entries: Vec<(OsString, Stat)>,
    /// The segments whose names these are, as far as they were not replaced yet.
    old: Vec<SegmentRow>,
    /// A part of the group went out already.
    begun: bool,
    /// Entries of replaced segments that were not passed yet.
    entries_before: VecDeque<(Entry, Vec<u8>, Arc<SegmentNode>)>,
}

impl Walk<'_> {
    /// Walks the root directory. `above` is the catalog's parent of it.
    pub(super) fn root(&mut self, path: &Path, above: DirectoryId, part: Part<'_>) -> Result<(), Stop> {
        let directory = Directory::open_root(path)?;
        let stat = directory.stat()?;
        self.counts.directories += 1;
        let row = self.past.directory(above, b"", (stat.dev, stat.ino))?;
        let known = row.map(|row| Known { in_place: row.in_place, row });
        let looked = now();
        let extended = self.checked(directory.extended(), directory.path());
        self.enter(b"", &stat, (extended, looked), known.as_ref())?;
        self.contents(&Arc::new(directory), known, Path::new(""), part, stat.dev)
    }

    pub(super) fn send(&self, event: Event) -> Result<(), Stop> {
        let mut batch = self.batch.borrow_mut();
        // The engine must know of a file before the walk waits for room of any kind.
        let now = matches!(event, Event::File(_)) || batch.len() + 1 >= BATCH;
        batch.push(event);
        drop(batch);
        if now { self.send_batch() } else { Ok(()) }
    }

    /// Sends what was held back.
    pub(super) fn send_batch(&self) -> Result<(), Stop> {
        let batch = self.batch.take();
        match batch.is_empty() {
            true => Ok(()),
            false => self.events.send(batch).map_err(|_| Stop::Gone),
        }
    }

    pub(super) fn enter(
        &self,
        name: &[u8],
        stat: &Stat,
        (extended, looked): (Extended, Timestamp),
        known: Option<&Known>,
    ) -> Result<(), Stop> {
        let row = known.filter(|known| known.in_place).map(|known| known.row.clone());
        let untrusted = stat.is_fresh(looked) || extended.missing.is_some();
        let (name, stat) = (name.to_vec(), stat.clone());
        self.send(Event::Enter(Box::new(Enter { name, stat, extended, untrusted, row })))
    }

    fn problem(&mut self, path: &Path, why: &str) {
        self.counts.problems += 1;
        self.monitor.problem(path, why);
    }

    /// What was found of something, after a report of what was not.
    fn checked(&mut self, extended: Extended, path: &Path) -> Extended {
        if let Some(missing) = &extended.missing {
            self.problem(path, missing);
        }
        extended
    }

    /// Everything between a directory's enter and leave, and the leave.
    fn contents(
        &mut self,
        directory: &Arc<Directory>,
        known: Option<Known>,
        relative: &Path,
        part: Part<'_>,
        device: u64,
    ) -> Result<(), Stop> {
        let mut segments = Segments::new(known.as_ref());
        let mut group = Group { old: Vec::from_iter(segments.next(&self.past)?), ..Group::default() };
        let mut removed = Vec::new();
        let here = Here { directory, known: known.as_ref(), relative, part, device };
        for name in self.names(directory, part) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stop::Failed(Error::Interrupted));
            }
            let name = match name {
                Ok(name) => name,
                Err(e) => {
                    self.problem(directory.path(), &e.to_string());
                    break;
                }
            };
            while segments.next_begins_by(&name) {
                let next = segments.next(&self.past)?;
                self.close(&here, &mut group, next, &mut removed)?;
            }
            let stat = match directory.stat_child(&name) {
                Ok(stat) => stat,
                Err(e) => {
                    self.problem(&directory.child_path(&name), &e.to_string());
                    continue;
                }
            };
            if self.is_excluded(&relative.join(&name), &stat) {
                continue;
            }
            group.entries.push((name, stat));
            if group.entries.len() > SEGMENT_MAX {
                self.flush(&here, &mut group, SEGMENT)?;
            }
        }
        loop {
            let next = segments.next(&self.past)?;
            let more = next.is_some();
            self.close(&here, &mut group, next, &mut removed)?;
            if !more {
                break;
            }
        }
        if !known.as_ref().is_some_and(|known| known.in_place) {
            removed.clear();
        }
        self.send(Event::Leave { removed })
    }

    /// The names in a directory that are looked at.
    fn names<'p>(&mut self, directory: &Directory, part: Part<'p>) -> Names<'p> {
        let mut tags = self.rules.tags.in_directory(directory);
        if !tags.is_empty() {
            tags.retain(|tag| part.whole || part.has(tag));
            return Box::new(tags.into_iter().map(Ok));
        }
        if !part.whole {
            return Box::new(part.names().map(Ok));
        }
        match directory.list() {
            Ok(listing) => Box::new(listing),
            Err(e) => {
                self.problem(directory.path(), &e.to_string());
                Box::new(std::iter::empty())
            }
        }
    }

    fn is_excluded(&self, relative: &Path, stat: &Stat) -> bool {
        self.rules.exclude_nodump && stat.nodump || self.rules.exclude.matches(relative, stat.kind == Kind::Directory)
    }

    /// Ends the group at a border between segments; `next` is the segment behind it, if there is one.
    fn close(
        &mut self,
        here: &Here<'_>,
        group: &mut Group,
        next: Option<SegmentRow>,
        removed: &mut Vec<SegmentId>,
    ) -> Result<(), Stop> {
        let in_place = here.known.is_some_and(|known| known.in_place);
        if group.entries.is_empty() {
            removed.extend(group.old.iter().map(|row| row.id));
        } else if in_place && !group.begun && !self.rules.reread && self.is_unchanged(group) {
            let row = group.old.pop();
            let entries = std::mem::take(&mut group.entries);
            if let Some(mut row) = row {
                // They were compared, and take the most room.
                row.stats = Stats::default();
                self.unchanged(here, row, entries)?;
            }
        } else if group.entries.len() < SEGMENT_MIN && next.is_some() {
            group.old.extend(next);
            return Ok(());
        } else {
            self.flush(here, group, SEGMENT_MAX)?;
        }
        *group = Group { old: Vec::from_iter(next), ..Group::default() };
        Ok(())
    }

    fn is_unchanged(&self, group: &Group) -> bool {
        let [old] = group.old.as_slice() else { return false };
        let mut stats = Stats::default();
        for (name, stat) in &group.entries {
            stats.push(name.as_bytes(), stat, self.rules.identity);
        }
        stats == old.stats
    }

    /// A segment in which nothing changed: only its directories are looked into.
    fn unchanged(&mut self, here: &Here<'_>, row: SegmentRow, entries: Vec<(OsString, Stat)>) -> Result<(), Stop> {
        self.send(Event::OldSegment(Box::new(row)))?;
        for (name, stat) in entries {
            self.count(&stat);
            match stat.kind {
                Kind::Directory => self.child(here, &name, &stat, false)?,
                Kind::File => {
                    self.counts.unmodified += 1;
                    self.monitor.progress().file();
                    self.monitor.progress().bytes(stat.size);
                }
                _ => {}
            }
        }
        self.send(Event::EndSegment)
    }

    /// Sends the group's first entries, at most `count`, as a new segment.
    fn flush(&mut self, here: &Here<'_>, group: &mut Group, count: usize) -> Result<(), Stop> {
        let in_place = here.known.is_some_and(|known| known.in_place);
        let mut replaces = Vec::new();
        for row in std::mem::take(&mut group.old) {
            self.remember(&row, &mut group.entries_before)?;
            replaces.push(row.id);
        }
        group.begun = true;
        if !in_place {
            replaces.clear();
        }
        self.send(Event::NewSegment { replaces })?;
        let rest = group.entries.split_off(count.min(group.entries.len()));
        for (name, stat) in std::mem::replace(&mut group.entries, rest) {
            self.count(&stat);
            let before = group.take_before(name.as_bytes());
            if stat.kind == Kind::Directory {
                self.child(here, &name, &stat, true)?;
                continue;
            }
            let mut now = Stats::default();
            now.push(name.as_bytes(), &stat, self.rules.identity);
            let same = !self.rules.reread && before.as_ref().is_some_and(|(_, then, _)| now.is(then));
            match before {
                Some((entry, _, node)) if same => self.reuse(entry, stat, &node)?,
                before => self.store(here, name, stat, before.is_some())?,
            }
        }
        self.send(Event::EndSegment)
    }

    /// Reads the entries of a segment, to be compared one by one.
    fn remember(
        &self,
        row: &SegmentRow,
        before: &mut VecDeque<(Entry, Vec<u8>, Arc<SegmentNode>)>,
    ) -> Result<(), Stop> {
        // A directory that is found by its inode may be in its own place, too, and the run already further there.
        let Some(node) = self.past.segment_node(row.id)?.map(Arc::new) else { return Ok(()) };
        let crate::format::Items::Entries(entries) = &node.node.items else { return Ok(()) };
        let mut stats = StatsReader::new(&node.stats);
        for entry in entries {
            let Some((name, identity)) = stats.next_entry() else { break };
            if name == entry.name {
                before.push_back((entry.clone(), identity.to_vec(), node.clone()));
            }
        }
        Ok(())
    }

    fn reuse(&mut self, mut entry: Entry, stat: Stat, node: &SegmentNode) -> Result<(), Stop> {
        if stat.kind == Kind::File {
            self.counts.unmodified += 1;
        }
        let mut blocks = Vec::new();
        for chunk in entry.chunk_refs_mut() {
            let at = chunk.block as usize;
            chunk.block = blocks.len() as u32;
            blocks.extend(node.blocks.get(at).copied().zip(node.node.blocks.get(at).copied()));
        }
        self.send(Event::Reused(Box::new(Reused { entry, stat, blocks })))
    }

    /// An entry that is new or looks different.
    fn store(&mut self, here: &Here<'_>, name: OsString, stat: Stat, existed: bool) -> Result<(), Stop> {
        let path = here.directory.child_path(&name);
        if stat.kind == Kind::File {
            match existed {
                true => self.counts.changed += 1,
                false => self.counts.new += 1,
            }
        }
        let looked = now();
        let content = match stat.kind {
            Kind::File => return self.file(here, name, path, &stat, existed),
            Kind::Symlink => match here.directory.read_link(&name) {
                Ok(target) => Content::Target(target),
                Err(e) => {
                    self.problem(&path, &e.to_string());
                    return Ok(());
                }
            },
            Kind::CharDevice | Kind::BlockDevice => {
                Content::Device(rustix::fs::major(stat.rdev), rustix::fs::minor(stat.rdev))
            }
            Kind::Fifo | Kind::Socket | Kind::Directory => Content::Empty,
        };
        let extended = self.checked(here.directory.extended_of_child(&name), &path);
        let untrusted = stat.is_fresh(looked) || extended.missing.is_some();
        let entry = super::entry_of(name.into_vec(), &stat, extended, content);
        self.send(Event::Plain(Box::new(Plain { entry, stat, untrusted, existed })))
    }

    fn file(&mut self, here: &Here<'_>, name: OsString, path: PathBuf, stat: &Stat, existed: bool) -> Result<(), Stop> {
        let large = stat.size >= self.rules.large;
        let lent = if large { 0 } else { stat.size as usize };
        if !self.budget.take(lent) {
            return Err(Stop::Gone);
        }
        let (sender, content) = bounded(AHEAD);
        self.files_sent += 1;
        let (directory, number) = (here.directory.clone(), self.files_sent);
        let job = Job { directory, name: name.as_bytes().to_vec(), number, content: sender };
        let lane = if large { &self.large } else { &self.small };
        // The event first: the engine must know of the file before a full lane can hold up the walk.
        let (name, size) = (name.into_vec(), stat.size);
        self.send(Event::File(Box::new(NewFile { name, path, existed, size, content, lent })))?;
        lane.send(job).map_err(|_| Stop::Gone)
    }

    /// A directory below the one at hand: entered, walked and left. `anew`: its entry is written anew.
    fn child(&mut self, here: &Here<'_>, name: &OsStr, stat: &Stat, anew: bool) -> Result<(), Stop> {
        let path = here.directory.child_path(name);
        let relative = here.relative.join(name);
        let inode = (stat.dev, stat.ino);
        let known = match here.known {
            Some(known) => self.past.directory(known.row.id, name.as_bytes(), inode)?,
            None => self.past.directory(NOWHERE, name.as_bytes(), inode)?,
        };
        let above_in_place = here.known.is_some_and(|known| known.in_place);
        let known = known.map(|row| Known { in_place: row.in_place && above_in_place, row });
        let part = here.part.child(name);
        let device = if part.is_given() { stat.dev } else { here.device };
        let part = self.within_borders(part, device, stat, &path);
        let opened = part.map(|part| (part, here.directory.open_child(name)));
        let looked = now();
        let extended = match (anew, &opened) {
            (false, _) => Extended::default(),
            (true, Some((_, Ok(directory)))) => self.checked(directory.extended(), &path),
            (true, _) => self.checked(here.directory.extended_of_child(name), &path),
        };
        self.enter(name.as_bytes(), stat, (extended, looked), known.as_ref())?;
        match opened {
            Some((part, Ok(directory))) => {
                return self.contents(&Arc::new(directory), known, &relative, part, device);
            }
            Some((_, Err(e))) => self.problem(&path, &e.to_string()),
            None => {}
        }
        self.send(Event::Leave { removed: self.all_segments(known.as_ref())? })
    }

    /// The segments of a directory that is not looked into now, so that nothing stays of what it held.
    fn all_segments(&self, known: Option<&Known>) -> Result<Vec<SegmentId>, Stop> {
        match known.filter(|known| known.in_place) {
            Some(known) => Ok(self.past.segment_ids(known.row.id)?),
            None => Ok(Vec::new()),
        }
    }

    /// What is wanted of a directory below one on `device`. None: it stays empty in the snapshot, being a mount
    /// that is not wanted, our own mount, or our own files. A mount that is a path which was given, or leads to
    /// one, is entered for that path.
    fn within_borders<'p>(&self, part: Part<'p>, device: u64, stat: &Stat, path: &Path) -> Option<Part<'p>> {
        let ours = self.rules.mounts.is_brackfs(stat.dev);
        let forbidden = self.rules.forbidden.contains(&(stat.dev, stat.ino));
        let foreign = part.whole && stat.dev != device && (ours || self.rules.one_file_system);
        if !forbidden && !foreign {
            return Some(part);
        }
        if !forbidden && part.leads_further() {
            return Some(part.without_the_rest());
        }
        if forbidden || ours {
            self.monitor.note(&format!("{} belongs to brackfs itself and is left empty", path.display()));
        }
        None
    }

    fn count(&mut self, stat: &Stat) {
        match stat.kind {
            Kind::File => {
                self.counts.files += 1;
                self.counts.bytes += stat.size;
            }
            Kind::Directory => self.counts.directories += 1,
            _ => self.counts.others += 1,
        }
    }
}

/// A parent that no directory has: finds by inode only.
const NOWHERE: DirectoryId = DirectoryId(0);

/// Where the walk is.
struct Here<'a> {
    directory: &'a Arc<Directory>,
    known: Option<&'a Known>,
    relative: &'a Path,
    part: Part<'a>,
    /// The file system of the path that was given and led here.
    device: u64,
}

/// Names that are looked at, in order.
type Names<'p> = Box<dyn Iterator<Item = Result<OsString, crate::source::Error>> + 'p>;

/// The segments of a directory as it was, a few at a time.
struct Segments {
    directory: Option<DirectoryId>,
    ready: VecDeque<SegmentRow>,
    /// There are no more than those that are ready.
    over: bool,
}

impl Segments {
    fn new(known: Option<&Known>) -> Self {
        Segments { directory: known.map(|known| known.row.id), ready: VecDeque::new(), over: false }
    }

    /// Whether `name` is in the next segment, or behind it.
    fn next_begins_by(&self, name: &OsStr) -> bool {
        self.ready.front().is_some_and(|next| next.first.as_slice() <= name.as_bytes())
    }

    fn next(&mut self, past: &Past) -> Result<Option<SegmentRow>, Stop> {
        // When the last one is taken, and not after it: until then nothing was sent that comes behind it, so the
        // engine can't have committed segments of this run there, which would pass for old ones.
        if let (0 | 1, false, Some(directory)) = (self.ready.len(), self.over, self.directory) {
            let after = self.ready.back().map(|last| last.first.as_slice());
            let some = past.segments(directory, after, SEGMENTS_AT_ONCE)?;
            self.over = some.len() < SEGMENTS_AT_ONCE;
            self.ready.extend(some);
        }
        Ok(self.ready.pop_front())
    }
}

impl Group {
    /// The entry of this name in the segments before; those of smaller names are gone.
    fn take_before(&mut self, name: &[u8]) -> Option<(Entry, Vec<u8>, Arc<SegmentNode>)> {
        while self.entries_before.front().is_some_and(|(entry, ..)| entry.name.as_slice() < name) {
            self.entries_before.pop_front();
        }
        match self.entries_before.front() {
            Some((entry, ..)) if entry.name == name => self.entries_before.pop_front(),
            _ => None,
        }
    }
}
