//! A disk is full at any point of a backup, and no data is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::machine::mount_tmpfs;
use common::ordeal::{Ordeal, Random, place_one, rounds};
use common::{Run, Site, run};
use rustix::mount::{MountFlags, mount_remount, unmount};

const PAGE: u64 = 4096;
const LARGE: u64 = 64 << 20;

/// A resizable file system in memory. Its site unmounts it.
struct Small {
    path: PathBuf,
}

impl Small {
    fn new(site: &Site, name: &str) -> Small {
        let path = site.path().join(name);
        fs::create_dir(&path).expect("a mount point");
        mount_tmpfs(&path, c"size=64m");
        Small { path }
    }

    fn resize(&self, bytes: u64) {
        let options = format!("size={bytes}");
        mount_remount(&self.path, MountFlags::empty(), options).expect("another size");
    }

    /// Used bytes.
    fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).expect("its sizes");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// Leaves this many bytes free.
    fn leave(&self, bytes: u64) {
        self.resize((self.used() + bytes).next_multiple_of(PAGE).max(PAGE));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Asserts that a run on a full disk reports it in one line, which is an object with --json, and names one of these places.
#[track_caller]
fn says_full(end: &Run, places: &[&Path]) {
    let mut lines = end.stderr.lines();
    let line = lines.next().unwrap_or_else(|| panic!("no message\n{end}"));
    let is_failure = line.starts_with("brackfs: ") || line.contains("exit_error");
    assert!(lines.next().is_none() && is_failure, "more than one line\n{end}");
    assert!(line.contains("No space left") || line.contains("full"), "the message does not say why\n{end}");
    let is_named = places.iter().any(|place| line.contains(place.to_str().expect("a path")));
    assert!(is_named, "the message does not name the disk\n{end}");
}

/// Backs up with increasing free space on the disk with `folder`, up to about `most`.
fn sweep(name: &str, folder: &str, steps: u64, most: u64) {
    let (mut full, mut step) = (0, 0);
    let site = Site::in_memory();
    let small = Small::new(&site, "small");
    place_one(&site, folder, &small.path);
    let mut ordeal = Ordeal::at(site, Random::new(1, name), 1);
    rounds(name, steps, |random| {
        ordeal.random = random;
        ordeal.change();
        // Even steps, plus a random part of a step.
        let room = step * most / steps + ordeal.random.below(most / steps);
        step = (step + 1) % steps;
        small.leave(room);
        let end = run(ordeal.command());
        match end.code {
            0 => {}
            1 => {
                full += 1;
                says_full(&end, &[&small.path, &ordeal.site.path().join(folder)]);
                // Readers do not need free space.
                ordeal.holds_so_far();
            }
            _ => panic!("with {room} bytes of room\n{end}"),
        }
        small.resize(LARGE);
        ordeal.look();
        ordeal.holds();
    });
    assert!(full > 0, "it was never full");
}

#[test]
fn a_full_repository_disk_at_any_point_loses_nothing() {
    sweep("full repository", "repo", 8, 1800 << 10);
}

#[test]
fn a_full_state_disk_at_any_point_loses_nothing() {
    sweep("full state directory", "state", 8, 400 << 10);
}

/// Snapshots can be forgotten and removed on a disk without any free space.
fn frees_space(folder: &str) {
    let site = Site::in_memory();
    let small = Small::new(&site, "small");
    place_one(&site, folder, &small.path);
    let mut ordeal = Ordeal::at(site, Random::new(1, folder), 1);
    for _ in 0..4 {
        ordeal.change();
        ordeal.back_up();
    }
    small.resize(small.used().max(PAGE));
    says_full(&ordeal.site.backup(&["--time", "2027-01-01"]).code(1), &[&small.path, &ordeal.site.path().join(folder)]);
    ordeal.forget_all_but(2);
    small.resize(small.used().max(PAGE));
    let mut prune = ordeal.site.command(&["prune", "--json", "--grace", "0", "--max-copy", "0", "--max-waste", "0"]);
    prune.env_remove("BRACKFS_KEY_FILE");
    let before = small.used();
    let pruned = run(prune).ok().json();
    assert_eq!(common::number(&pruned, "removed_snapshots"), 3, "{pruned}");
    assert!(folder == "state" || small.used() < before);
    small.resize(LARGE);
    ordeal.holds_after_prune();
    let reserve =
        common::paths_below(&small.path).into_iter().find(|path| path.ends_with("reserve")).expect("a reserve");
    assert_eq!(fs::metadata(reserve).expect("its size").len(), 4 << 20);
}

#[test]
fn a_full_repository_disk_does_not_prevent_prunes() {
    frees_space("repo");
}

#[test]
fn a_full_state_disk_does_not_prevent_prunes() {
    frees_space("state");
}

/// Prunes with increasing free space on the disk with `folder`.
fn prunes(folder: &str, steps: u64, most: u64) {
    let (mut full, mut step) = (0, 0);
    let site = Site::in_memory();
    let small = Small::new(&site, "small");
    place_one(&site, folder, &small.path);
    let mut ordeal = Ordeal::at(site, Random::new(1, folder), 1);
    rounds("full prune", steps, |random| {
        ordeal.random = random;
        ordeal.forget();
        // Without the reserve, a prune fails more often.
        for folder in [ordeal.site.repo(), ordeal.site.state()] {
            let folder = fs::canonicalize(folder).expect("a folder");
            for path in common::paths_below(&folder).into_iter().filter(|path| path.ends_with("reserve")) {
                fs::remove_file(path).expect("the reserve");
            }
        }
        let room = step * most / steps + ordeal.random.below(most / steps);
        step = (step + 1) % steps;
        small.leave(room);
        let end = run(ordeal.prune_command());
        match end.code {
            0 => {}
            1 => {
                full += 1;
                says_full(&end, &[&small.path, &ordeal.site.path().join(folder)]);
                // Readers do not need free space.
                ordeal.site.brackfs(&["check", "--read-data"]).ok();
            }
            _ => panic!("with {room} bytes of room\n{end}"),
        }
        small.resize(LARGE);
        ordeal.holds_after_prune();
    });
    assert!(full > 0, "it was never full");
}

#[test]
fn a_full_repository_disk_at_any_point_of_a_prune_loses_nothing() {
    prunes("repo", 6, 2 << 20);
}

#[test]
fn a_full_state_disk_at_any_point_of_a_prune_loses_nothing() {
    prunes("state", 6, 400 << 10);
}

#[test]
fn a_full_temporary_directory_loses_nothing() {
    let mut ordeal = Ordeal::new(Random::new(1, "full temporary files"), 1);
    let small = Small::new(&ordeal.site, "temporary");
    let mut full = 0;
    for mebibytes in [1, 8, 16, 31, 33] {
        ordeal.change();
        small.resize(mebibytes << 20);
        let source = ordeal.site.source().display().to_string();
        let mut command = ordeal.site.command(&["backup", &source, "--low-memory"]);
        command.env("TMPDIR", &small.path);
        let end = run(command);
        if end.code != 0 {
            assert_eq!(end.code, 1, "{end}");
            says_full(&end, &[&small.path]);
            assert!(end.stderr.contains("TMPDIR"), "{end}");
            full += 1;
        }
        ordeal.look();
        ordeal.holds();
        assert_eq!(fs::read_dir(&small.path).expect("the folder").count(), 0, "a temporary file is left");
    }
    assert!((1..5).contains(&full), "it was full {full} times of 5");
}
