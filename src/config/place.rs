//! Places in configuration files, and mistakes there.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1 on.
    pub line: usize,
    /// The column in characters, from 1 on.
    pub column: usize,
}

impl Place {
    /// The place of a range of bytes in the text of a file.
    pub(super) fn of(file: &Arc<Path>, text: &str, range: &Range<usize>) -> Self {
        let before = text.get(..range.start).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Place { file: Arc::clone(file), line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }

    /// The place of a path that is relative to the file.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("/")).join(path)
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where it is.
    pub place: Place,
    /// What is wrong, and what to write.
    pub message: String,
}

impl Display for Mistake {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// The mistakes that were found, each once.
#[derive(Debug, Default)]
pub(super) struct Mistakes(BTreeSet<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, place: &Place, message: impl Into<String>) {
        self.0.insert(Mistake { place: place.clone(), message: message.into() });
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Fails if there are any.
    pub(super) fn end(self) -> Result<(), Error> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Error::Mistakes(self.0.into_iter().collect())),
        }
    }
}

/// ` (did you mean NAME?)` for the most similar of these names, or an empty text.
pub(super) fn suggestion<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let limit = 1 + wrong.chars().count() / 4;
    let similar = names.into_iter().map(|name| (strsim::osa_distance(wrong, name), name));
    let near = similar.filter(|(distance, name)| *distance <= limit && *distance < name.chars().count());
    match near.min_by_key(|(distance, _)| *distance) {
        Some((_, name)) => format!(" (did you mean {name}?)"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let file: Arc<Path> = Arc::from(Path::new("/etc/x.toml"));
        let text = "a = 1\nü = 2\n";
        let at = text.find('2').unwrap();
        assert_eq!(Place::of(&file, text, &(at..at + 1)).to_string(), "/etc/x.toml:2:5");
        assert_eq!(Place::of(&file, text, &(0..1)).to_string(), "/etc/x.toml:1:1");
        // A range outside of the text, as at its end.
        assert_eq!(Place::of(&file, text, &(99..100)).to_string(), "/etc/x.toml:3:1");
    }

    #[test]
    fn similar_names_are_suggested() {
        let names = ["exclude", "paths", "one-file-system"];
        assert_eq!(suggestion("exlude", names), " (did you mean exclude?)");
        assert_eq!(suggestion("one-filesystem", names), " (did you mean one-file-system?)");
        assert_eq!(suggestion("quux", names), "");
    }
}
