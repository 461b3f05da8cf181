//! Times as people write them to name a snapshot.
//!
//! A colon stands before a path as well as within a time, so a time is read as far as it goes: it must be followed by the
//! end or by the colon before a path.

use crate::format::name;

/// A time as the beginning of the time in a snapshot's name, and how many bytes of the text it takes. The text begins
/// with a date and an hour at least; shorter times have no colon. A time without a zone is UTC, as in all listings.
pub(super) fn read(text: &[u8]) -> Option<(String, usize)> {
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
    /// A number of so many digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let digits = self.text.get(self.at..self.at + count)?;
        let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
        self.at += count;
        str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Passes over one of these bytes, if it is there.
    fn eat(&mut self, any: &[u8]) -> bool {
        let is_there = self.text.get(self.at).is_some_and(|byte| any.contains(byte));
        self.at += usize::from(is_there);
        is_there
    }

    /// The time, if it ends here or after a zone.
    fn end(mut self, fields: &[i64]) -> Option<(String, usize)> {
        let seconds_east = self.zone();
        let is_end = self.text.get(self.at).is_none_or(|byte| *byte == b':');
        is_end.then(|| Some((name_of(fields, seconds_east)?, self.at)))?
    }

    /// Seconds east of UTC: `Z`, `+01:00`, `+0100` or `+01`. Passes over it, if there is any.
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

/// What the name of a snapshot begins with that began then, with as many fields as were given.
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
    let time = date.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    let mut name = name::time(time - seconds_east);
    // 20261120T14, and two digits each for minutes and seconds.
    name.truncate(11 + 2 * fields.len().saturating_sub(4));
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_goes_as_far_as_it_can() {
        let time = |text: &str| read(text.as_bytes()).map(|(time, length)| (time, text[length..].to_owned()));
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
