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

/// Two snapshots of the source `source`, a minute and a second apart, whose files say which they are.
fn dated() -> Site {
    let site = Site::new();
    site.init();
    for (time, content) in [("2026-01-02T03:04:05Z", "1"), ("2026-01-02T03:05:06Z", "2")] {
        site.write("f", content);
        site.write("d/g", content);
        site.backup(&["--time", time]).ok();
    }
    site
}

/// Runs a command in a time zone.
fn in_zone(site: &Site, zone: &str, arguments: &[&str]) -> Run {
    let mut command = site.command(arguments);
    command.env("TZ", zone);
    common::run(command)
}

#[test]
fn snapshots_are_listed_in_local_time() {
    let site = dated();
    let times = |zone: &str| -> Vec<String> {
        let listed = in_zone(&site, zone, &["snapshots"]).ok().stdout;
        listed.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
    };
    assert_eq!(times("UTC"), ["2026-01-02T03:04:05Z", "2026-01-02T03:05:06Z"]);
    assert_eq!(times("CET-1"), ["2026-01-02T04:04:05+01:00", "2026-01-02T04:05:06+01:00"]);
    assert_eq!(times("EST5"), ["2026-01-01T22:04:05-05:00", "2026-01-01T22:05:06-05:00"]);
    let json = in_zone(&site, "CET-1", &["snapshots", "--json"]).ok().stdout;
    assert!(json.contains("2026-01-02T03:04:05Z"), "{json}");
    for command in [&["ls", "-l", "latest"][..], &["versions", "f"], &["stats"], &["forget", "--keep-last", "1", "-n"]]
    {
        let run = in_zone(&site, "CET-1", command).ok();
        assert!(run.stdout.contains("+01:00"), "{run}");
    }
}

#[test]
fn every_command_accepts_listed_times() {
    let site = dated();
    let ids: Vec<_> = listed(&site, &[]).iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect();
    let words = [
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05",
        "2026-01-02T03:04",
        "2026-01-02 03:04Z",
        "2026-01-02T04:04:05+01:00",
        "2026-01-02T04:04+01:00",
        "2026-01-01T22:04:05-05:00",
        "20260102T030405Z",
    ];
    for (at, word) in words.into_iter().flat_map(|word| [word.to_owned(), format!("source/{word}")]).enumerate() {
        // Also where it is another hour.
        let run = |arguments: &[&str]| in_zone(&site, "CET-1", arguments).ok();
        let below = format!("{word}:d");
        assert_eq!(run(&["ls", &word]).stdout, "d/\nf\n", "{word}");
        assert_eq!(run(&["ls", &below]).stdout, "g\n", "{word}");
        assert_eq!(run(&["cat", &format!("{below}/g")]).stdout, "1", "{word}");
        let to = format!("out{at}");
        run(&["restore", &word, "--to", &to]);
        assert_eq!(fs::read_to_string(site.path().join(&to).join("f")).unwrap(), "1", "{word}");
        run(&["restore", &below, "--to", &format!("{to}/below")]);
        assert_eq!(fs::read_to_string(site.path().join(&to).join("below/g")).unwrap(), "1", "{word}");
        let id = |run: Run| {
            let first: Value = serde_json::from_str(run.stdout.lines().next().unwrap()).unwrap();
            first["id"].as_str().unwrap().to_owned()
        };
        for command in
            [&["hold", &word, "--json"][..], &["release", &word, "--json"], &["forget", &word, "-n", "--json"]]
        {
            assert_eq!(id(run(command)), ids[0], "{command:?}");
        }
        let found = run(&["find", "f", "--snapshot", &word]).stdout;
        assert!(found.starts_with(&ids[0][..8]), "{word}: {found}");
        let changes = run(&["diff", &word, "latest", "--json"]).stdout;
        assert!(changes.contains(&format!("\"before_id\":\"{}\"", ids[0])), "{word}: {changes}");
        let dumped = run(&["dump", &format!("{word}:f")]).stdout;
        // The content follows the header, which fills a block.
        assert!(dumped.contains("\0\x31\0"), "{word}");
        if at < 4 {
            let mounted = site.mount(&[&word]);
            assert_eq!(fs::read_to_string(mounted.path().join("f")).unwrap(), "1", "{word}");
        }
    }
    // Times without an offset are UTC, and that is said where it makes a difference.
    for (zone, word, is_said) in [
        ("CET-1", "2026-01-02T03:04", true),
        ("CET-1", "2026-01-02", true),
        ("CET-1", "20260102T03", true),
        ("CET-1", "20260102", true),
        ("CET-1", "20260102T04+01", false),
        ("UTC", "2026-01-02T03:04", false),
        ("CET-1", "2026-01-02T03:04Z", false),
        ("CET-1", "2026-01-02T04:04+01:00", false),
        ("CET-1", "latest", false),
        ("CET-1", &ids[0], false),
    ] {
        let run = in_zone(&site, zone, &["ls", word]).ok();
        assert_eq!(run.stderr.contains("is UTC"), is_said, "{zone} {word}: {run}");
        assert_eq!(run.stderr.is_empty(), !is_said, "{run}");
    }
}

#[test]
fn of_several_sources_the_latest_is_named() {
    let site = dated();
    assert_eq!(site.brackfs(&["ls", "latest"]).ok().stderr, "");
    site.backup(&["--source", "other"]).ok();
    let id = &listed(&site, &[])[2]["id"].as_str().unwrap()[..8].to_owned();
    for command in [
        &["ls", "latest"][..],
        &["cat", "latest:f"],
        &["restore", "latest", "--to", "out"],
        &["find", "f", "--snapshot", "latest"],
        &["diff", "source/latest", "latest"],
    ] {
        let run = site.brackfs(command).ok();
        assert!(run.stderr.contains(&format!("latest is snapshot {id} of other")), "{run}");
        assert!(run.stderr.contains("other sources") && run.stderr.contains("other/latest"), "{run}");
    }
    assert_eq!(site.brackfs(&["ls", "-q", "latest"]).ok().stderr, "");
    assert_eq!(site.brackfs(&["ls", "source/latest"]).ok().stderr, "");
    // So is the one of several that a time means.
    site.backup(&["--source", "other", "--time", "2026-01-02T05:06:07Z"]).ok();
    let id = &listed(&site, &[])[3]["id"].as_str().unwrap()[..8].to_owned();
    let run = site.brackfs(&["ls", "2026-01-02"]).ok();
    assert!(run.stderr.contains(&format!("2026-01-02 is snapshot {id} of other")), "{run}");
    assert!(run.stderr.contains("other sources have snapshots of this time; use other/2026-01-02"), "{run}");
    for one in ["other/2026-01-02", "2026-01-02T05", "2026-01-02T03", id] {
        assert_eq!(site.brackfs(&["ls", one]).ok().stderr, "", "{one}");
    }
}
