//! Damaged repositories: the damage is detected and named, and undamaged data is restored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use brackfs::check::check;
use brackfs::crypt::{Opener, SecretKey};
use brackfs::monitor::Monitor;
use brackfs::reader::Reader;
use brackfs::repository::{Access, Repository};
use common::{Run, Site, age, content, noise, settle, tree};
use tempfile::TempDir;

/// Damage to a file on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Truncated,
    Flipped,
    Missing,
}

const DAMAGES: [Damage; 3] = [Damage::Truncated, Damage::Flipped, Damage::Missing];

/// A damaged object, which is repaired on drop.
struct Damaged {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Damaged {
    fn new(path: &Path, damage: Damage) -> Damaged {
        let bytes = fs::read(path).expect("object");
        let middle = bytes.len() / 2;
        match damage {
            Damage::Truncated => fs::write(path, &bytes[..middle]).expect("object"),
            Damage::Flipped => flip(path, middle),
            Damage::Missing => fs::remove_file(path).expect("object"),
        }
        Damaged { path: path.to_owned(), bytes }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.bytes);
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("object");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("object");
}

/// Makes the site's repository.
#[track_caller]
fn init(site: &Site, encrypted: bool) {
    if encrypted {
        site.init();
    } else {
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    }
}

/// Files with a block each, and small ones that share a block.
const FIRST: [&str; 4] = ["one/a", "one/b", "one/c", "one/small"];
const SECOND: [&str; 3] = ["two/d", "two/e", "two/small"];

/// A source with two backups: `one/` is in the first packs, `two/` in the second.
struct Twice {
    site: Site,
    data: [PathBuf; 2],
    trees: [PathBuf; 2],
    snapshots: [PathBuf; 2],
}

impl Twice {
    fn new(encrypted: bool) -> Twice {
        let site = Site::new();
        site.key("rfc9580");
        init(&site, encrypted);
        let mut seen = BTreeSet::new();
        let mut halves = [FIRST.as_slice(), &SECOND].map(|files| {
            for name in files {
                let size = if name.ends_with("small") { 2000 } else { 300 << 10 };
                site.write(name, noise(name, size));
            }
            age(&site.source());
            settle();
            // Cut at fixed offsets and not gathered: each larger file is one block.
            site.backup(&["--chunk-size", "1MiB", "--merge-files-under", "128KiB"]).ok();
            let new = |folder: &str| {
                let paths = tree(&site.repo()).into_keys().map(|path| site.repo().join(path));
                paths.filter(|path| path.is_file() && path.starts_with(site.repo().join(folder))).collect::<Vec<_>>()
            };
            let [mut packs, mut snapshots] = ["packs", "snapshots"].map(new);
            for paths in [&mut packs, &mut snapshots] {
                paths.retain(|path| seen.insert(path.clone()));
            }
            // Trees are small.
            packs.sort_by_key(|path| fs::metadata(path).expect("pack").len());
            assert_eq!((packs.len(), snapshots.len()), (2, 1), "{packs:?} {snapshots:?}");
            [packs.pop().expect("data"), packs.pop().expect("tree"), snapshots.pop().expect("snapshot")]
        });
        let mut both = |at: usize| halves.each_mut().map(|half| std::mem::take(&mut half[at]));
        Twice { data: both(0), trees: both(1), snapshots: both(2), site }
    }

    /// Restores the newest snapshot, and asserts that all restored files are correct. Returns the run and their paths.
    #[track_caller]
    fn restore(&self) -> (Run, BTreeSet<String>) {
        let out = TempDir::with_prefix_in("out-", self.site.path()).expect("temporary directory");
        let arguments: [OsString; 4] = ["restore".into(), "latest".into(), "--to".into(), out.path().into()];
        let run = self.site.brackfs(&arguments);
        assert!(!run.stderr.contains("panicked"), "{run}");
        let mut restored = BTreeSet::new();
        for path in tree(out.path()).into_keys() {
            let name = path.to_str().expect("a name").to_owned();
            assert!(!name.contains(".brackfs-"), "{name} was left\n{run}");
            let (there, original) = (out.path().join(&path), self.site.source().join(&path));
            if there.is_file() {
                assert_eq!(content(&there).unwrap(), content(&original).unwrap(), "{name} is wrong\n{run}");
                restored.insert(name);
            }
        }
        (run, restored)
    }

    /// Asserts that a check fails and names one of these.
    #[track_caller]
    fn check_names(&self, arguments: &[&str], names: &[&str]) {
        // With -v, the names of objects are whole.
        let run = self.site.brackfs(&[&["check", "-v"], arguments].concat()).code(1);
        assert!(!run.stderr.contains("panicked"), "{run}");
        assert!(names.iter().any(|name| run.stderr.contains(name)), "it names none of {names:?}\n{run}");
    }
}

fn leaf(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

fn damaged_data(encrypted: bool) {
    let twice = Twice::new(encrypted);
    let all: BTreeSet<_> = FIRST.iter().chain(&SECOND).map(ToString::to_string).collect();
    let (run, restored) = twice.restore();
    run.ok();
    assert_eq!(restored, all);
    for damage in DAMAGES {
        let _damaged = Damaged::new(&twice.data[0], damage);
        twice.check_names(&["--read-data"], &[leaf(&twice.data[0])]);
        if damage != Damage::Flipped {
            twice.check_names(&[], &[leaf(&twice.data[0]), "one/"]);
        }
        let (run, restored) = twice.restore();
        let run = run.code(1);
        let lost: Vec<_> = all.difference(&restored).collect();
        match damage {
            Damage::Flipped => assert_eq!(lost.len(), 1, "lost by one byte: {lost:?}\n{run}"),
            Damage::Missing => assert_eq!(lost, FIRST.iter().collect::<Vec<_>>(), "{run}"),
            // All files, if that half has the block that their last pieces share.
            Damage::Truncated => assert!(!lost.is_empty(), "nothing is lost by half a pack\n{run}"),
        }
        for name in lost {
            assert!(name.starts_with("one/"), "{name} is not in the damaged pack, and is lost\n{run}");
            assert!(run.stderr.contains(name.as_str()), "{name} is lost, and not named\n{run}");
        }
    }
    // The damage was the cause: without it, all is well.
    twice.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn damaged_data_is_named_and_all_other_files_are_restored() {
    damaged_data(true);
}

#[test]
fn damaged_unencrypted_data_is_named_and_all_other_files_are_restored() {
    damaged_data(false);
}

fn damaged_trees(encrypted: bool) {
    let twice = Twice::new(encrypted);
    for damage in DAMAGES {
        let _damaged = Damaged::new(&twice.trees[0], damage);
        twice.check_names(&["--read-data"], &[leaf(&twice.trees[0])]);
        twice.check_names(&[], &[leaf(&twice.trees[0]), "one"]);
        let (run, restored) = twice.restore();
        let run = run.code(1);
        assert!(run.stderr.contains("one"), "one/ is lost, and not named\n{run}");
        assert_eq!(restored, SECOND.iter().map(ToString::to_string).collect(), "{run}");
    }
    twice.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_damaged_tree_is_named_and_all_other_directories_are_restored() {
    damaged_trees(true);
}

#[test]
fn a_damaged_unencrypted_tree_is_named_and_all_other_directories_are_restored() {
    damaged_trees(false);
}

#[test]
fn a_damaged_snapshot_is_named_and_the_other_one_is_restored() {
    for encrypted in [true, false] {
        let twice = Twice::new(encrypted);
        for damage in [Damage::Truncated, Damage::Flipped] {
            let name = leaf(&twice.snapshots[0]);
            let damaged = Damaged::new(&twice.snapshots[0], damage);
            for arguments in [[].as_slice(), &["--read-data"]] {
                twice.check_names(arguments, &[name]);
            }
            let (run, restored) = twice.restore();
            run.ok();
            assert_eq!(restored.len(), FIRST.len() + SECOND.len());
            drop(damaged);

            let _damaged = Damaged::new(&twice.snapshots[1], damage);
            let (run, restored) = twice.restore();
            let run = run.ok();
            let (_, id) = leaf(&twice.snapshots[1]).rsplit_once('-').unwrap();
            assert!(run.stderr.contains(&id[..8]), "it is not named\n{run}");
            assert_eq!(restored, FIRST.iter().map(ToString::to_string).collect(), "{run}");
        }
    }
}

#[test]
fn a_mount_shows_the_older_snapshot_if_the_newest_is_damaged() {
    for damage in [Damage::Truncated, Damage::Flipped] {
        let twice = Twice::new(true);
        let _damaged = Damaged::new(&twice.snapshots[1], damage);
        let mounted = twice.site.mount(&["--quiet"]);
        let times = fs::read_dir(mounted.path().join("source")).unwrap().map(|entry| entry.unwrap().path());
        let good: Vec<_> = times.filter(|time| !time.ends_with("latest") && time.join("one/a").is_file()).collect();
        assert_eq!(good.len(), 1, "readable snapshots: {good:?}");
        assert_eq!(fs::read(good[0].join("one/a")).unwrap(), fs::read(twice.site.source().join("one/a")).unwrap());
    }
}

#[test]
fn a_missing_older_snapshot_is_detected() {
    let twice = Twice::new(true);
    let _damaged = Damaged::new(&twice.snapshots[0], Damage::Missing);
    let (_, id) = leaf(&twice.snapshots[0]).rsplit_once('-').expect("an id");
    twice.check_names(&["--read-data"], &[id]);
}

#[test]
fn a_damaged_file_in_a_mount_is_an_io_error_and_its_neighbours_are_readable() {
    for encrypted in [true, false] {
        let twice = Twice::new(encrypted);
        for damage in DAMAGES {
            let _damaged = Damaged::new(&twice.data[0], damage);
            let mounted = twice.site.mount(&["--quiet"]);
            let latest = mounted.latest();
            let mut broken = Vec::new();
            for name in FIRST.iter().chain(&SECOND) {
                match fs::read(latest.join(name)) {
                    Ok(bytes) => assert_eq!(bytes, fs::read(twice.site.source().join(name)).unwrap(), "{name}"),
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
                        broken.push(*name);
                    }
                }
            }
            assert!(broken.iter().all(|name| name.starts_with("one/")), "{broken:?} can't be read");
            match damage {
                Damage::Flipped => assert_eq!(broken.len(), 1, "broken by one byte: {broken:?}"),
                Damage::Missing => assert_eq!(broken, FIRST),
                Damage::Truncated => assert!(!broken.is_empty(), "all can be read without half a pack"),
            }
            assert!(mounted.is_mounted(), "the mount is gone");
        }
    }
}

#[test]
fn a_damaged_tree_in_a_mount_is_an_io_error_and_its_neighbours_are_readable() {
    let twice = Twice::new(true);
    let _damaged = Damaged::new(&twice.trees[0], Damage::Flipped);
    let mounted = twice.site.mount(&["--quiet"]);
    let latest = mounted.latest();
    let listed: Result<Vec<_>, _> = fs::read_dir(latest.join("one")).and_then(Iterator::collect);
    assert_eq!(listed.expect_err("a listing of a damaged directory").raw_os_error(), Some(5));
    assert_eq!(fs::read(latest.join("one/a")).expect_err("a file in it").raw_os_error(), Some(5));
    for name in SECOND {
        assert_eq!(fs::read(latest.join(name)).unwrap(), fs::read(twice.site.source().join(name)).unwrap());
    }
    assert!(mounted.is_mounted(), "the mount is gone");
}

#[test]
fn swapped_packs_are_detected_and_give_no_wrong_bytes() {
    for encrypted in [true, false] {
        let twice = Twice::new(encrypted);
        let aside = twice.site.path().join("aside");
        for [one, two] in [&twice.data, &twice.trees] {
            let exchange = || {
                for (from, to) in [(one, &aside), (two, one), (&aside, two)] {
                    fs::rename(from, to).unwrap();
                }
            };
            exchange();
            twice.check_names(&["--read-data"], &[leaf(one), leaf(two)]);
            // Only correct files are restored, which restore() looks after.
            let (run, restored) = twice.restore();
            let run = run.code(1);
            assert!(restored.len() < FIRST.len() + SECOND.len(), "{run}");
            exchange();
        }
        twice.site.brackfs(&["check", "--read-data"]).ok();
    }
}

#[test]
fn an_older_snapshot_renamed_to_look_newer_is_ignored() {
    for encrypted in [true, false] {
        let twice = Twice::new(encrypted);
        let (_, id) = leaf(&twice.snapshots[0]).rsplit_once('-').unwrap();
        let newer = format!("9999999999-20990101T000000Z-{id}");
        fs::rename(&twice.snapshots[0], twice.snapshots[0].with_file_name(&newer)).unwrap();
        twice.check_names(&[], &[&newer]);
        let (run, restored) = twice.restore();
        let run = run.ok();
        assert!(
            run.stderr.contains(&id[..8]) && run.stderr.contains("2099-01-01") && run.stderr.contains("name"),
            "it does not say why\n{run}"
        );
        assert_eq!(restored.len(), FIRST.len() + SECOND.len(), "{run}");
    }
}

/// Collects the findings of a check.
#[derive(Default)]
struct Problems(Mutex<Vec<String>>);

impl Monitor for Problems {
    fn problem(&self, path: &Path, why: &str) {
        self.0.lock().unwrap().push(format!("{}: {why}", path.display()));
    }
    fn note(&self, _message: &str) {}
    fn entry(&self, _path: &Path, _what: &str) {}
}

/// The findings of `check --read-data`. An error is a finding, too.
fn findings(site: &Site) -> Vec<String> {
    let problems = Problems::default();
    let look = || -> Result<(), Box<dyn std::error::Error>> {
        let repository = Repository::open(&site.repo().as_path().into())?;
        let opener = match repository.encrypted() {
            true => Some(Opener::new(SecretKey::parse(&fs::read(site.keys().join("owner"))?)?)?),
            false => None,
        };
        let hosts = repository.keys().hosts()?;
        let reader = Reader::new(repository, Access::new(opener, hosts), 4 << 20);
        check(&reader, true, &problems, &AtomicBool::new(false))?;
        Ok(())
    };
    let failed = look().err();
    let mut found = problems.0.into_inner().unwrap();
    found.extend(failed.map(|error| error.to_string()));
    found
}

/// End of the encrypted session keys at the start of a message; 0 if it is not encrypted.
fn envelope(message: &[u8]) -> usize {
    let mut at = 0;
    while message[at] == 0xC1 {
        at += 2 + usize::from(message[at + 1]);
    }
    at
}

#[test]
fn a_change_of_any_byte_that_a_reader_needs_is_detected() {
    for encrypted in [true, false] {
        let site = Site::with_files(&[("a", noise("a", 700)), ("folder/b", noise("b", 300))]);
        site.key("rfc9580");
        init(&site, encrypted);
        site.backup(&[]).ok();
        assert_eq!(findings(&site), [""; 0]);
        let objects: Vec<_> = tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file()).collect();
        for object in objects {
            let name = object.to_str().unwrap();
            if ["brackfs.toml", "README.txt", "FORMAT.txt", "reserve"].contains(&name) {
                continue;
            }
            // Other objects are for the writer, or for people.
            let is_read = ["packs/", "snapshots/", "sources/", "sums/"].iter().any(|folder| name.starts_with(folder));
            let path = site.repo().join(&object);
            let bytes = fs::read(&path).unwrap();
            for at in (0..bytes.len()).step_by(97) {
                flip(&path, at);
                // A source's name is sealed to the host, too, and the host's session key is nothing to the owner.
                let is_read = is_read && (at >= envelope(&bytes) || !name.starts_with("sources/"));
                // Any damage must at least not cause a panic.
                let found = findings(&site);
                assert!(
                    !is_read || !found.is_empty(),
                    "byte {at} of {name} changed, and nobody noticed (encrypted: {encrypted})"
                );
                fs::write(&path, &bytes).unwrap();
            }
        }
    }
}

#[test]
fn after_a_change_of_any_byte_a_restore_fails_or_gives_the_right_bytes() {
    let files = [("a", noise("a", 700)), ("folder/b", noise("b", 300))];
    let site = Site::with_files(&files);
    site.init();
    site.backup(&[]).ok();
    let objects: Vec<_> = tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file()).collect();
    for (number, object) in objects.iter().enumerate() {
        let path = site.repo().join(object);
        let bytes = fs::read(&path).unwrap();
        for share in [3, 7] {
            let at = (bytes.len() * share / 11 + number).min(bytes.len() - 1);
            flip(&path, at);
            let out = TempDir::with_prefix_in("out-", site.path()).unwrap();
            let run = site.brackfs(&["restore".into(), "latest".into(), "--to".into(), out.path().to_owned()]);
            let whole = files.iter().filter(|(name, content)| match fs::read(out.path().join(name)) {
                Ok(restored) => {
                    assert_eq!(restored, *content, "{name} is wrong after byte {at} of {object:?}\n{run}");
                    true
                }
                Err(_) => false,
            });
            assert!(whole.count() == files.len() || run.code != 0, "byte {at} of {object:?}\n{run}");
            assert!([0, 1, 10, 12].contains(&run.code) && !run.stderr.contains("panicked"), "{object:?}\n{run}");
            fs::write(&path, &bytes).unwrap();
        }
    }
}
