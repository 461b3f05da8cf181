//! Files that differ from their stat, or are not available at once: of unknown size, or under a lease.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use common::machine::spawn;
use common::{Site, made_up, noise};

#[test]
fn files_of_unknown_size_are_read_to_their_end() {
    let site = Site::with_files(&[("beside", "it")]);
    site.init();
    let sizes = [("none", 0, 300_000), ("short", 10, 70_000), ("tiny", 0, 5), ("less", 4096, 5), ("right", 9000, 9000)];
    let files = sizes.map(|(name, stated, length)| (name.to_owned(), (stated, noise(name, length))));
    let files = BTreeMap::from(files);
    let at = site.source().join("mount");
    fs::create_dir(&at).unwrap();
    let _mounted = made_up::mount(files.clone(), &at);
    for extra in [&[][..], &["--reread"], &["--low-memory", "--reread"]] {
        // Their stamps may be those of a server, so a backup does not wait for them.
        let run = site.backup(&[extra, &["--settle-max", "0s"]].concat()).ok();
        assert!(run.stderr.contains("is not of the size that its file system says"), "{run}");
        assert!(run.stderr.contains("and so were 3 more files"), "{run}");
        for (name, (_, content)) in &files {
            let found = site.path().join("found");
            let out = fs::File::create(&found).unwrap();
            let mut cat = site.command(&["cat", &format!("latest:mount/{name}")]);
            assert!(cat.stdout(out).status().unwrap().success(), "{name}");
            assert!(fs::read(&found).unwrap() == *content, "{name} is not whole");
        }
        site.brackfs(&["check", "--read-data"]).ok();
    }
}

#[test]
fn files_generated_by_the_kernel_are_complete() {
    let site = Site::with_files(&[("symbols", "")]);
    site.init();
    let symbols = site.source().join("symbols");
    rustix::mount::mount_bind("/proc/kallsyms", &symbols).unwrap();
    let content = fs::read(&symbols).unwrap();
    assert!(content.len() > 100_000, "the kernel shows no symbols");
    site.backup(&[]).ok();
    assert!(site.brackfs(&["cat", "latest:symbols"]).ok().stdout.into_bytes() == content);
}

/// Holds write leases on files until some time after a request to release them.
const HOLDER: &str = r"
import fcntl, os, signal, sys, time
files = [os.open(path, os.O_RDWR) for path in sys.argv[2:]]
def give_up(*_):
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    time.sleep(float(sys.argv[1]))
    for file in files: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give_up)
for file in files: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('ready', flush=True)
time.sleep(600)
";

#[test]
fn a_file_under_a_lease_is_backed_up() {
    for extra in [&[][..], &["--retries", "0"]] {
        let site = Site::with_files(&[("leased", "content"), ("also/leased", "content"), ("other", "content")]);
        site.init();
        let files = ["leased", "also/leased"].map(|name| site.source().join(name));
        let mut holder = Command::new("python3");
        holder.args(["-c", HOLDER, "1"]).args(&files).stdout(Stdio::piped());
        let mut holder = spawn(&mut holder);
        let mut ready = [0; 5];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let run = site.backup(extra);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(run.ok().stderr, "");
        for name in ["leased", "also/leased"] {
            assert_eq!(site.brackfs(&["cat", &format!("latest:{name}")]).ok().stdout, "content");
        }
    }
}
