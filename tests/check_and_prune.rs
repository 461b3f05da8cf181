//! `check` while another run removes data: it reports data that is lost, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::machine::copy;
use common::ordeal::is_long;
use common::stopped::stopped_at;
use common::{Run, Site, noise, number, run, settle, tree};

/// A site with four snapshots. Most packs have data of several of them.
struct World {
    site: Site,
}

impl World {
    fn new() -> World {
        let world = World { site: Site::in_memory() };
        world.site.init();
        for round in 0..4 {
            for file in (0..12).filter(|file| round == 0 || file % 3 == round % 3) {
                world.site.write(&format!("large/{file}"), noise(&format!("{round} {file}"), 300_000));
                world.site.write(&format!("small/{file}"), noise(&format!("small {round} {file}"), 3000));
            }
            settle();
            world.site.backup(&[]).ok();
        }
        for folder in ["repo", "state"] {
            copy(&world.site.path().join(folder), &world.site.path().join(format!("{folder}.before")));
        }
        world
    }

    /// Sets the site back to the four snapshots.
    fn reset(&self) {
        for folder in ["repo", "state"] {
            let path = self.site.path().join(folder);
            fs::remove_dir_all(&path).unwrap();
            copy(&self.site.path().join(format!("{folder}.before")), &path);
        }
    }

    fn forget(&self) {
        self.site.brackfs(&["forget", "--keep-last", "2", "--force"]).ok();
    }

    /// Removes all that can be removed, at once. Packs are compacted.
    fn prune(&self) {
        let pruned = self.site.brackfs(&["prune", "--json", "--grace", "0", "--max-waste", "0"]).ok().json();
        assert!(number(&pruned, "copied_bytes") > 0 && number(&pruned, "removed_packs") > 0, "{pruned}");
    }

    fn packs(&self) -> BTreeSet<PathBuf> {
        let packs = tree(&self.site.repo().join("packs"));
        packs.into_keys().filter(|path| path.components().count() == 2).collect()
    }
}

/// Every `n`th call; all of them in a long run.
fn calls(n: usize) -> impl Iterator<Item = usize> {
    (1..).step_by(if is_long() { 1 } else { n })
}

/// Asserts that a check found no problem, and did not say that anything is missing.
#[track_caller]
fn finds_nothing(run: Run, when: &str) {
    let run = run.ok();
    assert!(!run.stderr.contains("missing"), "{when}\n{run}");
}

#[test]
fn a_check_that_is_stopped_while_snapshots_are_forgotten_and_pruned_finds_nothing() {
    let world = World::new();
    for arguments in [["check"].as_slice(), &["check", "--read-data"]] {
        let check = world.site.command(arguments);
        let mut stops = 0;
        for nth in calls(7) {
            world.reset();
            let checked = stopped_at("openat2,getdents64", nth, &check, || {
                world.forget();
                world.prune();
            });
            let Some(checked) = checked else { break };
            finds_nothing(checked, &format!("{arguments:?} stopped at {nth}"));
            stops += 1;
        }
        assert!(stops > 5, "{arguments:?}: {stops} stops");
    }
}

#[test]
fn a_check_while_a_prune_is_stopped_finds_nothing() {
    let world = World::new();
    let prune = world.site.command(&["prune", "--grace", "0", "--max-waste", "0"]);
    let mut stops = 0;
    for nth in calls(1) {
        world.reset();
        world.forget();
        let pruned = stopped_at("unlinkat,linkat,renameat2", nth, &prune, || {
            finds_nothing(world.site.brackfs(&["check"]), &format!("the prune is stopped at {nth}"));
        });
        let Some(pruned) = pruned else { break };
        _ = pruned.ok();
        stops += 1;
    }
    assert!(stops > 5, "{stops} stops");
    finds_nothing(run(world.site.command(&["check", "--read-data"])), "after the prune");
}

#[test]
fn a_check_finds_data_that_is_lost_while_a_prune_runs() {
    let world = World::new();
    let check = world.site.command(&["check", "-v"]);
    let mut stops = 0;
    for nth in calls(20) {
        world.reset();
        let before = world.packs();
        let mut lost = None;
        let checked = stopped_at("openat2", nth, &check, || {
            world.forget();
            world.prune();
            let carriers = world.packs().into_iter().filter(|pack| !before.contains(pack));
            let size = |pack: &PathBuf| fs::metadata(world.site.repo().join("packs").join(pack)).unwrap().len();
            let carrier = carriers.max_by_key(size).expect("a carrier");
            fs::remove_file(world.site.repo().join("packs").join(&carrier)).unwrap();
            lost = Some(carrier);
        });
        let (Some(checked), Some(lost)) = (checked, lost) else { break };
        // A check that has read everything before cannot know.
        if checked.code != 0 {
            let checked = checked.code(1);
            let named = checked.stderr.matches(&format!("packs/{}: it is missing", lost.display())).count();
            assert_eq!(named, 1, "stopped at {nth}\n{checked}");
            stops += 1;
        }
    }
    assert!(stops > 0);
}
