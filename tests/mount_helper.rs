//! `mount.brackfs`: mount(8) can call it, and lines of an fstab work.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use common::machine::need;
use common::{Run, Site, in_mount_namespace, is_mounted, run, tree};

/// A site with a snapshot and the helper `mount.brackfs`.
fn ready() -> Site {
    let site = Site::with_files(&[("a", "one"), ("d/b", "two")]);
    site.init();
    site.backup(&[]).ok();
    symlink(site.command(&["--version"]).get_program(), site.path().join("mount.brackfs")).unwrap();
    site
}

/// Gives a command the site's environment, but as little of it as mount(8) does: neither key nor repository.
fn as_mount_does(site: &Site, command: &mut Command) {
    command.current_dir(site.path()).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"BRACKFS_") {
            command.env_remove(name);
        }
    }
    command.env("GNUPGHOME", site.keys());
}

/// Runs the helper as mount(8) does, with `REPO MOUNTPOINT` and extra arguments.
fn helper(site: &Site, extra: &[&str]) -> Run {
    let mut command = Command::new(site.path().join("mount.brackfs"));
    as_mount_does(site, &mut command);
    command.arg(site.repo()).arg(site.mnt()).args(extra);
    run(command)
}

/// Options that name the site's key and state, and more of them.
fn options(site: &Site, more: &str) -> String {
    format!("rw,key={},state_dir={}{more}", site.keys().join("owner").display(), site.state().display())
}

/// The fields of the mount's line in /proc/mounts.
fn mounted_as(site: &Site) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let lines = mounts.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let mnt = site.mnt();
    lines.into_iter().find(|fields| fields[1] == mnt.to_str().unwrap()).expect("a mount")
}

#[test]
fn the_helper_mounts_in_the_background_with_options_of_an_fstab() {
    let site = ready();
    helper(&site, &["-n", "-o", &options(&site, ",noexec,_netdev,nofail,x-systemd.automount,cache_size=16M")]).ok();
    assert!(is_mounted(&site.mnt()));
    assert_eq!(tree(&site.mnt().join("source/latest").canonicalize().unwrap()), tree(&site.source()));
    let fields = mounted_as(&site);
    let repository = site.repo().canonicalize().unwrap();
    assert_eq!(fields[0], repository.to_str().unwrap(), "so that mount -a knows that it is mounted");
    assert_eq!(fields[2], "fuse.brackfs");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(fields[3].split(',').any(|found| found == option), "{option} in {}", fields[3]);
    }
    site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
}

#[test]
fn one_snapshot_can_be_mounted_for_all_users() {
    let site = ready();
    helper(&site, &["-t", "brackfs", "-o", &options(&site, ",snapshot=source/latest:d,allow_other")]).ok();
    assert_eq!(fs::read_to_string(site.mnt().join("b")).unwrap(), "two");
    assert!(mounted_as(&site)[3].split(',').any(|found| found == "allow_other"));
}

#[test]
fn the_passphrase_can_be_in_a_file() {
    let site = Site::with_files(&[("a", "one")]);
    let file = site.path().join("passphrase");
    fs::write(&file, "correct horse\n").unwrap();
    let mut command = site.command(&["init", site.repo().to_str().unwrap()]);
    command.env("BRACKFS_PASSPHRASE_FILE", &file);
    run(command).ok();
    site.backup(&[]).ok();
    symlink(site.command(&["--version"]).get_program(), site.path().join("mount.brackfs")).unwrap();
    let state = format!("state_dir={}", site.state().display());
    let refused = helper(&site, &["-o", &state]).code(32);
    assert!(refused.stderr.contains("passphrase"), "{refused}");
    helper(&site, &["-o", &format!("{state},passphrase_file={}", file.display())]).ok();
    assert_eq!(fs::read_to_string(site.mnt().join("source/latest/a")).unwrap(), "one");
}

#[test]
fn the_helper_exits_with_the_codes_of_mount() {
    let site = ready();
    let with = |more: &str| options(&site, more);
    for (more, code, why) in [
        (",uid=0", 1, "unknown option uid=0"),
        (",snapshot=", 1, "the option snapshot needs a value"),
        (",remount", 1, "cannot be changed"),
        (",cache_size=huge", 1, "cache-size"),
        (",snapshot=nothing/latest", 32, "no snapshot of a source called nothing"),
    ] {
        let run = helper(&site, &["-o", &with(more)]).code(code);
        assert!(run.stderr.contains(why) && !is_mounted(&site.mnt()), "{run}");
    }
    helper(&site, &["-x"]).code(1);
    let run = helper(&site, &["extra"]).code(1);
    assert!(run.stderr.contains("REPO MOUNTPOINT"), "{run}");
    helper(&site, &["-f", "-o", &with("")]).ok();
    assert!(!is_mounted(&site.mnt()), "-f only does as if");
    fs::remove_dir_all(site.repo()).unwrap();
    helper(&site, &["-o", &with("")]).code(32);
    helper(&site, &["-s", "-o", &with(",uid=0")]).code(32);
}

/// Runs in its own mount namespace, where /sbin has the helper.
const WITH_FSTAB: &str = r#"
set -eu
mkdir sbin
mount -t tmpfs none sbin
cp -a /sbin/. sbin/
cp -a mount.brackfs sbin/
mount --bind sbin /sbin
printf '%s\t%s\tbrackfs\tkey=%s,state_dir=%s,nofail,x-systemd.automount\t0 0\n' \
    "$PWD/repo" "$PWD/mnt" "$PWD/keys/owner" "$PWD/state" > fstab
mount -a -T fstab
mount -a -T fstab
diff -r source mnt/source/latest
umount mnt
mount -t brackfs -o "key=$PWD/keys/owner,state_dir=$PWD/state" repo mnt
diff -r source mnt/source/latest
umount mnt
! mount -t brackfs nowhere mnt
"#;

#[test]
fn mount_finds_the_helper_and_reads_the_fstab() {
    let site = ready();
    let mut command = in_mount_namespace("sh");
    command.args(["-c", WITH_FSTAB]);
    as_mount_does(&site, &mut command);
    run(command).ok();
}

#[test]
fn an_automounter_mounts_it_on_first_access() {
    let site = ready();
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap();
    need(file_systems.find("\tautofs\n").ok_or("not in /proc/filesystems"), "autofs in the kernel (modprobe autofs4)");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount_helper/automounter.py");
    let mut command = in_mount_namespace("python3");
    command.arg(script).arg(site.mnt()).arg(site.mnt().join("source/latest/d/b"));
    command.arg(site.path().join("mount.brackfs")).arg(site.repo()).arg(site.mnt()).args(["-o", &options(&site, "")]);
    as_mount_does(&site, &mut command);
    assert_eq!(run(command).ok().stdout, "two");
}
