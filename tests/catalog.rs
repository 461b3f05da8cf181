//! The catalog is lost, restored from an old copy or cloned, and the repository loses objects that it lists. In all
//! cases, every snapshot restores byte for byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brackfs::catalog::{BlockId, Catalog};
use brackfs::crypt::{Opener, SecretKey, Signer};
use brackfs::format::id::ObjectId;
use brackfs::format::index::Index;
use brackfs::format::pack::IndexedBlock;
use brackfs::format::secrets::{DatedSigner, Secrets};
use brackfs::format::{Digest, PackId};
use brackfs::repository::{Access, Repository, Writer};
use common::machine;
use common::wait::{ended, send, threads, until};
use common::{Entry, Run, Site, noise, number, run, settle, snapshot_objects, tree};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

const MIB: usize = 1 << 20;
/// A backup without new data may still write a tree node or two.
const NEXT_TO_NOTHING: u64 = 16 << 10;

/// The second part of the name of a generation.
const RUN: &str = "c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b";

type Tree = BTreeMap<PathBuf, Entry>;

/// Damage to a file.
type Damage = fn(&Path);

/// A site with backups, and the expected tree of each snapshot.
struct World {
    site: Site,
    snapshots: Vec<(String, Tree)>,
}

impl World {
    /// Files of several kinds: gathered, cut into chunks, with several names, and in a long directory.
    fn new() -> World {
        World::made_by(Site::init)
    }

    fn made_by(init: fn(&Site)) -> World {
        let site = Site::new();
        site.write("large", noise("large", 5 * MIB));
        site.write("d/middle", noise("middle", 700 << 10));
        for i in 0..30 {
            site.write(&format!("d/e/{i}"), noise(&format!("small {i}"), 3000));
        }
        fs::hard_link(site.source().join("large"), site.source().join("d/again")).unwrap();
        init(&site);
        let mut world = World { site, snapshots: Vec::new() };
        world.backup(&[]).ok();
        world
    }

    /// Backs up, and records the expected tree of the snapshot.
    fn backup(&mut self, extra: &[&str]) -> Run {
        settle();
        let run = self.site.backup(extra);
        if let Some(id) = id_of(&run) {
            self.snapshots.push((id, tree(&self.site.source())));
        }
        run
    }

    /// The same with another state directory.
    fn backup_with(&mut self, state: &Path) -> Run {
        settle();
        let mut command = self.site.command(&["backup", "source", "--json"]);
        command.env("BRACKFS_STATE_DIR", state);
        let run = run(command);
        if let Some(id) = id_of(&run) {
            self.snapshots.push((id, tree(&self.site.source())));
        }
        run
    }

    /// The folder of the machine's state for the repository.
    fn state(&self) -> PathBuf {
        state_in(&self.site.state())
    }

    fn catalog(&self) -> PathBuf {
        self.state().join("catalog.sqlite")
    }

    /// A copy of the state directory, as it is now.
    fn copy_of_state(&self, name: &str) -> PathBuf {
        copy(&self.site.state(), &self.site.path().join(name))
    }

    /// Asserts that all snapshots restore to the expected trees, and that a check finds no problem.
    #[track_caller]
    fn assert_whole(&self) {
        for (id, expected) in &self.snapshots {
            let to = self.site.path().join("out");
            self.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).ok();
            assert!(tree(&to) == *expected, "snapshot {id} does not restore to the expected tree");
            fs::remove_dir_all(&to).unwrap();
        }
        self.site.brackfs(&["check", "--read-data"]).ok();
        self.assert_agrees();
    }

    /// Asserts that the catalog lists only existing objects.
    #[track_caller]
    fn assert_agrees(&self) {
        let run = self.site.brackfs(&["catalog", "verify", "--json"]).ok();
        assert_eq!(number(&run.json(), "problems"), 0);
        assert_eq!(number(&run.json(), "snapshots"), self.snapshots.len() as u64, "{run}");
    }

    /// Packs with their lengths, the largest first.
    fn packs(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.site.repo().join("packs")).unwrap();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        let mut packs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        packs.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
        packs
    }
}

fn id_of(run: &Run) -> Option<String> {
    let summary = run.stdout.lines().last()?;
    let summary: Value = serde_json::from_str(summary).ok()?;
    Some(summary["snapshot_id"].as_str()?.to_owned())
}

fn state_in(state: &Path) -> PathBuf {
    let mut folders = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    folders.find(|path| path.join("host.key").exists()).expect("a folder with host.key")
}

/// Copies a directory, and returns the copy.
fn copy(from: &Path, to: &Path) -> PathBuf {
    machine::copy(from, to);
    to.to_owned()
}

/// Replaces a directory by a copy.
fn replace_directory(copy_of: &Path, place: &Path) {
    fs::remove_dir_all(place).unwrap();
    copy(copy_of, place);
}

#[track_caller]
fn says(run: &Run, words: &[&str]) {
    for word in words {
        assert!(run.stderr.contains(word), "nothing is said of {word:?}\n{run}");
    }
}

/// Asserts that no data was stored twice, although every file was read.
#[track_caller]
fn assert_stored_nothing_again(world: &World, run: &Run) {
    let summary = run.json();
    let files = tree(&world.site.source()).values().filter(|entry| entry.content.is_some()).count();
    assert_eq!(number(&summary, "files_read"), files as u64, "{run}");
    assert_eq!(number(&summary, "data_packs"), 0, "{run}");
    assert!(number(&summary, "stored_bytes") <= NEXT_TO_NOTHING, "{run}");
}

#[test]
fn the_next_backup_rebuilds_a_lost_or_damaged_catalog() {
    let damages: [(&str, Damage); 8] = [
        ("is missing", |path| fs::remove_file(path).unwrap()),
        ("is empty", |path| File::create(path).map(drop).unwrap()),
        ("damaged", |path| fs::write(path, noise("garbage", 100_000)).unwrap()),
        ("damaged", |path| {
            let length = fs::metadata(path).unwrap().len();
            OpenOptions::new().write(true).open(path).unwrap().set_len(length / 2 + 1000).unwrap();
        }),
        ("is empty", |path| fs::write(path, "").unwrap()),
        ("no such table", |path| {
            rusqlite::Connection::open(path).unwrap().execute_batch("DROP TABLE recipients").unwrap();
        }),
        ("no rows", |path| {
            rusqlite::Connection::open(path).unwrap().execute_batch("DELETE FROM trust").unwrap();
        }),
        ("schema 999", |path| {
            rusqlite::Connection::open(path).unwrap().pragma_update(None, "user_version", 999).unwrap();
        }),
    ];
    let mut world = World::new();
    for (words, damage) in damages {
        // Files of SQLite exist only while the catalog is open.
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", world.catalog().display()));
        }
        damage(&world.catalog());
        says(&world.site.backup(&["--dry-run"]).code(1), &[words, "A backup rebuilds it"]);
        assert!(!world.state().join("catalog.sqlite.new").exists());
        let run = world.backup(&[]).ok();
        says(&run, &[words, "rebuilt"]);
        assert_stored_nothing_again(&world, &run);
        world.assert_agrees();
        let after = world.backup(&[]).ok();
        assert_eq!(after.stderr, "", "{after}");
        assert_eq!(number(&after.json(), "files_read"), 0);
    }
    assert!(world.state().join("catalog.sqlite.old").exists());
    world.assert_whole();
}

#[test]
fn a_catalog_is_rebuilt_from_every_kind_of_repository() {
    let inits: [fn(&Site); 2] = [
        |site| {
            site.key("rfc4880");
            site.init();
        },
        |site| _ = site.brackfs(&["init", "repo", "--no-encryption"]).ok(),
    ];
    for init in inits {
        let mut world = World::made_by(init);
        fs::remove_file(world.catalog()).unwrap();
        let run = world.backup(&[]).ok();
        assert_stored_nothing_again(&world, &run);
        world.assert_whole();
    }
}

#[test]
fn a_catalog_is_rebuilt_on_request_and_the_old_one_is_kept() {
    let mut world = World::new();
    world.site.write("more", noise("more", 300_000));
    world.backup(&["--source", "other"]).ok();
    fs::remove_file(world.site.source().join("more")).unwrap();
    world.backup(&["--tag", "t"]).ok();
    let before = world.site.brackfs(&["snapshots", "--json"]).ok().stdout;
    let run = world.site.brackfs(&["catalog", "rebuild", "--json"]).ok();
    assert_eq!(number(&run.json(), "snapshots"), 3);
    assert_eq!(number(&run.json(), "missing_packs"), 0);
    assert_eq!(number(&run.json(), "packs"), world.packs().len() as u64);
    world.assert_agrees();
    // The host still knows its part of the snapshots without the owner's key, as in a cron job.
    let mut command = world.site.command(&["snapshots", "--json"]);
    command.env_remove("BRACKFS_KEY_FILE");
    let parse = |text: &str| serde_json::from_str::<Vec<Value>>(text).unwrap();
    let (before, after) = (parse(&before), parse(&common::run(command).ok().stdout));
    for (before, after) in before.iter().zip(&after) {
        for field in ["id", "time", "source", "files", "bytes", "stored_bytes", "host", "paths", "tags"] {
            assert_eq!(before[field], after[field], "{field}");
        }
    }
    assert_eq!(before.len(), after.len());
    assert_eq!(after[2]["tags"], serde_json::json!(["t"]));
    let old = world.state().join("catalog.sqlite.old");
    let kept = rusqlite::Connection::open(old).unwrap();
    let snapshots: i64 = kept.query_row("SELECT count(*) FROM snapshots", [], |row| row.get(0)).unwrap();
    assert_eq!(snapshots, 3);
    let run = world.backup(&[]).ok();
    assert_eq!(run.stderr, "");
    assert_stored_nothing_again(&world, &run);
    world.assert_whole();
}

/// The packs and ordinals of the blocks that each snapshot in the catalog uses, by the snapshot's id.
fn used_blocks(world: &World) -> BTreeMap<String, BTreeSet<(PackId, u32)>> {
    let repository = Repository::open(&world.site.repo().as_path().into()).unwrap();
    let catalog = Catalog::view(&world.catalog(), repository.id()).unwrap().read(anyhow::Ok).unwrap();
    let used = catalog.snapshots().unwrap().into_iter().map(|row| {
        let blocks = catalog.snapshot_blocks(row.name.id).unwrap().expect("known blocks");
        let live = catalog.live(&[row.name.sequence]).unwrap();
        assert_eq!(blocks, live);
        let places = blocks.into_iter().map(|block| catalog.ordinal(BlockId(block)).unwrap());
        (row.name.id.to_string(), places.collect())
    });
    used.collect()
}

/// Two sources in turn, and a run that was killed before its snapshot: the next index is relative to an older one.
#[test]
fn a_rebuilt_catalog_knows_the_same_blocks_of_each_snapshot() {
    let mut world = World::new();
    for round in 0..6 {
        world.site.write("large", noise(&format!("large {}", round % 4), MIB));
        world.site.write(&format!("d/e/{round}"), noise(&format!("changed {round}"), 4000));
        let source: &[&str] = if round % 3 == 1 { &["--source=other"] } else { &[] };
        world.backup(source).ok();
        if round == 3 {
            let (killed, _) = world.snapshots.pop().unwrap();
            let row = "UPDATE snapshots SET presence = 0 WHERE sequence = (SELECT max(sequence) FROM snapshots)";
            assert_eq!(rusqlite::Connection::open(world.catalog()).unwrap().execute(row, []).unwrap(), 1);
            let object =
                snapshot_objects(&world.site).into_iter().find(|path| path.to_string_lossy().ends_with(&killed));
            fs::remove_file(object.unwrap()).unwrap();
        }
    }
    let before = used_blocks(&world);
    assert_eq!(before.len(), world.snapshots.len() + 1);
    world.site.brackfs(&["catalog", "rebuild"]).ok();
    assert_eq!(used_blocks(&world), before);
    world.site.brackfs(&["catalog", "verify"]).ok();
    world.assert_whole();
}

#[test]
fn damage_found_during_a_backup_is_reported_and_the_catalog_rebuilt_at_once() {
    let mut world = World::new();
    // Everything except the first page, which a quick check reads. The length stays, so the file opens.
    let path = world.catalog();
    let (length, connection) = (fs::metadata(&path).unwrap().len(), rusqlite::Connection::open(&path).unwrap());
    connection.pragma_update(None, "journal_mode", "delete").unwrap();
    let segments: i64 = connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'directories'", [], |row| row.get(0))
        .unwrap();
    drop(connection);
    let page = 4096 * (segments as u64 - 1);
    assert!(page + 4096 <= length);
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&noise("bad page", 4096), page).unwrap();
    says(&world.site.brackfs(&["catalog", "verify"]).code(1), &["catalog.sqlite", "rebuild"]);
    let run = world.backup(&[]).ok();
    says(&run, &["damaged", "rebuilt"]);
    assert_stored_nothing_again(&world, &run);
    world.assert_whole();
}

#[test]
fn verify_reports_catalog_entries_that_the_repository_lacks() {
    let world = World::new();
    world.assert_agrees();
    let packs = world.packs();
    let (lost, short) = (&packs[0], &packs[1]);
    fs::remove_file(lost).unwrap();
    OpenOptions::new().write(true).open(short).unwrap().set_len(100).unwrap();
    let (sums, snapshots) = (world.site.repo().join("sums"), world.site.repo().join("snapshots"));
    for folder in [sums, snapshots] {
        for path in tree(&folder).into_keys().map(|path| folder.join(path)).filter(|path| path.is_file()) {
            fs::remove_file(path).unwrap();
        }
    }
    let leaf = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let run = world.site.brackfs(&["catalog", "verify", "-v"]).code(1);
    says(
        &run,
        &[
            &leaf(lost),
            "is missing",
            &leaf(short),
            "has 100 bytes",
            "no readable list of sums",
            "the snapshot is missing",
        ],
    );
    says(&run, &["brackfs catalog rebuild"]);
    // Without the host key this cannot be detected.
    fs::rename(world.state().join("host.key"), world.site.path().join("host.key")).unwrap();
    says(&world.site.brackfs(&["catalog", "verify"]).code(1), &["host key"]);
}

#[test]
fn a_new_catalog_omits_lost_packs_and_their_data_is_stored_again() {
    let mut world = World::new();
    for pack in world.packs() {
        fs::remove_file(pack).unwrap();
    }
    // The name of the source is in the catalog, and is written again.
    fs::remove_dir_all(world.site.repo().join("sources")).unwrap();
    world.snapshots.clear();
    fs::remove_file(world.catalog()).unwrap();
    let run = world.backup(&[]).ok();
    says(&run, &["rebuilt", "packs missing"]);
    assert!(number(&run.json(), "data_bytes") > 5 * MIB as u64, "{run}");
    let (id, expected) = &world.snapshots[0];
    let to = world.site.path().join("out");
    world.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).ok();
    assert!(tree(&to) == *expected);
    let run = world.site.brackfs(&["check"]).code(1);
    assert!(!run.stderr.contains("sources/"), "{run}");
}

#[test]
fn after_the_repository_is_restored_from_an_old_copy_later_backups_are_complete() {
    let mut world = World::new();
    let older = copy(&world.site.repo(), &world.site.path().join("older"));
    world.site.write("d/new", noise("new", 2 * MIB));
    world.site.write("d/e/3", "changed");
    world.backup(&[]).ok();
    replace_directory(&older, &world.site.repo());
    world.snapshots.pop();
    let look = world.site.backup(&["--dry-run"]).ok();
    says(&look, &["set back"]);
    let run = world.backup(&[]).ok();
    says(&run, &["set back", "1 snapshot missing", "packs missing"]);
    assert!(number(&run.json(), "data_bytes") >= 2 * MIB as u64, "{run}");
    world.assert_whole();
    let after = world.backup(&["--skip-if-unchanged"]).ok();
    assert_eq!((after.stderr.as_str(), number(&after.json(), "files_read")), ("", 0));
    world.assert_whole();
    // The state before the first run: only keys are left.
    for folder in ["packs", "sums", "index", "snapshots", "sources", "generation"] {
        let _ = fs::remove_dir_all(world.site.repo().join(folder));
    }
    world.snapshots.clear();
    says(&world.backup(&["--skip-if-unchanged"]).ok(), &["generation 0"]);
    assert_eq!(world.snapshots.len(), 1);
    world.assert_whole();
}

#[test]
fn a_machine_restored_from_an_old_copy_learns_the_missing_snapshots() {
    let mut world = World::new();
    let older = world.copy_of_state("older");
    world.site.write("d/new", noise("new", 2 * MIB));
    world.site.write("d/e/3", "changed");
    world.backup(&[]).ok();
    world.backup(&["--source", "second"]).ok();
    replace_directory(&older, &world.site.state());
    let run = world.backup(&[]).ok();
    says(&run, &["does not know", "set back to an older copy", "2 snapshots added to the catalog"]);
    assert_eq!(number(&run.json(), "data_packs"), 0, "{run}");
    world.assert_whole();
    let after = world.backup(&[]).ok();
    assert_eq!((after.stderr.as_str(), number(&after.json(), "files_read")), ("", 0));
    world.assert_whole();
}

#[test]
fn machine_and_repository_agree_again_after_rollbacks_to_different_times() {
    let mut world = World::new();
    let repo = copy(&world.site.repo(), &world.site.path().join("older-repo"));
    world.site.write("a", noise("a", MIB));
    world.backup(&[]).ok();
    let state = world.copy_of_state("older-state");
    // The state has a run that the repository lacks, and continues from there.
    replace_directory(&repo, &world.site.repo());
    world.snapshots.pop();
    world.site.write("b", noise("b", MIB));
    says(&world.backup(&[]).ok(), &["set back"]);
    // Now the state is rolled back, too: to a run that was never in this repository.
    replace_directory(&state, &world.site.state());
    world.site.write("c", noise("c", MIB));
    says(&world.backup(&[]).ok(), &["does not know"]);
    world.assert_whole();
}

#[test]
fn clones_that_take_turns_lose_nothing_and_are_detected_each_time() {
    let mut world = World::new();
    let clone = world.copy_of_state("clone");
    for turn in 0..3 {
        world.site.write(&format!("d/of a {turn}"), noise(&format!("a {turn}"), 400_000));
        let run = world.backup(&[]).ok();
        if turn > 0 {
            says(&run, &["brackfs adopt"]);
        }
        world.site.write(&format!("d/of b {turn}"), noise(&format!("b {turn}"), 400_000));
        let run = world.backup_with(&clone).ok();
        says(&run, &["another machine uses a copy of it", "brackfs adopt"]);
        // Data that the other machine stored is not stored again.
        assert!(number(&run.json(), "data_bytes") < 500_000, "{run}");
    }
    says(&world.backup(&[]).ok(), &["brackfs adopt"]);
    world.assert_whole();

    // After one of them adopts, the other one is refused, and no conflict is reported.
    let mut adopt = world.site.command(&["adopt", "--json"]);
    adopt.env("BRACKFS_STATE_DIR", &clone);
    common::run(adopt).ok();
    let packs = world.packs();
    says(&world.backup(&[]).code(1), &["is the writer of this repository", "brackfs adopt"]);
    says(&world.backup(&["--dry-run"]).code(1), &["is the writer of this repository"]);
    assert_eq!(world.packs(), packs);
    let run = world.backup_with(&clone).ok();
    assert_eq!((run.stderr.as_str(), number(&run.json(), "files_read")), ("", 0), "{run}");
    // And back.
    says(&world.site.brackfs(&["adopt"]).ok(), &["this machine is now the writer"]);
    assert_eq!(world.backup(&[]).ok().stderr, "");
    says(&world.backup_with(&clone).code(1), &["is the writer of this repository"]);
    world.assert_whole();
}

#[test]
fn one_of_two_clones_that_start_together_is_refused() {
    let mut world = World::new();
    let piped = ["backup", "--allow-empty", "--stdin-filename", "pipe"];
    world.site.brackfs(&piped).ok();
    let clone = world.copy_of_state("clone");
    // It has read the state of the repository, and will write once data arrives.
    let mut waiting = world.site.command(&piped);
    let mut waiting = waiting.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let walks = || threads(waiting.id(), "comm").iter().any(|name| name == "walk\n");
    until("it walks", walks);
    world.site.write("new", "new");
    world.backup_with(&clone).ok();
    waiting.stdin.take().unwrap().write_all(&noise("pipe", MIB)).unwrap();
    let output = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("at the same time") && said.contains("brackfs adopt"), "{said}");
    // The next run detects it and continues.
    says(&world.backup(&[]).ok(), &["does not know"]);
    world.site.brackfs(&["check", "--read-data"]).ok();
}

/// To the copy, data stored by the other machine looks like leftovers of a killed run.
#[test]
fn a_machine_and_its_copy_made_during_a_backup_cannot_both_write() {
    let mut world = World::new();
    let packs = world.packs().len();
    let mut writing = world.site.command(&["backup", "--stdin-filename", "pipe"]);
    let mut writing = writing.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = writing.stdin.take().unwrap();
    pipe.write_all(&noise("pipe", 24 * MIB)).unwrap();
    until("a pack is stored", || world.packs().len() > packs);
    let clone = world.copy_of_state("clone");
    world.site.write("new", "new");
    world.backup_with(&clone).ok();
    drop(pipe);
    let output = writing.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("at the same time") && said.contains("brackfs adopt"), "{said}");
    world.site.brackfs(&["check", "--read-data"]).ok();
    says(&world.site.backup(&[]).ok(), &["does not know"]);
    world.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn backups_continue_with_only_the_restored_host_key() {
    let mut world = World::new();
    let key = fs::read(world.state().join("host.key")).unwrap();
    let second = world.site.path().join("second").join(world.state().file_name().unwrap());
    fs::create_dir_all(&second).unwrap();
    fs::write(second.join("host.key"), key).unwrap();
    let second = second.parent().unwrap().to_owned();
    let mut adopt = world.site.command(&["adopt", "--json"]);
    adopt.env("BRACKFS_STATE_DIR", &second).env_remove("BRACKFS_KEY_FILE");
    let run = common::run(adopt).ok();
    assert!(run.stdout.contains("\"new_host_key\":false"), "{run}");
    says(&world.backup(&[]).code(1), &["brackfs adopt"]);
    let run = world.backup_with(&second).ok();
    assert_stored_nothing_again(&world, &run);
    replace_directory(&second, &world.site.state());
    world.assert_whole();
}

#[test]
fn a_new_machine_continues_with_the_owners_key() {
    let mut world = World::new();
    world.site.write("more", noise("more", MIB));
    world.backup(&[]).ok();
    let old = world.site.path().join("old");
    fs::rename(world.site.state(), &old).unwrap();
    fs::create_dir(world.site.state()).unwrap();
    says(&world.site.backup(&[]).code(1), &["no host key", "brackfs adopt"]);
    let signer = fs::read_dir(world.site.repo().join("keys")).unwrap().find_map(|key| {
        Some(key.unwrap().file_name().to_str()?.strip_prefix("host-")?.strip_suffix(".asc")?.to_owned())
    });
    let signer = signer.unwrap();
    let mut keyless = world.site.command(&["adopt", "--signer", &signer]);
    keyless.env_remove("BRACKFS_KEY_FILE");
    common::run(keyless).code(12);
    // There is no trust on first use, and nothing is written.
    let before = fs::read_dir(world.site.repo().join("secrets")).unwrap().count();
    says(&world.site.brackfs(&["adopt"]).code(1), &["--signer", &signer]);
    says(&world.site.brackfs(&["adopt", "--recipient", "keys/owner.pub"]).code(1), &["--signer", &signer]);
    world.site.key_named("operator", "rfc9580");
    let other = ["adopt", "--signer", &signer, "--recipient", "keys/operator.pub"];
    says(&world.site.brackfs(&other).code(1), &["nothing was written"]);
    assert_eq!(fs::read_dir(world.site.repo().join("secrets")).unwrap().count(), before);
    let run = world.site.brackfs(&["adopt", "--json", "--signer", &signer, "--recipient", "keys/owner.pub"]).ok();
    assert!(run.stdout.contains("\"new_host_key\":true"), "{run}");
    let told: serde_json::Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(told["recipients"].as_array().unwrap().len(), 1, "{run}");
    let run = world.backup(&[]).ok();
    assert_stored_nothing_again(&world, &run);
    world.assert_whole();
    // The old machine cannot verify the signatures of the new one. It reports that, and loses nothing.
    says(&world.backup_with(&old).ok(), &["cannot verify", "another machine with a host key of its own"]);
    world.site.brackfs(&["check", "--read-data"]).ok();
    // The new host key alone is enough from now on.
    fs::remove_file(world.catalog()).unwrap();
    let run = world.backup(&[]).ok();
    says(&run, &["rebuilt"]);
    assert_stored_nothing_again(&world, &run);
    world.site.brackfs(&["check", "--read-data"]).ok();
    // And the old machine can be the writer again.
    let mut adopt = world.site.command(&["adopt"]);
    adopt.env("BRACKFS_STATE_DIR", &old);
    common::run(adopt).ok();
    world.backup_with(&old).ok();
    world.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_new_machine_refuses_a_repository_without_some_documents() {
    let mut world = World::new();
    for name in ["one", "two", "three"] {
        world.site.write(name, noise(name, MIB));
        world.backup(&[]).ok();
    }
    // With tombstones, and a shard of moves.
    fs::remove_file(world.site.source().join("one")).unwrap();
    world.backup(&[]).ok();
    world.site.brackfs(&["forget", "--keep-last", "2", "--force"]).ok();
    world.site.brackfs(&["prune", "--grace", "0", "--max-waste", "0"]).ok();
    let earlier = tree(&world.site.repo());
    world.backup(&[]).ok();
    let signer =
        SecretKey::parse(&fs::read(world.state().join("host.key")).unwrap()).unwrap().fingerprint().to_string();
    let adopt = |state: &str, extra: &[&str]| {
        let mut command = world.site.command(&[&["adopt", "--signer", &signer], extra].concat());
        command.env("BRACKFS_STATE_DIR", world.site.path().join(state));
        run(command)
    };
    let repo = world.site.repo();
    let objects_in = |folder: &str| {
        let objects: Vec<_> = fs::read_dir(repo.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!objects.is_empty(), "{folder}");
        objects
    };
    let shards = objects_in("moved")
        .into_iter()
        .flat_map(|shard| fs::read_dir(shard).unwrap())
        .map(|entry| entry.unwrap().path());
    let documents = ["index", "snapshots", "forgotten", "secrets"].into_iter().flat_map(objects_in).chain(shards);
    // Those of the last run are not in its own census: its index and its snapshot prove each other.
    let documents = documents.filter(|object| earlier.contains_key(object.strip_prefix(&repo).unwrap()));
    let hidden = world.site.path().join("hidden");
    // Older generations may be missing, so all of them are hidden.
    for object in documents.chain([repo.join("generation")]) {
        fs::rename(&object, &hidden).unwrap();
        let before = tree(&repo);
        let folder = object.strip_prefix(&repo).unwrap().iter().next().unwrap().to_str().unwrap();
        let run = adopt("new", &[]).code(1);
        match folder {
            "secrets" => {}
            // Without tombstones, snapshots are missing.
            "forgotten" => says(&run, &["snapshots", "--accept-missing", "nothing was written"]),
            _ => says(&run, &[folder, "--accept-missing", "nothing was written"]),
        }
        assert!(tree(&repo) == before, "{}", object.display());
        fs::rename(&hidden, &object).unwrap();
    }
    let index = fs::read_dir(repo.join("index")).unwrap().next().unwrap().unwrap().path();
    fs::rename(&index, world.site.path().join("lost")).unwrap();
    adopt("new", &["--accept-missing"]).ok();
}

#[test]
fn adopt_adds_no_recipient_after_the_target_exchanged_the_host_key() {
    let world = World::new();
    let site = &world.site;
    let key = SecretKey::parse(&fs::read(world.state().join("host.key")).unwrap()).unwrap();
    let real = key.fingerprint().to_string();
    // The operator needs no secret for this: another host key, and secrets sealed to the owner that name it.
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let operator = SecretKey::parse(&fs::read(site.key_named("operator", "rfc9580")).unwrap()).unwrap().certificate();
    let owner = repository.keys().recipients().unwrap();
    let recipients = [owner.as_slice(), std::slice::from_ref(&operator)].concat();
    let false_host = SecretKey::generate_host(&recipients).unwrap();
    let (host, signer) = (false_host.certificate(), Signer::new(false_host).unwrap());
    let secrets = Secrets {
        generation: 0,
        edition: 0,
        seed: 7,
        encrypted: true,
        recipients: recipients.iter().map(|key| key.to_bytes().unwrap()).collect(),
        hosts: vec![DatedSigner::new(host.to_bytes().unwrap())],
        keepers: Vec::new(),
    };
    for folder in ["secrets", "keys"] {
        for entry in fs::read_dir(site.repo().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if folder == "secrets" || path.file_name().unwrap().to_str().unwrap().starts_with("host-") {
                fs::remove_file(path).unwrap();
            }
        }
    }
    let writer = Writer::new(&repository, signer, &host, &owner).unwrap();
    writer.put_secrets(ObjectId::random(), &secrets).unwrap();
    repository.keys().put_host(&host).unwrap();
    repository.keys().put_recipient(&operator).unwrap();

    let state = site.path().join("new");
    let adopt = |extra: &[&str]| {
        let mut command = site.command(&[&["adopt"], extra].concat());
        command.env("BRACKFS_STATE_DIR", &state);
        common::run(command)
    };
    // Without a signer, with the one in the repository, and with both. Documents of the other machine are always
    // present.
    says(&adopt(&[]).code(1), &["--signer"]);
    let shown = host.fingerprint().to_string();
    says(&adopt(&["--signer", &shown]).code(1), &[&real, "Nothing was written"]);
    adopt(&["--signer", &real]).code(1);
    adopt(&["--recipient", "keys/owner.pub"]).code(1);
    assert!(!state.join(repository.id().to_string()).join("host.key").exists());
}

#[test]
fn invalid_generations_are_named_and_stop_no_backup() {
    let mut world = World::new();
    world.site.write("new", "new");
    world.backup(&[]).ok();
    let folder = world.site.repo().join("generation");
    let mut names: Vec<_> = tree(&folder).into_keys().map(|name| name.to_str().unwrap().to_owned()).collect();
    names.sort();
    // The last remaining one is unreadable.
    let name = names.pop().unwrap();
    let last = folder.join(&name);
    let good = fs::read(&last).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&last, bad).unwrap();
    says(
        &world.backup(&[]).ok(),
        &["cannot verify 1 object in generation/", &format!("generation/{name}"), "set back"],
    );
    fs::write(&last, good).unwrap();
    // The next number, a distant one, the highest, and names that are not numbers.
    for (object, is_one) in [
        ("0000000004", true),
        ("0000000005", true),
        ("4000000000", true),
        ("9999999999", true),
        ("18446744073709551615", false),
        ("+000000009", false),
        ("00000000009", false),
    ] {
        let object = &format!("{object}-{RUN}");
        fs::write(folder.join(object), "").unwrap();
        let run = world.backup(&[]).ok();
        assert_eq!(run.stderr.contains(&format!("generation/{object}")), is_one, "{run}");
    }
    world.site.brackfs(&["adopt"]).ok();
    world.backup(&[]).ok();
    fs::remove_file(world.catalog()).unwrap();
    let run = world.backup(&[]).ok();
    assert_stored_nothing_again(&world, &run);
    for number in ["0000000004", "0000000005", "4000000000", "9999999999"] {
        fs::remove_file(folder.join(format!("{number}-{RUN}"))).unwrap();
    }
    let run = world.backup(&[]).ok();
    assert!(!run.stderr.contains("generation/"), "{run}");
    world.assert_whole();
}

#[test]
fn unwritable_state_is_an_error_and_harms_nothing() {
    let mut world = World::new();
    let state = world.site.state();
    let mount = |arguments: &[&str]| {
        machine::succeed(Command::new("mount").args(arguments).arg(&state));
    };
    mount(&["--bind", state.to_str().unwrap()]);
    mount(&["-o", "remount,ro,bind"]);
    for arguments in [["backup", "source"].as_slice(), &["catalog", "rebuild"], &["adopt"]] {
        let run = world.site.brackfs(arguments).code(1);
        says(&run, &["Read-only file system", state.to_str().unwrap()]);
    }
    machine::succeed(Command::new("umount").arg(&state));
    assert_eq!(world.backup(&[]).ok().stderr, "");
    world.assert_whole();
}

#[test]
fn a_full_disk_of_the_state_is_an_error_and_harms_nothing() {
    let mut world = World::new();
    let state = world.site.state();
    let aside = world.copy_of_state("aside");
    let folder = state.join(world.state().file_name().unwrap());
    machine::mount_tmpfs(&state, c"size=6m");
    copy(&aside.join(folder.file_name().unwrap()), &folder);
    let filler = state.join("filler");
    let fill = || {
        let mut file = File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
    };
    let before = fs::read(folder.join("catalog.sqlite")).unwrap();
    fill();
    for i in 0..200 {
        world.site.write(&format!("new/{i}"), noise(&format!("new {i}"), 300));
    }
    says(&world.backup(&[]).code(1), &["catalog.sqlite", "disk is full"]);
    says(&world.site.brackfs(&["catalog", "rebuild"]).code(1), &["catalog.sqlite.new"]);
    assert_eq!(fs::read(folder.join("catalog.sqlite")).unwrap(), before);
    fs::remove_file(&filler).unwrap();
    world.backup(&[]).ok();
    world.assert_whole();
}

/// Loses each pack of a tree with large directories and files.
#[test]
fn the_next_snapshot_is_whole_after_the_loss_of_any_pack() {
    let mut world = World::new();
    let options = ["--chunk-size", "16KiB"];
    world.site.write("long", noise("long", 24 * MIB));
    for i in 0..3200 {
        world.site.write(&format!("many/{i}"), format!("{i}"));
    }
    for i in 0..40 {
        world.site.write(&format!("deep/{}/{i}", i % 7), noise(&format!("deep {i}"), 40_000));
    }
    world.backup(&options).ok();
    world.site.write("many/1700", "changed");
    world.site.write("deep/3/3", noise("changed", 600_000));
    world.backup(&options).ok();
    let (state, repo) =
        (world.copy_of_state("state-before"), copy(&world.site.repo(), &world.site.path().join("before")));
    let packs = world.packs();
    assert!(packs.len() > 5);
    for pack in packs {
        fs::remove_file(&pack).unwrap();
        forget_checks(&world);
        let run = world.backup(&options).code(3);
        let (id, expected) = world.snapshots.pop().unwrap();
        let to = world.site.path().join("out");
        world.site.brackfs(&["restore", &id, "--to", to.to_str().unwrap()]).ok();
        common::ordeal::same(&tree(&to), &expected, &run.to_string());
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(number(&world.site.brackfs(&["catalog", "verify", "--json"]).ok().json(), "problems"), 0);
        assert_eq!(number(&world.backup(&options).ok().json(), "files_read"), 0, "{run}");
        world.snapshots.pop();
        replace_directory(&state, &world.site.state());
        replace_directory(&repo, &world.site.repo());
    }
}

#[test]
fn an_unmounted_disk_does_not_count_as_lost_packs() {
    let mut world = World::new();
    let (packs, away) = (world.site.repo().join("packs"), world.site.path().join("away"));
    fs::rename(&packs, &away).unwrap();
    fs::create_dir(&packs).unwrap();
    forget_checks(&world);
    says(&world.backup(&[]).code(1), &["is the disk at packs/ not mounted"]);
    fs::remove_dir(&packs).unwrap();
    fs::rename(&away, &packs).unwrap();
    let run = world.backup(&[]).ok();
    assert_eq!((run.stderr.as_str(), number(&run.json(), "files_read")), ("", 0));
    world.assert_whole();
}

/// Makes all packs look as if their last check was years ago.
fn forget_checks(world: &World) {
    let db = rusqlite::Connection::open(world.catalog()).unwrap();
    assert!(db.execute("UPDATE packs SET verified = 0", []).unwrap() > 0);
}

#[test]
fn packs_are_checked_again_after_a_while_and_lost_data_is_stored_again() {
    let leaf = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let damages: [(&str, Damage); 3] = [
        ("the pack is missing", |path| fs::remove_file(path).unwrap()),
        ("has 1000 bytes where", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap()),
        ("not those that were stored", |path| {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 70_000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 70_000).unwrap();
        }),
    ];
    for (words, damage) in damages {
        let mut world = World::new();
        let pack = world.packs().remove(0);
        damage(&pack);
        // No check is due, so no pack is accessed.
        world.backup(&[]).ok();
        forget_checks(&world);
        if words.starts_with("not") {
            assert_eq!(world.backup(&["--recheck", "0"]).ok().stderr, "");
            forget_checks(&world);
        }
        world.snapshots.clear();
        let run = world.backup(&[]).code(3);
        says(&run, &[words, &leaf(&pack)]);
        assert_eq!(number(&run.json(), "problems"), 1);
        assert!(number(&run.json(), "data_bytes") > 4 * MIB as u64, "{run}");
        let (id, expected) = &world.snapshots[0];
        let to = world.site.path().join("out");
        world.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).ok();
        assert!(tree(&to) == *expected);
        let verified = world.site.brackfs(&["catalog", "verify", "--json"]).ok().json();
        assert_eq!(number(&verified, "lost_packs"), 1);
        // The loss was reported already, and the current state is valid.
        let after = world.backup(&["--skip-if-unchanged"]).ok();
        assert_eq!((after.stderr.as_str(), number(&after.json(), "files_read")), ("", 0));
    }
}

#[test]
fn a_run_waits_for_another_up_to_its_limit() {
    let mut world = World::new();
    let lock = File::options().write(true).open(world.state().join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    says(&world.backup(&[]).code(11), &["--wait-lock"]);
    let begun = Instant::now();
    says(&world.backup(&["--wait-lock", "1s"]).code(11), &["waiting for another run", "process "]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    says(&world.site.brackfs(&["catalog", "rebuild"]).code(11), &["another run"]);
    world.backup(&["--wait-lock", "soon"]).code(2);

    let waits = || {
        let said = world.site.path().join("said");
        let mut command = world.site.command(&["backup", "source", "--wait-lock", "10m"]);
        let child = command.stdout(Stdio::null()).stderr(File::create(&said).unwrap()).spawn().unwrap();
        until("it waits", || fs::read_to_string(&said).unwrap().contains("waiting for another run"));
        child
    };
    let mut child = waits();
    send(&child, Signal::INT);
    assert_eq!(ended(&mut child).code(), Some(130));
    let mut child = waits();
    drop(lock);
    assert!(ended(&mut child).success());
    world.backup(&[]).ok();
}

/// Replaces the indexes by forged ones with valid signatures.
fn forge_indexes(world: &World, forge: impl Fn(&mut Index)) {
    let repository = Repository::open(&world.site.repo().as_path().into()).unwrap();
    let key = SecretKey::parse(&fs::read(world.state().join("host.key")).unwrap()).unwrap();
    let host = key.certificate();
    let recipients = repository.keys().recipients().unwrap();
    let writer = Writer::new(&repository, Signer::new(key.clone()).unwrap(), &host, &recipients).unwrap();
    let access = Access::new(Some(Opener::new(key).unwrap()), vec![host]);
    for object in repository.target().list("index/").unwrap() {
        let id = object.name.strip_prefix("index/").unwrap().parse().unwrap();
        let mut index = access.index(&repository, id).unwrap();
        forge(&mut index);
        writer.put_index(ObjectId::random(), &index).unwrap();
        fs::remove_file(world.site.repo().join(object.name)).unwrap();
    }
}

#[test]
fn check_finds_a_false_index() {
    let check = |forge: &dyn Fn(&mut Index), words: &str| {
        let world = World::new();
        world.site.brackfs(&["check", "--read-data"]).ok();
        forge_indexes(&world, forge);
        // With -v, all problems are shown, and names are whole.
        let [without, with] = [&["check", "-v"][..], &["check", "-v", "--read-data"]].map(|it| world.site.brackfs(it));
        (without, with.code(1), words.to_owned())
    };
    let blocks = |index: &mut Index, change: &dyn Fn(&mut IndexedBlock)| {
        index.packs.iter_mut().flat_map(|pack| &mut pack.blocks).for_each(change);
    };
    // Lies about chunks. What trees refer to is compared without reading data.
    type Forge<'a> = &'a dyn Fn(&mut Index);
    let in_chunks: [Forge<'_>; 3] = [
        &|index| blocks(index, &|block| block.chunks.reverse()),
        &|index| blocks(index, &|block| block.chunks[0].1 -= 1),
        &|index| blocks(index, &|block| block.chunks[0].0.0[31] ^= 1),
    ];
    for forge in in_chunks {
        let (without, with, words) = check(forge, "does not match index/");
        says(&without.code(1), &[&words, "its reference to the block at"]);
        says(&with, &[&words]);
    }
    // Lies that only the data reveals.
    let in_data: [(&str, Forge<'_>); 3] = [
        ("does not match index/", &|index| {
            blocks(index, &|block| block.chunks.push((Digest::of(b"invented"), 8)));
        }),
        ("the check of the block at", &|index| blocks(index, &|block| block.check.0[0] ^= 1)),
        ("its sum differs from index/", &|index| {
            index.packs.iter_mut().for_each(|pack| pack.digest = Some(Digest::of(b"x")))
        }),
    ];
    for (words, forge) in in_data {
        let (_, with, words) = check(forge, words);
        says(&with, &[&words]);
    }
    // Lies that lengths reveal.
    let in_lengths: [Forge<'_>; 2] = [
        &|index| {
            for pack in &mut index.packs {
                let last = pack.blocks.pop().unwrap();
                (pack.count, pack.length) = (last.ordinal, last.offset);
            }
        },
        &|index| index.packs.iter_mut().for_each(|pack| pack.id = PackId::random()),
    ];
    for forge in in_lengths {
        let (without, with, words) = check(forge, "bytes");
        says(&without.code(1), &["index/", &words]);
        says(&with, &["index/", &words]);
    }
}
