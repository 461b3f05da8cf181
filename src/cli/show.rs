//! Formats and parses sizes, times and modes; escapes text for terminals.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use jiff::tz::{Offset, TimeZone};

use crate::format::{Kind, Timestamp, name};

/// Escapes control characters, which could send commands to the terminal or disguise a name.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return text.into();
    }
    let shown = |c: char| if is_command(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// Escapes text for standard output if that is a terminal.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { printable(text) } else { text.into() }
}

/// JSON that is safe for a terminal: serde escapes only the characters that JSON requires.
pub(super) fn json(value: &serde_json::Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if is_command(c) {
            // They occur only in strings, and all are below U+10000.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// Whether a character is a control character (C0, DEL, C1), a line separator, or changes the direction of text.
fn is_command(c: char) -> bool {
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A size with a unit in powers of 1024 and three significant digits.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", units.get(unit).unwrap_or(&""))
}

/// A rate per second.
pub(super) fn rate(bytes: u64, time: Duration) -> String {
    // Avoids a division by zero.
    let a_second = bytes as f64 / time.as_secs_f64().max(0.001);
    format!("{}/s", size(a_second as u64))
}

/// A duration as `M:SS` or `H:MM:SS`.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Parses a date, or a date and time, in UTC unless it has an offset.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let utc = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok();
    let time = text.parse().ok().or_else(|| utc().map(|zoned| zoned.timestamp()));
    let time: jiff::Timestamp =
        time.ok_or("not a time; write 2026-11-20 or 2026-11-20T14:52, in UTC or with an offset such as +01:00")?;
    // A timestamp counts nanoseconds up from the second before.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    let (seconds, nanos) = if nanos < 0 { (seconds - 1, nanos + 1_000_000_000) } else { (seconds, nanos) };
    Ok(Timestamp { seconds, nanos: nanos.unsigned_abs() })
}

/// A system time in RFC 3339, in UTC and whole seconds.
pub(super) fn rfc3339_of(time: SystemTime) -> String {
    let seconds = |time: SystemTime| i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok();
    rfc3339(Timestamp { seconds: seconds(time).unwrap_or(0), nanos: 0 })
}

/// A time in RFC 3339, in UTC and whole seconds. RFC 3339 is limited to the years 0 to 9999; other times are formatted as
/// `@` and the seconds since 1970, which date(1) accepts.
pub(super) fn rfc3339(time: Timestamp) -> String {
    let shown = jiff::Timestamp::from_second(time.seconds).ok().filter(|_| time.seconds >= YEAR_0);
    shown.map_or_else(|| format!("@{}", time.seconds), |time| time.to_string())
}

/// A time in RFC 3339, in whole seconds of the local time zone, with its offset. Other times as in [`rfc3339`].
pub(super) fn local(time: Timestamp) -> String {
    local_in(&TimeZone::system(), time)
}

fn local_in(zone: &TimeZone, time: Timestamp) -> String {
    let utc = rfc3339(time);
    let Some(time) = jiff::Timestamp::from_second(time.seconds).ok().filter(|_| !utc.starts_with('@')) else {
        return utc;
    };
    // A zone that has this offset only in winter shows it as +00:00: times in a column have the same length.
    if zone.to_offset(time) == Offset::UTC && zone.following(time).next().is_none() {
        return utc;
    }
    time.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The time in a snapshot's name, as [`local`] shows it.
pub(super) fn local_name_time(name: &str) -> String {
    let seconds = name::parse_time(name);
    seconds.map_or_else(|| name_time(name), |seconds| local(Timestamp { seconds, nanos: 0 }))
}

/// The first second of the year 0.
const YEAR_0: i64 = -62_167_219_200;

/// The time in a snapshot's name, in RFC 3339.
pub(super) fn name_time(name: &str) -> String {
    let part = |from: usize, to: usize| name.get(from..to).unwrap_or_default();
    let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
    format!("{year}-{month}-{day}T{}:{}:{}Z", part(9, 11), part(11, 13), part(13, 15))
}

/// Kind and permissions as `ls -l` prints them.
pub(super) fn mode(kind: Kind, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The word for a kind in JSON.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 999, 1000, 1 << 20, 10 << 20, 1023 << 20].map(size),
            ["0 B", "999 B", "0.98 KiB", "1.00 MiB", "10.0 MiB", "1.00 GiB"]
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = "a\u{1b}[31mb\u{9b}c\u{7f}\n\u{202e}d\u{2066}\u{2028}\u{e9}";
        let shown = "a\\u{1b}[31mb\\u{9b}c\\u{7f}\\n\\u{202e}d\\u{2066}\\u{2028}\u{e9}";
        assert_eq!(printable(text), shown);
        assert!(matches!(printable("na\u{ef}ve"), Cow::Borrowed(_)));
        let value = serde_json::json!({ "path": text });
        let written = json(&value);
        assert!(!written.contains(is_command), "{written}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), value);
    }

    #[test]
    fn times() {
        let read = |text| parse_time(text).map(|time| (time.seconds, time.nanos));
        assert_eq!(read("1970-01-02"), Ok((86_400, 0)));
        for same in ["2026-11-20T14:52", "2026-11-20 14:52:00", "2026-11-20T14:52Z", "2026-11-20T15:52+01:00"] {
            assert_eq!(read(same), Ok((1_795_186_320, 0)), "{same}");
        }
        assert_eq!(read("1969-12-31T23:59:59.25Z"), Ok((-1, 250_000_000)));
        for bad in ["", "yesterday", "2026-13-01", "14:52"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn local_times_of_a_zone_have_the_same_length() {
        let seconds = |text| parse_time(text).unwrap();
        let (winter, summer) = (seconds("2026-01-20T14:52"), seconds("2026-07-20T14:52"));
        let zone = TimeZone::posix("GMT0BST,M3.5.0/1,M10.5.0").unwrap();
        assert_eq!(local_in(&zone, winter), "2026-01-20T14:52:00+00:00");
        assert_eq!(local_in(&zone, summer), "2026-07-20T15:52:00+01:00");
        for zone in [TimeZone::UTC, TimeZone::posix("UTC0").unwrap()] {
            assert_eq!(local_in(&zone, winter), "2026-01-20T14:52:00Z");
        }
        assert_eq!(local_in(&zone, Timestamp { seconds: i64::MIN, nanos: 0 }), format!("@{}", i64::MIN));
    }

    #[test]
    fn rates_and_clocks() {
        assert_eq!(rate(3 << 20, Duration::from_secs(2)), "1.50 MiB/s");
        assert_eq!(rate(0, Duration::ZERO), "0 B/s");
        assert_eq!(
            [59, 60, 3599, 3600, 90_061].map(|s| clock(Duration::from_secs(s))),
            ["0:59", "1:00", "59:59", "1:00:00", "25:01:01"]
        );
    }

    #[test]
    fn modes_and_times() {
        assert_eq!(mode(Kind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(Kind::Directory, 0o1776), "drwxrwxrwT");
        assert_eq!(name_time("20261120T145201Z"), "2026-11-20T14:52:01Z");
        let shown = |seconds| rfc3339(Timestamp { seconds, nanos: 0 });
        assert_eq!(shown(-1), "1969-12-31T23:59:59Z");
        assert_eq!(shown(YEAR_0), "0000-01-01T00:00:00Z");
        assert_eq!(shown(YEAR_0 - 1), "@-62167219201");
        assert_eq!(shown(910_692_730_085), "@910692730085");
        assert_eq!(shown(i64::MIN), format!("@{}", i64::MIN));
    }
}
