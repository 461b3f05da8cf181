//! What a walk finds in a directory: names in order, and what each of them is, looked at ahead of the walk.
//!
//! What is left out by its name, its kind as the listing says it, or because a mount is not wanted, is not looked at: it
//! may be on a server or behind a FUSE program that does not answer.
//!
//! A short directory is looked at as a whole, and those below it with it, until they have [`PIECE_ENTRIES`] entries
//! together: less would be over before a helper woke up. At most [`SIBLINGS`] such pieces are made for each level of
//! the tree; of a longer directory [`BATCHES`] batches of names are looked at ahead. Each takes some 50 KiB.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use super::readahead::{Later, Readahead};
use super::rules::Rules;
use crate::backup::calls::Calls;
use crate::backup::limits::{Directories, OpenAhead};
use crate::format::{Kind, Timestamp};
use crate::source::{Directory, Error, FoundTags, ListedName, Mount, MountPlace, Stat, now};

/// Directories beside each other that are looked into ahead.
pub(super) const SIBLINGS: usize = 8;
/// Names in a directory that is looked into as a whole.
const SHORT: usize = 256;
/// Entries that are looked at as one piece of work.
const PIECE_ENTRIES: usize = 512;
/// Directories in such a piece. Each is open until the walk has been there.
const PIECE_DIRECTORIES: usize = 16;
/// Names that are looked at together.
const BATCH: usize = 128;
/// Batches that are looked at ahead.
const BATCHES: usize = 8;

/// A name in a directory.
pub(super) struct Name {
    pub(super) name: OsString,
    /// As [`ListedName::is_directory`].
    is_directory: Option<bool>,
    /// A path that was given is or goes through it: a mount there is entered.
    given: bool,
}

impl Name {
    /// One that is known to be in the directory.
    pub(super) fn listed(ListedName { name, is_directory }: ListedName) -> Self {
        Name { name, is_directory, given: false }
    }

    /// One that may be there.
    pub(super) fn unlisted(name: OsString) -> Self {
        Name { name, is_directory: None, given: false }
    }

    /// The same, and whether a path that was given is or goes through it.
    pub(super) fn if_given(self, given: bool) -> Self {
        Name { given, ..self }
    }
}

/// What all directories of a walk share.
#[derive(Clone)]
pub(super) struct WalkContext {
    pub(super) rules: Arc<Rules>,
    pub(super) calls: Arc<Calls>,
    pub(super) directories: Arc<Directories>,
}

/// What is known about a directory before its entries are looked at.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) context: WalkContext,
    /// The mounts in it or below.
    pub(super) mounts: Option<Arc<MountPlace>>,
    pub(super) borders: Borders,
}

/// The file system of the path that was given and led to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Borders {
    /// Its device, as a stat shows it.
    pub(super) device: u64,
    /// Its device, as the mount table has it. None: the table does not have it.
    pub(super) file_system: Option<u64>,
}

impl Ground {
    /// The mount that a name in the directory is, if that is left empty.
    fn left_empty(&self, name: &Name) -> Option<Mount> {
        let mounted = self.mounts.as_ref()?.child(&name.name)?.mounted()?;
        let foreign = self.context.rules.one_file_system && Some(mounted.device) != self.borders.file_system;
        (!name.given && (mounted.is_brackfs || foreign)).then_some(mounted)
    }

    fn is_mount(&self, name: &OsStr) -> bool {
        self.mounts.as_ref().and_then(|place| place.child(name)).is_some_and(|place| place.mounted().is_some())
    }

    /// The same of a directory in it.
    fn child(&self, name: &OsStr) -> Ground {
        let mounts = self.mounts.as_ref().and_then(|place| place.child(name)).cloned();
        Ground { mounts, ..self.clone() }
    }

    /// Looks at names in `directory`, but for those that are left out.
    fn look_at(&self, directory: &Directory, names: Vec<Name>) -> Vec<StatResult> {
        let looked = now();
        let path = (!self.context.rules.exclude.is_empty()).then(|| directory.path());
        let call =
            self.context.calls.about_names(directory.shared_path(), names.iter().map(|name| name.name.as_os_str()));
        let mut looks = Vec::with_capacity(names.len());
        for name in names {
            looks.extend(self.look(directory, name, path.as_ref(), looked));
            call.next();
        }
        looks
    }

    /// Looks at a name. None: it is left out. `path`: that of the directory, if there are patterns.
    fn look(&self, directory: &Directory, name: Name, path: Option<&PathBuf>, looked: Timestamp) -> Option<StatResult> {
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
    /// A time before it was looked at.
    pub(super) looked: Timestamp,
    /// It is this mount, which is left empty and must not be asked anything.
    pub(super) mounted: Option<Mount>,
}

/// An entry, or a name and why it can't be looked at.
pub(super) type StatResult = Result<StatEntry, (OsString, Error)>;

/// A directory that was opened.
pub(super) struct OpenedDirectory {
    pub(super) directory: Arc<Directory>,
    /// Entries that say that no others are wanted.
    pub(super) tagged: FoundTags,
    /// All that is in it, unless that is much.
    short: Option<Vec<StatResult>>,
    /// Directories in it that were looked into, too.
    pub(super) below: Below,
    /// It is open before the walk is there.
    pub(super) ahead: Option<OpenAhead>,
}

/// Directories in a directory, in order.
pub(super) type Below = VecDeque<(OsString, OpenedDirectory)>;

impl OpenedDirectory {
    /// Opens a directory and, if it is short, looks at what is in it, and at some of what is below it.
    ///
    /// None: it can't be opened, or not yet. The walk will see.
    pub(super) fn with_below(above: &Directory, name: &OsStr, ground: &Ground) -> Option<Self> {
        let mut piece = PieceBudget { entries: PIECE_ENTRIES, directories: PIECE_DIRECTORIES };
        OpenedDirectory::within(&mut piece, above, name, ground)
    }

    fn within(piece: &mut PieceBudget, above: &Directory, name: &OsStr, ground: &Ground) -> Option<Self> {
        piece.directories -= 1;
        let ahead = ground.context.directories.take_ahead()?;
        let call = ground.context.calls.about_names(above.shared_path(), [name]);
        let mut opened = OpenedDirectory::open(above.open_child(name).ok()?, &ground.context.rules);
        opened.ahead = Some(ahead);
        if !opened.tagged.tags.is_empty() {
            return Some(opened);
        }
        // What fails here fails again when the walk comes, which reports it.
        let Some(names) = opened.directory.list_short(SHORT).ok().flatten() else { return Some(opened) };
        drop(call);
        let looks = ground.look_at(&opened.directory, names.into_iter().map(Name::listed).collect());
        piece.entries = piece.entries.saturating_sub(looks.len());
        for StatEntry { name, stat, mounted, .. } in looks.iter().flatten() {
            if piece.entries == 0 || piece.directories == 0 {
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

    /// A directory of which not everything may be wanted.
    pub(super) fn open(directory: Directory, rules: &Rules) -> Self {
        let tagged = rules.tags.in_directory(&directory);
        OpenedDirectory { directory: Arc::new(directory), tagged, short: None, below: Below::new(), ahead: None }
    }
}

/// How much more is looked at in one go.
struct PieceBudget {
    entries: usize,
    directories: usize,
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
    /// Why there are no more names.
    failed: Option<Error>,
    /// Batches so far.
    batches: usize,
}

/// What comes next.
pub(super) enum Next {
    Entry(StatResult),
    /// The directory can't be read to its end.
    Failed(Error),
    /// A part of the backup came to grief.
    Lost,
    End,
}

impl<'p> Entries<'p> {
    /// Those of a directory `depth` deep in the tree, by `names` unless they were looked at when it was opened.
    pub(super) fn new(
        opened: &mut OpenedDirectory,
        ground: Ground,
        depth: usize,
        names: impl FnOnce() -> Result<Names<'p>, Error>,
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
        };
        match opened.short.take() {
            Some(looks) => entries.ready = looks.into(),
            None => match names() {
                Ok(names) => entries.names = Some(names),
                Err(e) => entries.failed = Some(e),
            },
        }
        entries
    }

    pub(super) fn next(&mut self, ahead: &Readahead) -> Next {
        while self.ready.is_empty() && (self.names.is_some() || !self.ahead.is_empty()) {
            // The first batch may be all there is, and is wanted at once.
            let most = if self.batches == 0 { 1 } else { BATCHES };
            while self.ahead.len() < most
                && let Some(names) = self.batch()
            {
                self.batches += 1;
                self.ahead.push_back(match self.batches {
                    1 => Later::now(self.ground.look_at(&self.directory, names)),
                    _ => {
                        let (directory, ground) = (self.directory.clone(), self.ground.clone());
                        ahead.send(self.depth, move || ground.look_at(&directory, names))
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

    /// The next names to be looked at together.
    fn batch(&mut self) -> Option<Vec<Name>> {
        let names = self.names.as_mut()?;
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            match names.next() {
                Some(Ok(name)) => batch.push(name),
                over => {
                    self.failed = over.and_then(Result::err);
                    self.names = None;
                    break;
                }
            }
        }
        (!batch.is_empty()).then_some(batch)
    }
}
