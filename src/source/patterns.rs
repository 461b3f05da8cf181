//! Include and exclude patterns in the syntax of `.gitignore`.
//!
//! A pattern with a `/` at its start or in the middle is anchored at the root; others match at any depth. A `/` at the
//! end restricts a pattern to directories, `!` negates an earlier match, `**` matches any number of directories. In
//! addition, `{a,b}` matches alternatives.
//!
//! A file of patterns has one pattern per line. Lines that begin with `#` are comments (`\#` is a literal `#`). Trailing
//! blanks are removed unless escaped with a backslash. A byte order mark, carriage returns at line ends and empty patterns
//! are ignored. Outside of a file, both characters are literal, since shells and TOML have comments of their own, and an
//! empty pattern is an error.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::error::Error;
use crate::sys::bounded::read_file;

/// Maximum length of a file with patterns in bytes.
const LONGEST_FILE: u64 = 64 << 20;

/// A pattern and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    glob: String,
    /// The file and the line number from 1; `None` for a pattern outside of a file.
    place: Option<(PathBuf, usize)>,
}

impl Pattern {
    /// A pattern outside of a file.
    pub fn new(glob: impl Into<String>) -> Self {
        Pattern { glob: glob.into(), place: None }
    }

    /// The pattern as a line of a `.gitignore`.
    fn line(&self) -> Cow<'_, str> {
        let mut line = Cow::from(&self.glob);
        if let Some(last) = line.chars().next_back().filter(|last| last.is_whitespace()) {
            // The crate removes white space at the end, except one blank after a backslash.
            let before = line.get(..line.len() - last.len_utf8()).unwrap_or_default();
            let before = if ends_in_escape(before) { before.strip_suffix('\\').unwrap_or(before) } else { before };
            line = format!("{before}{{{last}}}").into();
        }
        if self.place.is_none() && line.starts_with('#') {
            line.to_mut().insert(0, '\\');
        }
        line
    }

    /// Whether nothing is left of the pattern but marks, so that it can match nothing.
    fn is_empty(&self) -> bool {
        matches!(self.glob.strip_prefix('!').unwrap_or(&self.glob), "" | "/")
    }

    /// Reads the patterns in a file, in order.
    pub fn read_file(path: &Path) -> Result<Vec<Self>, Error> {
        let failed = |why: String| Error::PatternFile { path: path.to_owned(), why };
        let bytes = read_file(path, LONGEST_FILE).map_err(|e| failed(e.to_string()))?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let lines = bytes.split(|byte| *byte == b'\n').enumerate().map(|(before, line)| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let number = before + 1;
            let text = str::from_utf8(line).map_err(|_| failed(format!("line {number} is not UTF-8")))?;
            Ok(Pattern { glob: without_trailing_blanks(text).to_owned(), place: Some((path.to_owned(), number)) })
        });
        let is_pattern = |pattern: &Pattern| !pattern.is_empty() && !pattern.glob.starts_with('#');
        lines.filter(|line| line.as_ref().map_or(true, is_pattern)).collect()
    }
}

/// Removes trailing blanks that are not escaped with a backslash.
fn without_trailing_blanks(line: &str) -> &str {
    let trimmed = line.trim_end_matches(' ');
    match ends_in_escape(trimmed) {
        // The backslash escapes the next blank, if there is one.
        true => line.get(..trimmed.len() + 1).unwrap_or(trimmed),
        false => trimmed,
    }
}

/// Whether the text ends in a backslash that escapes the next character.
fn ends_in_escape(text: &str) -> bool {
    (text.len() - text.trim_end_matches('\\').len()) % 2 == 1
}

/// A compiled list of patterns.
#[derive(Debug, Clone)]
pub struct Patterns {
    /// `None` without patterns, so that matching costs nothing.
    patterns: Option<Gitignore>,
}

impl Patterns {
    /// Compiles `patterns`; later ones take precedence. Anchored patterns begin at `root`.
    pub fn new(root: &Path, patterns: &[Pattern]) -> Result<Self, Error> {
        Patterns::build(root, patterns, false)
    }

    /// Like [`Patterns::new`], but ignores case.
    pub fn ignoring_case(root: &Path, patterns: &[Pattern]) -> Result<Self, Error> {
        Patterns::build(root, patterns, true)
    }

    fn build(root: &Path, patterns: &[Pattern], ignore_case: bool) -> Result<Self, Error> {
        // The crate strips the root from paths. A relative root could be the prefix of a relative path.
        let mut builder = GitignoreBuilder::new(if root.is_absolute() { root } else { Path::new(".") });
        // An unclosed `[` is more likely a mistake than intended.
        builder.allow_unclosed_class(false);
        builder.case_insensitive(ignore_case).map_err(|e| bad_pattern(&Pattern::new(""), e))?;
        for pattern in patterns {
            if pattern.is_empty() {
                let why = "it is empty; write a name, or a glob such as *.tmp".to_owned();
                return Err(Error::Pattern { pattern: pattern.glob.clone(), place: String::new(), why });
            }
            builder.add_line(None, &pattern.line()).map_err(|e| bad_pattern(pattern, e))?;
        }
        // Each pattern is valid, but all of them together may be too large.
        let all = || Pattern::new(patterns.iter().map(|pattern| pattern.glob.as_str()).collect::<Vec<_>>().join("\n"));
        let patterns = builder.build().map_err(|e| bad_pattern(&all(), e))?;
        Ok(Patterns { patterns: (!patterns.is_empty()).then_some(patterns) })
    }

    /// Whether there are no patterns, so that nothing matches.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_none()
    }

    /// Whether the patterns select a path; the last matching pattern decides. The path is relative to the root, or
    /// absolute and below it. Paths below a matching directory may not match themselves, so check directories top-down.
    pub fn matches(&self, relative_path: &Path, is_directory: bool) -> bool {
        self.patterns.as_ref().is_some_and(|patterns| patterns.matched(relative_path, is_directory).is_ignore())
    }
}

fn bad_pattern(pattern: &Pattern, error: ignore::Error) -> Error {
    let why = match error {
        ignore::Error::Glob { err, .. } => err,
        other => other.to_string(),
    };
    let place = pattern.place.as_ref().map(|(file, line)| format!(" in {}, line {line},", file.display()));
    Error::Pattern { pattern: pattern.glob.clone(), place: place.unwrap_or_default(), why }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn exclude(globs: &[&str]) -> Patterns {
        let patterns: Vec<_> = globs.iter().map(|glob| Pattern::new(*glob)).collect();
        Patterns::new(Path::new("/source"), &patterns).unwrap()
    }

    fn file(exclude: &Patterns, path: &str) -> bool {
        exclude.matches(Path::new(path), false)
    }

    fn directory(exclude: &Patterns, path: &str) -> bool {
        exclude.matches(Path::new(path), true)
    }

    #[test]
    fn nothing_is_excluded_without_patterns() {
        assert!(!file(&exclude(&[]), "a"));
    }

    #[test]
    fn an_empty_pattern_is_refused_outside_of_a_file() {
        for empty in ["", "!", "/", "!/"] {
            let error = Patterns::new(Path::new("/"), &[Pattern::new("a"), Pattern::new(empty)]).unwrap_err();
            let expected =
                format!("the pattern {empty:?} is not valid: it is empty; write a name, or a glob such as *.tmp");
            assert_eq!(error.to_string(), expected);
        }
        assert!(Pattern::read_file(file_of("\n!\n/\n!/\n").path()).unwrap().is_empty());
    }

    #[test]
    fn number_signs_and_blanks_are_literal_outside_of_a_file() {
        let e = exclude(&["#recycle", "/two  ", "escaped\\ ", "# ", "\\#both"]);
        for name in ["#recycle", "a/#recycle", "two  ", "escaped ", "# ", "#both"] {
            assert!(file(&e, name), "{name}");
        }
        assert!(!file(&e, "recycle") && !file(&e, "two") && !file(&e, "escaped") && !file(&e, "#"));
        assert!(directory(&exclude(&["blank /"]), "blank "));
        let e = exclude(&["tab\t", "escaped\\\t", "/both \t", "wide\u{3000}", "line\n", "\\\\ ", "{a,b}\t", "[x]\t"]);
        for name in ["tab\t", "escaped\t", "both \t", "wide\u{3000}", "line\n", "\\ ", "a\t", "x\t"] {
            assert!(file(&e, name), "{name:?}");
            assert!(!file(&e, name.trim_end()), "{name:?}");
        }
        let kept = exclude(&["*\t", "!kept\t"]);
        assert!(file(&kept, "a\t") && !file(&kept, "kept\t"));
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
        assert!(e.matches(path(b"\xff\xfe/\xc3.o"), false));
        assert!(e.matches(path(b"d\xc3\xa9/\xffx"), false));
        assert!(!e.matches(path(b"\xff\xfe.p"), false));
    }

    #[test]
    fn a_relative_root_is_not_stripped() {
        let e = Patterns::new(Path::new("src"), &[Pattern::new("/src/x")]).unwrap();
        assert!(file(&e, "src/x"));
        assert!(!file(&e, "x"));
        let e = Patterns::new(Path::new("/"), &[Pattern::new("/home/*/tmp")]).unwrap();
        assert!(directory(&e, "home/me/tmp") && directory(&e, "/home/me/tmp"));
    }

    #[test]
    fn the_error_names_a_bad_pattern() {
        for bad in ["[a", "[a\t", "{a", "{a ", "z[b-a]"] {
            let patterns = ["*.o", bad].map(Pattern::new);
            let error = Patterns::new(Path::new("/"), &patterns).unwrap_err().to_string();
            assert!(error.starts_with(&format!("the pattern {bad:?} is not valid: ")), "{error}");
        }
    }

    fn file_of(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn lines_of_a_file_are_patterns_except_comments_and_blank_lines() {
        let content = "\u{feff}*.o\r\n\n# no pattern\n\\#one\n   \nplain  \nkept\\ \nkept\\  \neven\\\\ \nlast";
        let patterns = Pattern::read_file(file_of(content).path()).unwrap();
        let found: Vec<_> =
            patterns.iter().map(|p| (p.glob.as_str(), p.place.as_ref().map_or(0, |place| place.1))).collect();
        let expected =
            [("*.o", 1), ("\\#one", 4), ("plain", 6), ("kept\\ ", 7), ("kept\\ ", 8), ("even\\\\", 9), ("last", 10)];
        assert_eq!(found, expected);
        let e = Patterns::new(Path::new("/"), &patterns).unwrap();
        assert!(file(&e, "x.o") && file(&e, "#one") && file(&e, "plain") && file(&e, "kept ") && file(&e, "even\\"));
        assert!(!file(&e, "kept") && !file(&e, "plain  ") && !file(&e, "# no pattern"));
    }

    #[test]
    fn the_error_names_file_and_line_of_a_bad_pattern() {
        let bad = file_of("*.o\n\n[a\n");
        let patterns = Pattern::read_file(bad.path()).unwrap();
        let error = Patterns::new(Path::new("/"), &patterns).unwrap_err().to_string();
        let expected = format!("the pattern \"[a\" in {}, line 3, is not valid: ", bad.path().display());
        assert!(error.starts_with(&expected), "{error}");
        let binary = file_of(b"*.o\n\xff\n");
        let error = Pattern::read_file(binary.path()).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read patterns from {}: line 2 is not UTF-8", binary.path().display()));
    }
}
