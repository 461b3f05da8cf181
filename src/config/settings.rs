//! Reads the settings of one thing, such as a source, from the tables that may have them.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;

use super::place::{Mistakes, Place, suggestion};
use super::value::{Kind, Table, Value};

/// A setting that is used: its key, its value as TOML, and the place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The key.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// Where it is.
    pub place: Place,
}

/// The settings of one thing. The first table that has a key decides.
///
/// Each method reads the setting `key`; `None` means that no table has it, or that it is wrong, which is noted. Whatever was
/// not read when the reader ends is an unknown key of the first table.
pub(super) struct Settings<'a> {
    /// What the settings are of, such as `source.home`.
    what: String,
    /// The key of the inner table that they are in and a dot, or nothing.
    within: String,
    tables: Vec<&'a Table>,
    read: BTreeSet<&'static str>,
    used: Vec<Used>,
    mistakes: &'a mut Mistakes,
}

impl<'a> Settings<'a> {
    pub(super) fn new(what: impl Into<String>, tables: Vec<&'a Table>, mistakes: &'a mut Mistakes) -> Self {
        Settings { what: what.into(), within: String::new(), tables, read: BTreeSet::new(), used: Vec::new(), mistakes }
    }

    /// Notes a mistake at a value.
    pub(super) fn wrong(&mut self, place: &Place, key: &str, why: impl Display) {
        self.mistakes.add(place, format!("{}{key}: {why}", self.within));
    }

    /// The number of mistakes until now.
    pub(super) fn mistakes(&self) -> usize {
        self.mistakes.count()
    }

    /// Notes a mistake in the whole thing.
    pub(super) fn wrong_whole(&mut self, place: &Place, why: impl Display) {
        self.mistakes.add(place, format!("{}: {why}", self.what));
    }

    /// Notes that a setting is missing.
    pub(super) fn missing(&mut self, place: &Place, key: &str, write: impl Display) {
        self.mistakes.add(place, format!("{}: {key} is missing; write {write}", self.what));
    }

    /// Which of these keys the first table has that has any.
    pub(super) fn nearest(&self, keys: &[&'static str]) -> Vec<&'static str> {
        let keys_of = |table: &&Table| keys.iter().copied().filter(|key| table.get(key).is_some()).collect::<Vec<_>>();
        self.tables.iter().map(keys_of).find(|keys| !keys.is_empty()).unwrap_or_default()
    }

    /// Accepts a key without using it.
    pub(super) fn accept(&mut self, key: &'static str) {
        self.read.insert(key);
    }

    /// The value of a setting.
    pub(super) fn find(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        let value = self.tables.iter().find_map(|table| table.get(key))?;
        self.note_use(key, value);
        Some(value)
    }

    /// Notes that a value is used, once.
    pub(super) fn note_use(&mut self, key: &'static str, value: &Value) {
        if !self.used.iter().any(|used| used.key == key && used.place == value.place) {
            self.used.push(Used { key, value: value.to_string(), place: value.place.clone() });
        }
    }

    fn expected<T>(&mut self, value: &Value, key: &str, expected: &str) -> Option<T> {
        self.wrong(&value.place, key, format!("expected {expected}, found {}", value.described()));
        None
    }

    /// A text, and its place.
    pub(super) fn text(&mut self, key: &'static str) -> Option<(&'a str, &'a Place)> {
        let value = self.find(key)?;
        match &value.kind {
            Kind::Text(text) => Some((text, &value.place)),
            _ => self.expected(value, key, "a string in quotes"),
        }
    }

    /// A text that `parse` understands.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (text, place) = self.text(key)?;
        parse(text).map_err(|why| self.wrong(place, key, why)).ok()
    }

    /// A number or a text that `parse` understands.
    pub(super) fn quantity<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.find(key)?;
        match &value.kind {
            Kind::Text(text) | Kind::Number(text) => parse(text).map_err(|why| self.wrong(&value.place, key, why)).ok(),
            _ => self.expected(value, key, "a number, or a string in quotes"),
        }
    }

    /// One of these words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text).map(|(_, meant)| *meant);
            found.ok_or_else(|| {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                format!("{text:?} is none of {}{}", words.join(", "), suggestion(text, words.iter().copied()))
            })
        })
    }

    /// true or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.find(key)?;
        match value.kind {
            Kind::Flag(flag) => Some(flag),
            _ => self.expected(value, key, "true or false"),
        }
    }

    /// A list of texts, and their places.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<(&'a str, &'a Place)>> {
        let value = self.find(key)?;
        let Kind::List(values) = &value.kind else {
            return self.expected(value, key, "a list, such as [\"one\", \"two\"]");
        };
        let mut texts = Vec::new();
        for value in values {
            match &value.kind {
                Kind::Text(text) => texts.push((text.as_str(), &value.place)),
                _ => return self.expected(value, key, "a string in quotes"),
            }
        }
        Some(texts)
    }

    /// A list of texts that `parse` understands.
    pub(super) fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let texts = self.texts(key)?;
        let parsed =
            texts.into_iter().filter_map(|(text, place)| parse(text).map_err(|why| self.wrong(place, key, why)).ok());
        Some(parsed.collect())
    }

    /// A program and its arguments.
    pub(super) fn command(&mut self, key: &'static str) -> Option<Vec<String>> {
        let before = self.mistakes();
        let words = self.list(key, |word| Ok::<_, String>(word.to_owned()))?;
        if words.first().is_some_and(|program| !program.is_empty()) {
            return Some(words);
        }
        // Words that are not strings are mistakes that `list` has reported.
        if self.mistakes() == before
            && let Some(value) = self.find(key)
        {
            self.wrong(&value.place, key, "names no program");
        }
        None
    }

    /// A table, whose settings `read` takes.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Settings<'_>) -> T) -> Option<T> {
        let value = self.find(key)?;
        let Kind::Table(table) = &value.kind else {
            return self.expected(value, key, "a table, such as { key = \"value\" }");
        };
        let mut settings = Settings::new(self.what.clone(), vec![table], self.mistakes);
        settings.within = format!("{}{key}.", self.within);
        let result = read(&mut settings);
        settings.end();
        Some(result)
    }

    /// Notes unknown keys, and returns the settings that are used.
    pub(super) fn end(self) -> Vec<Used> {
        let Settings { within, tables, read, used, mistakes, .. } = self;
        for (key, _) in tables.first().map(|table| table.0.as_slice()).unwrap_or_default() {
            if !read.contains(key.name.as_str()) {
                let suggestion = suggestion(&key.name, read.iter().copied());
                mistakes.add(&key.place, format!("{within}{}: unknown key{suggestion}", key.name));
            }
        }
        used
    }
}

/// Parses an absolute path.
pub(super) fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write an absolute path") }
}
