//! What the user does not want, in the language of `.gitignore`.
//!
//! A pattern with a `/` at its start or inside is meant from the root on, another one anywhere. A `/` at the
//! end matches directories only, `!` takes back what a pattern before it said, `**` stands for any number of
//! directories. Empty patterns and those that begin with `#` say nothing (`\#` is a `#`). Besides, `{a,b}` is
//! a choice.

use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Error;

/// The patterns of a source.
#[derive(Debug, Clone)]
pub struct Exclude {
    /// Absent if there are no patterns: asking costs nothing then.
    patterns: Option<Gitignore>,
}

impl Exclude {
    /// Reads `globs`, of which later ones win. Those that are anchored begin at `root`.
    pub fn new(root: &Path, globs: &[String]) -> Result<Self, Error> {
        // The root is cut off the front of paths: it must not be mistaken for the start of a relative one.
        let mut builder = GitignoreBuilder::new(if root.is_absolute() { root } else { Path::new(".") });
        // A `[` that nothing closes is more likely an error than meant.
        builder.allow_unclosed_class(false);
        for glob in globs {
            builder.add_line(None, glob).map_err(|e| bad_pattern(glob, e))?;
        }
        // Each pattern is sound, but all of them together may be too large.
        let patterns = builder.build().map_err(|e| bad_pattern(&globs.join("\n"), e))?;
        Ok(Exclude { patterns: (!patterns.is_empty()).then_some(patterns) })
    }

    /// Whether something is excluded by a pattern that matches it. What is below an excluded directory need
    /// not be: do not descend. The path is relative to the root (or absolute and below it).
    pub fn excludes(&self, relative_path: &Path, is_directory: bool) -> bool {
        self.patterns.as_ref().is_some_and(|patterns| patterns.matched(relative_path, is_directory).is_ignore())
    }
}

fn bad_pattern(pattern: &str, error: ignore::Error) -> Error {
    let why = match error {
        ignore::Error::Glob { err, .. } => err,
        other => other.to_string(),
    };
    Error::Pattern { pattern: pattern.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn exclude(globs: &[&str]) -> Exclude {
        let globs: Vec<_> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        Exclude::new(Path::new("/source"), &globs).unwrap()
    }

    fn file(exclude: &Exclude, path: &str) -> bool {
        exclude.excludes(Path::new(path), false)
    }

    fn directory(exclude: &Exclude, path: &str) -> bool {
        exclude.excludes(Path::new(path), true)
    }

    #[test]
    fn nothing_is_excluded_without_patterns() {
        assert!(!file(&exclude(&[]), "a"));
        assert!(exclude(&["", "# nothing"]).patterns.is_none());
    }

    #[test]
    fn an_anchored_pattern_matches_at_the_root_only() {
        let e = exclude(&["/foo", "a/b"]);
        assert!(file(&e, "foo") && directory(&e, "foo"));
        assert!(!file(&e, "x/foo") && !file(&e, "foobar"));
        assert!(file(&e, "a/b") && !file(&e, "x/a/b"));
    }

    #[test]
    fn a_pattern_without_slash_matches_anywhere() {
        let e = exclude(&["*.o"]);
        assert!(file(&e, "x.o") && file(&e, "a/b/x.o") && directory(&e, "dir.o") && file(&e, ".o"));
        assert!(!file(&e, "x.o/y") && !file(&e, "x.ob"));
    }

    #[test]
    fn a_slash_at_the_end_means_directories() {
        let e = exclude(&["cache/"]);
        assert!(directory(&e, "cache") && directory(&e, "a/cache"));
        assert!(!file(&e, "cache") && !file(&e, "a/cache"));
    }

    #[test]
    fn the_last_match_wins() {
        let e = exclude(&["*.log", "!keep.log", "/deep/keep.log"]);
        assert!(file(&e, "x.log"));
        assert!(!file(&e, "keep.log") && !file(&e, "a/keep.log"));
        assert!(file(&e, "deep/keep.log"));
        assert!(file(&exclude(&["!keep.log", "*.log"]), "keep.log"));
    }

    #[test]
    fn stars_do_not_cross_directories_but_double_ones_do() {
        let e = exclude(&["/a/*/c", "/x/**/z", "/inside/**"]);
        assert!(file(&e, "a/b/c") && !file(&e, "a/b/b/c"));
        assert!(file(&e, "x/z") && file(&e, "x/y/y/z"));
        assert!(file(&e, "inside/it") && !directory(&e, "inside"));
    }

    #[test]
    fn names_need_not_be_utf8() {
        let e = exclude(&["*.o", "/d\u{e9}/?x"]);
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        assert!(e.excludes(path(b"\xff\xfe/\xc3.o"), false));
        assert!(e.excludes(path(b"d\xc3\xa9/\xffx"), false));
        assert!(!e.excludes(path(b"\xff\xfe.p"), false));
    }

    #[test]
    fn a_relative_root_is_not_cut_off() {
        let e = Exclude::new(Path::new("src"), &["/src/x".to_owned()]).unwrap();
        assert!(file(&e, "src/x"));
        assert!(!file(&e, "x"));
        let e = Exclude::new(Path::new("/"), &["/home/*/tmp".to_owned()]).unwrap();
        assert!(directory(&e, "home/me/tmp") && directory(&e, "/home/me/tmp"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        for bad in ["[a", "{a", "z[b-a]"] {
            let globs = ["*.o".to_owned(), bad.to_owned()];
            let error = Exclude::new(Path::new("/"), &globs).unwrap_err().to_string();
            assert!(error.starts_with(&format!("the pattern {bad:?} is not valid: ")), "{error}");
        }
    }
}
