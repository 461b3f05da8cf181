//! Periods of the calendar, of which a rule keeps one snapshot each.

use std::fmt::{self, Display, Formatter};

use jiff::ZonedDateTime;

/// A kind of period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// An hour of the local clock. An hour that occurs twice when clocks go back is two hours.
    Hour,
    /// A day, from midnight.
    Day,
    /// A week of ISO 8601, from Monday.
    Week,
    /// A month.
    Month,
    /// A quarter, from January, April, July or October.
    Quarter,
    /// A year, from 1 January.
    Year,
}

impl Period {
    /// All kinds, from the shortest.
    pub const ALL: [Period; 6] =
        [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Quarter, Period::Year];

    /// Numbers that are equal for two times if both are in the same period.
    pub(super) fn key(self, time: &ZonedDateTime) -> [i32; 4] {
        let (year, month) = (time.year().into(), i32::from(time.month()));
        match self {
            Period::Hour => [year, time.day_of_year().into(), time.hour().into(), time.offset().seconds()],
            Period::Day => [year, time.day_of_year().into(), 0, 0],
            Period::Week => {
                let week = time.date().iso_week_date();
                [week.year().into(), week.week().into(), 0, 0]
            }
            Period::Month => [year, month, 0, 0],
            Period::Quarter => [year, (month + 2) / 3, 0, 0],
            Period::Year => [year, 0, 0, 0],
        }
    }
}

impl Display for Period {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Hour => "hourly",
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
            Period::Quarter => "quarterly",
            Period::Year => "yearly",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_and_end_with_the_local_calendar() {
        for (period, one, other, is_same) in [
            (Period::Hour, "2027-06-01T14:00[UTC]", "2027-06-01T14:59:59[UTC]", true),
            (Period::Hour, "2027-06-01T14:00[UTC]", "2027-06-02T14:00[UTC]", false),
            (Period::Hour, "2027-10-31T02:30+02[Europe/Berlin]", "2027-10-31T02:30+01[Europe/Berlin]", false),
            (Period::Day, "2027-10-31T02:30+02[Europe/Berlin]", "2027-10-31T02:30+01[Europe/Berlin]", true),
            (Period::Day, "2027-06-01T00:00[Europe/Berlin]", "2027-06-01T23:59:59[Europe/Berlin]", true),
            (Period::Day, "2027-06-01T23:59:59[Europe/Berlin]", "2027-06-02T00:00[Europe/Berlin]", false),
            (Period::Week, "2027-05-31T00:00[UTC]", "2027-06-06T23:59:59[UTC]", true),
            (Period::Week, "2027-06-06T23:59:59[UTC]", "2027-06-07T00:00[UTC]", false),
            // Week 53 of 2026 ends on Sunday, 3 January.
            (Period::Week, "2026-12-28T00:00[UTC]", "2027-01-03T00:00[UTC]", true),
            (Period::Week, "2026-01-01T00:00[UTC]", "2027-01-01T00:00[UTC]", false),
            (Period::Month, "2027-01-31T00:00[UTC]", "2027-02-01T00:00[UTC]", false),
            (Period::Month, "2027-01-31T00:00[UTC]", "2028-01-31T00:00[UTC]", false),
            (Period::Quarter, "2027-01-01T00:00[UTC]", "2027-03-31T00:00[UTC]", true),
            (Period::Quarter, "2027-03-31T00:00[UTC]", "2027-04-01T00:00[UTC]", false),
            (Period::Quarter, "2027-10-01T00:00[UTC]", "2027-12-31T00:00[UTC]", true),
            (Period::Year, "2027-01-01T00:00[UTC]", "2027-12-31T23:59:59[UTC]", true),
            (Period::Year, "2027-12-31T23:59:59[UTC]", "2028-01-01T00:00[UTC]", false),
        ] {
            let [a, b] = [one, other].map(|time| period.key(&time.parse().unwrap()));
            assert_eq!(a == b, is_same, "{period}: {one} and {other}");
        }
    }
}
