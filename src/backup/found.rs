//! What a walk finds in a directory: names in order, and what each of them is, looked at ahead of the walk.
//!
//! A short directory is looked at as a whole, and those below it with it, until they have [`PIECE_ENTRIES`] entries
//! together: less would be over before a helper woke up. At most [`SIBLINGS`] such pieces are made for each level of
//! the tree; of a longer directory [`BATCHES`] batches of names are looked at ahead. Each takes some 50 KiB.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::ahead::{Ahead, Later};
use super::rules::Rules;
use crate::format::{Kind, Timestamp};
use crate::source::{Directory, Error, Listing, Stat, now};

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

/// An entry of a directory.
pub(super) struct Found {
    pub(super) name: OsString,
    pub(super) stat: Stat,
    /// A time before it was looked at.
    pub(super) looked: Timestamp,
}

/// An entry, or a name and why it can't be looked at.
pub(super) type Look = Result<Found, (OsString, Error)>;

/// A directory that was opened.
pub(super) struct Opened {
    pub(super) directory: Arc<Directory>,
    /// Entries that say that no others are wanted.
    pub(super) tagged: Vec<OsString>,
    /// All that is in it, unless that is much.
    short: Option<Vec<Look>>,
    /// Directories in it that were looked into, too.
    pub(super) below: Below,
}

/// Directories in a directory, in order.
pub(super) type Below = VecDeque<(OsString, Result<Opened, Error>)>;

impl Opened {
    /// Opens a directory and, if it is short, looks at what is in it, and at some of what is below it. `path` leads to
    /// it from the root.
    pub(super) fn with_below(
        above: &Directory,
        name: &OsStr,
        path: &Path,
        device: u64,
        rules: &Rules,
    ) -> Result<Self, Error> {
        Opened::within(
            &mut Piece { device, rules, entries: PIECE_ENTRIES, directories: PIECE_DIRECTORIES },
            above,
            name,
            path,
        )
    }

    fn within(piece: &mut Piece<'_>, above: &Directory, name: &OsStr, path: &Path) -> Result<Self, Error> {
        piece.directories -= 1;
        let mut opened = Opened::only(above.open_child(name)?, piece.rules);
        if !opened.tagged.is_empty() {
            return Ok(opened);
        }
        // What fails here fails again when the walk comes, which reports it.
        let Some(names) = opened.directory.list_short(SHORT).ok().flatten() else { return Ok(opened) };
        let looks = look_at(&opened.directory, names);
        piece.entries = piece.entries.saturating_sub(looks.len());
        for Found { name, stat, .. } in looks.iter().flatten() {
            if piece.entries == 0 || piece.directories == 0 {
                break;
            }
            let inside = stat.kind == Kind::Directory && piece.rules.is_inside(stat, piece.device);
            if inside && !piece.rules.exclude(path, name, stat) {
                let below = Opened::within(piece, &opened.directory, name, &path.join(name));
                opened.below.push_back((name.clone(), below));
            }
        }
        opened.short = Some(looks);
        Ok(opened)
    }

    /// A directory of which not everything may be wanted.
    pub(super) fn only(directory: Directory, rules: &Rules) -> Self {
        let tagged = rules.tags.in_directory(&directory);
        Opened { directory: Arc::new(directory), tagged, short: None, below: Below::new() }
    }
}

/// How much more is looked at in one go.
struct Piece<'r> {
    /// The file system that the directories are on.
    device: u64,
    rules: &'r Rules,
    entries: usize,
    directories: usize,
}

/// Names of a directory, in order.
pub(super) type Names<'p> = Box<dyn Iterator<Item = Result<OsString, Error>> + 'p>;

/// The entries of a directory, in order.
pub(super) struct Entries<'p> {
    directory: Arc<Directory>,
    ready: VecDeque<Look>,
    ahead: VecDeque<Later<Vec<Look>>>,
    names: Option<Names<'p>>,
    depth: usize,
    /// Why there are no more names.
    failed: Option<Error>,
    /// Batches so far.
    batches: usize,
}

/// What comes next.
pub(super) enum Next {
    Look(Look),
    /// The directory can't be read to its end.
    Failed(Error),
    /// A part of the backup came to grief.
    Lost,
    End,
}

impl<'p> Entries<'p> {
    /// Those of a directory `depth` deep in the tree, by `names` unless they were looked at when it was opened.
    pub(super) fn new(opened: &mut Opened, depth: usize, names: impl FnOnce() -> Result<Names<'p>, Error>) -> Self {
        let mut entries = Entries {
            directory: opened.directory.clone(),
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

    pub(super) fn next(&mut self, ahead: &Ahead) -> Next {
        while self.ready.is_empty() && (self.names.is_some() || !self.ahead.is_empty()) {
            // The first batch may be all there is, and is wanted at once.
            let most = if self.batches == 0 { 1 } else { BATCHES };
            while self.ahead.len() < most
                && let Some(names) = self.batch()
            {
                let directory = self.directory.clone();
                self.batches += 1;
                self.ahead.push_back(match self.batches {
                    1 => Later::now(look_at(&directory, names)),
                    _ => ahead.send(self.depth, move || look_at(&directory, names)),
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
                Next::Look(look)
            }
            (None, Some(error)) => Next::Failed(error),
            (None, None) => Next::End,
        }
    }

    /// The next names to be looked at together.
    fn batch(&mut self) -> Option<Vec<OsString>> {
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

fn look_at(directory: &Directory, names: impl IntoIterator<Item = OsString>) -> Vec<Look> {
    let looked = now();
    let look = |name: OsString| match directory.stat_child(&name) {
        Ok(stat) => Ok(Found { name, stat, looked }),
        Err(e) => Err((name, e)),
    };
    names.into_iter().map(look).collect()
}

/// The names of all that a directory holds.
pub(super) fn all(directory: &Directory) -> Result<Names<'static>, Error> {
    directory.list().map(|listing: Listing| -> Names<'static> { Box::new(listing) })
}
