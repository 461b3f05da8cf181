//! Data that was lost and is still at the source: the next backup stores it again, and older snapshots can read it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::machine;
use common::ordeal::{same, under_strace};
use common::{AGED, Entry, Kind, Run, Site, age, noise, number, run, set_time, settle, tree};

/// How a pack is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Removed,
    Truncated,
    Flipped,
}

/// A source with three snapshots.
struct World {
    site: Site,
    /// Ids of the snapshots, and what they contain.
    snapshots: Vec<(String, BTreeMap<PathBuf, Entry>)>,
    /// The packs of the first snapshot.
    first: Vec<PathBuf>,
}

/// Whether a pack has more than trees.
fn is_data(pack: &Path) -> bool {
    fs::metadata(pack).unwrap().len() > 1 << 20
}

impl World {
    fn new(init: &[&str]) -> World {
        let site = Site::new();
        for i in 0..12 {
            site.write(&format!("large/{i}"), noise(&format!("large {i}"), 300_000));
            site.write(&format!("small/{i}"), noise(&format!("small {i}"), 2000));
        }
        // Many chunks, so that its list is a tree of its own.
        site.write("long", noise("long", 6 << 20));
        age(&site.source());
        let key = site.key("rfc9580");
        let recipient = ["--recipient", key.to_str().unwrap()].map(str::to_owned);
        let recipient: &[String] = if init.contains(&"--no-encryption") { &[] } else { &recipient };
        let init = init.iter().map(|word| (*word).to_owned());
        let words: Vec<_> = ["init".to_owned(), site.repo().display().to_string()].into_iter().chain(init).collect();
        site.brackfs(&[&words, recipient].concat()).ok();
        let mut world = World { site, snapshots: Vec::new(), first: Vec::new() };
        settle();
        world.backup();
        world.first = world.packs();
        for round in 0..2 {
            world.change(round);
            world.backup();
        }
        let (repo, source) = (world.site.repo(), world.site.source());
        let config = format!(
            "[target.near]\nrepository = \"{}\"\n[source.all]\npaths = [\"{}\"]\nto = [\"near\"]\n[check]\nread-data = \"100%\"\n",
            repo.display(),
            source.display()
        );
        fs::write(world.config(), config).unwrap();
        fs::set_permissions(world.config(), Permissions::from_mode(0o644)).unwrap();
        world
    }

    fn config(&self) -> PathBuf {
        self.site.path().join("config.toml")
    }

    /// Changes one file.
    fn change(&self, round: i64) {
        let file = self.site.write("changing", noise(&format!("changing {round}"), 50_000));
        set_time(&file, AGED + round, 0);
        settle();
    }

    fn backup(&mut self) -> Run {
        let run = self.site.backup(&["--chunk-size=16KiB", "--settle-max=0s"]).ok();
        let id = run.json()["snapshot_id"].as_str().unwrap().to_owned();
        self.snapshots.push((id, tree(&self.site.source())));
        run
    }

    /// Runs a command as the machine does that is backed up: without the owner's key.
    fn as_host(&self, arguments: &[&str]) -> Run {
        let mut command = self.site.command(arguments);
        command.env_remove("BRACKFS_KEY_FILE").env("BRACKFS_CONFIG", self.config());
        run(command)
    }

    /// The packs with the files of the first snapshot.
    fn first_data(&self) -> Vec<PathBuf> {
        self.first.iter().filter(|pack| is_data(pack)).cloned().collect()
    }

    fn packs(&self) -> Vec<PathBuf> {
        let packs = self.site.repo().join("packs");
        tree(&packs).into_keys().map(|path| packs.join(path)).filter(|path| path.is_file()).collect()
    }

    /// Loses each of these packs, and lets the machine find it out.
    fn lose(&self, packs: &[PathBuf], loss: Loss) {
        for pack in packs {
            let mut bytes = fs::read(pack).unwrap();
            fs::set_permissions(pack, Permissions::from_mode(0o600)).unwrap();
            match loss {
                Loss::Removed => fs::remove_file(pack).unwrap(),
                Loss::Truncated => fs::write(pack, &bytes[..bytes.len() / 3]).unwrap(),
                Loss::Flipped => {
                    bytes.iter_mut().skip(40).step_by(5000).for_each(|byte| *byte ^= 1);
                    fs::write(pack, bytes).unwrap();
                }
            }
        }
        let (check, code) = match loss {
            Loss::Truncated => (&["run", "--only", "check"], 3),
            Loss::Removed | Loss::Flipped => (&["catalog", "verify", "--read-data"], 1),
        };
        self.as_host(check).code(code);
    }

    /// Asserts that all snapshots restore, and that checks find no problem.
    #[track_caller]
    fn assert_whole(&self, what: &str) {
        self.assert_restored(what);
        let checked = self.as_host(&["run", "--only", "check"]);
        assert_eq!(checked.code, 0, "{what}: {checked}");
        let verified = self.as_host(&["catalog", "verify", "--read-data", "--json"]).ok().json();
        let count = |field| number(&verified, field);
        assert_eq!((count("read_packs"), count("problems")), (count("packs"), 0), "{what}: {verified}");
        for more in [&["check"][..], &["check", "--read-data"]] {
            let checked = self.site.brackfs(more);
            assert_eq!(checked.code, 0, "{what}: {checked}");
        }
    }

    /// Asserts that all snapshots restore.
    #[track_caller]
    fn assert_restored(&self, what: &str) {
        let to = self.site.path().join("restored");
        for (id, expected) in &self.snapshots {
            let restored = self.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]);
            assert_eq!(restored.code, 0, "{what}: {restored}");
            same(&tree(&to), expected, &format!("{what}: {id}"));
            fs::remove_dir_all(&to).unwrap();
        }
    }

    /// Forgets all snapshots but the first, and removes all data that it does not need.
    fn keep_first(&mut self) {
        for (id, _) in self.snapshots.split_off(1) {
            self.as_host(&["forget", &id, "--force"]).ok();
        }
        self.as_host(&["prune", "--grace", "0", "--max-waste", "0"]).ok();
    }

    /// Forgets all but the last snapshots, and removes all data that these do not need.
    fn keep_last(&mut self, kept: usize) {
        self.snapshots.drain(..self.snapshots.len() - kept);
        self.as_host(&["forget", "--keep-last", &kept.to_string(), "--force"]).ok();
        self.as_host(&["prune", "--grace", "0", "--max-waste", "0"]).ok();
    }
}

#[test]
fn older_snapshots_read_what_was_lost_and_stored_again() {
    for init in [&[][..], &["--no-encryption"]] {
        for loss in [Loss::Removed, Loss::Truncated, Loss::Flipped] {
            let what = format!("{init:?} {loss:?}");
            let mut world = World::new(init);
            let packs = world.first_data();
            world.lose(&packs, loss);
            let id = world.snapshots[0].0.clone();
            world.site.brackfs(&["restore", &id, "--to", world.site.path().join("lost").to_str().unwrap()]).code(1);
            world.change(7);
            let run = world.backup();
            assert!(run.stderr.contains("in the repository again, also for older snapshots"), "{what}: {run}");
            world.assert_whole(&what);
            // It is said once.
            world.change(8);
            let run = world.backup();
            assert!(!run.stderr.contains("in the repository again"), "{what}: {run}");

            // What was stored again stays as long as an older snapshot needs it, also if another snapshot does not.
            fs::remove_dir_all(world.site.source().join("large")).unwrap();
            world.backup();
            world.snapshots.pop();
            world.keep_first();
            world.assert_whole(&what);
            // A new catalog finds it again.
            world.as_host(&["catalog", "rebuild"]).ok();
            world.keep_first();
            world.assert_whole(&what);
            world.snapshots.clear();
            world.site.write("last", "last");
            world.backup();
            world.assert_whole(&what);
        }
    }
}

#[test]
fn blocks_of_a_lost_carrier_are_stored_again() {
    for loss in [Loss::Removed, Loss::Flipped] {
        let mut world = World::new(&[]);
        // Half of the first pack is not needed any more, and the rest is moved.
        (0..6).for_each(|i| fs::remove_file(world.site.source().join(format!("large/{i}"))).unwrap());
        world.backup();
        let before = world.packs();
        world.keep_last(1);
        let carriers: Vec<_> =
            world.packs().into_iter().filter(|pack| is_data(pack) && !before.contains(pack)).collect();
        assert!(!carriers.is_empty());
        world.change(3);
        world.backup();
        world.assert_whole("compacted");
        world.lose(&carriers, loss);
        assert_ne!(world.site.brackfs(&["check", "--read-data"]).code, 0);
        world.change(4);
        world.backup();
        world.assert_whole(&format!("{loss:?}"));
        // The new catalog does not rely on the damaged carrier.
        world.as_host(&["catalog", "rebuild"]).ok();
        fs::remove_dir_all(world.site.source().join("large")).unwrap();
        world.backup();
        world.snapshots.pop();
        world.keep_first();
        world.assert_whole(&format!("{loss:?}, rebuilt"));
    }
}

#[test]
fn a_check_says_whether_a_lost_pack_is_still_needed() {
    for (loss, expected) in [
        (Loss::Removed, "no snapshot needs it, since its data was stored again"),
        (Loss::Truncated, "no snapshot needs its damaged part; keep the pack, as other data in it may be needed"),
        (Loss::Flipped, "no snapshot needs its damaged part; keep the pack, as other data in it may be needed"),
    ] {
        let mut world = World::new(&[]);
        let lost = world.first_data();
        world.lose(&lost, loss);
        if loss == Loss::Truncated {
            // Its old content is in the part that is there.
            let changed = world.site.write("large/0", "other");
            set_time(&changed, AGED + 50, 0);
        }
        world.change(5);
        world.backup();
        world.assert_whole(&format!("{loss:?}"));
        let checked = world.site.brackfs(&["check", "--read-data", "-v"]).ok();
        assert_eq!(checked.stderr.matches(expected).count(), lost.len(), "{loss:?}: {checked}");
    }
}

#[test]
fn a_chunk_that_is_lost_twice_is_stored_a_third_time() {
    let mut world = World::new(&[]);
    for loss in [Loss::Flipped, Loss::Removed] {
        let packs: Vec<_> = world.packs().into_iter().filter(|pack| is_data(pack)).collect();
        world.lose(&packs, loss);
        world.change(9);
        world.backup();
        world.assert_whole(&format!("{loss:?}"));
    }
}

/// The source has other data by now.
#[test]
fn only_what_is_still_at_the_source_is_stored_again() {
    let mut world = World::new(&[]);
    world.lose(&world.first_data(), Loss::Removed);
    let changed = world.site.write("large/3", "other");
    set_time(&changed, AGED + 50, 0);
    settle();
    world.backup();
    let to = world.site.path().join("partly");
    let (id, expected) = &world.snapshots[0];
    world.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]).code(1);
    let found = tree(&to);
    let differ = expected.iter().filter(|(path, entry)| found.get(*path) != Some(entry) && entry.kind == Kind::File);
    assert_eq!(differ.map(|(path, _)| path.as_path()).collect::<Vec<_>>(), [Path::new("large/3")]);
    let checked = world.site.brackfs(&["check"]).code(1);
    assert!(checked.stderr.contains("1 file in 3 snapshots cannot be read"), "{checked}");
}

#[test]
fn a_backup_that_is_killed_while_it_stores_lost_data_again_loses_nothing() {
    let world = World::new(&["--no-encryption"]);
    world.lose(&world.first_data(), Loss::Flipped);
    world.change(5);
    let (mut skipped, place) = (0, world.site.path().to_owned());
    let put = |from: &str, to: &str| {
        for folder in ["repo", "state"] {
            let _ = fs::remove_dir_all(place.join(format!("{folder}{to}")));
            machine::copy(&place.join(format!("{folder}{from}")), &place.join(format!("{folder}{to}")));
        }
    };
    put("", "-then");
    for call in ["linkat", "fsync"] {
        let mut killed = 0;
        for nth in 1.. {
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let source = world.site.source().display().to_string();
            let backup = world.site.command(&["backup", &source, "--chunk-size=16KiB", "--settle-max=0s"]);
            let ended = run(under_strace(&["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject], &backup));
            if ended.code == 0 {
                break;
            }
            assert_eq!(ended.code, 137, "{call} {nth}: {ended}");
            killed += 1;
            // Also if the killed run had written its snapshot, so that there is no reason for another one.
            let skip = ["--chunk-size=16KiB", "--settle-max=0s", "--skip-if-unchanged"];
            skipped += u32::from(world.site.backup(&skip).ok().json()["snapshot_id"].is_null());
            world.assert_whole(&format!("{call} {nth}"));
            put("-then", "");
        }
        assert!(killed > 3, "only {killed} runs were killed at {call}");
        put("-then", "");
    }
    assert!(skipped > 0, "no run was killed after its snapshot");
}
