//! Sizes, times and modes as people read and write them.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use crate::format::{Kind, Timestamp};

/// Text for a terminal: a name in it could otherwise command the terminal, or show as another name.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return text.into();
    }
    let shown = |c: char| if is_command(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// Text on standard output: safe for a terminal, and as it is for a pipe or a file.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    match std::io::stdout().is_terminal() {
        true => printable(text),
        false => text.into(),
    }
}

/// JSON that is safe for a terminal, too: serde escapes only the characters that JSON demands.
pub(super) fn json(value: &serde_json::Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match is_command(c) {
            // All of them are below U+10000, and they stand in strings only.
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    text
}

/// Whether a character commands a terminal (C0, DEL, C1), breaks a line, or changes the direction of the text after it.
fn is_command(c: char) -> bool {
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A size in powers of 1024, in three digits.
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

/// Bytes in a time, as bytes a second.
pub(super) fn rate(bytes: u64, time: Duration) -> String {
    // What took no time at all has no rate.
    let a_second = bytes as f64 / time.as_secs_f64().max(0.001);
    format!("{}/s", size(a_second as u64))
}

/// How long something takes: minutes and seconds, and hours if there are.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// A size as people write it: a number and, if they like, K, M, G or T (KiB, KB and kb are the same).
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("{unit:?} is no unit; give a number and K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| "it does not begin with a number".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too large".to_owned())
}

/// A length of time as people write it: seconds, or numbers with units (500ms, 5s, 10m, 1h30m).
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "it is no length of time; give a number and ms, s, m or h".to_owned())?;
    Duration::try_from(span).map_err(|_| "it is less than nothing".to_owned())
}

/// A point in time as people write it: a date, or a date and a time, in UTC unless it says another offset.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let utc = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let time = text.parse().ok().or_else(|| utc().map(|zoned| zoned.timestamp()));
    let time: jiff::Timestamp = time.ok_or("it is no time; write 2026-11-20, or 2026-11-20T14:52, or add an offset")?;
    // Nanoseconds count from the second before.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    let (seconds, nanos) = if nanos < 0 { (seconds - 1, nanos + 1_000_000_000) } else { (seconds, nanos) };
    Ok(Timestamp { seconds, nanos: nanos.unsigned_abs() })
}

/// A time of the system's clock as RFC 3339, to the second.
pub(super) fn rfc3339_of(time: SystemTime) -> String {
    let seconds = |time: SystemTime| i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok();
    rfc3339(Timestamp { seconds: seconds(time).unwrap_or(0), nanos: 0 })
}

/// A time in RFC 3339, UTC, whole seconds. One outside of the years 0 to 9999, which RFC 3339 cannot show, is `@` and
/// the seconds since 1970, as date(1) takes it.
pub(super) fn rfc3339(time: Timestamp) -> String {
    let shown = jiff::Timestamp::from_second(time.seconds).ok().filter(|_| time.seconds >= YEAR_0);
    shown.map_or_else(|| format!("@{}", time.seconds), |time| time.to_string())
}

/// The first second of the year 0.
const YEAR_0: i64 = -62_167_219_200;

/// The time in a snapshot's name in RFC 3339.
pub(super) fn name_time(name: &str) -> String {
    let part = |from: usize, to: usize| name.get(from..to).unwrap_or_default();
    let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
    format!("{year}-{month}-{day}T{}:{}:{}Z", part(9, 11), part(11, 13), part(13, 15))
}

/// Kind and permissions as `ls -l` shows them.
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
        assert_eq!(parse_size("128MiB"), Ok(128 << 20));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("7"), Ok(7));
        for bad in ["", "MiB", "-1", "1x", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_commands_a_terminal() {
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
    fn lengths_of_time() {
        let read = |text| parse_duration(text).map(|time| time.as_millis());
        assert_eq!(["0", "7", "250ms", "5s", "1h30m"].map(read), [0, 7000, 250, 5000, 5_400_000].map(Ok));
        for bad in ["", "s", "-5s", "5 parsecs", "1.5"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn points_in_time() {
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
    fn rates_and_durations() {
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
