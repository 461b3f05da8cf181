//! Pruning frees what no kept snapshot needs, with the host key alone, and loses nothing: kept snapshots restore byte for
//! byte whatever happens during a prune.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use common::machine::{copy, succeed};
use common::ordeal::{End, Ordeal, Random, count_calls, is_long, rounds, under_strace};
use common::stopped::stopped_at;
use common::{Entry, Run, Site, noise, number, run, settle, tree};
use serde_json::Value;

type Tree = BTreeMap<PathBuf, Entry>;

/// A site with four snapshots, each of which has some files of its own, and the trees of all of them.
struct World {
    site: Site,
    snapshots: Vec<(String, Tree)>,
}

impl World {
    fn new() -> World {
        let site = Site::new();
        site.init();
        let mut world = World { site, snapshots: Vec::new() };
        for round in 0..4 {
            for file in 0..12 {
                // A third of the large files and half of the small ones change each time.
                if round == 0 || file % 3 == round % 3 {
                    world.site.write(&format!("large/{file}"), noise(&format!("{round} {file}"), 600_000));
                }
            }
            for file in 0..40 {
                if round == 0 || file % 2 == round % 2 {
                    world.site.write(&format!("small/{file}"), noise(&format!("small {round} {file}"), 3000));
                }
            }
            world.backup();
        }
        world
    }

    fn backup(&mut self) -> Run {
        settle();
        let run = self.site.backup(&[]).ok();
        let id = run.json()["snapshot_id"].as_str().unwrap().to_owned();
        self.snapshots.push((id, tree(&self.site.source())));
        run
    }

    /// Runs a command as the machine does that is backed up: without the owner's key.
    fn as_host(&self, arguments: &[&str]) -> Run {
        let mut command = self.site.command(arguments);
        command.env_remove("BRACKFS_KEY_FILE");
        run(command)
    }

    /// Forgets all but the last `kept` snapshots.
    fn forget(&mut self, kept: usize) {
        self.as_host(&["forget", "--keep-last", &kept.to_string(), "--force"]).ok();
        let gone = self.snapshots.len() - kept;
        self.snapshots.drain(..gone);
    }

    fn prune(&self, extra: &[&str]) -> Run {
        self.as_host(&[&["prune", "--json"], extra].concat())
    }

    /// Removes all that can be removed, at once.
    fn prune_all(&self) -> Value {
        self.prune(&["--grace", "0", "--max-waste", "0"]).ok().json()
    }

    fn packs(&self) -> u64 {
        let packs = self.site.repo().join("packs");
        tree(&packs)
            .keys()
            .filter_map(|path| fs::metadata(packs.join(path)).ok())
            .filter(fs::Metadata::is_file)
            .map(|pack| pack.len())
            .sum()
    }

    /// Kept snapshots restore, packs have their sums, and catalog and repository agree.
    fn assert_whole(&self) {
        self.assert_kept();
        self.assert_sums();
    }

    fn assert_kept(&self) {
        for (id, expected) in &self.snapshots {
            let to = self.site.path().join("restored");
            self.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).ok();
            common::ordeal::same(&tree(&to), expected, id);
            fs::remove_dir_all(&to).unwrap();
        }
        let shown = self.site.brackfs(&["snapshots", "--json"]).ok().stdout;
        let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
        let ids: Vec<_> = shown.iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
        assert_eq!(ids, self.snapshots.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>());
        self.as_host(&["catalog", "verify"]).ok();
        self.site.brackfs(&["check", "--read-data"]).ok();
    }

    fn assert_sums(&self) {
        let mut command = Command::new("sh");
        command.current_dir(self.site.repo());
        command.args(["-c", "find sums -type f -exec cat {} + | b3sum --check --quiet"]);
        succeed(&mut command);
    }

    /// Removes all that can be removed and was condemned more than a day before this day.
    fn prune_at(&self, day: i64) -> Value {
        let now = jiff::Timestamp::from_second(4_000_000_000 + day * 86_400).unwrap().to_string();
        self.prune(&["--max-waste", "0", "--now", &now]).ok().json()
    }

    fn undo(&self) {
        self.as_host(&["forget", "--undo"]).ok();
    }

    /// Loses the state directory, and adopts the repository with the owner's key.
    fn adopt(&self) {
        fs::remove_dir_all(self.site.state()).unwrap();
        fs::create_dir(self.site.state()).unwrap();
        let keys = self.objects("keys");
        let names = keys.iter().filter_map(|key| key.file_name()?.to_str());
        let signer = names.filter_map(|name| name.strip_prefix("host-")?.strip_suffix(".asc")).next().unwrap();
        self.site.brackfs(&["adopt", "--signer", signer]).ok();
    }

    fn remove_catalog(&self) {
        let id = fs::read_dir(self.site.state()).unwrap().next().unwrap().unwrap().path();
        fs::remove_file(id.join("catalog.sqlite")).unwrap();
    }

    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.site.repo().join(folder);
        tree(&folder).into_keys().map(|path| folder.join(path)).filter(|path| path.is_file()).collect()
    }

    fn copied(&self, name: &str) -> PathBuf {
        let to = self.site.path().join(name);
        fs::create_dir_all(&to).unwrap();
        copy(&self.site.repo(), &to.join("repo"));
        copy(&self.site.state(), &to.join("state"));
        to
    }

    fn set_back(&self, from: &Path) {
        for folder in ["repo", "state"] {
            fs::remove_dir_all(self.site.path().join(folder)).unwrap();
            copy(&from.join(folder), &self.site.path().join(folder));
        }
    }
}

fn says(run: &Run, words: &str) {
    assert!(run.stderr.contains(words), "nothing is said of {words:?}\n{run}");
}

#[test]
fn a_dry_run_predicts_the_freed_bytes_and_changes_nothing() {
    let mut world = World::new();
    world.forget(1);
    let before = tree(&world.site.repo());
    let stored = world.packs();
    for extra in [["--max-waste", "0"], ["--max-waste", "20%"], ["--max-copy", "0"]] {
        let arguments = [&["--grace", "0"][..], &extra].concat();
        let dry = world.prune(&[&arguments[..], &["--dry-run"]].concat()).ok().json();
        common::ordeal::same(&tree(&world.site.repo()), &before, "after a dry run");
        let kept = world.copied("kept");
        let wet = world.prune(&arguments).ok().json();
        for field in ["freed_bytes", "removed_packs", "copied_bytes", "compacted_packs", "live_bytes"] {
            assert_eq!(dry[field], wet[field], "{extra:?}: {field}");
        }
        assert_eq!(world.packs(), stored - number(&wet, "freed_bytes") + number(&wet, "copied_bytes"), "{extra:?}");
        world.assert_whole();
        world.set_back(&kept);
        fs::remove_dir_all(kept).unwrap();
    }
}

#[test]
fn without_waste_only_needed_data_is_left() {
    let mut world = World::new();
    world.forget(2);
    let pruned = world.prune_all();
    assert!(number(&pruned, "copied_bytes") > 0 && number(&pruned, "freed_bytes") > 0, "{pruned}");
    assert_eq!(number(&pruned, "live_bytes"), world.packs());
    world.assert_whole();
    assert_eq!(world.objects("snapshots").len(), 2);
    // Nothing is left to do, and nothing is written.
    let before = tree(&world.site.repo());
    assert_eq!(number(&world.prune_all(), "freed_bytes"), 0);
    common::ordeal::same(&tree(&world.site.repo()), &before, "a prune without work");
    // Backups go on, and use what was moved.
    let run = world.backup();
    assert!(number(&run.json(), "stored_bytes") < 20_000, "{run}");
    world.site.write("large/new", noise("new", 600_000));
    world.backup();
    world.forget(1);
    let pruned = world.prune_all();
    assert_eq!(number(&pruned, "live_bytes"), world.packs());
    world.assert_whole();
}

#[test]
fn condemned_data_stays_for_the_grace_and_forgotten_snapshots_can_be_taken_back() {
    let mut world = World::new();
    let all = world.snapshots.clone();
    let stored = world.packs();
    world.forget(1);
    // The first prune copies and condemns.
    let first = world.prune_at(0);
    assert_eq!(number(&first, "freed_bytes"), 0);
    assert!(number(&first, "pending_bytes") > 0);
    assert!(world.packs() >= stored);
    world.assert_whole();
    let second = world.prune_at(0);
    assert_eq!((number(&second, "freed_bytes"), number(&second, "copied_bytes")), (0, 0));
    let kept = world.copied("kept");

    // Within the grace, snapshots can be taken back.
    world.undo();
    let last = std::mem::replace(&mut world.snapshots, all);
    world.assert_whole();
    world.prune_at(9);
    world.assert_whole();

    // After it, they are removed.
    world.set_back(&kept);
    world.snapshots = last;
    let third = world.prune_at(2);
    assert_eq!(third["freed_bytes"], first["pending_bytes"]);
    assert_eq!(number(&third, "pending_bytes"), 0);
    assert_eq!(world.objects("snapshots").len(), 1);
    world.assert_whole();
    assert_eq!(number(&world.prune_at(3), "freed_bytes"), 0);
}

#[test]
fn damaged_data_is_not_copied_and_stays_reported() {
    let mut world = World::new();
    world.forget(2);
    let packs = world.packs();
    // No block is larger than 64 KiB.
    for pack in world.objects("packs") {
        let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
        for at in (0..file.metadata().unwrap().len()).step_by(1 << 16) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
    let before = world.site.brackfs(&["check", "--read-data"]).code(1);
    let run = world.prune(&["--grace", "0", "--max-waste", "0"]).code(3);
    says(&run, "is damaged; the pack stays");
    let pruned = run.json();
    assert!(number(&pruned, "damaged_packs") > 0, "{pruned}");
    assert_eq!(number(&pruned, "copied_bytes"), 0);
    assert_eq!(world.packs(), packs - number(&pruned, "freed_bytes"));
    let after = world.site.brackfs(&["check", "--read-data"]).code(1);
    assert!(after.stderr.lines().count() <= before.stderr.lines().count(), "{before}{after}");
}

#[test]
fn missing_packs_are_not_lost_if_all_are_missing() {
    let mut world = World::new();
    world.forget(2);
    let (packs, away) = (world.site.repo().join("packs"), world.site.path().join("away"));
    fs::rename(&packs, &away).unwrap();
    says(&world.prune(&["--grace", "0", "--max-waste", "0"]).code(1), "none of the packs in the catalog were found");
    let _ = fs::remove_dir_all(&packs);
    fs::rename(&away, &packs).unwrap();
    let pruned = world.prune_all();
    assert!(number(&pruned, "copied_bytes") > 0 && number(&pruned, "damaged_packs") == 0, "{pruned}");
    world.assert_whole();
}

#[test]
fn nothing_is_removed_if_a_document_is_missing_or_unknown() {
    let mut world = World::new();
    world.forget(1);
    let packs = world.packs();
    for folder in ["index", "snapshots", "secrets", "forgotten"] {
        let object = world.objects(folder).pop().unwrap();
        let away = world.site.path().join("away");
        fs::rename(&object, &away).unwrap();
        let run = world.prune(&["--grace", "0", "--max-waste", "0"]);
        // The next run puts back secrets; the missing one is still missing.
        says(&run.code(1), "nothing was removed: ");
        fs::rename(&away, &object).unwrap();
        if folder == "secrets" {
            for other in world.objects(folder).into_iter().filter(|other| *other != object) {
                fs::remove_file(other).unwrap();
            }
        }
    }
    assert_eq!(world.packs(), packs);
    let other = world.site.repo().join("index/00000000-0000-4000-8000-000000000000");
    fs::write(&other, "").unwrap();
    says(&world.prune(&["--grace", "0"]).code(1), "index/00000000-0000-4000-8000-000000000000 is not in the catalog");
    fs::remove_file(other).unwrap();
}

#[test]
fn a_machine_that_lost_its_catalog_prunes_again_after_a_backup() {
    let mut world = World::new();
    world.forget(3);
    world.prune_all();
    world.forget(2);
    world.remove_catalog();
    // The run that rebuilds removes nothing.
    says(&world.prune(&["--grace", "0", "--max-waste", "0"]).code(1), "nothing was removed: ");
    let pruned = world.prune_all();
    assert!(number(&pruned, "freed_bytes") > 0, "{pruned}");
    assert_eq!(number(&pruned, "live_bytes"), world.packs());
    world.assert_whole();
}

#[test]
fn stats_tell_what_forgetting_a_snapshot_frees() {
    let mut world = World::new();
    let stats = |world: &World| world.as_host(&["stats", "--json"]).ok().json();
    let before = stats(&world);
    let snapshots = before["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 4);
    assert_eq!(number(&before, "stored_bytes"), world.packs());
    assert_eq!(before["sources"][0]["live_bytes"], before["live_bytes"]);
    let (id, _) = world.snapshots.remove(1);
    let unique = number(&snapshots[1], "unique_bytes");
    assert!(unique > 0);
    world.as_host(&["forget", &id]).ok();
    let after = stats(&world);
    assert_eq!(number(&after, "live_bytes"), number(&before, "live_bytes") - unique);
    assert_eq!(after["live_bytes"], world.prune_all()["live_bytes"]);
    assert_eq!(number(&stats(&world), "waste_bytes"), 0);
    let text = world.as_host(&["stats"]).ok().stdout;
    assert_eq!(text.lines().count(), 1 + 3 + 1 + 1, "{text}");
}

/// Reads a mounted snapshot with `find`, `cp` and at random places until told to stop. Returns the number of rounds.
fn read_on(root: &Path, out: &Path, expected: &Tree, stop: &AtomicBool) -> u32 {
    let mut random = Random::new(1, "reads");
    let files: Vec<_> = expected.keys().filter(|path| root.join(path).is_file()).collect();
    let mut turns = 0;
    while turns == 0 || !stop.load(Ordering::Relaxed) {
        let mut find = Command::new("find");
        find.arg(root).args(["-printf", "%s %T@ %i\\n"]).stdout(Stdio::null());
        succeed(&mut find);
        succeed(Command::new("cp").arg("-a").args([root, out]));
        common::ordeal::same(&tree(out), expected, "copied beside a prune");
        for _ in 0..40 {
            let path = random.choose(&files);
            let [inside, outside] = [root, out].map(|at| fs::File::open(at.join(path)).unwrap());
            let length = inside.metadata().unwrap().len();
            let at = random.below(length);
            let mut bytes = [vec![0; 5000.min(length - at) as usize], vec![0; 5000.min(length - at) as usize]];
            inside.read_exact_at(&mut bytes[0], at).unwrap();
            outside.read_exact_at(&mut bytes[1], at).unwrap();
            assert!(bytes[0] == bytes[1], "{} at {at}", path.display());
        }
        fs::remove_dir_all(out).unwrap();
        turns += 1;
    }
    turns
}

#[test]
fn a_mount_of_a_kept_snapshot_does_not_notice_prunes() {
    let mut world = World::new();
    let (kept, expected) = world.snapshots[0].clone();
    world.as_host(&["hold", &kept]).ok();
    let mounted = world.site.mount(&["--cache-size", "1MiB"]);
    let folders: Vec<_> =
        fs::read_dir(mounted.path().join("source")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let first = folders.iter().filter(|path| !path.is_symlink()).min().unwrap().clone();
    common::ordeal::same(&tree(&first), &expected, "before the first prune");
    let inodes = |root: &Path| -> Vec<u64> {
        tree(root)
            .keys()
            .map(|path| std::os::unix::fs::MetadataExt::ino(&fs::symlink_metadata(root.join(path)).unwrap()))
            .collect()
    };
    let before = inodes(&first);
    let out = world.site.path().join("out");
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let end = End(&stop);
        let reader = threads.spawn(|| read_on(&first, &out, &expected, &stop));
        for round in 0..if is_long() { 20 } else { 5 } {
            // A held snapshot stays; the one before the last goes each time, so blocks are moved again and again.
            world.site.write(&format!("large/{round}"), noise(&format!("later {round}"), 600_000));
            world.backup();
            world.as_host(&["forget", "--keep-last", "1", "--force"]).ok();
            world.prune_all();
            assert_eq!(inodes(&first), before, "after prune {round}");
        }
        drop(end);
        reader.join().unwrap();
    });
    let last = world.snapshots.pop().unwrap();
    world.snapshots = vec![(kept, expected), last];
    drop(mounted);
    world.assert_whole();
}

#[test]
fn a_copy_of_the_machine_that_does_not_know_of_a_prune_loses_nothing() {
    let mut world = World::new();
    let clone = world.copied("clone").join("state");
    world.forget(1);
    world.prune_all();
    // The copy's catalog still lists everything.
    world.site.write("large/0", noise("0 0", 600_000));
    settle();
    let source = world.site.source();
    let mut backup = world.site.command(&["backup", source.to_str().unwrap(), "--json"]);
    backup.env("BRACKFS_STATE_DIR", &clone);
    let made = run(backup).ok();
    says(&made, "the repository has runs that this machine's catalog does not know");
    world.snapshots.push((made.json()["snapshot_id"].as_str().unwrap().to_owned(), tree(&source)));
    // And the machine itself goes on after the copy.
    world.backup();
    let pruned = world.prune_all();
    assert_eq!(number(&pruned, "live_bytes"), world.packs());
    world.assert_whole();
}

/// A repository that is copied back while it is incomplete: an index and its snapshot are not there yet.
#[test]
fn a_catalog_that_was_rebuilt_without_some_documents_removes_nothing_until_they_are_back() {
    let mut world = World::new();
    let away = world.site.path().join("away");
    fs::create_dir(&away).unwrap();
    let (kept, _) = world.snapshots.last().unwrap().clone();
    let snapshot = world.objects("snapshots").into_iter().find(|path| path.to_str().unwrap().ends_with(&kept)).unwrap();
    // The last index that was written has the usage of the last snapshot.
    let mut indexes = world.objects("index");
    indexes.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let hidden = [snapshot, indexes.pop().unwrap()];
    // A later run counts both.
    world.site.backup(&["--source", "other"]).ok();
    let hide = |back: bool| {
        for object in &hidden {
            let there = away.join(object.file_name().unwrap());
            if back { fs::rename(&there, object) } else { fs::rename(object, &there) }.unwrap();
        }
    };
    hide(false);
    world.remove_catalog();
    world.site.backup(&["--source", "other"]).ok();
    world.site.backup(&["--source", "other"]).ok();
    let packs = world.packs();
    says(&world.prune(&["--grace", "0", "--max-waste", "0"]).code(1), "were missing when the catalog was rebuilt");
    assert_eq!(world.packs(), packs);
    hide(true);
    // Runs since then counted neither; the next one after a comparison does.
    for _ in 0..2 {
        world.remove_catalog();
        world.site.backup(&["--source", "other"]).ok();
    }
    world.prune_all();
    world.site.brackfs(&["check", "--read-data"]).ok();
    let to = world.site.path().join("restored");
    world.site.brackfs(&["restore", &kept, "--to", to.to_str().unwrap()]).ok();
    common::ordeal::same(&tree(&to), &world.snapshots.pop().unwrap().1, "the snapshot that was missing");
}

/// The command of a prune that removes everything at once, as [`World::prune_all`].
fn prune_command(world: &World) -> Command {
    let mut prune = world.site.command(&["prune", "--grace", "0", "--max-waste", "0"]);
    prune.env_remove("BRACKFS_KEY_FILE");
    prune
}

/// Kills a prune at its last link, which is that of the tombstones without the removed packs.
fn killed_before_the_last_tombstones(world: &World) {
    let kept = world.copied("counted");
    let last = count_calls(&["linkat"], &prune_command(world))["linkat"];
    world.set_back(&kept);
    let kill = format!("inject=linkat:signal=KILL:when={last}");
    let strace = ["-o", "/dev/null", "-e", "trace=linkat", "-e", &kill];
    run(under_strace(&strace, &prune_command(world))).code(137);
}

/// Rebuilds the catalog while carriers are not listed, then prunes.
fn rebuilt_without_carriers(is_killed: bool) {
    let mut world = World::new();
    world.forget(2);
    let before = world.objects("packs");
    if is_killed {
        killed_before_the_last_tombstones(&world);
    } else {
        world.prune_all();
    }
    let carriers: Vec<_> = world.objects("packs").into_iter().filter(|pack| !before.contains(pack)).collect();
    assert!(!carriers.is_empty());
    let away = world.site.path().join("away");
    fs::create_dir(&away).unwrap();
    let hidden = |carrier: &PathBuf| away.join(carrier.file_name().unwrap());
    carriers.iter().for_each(|carrier| fs::rename(carrier, hidden(carrier)).unwrap());
    world.remove_catalog();
    world.as_host(&["catalog", "rebuild"]).ok();
    carriers.iter().for_each(|carrier| fs::rename(hidden(carrier), carrier).unwrap());
    // This run announces itself; the next one has a proof that nothing is missing.
    world.site.backup(&["--source", "other"]).ok();
    for _ in 0..2 {
        world.prune_all();
    }
    world.as_host(&["forget", "--source", "other", "--keep-last", "1"]).ok();
    assert!(carriers.iter().all(|carrier| carrier.exists()));
    for (id, expected) in &world.snapshots {
        let to = world.site.path().join("restored");
        world.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).ok();
        common::ordeal::same(&tree(&to), expected, id);
        fs::remove_dir_all(&to).unwrap();
    }
    world.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_carrier_that_is_not_listed_during_a_rebuild_is_not_removed() {
    rebuilt_without_carriers(false);
}

#[test]
fn a_carrier_that_is_not_listed_during_a_rebuild_after_a_killed_prune_is_not_removed() {
    rebuilt_without_carriers(true);
}

/// Sets the repository back to before snapshots were forgotten and packs were removed. The machine's state is newer.
fn set_back_to_before_a_removal(refuses: bool) {
    let mut world = World::new();
    let kept = world.copied("kept");
    let all = world.snapshots.clone();
    world.forget(1);
    let packs = world.site.repo().join("packs");
    let set_flag = |flag| {
        let folders = fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path());
        succeed(Command::new("chattr").arg(flag).args(folders));
    };
    if refuses {
        set_flag("+a");
    }
    let pruned = world.prune(&["--grace", "0", "--max-waste", "0"]);
    if refuses {
        set_flag("-a");
    }
    let size = if refuses { "pending_bytes" } else { "freed_bytes" };
    assert!(number(&pruned.ok().json(), size) > 0);
    fs::remove_dir_all(world.site.repo()).unwrap();
    copy(&kept.join("repo"), &world.site.repo());
    world.snapshots = all;
    let run = world.backup();
    says(&run, "the repository is older than this machine's catalog");
    says(&run, "the catalog is rebuilt");
    world.assert_whole();
    for _ in 0..2 {
        world.prune_all();
        world.assert_whole();
    }
    world.forget(2);
    assert!(number(&world.prune_all(), "freed_bytes") > 0);
    world.assert_whole();
}

#[test]
fn a_repository_that_was_set_back_to_before_a_removal_loses_nothing() {
    set_back_to_before_a_removal(false);
}

#[test]
fn packs_that_could_not_be_removed_stay_if_they_are_needed_again() {
    set_back_to_before_a_removal(true);
}

/// A prune forgets the snapshot that a killed backup did not write, and is killed, too.
#[test]
fn prunes_continue_after_a_backup_and_a_prune_that_were_killed() {
    let mut world = World::new();
    world.site.write("large/0", noise("killed", 600_000));
    settle();
    // The last link is that of the snapshot.
    let start = world.copied("start");
    let backup = world.site.command(&["backup", world.site.source().to_str().unwrap()]);
    let last = count_calls(&["linkat"], &backup)["linkat"];
    world.set_back(&start);
    let strace = |nth: u64, command: &Command| {
        let kill = format!("inject=linkat:signal=KILL:when={nth}");
        run(under_strace(&["-o", "/dev/null", "-e", "trace=linkat", "-e", &kill], command))
    };
    strace(last, &backup).code(137);
    let killed = world.copied("killed");
    for nth in 1.. {
        world.set_back(&killed);
        if strace(nth, &prune_command(&world)).code == 0 {
            assert!(nth > 3, "linkat is called too seldom");
            break;
        }
        world.site.brackfs(&["check"]).ok();
        let _ = world.prune(&["--grace", "0", "--max-waste", "0"]);
        world.prune_all();
        world.assert_whole();
        world.backup();
        world.assert_whole();
        world.snapshots.pop();
    }
}

/// Copies of the repository and of the machine's state are of different times.
#[test]
fn a_repository_that_was_set_back_to_before_a_compaction_loses_nothing() {
    let mut world = World::new();
    world.forget(2);
    let kept = world.copied("kept");
    let pruned = world.prune_at(0);
    assert!(number(&pruned, "copied_bytes") > 0 && number(&pruned, "freed_bytes") == 0, "{pruned}");
    fs::remove_dir_all(world.site.repo()).unwrap();
    copy(&kept.join("repo"), &world.site.repo());
    says(&world.backup(), "the repository is older than this machine's catalog");
    for day in [2, 4, 6] {
        world.prune_at(day);
        world.assert_whole();
    }
}

#[test]
fn blocks_of_a_damaged_carrier_are_found_in_the_packs_that_they_came_from() {
    let mut world = World::new();
    world.forget(3);
    let first = world.objects("packs");
    world.prune_at(0);
    world.forget(2);
    let second = world.objects("packs");
    assert!(second.len() > first.len());
    // Some blocks are copied for the second time; neither of their former packs is removed yet.
    world.prune_at(0);
    for carrier in world.objects("packs").iter().filter(|pack| !second.contains(pack)) {
        fs::remove_file(carrier).unwrap();
    }
    // A pack that is missing is noticed by a comparison with the repository.
    let newest = world.objects("generation").pop().unwrap();
    fs::remove_file(newest).unwrap();
    says(&world.backup(), "the repository is older than this machine's catalog");
    for day in [2, 4, 6] {
        world.prune_at(day);
        world.assert_kept();
    }
    // Until then, they name the lost packs.
    world.assert_sums();
}

/// As long as forgotten snapshots can be taken back, they can be read: on each day, also with a rebuilt catalog, and after
/// they are forgotten once more.
#[test]
fn forgotten_snapshots_are_complete_as_long_as_they_can_be_taken_back() {
    let mut world = World::new();
    let mut all = world.snapshots.clone();
    for day in 0..5 {
        world.site.write(&format!("large/{day}"), noise(&format!("day {day}"), 600_000));
        world.backup();
        all.push(world.snapshots.last().unwrap().clone());
        world.forget(2);
        world.prune_at(day);
        let kept = world.copied("kept");
        let last = world.snapshots.clone();
        for is_rebuilt in [false, true] {
            if is_rebuilt {
                world.remove_catalog();
                // Its tombstones seem to be new.
                world.as_host(&["catalog", "rebuild"]).ok();
                world.as_host(&["hold", &last[0].0]).ok();
                world.prune_at(day + 9);
            }
            world.undo();
            if is_rebuilt {
                let shown = world.site.brackfs(&["snapshots", "--json"]).ok().stdout;
                let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
                assert!(shown.len() > 2, "day {day}: nothing can be taken back");
            }
            let gone = world.objects("snapshots");
            let is_there = |id: &str| gone.iter().any(|path| path.to_str().unwrap().ends_with(id));
            world.snapshots = all.iter().filter(|(id, _)| is_there(id)).cloned().collect();
            assert!(world.snapshots.len() > 2, "day {day}");
            world.assert_whole();
            // Forgotten again, without a prune in between: they have their whole grace.
            world.forget(2);
            assert_eq!(number(&world.prune_at(day + 9), "removed_snapshots"), 0);
            world.undo();
            world.snapshots = all.iter().filter(|(id, _)| is_there(id)).cloned().collect();
            world.prune_at(day + 9);
            world.assert_whole();
            world.set_back(&kept);
            world.snapshots.clone_from(&last);
        }
        fs::remove_dir_all(kept).unwrap();
    }
}

#[test]
fn the_last_hold_or_release_counts_after_a_sweep_and_a_rebuild_or_adoption() {
    let mut world = World::new();
    let (id, _) = world.snapshots[3].clone();
    for (round, (last, kept)) in [("hold", "3"), ("release", "3"), ("hold", "2")].into_iter().enumerate() {
        world.as_host(&[last, &id]).ok();
        world.site.write("large/0", noise(&format!("round {round}"), 600_000));
        world.backup();
        world.as_host(&["forget", "--keep-last", kept, "--force"]).ok();
        let pruned = world.prune_all();
        assert!(number(&pruned, "removed_snapshots") > 0, "{pruned}");
        let kept = world.copied("kept");
        for adopts in [false, true] {
            if adopts {
                world.adopt();
            } else {
                world.remove_catalog();
                world.as_host(&["catalog", "rebuild"]).ok();
            }
            let shown = world.as_host(&["snapshots", "--json"]).ok().stdout;
            let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
            let row = shown.iter().find(|snapshot| snapshot["id"] == id.as_str()).expect("the snapshot");
            assert_eq!(row["held"], last == "hold", "round {round}, adopted: {adopts}");
            world.set_back(&kept);
        }
        fs::remove_dir_all(kept).unwrap();
    }
}

/// A killed backup leaves a snapshot that was never written; prunes forget it.
#[test]
fn prunes_continue_after_a_backup_that_was_killed_at_any_link() {
    let mut world = World::new();
    world.site.write("large/0", noise("killed", 600_000));
    settle();
    let start = world.copied("start");
    for nth in 1.. {
        let kill = format!("inject=linkat:signal=KILL:when={nth}");
        let backup = world.site.command(&["backup", world.site.source().to_str().unwrap()]);
        let killed = run(under_strace(&["-o", "/dev/null", "-e", "trace=linkat", "-e", &kill], &backup));
        if killed.code == 0 {
            assert!(nth > 4, "linkat is called too seldom");
            break;
        }
        let before = tree(&world.site.repo());
        // It may refuse, since a run was killed.
        world.prune(&["--dry-run", "--grace", "0"]);
        common::ordeal::same(&tree(&world.site.repo()), &before, "after a dry run");
        world.prune(&["--grace", "0"]).ok();
        world.prune(&["--grace", "0"]).ok();
        world.prune(&["--grace", "0"]).ok();
        world.backup();
        world.assert_whole();
        world.snapshots.pop();
        world.set_back(&start);
    }
}

/// A prune in which all removals of objects are refused.
fn refused(world: &World) -> Run {
    let mut prune = world.site.command(&["prune", "--json", "--grace", "0", "--max-waste", "0"]);
    prune.env_remove("BRACKFS_KEY_FILE");
    let strace = ["-o", "/dev/null", "-e", "trace=unlinkat", "-e", "inject=unlinkat:error=EPERM"];
    run(under_strace(&strace, &prune))
}

#[test]
fn what_the_target_refuses_to_remove_stays_and_is_removed_later() {
    let mut world = World::new();
    world.forget(1);
    let before = tree(&world.site.repo());
    for round in 0..3 {
        let objects = tree(&world.site.repo()).len();
        let run = refused(&world).ok();
        says(&run, "objects that cannot be removed stay");
        assert!(number(&run.json(), "retained_objects") > 0, "{run}");
        assert_eq!(number(&run.json(), "freed_bytes"), 0, "{run}");
        assert!(before.keys().all(|path| world.site.repo().join(path).symlink_metadata().is_ok()));
        assert!(round == 0 || tree(&world.site.repo()).len() <= objects + 6, "round {round}");
        world.assert_kept();
    }
    world.backup();
    world.forget(1);
    assert!(number(&world.prune_all(), "freed_bytes") > 0);
    let pruned = world.prune_all();
    assert_eq!(number(&pruned, "live_bytes"), world.packs());
    world.assert_whole();
    assert_eq!(world.objects("snapshots").len(), 1);
}

#[test]
fn packs_that_could_not_be_removed_are_known_after_a_rebuild() {
    let mut world = World::new();
    // Snapshots can be removed, but packs cannot.
    world.forget(1);
    let mut prune = world.site.command(&["prune", "--json", "--grace", "0", "--max-waste", "0"]);
    prune.env_remove("BRACKFS_KEY_FILE");
    let packs = world.site.repo().join("packs");
    let immutable = |flag| {
        let folders = fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path());
        succeed(Command::new("chattr").arg(flag).args(folders));
    };
    immutable("+a");
    let run = run(prune);
    immutable("-a");
    let retained = number(&run.ok().json(), "pending_bytes");
    assert!(retained > 0);
    world.assert_whole();
    world.remove_catalog();
    world.as_host(&["catalog", "rebuild"]).ok();
    world.backup();
    world.forget(1);
    let freed = number(&world.prune_all(), "freed_bytes");
    assert!(freed >= retained, "{freed} of {retained} bytes were removed");
    assert_eq!(number(&world.prune_all(), "live_bytes"), world.packs());
    world.assert_whole();
}

#[test]
fn a_backup_that_waits_for_the_lock_goes_before_the_rest_of_a_prune() {
    let mut world = World::new();
    world.forget(2);
    world.site.write("large/new", noise("new", 600_000));
    settle();
    let generations = world.objects("generation").len();
    let mut prune = world.site.command(&["prune", "--json", "--grace", "0", "--max-waste", "0"]);
    prune.env_remove("BRACKFS_KEY_FILE");
    // The first link is that of the generation; the second one takes this long.
    let strace = ["-o", "/dev/null", "-e", "trace=linkat", "-e", "inject=linkat:delay_enter=4000000:when=2"];
    let mut prune = under_strace(&strace, &prune);
    let prune = prune.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    common::wait::until("the prune is announced", || world.objects("generation").len() > generations);
    let made = world.site.backup(&["--wait-lock", "5m"]).ok();
    says(&made, "waiting for another run");
    world.snapshots.push((made.json()["snapshot_id"].as_str().unwrap().to_owned(), tree(&world.site.source())));
    let pruned = prune.wait_with_output().unwrap();
    let said = String::from_utf8(pruned.stderr).unwrap();
    assert!(pruned.status.success() && said.contains("pruning goes on after it"), "{said}");
    let result = String::from_utf8(pruned.stdout).unwrap();
    let pruned: Value = serde_json::from_str(result.lines().last().unwrap()).unwrap();
    assert!(number(&pruned, "copied_bytes") > 0 && number(&pruned, "freed_bytes") > 0, "{pruned}");
    world.assert_whole();
    assert_eq!(number(&world.prune_all(), "live_bytes"), world.packs());
}

/// Kills a prune at a call, runs it again, and compares the result with that of an undisturbed prune.
fn killed_at(call: &str, grace: &str, step: u32) {
    let mut world = World::new();
    world.forget(1);
    let start = world.copied("start");
    let undisturbed = world.prune(&["--grace", grace, "--max-waste", "0"]).ok().json();
    let size = world.packs();
    let mut nth = 1;
    loop {
        world.set_back(&start);
        let kill = format!("inject={call}:signal=KILL:when={nth}");
        let mut prune = world.site.command(&["prune", "--grace", grace, "--max-waste", "0"]);
        prune.env_remove("BRACKFS_KEY_FILE");
        let trace = format!("trace={call}");
        let killed = run(under_strace(&["-o", "/dev/null", "-e", &trace, "-e", &kill], &prune));
        if killed.code == 0 {
            assert!(nth > 3, "{call} is called too seldom");
            return;
        }
        world.assert_sums();
        let run = world.prune(&["--grace", grace, "--max-waste", "0"]).ok();
        let again = run.json();
        assert!(number(&again, "live_bytes") == number(&undisturbed, "live_bytes"), "{call} {nth}: {again}");
        world.assert_whole();
        // A kill between a list of sums and its index might also be a listing without the index: then everything stays.
        if grace == "0" && !run.stderr.contains("are not removed from the repository") {
            assert_eq!(world.packs(), size, "{call} {nth}");
        }
        nth += if is_long() { 1 } else { step };
    }
}

#[test]
fn a_prune_that_is_killed_at_any_moment_loses_nothing() {
    rounds("prune", 3, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        ordeal.forget();
        let wait = Duration::from_millis(ordeal.random.below(400));
        let mut prune = ordeal.prune_command();
        let mut child = prune.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(wait);
        child.kill().and_then(|()| child.wait()).unwrap();
        ordeal.holds_after_prune();
    });
}

#[test]
fn a_prune_that_is_killed_at_a_link_loses_nothing_and_is_finished_by_the_next() {
    killed_at("linkat", "0", 2);
}

#[test]
fn a_prune_that_is_killed_at_a_removal_loses_nothing_and_is_finished_by_the_next() {
    killed_at("unlinkat", "0", 3);
}

#[test]
fn a_prune_that_is_killed_at_a_sync_loses_nothing_and_is_finished_by_the_next() {
    killed_at("fsync", "0", 9);
    killed_at("fsync", "1d", 9);
}

/// Makes the same changes to files in `place` that lead from `before` to `after`.
fn change(place: &Path, before: &Path, after: &Path) {
    let (old, new) = (tree(before), tree(after));
    for path in new.keys().filter(|path| after.join(path).is_file() && !old.contains_key(*path)) {
        fs::create_dir_all(place.join(path).parent().unwrap()).unwrap();
        fs::copy(after.join(path), place.join(path)).unwrap();
    }
    for path in old.keys().filter(|path| before.join(path).is_file() && !new.contains_key(*path)) {
        fs::remove_file(place.join(path)).unwrap();
    }
}

/// A machine whose source has content again that is only in packs which the next prune removes; and a copy of the machine
/// that prunes.
struct Returned {
    world: World,
    before: PathBuf,
    clone: PathBuf,
    backup: Command,
}

impl Returned {
    fn new() -> Returned {
        let mut world = World::new();
        let (source, site) = (world.site.source(), world.site.path().to_owned());
        let comes_back = site.join("comes-back");
        copy(&source, &comes_back);
        for file in 0..12 {
            world.site.write(&format!("large/{file}"), noise(&format!("other {file}"), 600_000));
        }
        world.backup();
        world.forget(1);
        fs::remove_dir_all(&source).unwrap();
        copy(&comes_back, &source);
        settle();
        let before = world.copied("before");
        let backup = world.site.command(&["backup", source.to_str().unwrap()]);
        Returned { world, before, clone: site.join("clone"), backup }
    }

    fn set_back(&self) {
        self.world.set_back(&self.before);
        _ = fs::remove_dir_all(&self.clone);
        copy(&self.before.join("state"), &self.clone);
    }

    fn prune(&self) -> Command {
        let mut prune = prune_command(&self.world);
        prune.env("BRACKFS_STATE_DIR", &self.clone);
        prune
    }
}

/// A copy of the machine prunes. The machine itself begins a backup before the first pack is removed, and is stopped at some
/// moment until the prune has ended. Its content is in packs that are removed.
#[test]
fn a_backup_that_begins_during_the_prune_of_a_copy_relies_on_no_removed_pack() {
    let returned = Returned::new();
    let Returned { world, before, backup, .. } = &returned;
    let all_packs = world.packs();
    // The repository before the first pack is removed, and after the end of the prune.
    let (during, after) = (world.site.path().join("during"), world.site.path().join("after"));
    for nth in 1.. {
        assert!(nth < 100, "no pack is removed");
        returned.set_back();
        let at = world.site.path().join("at");
        let prune = returned.prune();
        stopped_at("unlink,unlinkat", nth, &prune, || copy(&world.site.repo(), &at)).unwrap().ok();
        let there = tree(&at.join("packs"));
        if !tree(&before.join("repo/packs")).keys().all(|pack| there.contains_key(pack)) {
            break;
        }
        for (to, from) in [(&during, &at), (&after, &world.site.repo())] {
            _ = fs::remove_dir_all(to);
            copy(from, to);
        }
        fs::remove_dir_all(&at).unwrap();
    }
    assert!(world.packs() < all_packs);
    let (mut stops, mut ended) = (0, 0);
    for nth in (1..).step_by(if is_long() { 1 } else { 4 }) {
        world.set_back(before);
        change(&world.site.repo(), &before.join("repo"), &during);
        let stopped = stopped_at("getdents64", nth, backup, || change(&world.site.repo(), &during, &after));
        let Some(backup) = stopped else { break };
        stops += 1;
        ended += u32::from(backup.code == 0);
        let checked = world.site.brackfs(&["check", "--read-data"]);
        assert_eq!(checked.code, 0, "stopped at call {nth}\n{backup}\n{checked}");
    }
    println!("{ended} of {stops} backups ended");
    assert!(stops > 5 && ended > 0, "{ended} of {stops} backups ended");
}

/// Listings of some targets are late, so the index of another run may be listed only when this one has condemned packs.
#[test]
fn nothing_is_removed_at_once_if_an_index_is_listed_late() {
    let returned = Returned::new();
    let world = &returned.world;
    let (mut stopped_early, mut removed) = (0, 0);
    for nth in 1.. {
        returned.set_back();
        let packs = world.packs();
        let index = world.objects("index").pop().unwrap();
        let content = fs::read(&index).unwrap();
        let late = index.with_file_name("00000000-0000-4000-8000-000000000001");
        let prune = stopped_at("linkat", nth, &returned.prune(), || fs::write(&late, &content).unwrap());
        let Some(prune) = prune else { break };
        match prune.code {
            0 => removed += 1,
            _ => {
                says(&prune.code(1), "is not in the catalog");
                // Packs of copied blocks were added.
                assert!(world.packs() >= packs, "stopped at link {nth}");
                stopped_early += 1;
            }
        }
    }
    println!("{stopped_early} prunes removed nothing, {removed} removed packs");
    assert!(stopped_early >= 3 && removed > 0, "{stopped_early} {removed}");
}

/// Runs a backup. When it has stored its snapshot, and before its last look at the repository, a clone of the machine starts
/// a prune, which is refused, and `work` changes the repository. Returns the backup, and the number of snapshots before it.
fn with_a_clone_after_the_snapshot(work: impl Fn(&World)) -> (Returned, Run, usize) {
    let returned = Returned::new();
    let snapshots = |returned: &Returned| returned.world.objects("snapshots").len();
    for nth in 1.. {
        returned.set_back();
        let (before, mut is_there) = (snapshots(&returned), false);
        let stopped = stopped_at("linkat", nth, &returned.backup, || {
            is_there = snapshots(&returned) > before;
            if is_there {
                run(returned.prune()).code(1);
                work(&returned.world);
            }
        });
        let backup = stopped.expect("the snapshot is linked");
        if is_there {
            return (returned, backup, before);
        }
    }
    unreachable!("the loop has no end");
}

#[test]
fn a_backup_that_finds_a_run_of_a_clone_at_its_end_fails_and_keeps_its_snapshot() {
    let (returned, backup, before) = with_a_clone_after_the_snapshot(|_| {});
    says(&backup.code(1), "another machine with a copy of this machine's state started to write");
    assert_eq!(returned.world.objects("snapshots").len(), before + 1);
    returned.world.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_snapshot_is_withdrawn_if_a_clone_has_removed_a_pack_of_it() {
    let away = |world: &World| world.site.path().join("away");
    let (returned, backup, before) = with_a_clone_after_the_snapshot(|world| {
        // All but one, so that the folder is there.
        for pack in world.objects("packs").split_off(1) {
            fs::create_dir_all(away(world)).unwrap();
            fs::rename(&pack, away(world).join(pack.file_name().unwrap())).unwrap();
        }
    });
    says(&backup.code(1), "another machine with a copy of this machine's state started to write");
    assert_eq!(returned.world.objects("snapshots").len(), before);
}
