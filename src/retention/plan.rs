//! The decisions about all groups of a repository.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use super::error::Error;
use super::policy::{Calendar, Decision, Policy, Snapshot, State};

/// Which snapshots form a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Those of a source.
    Source,
    /// Those of a source that have the same tags.
    SourceAndTags,
}

impl FromStr for Grouping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "source" => Ok(Grouping::Source),
            "source,tags" => Ok(Grouping::SourceAndTags),
            _ => Err("write source, or source,tags".to_owned()),
        }
    }
}

/// The decisions about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name of the source.
    pub source: String,
    /// The sorted tags of its snapshots; `None` if snapshots are not grouped by tags.
    pub tags: Option<Vec<String>>,
    /// The decisions, from the oldest to the newest snapshot.
    pub decisions: Vec<Decision>,
}

/// The source of a group, and its tags if they matter.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(String, Option<Vec<String>>);

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Key(source, tags) = self;
        match tags.as_deref() {
            None => f.write_str(source),
            Some([]) => write!(f, "{source} without tags"),
            Some(tags) => write!(f, "{source} with the tags {}", tags.join(",")),
        }
    }
}

/// A source that would lose more than half of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeRemoval {
    /// The name of the source.
    pub source: String,
    /// The number of snapshots to remove.
    pub removed: usize,
    /// The number of its snapshots in the repository that count.
    pub total: usize,
    /// The number of its newer ones, which do not count.
    pub newer: usize,
}

/// For example, "3 of 5 snapshots of home".
impl Display for LargeRemoval {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let LargeRemoval { source, removed, total, newer } = self;
        match newer {
            0 => write!(f, "{removed} of {total} snapshots of {source}"),
            _ => write!(f, "{removed} of the {total} snapshots of {source} that were there at the last forget"),
        }
    }
}

/// The decisions about all groups, sorted by source and tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The groups.
    pub groups: Vec<Group>,
}

/// Returns the snapshots of these sources, or all if no source is given. Fails if a source has none.
pub fn select(mut snapshots: Vec<Snapshot>, sources: &[String]) -> Result<Vec<Snapshot>, Error> {
    if let Some(unknown) = sources.iter().find(|source| snapshots.iter().all(|snapshot| snapshot.source != **source)) {
        return Err(Error::NoSource(unknown.clone()));
    }
    snapshots.retain(|snapshot| sources.is_empty() || sources.contains(&snapshot.source));
    Ok(snapshots)
}

impl Plan {
    /// Applies a policy to each group of these snapshots.
    pub fn new(
        policy: &Policy,
        snapshots: Vec<Snapshot>,
        grouping: Grouping,
        calendar: &Calendar,
    ) -> Result<Self, Error> {
        if grouping == Grouping::SourceAndTags || policy.tags().next().is_some() {
            need_tags(&snapshots)?;
        }
        let is_unused = |tag: &&str| !snapshots.iter().any(|s| s.state == State::There && s.has_tag(tag));
        if let Some(tag) = policy.tags().find(is_unused) {
            return Err(Error::NoTag(tag.to_owned()));
        }
        let mut groups: BTreeMap<Key, Vec<Snapshot>> = BTreeMap::new();
        for snapshot in snapshots {
            let tags = match grouping {
                Grouping::Source => None,
                Grouping::SourceAndTags => {
                    let mut tags = snapshot.tags.clone().unwrap_or_default();
                    tags.sort();
                    tags.dedup();
                    Some(tags)
                }
            };
            groups.entry(Key(snapshot.source.clone(), tags)).or_default().push(snapshot);
        }
        let decide = |(key, snapshots): (Key, Vec<Snapshot>)| match policy.decide(snapshots, calendar) {
            Some(decisions) => Ok(Group { source: key.0, tags: key.1, decisions }),
            None => Err(Error::NothingLeft(key.to_string())),
        };
        Ok(Plan { groups: groups.into_iter().map(decide).collect::<Result<_, _>>()? })
    }

    /// The snapshots to remove.
    pub fn removed(&self) -> impl Iterator<Item = &Snapshot> {
        let decisions = self.groups.iter().flat_map(|group| &group.decisions);
        decisions.filter(|decision| decision.is_removal()).map(|decision| &decision.snapshot)
    }

    /// The sources that would lose more than half of the snapshots that they have in the repository. A run that no user
    /// watches should not do this: a wrong policy, a wrong clock or false snapshots may be the cause. A single snapshot is never
    /// much: a policy that keeps one removes one with each backup.
    ///
    /// Only snapshots with numbers below `limit` are counted. If these are the ones that the last removal left, a policy
    /// that keeps one of many new snapshots is not stopped each time.
    pub fn large_removals(&self, limit: u64) -> Vec<LargeRemoval> {
        let mut sources: BTreeMap<&str, LargeRemoval> = BTreeMap::new();
        for decision in self.groups.iter().flat_map(|group| &group.decisions) {
            let Snapshot { source, state: State::There, name, .. } = &decision.snapshot else { continue };
            let none = || LargeRemoval { source: source.clone(), removed: 0, total: 0, newer: 0 };
            let found = sources.entry(source).or_insert_with(none);
            if name.sequence < limit {
                found.removed += usize::from(decision.is_removal());
                found.total += 1;
            } else {
                found.newer += 1;
            }
        }
        sources.into_values().filter(|found| found.removed > 1 && 2 * found.removed > found.total).collect()
    }
}

/// Fails if the tags of a snapshot are unknown.
fn need_tags(snapshots: &[Snapshot]) -> Result<(), Error> {
    let mut unknown: BTreeMap<&str, usize> = BTreeMap::new();
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.tags.is_none()) {
        *unknown.entry(&snapshot.source).or_default() += 1;
    }
    match unknown.into_iter().next() {
        Some((source, snapshots)) => Err(Error::UnknownTags { source_name: source.to_owned(), snapshots }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{calendar, snapshot};
    use super::super::policy::{Count, Rule};
    use super::*;

    fn of(source: &str, number: u64, tags: &[&str]) -> Snapshot {
        let tags = Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
        Snapshot { source: source.into(), tags, ..snapshot(number, &format!("2027-01-{number:02}T02:00Z")) }
    }

    fn last(count: usize) -> Policy {
        Policy::new(vec![Rule::Last(count.into())]).unwrap()
    }

    fn tagged(tag: &str) -> Policy {
        Policy::new(vec![Rule::Tag(tag.into())]).unwrap()
    }

    fn removed(plan: &Plan) -> Vec<u64> {
        plan.removed().map(|snapshot| snapshot.name.sequence).collect()
    }

    #[test]
    fn the_policy_is_applied_to_each_group() {
        let snapshots = vec![
            of("a", 1, &[]),
            of("b", 2, &[]),
            of("a", 3, &["x"]),
            of("a", 4, &["x", "y"]),
            of("a", 5, &["y", "x"]),
        ];
        let plan = |grouping| Plan::new(&last(1), snapshots.clone(), grouping, &calendar()).unwrap();
        let by_source = plan(Grouping::Source);
        assert_eq!(removed(&by_source), [1, 3, 4]);
        let names: Vec<_> = by_source.groups.iter().map(|group| (&*group.source, group.tags.clone())).collect();
        assert_eq!(names, [("a", None), ("b", None)]);
        let by_tags = plan(Grouping::SourceAndTags);
        assert_eq!(removed(&by_tags), [4]);
        let tags: Vec<_> = by_tags.groups.iter().map(|group| group.tags.clone().unwrap().join(",")).collect();
        assert_eq!(tags, ["", "x", "x,y", ""]);
        assert_eq!(Plan::new(&last(1), vec![], Grouping::Source, &calendar()).unwrap().groups, []);
        assert_eq!(["source", "source,tags"].map(str::parse), [Ok(Grouping::Source), Ok(Grouping::SourceAndTags)]);
        assert_eq!("tags".parse::<Grouping>(), Err("write source, or source,tags".to_owned()));
    }

    #[test]
    fn only_known_sources_can_be_selected() {
        let snapshots = vec![of("a", 1, &[]), of("b", 2, &[])];
        let select = |sources: &[&str]| {
            let sources: Vec<_> = sources.iter().map(|source| (*source).to_owned()).collect();
            Ok(select(snapshots.clone(), &sources)?.iter().map(|snapshot| snapshot.name.sequence).collect::<Vec<_>>())
        };
        assert_eq!(select(&[]), Ok(vec![1, 2]));
        assert_eq!(select(&["b"]), Ok(vec![2]));
        assert_eq!(select(&["b", "a", "b"]), Ok(vec![1, 2]));
        assert_eq!(select(&["b", "c"]), Err(Error::NoSource("c".into())));
    }

    #[test]
    fn policies_about_tags_are_refused_if_tags_are_missing_or_unknown() {
        let snapshots = vec![of("a", 1, &["x"]), of("a", 2, &[]), of("b", 3, &[])];
        let plan = |policy: &Policy, snapshots: &[Snapshot], grouping| {
            Plan::new(policy, snapshots.to_vec(), grouping, &calendar()).map(|plan| removed(&plan))
        };
        let only_a = &snapshots[..2];
        assert_eq!(
            plan(&tagged("x"), &[of("a", 1, &["x"]), of("a", 2, &[]), of("a", 3, &[])], Grouping::Source),
            Ok(vec![2])
        );
        assert_eq!(plan(&tagged("x"), &snapshots, Grouping::Source), Err(Error::NothingLeft("b".into())));
        assert_eq!(plan(&tagged("y"), &snapshots, Grouping::Source), Err(Error::NoTag("y".into())));
        let without = "a without tags".to_owned();
        assert_eq!(plan(&tagged("x"), only_a, Grouping::SourceAndTags), Err(Error::NothingLeft(without)));
        let both = Policy::new(vec![Rule::Tag("x".into()), Rule::Tag("y".into())]).unwrap();
        assert_eq!(plan(&both, only_a, Grouping::Source), Err(Error::NoTag("y".into())));
        let lost: Vec<_> = only_a.iter().cloned().map(|s| Snapshot { state: State::Lost, ..s }).collect();
        assert_eq!(plan(&tagged("x"), &lost, Grouping::Source), Err(Error::NoTag("x".into())));

        let unknown: Vec<_> = snapshots.into_iter().map(|s| Snapshot { tags: None, ..s }).collect();
        let error = Error::UnknownTags { source_name: "a".into(), snapshots: 2 };
        assert_eq!(plan(&tagged("x"), &unknown, Grouping::Source), Err(error));
        let error = Error::UnknownTags { source_name: "a".into(), snapshots: 2 };
        assert_eq!(plan(&last(1), &unknown, Grouping::SourceAndTags), Err(error));
        assert_eq!(plan(&last(1), &unknown, Grouping::Source), Ok(vec![1]));
    }

    #[test]
    fn a_removal_is_large_if_it_is_more_than_half_of_a_source() {
        let plan = |snapshots: &[Snapshot]| {
            let plan = Plan::new(&last(1), snapshots.to_vec(), Grouping::SourceAndTags, &calendar()).unwrap();
            assert_eq!(plan.large_removals(0), []);
            plan.large_removals(u64::MAX)
        };
        let two = [of("a", 1, &[]), of("a", 2, &[])];
        assert_eq!(plan(&two), []);
        let three = [&two[..], &[of("a", 3, &[])]].concat();
        assert_eq!(plan(&three), [LargeRemoval { source: "a".into(), removed: 2, total: 3, newer: 0 }]);
        // The source counts, not the group.
        let four = [&three[..], &[of("a", 4, &["x"])]].concat();
        assert_eq!(plan(&four), []);
        let lost = [&three[..], &[Snapshot { state: State::Lost, ..of("a", 4, &["x"]) }]].concat();
        assert_eq!(plan(&lost), [LargeRemoval { source: "a".into(), removed: 2, total: 3, newer: 0 }]);
        let first_two = Plan::new(&last(1), three.clone(), Grouping::Source, &calendar()).unwrap().large_removals(3);
        assert_eq!(first_two, [LargeRemoval { source: "a".into(), removed: 2, total: 2, newer: 1 }]);
        let shown = "2 of the 2 snapshots of a that were there at the last forget";
        assert_eq!(first_two.iter().map(LargeRemoval::to_string).collect::<Vec<_>>(), [shown]);
        let first = Plan::new(&last(1), two.to_vec(), Grouping::Source, &calendar()).unwrap().large_removals(2);
        assert_eq!(first, []);
        let other = [&three[..], &[of("b", 4, &[]), of("b", 5, &[])]].concat();
        assert_eq!(plan(&other), [LargeRemoval { source: "a".into(), removed: 2, total: 3, newer: 0 }]);
        let all = Policy::new(vec![Rule::Last(Count::UNLIMITED)]).unwrap();
        assert_eq!(removed(&Plan::new(&all, other, Grouping::Source, &calendar()).unwrap()), [0; 0]);
    }
}
