//! Files that were put off are looked at again, when the walk is done and before the snapshot is made.
//!
//! A file is put off if it changed while it was read, was gone or replaced when it should have been, or was changed so
//! shortly before that one more change could leave the same stamps. The engine commits what it has, and the walk goes
//! once more to the directories that such files are in: what else is in them is taken over from the catalog. That is
//! repeated, with pauses, until no file is put off any more, at most for as long as the user lets it; a file that
//! changed may be tried again only so often. What comes of the last try is stored, whatever it is.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::Error;
use super::entry::CHANGED;
use super::event::{Enter, Event, Kept, OldSegment};
use super::listing::{Borders, Found};
use super::read::Patience;
use super::selection::Subset;
use super::walk::{Attempt, Before, Here, Known, Parent, Place, Segments, Stop, Walk, blocks_of};
use crate::catalog::{DeferredFile, SegmentRow, StoredState};
use crate::format::{Kind, Timestamp};
use crate::source::{Directory, Stat, now};

/// Files that are looked at in one pass, so that their names take little memory.
const PASS: usize = 4096;
/// The first pause, in which most files settle: a few ticks of the clock.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a pause may keep us from seeing that we are to stop.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long, and how often, files may be put off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settling {
    /// How often a file may be found changing before what was read of it is taken.
    pub(super) retries: u32,
    /// How long to wait for files in all.
    pub(super) longest: Duration,
}

impl Settling {
    /// The first attempt at a file.
    pub(super) fn first(self) -> Attempt {
        self.attempt(0, self.longest)
    }

    /// An attempt at a file that was found changing `tries` times, `left` before the end.
    fn attempt(self, tries: u32, left: Duration) -> Attempt {
        Attempt { tries, patience: Patience { changed: tries < self.retries, fresh: left } }
    }
}

/// Files that were put off, by where they are.
#[derive(Default)]
struct Folder {
    files: BTreeMap<Vec<u8>, DeferredFile>,
    below: BTreeMap<Vec<u8>, Folder>,
}

impl Folder {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.below.is_empty()
    }

    /// Adds a file in the folder that `names` lead to.
    fn add(&mut self, names: Vec<Vec<u8>>, file: DeferredFile) {
        let folder = names.into_iter().fold(self, |folder, name| folder.below.entry(name).or_default());
        folder.files.insert(file.name.clone(), file);
    }

    /// Takes what comes before the name `end`; all, if there is none.
    fn take_before(&mut self, end: Option<&[u8]>) -> Folder {
        let Some(end) = end else { return std::mem::take(self) };
        let (files, below) = (self.files.split_off(end), self.below.split_off(end));
        std::mem::replace(self, Folder { files, below })
    }
}

/// What is looked at in one pass.
#[derive(Clone, Copy)]
struct Pass<'p> {
    settling: Settling,
    /// Time until the last pass.
    left: Duration,
    part: Subset<'p>,
}

impl Walk<'_> {
    /// Looks at what was put off until nothing is. The engine says through `go` that it has committed what it was
    /// sent, and that files are put off; when none are it says nothing any more.
    pub(super) fn settle(
        &mut self,
        settling: Settling,
        go: &Receiver<()>,
        root: &Path,
        part: Subset<'_>,
    ) -> Result<(), Stop> {
        if go.recv().is_err() {
            return Ok(());
        }
        let end = Instant::now() + settling.longest;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let pass = Pass { settling, left, part };
            let (mut after, mut some) = (None, false);
            loop {
                let files = self.past.deferred(after.as_ref(), PASS)?;
                let Some(last) = files.last() else { break };
                after = Some(last.clone());
                let files = self.ready(files, left)?;
                if !files.is_empty() && self.pass(pass, files)? {
                    some = true;
                    self.send_batch()?;
                    if go.recv().is_err() {
                        return Ok(());
                    }
                }
            }
            match (left.is_zero(), some) {
                (true, false) => return self.give_up(root),
                (true, true) => {}
                (false, _) => {
                    self.pause(pause.min(left))?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn pause(&self, time: Duration) -> Result<(), Stop> {
        let end = Instant::now() + time;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stop::Failed(Error::Interrupted));
            }
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => sleep(left.min(LOOK_UP)),
            }
        }
    }

    /// Those of the files that it makes sense to look at now, by where they are.
    fn ready(&self, files: Vec<DeferredFile>, left: Duration) -> Result<Folder, Stop> {
        let mut folder = Folder::default();
        let Some((above, root)) = &self.root else { return Ok(folder) };
        let mut place = None;
        for file in files {
            if place.as_ref().is_none_or(|(directory, _)| *directory != file.directory) {
                place = Some((file.directory, self.past.place(file.directory)?));
            }
            if let Some((_, Some(place))) = &place
                && place.above == *above
            {
                folder.add(place.names.clone(), file);
            }
        }
        self.only_ready(root, &mut folder, left);
        Ok(folder)
    }

    /// Leaves out files that would be put off again. What can't be reached may be later.
    fn only_ready(&self, directory: &Directory, folder: &mut Folder, left: Duration) {
        let names = folder.files.keys().map(|name| OsStr::from_bytes(name));
        let call = self.calls.about_names(directory.shared_path(), names);
        folder.files.retain(|name, _| {
            let stat = directory.stat_child(OsStr::from_bytes(name));
            call.next();
            match stat {
                Ok(stat) if stat.kind == Kind::File => {
                    let fresh = stat.fresh_for(now(), self.mounts.of(&stat).clock);
                    left.is_zero() || fresh.is_none_or(|fresh| fresh > left)
                }
                _ => true,
            }
        });
        drop(call);
        folder.below.retain(|name, below| {
            let name = OsStr::from_bytes(name);
            let call = self.calls.about_names(directory.shared_path(), [name]);
            let child = directory.open_child(name);
            drop(call);
            child.is_ok_and(|child| {
                self.only_ready(&child, below, left);
                !below.is_empty()
            })
        });
    }

    /// Goes through the tree once more, for these files only. False if there is no way to them, and nothing was sent.
    fn pass(&mut self, pass: Pass<'_>, files: Folder) -> Result<bool, Stop> {
        let Some((above, directory)) = self.root.clone() else { return Ok(false) };
        let looked = now();
        let stat = directory.stat()?;
        let known = self.look_up(Parent::above(above), b"", &stat)?;
        let Some(known) = known.filter(is_whole) else { return Ok(false) };
        let (mounted, mounts) = self.rules.mounts.find(&directory.path());
        let borders = Borders { device: stat.dev, file_system: mounted.map(|mounted| mounted.device) };
        let (part, mounts) = (pass.part, mounts.as_ref());
        let place = Place { part, mounts, borders, within: stat.dev, depth: 0, had: 0 };
        self.through(
            pass,
            &Here { directory: &directory, known: Some(&known), place, below: &RefCell::default() },
            (b"", stat, looked),
            files,
        )?;
        Ok(true)
    }

    /// Enters a directory again, goes through it, and leaves it.
    fn through(
        &mut self,
        pass: Pass<'_>,
        here: &Here<'_>,
        (name, stat, looked): (&[u8], Stat, Timestamp),
        files: Folder,
    ) -> Result<(), Stop> {
        // What is missing of it was said before.
        let extended = {
            let _call = self.calls.about(here.directory.shared_path());
            here.directory.extended()
        };
        let untrusted = self.is_fresh(&stat, looked) || extended.missing.is_some();
        let (name, row) = (name.to_vec(), here.known.map(|known| known.row.clone()));
        let device = self.number_of(&stat);
        let lent = self.lend(&extended.xattrs)?;
        self.send(Event::Enter(Box::new(Enter { name, stat, device, extended, untrusted, row, again: true, lent })))?;
        self.revisit(pass, here, files)
    }

    /// What is between the enter and the leave of a directory, and the leave.
    fn revisit(&mut self, pass: Pass<'_>, here: &Here<'_>, mut files: Folder) -> Result<(), Stop> {
        let mut segments = Segments::new(here.known);
        let mut segment = segments.next(&self.past)?;
        loop {
            let next = segments.next(&self.past)?;
            let here_in = files.take_before(next.as_ref().map(|next| next.first.as_slice()));
            match segment {
                Some(row) if here_in.files.is_empty() => self.old_segment(pass, here, row, here_in)?,
                None if here_in.files.is_empty() => {}
                row => self.new_segment(pass, here, row, here_in)?,
            }
            if next.is_none() {
                return self.send(Event::Leave { removed: Vec::new() });
            }
            segment = next;
        }
    }

    /// A segment in which only directories are looked into.
    fn old_segment(&mut self, pass: Pass<'_>, here: &Here<'_>, row: SegmentRow, files: Folder) -> Result<(), Stop> {
        self.send(Event::OldSegment(Box::new(OldSegment { row, stats: None })))?;
        for (name, below) in files.below {
            self.revisit_child(pass, here, &name, below)?;
        }
        self.send(Event::EndSegment)
    }

    /// A segment that is written anew.
    fn new_segment(
        &mut self,
        pass: Pass<'_>,
        here: &Here<'_>,
        row: Option<SegmentRow>,
        files: Folder,
    ) -> Result<(), Stop> {
        let mut before = VecDeque::new();
        let mut replaces = Vec::new();
        if let Some(row) = &row {
            self.remember(row, &mut before)?;
            replaces.push(row.id);
        }
        self.send(Event::NewSegment { replaces })?;
        let Folder { files, mut below } = files;
        let mut files = files.into_iter().peekable();
        loop {
            let old = before.front().map(|(entry, ..)| entry.name.as_slice());
            let file = files.peek().map(|(name, _)| name.as_slice());
            match (old, file) {
                (None, None) => return self.send(Event::EndSegment),
                (Some(old), file) if file.is_none_or(|file| old < file) => {
                    let Some(old) = before.pop_front() else { continue };
                    let wanted = below.remove(&old.0.name);
                    let entered = match wanted {
                        Some(below) => self.revisit_child(pass, here, &old.0.name, below)?,
                        None => false,
                    };
                    if !entered {
                        self.keep(old)?;
                    }
                }
                (old, file) => {
                    let old = if old == file { before.pop_front() } else { None };
                    if let Some((_, file)) = files.next() {
                        self.take_up(pass, here, file, old)?;
                    }
                }
            }
        }
    }

    fn keep(&mut self, (mut entry, identity, node): Before) -> Result<(), Stop> {
        let blocks = blocks_of(&mut entry, &node);
        let lent = self.lend(&entry.xattrs)?;
        self.send(Event::Kept(Box::new(Kept { entry, identity, blocks, lent })))
    }

    /// A directory with files that were put off below it. False if it is not the one that was walked, and nothing was
    /// sent.
    fn revisit_child(&mut self, pass: Pass<'_>, here: &Here<'_>, name: &[u8], files: Folder) -> Result<bool, Stop> {
        let name = OsStr::from_bytes(name);
        let looked = now();
        let call = self.calls.about_names(here.directory.shared_path(), [name]);
        let opened = here.directory.open_child(name).and_then(|directory| Ok((directory.stat()?, directory)));
        drop(call);
        let Ok((stat, directory)) = opened else { return Ok(false) };
        let directory = Arc::new(directory);
        let Some(parent) = here.known else { return Ok(false) };
        let parent = Parent { in_place: true, ..Parent::of(Some(parent)) };
        let known = self.look_up(parent, name.as_bytes(), &stat)?;
        let Some(known) = known.filter(is_whole) else { return Ok(false) };
        let found = Found { name: name.to_owned(), stat, looked, mounted: None };
        let Some(place) = self.within_borders(here, &found) else { return Ok(false) };
        let below = &Here { directory: &directory, known: Some(&known), place, below: &RefCell::default() };
        self.through(pass, below, (name.as_bytes(), found.stat, looked), files)?;
        Ok(true)
    }

    /// Looks at a file that was put off, whatever it is by now. `old`: its entry, if there is one.
    fn take_up(
        &mut self,
        pass: Pass<'_>,
        here: &Here<'_>,
        file: DeferredFile,
        old: Option<Before>,
    ) -> Result<(), Stop> {
        let name = OsStr::from_bytes(&file.name);
        self.send(Event::Again { name: file.name.clone() })?;
        let looked = now();
        let stat = {
            let _call = self.calls.about_names(here.directory.shared_path(), [name]);
            here.directory.stat_child(name)
        };
        let stat = match stat {
            Ok(stat) => stat,
            Err(e) => {
                let why = if e.is_vanished() { VANISHED.to_owned() } else { e.to_string() };
                self.gone(&here.directory.child_path(name), file.stored, &why);
                return old.map_or(Ok(()), |old| self.keep(old));
            }
        };
        if self.rules.leaves_out(here.directory, name, &stat) {
            self.counts.files -= 1;
            return Ok(());
        }
        let counts = self.counts;
        if stat.kind == Kind::Directory {
            self.counts.files -= 1;
            self.count(&stat);
            self.attempt = pass.settling.attempt(0, pass.left);
            let found = Found { name: name.to_owned(), stat, looked, mounted: None };
            let mut siblings = self.siblings(here, std::slice::from_ref(&found));
            return self.child(here, &found, true, &mut siblings);
        }
        self.attempt = pass.settling.attempt(file.tries, pass.left);
        let kind = stat.kind;
        self.store(here, name.to_owned(), (stat.clone(), looked), file.existed)?;
        // It was counted when it was put off.
        (self.counts.new, self.counts.changed) = (counts.new, counts.changed);
        if kind != Kind::File {
            self.counts.files -= 1;
            self.count(&stat);
        }
        Ok(())
    }

    /// A file that can't be looked at any more.
    fn gone(&mut self, path: &Path, so_far: StoredState, why: &str) {
        match so_far {
            StoredState::Nothing => {
                self.counts.files -= 1;
                self.problem(path, why);
            }
            StoredState::Changed => self.problem(path, CHANGED),
            // What was read of it is what it was.
            StoredState::Fresh => {}
        }
    }

    /// Says what is left of files in directories that are not where they were.
    fn give_up(&mut self, root: &Path) -> Result<(), Stop> {
        let mut after = None;
        loop {
            let files = self.past.deferred(after.as_ref(), PASS)?;
            let Some(last) = files.last() else { return Ok(()) };
            after = Some(last.clone());
            for file in files {
                let names = self.past.place(file.directory)?.map(|place| place.names).unwrap_or_default();
                let mut path: PathBuf = root.to_owned();
                path.extend(names.iter().chain([&file.name]).map(|name| OsStr::from_bytes(name)));
                self.gone(&path, file.stored, VANISHED);
            }
        }
    }
}

/// What is said of a file that nothing was read of.
const VANISHED: &str = "it vanished before it could be read";

/// Whether a directory is where it was walked, and all of it is in the catalog.
fn is_whole(known: &Known) -> bool {
    known.in_place && known.row.in_place && known.row.subtree.is_some()
}
