//! `brackfs mount` with limited resources: a read-only state directory, few processes, little memory, few open files.
//! It works, or fails with a message; it never reports success and then dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Run, Site, content, is_mounted, noise, run};
use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;

/// An unprivileged user whose processes no other test counts.
const SOMEBODY: u32 = 61_234;

fn ready() -> Site {
    let site = Site::with_files(&[("large", noise("large", 24 << 20))]);
    site.init();
    site.backup(&[]).ok();
    site
}

/// Runs the site's mount in a shell, after these words.
fn mount_after(site: &Site, words: &str) -> Run {
    let inner = site.command(&["mount", "latest", site.mnt().to_str().unwrap()]);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{words}\nexec \"$@\"")).arg("sh");
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(site.path()).stdin(Stdio::null());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    run(command)
}

/// Asserts that the mount works, even for a large file, or that nothing is mounted and a message has the reason.
/// Returns whether it works.
#[track_caller]
fn assert_works_or_says_why(site: &Site, run: &Run) -> bool {
    if run.code == 0 {
        let expected = content(&site.source().join("large")).unwrap();
        assert_eq!(content(&site.mnt().join("large")).expect("a mount that works"), expected, "{run}");
        site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
    }
    assert!(!is_mounted(&site.mnt()), "{run}");
    assert!(run.code == 0 || run.code == 1 && !run.stderr.is_empty(), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    run.code == 0
}

#[test]
fn little_memory_or_few_files_slow_a_mount_but_do_not_end_it() {
    let site = ready();
    let mut worked = Vec::new();
    // Steps small enough to find a limit at which the mount starts but cannot fill its cache.
    let memory = (50_000..200_000).step_by(10_000).chain([400_000]).map(|kib| format!("-v {kib}"));
    for limit in memory.chain([8, 16, 32, 64].map(|files| format!("-n {files}"))) {
        let run = mount_after(&site, &format!("ulimit {limit}"));
        if assert_works_or_says_why(&site, &run) {
            worked.push(limit);
        } else {
            println!("{limit}: {}", run.stderr.trim());
        }
    }
    assert!(["-v 190000", "-v 400000", "-n 64"].iter().all(|limit| worked.iter().any(|it| it == limit)), "{worked:?}");
}

#[test]
fn too_little_memory_for_a_passphrase_is_distinguished_from_a_wrong_one() {
    let site = Site::with_files(&[("file", b"content".to_vec())]);
    let phrase = site.path().join("phrase");
    fs::write(&phrase, "correct horse").unwrap();
    let with_phrase = |command: &mut Command| {
        command.env_remove("BRACKFS_KEY_FILE").env("BRACKFS_PASSPHRASE_FILE", &phrase);
    };
    for arguments in [vec!["init"], vec!["backup", site.source().to_str().unwrap()]] {
        let mut command = site.command(&arguments);
        with_phrase(&mut command);
        run(command).ok();
    }
    let inner = site.command(&["snapshots", "--no-key-cache"]);
    let mut command = Command::new("prlimit");
    command.args(["--as=60000000", "--"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    with_phrase(&mut command);
    // This machine's own state would open the snapshots without the owner's key.
    command.env("BRACKFS_STATE_DIR", site.path().join("elsewhere"));
    let run = run(command);
    assert_eq!(run.code, 1, "{run}");
    assert!(run.stderr.contains("64 MiB of memory") && !run.stderr.contains("wrong"), "{run}");
}

/// Runs in its own mount namespace, where all users may open /dev/fuse, and the user has a name, since
/// fusermount3 requires one.
const WITH_FEW_PROCESSES: &str = r#"
set -eu
mkdir dev
mount -t tmpfs -o mode=755,size=64k brackfs-test dev
mknod dev/fuse c 10 229
chmod 666 dev/fuse
mount --bind dev/fuse /dev/fuse
{ cat /etc/passwd; echo brackfs-test:x:61234:61234::/nonexistent:/bin/false; } > passwd
mount --bind passwd /etc/passwd
for limit in 40 12 10 8 7 6 5 4; do
    rc=0
    prlimit --nproc=$limit setpriv --reuid=61234 --regid=61234 --clear-groups ./brackfs mount latest mnt 2>said || rc=$?
    if test $rc = 0; then
        echo $limit >> worked
        setpriv --reuid=61234 --regid=61234 --clear-groups cmp source/large mnt/large
        setpriv --reuid=61234 --regid=61234 --clear-groups ./brackfs umount mnt
    else
        test $rc = 1
        test -s said
        ! grep panicked said
        echo "$limit: $(cat said)" >&2
    fi
    ! grep " $PWD/mnt " /proc/self/mounts
    # The program of the mount that was has to be gone.
    while ps -U 61234 >/dev/null; do sleep 0.05; done
done
"#;

#[test]
fn few_processes_slow_a_mount_but_do_not_end_it() {
    let helper = ["/usr/bin/fusermount3", "/bin/fusermount3"].iter().find_map(|path| fs::metadata(path).ok());
    let is_set_id = helper.is_some_and(|helper| helper.uid() == 0 && helper.mode() & 0o4000 != 0);
    assert!(is_set_id, "fusermount3 (Debian package fuse3) has to be set-uid root");
    let site = ready();
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Other users may be unable to enter the build directory.
    fs::copy(site.command(&["--version"]).get_program(), site.path().join("brackfs")).unwrap();
    let mut all = vec![site.path().to_owned()];
    while let Some(path) = all.pop() {
        chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", WITH_FEW_PROCESSES]);
    command.current_dir(site.path()).stdin(Stdio::null()).env("HOME", site.path());
    command.env("BRACKFS_KEY_FILE", site.keys().join("owner")).env("BRACKFS_REPOSITORY", site.repo());
    command.env("BRACKFS_STATE_DIR", site.state());
    let run = run(command).ok();
    let worked = fs::read_to_string(site.path().join("worked")).unwrap_or_default();
    assert!(worked.lines().any(|limit| limit == "8"), "{worked}{run}");
}

#[test]
fn a_mount_works_with_a_read_only_state_and_reports_once_that_there_is_no_log() {
    let site = ready();
    let state = site.path().join("read-only");
    fs::create_dir(&state).unwrap();
    rustix::mount::mount("tmpfs", &state, "tmpfs", MountFlags::RDONLY, c"size=64k").unwrap();
    let mut command = site.command(&["mount", "latest", site.mnt().to_str().unwrap()]);
    command.env("BRACKFS_STATE_DIR", &state);
    let run = run(command).ok();
    assert!(assert_works_or_says_why(&site, &run));
    assert!(run.stderr.contains("cannot log") && run.stderr.contains("--state-dir"), "{run}");
    let mut lines: Vec<_> = run.stderr.lines().collect();
    let count = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), count, "{run}");
}

#[test]
fn a_mount_closes_inherited_files() {
    let site = ready();
    let lock = site.path().join("lock");
    let run = mount_after(&site, "exec 9>lock\nflock -n 9");
    assert_eq!(run.code, 0, "{run}");
    // Processes that waited for the end of the wrapper continue.
    rustix::fs::flock(File::open(&lock).unwrap(), FlockOperation::NonBlockingLockExclusive).expect("the lock is free");
    assert!(assert_works_or_says_why(&site, &run));
}

#[test]
fn repeated_reads_of_damaged_data_do_not_fill_the_log() {
    let site = ready();
    let packs = packs(&site.repo());
    // The trees are in another pack.
    let largest = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    File::options().write(true).open(largest).unwrap().set_len(10).unwrap();
    let mounted = site.mount(&["latest"]);
    for _ in 0..50 {
        assert!(fs::read(mounted.path().join("large")).is_err());
    }
    let log = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path().join("mount.log"));
    let said: String = log.filter_map(|path| fs::read_to_string(path).ok()).collect();
    // One message for each block.
    let lines: Vec<_> = said.lines().collect();
    assert!((1..=16).contains(&lines.len()) && lines.iter().all(|line| line.contains("/large")), "{said}");
}

fn packs(repo: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(repo.join("packs")).unwrap().map(|entry| entry.unwrap().path());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect()
}
