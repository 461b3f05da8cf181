//! Paths that share their prefixes.
//!
//! A walk keeps a directory open on each level, and a queue of results. If each held its whole path, memory would grow
//! with the square of the depth.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path as a linked list: the parent's path, and a name. Clones and descendants share it.
#[derive(Debug, Clone)]
pub struct SharedPath(Arc<PathNode>);

#[derive(Debug)]
struct PathNode {
    above: Option<SharedPath>,
    name: OsString,
}

impl SharedPath {
    /// Appends a name.
    pub fn child(&self, name: &OsStr) -> SharedPath {
        SharedPath(Arc::new(PathNode { above: Some(self.clone()), name: name.to_owned() }))
    }

    /// Builds the path in one piece.
    pub fn to_path(&self) -> PathBuf {
        let mut names = Vec::new();
        let mut length = 0;
        let mut next = Some(self);
        while let Some(SharedPath(node)) = next {
            length += node.name.len() + 1;
            names.push(node.name.as_os_str());
            next = node.above.as_ref();
        }
        let mut path = PathBuf::with_capacity(length);
        path.extend(names.iter().rev());
        path
    }
}

impl From<&Path> for SharedPath {
    fn from(path: &Path) -> Self {
        SharedPath(Arc::new(PathNode { above: None, name: path.as_os_str().to_owned() }))
    }
}

impl fmt::Display for SharedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_path().display().fmt(f)
    }
}

impl Drop for PathNode {
    /// Frees the ancestors in a loop: recursion would overflow the stack for a deep path.
    fn drop(&mut self) {
        let mut next = self.above.take();
        while let Some(mut node) = next.and_then(|SharedPath(node)| Arc::into_inner(node)) {
            next = node.above.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_names_in_order() {
        let root = SharedPath::from(Path::new("/a/b"));
        let child = root.child(OsStr::new("c"));
        assert_eq!(child.child(OsStr::new("d")).to_path(), Path::new("/a/b/c/d"));
        assert_eq!(child.to_path(), Path::new("/a/b/c"));
        assert_eq!(root.to_string(), "/a/b");
        assert_eq!(SharedPath::from(Path::new("/")).child(OsStr::new("x")).to_path(), Path::new("/x"));
    }

    #[test]
    fn a_deep_path_is_freed_without_recursion() {
        let root = SharedPath::from(Path::new("/"));
        let deep = (0..1_000_000).fold(root.clone(), |path, _| path.child(OsStr::new("d")));
        let middle = deep.0.above.clone();
        drop(deep);
        drop(middle);
        assert_eq!(root.to_path(), Path::new("/"));
    }
}
