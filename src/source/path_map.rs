//! Paths that are read in another place, such as `/home` in a snapshot of its file system.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Maps paths to the places where they are read. A path below a mapped one is read below its place, unless it is mapped
/// itself. By default every path is read where it is. Clones share the map.
#[derive(Debug, Clone, Default)]
pub struct PathMap(Option<Arc<Node>>);

/// A directory that is mapped, or that has mapped directories below it.
#[derive(Debug, Clone, Default)]
struct Node {
    place: Option<PathBuf>,
    below: BTreeMap<OsString, Arc<Node>>,
}

impl PathMap {
    /// Maps absolute paths to absolute paths without symbolic links. The first mapping of a path counts.
    pub fn new<'p>(pairs: impl IntoIterator<Item = (&'p Path, &'p Path)>) -> Self {
        let mut top = None;
        for (path, place) in pairs {
            let mut node = top.get_or_insert_with(Node::default);
            for name in names(path) {
                node = Arc::make_mut(node.below.entry(name.to_owned()).or_default());
            }
            node.place.get_or_insert_with(|| place.to_owned());
        }
        PathMap(top.map(Arc::new))
    }

    /// The map of the directory `name`, for names below it.
    pub(super) fn child(&self, name: &OsStr) -> PathMap {
        PathMap(self.0.as_ref().and_then(|node| node.below.get(name)).cloned())
    }

    /// The map of the directory at an absolute path.
    pub(super) fn at(&self, path: &Path) -> PathMap {
        names(path).fold(self.clone(), |map, name| map.child(name))
    }

    /// The place of an absolute path.
    pub fn place(&self, path: &Path) -> PathBuf {
        self.mapped_place(path).unwrap_or_else(|| path.to_owned())
    }

    /// The same, if the path is mapped.
    pub(super) fn mapped_place(&self, path: &Path) -> Option<PathBuf> {
        let top = self.0.as_ref().and_then(|node| node.place.as_ref());
        let below = path.strip_prefix("/").unwrap_or(path);
        self.mapped(below).or_else(|| Some(top?.join(below)))
    }

    /// The place of a path below the directory that this is the map of, if it is mapped apart from the directory.
    pub(super) fn mapped(&self, below: &Path) -> Option<PathBuf> {
        let mut node = self.0.as_ref()?;
        let mut place: Option<PathBuf> = None;
        let mut left = names(below);
        while let Some(name) = left.next() {
            match node.below.get(name) {
                Some(child) => {
                    place = child.place.clone().or_else(|| place.map(|place| place.join(name)));
                    node = child;
                }
                None => {
                    let mut place = place?.join(name);
                    place.extend(left);
                    return Some(place);
                }
            }
        }
        place
    }

    /// All mapped paths and their places, each after those that it is below.
    pub(super) fn pairs(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut pairs = Vec::new();
        let mut left: Vec<_> = self.0.iter().map(|top| (PathBuf::from("/"), top)).collect();
        while let Some((path, node)) = left.pop() {
            pairs.extend(node.place.clone().map(|place| (path.clone(), place)));
            left.extend(node.below.iter().map(|(name, below)| (path.join(name), below)));
        }
        pairs
    }
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> PathMap {
        PathMap::new(pairs.iter().map(|(path, place)| (Path::new(*path), Path::new(*place))))
    }

    #[test]
    fn the_deepest_mapping_counts() {
        let map = map(&[("/home", "/s/h"), ("/home/me/live", "/home/me/live"), ("/var/lib", "/t"), ("/home", "/no")]);
        for (path, place) in [
            ("/", "/"),
            ("/etc", "/etc"),
            ("/home", "/s/h"),
            ("/home/me", "/s/h/me"),
            ("/home/me/a/b", "/s/h/me/a/b"),
            ("/home/me/live/x", "/home/me/live/x"),
            ("/var", "/var"),
            ("/var/lib/x", "/t/x"),
        ] {
            assert_eq!(map.place(Path::new(path)), Path::new(place), "{path}");
        }
        assert_eq!(super::PathMap::default().place(Path::new("/a")), Path::new("/a"));
    }

    #[test]
    fn the_root_can_be_mapped() {
        let map = map(&[("/", "/s"), ("/proc", "/proc")]);
        for (path, place) in [("/", "/s"), ("/a/b", "/s/a/b"), ("/proc", "/proc"), ("/proc/1", "/proc/1")] {
            assert_eq!(map.place(Path::new(path)), Path::new(place), "{path}");
        }
        let shown: Vec<_> = map.pairs().into_iter().map(|(path, _)| path).collect();
        assert_eq!(shown, [Path::new("/"), Path::new("/proc")]);
    }

    #[test]
    fn names_of_a_directory_are_located() {
        let map = map(&[("/a/b/c", "/s"), ("/a/b", "/t")]);
        let a = map.at(Path::new("/a"));
        for (name, place) in [("x", "x"), ("b", "/t"), ("b/x", "/t/x"), ("b/c/x/y", "/s/x/y"), ("x/b", "x/b")] {
            assert_eq!(a.mapped(Path::new(name)).unwrap_or(name.into()), Path::new(place), "{name}");
        }
        assert_eq!(a.child(OsStr::new("b")).mapped(Path::new("c")), Some("/s".into()));
        assert_eq!(a.child(OsStr::new("x")).mapped(Path::new("c")), None);
    }
}
