//! What is asked for.

use std::path::Path;

use crate::source::{Pattern, Patterns};

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflict {
    /// Leave it if its kind, size and time (of a link: its target) are those in the snapshot; otherwise stop.
    #[default]
    Abort,
    /// Leave it as it is.
    Skip,
    /// Replace it.
    Overwrite,
    /// Replace it if its kind, size or time (of a link: its target) differs.
    Update,
}

/// How to restore.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What to do with files that are there already.
    pub conflict: Conflict,
    /// Patterns of what to restore, as in a `.gitignore` at the top of what is restored; none: everything.
    pub include: Vec<String>,
    /// Patterns of what to leave out, also of what is included.
    pub exclude: Vec<String>,
    /// Take owners by number, even if this machine knows their names.
    pub numeric_owner: bool,
    /// Restore set-id bits, capabilities and devices also of entries that lay on a mount that ignored them.
    pub trust_set_id: bool,
    /// Change nothing, only count.
    pub dry_run: bool,
}

/// The patterns of the options.
pub(super) struct Chosen {
    include: Option<Patterns>,
    exclude: Patterns,
}

impl Chosen {
    pub(super) fn of(options: &Options) -> Result<Self, crate::source::Error> {
        let patterns = |globs: &[String]| {
            let globs: Vec<_> = globs.iter().map(Pattern::new).collect();
            Patterns::new(Path::new("/"), &globs)
        };
        let include = match options.include.is_empty() {
            true => None,
            false => Some(patterns(&options.include)?),
        };
        Ok(Chosen { include, exclude: patterns(&options.exclude)? })
    }

    /// Whether there is nothing to choose from the start.
    pub(super) fn is_everything(&self) -> bool {
        self.include.is_none()
    }

    /// What to do with an entry below one that is `wanted` or not: `None`, leave it out; `Some(false)`, only
    /// look into it, for something below may be wanted.
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
    fn includes_choose_what_is_below_them_and_excludes_win() {
        let globs = |list: &[&str]| list.iter().map(|glob| (*glob).to_owned()).collect();
        let options = Options { include: globs(&["/a/b", "*.c"]), exclude: globs(&["x.c"]), ..Options::default() };
        let chosen = Chosen::of(&options).unwrap();
        assert!(!chosen.is_everything());
        assert_eq!(chosen.choose(Path::new("a"), true, false), Some(false));
        assert_eq!(chosen.choose(Path::new("a/b"), true, false), Some(true));
        assert_eq!(chosen.choose(Path::new("a/b/any"), false, true), Some(true));
        assert_eq!(chosen.choose(Path::new("d/y.c"), false, false), Some(true));
        assert_eq!(chosen.choose(Path::new("a/b/x.c"), false, true), None);
        assert!(Chosen::of(&Options::default()).unwrap().is_everything());
    }
}
