//! Random trees and random changes between backups: each snapshot equals the tree of its time, despite failures of the
//! repository or the machine.
//!
//! - [`world`]: the source and its model, to which every change is applied
//! - [`change`]: changes between two backups
//! - [`tree`]: the expected content of a snapshot, and that shown by the reader and the file system
//!
//! The engine runs in this process. `PROPTEST_CASES` sets the number of cases. Seeds of failures are stored in
//! `tests/property/proptest-regressions` and tried first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod change;
mod tree;
mod world;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use brackfs::archive::Archive;
use brackfs::backup::{self, Options, Reading, RunPolicy, Selection, Storing, Summary};
use brackfs::catalog::Catalog;
use brackfs::catalog::stats::ComparedFields;
use brackfs::crypt::{KeyPurpose, Opener, Profile, SecretKey};
use brackfs::format::name::SnapshotName;
use brackfs::history::{ChangeKind, ComparedTree, Field, diff};
use brackfs::init::{Owner, init};
use brackfs::inventory::{Inventory, host_access, host_key};
use brackfs::monitor::{Monitor, Progress};
use brackfs::reader::Reader;
use brackfs::repository::{Access, Repository};
use brackfs::state::RepositoryState;
use brackfs::{check, inventory, restore, session};
use change::{Change, Mix};
use common::{Site, settle};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use tree::{PATTERNS, Tree, assert_same};
use world::{Identities, World};

/// Changes, followed by a backup.
#[derive(Debug, Clone)]
struct Step {
    changes: Vec<Change>,
    /// A failure of the repository or the machine before it.
    mishap: Option<Mishap>,
    /// Copies both after it; a later failure may restore the copy.
    saved: bool,
    /// Waits before the backup, so that stamps of later changes differ.
    settled: bool,
    how: How,
    /// A run before it that is interrupted.
    broken: Option<Moment>,
    /// Runs again after it, without changes.
    again: bool,
}

/// Options of a backup.
#[derive(Debug, Clone)]
struct How {
    merge_files_under: usize,
    chunk_size: usize,
    low_memory: bool,
    inode: bool,
    reread: bool,
    skip_if_unchanged: bool,
    /// A bit for each active pattern of [`PATTERNS`].
    exclude: u8,
}

/// A failure of a repository or of the machine that writes it.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    /// The catalog is gone.
    CatalogLost,
    /// The state of the machine is rolled back to the copy.
    StateSetBack,
    /// The repository is rolled back to the copy.
    RepositorySetBack,
    /// Loses the packs whose bits are set, the last generation, and possibly the catalog.
    PacksLost(u64, bool),
}

/// The moment of an interrupt.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After this many calls of the monitor.
    Calls(i64),
    /// After this many microseconds.
    Time(u64),
}

fn how() -> impl Strategy<Value = How> {
    let merge = prop_oneof![4 => Just(128 << 10), 1 => Just(0), 1 => Just(4 << 10), 1 => Just(1 << 20)];
    let chunk = prop_oneof![4 => Just(512 << 10), 2 => Just(2 << 10), 2 => Just(16 << 10), 1 => Just(1 << 20), 1 => Just(4 << 20)];
    let exclude = prop_oneof![2 => Just(0), 1 => any::<u8>()];
    let rarely = prop::bool::weighted(0.15);
    (merge, chunk, rarely, prop::bool::weighted(0.85), prop::bool::weighted(0.1), rarely, exclude).prop_map(
        |(merge_files_under, chunk_size, low_memory, inode, reread, skip_if_unchanged, exclude)| How {
            merge_files_under,
            chunk_size,
            low_memory,
            inode,
            reread,
            skip_if_unchanged,
            exclude,
        },
    )
}

fn steps(mix: Mix) -> impl Strategy<Value = Vec<Step>> {
    let moment = prop_oneof![(0..40i64).prop_map(Moment::Calls), (0..50_000u64).prop_map(Moment::Time)];
    let broken = prop::option::weighted(0.3, moment);
    // The same options for four of five steps, so that unchanged files stay unchanged.
    let other = prop::option::weighted(0.2, how());
    let changes = prop::collection::vec(change::change(mix), 0..12);
    let mishap = prop_oneof![
        Just(Mishap::CatalogLost),
        Just(Mishap::StateSetBack),
        Just(Mishap::RepositorySetBack),
        (any::<u64>(), prop::bool::weighted(0.3)).prop_map(|(packs, catalog)| Mishap::PacksLost(packs, catalog)),
    ];
    let mishap = (prop::option::weighted(0.25, mishap), any::<bool>());
    let step = (changes, prop::bool::weighted(0.8), other, broken, prop::bool::weighted(0.4), mishap);
    (how(), prop::collection::vec(step, 2..6)).prop_map(|(usual, steps)| {
        let step = |(changes, settled, other, broken, again, (mishap, saved))| {
            let how = Option::unwrap_or(other, usual.clone());
            Step { changes, mishap, saved, settled, how, broken, again }
        };
        steps.into_iter().map(step).collect()
    })
}

/// Collects problems, and interrupts a run.
struct Watch {
    calls_left: AtomicI64,
    stop: AtomicBool,
    problems: Mutex<Vec<String>>,
    progress: Progress,
}

impl Watch {
    fn new(calls: i64) -> Watch {
        let (problems, progress) = (Mutex::default(), Progress::default());
        Watch { calls_left: calls.into(), stop: AtomicBool::new(calls == 0), problems, progress }
    }

    fn called(&self) {
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    #[track_caller]
    fn assert_no_problems(&self) {
        let problems = self.problems.lock().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }
}

impl Monitor for Watch {
    fn problem(&self, path: &Path, message: &str) {
        // Changes may delete everything, and patterns may exclude it.
        if !message.contains(", but was not in the last backup (entries: ") {
            self.problems.lock().unwrap().push(format!("{}: {message}", path.display()));
        }
    }

    fn note(&self, _message: &str) {
        self.called();
    }

    fn entry(&self, _path: &Path, _what: &str) {
        self.called();
    }

    fn progress(&self) -> &Progress {
        self.called();
        &self.progress
    }
}

/// Never stops a run.
const NEVER: i64 = i64::MAX;

/// A snapshot and its expected tree.
struct Taken {
    name: SnapshotName,
    tree: Tree,
    /// Packs were lost since then.
    damaged: bool,
}

/// State after the previous run, which determines the files to read again.
struct Before {
    identities: Identities,
    inode: bool,
    exclude: u8,
}

/// A site with its repository and snapshots.
struct Play {
    site: Site,
    world: World,
    key: Option<SecretKey>,
    taken: Vec<Taken>,
    before: Option<Before>,
    /// Number of snapshots at the time of the copy.
    saved: Option<usize>,
}

impl Play {
    fn new(encrypted: bool) -> Play {
        let site = Site::in_memory();
        let key = encrypted.then(|| SecretKey::generate(Profile::Rfc9580, "owner", KeyPurpose::Owner, None).unwrap());
        let owner = match &key {
            Some(key) => Owner::Recipients(vec![key.certificate()]),
            None => Owner::Unencrypted,
        };
        init(&site.repo().as_path().into(), &site.state(), owner).unwrap();
        let world = World::new(site.source());
        Play { site, world, key, taken: Vec::new(), before: None, saved: None }
    }

    fn repository(&self) -> Repository {
        Repository::open(&self.site.repo().as_path().into()).unwrap()
    }

    fn reader(&self) -> Reader {
        let repository = self.repository();
        let opener = self.key.as_ref().map(|key| Opener::new(key.clone()).unwrap());
        let access = Access::new(opener, repository.keys().hosts().unwrap());
        // Small enough that blocks and nodes are evicted.
        Reader::new(repository, access, 4 << 20)
    }

    fn run(&self, how: &How, watch: &Watch) -> Result<Summary, backup::Error> {
        let exclude = PATTERNS.iter().enumerate().filter(|(at, _)| how.exclude >> at & 1 == 1);
        let options = Options {
            selection: Selection {
                paths: vec![self.site.source()],
                exclude: exclude.map(|(_, pattern)| pattern.glob.to_owned()).collect(),
                ..Selection::default()
            },
            reading: Reading {
                identity: ComparedFields { inode: how.inode, ctime: true },
                reread: how.reread,
                ..Reading::default()
            },
            storing: Storing { chunk_size: how.chunk_size, merge_files_under: how.merge_files_under, compression: 1 },
            policy: RunPolicy {
                low_memory: how.low_memory,
                skip_if_unchanged: how.skip_if_unchanged,
                // Random changes may remove any part of the tree.
                guard: None,
                ..RunPolicy::default()
            },
        };
        backup::back_up(&self.repository(), &self.site.state(), &options, |_| (), watch, &watch.stop)
    }

    fn step(&mut self, step: &Step) {
        for change in &step.changes {
            self.world.apply(change);
        }
        if let Some(mishap) = step.mishap {
            self.befall(mishap);
        }
        if step.settled {
            settle();
        }
        if let Some(moment) = step.broken {
            self.break_off(&step.how, moment);
        }
        let watch = Watch::new(NEVER);
        let summary = self.run(&step.how, &watch).unwrap();
        watch.assert_no_problems();
        self.compare(&step.how, &summary);
        self.verify();
        let now = Before { identities: self.world.identities(), inode: step.how.inode, exclude: step.how.exclude };
        self.before = step.settled.then_some(now);
        if step.again && step.settled {
            self.again(&step.how);
        }
        if step.saved {
            for name in ["state", "repo"] {
                copy(&self.site.path().join(name), &self.site.path().join(format!("saved-{name}")));
            }
            self.saved = Some(self.taken.len());
        }
    }

    fn befall(&mut self, mishap: Mishap) {
        // The files to read again are unknown then.
        self.before = None;
        let put_back = |name: &str| copy(&self.site.path().join(format!("saved-{name}")), &self.site.path().join(name));
        match (mishap, self.saved) {
            (Mishap::CatalogLost, _) => self.lose_catalog(),
            (Mishap::StateSetBack, Some(_)) => put_back("state"),
            (Mishap::RepositorySetBack, Some(taken)) => {
                put_back("repo");
                self.taken.truncate(taken);
            }
            (Mishap::StateSetBack | Mishap::RepositorySetBack, None) => {}
            (Mishap::PacksLost(bits, catalog), _) => {
                for (at, pack) in objects(&self.site.repo().join("packs")).iter().enumerate() {
                    if bits >> (at % 64) & 1 == 1 {
                        fs::remove_file(pack).unwrap();
                    }
                }
                let generations = objects(&self.site.repo().join("generation"));
                if let Some(last) = generations.last() {
                    fs::remove_file(last).unwrap();
                }
                if catalog {
                    self.lose_catalog();
                    if generations.len() < 2 {
                        // Nothing tells that the next catalog is that of the copies, so they are of another writer.
                        self.saved = None;
                    }
                }
                self.taken.iter_mut().for_each(|taken| taken.damaged = true);
            }
        }
    }

    fn lose_catalog(&self) {
        for path in objects(&self.site.state()).iter().filter(|path| path.to_string_lossy().contains("catalog.sqlite"))
        {
            fs::remove_file(path).unwrap();
        }
    }

    /// Interrupts a run, which may have finished before.
    fn break_off(&mut self, how: &How, moment: Moment) {
        let watch = Watch::new(if let Moment::Calls(calls) = moment { calls } else { NEVER });
        let stop = &watch.stop;
        let result = scope(|threads| {
            if let Moment::Time(micros) = moment {
                threads.spawn(move || {
                    sleep(Duration::from_micros(micros));
                    stop.store(true, Ordering::Relaxed);
                });
            }
            self.run(how, &watch)
        });
        watch.assert_no_problems();
        match result {
            Ok(summary) => {
                // An unknown part of it was stored by an earlier run.
                self.before = None;
                self.compare(how, &summary);
            }
            Err(
                backup::Error::Interrupted
                | backup::Error::Session(session::Error::Inventory(inventory::Error::Interrupted)),
            ) => {
                self.before = None;
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Asserts that the catalog lists only objects of the repository.
    fn verify(&self) {
        let repository = self.repository();
        let state = RepositoryState::new(&self.site.state(), repository.id());
        let key = host_key(&state).unwrap();
        let access = host_access(&key).unwrap();
        let (monitor, stop) = (Watch::new(NEVER), AtomicBool::new(false));
        let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
        let catalog = Catalog::view(&state.catalog_path(), repository.id()).unwrap().read(anyhow::Ok).unwrap();
        let verified = inventory.verify(&catalog, &state, &key.certificate()).unwrap();
        monitor.assert_no_problems();
        assert_eq!((verified.problems, verified.snapshots), (0, self.taken.len() as u64));
    }

    /// Compares the snapshot with the model.
    fn compare(&mut self, how: &How, summary: &Summary) {
        let tree = self.world.tree(how.exclude);
        // The only allowed problem: none of the files of the last backup exists.
        let nothing_left = tree.len() <= 1;
        assert!(summary.problems <= u64::from(nothing_left), "{} problems", summary.problems);
        let count =
            |kinds: &[common::Kind]| tree.values().filter(|item| kinds.contains(&item.entry.kind)).count() as u64;
        assert_eq!(summary.files, count(&[common::Kind::File]), "files");
        assert_eq!(summary.directories, count(&[common::Kind::Directory]), "directories");
        assert_eq!(summary.others, count(&[common::Kind::Symlink, common::Kind::Fifo]), "others");
        let sizes = tree.values().filter(|item| item.entry.kind == common::Kind::File).map(|item| item.entry.size);
        assert_eq!(summary.bytes, sizes.sum::<u64>(), "bytes");
        assert_eq!(summary.new_files + summary.changed_files + summary.unmodified_files, summary.files, "{summary:?}");
        assert_eq!(summary.new_files + summary.changed_files, summary.read_files, "{summary:?}");
        match &self.before {
            _ if how.reread => assert_eq!(summary.read_files, summary.files),
            Some(before) if before.inode == how.inode => {
                let now = self.world.identities();
                let may_be_read = tree.iter().filter(|(path, item)| {
                    let was_there = !tree::is_excluded(before.exclude, path, &|_| false);
                    let same = was_there && before.identities.get(*path) == now.get(*path);
                    item.entry.kind == common::Kind::File && !same
                });
                let most = may_be_read.count() as u64;
                assert!(summary.read_files <= most, "{} files were read, {most} changed", summary.read_files);
            }
            _ => {}
        }
        match &summary.snapshot {
            Some(name) => {
                assert_same(&tree, &tree::of_snapshot(&self.reader(), name), "the reader shows");
                self.taken.push(Taken { name: name.clone(), tree, damaged: false });
            }
            None => {
                assert!(how.skip_if_unchanged, "no snapshot was made");
                let last = self.taken.last().expect("a snapshot before");
                assert_same(&tree, &last.tree, "no snapshot was made of a change; the last one has");
                assert_same(&tree, &tree::of_snapshot(&self.reader(), &last.name), "the reader shows of the last one");
            }
        }
    }

    /// A run without changes.
    fn again(&mut self, how: &How) {
        let watch = Watch::new(NEVER);
        let how = How { reread: false, ..how.clone() };
        let summary = self.run(&how, &watch).unwrap();
        watch.assert_no_problems();
        let work =
            [summary.read_files, summary.new_files, summary.changed_files, summary.data_packs, summary.tree_packs];
        assert_eq!(work, [0; 5], "nothing changed: {summary:?}");
        assert_eq!(summary.snapshot.is_none(), how.skip_if_unchanged, "nothing changed: {summary:?}");
        self.compare(&how, &summary);
    }

    /// Restores every snapshot, compares it with the one before, and checks the repository.
    fn end(&self) {
        let reader = self.reader();
        for pair in self.taken.windows(2).filter(|pair| pair.iter().all(|taken| !taken.damaged)) {
            assert_differences(&reader, &pair[0], &pair[1]);
            assert_differences(&reader, &pair[1], &pair[0]);
        }
        for (number, Taken { name, tree, .. }) in self.taken.iter().enumerate().filter(|(_, taken)| !taken.damaged) {
            let to = self.site.path().join(format!("restored-{number}"));
            let root = reader.open(name).unwrap().root.clone();
            let watch = Watch::new(NEVER);
            let options = restore::Options::default();
            let summary = restore::restore(&reader, &root, &to, &options, &watch, &AtomicBool::new(false)).unwrap();
            watch.assert_no_problems();
            assert_eq!(summary.problems, 0);
            assert_same(tree, &tree::of_files(&to), &format!("snapshot {number} was restored as"));
            tree::assert_holes(tree, &to);
        }
        if self.taken.iter().any(|taken| taken.damaged) {
            return;
        }
        let watch = Watch::new(NEVER);
        let summary = check::check(&reader, true, &watch, &AtomicBool::new(false)).unwrap();
        watch.assert_no_problems();
        assert_eq!((summary.problems, summary.snapshots), (0, self.taken.len() as u64));
    }
}

/// Asserts that the differences between two snapshots are those between their trees.
#[track_caller]
fn assert_differences(reader: &Reader, before: &Taken, after: &Taken) {
    let (a, b) = (reader.open(&before.name).unwrap(), reader.open(&after.name).unwrap());
    let compared = |snapshot| ComparedTree { snapshot, path: b"" };
    let watch = Watch::new(NEVER);
    let mut found = BTreeMap::new();
    let summary = diff(reader, &compared(&a), &compared(&b), b"", &watch, &mut |change| {
        let path = PathBuf::from(OsStr::from_bytes(change.path));
        assert!(found.insert(path, (change.kind(), change.fields.to_vec())).is_none(), "listed twice");
        Ok(())
    });
    watch.assert_no_problems();
    assert_eq!(summary.unwrap().problems, 0);
    let mut paths: Vec<_> = before.tree.keys().chain(after.tree.keys()).chain(found.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let entry = |taken: &Taken| Some(common::Entry { first_name: None, ..taken.tree.get(path)?.entry.clone() });
        let (a, b) = (entry(before), entry(after));
        let same_bytes = a.as_ref().map(|entry| entry.content) == b.as_ref().map(|entry| entry.content);
        let expected = match (a, b) {
            (None, Some(_)) => Some(ChangeKind::Added),
            (Some(_), None) => Some(ChangeKind::Removed),
            (a, b) if a == b => None,
            (Some(a), Some(b)) if a.kind != b.kind => Some(ChangeKind::Kind),
            (Some(a), Some(b)) if !same_bytes || a.target != b.target => Some(ChangeKind::Content),
            _ => Some(ChangeKind::Metadata),
        };
        // The model knows neither names outside of the tree nor the holes that are stored.
        let is_unknown = |field: &Field| *field == Field::Links || *field == Field::Content && same_bytes;
        match (expected, found.get(path)) {
            (None, Some((_, fields))) if !fields.is_empty() && fields.iter().all(is_unknown) => {}
            (Some(ChangeKind::Metadata), Some((ChangeKind::Content, fields))) if fields.iter().any(is_unknown) => {}
            (expected, found) => assert_eq!(expected, found.map(|(kind, _)| *kind), "{} {found:?}", path.display()),
        }
    }
}

/// Files in folders at or below a folder, in order.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(objects(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Makes one directory a copy of another, in this process: a forked program would inherit the lock of another test's
/// run for a moment.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for path in objects(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

/// Plays random steps for `cases` cases, or for `PROPTEST_CASES` divided by `share`.
fn play(name: &str, mix: Mix, cases: u32, share: u32, encrypted: bool) {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse::<u32>().ok());
    let file = format!("{}/tests/property/proptest-regressions/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let config = Config {
        cases: asked.map_or(cases, |asked| asked.div_ceil(share)),
        // Time limit for shrinking a failed case, in milliseconds.
        max_shrink_time: 120_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(Box::leak(file.into_boxed_str())))),
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&steps(mix), |steps| {
        let mut play = Play::new(encrypted);
        steps.iter().for_each(|step| play.step(step));
        play.end();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn each_snapshot_equals_the_tree_of_its_time() {
    play("trees", Mix::Any, 64, 1, false);
}

#[test]
fn directories_of_thousands_of_files_split_and_merge() {
    play("segments", Mix::Many, 6, 8, false);
}

#[test]
fn each_snapshot_in_an_encrypted_repository_equals_the_tree_of_its_time() {
    play("encrypted", Mix::Any, 4, 8, true);
}
