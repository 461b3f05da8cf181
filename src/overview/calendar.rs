//! The backups of each day.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::job::{Ending, Entry};

/// A day, and its best backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// The local date.
    pub date: Date,
    /// The best ending of its backups; `None` if there was none.
    pub ending: Option<Ending>,
}

/// The last `count` local days up to the time `now`, oldest first.
pub fn calendar(history: &[Entry], now: i64, count: u16, zone: &TimeZone) -> Vec<Day> {
    let date = |seconds| Timestamp::from_second(seconds).ok().map(|time| zone.to_datetime(time).date());
    let Some(today) = date(now) else { return Vec::new() };
    let ago = |days: u16| today.checked_sub(i64::from(days).days()).ok();
    let mut days: Vec<_> = (0..count).rev().filter_map(ago).map(|date| Day { date, ending: None }).collect();
    for entry in history {
        let found = date(entry.ended).and_then(|date| days.binary_search_by_key(&date, |day| day.date).ok());
        if let Some(day) = found.and_then(|at| days.get_mut(at)) {
            day.ending = day.ending.max(Some(entry.ending));
        }
    }
    days
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_its_best_backup_and_is_local() {
        let zone = TimeZone::get("Europe/Berlin").unwrap_or_else(|_| TimeZone::fixed(jiff::tz::offset(1)));
        let entry = |time: &str, ending| Entry {
            ended: time.parse::<Timestamp>().unwrap().as_second(),
            seconds: 1.0,
            ending,
            message: String::new(),
            counts: None,
        };
        let history = [
            entry("2026-11-01T12:00:00Z", Ending::Done),
            entry("2026-11-27T12:00:00Z", Ending::Done),
            entry("2026-11-27T13:00:00Z", Ending::Failed),
            // Half an hour after midnight in Berlin.
            entry("2026-11-27T23:30:00Z", Ending::Problems),
            entry("2026-11-29T12:00:00Z", Ending::Skipped),
        ];
        let now = "2026-11-29T22:59:59Z".parse::<Timestamp>().unwrap().as_second();
        let days = calendar(&history, now, 4, &zone);
        let seen: Vec<_> = days.iter().map(|day| (day.date.to_string(), day.ending)).collect();
        let expected = [
            ("2026-11-26", None),
            ("2026-11-27", Some(Ending::Done)),
            ("2026-11-28", Some(Ending::Problems)),
            ("2026-11-29", Some(Ending::Skipped)),
        ];
        assert_eq!(seen, expected.map(|(date, ending)| (date.to_owned(), ending)));
        assert_eq!(calendar(&history, now + 1, 1, &zone)[0].date.to_string(), "2026-11-30");
    }
}
