//! A mount while it is in use and is unmounted or killed, while the repository is unavailable, and while snapshots are
//! removed or blocks fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::foreground::{BOUND, Foreground, open_direct, read_direct};
use common::machine::spawn;
use common::ordeal::Random;
use common::wait::until;
use common::{Site, is_mounted, noise, run, settle, snapshot_objects, tree};
use rustix::io::Errno;
use rustix::process::Signal;

const MIB: usize = 1 << 20;

fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site.backup(&["--chunk-size", "64KiB"]).ok();
    site
}

/// A process whose working directory is in the mount, until it is dropped.
struct Visitor(Child);

impl Visitor {
    fn of(folder: &Path) -> Visitor {
        Visitor(spawn(Command::new("sleep").arg("1000").current_dir(folder)))
    }

    fn name(&self) -> String {
        format!("sleep (process {})", self.0.id())
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_that_use_a_mount_are_named() {
    let site = ready(&[("d/a", "one")]);
    let mut mounted = Foreground::of(&site, &[]);
    let visitor = Visitor::of(&mounted.latest().join("d"));
    let run = site.brackfs(&["umount", site.mnt().to_str().unwrap()]).code(1);
    assert!(run.stderr.contains(&format!("in use by {}", visitor.name())), "{run}");
    assert!(run.stderr.contains("--lazy"), "{run}");
    mounted.signal(Signal::TERM);
    mounted.until("it is detached", |mounted| !is_mounted(&mounted.mnt));
    mounted.until("the process is named", |mounted| mounted.said().contains(&visitor.name()));
    assert!(mounted.child.try_wait().unwrap().is_none(), "it serves the remaining process");
    drop(visitor);
    mounted.until("it ends", |mounted| mounted.child.try_wait().unwrap().is_some_and(|status| status.success()));
}

#[test]
fn a_second_signal_ends_a_mount_in_use() {
    let site = ready(&[("a", "one")]);
    let mut mounted = Foreground::of(&site, &[]);
    let file = open_direct(&mounted.latest().join("a")).unwrap();
    mounted.signal(Signal::INT);
    mounted.until("it is detached", |mounted| !is_mounted(&mounted.mnt));
    assert_eq!(read_direct(&file, 0, 3).unwrap(), b"one");
    mounted.signal(Signal::INT);
    mounted.until("it ends", |mounted| mounted.child.try_wait().unwrap().is_some());
    assert_eq!(Errno::from_io_error(&read_direct(&file, 0, 3).unwrap_err()), Some(Errno::NOTCONN));
}

#[test]
fn a_killed_mount_fails_all_reads_and_is_cleaned_up() {
    let site = ready(&[("large", noise("large", 8 * MIB)), ("small", b"small".to_vec())]);
    for again in [false, true, false] {
        let mut mounted = Foreground::of(&site, &["--cache-size", "1MiB"]);
        let path = mounted.latest().join("large");
        let files: Vec<_> = (0..4).map(|_| open_direct(&path).unwrap()).collect();
        let reads: Arc<[AtomicU64; 4]> = Arc::default();
        let readers: Vec<_> = files
            .into_iter()
            .enumerate()
            .map(|(number, file)| {
                let reads = reads.clone();
                thread::spawn(move || {
                    let mut at = 0;
                    loop {
                        if let Err(error) = read_direct(&file, at % (7 * MIB as u64), 128 << 10) {
                            return Errno::from_io_error(&error);
                        }
                        reads[number].fetch_add(1, Ordering::Relaxed);
                        at += 128 << 10;
                    }
                })
            })
            .collect();
        until("all read", || reads.iter().all(|reads| reads.load(Ordering::Relaxed) > 2));
        mounted.child.kill().unwrap();
        mounted.child.wait().unwrap();
        mounted.until("readers end", |_| readers.iter().all(thread::JoinHandle::is_finished));
        for reader in readers {
            // The request that was being served was aborted.
            let error = reader.join().unwrap();
            assert!([Some(Errno::NOTCONN), Some(Errno::CONNABORTED)].contains(&error), "{error:?}");
        }
        let gone = fs::metadata(site.mnt()).unwrap_err();
        assert_eq!(Errno::from_io_error(&gone), Some(Errno::NOTCONN));
        assert!(is_mounted(&site.mnt()));
        if again {
            // A new mount at the same place removes the dead one.
            let mounted = site.mount(&[]);
            assert_eq!(fs::read(mounted.latest().join("small")).unwrap(), b"small");
        } else {
            site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
        }
        assert!(!is_mounted(&site.mnt()));
    }
}

#[test]
fn reads_wait_for_a_repository_that_is_away_for_a_moment() {
    let bytes = noise("large", 4 * MIB);
    let site = ready(&[("large", &bytes)]);
    let mounted = Foreground::of(&site, &["--cache-size", "1MiB"]);
    let file = open_direct(&mounted.latest().join("large")).unwrap();
    let away = site.path().join("away");
    fs::rename(site.repo(), &away).unwrap();
    let (listings, is_back) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|threads| {
        let reader = threads.spawn(|| read_direct(&file, 0, 4 * MIB));
        // The mount caches a listing for a second.
        let lister = threads.spawn(|| {
            loop {
                let names = fs::read_dir(site.mnt()).map(Iterator::count);
                if names.is_err() || is_back.load(Ordering::Relaxed) {
                    return names;
                }
                listings.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (mut last, mut looks) = (0, 0);
        until("no listing ends", || {
            let now = listings.load(Ordering::Relaxed);
            looks = if now == last { looks + 1 } else { 0 };
            last = now;
            looks == 20
        });
        assert!(!reader.is_finished() && !lister.is_finished(), "they do not wait");
        is_back.store(true, Ordering::Relaxed);
        fs::rename(&away, site.repo()).unwrap();
        assert!(reader.join().unwrap().unwrap() == bytes);
        // The source and the tags.
        assert_eq!(lister.join().unwrap().unwrap(), 2);
    });
}

#[test]
fn waiting_for_the_repository_does_not_delay_later_listings() {
    const OUTAGE: Duration = Duration::from_secs(2);
    let site = ready(&[("file", b"content")]);
    let mounted = Foreground::of(&site, &[]);
    let latest = mounted.latest();
    let snapshots = latest.parent().unwrap();
    let away = site.path().join("away");
    let is_back = AtomicBool::new(false);
    thread::scope(|threads| {
        fs::rename(site.repo(), &away).unwrap();
        let lister = threads.spawn(|| {
            while !is_back.load(Ordering::Relaxed) {
                // On a busy machine, the outage may be longer than the mount waits.
                if let Err(error) = fs::read_dir(snapshots).map(Iterator::count) {
                    assert_eq!(Errno::from_io_error(&error), Some(Errno::TIMEDOUT));
                }
            }
        });
        thread::sleep(OUTAGE);
        is_back.store(true, Ordering::Relaxed);
        fs::rename(&away, site.repo()).unwrap();
        lister.join().unwrap();
    });
    let start = Instant::now();
    site.backup(&[]).ok();
    // Two snapshots and `latest`.
    until("the new snapshot is listed", || fs::read_dir(snapshots).unwrap().count() == 3);
    // If the wait counted as the duration of a listing, the next one would be delayed by ten times as much.
    assert!(start.elapsed() < 9 * OUTAGE, "{:?}", start.elapsed());
}

#[test]
fn reads_fail_while_a_repository_stays_away() {
    let bytes = noise("large", 4 * MIB);
    let site = ready(&[("large", &bytes)]);
    let mounted = Foreground::of(&site, &["--cache-size", "1MiB"]);
    let root = mounted.latest();
    let file = open_direct(&root.join("large")).unwrap();
    let away = site.path().join("away");
    for _ in 0..2 {
        fs::rename(site.repo(), &away).unwrap();
        let start = Instant::now();
        let failed = |result: io::Result<()>| {
            assert_eq!(Errno::from_io_error(&result.unwrap_err()), Some(Errno::TIMEDOUT));
            assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
        };
        failed(read_direct(&file, 0, 4 * MIB).map(drop));
        // Later calls do not wait.
        let waited = Instant::now();
        for _ in 0..10 {
            failed(read_direct(&file, 0, 4 * MIB).map(drop));
            failed(fs::read_dir(site.mnt()).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()).map(drop));
        }
        assert!(waited.elapsed() < BOUND, "{:?}", waited.elapsed());
        fs::rename(&away, site.repo()).unwrap();
        assert!(read_direct(&file, 0, 4 * MIB).unwrap() == bytes);
        assert_eq!(mounted.latest(), root);
    }
    assert!(mounted.said().contains("source/"), "the file is named: {}", mounted.said());
}

#[test]
fn a_removed_snapshot_leaves_listings_and_its_open_files_can_still_be_read() {
    let bytes = noise("large", 4 * MIB);
    let site = ready(&[("large", &bytes)]);
    let mut mounted = Foreground::of(&site, &["--cache-size", "1MiB"]);
    let first = mounted.latest();
    let file = open_direct(&first.join("large")).unwrap();
    assert!(read_direct(&file, 0, MIB).unwrap() == bytes[..MIB]);
    site.write("new", "new");
    settle();
    site.backup(&[]).ok();
    fs::remove_file(&snapshot_objects(&site)[0]).unwrap();
    let names = |mounted: &Foreground| {
        let names = fs::read_dir(mounted.mnt.join("source")).unwrap();
        names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let name = first.file_name().unwrap().to_owned();
    mounted.until("it is listed no more", |mounted| !names(mounted).contains(&name));
    mounted.until("its name is gone", |_| fs::metadata(&first).is_err());
    mounted.until("the other one is", |mounted| names(mounted).len() == 2);
    assert!(read_direct(&file, 0, 4 * MIB).unwrap() == bytes, "stored data still exists");
    assert_eq!(fs::read(mounted.latest().join("new")).unwrap(), b"new");
    // After its data is deleted, too.
    for pack in packs(&site) {
        fs::remove_file(pack).unwrap();
    }
    assert_eq!(Errno::from_io_error(&read_direct(&file, 0, 4 * MIB).unwrap_err()), Some(Errno::IO));
    assert!(mounted.child.try_wait().unwrap().is_none());
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let folders = fs::read_dir(site.repo().join("packs")).unwrap().map(|entry| entry.unwrap().path());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|e| e.unwrap().path())).collect()
}

#[test]
fn many_readers_get_correct_bytes_or_errors_while_packs_are_damaged() {
    let contents: Vec<_> = (0..40).map(|at| noise(&at.to_string(), at * 20_011 % 700_000)).collect();
    let files: Vec<_> = contents.iter().enumerate().map(|(at, bytes)| (format!("d{}/f{at}", at % 5), bytes)).collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let site = ready(&files);
    let mut mounted = Foreground::of(&site, &["--cache-size", "2MiB"]);
    let root = mounted.latest();
    let (stop, right, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let read_all = |from: usize| {
        for (name, bytes) in files.iter().cycle().skip(from).take(files.len()) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let found = open_direct(&root.join(name)).and_then(|file| read_direct(&file, 0, bytes.len()));
            let count = match found {
                Ok(found) => {
                    assert!(found == **bytes, "{name} has other bytes");
                    &right
                }
                Err(error) => {
                    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{name}: {error}");
                    &failed
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    // Read everything once before measuring, so that caches and buffers exist.
    read_all(0);
    let before = mounted.usage();
    let mut random = Random::new(1, "readers");
    thread::scope(|threads| {
        let readers: Vec<_> = (0..16)
            .map(|reader| {
                let (read_all, stop) = (&read_all, &stop);
                threads.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        read_all(reader * 3);
                    }
                })
            })
            .collect();
        let all = packs(&site);
        for round in 0..30 {
            // For a while, a pack is missing or damaged in the middle.
            let pack = &all[random.below(all.len() as u64) as usize];
            let aside = site.path().join("aside");
            fs::copy(pack, &aside).unwrap();
            match round % 2 {
                0 => fs::remove_file(pack).unwrap(),
                _ => {
                    let file = File::options().write(true).open(pack).unwrap();
                    let middle = file.metadata().unwrap().len() / 2;
                    file.write_all_at(b"something else", middle).unwrap();
                }
            }
            let reads = || right.load(Ordering::Relaxed) + failed.load(Ordering::Relaxed);
            let begun = reads();
            until("files are read", || reads() >= begun + files.len() as u64);
            fs::copy(&aside, pack).unwrap();
            if round % 10 == 5 {
                site.write("changing", round.to_string());
                settle();
                site.backup(&[]).ok();
                let objects = snapshot_objects(&site);
                // Keep the snapshot that is being read.
                fs::remove_file(objects.last().unwrap()).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        until("readers end", || readers.iter().all(thread::ScopedJoinHandle::is_finished));
    });
    assert!(right.load(Ordering::Relaxed) > 100, "{right:?} were right, {failed:?} failed");
    assert!(failed.load(Ordering::Relaxed) > 0, "nothing failed");
    // Everything can be read again, and nothing leaked.
    let shown = tree(&root);
    for (name, bytes) in &files {
        assert_eq!(shown[Path::new(name)].content, Some(blake3::hash(bytes)), "{name}");
    }
    mounted.until("files are closed", |mounted| mounted.usage().files <= before.files);
    let after = mounted.usage();
    assert!(after.kibibytes < before.kibibytes + (40 << 10), "{before:?} became {after:?}");
    assert!(mounted.child.try_wait().unwrap().is_none());
}

#[test]
fn a_hangup_or_an_external_umount_ends_a_mount() {
    let site = ready(&[("a", "one")]);
    let mut mounted = Foreground::of(&site, &[]);
    mounted.signal(Signal::HUP);
    mounted.until("it ends", |mounted| mounted.child.try_wait().unwrap().is_some_and(|status| status.success()));
    assert!(!is_mounted(&site.mnt()));
    // It also ends if another program detaches the mount.
    let mut mounted = Foreground::of(&site, &[]);
    let mut command = Command::new("umount");
    command.arg(site.mnt());
    run(command).ok();
    mounted.until("it ends", |mounted| mounted.child.try_wait().unwrap().is_some_and(|status| status.success()));
}
