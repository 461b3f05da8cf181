//! Rules, and the decision about each snapshot of a group.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

use super::age::Age;
use super::error::Error;
use super::period::Period;
use crate::format::name::{self, SnapshotName};

/// How far after now a snapshot may be dated and still be counted.
pub const FUTURE_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// How many snapshots a rule keeps: a number or `unlimited`, which may be written `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(usize);

impl Count {
    /// No limit.
    pub const UNLIMITED: Count = Count(usize::MAX);
}

impl From<usize> for Count {
    fn from(number: usize) -> Self {
        Count(number)
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" | "all" => Ok(Count::UNLIMITED),
            _ => text.parse().map(Count).map_err(|_| "write a number, or unlimited".to_owned()),
        }
    }
}

/// A rule, which keeps snapshots. The [module](super) defines each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Keeps the newest snapshots.
    Last(Count),
    /// Keeps one snapshot of each of the newest periods.
    Each(Period, Count),
    /// Keeps all snapshots up to an age.
    Within(Age),
    /// Keeps one snapshot of each period up to an age.
    EachWithin(Period, Age),
    /// Keeps all snapshots with a tag.
    Tag(String),
}

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is the nth newest.
    Last(usize),
    /// It is kept for the nth newest period.
    Nth(Period, usize),
    /// It is not older than this.
    Within(Age),
    /// It is kept for a period, and is not older than this.
    NthWithin(Period, Age),
    /// It is the oldest, and there are not enough older ones for a rule.
    Oldest(Period),
    /// It has this tag.
    Tag(String),
    /// It is held.
    Held,
    /// It is the newest, and nothing else keeps it.
    Newest,
    /// Its date is in the future.
    Future,
    /// Its name has an impossible date.
    Undated,
    /// It is lost.
    Lost,
    /// It was never written.
    NeverWritten,
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Last(nth) => write!(f, "last {nth}"),
            Reason::Nth(period, nth) => write!(f, "{period} {nth}"),
            Reason::Within(age) => write!(f, "within {age}"),
            Reason::NthWithin(period, age) => write!(f, "{period} within {age}"),
            Reason::Oldest(period) => write!(f, "oldest {period}"),
            Reason::Tag(tag) => write!(f, "tag {tag}"),
            Reason::Held => f.write_str("held"),
            Reason::Newest => f.write_str("newest"),
            Reason::Future => f.write_str("dated in the future"),
            Reason::Undated => f.write_str("no valid date"),
            Reason::Lost => f.write_str("lost"),
            Reason::NeverWritten => f.write_str("never written"),
        }
    }
}

/// Whether a snapshot can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its object is in the repository.
    There,
    /// A backup was interrupted before it wrote the object.
    NeverWritten,
    /// The object was written, but is not found. It may reappear.
    Lost,
}

/// A snapshot that a policy decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Number, time and id.
    pub name: SnapshotName,
    /// The name of its source.
    pub source: String,
    /// Its tags. `None` if they are unknown on this machine.
    pub tags: Option<Vec<String>>,
    /// Whether it is protected from removal.
    pub is_held: bool,
    /// Whether it can be read.
    pub state: State,
}

impl Snapshot {
    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().flatten().any(|other| other == tag)
    }
}

/// The decision about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Why it stays: of rules first, in the order of the policy. If empty, it is removed.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether the snapshot is removed.
    pub fn is_removal(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// The current time, and the zone whose days and weeks count.
#[derive(Debug, Clone)]
pub struct Calendar {
    /// Snapshots dated later are in the future.
    pub now: Timestamp,
    /// The time zone.
    pub zone: TimeZone,
}

impl Calendar {
    /// Returns the local time of a snapshot that counts, or why it does not.
    fn date(&self, snapshot: &Snapshot) -> Result<ZonedDateTime, Reason> {
        match snapshot.state {
            State::There => {}
            State::NeverWritten => return Err(Reason::NeverWritten),
            State::Lost => return Err(Reason::Lost),
        }
        let time = name::parse_time(&snapshot.name.time).and_then(|seconds| Timestamp::from_second(seconds).ok());
        let time = time.ok_or(Reason::Undated)?;
        if time.duration_since(self.now) > FUTURE_TOLERANCE {
            return Err(Reason::Future);
        }
        Ok(time.to_zoned_datetime(self.zone.clone()))
    }
}

/// A snapshot that counts.
struct Counted {
    snapshot: Snapshot,
    time: ZonedDateTime,
    reasons: Vec<Reason>,
}

/// The rules of a retention policy, of which at least one keeps something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Fails if no rule keeps anything: such a policy would remove everything.
    pub fn new(rules: Vec<Rule>) -> Result<Self, Error> {
        let keeps_nothing = |rule: &Rule| matches!(rule, Rule::Last(Count(0)) | Rule::Each(_, Count(0)));
        if rules.iter().all(keeps_nothing) { Err(Error::Empty) } else { Ok(Policy { rules }) }
    }

    /// The tags that the policy keeps.
    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| if let Rule::Tag(tag) = rule { Some(&**tag) } else { None })
    }

    /// Decides about the snapshots of a group. Returns them from the oldest to the newest, or `None` if there are snapshots
    /// that count, but the rules keep none of them.
    pub(super) fn decide(&self, mut snapshots: Vec<Snapshot>, calendar: &Calendar) -> Option<Vec<Decision>> {
        snapshots.sort_by(|a, b| order(b).cmp(&order(a)));
        let mut decisions = Vec::with_capacity(snapshots.len());
        let mut counted = Vec::new();
        for snapshot in snapshots {
            match calendar.date(&snapshot) {
                Ok(time) => counted.push(Counted { snapshot, time, reasons: Vec::new() }),
                Err(reason) => decisions.push(Decision { snapshot, reasons: vec![reason] }),
            }
        }
        for (at, reason) in self.rules.iter().flat_map(|rule| rule.keeps(&counted)).collect::<Vec<_>>() {
            if let Some(kept) = counted.get_mut(at) {
                kept.reasons.push(reason);
            }
        }
        if !counted.is_empty() && counted.iter().all(|kept| kept.reasons.is_empty()) {
            return None;
        }
        for (at, Counted { snapshot, mut reasons, .. }) in counted.into_iter().enumerate() {
            if snapshot.is_held {
                reasons.push(Reason::Held);
            }
            if at == 0 && reasons.is_empty() {
                reasons.push(Reason::Newest);
            }
            decisions.push(Decision { snapshot, reasons });
        }
        decisions.sort_by(|a, b| order(&a.snapshot).cmp(&order(&b.snapshot)));
        Some(decisions)
    }
}

/// Numbers determine the order. Two machines that wrote by mistake may have given the same number.
fn order(snapshot: &Snapshot) -> (u64, &SnapshotName) {
    (snapshot.name.sequence, &snapshot.name)
}

impl Rule {
    /// Returns the positions of the snapshots that this rule keeps. The snapshots are sorted from the newest to the oldest.
    fn keeps(&self, counted: &[Counted]) -> Vec<(usize, Reason)> {
        match self {
            Rule::Last(count) => (0..counted.len()).take(count.0).map(|at| (at, Reason::Last(at + 1))).collect(),
            Rule::Each(period, count) => {
                let latest = latest_of_each(*period, counted.iter().enumerate());
                let nth = latest.iter().zip(1..).take(count.0);
                let mut kept: Vec<_> = nth.map(|(at, nth)| (*at, Reason::Nth(*period, nth))).collect();
                if latest.len() < count.0 {
                    kept.extend(oldest(*period, counted, &latest));
                }
                kept
            }
            Rule::Within(age) => within(*age, counted).map(|(at, _)| (at, Reason::Within(*age))).collect(),
            Rule::EachWithin(period, age) => {
                let latest = latest_of_each(*period, within(*age, counted));
                let mut kept: Vec<_> = latest.iter().map(|at| (*at, Reason::NthWithin(*period, *age))).collect();
                if within(*age, counted).any(|(at, _)| at + 1 == counted.len()) {
                    kept.extend(oldest(*period, counted, &latest));
                }
                kept
            }
            Rule::Tag(tag) => {
                let tagged = counted.iter().enumerate().filter(|(_, counted)| counted.snapshot.has_tag(tag));
                tagged.map(|(at, _)| (at, Reason::Tag(tag.clone()))).collect()
            }
        }
    }
}

/// Returns for each period the position of its snapshot with the latest time. The periods are sorted like the snapshots.
fn latest_of_each<'c>(period: Period, snapshots: impl Iterator<Item = (usize, &'c Counted)>) -> Vec<usize> {
    let mut latest: Vec<(usize, &ZonedDateTime)> = Vec::new();
    let mut places: HashMap<[i32; 4], usize> = HashMap::new();
    for (at, Counted { time, .. }) in snapshots {
        match places.entry(period.key(time)) {
            Entry::Vacant(place) => {
                place.insert(latest.len());
                latest.push((at, time));
            }
            Entry::Occupied(place) => {
                if let Some(found) = latest.get_mut(*place.get()).filter(|(_, found)| *found < time) {
                    *found = (at, time);
                }
            }
        }
    }
    latest.into_iter().map(|(at, _)| at).collect()
}

/// Returns the oldest snapshot, unless the rule keeps it already.
fn oldest(period: Period, counted: &[Counted], kept: &[usize]) -> Option<(usize, Reason)> {
    let at = counted.len().checked_sub(1)?;
    (!kept.contains(&at)).then_some((at, Reason::Oldest(period)))
}

/// Returns the snapshots made less than `age` before the newest, with their positions.
fn within(age: Age, counted: &[Counted]) -> impl Iterator<Item = (usize, &Counted)> {
    let limit = counted.first().and_then(|newest| age.before(&newest.time));
    counted.iter().enumerate().filter(move |(_, counted)| limit.is_none_or(|limit| counted.time.timestamp() > limit))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{calendar, snapshot};
    use super::*;

    /// Snapshots with these times, numbered from 1.
    fn made_at(times: &[&str]) -> Vec<Snapshot> {
        times.iter().zip(1..).map(|(time, number)| snapshot(number, time)).collect()
    }

    /// The reasons of each snapshot, from the oldest.
    fn reasons(rules: &[Rule], snapshots: &[Snapshot]) -> Option<Vec<String>> {
        let decisions = Policy::new(rules.to_vec()).unwrap().decide(snapshots.to_vec(), &calendar())?;
        let shown = |decision: &Decision| decision.reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join(", ");
        Some(decisions.iter().map(shown).collect())
    }

    fn expect(rules: &[Rule], times: &[&str], expected: &[&str]) {
        assert_eq!(reasons(rules, &made_at(times)).unwrap(), expected, "{rules:?}");
    }

    fn each(period: Period, count: usize) -> Rule {
        Rule::Each(period, Count(count))
    }

    fn age(text: &str) -> Age {
        text.parse().unwrap()
    }

    #[test]
    fn a_policy_that_keeps_nothing_is_refused() {
        for rules in [vec![], vec![Rule::Last(Count(0))], vec![each(Period::Day, 0), Rule::Last(Count(0))]] {
            assert_eq!(Policy::new(rules), Err(Error::Empty));
        }
        assert!(Policy::new(vec![Rule::Last(Count(0)), each(Period::Day, 1)]).is_ok());
        assert_eq!(["unlimited", "all"].map(str::parse), [Ok(Count::UNLIMITED), Ok(Count::UNLIMITED)]);
        assert_eq!("7".parse(), Ok(Count(7)));
        for text in ["", "-1", "7d", "any", "99999999999999999999"] {
            assert_eq!(text.parse::<Count>(), Err("write a number, or unlimited".to_owned()), "{text}");
        }
    }

    #[test]
    fn each_rule_keeps_snapshots_regardless_of_the_others() {
        let times = [
            "2027-01-01T02:00Z",
            "2027-02-01T02:00Z",
            "2027-02-01T14:00Z",
            "2027-02-02T02:00Z",
            "2027-02-02T02:30Z",
            "2027-02-02T14:00Z",
        ];
        expect(&[Rule::Last(Count(2))], &times, &["", "", "", "", "last 2", "last 1"]);
        expect(&[each(Period::Hour, 3)], &times, &["", "", "hourly 3", "", "hourly 2", "hourly 1"]);
        expect(&[each(Period::Day, 2)], &times, &["", "", "daily 2", "", "", "daily 1"]);
        expect(&[each(Period::Month, 2)], &times, &["monthly 2", "", "", "", "", "monthly 1"]);
        let both = [each(Period::Day, 2), each(Period::Month, 1), Rule::Last(Count(1))];
        expect(&both, &times, &["", "", "daily 2", "", "", "daily 1, monthly 1, last 1"]);
        let unlimited = [Rule::Each(Period::Day, Count::UNLIMITED)];
        expect(&unlimited, &times, &["daily 3", "", "daily 2", "", "", "daily 1"]);
        // The snapshot made exactly a day before the newest is not within a day.
        let within = [Rule::Within(age("1d"))];
        expect(&within, &times, &["", "", "", "within 1d", "within 1d", "within 1d"]);
        let within = [Rule::EachWithin(Period::Day, age("2d"))];
        expect(&within, &times, &["", "", "daily within 2d", "", "", "daily within 2d"]);
    }

    #[test]
    fn the_oldest_snapshot_stays_until_a_rule_has_enough_periods() {
        let times = ["2027-01-05T02:00Z", "2027-01-06T02:00Z", "2027-02-06T02:00Z", "2027-02-07T02:00Z"];
        expect(&[each(Period::Month, 2)], &times, &["", "monthly 2", "", "monthly 1"]);
        expect(&[each(Period::Month, 3)], &times, &["oldest monthly", "monthly 2", "", "monthly 1"]);
        let rules = [each(Period::Year, 5), each(Period::Day, 1)];
        expect(&rules, &times, &["oldest yearly", "", "", "yearly 1, daily 1"]);
        let within = |text| [Rule::EachWithin(Period::Year, age(text))];
        expect(&within("1y"), &times, &["oldest yearly", "", "", "yearly within 1y"]);
        expect(&within("1m"), &times, &["", "", "", "yearly within 1m"]);
        expect(&[each(Period::Year, 5)], &times[..1], &["yearly 1"]);
    }

    #[test]
    fn numbers_order_snapshots_if_the_clock_goes_back() {
        // The clock was reset before the fourth backup, and set before the sixth.
        let times = [
            "2027-05-01T02:00Z",
            "2027-05-02T02:00Z",
            "2027-05-03T02:00Z",
            "1970-01-01T00:00Z",
            "1970-01-02T00:00Z",
            "2027-05-03T01:00Z",
        ];
        expect(&[Rule::Last(Count(2))], &times, &["", "", "", "", "last 2", "last 1"]);
        expect(&[each(Period::Day, 2)], &times, &["", "", "daily 1", "", "daily 2", "newest"]);
        expect(&[each(Period::Day, 2)], &times[..5], &["", "", "", "daily 2", "daily 1"]);
        // The age is counted back from the wrong time, so nothing is too old.
        expect(&[Rule::Within(age("1d"))], &times[..4], &["within 1d"; 4]);
        let equal = ["2027-05-01T02:00Z", "2027-05-01T02:00Z"];
        expect(&[each(Period::Day, 1)], &equal, &["", "daily 1"]);
    }

    #[test]
    fn snapshots_that_do_not_count_displace_no_others() {
        let mut snapshots = made_at(&["2027-05-01T02:00Z"; 7]);
        snapshots[1].state = State::Lost;
        snapshots[2].state = State::NeverWritten;
        snapshots[3].name.time = "20270231T020000Z".into();
        snapshots[4].name.time = name::time(calendar().now.as_second() + 3601);
        snapshots[5].name.time = name::time(calendar().now.as_second() + 3600);
        let shown = |rule: Rule, snapshots: &[Snapshot]| reasons(&[rule], snapshots).unwrap();
        let not_counted = ["lost", "never written", "no valid date", "dated in the future"];
        let kept = shown(Rule::Last(Count(2)), &snapshots);
        assert_eq!(kept, [&[""], &not_counted[..], &["last 2", "last 1"]].concat());
        assert_eq!(shown(Rule::Last(Count(2)), &snapshots[..5]), [&["last 1"], &not_counted[..]].concat());
        // The rule keeps nothing, but nothing would be removed either.
        assert_eq!(shown(Rule::Tag("x".into()), &snapshots[1..5]), not_counted);
    }

    #[test]
    fn a_hold_affects_no_other_snapshot() {
        let mut snapshots = made_at(&["2027-05-01T02:00Z", "2027-05-02T02:00Z", "2027-05-03T02:00Z"]);
        let rules = [Rule::Last(Count(1))];
        assert_eq!(reasons(&rules, &snapshots).unwrap(), ["", "", "last 1"]);
        snapshots[0].is_held = true;
        snapshots[2].is_held = true;
        assert_eq!(reasons(&rules, &snapshots).unwrap(), ["held", "", "last 1, held"]);
        assert_eq!(reasons(&[Rule::Tag("x".into())], &snapshots), None);
        snapshots[1].tags = Some(vec!["x".into()]);
        assert_eq!(reasons(&[Rule::Tag("x".into())], &snapshots).unwrap(), ["held", "tag x", "held"]);
    }

    #[test]
    fn the_newest_snapshot_always_stays() {
        let mut snapshots = made_at(&["2027-05-01T02:00Z", "2027-05-02T02:00Z", "2027-05-03T02:00Z"]);
        snapshots[0].tags = Some(vec!["x".into()]);
        assert_eq!(reasons(&[Rule::Tag("x".into())], &snapshots).unwrap(), ["tag x", "", "newest"]);
    }
}
