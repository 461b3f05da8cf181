//! The guard against a source that lost most of its files, such as a file system that is not mounted.
//!
//! A snapshot of such a source would look like a good backup, and a retention policy would forget the last real ones one by
//! one.

use crate::monitor::count;

/// How much a source may lose from one snapshot to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    /// The part of its files that it may lose, from 0 to 1. It counts from 20 files on.
    pub max_shrink: f64,
    /// The number of files that it must have.
    pub min_files: u64,
}

/// A source with fewer files in its last snapshot may lose all but one.
const FEW: u64 = 20;

impl Default for Guard {
    fn default() -> Self {
        Guard { max_shrink: 0.9, min_files: 0 }
    }
}

impl Guard {
    /// Returns why no snapshot may be made of a source with so many files and other entries. `before`: the number of files in its
    /// last snapshot.
    pub(super) fn refusal(&self, before: Option<u64>, files: u64, others: u64) -> Option<String> {
        let named = |files| count(files, "file", "files");
        let is_empty = files == 0 && others == 0;
        let lost = |before: u64| before.saturating_sub(files) as f64 > self.max_shrink * before as f64;
        let refusal = match before {
            Some(before) if before > 0 && is_empty || before >= FEW && lost(before) => {
                format!("the last snapshot has {}, and now there are {files}", named(before))
            }
            _ if files < self.min_files => {
                format!("there are only {}, and at least {} are expected", named(files), self.min_files)
            }
            _ => return None,
        };
        Some(format!("{refusal}; no snapshot was made (if this is intended, use --allow-shrink)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_may_lose_only_a_part_of_its_files() {
        let refuses = |guard: &Guard, before, files| guard.refusal(before, files, 0).is_some();
        let standard = Guard::default();
        for (before, files, expected) in [
            (None, 0, false),
            (Some(0), 0, false),
            (Some(1), 0, true),
            (Some(FEW - 1), 1, false),
            (Some(FEW), 1, true),
            (Some(FEW), 2, false),
            (Some(100), 10, false),
            (Some(100), 9, true),
            (Some(100), 1000, false),
        ] {
            assert_eq!(refuses(&standard, before, files), expected, "{before:?} {files}");
        }
        let strict = Guard { max_shrink: 0.0, min_files: 5 };
        assert!(refuses(&strict, Some(20), 19) && !refuses(&strict, Some(20), 20));
        assert!(refuses(&strict, None, 4) && !refuses(&strict, None, 5));
    }

    #[test]
    fn a_source_with_links_only_is_not_empty() {
        assert_eq!(Guard::default().refusal(Some(3), 0, 1), None);
    }
}
