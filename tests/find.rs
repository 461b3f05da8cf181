//! `brackfs find`: names in all snapshots, with one result for each version.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{AGED, Run, Site, set_time};
use serde_json::Value;

fn ready() -> Site {
    let site = Site::new();
    site.init();
    site
}

fn write(site: &Site, path: &str, content: &str, days: i64) {
    set_time(&site.write(path, content), AGED + days * 86_400, 0);
}

#[track_caller]
fn backup(site: &Site) {
    site.backup(&["--settle-max", "0"]).ok();
}

/// Ids of all snapshots as at the start of lines, oldest first.
fn ids(site: &Site) -> Vec<String> {
    let run = site.brackfs(&["snapshots", "--json"]).ok();
    let list: Value = serde_json::from_str(&run.stdout).unwrap();
    list.as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap()[..8].to_owned()).collect()
}

#[track_caller]
fn find(site: &Site, arguments: &[&str]) -> Run {
    site.brackfs(&[&["find"], arguments].concat()).ok()
}

/// The results, with the number of the snapshot (0: the oldest) instead of its id.
#[track_caller]
fn found(site: &Site, arguments: &[&str]) -> Vec<String> {
    let ids = ids(site);
    let run = find(site, arguments);
    let number = |line: &str| {
        let (id, path) = line.split_once(':').unwrap_or_else(|| panic!("no SNAP:PATH\n{run}"));
        format!("{}:{path}", ids.iter().position(|known| known == id).unwrap_or_else(|| panic!("{id}\n{run}")))
    };
    run.stdout.lines().map(number).collect()
}

/// A source with a few files that appear, change and disappear in three snapshots.
fn eventful() -> Site {
    let site = ready();
    write(&site, "stays.txt", "stays", 0);
    write(&site, "d/changes.txt", "one", 1);
    write(&site, "d/e/stays.txt", "stays", 0);
    write(&site, "gone/long.txt", "gone", 2);
    write(&site, "other.o", "object", 0);
    backup(&site);
    write(&site, "d/changes.txt", "second", 3);
    fs::remove_dir_all(site.source().join("gone")).unwrap();
    backup(&site);
    write(&site, "new.txt", "new", 4);
    symlink("new.txt", site.source().join("link.txt")).unwrap();
    backup(&site);
    site
}

#[test]
fn case_matters_unless_it_is_ignored() {
    let site = ready();
    write(&site, "Photos/IMG.JPG", "one", 0);
    write(&site, "photos.jpg", "two", 0);
    backup(&site);
    assert_eq!(found(&site, &["*.jpg"]), ["0:photos.jpg"]);
    assert_eq!(found(&site, &["--ignore-case", "*.jpg"]), ["0:Photos/IMG.JPG", "0:photos.jpg"]);
    assert_eq!(found(&site, &["-i", "/PHOTOS/**"]), ["0:Photos/IMG.JPG"]);
}

#[test]
fn unchanged_files_are_listed_only_in_the_newest_snapshot() {
    let site = eventful();
    let expected = [
        "2:d/changes.txt",
        "2:d/e/stays.txt",
        "2:link.txt",
        "2:new.txt",
        "2:stays.txt",
        "0:d/changes.txt",
        "0:gone/long.txt",
    ];
    assert_eq!(found(&site, &["*.txt"]), expected);
    assert_eq!(found(&site, &["nothing*"]), [""; 0]);
}

#[test]
fn lines_are_arguments_for_cat() {
    let site = eventful();
    let run = find(&site, &["long.txt"]);
    assert_eq!(site.brackfs(&["cat", run.stdout.trim_end()]).ok().stdout, "gone");
}

#[test]
fn patterns_work_as_in_gitignore() {
    let site = eventful();
    assert_eq!(found(&site, &["/*.txt"]), ["2:link.txt", "2:new.txt", "2:stays.txt"]);
    assert_eq!(found(&site, &["d/**/stays.txt"]), ["2:d/e/stays.txt"]);
    assert_eq!(found(&site, &["e/stays.txt"]), [""; 0], "it begins at the root");
    assert_eq!(found(&site, &["e/"]), ["2:d/e/"], "a directory without its entries");
    assert_eq!(found(&site, &["*.o", "new*"]), ["2:new.txt", "2:other.o"]);
    assert_eq!(found(&site, &["/{new,link}.txt"]), ["2:link.txt", "2:new.txt"]);
    let run = site.brackfs(&["find", "[a"]).code(2);
    assert!(run.stderr.contains("the pattern \"[a\" is not valid"), "{run}");
}

#[test]
fn one_snapshot_or_one_source_can_be_searched() {
    let site = eventful();
    let oldest = ids(&site).remove(0);
    assert_eq!(found(&site, &["d/*.txt", "--snapshot", &oldest]), ["0:d/changes.txt"]);
    assert_eq!(found(&site, &["gone", "--snapshot", "source/latest"]), [""; 0]);
    site.brackfs(&["backup", "source/d", "--source", "other"]).ok();
    assert_eq!(found(&site, &["changes.txt", "--source", "other"]), ["3:changes.txt"]);
    assert_eq!(found(&site, &["changes.txt"]), ["3:changes.txt", "2:d/changes.txt", "0:d/changes.txt"]);
    site.brackfs(&["find", "x", "--snapshot", "latest:d"]).code(2);
    site.brackfs(&["find", "x", "--snapshot", "latest", "--source", "other"]).code(2);
    site.brackfs(&["find", "x", "--source", "unheard"]).code(1);
    site.brackfs(&["find"]).code(2);
}

#[test]
fn kind_time_and_size_restrict_results() {
    let site = eventful();
    assert_eq!(found(&site, &["*", "--type", "d"]), ["2:d/", "2:d/e/", "0:gone/"]);
    assert_eq!(found(&site, &["*", "--type", "l"]), ["2:link.txt"]);
    assert_eq!(
        found(&site, &["*.txt", "--type", "f", "--newer", "2020-01-04", "--older", "2020-01-05"]),
        ["2:d/changes.txt"]
    );
    assert_eq!(found(&site, &["*.txt", "--older", "2020-01-01T00:00:01"]), ["2:d/e/stays.txt", "2:stays.txt"]);
    assert_eq!(found(&site, &["*", "--larger", "5"]), ["2:d/changes.txt", "2:other.o"]);
    assert_eq!(found(&site, &["*", "--smaller", "4"]), ["2:new.txt", "0:d/changes.txt"]);
    site.brackfs(&["find", "x", "--newer", "yesterday"]).code(2);
}

#[test]
fn details_and_json_agree_with_ls() {
    let site = eventful();
    let run = find(&site, &["-l", "/link.txt"]);
    assert!(run.stdout.starts_with("lrwxrwxrwx  1 ") && run.stdout.ends_with(":link.txt -> new.txt\n"), "{run}");
    let run = find(&site, &["--json", "new.txt"]);
    let object: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&object["message_type"], &object["source"]), (&"found".into(), &"source".into()));
    assert_eq!((&object["path"], &object["size"]), (&"new.txt".into(), &3.into()));
    assert!(object["snapshot"].as_str().unwrap().starts_with(&ids(&site)[2]), "{object}");
    assert!(object["time"].as_str().unwrap().ends_with('Z'), "{object}");
}

#[test]
fn unreadable_directories_are_reported_and_the_rest_is_searched() {
    let site = eventful();
    let snapshots = fs::read_dir(site.repo().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let mut names: Vec<_> = fs::read_dir(snapshots).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    fs::write(&names[1], "no snapshot").unwrap();
    // With -v, its name is whole.
    let run = site.brackfs(&["find", "changes.txt", "-v"]).code(1);
    assert!(run.stderr.contains(names[1].file_name().unwrap().to_str().unwrap()), "{run}");
    assert_eq!(run.stdout.lines().count(), 2, "{run}");
}

#[test]
fn snapshots_of_an_unchanged_tree_are_searched_by_their_roots() {
    let site = ready();
    for number in 0..300 {
        write(&site, &format!("d{}/f{number}", number % 7), "small", 0);
    }
    write(&site, "changes", "0", 0);
    backup(&site);
    for round in 1..6 {
        write(&site, "changes", &round.to_string(), round);
        backup(&site);
    }
    // d0 to d6 are unchanged, so their content is found only in the newest snapshot.
    assert_eq!(found(&site, &["f1", "changes"]).len(), 7);
    assert_eq!(found(&site, &["f*"]).len(), 300);
}

#[test]
fn a_number_sign_at_the_start_is_part_of_the_name() {
    let site = ready();
    site.write("#recycle/f", "x");
    site.write("kept", "x");
    backup(&site);
    assert_eq!(found(&site, &["#rec*"]), ["0:#recycle/"]);
    site.brackfs(&["find", ""]).code(2);
    site.backup(&["--exclude", "#recycle"]).ok();
    assert_eq!(site.brackfs(&["ls", "latest"]).ok().stdout, "kept\n");
}
