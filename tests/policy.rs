//! Retention policies are applied to random snapshots, and the decisions compared with those of a second program,
//! `tests/policy/oracle.py`, which was written from the documentation of [`brackfs::retention`].
//!
//! The snapshots are made around changes of daylight-saving time, leap days, ends of years and of ISO years, and the day
//! that Samoa skipped; some at equal times, some years apart, some with a wrong clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::process::{Command, Stdio};

use brackfs::format::id::{SnapshotId, SourceId};
use brackfs::format::name::{self, SnapshotName};
use brackfs::retention::{
    Calendar, Count, Error, Grouping, Period, Plan, Policy, Reason, Rule, Snapshot, State, select,
};
use common::ordeal::{Random, rounds};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use serde_json::{Value, json};

const CASES: usize = 1_000;

const DAY: u64 = 86_400;

const ZONES: [&str; 9] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    // Clocks change by half an hour.
    "Australia/Lord_Howe",
    // 45 minutes from the full hour.
    "Asia/Kathmandu",
    // 30 December 2011 was skipped.
    "Pacific/Apia",
    // Clocks go back for Ramadan.
    "Africa/Casablanca",
    "Pacific/Kiritimati",
];

/// Times near which snapshots are made, and a zone in which they are unusual.
const MOMENTS: [(&str, &str); 13] = [
    ("2027-03-28T01:00Z", "Europe/Berlin"),
    ("2027-10-31T01:00Z", "Europe/Berlin"),
    ("2027-03-14T07:00Z", "America/New_York"),
    ("2027-11-07T05:30Z", "America/St_Johns"),
    ("2027-04-03T15:00Z", "Australia/Lord_Howe"),
    ("2027-10-02T15:30Z", "Australia/Lord_Howe"),
    ("2011-12-30T10:00Z", "Pacific/Apia"),
    ("2028-02-29T12:00Z", "UTC"),
    ("2000-02-29T12:00Z", "Asia/Kathmandu"),
    ("2100-02-28T12:00Z", "UTC"),
    ("2021-01-03T12:00Z", "Pacific/Kiritimati"),
    ("2027-01-03T12:00Z", "Africa/Casablanca"),
    ("1970-01-01T00:00Z", "UTC"),
];

/// A policy, and the snapshots that it is applied to.
struct Case {
    zone: &'static str,
    now: i64,
    rules: Vec<(String, Value)>,
    sources: Vec<String>,
    by_tags: bool,
    snapshots: Vec<Snapshot>,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let (moment, zone) = random.choose(&MOMENTS);
        let moment: Timestamp = moment.parse().unwrap();
        let zone = if random.one_in(3) { *random.choose(&ZONES) } else { *zone };
        let typical = *random.choose(&[10 * 60, 20 * 60, 3600, DAY / 2, DAY, 7 * DAY, 30 * DAY, 120 * DAY]);
        let count = random.within(1, 60);
        let before = i64::try_from(random.below(count + 1) * typical).unwrap();
        let mut time = moment.as_second() - before + i64::try_from(random.below(2 * typical)).unwrap();
        let mut latest = time;
        let is_punctual = random.one_in(3);
        let tags_are_known = !random.one_in(10);
        let mut snapshots = Vec::new();
        let mut number = 0;
        for _ in 0..count {
            number += random.within(1, 4);
            snapshots.push(Snapshot {
                name: SnapshotName {
                    source: SourceId::from_slice(&[7; 16]).unwrap(),
                    sequence: number,
                    time: match random.below(150) {
                        0 => (*random.choose(&["20270231T020000Z", "20271301T020000Z", "99999999T999999Z"])).into(),
                        _ => name::time(time),
                    },
                    id: SnapshotId::random(),
                },
                source: (*random.choose(&["home", "home", "home", "mail"])).into(),
                tags: (tags_are_known || !random.one_in(10)).then(|| tags(random)),
                is_held: random.one_in(12),
                state: match random.below(40) {
                    0 => State::Lost,
                    1 => State::NeverWritten,
                    _ => State::There,
                },
            });
            let step = if is_punctual { typical } else { random.below(2 * typical) };
            let step = i64::try_from(step).unwrap();
            time = match random.below(40) {
                0 | 1 => time,
                2 => time - 3 * step,
                3 => time - step / 3,
                4 => step,
                5 => time + i64::try_from(random.within(1, 12) * 365 * DAY).unwrap(),
                // The clock is right again.
                _ if time < latest => latest + step,
                _ => time + step,
            };
            latest = latest.max(time);
        }
        let offset = i64::try_from(random.below(7200)).unwrap();
        let now = match random.below(5) {
            0 => time - 5 * i64::try_from(typical).unwrap() + offset,
            _ => latest + offset,
        };
        Case {
            zone,
            now,
            rules: match random.below(40) {
                0 => vec![],
                1 => vec![("last".into(), 0.into()), ("weekly".into(), 0.into())],
                2..=9 => vec![("tag".into(), (*random.choose(&["x", "y", "z"])).into())],
                _ => (0..random.within(1, 6)).map(|_| rule(random)).collect(),
            },
            sources: match random.below(12) {
                0 => vec!["mail".into()],
                1 => vec!["home".into(), "mail".into()],
                2 if random.one_in(3) => vec!["home".into(), "nowhere".into()],
                _ => vec![],
            },
            by_tags: random.one_in(6),
            snapshots,
        }
    }

    /// What the oracle reads.
    fn to_json(&self) -> Value {
        let state = |state| match state {
            State::There => "there",
            State::NeverWritten => "never written",
            State::Lost => "lost",
        };
        let snapshots = self.snapshots.iter().map(|snapshot| {
            json!({
                "number": snapshot.name.sequence,
                "time": snapshot.name.time,
                "source": snapshot.source,
                "tags": snapshot.tags,
                "held": snapshot.is_held,
                "state": state(snapshot.state),
            })
        });
        json!({
            "zone": self.zone,
            "now": self.now,
            "rules": self.rules,
            "sources": self.sources,
            "by_tags": self.by_tags,
            "snapshots": snapshots.collect::<Vec<_>>(),
        })
    }

    fn plan(&self) -> Result<Plan, Error> {
        let calendar = Calendar {
            now: Timestamp::from_second(self.now).unwrap(),
            zone: TimeZone::get(self.zone).expect("a time zone of the package tzdata"),
        };
        let policy = Policy::new(self.rules.iter().map(|(rule, argument)| parsed(rule, argument)).collect())?;
        let grouping = if self.by_tags { Grouping::SourceAndTags } else { Grouping::Source };
        Plan::new(&policy, select(self.snapshots.clone(), &self.sources)?, grouping, &calendar)
    }

    /// The local times of snapshots, in the order in which they were made.
    fn local_times(&self) -> Vec<ZonedDateTime> {
        let zone = TimeZone::get(self.zone).unwrap();
        let seconds = self.snapshots.iter().filter_map(|snapshot| name::parse_time(&snapshot.name.time));
        seconds.map(|seconds| Timestamp::from_second(seconds).unwrap().to_zoned_datetime(zone.clone())).collect()
    }
}

fn tags(random: &mut Random) -> Vec<String> {
    ["x", "y", "z"].iter().filter(|_| random.one_in(3)).map(|tag| (*tag).to_owned()).collect()
}

/// A rule's name and its argument, as the oracle reads them.
fn rule(random: &mut Random) -> (String, Value) {
    let period = random.choose(&Period::ALL).to_string();
    let age = *random.choose(&["1h", "36h", "1d", "7d", "2w", "1m", "1m1d", "3m", "1y", "1y2m3d4h", "2y6m", "9999y"]);
    match random.below(10) {
        0 => ("last".into(), count(random)),
        1 => ("within".into(), age.into()),
        2..=4 => (format!("{period} within"), age.into()),
        5 => ("tag".into(), (*random.choose(&["x", "y", "z", "x", "y", "z", "none"])).into()),
        _ => (period, count(random)),
    }
}

fn count(random: &mut Random) -> Value {
    match random.below(12) {
        0 => "unlimited".into(),
        1 => 0.into(),
        _ => random.within(1, 15).into(),
    }
}

fn parsed(rule: &str, argument: &Value) -> Rule {
    let period = |name: &str| *Period::ALL.iter().find(|period| period.to_string() == name).unwrap();
    let text = argument.as_str().map_or_else(|| argument.to_string(), str::to_owned);
    let count = || text.parse::<Count>().unwrap();
    match rule.split_once(' ') {
        Some((name, _)) => Rule::EachWithin(period(name), text.parse().unwrap()),
        None if rule == "last" => Rule::Last(count()),
        None if rule == "within" => Rule::Within(text.parse().unwrap()),
        None if rule == "tag" => Rule::Tag(text),
        None => Rule::Each(period(rule), count()),
    }
}

/// The oracle's results.
fn oracle(cases: &[Case]) -> Vec<Value> {
    let mut python = Command::new("python3");
    python.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy/oracle.py"));
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let cases = serde_json::to_vec(&cases.iter().map(Case::to_json).collect::<Vec<_>>()).unwrap();
    // The oracle reads everything before it writes anything.
    child.stdin.take().unwrap().write_all(&cases).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the oracle failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error_name(error: &Error) -> &'static str {
    match error {
        Error::Empty => "empty",
        Error::NoSource(_) => "no source",
        Error::NoTag(_) => "no tag",
        Error::UnknownTags { .. } => "unknown tags",
        Error::NothingLeft(_) => "nothing left",
    }
}

/// The reason without its number, age or tag.
fn kind(reason: &Reason) -> String {
    match reason {
        Reason::Last(_) => "last".into(),
        Reason::Nth(period, _) => period.to_string(),
        Reason::Within(_) => "within".into(),
        Reason::NthWithin(period, _) => format!("{period} within"),
        Reason::Tag(_) => "tag".into(),
        other => other.to_string(),
    }
}

/// The plan in the form of the oracle's results.
fn to_json(plan: &Plan) -> Value {
    let decisions = plan.groups.iter().flat_map(|group| &group.decisions);
    let reasons: BTreeMap<_, Vec<_>> = decisions
        .map(|decision| {
            (decision.snapshot.name.sequence.to_string(), decision.reasons.iter().map(Reason::to_string).collect())
        })
        .collect();
    let large = plan.large_removals(u64::MAX);
    let large: Vec<_> = large.iter().map(|large| json!([large.source, large.removed, large.total])).collect();
    json!({"reasons": reasons, "large": large})
}

#[test]
fn decisions_agree_with_the_oracle() {
    rounds("policy", 1, round);
}

fn round(mut random: Random) {
    let cases: Vec<Case> = (0..CASES).map(|_| Case::random(&mut random)).collect();
    let expected = oracle(&cases);
    assert_eq!(expected.len(), CASES);
    // How often each result occurred.
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (case, expected) in cases.iter().zip(&expected) {
        match case.plan() {
            Err(error) => {
                let name = error_name(&error);
                let is_expected = expected["errors"].as_array().is_some_and(|errors| errors.contains(&name.into()));
                assert!(is_expected, "{error}, but the oracle says {expected} about {}", case.to_json());
                *seen.entry(name.to_owned()).or_default() += 1;
            }
            Ok(plan) => {
                assert_eq!(to_json(&plan), *expected, "{}", case.to_json());
                *seen.entry("large removal".into()).or_default() += plan.large_removals(u64::MAX).len();
                *seen.entry("removal".into()).or_default() += plan.removed().count();
                let decisions = plan.groups.iter().flat_map(|group| &group.decisions);
                for reason in decisions.flat_map(|decision| &decision.reasons) {
                    *seen.entry(kind(reason)).or_default() += 1;
                }
            }
        }
    }
    let errors = ["empty", "no source", "no tag", "unknown tags", "nothing left"];
    let reasons = ["last", "within", "tag", "held", "newest", "dated in the future", "no valid date"];
    let others = ["lost", "never written", "removal", "large removal"];
    let mut results: Vec<String> = [&errors[..], &reasons, &others].concat().into_iter().map(String::from).collect();
    for period in Period::ALL {
        results.extend([period.to_string(), format!("{period} within"), format!("oldest {period}")]);
    }
    for result in &results {
        assert!(seen.get(result).is_some_and(|count| *count >= 5), "too few of {result}: {seen:?}");
    }
    assert_unusual_times(&cases);
}

/// The snapshots were made at times at which a calendar is difficult.
fn assert_unusual_times(cases: &[Case]) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases {
        let times = case.local_times();
        for (before, after) in times.iter().zip(times.iter().skip(1)) {
            let (old, new) = (before.offset().seconds(), after.offset().seconds());
            let is_near = before.duration_until(after).as_hours() < 3;
            for (what, is_so) in [
                ("equal times", before == after),
                ("clock set back", after < before),
                ("years apart", after.year() > before.year() + 1),
                ("clocks go forward", is_near && after > before && new > old),
                ("clocks go back", is_near && after > before && new < old),
                ("hour occurs twice", is_near && after > before && before.datetime() >= after.datetime()),
                ("leap day", after.month() == 2 && after.day() == 29),
                ("other ISO year", after.date().iso_week_date().year() != after.year()),
                ("week 53", after.date().iso_week_date().week() == 53),
            ] {
                *seen.entry(what).or_default() += usize::from(is_so);
            }
        }
    }
    assert!(seen.len() == 9 && seen.values().all(|count| *count >= 10), "{seen:?}");
}
