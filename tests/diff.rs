//! `brackfs diff`: the differences between two snapshots.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use common::{AGED, NOBODY, Run, Site, set_mode, set_time};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use serde_json::{Value, json};

fn ready() -> Site {
    let site = Site::new();
    site.init();
    site
}

/// Writes a file of the source, last changed some days after [`AGED`].
fn write(site: &Site, path: &str, content: &str, days: i64) {
    set_time(&site.write(path, content), AGED + days * 86_400, 0);
}

/// Backs up, and returns the id of the snapshot. Directories have the same times in all snapshots.
#[track_caller]
fn backup(site: &Site) -> String {
    for path in common::tree(&site.source()).iter().filter(|(_, entry)| entry.kind == common::Kind::Directory) {
        set_time(&site.source().join(path.0), AGED, 0);
    }
    backup_as_is(site)
}

#[track_caller]
fn backup_as_is(site: &Site) -> String {
    let run = site.backup(&["--settle-max", "0"]).ok();
    run.json()["snapshot_id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn diff(site: &Site, arguments: &[&str]) -> Run {
    site.brackfs(&[&["diff"], arguments].concat()).ok()
}

/// The lines of differences, without those of the counts.
#[track_caller]
fn lines(site: &Site, arguments: &[&str]) -> Vec<String> {
    let run = diff(site, arguments);
    let mut lines: Vec<_> = run.stdout.lines().map(str::to_owned).collect();
    let counts = lines.split_off(lines.len().checked_sub(3).unwrap_or_else(|| panic!("no counts\n{run}")));
    for (line, start) in counts.iter().zip(["added: ", "removed: ", "changed: "]) {
        assert!(line.starts_with(start), "{run}");
    }
    lines
}

/// The differences as objects, and the counts.
#[track_caller]
fn objects(site: &Site, arguments: &[&str]) -> (Vec<Value>, Value) {
    let run = diff(site, &[arguments, &["--json"]].concat());
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}\n{run}"));
    let mut objects: Vec<_> = run.stdout.lines().map(parse).collect();
    let counts = objects.pop().unwrap_or_else(|| panic!("no counts\n{run}"));
    assert_eq!(counts["message_type"], "statistics", "{run}");
    assert!(objects.iter().all(|object| object["message_type"] == "change"), "{run}");
    (objects, counts)
}

/// Two snapshots with every kind of difference.
fn eventful() -> (Site, String, String) {
    let site = ready();
    let source = site.source();
    for path in ["same", "d/same", "grows", "touched", "becomes a directory", "gone/a", "gone/b/c", "d/gone", "mode"] {
        write(&site, path, path, 0);
    }
    write(&site, "becomes a file/x", "12345", 0);
    symlink("old", source.join("link")).unwrap();
    symlink("same", source.join("same link")).unwrap();
    mknodat(CWD, source.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let a = backup(&site);
    write(&site, "grows", "grows by 12 bytes", 0);
    write(&site, "touched", "TOUCHED", 0);
    fs::remove_file(source.join("becomes a directory")).unwrap();
    write(&site, "becomes a directory/y", "1", 0);
    fs::remove_dir_all(source.join("becomes a file")).unwrap();
    write(&site, "becomes a file", "12", 0);
    fs::remove_dir_all(source.join("gone")).unwrap();
    fs::remove_file(source.join("d/gone")).unwrap();
    write(&site, "new/e/f", "1234", 0);
    write(&site, "d/new", "1234", 0);
    fs::remove_file(source.join("link")).unwrap();
    symlink("new", source.join("link")).unwrap();
    fs::remove_file(source.join("pipe")).unwrap();
    set_mode(&source.join("mode"), 0o600);
    let b = backup(&site);
    (site, a, b)
}

#[test]
fn every_kind_of_difference_is_listed_in_order() {
    let (site, a, b) = eventful();
    let expected = [
        "T becomes a directory/",
        "+ becomes a directory/y",
        "T becomes a file",
        "- becomes a file/x",
        "- d/gone",
        "+ d/new",
        "- gone/",
        "- gone/a",
        "- gone/b/",
        "- gone/b/c",
        "M grows",
        "M link",
        "U mode",
        "+ new/",
        "+ new/e/",
        "+ new/e/f",
        "- pipe",
        "M touched",
    ];
    let found = lines(&site, &[&a, &b]);
    assert_eq!(found, expected);
    let turned = |line: &String| match line.split_at(1) {
        ("+", path) => format!("-{path}"),
        ("-", path) => format!("+{path}"),
        (letter, path) => format!("{letter}{path}"),
    };
    let mut back: Vec<_> = found.iter().map(turned).collect();
    back[0] = "T becomes a directory".into();
    back[2] = "T becomes a file/".into();
    assert_eq!(lines(&site, &[&b, &a]), back);
    let without: Vec<_> = expected.into_iter().filter(|line| !line.starts_with('U')).collect();
    assert_eq!(lines(&site, &["--content-only", &a, &b]), without);
    for same in [&a, &b] {
        assert_eq!(
            diff(&site, &[same, same]).stdout,
            "added: 0 files, 0 directories, 0 other entries, 0 B\n\
             removed: 0 files, 0 directories, 0 other entries, 0 B\n\
             changed: 0 files, 0 other entries; only the metadata of 0 entries\n"
        );
    }
}

#[test]
fn differences_are_counted() {
    let (site, a, b) = eventful();
    // The sizes of the files in order of their names, and the growth of a file.
    let (before, after) = (19 + 5 + 6 + 8 + 6, 1 + 2 + 4 + 4 + 12);
    let counts = |files: u64, directories: u64, others: u64, bytes: u64| json!({ "files": files, "directories": directories, "others": others, "bytes": bytes });
    let (_, found) = objects(&site, &[&a, &b]);
    let expected = json!({
        "message_type": "statistics",
        "before_id": a,
        "after_id": b,
        "added": counts(4, 3, 0, after),
        "removed": counts(5, 3, 1, before),
        "changed_files": 2,
        "changed_others": 1,
        "metadata_changed": 1,
        "problems": 0,
    });
    assert_eq!(found, expected);
    let (_, back) = objects(&site, &[&b, &a]);
    assert_eq!((&back["added"], &back["removed"]), (&found["removed"], &found["added"]));
    let shown = diff(&site, &[&a, &b]).stdout;
    let last = shown.lines().rev().take(3).collect::<Vec<_>>();
    let expected = [
        "changed: 2 files, 1 other entry; only the metadata of 1 entry".to_owned(),
        format!("removed: 5 files, 3 directories, 1 other entry, {before} B"),
        format!("added: 4 files, 3 directories, 0 other entries, {after} B"),
    ];
    assert_eq!(last, expected);
}

#[test]
fn a_path_restricts_the_comparison() {
    let (site, a, b) = eventful();
    assert_eq!(lines(&site, &[&a, &b, "d"]), ["- d/gone", "+ d/new"]);
    assert_eq!(lines(&site, &[&a, &b, "/d/./new/"]), ["+ d/new"]);
    assert_eq!(lines(&site, &[&a, &b, "grows"]), ["M grows"]);
    assert_eq!(lines(&site, &[&a, &b, "same"]), [""; 0]);
    // In one of them only.
    assert_eq!(lines(&site, &[&a, &b, "gone/b"]), ["- gone/b/", "- gone/b/c"]);
    assert_eq!(lines(&site, &[&b, &a, "gone/b"]), ["+ gone/b/", "+ gone/b/c"]);
    assert_eq!(lines(&site, &[&a, &b, "becomes a directory/y"]), ["+ becomes a directory/y"]);
    // Paths after the names of snapshots begin the paths of the output.
    assert_eq!(lines(&site, &[&format!("{a}:gone"), &format!("{b}:new")]), ["- a", "- b/", "- b/c", "+ e/", "+ e/f"]);
    assert_eq!(lines(&site, &[&format!("{a}:d/same"), &format!("{a}:same")]), ["M same"]);
    let run = site.brackfs(&["diff", &a, &b, "nowhere/at/all"]).code(1);
    assert!(run.stderr.contains("neither snapshot has nowhere/at/all"), "{run}");
    let run = site.brackfs(&["diff", &format!("{a}:new"), &b, "e"]).code(1);
    assert!(run.stderr.contains("the snapshot has no /new"), "{run}");
    site.brackfs(&["diff", &a]).code(2);
    site.brackfs(&["diff", "", &b]).code(2);
    site.brackfs(&["diff", "2001-01", &b]).code(1);
}

#[test]
fn changed_metadata_is_named() {
    let site = Site::on_tmpfs();
    site.init();
    let source = site.source();
    let names = ["group", "links", "mode", "mtime", "owner", "same", "xattr"];
    names.iter().for_each(|name| write(&site, name, name, 0));
    write(&site, "d/f", "f", 0);
    let a = backup(&site);
    set_mode(&source.join("mode"), 0o4711);
    set_time(&source.join("mtime"), AGED, 1);
    rustix::fs::chown(source.join("owner"), Some(rustix::fs::Uid::from_raw(NOBODY)), None).unwrap();
    rustix::fs::chown(source.join("group"), None, Some(rustix::fs::Gid::from_raw(NOBODY))).unwrap();
    lsetxattr(source.join("xattr"), "user.a", b"1", XattrFlags::empty()).unwrap();
    fs::hard_link(source.join("links"), site.path().join("outside")).unwrap();
    set_mode(&source.join("d"), 0o700);
    let b = backup(&site);
    let expected = [
        "U d/  (mode)",
        "U group  (group)",
        "U links  (links)",
        "U mode  (mode)",
        "U mtime  (mtime)",
        "U owner  (owner)",
        "U xattr  (xattrs)",
    ];
    assert_eq!(lines(&site, &["-v", &a, &b]), expected);
    assert_eq!(lines(&site, &["-v", &b, &a]), expected);
    assert_eq!(lines(&site, &["--content-only", &a, &b]), [""; 0]);
    lsetxattr(source.join("xattr"), "user.a", b"2", XattrFlags::empty()).unwrap();
    write(&site, "mode", "another size", 3);
    set_mode(&source.join("mode"), 0o600);
    let c = backup(&site);
    assert_eq!(lines(&site, &["-v", &b, &c]), ["M mode  (size, content, mode, mtime)", "U xattr  (xattrs)"]);
    // The root's own metadata.
    set_mode(&source, 0o700);
    let d = backup(&site);
    assert_eq!(lines(&site, &["-v", &c, &d]), ["U /  (mode)"]);
    let (objects, _) = objects(&site, &[&c, &d]);
    assert_eq!((&objects[0]["path"], &objects[0]["fields"]), (&"".into(), &json!(["mode"])));
    assert_eq!((&objects[0]["before"]["mode"], &objects[0]["after"]["mode"]), (&0o755.into(), &0o700.into()));
}

#[test]
fn the_path_of_two_compared_files_is_their_name() {
    let site = ready();
    write(&site, "d/a", "1", 1);
    let before = backup(&site) + ":d/a";
    write(&site, "d/a", "22", 2);
    let after = backup(&site) + ":d/a";
    assert_eq!(lines(&site, &[&before, &after]), ["M a"]);
    let (objects, _) = objects(&site, &[&before, &after]);
    assert_eq!((objects.len(), &objects[0]["path"]), (1, &"a".into()));
}

#[test]
fn json_has_both_versions_and_names_of_any_bytes() {
    let site = ready();
    write(&site, "f", "one", 0);
    let a = backup(&site);
    write(&site, "f", "three", 1);
    fs::write(site.source().join(OsStr::from_bytes(b"\xff")), "x").unwrap();
    let b = backup(&site);
    let (objects, _) = objects(&site, &[&a, &b]);
    assert_eq!(objects.len(), 2, "{objects:?}");
    assert_eq!((&objects[0]["path"], &objects[0]["modifier"]), (&"f".into(), &"M".into()));
    assert_eq!(objects[0]["fields"], json!(["size", "content", "mtime"]));
    assert_eq!((&objects[0]["before"]["size"], &objects[0]["after"]["size"]), (&3.into(), &5.into()));
    assert_eq!((&objects[0]["before"]["type"], &objects[0]["before"]["path"]), (&"file".into(), &Value::Null));
    assert_eq!((&objects[1]["path_hex"], &objects[1]["modifier"]), (&"ff".into(), &"+".into()));
    assert_eq!((&objects[1]["before"], &objects[1]["fields"]), (&Value::Null, &json!([])));
}

#[test]
fn hard_links_and_the_way_content_is_stored_make_no_difference() {
    let site = ready();
    let content = common::noise("content", 600_000);
    for name in ["b", "c", "z"] {
        set_time(&site.write(name, &content), AGED, 0);
    }
    fs::hard_link(site.source().join("b"), site.source().join("b2")).unwrap();
    fs::hard_link(site.source().join("c"), site.source().join("c2")).unwrap();
    let a = backup(&site);
    // Other ids of links, chunks of other lengths, other packs, and another source.
    write(&site, "a", "first", 0);
    fs::hard_link(site.source().join("a"), site.source().join("a2")).unwrap();
    fs::remove_file(site.source().join("c2")).unwrap();
    fs::remove_file(site.source().join("b2")).unwrap();
    fs::hard_link(site.source().join("c"), site.source().join("c2")).unwrap();
    fs::hard_link(site.source().join("b"), site.source().join("b2")).unwrap();
    set_time(&site.source(), AGED, 0);
    let other = ["--source", "other", "--chunk-size", "16KiB", "--reread", "--settle-max", "0"];
    site.backup(&other).ok();
    assert_eq!(lines(&site, &[&a, "other/latest"]), ["+ a", "+ a2"]);
    fs::remove_file(site.source().join("c2")).unwrap();
    let c = backup(&site);
    assert_eq!(lines(&site, &["-v", "other/latest", &c]), ["U c  (links)", "- c2"]);
}

#[test]
fn holes_and_devices_are_content() {
    let site = Site::on_tmpfs();
    site.init();
    let source = site.source();
    let length = 4 << 20;
    let sparse = |holes: bool| {
        let file = File::create(source.join("sparse")).unwrap();
        file.set_len(length).unwrap();
        if !holes {
            file.write_all_at(&vec![0; length as usize], 0).unwrap();
        }
        set_time(&source.join("sparse"), AGED, 0);
    };
    let device = |name: &str, minor: u32| {
        let path = source.join(name);
        let _ = fs::remove_file(&path);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, minor)).unwrap();
        set_time(&path, AGED, 0);
    };
    sparse(true);
    device("device", 3);
    device("same device", 3);
    let a = backup(&site);
    sparse(false);
    device("device", 5);
    device("same device", 3);
    let b = backup(&site);
    assert_eq!(lines(&site, &["-v", &a, &b]), ["M device  (device)", "M sparse  (content)"]);
}

#[test]
fn a_change_of_entries_changes_the_time_of_their_directory() {
    let site = ready();
    write(&site, "d/a", "a", 0);
    let a = backup(&site);
    write(&site, "d/b", "b", 0);
    set_time(&site.source(), AGED, 0);
    let b = backup_as_is(&site);
    assert_eq!(lines(&site, &["-v", &a, &b]), ["U d/  (mtime)", "+ d/b"]);
    assert_eq!(lines(&site, &["--content-only", &a, &b]), ["+ d/b"]);
}

#[test]
fn deep_trees_and_large_directories_are_compared() {
    let site = ready();
    let deep = "d/".repeat(40);
    write(&site, &format!("{deep}f"), "one", 0);
    (0..6000).for_each(|number| write(&site, &format!("large/{number:05}"), "x", 0));
    for level in 0..40 {
        write(&site, &format!("{}z", "d/".repeat(level)), "same", 0);
    }
    let a = backup(&site);
    write(&site, &format!("{deep}f"), "two", 0);
    fs::remove_file(site.source().join("large/03000")).unwrap();
    write(&site, "large/01500a", "x", 0);
    write(&site, "large/05999", "y", 0);
    // Levels far above are read again on the way back.
    for level in [0, 20, 39] {
        write(&site, &format!("{}z", "d/".repeat(level)), "changed", 0);
    }
    let b = backup(&site);
    let z = |level: usize| format!("M {}z", "d/".repeat(level));
    let large = ["+ large/01500a", "- large/03000", "M large/05999"].map(str::to_owned);
    let mut expected = vec![format!("M {deep}f"), z(39), z(20)];
    expected.extend(large);
    expected.push(z(0));
    assert_eq!(lines(&site, &[&a, &b]), expected);
}

#[test]
fn unreadable_directories_are_reported_and_the_rest_is_compared() {
    let site = ready();
    write(&site, "a/f", "one", 0);
    write(&site, "z", "one", 0);
    let a = backup(&site);
    let before = packs(&site);
    write(&site, "a/f", "three", 0);
    backup(&site);
    // They have the node of a/; that of the root is written again by the next run.
    let lost: Vec<_> = packs(&site).into_iter().filter(|pack| !before.contains(pack)).collect();
    write(&site, "z", "three", 0);
    let b = backup(&site);
    lost.iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let run = site.brackfs(&["diff", &a, &b]).code(1);
    assert!(run.stderr.contains(&format!("{}:a/", &b[..8])), "{run}");
    assert!(run.stdout.starts_with("M z\nadded: 0 files"), "{run}");
    let run = site.brackfs(&["diff", "--json", &a, &b]).code(1);
    let last: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["problems"], 1, "{run}");
    let error: Value = serde_json::from_str(run.stderr.lines().next().unwrap()).unwrap();
    assert_eq!(error["message_type"], "error", "{run}");
}

fn packs(site: &Site) -> Vec<std::path::PathBuf> {
    let below = |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    below(&site.repo().join("packs")).iter().flat_map(|folder| below(folder)).collect()
}
