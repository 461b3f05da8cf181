//! The position of the walk in the tree, and the wanted entries there.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::listing::{Below, Borders, Name, Names, OpenedDirectory};
use super::path_set::Subset;
use super::recognize::KnownDirectory;
use super::rules::Rules;
use crate::source::{self, Directory, MountPlace, Stat};

/// The position of a directory in the tree, and its wanted part.
#[derive(Clone, Copy)]
pub(super) struct Position<'a> {
    pub(super) part: Subset<'a>,
    /// The mounts in it or below.
    pub(super) mounts: Option<&'a Arc<MountPlace>>,
    pub(super) borders: Borders,
    /// The device of its file system, as a stat shows it.
    pub(super) device: u64,
    pub(super) depth: usize,
    /// Entries below it in the last backup, if it is the root or a given path; otherwise 0.
    pub(super) entries_before: u64,
}

impl<'a> Position<'a> {
    /// The root of the tree. `mounts` are those at the root or below.
    pub(super) fn root(
        part: Subset<'a>,
        mounts: Option<&'a Arc<MountPlace>>,
        file_system: Option<u64>,
        stat: &Stat,
    ) -> Self {
        let borders = Borders { device: stat.dev, file_system };
        Position { part, mounts, borders, device: stat.dev, depth: 0, entries_before: 0 }
    }

    /// A directory in this one, on the same file system.
    pub(super) fn child(&self, name: &OsStr) -> Position<'a> {
        Position {
            part: self.part.child(name),
            mounts: self.mounts.and_then(|place| place.child(name)),
            borders: self.borders,
            device: self.device,
            depth: self.depth + 1,
            entries_before: 0,
        }
    }
}

/// The directory that the walk is in.
pub(super) struct Here<'a> {
    pub(super) directory: &'a Arc<Directory>,
    pub(super) known: Option<&'a KnownDirectory>,
    pub(super) place: Position<'a>,
    /// Directories in it that were looked into together with it.
    pub(super) below: &'a RefCell<Below>,
}

impl Here<'_> {
    /// Whether its row in the catalog is that of this place.
    pub(super) fn is_in_place(&self) -> bool {
        self.known.is_some_and(|known| known.in_place)
    }

    /// Whether a directory in it that has another device number belongs to the same mount: a subvolume that is not mounted
    /// by itself.
    pub(super) fn shares_mount_with(&self, name: &OsStr) -> bool {
        let is_mount_point = || self.place.mounts.and_then(|place| place.child(name)?.mounted()).is_some();
        self.directory.shares_mount_with(name).unwrap_or_else(|| !is_mount_point())
    }

    /// Whether the directory of this name was looked into already.
    pub(super) fn is_read_below(&self, name: &OsStr) -> bool {
        self.below.borrow().iter().any(|(there, _)| there == name)
    }

    /// Adds directories that were looked into.
    pub(super) fn add_below(&self, opened: Below) {
        let mut below = self.below.borrow_mut();
        below.extend(opened);
        below.make_contiguous().sort_by(|(one, _), (other, _)| one.cmp(other));
    }

    /// Takes the directory of this name, if it was looked into already. They come in order, and some are never asked for.
    pub(super) fn take_below(&self, name: &OsStr) -> Option<OpenedDirectory> {
        let mut below = self.below.borrow_mut();
        while below.front().is_some_and(|(there, _)| there.as_os_str() < name) {
            below.pop_front();
        }
        let is_it = below.front().is_some_and(|(there, _)| there == name);
        if is_it { below.pop_front().map(|(_, opened)| opened) } else { None }
    }
}

/// Whether the walk goes into a directory.
pub(super) enum Passage<'a> {
    Enter(Position<'a>),
    /// It stays empty: it is a mount that is not wanted.
    Skip,
    /// It stays empty: it is a mount of brackfs, or belongs to the repository or to this program's state.
    SkipOwn,
}

/// Decides whether the walk goes into a directory in `here`. A mount that is a given path, or leads to one, is entered for
/// that path.
pub(super) fn passage<'a>(
    here: &Here<'a>,
    rules: &Rules,
    name: &OsStr,
    stat: &Stat,
    mount: DirectoryMount,
) -> Passage<'a> {
    let DirectoryMount { is_unvisited, is_brackfs } = mount;
    let mut place = Position { device: stat.dev, ..here.place.child(name) };
    if place.part.is_given() {
        let mounted = rules.mounts.find(&here.directory.child_path(name)).0;
        place.borders = Borders { device: stat.dev, file_system: mounted.map(|mounted| mounted.device) };
    }
    let is_forbidden = rules.forbidden.contains(&stat.inode());
    let is_elsewhere = place.part.whole && stat.dev != place.borders.device;
    let is_foreign = is_elsewhere && (is_brackfs || rules.one_file_system && !here.shares_mount_with(name));
    if is_elsewhere && !is_foreign && rules.one_file_system {
        place.borders.device = stat.dev;
    }
    let may_visit = !is_unvisited && !is_forbidden;
    if may_visit && !is_foreign {
        return Passage::Enter(place);
    }
    if may_visit && place.part.leads_further() {
        return Passage::Enter(Position { part: place.part.without_the_rest(), ..place });
    }
    if is_forbidden || is_brackfs { Passage::SkipOwn } else { Passage::Skip }
}

/// The mount that a directory is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirectoryMount {
    /// It is a mount point that must not be visited.
    pub(super) is_unvisited: bool,
    /// It is a mount of brackfs.
    pub(super) is_brackfs: bool,
}

/// The names in a directory that are wanted. `tagged` are entries that exclude all others.
pub(super) fn wanted_names<'p>(
    directory: &Directory,
    mut tagged: Vec<OsString>,
    part: Subset<'p>,
    kept: usize,
) -> Result<(Names<'p>, usize), source::Error> {
    let unlisted = move |name: OsString| {
        let given = part.has(&name);
        Ok(Name::unlisted(name).if_given(given))
    };
    if !tagged.is_empty() {
        tagged.retain(|tag| part.whole || part.has(tag));
        return Ok((Box::new(tagged.into_iter().map(unlisted)), 0));
    }
    if !part.whole {
        return Ok((Box::new(part.names().map(unlisted)), 0));
    }
    let listing = directory.list_within(kept)?;
    let memory = listing.memory();
    if !part.leads_further() {
        return Ok((Box::new(listing.map(|listed| listed.map(Name::listed))), memory));
    }
    let names = listing.map(move |listed| {
        listed.map(|listed| {
            let given = part.has(&listed.name);
            Name::listed(listed).if_given(given)
        })
    });
    Ok((Box::new(names), memory))
}
