//! Options of a restore, and the filter of paths.

use std::path::Path;

use crate::source::{Pattern, Patterns};

/// The treatment of existing files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflict {
    /// Keep the file if kind, size and mtime (for a symlink: its target) equal the snapshot's; otherwise abort.
    #[default]
    Abort,
    /// Keep the file.
    Skip,
    /// Replace the file.
    Overwrite,
    /// Replace the file if kind, size or mtime (for a symlink: its target) differs.
    Update,
}

/// Options of a restore.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The treatment of existing files.
    pub conflict: Conflict,
    /// Patterns of paths to restore, as in a `.gitignore` in the restored directory. Empty: everything.
    pub include: Vec<String>,
    /// Patterns of paths to skip. They take precedence over `include`.
    pub exclude: Vec<String>,
    /// Restore owners by uid and gid, even if this machine knows their names.
    pub numeric_owner: bool,
    /// Restore set-id bits, capabilities and devices even if the mount they were on ignored them.
    pub trust_set_id: bool,
    /// Only count; change nothing.
    pub dry_run: bool,
}

/// The compiled patterns.
pub(super) struct PathFilter {
    include: Option<Patterns>,
    exclude: Patterns,
}

impl PathFilter {
    pub(super) fn of(options: &Options) -> Result<Self, crate::source::Error> {
        let patterns = |globs: &[String]| {
            let globs: Vec<_> = globs.iter().map(Pattern::new).collect();
            Patterns::new(Path::new("/"), &globs)
        };
        let include = if options.include.is_empty() { None } else { Some(patterns(&options.include)?) };
        Ok(PathFilter { include, exclude: patterns(&options.exclude)? })
    }

    /// Whether all paths are selected, except excluded ones.
    pub(super) fn is_everything(&self) -> bool {
        self.include.is_none()
    }

    /// Whether an entry is selected, where `wanted` says whether its directory is. `None`: excluded. `Some(false)`: not
    /// selected, but entries below it may be.
    pub(super) fn choose(&self, path: &Path, is_directory: bool, wanted: bool) -> Option<bool> {
        if self.exclude.matches(path, is_directory) {
            return None;
        }
        let included = |patterns: &Patterns| patterns.matches(path, is_directory);
        Some(wanted || self.include.as_ref().is_none_or(included))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_apply_recursively_and_excludes_take_precedence() {
        let globs = |list: &[&str]| list.iter().map(|glob| (*glob).to_owned()).collect();
        let options = Options { include: globs(&["/a/b", "*.c"]), exclude: globs(&["x.c"]), ..Options::default() };
        let chosen = PathFilter::of(&options).unwrap();
        assert!(!chosen.is_everything());
        assert_eq!(chosen.choose(Path::new("a"), true, false), Some(false));
        assert_eq!(chosen.choose(Path::new("a/b"), true, false), Some(true));
        assert_eq!(chosen.choose(Path::new("a/b/any"), false, true), Some(true));
        assert_eq!(chosen.choose(Path::new("d/y.c"), false, false), Some(true));
        assert_eq!(chosen.choose(Path::new("a/b/x.c"), false, true), None);
        assert!(PathFilter::of(&Options::default()).unwrap().is_everything());
    }
}
