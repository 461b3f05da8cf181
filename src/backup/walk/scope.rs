//! The paths of a backup, without symbolic links, and the name of their source.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::list;
use super::path_set::PathSet;
use crate::backup::calls::Calls;
use crate::backup::error::Error;
use crate::backup::options::{Placed, Selection, Stream};
use crate::format::source::{SOURCE_NAME, is_source_name};
use crate::monitor::Monitor;
use crate::source::{Inode, MountTable, PathMap, Pattern, Patterns};

/// The paths to back up.
pub(in crate::backup) struct Scope {
    /// The source's name.
    pub(in crate::backup) name: String,
    /// The given paths, without those in lists, or the name of the pipe's file. Shown to people.
    pub(in crate::backup) paths: Vec<PathBuf>,
    pub(in crate::backup) origin: Origin,
    pub(in crate::backup) exclude: Patterns,
    /// How many given paths do not exist.
    pub(in crate::backup) missing: u64,
    /// Where paths are read.
    pub(in crate::backup) map: PathMap,
    /// The `paths` that are not excluded and not placed.
    wanted: Vec<PathBuf>,
    /// The directories that are backed up under other paths.
    placed: Vec<PathBuf>,
}

/// Where content comes from.
pub(in crate::backup) enum Origin {
    /// A part of the file system.
    Tree {
        /// The root of the snapshot.
        root: PathBuf,
        /// The wanted paths below it.
        selection: PathSet,
    },
    /// Standard input or the output of a command.
    Stream(Stream),
}

impl Scope {
    /// Resolves the given paths. Missing paths are problems, unless all are missing.
    pub(in crate::backup) fn of(
        given: &Selection,
        mounts: &MountTable,
        calls: &Calls,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        match &given.stream {
            Some(stream) => Scope::of_stream(stream, given),
            None => Scope::of_tree(given, mounts, calls, monitor),
        }
    }

    fn of_stream(stream: &Stream, given: &Selection) -> Result<Self, Error> {
        let name = stream.filename.as_os_str();
        Ok(Scope {
            name: source_name(given, Some(name))?,
            paths: vec![name.into()],
            origin: Origin::Stream(stream.clone()),
            exclude: Patterns::new(Path::new("/"), &[])?,
            missing: 0,
            map: PathMap::default(),
            wanted: Vec::new(),
            placed: Vec::new(),
        })
    }

    fn of_tree(given: &Selection, mounts: &MountTable, calls: &Calls, monitor: &dyn Monitor) -> Result<Self, Error> {
        // Patterns are checked before the paths, which may be many.
        let patterns = patterns(given)?;
        let alone = given.files_from.is_empty() && given.paths.len() + given.placed.len() == 1;
        // The only path is the root of all patterns, or a single file.
        let exclude = Patterns::new(Path::new("/"), if alone { &[] } else { &patterns })?;
        let mut resolver = Resolver { exclude, mounts, calls, last: None };
        let (mut paths, mut wanted, mut missing) = (Vec::new(), Vec::new(), 0);
        let mut selection = PathSet::limited();
        let mut found = false;
        for written in &given.paths {
            match resolver.resolve(written, Last::Follow) {
                Ok(Resolved { path, excluded, link }) => {
                    if let Some(link) = link {
                        monitor.note(&link_note(written, &path, &link));
                    }
                    if !excluded {
                        wanted.push(path.clone());
                    }
                    paths.push(path);
                }
                Err(source) if alone => return Err(Error::NoSource { path: written.display().to_string(), source }),
                Err(e) => {
                    missing += 1;
                    monitor.problem(written, &format!("{e}; it is missing from the snapshot"));
                }
            }
        }
        let mut places = Vec::new();
        for Placed { path, from } in &given.placed {
            match resolver.directory(from) {
                Ok(place) => {
                    places.push((path.clone(), place));
                    paths.push(path.clone());
                }
                Err(source) if alone => return Err(Error::NoSource { path: from.display().to_string(), source }),
                Err(e) => {
                    missing += 1;
                    monitor.problem(from, &e.to_string());
                }
            }
        }
        for list in &given.files_from {
            list::read(list, &mut |path| match resolver.resolve(path, Last::Keep) {
                Ok(resolved) => {
                    found = true;
                    selection.add(&resolved.path);
                }
                Err(e) => {
                    missing += 1;
                    monitor.problem(path, &format!("{e}; it is missing from the snapshot"));
                }
            })?;
        }
        if paths.is_empty() && !found {
            let is_nothing_given = given.paths.is_empty() && given.placed.is_empty() && given.files_from.is_empty();
            let usage = || Error::Usage("nothing was given to back up".into());
            return Err(if is_nothing_given { usage() } else { Error::NothingThere });
        }
        let name = source_name(given, paths.first().filter(|_| alone).and_then(|path| path.file_name()))?;
        let map = map(&places, given);
        let (root, selection) = match paths.first().filter(|path| alone && is_directory(&map.place(path))) {
            Some(path) => (path.clone(), PathSet::default()),
            None => {
                paths.iter().for_each(|path| selection.add(path));
                (PathBuf::from("/"), selection.finish())
            }
        };
        check_places(&places, &paths, &root, &selection)?;
        let exclude = Patterns::new(&root, &patterns)?;
        let placed = places.into_iter().map(|(_, place)| place).collect();
        Ok(Scope { name, paths, origin: Origin::Tree { root, selection }, exclude, missing, map, wanted, placed })
    }

    /// The path that the snapshot's root has on this machine; `None` for a pipe.
    pub(in crate::backup) fn root_path(&self) -> Option<Vec<u8>> {
        match &self.origin {
            Origin::Tree { root, .. } => Some(root.as_os_str().as_bytes().to_vec()),
            Origin::Stream(_) => None,
        }
    }

    /// The root of the snapshot, for messages; empty for a pipe.
    pub(in crate::backup) fn root(&self) -> &Path {
        match &self.origin {
            Origin::Tree { root, .. } => root,
            Origin::Stream(_) => Path::new(""),
        }
    }

    /// Fails if a path is inside a directory that is never entered. Such directories below the paths are left empty.
    pub(in crate::backup) fn stay_out_of(&self, forbidden: &HashSet<Inode>) -> Result<(), Error> {
        let Origin::Tree { .. } = self.origin else { return Ok(()) };
        let inode = |path: &Path| path.symlink_metadata().map(|metadata| inode_of(&metadata));
        let is_forbidden = |path: &Path| inode(path).is_ok_and(|inode| forbidden.contains(&inode));
        let ways = self.wanted.iter().map(|path| (path, true)).chain(self.placed.iter().map(|path| (path, false)));
        for (path, is_mapped) in ways {
            let place = |path: &Path| if is_mapped { self.map.place(path) } else { path.to_owned() };
            if let Some(own) = path.ancestors().find(|path| is_forbidden(&place(path))) {
                return Err(Error::Usage(format!(
                    "{} can't be backed up here: {} belongs to this repository or to brackfs's own state",
                    path.display(),
                    own.display()
                )));
            }
        }
        Ok(())
    }
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Where paths are read. Directories above a placed one are read above its place if that ends with its path, such as
/// `/mnt/old/home/me` for `/home/me`, or if this machine does not have them.
fn map(places: &[(PathBuf, PathBuf)], given: &Selection) -> PathMap {
    let mut above = Vec::new();
    for (path, place) in places {
        let below_root = path.strip_prefix("/").unwrap_or(path);
        let mut is_mapped = place.ends_with(below_root);
        let top = Path::new("/");
        let there = place.ancestors().chain(iter::repeat(top));
        let mut pairs: Vec<_> = path.ancestors().zip(there).skip(1).take_while(|(path, _)| *path != top).collect();
        pairs.reverse();
        for (path, place) in pairs {
            is_mapped |= !is_directory(path);
            if is_mapped {
                above.push((path, place));
            }
        }
    }
    let placed = places.iter().map(|(path, place)| (path.as_path(), place.as_path()));
    let read = given.read_from.iter().map(|Placed { path, from }| (path.as_path(), from.as_path()));
    PathMap::new(placed.chain(above).chain(read))
}

/// Fails if a placed directory is above or below another path, which would hide a part of one of them.
fn check_places(
    places: &[(PathBuf, PathBuf)],
    paths: &[PathBuf],
    root: &Path,
    selection: &PathSet,
) -> Result<(), Error> {
    for (path, _) in places {
        let is_repeated = paths.iter().filter(|other| *other == path).count() > 1;
        if is_repeated || path != root && !selection.has_apart(path) {
            let why = "is the same as another path, or above or below it";
            return Err(Error::Usage(format!("{} {why}; back it up by itself", path.display())));
        }
    }
    Ok(())
}

/// The inode of the file or directory that a path leads to.
pub(in crate::backup) fn identify(path: &Path) -> Option<Inode> {
    path.metadata().ok().map(|metadata| inode_of(&metadata))
}

fn inode_of(metadata: &Metadata) -> Inode {
    Inode { device: metadata.dev(), number: metadata.ino() }
}

/// All patterns. Patterns from files come first, so that the patterns given directly win.
fn patterns(given: &Selection) -> Result<Vec<Pattern>, Error> {
    let mut patterns = Vec::new();
    for file in &given.exclude_from {
        patterns.extend(Pattern::read_file(file)?);
    }
    patterns.extend(given.exclude.iter().map(Pattern::new));
    Ok(patterns)
}

fn source_name(given: &Selection, last: Option<&OsStr>) -> Result<String, Error> {
    let name = match (&given.source, last) {
        (Some(name), _) => name.clone(),
        (None, Some(last)) => match last.to_str() {
            Some(name) => name.to_owned(),
            None => {
                let what = format!("{last:?} is not UTF-8, so it cannot name a source; name the source with --source");
                return Err(Error::Usage(what));
            }
        },
        (None, None) => "root".into(),
    };
    if !is_source_name(&name) {
        return Err(Error::Usage(format!(
            "{name:?} can't name a source: {SOURCE_NAME}; give another name with --source"
        )));
    }
    Ok(name)
}

/// Whether a path ends with `/` or `/.`.
fn is_meant_as_directory(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.strip_suffix(b".").unwrap_or(path).ends_with(b"/")
}

/// The note about a path that ends with a symbolic link.
fn link_note(given: &Path, found: &Path, link: &Path) -> String {
    if is_meant_as_directory(given) {
        return format!("{} is a symbolic link: {} is backed up", given.display(), found.display());
    }
    format!(
        "{0} is a symbolic link to {1} and stored as a link; to back up its target, give {0}/",
        given.display(),
        link.display()
    )
}

/// How to treat a symbolic link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Follow it if the path ends with a slash.
    Follow,
    /// Keep it.
    Keep,
}

/// A path without symbolic links.
struct Resolved {
    /// The path. A symbolic link at its end may be kept. If a directory on the way is excluded, the path ends there.
    path: PathBuf,
    /// The path is excluded. It was not accessed.
    excluded: bool,
    /// The target of a symbolic link at the end.
    link: Option<PathBuf>,
}

/// As many symbolic links as the kernel follows in one path.
const LINKS_MAX: usize = 40;

/// Resolves symbolic links without accessing excluded paths. Caches the last directory: in a list the next path is often in
/// the same one.
struct Resolver<'m> {
    exclude: Patterns,
    mounts: &'m MountTable,
    calls: &'m Calls,
    last: Option<(PathBuf, PathBuf)>,
}

impl Resolver<'_> {
    /// Follows all symbolic links of a path to a directory. Patterns do not apply to it.
    fn directory(&self, path: &Path) -> io::Result<PathBuf> {
        let absolute = std::path::absolute(path)?;
        let _call = self.calls.about(absolute.as_path().into());
        let real = absolute.canonicalize()?;
        if is_directory(&real) { Ok(real) } else { Err(Errno::NOTDIR.into()) }
    }

    fn resolve(&mut self, path: &Path, last: Last) -> io::Result<Resolved> {
        let absolute = std::path::absolute(path)?;
        let _call = self.calls.about(absolute.as_path().into());
        let follow = last == Last::Follow && is_meant_as_directory(path);
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return self.walk(PathBuf::from("/"), &absolute);
        };
        let real = match &self.last {
            Some((given, real)) if given == parent => real.clone(),
            _ => {
                let above = self.walk(PathBuf::from("/"), parent)?;
                if above.excluded {
                    return Ok(above);
                }
                self.last = Some((parent.to_owned(), above.path.clone()));
                above.path
            }
        };
        let path = real.join(name);
        if self.is_excluded(&path) {
            return Ok(Resolved { path, excluded: true, link: None });
        }
        if !path.symlink_metadata()?.is_symlink() {
            return Ok(Resolved { path, excluded: false, link: None });
        }
        let link = Some(path.read_link()?);
        if !follow {
            return Ok(Resolved { path, excluded: false, link });
        }
        Ok(Resolved { link, ..self.walk(real, Path::new(name))? })
    }

    /// Follows a path from a directory, through all symbolic links.
    fn walk(&self, from: PathBuf, path: &Path) -> io::Result<Resolved> {
        let mut real = from;
        let mut links = 0;
        // The last name is the next one.
        let mut names = Vec::new();
        push_names(&mut names, path);
        while let Some(name) = names.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            real.push(&name);
            if self.is_excluded(&real) {
                return Ok(Resolved { path: real, excluded: true, link: None });
            }
            let metadata = real.symlink_metadata()?;
            if !metadata.is_symlink() {
                if !metadata.is_dir() && !names.is_empty() {
                    return Err(Errno::NOTDIR.into());
                }
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = real.read_link()?;
            real = if target.is_absolute() { PathBuf::from("/") } else { real.parent().unwrap_or(&real).to_owned() };
            push_names(&mut names, &target);
        }
        Ok(Resolved { path: real, excluded: false, link: None })
    }

    /// Whether a path without symbolic links is excluded, whether it is a directory or not; or is excluded as a directory, and
    /// is a mount point.
    fn is_excluded(&self, path: &Path) -> bool {
        if self.exclude.is_empty() || !self.exclude.matches(path, true) {
            return false;
        }
        let is_mount = || self.mounts.find(path).1.is_some_and(|place| place.mounted().is_some());
        self.exclude.matches(path, false) || is_mount()
    }
}

/// Pushes the names of a path, so that the first one is popped first.
fn push_names(names: &mut Vec<OsString>, path: &Path) {
    let parts: Vec<_> = path.components().collect();
    names.extend(parts.iter().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    }));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolver<'m>(exclude: &[&str], (mounts, calls): &'m (MountTable, Calls)) -> Resolver<'m> {
        let patterns: Vec<_> = exclude.iter().map(|glob| Pattern::new(*glob)).collect();
        Resolver { exclude: Patterns::new(Path::new("/"), &patterns).unwrap(), mounts, calls, last: None }
    }

    #[test]
    fn links_are_followed_on_the_way_and_at_the_end_if_a_slash_follows() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("d/e")).unwrap();
        fs::write(real.join("d/f"), "").unwrap();
        let absolute = real.join("d/e").display().to_string();
        for (target, name) in [
            ("d", "to-d"),
            ("d/f", "to-f"),
            ("nowhere", "to-nothing"),
            (absolute.as_str(), "to-e"),
            ("to-e/../../to-d", "to-to-d"),
            ("loop", "loop"),
        ] {
            symlink(target, real.join(name)).unwrap();
        }
        let nothing = (MountTable::default(), Calls::default());
        for (path, followed, kept) in [
            ("d/f", "d/f", "d/f"),
            ("to-d/f", "d/f", "d/f"),
            ("to-to-d/f", "d/f", "d/f"),
            ("to-d/../d//e/", "d/e", "d/e"),
            ("to-e/..", "d", "d"),
            ("to-d", "to-d", "to-d"),
            ("to-d/", "d", "to-d"),
            ("to-e/", "d/e", "to-e"),
            ("to-e/.", "d/e", "to-e"),
            ("to-f", "to-f", "to-f"),
            ("to-nothing", "to-nothing", "to-nothing"),
            ("loop", "loop", "loop"),
        ] {
            let mut resolver = resolver(&[], &nothing);
            let found = resolver.resolve(&real.join(path), Last::Follow).unwrap();
            assert_eq!(found.path, real.join(followed), "{path}");
            let is_link = real.join(kept).is_symlink();
            assert_eq!(found.link.is_some(), is_link, "{path}");
            assert_eq!(resolver.resolve(&real.join(path), Last::Keep).unwrap().path, real.join(kept), "{path}");
        }
        let mut resolver = resolver(&[], &nothing);
        for missing in ["d/absent", "absent/f", "d/f/below", "loop/x", "to-nothing/", "loop/"] {
            assert!(resolver.resolve(&real.join(missing), Last::Follow).is_err(), "{missing}");
        }
        assert_eq!(resolver.resolve(Path::new("/"), Last::Follow).unwrap().path, Path::new("/"));
    }

    #[test]
    fn excluded_paths_are_not_accessed() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir(real.join("d")).unwrap();
        symlink("d", real.join("link")).unwrap();
        let nothing = (MountTable::default(), Calls::default());
        let mut resolver = resolver(&["absent", "**/d/gone", "here/"], &nothing);
        for (path, end) in
            [("absent", "absent"), ("absent/x/y", "absent"), ("link/gone", "d/gone"), ("link/../absent/x", "absent")]
        {
            let found = resolver.resolve(&real.join(path), Last::Follow).unwrap();
            assert_eq!((found.path, found.excluded), (real.join(end), true), "{path}");
        }
        // Only directories are excluded, and its kind is unknown.
        assert!(resolver.resolve(&real.join("here"), Last::Follow).is_err());
    }
}
