//! The entries of a directory: names in order, each with a stat, read ahead of the walk.
//!
//! There is no stat call for entries that are excluded by name, by the kind that the listing shows, or as an unwanted mount:
//! these may be on a server, or behind a FUSE program, that does not answer.
//!
//! Short directories are read in pieces of work: neighbours, and directories below them, until a piece has
//! [`PIECE_ENTRIES`] entries. Less would be done before a helper woke up. There are at most [`PIECES`] pieces for each level
//! of the tree, and a bound on the entries of all. Of a long directory, [`BATCHES`] batches of names are read ahead, each of
//! some 50 KiB.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::readahead::{Later, Readahead};
use super::rules::Rules;
use crate::backup::calls::Calls;
use crate::backup::limits::{Directories, OpenAhead};
use crate::format::{Kind, Timestamp};
use crate::source::{Directory, Error, FoundTags, ListedName, Mount, MountPlace, Stat, now};

/// Pieces of neighbouring directories that are read ahead.
pub(super) const PIECES: usize = 8;
/// Most names in a directory that is read in a piece.
const SHORT: usize = 1024;
/// Entries in a piece of work.
const PIECE_ENTRIES: usize = 512;
/// Directories in a piece of work. Each is open until the walk has been there.
const PIECE_DIRECTORIES: usize = 16;
/// Names in a batch.
const BATCH: usize = 128;
/// Batches that are read ahead.
const BATCHES: usize = 8;
/// The same while the directories that the walk is in hold much: one batch, which is small.
const CROWDED_BATCH: usize = 8;
/// How long entries that were read ahead are used. A large neighbour may keep the walk for hours.
const FRESH: Duration = Duration::from_secs(5);

/// A name in a directory.
pub(super) struct Name {
    pub(super) name: OsString,
    /// As [`ListedName::is_directory`].
    is_directory: Option<bool>,
    /// A given path is, or goes through, this entry: if it is a mount, it is entered.
    given: bool,
}

impl Name {
    /// A name from a listing of the directory.
    pub(super) fn listed(ListedName { name, is_directory }: ListedName) -> Self {
        Name { name, is_directory, given: false }
    }

    /// A name that the directory may have.
    pub(super) fn unlisted(name: OsString) -> Self {
        Name { name, is_directory: None, given: false }
    }

    /// The same name, with whether a given path is, or goes through, it.
    pub(super) fn if_given(self, given: bool) -> Self {
        Name { given, ..self }
    }
}

/// Shared by all directories of a walk.
#[derive(Clone)]
pub(super) struct WalkContext {
    pub(super) rules: Arc<Rules>,
    pub(super) calls: Arc<Calls>,
    pub(super) directories: Arc<Directories>,
}

/// The context of a directory, from before its entries are read.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) context: WalkContext,
    /// The mounts in it or below.
    pub(super) mounts: Option<Arc<MountPlace>>,
    pub(super) borders: Borders,
}

/// The file system of the given path that led to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Borders {
    /// Its device in stats.
    pub(super) device: u64,
    /// Its device in the mount table. `None` if the table does not have it.
    pub(super) file_system: Option<u64>,
}

impl Ground {
    /// The mount at a name, if it is left empty.
    fn left_empty(&self, name: &Name) -> Option<Mount> {
        let mounted = self.mounts.as_ref()?.child(&name.name)?.mounted()?;
        let foreign = self.context.rules.one_file_system && Some(mounted.device) != self.borders.file_system;
        (!name.given && (mounted.is_brackfs || foreign)).then_some(mounted)
    }

    fn is_mount(&self, name: &OsStr) -> bool {
        self.mounts.as_ref().and_then(|place| place.child(name)).is_some_and(|place| place.mounted().is_some())
    }

    /// The ground of a directory in this one.
    fn child(&self, name: &OsStr) -> Ground {
        let mounts = self.mounts.as_ref().and_then(|place| place.child(name)).cloned();
        Ground { mounts, ..self.clone() }
    }

    /// Stats the entries of these names, except excluded ones.
    fn stat_all(&self, directory: &Directory, names: Vec<Name>) -> Vec<StatResult> {
        let looked = now();
        let path = (!self.context.rules.exclude.is_empty()).then(|| directory.path());
        let call =
            self.context.calls.about_names(directory.shared_path(), names.iter().map(|name| name.name.as_os_str()));
        let mut looks = Vec::with_capacity(names.len());
        for name in names {
            looks.extend(self.stat(directory, name, path.as_ref(), looked));
            call.next();
        }
        looks
    }

    /// Stats an entry. `None` if it is excluded. `path` is that of the directory, if there are patterns.
    fn stat(&self, directory: &Directory, name: Name, path: Option<&PathBuf>, looked: Timestamp) -> Option<StatResult> {
        let mut is_directory = name.is_directory;
        if is_directory.is_none() && self.is_mount(&name.name) {
            is_directory = directory.is_mounted_directory(&name.name);
        }
        let path = path.map(|path| path.join(&name.name));
        let excludes =
            |is_directory| path.as_ref().is_some_and(|path| self.context.rules.exclude.matches(path, is_directory));
        let excluded = match is_directory {
            Some(is_directory) => Some(excludes(is_directory)),
            None => Some(excludes(true)).filter(|excluded| *excluded == excludes(false)),
        };
        if excluded == Some(true) {
            return None;
        }
        if is_directory == Some(true)
            && let Some(mounted) = self.left_empty(&name)
        {
            let stat = directory.stat_mount_point(&name.name, mounted.device);
            return Some(Ok(StatEntry { name: name.name, stat, looked, mounted: Some(mounted) }));
        }
        match directory.stat_child(&name.name) {
            Ok(stat) if self.context.rules.exclude_nodump && stat.nodump => None,
            Ok(stat) if excluded.is_none() && excludes(stat.kind == Kind::Directory) => None,
            Ok(stat) => Some(Ok(StatEntry { name: name.name, stat, looked, mounted: None })),
            Err(e) => Some(Err((name.name, e))),
        }
    }
}

/// An entry of a directory.
pub(super) struct StatEntry {
    pub(super) name: OsString,
    pub(super) stat: Stat,
    /// A time before the stat call.
    pub(super) looked: Timestamp,
    /// It is the mount point of this mount, which is left empty and must not be accessed.
    pub(super) mounted: Option<Mount>,
}

/// An entry, or its name and the error of the stat call.
pub(super) type StatResult = Result<StatEntry, (OsString, Error)>;

/// Bytes of memory of some entries.
pub(super) fn memory_of<'e>(entries: impl IntoIterator<Item = &'e StatEntry>) -> usize {
    entries.into_iter().map(|entry| size_of::<StatEntry>() + entry.name.len()).sum()
}

/// An open directory.
pub(super) struct OpenedDirectory {
    pub(super) directory: Arc<Directory>,
    /// Entries that exclude all others.
    pub(super) tagged: FoundTags,
    /// Its entries, if it is short and they were read already.
    short: Option<Vec<StatResult>>,
    /// Some entries of the short list were excluded.
    left_out: bool,
    /// Directories in it that were read already.
    pub(super) below: Below,
    /// A time before it was read.
    read: Instant,
    /// Counts it as opened ahead of the walk.
    pub(super) ahead: Option<OpenAhead>,
}

/// Directories in a directory, in order.
pub(super) type Below = VecDeque<(OsString, OpenedDirectory)>;

/// A directory that is to be read, in a directory.
pub(super) struct Unread {
    pub(super) name: OsString,
    pub(super) ground: Ground,
}

/// Some neighbouring directories, read ahead.
pub(super) struct Piece {
    /// Those that could be opened. The walk tries the others again.
    pub(super) opened: Below,
    /// Those that found no room in the piece.
    pub(super) rest: Vec<Unread>,
    /// Less than half of the piece was used.
    pub(super) has_room: bool,
}

impl Piece {
    /// Opens directories and reads the entries of short ones, and directories below them, until the piece is full.
    pub(super) fn of(above: &Directory, unread: Vec<Unread>) -> Self {
        let mut budget = PieceBudget { entries: PIECE_ENTRIES, directories: PIECE_DIRECTORIES };
        let mut opened = Below::new();
        let mut unread = unread.into_iter();
        while !budget.is_used_up()
            && let Some(Unread { name, ground }) = unread.next()
        {
            let directory = OpenedDirectory::within(&mut budget, above, &name, &ground);
            opened.extend(directory.map(|directory| (name, directory)));
        }
        let has_room = budget.entries > PIECE_ENTRIES / 2 && budget.directories > PIECE_DIRECTORIES / 2;
        Piece { opened, rest: unread.collect(), has_room }
    }
}

impl OpenedDirectory {
    /// `None` if it can't be opened, or not yet.
    fn within(piece: &mut PieceBudget, above: &Directory, name: &OsStr, ground: &Ground) -> Option<Self> {
        piece.directories -= 1;
        let mut ahead = ground.context.directories.take_ahead()?;
        let call = ground.context.calls.about_names(above.shared_path(), [name]);
        let mut opened = OpenedDirectory::open(above.open_child(name).ok()?, &ground.context.rules);
        // Errors are ignored here: the walk tries again, and reports them.
        let names = match opened.tagged.tags.is_empty() {
            true => opened.directory.list_short(SHORT).ok().flatten().filter(|names| ahead.take_entries(names.len())),
            false => None,
        };
        opened.ahead = Some(ahead);
        let Some(names) = names else { return Some(opened) };
        drop(call);
        let listed = names.len();
        let looks = ground.stat_all(&opened.directory, names.into_iter().map(Name::listed).collect());
        opened.left_out = looks.len() < listed;
        piece.entries = piece.entries.saturating_sub(looks.len());
        for StatEntry { name, stat, mounted, .. } in looks.iter().flatten() {
            if piece.is_used_up() {
                break;
            }
            let is_entered = stat.kind == Kind::Directory && mounted.is_none();
            if is_entered && ground.context.rules.is_inside(stat, ground.borders.device) {
                let below = OpenedDirectory::within(piece, &opened.directory, name, &ground.child(name));
                opened.below.extend(below.map(|below| (name.clone(), below)));
            }
        }
        opened.short = Some(looks);
        Some(opened)
    }

    /// A directory, and the tags in it.
    pub(super) fn open(directory: Directory, rules: &Rules) -> Self {
        let read = Instant::now();
        let tagged = rules.tags.in_directory(&directory);
        OpenedDirectory {
            directory: Arc::new(directory),
            tagged,
            short: None,
            left_out: false,
            below: Below::new(),
            read,
            ahead: None,
        }
    }

    /// Whether the entries that were read ahead are too old.
    pub(super) fn is_stale(&self) -> bool {
        self.read.elapsed() > FRESH
    }

    /// Forgets the entries that were read ahead, and looks for tags again.
    pub(super) fn renew(&mut self, rules: &Rules) {
        self.tagged = rules.tags.in_directory(&self.directory);
        self.forget();
    }

    /// Forgets the entries that were read ahead, so that they are read again.
    pub(super) fn forget(&mut self) {
        self.short = None;
        self.left_out = false;
        self.below.clear();
    }
}

/// The entries and directories that a piece of work may still take.
struct PieceBudget {
    entries: usize,
    directories: usize,
}

impl PieceBudget {
    fn is_used_up(&self) -> bool {
        self.entries == 0 || self.directories == 0
    }
}

/// Names of a directory, in order.
pub(super) type Names<'p> = Box<dyn Iterator<Item = Result<Name, Error>> + 'p>;

/// The entries of a directory, in order.
pub(super) struct Entries<'p> {
    directory: Arc<Directory>,
    ground: Ground,
    ready: VecDeque<StatResult>,
    ahead: VecDeque<Later<Vec<StatResult>>>,
    names: Option<Names<'p>>,
    depth: usize,
    /// The error that ended the names.
    failed: Option<Error>,
    /// Batches so far.
    batches: usize,
    /// The directory has names, even if all of them are excluded.
    any_names: bool,
    /// See [`Entries::memory`].
    memory: usize,
}

/// The next of a directory's entries.
pub(super) enum Next {
    Entry(StatResult),
    /// The directory can't be read to its end.
    Failed(Error),
    /// A helper panicked.
    Lost,
    End,
}

impl<'p> Entries<'p> {
    /// The entries of a directory at this depth of the tree. `names` is called unless they were read when it was opened, and
    /// returns how much memory they take.
    pub(super) fn new(
        opened: &mut OpenedDirectory,
        ground: Ground,
        depth: usize,
        names: impl FnOnce() -> Result<(Names<'p>, usize), Error>,
    ) -> Self {
        let mut entries = Entries {
            directory: opened.directory.clone(),
            ground,
            ready: VecDeque::new(),
            ahead: VecDeque::new(),
            names: None,
            depth,
            failed: None,
            batches: 0,
            any_names: opened.left_out,
            memory: 0,
        };
        match opened.short.take() {
            Some(looks) => {
                entries.memory = memory_of(looks.iter().flatten());
                entries.ready = looks.into();
            }
            None => match names() {
                Ok((names, memory)) => (entries.names, entries.memory) = (Some(names), memory),
                Err(e) => entries.failed = Some(e),
            },
        }
        entries
    }

    /// The memory that its first entries, or its names, take, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// The next entry. If the directories that the walk is in hold much, `is_crowded`, few are held.
    pub(super) fn next(&mut self, ahead: &Readahead, is_crowded: bool) -> Next {
        while self.ready.is_empty() && (self.names.is_some() || !self.ahead.is_empty()) {
            // The first batch is needed now, and is often the only one.
            let most = if self.batches == 0 || is_crowded { 1 } else { BATCHES };
            let size = if is_crowded { CROWDED_BATCH } else { BATCH };
            while self.ahead.len() < most
                && let Some(names) = self.batch(size)
            {
                self.batches += 1;
                self.ahead.push_back(match self.batches {
                    _ if is_crowded => Later::now(self.ground.stat_all(&self.directory, names)),
                    1 => Later::now(self.ground.stat_all(&self.directory, names)),
                    _ => {
                        let (directory, ground) = (self.directory.clone(), self.ground.clone());
                        ahead.send(self.depth, move || ground.stat_all(&directory, names))
                    }
                });
            }
            match self.ahead.pop_front().map(Later::get) {
                Some(Some(looks)) => self.ready = looks.into(),
                Some(None) => return Next::Lost,
                None => {}
            }
        }
        match (self.ready.pop_front(), self.failed.take()) {
            (Some(look), failed) => {
                self.failed = failed;
                Next::Entry(look)
            }
            (None, Some(error)) => Next::Failed(error),
            (None, None) => Next::End,
        }
    }

    /// The next batch of names.
    fn batch(&mut self, size: usize) -> Option<Vec<Name>> {
        let names = self.names.as_mut()?;
        let mut batch = Vec::with_capacity(size);
        while batch.len() < size {
            match names.next() {
                Some(Ok(name)) => batch.push(name),
                over => {
                    self.failed = over.and_then(Result::err);
                    self.names = None;
                    break;
                }
            }
        }
        self.any_names |= !batch.is_empty();
        (!batch.is_empty()).then_some(batch)
    }

    /// Whether names were excluded, if no entry came.
    pub(super) fn left_out(&self) -> bool {
        self.any_names
    }
}
