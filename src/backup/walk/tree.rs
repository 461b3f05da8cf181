//! The walk through a tree: lists directories, compares them with the catalog, and sends jobs to the readers.
//!
//! Memory holds one group of entries for each open directory, from the root down to where the walk is. Groups are bounded.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::event::{EnterDirectory, Event, NewFile, OldSegment, PlainEntry, ReusedEntry};
use super::listing::{Entries, Next, OpenedDirectory, StatEntry, StatResult, WalkContext, memory_of};
use super::outbox::Outbox;
use super::path_set::Subset;
use super::place::{DirectoryMount, Here, Passage, Position, passage, wanted_names};
use super::readahead::Readahead;
use super::recognize::{KnownDirectory, KnownParent, LastTime, Recognizer};
use super::rules::Rules;
use super::segments::{Comparison, EntryWithBlocks, Group, OldEntry, read_segment};
use super::siblings::{HelperLost, Siblings, SiblingsAhead, ground_of};
use super::stop::WalkStop;
use crate::backup::calls::Calls;
use crate::backup::entry::entry_of;
use crate::backup::error::Error;
use crate::backup::limits::{Directories, WALK_HELD};
use crate::backup::read::verdict::Patience;
use crate::catalog::stats::Stats;
use crate::catalog::{Past, SegmentId, SegmentRow, SourceRow};
use crate::format::{Content, Kind};
use crate::monitor::Monitor;
use crate::source::{self, Directory, Extended, FoundTags, Stat, now};

/// Most entries of a segment. It is above [`SEGMENT`], so that a segment that has grown a little is still compared as a
/// whole.
const SEGMENT_MAX: usize = 1500;
/// Entries of the part that is split off a segment that has grown above that.
const SEGMENT: usize = 1000;
/// A segment that has shrunk below this many entries is joined with the next one.
const SEGMENT_MIN: usize = 300;

/// The counts of a walk.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::backup) struct WalkCounts {
    pub(in crate::backup) files: u64,
    pub(in crate::backup) directories: u64,
    pub(in crate::backup) others: u64,
    pub(in crate::backup) bytes: u64,
    pub(in crate::backup) unmodified: u64,
    pub(in crate::backup) new: u64,
    pub(in crate::backup) changed: u64,
    pub(in crate::backup) problems: u64,
    /// Given paths that are empty now, or whose file system is gone. They are problems, too.
    pub(in crate::backup) lost_paths: u64,
}

impl WalkCounts {
    /// Counts an entry.
    pub(super) fn add(&mut self, stat: &Stat) {
        match stat.kind {
            Kind::File => {
                self.files += 1;
                self.bytes += stat.size;
            }
            Kind::Directory => self.directories += 1,
            _ => self.others += 1,
        }
    }
}

/// An attempt at reading a file.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::backup) struct ReadAttempt {
    /// How often the file was found changing before.
    pub(in crate::backup) tries: u32,
    pub(in crate::backup) patience: Patience,
}

/// The parts of a walk.
pub(in crate::backup) struct WalkSetup<'a> {
    pub(in crate::backup) past: Past,
    /// The source, if the catalog has it.
    pub(in crate::backup) source: Option<SourceRow>,
    pub(in crate::backup) rules: Arc<Rules>,
    pub(in crate::backup) calls: Arc<Calls>,
    pub(in crate::backup) directories: Arc<Directories>,
    pub(in crate::backup) outbox: Outbox,
    pub(in crate::backup) ahead: Readahead,
    /// The first attempt at each file.
    pub(in crate::backup) attempt: ReadAttempt,
    pub(in crate::backup) monitor: &'a dyn Monitor,
    pub(in crate::backup) stop: &'a AtomicBool,
}

/// Walks a tree and sends events, until it is done or the follower is gone.
pub(in crate::backup) struct SourceWalk<'a> {
    pub(super) context: WalkContext,
    pub(super) recognizer: Recognizer,
    pub(super) outbox: Outbox,
    pub(super) counts: WalkCounts,
    pub(super) attempt: ReadAttempt,
    ahead: SiblingsAhead,
    /// Bytes of memory of entries and names of the directories that the walk is in.
    held: usize,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
}

/// Most entries in a group while the directories that the walk is in hold much.
const CROWDED_GROUP: usize = 64;
/// Bytes of sorted names that a directory keeps in memory then.
const CROWDED_NAMES: usize = 16 << 10;

/// The segment that a directory's entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InSegment {
    /// An unchanged segment: the entry is not written again.
    Old,
    New,
}

impl<'a> SourceWalk<'a> {
    pub(in crate::backup) fn new(setup: WalkSetup<'a>) -> Self {
        let WalkSetup { past, source, rules, calls, directories, outbox, ahead, attempt, monitor, stop } = setup;
        SourceWalk {
            recognizer: Recognizer::new(past, &rules, source),
            context: WalkContext { rules, calls, directories },
            outbox,
            counts: WalkCounts::default(),
            attempt,
            ahead: SiblingsAhead::new(ahead),
            held: 0,
            monitor,
            stop,
        }
    }

    pub(in crate::backup) fn counts(&self) -> WalkCounts {
        self.counts
    }

    /// Sends everything that is held back.
    pub(in crate::backup) fn flush(&mut self) -> Result<(), WalkStop> {
        self.outbox.flush()
    }

    /// Walks the tree at `path`.
    pub(in crate::backup) fn root(&mut self, path: &Path, part: Subset<'_>) -> Result<(), WalkStop> {
        let calls = self.context.calls.clone();
        let call = calls.about(path.into());
        let opened = OpenedDirectory::open(Directory::open_mapped(path, &self.context.rules.map)?, &self.context.rules);
        let directory = opened.directory.clone();
        let looked = now();
        let stat = directory.stat()?;
        self.counts.directories += 1;
        self.recognizer.set_root(directory.clone());
        let parent = KnownParent::above(self.recognizer.source());
        let known = self.recognizer.find_new(parent, b"", &stat)?;
        let extended = self.checked(directory.extended(), || directory.path());
        drop(call);
        let root = StatEntry { name: OsString::new(), stat, looked, mounted: None };
        self.enter(&root, extended, known.as_ref())?;
        let (mounted, mounts) = self.context.rules.mounts.find(path);
        let file_system = mounted.map(|mounted| mounted.device);
        let entries_before = self.entries_before(parent, b"", &root.stat, path)?;
        let place = Position { entries_before, ..Position::root(part, mounts.as_ref(), file_system, &root.stat) };
        self.contents(opened, known, place)
    }

    /// Fails if the run is to stop.
    pub(super) fn check_stop(&self) -> Result<(), WalkStop> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted.into()) } else { Ok(()) }
    }

    /// Whether the directories that the walk is in hold so much that it takes less from each further one.
    fn is_crowded(&self) -> bool {
        self.held > WALK_HELD
    }

    /// Most entries in a group. All of them are held while the walk is below one of them.
    fn most_in_group(&self) -> usize {
        match self.held / WALK_HELD {
            0 => SEGMENT_MAX,
            1 => CROWDED_GROUP,
            _ => CROWDED_GROUP / 8,
        }
    }

    pub(super) fn problem(&mut self, path: &Path, why: &str) {
        self.counts.problems += 1;
        self.monitor.problem(path, why);
    }

    /// Reports the metadata that could not be read.
    fn checked(&mut self, extended: Extended, path: impl FnOnce() -> PathBuf) -> Extended {
        if let Some(missing) = &extended.missing {
            self.problem(&path(), missing);
        }
        extended
    }

    /// Enters a directory that the walk has not been to.
    fn enter(&mut self, entry: &StatEntry, extended: Extended, known: Option<&KnownDirectory>) -> Result<(), WalkStop> {
        let row = known.filter(|known| known.in_place).map(|known| known.row.clone());
        row.iter().for_each(|row| self.recognizer.note_entered(row));
        let StatEntry { name, stat, looked, .. } = entry;
        let enter = EnterDirectory {
            name: name.as_bytes().to_vec(),
            stat: stat.clone(),
            device: self.recognizer.device_of(stat),
            untrusted: self.recognizer.is_fresh(stat, *looked) || extended.missing.is_some(),
            lent: self.outbox.lend(&extended.xattrs)?,
            extended,
            row,
            again: false,
        };
        self.outbox.send(Event::Enter(Box::new(enter)))
    }

    /// Walks through a directory that was entered, and leaves it.
    fn contents(
        &mut self,
        mut opened: OpenedDirectory,
        known: Option<KnownDirectory>,
        place: Position<'_>,
    ) -> Result<(), WalkStop> {
        let directory = &opened.directory.clone();
        if opened.is_stale() {
            opened.renew(&self.context.rules);
        } else if self.is_crowded() {
            opened.forget();
        }
        // From here on it counts as one of the walk's levels.
        opened.ahead = None;
        let below = RefCell::new(std::mem::take(&mut opened.below));
        let here = Here { directory, known: known.as_ref(), place, below: &below };
        let FoundTags { tags, disregarded } = std::mem::take(&mut opened.tagged);
        self.report_disregarded(directory, disregarded);
        let ground = ground_of(place, &self.context);
        let call = self.context.calls.about(directory.shared_path());
        let kept = if self.is_crowded() { CROWDED_NAMES } else { usize::MAX };
        let names = || wanted_names(directory, tags, place.part, kept);
        let mut entries = Entries::new(&mut opened, ground, place.depth + 1, names);
        drop(call);
        let held = entries.memory();
        self.held += held;

        let mut comparison = Comparison::begin(known.as_ref(), &self.recognizer.past, self.is_crowded())?;
        let is_empty = self.compare_entries(&here, &mut entries, &mut comparison)?;
        let left_out = entries.left_out();
        drop(entries);
        self.held -= held;
        if is_empty && place.entries_before > 0 {
            let had = place.entries_before;
            let why = if left_out {
                format!(
                    "everything in it is excluded, but was not in the last backup (entries: {had}); check the patterns"
                )
            } else {
                format!("it is empty, but was not in the last backup (entries: {had}); is a file system not mounted?")
            };
            self.problem(&directory.path(), &why);
            self.counts.lost_paths += 1;
        }
        let removed = self.finish_comparison(&here, comparison)?;
        self.outbox.send(Event::Leave { removed })
    }

    /// Compares the entries of a directory with its segments, and sends groups of them. Returns whether there are none.
    fn compare_entries(
        &mut self,
        here: &Here<'_>,
        entries: &mut Entries<'_>,
        comparison: &mut Comparison,
    ) -> Result<bool, WalkStop> {
        let mut is_empty = true;
        loop {
            self.check_stop()?;
            let entry = match entries.next(&self.ahead.queue, self.is_crowded()) {
                Next::Entry(entry) => entry,
                Next::Failed(e) => {
                    self.problem(&here.directory.path(), &e.to_string());
                    return Ok(false);
                }
                Next::Lost => return Err(Error::Stopped("looking ahead").into()),
                Next::End => return Ok(is_empty),
            };
            is_empty = false;
            while comparison.segments.next_begins_by(name_of(&entry)) {
                let next = comparison.segments.next(&self.recognizer.past)?;
                self.close_group(here, comparison, next)?;
            }
            match entry {
                Ok(entry) => comparison.group.entries.push(entry),
                Err((name, e)) => self.problem(&here.directory.child_path(&name), &e.to_string()),
            }
            let most = self.most_in_group();
            if comparison.group.entries.len() > most {
                self.send_group(here, &mut comparison.group, SEGMENT.min(most))?;
            }
        }
    }

    /// Sends the last groups of a directory. Returns the segments none of whose names exist any more.
    fn finish_comparison(&mut self, here: &Here<'_>, mut comparison: Comparison) -> Result<Vec<SegmentId>, WalkStop> {
        loop {
            let next = comparison.segments.next(&self.recognizer.past)?;
            let is_last = next.is_none();
            self.close_group(here, &mut comparison, next)?;
            if is_last {
                break;
            }
        }
        Ok(if here.is_in_place() { comparison.removed } else { Vec::new() })
    }

    /// Reports tags that exclude nothing.
    fn report_disregarded(&self, directory: &Directory, tags: Vec<OsString>) {
        for tag in tags {
            let path = directory.child_path(&tag);
            let why = "belongs neither to root nor to the owner of its directory, and leaves nothing out";
            self.monitor.note(&format!("{} {why}", path.display()));
        }
    }

    /// Ends the group at a border between segments. `next` is the segment after the border, if there is one.
    fn close_group(
        &mut self,
        here: &Here<'_>,
        comparison: &mut Comparison,
        mut next: Option<SegmentRow>,
    ) -> Result<(), WalkStop> {
        let Comparison { group, removed, .. } = comparison;
        if group.entries.is_empty() {
            removed.extend(group.old.iter().map(|row| row.id));
        } else if let Some(old) = self.take_if_unchanged(here, group) {
            self.send_unchanged(here, old, std::mem::take(&mut group.entries))?;
        } else if group.entries.len() < SEGMENT_MIN
            && let Some(next) = next.take_if(|next| group.has_room_for(next))
        {
            group.old.push(next);
            return Ok(());
        } else {
            self.send_group(here, group, SEGMENT_MAX)?;
        }
        *group = Group::of(next);
        Ok(())
    }

    /// Takes the segment of the group if all its entries are unchanged.
    fn take_if_unchanged(&self, here: &Here<'_>, group: &mut Group) -> Option<OldSegment> {
        let rules = &self.context.rules;
        if !here.is_in_place() || group.is_begun || rules.reread {
            return None;
        }
        let [old] = group.old.as_slice() else { return None };
        let is_linked = |entry: &StatEntry| entry.stat.kind != Kind::Directory && entry.stat.nlink > 1;
        // Hard link ids are looked up by the number of the device.
        if here.known.is_some_and(|known| known.renumbered) && group.entries.iter().any(is_linked) {
            return None;
        }
        let now = self.stats_of(here, &group.entries, old.stats.bytes());
        if !now.same_as(&old.stats, rules.identity) {
            return None;
        }
        let mut row = group.old.pop()?;
        // They were compared, and take most of the row's memory.
        let then = std::mem::take(&mut row.stats);
        Some(OldSegment { row, stats: (now != then).then_some(now) })
    }

    /// The stats of entries, which take about `bytes` if few have changed.
    fn stats_of(&self, here: &Here<'_>, entries: &[StatEntry], bytes: usize) -> Stats {
        let mut stats = Stats::with_capacity(bytes);
        for StatEntry { name, stat, .. } in entries {
            stats.push(name.as_bytes(), stat, self.recognizer.entry_mount(stat, here.place.device));
        }
        stats
    }

    /// Sends an unchanged segment. Only its directories are walked.
    fn send_unchanged(&mut self, here: &Here<'_>, old: OldSegment, entries: Vec<StatEntry>) -> Result<(), WalkStop> {
        self.outbox.send(Event::OldSegment(Box::new(old)))?;
        let mut siblings = Siblings::of(here, &entries, &self.context);
        let held = memory_of(&entries);
        self.held += held;
        for entry in &entries {
            self.counts.add(&entry.stat);
            match entry.stat.kind {
                Kind::Directory => self.child(here, entry, InSegment::Old, &mut siblings)?,
                Kind::File => {
                    self.counts.unmodified += 1;
                    self.monitor.progress().file();
                    self.monitor.progress().bytes(entry.stat.size);
                }
                _ => {}
            }
        }
        self.held -= held;
        self.outbox.send(Event::EndSegment)
    }

    /// Sends the group's first entries, at most `count`, as a new segment.
    fn send_group(&mut self, here: &Here<'_>, group: &mut Group, count: usize) -> Result<(), WalkStop> {
        let mut replaces = Vec::new();
        for row in std::mem::take(&mut group.old) {
            read_segment(&self.recognizer.past, &row, &mut group.old_entries)?;
            replaces.push(row.id);
        }
        group.is_begun = true;
        if !here.is_in_place() {
            replaces.clear();
        }
        self.outbox.send(Event::NewSegment { replaces })?;
        let rest = group.entries.split_off(count.min(group.entries.len()));
        let entries = std::mem::replace(&mut group.entries, rest);
        let mut siblings = Siblings::of(here, &entries, &self.context);
        let held = memory_of(&entries);
        self.held += held;
        for entry in entries {
            self.counts.add(&entry.stat);
            let old = group.take_old(entry.name.as_bytes());
            if entry.stat.kind == Kind::Directory {
                self.child(here, &entry, InSegment::New, &mut siblings)?;
                continue;
            }
            match old {
                Some(old) if self.is_same(here, &entry, &old) => self.reuse(old, entry.stat)?,
                old => self.store(here, entry, old.is_some())?,
            }
        }
        self.held -= held;
        self.outbox.send(Event::EndSegment)
    }

    /// Whether an entry is unchanged.
    fn is_same(&self, here: &Here<'_>, entry: &StatEntry, old: &OldEntry) -> bool {
        let rules = &self.context.rules;
        if rules.reread {
            return false;
        }
        let now = self.stats_of(here, std::slice::from_ref(entry), old.identity.len());
        now.is(&old.identity, rules.identity)
    }

    /// Sends an unchanged entry.
    fn reuse(&mut self, old: OldEntry, stat: Stat) -> Result<(), WalkStop> {
        if stat.kind == Kind::File {
            self.counts.unmodified += 1;
        }
        let EntryWithBlocks { entry, blocks } = old.detach();
        let lent = self.outbox.lend(&entry.xattrs)?;
        self.outbox.send(Event::Reused(Box::new(ReusedEntry { entry, stat, blocks, lent })))
    }

    /// Sends an entry that is new or looks different, and is not a directory.
    pub(super) fn store(&mut self, here: &Here<'_>, entry: StatEntry, existed: bool) -> Result<(), WalkStop> {
        let StatEntry { name, stat, looked, .. } = entry;
        if stat.kind == Kind::File {
            return self.store_file(here, name, &stat, existed);
        }
        let path = || here.directory.child_path(&name);
        let calls = self.context.calls.clone();
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
        let untrusted = self.recognizer.is_fresh(&stat, looked) || extended.missing.is_some();
        let entry = entry_of(name.into_vec(), &stat, extended, content);
        let lent = self.outbox.lend(&entry.xattrs)?;
        self.outbox.send(Event::Plain(Box::new(PlainEntry { entry, stat, untrusted, existed, lent })))
    }

    fn store_file(&mut self, here: &Here<'_>, name: OsString, stat: &Stat, existed: bool) -> Result<(), WalkStop> {
        if existed {
            self.counts.changed += 1;
        } else {
            self.counts.new += 1;
        }
        let ReadAttempt { tries, patience } = self.attempt;
        let file = NewFile { name: name.into_vec(), owner: stat.uid, existed, size: stat.size, tries };
        self.outbox.send_file(here.directory, file, stat.clone(), patience, self.context.rules.large)
    }

    /// Enters a directory in `here`, walks through it, and leaves it.
    pub(super) fn child(
        &mut self,
        here: &Here<'_>,
        entry: &StatEntry,
        segment: InSegment,
        siblings: &mut Siblings,
    ) -> Result<(), WalkStop> {
        let StatEntry { name, stat, mounted, .. } = entry;
        let ahead = siblings.next(here, name, &self.context, &mut self.ahead);
        let ahead = ahead.map_err(|HelperLost| Error::Stopped("looking ahead"))?;
        let path = || here.directory.child_path(name);
        let known = self.recognizer.find_new(KnownParent::of(here.known), name.as_bytes(), stat)?;
        let opened = match self.passage(here, entry) {
            Some(mut place) => {
                if place.part.is_given() && here.is_in_place() {
                    let parent = KnownParent::of(here.known);
                    place.entries_before = self.entries_before(parent, name.as_bytes(), stat, &path())?;
                }
                Some((place, self.open_child(here, name, ahead)))
            }
            None => None,
        };
        let extended = if segment == InSegment::Old {
            Extended::default()
        } else {
            let calls = self.context.calls.clone();
            let _call = calls.about_names(here.directory.shared_path(), [name.as_os_str()]);
            match &opened {
                Some((_, Ok(opened))) => self.checked(opened.directory.extended(), path),
                _ if mounted.is_some() => Extended::default(),
                _ => self.checked(here.directory.extended_of_child(name), path),
            }
        };
        self.enter(entry, extended, known.as_ref())?;
        match opened {
            Some((place, Ok(opened))) => return self.contents(opened, known, place),
            Some((_, Err(e))) => self.problem(&path(), &e.to_string()),
            None => {}
        }
        let removed = self.recognizer.all_segments(known.as_ref())?;
        self.outbox.send(Event::Leave { removed })
    }

    /// The place of a directory in `here`. `None`: it is left empty.
    pub(super) fn passage<'h>(&self, here: &Here<'h>, entry: &StatEntry) -> Option<Position<'h>> {
        let StatEntry { name, stat, mounted, .. } = entry;
        let mount = DirectoryMount {
            is_unvisited: mounted.is_some(),
            is_brackfs: match mounted {
                Some(mounted) => mounted.is_brackfs,
                None => self.recognizer.is_on_brackfs(stat),
            },
        };
        match passage(here, &self.context.rules, name, stat, mount) {
            Passage::Enter(place) => Some(place),
            Passage::Skip => None,
            Passage::SkipOwn => {
                let path = here.directory.child_path(name);
                self.monitor.remark(&format!("{} belongs to brackfs itself and is left empty", path.display()));
                None
            }
        }
    }

    /// Opens a directory in `here`, unless helpers have.
    fn open_child(
        &self,
        here: &Here<'_>,
        name: &OsStr,
        ahead: Option<OpenedDirectory>,
    ) -> Result<OpenedDirectory, source::Error> {
        let levels = self.context.directories.levels;
        if here.place.depth + 1 >= levels {
            let path = here.directory.shared_path().child(name);
            return Err(source::Error::TooDeep { path, levels });
        }
        if let Some(ahead) = ahead {
            return Ok(ahead);
        }
        let _call = self.context.calls.about_names(here.directory.shared_path(), [name]);
        here.directory.open_child(name).map(|directory| OpenedDirectory::open(directory, &self.context.rules))
    }

    /// Entries below the root, or a given path, in the last backup. If a file system that was mounted there is gone, reports
    /// that.
    fn entries_before(&mut self, parent: KnownParent, name: &[u8], stat: &Stat, path: &Path) -> Result<u64, WalkStop> {
        match self.recognizer.last_time(parent, name, stat, path)? {
            LastTime::Entries(entries) => Ok(entries),
            LastTime::OtherFileSystem => {
                self.problem(path, "another file system was here in the last backup; is it not mounted?");
                self.counts.lost_paths += 1;
                Ok(0)
            }
        }
    }
}

fn name_of(entry: &StatResult) -> &OsStr {
    match entry {
        Ok(entry) => &entry.name,
        Err((name, _)) => name,
    }
}
