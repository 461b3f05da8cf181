//! The upper directories of a mount of all snapshots: sources, snapshots, and snapshots by tag, and their changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use common::wait::{next_second, until};
use common::{Site, tree};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

fn ready() -> Site {
    let site = Site::with_files(&[("a", "one"), ("d/b", "two")]);
    site.init();
    site
}

#[track_caller]
fn backup(site: &Site, source: &str, tags: &[&str]) {
    let tags = tags.iter().flat_map(|tag| ["--tag", tag]);
    site.backup(&["--source", source].into_iter().chain(tags).collect::<Vec<_>>()).ok();
}

/// Names in a directory, sorted.
#[track_caller]
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The objects of snapshots, oldest first.
fn objects(site: &Site) -> Vec<PathBuf> {
    let mut objects = Vec::new();
    for folder in fs::read_dir(site.repo().join("snapshots")).unwrap() {
        objects.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    objects.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    objects
}

fn log(site: &Site) -> String {
    let folders = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path().join("mount.log"));
    folders.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

#[test]
fn snapshots_are_listed_by_tag() {
    let site = ready();
    backup(&site, "home", &["weekly", "before/after"]);
    site.write("a", "changed");
    backup(&site, "home", &["weekly"]);
    backup(&site, "other", &["weekly"]);
    backup(&site, "other", &[]);
    let mounted = site.mount(&[]);
    assert_eq!(names(mounted.path()), ["by-tag", "home", "other"]);
    let by_tag = mounted.path().join("by-tag");
    assert_eq!(names(&by_tag), ["before%2Fafter", "weekly"]);
    let home = names(&mounted.path().join("home"));
    assert_eq!(names(&by_tag.join("before%2Fafter")), [format!("home-{}", home[0])]);
    let other = names(&mounted.path().join("other"));
    let weekly = [format!("home-{}", home[0]), format!("home-{}", home[1]), format!("other-{}", other[0])];
    assert_eq!(names(&by_tag.join("weekly")), weekly);
    let link = by_tag.join("weekly").join(&weekly[1]);
    let target = format!("../../home/{}", home[1]);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&target));
    let stat = fs::symlink_metadata(&link).unwrap();
    assert_eq!((stat.is_symlink(), stat.len()), (true, target.len() as u64));
    assert_eq!(tree(&link.canonicalize().unwrap()), tree(&site.source()));
    assert_eq!(fs::read_to_string(by_tag.join("before%2Fafter").join(&weekly[0]).join("a")).unwrap(), "one");
    for absent in ["monthly", "weekly/home", "weekly/home-latest"] {
        let error = fs::symlink_metadata(by_tag.join(absent)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{absent}");
    }
}

#[test]
fn tags_appear_with_new_snapshots_and_disappear_with_removed_ones() {
    let site = ready();
    backup(&site, "home", &["first"]);
    let mounted = site.mount(&[]);
    let by_tag = mounted.path().join("by-tag");
    assert_eq!(names(&by_tag), ["first"]);
    backup(&site, "home", &["second"]);
    until("the second tag is there", || names(&by_tag) == ["first", "second"]);
    fs::remove_file(&objects(&site)[0]).unwrap();
    until("the first tag is gone", || names(&by_tag) == ["second"]);
    until("the first tag can't be entered", || !by_tag.join("first").exists());
}

#[test]
fn modification_times_of_folders_show_their_changes() {
    let site = ready();
    backup(&site, "home", &["first"]);
    let mounted = site.mount(&[]);
    let paths = ["", "home", "by-tag", "by-tag/first"].map(|path| mounted.path().join(path));
    // Asks the mount, not the cache of the kernel.
    let time = |path: &PathBuf| {
        let flags = AtFlags::STATX_FORCE_SYNC;
        let time = statx(CWD, path, flags, StatxFlags::MTIME).unwrap().stx_mtime;
        (time.tv_sec, time.tv_nsec)
    };
    let times = || paths.each_ref().map(time);
    paths.iter().for_each(|path| drop(names(path)));
    let before = times();
    let opens = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&opens, site.repo().join("snapshots"), WatchFlags::OPEN).unwrap();
    until("the mount lists the snapshots again", || {
        assert_eq!(times(), before);
        rustix::io::read(&opens, &mut [0; 4096]).is_ok()
    });
    assert_eq!(times(), before);
    backup(&site, "home", &["second"]);
    until("all have changed", || times().iter().zip(&before).all(|(now, before)| now > before));
}

#[test]
fn a_source_named_by_tag_is_shown_under_another_name() {
    let site = ready();
    backup(&site, "by-tag", &["x"]);
    let mounted = site.mount(&[]);
    let names_at_top = names(mounted.path());
    assert_eq!(names_at_top.len(), 2, "{names_at_top:?}");
    assert_eq!(names_at_top[0], "by-tag");
    assert!(names_at_top[1].starts_with("by-tag-"), "{names_at_top:?}");
    assert_eq!(
        tree(&mounted.path().join(&names_at_top[1]).join("latest").canonicalize().unwrap()),
        tree(&site.source())
    );
    let links = names(&mounted.path().join("by-tag/x"));
    assert_eq!(fs::read_to_string(mounted.path().join("by-tag/x").join(&links[0]).join("a")).unwrap(), "one");
}

#[test]
fn a_removed_snapshot_disappears_and_latest_follows() {
    let site = ready();
    for tag in ["1", "2", "3"] {
        backup(&site, "home", &[tag]);
        // If two began in the same second, the second one gets a shorter name once the first is removed.
        next_second();
    }
    let mounted = site.mount(&[]);
    let home = mounted.path().join("home");
    let shown = names(&home);
    let [first, second, third] = [0, 1, 2].map(|at| home.join(&shown[at]));
    // The kernel has cached all of them, and one is in use.
    assert!([&first, &second, &third].iter().all(|path| path.join("d/b").exists()));
    let mut open = File::open(first.join("a")).unwrap();
    let objects = objects(&site);
    fs::remove_file(&objects[0]).unwrap();
    fs::remove_file(&objects[2]).unwrap();
    // Before any listing, which would also update the kernel.
    until("they can't be entered", || !first.exists() && !third.join("d/b").exists());
    until("two are gone from the list", || names(&home) == [shown[1].clone(), "latest".into()]);
    assert_eq!(fs::read_link(home.join("latest")).unwrap(), Path::new(&shown[1]));
    assert_eq!(fs::read_to_string(home.join("latest/d/b")).unwrap(), "two");
    // Open files can still be read.
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one");
    fs::remove_file(&objects[1]).unwrap();
    until("a source without snapshots is gone", || names(mounted.path()) == ["by-tag"]);
    // Not at once: the kernel caches a name for a second, and opens a directory without asking.
    until("it can't be listed", || fs::read_dir(&home).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
}

#[test]
fn only_snapshots_that_are_accessed_are_opened() {
    let site = ready();
    for tag in ["1", "2", "3"] {
        backup(&site, "home", &[tag]);
    }
    let objects = objects(&site);
    // Opening these fails.
    for object in &objects[..2] {
        fs::write(object, "no snapshot").unwrap();
    }
    let mounted = site.mount(&[]);
    let shown = names(&mounted.path().join("home"));
    assert_eq!(shown.len(), 4);
    assert_eq!(names(mounted.path()), ["by-tag", "home"]);
    assert!(mounted.path().join("by-tag").metadata().unwrap().is_dir());
    assert_eq!(fs::read_to_string(mounted.path().join("home/latest/a")).unwrap(), "one");
    assert_eq!(log(&site), "", "the damaged ones were not opened");
    assert_eq!(names(&mounted.path().join("by-tag")), ["3"]);
    let named = |log: String| {
        objects.iter().map(|o| log.matches(o.file_name().unwrap().to_str().unwrap()).count()).collect::<Vec<_>>()
    };
    let once = named(log(&site));
    assert!(once[0] > 0 && once[1] > 0 && once[2] == 0, "{}", log(&site));
    for _ in 0..3 {
        assert_eq!(names(&mounted.path().join("by-tag")), ["3"]);
    }
    assert_eq!(named(log(&site)), once, "each is named once");
}

#[test]
fn a_repaired_snapshot_is_shown_again() {
    let site = ready();
    for tag in ["1", "2"] {
        backup(&site, "home", &[tag]);
    }
    let newest = objects(&site).pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, "no snapshot").unwrap();
    let mounted = site.mount(&[]);
    let home = mounted.path().join("home");
    let latest = || fs::read_link(home.join("latest")).unwrap();
    let shown = names(&home);
    assert_eq!((shown.len(), latest()), (2, PathBuf::from(&shown[0])), "{shown:?}");
    fs::write(&newest, bytes).unwrap();
    until("it is shown again", || names(&home).len() == 3);
    until("it is the newest", || latest() == Path::new(&names(&home)[1]));
    until("it has its tag", || names(&mounted.path().join("by-tag")) == ["1", "2"]);
    assert_eq!(tree(&home.join("latest").canonicalize().unwrap()), tree(&site.source()));
    assert_eq!(log(&site).lines().count(), 1, "{}", log(&site));
}

#[test]
fn a_source_without_a_readable_name_takes_it_from_a_snapshot_or_shows_its_id() {
    let site = ready();
    backup(&site, "home", &[]);
    let object = fs::read_dir(site.repo().join("sources")).unwrap().next().unwrap().unwrap().path();
    fs::write(&object, "no source").unwrap();
    let mounted = site.mount(&[]);
    assert_eq!(names(mounted.path()), ["by-tag", "home"]);
    assert_eq!(tree(&mounted.path().join("home/latest").canonicalize().unwrap()), tree(&site.source()));
    drop(mounted);
    fs::write(&objects(&site)[0], "no snapshot").unwrap();
    let mounted = site.mount(&[]);
    let id = object.file_name().unwrap().to_str().unwrap();
    let mut expected = [id, "by-tag"];
    expected.sort_unstable();
    assert_eq!(names(mounted.path()), expected);
    // A second listing reads both again.
    backup(&site, "other", &[]);
    until("the new source is there", || names(mounted.path()).contains(&"other".into()));
    assert_eq!(log(&site).lines().count(), 1, "{}", log(&site));
}

/// Puts objects that are not snapshots into the folder of a source, with later names than all others.
fn junk(site: &Site, count: usize) {
    let folder = objects(site)[0].parent().unwrap().to_owned();
    for number in 0..count {
        fs::write(folder.join(format!("0000000999-20300101T000000Z-{number:016x}")), "junk").unwrap();
    }
}

#[test]
fn latest_is_found_below_many_objects_that_are_not_snapshots() {
    let site = ready();
    backup(&site, "home", &[]);
    junk(&site, 3000);
    let mounted = site.mount(&[]);
    let latest = mounted.path().join("home/latest");
    until("latest is found", || fs::canonicalize(&latest).is_ok_and(|root| root.join("a").exists()));
    assert_eq!(tree(&latest.canonicalize().unwrap()), tree(&site.source()));
    // They are hidden, and the log is not flooded.
    until("others are gone", || names(&mounted.path().join("home")).len() == 2);
    assert!(log(&site).lines().count() <= 1001);
}

#[test]
fn an_unreadable_object_is_read_only_once() {
    let site = ready();
    backup(&site, "home", &[]);
    let real = objects(&site)[0].clone();
    let name = real.file_name().unwrap().to_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let bytes = fs::read(&real).unwrap();
    fs::write(&real, "junk").unwrap();
    let mounted = site.mount(&[]);
    let root = mounted.path().join("home").join(&name);
    let errno = || rustix::io::Errno::from_io_error(&fs::metadata(&root).unwrap_err());
    assert_eq!(errno(), Some(rustix::io::Errno::IO));
    let said = log(&site);
    for _ in 0..20 {
        assert_eq!(errno(), Some(rustix::io::Errno::IO));
    }
    assert_eq!(log(&site), said);
    // The failure is cached, so the repair is not seen yet.
    fs::write(&real, bytes).unwrap();
    assert_eq!(errno(), Some(rustix::io::Errno::IO));
}

#[test]
fn thousands_of_snapshots_are_listed_completely_and_in_order() {
    let site = ready();
    backup(&site, "home", &[]);
    let real = objects(&site).remove(0);
    let folder = real.parent().unwrap();
    // A listing needs only names.
    let times: Vec<_> =
        (0..3000).map(|n| format!("20200101T{:02}{:02}{:02}Z", n / 3600, n / 60 % 60, n % 60)).collect();
    for (number, time) in times.iter().enumerate() {
        File::create(folder.join(format!("0000000000-{time}-{number:016x}"))).unwrap();
    }
    let mounted = site.mount(&[]);
    let listed: Vec<_> = fs::read_dir(mounted.path().join("home")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let newest = real.file_name().unwrap().to_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let expected: Vec<_> = times.into_iter().chain([newest, "latest".into()]).map(std::ffi::OsString::from).collect();
    assert!(listed == expected, "{} names, {} were expected", listed.len(), expected.len());
    assert_eq!(tree(&mounted.path().join("home/latest").canonicalize().unwrap()), tree(&site.source()));
    assert_eq!(log(&site), "");
}
