//! The virtual tree above the snapshots: directories of sources and tags, and links.
//!
//! It is derived from the list of snapshots, which is read again on access if it is older than [`REFRESH`]. The mtime of
//! the directories is the time of the last change, so that the kernel can tell whether a cached listing is still valid.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::attributes::{Attributes, ListingEntry, Validity};
use super::error::Error;
use super::lock::lock;
use super::number::{Ino, Number, VirtualNode};
use super::snapshot_index::{SnapshotIndex, VirtualFolder};
use super::tags::{self, TagIndex};
use crate::archive::{self, Archive, OpenSnapshot, Stamp};
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::{Kind, Timestamp, name};
use crate::monitor::Monitor;

/// Minimum time between two listings of the snapshots.
pub(super) const REFRESH: Duration = Duration::from_secs(1);
/// Minimum time until an unreadable object is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// For each second spent on a listing or on unreadable objects, the seconds until the next try: an attacker with write
/// access to the repository can create hundreds of thousands of objects.
const REST: u32 = 10;
/// Maximum time that one search for the newest snapshot spends on objects that are not valid snapshots.
const SEARCH: Duration = Duration::from_secs(2);

const LATEST: &str = "latest";
const BY_TAG: &str = "by-tag";
/// The listing offset after `latest` and `by-tag`, which follow the numbered entries.
const LAST: u64 = 1 << 60;

/// The tree above the snapshots. Threads share it.
pub(super) struct VirtualTree {
    archive: Arc<dyn Archive>,
    monitor: Arc<dyn Monitor>,
    index: Mutex<SnapshotIndex>,
    /// When the last listing of snapshots expires. Locked during a listing, while `index` stays available to reads.
    listed: Mutex<Option<Instant>>,
    tags: Mutex<TagState>,
    unreadable: Mutex<Unreadable>,
    /// Objects whose damage was reported, since each access would find it again.
    reported: Mutex<HashSet<String>>,
    /// Time of the last change. Strictly increasing.
    changed: Mutex<Timestamp>,
    owner: (u32, u32),
}

/// The tag index and the state of its last update.
#[derive(Default)]
struct TagState {
    tags: TagIndex,
    updated: Option<Instant>,
    all_readable: bool,
}

/// Objects that could not be read, with the time of the last try.
#[derive(Default)]
struct Unreadable {
    snapshots: HashMap<u64, FailedOpen>,
    sources: HashMap<SourceId, Instant>,
    /// Total CPU time spent on them.
    spent: Duration,
}

/// An object that could not be read.
struct FailedOpen {
    at: Instant,
    /// The stamp of its file before the try.
    stamp: Option<Stamp>,
}

impl Unreadable {
    /// Whether it is too early to try an object again.
    fn holds(&self, since: Option<&Instant>) -> bool {
        since.is_some_and(|since| since.elapsed() < RETRY + self.spent * REST)
    }
}

/// Measures the time of an access to the archive without the waits for a storage that is unavailable: they would delay
/// the next listing by a minute.
struct Stopwatch<'a> {
    archive: &'a dyn Archive,
    begun: Instant,
    waited: Duration,
}

impl Stopwatch<'_> {
    fn elapsed(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.archive.waited().saturating_sub(self.waited))
    }
}

/// The result of a lookup.
pub(super) enum LookupResult {
    /// An inode of the virtual tree.
    Here(Attributes),
    /// The number of a snapshot.
    Snapshot(u64),
}

impl VirtualTree {
    pub(super) fn new(archive: Arc<dyn Archive>, monitor: Arc<dyn Monitor>) -> Self {
        VirtualTree {
            archive,
            monitor,
            index: Mutex::new(SnapshotIndex::new(BY_TAG)),
            listed: Mutex::default(),
            tags: Mutex::default(),
            unreadable: Mutex::default(),
            reported: Mutex::default(),
            changed: Mutex::new(now()),
            owner: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        }
    }

    /// See [`FileSystem::open_newest`](super::FileSystem::open_newest).
    pub(super) fn open_newest(&self) -> Result<Result<(), archive::Error>, archive::Error> {
        let newest = {
            let index = self.refreshed()?;
            index.there().last().and_then(|number| Some((*number, index.name(*number)?.clone())))
        };
        let Some((number, name)) = newest else { return Ok(Ok(())) };
        let opened = self.archive.open(&name);
        Ok(opened.map(|snapshot| lock(&self.index).keep(number, snapshot)))
    }

    /// Looks up a name in a directory.
    pub(super) fn lookup(&self, place: VirtualNode, name: &[u8]) -> Result<LookupResult, Error> {
        // All names here are UTF-8.
        let text = str::from_utf8(name).ok();
        let name = || text.ok_or(Error::NotFound);
        let here = match place {
            VirtualNode::Top if text == Some(BY_TAG) => self.folder(VirtualNode::ByTag),
            VirtualNode::Top => {
                let source = self.refreshed()?.top().get(name()?).ok_or(Error::NotFound)?;
                self.folder(VirtualNode::Source(source))
            }
            VirtualNode::Source(source) => {
                if text == Some(LATEST) {
                    let newest = self.newest(source)?.ok_or(Error::NotFound)?;
                    self.symlink(&lock(&self.index), VirtualNode::Latest(newest))?
                } else {
                    let index = self.refreshed()?;
                    let shown = index.snapshots_of(source).ok_or(Error::NotFound)?;
                    return shown.get(name()?).map(LookupResult::Snapshot).ok_or(Error::NotFound);
                }
            }
            VirtualNode::ByTag => {
                let tag = self.tagged()?.tags.top().get(name()?).ok_or(Error::NotFound)?;
                self.folder(VirtualNode::Tag(tag))
            }
            VirtualNode::Tag(tag) => {
                let number = {
                    let tagged = self.tagged()?;
                    let links = tagged.tags.links_of(tag).ok_or(Error::NotFound)?;
                    links.get(name()?).ok_or(Error::NotFound)?
                };
                self.symlink(&lock(&self.index), VirtualNode::Link(tag, number))?
            }
            VirtualNode::Latest(_) | VirtualNode::Link(..) => return Err(Error::NotADirectory),
        };
        Ok(LookupResult::Here(here))
    }

    /// Returns the attributes of an inode.
    pub(super) fn attributes(&self, place: VirtualNode) -> Result<Attributes, Error> {
        match place {
            VirtualNode::Top => self.refresh(),
            VirtualNode::Source(source) => {
                self.refresh();
                lock(&self.index).snapshots_of(source).ok_or(Error::NotFound)?;
            }
            VirtualNode::ByTag => self.refresh_tags(),
            VirtualNode::Tag(tag) => {
                self.refresh_tags();
                lock(&self.tags).tags.links_of(tag).ok_or(Error::NotFound)?;
            }
            VirtualNode::Latest(_) | VirtualNode::Link(..) => return self.symlink(&*self.refreshed()?, place),
        }
        Ok(self.folder(place))
    }

    /// Returns the target of a symbolic link.
    pub(super) fn read_link(&self, place: VirtualNode) -> Result<Vec<u8>, Error> {
        let index = match place {
            VirtualNode::Latest(_) | VirtualNode::Link(..) => self.refreshed()?,
            VirtualNode::Top | VirtualNode::Source(_) | VirtualNode::ByTag | VirtualNode::Tag(_) => {
                return Err(Error::NotALink);
            }
        };
        target(&index, place).map(String::into_bytes).ok_or(Error::NotFound)
    }

    /// Calls `take` with the entries of a directory from offset `from` on (0: the first), until it returns false.
    pub(super) fn list(
        &self,
        place: VirtualNode,
        from: u64,
        take: &mut dyn FnMut(&ListingEntry) -> bool,
    ) -> Result<(), Error> {
        match place {
            VirtualNode::Top => {
                let index = self.refreshed()?;
                let sources = index.top().after(from);
                let sources = sources.map(|(name, source)| {
                    (name, VirtualFolder::offset(source), self.folder(VirtualNode::Source(source)))
                });
                let by_tag = (from != LAST).then(|| (BY_TAG, LAST, self.folder(VirtualNode::ByTag)));
                send(sources.chain(by_tag), take);
            }
            VirtualNode::Source(source) => {
                let newest = self.newest(source)?;
                let index = lock(&self.index);
                let shown = index.snapshots_of(source).ok_or(Error::NotFound)?;
                let snapshots = shown.after(from);
                let snapshots =
                    snapshots.map(|(name, number)| (name, VirtualFolder::offset(number), self.unopened(number)));
                let newest = newest.filter(|_| from != LAST);
                let latest = newest.map(|number| self.symlink(&index, VirtualNode::Latest(number))).transpose()?;
                send(snapshots.chain(latest.map(|latest| (LATEST, LAST, latest))), take);
            }
            VirtualNode::ByTag => {
                let tagged = self.tagged()?;
                let folders = tagged.tags.top().after(from);
                send(
                    folders.map(|(name, tag)| (name, VirtualFolder::offset(tag), self.folder(VirtualNode::Tag(tag)))),
                    take,
                );
            }
            VirtualNode::Tag(tag) => {
                let tagged = self.tagged()?;
                let index = lock(&self.index);
                let links = tagged.tags.links_of(tag).ok_or(Error::NotFound)?.after(from);
                let links = links.filter_map(|(name, number)| {
                    Some((
                        name,
                        VirtualFolder::offset(number),
                        self.symlink(&index, VirtualNode::Link(tag, number)).ok()?,
                    ))
                });
                send(links, take);
            }
            VirtualNode::Latest(_) | VirtualNode::Link(..) => return Err(Error::NotADirectory),
        }
        Ok(())
    }

    /// Returns the snapshot with this number, opening it if necessary.
    pub(super) fn snapshot(&self, number: u64) -> Result<Arc<OpenSnapshot>, Error> {
        let name = {
            let mut index = lock(&self.index);
            // Even if it was removed: processes in it may continue.
            if let Some(open) = index.open(number) {
                return Ok(open);
            }
            index.name(number).cloned().ok_or(Error::NotFound)?
        };
        let snapshot = self.try_to_open(number, &name)?;
        lock(&self.index).keep(number, snapshot.clone());
        Ok(snapshot)
    }

    /// Opens a snapshot, unless that failed recently.
    fn try_to_open(&self, number: u64, name: &SnapshotName) -> Result<Arc<OpenSnapshot>, Error> {
        {
            let unreadable = lock(&self.unreadable);
            if unreadable.holds(unreadable.snapshots.get(&number).map(|failure| &failure.at)) {
                return Err(Error::Unreadable);
            }
        }
        let watch = self.stopwatch();
        let stamp = self.archive.stamp(name);
        let opened = self.archive.open(name);
        let mut unreadable = lock(&self.unreadable);
        match opened {
            Ok(snapshot) => {
                unreadable.snapshots.remove(&number);
                Ok(snapshot)
            }
            Err(error) => {
                // Errors of the storage do not show that the object is damaged.
                if self.archive.is_permanent(&error) {
                    unreadable.spent += watch.elapsed();
                    unreadable.snapshots.insert(number, FailedOpen { at: Instant::now(), stamp });
                }
                Err(error.into())
            }
        }
    }

    fn stopwatch(&self) -> Stopwatch<'_> {
        Stopwatch { archive: &*self.archive, begun: Instant::now(), waited: self.archive.waited() }
    }

    /// Calls `take` with all open snapshots.
    pub(super) fn each_open(&self, take: impl FnMut(&Arc<OpenSnapshot>)) {
        lock(&self.index).all_open().for_each(take);
    }

    /// Returns the path of a snapshot, for messages.
    pub(super) fn path_of(&self, number: u64) -> Option<PathBuf> {
        lock(&self.index).shown(number).map(|(source, time)| PathBuf::from_iter([source, time]))
    }

    /// Returns the index, updated by a new listing if the last one has expired.
    fn refreshed(&self) -> Result<MutexGuard<'_, SnapshotIndex>, archive::Error> {
        let mut listed = lock(&self.listed);
        if listed.is_none_or(|until| Instant::now() >= until) {
            let watch = self.stopwatch();
            let there = self.archive.snapshots()?;
            if there.is_empty() && !self.archive.is_available() {
                return Err(archive::Error::NotFound("the repository is not available".into()));
            }
            let (unnamed, is_first) = {
                let index = lock(&self.index);
                (index.unnamed(&there), index.there().is_empty())
            };
            // A mount opens the newest snapshot first.
            self.archive.begin(there.last().filter(|_| is_first).map_or(&[], std::slice::from_ref), &unnamed);
            let names = unnamed.into_iter().filter_map(|id| Some((id, self.source_name(id)?))).collect();
            if lock(&self.index).update(there, names) {
                self.change();
            }
            self.show_mended();
            *listed = Some(Instant::now() + REFRESH.max(watch.elapsed() * REST));
        }
        Ok(lock(&self.index))
    }

    /// Returns the newest snapshot of a source that verifies. An attacker with write access to the repository can create an
    /// object with a later name, so candidates are opened. Objects that do not verify are reported once and hidden. After
    /// [`SEARCH`] the search ends without a result; the next one continues from there.
    fn newest(&self, source: u64) -> Result<Option<u64>, Error> {
        let (mut failed, mut newest) = (Vec::new(), None);
        let candidates: Vec<_> = {
            let mut index = self.refreshed()?;
            match index.in_order(source).last().copied() {
                Some(newest) if index.open(newest).is_some() => return Ok(Some(newest)),
                _ => index.in_order(source).iter().rev().copied().collect(),
            }
        };
        let watch = self.stopwatch();
        for number in candidates {
            if !failed.is_empty() && watch.elapsed() > SEARCH {
                break;
            }
            match self.snapshot(number) {
                Err(Error::Archive(error)) if self.archive.is_permanent(&error) => failed.push((number, error)),
                Err(Error::Unreadable | Error::NotFound) => {}
                // Other errors are returned when the snapshot is read.
                Ok(_) | Err(_) => {
                    newest = Some(number);
                    break;
                }
            }
        }
        self.hide(&failed);
        Ok(newest)
    }

    /// Reports and hides objects that are not valid snapshots.
    fn hide(&self, failed: &[(u64, archive::Error)]) {
        if failed.is_empty() {
            return;
        }
        for (number, error) in failed {
            let name = lock(&self.index).name(*number).cloned();
            if let Some(name) = name {
                self.report_once(&name.object(), error);
            }
        }
        let numbers: Vec<_> = failed.iter().map(|(number, _)| *number).collect();
        lock(&self.index).hide(&numbers);
        self.change();
    }

    /// Shows hidden objects again if their files changed: a damaged snapshot may have been replaced by a good copy. Those
    /// that still do not verify are hidden again on the next access.
    fn show_mended(&self) {
        let hidden = lock(&self.index).hidden();
        let mut changed = Vec::new();
        for (number, name) in hidden {
            let Some(stamp) = self.archive.stamp(&name) else { continue };
            let mut unreadable = lock(&self.unreadable);
            if unreadable.snapshots.get(&number).is_none_or(|failure| failure.stamp != Some(stamp)) {
                unreadable.snapshots.remove(&number);
                lock(&self.reported).remove(&name.object());
                changed.push(number);
            }
        }
        if !changed.is_empty() {
            lock(&self.index).unhide(&changed);
            self.change();
        }
    }

    /// Updates the index if the last listing has expired. Ignores errors: a lookup of a path component must not fail while
    /// the repository is unavailable.
    fn refresh(&self) {
        drop(self.refreshed());
    }

    /// Like [`VirtualTree::refresh`]. If it is time to read missing tags again, it also makes the kernel drop cached
    /// listings. It opens no snapshot, which could take long.
    fn refresh_tags(&self) {
        self.refresh();
        if self.tags.try_lock().is_ok_and(|tagged| self.is_due(&tagged)) {
            self.change();
        }
    }

    /// Sets the time of the last change, which invalidates cached listings.
    fn change(&self) {
        let mut changed = lock(&self.changed);
        let next = match changed.nanos.checked_add(1).filter(|nanos| *nanos < 1_000_000_000) {
            Some(nanos) => Timestamp { nanos, ..*changed },
            None => Timestamp { seconds: changed.seconds.saturating_add(1), nanos: 0 },
        };
        // The clock may have been set back.
        *changed = now().max(next);
    }

    fn source_name(&self, id: SourceId) -> Option<String> {
        {
            let unreadable = lock(&self.unreadable);
            if unreadable.holds(unreadable.sources.get(&id)) {
                return None;
            }
        }
        let watch = self.stopwatch();
        let error = match self.archive.source_name(id) {
            Ok(name) => return Some(name),
            Err(error) => error,
        };
        if self.shows_damage(&error) {
            self.report_once(&name::source(id), &error);
            let mut unreadable = lock(&self.unreadable);
            unreadable.spent += watch.elapsed();
            unreadable.sources.insert(id, Instant::now());
        }
        None
    }

    /// Whether it is time to read missing tags again.
    fn is_due(&self, tagged: &TagState) -> bool {
        !tagged.all_readable && !lock(&self.unreadable).holds(tagged.updated.as_ref())
    }

    /// Whether an error shows that the object is damaged or missing, and not that the storage is unavailable.
    fn shows_damage(&self, error: &archive::Error) -> bool {
        self.archive.is_permanent(error) || matches!(error, archive::Error::Missing(_)) && self.archive.is_available()
    }

    /// Reports damage of an object the first time it is found.
    fn report_once(&self, object: &str, error: &archive::Error) {
        if lock(&self.reported).insert(object.to_owned()) {
            self.monitor.problem(object.as_ref(), &error.to_string());
        }
    }

    /// Returns the tags of all snapshots. Opens each snapshot whose tags are not known yet.
    fn tagged(&self) -> Result<MutexGuard<'_, TagState>, Error> {
        let mut tagged = lock(&self.tags);
        let is_due = self.is_due(&tagged);
        if tagged.tags.is_up_to_date(&*self.refreshed()?) && !is_due {
            return Ok(tagged);
        }
        let mut found = false;
        loop {
            let unknown: Vec<_> = {
                let index = lock(&self.index);
                let unknown = index.there().iter().filter(|number| !tagged.tags.knows(**number));
                unknown.filter_map(|number| Some((*number, index.name(*number)?.clone()))).collect()
            };
            tagged.all_readable = true;
            let mut failed = Vec::new();
            let names: Vec<_> = unknown.iter().map(|(_, name)| name.clone()).collect();
            for ((number, _), name) in unknown.iter().zip(self.archive.in_turn(&names)) {
                let number = *number;
                match self.try_to_open(number, name) {
                    Ok(snapshot) => {
                        tagged.tags.add(number, &snapshot.tags);
                        found = true;
                    }
                    Err(Error::Archive(error)) if self.archive.is_permanent(&error) => failed.push((number, error)),
                    Err(error) => {
                        tagged.all_readable = false;
                        if let Error::Archive(error) = error
                            && self.shows_damage(&error)
                        {
                            self.report_once(&name.object(), &error);
                        }
                    }
                }
            }
            if failed.is_empty() {
                break;
            }
            // Hiding them may rename and renumber others.
            self.hide(&failed);
        }
        tagged.updated = Some(Instant::now());
        let index = lock(&self.index);
        if !tagged.tags.is_up_to_date(&index) || found {
            tagged.tags.show(&index);
            drop(index);
            self.change();
        }
        Ok(tagged)
    }

    fn folder(&self, place: VirtualNode) -> Attributes {
        self.folder_of(place.ino())
    }

    /// Placeholder attributes of a snapshot's root: listing does not open snapshots.
    fn unopened(&self, number: u64) -> Attributes {
        Attributes { validity: Validity::Unknown, ..self.folder_of(Number::Entry(number, 0).ino()) }
    }

    fn folder_of(&self, ino: Ino) -> Attributes {
        Attributes {
            ino,
            kind: Kind::Directory,
            mode: 0o755,
            uid: self.owner.0,
            gid: self.owner.1,
            size: 0,
            sectors: 0,
            mtime: *lock(&self.changed),
            nlink: 1,
            device: (0, 0),
            validity: Validity::Briefly,
        }
    }

    fn symlink(&self, index: &SnapshotIndex, place: VirtualNode) -> Result<Attributes, Error> {
        let size = target(index, place).ok_or(Error::NotFound)?.len() as u64;
        Ok(Attributes { kind: Kind::Symlink, mode: 0o777, size, ..self.folder(place) })
    }
}

/// Returns the target of a link; `None` if the snapshot does not exist or the inode is not a link.
fn target(index: &SnapshotIndex, place: VirtualNode) -> Option<String> {
    match place {
        VirtualNode::Latest(number) => index.shown(number).map(|(_, newest)| newest.to_owned()),
        VirtualNode::Link(_, number) => tags::target(index, number),
        VirtualNode::Top | VirtualNode::Source(_) | VirtualNode::ByTag | VirtualNode::Tag(_) => None,
    }
}

fn now() -> Timestamp {
    let now = jiff::Timestamp::now();
    Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond().unsigned_abs() }
}

/// Calls `take` with names, the offsets after them, and attributes, until it returns false.
fn send<'n>(items: impl Iterator<Item = (&'n str, u64, Attributes)>, take: &mut dyn FnMut(&ListingEntry) -> bool) {
    for (name, next, attributes) in items {
        if !take(&ListingEntry { name: name.as_bytes().to_vec(), attributes, next }) {
            break;
        }
    }
}
