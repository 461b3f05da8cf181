//! File systems controlled by a user or a server: false claims about their files do not affect other files, and
//! privileges that their mounts ignore are marked.
//!
//! Needs root, for a FUSE file system that claims the inode numbers and times of other files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::liar::Liar;
use common::machine::mount_tmpfs;
use common::{Site, age, set_mode, settle};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev};
use rustix::mount::{MountFlags, mount_bind, mount_remount};

const MALLORY: u32 = 5;
/// A folder of files that last changed when the machine was installed: claims of a FUSE mount are not trusted if they
/// say that a file has just changed.
const OLD: &str = "/usr/share/common-licenses";
/// Files in it.
const VICTIM: &str = "GPL-2";
const NEIGHBOUR: &str = "GPL-3";
const UNREAD: &str = "MPL-1.1";

/// A backed-up source in which `etc` is a folder of old files, and `home/mallory/m` an empty one of mallory.
fn ready() -> (Site, PathBuf) {
    let site = Site::new();
    let etc = site.source().join("etc");
    let m = site.source().join("home/mallory/m");
    fs::create_dir_all(&etc).unwrap();
    fs::create_dir_all(&m).unwrap();
    chown(&m, Some(MALLORY), Some(MALLORY)).unwrap();
    mount_bind(OLD, &etc).unwrap();
    site.init();
    settle();
    site.backup(&[]).ok();
    (site, m)
}

/// Claims that `m` and its files are the real `etc`.
fn liar(site: &Site, m: &Path) -> Liar {
    let etc = site.source().join("etc");
    let mut liar = Liar::like(m);
    liar.claim("etc", &etc, b"");
    for name in [VICTIM, NEIGHBOUR, UNREAD] {
        liar.claim(&format!("etc/{name}"), &etc.join(name), &lie(&etc.join(name)));
    }
    liar
}

/// Other bytes of the same length as the file.
fn lie(file: &Path) -> Vec<u8> {
    vec![b'Z'; fs::metadata(file).unwrap().len() as usize]
}

/// A file of the last snapshot.
fn cat(site: &Site, path: &str) -> String {
    site.brackfs(&["cat", &format!("latest:{path}")]).ok().stdout
}

fn user_mount() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV
}

#[test]
fn false_inode_numbers_of_a_user_mount_never_alias_another_file() {
    let (site, m) = ready();
    let etc = site.source().join("etc");
    {
        // At first one of its files looks changed, so that it is read and recorded.
        let mut liar = liar(&site, &m);
        liar.attributes(&format!("etc/{VICTIM}")).ctime += Duration::from_nanos(1);
        let _lying = liar.mount(&m, MALLORY, user_mount());
        site.backup(&[]).ok();
        let path = format!("home/mallory/m/etc/{UNREAD}");
        assert!(cat(&site, &path).bytes().all(|byte| byte == b'Z'), "it has the content of the real file");
    }
    {
        // Then it looks exactly like the real one.
        let _lying = liar(&site, &m).mount(&m, MALLORY, user_mount());
        site.backup(&[]).ok();
    }
    // Another file in the real folder changes.
    let other = site.path().join("other");
    fs::write(&other, "changed").unwrap();
    settle();
    mount_bind(&other, etc.join(NEIGHBOUR)).unwrap();
    site.backup(&[]).ok();
    assert_eq!(cat(&site, &format!("etc/{NEIGHBOUR}")), "changed");
    for name in [VICTIM, UNREAD] {
        let real = fs::read_to_string(etc.join(name)).unwrap();
        assert!(cat(&site, &format!("etc/{name}")) == real, "{name} has changed");
    }
}

/// Servers are not trusted either, and root's own FUSE mounts may show files of other users.
#[test]
fn claims_of_a_root_mount_are_never_stored_as_another_file() {
    let (site, m) = ready();
    let _lying = liar(&site, &m).mount(&m, 0, MountFlags::empty());
    site.backup(&[]).ok();
    let path = format!("home/mallory/m/etc/{UNREAD}");
    assert!(cat(&site, &path).bytes().all(|byte| byte == b'Z'), "it has the content of the real file");
}

#[test]
fn a_claimed_inode_number_makes_no_hard_link() {
    let site = Site::with_files(&[("tool", "a program")]);
    let tool = site.source().join("tool");
    fs::hard_link(&tool, site.source().join("tool-too")).unwrap();
    let m = site.source().join("home/mallory/m");
    fs::create_dir_all(&m).unwrap();
    site.init();
    settle();
    site.backup(&[]).ok();
    let mut liar = Liar::like(&m);
    // Only the inode number is false.
    liar.claim("tool", &tool, b"a program");
    let _lying = liar.mount(&m, MALLORY, user_mount());
    // Both real names get their ids from the same catalog again.
    site.backup(&["--reread"]).ok();
    let mounted = site.mount(&[]);
    let inode = |path: &str| fs::metadata(mounted.latest().join(path)).unwrap().ino();
    assert_eq!(inode("tool"), inode("tool-too"));
    assert_ne!(inode("tool"), inode("home/mallory/m/tool"));
}

#[test]
fn a_foreign_mount_is_recognized_after_a_remount() {
    let (site, m) = ready();
    let backup = || {
        let _lying = liar(&site, &m).mount(&m, MALLORY, user_mount());
        site.backup(&[]).ok().json()["files_read"].as_u64().unwrap()
    };
    assert_eq!((backup(), backup()), (3, 0));
}

#[test]
fn the_catalog_of_a_folder_does_not_apply_to_a_file_system_mounted_on_it() {
    let (site, m) = ready();
    let files: Vec<_> = [VICTIM, UNREAD].map(|name| Path::new(OLD).join(name)).into();
    // The recorded files and the current ones claim to be the same.
    let mut before = Liar::like(&m);
    files.iter().for_each(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        before.claim(name, file, &lie(file));
    });
    {
        let _lying = before.mount(&m, MALLORY, user_mount());
        site.backup(&[]).ok();
    }
    // The folder and the root of the mount have the same inode number.
    for file in &files {
        let here = m.join(file.file_name().unwrap());
        File::create(&here).unwrap();
        mount_bind(file, &here).unwrap();
    }
    site.backup(&[]).ok();
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let real = fs::read_to_string(file).unwrap();
        assert!(cat(&site, &format!("home/mallory/m/{name}")) == real, "{name} is what the mount claimed");
    }
}

/// The entries of the last snapshot that are marked as unprivileged.
fn unprivileged(site: &Site) -> Vec<String> {
    let listing = site.brackfs(&["ls", "-R", "--json", "latest"]).ok().stdout;
    let entries = listing.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let marked = entries.filter(|entry| entry["unprivileged"] == true);
    marked.map(|entry| entry["path"].as_str().unwrap().to_owned()).collect()
}

/// Files with every kind of privilege, and some without any.
fn privileged(folder: &Path) {
    for (name, mode) in [("plain", 0o755), ("setuid", 0o4755), ("setgid", 0o2755), ("capable", 0o755)] {
        fs::write(folder.join(name), name).unwrap();
        set_mode(&folder.join(name), mode);
    }
    // cap_setuid, permitted and effective.
    let capability = [1, 0, 0, 2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(folder.join("capable"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    let (null, mode) = (makedev(1, 3), Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(CWD, folder.join("device"), FileType::CharacterDevice, mode, null).unwrap();
    rustix::fs::mknodat(CWD, folder.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    fs::create_dir(folder.join("shared")).unwrap();
    set_mode(&folder.join("shared"), 0o2777);
}

#[test]
fn privileges_ignored_by_a_mount_are_marked_and_a_new_option_rereads_nothing() {
    let site = Site::new();
    let inner = site.source().join("inner");
    fs::create_dir(&inner).unwrap();
    mount_tmpfs(&inner, c"mode=755");
    privileged(&inner);
    site.init();
    settle();
    site.backup(&[]).ok();
    assert_eq!(unprivileged(&site), [""; 0]);

    let of = |names: &[&str]| names.iter().map(|name| format!("inner/{name}")).collect::<Vec<_>>();
    let options = [
        (MountFlags::NOSUID, &["capable", "setgid", "setuid"][..]),
        (MountFlags::NODEV, &["device"]),
        (user_mount(), &["capable", "device", "setgid", "setuid"]),
        (MountFlags::empty(), &[]),
    ];
    for (flags, marked) in options {
        mount_remount(&inner, flags, c"").unwrap();
        assert_eq!(site.backup(&[]).ok().json()["files_read"], 0, "{flags:?}");
        assert_eq!(unprivileged(&site), of(marked), "{flags:?}");
    }
}

/// Options belong to a mount, not to the file system: a file system that is mounted twice can have two sets.
#[test]
fn each_mount_of_a_file_system_has_its_own_options() {
    let site = Site::new();
    let [one, other] = ["one", "other"].map(|name| site.source().join(name));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&other).unwrap();
    privileged(&one);
    mount_bind(&one, &other).unwrap();
    mount_remount(&other, MountFlags::BIND | user_mount(), c"").unwrap();
    site.init();
    settle();
    site.backup(&[]).ok();
    let marked = ["capable", "device", "setgid", "setuid"].map(|name| format!("other/{name}"));
    assert_eq!(unprivileged(&site), marked);
}

#[test]
fn a_mount_of_a_user_gives_no_privileges_with_any_options() {
    let (site, m) = ready();
    let mut file = File::create(site.path().join("file")).unwrap();
    file.write_all(b"a program").unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4755)).unwrap();
    age(site.path().join("file").as_path());
    let mut liar = Liar::like(&m);
    liar.claim("su", &site.path().join("file"), b"a program");
    let _lying = liar.mount(&m, MALLORY, MountFlags::empty());
    site.backup(&[]).ok();
    assert_eq!(unprivileged(&site), ["home/mallory/m/su"]);
}
