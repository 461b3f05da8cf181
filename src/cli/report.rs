//! `brackfs report`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::exit::{self, Usage};
use super::global::Global;
use super::html;
use super::output;
use super::overview::{self, Style, since};
use super::reader_args::{FirstUse, ReaderArgs, SMALL_CACHE};
use super::repository_arg::Use;
use super::show;
use crate::archive::Archive;
use crate::config::Config;
use crate::crypt::SecretKey;
use crate::history::{Growth, growth};
use crate::job::{Ending, Journal, Trouble};
use crate::monitor::Monitor;
use crate::overview::Overview;
use crate::reader::Reader;
use crate::repository::Repository;
use crate::sys::bounded::{KEYS, read_file};
use crate::sys::durable::{IfExists, write_file};

/// A day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far back the calendar of a report goes.
const YEAR: Duration = DAY.saturating_mul(367);
/// How far back problems are listed, in seconds.
const RECENT: i64 = 30 * 24 * 60 * 60;
/// Maximum number of problems that are listed.
const MOST_TROUBLES: usize = 100;
/// Number of directories that are listed for a source.
const DIRECTORIES: usize = 10;

/// Make a report of all backups, as text or as a web page
///
/// Shows the same as brackfs-status(1), and lists the problems of the last 30 days. The page also has a calendar of the last
/// year and the sizes over time for each source and target. It is a single file without scripts, and loads nothing.
///
/// The page can show what made the sources grow: the directories with the most data in files that are new or changed between
/// the last two snapshots. This needs a secret key without a passphrase (--key), or a repository that is not encrypted
/// (--repo). Only then does it open a repository: the one given with --repo, or the only configured target.
///
/// The exit code says only whether the report was made. For the state of the backups, use the exit code of brackfs-status(1).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs report
  brackfs report --html backups.html
  brackfs report --repo nas --key owner.key --html backups.html

In a crontab:
  0 8 * * 1  brackfs report")]
pub(super) struct Args {
    /// Write a web page to FILE [default: standard output]
    ///
    /// FILE is replaced as a whole. Only its owner can read it, since the page has paths of files.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    html: Option<Option<PathBuf>>,
    #[command(flatten)]
    reader: ReaderArgs,
}

impl Args {
    /// Whether the report goes to a file instead of standard output.
    pub(super) fn writes_file(&self) -> bool {
        matches!(self.html, Some(Some(_)))
    }
}

/// What made a source grow from one snapshot to the next.
pub(super) struct SourceGrowth {
    pub(super) source: String,
    /// The times of the snapshots.
    pub(super) before: String,
    pub(super) after: String,
    pub(super) directories: Vec<Growth>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let config = global.required_config()?;
    if config.sources.is_empty() {
        return Err(Usage("the configuration has no source; write one, such as [source.home]".into()).into());
    }
    let history = if args.html.is_some() { YEAR } else { overview::HISTORY };
    let overview = overview::read(&config, config.sources.iter().collect(), None, history, global)?;
    let troubles = match Journal::view(&global.state()?)? {
        Some(journal) => journal.troubles(overview.now - RECENT, overview.now, MOST_TROUBLES)?,
        None => Vec::new(),
    };
    let Some(file) = &args.html else {
        return print(&overview, &troubles);
    };
    let monitor = global.monitor(false);
    let grown = grown(args, &config, global, &monitor);
    let page = html::page(&overview, &troubles, &grown);
    match file {
        None => output::result(page.trim_end())?,
        Some(file) => {
            let file = std::path::absolute(file)?;
            write_file(&file, page.as_bytes(), 0o600, IfExists::Replace)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(overview: &Overview, troubles: &[Trouble]) -> Result<ExitCode> {
    let style = Style::of_output();
    let mut lines = overview::text(overview, style);
    lines.push(String::new());
    lines.push(
        if troubles.is_empty() { "No problems in the last 30 days" } else { "Problems in the last 30 days:" }.into(),
    );
    for trouble in troubles {
        let Trouble { entry, .. } = trouble;
        let word = if entry.ending == Ending::Problems { "had problems" } else { entry.ending.name() };
        let (ago, what) = (since(entry, overview.now), what(trouble));
        let words = format!("{ago}, {what} {word}{}: {}", times(trouble), entry.message);
        lines.extend(style.wrapped(&show::printable(&words)));
    }
    lines.iter().try_for_each(output::result)?;
    Ok(ExitCode::SUCCESS)
}

/// The step, its source and its target.
pub(super) fn what(trouble: &Trouble) -> String {
    let Trouble { step, source, target, .. } = trouble;
    match (source, target) {
        (Some(source), Some(target)) => format!("{step} of {source} to {target}"),
        (Some(name), None) | (None, Some(name)) => format!("{step} of {name}"),
        (None, None) => step.clone(),
    }
}

/// How often it happened, if it was more than once.
pub(super) fn times(trouble: &Trouble) -> String {
    if trouble.times > 1 { format!(" ({} times)", trouble.times) } else { String::new() }
}

/// What made the sources grow; or else how to get that.
fn grown(args: &Args, config: &Config, global: &Global, monitor: &dyn Monitor) -> Result<Vec<SourceGrowth>, String> {
    let how = "This needs a secret key without a passphrase: add --key FILE, and --repo TARGET if there are several targets. \
               A repository that is not encrypted needs only --repo.";
    let ReaderArgs { repository, key, .. } = &args.reader;
    if key.is_none() && repository.given().is_none() {
        return Err(how.to_owned());
    }
    let find = || -> Result<Option<Vec<SourceGrowth>>> {
        if let Some(path) = key {
            let bytes = read_file(path, KEYS).with_context(|| format!("cannot read the key {}", path.display()))?;
            let key = SecretKey::parse(&bytes).with_context(|| format!("cannot use the key {}", path.display()))?;
            if key.is_locked() {
                return Ok(None);
            }
        }
        let repository = repository.resolve(global)?.open(Use::Command, global, Repository::reads_of_readers())?;
        if repository.encrypted() && key.is_none() {
            return Ok(None);
        }
        let reader = args.reader.open_in(repository, FirstUse::Trusted, global, monitor, SMALL_CACHE)?;
        of_sources(&reader, config, monitor).map(Some)
    };
    match find() {
        Ok(Some(grown)) => Ok(grown),
        Ok(None) => Err(how.to_owned()),
        Err(error) => {
            // The rest of the report is made in any case.
            let text = exit::text(&error);
            monitor.note(&text);
            Err(text)
        }
    }
}

fn of_sources(reader: &Reader, config: &Config, monitor: &dyn Monitor) -> Result<Vec<SourceGrowth>> {
    let archive: &dyn Archive = reader;
    let mut names = archive.snapshots()?;
    names.reverse();
    let mut found = Vec::new();
    let mut ids: Vec<_> = names.iter().map(|name| name.source).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let source = archive.source_name(id)?;
        if !config.sources.iter().any(|known| known.name == source) {
            continue;
        }
        let mut last = names.iter().filter(|name| name.source == id);
        if let (Some(after), Some(before)) = (last.next(), last.next()) {
            let (before, after) = (archive.open(before)?, archive.open(after)?);
            found.push(SourceGrowth {
                source,
                before: show::name_time(&before.name.time),
                after: show::name_time(&after.name.time),
                directories: growth(archive, &before, &after, DIRECTORIES, monitor)?,
            });
        }
    }
    found.sort_by(|one, other| one.source.cmp(&other.source));
    Ok(found)
}
