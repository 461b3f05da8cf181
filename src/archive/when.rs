//! Parses the time in `SNAP[:PATH]`.
//!
//! A colon both separates the path and occurs within a time, so the longest time is taken that is followed by the end or
//! by a colon.

use crate::format::name;

/// Parses a time at the start of `text` and returns it as a prefix of the time in snapshot names, with the number of
/// bytes parsed. The time has at least a date and an hour; shorter ones contain no colon and are not handled here. A time
/// without a zone is UTC.
pub(super) fn parse_time(text: &[u8]) -> Option<(String, usize)> {
    let mut scan = Scan { text, at: 0 };
    let mut fields = vec![scan.digits(4)?];
    for _ in 0..2 {
        scan.eat(b"-");
        fields.push(scan.digits(2)?);
    }
    scan.eat(b"T t_").then_some(())?;
    fields.push(scan.digits(2)?);
    let mut found = scan.end(&fields);
    // Minutes and seconds.
    for _ in 0..2 {
        scan.eat(b":");
        let Some(field) = scan.digits(2) else { return found };
        fields.push(field);
        found = scan.end(&fields).or(found);
    }
    if scan.eat(b".") {
        while scan.digits(1).is_some() {}
        found = scan.end(&fields).or(found);
    }
    found
}

#[derive(Clone, Copy)]
struct Scan<'t> {
    text: &'t [u8],
    at: usize,
}

impl Scan<'_> {
    /// Parses a number of exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let digits = self.text.get(self.at..self.at + count)?;
        let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
        self.at += count;
        str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Skips one byte if it is one of these.
    fn eat(&mut self, any: &[u8]) -> bool {
        let is_there = self.text.get(self.at).is_some_and(|byte| any.contains(byte));
        self.at += usize::from(is_there);
        is_there
    }

    /// Returns the time if it ends here or after a zone.
    fn end(mut self, fields: &[i64]) -> Option<(String, usize)> {
        let seconds_east = self.zone();
        let is_end = self.text.get(self.at).is_none_or(|byte| *byte == b':');
        is_end.then(|| Some((name_of(fields, seconds_east)?, self.at)))?
    }

    /// Parses an optional zone (`Z`, `+01:00`, `+0100` or `+01`) and returns its offset in seconds east of UTC.
    fn zone(&mut self) -> i64 {
        if self.eat(b"Zz") {
            return 0;
        }
        let mut zone = *self;
        let sign = match (zone.eat(b"+"), zone.eat(b"-")) {
            (false, false) => return 0,
            (_, is_west) => 1 - 2 * i64::from(is_west),
        };
        let Some(hours) = zone.digits(2) else { return 0 };
        *self = zone;
        zone.eat(b":");
        let minutes = zone.digits(2).unwrap_or_else(|| {
            zone = *self;
            0
        });
        *self = zone;
        sign * (hours * 3600 + minutes * 60)
    }
}

/// Returns the time as in a snapshot's name, truncated to the fields given.
fn name_of(fields: &[i64], seconds_east: i64) -> Option<String> {
    let field = |at: usize, least| fields.get(at).copied().unwrap_or(least);
    let date = jiff::civil::DateTime::new(
        field(0, 0).try_into().ok()?,
        field(1, 1).try_into().ok()?,
        field(2, 1).try_into().ok()?,
        field(3, 0).try_into().ok()?,
        field(4, 0).try_into().ok()?,
        field(5, 0).try_into().ok()?,
        0,
    );
    let time = date.ok()?.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    let mut name = name::time(time - seconds_east);
    // 20261120T14, then two digits each for minutes and seconds.
    name.truncate(11 + 2 * fields.len().saturating_sub(4));
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_is_parsed() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|(time, length)| (time, text[length..].to_owned()));
        for (text, begins, rest) in [
            ("2026-11-20T14:52:01Z", "20261120T145201", ""),
            ("2026-11-20T14:52:01Z:etc/a:b", "20261120T145201", ":etc/a:b"),
            ("2026-11-20 14:52", "20261120T1452", ""),
            ("2026-11-20_14:52:etc", "20261120T1452", ":etc"),
            ("2026-11-20t14", "20261120T14", ""),
            ("2026-11-20T14:etc", "20261120T14", ":etc"),
            ("2026-11-20T14:30/etc", "20261120T14", ":30/etc"),
            ("2026-11-20T14:300", "20261120T14", ":300"),
            ("2026-11-20T14:52x", "20261120T14", ":52x"),
            ("20261120T145201Z:x", "20261120T145201", ":x"),
            ("2026-11-20T14:52:01.250Z", "20261120T145201", ""),
            ("2026-11-20T00:52:01+01:00", "20261119T235201", ""),
            ("2026-11-20T14:52-0530:x", "20261120T2022", ":x"),
            ("2026-11-20T14+02", "20261120T12", ""),
        ] {
            assert_eq!(time(text), Some((begins.to_owned(), rest.to_owned())), "{text}");
        }
        for text in ["", "latest", "2026-11-20", "2026-11-20:5", "2026-13-20T14:52", "2026-11-20T14x", "12ab34cd"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
