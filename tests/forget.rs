//! `forget`, `hold` and `release`: policies, names, refusals, undo, kills, and a lost catalog.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use brackfs::crypt::Signer;
use brackfs::format::forgotten::Forgotten;
use brackfs::format::generation::NameSet;
use brackfs::format::id::ObjectId;
use brackfs::format::name;
use brackfs::inventory::{host_access, host_key};
use brackfs::repository::{Repository, Writer};
use brackfs::state::RepositoryState;
use common::ordeal::under_strace;
use common::rewrap::secret_key;
use common::{Entry, Run, Site, number, run, settle, tree};
use serde_json::Value;

type Tree = BTreeMap<PathBuf, Entry>;

/// A site with a repository, and a snapshot made at each of these times.
fn made_at(times: &[&str]) -> Site {
    let site = Site::in_memory();
    site.init();
    for time in times {
        backup_at(&site, time, &[]);
    }
    site
}

fn backup_at(site: &Site, time: &str, extra: &[&str]) -> String {
    site.write("file", time);
    settle();
    let summary = site.backup(&[&["--time", time], extra].concat()).ok().json();
    summary["snapshot_id"].as_str().unwrap().to_owned()
}

/// Noon of each of the first days of March 2027.
fn days(count: usize) -> Vec<String> {
    (1..=count).map(|day| format!("2027-03-{day:02}T12:00:00Z")).collect()
}

fn made_daily(count: usize) -> Site {
    let days = days(count);
    made_at(&days.iter().map(String::as_str).collect::<Vec<_>>())
}

/// `forget` with `--json`, on 1 May 2027 in UTC.
fn forget(site: &Site, arguments: &[&str]) -> Run {
    site.brackfs(&[&["forget", "--json", "--utc", "--now", "2027-05-01"], arguments].concat())
}

/// The snapshots in the output: action, date and reasons.
fn decisions(run: &Run) -> Vec<String> {
    let objects = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let snapshots = objects.filter(|object| object["message_type"] == "snapshot");
    let line = |object: Value| {
        let reasons: Vec<_> = object["reasons"].as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect();
        let date = &object["time"].as_str().unwrap()[..10];
        format!("{} {date} {}", object["action"].as_str().unwrap(), reasons.join(", ")).trim_end().to_owned()
    };
    snapshots.map(line).collect()
}

fn listed(site: &Site, extra: &[&str]) -> Vec<Value> {
    let mut command = site.command(&[&["snapshots", "--json"], extra].concat());
    // From the catalog.
    command.env_remove("BRACKFS_KEY_FILE");
    let run = run(command).ok();
    serde_json::from_str::<Vec<Value>>(&run.stdout).unwrap()
}

/// The dates of the listed snapshots.
fn dates(site: &Site, extra: &[&str]) -> Vec<String> {
    listed(site, extra).iter().map(|snapshot| snapshot["time"].as_str().unwrap()[8..10].to_owned()).collect()
}

#[track_caller]
fn refused(site: &Site, arguments: &[&str], words: &str) {
    let before = (tree(&site.repo()), dates(site, &[]));
    let run = forget(site, arguments).code(1);
    assert!(run.stderr.contains(words), "{words}\n{run}");
    assert_eq!((tree(&site.repo()), dates(site, &[])), before, "{run}");
}

/// Compares the census of the last generation with the repository, as another program would.
fn check_census(site: &Site) {
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let state = RepositoryState::new(&site.state(), repository.id());
    let access = host_access(&host_key(&state).unwrap()).unwrap();
    let (last, _) = repository.generations().unwrap().pop().unwrap();
    let generation = access.generation(&repository, last).unwrap();
    let number = generation.number;
    let list = |folder: &str| repository.target().list(folder).unwrap().into_iter().map(|object| object.name);
    let count = |documents: Vec<(String, u64, Vec<String>)>| {
        let earlier = || documents.iter().filter(|(_, generation, _)| *generation < number);
        let replaced: BTreeSet<_> = earlier().flat_map(|(_, _, replaces)| replaces).collect();
        let names = earlier().map(|(name, _, _)| name).filter(|name| !replaced.contains(name));
        NameSet::of(names.cloned().collect())
    };
    let mut tombstones = BTreeSet::new();
    let forgotten = list(name::FORGOTTEN).map(|object| {
        let document = access.forgotten(&repository, name::parse_forgotten(&object).unwrap()).unwrap();
        if document.generation < number {
            tombstones.extend(document.snapshots.iter().map(name::SnapshotName::object));
        }
        (object, document.generation, document.replaces.into_iter().map(name::forgotten).collect())
    });
    assert_eq!(generation.census.forgotten, count(forgotten.collect()), "tombstones");
    let index = list(name::INDEX).map(|object| {
        let document = access.index(&repository, name::parse_index(&object).unwrap()).unwrap();
        (object, document.generation, document.replaces.into_iter().map(name::index).collect())
    });
    assert_eq!(generation.census.index, count(index.collect()), "indexes");
    let there = repository.snapshots().unwrap().into_iter().filter(|name| name.sequence < number);
    let snapshots = there.map(|name| name.object()).chain(tombstones).collect();
    assert_eq!(generation.census.snapshots, NameSet::of(snapshots), "snapshots");
}

#[test]
fn a_policy_forgets_the_snapshots_that_no_rule_keeps() {
    let site = made_daily(6);
    backup_at(&site, "2027-03-06T18:00:00Z", &[]);
    let policy = ["--keep-daily", "3", "--keep-weekly", "1", "--keep-within", "12h", "--force"];
    let table = [
        "forget 2027-03-01",
        "forget 2027-03-02",
        "forget 2027-03-03",
        "keep 2027-03-04 daily 3",
        "keep 2027-03-05 daily 2",
        "keep 2027-03-06 within 12h",
        "keep 2027-03-06 daily 1, weekly 1, within 12h",
    ];
    let dry = forget(&site, &[&policy[..], &["--dry-run"]].concat()).ok();
    assert_eq!(decisions(&dry), table);
    assert_eq!(dates(&site, &[]).len(), 7);
    let run = forget(&site, &policy).ok();
    assert_eq!(decisions(&run), table);
    let summary = run.json();
    assert_eq!((&summary["changed"], &summary["kept"]), (&3.into(), &4.into()));
    assert_eq!(dates(&site, &[]), ["04", "05", "06", "06"]);
    assert_eq!(dates(&site, &["--forgotten"]), ["01", "02", "03"]);
    let again = tree(&site.repo());
    assert_eq!(forget(&site, &policy).ok().json()["changed"], 0);
    assert_eq!(tree(&site.repo()), again, "nothing to forget, and something was written");
    // No object was removed, and the next backup builds on a source whose newest snapshot is kept.
    backup_at(&site, "2027-03-07T12:00:00Z", &[]);
    site.brackfs(&["check", "--read-data"]).ok();
    site.brackfs(&["catalog", "verify"]).ok();
    check_census(&site);
}

#[test]
fn the_table_for_people_has_a_line_for_each_snapshot() {
    let site = made_daily(3);
    let arguments = ["forget", "--now", "2027-05-01", "--utc", "--keep-last", "2"];
    let run = site.brackfs(&[&arguments[..], &["--dry-run"]].concat()).ok();
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "source"), "{run}");
    for (line, (action, end)) in lines[1..].iter().zip([("forget", "Z"), ("keep", "last 2"), ("keep", "last 1")]) {
        assert!(line.trim().starts_with(action) && line.ends_with(end), "{run}");
    }
    assert!(run.stderr.contains("1 snapshot is forgotten, 2 kept"), "{run}");
    let quiet = site.brackfs(&arguments).ok();
    assert!(quiet.stdout.is_empty() && !quiet.stderr.contains("forgotten"), "{quiet}");
    assert_eq!(dates(&site, &[]), ["02", "03"]);
}

#[test]
fn policies_that_would_remove_too_much_are_refused() {
    let site = made_daily(5);
    backup_at(&site, "2027-03-06T12:00:00Z", &["--source", "other", "--tag", "kept"]);
    for empty in [&[][..], &["--keep-last", "0", "--keep-daily", "0"]] {
        let usage = forget(&site, empty).code(2);
        assert!(usage.stderr.contains("the policy keeps no snapshots"), "{usage}");
    }
    refused(&site, &["--keep-last", "1", "--keep-tag", "unknown", "--force"], "no snapshot has the tag unknown");
    refused(&site, &["--keep-last", "1", "--source", "nowhere", "--force"], "no snapshot of a source called nowhere");
    refused(&site, &["--keep-tag", "kept", "--force"], "would keep no snapshots of source");
    refused(&site, &["--keep-last", "2"], "would forget 3 of 5 snapshots of source");
    let usage = forget(&site, &["latest", "--keep-last", "1"]).code(2);
    assert!(usage.stderr.contains("--keep-last"), "{usage}");
    forget(&site, &["latest:file"]).code(2);
    assert_eq!(dates(&site, &[]).len(), 6);
    forget(&site, &["--keep-last", "3"]).ok();
    assert_eq!(dates(&site, &["--source", "source"]), ["03", "04", "05"]);
    // Two of the three that the last removal left.
    refused(&site, &["--keep-last", "1"], "would forget 2 of 3 snapshots of source");
    for hour in 0..6 {
        backup_at(&site, &format!("2027-03-07T{hour:02}:00:00Z"), &[]);
    }
    // New ones do not count: six of nine, but only one of those three.
    forget(&site, &["--keep-daily", "3"]).ok();
    assert_eq!(dates(&site, &["--source", "source"]), ["04", "05", "07"]);
}

#[test]
fn snapshots_are_grouped_by_source_and_tags() {
    let site = made_at(&[]);
    for (day, tag) in [("01", "a"), ("02", "b"), ("03", "a"), ("04", "b"), ("05", "a")] {
        backup_at(&site, &format!("2027-03-{day}"), &["--tag", tag]);
    }
    forget(&site, &["--keep-last", "1", "--group-by", "source,tags", "--force"]).ok();
    assert_eq!(dates(&site, &[]), ["04", "05"]);
}

#[test]
fn snapshots_from_the_future_are_passed_over() {
    let site = made_daily(3);
    backup_at(&site, "2031-03-20", &[]);
    backup_at(&site, "2027-03-04", &[]);
    let run = forget(&site, &["--keep-last", "2"]).ok();
    let expected = [
        "forget 2027-03-01",
        "forget 2027-03-02",
        "keep 2027-03-03 last 2",
        "keep 2031-03-20 dated in the future",
        "keep 2027-03-04 last 1",
    ];
    assert_eq!(decisions(&run), expected);
    forget(&site, &["2031"]).ok();
    assert_eq!(dates(&site, &[]), ["03", "04"]);
}

#[test]
fn snapshots_are_forgotten_by_name() {
    let site = made_daily(4);
    let id = backup_at(&site, "2027-03-05", &["--source", "other", "--host", "elsewhere"]);
    assert_eq!(listed(&site, &[])[4]["host"], "elsewhere");
    refused(&site, &["nowhere/latest"], "there is no snapshot of nowhere");
    refused(&site, &["2027-03-01", "2026"], "begins with 2026");
    refused(&site, &["2027-03-01", "2027-03"], "2027-03 fits snapshots of 2 sources; write SOURCE/2027-03");
    refused(&site, &["2027-03-01", "latest"], "latest fits snapshots of 2 sources; write SOURCE/latest");
    for several in ["2027", "latest"] {
        site.brackfs(&["hold", several]).code(1);
        site.brackfs(&["release", several]).code(1);
    }
    site.brackfs(&["hold", "other/latest"]).ok();
    site.brackfs(&["release", "other/2027"]).ok();
    // The last one of a source may be named.
    let run = forget(&site, &["2027-03-02T12:00", &id[..10], "source/latest", &id]).ok();
    assert_eq!(decisions(&run), ["forget 2027-03-05", "forget 2027-03-02", "forget 2027-03-04"]);
    assert_eq!(dates(&site, &[]), ["01", "03"]);
    refused(&site, &[&id], &id);
}

#[test]
fn held_snapshots_stay_until_they_are_released() {
    let site = made_daily(4);
    let hold = |command, name| site.brackfs(&[command, "--json", name]).ok().json()["changed"].clone();
    assert_eq!(hold("hold", "2027-03-01"), 1);
    assert_eq!(hold("hold", "2027-03-01"), 0);
    let held = |site: &Site| listed(site, &[]).iter().map(|snapshot| snapshot["held"] == true).collect::<Vec<_>>();
    assert_eq!(held(&site), [true, false, false, false]);
    let mut text = site.command(&["snapshots"]);
    text.env_remove("BRACKFS_KEY_FILE");
    assert_eq!(run(text).ok().stdout.matches("[held]").count(), 1);
    refused(&site, &["2027-03-01"], "brackfs release");
    let run = forget(&site, &["--keep-last", "1", "--force"]).ok();
    assert_eq!(decisions(&run)[0], "keep 2027-03-01 held");
    assert_eq!(dates(&site, &[]), ["01", "04"]);
    fs::remove_file(catalog(&site)).unwrap();
    site.brackfs(&["catalog", "rebuild"]).ok();
    assert_eq!((held(&site), dates(&site, &[])), (vec![true, false], vec!["01".into(), "04".into()]));
    assert_eq!(hold("release", "2027-03-01"), 1);
    assert_eq!(hold("release", "2027-03-01"), 0);
    fs::remove_file(catalog(&site)).unwrap();
    site.brackfs(&["catalog", "rebuild"]).ok();
    assert_eq!(held(&site), [false, false]);
    forget(&site, &["2027-03-01"]).ok();
    assert_eq!(dates(&site, &[]), ["04"]);
    site.brackfs(&["hold", "2027-03-01"]).code(1);
    site.brackfs(&["hold"]).code(2);
}

fn catalog(site: &Site) -> PathBuf {
    let repositories = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path().join("catalog.sqlite"));
    repositories.filter(|path| path.exists()).collect::<Vec<_>>().pop().expect("a catalog")
}

fn restored(site: &Site, snapshot: &str) -> Tree {
    let to = site.path().join("restored");
    site.brackfs(&["restore", snapshot, "--to", to.to_str().unwrap()]).ok();
    let found = tree(&to);
    fs::remove_dir_all(to).unwrap();
    found
}

#[test]
fn forgotten_snapshots_are_shown_again() {
    let site = made_daily(3);
    let id = listed(&site, &[])[0]["id"].as_str().unwrap().to_owned();
    let before = restored(&site, &id);
    forget(&site, &["2027-03-01", "latest"]).ok();
    // The next backup is the difference to a forgotten snapshot.
    site.brackfs(&["backup", "source", "--skip-if-unchanged", "--time", "2027-03-04"]).ok();
    assert_eq!(dates(&site, &[]), ["02", "04"]);
    let dry = forget(&site, &["--undo", "--dry-run"]).ok();
    assert_eq!(
        (decisions(&dry), dates(&site, &[]).len()),
        (vec!["show 2027-03-01".into(), "show 2027-03-03".into()], 2)
    );
    let run = forget(&site, &["--undo"]).ok();
    assert_eq!(decisions(&run), ["show 2027-03-01", "show 2027-03-03"]);
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04"]);
    assert_eq!(dates(&site, &["--forgotten"]), [""; 0]);
    assert_eq!(restored(&site, &id), before);
    assert_eq!(forget(&site, &["--undo"]).ok().json()["changed"], 0);
    fs::remove_file(catalog(&site)).unwrap();
    backup_at(&site, "2027-03-05", &[]);
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04", "05"]);
    site.brackfs(&["check", "--read-data"]).ok();
    site.brackfs(&["catalog", "verify"]).ok();
    check_census(&site);
}

/// Only the newest snapshot has the present state of the source, in a folder whose parent did not change.
#[test]
fn a_forgotten_newest_snapshot_does_not_make_the_next_backup_skip() {
    for is_pruned in [false, true] {
        let site = Site::new();
        site.init();
        site.write("a/b/c", "old");
        backup_at(&site, "2027-03-01", &[]);
        common::settle();
        site.write("a/b/c", "new");
        common::settle();
        backup_at(&site, "2027-03-02", &[]);
        forget(&site, &["latest"]).ok();
        if is_pruned {
            site.brackfs(&["prune", "--grace", "0"]).ok();
        }
        site.brackfs(&["backup", "source", "--skip-if-unchanged", "--time", "2027-03-03"]).ok();
        assert_eq!(dates(&site, &[]), ["01", "03"]);
        assert_eq!(restored(&site, "latest"), tree(&site.source()));
        // Older ones don't matter.
        forget(&site, &["2027-03-01"]).ok();
        site.brackfs(&["backup", "source", "--skip-if-unchanged", "--time", "2027-03-04"]).ok();
        assert_eq!(dates(&site, &[]), ["03"]);
    }
}

#[test]
fn a_check_covers_snapshots_that_are_shown_again() {
    let site = made_daily(1);
    let packs = || tree(&site.repo().join("packs")).into_keys().filter(|path| path.components().count() == 2);
    let first: Vec<_> = packs().collect();
    backup_at(&site, "2027-03-02T12:00:00Z", &[]);
    forget(&site, &["latest"]).ok();
    site.brackfs(&["prune", "--max-waste", "0"]).ok();
    forget(&site, &["--undo"]).ok();
    site.brackfs(&["check", "--read-data"]).ok();
    let second: Vec<_> = packs().filter(|pack| !first.contains(pack)).collect();
    assert!(!second.is_empty());
    for pack in &second {
        let path = site.repo().join("packs").join(pack);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let run = site.brackfs(&["check", "-v", "--read-data"]).code(1);
    let named = second.iter().all(|pack| run.stderr.contains(pack.to_str().unwrap()));
    assert!(named && run.stderr.contains("source/20270302T120000Z: "), "{run}");
    // Packs that were condemned and are needed again must not be missing.
    second.iter().for_each(|pack| fs::remove_file(site.repo().join("packs").join(pack)).unwrap());
    let run = site.brackfs(&["check", "-v"]).code(1);
    assert!(run.stderr.contains("source/20270302T120000Z: "), "{run}");
}

#[test]
fn a_rebuilt_catalog_knows_what_is_forgotten_and_tags() {
    let site = made_daily(3);
    backup_at(&site, "2027-03-04", &["--tag", "monthly", "--host", "elsewhere"]);
    backup_at(&site, "2027-03-05", &[]);
    forget(&site, &["2027-03-01", "2027-03-03"]).ok();
    let before = listed(&site, &[]);
    // The object of a forgotten snapshot may have been removed.
    let swept = common::snapshot_objects(&site).into_iter().find(|path| path.to_str().unwrap().contains("20270301"));
    fs::remove_file(swept.unwrap()).unwrap();
    fs::remove_file(catalog(&site)).unwrap();
    let rebuilt = site.brackfs(&["catalog", "rebuild", "--json"]).ok();
    assert!(!rebuilt.stderr.contains("missing"), "{rebuilt}");
    assert_eq!(listed(&site, &[]), before);
    assert_eq!(dates(&site, &["--forgotten"]), ["03"]);
    let run = forget(&site, &["--keep-last", "1", "--keep-tag", "monthly"]).ok();
    assert_eq!(decisions(&run), ["forget 2027-03-02", "keep 2027-03-04 tag monthly", "keep 2027-03-05 last 1"]);
    assert_eq!(decisions(&forget(&site, &["--undo"]).ok()), ["show 2027-03-02", "show 2027-03-03"]);
    site.brackfs(&["catalog", "verify"]).ok();
    backup_at(&site, "2027-03-06", &[]);
    check_census(&site);
}

/// Documents of tombstones in the repository.
fn documents(site: &Site) -> Vec<PathBuf> {
    let folder = site.repo().join("forgotten");
    tree(&folder).into_keys().map(|path| folder.join(path)).filter(|path| path.is_file()).collect()
}

/// A site with four snapshots, all of them shown. Then an attacker puts a document of tombstones back that forgot the first
/// one and condemned its packs. The documents that replaced it were removed. Returns the content of the first snapshot too.
fn with_an_old_document_put_back() -> (Site, Tree) {
    let site = made_daily(3);
    let content = restored(&site, "2027-03-01");
    let prune = |grace| site.brackfs(&["prune", "--grace", grace, "--max-waste", "0"]).ok();
    forget(&site, &["2027-03-01"]).ok();
    prune("1d");
    let [old] = &documents(&site)[..] else { panic!("{:?}", documents(&site)) };
    let bytes = fs::read(old).unwrap();
    forget(&site, &["--undo"]).ok();
    forget(&site, &["2027-03-02"]).ok();
    forget(&site, &["--undo"]).ok();
    backup_at(&site, "2027-03-04", &[]);
    prune("1d");
    let left = documents(&site);
    assert!(left.len() == 1 && left[0] != *old, "{left:?}");
    fs::write(old, bytes).unwrap();
    (site, content)
}

/// The number of snapshots that a reader with the owner's key lists.
fn seen(site: &Site) -> usize {
    let run = site.brackfs(&["snapshots", "--json"]).ok();
    serde_json::from_str::<Vec<Value>>(&run.stdout).unwrap().len()
}

/// All `count` snapshots are listed, restored and checked, with the owner's key.
fn assert_shown(site: &Site, count: usize, first: &Tree) {
    assert_eq!(seen(site), count);
    assert_eq!(restored(site, "2027-03-01"), *first);
    let checked = site.brackfs(&["check", "--read-data", "--json"]).ok().json();
    assert_eq!(number(&checked, "snapshots"), count as u64);
}

#[test]
fn an_old_document_that_is_put_back_hides_nothing() {
    let (site, first) = with_an_old_document_put_back();
    assert_shown(&site, 4, &first);
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04"]);
    backup_at(&site, "2027-03-05", &[]);
    assert_shown(&site, 5, &first);
    site.brackfs(&["catalog", "verify"]).ok();
}

#[test]
fn an_adoption_takes_nothing_from_an_old_document_that_is_put_back() {
    let (site, first) = with_an_old_document_put_back();
    fs::remove_dir_all(site.state()).unwrap();
    fs::create_dir(site.state()).unwrap();
    let keys = tree(&site.repo().join("keys"));
    let mut names = keys.keys().filter_map(|key| key.to_str()?.strip_prefix("host-")?.strip_suffix(".asc"));
    site.brackfs(&["adopt", "--signer", names.next().unwrap()]).ok();
    assert_shown(&site, 4, &first);
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04"]);
}

#[test]
fn a_rebuilt_catalog_takes_nothing_from_an_old_document_that_is_put_back() {
    let (site, first) = with_an_old_document_put_back();
    fs::remove_file(catalog(&site)).unwrap();
    site.brackfs(&["catalog", "rebuild"]).ok();
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04"]);
    assert_eq!(dates(&site, &["--forgotten"]), [""; 0]);
    backup_at(&site, "2027-03-05", &[]);
    check_census(&site);
    assert_shown(&site, 5, &first);
    site.brackfs(&["catalog", "verify"]).ok();
}

#[test]
fn a_catalog_that_knows_a_later_document_takes_nothing_from_an_earlier_one() {
    let site = made_daily(3);
    forget(&site, &["2027-03-01"]).ok();
    let first = documents(&site);
    forget(&site, &["--undo"]).ok();
    backup_at(&site, "2027-03-04", &[]);
    for document in documents(&site).into_iter().filter(|document| !first.contains(document)) {
        fs::remove_file(document).unwrap();
    }
    assert_eq!(documents(&site), first);
    // The next run reads the documents again, because the last generation is missing.
    let generations = site.repo().join("generation");
    let last = tree(&generations).into_keys().max().unwrap();
    fs::remove_file(generations.join(last)).unwrap();
    let run = site.backup(&["--time", "2027-03-05"]).ok();
    assert!(run.stderr.contains("the repository is older than this machine's catalog"), "{run}");
    assert_eq!(dates(&site, &[]), ["01", "02", "03", "04", "05"]);
}

#[test]
fn forged_tombstones_can_be_undone() {
    let site = made_daily(2);
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let key = host_key(&RepositoryState::new(&site.state(), repository.id())).unwrap();
    let owner = secret_key(&site.keys().join("owner")).certificate();
    let writer = Writer::new(&repository, Signer::new(key.clone()).unwrap(), &key.certificate(), &[owner]).unwrap();
    let forge = |generation| {
        let forged = Forgotten { generation, snapshots: repository.snapshots().unwrap(), ..Forgotten::default() };
        writer.put_forgotten(ObjectId::random(), &forged).unwrap();
        assert_eq!(seen(&site), 0);
    };
    forge(2);
    site.brackfs(&["catalog", "rebuild"]).ok();
    assert_eq!(dates(&site, &["--forgotten"]), ["01", "02"]);
    assert_eq!(forget(&site, &["--undo"]).ok().json()["changed"], 2);
    assert_eq!(seen(&site), 2);
    // One that counts until a later document has a higher generation.
    forge(5);
    forget(&site, &["latest"]).ok();
    assert_eq!(seen(&site), 0);
    forget(&site, &["--undo"]).ok();
    backup_at(&site, "2027-03-03", &[]);
    forget(&site, &["2027-03-01"]).ok();
    assert_eq!(seen(&site), 2);
    assert_eq!(dates(&site, &[]), ["02", "03"]);
}

#[test]
fn the_state_directory_is_enough() {
    let site = made_daily(3);
    let program = site.command(&[""; 0]).get_program().to_owned();
    fs::rename(site.keys(), site.path().join("elsewhere")).unwrap();
    let bare = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().args(arguments).stdin(Stdio::null()).current_dir("/");
        command.args([Path::new("--repo"), &site.repo(), Path::new("--state-dir"), &site.state()]);
        run(command).ok()
    };
    bare(&["hold", "2027-03-02"]);
    bare(&["forget", "--keep-last", "1", "--force", "--now", "2027-05-01"]);
    assert_eq!(dates(&site, &[]), ["02", "03"]);
    bare(&["release", "2027-03-02"]);
    bare(&["forget", "2027-03-02"]);
    bare(&["forget", "--undo"]);
    assert_eq!(dates(&site, &[]), ["01", "02", "03"]);
}

/// Runs `command` killed at each call of `calls`, until it is not killed any more, each time from the same state. After
/// each, a backup follows, and `check` sees the site with the names listed by then. Returns the number of kills.
fn killed_everywhere(site: &Site, calls: &str, command: &[&str], check: &mut dyn FnMut(&[String])) -> u32 {
    let saved = site.path().join("saved");
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        run({
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(from).arg(to);
            copy
        })
        .ok();
    };
    fs::create_dir(&saved).unwrap();
    let folders = [(site.repo(), saved.join("repo")), (site.state(), saved.join("state"))];
    folders.iter().for_each(|(now, saved)| copy(now, saved));
    for nth in 1..200 {
        let kill = format!("inject={calls}:signal=KILL:when={nth}");
        let trace = format!("trace=linkat,{calls}");
        let arguments = ["-o", "/dev/null", "-e", &trace, "-e", "inject=linkat:error=EPERM", "-e", &kill];
        let is_whole = run(under_strace(&arguments, &site.command(command))).code == 0;
        backup_at(site, "2027-04-01", &[]);
        check_census(site);
        check(&dates(site, &[]));
        folders.iter().for_each(|(now, saved)| copy(saved, now));
        if is_whole {
            fs::remove_dir_all(saved).unwrap();
            return nth - 1;
        }
    }
    panic!("the command makes calls without end");
}

#[test]
fn a_killed_run_forgets_all_or_nothing() {
    let site = made_daily(3);
    let arguments = ["forget", "--keep-last", "1", "--force", "--now", "2027-05-01"];
    for calls in ["renameat2", "fsync,fdatasync"] {
        let mut seen = BTreeSet::new();
        let kills = killed_everywhere(&site, calls, &arguments, &mut |dates| {
            assert!(*dates == ["01", "02", "03", "01"] || *dates == ["03", "01"], "{calls}: {dates:?}");
            seen.insert(dates.len());
            site.brackfs(&["catalog", "verify"]).ok();
            assert_eq!(dates_after(&site, &["--keep-last", "2", "--force"]), ["03", "01"], "{calls}");
            check_census(&site);
        });
        assert!(kills >= 2 && seen.len() == 2, "{calls}: {kills} kills, {seen:?}");
        // The next round begins with a document of tombstones to replace.
        forget(&site, &["latest"]).ok();
        forget(&site, &["--undo"]).ok();
        assert_eq!(dates(&site, &[]), ["01", "02", "03"]);
    }
}

/// The dates listed after a policy is applied.
fn dates_after(site: &Site, policy: &[&str]) -> Vec<String> {
    forget(site, policy).ok();
    dates(site, &[])
}

#[test]
fn killed_runs_show_all_forgotten_snapshots_again_or_none() {
    let site = made_daily(3);
    forget(&site, &["2027-03-01", "2027-03-02"]).ok();
    let mut seen = BTreeSet::new();
    let kills = killed_everywhere(&site, "renameat2", &["forget", "--undo"], &mut |dates| {
        assert!(*dates == ["01", "02", "03", "01"] || *dates == ["03", "01"], "{dates:?}");
        seen.insert(dates.len());
        assert_eq!(forget(&site, &["--undo"]).ok().code, 0);
        assert_eq!(self::dates(&site, &[]), ["01", "02", "03", "01"]);
    });
    assert!(kills >= 2 && seen.len() == 2, "{kills} kills, {seen:?}");
}

#[test]
fn killed_runs_hold_all_snapshots_or_none() {
    let site = made_daily(3);
    let mut seen = BTreeSet::new();
    let kills = killed_everywhere(&site, "renameat2", &["hold", "2027-03-01", "2027-03-02"], &mut |_| {
        let held = listed(&site, &[]).iter().filter(|snapshot| snapshot["held"] == true).count();
        assert!([0, 2].contains(&held), "{held}");
        seen.insert(held);
    });
    assert!(kills >= 2 && seen.len() == 2, "{kills} kills, {seen:?}");
}
