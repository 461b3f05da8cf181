//! The wanted part of a tree: all of it, or some paths with everything below them.
//!
//! All paths are in one buffer, as names with a NUL before each, and sorted, so the paths below a directory are a range. A
//! path takes its length and 16 bytes more, and up to twice that while paths are added: a list of a million paths of 100
//! bytes takes about 120 MB.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// Wanted paths, each with everything below it. By default everything is wanted.
#[derive(Debug, Default)]
pub(in crate::backup) struct PathSet {
    names: Vec<u8>,
    /// The range of each path in `names`.
    spans: Vec<Span>,
    /// Only the paths are wanted, even if there are none.
    limited: bool,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    length: u32,
}

impl Span {
    fn of(self, names: &[u8]) -> &[u8] {
        names.get(self.start..self.start + self.length as usize).unwrap_or_default()
    }
}

impl PathSet {
    /// An empty set: nothing is wanted.
    pub(in crate::backup) fn limited() -> Self {
        PathSet { limited: true, ..PathSet::default() }
    }

    /// Adds an absolute path.
    pub(in crate::backup) fn add(&mut self, path: &Path) {
        let start = self.names.len();
        for part in path.components() {
            if let Component::Normal(part) = part {
                self.names.push(0);
                self.names.extend_from_slice(part.as_bytes());
            }
        }
        // The system accepts only much shorter paths.
        let length = u32::try_from(self.names.len() - start).unwrap_or(u32::MAX);
        self.spans.push(Span { start, length });
    }

    /// Sorts the paths, once all are added.
    pub(in crate::backup) fn finish(mut self) -> Self {
        let names = &self.names;
        // With NUL between names, bytes sort as names do, directory by directory.
        self.spans.sort_unstable_by(|a, b| a.of(names).cmp(b.of(names)));
        self.spans.dedup_by(|a, b| a.of(names) == b.of(names));
        self.spans.shrink_to_fit();
        self
    }

    /// Whether no other path leads to this one, through it or below it.
    pub(in crate::backup) fn has_apart(&self, path: &Path) -> bool {
        let mut part = self.root();
        for name in path.components() {
            if let Component::Normal(name) = name {
                if part.whole {
                    return false;
                }
                part = part.child(name);
            }
        }
        !part.leads_further()
    }

    /// The wanted part of the root.
    pub(in crate::backup) fn root(&self) -> Subset<'_> {
        Subset { names: &self.names, spans: &self.spans, length: 0, whole: !self.limited }.or_given()
    }
}

/// The wanted part of a directory.
#[derive(Debug, Clone, Copy)]
pub(in crate::backup) struct Subset<'s> {
    names: &'s [u8],
    /// The paths to it and below it.
    spans: &'s [Span],
    /// The length of the directory's own path, with which each begins.
    length: usize,
    /// Everything in the directory is wanted.
    pub(in crate::backup) whole: bool,
}

impl<'s> Subset<'s> {
    fn or_given(mut self) -> Self {
        self.whole |= self.is_given();
        self
    }

    /// Whether the directory itself is one of the paths.
    pub(in crate::backup) fn is_given(&self) -> bool {
        self.spans.first().is_some_and(|first| first.length as usize == self.length)
    }

    /// Whether there are paths below it.
    pub(in crate::backup) fn leads_further(&self) -> bool {
        self.spans.len() > usize::from(self.is_given())
    }

    /// The same part without entries that lead to no path.
    pub(in crate::backup) fn without_the_rest(self) -> Self {
        Subset { whole: false, ..self }
    }

    /// The next name of a path after the directory. `None` if the path ends there.
    fn next(&self, span: &Span) -> Option<&'s [u8]> {
        span.of(self.names).get(self.length + 1..)?.split(|byte| *byte == 0).next()
    }

    /// The names in it that lead to paths, in order.
    pub(in crate::backup) fn names(self) -> impl Iterator<Item = OsString> + 's {
        let mut left = self.spans;
        std::iter::from_fn(move || {
            loop {
                let Some(name) = self.next(left.first()?) else {
                    left = left.get(1..)?;
                    continue;
                };
                let same = left.partition_point(|span| self.next(span) <= Some(name));
                left = left.get(same..)?;
                return Some(OsString::from_vec(name.to_vec()));
            }
        })
    }

    /// Whether a path leads to or through this name.
    pub(in crate::backup) fn has(&self, name: &OsStr) -> bool {
        !self.child(name).spans.is_empty()
    }

    /// The wanted part of an entry.
    pub(in crate::backup) fn child(&self, name: &OsStr) -> Subset<'s> {
        let name = name.as_bytes();
        let start = self.spans.partition_point(|span| self.next(span) < Some(name));
        let end = self.spans.partition_point(|span| self.next(span) <= Some(name));
        let spans = self.spans.get(start..end).unwrap_or_default();
        Subset { spans, length: self.length + 1 + name.len(), ..*self }.or_given()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(paths: &[&str]) -> PathSet {
        let mut selection = PathSet::limited();
        paths.iter().for_each(|path| selection.add(Path::new(path)));
        selection.finish()
    }

    fn names(part: Subset<'_>) -> Vec<String> {
        part.names().map(|name| name.into_string().unwrap()).collect()
    }

    fn at<'s>(selection: &'s PathSet, path: &str) -> Subset<'s> {
        path.split('/').filter(|name| !name.is_empty()).fold(selection.root(), |part, name| part.child(name.as_ref()))
    }

    #[test]
    fn by_default_every_directory_is_whole() {
        let all = PathSet::default();
        for path in ["/", "/a", "/a/b"] {
            let part = at(&all, path);
            assert!(part.whole && !part.leads_further(), "{path}");
        }
    }

    #[test]
    fn paths_are_wanted_with_everything_below_them() {
        let s = selection(&["/home/me", "/etc/fstab", "/home/me too/x", "/etc/passwd", "/etc/fstab"]);
        assert_eq!(names(s.root()), ["etc", "home"]);
        assert_eq!(names(at(&s, "/etc")), ["fstab", "passwd"]);
        assert_eq!(names(at(&s, "/home")), ["me", "me too"]);
        assert_eq!(names(at(&s, "/home/me too")), ["x"]);
        for (path, whole, given) in [
            ("/", false, false),
            ("/home", false, false),
            ("/home/me", true, true),
            ("/home/me/a", true, false),
            ("/home/me/a/b", true, false),
            ("/home/me too", false, false),
            ("/etc/fstab", true, true),
            ("/etc/other", false, false),
        ] {
            let part = at(&s, path);
            assert_eq!((part.whole, part.is_given()), (whole, given), "{path}");
        }
        assert!(s.root().has("etc".as_ref()) && !s.root().has("et".as_ref()));
    }

    #[test]
    fn a_path_below_another_one_is_kept() {
        let s = selection(&["/a/b/c", "/a"]);
        let a = at(&s, "/a");
        assert!(a.whole && a.is_given() && a.leads_further());
        assert_eq!(names(a.without_the_rest()), ["b"]);
        let b = a.without_the_rest().child("b".as_ref());
        assert!(!b.whole && b.leads_further());
        assert!(!s.has_apart(Path::new("/a")) && !s.has_apart(Path::new("/a/b/c")));
        assert!(selection(&["/a/b", "/a/c"]).has_apart(Path::new("/a/b")));
        assert!(b.child("c".as_ref()).whole && !b.child("c".as_ref()).leads_further());
    }

    #[test]
    fn the_root_can_be_a_path() {
        let s = selection(&["/", "/mnt/x"]);
        assert!(s.root().whole && s.root().is_given() && s.root().leads_further());
        assert_eq!(names(s.root()), ["mnt"]);
    }

    #[test]
    fn names_sort_as_a_directory_lists_them() {
        let s = selection(&["/a/x", "/a!", "/a.b", "/a/y", "/a\u{1}"]);
        assert_eq!(names(s.root()), ["a", "a\u{1}", "a!", "a.b"]);
        assert_eq!(names(at(&s, "/a")), ["x", "y"]);
    }

    #[test]
    fn an_empty_set_wants_nothing() {
        let s = selection(&[]);
        assert!(!s.root().whole && names(s.root()).is_empty());
    }

    #[test]
    fn a_path_takes_little_memory() {
        let mut s = PathSet::limited();
        let length = "/data/some/directory/file-0000000".len();
        let count = 100_000;
        (0..count).for_each(|number| s.add(Path::new(&format!("/data/some/directory/file-{number:07}"))));
        let s = s.finish();
        let held = s.names.capacity() + s.spans.capacity() * size_of::<Span>();
        assert!(held <= count * (2 * length + 16), "{held} bytes");
        assert_eq!(at(&s, "/data/some/directory").names().count(), count);
    }
}
