//! The age up to which a rule keeps snapshots.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use jiff::{Span, SpanFieldwise, Timestamp, ZonedDateTime};

/// A span of years, months, weeks, days and hours, such as `1y2m3d4h`. Always longer than nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(SpanFieldwise);

const EXAMPLE: &str = "write numbers with y, m (months), w, d or h, such as 1y6m or 36h";

impl Age {
    /// Subtracts this age in the calendar of the time's zone. `None` if the result is too long ago to have a date.
    pub(super) fn before(&self, time: &ZonedDateTime) -> Option<Timestamp> {
        Some(time.checked_sub(self.0.0).ok()?.timestamp())
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut span = Span::new();
        let mut units = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, unit) = rest.split_at(end);
            let Some(unit) = unit.chars().next() else { return Err(format!("{digits} has no unit; {EXAMPLE}")) };
            if digits.is_empty() {
                return Err(format!("expected a number before {unit:?}; {EXAMPLE}"));
            }
            if units.contains(unit) {
                return Err(format!("{unit} occurs twice; {EXAMPLE}"));
            }
            units.push(unit);
            let too_long = || format!("{digits}{unit} is too long");
            let number: i64 = digits.parse().map_err(|_| too_long())?;
            let longer = match unit {
                'y' => span.try_years(number),
                'm' => span.try_months(number),
                'w' => span.try_weeks(number),
                'd' => span.try_days(number),
                'h' => span.try_hours(number),
                _ => return Err(format!("unknown unit {unit:?}; {EXAMPLE}")),
            };
            span = longer.map_err(|_| too_long())?;
            rest = rest.split_at(end + unit.len_utf8()).1;
        }
        if span.is_zero() {
            return Err(format!("the time is empty; {EXAMPLE}"));
        }
        Ok(Age(span.fieldwise()))
    }
}

impl Display for Age {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let span = &self.0.0;
        let fields: [(i64, char); 5] = [
            (span.get_years().into(), 'y'),
            (span.get_months().into(), 'm'),
            (span.get_weeks().into(), 'w'),
            (span.get_days().into(), 'd'),
            (span.get_hours().into(), 'h'),
        ];
        fields.iter().filter(|(number, _)| *number != 0).try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(text: &str) -> Result<String, String> {
        text.parse::<Age>().map(|age| age.to_string())
    }

    #[test]
    fn ages_are_numbers_with_units() {
        for (text, shown) in [
            ("7d", "7d"),
            ("1y2m3d4h", "1y2m3d4h"),
            ("36h", "36h"),
            ("2w", "2w"),
            ("3d1y", "1y3d"),
            ("0y10m", "10m"),
            ("007d", "7d"),
            ("9999y", "9999y"),
        ] {
            assert_eq!(age(text).as_deref(), Ok(shown), "{text}");
        }
        for (text, part) in [
            ("", "the time is empty"),
            ("0d", "the time is empty"),
            ("7", "7 has no unit"),
            ("1y7", "7 has no unit"),
            ("d", "expected a number before 'd'"),
            ("-7d", "expected a number before '-'"),
            (" 7d", "expected a number before ' '"),
            ("7 d", "unknown unit ' '"),
            ("7D", "unknown unit 'D'"),
            ("7dé", "expected a number before 'é'"),
            ("7é", "unknown unit 'é'"),
            ("1d2d", "d occurs twice"),
            ("99999y", "99999y is too long"),
            ("99999999999999999999h", "99999999999999999999h is too long"),
        ] {
            let error = age(text).unwrap_err();
            assert!(error.starts_with(part), "{text}: {error}");
            assert!(error.len() < 200, "{error}");
        }
    }

    #[test]
    fn ages_are_subtracted_in_the_calendar() {
        for (age, from, to) in [
            ("1m", "2027-03-31T12:00[Europe/Berlin]", "2027-02-28T11:00:00Z"),
            ("1m", "2028-03-31T12:00[UTC]", "2028-02-29T12:00:00Z"),
            ("1y", "2028-02-29T12:00[UTC]", "2027-02-28T12:00:00Z"),
            // The clock went forward on 28 March: a day had 23 hours.
            ("1d", "2027-03-28T12:00[Europe/Berlin]", "2027-03-27T11:00:00Z"),
            ("24h", "2027-03-28T12:00[Europe/Berlin]", "2027-03-27T10:00:00Z"),
            // There was no 02:30 on that day.
            ("1d", "2027-03-29T02:30[Europe/Berlin]", "2027-03-28T01:30:00Z"),
            // 02:30 occurred twice on 31 October.
            ("1w", "2027-11-07T02:30[Europe/Berlin]", "2027-10-31T00:30:00Z"),
            ("1y2m1w3d4h", "2027-11-20T14:00[UTC]", "2026-09-10T10:00:00Z"),
        ] {
            let time = age.parse::<Age>().unwrap().before(&from.parse().unwrap());
            assert_eq!(time, Some(to.parse().unwrap()), "{from} less {age}");
        }
        assert_eq!("19000y".parse::<Age>().unwrap().before(&"2027-03-31T12:00[UTC]".parse().unwrap()), None);
    }
}
