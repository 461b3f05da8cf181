//! The walk: lists directories, compares them with the catalog, and asks for what changed to be read.
//!
//! Memory holds one group of entries for each directory that is open, from the root down to where the walk
//! is; groups are bounded. Names come sorted, so a group lines up with a segment of the
//! catalog, and if nothing changed the two are equal as bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use roaring::RoaringTreemap;

use super::Error;
use super::budget::{Budget, Loan};
use super::calls::Calls;
use super::devices::Devices;
use super::entry::entry_of;
use super::event::{Enter, Event, NewFile, NewFiles, OldSegment, Plain, Reused};
use super::limits::Directories;
use super::listing::{Below, Borders, Entries, Found, Ground, Name, Names, Next, Opened, SIBLINGS};
use super::read::{FILE_OVERHEAD, Job, JobFile, Patience};
use super::readahead::{Later, Readahead};
use super::rules::Rules;
use super::selection::Subset;
use super::spill::SLOTS;
use crate::catalog::stats::{Stats, StatsReader};
use crate::catalog::{BlockId, DirectoryId, DirectoryRow, Past, SegmentId, SegmentNode, SegmentRow};
use crate::format::entry::Xattr;
use crate::format::{BlockLocation, Content, Entry, Kind, Timestamp};
use crate::monitor::{Monitor, Total};
use crate::source::{self, Directory, EntryMount, Extended, FoundTags, LastMount, MountPlace, Stat, is_foreign, now};

/// Most entries of a segment: as many as were there before may come again, and be compared as a whole.
const SEGMENT_MAX: usize = 1500;
/// Entries of the part that is split off a segment that has grown above that.
const SEGMENT: usize = 1000;
/// A segment that shrank below this many takes the next one in.
const SEGMENT_MIN: usize = 300;
/// Bytes of the nodes of segments that are taken together.
const GROUP_BYTES: u64 = 512 << 10;
/// Events that go out together at most.
const BATCH: usize = 32;
/// Small files that are read together at most: no more than may wait, or they would wait for each other.
const JOB_FILES: usize = SLOTS;
/// Bytes of such files together, unless one alone has more.
const JOB_BYTES: u64 = 128 << 10;
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

/// Walks a source and sends events, until it is done or nobody listens.
pub(super) struct Walk<'a> {
    pub(super) past: Past,
    pub(super) rules: Arc<Rules>,
    pub(super) calls: Arc<Calls>,
    pub(super) directories: Arc<Directories>,
    pub(super) events: Sender<Vec<Event>>,
    /// Events that go out together: waking the engine for each would take longer than what it does about it.
    pub(super) batch: RefCell<Vec<Event>>,
    /// Small files that come next, and are read together.
    pub(super) held: RefCell<Option<Held>>,
    pub(super) small: Sender<Job>,
    pub(super) large: Sender<Job>,
    /// Lends memory for small files; none if they wait elsewhere.
    pub(super) budget: Option<Budget>,
    /// Lends memory for attributes.
    pub(super) attributes: Budget,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a AtomicBool,
    pub(super) ahead: Readahead,
    /// The directory at the top, and its parent in the catalog.
    pub(super) root: Option<(DirectoryId, Arc<Directory>)>,
    pub(super) counts: Counts,
    /// Files that the engine was told of, and that are read.
    pub(super) files_sent: u64,
    pub(super) devices: Devices,
    pub(super) mounts: LastMount,
    /// Rows of directories that were entered in this run.
    pub(super) entered: RoaringTreemap,
    pub(super) attempt: Attempt,
}

/// Which attempt at reading a file it is, and for what the file may be put off.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Attempt {
    /// How often the file was found changing before.
    pub(super) tries: u32,
    pub(super) patience: Patience,
}

/// Neighbours that are read together.
pub(super) struct Held {
    directory: Arc<Directory>,
    files: Vec<NewFile>,
    jobs: Vec<JobFile>,
    bytes: u64,
}

impl Held {
    fn of(directory: Arc<Directory>) -> Self {
        Held { directory, files: Vec::new(), jobs: Vec::new(), bytes: 0 }
    }
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
    /// Its device goes by another number than before, and so do files of several names.
    pub(super) renumbered: bool,
}

/// What the catalog knows a directory's parent as.
#[derive(Clone, Copy)]
pub(super) struct Parent {
    pub(super) id: DirectoryId,
    pub(super) in_place: bool,
    /// What its device went by; none for the parent of a source.
    pub(super) device: Option<u64>,
}

impl Parent {
    /// The parent of a source's root directory.
    pub(super) fn above(id: DirectoryId) -> Self {
        Parent { id, in_place: true, device: None }
    }

    pub(super) fn of(known: Option<&Known>) -> Self {
        match known {
            Some(Known { row, in_place, .. }) => Parent { id: row.id, in_place: *in_place, device: Some(row.device) },
            None => Parent { id: NOWHERE, in_place: false, device: None },
        }
    }
}

/// An entry as it was, what it was known by, and the node that it stands in.
pub(super) type Before = (Entry, Vec<u8>, Arc<SegmentNode>);

/// Entries of one directory that belong together, and what the catalog has of them.
#[derive(Default)]
struct Group {
    entries: Vec<Found>,
    /// The segments whose names these are, as far as they were not replaced yet.
    old: Vec<SegmentRow>,
    /// A part of the group went out already.
    begun: bool,
    /// Entries of replaced segments that were not passed yet.
    entries_before: VecDeque<Before>,
}

impl Walk<'_> {
    /// Walks the root directory. `above` is the catalog's parent of it.
    pub(super) fn root(&mut self, path: &Path, above: DirectoryId, part: Subset<'_>) -> Result<(), Stop> {
        let calls = self.calls.clone();
        let call = calls.about(path.into());
        let opened = Opened::only(Directory::open_root(path)?, &self.rules);
        let directory = opened.directory.clone();
        let looked = now();
        let stat = directory.stat()?;
        self.counts.directories += 1;
        self.root = Some((above, directory.clone()));
        let known = self.known(Parent::above(above), b"", &stat)?;
        let extended = self.checked(directory.extended(), || directory.path());
        drop(call);
        self.enter(b"", &stat, (extended, looked), known.as_ref())?;
        let (mounted, mounts) = self.rules.mounts.find(path);
        let borders = Borders { device: stat.dev, file_system: mounted.map(|mounted| mounted.device) };
        let had = self.had(above, b"", &stat, path)?;
        let place = Place { part, mounts: mounts.as_ref(), borders, within: stat.dev, depth: 0, had };
        self.contents(opened, known, place)
    }

    pub(super) fn send(&self, event: Event) -> Result<(), Stop> {
        self.send_files()?;
        let mut batch = self.batch.borrow_mut();
        batch.push(event);
        let full = batch.len() >= BATCH;
        drop(batch);
        if full { self.send_batch() } else { Ok(()) }
    }

    /// Waits until there is room for attributes on their way to the engine, unless they are few.
    pub(super) fn lend(&self, xattrs: &[Xattr]) -> Result<Option<Loan>, Stop> {
        let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes <= FILE_OVERHEAD {
            return Ok(None);
        }
        if let Some(loan) = self.attributes.try_take(bytes) {
            return Ok(Some(loan));
        }
        // Loans come back when the engine has what comes before.
        self.send_files()?;
        self.send_batch()?;
        self.attributes.take(bytes).map(Some).ok_or(Stop::Gone)
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
        &mut self,
        name: &[u8],
        stat: &Stat,
        (extended, looked): (Extended, Timestamp),
        known: Option<&Known>,
    ) -> Result<(), Stop> {
        let row = known.filter(|known| known.in_place).map(|known| known.row.clone());
        self.entered.extend(row.iter().map(|row| row.id.0 as u64));
        let untrusted = self.is_fresh(stat, looked) || extended.missing.is_some();
        let (name, stat, device) = (name.to_vec(), stat.clone(), self.number_of(stat));
        let lent = self.lend(&extended.xattrs)?;
        self.send(Event::Enter(Box::new(Enter { name, stat, device, extended, untrusted, row, again: false, lent })))
    }

    pub(super) fn is_fresh(&self, stat: &Stat, looked: Timestamp) -> bool {
        stat.is_fresh(looked, self.mounts.of(stat).clock)
    }

    pub(super) fn problem(&mut self, path: &Path, why: &str) {
        self.counts.problems += 1;
        self.monitor.problem(path, why);
    }

    /// What was found of something, after a report of what was not.
    pub(super) fn checked(&mut self, extended: Extended, path: impl FnOnce() -> PathBuf) -> Extended {
        if let Some(missing) = &extended.missing {
            self.problem(&path(), missing);
        }
        extended
    }

    /// Everything between a directory's enter and leave, and the leave.
    fn contents(&mut self, mut opened: Opened, known: Option<Known>, place: Place<'_>) -> Result<(), Stop> {
        let directory = &opened.directory.clone();
        // From here on it is one of the walk's levels.
        opened.ahead = None;
        let mut segments = Segments::new(known.as_ref());
        let mut group = Group { old: Vec::from_iter(segments.next(&self.past)?), ..Group::default() };
        let mut removed = Vec::new();
        let mut empty = true;
        let below = RefCell::new(std::mem::take(&mut opened.below));
        let here = Here { directory, known: known.as_ref(), place, below: &below };
        let FoundTags { tags, disregarded } = std::mem::take(&mut opened.tagged);
        for tag in disregarded {
            let path = directory.child_path(&tag);
            let why = "belongs neither to root nor to the owner of its directory, and leaves nothing out";
            self.monitor.note(&format!("{} {why}", path.display()));
        }
        let ground = self.ground(place);
        let call = self.calls.about(directory.shared_path());
        let names = || names(directory, tags, place.part);
        let mut entries = Entries::new(&mut opened, (ground, place.depth + 1), names);
        drop(call);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stop::Failed(Error::Interrupted));
            }
            let look = match entries.next(&self.ahead) {
                Next::Look(look) => look,
                Next::Failed(e) => {
                    empty = false;
                    self.problem(&directory.path(), &e.to_string());
                    break;
                }
                Next::Lost => return Err(Stop::Failed(Error::Stopped("looking ahead"))),
                Next::End => break,
            };
            empty = false;
            let name = match &look {
                Ok(found) => &found.name,
                Err((name, _)) => name,
            };
            while segments.next_begins_by(name) {
                let next = segments.next(&self.past)?;
                self.close(&here, &mut group, next, &mut removed)?;
            }
            let found = match look {
                Ok(found) => found,
                Err((name, e)) => {
                    self.problem(&directory.child_path(&name), &e.to_string());
                    continue;
                }
            };
            group.entries.push(found);
            if group.entries.len() > SEGMENT_MAX {
                self.flush(&here, &mut group, SEGMENT)?;
            }
        }
        if empty && place.had > 0 {
            let had = place.had;
            let why =
                format!("it is empty, but was not in the last backup (entries: {had}); is a file system not mounted?");
            self.problem(&directory.path(), &why);
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

    /// Ends the group at a border between segments; `next` is the segment behind it, if there is one.
    fn close(
        &mut self,
        here: &Here<'_>,
        group: &mut Group,
        mut next: Option<SegmentRow>,
        removed: &mut Vec<SegmentId>,
    ) -> Result<(), Stop> {
        let in_place = here.known.is_some_and(|known| known.in_place);
        if group.entries.is_empty() {
            removed.extend(group.old.iter().map(|row| row.id));
        } else if in_place
            && !group.begun
            && !self.rules.reread
            && let Some(old) = self.if_unchanged(here, group)
        {
            self.unchanged(here, old, std::mem::take(&mut group.entries))?;
        } else if group.entries.len() < SEGMENT_MIN
            && let Some(next) = next.take_if(|next| group.has_room_for(next))
        {
            group.old.push(next);
            return Ok(());
        } else {
            self.flush(here, group, SEGMENT_MAX)?;
        }
        *group = Group { old: Vec::from_iter(next), ..Group::default() };
        Ok(())
    }

    /// The segment whose entries the group has, if all of them are the same.
    fn if_unchanged(&self, here: &Here<'_>, group: &mut Group) -> Option<OldSegment> {
        let [old] = group.old.as_slice() else { return None };
        let linked = |found: &Found| found.stat.kind != Kind::Directory && found.stat.nlink > 1;
        // The ids of such files are looked up by the number of their device.
        if here.known.is_some_and(|known| known.renumbered) && group.entries.iter().any(linked) {
            return None;
        }
        let now = self.stats_of(here, &group.entries);
        if !now.same_as(&old.stats, self.rules.identity) {
            return None;
        }
        let mut row = group.old.pop()?;
        // They were compared, and take the most room.
        let then = std::mem::take(&mut row.stats);
        Some(OldSegment { row, stats: (now != then).then_some(now) })
    }

    fn stats_of(&self, here: &Here<'_>, entries: &[Found]) -> Stats {
        let mut stats = Stats::default();
        for Found { name, stat, .. } in entries {
            stats.push(name.as_bytes(), stat, self.entry_mount(here, stat));
        }
        stats
    }

    fn entry_mount(&self, here: &Here<'_>, stat: &Stat) -> EntryMount {
        self.mounts.of(stat).entry_mount(stat, here.place.within)
    }

    /// A segment in which nothing changed: only its directories are looked into.
    fn unchanged(&mut self, here: &Here<'_>, old: OldSegment, entries: Vec<Found>) -> Result<(), Stop> {
        self.send(Event::OldSegment(Box::new(old)))?;
        let mut siblings = self.siblings(here, &entries);
        for found in &entries {
            let stat = &found.stat;
            self.count(stat);
            match stat.kind {
                Kind::Directory => self.child(here, found, false, &mut siblings)?,
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
        let entries = std::mem::replace(&mut group.entries, rest);
        let mut siblings = self.siblings(here, &entries);
        for found in entries {
            self.count(&found.stat);
            let before = group.take_before(found.name.as_bytes());
            if found.stat.kind == Kind::Directory {
                self.child(here, &found, true, &mut siblings)?;
                continue;
            }
            let Found { name, stat, looked, .. } = found;
            let mut now = Stats::default();
            now.push(name.as_bytes(), &stat, self.entry_mount(here, &stat));
            let same =
                !self.rules.reread && before.as_ref().is_some_and(|(_, then, _)| now.is(then, self.rules.identity));
            match before {
                Some((entry, _, node)) if same => self.reuse(entry, stat, &node)?,
                before => self.store(here, name, (stat, looked), before.is_some())?,
            }
        }
        self.send(Event::EndSegment)
    }

    /// Reads the entries of a segment, to be compared one by one.
    pub(super) fn remember(&self, row: &SegmentRow, before: &mut VecDeque<Before>) -> Result<(), Stop> {
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
        let blocks = blocks_of(&mut entry, node);
        let lent = self.lend(&entry.xattrs)?;
        self.send(Event::Reused(Box::new(Reused { entry, stat, blocks, lent })))
    }

    /// An entry that is new or looks different.
    pub(super) fn store(
        &mut self,
        here: &Here<'_>,
        name: OsString,
        (stat, looked): (Stat, Timestamp),
        existed: bool,
    ) -> Result<(), Stop> {
        let path = || here.directory.child_path(&name);
        if stat.kind == Kind::File {
            match existed {
                true => self.counts.changed += 1,
                false => self.counts.new += 1,
            }
        }
        if stat.kind == Kind::File {
            return self.file(here, name, &stat, existed);
        }
        let calls = self.calls.clone();
        let call = calls.about_names(here.directory.shared_path(), [name.as_os_str()]);
        let content = match stat.kind {
            Kind::Symlink => match here.directory.read_link(&name) {
                Ok(target) => Content::Target(target),
                Err(e) => {
                    self.problem(&path(), &e.to_string());
                    return Ok(());
                }
            },
            Kind::CharDevice | Kind::BlockDevice => {
                Content::Device(rustix::fs::major(stat.rdev), rustix::fs::minor(stat.rdev))
            }
            Kind::File | Kind::Fifo | Kind::Socket | Kind::Directory => Content::Empty,
        };
        let extended = self.checked(here.directory.extended_of_child(&name), path);
        drop(call);
        let untrusted = self.is_fresh(&stat, looked) || extended.missing.is_some();
        let entry = entry_of(name.into_vec(), &stat, extended, content);
        let lent = self.lend(&entry.xattrs)?;
        self.send(Event::Plain(Box::new(Plain { entry, stat, untrusted, existed, lent })))
    }

    fn file(&mut self, here: &Here<'_>, name: OsString, stat: &Stat, existed: bool) -> Result<(), Stop> {
        self.files_sent += 1;
        let number = self.files_sent;
        let Attempt { tries, patience } = self.attempt;
        let job = |loan| JobFile { name: name.as_bytes().to_vec(), number, loan, patience };
        if stat.size >= self.rules.large {
            self.send_files()?;
            let file = NewFile { name: name.as_bytes().to_vec(), owner: stat.uid, existed, size: stat.size, tries };
            return self.send_job(here.directory.clone(), vec![file], vec![job(None)], &self.large);
        }
        // What is lent to files that were not sent yet is far less than there is, so it is no use to wait for those.
        let loan = match &self.budget {
            Some(budget) => Some(budget.take(stat.size as usize + FILE_OVERHEAD).ok_or(Stop::Gone)?),
            None => None,
        };
        let job = job(loan);
        let full = {
            let mut held = self.held.borrow_mut();
            let held = held.get_or_insert_with(|| Held::of(here.directory.clone()));
            held.bytes += stat.size;
            held.files.push(NewFile { name: name.into_vec(), owner: stat.uid, existed, size: stat.size, tries });
            held.jobs.push(job);
            held.jobs.len() >= JOB_FILES || held.bytes >= JOB_BYTES
        };
        if full { self.send_files() } else { Ok(()) }
    }

    /// Sends the small files that were held back to be read together.
    fn send_files(&self) -> Result<(), Stop> {
        match self.held.take() {
            Some(Held { directory, files, jobs, .. }) => self.send_job(directory, files, jobs, &self.small),
            None => Ok(()),
        }
    }

    fn send_job(
        &self,
        directory: Arc<Directory>,
        files: Vec<NewFile>,
        jobs: Vec<JobFile>,
        lane: &Sender<Job>,
    ) -> Result<(), Stop> {
        let (sender, content) = bounded(AHEAD);
        // The event first: the engine must know of the files before a full lane can hold up the walk.
        self.batch.borrow_mut().push(Event::Files(Box::new(NewFiles { files, content })));
        self.send_batch()?;
        lane.send(Job { directory, files: jobs, content: sender }).map_err(|_| Stop::Gone)
    }

    /// A directory below the one at hand: entered, walked and left. `anew`: its entry is written anew.
    pub(super) fn child(
        &mut self,
        here: &Here<'_>,
        found: &Found,
        anew: bool,
        siblings: &mut Siblings,
    ) -> Result<(), Stop> {
        let Found { name, stat, looked, mounted } = found;
        let ahead = siblings.next(here, self);
        let path = || here.directory.child_path(name);
        let known = self.known(Parent::of(here.known), name.as_bytes(), stat)?;
        let opened = match self.within_borders(here, found) {
            Some(mut place) => {
                if place.part.is_given()
                    && let Some(above) = here.known.filter(|known| known.in_place)
                {
                    place.had = self.had(above.row.id, name.as_bytes(), stat, &path())?;
                }
                Some((place, self.opened(here, name, ahead)?))
            }
            None => None,
        };
        let calls = self.calls.clone();
        let call = anew.then(|| calls.about_names(here.directory.shared_path(), [name.as_os_str()]));
        let extended = match (anew, &opened) {
            (false, _) => Extended::default(),
            (true, Some((_, Ok(opened)))) => self.checked(opened.directory.extended(), path),
            (true, _) if mounted.is_some() => Extended::default(),
            (true, _) => self.checked(here.directory.extended_of_child(name), path),
        };
        drop(call);
        self.enter(name.as_bytes(), stat, (extended, *looked), known.as_ref())?;
        match opened {
            Some((place, Ok(opened))) => return self.contents(opened, known, place),
            Some((_, Err(e))) => self.problem(&path(), &e.to_string()),
            None => {}
        }
        self.send(Event::Leave { removed: self.all_segments(known.as_ref())? })
    }

    /// A directory below the one at hand, open.
    fn opened(
        &self,
        here: &Here<'_>,
        name: &OsStr,
        ahead: Option<Later<Option<Opened>>>,
    ) -> Result<Result<Opened, source::Error>, Stop> {
        let levels = self.directories.levels;
        if here.place.depth + 1 >= levels {
            let path = here.directory.shared_path().child(name);
            return Ok(Err(source::Error::TooDeep { path, levels }));
        }
        if let Some(ahead) = ahead {
            let opened = ahead.get().ok_or(Stop::Failed(Error::Stopped("looking ahead")))?;
            if let Some(opened) = opened {
                return Ok(Ok(opened));
            }
        }
        let _call = self.calls.about_names(here.directory.shared_path(), [name]);
        Ok(here.directory.open_child(name).map(|directory| Opened::only(directory, &self.rules)))
    }

    fn ground(&self, place: Place<'_>) -> Ground {
        let (rules, calls, directories) = (self.rules.clone(), self.calls.clone(), self.directories.clone());
        Ground { rules, calls, directories, mounts: place.mounts.cloned(), borders: place.borders }
    }

    /// What the catalog has of the directory `name` of `parent`, for a walk that was not there yet. A row is entered
    /// once in a run: after that it says what the run found elsewhere.
    pub(super) fn known(&mut self, parent: Parent, name: &[u8], stat: &Stat) -> Result<Option<Known>, Stop> {
        let Some(mut known) = self.look_up(parent, name, stat)? else { return Ok(None) };
        if self.entered.contains(known.row.id.0 as u64) {
            // The same directory a second time; another one could only claim to be the same.
            let same = (known.row.device, known.row.inode) == (self.number_of(stat), stat.ino);
            if !same {
                return Ok(None);
            }
            known.in_place = false;
        }
        Ok(Some(known))
    }

    /// What the catalog has of the directory `name` of `parent`: the row of that name if it can be the same directory,
    /// or else of the one that had its inode number. That was moved here, or is seen twice.
    pub(super) fn look_up(&mut self, parent: Parent, name: &[u8], stat: &Stat) -> Result<Option<Known>, Stop> {
        let there = self.past.directory(parent.id, name)?;
        let device = self.settle_device(parent, there.as_ref(), stat);
        if let Some(row) = there
            && (row.inode == stat.ino || !self.rules.identity.inode)
            && (row.device == device || !is_foreign(row.device) && !is_foreign(device))
        {
            let renumbered = row.device != device;
            return Ok(Some(Known { row, in_place: parent.in_place, renumbered }));
        }
        if !self.rules.identity.inode {
            return Ok(None);
        }
        let Some(mut row) = self.past.directory_by_inode((device, stat.ino))? else { return Ok(None) };
        let in_place = self.was_moved(&row)?;
        // No segment of the directory that it is in now has its node.
        row.linked &= !in_place;
        Ok(Some(Known { row, in_place, renumbered: false }))
    }

    /// What the catalog knows the device of a directory by. It is known again by `there`, the row of the directory
    /// that stood in its place, unless that was part of the file system around it: then something is mounted on it now.
    fn settle_device(&mut self, parent: Parent, there: Option<&DirectoryRow>, stat: &Stat) -> u64 {
        if let Some(number) = self.mounts.of(stat).foreign(stat.dev) {
            return number;
        }
        let then = there.filter(|row| {
            parent.in_place && row.inode == stat.ino && !is_foreign(row.device) && parent.device != Some(row.device)
        });
        self.devices.settle(stat.dev, then.map(|row| row.device))
    }

    /// What the catalog knows the device of a file or directory by, so far.
    pub(super) fn number_of(&self, stat: &Stat) -> u64 {
        let foreign = self.mounts.of(stat).foreign(stat.dev);
        foreign.or_else(|| self.devices.known_as(stat.dev)).unwrap_or(stat.dev)
    }

    /// How many entries the root, or a path that was given, had below it in the last backup. It may be another directory
    /// by now: if a file system that was mounted there is gone, that is a problem.
    fn had(&mut self, above: DirectoryId, name: &[u8], stat: &Stat, path: &Path) -> Result<u64, Stop> {
        let row = self.past.directory(above, name)?;
        let Some((row, (below, _))) = row.and_then(|row| row.subtree.map(|subtree| (row, subtree))) else {
            return Ok(0);
        };
        // What came through a pipe was on no device.
        let is_other = row.inode != stat.ino && row.device != self.number_of(stat) && row.device != 0;
        let above = path.parent().and_then(|above| above.symlink_metadata().ok());
        if below > 0 && is_other && above.is_some_and(|above| above.dev() == stat.dev) {
            let why = "another file system was here in the last backup; is it not mounted?";
            self.problem(path, why);
            return Ok(0);
        }
        Ok(below)
    }

    /// The directories among `entries`.
    pub(super) fn siblings(&self, here: &Here<'_>, entries: &[Found]) -> Siblings {
        let names = entries.iter().filter(|found| found.stat.kind == Kind::Directory).map(
            |Found { name, stat, mounted, .. }| {
                let part = here.place.part.child(name);
                let inside = mounted.is_none() && self.rules.is_inside(stat, here.place.borders.device);
                (name.clone(), inside && part.whole && !part.leads_further())
            },
        );
        Siblings { names: names.collect(), sent: VecDeque::new() }
    }

    /// Whether a directory that was found by its inode is gone from where it was. Otherwise it is seen twice: a bind
    /// mount, or another source.
    fn was_moved(&self, row: &DirectoryRow) -> Result<bool, Stop> {
        let Some((above, root)) = &self.root else { return Ok(false) };
        let Some(place) = self.past.place(row.id)? else { return Ok(true) };
        if place.above != *above {
            return Ok(false);
        }
        let path: PathBuf = place.names.iter().map(|name| OsStr::from_bytes(name)).collect();
        match root.stat_child(path.as_os_str()) {
            Ok(there) => Ok((self.number_of(&there), there.ino) != (row.device, row.inode)),
            Err(e) => Ok(e.is_vanished()),
        }
    }

    /// The segments of a directory that is not looked into now, so that nothing stays of what it held.
    fn all_segments(&self, known: Option<&Known>) -> Result<Vec<SegmentId>, Stop> {
        match known.filter(|known| known.in_place) {
            Some(known) => Ok(self.past.segment_ids(known.row.id)?),
            None => Ok(Vec::new()),
        }
    }

    /// The place of a directory that was found in the one at hand. None: it stays empty in the snapshot, because it is a
    /// mount that is not wanted, our own mount, or our own files. A mount that was given as a path, or leads to one, is
    /// entered for that path.
    pub(super) fn within_borders<'a>(&self, here: &Here<'a>, found: &Found) -> Option<Place<'a>> {
        let Found { name, stat, .. } = found;
        let mut place = Place { within: stat.dev, ..here.place.child(name) };
        if place.part.is_given() {
            let mounted = self.rules.mounts.find(&here.directory.child_path(name)).0;
            place.borders = Borders { device: stat.dev, file_system: mounted.map(|mounted| mounted.device) };
        }
        let ours = match found.mounted {
            Some(mounted) => mounted.is_brackfs,
            None => self.mounts.of(stat).is_brackfs,
        };
        let forbidden = self.rules.forbidden.contains(&(stat.dev, stat.ino));
        let elsewhere = place.part.whole && stat.dev != place.borders.device;
        let foreign = elsewhere && (ours || self.rules.one_file_system && !here.shares_mount_with(name));
        if elsewhere && !foreign && self.rules.one_file_system {
            place.borders.device = stat.dev;
        }
        if found.mounted.is_none() && !forbidden && !foreign {
            return Some(place);
        }
        if found.mounted.is_none() && !forbidden && place.part.leads_further() {
            return Some(Place { part: place.part.without_the_rest(), ..place });
        }
        if forbidden || ours {
            let path = here.directory.child_path(name);
            self.monitor.note(&format!("{} belongs to brackfs itself and is left empty", path.display()));
        }
        None
    }

    pub(super) fn count(&mut self, stat: &Stat) {
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

/// The blocks that an entry of a segment refers to; its references count in them from then on.
pub(super) fn blocks_of(entry: &mut Entry, node: &SegmentNode) -> Vec<(BlockId, BlockLocation)> {
    let mut blocks = Vec::new();
    for chunk in entry.chunk_refs_mut() {
        let at = chunk.block as usize;
        chunk.block = blocks.len() as u32;
        blocks.extend(node.blocks.get(at).copied().zip(node.node.blocks.get(at).copied()));
    }
    blocks
}

/// A parent that no directory has: finds by inode only.
const NOWHERE: DirectoryId = DirectoryId(0);

/// Where the walk is.
pub(super) struct Here<'a> {
    pub(super) directory: &'a Arc<Directory>,
    pub(super) known: Option<&'a Known>,
    pub(super) place: Place<'a>,
    /// Directories in it that were looked into with it.
    pub(super) below: &'a RefCell<Below>,
}

/// Where a directory is, and what is wanted of it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) part: Subset<'a>,
    /// Where there are mounts in it or below.
    pub(super) mounts: Option<&'a Arc<MountPlace>>,
    pub(super) borders: Borders,
    /// The device of the file system that it is on, as a stat shows it.
    pub(super) within: u64,
    pub(super) depth: usize,
    /// Entries below it in the last backup, if it is the root or a path that was given.
    pub(super) had: u64,
}

impl<'a> Place<'a> {
    /// The place of a directory in this one, on the same file system.
    pub(super) fn child(&self, name: &OsStr) -> Place<'a> {
        Place {
            part: self.part.child(name),
            mounts: self.mounts.and_then(|place| place.child(name)),
            borders: self.borders,
            within: self.within,
            depth: self.depth + 1,
            had: 0,
        }
    }
}

/// The names in a directory that are looked at.
fn names<'p>(directory: &Directory, mut tagged: Vec<OsString>, part: Subset<'p>) -> Result<Names<'p>, source::Error> {
    let unlisted = move |name: OsString| {
        let given = part.has(&name);
        Ok(Name::unlisted(name).if_given(given))
    };
    match (tagged.is_empty(), part.whole) {
        (true, true) if part.leads_further() => Ok(Box::new(directory.list()?.map(move |listed| {
            listed.map(|listed| {
                let given = part.has(&listed.name);
                Name::listed(listed).if_given(given)
            })
        }))),
        (true, true) => Ok(Box::new(directory.list()?.map(|listed| listed.map(Name::listed)))),
        (true, false) => Ok(Box::new(part.names().map(unlisted))),
        (false, _) => {
            tagged.retain(|tag| part.whole || part.has(tag));
            Ok(Box::new(tagged.into_iter().map(unlisted)))
        }
    }
}

impl Here<'_> {
    /// Whether a directory in the one at hand that has another device number still belongs to the same mount: a subvolume
    /// that is not mounted by itself.
    fn shares_mount_with(&self, name: &OsStr) -> bool {
        let is_mount_point = || self.place.mounts.and_then(|place| place.child(name)?.mounted()).is_some();
        self.directory.shares_mount_with(name).unwrap_or_else(|| !is_mount_point())
    }

    /// The directory of this name, if it was looked into already. They come in order, and some are not asked for.
    fn take_below(&self, name: &OsStr) -> Option<Opened> {
        let mut below = self.below.borrow_mut();
        while below.front().is_some_and(|(there, _)| there.as_os_str() < name) {
            below.pop_front();
        }
        match below.front() {
            Some((there, _)) if there == name => below.pop_front().map(|(_, opened)| opened),
            _ => None,
        }
    }
}

/// Directories beside each other, some of which are looked into before the walk gets there.
pub(super) struct Siblings {
    /// Names, and whether they may be looked into ahead.
    names: VecDeque<(OsString, bool)>,
    sent: VecDeque<Option<Later<Option<Opened>>>>,
}

impl Siblings {
    /// The next directory, if it is looked into ahead.
    fn next(&mut self, here: &Here<'_>, walk: &Walk<'_>) -> Option<Later<Option<Opened>>> {
        // Several at once, so that helpers need not sleep in between.
        let refill = self.sent.len() <= SIBLINGS / 2;
        while refill
            && self.sent.len() < SIBLINGS
            && let Some((name, may)) = self.names.pop_front()
        {
            let place = here.place;
            self.sent.push_back(may.then(|| match here.take_below(&name) {
                Some(opened) => Later::now(Some(opened)),
                None => {
                    let (above, ground) = (here.directory.clone(), walk.ground(place.child(&name)));
                    let look = move || Opened::with_below(&above, &name, &ground);
                    walk.ahead.send(place.depth + 1, look)
                }
            }));
        }
        self.sent.pop_front().flatten()
    }
}

/// The segments of a directory as it was, a few at a time.
pub(super) struct Segments {
    directory: Option<DirectoryId>,
    ready: VecDeque<SegmentRow>,
    /// There are no more than those that are ready.
    over: bool,
}

impl Segments {
    pub(super) fn new(known: Option<&Known>) -> Self {
        Segments { directory: known.map(|known| known.row.id), ready: VecDeque::new(), over: false }
    }

    /// Whether `name` is in the next segment, or behind it.
    fn next_begins_by(&self, name: &OsStr) -> bool {
        self.ready.front().is_some_and(|next| next.first.as_slice() <= name.as_bytes())
    }

    pub(super) fn next(&mut self, past: &Past) -> Result<Option<SegmentRow>, Stop> {
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
    /// Whether a segment can be taken in: all entries of those in the group are held at the same time.
    fn has_room_for(&self, next: &SegmentRow) -> bool {
        let lengths = self.old.iter().map(|row| u64::from(row.node.length));
        lengths.sum::<u64>() + u64::from(next.node.length) <= GROUP_BYTES
    }

    /// The entry of this name in the segments before; those of smaller names are gone.
    fn take_before(&mut self, name: &[u8]) -> Option<Before> {
        while self.entries_before.front().is_some_and(|(entry, ..)| entry.name.as_slice() < name) {
            self.entries_before.pop_front();
        }
        match self.entries_before.front() {
            Some((entry, ..)) if entry.name == name => self.entries_before.pop_front(),
            _ => None,
        }
    }
}
