//! Sources: `[source.NAME]`, with what they inherit.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::place::{Mistakes, Place, suggestion};
use super::priority::Priority;
use super::settings::{Settings, Used, absolute};
use super::target::Conditions;
use super::value::Table;
use crate::backup::{Guard, Options, Placed, Stream, StreamSource, check_entry_name, check_pattern, check_tag};
use crate::quantity::{parse_duration, parse_percent, parse_size};
use crate::retention::{Age, Count, Period, Policy, Rule};

/// What is backed up, and where to.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Its name.
    pub name: String,
    /// The names of its targets.
    pub to: Vec<String>,
    /// The options of its backups.
    pub options: Options,
    /// Which snapshots stay; `None` for all.
    pub keep: Option<Policy>,
    /// The snapshots of file systems from which it is read; `None` if it is read live.
    pub snapshot: Option<FileSystemSnapshot>,
    /// When it is skipped.
    pub conditions: Conditions,
    /// The priority of its backups and of the removal of its snapshots.
    pub priority: Priority,
    /// The age up to which a backup is fresh.
    pub max_age: Duration,
    /// The settings of the files.
    pub used: Vec<Used>,
}

/// A snapshot of a file system, made for the backups of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemSnapshot {
    /// How it is made; `None` if that depends on the file system, which may have none.
    pub kind: Option<SnapshotKind>,
    /// The size of a snapshot of LVM, in percent of its volume.
    pub size: u8,
}

/// How a snapshot of a file system is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// By btrfs, of a subvolume.
    Btrfs,
    /// By ZFS, of a dataset.
    Zfs,
    /// By LVM, of the logical volume below the file system.
    Lvm,
}

/// The default size of a snapshot of LVM, in percent of its volume.
const SNAPSHOT_SIZE: u8 = 10;

/// The keys that say what is backed up.
const CONTENT: [&str; 6] = ["paths", "as", "command", "user", "filename", "allow-empty"];

impl SourceConfig {
    /// Reads a source from its own table, those that it inherits, and `[defaults]`.
    pub(super) fn read(
        name: &str,
        place: &Place,
        tables: Vec<&Table>,
        targets: &[&str],
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let what = format!("source.{name}");
        let inherited: Vec<_> = tables.iter().filter_map(|table| table.get("exclude-also")).cloned().collect();
        let mut settings = Settings::new(what, tables, mistakes);
        inherited.iter().for_each(|value| settings.note_use("exclude-also", value));
        let mut options = Options::default();
        let Shared { to, keep, snapshot, conditions, priority, max_age } = shared(&mut settings, &mut options, targets);
        options.selection.source = Some(name.to_owned());
        // Wrong patterns are reported where they are.
        let also = super::value::texts(&inherited).into_iter().filter(|glob| check_pattern(glob).is_ok());
        options.selection.exclude.extend(also);
        settings.accept("inherit");
        let content = content(place, &mut settings, &mut options);
        if to.is_none() && settings.find("to").is_none() {
            settings.missing(place, "to", "the names of targets, such as to = [\"nas\"]");
        }
        let is_right = options.check().map_err(|why| settings.wrong_whole(place, why)).is_ok();
        let used = settings.end();
        content?;
        let to = to.filter(|_| is_right);
        Some(SourceConfig {
            name: name.to_owned(),
            to: to?,
            options,
            keep,
            snapshot,
            conditions,
            priority,
            max_age,
            used,
        })
    }

    /// Notes the mistakes of `[defaults]`. Returns the priority of steps that belong to no source.
    pub(super) fn read_defaults(table: &Table, targets: &[&str], mistakes: &mut Mistakes) -> Priority {
        let mut settings = Settings::new("defaults", vec![table], mistakes);
        let Shared { priority, .. } = shared(&mut settings, &mut Options::default(), targets);
        for key in CONTENT.into_iter().chain(["inherit"]) {
            if let Some(value) = settings.find(key) {
                settings.wrong(&value.place, key, "belongs in a source");
            }
        }
        settings.end();
        priority
    }
}

/// Settings that a source and the defaults may have.
struct Shared {
    to: Option<Vec<String>>,
    keep: Option<Policy>,
    snapshot: Option<FileSystemSnapshot>,
    conditions: Conditions,
    priority: Priority,
    max_age: Duration,
}

/// Reads the settings that a source and the defaults may have.
fn shared(settings: &mut Settings<'_>, options: &mut Options, targets: &[&str]) -> Shared {
    let Options { selection, reading, storing, policy } = options;
    let set = |to: &mut bool, from: Option<bool>| *to = from.unwrap_or(*to);
    selection.exclude = settings.list("exclude", check_pattern).unwrap_or_default();
    settings.list("exclude-also", check_pattern);
    let files = settings.texts("exclude-from").unwrap_or_default();
    selection.exclude_from = files.into_iter().map(|(path, place)| place.path(path)).collect();
    set(&mut selection.exclude_caches, settings.flag("exclude-caches"));
    let entry_name = |name: &str| check_entry_name(OsStr::new(name));
    selection.exclude_if_present = settings.list("exclude-if-present", entry_name).unwrap_or_default();
    set(&mut selection.exclude_nodump, settings.flag("exclude-nodump"));
    set(&mut selection.one_file_system, settings.flag("one-file-system"));
    reading.identity.inode = !settings.flag("ignore-inode").unwrap_or(false);
    reading.identity.ctime = !settings.flag("ignore-ctime").unwrap_or(false);
    reading.retries = settings.quantity("retries", number).unwrap_or(reading.retries);
    reading.settle_max = settings.quantity("settle-max", parse_duration).unwrap_or(reading.settle_max);
    storing.compression = settings.quantity("compression", level).unwrap_or(storing.compression);
    policy.tags = settings.list("tags", check_tag).unwrap_or_default();
    set(&mut policy.skip_if_unchanged, settings.flag("skip-if-unchanged"));
    set(&mut policy.low_memory, settings.flag("low-memory"));
    if let Some(guard) = settings.table("guard", guard) {
        policy.guard = Some(guard);
    }
    policy.commit_interval = settings.quantity("commit-interval", parse_duration).unwrap_or(policy.commit_interval);
    policy.recheck = settings.quantity("recheck", parse_size).unwrap_or(policy.recheck);
    Shared {
        to: to(settings, targets),
        keep: keep(settings),
        snapshot: snapshot(settings),
        conditions: Conditions::read(settings),
        priority: Priority::read(settings),
        max_age: settings.quantity("max-age", age).unwrap_or(MAX_AGE),
    }
}

/// The age up to which the backups of a source are fresh: a daily backup that is made at another hour is not late.
const MAX_AGE: Duration = Duration::from_secs(36 * 60 * 60);

fn age(text: &str) -> Result<Duration, String> {
    let age = parse_duration(text)?;
    if age.is_zero() { Err("must not be 0".to_owned()) } else { Ok(age) }
}

/// The snapshots of file systems.
fn snapshot(settings: &mut Settings<'_>) -> Option<FileSystemSnapshot> {
    let kinds = [
        ("none", None),
        ("auto", Some(None)),
        ("btrfs", Some(Some(SnapshotKind::Btrfs))),
        ("zfs", Some(Some(SnapshotKind::Zfs))),
        ("lvm", Some(Some(SnapshotKind::Lvm))),
    ];
    let kind = settings.word("snapshot", &kinds).flatten();
    let size = settings.parsed("snapshot-size", |text| {
        let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
        percent.filter(|percent| (1..=100).contains(percent)).ok_or("write a percentage from \"1%\" to \"100%\"")
    });
    kind.map(|kind| FileSystemSnapshot { kind, size: size.unwrap_or(SNAPSHOT_SIZE) })
}

fn number(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "write a whole number")
}

fn level(text: &str) -> Result<i32, &'static str> {
    text.parse().ok().filter(|level| (1..=19).contains(level)).ok_or("write a level from 1 to 19")
}

/// How much a source may lose.
fn guard(settings: &mut Settings<'_>) -> Guard {
    let standard = Guard::default();
    Guard {
        max_shrink: settings.parsed("max-shrink", |text| parse_percent(text, 100)).unwrap_or(standard.max_shrink),
        min_files: settings
            .quantity("min-files", |text| text.parse().map_err(|_| "write a whole number"))
            .unwrap_or(standard.min_files),
    }
}

/// The targets of a source.
fn to(settings: &mut Settings<'_>, targets: &[&str]) -> Option<Vec<String>> {
    let names = settings.texts("to")?;
    if names.is_empty()
        && let Some(value) = settings.find("to")
    {
        settings.wrong(&value.place, "to", "names no target");
    }
    let mut known: Vec<String> = Vec::new();
    for (name, place) in names {
        if !targets.contains(&name) {
            let suggestion = suggestion(name, targets.iter().copied());
            settings.wrong(place, "to", format!("there is no target.{name}{suggestion}"));
        } else if known.iter().any(|known| known == name) {
            settings.wrong(place, "to", format!("{name} is listed twice"));
        } else {
            known.push(name.to_owned());
        }
    }
    Some(known)
}

/// The rules about which snapshots stay.
fn keep(settings: &mut Settings<'_>) -> Option<Policy> {
    let place = settings.find("keep")?.place.clone();
    let before = settings.mistakes();
    let rules = settings.table("keep", |settings| {
        let counts = [
            (Period::Hour, "hourly"),
            (Period::Day, "daily"),
            (Period::Week, "weekly"),
            (Period::Month, "monthly"),
            (Period::Quarter, "quarterly"),
            (Period::Year, "yearly"),
        ];
        let ages = [
            (Period::Hour, "within-hourly"),
            (Period::Day, "within-daily"),
            (Period::Week, "within-weekly"),
            (Period::Month, "within-monthly"),
            (Period::Quarter, "within-quarterly"),
            (Period::Year, "within-yearly"),
        ];
        let mut rules = Vec::new();
        rules.extend(settings.quantity("last", Count::from_str).map(Rule::Last));
        for (period, key) in counts {
            rules.extend(settings.quantity(key, Count::from_str).map(|count| Rule::Each(period, count)));
        }
        rules.extend(settings.parsed("within", Age::from_str).map(Rule::Within));
        for (period, key) in ages {
            rules.extend(settings.parsed(key, Age::from_str).map(|age| Rule::EachWithin(period, age)));
        }
        rules.extend(settings.list("tags", check_tag).unwrap_or_default().into_iter().map(Rule::Tag));
        rules
    })?;
    let policy = Policy::new(rules).ok();
    // Invalid rules were reported already.
    if policy.is_none() && settings.mistakes() == before {
        settings.wrong(&place, "keep", "keeps no snapshot; write rules with numbers above 0, such as { daily = 7 }");
    }
    policy
}

/// Reads what is backed up. `None` means that it is missing or wrong.
fn content(place: &Place, settings: &mut Settings<'_>, options: &mut Options) -> Option<()> {
    let nearest = settings.nearest(&["paths", "as", "command"]);
    CONTENT.iter().for_each(|key| settings.accept(key));
    match nearest.as_slice() {
        ["paths"] | ["as"] | ["paths", "as"] => {
            let given = settings.nearest(&["paths", "as", "user", "filename", "allow-empty"]);
            for key in given.iter().filter(|key| !["paths", "as"].contains(key)) {
                if let Some(value) = settings.find(key) {
                    settings.wrong(&value.place, key, "belongs to a command");
                }
            }
            let mut paths = match nearest.contains(&"paths") {
                true => nonempty(settings, "paths", absolute)?,
                false => Vec::new(),
            };
            if nearest.contains(&"as") {
                options.selection.placed = placed(settings, &mut paths)?;
            }
            options.selection.paths = paths;
            Some(())
        }
        ["command"] => {
            let words = settings.command("command")?;
            let user = settings.text("user").map(|(user, _)| user.to_owned());
            let filename = settings.parsed("filename", |name| {
                let checked = check_entry_name(OsStr::new(name));
                checked.map_err(|_| "write the name of a file, without slashes").map(|_| name.to_owned())
            });
            if filename.is_none() && settings.find("filename").is_none() {
                settings.missing(place, "filename", "the name of the file in the snapshot");
            }
            let allow_empty = settings.flag("allow-empty").unwrap_or(false);
            options.selection.stream = Some(Stream { allow_empty, ..stream(filename?, words, user) });
            // It has one file, however little a command prints.
            options.policy.guard = None;
            Some(())
        }
        [] => {
            settings.missing(
                place,
                "paths",
                "what to back up: paths = [\"/home\"], or command = [\"pg_dump\", \"shop\"]",
            );
            None
        }
        _ => {
            settings.wrong(place, "paths", "write either paths or command: a source has one of them");
            None
        }
    }
}

/// The directories that are backed up under other paths.
fn placed(settings: &mut Settings<'_>, paths: &mut Vec<PathBuf>) -> Option<Vec<Placed>> {
    let given = settings.list("as", |text| Ok::<_, String>(text.to_owned()))?;
    let value = settings.find("as")?;
    let placed =
        Placed::parse_all(&given, paths).and_then(|placed| match placed.iter().find(|it| it.from.is_relative()) {
            Some(relative) => Err(format!("{} is not an absolute path", relative.from.display())),
            None if placed.is_empty() => Err("the list is empty".into()),
            None => Ok(placed),
        });
    placed.map_err(|why| settings.wrong(&value.place, "as", why)).ok()
}

/// The output of a command, which another user may run.
fn stream(filename: String, words: Vec<String>, user: Option<String>) -> Stream {
    let before = user.map(|user| ["runuser".into(), "-u".into(), user, "--".into()]);
    let words = before.into_iter().flatten().chain(words).map(OsString::from).collect();
    Stream { filename: filename.into(), source: StreamSource::Command(words), allow_empty: false }
}

/// A list that has something.
fn nonempty<T, E: Display>(
    settings: &mut Settings<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<Vec<T>> {
    let list = settings.list(key, parse)?;
    if list.is_empty()
        && let Some(value) = settings.find(key)
        && value.to_string() == "[]"
    {
        settings.wrong(&value.place, key, "the list is empty");
    }
    (!list.is_empty()).then_some(list)
}
