//! Power cuts of an ext4 file system that has the repository and the state. It may keep any part of the unsynced
//! changes.
//!
//! Unlike the disk in `tests/power.rs`, it supports unnamed files. Needs root and a loop device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::machine::succeed;
use common::ordeal::{Ordeal, count_calls, place, rounds, under_strace};
use common::{Site, run};

/// System calls at which the power is cut.
const CALLS: [&str; 7] = ["fsync", "fdatasync", "linkat", "mkdir", "pwrite64", "write", "unlink"];

/// Stops a file system at once (`FS_IOC_SHUTDOWN` without a flush): changes that are not in its journal are lost.
const SHUT_DOWN: &str = "
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// An ext4 in a file, mounted in a site.
struct Ext4 {
    image: PathBuf,
    path: PathBuf,
}

impl Ext4 {
    fn new(site: &Site) -> Ext4 {
        let [image, path] = ["image", "disk"].map(|name| site.path().join(name));
        File::create(&image).and_then(|file| file.set_len(96 << 20)).expect("an image");
        fs::create_dir(&path).expect("a mount point");
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let disk = Ext4 { image, path };
        disk.mount();
        disk
    }

    fn mount(&self) {
        succeed(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.path]));
    }

    /// Cuts the power, and has the journal replayed.
    fn cut(&self) {
        succeed(Command::new("python3").args(["-c", SHUT_DOWN]).arg(&self.path));
        succeed(Command::new("umount").arg(&self.path));
        self.mount();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // The site may have done it before.
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
    }
}

#[test]
fn power_cuts_of_an_ext4_lose_nothing() {
    let mut cuts = 0;
    rounds("ext4", 5, |random| {
        let site = Site::in_memory();
        let disk = Ext4::new(&site);
        place(&site, &disk.path);
        // The test made these folders, so it must sync them.
        rustix::fs::syncfs(File::open(&disk.path).expect("the disk")).expect("a sync");
        let mut ordeal = Ordeal::at(site, random, 1);
        ordeal.change();
        let calls = count_calls(&CALLS, &ordeal.command());
        let names: Vec<_> = calls.keys().copied().collect();
        disk.cut();
        ordeal.holds();
        for _ in 0..4 {
            ordeal.change();
            let call = *ordeal.random.choose(&names);
            let when = ordeal.random.within(1, calls[call] + 1);
            let inject = format!("inject={call}:signal=KILL:when={when}");
            let trace = format!("trace={call}");
            let end = run(under_strace(&["-o", "/dev/null", "-e", &trace, "-e", &inject], &ordeal.command()));
            eprintln!("ext4: power cut at {call} {when}, exit code {}", end.code);
            assert!([0, 137].contains(&end.code), "{end}");
            if end.code == 0 {
                // Reported success must survive.
                ordeal.look();
            }
            disk.cut();
            cuts += 1;
            ordeal.holds();
        }
    });
    assert!(cuts > 0, "the power was never cut");
}
