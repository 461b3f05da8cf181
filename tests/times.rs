//! Snapshots are shown and selected by the start of their backups, and ordered by their numbers, even if the clock
//! jumps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;

use common::{Run, Site, tree};
use rusqlite::Connection;
use serde_json::Value;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// All snapshots, from the catalog or, with the owner's key, from the repository.
fn listed(site: &Site, extra: &[&str]) -> Vec<Value> {
    let run = site.brackfs(&[&["snapshots", "--json"], extra].concat()).ok();
    serde_json::from_str::<Vec<Value>>(&run.stdout).unwrap()
}

fn seconds(snapshot: &Value) -> i64 {
    snapshot["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
}

fn cat(site: &Site, snapshot: &str) -> Run {
    site.brackfs(&["cat", &format!("{snapshot}:f")])
}

/// Backs up versions 1 to `count` of a file.
fn versions(count: usize) -> Site {
    let site = Site::new();
    site.init();
    for version in 1..=count {
        site.write("f", version.to_string());
        site.backup(&[]).ok();
    }
    site
}

#[test]
fn many_backups_in_a_row_are_not_dated_into_the_future() {
    let before = now();
    let site = versions(6);
    for list in [listed(&site, &[]), listed(&site, &["--key", "keys/owner"])] {
        assert_eq!(list.len(), 6);
        assert!(list.iter().all(|snapshot| (before..=now()).contains(&seconds(snapshot))), "{list:?}");
        for (at, snapshot) in list.iter().enumerate() {
            assert_eq!(cat(&site, snapshot["id"].as_str().unwrap()).ok().stdout, (at + 1).to_string());
        }
    }
    assert_eq!(cat(&site, "latest").ok().stdout, "6");
    // Each has a distinct name in the mount, even within a second.
    let mounted = site.mount(&[]);
    let names: Vec<_> = fs::read_dir(mounted.path().join("source")).unwrap().map(|name| name.unwrap().path()).collect();
    let mut found: Vec<_> =
        names.iter().filter(|name| !name.is_symlink()).map(|name| fs::read(name.join("f")).unwrap()).collect();
    found.sort();
    assert_eq!(found, ["1", "2", "3", "4", "5", "6"].map(|text| text.as_bytes().to_vec()));
    assert_eq!(fs::read_to_string(mounted.latest().join("f")).unwrap(), "6");
}

#[test]
fn a_snapshot_from_the_future_does_not_shift_later_ones() {
    let site = versions(1);
    let catalog = tree(&site.state()).into_keys().find(|path| path.ends_with("catalog.sqlite")).unwrap();
    // As if the clock had been years ahead.
    let catalog = Connection::open(site.state().join(catalog)).unwrap();
    assert_eq!(catalog.execute("UPDATE snapshots SET time = '20991120T145201Z'", []).unwrap(), 1);
    drop(catalog);
    let before = now();
    site.write("f", "2");
    let run = site.backup(&[]).ok();
    assert!(run.stderr.contains("the clock") && run.stderr.contains("2099-11-20T14:52:01Z"), "{run}");
    let list = listed(&site, &[]);
    assert!((before..=now()).contains(&seconds(&list[1])), "{list:?}");
    let (date, _) = list[1]["time"].as_str().unwrap().split_once('T').unwrap();
    assert_eq!(cat(&site, date).ok().stdout, "2");
    // It is reported once; then the last one is not ahead any more.
    let run = site.backup(&[]).ok();
    assert!(!run.stderr.contains("the clock"), "{run}");
}

#[test]
fn listed_times_select_snapshots() {
    let site = versions(2);
    let list = listed(&site, &[]);
    let time = list[1]["time"].as_str().unwrap();
    let text = site.brackfs(&["snapshots"]).ok().stdout;
    assert!(text.contains(time), "{text}");
    let (date, rest) = time.split_once('T').unwrap();
    let clock = rest.trim_end_matches('Z');
    let local =
        time.parse::<jiff::Timestamp>().unwrap().to_zoned_datetime(jiff::tz::TimeZone::fixed(jiff::tz::offset(2)));
    let local = local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    let words = [
        time.to_owned(),
        format!("source/{time}"),
        format!("{date} {clock}"),
        format!("{date}T{clock}"),
        format!("{date}_{clock}Z"),
        format!("source/{}", time.replace(['-', ':'], "")),
        local,
        format!("{date}T{}", &clock[..5]),
        date.to_owned(),
        date.replace('-', ""),
    ];
    for word in words {
        assert_eq!(cat(&site, &word).ok().stdout, "2", "{word}");
    }
    let nothing = cat(&site, "2001-01-01T00:00:00Z").code(1);
    assert!(nothing.stderr.contains("2001-01-01T00:00:00Z"), "{nothing}");
}
