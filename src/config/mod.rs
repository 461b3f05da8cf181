//! Configuration files: sources, targets, retention, hooks and reports.
//!
//! A [`Config`] is read from `config.toml` and the files in `conf.d` beside it, which may each have any part. The form is
//! described in brackfs-config(5). Every mistake is found at once, and is named with its place, FILE:LINE:COLUMN.
//!
//! - [`files`]: finding and reading the files
//! - [`value`]: TOML values with their places; [`place`]: places and mistakes
//! - [`settings`]: the settings of one thing, from all tables that may have them
//! - [`priority`]: the priority of steps
//! - [`source`], [`target`], [`hook`], [`check`], [`report`]: the parts of a configuration
//! - [`secret`], [`credentials`]: where secrets are, and the logins of servers; [`name`]: names of sources and targets

mod check;
mod credentials;
mod error;
mod files;
mod hook;
mod name;
mod place;
mod priority;
mod report;
mod secret;
mod settings;
mod source;
mod target;
#[cfg(test)]
mod tests;
mod value;

use std::path::Path;

pub use check::CheckConfig;
pub use error::Error;
pub use hook::{Hook, Moment, OnFailure};
pub use place::{Mistake, Place};
pub use priority::{IoClass, Priority};
pub use report::{Ping, Report};
pub use settings::Used;
pub use source::{FileSystemSnapshot, SnapshotKind, SourceConfig};
pub use target::{Conditions, Missing, Prune, TargetConfig};

use place::{Mistakes, suggestion};
use settings::Settings;
use value::{Kind, Table, Value};

/// The version of the form of the files.
const VERSION: &str = "1";

/// A configuration without mistakes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The targets, in the order of the files.
    pub targets: Vec<TargetConfig>,
    /// The sources, in the order of the files.
    pub sources: Vec<SourceConfig>,
    /// The hooks, in the order of the files.
    pub hooks: Vec<Hook>,
    /// The priority of steps that belong to no source.
    pub priority: Priority,
    /// How often targets are checked; `None` for never.
    pub check: Option<CheckConfig>,
    /// Where a run is reported.
    pub report: Report,
}

/// A named table, such as `[source.home]`.
struct Part<'a> {
    name: &'a str,
    place: &'a Place,
    table: &'a Table,
}

/// The parts of all files.
#[derive(Default)]
struct Parts<'a> {
    defaults: Option<&'a Table>,
    targets: Vec<Part<'a>>,
    sources: Vec<Part<'a>>,
    hooks: Vec<(&'a Place, &'a Table)>,
    check: Option<&'a Table>,
    report: Option<&'a Table>,
}

impl Config {
    /// Reads a file, and those in `conf.d` beside it.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let file = std::path::absolute(file).map_err(|source| Error::Read { path: file.to_owned(), source })?;
        Config::of_texts(&files::read(&file)?)
    }

    /// Parses the text that is to be written to a file. The path must be absolute.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        Config::of_texts(&[files::Text { file: file.into(), text: text.to_owned() }])
    }

    fn of_texts(texts: &[files::Text]) -> Result<Self, Error> {
        let mut mistakes = Mistakes::default();
        let tables: Vec<_> = texts.iter().map(|text| Table::parse(&text.file, &text.text, &mut mistakes)).collect();
        // After a syntax error, other mistakes may be spurious.
        mistakes.end()?;
        let (mut mistakes, mut parts) = (Mistakes::default(), Parts::default());
        tables.iter().for_each(|table| parts.add(table, &mut mistakes));
        let config = parts.read(&mut mistakes);
        mistakes.end()?;
        Ok(config)
    }

    /// Reads the files of `exclude-from`, and fails with all mistakes in them.
    pub fn check_files(&self) -> Result<(), Error> {
        let mut mistakes = Mistakes::default();
        for source in &self.sources {
            let Some(used) = source.used.iter().find(|used| used.key == "exclude-from") else { continue };
            for error in source.options.check_files() {
                mistakes.add(&used.place, format!("exclude-from: {error}"));
            }
        }
        mistakes.end()
    }

    /// The target of this name.
    pub fn target(&self, name: &str) -> Result<&TargetConfig, Error> {
        let found = self.targets.iter().find(|target| target.name == name);
        found.ok_or_else(|| unknown("target", name, self.targets.iter().map(|target| target.name.as_str())))
    }

    /// The source of this name.
    pub fn source(&self, name: &str) -> Result<&SourceConfig, Error> {
        let found = self.sources.iter().find(|source| source.name == name);
        found.ok_or_else(|| unknown("source", name, self.sources.iter().map(|source| source.name.as_str())))
    }
}

fn unknown<'a>(kind: &'static str, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    Error::Unknown { kind, name: name.to_owned(), suggestion: suggestion(name, names) }
}

impl<'a> Parts<'a> {
    /// Adds the parts of a file.
    fn add(&mut self, file: &'a Table, mistakes: &mut Mistakes) {
        for (key, value) in &file.0 {
            match key.name.as_str() {
                "version" => match &value.kind {
                    Kind::Number(version) if version == VERSION => {}
                    _ => mistakes.add(&value.place, format!("version: not supported; write {VERSION}")),
                },
                "defaults" => only(&mut self.defaults, &key.name, value, mistakes),
                "check" => only(&mut self.check, &key.name, value, mistakes),
                "report" => only(&mut self.report, &key.name, value, mistakes),
                "source" => named(&mut self.sources, &key.name, value, mistakes),
                "target" => named(&mut self.targets, &key.name, value, mistakes),
                "hook" => match &value.kind {
                    Kind::List(values) => {
                        for value in values {
                            self.hooks.extend(table(value, "hook", mistakes).map(|table| (&value.place, table)));
                        }
                    }
                    _ => mistakes.add(&value.place, "hook: write [[hook]], with two pairs of brackets"),
                },
                unknown => {
                    let known = ["version", "defaults", "target", "source", "hook", "check", "report"];
                    mistakes.add(&key.place, format!("{unknown}: unknown key{}", suggestion(unknown, known)));
                }
            }
        }
    }

    fn read(&self, mistakes: &mut Mistakes) -> Config {
        let names = |parts: &[Part<'a>]| parts.iter().map(|part| part.name).collect::<Vec<_>>();
        let (target_names, source_names) = (names(&self.targets), names(&self.sources));
        let priority = self.defaults.map(|table| SourceConfig::read_defaults(table, &target_names, mistakes));
        let target =
            |part: &Part<'_>, mistakes: &mut Mistakes| TargetConfig::read(part.name, part.place, part.table, mistakes);
        let targets = self.targets.iter().filter_map(|part| target(part, mistakes)).collect();
        let mut sources = Vec::new();
        for part in &self.sources {
            let mut tables = self.inherited(part, &source_names, mistakes);
            tables.extend(self.defaults);
            sources.extend(SourceConfig::read(part.name, part.place, tables, &target_names, mistakes));
        }
        let hooks = self.hooks.iter().filter_map(|(place, table)| Hook::read(place, table, &source_names, mistakes));
        let hooks = hooks.collect();
        let report = self.report.map(|table| Report::read(Settings::new("report", vec![table], mistakes)));
        let report = report.unwrap_or_default();
        let check = self.check.map(|table| CheckConfig::read(Settings::new("check", vec![table], mistakes)));
        Config { targets, sources, hooks, priority: priority.unwrap_or_default(), check, report }
    }

    /// The tables of a source and of those that it inherits from, nearest first. It is a mistake if they go round in a circle or
    /// one does not exist.
    fn inherited(&self, part: &Part<'a>, names: &[&str], mistakes: &mut Mistakes) -> Vec<&'a Table> {
        let mut chain = vec![part.name];
        let mut tables = vec![part.table];
        while let Some(inherit) = tables.last().and_then(|table| table.get("inherit")) {
            let mut wrong = |why: String| mistakes.add(&inherit.place, format!("inherit: {why}"));
            let Kind::Text(name) = &inherit.kind else {
                wrong(format!("expected the name of a source, found {}", inherit.described()));
                break;
            };
            let Some(parent) = self.sources.iter().find(|part| part.name == name) else {
                let suggestion = suggestion(name, names.iter().copied());
                wrong(format!("there is no source.{name}{suggestion}"));
                break;
            };
            if chain.contains(&parent.name) {
                wrong(format!("{name} inherits from itself"));
                break;
            }
            chain.push(parent.name);
            tables.push(parent.table);
        }
        tables
    }
}

/// The table that a value must be.
fn table<'a>(value: &'a Value, what: &str, mistakes: &mut Mistakes) -> Option<&'a Table> {
    match &value.kind {
        Kind::Table(table) => Some(table),
        _ => {
            mistakes.add(&value.place, format!("{what}: expected a table, found {}", value.described()));
            None
        }
    }
}

/// Notes a table that only one file may have.
fn only<'a>(part: &mut Option<&'a Table>, what: &str, value: &'a Value, mistakes: &mut Mistakes) {
    if part.is_some() {
        mistakes.add(&value.place, format!("{what}: another file has this table already"));
    }
    *part = table(value, what, mistakes);
}

/// Notes tables with names.
fn named<'a>(parts: &mut Vec<Part<'a>>, what: &str, value: &'a Value, mistakes: &mut Mistakes) {
    for (key, value) in table(value, what, mistakes).map(|table| table.0.as_slice()).unwrap_or_default() {
        let what = format!("{what}.{}", key.name);
        if let Err(why) = name::check(&key.name) {
            mistakes.add(&key.place, format!("{what}: {why}"));
        }
        if let Some(other) = parts.iter().find(|part| part.name == key.name) {
            mistakes.add(&key.place, format!("{what}: already defined at {}", other.place));
            continue;
        }
        if let Some(table) = table(value, &what, mistakes) {
            parts.push(Part { name: &key.name, place: &key.place, table });
        }
    }
}
