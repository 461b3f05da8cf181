//! Candidates for values in shell completions: snapshots, sources, targets, and paths in snapshots.
//!
//! They come from the catalog, the configuration and local repositories. A completion asks for no passphrase, contacts no
//! server, and prints no error: without candidates, the shell offers none.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::{ArgMatches, FromArgMatches};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};

use super::global::Global;
use super::reader_args::{FirstUse, ReaderArgs, SMALL_CACHE};
use super::repository_arg::RepositoryArg;
use super::show::local_name_time;
use crate::archive::{Archive, EntryHandle, Selector, SnapshotDirectory};
use crate::catalog::{Catalog, Presence, SnapshotRow};
use crate::config::TargetConfig;
use crate::crypt::SecretKey;
use crate::monitor::Silent;
use crate::repository::Repository;
use crate::state::RepositoryState;
use crate::sys::bounded::{KEYS, read_file};
use crate::sys::mountinfo::{MountInfo, TABLE};

/// Maximum number of snapshots, and of entries of a directory, that are offered.
const MOST: usize = 500;
/// The age of a look at a server that still tells which repository is there.
const LOOKED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Completes `SNAP[:PATH]`, or `@NAME` in front of it.
pub(super) fn snapshots() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let found = match current.as_bytes() {
            [b'@', ..] => targets("@"),
            name if name.contains(&b':') => paths(current),
            _ => names_of_snapshots(current),
        };
        beginning_with(current, found)
    })
}

/// Completes the name of a source in the catalog.
pub(super) fn sources() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let rows = Line::typed().and_then(|line| line.snapshots()).unwrap_or_default();
        let names: BTreeSet<_> = rows.into_iter().map(|row| row.source).collect();
        beginning_with(current, Some(names.into_iter().map(CompletionCandidate::new).collect()))
    })
}

/// Completes the name of a source in the configuration.
pub(super) fn configured_sources() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let config = || Line::typed()?.global.config().ok()?;
        let named = |config: crate::config::Config| {
            config.sources.into_iter().map(|source| CompletionCandidate::new(source.name)).collect()
        };
        beginning_with(current, config().map(named))
    })
}

/// Completes a repository: the name of a target, or a directory.
pub(super) fn repositories() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let mark = if current.as_bytes().starts_with(b"@") { "@" } else { "" };
        let mut found = beginning_with(current, targets(mark));
        found.extend(PathCompleter::dir().complete(current));
        found
    })
}

/// The targets of the configuration, with a mark in front of the names.
fn targets(mark: &str) -> Option<Vec<CompletionCandidate>> {
    let config = Line::typed()?.global.config().ok()??;
    let named = |target: TargetConfig| CompletionCandidate::new(format!("{mark}{}", target.name));
    Some(config.targets.into_iter().map(named).collect())
}

/// Completes a mount point of brackfs.
pub(super) fn mounts() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let table = std::fs::read(TABLE).unwrap_or_default();
        let mounts = table.split(|byte| *byte == b'\n').filter_map(MountInfo::parse).filter(MountInfo::is_brackfs);
        beginning_with(current, Some(mounts.map(|mount| CompletionCandidate::new(mount.mount_point())).collect()))
    })
}

fn beginning_with(current: &OsStr, found: Option<Vec<CompletionCandidate>>) -> Vec<CompletionCandidate> {
    let fits = |one: &CompletionCandidate| one.get_value().as_bytes().starts_with(current.as_bytes());
    found.unwrap_or_default().into_iter().filter(fits).collect()
}

/// The command line that is completed.
struct Line {
    global: Global,
    matches: ArgMatches,
}

impl Line {
    /// Parses it, as far as it is there.
    fn typed() -> Option<Line> {
        let words: Vec<OsString> = std::env::args_os().skip_while(|word| *word != "--").skip(1).collect();
        let command = super::command().ignore_errors(true);
        let mut matches = command.try_get_matches_from(super::with_target(words)).ok()?;
        let global = Global::from_arg_matches(&matches).ok()?;
        while let Some((_, below)) = matches.remove_subcommand() {
            matches = below;
        }
        Some(Line { global, matches })
    }

    /// The snapshots of the repository, newest first.
    fn snapshots(&self) -> Option<Vec<SnapshotRow>> {
        let place = RepositoryArg::from_arg_matches(&self.matches).ok()?.resolve(&self.global).ok()?.location;
        let state = self.global.state().ok()?;
        let (id, known) = match place.is_remote() {
            true => RepositoryState::looked_at(&state, &place.identity(), LOOKED)?,
            false => {
                let id = Repository::open(&place).ok()?.id();
                (id, RepositoryState::new(&state, id))
            }
        };
        let mut rows = Catalog::view(&known.catalog_path(), id).ok()?.read(|catalog| catalog.snapshots()).ok()?;
        rows.retain(|row| row.presence == Presence::There);
        rows.reverse();
        Some(rows)
    }
}

fn names_of_snapshots(current: &OsStr) -> Option<Vec<CompletionCandidate>> {
    let rows = Line::typed()?.snapshots()?;
    let mut found = Vec::new();
    found.extend((!rows.is_empty()).then(|| CompletionCandidate::new("latest")));
    let sources: BTreeSet<_> = rows.iter().map(|row| &row.source).collect();
    found.extend(sources.into_iter().map(|source| CompletionCandidate::new(format!("{source}/latest"))));
    found.extend(ids(&rows, current));
    Some(found)
}

/// The ids that begin with `current`. If there are too many, those of the newest snapshots.
fn ids(rows: &[SnapshotRow], current: &OsStr) -> impl Iterator<Item = CompletionCandidate> {
    let fits = move |row: &&SnapshotRow| row.name.id.short().as_bytes().starts_with(current.as_bytes());
    rows.iter().filter(fits).take(MOST).map(|row| {
        let about = format!("{} {}", row.source, local_name_time(&row.name.time));
        CompletionCandidate::new(row.name.id.short()).help(Some(about.into()))
    })
}

/// The entries of the directory that `SNAP:PATH` begins with.
fn paths(current: &OsStr) -> Option<Vec<CompletionCandidate>> {
    let line = Line::typed()?;
    // A command that only writes has no key.
    line.matches.try_contains_id("key").ok()?;
    let args = ReaderArgs::from_arg_matches(&line.matches).ok()?;
    let place = args.repository.resolve(&line.global).ok()?.location;
    if place.is_remote() {
        return None;
    }
    let repository = Repository::open(&place).ok()?;
    if repository.encrypted() {
        // A pipe or a terminal would be waited for.
        let file = args.key.as_ref().filter(|file| file.is_file())?;
        let key = SecretKey::parse(&read_file(file, KEYS).ok()?).ok()?;
        Some(key).filter(|key| !key.is_locked())?;
    }
    let typed = current.to_str()?;
    let selector = Selector::parse(typed.as_bytes()).ok()?;
    let path = str::from_utf8(&selector.path).ok()?;
    let (directory, name) = path.split_at(path.rfind('/').map_or(0, |slash| slash + 1));
    let front = typed.strip_suffix(path)?;
    let reader = args.open_in(repository, FirstUse::Refused, &line.global, &Silent, SMALL_CACHE).ok()?;
    let archive: &dyn Archive = &reader;
    let snapshot = archive.select(&selector, &mut |_, _| {}).ok()?.snapshot;
    let listed = archive.at_path(&snapshot, directory.as_bytes()).ok()?;
    let mut found = Vec::new();
    for entry in names_from(archive, &listed.directory()?, name.as_bytes())? {
        let slash = if entry.directory().is_some() { "/" } else { "" };
        // A control character would act on the terminal, or end the candidate.
        if let Some(name) = str::from_utf8(entry.entry().name).ok().filter(|name| !name.contains(char::is_control)) {
            found.push(CompletionCandidate::new(format!("{front}{directory}{name}{slash}")));
        }
    }
    Some(found)
}

/// The first entries of a directory whose names begin with `prefix`. The directory may be large, so the entries before them
/// are not read.
fn names_from(archive: &dyn Archive, directory: &SnapshotDirectory, prefix: &[u8]) -> Option<Vec<EntryHandle>> {
    // The position of the first one is between these. Names are in ascending order.
    let (mut from, mut to) = (0, directory.below);
    while from < to {
        let middle = from.midpoint(to);
        match archive.list(directory, middle).ok()?.next() {
            Some(entry) if entry.entry().name < prefix => from = middle + 1,
            _ => to = middle,
        }
    }
    let mut found = Vec::new();
    loop {
        let (page, before) = (archive.list(directory, from).ok()?, found.len());
        for entry in page {
            if found.len() >= MOST || !entry.entry().name.starts_with(prefix) {
                return Some(found);
            }
            found.push(entry);
        }
        match (found.len() - before) as u64 {
            0 => return Some(found),
            listed => from += listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::{SnapshotId, SourceId};
    use crate::format::name::{self, SnapshotName};

    #[test]
    fn the_id_of_an_old_snapshot_is_completed() {
        let row = |number: u16| {
            let mut id = [0; 8];
            id[..2].copy_from_slice(&number.to_be_bytes());
            let name =
                SnapshotName { source: SourceId::random(), sequence: 1, time: name::time(0), id: SnapshotId(id) };
            SnapshotRow {
                name,
                source: "home".into(),
                labels: Default::default(),
                files: 0,
                bytes: 0,
                stored_bytes: 0,
                presence: Presence::There,
                is_held: false,
                root: Default::default(),
            }
        };
        let rows: Vec<_> = (0..3000).map(row).collect();
        let count = |current: &str| ids(&rows, current.as_ref()).count();
        assert_eq!((count(""), count("0"), count("0bb7"), count("0bb8")), (MOST, MOST, 1, 0));
    }
}
