//! The state of all backups, as text.

use std::env;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use jiff::tz::TimeZone;

use super::global::Global;
use super::show::{self, size};
use crate::config::{Config, SourceConfig};
use crate::job::{Ending, Entry, Journal};
use crate::monitor::count;
use crate::overview::{BackupState, Backups, Overview, Recipient, Scope, TargetOverview, Tries, calendar};

/// The days of a row, and the backups of its sparkline.
const ROW: u16 = 30;
/// How far back single backups are read for a row: the first of its days may be an hour longer.
pub(super) const HISTORY: Duration = Duration::from_secs((ROW as u64 + 1) * 24 * 60 * 60);
/// How long before its expiry a certificate is mentioned, in seconds.
const SOON: i64 = 30 * 24 * 60 * 60;
/// Width of an output that does not report it.
const COLUMNS: usize = 80;
/// The width that a row of days and a sparkline need next to each other.
const BOTH: usize = 2 + ROW as usize + 2 + ROW as usize;

/// Reads the overview of some sources.
pub(super) fn read(
    config: &Config,
    sources: Vec<&SourceConfig>,
    max_age: Option<Duration>,
    history: Duration,
    global: &Global,
) -> Result<Overview> {
    let state = global.state()?;
    let journal = Journal::view(&state)?;
    let scope = Scope { config, sources, state: &state, journal: journal.as_ref(), max_age, history };
    Ok(scope.read()?)
}

/// How text is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) columns: usize,
    /// Whether other characters than those of ASCII are shown.
    pub(super) unicode: bool,
    pub(super) color: bool,
}

/// A color of text.
#[derive(Debug, Clone, Copy)]
enum Color {
    Good,
    Warning,
    Bad,
    Faint,
}

impl Style {
    /// The style for standard output.
    pub(super) fn of_output() -> Self {
        let out = std::io::stdout();
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).map(|size| usize::from(size.ws_col));
        let columns = size.ok().filter(|columns| *columns > 0).or_else(|| set("COLUMNS")?.parse().ok());
        // The first of these that is set decides, as for the C library.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        Style {
            columns: columns.unwrap_or(COLUMNS).max(20),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            color: out.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    fn paint(self, color: Color, text: &str) -> String {
        let code = match color {
            Color::Good => "32",
            Color::Warning => "33",
            Color::Bad => "1;31",
            Color::Faint => "2",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    /// The mark of a day, in its color.
    fn mark(self, ending: Option<Ending>) -> String {
        let (fancy, plain, color) = match ending {
            Some(Ending::Done) => ("■", "#", Color::Good),
            Some(Ending::Problems) => ("▲", "!", Color::Warning),
            Some(Ending::Failed) => ("✗", "X", Color::Bad),
            Some(Ending::Skipped) => ("–", "-", Color::Faint),
            None => ("·", ".", Color::Faint),
        };
        self.paint(color, if self.unicode { fancy } else { plain })
    }

    /// A bar for each value, in proportion to the largest.
    fn sparkline(self, values: &[u64]) -> String {
        let bars: Vec<char> = if self.unicode { "▁▂▃▄▅▆▇█" } else { "_.-=+*%#" }.chars().collect();
        let most = values.iter().copied().max().unwrap_or(0).max(1) as f64;
        let top = bars.len().saturating_sub(1) as f64;
        values.iter().filter_map(|value| bars.get((*value as f64 / most * top).ceil() as usize)).collect()
    }

    /// Breaks text into lines after spaces. The first line is indented by two columns, the others by four. A word that is too
    /// long has a line of its own.
    pub(super) fn wrapped(self, text: &str) -> Vec<String> {
        let mut lines = vec!["  ".to_owned()];
        let mut is_empty = true;
        for word in text.split_whitespace() {
            let Some(line) = lines.last_mut() else { break };
            if !is_empty && width(line) + 1 + width(word) > self.columns {
                lines.push(format!("    {word}"));
                continue;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        lines
    }
}

/// The number of columns of text without escape sequences. Each character counts as one.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// All backups, then all targets, then certificates that expire, then a legend.
pub(super) fn text(overview: &Overview, style: Style) -> Vec<String> {
    let mut lines = heads(overview, style);
    if !overview.targets.is_empty() {
        lines.push(String::new());
    }
    for target in &overview.targets {
        let words = of_target(overview, target, style);
        // Names begin in the first column, as those of backups do.
        let wrapped = style.wrapped(&show::printable(&words));
        lines.extend(wrapped.iter().map(|line| line.get(2..).unwrap_or_default().to_owned()));
        for recipient in target.known.iter().flat_map(|known| &known.recipients) {
            if let Some(words) = expiry(recipient, overview.now) {
                let painted = style.wrapped(&show::printable(&words));
                lines.extend(painted.iter().map(|line| style.paint(Color::Warning, line)));
            }
        }
    }
    lines.push(String::new());
    lines.extend(legend(style));
    lines
}

/// A few lines for each source on each target.
fn heads(overview: &Overview, style: Style) -> Vec<String> {
    let names: Vec<_> =
        overview.backups.iter().map(|it| format!("{} {} {}", it.source, style.arrow(), it.target)).collect();
    let ages: Vec<_> = overview.backups.iter().map(|it| it.age(overview.now).map(ago).unwrap_or_default()).collect();
    let sizes: Vec<_> = overview.backups.iter().map(sizes).collect();
    let most = |texts: &[String]| texts.iter().map(|text| width(text)).max().unwrap_or(0);
    let (name_width, age_width) = (most(&names), most(&ages));
    // The widest state is "problems".
    let head_width = name_width + 2 + 8 + 2 + age_width;
    let is_wide = head_width + 2 + most(&sizes) <= style.columns;
    let mut lines = Vec::new();
    for (((backups, name), age), sizes) in overview.backups.iter().zip(&names).zip(&ages).zip(&sizes) {
        let state = backups.state(overview.now);
        let color = match state {
            BackupState::Ok => Color::Good,
            BackupState::Skipped => Color::Faint,
            BackupState::Problems | BackupState::Never => Color::Warning,
            BackupState::Late | BackupState::Failed => Color::Bad,
        };
        let word = style.paint(color, &format!("{:<8}", state.name()));
        let age = format!("{age:<age_width$}");
        match (is_wide, head_width <= style.columns) {
            (true, _) => lines.push(format!("{name:<name_width$}  {word}  {age}  {sizes}")),
            (false, true) => lines.extend([format!("{name:<name_width$}  {word}  {age}"), format!("  {sizes}")]),
            (false, false) => {
                let name: String = name.chars().take(style.columns).collect();
                lines.extend([name, format!("  {word}  {age}"), format!("  {sizes}")]);
            }
        }
        lines.extend(rows(backups, overview.now, style));
        for words in remarks(backups, state, overview.now) {
            lines.extend(style.wrapped(&show::printable(&words)));
        }
    }
    let trimmed = lines.iter().map(|line| line.trim_end().to_owned());
    trimmed.filter(|line| !line.is_empty()).collect()
}

/// The number of snapshots, the size of the source, and the bytes that were stored for the snapshots.
pub(super) fn sizes(backups: &Backups) -> String {
    let snapshots = backups.snapshots.map(|kept| count(kept.count, "snapshot", "snapshots"));
    let stored = backups.snapshots.map(|kept| format!("{} stored", size(kept.stored_bytes)));
    let counts = backups.tries.completed.as_ref().and_then(|entry| entry.counts);
    let parts = [snapshots, counts.map(|counts| size(counts.bytes)), stored];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The row of days, and the sparkline of stored bytes.
fn rows(backups: &Backups, now: i64, style: Style) -> Vec<String> {
    let room = style.columns.saturating_sub(2);
    let days = calendar(&backups.history, now, ROW, &TimeZone::system());
    let shown = days.len().saturating_sub(room);
    let marks: String = days.iter().skip(shown).map(|day| style.mark(day.ending)).collect();
    let stored: Vec<_> = backups.history.iter().filter_map(|entry| Some(entry.counts?.stored_bytes)).collect();
    let most = room.min(usize::from(ROW));
    let spark = style.sparkline(stored.get(stored.len().saturating_sub(most)..).unwrap_or_default());
    match (spark.is_empty(), BOTH <= style.columns) {
        (true, _) => vec![format!("  {marks}")],
        (false, true) => vec![format!("  {marks}  {spark}")],
        (false, false) => vec![format!("  {marks}"), format!("  {spark}")],
    }
}

/// Reasons for a state, one for each line.
fn remarks(backups: &Backups, state: BackupState, now: i64) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(failure) = backups.tries.failure() {
        remarks.push(format!("failed {}: {}", since(failure, now), failure.message));
    }
    if let (Some(skipped), true) = (&backups.skipped, state != BackupState::Ok) {
        remarks.push(format!("skipped {}: {}", since(skipped, now), skipped.message));
    }
    let completed = backups.tries.completed.as_ref();
    let problems = completed.and_then(|entry| entry.counts).map(|counts| counts.problems).filter(|number| *number > 0);
    remarks.extend(problems.map(|number| format!("{} in the last backup", count(number, "problem", "problems"))));
    if let Some(failure) = backups.forget.failure() {
        remarks.push(format!("forget FAILED {}: {}", since(failure, now), failure.message));
    }
    remarks
}

/// A sentence about a target.
fn of_target(overview: &Overview, target: &TargetOverview, style: Style) -> String {
    let mut parts = Vec::new();
    if let Some(known) = &target.known {
        let of_it = overview.backups.iter().filter(|backups| backups.target == target.name);
        let sources: u64 = of_it.filter_map(|it| Some(it.tries.completed.as_ref()?.counts?.bytes)).sum();
        parts.push(count(known.snapshots(), "snapshot", "snapshots"));
        parts.push(format!("{} in {} stored", size(sources), size(known.stored_bytes)));
    }
    parts.push(tries("pruned", "prune", &target.prune, overview.now));
    parts.push(tries("checked", "check", &target.check, overview.now));
    parts.extend(target.problem.clone());
    format!("{} {}: {}", style.arrow(), target.name, parts.join(", "))
}

pub(super) fn tries(done: &str, step: &str, tries: &Tries, now: i64) -> String {
    match (tries.failure(), &tries.completed) {
        (Some(failure), _) => format!("{step} FAILED {}: {}", since(failure, now), failure.message),
        (None, Some(completed)) => format!("{done} {}", since(completed, now)),
        (None, None) => format!("never {done}"),
    }
}

/// A sentence about a certificate that expires soon, or cannot be used.
pub(super) fn expiry(recipient: &Recipient, now: i64) -> Option<String> {
    let who = recipient.user_id.as_deref().unwrap_or(&recipient.fingerprint);
    if let Some(problem) = &recipient.problem {
        return Some(format!("backups fail: the certificate of {who} cannot be used: {problem}"));
    }
    let expires = recipient.expires.filter(|expires| expires.saturating_sub(now) < SOON)?;
    let days = expires.saturating_sub(now) / (24 * 60 * 60);
    let left = count(u64::try_from(days).unwrap_or(0), "day", "days");
    Some(format!("the certificate of {who} expires in {left}; see brackfs-recipients-update(1)"))
}

fn legend(style: Style) -> Vec<String> {
    let meanings = [
        (Some(Ending::Done), "complete"),
        (Some(Ending::Problems), "problems"),
        (Some(Ending::Failed), "failed"),
        (Some(Ending::Skipped), "skipped"),
        (None, "none"),
    ];
    // Colors would count as columns.
    let plain = Style { color: false, ..style };
    let marks: Vec<_> = meanings.iter().map(|(ending, word)| format!("{} {word}", plain.mark(*ending))).collect();
    let words = format!(
        "{}: the best backup of each of the last {ROW} days, today last. Bars: bytes stored by the last {ROW} backups.",
        marks.join(", ")
    );
    let lines = style.wrapped(&words);
    lines.iter().map(|line| style.paint(Color::Faint, line.get(2..).unwrap_or_default().trim_start())).collect()
}

/// How long ago an entry was made.
pub(super) fn since(entry: &Entry, now: i64) -> String {
    ago(Duration::from_secs(now.saturating_sub(entry.ended).unsigned_abs()))
}

/// A time in the past, in its largest unit.
pub(super) fn ago(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0..2 => "just now".to_owned(),
        2..120 => format!("{minutes} min ago"),
        120..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { columns: 40, unicode: false, color: false };

    #[test]
    fn ages_have_one_unit() {
        let shown = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|seconds| ago(Duration::from_secs(seconds)));
        assert_eq!(shown, ["just now", "just now", "2 min ago", "119 min ago", "2 h ago", "47 h ago", "2 days ago"]);
    }

    #[test]
    fn bars_are_in_proportion_to_the_largest() {
        let style = Style { unicode: true, ..PLAIN };
        assert_eq!(style.sparkline(&[0, 1, 50, 100]), "▁▂▅█");
        assert_eq!(style.sparkline(&[0, 0]), "▁▁");
        assert_eq!(style.sparkline(&[u64::MAX, 0]), "█▁");
        assert_eq!(PLAIN.sparkline(&[0, 100]), "_#");
    }

    #[test]
    fn lines_fit_the_width() {
        let lines = PLAIN.wrapped(&"some words ".repeat(20));
        assert!(lines.len() > 4 && lines.iter().all(|line| width(line) <= 40), "{lines:?}");
        assert!(lines[0].starts_with("  some") && lines[1].starts_with("    "), "{lines:?}");
        assert_eq!(PLAIN.wrapped(&"x".repeat(50)), [format!("  {}", "x".repeat(50))]);
    }
}
