//! Concurrent backups and readers: the second backup waits, and readers see only finished snapshots.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::ordeal::{End, Ordeal, rounds, same};
use common::{Site, run, tree};

/// Reads in every way until told to stop. Returns the number of rounds.
fn read(site: &Site, snapshot: &str, expected: &Path, number: usize, stop: &AtomicBool) -> u32 {
    let out = site.path().join(format!("reader-{number}"));
    let path = out.to_str().expect("a path");
    let mut turns = 0;
    while turns == 0 || !stop.load(Ordering::Relaxed) {
        site.brackfs(&["restore", snapshot, "--to", path]).ok();
        same(&tree(&out), &tree(expected), "restored beside a backup");
        std::fs::remove_dir_all(&out).expect("it goes");
        site.brackfs(&["check", "--read-data"]).ok();
        site.brackfs(&["snapshots"]).ok();
        site.brackfs(&["ls", "-lR", snapshot]).ok();
        site.brackfs(&["dump", snapshot]).ok();
        turns += 1;
    }
    turns
}

#[test]
fn concurrent_backups_and_readers_do_not_disturb_each_other() {
    let (mut refused, mut turns) = (0, 0);
    rounds("together", 4, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        let snapshot = ordeal.snapshots().pop_first().expect("a snapshot");
        let kept = ordeal.site.path().join("kept");
        ordeal.site.brackfs(&["restore", &snapshot, "--to", kept.to_str().expect("a path")]).ok();
        let mounted = ordeal.site.mount(&[]);
        let seen = mounted.latest();
        let site = ordeal.site.clone();
        let stop = AtomicBool::new(false);
        thread::scope(|threads| {
            let end = End(&stop);
            // A mount is another reader, which started before.
            let (site, snapshot, kept, stop) = (&*site, &snapshot, &kept, &stop);
            let readers: Vec<_> =
                (0..2).map(|number| threads.spawn(move || read(site, snapshot, kept, number, stop))).collect();
            let through_mount = threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    same(&tree(&seen), &tree(kept), "read through a mount beside a backup");
                }
            });
            for _ in 0..4 {
                ordeal.change();
                let mut first = ordeal.command();
                let first: Child = first.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a backup");
                let second = run(ordeal.command());
                let first = first.wait_with_output().expect("its end");
                let codes = [first.status.code().expect("a code"), second.code];
                assert!(codes.contains(&0) && codes.iter().all(|code| [0, 11].contains(code)), "{codes:?}\n{second}");
                refused += u32::from(codes.contains(&11));
                if second.code == 11 {
                    assert!(second.stderr.contains("another run"), "{second}");
                }
                ordeal.look();
                // The next run removes the leftovers of this one while readers are active.
                let mut killed =
                    ordeal.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a backup");
                thread::sleep(Duration::from_millis(ordeal.random.below(150)));
                killed.kill().and_then(|()| killed.wait()).expect("a kill");
                ordeal.look();
            }
            drop(end);
            turns += readers.into_iter().map(|reader| reader.join().expect("a reader")).sum::<u32>();
            through_mount.join().expect("a reader");
        });
        drop(mounted);
        ordeal.holds();
    });
    assert!(refused > 0, "no two backups ever met");
    assert!(turns > 0, "nobody read");
}
