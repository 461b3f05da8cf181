//! What of a tree is wanted: all of it, or what leads to some paths and what is below them.
//!
//! The paths stand in one buffer, sorted, each as the names that lead to it with a NUL before each name; a
//! directory's own part of them is a stretch. So a path takes its own length and 16 bytes more, and while
//! the paths are gathered at most twice that: a list of a million paths of 100 bytes takes about 120 MB.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// Paths of which each is wanted with all below it. Without any: everything is wanted.
#[derive(Debug, Default)]
pub(in crate::backup) struct PathSet {
    names: Vec<u8>,
    /// Where each path stands in `names`.
    spans: Vec<Span>,
    /// Given are paths, even if there are none.
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
    /// Gathers paths.
    pub(in crate::backup) fn limited() -> Self {
        PathSet { limited: true, ..PathSet::default() }
    }

    /// Adds a path, which is absolute.
    pub(in crate::backup) fn add(&mut self, path: &Path) {
        let start = self.names.len();
        for part in path.components() {
            if let Component::Normal(part) = part {
                self.names.push(0);
                self.names.extend_from_slice(part.as_bytes());
            }
        }
        // A path is as long as the system takes at most, which is much less.
        let length = u32::try_from(self.names.len() - start).unwrap_or(u32::MAX);
        self.spans.push(Span { start, length });
    }

    /// Makes the paths ready to be asked for.
    pub(in crate::backup) fn finish(mut self) -> Self {
        let names = &self.names;
        // With NUL between names, bytes sort as names do, directory by directory.
        self.spans.sort_unstable_by(|a, b| a.of(names).cmp(b.of(names)));
        self.spans.dedup_by(|a, b| a.of(names) == b.of(names));
        self.spans.shrink_to_fit();
        self
    }

    /// The part of the root.
    pub(in crate::backup) fn root(&self) -> Subset<'_> {
        Subset { names: &self.names, spans: &self.spans, length: 0, whole: !self.limited }.or_given()
    }
}

/// What is wanted of a directory.
#[derive(Debug, Clone, Copy)]
pub(in crate::backup) struct Subset<'s> {
    names: &'s [u8],
    /// The paths to it and to what is below it.
    spans: &'s [Span],
    /// Bytes of each that lead to the directory.
    length: usize,
    /// Everything in it is wanted.
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

    /// Only what leads to the paths below it.
    pub(in crate::backup) fn without_the_rest(self) -> Self {
        Subset { whole: false, ..self }
    }

    /// The name below the directory that a path goes on with; none if it ends there.
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

    /// What is wanted of what has this name in it.
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
    fn everything_is_whole_all_the_way_down() {
        let all = PathSet::default();
        for path in ["/", "/a", "/a/b"] {
            let part = at(&all, path);
            assert!(part.whole && !part.leads_further(), "{path}");
        }
    }

    #[test]
    fn only_what_leads_to_paths_is_named_and_below_them_all_is_wanted() {
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
    fn a_path_below_another_is_still_known() {
        let s = selection(&["/a/b/c", "/a"]);
        let a = at(&s, "/a");
        assert!(a.whole && a.is_given() && a.leads_further());
        assert_eq!(names(a.without_the_rest()), ["b"]);
        let b = a.without_the_rest().child("b".as_ref());
        assert!(!b.whole && b.leads_further());
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
    fn no_paths_want_nothing() {
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
