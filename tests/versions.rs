//! `brackfs versions`: the versions of a path, their times, and the times without it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use common::{AGED, Run, Site, set_mode, set_time};
use serde_json::Value;

/// A site with an empty repository.
fn ready() -> Site {
    let site = Site::new();
    site.init();
    site
}

/// Writes a file of the source, last changed some days after [`AGED`].
fn write(site: &Site, path: &str, content: &str, days: i64) {
    set_time(&site.write(path, content), AGED + days * 86_400, 0);
}

#[track_caller]
fn backup(site: &Site) {
    site.backup(&["--settle-max", "0"]).ok();
}

/// The objects that `--json` prints.
#[track_caller]
fn objects(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}\n{run}"))).collect()
}

/// Kind of message, size and number of snapshots of each version.
#[track_caller]
fn versions(site: &Site, arguments: &[&str]) -> Vec<(String, u64, u64)> {
    let run = site.brackfs(&[&["versions", "--json"], arguments].concat()).ok();
    let of = |object: &Value| {
        let kind = object["message_type"].as_str().unwrap().to_owned();
        (kind, object["size"].as_u64().unwrap_or_default(), object["snapshots"].as_u64().unwrap())
    };
    objects(&run).iter().map(of).collect()
}

fn version(size: u64, snapshots: u64) -> (String, u64, u64) {
    ("version".into(), size, snapshots)
}

fn absence(snapshots: u64) -> (String, u64, u64) {
    ("absence".into(), 0, snapshots)
}

/// Ids of all snapshots, oldest first.
fn ids(site: &Site) -> Vec<String> {
    let run = site.brackfs(&["snapshots", "--json"]).ok();
    let list: Value = serde_json::from_str(&run.stdout).unwrap();
    list.as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
}

/// Seven snapshots: two with one version, one with the next, two without, one with another, and one without.
fn eventful() -> Site {
    let site = ready();
    write(&site, "other", "stays", 0);
    backup(&site);
    write(&site, "d/notes", "one", 1);
    backup(&site);
    backup(&site);
    write(&site, "d/notes", "second", 2);
    backup(&site);
    fs::remove_file(site.source().join("d/notes")).unwrap();
    backup(&site);
    backup(&site);
    write(&site, "d/notes", "the third", 3);
    backup(&site);
    fs::remove_file(site.source().join("d/notes")).unwrap();
    backup(&site);
    site
}

#[test]
fn versions_are_listed_newest_first_with_their_snapshots() {
    let site = eventful();
    let expected = [absence(1), version(9, 1), absence(2), version(6, 1), version(3, 2)];
    assert_eq!(versions(&site, &["d/notes"]), expected);
    let objects = objects(&site.brackfs(&["versions", "d/notes", "--json"]).ok());
    let ids = ids(&site);
    for (object, (first, last)) in objects.iter().zip([(7, 7), (6, 6), (4, 5), (3, 3), (1, 2)]) {
        assert_eq!((&object["first_id"], &object["last_id"]), (&ids[first].clone().into(), &ids[last].clone().into()));
        assert!(object["first_time"].as_str() <= object["last_time"].as_str(), "{object}");
        assert_eq!((&object["source"], &object["path"]), (&"source".into(), &"d/notes".into()));
    }
    assert_eq!(objects[4]["digest"], blake3::hash(b"one").to_string());
    assert_eq!(objects[4]["mtime"], "2020-01-02T00:00:00Z");
}

#[test]
fn lines_name_a_snapshot_of_each_version_and_the_time_of_removal() {
    let site = eventful();
    let run = site.brackfs(&["versions", "d/notes"]).ok();
    let ids = ids(&site);
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{run}");
    for (line, at) in lines.iter().zip([7, 6, 5, 3, 2]) {
        assert!(line.starts_with(&ids[at][..8]), "{line}");
    }
    assert!(lines[0].contains("missing") && lines[0].ends_with("1 snapshot"), "{}", lines[0]);
    assert!(lines[2].contains("missing") && lines[2].contains("2 snapshots since "), "{}", lines[2]);
    assert!(lines[4].contains("3 B  2020-01-02T00:00:00Z") && lines[4].contains(&ids[1][..8]), "{}", lines[4]);
    let selected = format!("{}:d/notes", &lines[3][..8]);
    assert_eq!(site.brackfs(&["cat", &selected]).ok().stdout, "second");
}

#[test]
fn a_local_path_selects_an_entry_of_a_backed_up_directory() {
    let site = eventful();
    let inside = versions(&site, &["d/notes"]);
    let absolute = site.source().canonicalize().unwrap().join("d/notes");
    assert_eq!(versions(&site, &[absolute.to_str().unwrap()]), inside);
    assert_eq!(versions(&site, &["/d/notes"]), inside, "as in ls, a slash at the start makes no difference");
}

#[test]
fn a_local_path_selects_an_entry_of_backed_up_files_and_paths() {
    let site = ready();
    write(&site, "one/file", "of one", 0);
    write(&site, "two/file", "of two, longer", 0);
    let [one, two] = ["one/file", "two"].map(|path| site.source().canonicalize().unwrap().join(path));
    let [one, two] = [one.to_str().unwrap(), two.to_str().unwrap()];
    site.brackfs(&["backup", one, "--source", "single"]).ok();
    site.brackfs(&["backup", one, two, "--source", "both"]).ok();
    assert_eq!(versions(&site, &[one]), [version(6, 1), version(6, 1)]);
    assert_eq!(versions(&site, &[one, "--source", "single"]), [version(6, 1)]);
    assert_eq!(versions(&site, &[&format!("{two}/file")]), [version(14, 1)]);
}

#[test]
fn sources_are_listed_separately_and_one_can_be_selected() {
    let site = ready();
    write(&site, "file", "here", 0);
    backup(&site);
    site.brackfs(&["backup", "source", "--source", "other"]).ok();
    write(&site, "file", "changed", 1);
    backup(&site);
    assert_eq!(versions(&site, &["file"]), [version(7, 1), version(4, 1), version(4, 1)]);
    assert_eq!(versions(&site, &["file", "--source", "other"]), [version(4, 1)]);
    let run = site.brackfs(&["versions", "file", "--source", "unheard"]).code(1);
    assert!(run.stderr.contains("no snapshot of a source called unheard"), "{run}");
}

#[test]
fn a_path_in_no_snapshot_is_an_error() {
    let site = eventful();
    for path in ["nothing", "d/notes/below", "other/below"] {
        let run = site.brackfs(&["versions", path]).code(1);
        assert!(run.stdout.is_empty() && run.stderr.contains(&format!("no snapshot has {path}")), "{run}");
    }
}

#[test]
fn a_new_time_content_or_kind_makes_a_version_and_a_new_mode_does_not() {
    let site = ready();
    write(&site, "file", "same", 0);
    backup(&site);
    set_mode(&site.source().join("file"), 0o600);
    backup(&site);
    assert_eq!(versions(&site, &["file"]), [version(4, 2)]);
    set_time(&site.source().join("file"), AGED, 1);
    backup(&site);
    write(&site, "file", "emas", 0);
    backup(&site);
    fs::remove_file(site.source().join("file")).unwrap();
    symlink("emas", site.source().join("file")).unwrap();
    backup(&site);
    assert_eq!(versions(&site, &["file"]), [version(4, 1), version(4, 1), version(4, 1), version(4, 2)]);
    let objects = objects(&site.brackfs(&["versions", "file", "--json"]).ok());
    assert_eq!((&objects[0]["type"], &objects[0]["target"]), (&"symlink".into(), &"emas".into()));
    assert_eq!(objects[0]["digest"], Value::Null);
}

#[test]
fn a_change_below_a_directory_makes_a_version_of_it() {
    let site = ready();
    write(&site, "d/e/f", "deep", 0);
    write(&site, "beside/f", "beside", 0);
    backup(&site);
    write(&site, "beside/f", "changed", 1);
    backup(&site);
    assert_eq!(versions(&site, &["d"]), [version(0, 2)]);
    write(&site, "d/e/f", "deeper", 1);
    backup(&site);
    assert_eq!(versions(&site, &["d"]), [version(0, 1), version(0, 2)]);
}

#[test]
fn names_need_not_be_utf8() {
    let site = ready();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::write(site.source().join(name), "odd").unwrap();
    site.write("other", "other");
    backup(&site);
    let run = site.brackfs(&["versions".as_ref(), "--json".as_ref(), name]).ok();
    assert_eq!(objects(&run)[0]["path_hex"], "fffe");
    fs::remove_file(site.source().join(name)).unwrap();
    backup(&site);
    let run = site.brackfs(&["versions".as_ref(), "--json".as_ref(), name]).ok();
    assert_eq!((&objects(&run)[0]["message_type"], &objects(&run)[0]["path_hex"]), (&"absence".into(), &"fffe".into()));
}

#[test]
fn an_unreadable_snapshot_is_reported_and_the_others_are_shown() {
    let site = eventful();
    let damaged = &ids(&site)[3];
    let folder = fs::read_dir(site.repo().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let is_it = |path: &Path| path.to_str().unwrap().ends_with(damaged);
    let path = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find(|path| is_it(path)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let run = site.brackfs(&["versions", "d/notes", "--json"]).code(1);
    assert!(run.stderr.contains(damaged), "{run}");
    let sizes: Vec<_> = objects(&run).iter().map(|object| object["size"].as_u64()).collect();
    assert_eq!(sizes, [None, Some(9), None, Some(3)]);
}

/// Writes a file of one MiB that is a hole except for 64 KiB of data at `offset`.
fn write_sparse(site: &Site, path: &str, offset: u64) {
    let path = site.source().join(path);
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[b'q'; 64 << 10], offset).unwrap();
    drop(file);
    set_time(&path, AGED, 0);
}

#[test]
fn moved_holes_make_a_version_of_a_file() {
    let site = ready();
    for offset in [0, 512 << 10, (1 << 20) - (64 << 10)] {
        write_sparse(&site, "image", offset);
        backup(&site);
    }
    assert_eq!(versions(&site, &["image"]), vec![version(1 << 20, 1); 3]);
    // The same layout written again is the same version.
    write_sparse(&site, "image", (1 << 20) - (64 << 10));
    backup(&site);
    assert_eq!(versions(&site, &["image"]).len(), 3);
}
