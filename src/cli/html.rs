//! The report as a web page: one file without scripts, which loads nothing.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::overview::{ago, expiry, sizes, tries};
use super::report::{SourceGrowth, times, what};
use super::show::{printable, size};
use crate::job::{Ending, Entry, Trouble};
use crate::overview::{BackupState, Backups, Day, Overview, TargetOverview, Verdict, calendar};

/// The days of a calendar: whole weeks of a year.
const DAYS: usize = 53 * 7;
/// Bytes that all days of all calendars and charts may take, so that the page stays below 300 kB.
const SPACE: usize = 200_000;
/// Bytes that the list of problems may take, and that of directories.
const LIST: usize = 40_000;
/// Maximum length of a message or a path in characters.
const TEXT: usize = 300;
/// About the bytes of a day: its square with a title, its point and its bar.
const BYTES_A_DAY: usize = 100;
/// Width and height of a day's square with its margin.
const CELL: usize = 13;
/// Width of a chart.
const WIDTH: f64 = 700.0;
/// Height of a chart.
const HEIGHT: f64 = 90.0;

const STYLE: &str = "
:root{color-scheme:light dark;--back:#fff;--text:#1c2126;--faint:#5f6b76;--line:#d8dee4;--none:#e6eaee;--done:#2f9e57;\
--problems:#e0a100;--failed:#d13438;--skipped:#9db2c8;--size:#2566c4}
@media(prefers-color-scheme:dark){:root{--back:#14181c;--text:#e4e8ec;--faint:#98a3ae;--line:#343b42;--none:#262c32;\
--done:#3fb56b;--problems:#e3b341;--failed:#f0575b;--skipped:#5d7288;--size:#6ca6f5}}
body{margin:0 auto;max-width:60em;padding:1em;background:var(--back);color:var(--text);\
font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.15em;margin:1.8em 0 .4em;border-bottom:1px solid var(--line)}
h3{font-size:1em;margin:1.2em 0 .3em}p{margin:.4em 0;overflow-wrap:anywhere}
.faint,figcaption{color:var(--faint);font-size:.87em}
.wide{overflow-x:auto}.end{direction:rtl}.end svg{direction:ltr;margin:0 auto 0 0}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25em .9em .25em 0;vertical-align:top;\
border-bottom:1px solid var(--line)}th{font-weight:600}td.word{overflow-wrap:anywhere;min-width:7em}td.now{white-space:nowrap}
.state{font-weight:600}.good{color:var(--done)}.warn{color:var(--problems)}.bad{color:var(--failed)}
figure{margin:.3em 0}svg{display:block}svg text{fill:var(--faint);font:10px system-ui,sans-serif}
rect{width:11px;height:11px;rx:2px}.d{fill:var(--done)}.p{fill:var(--problems)}.f{fill:var(--failed)}\
.s{fill:var(--skipped)}.n{fill:var(--none)}
.chart{width:100%;height:auto;max-width:700px}.chart polyline{fill:none;stroke:var(--size);stroke-width:1.5}\
.chart path{stroke:var(--done);stroke-width:1.5}.chart line{stroke:var(--line)}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 .2em}
.pair{white-space:nowrap}
@media(max-width:40em){td,th{padding-right:.5em}.list td{display:block;border:0;padding:0}\
.list tr{display:block;border-bottom:1px solid var(--line);padding:.4em 0}}
.bar{display:inline-block;height:.7em;background:var(--size);border-radius:2px}
";

/// The whole page.
pub(super) fn page(overview: &Overview, troubles: &[Trouble], grown: &Result<Vec<SourceGrowth>, String>) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let title = format!("Backups of {}", escaped(&host));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    let zone = TimeZone::system();
    let (class, words) = verdict(overview);
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<p><span class=\"state {class}\">{words}</span> <span class=\"faint\">{}</span></p>",
        escaped(&moment(overview.now, &zone))
    );
    summary(&mut out, overview);
    let days = (SPACE / BYTES_A_DAY / overview.backups.len().max(1)).min(DAYS) / 7 * 7;
    for backups in &overview.backups {
        section(&mut out, backups, overview.now, days.max(7), &zone);
    }
    targets(&mut out, overview);
    growth(&mut out, grown);
    problems(&mut out, troubles, &zone);
    let _ = writeln!(out, "<p class=\"faint\">brackfs {}</p>\n</body>\n</html>", env!("CARGO_PKG_VERSION"));
    out
}

/// Text in HTML, without characters that could disguise it.
fn escaped(text: &str) -> String {
    let text = printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

/// The beginning of a message or a path.
fn beginning(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A time, to the minute.
fn moment(seconds: i64, zone: &TimeZone) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default();
    time.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

/// A class and a sentence.
fn verdict(overview: &Overview) -> (&'static str, &'static str) {
    match overview.verdict() {
        Verdict::Fresh => ("good", "All backups are fresh."),
        Verdict::Failed => ("bad", "Something failed."),
        Verdict::Late => ("bad", "A backup is too old."),
        Verdict::Never => ("warn", "A backup was never made."),
    }
}

fn summary(out: &mut String, overview: &Overview) {
    out.push_str(
        "<div class=\"wide\"><table>\n<tr><th>Source</th><th>Target</th><th>State</th><th>Last backup</th><th>Size</th></tr>\n",
    );
    for backups in &overview.backups {
        let state = backups.state(overview.now);
        let class = match state {
            BackupState::Ok | BackupState::Skipped => "good",
            BackupState::Problems | BackupState::Never => "warn",
            BackupState::Late | BackupState::Failed => "bad",
        };
        let age = backups.age(overview.now).map(ago).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"state {class}\">{}</td><td class=\"now\">{age}</td><td class=\"now\">{}</td></tr>",
            escaped(&backups.source),
            escaped(&backups.target),
            state.name(),
            sizes(backups),
        );
    }
    out.push_str("</table></div>\n<p class=\"faint\">");
    for (class, word) in
        [("d", "complete"), ("p", "with problems"), ("f", "failed"), ("s", "skipped"), ("n", "no backup")]
    {
        let color = match class {
            "d" => "done",
            "p" => "problems",
            "f" => "failed",
            "s" => "skipped",
            _ => "none",
        };
        let _ = write!(
            out,
            "<span class=\"pair\"><span class=\"key\" style=\"background:var(--{color})\"></span>{word}</span> "
        );
    }
    out.push_str("</p>\n");
}

/// The calendar and the sizes of a source on a target.
fn section(out: &mut String, backups: &Backups, now: i64, count: usize, zone: &TimeZone) {
    let days = calendar(&backups.history, now, u16::try_from(count).unwrap_or(u16::MAX), zone);
    let _ = writeln!(out, "<h2>{} → {}</h2>", escaped(&backups.source), escaped(&backups.target));
    if let Some(failure) = backups.tries.failure() {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", escaped(&beginning(&failure.message)));
    }
    squares(out, &days);
    chart(out, &backups.history, &days, zone);
}

/// A square for each day, in a column for each week.
fn squares(out: &mut String, days: &[Day]) {
    // Weeks begin on Monday.
    let offset = days.first().map_or(0, |day| usize::from(day.date.weekday().to_monday_zero_offset().unsigned_abs()));
    let weeks = (offset + days.len()).div_ceil(7);
    let (width, height) = (weeks * CELL, 7 * CELL + 14);
    let _ = writeln!(
        out,
        "<div class=\"wide end\"><svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"Backups of each day\">"
    );
    let mut month = None;
    for (at, day) in (offset..).zip(days) {
        let (x, y) = (at / 7 * CELL, at % 7 * CELL + 14);
        // Only where there is room for the name.
        if month != Some(day.date.month()) && at % 7 == 0 && x + 2 * CELL <= width {
            month = Some(day.date.month());
            let _ = write!(out, "<text x=\"{x}\" y=\"9\">{}</text>", day.date.strftime("%b"));
        }
        let (class, word) = match day.ending {
            Some(Ending::Done) => ("d", "complete"),
            Some(Ending::Problems) => ("p", "with problems"),
            Some(Ending::Failed) => ("f", "failed"),
            Some(Ending::Skipped) => ("s", "skipped"),
            None => ("n", "none"),
        };
        let _ = writeln!(out, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\"><title>{}: {word}</title></rect>", day.date);
    }
    out.push_str("</svg></div>\n");
}

/// The size of the source as a line, and the stored bytes as bars, each in proportion to its own maximum.
fn chart(out: &mut String, history: &[Entry], days: &[Day], zone: &TimeZone) {
    let mut sizes: BTreeMap<Date, (u64, u64)> = BTreeMap::new();
    for entry in history {
        let Some(counts) = entry.counts.filter(|_| entry.ending > Ending::Failed) else { continue };
        let Ok(time) = Timestamp::from_second(entry.ended) else { continue };
        let (bytes, stored) = sizes.entry(zone.to_datetime(time).date()).or_default();
        *bytes = counts.bytes;
        *stored = stored.saturating_add(counts.stored_bytes);
    }
    let points: Vec<_> = (0..).zip(days).filter_map(|(at, day)| Some((at, *sizes.get(&day.date)?))).collect();
    let Some((_, (last, _))) = points.last() else { return };
    let most = |values: &mut dyn Iterator<Item = u64>| values.max().unwrap_or(0).max(1);
    let most_bytes = most(&mut points.iter().map(|(_, (bytes, _))| *bytes));
    let most_stored = most(&mut points.iter().map(|(_, (_, stored))| *stored));
    let step = WIDTH / days.len().max(1) as f64;
    let x = |at: i32| (f64::from(at) + 0.5) * step;
    let part = |value: u64, most: u64, height: f64| value as f64 / most as f64 * height;
    let mut line: Vec<_> = points
        .iter()
        .map(|(at, (bytes, _))| format!("{:.0},{:.0}", x(*at), HEIGHT - part(*bytes, most_bytes, HEIGHT - 4.0)))
        .collect();
    // A line of one point would not be seen.
    if let ([_], Some((at, _))) = (line.as_slice(), points.first()) {
        line.push(format!("{:.0},{:.0}", x(*at) + 3.0, HEIGHT - part(*last, most_bytes, HEIGHT - 4.0)));
    }
    let bar = |at: i32, stored: u64| format!("M{:.0} {HEIGHT}v-{:.1}", x(at), part(stored, most_stored, HEIGHT / 2.0));
    let bars: String = points.iter().map(|(at, (_, stored))| bar(*at, *stored)).collect();
    let _ = writeln!(
        out,
        "<figure><svg class=\"chart\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Sizes over time\">\
         <path d=\"{bars}\"/><polyline points=\"{}\"/>\
         <line x1=\"0\" y1=\"{HEIGHT}\" x2=\"{WIDTH}\" y2=\"{HEIGHT}\"/></svg>\
         <figcaption>Line: the size of the source, now {}, at most {}. \
         Bars: bytes stored on each day, at most {}.</figcaption></figure>",
        HEIGHT + 1.0,
        line.join(" "),
        size(*last),
        size(most_bytes),
        size(most_stored)
    );
}

fn targets(out: &mut String, overview: &Overview) {
    out.push_str(
        "<h2>Targets</h2>\n<div class=\"wide\"><table>\n\
         <tr><th>Target</th><th>Snapshots</th><th>Stored</th><th>Prune</th><th>Check</th></tr>\n",
    );
    for target in &overview.targets {
        let TargetOverview { name, prune, check, known, .. } = target;
        let snapshots = known.as_ref().map(|known| known.snapshots().to_string());
        let stored = known.as_ref().map(|known| size(known.stored_bytes));
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"now\">{}</td><td class=\"word\">{}</td><td class=\"word\">{}</td></tr>",
            escaped(name),
            snapshots.unwrap_or_default(),
            stored.unwrap_or_default(),
            escaped(&beginning(&tries("pruned", "prune", prune, overview.now))),
            escaped(&beginning(&tries("checked", "check", check, overview.now))),
        );
    }
    out.push_str("</table></div>\n");
    for target in &overview.targets {
        let recipients = target.known.iter().flat_map(|known| &known.recipients);
        let expiries = recipients.filter_map(|recipient| expiry(recipient, overview.now));
        for words in expiries.chain(target.problem.clone()) {
            let _ = writeln!(out, "<p class=\"warn\">{}: {}</p>", escaped(&target.name), escaped(&words));
        }
    }
}

fn growth(out: &mut String, grown: &Result<Vec<SourceGrowth>, String>) {
    let start = out.len();
    out.push_str("<h2>What made it grow</h2>\n");
    let grown = match grown {
        Ok(grown) => grown,
        Err(how) => {
            let _ = writeln!(out, "<p>{}</p>", escaped(how));
            return;
        }
    };
    if grown.is_empty() {
        out.push_str("<p>No source has two snapshots yet.</p>\n");
    }
    for SourceGrowth { source, before, after, directories } in grown {
        if out.len() - start > LIST {
            out.push_str("<p>…</p>\n");
            break;
        }
        let _ = writeln!(
            out,
            "<h3>{}</h3>\n<p class=\"faint\">New and changed files from {before} to {after}</p>",
            escaped(source)
        );
        let most = directories.iter().map(|it| it.bytes).max().unwrap_or(1).max(1);
        if directories.is_empty() {
            out.push_str("<p>None.</p>\n");
            continue;
        }
        out.push_str("<div class=\"wide\"><table>\n");
        for directory in directories {
            let path = String::from_utf8_lossy(&directory.path);
            let shown = if path.is_empty() { "the root of the snapshot" } else { &*path };
            let _ = writeln!(
                out,
                "<tr><td class=\"now\">{}</td><td><span class=\"bar\" style=\"width:{:.1}em\"></span></td><td class=\"word\">{}</td></tr>",
                size(directory.bytes),
                (directory.bytes as f64 / most as f64 * 8.0).max(0.1),
                escaped(&beginning(shown))
            );
        }
        out.push_str("</table></div>\n");
    }
}

fn problems(out: &mut String, troubles: &[Trouble], zone: &TimeZone) {
    let start = out.len();
    out.push_str("<h2>Problems of the last 30 days</h2>\n");
    if troubles.is_empty() {
        out.push_str("<p>None.</p>\n");
        return;
    }
    out.push_str("<div class=\"wide\"><table class=\"list\">\n");
    for trouble in troubles {
        let entry = &trouble.entry;
        let class = if entry.ending == Ending::Failed { "bad" } else { "warn" };
        let _ = writeln!(
            out,
            "<tr><td class=\"now\">{}</td><td>{}</td><td class=\"{class}\">{}</td><td class=\"word\">{}</td></tr>",
            escaped(&moment(entry.ended, zone)),
            escaped(&format!("{}{}", what(trouble), times(trouble))),
            entry.ending.name(),
            escaped(&beginning(&entry.message))
        );
        if out.len() - start > LIST {
            out.push_str("<tr><td>…</td></tr>\n");
            break;
        }
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<a href=\"x\">'&\u{1b}"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\\u{1b}");
    }
}
