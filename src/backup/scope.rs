//! What a backup is of: its paths, found once and without symbolic links, and the name of their source.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::selection::Selection;
use super::{Error, Options, list};
use crate::format::entry::is_name;
use crate::format::source::is_source_name;
use crate::source::{Pattern, Patterns};

/// What a backup is of.
pub(super) struct Scope {
    /// The source's name.
    pub(super) name: String,
    /// What was given, for people: paths without those in lists, or the name of what is read from a pipe.
    pub(super) paths: Vec<PathBuf>,
    pub(super) origin: Origin,
    pub(super) exclude: Patterns,
}

/// Where it comes from.
pub(super) enum Origin {
    /// A part of the file system.
    Tree {
        /// The snapshot's root.
        root: PathBuf,
        /// What of it is wanted.
        selection: Selection,
    },
    /// Standard input, as a file of this name.
    Stdin(Vec<u8>),
}

impl Scope {
    /// Finds out what to back up. `missing` hears of paths that are not there, as long as there are others.
    pub(super) fn of(options: &Options, missing: &mut dyn FnMut(&Path, &str)) -> Result<Self, Error> {
        if let Some(bad) = options.exclude_if_present.iter().find(|name| !is_name(name.as_bytes())) {
            return Err(Error::Usage(format!("{bad:?} can't be the name of an entry of a directory")));
        }
        match &options.stdin {
            Some(name) => Scope::of_stdin(name, options),
            None => Scope::of_tree(options, missing),
        }
    }

    fn of_stdin(name: &OsStr, options: &Options) -> Result<Self, Error> {
        if !is_name(name.as_bytes()) {
            return Err(Error::Usage(format!("{name:?} can't be the name of a file in a snapshot")));
        }
        Ok(Scope {
            name: source_name(options, Some(name))?,
            paths: vec![name.into()],
            origin: Origin::Stdin(name.as_bytes().to_vec()),
            exclude: Patterns::new(Path::new("/"), &[])?,
        })
    }

    fn of_tree(options: &Options, missing: &mut dyn FnMut(&Path, &str)) -> Result<Self, Error> {
        // All of the rules are looked at before any of the paths: those may be many.
        let patterns = patterns(options)?;
        let alone = options.files_from.is_empty() && options.paths.len() == 1;
        let mut resolver = Resolver::default();
        let mut paths = Vec::new();
        let mut selection = Selection::limited();
        let mut found = false;
        for path in &options.paths {
            match resolver.resolve(path, true) {
                Ok(path) => paths.push(path),
                Err(source) if alone => return Err(Error::NoSource { path: path.display().to_string(), source }),
                Err(e) => missing(path, &e.to_string()),
            }
        }
        for list in &options.files_from {
            list::read(list, &mut |path| match resolver.resolve(path, false) {
                Ok(path) => {
                    found = true;
                    selection.add(&path);
                }
                Err(e) => missing(path, &e.to_string()),
            })?;
        }
        if paths.is_empty() && !found {
            return Err(match options.paths.is_empty() && options.files_from.is_empty() {
                true => Error::Usage("nothing was given to back up".into()),
                false => Error::NothingThere,
            });
        }
        let name = source_name(options, paths.first().filter(|_| alone).and_then(|path| path.file_name()))?;
        let (root, selection) = match paths.first().filter(|path| alone && path.is_dir()) {
            Some(path) => (path.clone(), Selection::default()),
            None => {
                paths.iter().for_each(|path| selection.add(path));
                (PathBuf::from("/"), selection.finish())
            }
        };
        let exclude = Patterns::new(&root, &patterns)?;
        Ok(Scope { name, paths, origin: Origin::Tree { root, selection }, exclude })
    }

    /// The snapshot's root, for messages; a pipe has none.
    pub(super) fn root(&self) -> &Path {
        match &self.origin {
            Origin::Tree { root, .. } => root,
            Origin::Stdin(_) => Path::new(""),
        }
    }

    /// Refuses paths inside of directories that are never entered. Those below the paths are merely left empty.
    pub(super) fn stay_out_of(&self, forbidden: &HashSet<(u64, u64)>) -> Result<(), Error> {
        let Origin::Tree { .. } = self.origin else { return Ok(()) };
        let is_forbidden = |path: &&Path| identify(path).is_some_and(|inode| forbidden.contains(&inode));
        for path in &self.paths {
            if let Some(own) = path.ancestors().find(is_forbidden) {
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

/// Device and inode of what is at a path.
pub(super) fn identify(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Of files first, then those that were given by themselves, so that these win.
fn patterns(options: &Options) -> Result<Vec<Pattern>, Error> {
    let mut patterns = Vec::new();
    for file in &options.exclude_from {
        patterns.extend(Pattern::read_file(file)?);
    }
    patterns.extend(options.exclude.iter().map(Pattern::new));
    Ok(patterns)
}

fn source_name(options: &Options, last: Option<&OsStr>) -> Result<String, Error> {
    let name = match (&options.source, last) {
        (Some(name), _) => name.clone(),
        (None, Some(last)) => last.to_string_lossy().into_owned(),
        (None, None) => "root".into(),
    };
    match is_source_name(&name) {
        true => Ok(name),
        false => Err(Error::Usage(format!("{name:?} can't name a source; give another name with --source"))),
    }
}

/// Finds paths without symbolic links in them. Remembers the last directory: in a list the next path is often
/// in the same one.
#[derive(Default)]
struct Resolver {
    last: Option<(PathBuf, PathBuf)>,
}

impl Resolver {
    /// The path without symbolic links on the way. One at its end is followed only if it is to be, and only to a
    /// directory.
    fn resolve(&mut self, path: &Path, follow: bool) -> io::Result<PathBuf> {
        let absolute = std::path::absolute(path)?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return absolute.canonicalize();
        };
        let resolved = match &self.last {
            Some((given, real)) if given == parent => real.join(name),
            _ => {
                let real = parent.canonicalize()?;
                self.last = Some((parent.to_owned(), real.clone()));
                real.join(name)
            }
        };
        match resolved.symlink_metadata()?.is_symlink() && follow && resolved.is_dir() {
            true => resolved.canonicalize(),
            false => Ok(resolved),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_on_the_way_are_resolved_and_those_at_the_end_if_they_are_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("d/e")).unwrap();
        fs::write(real.join("d/f"), "").unwrap();
        for (target, name) in [("d", "to-d"), ("d/f", "to-f"), ("nowhere", "to-nothing")] {
            symlink(target, real.join(name)).unwrap();
        }
        for (path, followed, kept) in [
            ("d/f", "d/f", "d/f"),
            ("to-d/f", "d/f", "d/f"),
            ("to-d/../d//e/", "d/e", "d/e"),
            ("d/e/..", "d", "d"),
            ("to-d", "d", "to-d"),
            ("to-d/", "d", "to-d"),
            ("to-f", "to-f", "to-f"),
            ("to-nothing", "to-nothing", "to-nothing"),
        ] {
            let mut resolver = Resolver::default();
            assert_eq!(resolver.resolve(&real.join(path), true).unwrap(), real.join(followed), "{path}");
            assert_eq!(resolver.resolve(&real.join(path), false).unwrap(), real.join(kept), "{path}");
        }
        let mut resolver = Resolver::default();
        for missing in ["d/absent", "absent/f", "d/f/below"] {
            assert!(resolver.resolve(&real.join(missing), true).is_err(), "{missing}");
        }
        assert_eq!(resolver.resolve(Path::new("/"), true).unwrap(), Path::new("/"));
    }
}
