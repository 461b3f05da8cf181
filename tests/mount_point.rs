//! Mount points and options of `brackfs mount`: no other user can redirect the mount, and options work or are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::machine::mount_tmpfs;
use common::{Run, Site, is_mounted, run, set_mode};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// An unprivileged user.
const NOBODY: u32 = 65534;

fn ready() -> Site {
    let site = Site::with_files(&[("passwd", "evil")]);
    site.init();
    site.backup(&[]).ok();
    site
}

#[track_caller]
fn refused(site: &Site, mountpoint: &Path, why: &str) {
    let run = site.brackfs(&["mount", mountpoint.to_str().unwrap()]).code(1);
    assert!(run.stderr.contains(why), "{why:?} is not said\n{run}");
}

#[test]
fn a_mount_point_may_not_be_a_link_but_its_parents_may() {
    let site = ready();
    let [empty, link, way] = ["empty", "link", "way"].map(|name| site.path().join(name));
    fs::create_dir(&empty).unwrap();
    symlink(&empty, &link).unwrap();
    symlink(site.path(), &way).unwrap();
    for link in [link.clone(), way.join("link"), link.join("")] {
        refused(&site, &link, "it is a symbolic link");
        assert!(!is_mounted(&empty), "{}", link.display());
    }
    site.brackfs(&["mount", "latest", way.join("empty").to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(empty.join("passwd")).unwrap(), "evil");
    let unmount = |path: &Path| site.brackfs(&["umount", path.to_str().unwrap()]);
    let run = unmount(&link).code(1);
    assert!(run.stderr.contains("is not a brackfs mount"), "{run}");
    unmount(&way.join("empty")).ok();
    assert!(!is_mounted(&empty));
}

/// An attacker owns the parent of the mount point, and keeps swapping the mount point with a link to another directory.
#[test]
fn renaming_the_mount_point_never_redirects_a_mount() {
    let site = ready();
    let [above, etc] = ["above", "etc"].map(|name| site.path().join(name));
    fs::create_dir_all(above.join("mnt")).unwrap();
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), "good").unwrap();
    symlink(&etc, above.join("evil")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // It fails while something is mounted there.
                let _ = renameat_with(CWD, above.join("mnt"), CWD, above.join("evil"), RenameFlags::EXCHANGE);
            }
        });
        let mut mounted = 0;
        for _ in 0..60 {
            let run = site.brackfs(&["mount", "latest", above.join("mnt").to_str().unwrap()]);
            let covered = fs::read_to_string(etc.join("passwd")).unwrap() != "good";
            let mut count = 0;
            for name in ["mnt", "evil"].map(|name| above.join(name)).iter().chain([&etc]) {
                while is_mounted(name) {
                    count += 1;
                    rustix::mount::unmount(name, rustix::mount::UnmountFlags::DETACH).unwrap();
                }
            }
            if covered || count != usize::from(run.code == 0) {
                stop.store(true, Ordering::Relaxed);
                panic!("etc is covered: {covered}; {count} mounts\n{run}");
            }
            mounted += count;
        }
        stop.store(true, Ordering::Relaxed);
        println!("{mounted} of 60 were mounted");
    });
}

#[test]
fn only_mounts_of_brackfs_are_unmounted() {
    let site = ready();
    mount_tmpfs(&site.mnt(), c"size=64k");
    for lazy in [&[][..], &["--lazy"]] {
        let run = site.brackfs(&[&["umount", site.mnt().to_str().unwrap()], lazy].concat()).code(1);
        assert!(run.stderr.contains("is not a brackfs mount"), "{run}");
    }
    assert!(is_mounted(&site.mnt()));
    // Nor a directory in a mount of its.
    let below = site.mnt().join("below");
    fs::create_dir(&below).unwrap();
    site.brackfs(&["mount", below.to_str().unwrap()]).ok();
    let run = site.brackfs(&["umount", below.join("source").to_str().unwrap()]).code(1);
    assert!(run.stderr.contains("is not a brackfs mount"), "{run}");
    site.brackfs(&["umount", below.to_str().unwrap()]).ok();
    assert!(!is_mounted(&below) && is_mounted(&site.mnt()));
}

/// Reads a file as an unprivileged user.
fn read_by_nobody(path: &Path) -> Run {
    let mut command = Command::new("cat");
    command.arg(path).uid(NOBODY).gid(NOBODY);
    run(command)
}

#[test]
fn all_forms_of_allow_other_are_equivalent() {
    let site = Site::with_files(&[("open", "open"), ("closed", "closed"), ("denied", "denied")]);
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = site.source();
    set_mode(&source.join("closed"), 0o600);
    let mut setfacl = Command::new("setfacl");
    setfacl.args(["-m", &format!("u:{NOBODY}:---")]).arg(source.join("denied"));
    run(setfacl).ok();
    site.init();
    site.backup(&[]).ok();
    let helper = site.path().join("mount.brackfs");
    symlink(site.command(&["--version"]).get_program(), &helper).unwrap();
    let mount = |how: &str| {
        let mut command = site.command(&["mount", "latest", site.mnt().to_str().unwrap()]);
        match how {
            "" => {}
            "helper" => {
                command = Command::new(&helper);
                command.arg(site.repo()).arg(site.mnt()).arg("-o");
                let key = site.keys().join("owner");
                let state = site.state();
                command.arg(format!("allow_other,snapshot=latest,key={},state_dir={}", key.display(), state.display()));
            }
            how => {
                command.args(how.split(' '));
            }
        }
        run(command).ok();
        // The kernel serves these from its cache now.
        for name in ["open", "closed", "denied"] {
            assert_eq!(fs::read_to_string(site.mnt().join(name)).unwrap(), name);
        }
        let read = ["open", "closed", "denied"].map(|name| read_by_nobody(&site.mnt().join(name)).code == 0);
        site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
        read
    };
    assert_eq!(mount(""), [false; 3]);
    for how in ["--allow-other", "-o allow_other", "-o noexec,allow_other", "helper"] {
        assert_eq!(mount(how), [true, false, false], "{how}");
    }
}

/// The options of the site's mount in /proc/mounts.
fn mount_options(site: &Site) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mnt = site.mnt();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == mnt.to_str()).expect("a mount");
    line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn the_command_and_mount_brackfs_treat_every_option_the_same() {
    let site = ready();
    let helper = site.path().join("mount.brackfs");
    symlink(site.command(&["--version"]).get_program(), &helper).unwrap();
    let key = format!("key={},state_dir={}", site.keys().join("owner").display(), site.state().display());
    for (option, accepted) in [
        ("noexec", true),
        ("exec", true),
        ("noexec,exec", true),
        ("exec,noexec", true),
        ("rw", true),
        ("suid", true),
        ("dev", true),
        ("allow_other", true),
        ("nodiratime", true),
        ("max_read=65536", true),
        ("lazytime", true),
        ("nofail,x-systemd.automount,_netdev,comment=a", true),
        ("allow_root", false),
        ("auto_unmount", false),
        ("fd=3", false),
        ("user_id=7", false),
        ("rootmode=100000", false),
        ("fsname=other", false),
        ("subtype=other", false),
        ("nonempty", false),
        ("max_read=many", false),
        ("remount", false),
        ("uid=7", false),
    ] {
        let ways = [("command", if accepted { 0 } else { 2 }), ("helper", i32::from(!accepted))];
        let last = option.split(',').rfind(|option| ["exec", "noexec"].contains(option));
        let mut mounted = Vec::new();
        for (way, code) in ways {
            let command = match way {
                "command" => site.command(&["mount", "-o", option, site.mnt().to_str().unwrap()]),
                _ => {
                    let mut command = Command::new(&helper);
                    command.arg(site.repo()).arg(site.mnt()).args(["-o", &format!("rw,{option},{key}")]);
                    command
                }
            };
            let run = run(command).code(code);
            assert_eq!(is_mounted(&site.mnt()), accepted, "{option} by the {way}\n{run}");
            if accepted {
                let options = mount_options(&site);
                for always in ["ro", "nosuid", "nodev", "default_permissions"] {
                    assert!(options.iter().any(|option| option == always), "{always} with {option}: {options:?}");
                }
                let is_noexec = options.iter().any(|option| option == "noexec");
                assert_eq!(is_noexec, last == Some("noexec"), "{option} by the {way}: {options:?}");
                mounted.push(options);
                site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
            } else {
                assert!(run.stderr.contains(option) || option == "remount", "{run}");
            }
        }
        assert!(mounted.iter().all(|options| options == &mounted[0]), "{option}: {mounted:?}");
    }
}
