//! Stress test of a mount: many threads read whole snapshots in every way that programs read, while snapshots are made
//! and removed, and the disk of the repository fails at random or is unplugged for a while.
//!
//! Each read returns correct bytes or an error. No reader waits forever. The process survives and its memory is
//! bounded. Once the disk works again, so does the same mount.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use common::disk::Disk;
use common::foreground::{Foreground, Usage, open_direct};
use common::ordeal::{Random, is_long, place_one, rounds, same};
use common::{Entry, Kind, Run, Site, entry, run, set_mode, set_time, settle, snapshot_objects, tree};
use rustix::fs::{Advice, XattrFlags};
use rustix::io::Errno;

/// A visitor that waits longer than this hangs.
const HANGING: Duration = Duration::from_secs(120);
/// Cache sizes in MiB: one that holds almost nothing, so that everything is read repeatedly, and one that holds most.
const CACHES: [u64; 2] = [4, 32];
/// Memory of the mount process in addition to its cache, in KiB.
const REST: u64 = 64 << 10;
/// Files and threads of a busy mount in addition to those of an idle one: files open for current reads, and prefetch
/// threads.
const MORE: usize = 4;
/// Longer than the mount caches a listing of snapshots, which is a second.
const SEEN: Duration = Duration::from_millis(1100);

/// A snapshot and its expected tree.
struct Taken {
    /// Its name in the folder of its source.
    name: String,
    object: PathBuf,
    /// A copy of the source.
    kept: PathBuf,
    tree: BTreeMap<PathBuf, Entry>,
    /// It is being removed, or was.
    removed: AtomicBool,
}

impl Taken {
    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.kept);
    }
}

/// The current action of a visitor.
struct Doing {
    what: String,
    since: Instant,
}

/// The current action of a visitor, if any.
type Now = Arc<Mutex<Option<Doing>>>;

/// State shared by all visitors.
struct Place {
    mnt: PathBuf,
    taken: Mutex<Vec<Arc<Taken>>>,
    /// The disk may fail.
    trouble: AtomicBool,
    stop: AtomicBool,
    right: AtomicU64,
    failed: AtomicU64,
    /// Cache size of the mount, in MiB.
    cache: u64,
}

impl Place {
    fn taken(&self) -> Vec<Arc<Taken>> {
        self.taken.lock().unwrap().clone()
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A reader of the mount.
struct Visitor {
    place: Arc<Place>,
    random: Random,
    doing: Now,
}

impl Visitor {
    /// Runs an operation with a time limit.
    fn does<T>(&self, what: impl FnOnce() -> String, act: impl FnOnce() -> T) -> T {
        *self.doing.lock().unwrap() = Some(Doing { what: what(), since: Instant::now() });
        let result = act();
        *self.doing.lock().unwrap() = None;
        result
    }

    /// The same in a snapshot. `None` if the operation failed as expected.
    #[track_caller]
    fn tries<T>(&self, taken: &Taken, what: impl Fn() -> String, act: impl FnOnce() -> io::Result<T>) -> Option<T> {
        // Check before the operation: the failure may end meanwhile.
        let trouble = self.place.trouble.load(Ordering::SeqCst);
        match self.does(&what, act) {
            Ok(found) => {
                self.place.right.fetch_add(1, Ordering::Relaxed);
                Some(found)
            }
            Err(error) => {
                let number = Errno::from_io_error(&error).unwrap_or_else(|| panic!("{}: {error}", what()));
                self.may_fail(taken, number, trouble, &what);
                None
            }
        }
    }

    /// Asserts that an error is expected at the moment.
    #[track_caller]
    fn may_fail(&self, taken: &Taken, number: Errno, trouble: bool, what: impl Fn() -> String) {
        let trouble = trouble || self.place.trouble.load(Ordering::SeqCst);
        let allowed = match number {
            Errno::IO | Errno::TIMEDOUT => trouble,
            Errno::NOENT | Errno::STALE => taken.is_removed(),
            _ => false,
        };
        assert!(allowed, "{}: {number}; trouble: {trouble}, removed: {}", what(), taken.is_removed());
        self.place.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn root(&self, taken: &Taken) -> PathBuf {
        self.place.mnt.join("source").join(&taken.name)
    }

    /// Reads a snapshot in one of the ways, as far as time allows.
    fn visit(&mut self, way: usize) {
        let all = self.place.taken();
        let taken = self.random.choose(&all).clone();
        match way {
            0 => self.read_upper_directories(),
            1 => self.compare_by_rsync(&taken),
            2 => self.compare_by_mapping(&taken),
            3 => self.read_at_random(&taken, true),
            4 => self.read_at_random(&taken, false),
            _ => self.walk(&taken),
        }
    }

    /// Reads the directories above snapshots.
    fn read_upper_directories(&mut self) {
        let place = self.place.clone();
        let before = place.taken();
        let trouble = place.trouble.load(Ordering::SeqCst);
        let failed = |error: io::Error, what: &str| {
            let trouble = trouble || place.trouble.load(Ordering::SeqCst);
            let is_failure = matches!(Errno::from_io_error(&error), Some(Errno::IO | Errno::TIMEDOUT));
            assert!(trouble && is_failure, "{what}: {error}; trouble: {trouble}");
            place.failed.fetch_add(1, Ordering::Relaxed);
        };
        match self.does(|| "list the top".into(), || names(&place.mnt)) {
            Ok(names) => assert_eq!(names, set(["by-tag", "source"])),
            Err(error) => failed(error, "list the top"),
        }
        match self.does(|| "list the source".into(), || names(&place.mnt.join("source"))) {
            Ok(found) => {
                for one in &before {
                    let there = found.contains(&one.name);
                    assert!(there || one.is_removed(), "{} is not in {found:?}", one.name);
                }
                let known: BTreeSet<_> = before.iter().chain(&place.taken()).map(|one| one.name.clone()).collect();
                // A snapshot exists a moment before the test knows it.
                let others: Vec<_> = found.iter().filter(|name| *name != "latest" && !known.contains(*name)).collect();
                assert!(others.len() <= 1, "{others:?}");
            }
            Err(error) => failed(error, "list the source"),
        }
        match self.does(|| "follow latest".into(), || fs::read_link(place.mnt.join("source/latest"))) {
            Ok(target) => assert!(target.to_str().is_some_and(|name| !name.contains('/')), "{}", target.display()),
            Err(error) => failed(error, "follow latest"),
        }
        match self.does(|| "list tags".into(), || names(&place.mnt.join("by-tag"))) {
            Ok(names) => assert_eq!(names, BTreeSet::new()),
            Err(error) => failed(error, "list tags"),
        }
    }

    /// Reads everything once, in order.
    fn walk(&mut self, taken: &Taken) {
        let root = self.root(taken);
        for (path, expected) in &taken.tree {
            if self.place.stops() {
                return;
            }
            let full = root.join(path);
            let look = || {
                if expected.kind == Kind::File {
                    // Otherwise the page cache would serve data that other visitors read.
                    rustix::fs::fadvise(File::open(&full)?, 0, None, Advice::DontNeed)?;
                }
                entry(&full)
            };
            if let Some((found, _)) = self.tries(taken, || format!("look at {}", full.display()), look) {
                let expected = Entry { first_name: None, ..expected.clone() };
                assert!(found == expected, "{} is {found:?} instead of {expected:?}", full.display());
            }
            if expected.kind != Kind::Directory {
                continue;
            }
            if let Some(found) = self.tries(taken, || format!("list {}", full.display()), || names(&full)) {
                let below = taken.tree.keys().filter(|below| below.parent() == Some(path) && *below != path);
                let expected: BTreeSet<_> =
                    below.map(|below| below.file_name().unwrap().to_string_lossy().into_owned()).collect();
                assert!(found == expected, "{} holds {found:?} instead of {expected:?}", full.display());
            }
        }
    }

    /// Reads parts of files in random order.
    fn read_at_random(&mut self, taken: &Taken, direct: bool) {
        let root = self.root(taken);
        let files: Vec<_> = taken.tree.iter().filter(|(_, entry)| entry.kind == Kind::File && entry.size > 0).collect();
        for _ in 0..50 {
            if self.place.stops() {
                return;
            }
            let (path, known) = *self.random.choose(&files);
            let full = root.join(path);
            let open = || if direct { open_direct(&full) } else { File::open(&full) };
            let Some(file) = self.tries(taken, || format!("open {}", full.display()), open) else { continue };
            let kept = File::open(taken.kept.join(path)).unwrap();
            for _ in 0..self.random.within(1, 8) {
                let at = self.random.below(known.size);
                let length = (1 << self.random.below(19)).min(known.size - at) as usize;
                let shown = || format!("read {length} bytes of {} from {at}", full.display());
                let mut expected = vec![0; length];
                kept.read_exact_at(&mut expected, at).unwrap();
                let read = || {
                    let mut found = vec![0; length];
                    file.read_exact_at(&mut found, at).map(|()| found)
                };
                if let Some(found) = self.tries(taken, shown, read) {
                    assert!(found == expected, "{}: other bytes", shown());
                }
            }
        }
    }

    /// Compares a snapshot with its copy, with rsync.
    fn compare_by_rsync(&mut self, taken: &Taken) {
        let root = self.root(taken);
        let trouble = self.place.trouble.load(Ordering::SeqCst);
        let done = self.does(|| format!("rsync {}", root.display()), || rsync(&root, &taken.kept));
        let trouble = trouble || self.place.trouble.load(Ordering::SeqCst) || taken.is_removed();
        let allowed: &[i32] = if trouble { &[0, 23, 24] } else { &[0] };
        assert!(allowed.contains(&done.code), "{done}");
        // To rsync, unreadable files differ or are missing. So compare these again.
        for name in done.stdout.lines().filter_map(|line| line.strip_prefix(DIFFERS)) {
            let name = name.trim_end_matches('/');
            assert!(trouble, "{name} is not the same\n{done}");
            let name = if name == "." { "" } else { name };
            let full = root.join(name);
            let look = || format!("look at {} again", full.display());
            if let Some((found, _)) = self.tries(taken, look, || entry(&full)) {
                let expected = taken.tree.get(Path::new(name)).unwrap_or_else(|| panic!("no {name}\n{done}"));
                assert!(found == Entry { first_name: None, ..expected.clone() }, "{name} is not the same\n{done}");
            }
        }
    }

    /// Compares a snapshot with its copy, through memory mappings.
    fn compare_by_mapping(&mut self, taken: &Taken) {
        let root = self.root(taken);
        let trouble = self.place.trouble.load(Ordering::SeqCst);
        let done = self.does(
            || format!("map files of {}", root.display()),
            || {
                let mut command = Command::new("python3");
                command.args(["-c", MAP]).arg(&root).arg(&taken.kept);
                run(command)
            },
        );
        let trouble = trouble || self.place.trouble.load(Ordering::SeqCst);
        match done.code {
            0 => {}
            // An unreadable page raises a signal.
            BUS if trouble => {}
            _ => panic!("trouble: {trouble}\n{done}"),
        }
        for number in done.stdout.lines() {
            let number = Errno::from_raw_os_error(number.parse().unwrap());
            self.may_fail(taken, number, trouble, || format!("map files of {}", root.display()));
        }
    }
}

/// The exit code of a run that SIGBUS ended.
const BUS: i32 = 128 + 7;

/// Maps all files below a folder and compares them with those below another; prints errors that it meets.
const MAP: &str = "
import mmap, os, sys
root, kept = sys.argv[1:]
for folder, _, names in os.walk(kept):
    for name in names:
        known = os.path.join(folder, name)
        if os.path.islink(known) or not os.path.getsize(known):
            continue
        try:
            fd = os.open(os.path.join(root, os.path.relpath(known, kept)), os.O_RDONLY)
        except OSError as error:
            print(error.errno, flush=True)
            continue
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            os.close(fd)
            if mapped[:] != open(known, 'rb').read():
                raise SystemExit('other bytes in ' + known)
";

/// Ways of reading, see [`Visitor::visit`]. The last is the usual one.
const WAYS: usize = 6;

fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Prefix of lines that name a difference.
const DIFFERS: &str = "differs: ";

/// Prints differences, including content, without copying.
fn rsync(from: &Path, to: &Path) -> Run {
    let mut command = Command::new("rsync");
    command.args(["-aHAXnc", "--delete", "--8-bit-output"]).arg(format!("--out-format={DIFFERS}%n"));
    command.arg(from.join("")).arg(to.join(""));
    run(command)
}

/// Adds and removes files of a source.
fn change(source: &Path, random: &mut Random, step: u64) {
    let mut folders = vec![source.to_owned()];
    for at in 0..random.within(2, 6) {
        let folder = random.choose(&folders).join(format!("folder {step} {at}"));
        fs::create_dir(&folder).unwrap();
        folders.push(folder);
    }
    let mut files = Vec::new();
    for at in 0..random.within(10, 40) {
        let path = random.choose(&folders).join(format!("{} {step} {at}", "n".repeat(random.below(100) as usize)));
        match random.below(8) {
            0 => symlink(format!("target {at}"), &path).unwrap(),
            1 if !files.is_empty() => fs::hard_link(random.choose(&files), &path).unwrap(),
            2 => {
                let file = File::create(&path).unwrap();
                // Few extents stand in the entry, many in nodes.
                let (pages, many) = (random.within(1, 400), random.one_in(3));
                file.set_len(pages * 8192 + random.below(9000)).unwrap();
                for page in 0..if many { pages } else { pages.min(9) } {
                    file.write_all_at(&random.bytes(4096), page * 8192).unwrap();
                }
                files.push(path);
            }
            _ => {
                let magnitude = if at < 2 { 22 } else { random.below(18) };
                let length = random.below(1 << magnitude);
                fs::write(&path, random.bytes(length)).unwrap();
                for name in 0..random.below(3) {
                    let value = random.bytes(100);
                    rustix::fs::setxattr(&path, format!("user.{name}"), &value, XattrFlags::empty()).unwrap();
                }
                set_mode(&path, random.below(0o10000) as u32);
                set_time(&path, random.below(1 << 33) as i64, random.below(1_000_000_000) as i64);
                files.push(path);
            }
        }
    }
    // Remove as much as was added.
    let mut old: Vec<_> = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
    old.sort();
    while old.len() > 25 {
        let gone = old.swap_remove(random.below(old.len() as u64) as usize);
        if gone.is_dir() && !gone.is_symlink() {
            fs::remove_dir_all(gone).unwrap();
        } else {
            fs::remove_file(gone).unwrap();
        }
    }
}

/// A repository on a disk with reliable writes and unreliable reads.
struct World {
    site: Site,
    disk: Disk,
    steps: u64,
}

impl World {
    fn new() -> World {
        let site = Site::on_tmpfs();
        let [sound, unreliable] = ["sound", "unreliable"].map(|name| site.path().join(name));
        for folder in [&sound, &unreliable, &site.path().join("kept")] {
            fs::create_dir(folder).unwrap();
        }
        let mut disk = Disk::mount(&sound);
        place_one(&site, "repo", &sound);
        site.init();
        disk.show_unreliably(&unreliable);
        World { site, disk, steps: 0 }
    }

    fn mount(&self, cache: u64) -> Foreground {
        let repo = self.site.path().join("unreliable/repo");
        Foreground::of(&self.site, &["--repo", repo.to_str().unwrap(), "--cache-size", &format!("{cache}MiB")])
    }

    /// Changes the source, and makes a snapshot of it.
    fn take(&mut self, random: &mut Random) -> Taken {
        self.steps += 1;
        change(&self.site.source(), random, self.steps);
        settle();
        let kept = self.site.path().join("kept").join(self.steps.to_string());
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.site.source()).arg(&kept);
        run(copy).ok();
        let chunk = random.choose(&["--chunk-size=32KiB", "--chunk-size=512KiB"]).to_string();
        self.site.backup(&[&chunk]).ok();
        let object = snapshot_objects(&self.site).pop().unwrap();
        let name = object.file_name().unwrap().to_str().unwrap().split('-').nth(1).unwrap().to_owned();
        let taken = Taken { name, object, tree: tree(&kept), kept, removed: AtomicBool::new(false) };
        // From now on every listing has it, and the next snapshot gets another name.
        sleep(SEEN);
        taken
    }
}

/// The visitors, which are stopped on drop.
struct Crowd {
    place: Arc<Place>,
    visitors: Vec<(JoinHandle<()>, Now)>,
}

impl Crowd {
    /// As many visitors as this, each of whom reads in each way for so many `turns`, or until told to stop.
    fn enter(place: &Arc<Place>, random: &mut Random, visitors: usize, turns: usize) -> Crowd {
        place.stop.store(false, Ordering::SeqCst);
        let visitors = (0..visitors).map(|number| {
            let doing = Now::default();
            let random = Random::new(random.next(), "visitor");
            let mut visitor = Visitor { place: place.clone(), random, doing: doing.clone() };
            let visit = move || {
                for turn in 0..turns {
                    if visitor.place.stops() {
                        break;
                    }
                    visitor.visit((number + turn) % WAYS);
                }
            };
            (thread::spawn(visit), doing)
        });
        Crowd { place: place.clone(), visitors: visitors.collect() }
    }

    /// Asserts that no visitor hangs or found an error, and that the mount process is healthy.
    #[track_caller]
    fn assert_well(&mut self, mounted: &mut Foreground) {
        for (number, (_, doing)) in self.visitors.iter().enumerate() {
            let hangs = doing.lock().unwrap().as_ref().filter(|doing| doing.since.elapsed() > HANGING).map(|doing| {
                format!("visitor {number} waits since {:?} for this: {}", doing.since.elapsed(), doing.what)
            });
            if let Some(what) = hangs {
                // Otherwise threads that wait for it would wait forever.
                let _ = mounted.child.kill();
                panic!("{what}\n{}", mounted.said());
            }
        }
        assert!(mounted.is_running(), "it ended\n{}", mounted.said());
        let usage = mounted.usage();
        assert!(usage.kibibytes < (self.place.cache << 10) + REST, "{usage:?}");
        if let Some(at) = self.visitors.iter().position(|(visitor, _)| visitor.is_finished()) {
            self.visitors.swap_remove(at).0.join().unwrap_or_else(|wrong| std::panic::resume_unwind(wrong));
        }
    }

    /// Lets this much time pass.
    fn stay(&mut self, mounted: &mut Foreground, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.assert_well(mounted);
            sleep(Duration::from_millis(20));
        }
    }

    /// Stops all visitors, and waits for them.
    fn end(self, mounted: &mut Foreground) {
        self.place.stop.store(true, Ordering::SeqCst);
        self.leave(mounted);
    }

    /// Waits until all visitors have finished.
    fn leave(mut self, mounted: &mut Foreground) {
        while !self.visitors.is_empty() {
            self.assert_well(mounted);
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.place.stop.store(true, Ordering::SeqCst);
    }
}

/// Asserts that every kind of read returns the expected trees.
fn assert_all_is_well(place: &Place, mounted: &mut Foreground) {
    let all = place.taken();
    let there: BTreeSet<_> = all.iter().filter(|one| !one.is_removed()).map(|one| one.name.clone()).collect();
    let newest = there.last().unwrap().clone();
    let expected: BTreeSet<_> = there.into_iter().chain(["latest".to_owned()]).collect();
    mounted.until("all snapshots are listed, and no other", |mounted| {
        names(&mounted.mnt.join("source")).is_ok_and(|found| found == expected)
    });
    assert_eq!(fs::read_link(mounted.mnt.join("source/latest")).unwrap(), Path::new(&newest));
    for one in all.iter().filter(|one| !one.is_removed()) {
        let root = place.mnt.join("source").join(&one.name);
        same(&tree(&root), &one.tree, &one.name);
        for (path, known) in one.tree.iter().filter(|(_, entry)| entry.kind == Kind::File && entry.size > 0) {
            let mut found = vec![0; known.size as usize];
            open_direct(&root.join(path)).unwrap().read_exact_at(&mut found, 0).unwrap();
            assert_eq!(Some(blake3::hash(&found)), known.content, "{}", path.display());
        }
        let compared = rsync(&root, &one.kept).ok();
        assert_eq!(compared.stdout, "", "{compared}");
    }
}

#[test]
fn concurrent_readers_get_correct_bytes_or_errors_while_snapshots_and_the_disk_come_and_go() {
    let (visitors, steps) = if is_long() { (16, 12) } else { (6, 3) };
    rounds("crowd", 1, |mut random| {
        let mut world = World::new();
        let first = (0..2).map(|_| Arc::new(world.take(&mut random))).collect();
        let cache = *random.choose(&CACHES);
        let mut mounted = world.mount(cache);
        let place = Arc::new(Place {
            mnt: mounted.mnt.clone(),
            taken: Mutex::new(first),
            trouble: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            right: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            cache,
        });
        assert_all_is_well(&place, &mut mounted);
        Crowd::enter(&place, &mut random, visitors, WAYS).leave(&mut mounted);
        assert_eq!(place.failed.load(Ordering::Relaxed), 0);
        let idle = mounted.usage();

        let mut crowd = Crowd::enter(&place, &mut random, visitors, usize::MAX);
        for step in 0..steps {
            place.trouble.store(true, Ordering::SeqCst);
            world.disk.falter(*random.choose(&[10, 30, 100, 300]), Random::new(random.next(), "disk"));
            crowd.stay(&mut mounted, Duration::from_millis(random.within(200, 1000)));
            if step % 2 == 1 {
                world.disk.unplug(true);
                // Occasionally longer than any visitor waits.
                let long = is_long() && random.one_in(4);
                let away = if long { 7000 } else { random.within(50, 1500) };
                crowd.stay(&mut mounted, Duration::from_millis(away));
                world.disk.unplug(false);
            }
            let new = world.take(&mut random);
            let mut taken = place.taken.lock().unwrap();
            taken.push(Arc::new(new));
            // Removed snapshots are still read for a while.
            let mut removed = taken.iter().enumerate().filter(|(_, one)| one.is_removed()).map(|(at, _)| at);
            if let (Some(first), 3) = (removed.next(), removed.count() + 1) {
                taken.remove(first);
            }
            let there: Vec<_> = taken.iter().filter(|one| !one.is_removed()).cloned().collect();
            drop(taken);
            if there.len() > 3 {
                let gone = random.choose(&there);
                gone.removed.store(true, Ordering::SeqCst);
                fs::remove_file(&gone.object).unwrap();
            }
            crowd.assert_well(&mut mounted);
        }
        world.disk.falter(0, random.clone());
        crowd.end(&mut mounted);
        place.trouble.store(false, Ordering::SeqCst);

        assert_all_is_well(&place, &mut mounted);
        Crowd::enter(&place, &mut random, visitors, WAYS).leave(&mut mounted);
        mounted.until("nothing is left open", |mounted| {
            let Usage { files, threads, .. } = mounted.usage();
            files <= idle.files + MORE && threads <= idle.threads + MORE as u64
        });
        let (right, failed) = (place.right.load(Ordering::Relaxed), place.failed.load(Ordering::Relaxed));
        let failures = world.disk.failures();
        eprintln!(
            "crowd: {right} right, {failed} failed for {failures} failures of the disk, {cache} MiB; {:?}",
            mounted.usage()
        );
        assert!(right > 100 && failed > 0 && failures > 0, "{right}, {failed}, {failures}");
    });
}
