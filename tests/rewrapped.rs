//! A recipient who was added later reads old snapshots with session keys that were sealed again. Packs stay unchanged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;

use brackfs::crypt::{Opener, Sealer};
use brackfs::repository::Repository;
use common::rewrap::{pkesks, secret_key};
use common::{Run, Site, run, snapshot_objects, tree};

/// A site with two snapshots that only `keys/owner` opens, and a second key that is no recipient.
fn site(profile: &str) -> Site {
    let site = Site::with_files(&[("file", common::noise("old", 300_000)), ("gone", b"content".to_vec())]);
    site.key(profile);
    site.init();
    site.backup(&[]).ok();
    fs::remove_file(site.source().join("gone")).unwrap();
    site.write("new", "later");
    site.backup(&[]).ok();
    site.key_named("later", profile);
    // Only the second key's owner is left.
    fs::rename(site.keys().join("owner"), site.keys().join("old")).unwrap();
    site
}

/// Restores the oldest snapshot with the second key, on a machine that never saw the repository.
fn restore(site: &Site, to: &str) -> Run {
    let [state, to] = [format!("state-{to}"), to.to_owned()].map(|name| site.path().join(name));
    let oldest = snapshot_objects(site).remove(0);
    let id = oldest.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap();
    let mut command = site.command(&["restore", id]);
    command.arg("--key").arg(site.keys().join("later")).arg("--state-dir").arg(state).arg("--to").arg(to);
    run(command)
}

fn repository(site: &Site) -> Repository {
    Repository::open(&site.repo().as_path().into()).unwrap()
}

/// Makes a table of all runs for a key.
fn table(site: &Site, name: &str) -> Vec<u8> {
    let old = Opener::new(secret_key(&site.keys().join("old"))).unwrap();
    let runs: Vec<_> = snapshot_objects(site).iter().map(|snapshot| pkesks(&fs::read(snapshot).unwrap())).collect();
    let table = old.rewrap(&runs, &secret_key(&site.keys().join(name)).certificate()).unwrap();
    assert_eq!((table.keys, table.missing), (2, 0));
    table.sealed
}

#[test]
fn a_later_recipient_restores_an_old_snapshot() {
    for profile in ["rfc9580", "rfc4880"] {
        let site = site(profile);
        let later = secret_key(&site.keys().join("later")).fingerprint();
        let packs = tree(&site.repo().join("packs"));
        restore(&site, "without").code(12);

        // Neither of these helps, nor does any harm.
        site.key_named("other", profile);
        let repository = repository(&site);
        let mut wrong = Vec::new();
        let content = [b"brackfs session keys 1\n".as_slice(), &[7; 64 * 10]].concat();
        let certificate = secret_key(&site.keys().join("later")).certificate();
        Sealer::new(&[certificate]).unwrap().seal(&content, &mut wrong).unwrap();
        for useless in [b"garbage", table(&site, "other").as_slice(), &wrong, &[]] {
            repository.put_rewrapped(&later, useless).unwrap();
        }
        restore(&site, "useless").code(12);

        repository.put_rewrapped(&later, &table(&site, "later")).unwrap();
        restore(&site, "with").ok();
        let restored = site.path().join("with");
        assert_eq!(fs::read(restored.join("file")).unwrap(), common::noise("old", 300_000));
        assert_eq!(fs::read(restored.join("gone")).unwrap(), b"content");
        assert!(!restored.join("new").exists());
        assert_eq!(tree(&site.repo().join("packs")), packs);
    }
}

#[test]
fn the_log_names_the_tables() {
    let site = site("rfc9580");
    let later = secret_key(&site.keys().join("later")).fingerprint();
    let repository = repository(&site);
    let garbage = repository.put_rewrapped(&later, b"garbage").unwrap();
    let good = repository.put_rewrapped(&later, &table(&site, "later")).unwrap();
    let key = site.keys().join("later");
    let log = site.path().join("log");
    let run = site.brackfs(&["ls", "latest", "--key", key.to_str().unwrap(), "--log", log.to_str().unwrap()]).ok();
    assert!(run.stderr.is_empty(), "{run}");
    let log = fs::read_to_string(log).unwrap();
    for (object, outcome) in [(garbage, "skipped"), (good, "loaded")] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&object) && line.contains("table of")).collect();
        assert!(matches!(lines.as_slice(), [line] if line.contains(outcome)), "{lines:?}");
    }
}
