//! Objects that a snapshot needs are never removed: a backup removes only unfinished objects that its own catalog
//! recorded, and only while every other object of the repository is accounted for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::machine;
use common::wait::until;
use common::{Run, Site, noise, settle, tree};

const MIB: usize = 1 << 20;

/// Two snapshots of a source; the second has more files.
fn two_snapshots() -> Site {
    let site = Site::new();
    site.write("first", noise("first", 2 * MIB));
    site.write("d/small", "small");
    site.init();
    settle();
    site.backup(&[]).ok();
    site.write("second", noise("second", 2 * MIB));
    settle();
    site.backup(&[]).ok();
    site
}

/// A backup of a pipe that has stored packs but committed nothing.
fn writing(site: &Site) -> Child {
    let before = packs(site);
    let mut command = site.command(&["backup", "--stdin-filename", "pipe", "--commit-interval", "1h"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(&noise("pipe", 40 * MIB)).unwrap();
    until("packs are stored", || {
        assert!(child.try_wait().unwrap().is_none(), "the backup ended");
        packs(site).len() >= before.len() + 2
    });
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn packs(site: &Site) -> BTreeSet<PathBuf> {
    let Ok(folders) = fs::read_dir(site.repo().join("packs")) else { return BTreeSet::new() };
    folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap()).map(|file| file.unwrap().path()).collect()
}

/// Objects in a folder of the repository, the oldest first.
fn objects(site: &Site, folder: &str) -> Vec<PathBuf> {
    let folder = site.repo().join(folder);
    let mut files: Vec<_> =
        tree(&folder).into_keys().map(|path| folder.join(path)).filter(|path| path.is_file()).collect();
    files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    files
}

/// Moves an object out of the repository. Returns its new path.
fn hide(site: &Site, object: &Path) -> PathBuf {
    let away = site.path().join("away");
    fs::create_dir_all(&away).unwrap();
    let to = away.join(object.file_name().unwrap());
    fs::rename(object, &to).unwrap();
    to
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    machine::copy(from, to);
}

#[track_caller]
fn says(run: &Run, words: &[&str]) {
    for word in words {
        assert!(run.stderr.contains(word), "nothing is said of {word:?}\n{run}");
    }
}

fn remove_catalog(site: &Site) {
    let folder = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path());
    let folder = folder.into_iter().find(|path| path.join("host.key").exists()).unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(folder.join(format!("catalog.sqlite{end}")));
    }
}

/// After some backups, the nodes of a directory with more than 1,500 entries are in several packs.
#[test]
fn a_pack_that_holds_parts_of_a_large_directory_must_be_in_an_index() {
    let site = Site::new();
    // Without content: only nodes refer to the packs.
    for n in 0..4000 {
        site.write(&format!("large/{n:05}"), "");
    }
    site.init();
    settle();
    site.backup(&[]).ok();
    site.write("large/zzz", "");
    settle();
    site.backup(&[]).ok();
    site.brackfs(&["check"]).ok();
    hide(&site, &objects(&site, "index").remove(0));
    // With -v, names are whole.
    let check = site.brackfs(&["check", "-v"]).code(1);
    for snapshot in objects(&site, "snapshots") {
        let name = snapshot.file_name().unwrap().to_str().unwrap().to_owned();
        let named = check.stderr.lines().any(|line| line.contains(&name) && line.contains("in no index"));
        assert!(named, "{name}\n{check}");
    }
}

/// The repository may be copied in part, or list an object late.
#[test]
fn a_missing_index_is_named_by_check_and_costs_no_pack() {
    let site = two_snapshots();
    let before = packs(&site);
    let first = objects(&site, "index").remove(0);
    let hidden = hide(&site, &first);
    let check = site.brackfs(&["check", "-v"]).code(1);
    // Both snapshots need its packs.
    says(&check, &["in no index", "an object is missing from index/"]);
    for snapshot in objects(&site, "snapshots") {
        says(&check, &[snapshot.file_name().unwrap().to_str().unwrap()]);
    }
    remove_catalog(&site);
    let run = site.backup(&[]).ok();
    says(&run, &["1 snapshot in no index", "packs in no index"]);
    assert!(before.is_subset(&packs(&site)), "packs are gone\n{run}");
    // A run that is killed now does not make the next one remove them either.
    kill(writing(&site));
    let before = packs(&site);
    let run = site.backup(&[]).ok();
    says(&run, &["are not removed from the repository: this machine's catalog was rebuilt"]);
    assert!(before.is_subset(&packs(&site)), "packs are gone\n{run}");
    fs::rename(hidden, first).unwrap();
    site.brackfs(&["check", "--read-data"]).ok();
}

/// The same without a kill: a rebuilt catalog removes nothing, even if objects are not listed.
#[test]
fn an_unknown_object_prevents_all_removals() {
    let site = two_snapshots();
    kill(writing(&site));
    let (repo, state) = (site.path().join("repo-then"), site.path().join("state-then"));
    copy(&site.repo(), &repo);
    copy(&site.state(), &state);
    let left = packs(&site);

    type Doubt = (&'static str, fn(&Site));
    let doubts: [Doubt; 9] = [
        ("are in no index", |site| _ = hide(site, &objects(site, "index")[0])),
        ("cannot read an index", |site| fs::write(&objects(site, "index")[0], "damaged").unwrap()),
        ("not listed", |site| _ = hide(site, &objects(site, "packs")[0])),
        ("not listed", |site| _ = hide(site, &objects(site, "snapshots")[1])),
        ("is not in the catalog", |site| {
            let known = objects(site, "snapshots").remove(0);
            let other = known.to_str().unwrap().rsplit_once('-').unwrap().0.to_owned();
            fs::copy(&known, format!("{other}-0123456789abcdef")).map(drop).unwrap();
        }),
        ("the object before generation/0000000003", |site| {
            fs::remove_file(&objects(site, "generation")[1]).unwrap();
        }),
        ("cannot verify generation/0000000007", |site| {
            let name = "generation/0000000007-c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b";
            fs::write(site.repo().join(name), "").unwrap();
        }),
        ("contains packs that are in no index", |site| {
            let id = "ab000000-0000-4000-8000-000000000000";
            let line = format!("{}  packs/ab/{id}\n", "0".repeat(64));
            fs::write(site.repo().join("sums/00000000-0000-4000-8000-000000000000"), line).unwrap();
        }),
        ("was rebuilt", |site| {
            remove_catalog(site);
            site.backup(&[]).ok();
            kill(writing(site));
        }),
    ];
    for (words, doubt) in doubts {
        copy(&repo, &site.repo());
        copy(&state, &site.state());
        doubt(&site);
        let there = packs(&site);
        let run = site.backup(&[]).ok();
        says(&run, &["are not removed", words]);
        assert!(there.is_subset(&packs(&site)), "{words}: packs are gone\n{run}");
    }

    // With all objects restored, only the same packs are removed.
    copy(&repo, &site.repo());
    copy(&state, &site.state());
    let run = site.backup(&[]).ok();
    assert_eq!(run.stderr, "", "{run}");
    let gone = left.difference(&packs(&site)).count();
    assert!(gone >= 2, "{gone} of {} packs are gone", left.len());
    site.brackfs(&["check", "--read-data"]).ok();
}

/// The image has an unfinished run, which made a snapshot after the image was taken.
#[test]
fn a_machine_image_from_the_middle_of_a_run_loses_nothing() {
    let site = two_snapshots();
    let mut child = writing(&site);
    let image = site.path().join("image");
    copy(&site.state(), &image);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let (repo, all) = (site.path().join("repo-then"), packs(&site));
    copy(&site.repo(), &repo);
    let (indexes, snapshots) = (objects(&site, "index"), objects(&site, "snapshots"));
    let (index, snapshot) = (indexes.last().unwrap(), snapshots.last().unwrap());

    // The objects that the storage lists late.
    for late in [vec![], vec![index], vec![index, snapshot], vec![snapshot]] {
        copy(&repo, &site.repo());
        copy(&image, &site.state());
        let hidden: Vec<_> = late.iter().map(|object| (hide(&site, object), *object)).collect();
        let run = site.backup(&[]).ok();
        assert!(all.is_subset(&packs(&site)), "{late:?}: packs are gone\n{run}");
        for (hidden, object) in hidden {
            fs::rename(hidden, object).unwrap();
        }
        site.brackfs(&["check", "--read-data"]).ok();
    }
}

/// Packs of an unknown writer: another program, or a lost state.
#[test]
fn unknown_packs_are_reported_and_kept() {
    let site = two_snapshots();
    let stranger = site.repo().join("packs/ab/ab000000-0000-4000-8000-000000000000");
    fs::create_dir_all(stranger.parent().unwrap()).unwrap();
    fs::write(&stranger, "stranger").unwrap();
    says(&site.brackfs(&["check"]).ok(), &["packs/ has 1 pack (8 bytes) in no index and needed by no snapshot"]);
    kill(writing(&site));
    let run = site.backup(&[]).ok();
    says(&run, &["packs/ has 1 object (8 bytes) in no index and not in this machine's catalog"]);
    assert!(stranger.exists());
    fs::remove_file(stranger).unwrap();
    let check = site.brackfs(&["check", "--read-data"]).ok();
    assert!(!check.stderr.contains("in no index"), "{check}");
}
