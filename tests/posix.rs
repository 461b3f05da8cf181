//! A mount behaves to programs like a local file system that is mounted read-only.
//!
//! Most tests compare two places: the source, bind-mounted read-only, and the mount.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use common::{Site, content, noise, run, set_mode, set_time, settle};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, IFlags, Mode, OFlags, RawDir, RenameFlags,
    SeekFrom, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

const MIB: usize = 1 << 20;

/// A site in memory, which supports every time, owner and attribute.
fn backed_up(fill: impl FnOnce(&Site)) -> Site {
    let site = Site::on_tmpfs();
    fill(&site);
    settle();
    site.init();
    site.backup(&[]).ok();
    site
}

/// A read-only bind mount of the source.
fn bound_read_only(site: &Site) -> PathBuf {
    let bound = site.path().join("bound");
    fs::create_dir(&bound).unwrap();
    rustix::mount::mount_bind(site.source(), &bound).unwrap();
    rustix::mount::mount_change(&bound, MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::mount_remount(&bound, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    bound
}

fn statx(path: &Path) -> Statx {
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::ALL).unwrap()
}

#[test]
fn times_are_exact_to_the_nanosecond_over_the_whole_range() {
    let moments = [
        ("first second before", -1, 999_999_999),
        ("one nanosecond before", -1, 1),
        ("a second before", -1, 0),
        ("before 1901", -3_000_000_000, 123_456_789),
        ("before anybody counted", -62_167_219_200, 1),
        ("epoch", 0, 0),
        ("last of 32 bits", i64::from(i32::MAX), 999_999_999),
        ("after 2038", i64::from(i32::MAX) + 1, 0),
        ("after 2106", i64::from(u32::MAX) + 1, 7),
        ("after ext4", 20_000_000_000, 999_999_998),
        ("far out", 1 << 55, 5),
        ("far back", -(1 << 55), 5),
    ];
    let site = backed_up(|site| {
        for (name, seconds, nanoseconds) in moments {
            set_time(&site.write(name, name), seconds, nanoseconds);
        }
        symlink("nowhere", site.source().join("link")).unwrap();
        set_time(&site.source().join("link"), -5, 5);
        set_time(&site.source(), -7, 7);
    });
    let mounted = site.mount(&[]);
    for (name, seconds, nanoseconds) in moments.into_iter().chain([("link", -5, 5), ("", -7, 7)]) {
        let found = statx(&mounted.latest().join(name));
        assert_eq!((found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec)), (seconds, nanoseconds), "{name}");
    }
}

#[test]
fn modes_owners_and_link_counts_equal_the_source() {
    let site = backed_up(|site| {
        for (at, mode) in [0, 0o1777, 0o2755, 0o4711, 0o6777, 0o7000, 0o640].into_iter().enumerate() {
            set_mode(&site.write(&format!("file {mode:o}"), "x"), mode);
            let directory = site.source().join(format!("directory {mode:o}"));
            fs::create_dir(&directory).unwrap();
            let (owner, group) = (at as u32 * 1_000_003, u32::MAX - 1 - at as u32);
            chown(&directory, Some(owner), Some(group)).unwrap();
            set_mode(&directory, mode);
        }
        site.write("linked", "x");
        for at in 0..50 {
            fs::hard_link(site.source().join("linked"), site.source().join(format!("link {at}"))).unwrap();
        }
        symlink("linked", site.source().join("symlink")).unwrap();
        // A file with one name in the backup and one outside of it.
        fs::hard_link(site.write("outside", "x"), site.path().join("elsewhere")).unwrap();
    });
    let mounted = site.mount(&[]);
    for entry in fs::read_dir(site.source()).unwrap() {
        let name = entry.unwrap().file_name();
        let (expected, found) = (statx(&site.source().join(&name)), statx(&mounted.latest().join(&name)));
        let what = |stat: &Statx| (stat.stx_mode, stat.stx_uid, stat.stx_gid);
        assert_eq!(what(&found), what(&expected), "{name:?}");
        if !fs::symlink_metadata(site.source().join(&name)).unwrap().is_dir() {
            assert_eq!((found.stx_nlink, found.stx_size), (expected.stx_nlink, expected.stx_size), "{name:?}");
        }
    }
}

/// A sparse file. tmpfs reports holes in pages, so ranges should be multiples of one.
fn sparse(path: &Path, size: u64, data: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, length) in data {
        file.write_all_at(&noise(&at.to_string(), *length), *at).unwrap();
    }
}

#[test]
fn blocks_are_counted_as_du_counts_them() {
    let site = backed_up(|site| {
        sparse(&site.source().join("hole"), 10 << 20, &[]);
        sparse(&site.source().join("ends"), 10 << 20, &[(0, 4096), ((10 << 20) - 4096, 4096)]);
        sparse(&site.source().join("full"), 4096 * 25, &[(0, 4096 * 25)]);
        // More extents than an entry lists.
        let many: Vec<_> = (0..3000).map(|at| (at * 16384, 4096)).collect();
        sparse(&site.source().join("many"), 3000 * 16384, &many);
        site.write("empty", "");
    });
    let mounted = site.mount(&[]);
    for name in ["hole", "ends", "full", "many", "empty"] {
        let blocks = |root: &Path| fs::metadata(root.join(name)).unwrap().blocks();
        assert_eq!(blocks(&mounted.latest()), blocks(&site.source()), "{name}");
    }
}

#[test]
fn attributes_have_the_right_sizes() {
    let large = noise("large", 60_000);
    let site = backed_up(|site| {
        let path = site.write("file", "x");
        for (name, value) in [("user.empty", &b""[..]), ("user.small", b"12345"), ("user.large", &large)] {
            rustix::fs::setxattr(&path, name, value, XattrFlags::empty()).unwrap();
        }
        site.write("bare", "x");
    });
    let bound = bound_read_only(&site);
    let mounted = site.mount(&[]);
    let sizes = [0, 1, 4, 5, 6, 40, 59_999, 60_000, 65_536];
    for size in sizes {
        for (file, name) in [
            ("file", "user.empty"),
            ("file", "user.small"),
            ("file", "user.large"),
            ("file", "user.missing"),
            ("file", "trusted.missing"),
            ("bare", "user.missing"),
        ] {
            let ask = |root: &Path| {
                let mut room = vec![0u8; size];
                let length = rustix::fs::getxattr(root.join(file), name, room.as_mut_slice())?;
                room.truncate(length);
                Ok::<_, Errno>((length, room))
            };
            assert_eq!(ask(&mounted.latest()), ask(&bound), "{name} of {file} in {size} bytes");
        }
        for file in ["file", "bare"] {
            let ask = |root: &Path| {
                let mut room = vec![0u8; size];
                let length = rustix::fs::listxattr(root.join(file), room.as_mut_slice())?;
                room.truncate(length);
                let mut names: Vec<_> = room.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
                names.sort();
                Ok::<_, Errno>((length, names))
            };
            assert_eq!(ask(&mounted.latest()), ask(&bound), "list of {file} in {size} bytes");
        }
    }
}

/// An operation, of which only the error counts.
type Attempt = fn(&Path) -> Result<(), Errno>;

/// Opens a path without waiting for the other end of a pipe.
fn open(path: &Path, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::from_raw_mode(0o644)).map(drop)
}

/// Both times, as special values of the nanoseconds.
fn times(last_access: i64, last_modification: i64) -> Timestamps {
    let [last_access, last_modification] =
        [last_access, last_modification].map(|tv_nsec| Timespec { tv_sec: 0, tv_nsec });
    Timestamps { last_access, last_modification }
}

fn now() -> Timestamps {
    times(UTIME_NOW, UTIME_NOW)
}

/// A path outside of both places, in their parent.
fn outside(path: &Path) -> PathBuf {
    path.ancestors().find(|above| above.join("state").is_dir()).unwrap().join("outside")
}

/// A path of the node itself, even if it is a symbolic link.
fn itself(path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let thing = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    Ok((thing, path.into()))
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

fn bind(path: &Path) -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)
}

/// All operations that a program can try on a path.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("stat", |path| rustix::fs::stat(path).map(drop)),
    ("lstat", |path| rustix::fs::lstat(path).map(drop)),
    ("readlink", |path| rustix::fs::readlink(path, Vec::new()).map(drop)),
    ("access to read", |path| rustix::fs::access(path, Access::READ_OK)),
    ("access to write", |path| rustix::fs::access(path, Access::WRITE_OK)),
    ("access to execute", |path| rustix::fs::access(path, Access::EXEC_OK)),
    ("open", |path| open(path, OFlags::RDONLY)),
    ("open a directory", |path| open(path, OFlags::RDONLY | OFlags::DIRECTORY)),
    ("open no link", |path| open(path, OFlags::RDONLY | OFlags::NOFOLLOW)),
    ("open to write", |path| open(path, OFlags::WRONLY)),
    ("open to read and write", |path| open(path, OFlags::RDWR)),
    ("open to write past the cache", |path| open(path, OFlags::WRONLY | OFlags::DIRECT)),
    ("open to append", |path| open(path, OFlags::WRONLY | OFlags::APPEND)),
    ("open and truncate", |path| open(path, OFlags::WRONLY | OFlags::TRUNC)),
    ("open to read and truncate", |path| open(path, OFlags::RDONLY | OFlags::TRUNC)),
    ("create", |path| open(path, OFlags::WRONLY | OFlags::CREATE)),
    ("create to read", |path| open(path, OFlags::RDONLY | OFlags::CREATE)),
    ("create and truncate", |path| open(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)),
    ("create anew", |path| open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
    ("create anew to read", |path| open(path, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL)),
    ("create in it", |path| {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        rustix::fs::openat(descriptor(path)?, "new", flags, Mode::from_raw_mode(0o644)).map(drop)
    }),
    ("a file without a name", |path| open(path, OFlags::WRONLY | OFlags::TMPFILE)),
    ("a file that never has a name", |path| open(path, OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL)),
    ("mkdir", |path| rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))),
    ("mkdir in it", |path| rustix::fs::mkdirat(descriptor(path)?, "new", Mode::from_raw_mode(0o755))),
    ("mkfifo", |path| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0)),
    ("mknod of a file", |path| rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)),
    ("mknod of a device", |path| {
        let number = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o644), number)
    }),
    ("mknod of a disk", |path| {
        let number = rustix::fs::makedev(7, 0);
        rustix::fs::mknodat(CWD, path, FileType::BlockDevice, Mode::from_raw_mode(0o644), number)
    }),
    ("mknod of a socket", |path| rustix::fs::mknodat(CWD, path, FileType::Socket, Mode::from_raw_mode(0o644), 0)),
    ("bind", bind),
    ("symlink", |path| rustix::fs::symlink("target", path)),
    ("link to it", |path| rustix::fs::link(path, path.with_file_name("new link"))),
    ("link from it", |path| rustix::fs::link(path.with_file_name("file"), path)),
    ("link to its target", |path| {
        rustix::fs::linkat(CWD, path, CWD, path.with_file_name("new link"), AtFlags::SYMLINK_FOLLOW)
    }),
    ("link to what is open", |path| {
        let new = path.with_file_name("new link");
        rustix::fs::linkat(descriptor(path)?, "", CWD, new, AtFlags::EMPTY_PATH)
    }),
    ("link from outside", |path| rustix::fs::link(outside(path), path)),
    ("link to outside", |path| rustix::fs::link(path, outside(path).with_file_name("new link"))),
    ("rename it", |path| rustix::fs::rename(path, path.with_file_name("new name"))),
    ("rename to it", |path| rustix::fs::rename(path.with_file_name("file"), path)),
    ("rename a directory to it", |path| rustix::fs::rename(path.with_file_name("hollow"), path)),
    ("rename it into itself", |path| rustix::fs::rename(path, path.join("new name"))),
    ("rename it to itself", |path| rustix::fs::rename(path, path)),
    ("rename it to a new name", |path| rename_with(path, &path.with_file_name("new name"), RenameFlags::NOREPLACE)),
    ("rename to it as a new name", |path| rename_with(&path.with_file_name("file"), path, RenameFlags::NOREPLACE)),
    ("exchange", |path| rename_with(path, &path.with_file_name("file"), RenameFlags::EXCHANGE)),
    ("exchange with none", |path| rename_with(path, &path.with_file_name("new name"), RenameFlags::EXCHANGE)),
    ("rename and leave none", |path| rename_with(path, &path.with_file_name("new name"), RenameFlags::WHITEOUT)),
    ("rename in every way", |path| {
        rename_with(path, &path.with_file_name("file"), RenameFlags::EXCHANGE | RenameFlags::NOREPLACE)
    }),
    ("rename from outside", |path| rustix::fs::rename(outside(path), path)),
    ("rename to outside", |path| rustix::fs::rename(path, outside(path).with_file_name("new name"))),
    ("unlink", |path| rustix::fs::unlink(path)),
    ("rmdir", |path| rustix::fs::rmdir(path)),
    ("chmod", |path| rustix::fs::chmod(path, Mode::from_raw_mode(0o600))),
    ("chmod of a link", |path| {
        let (_open, path) = itself(path)?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o600))
    }),
    ("chmod to what it is", |path| {
        let mode = rustix::fs::stat(path)?.st_mode;
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))
    }),
    ("chown", |path| rustix::fs::chown(path, Some(rustix::fs::Uid::from_raw(1)), Some(rustix::fs::Gid::from_raw(1)))),
    ("lchown", |path| {
        rustix::fs::chownat(CWD, path, Some(rustix::fs::Uid::from_raw(1)), None, AtFlags::SYMLINK_NOFOLLOW)
    }),
    ("chown to nobody else", |path| rustix::fs::chown(path, None, None)),
    ("chown of what is open", |path| {
        let (open, _) = itself(path)?;
        rustix::fs::chownat(open, "", Some(rustix::fs::Uid::from_raw(1)), None, AtFlags::EMPTY_PATH)
    }),
    ("truncate", |path| {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        nix::unistd::truncate(path.as_c_str(), 0).map_err(|e| Errno::from_raw_os_error(e as i32))
    }),
    ("utimensat", |path| rustix::fs::utimensat(CWD, path, &now(), AtFlags::empty())),
    ("utimensat of a link", |path| rustix::fs::utimensat(CWD, path, &now(), AtFlags::SYMLINK_NOFOLLOW)),
    ("utimensat of some moment", |path| rustix::fs::utimensat(CWD, path, &times(1, 2), AtFlags::empty())),
    ("utimensat of one", |path| rustix::fs::utimensat(CWD, path, &times(UTIME_OMIT, UTIME_NOW), AtFlags::empty())),
    ("utimensat of the other", |path| rustix::fs::utimensat(CWD, path, &times(3, UTIME_OMIT), AtFlags::empty())),
    ("utimensat of none", |path| rustix::fs::utimensat(CWD, path, &times(UTIME_OMIT, UTIME_OMIT), AtFlags::empty())),
    ("utimensat of none of a link", |path| {
        rustix::fs::utimensat(CWD, path, &times(UTIME_OMIT, UTIME_OMIT), AtFlags::SYMLINK_NOFOLLOW)
    }),
    ("utimensat of no moment", |path| rustix::fs::utimensat(CWD, path, &times(-5, 0), AtFlags::empty())),
    ("setxattr", |path| rustix::fs::setxattr(path, "user.new", b"x", XattrFlags::empty())),
    ("setxattr anew", |path| rustix::fs::setxattr(path, "user.some", b"x", XattrFlags::CREATE)),
    ("setxattr again", |path| rustix::fs::setxattr(path, "user.missing", b"x", XattrFlags::REPLACE)),
    ("setxattr of a label", |path| rustix::fs::setxattr(path, "security.new", b"x", XattrFlags::empty())),
    ("setxattr of an ACL", |path| rustix::fs::setxattr(path, "system.posix_acl_access", ACL, XattrFlags::empty())),
    ("setxattr without a name", |path| rustix::fs::setxattr(path, "", b"x", XattrFlags::empty())),
    ("lsetxattr", |path| rustix::fs::lsetxattr(path, "trusted.new", b"x", XattrFlags::empty())),
    ("removexattr", |path| rustix::fs::removexattr(path, "user.some")),
    ("removexattr of none", |path| rustix::fs::removexattr(path, "user.missing")),
    ("removexattr of an ACL", |path| rustix::fs::removexattr(path, "system.posix_acl_access")),
    ("lremovexattr", |path| rustix::fs::lremovexattr(path, "user.some")),
    ("fremovexattr", |path| rustix::fs::fremovexattr(descriptor(path)?, "user.some")),
    ("ftruncate", |path| rustix::fs::ftruncate(descriptor(path)?, 0)),
    ("ftruncate to more", |path| rustix::fs::ftruncate(descriptor(path)?, 1 << 20)),
    ("fallocate", |path| rustix::fs::fallocate(descriptor(path)?, FallocateFlags::empty(), 0, 100)),
    ("fallocate beyond the end", |path| {
        rustix::fs::fallocate(descriptor(path)?, FallocateFlags::KEEP_SIZE, 1 << 20, 100)
    }),
    ("punch a hole", |path| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(descriptor(path)?, flags, 0, 4096)
    }),
    ("write", |path| rustix::io::write(descriptor(path)?, b"x").map(drop)),
    ("write in the middle", |path| rustix::io::pwrite(descriptor(path)?, b"x", 3).map(drop)),
    ("copy into it", |path| {
        let from = descriptor(&path.with_file_name("file"))?;
        rustix::fs::copy_file_range(from, None, descriptor(path)?, None, 7).map(drop)
    }),
    ("send into it", |path| {
        let from = descriptor(&path.with_file_name("file"))?;
        rustix::fs::sendfile(descriptor(path)?, from, None, 7).map(drop)
    }),
    ("clone into it", |path| rustix::fs::ioctl_ficlone(descriptor(path)?, descriptor(&path.with_file_name("file"))?)),
    ("set inode flags", |path| rustix::fs::ioctl_setflags(descriptor(path)?, IFlags::NOATIME)),
    ("lock", |path| rustix::fs::flock(descriptor(path)?, FlockOperation::NonBlockingLockExclusive)),
    ("lock to write", |path| rustix::fs::fcntl_lock(descriptor(path)?, FlockOperation::NonBlockingLockExclusive)),
    ("fchmod", |path| rustix::fs::fchmod(descriptor(path)?, Mode::from_raw_mode(0o600))),
    ("fchown", |path| rustix::fs::fchown(descriptor(path)?, Some(rustix::fs::Uid::from_raw(1)), None)),
    ("futimens", |path| rustix::fs::futimens(descriptor(path)?, &now())),
    ("fsetxattr", |path| rustix::fs::fsetxattr(descriptor(path)?, "user.new", b"x", XattrFlags::empty())),
    ("fsync", |path| rustix::fs::fsync(descriptor(path)?)),
    ("fdatasync", |path| rustix::fs::fdatasync(descriptor(path)?)),
    ("syncfs", |path| rustix::fs::syncfs(descriptor(path)?)),
    ("read", |path| rustix::io::read(descriptor(path)?, &mut [0; 10]).map(drop)),
    ("chdir and back", |path| {
        // Other tests run in this process, so a child process changes its directory.
        let mut child = Command::new("true");
        child.current_dir(path);
        child.status().map(drop).map_err(|e| Errno::from_io_error(&e).unwrap())
    }),
    ("execute", |path| {
        let error = Command::new(path).status().map(drop);
        error.map_err(|e| Errno::from_io_error(&e).unwrap())
    }),
];

/// An ACL in the format of the kernel that is equivalent to a mode: its version, then owner, group, and
/// others, each with a kind, permissions, and no number.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

fn descriptor(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
}

#[test]
fn every_operation_ends_as_on_a_local_read_only_file_system() {
    let long = "n".repeat(255);
    let site = backed_up(|site| {
        fs::write(site.path().join("outside"), "content").unwrap();
        let file = site.write("file", "content");
        set_mode(&file, 0o644);
        rustix::fs::setxattr(&file, "user.some", b"x", XattrFlags::empty()).unwrap();
        set_mode(&site.write("script", "#!/bin/sh\nexit 0\n"), 0o755);
        site.write("empty", "");
        site.write("directory/below", "x");
        // `link from it` and other operations use a neighbour with this name.
        site.write("directory/file", "x");
        fs::create_dir(site.source().join("hollow")).unwrap();
        site.write(&long, "a name as long as names may be");
        let below = site.source();
        symlink("file", below.join("link")).unwrap();
        symlink("directory", below.join("directory link")).unwrap();
        symlink("missing", below.join("dangling")).unwrap();
        symlink("round", below.join("round")).unwrap();
        symlink("turn", below.join("return")).unwrap();
        symlink("return", below.join("turn")).unwrap();
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(CWD, below.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        rustix::fs::mknodat(CWD, below.join("socket"), FileType::Socket, mode, 0).unwrap();
    });
    let bound = bound_read_only(&site);
    let mounted = site.mount(&[]);
    let mut paths: Vec<String> = [
        "file",
        "script",
        "empty",
        "directory",
        "hollow",
        "link",
        "directory link",
        "dangling",
        "round",
        "return",
        "fifo",
        "socket",
        "missing",
        "missing/below",
        "file/below",
        "file/",
        "directory/",
        "hollow/",
        "directory/file",
        "directory/missing",
        "directory link/",
        "directory link/file",
        "dangling/",
        "round/below",
        "empty/.",
        "link/",
        "directory/..",
        "directory/.",
        "file/..",
        "fifo/below",
    ]
    .map(str::to_owned)
    .into();
    paths.push(long);
    paths.push("n".repeat(256));
    paths.push(format!("directory/{}", "n".repeat(256)));
    paths.push(format!("{}/below", "n".repeat(256)));
    paths.push("n".repeat(1025));
    paths.push("directory/../".repeat(400));
    let mut differences = Vec::new();
    let mut read_only = 0;
    for path in &paths {
        for (name, attempt) in ATTEMPTS {
            let (expected, found) = (attempt(&bound.join(path)), attempt(&mounted.latest().join(path)));
            read_only += usize::from(expected == Err(Errno::ROFS));
            if found != expected {
                let start: String = path.chars().take(30).collect();
                differences.push(format!("{name} {start:?}: {found:?}, elsewhere {expected:?}"));
            }
        }
    }
    // The comparison is meaningful only if the other place refuses, too.
    assert!(read_only > 900, "{read_only}");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn missing_names_stay_missing_at_the_second_lookup() {
    let site = backed_up(|site| drop(site.write("directory/there", "x")));
    let mounted = site.mount(&[]);
    for _ in 0..3 {
        for name in ["missing", "directory/missing", "directory/there "] {
            assert_eq!(rustix::fs::stat(mounted.latest().join(name)).unwrap_err(), Errno::NOENT, "{name}");
        }
        assert!(mounted.latest().join("directory/there").exists());
    }
}

#[test]
fn owners_are_mapped_on_request() {
    let site = backed_up(|site| {
        for (name, owner, group) in [("root", 0, 0), ("daemon", 1, 1), ("other", 4711, 4712)] {
            let path = site.write(name, "secret");
            chown(&path, Some(owner), Some(group)).unwrap();
            set_mode(&path, 0o400);
        }
    });
    let owners = |mounted: &common::Mounted| {
        ["root", "daemon", "other"].map(|name| {
            let stat = fs::metadata(mounted.latest().join(name)).unwrap();
            (stat.uid(), stat.gid())
        })
    };
    let read = |mounted: &common::Mounted, name: &str, user: u32| {
        let mut command = Command::new("cat");
        command.arg(mounted.latest().join(name)).uid(user).gid(user);
        run(command).code == 0
    };
    let mounted = site.mount(&[]);
    assert_eq!(owners(&mounted), [(0, 0), (1, 1), (4711, 4712)]);
    drop(mounted);
    let mounted = site.mount(&["--owner-me"]);
    assert_eq!(owners(&mounted), [(0, 0); 3]);
    drop(mounted);
    let mapped = ["--allow-other", "--map-owner=4711:65534", "--map-owner=daemon:2", "--map-group=4712:daemon"];
    let mounted = site.mount(&mapped);
    assert_eq!(owners(&mounted), [(0, 0), (2, 1), (65534, 1)]);
    assert!(read(&mounted, "other", 65534), "his now");
    assert!(!read(&mounted, "daemon", 65534) && !read(&mounted, "root", 65534));
    drop(mounted);
    for wrong in ["--map-owner=1", "--map-owner=nobody-here:1", "--map-group=1:", "--map-owner=-1:2"] {
        site.brackfs(&["mount", wrong, site.mnt().to_str().unwrap()]).code(2);
    }
    site.brackfs(&["mount", "--owner-me", "--map-owner=1:2", site.mnt().to_str().unwrap()]).code(2);
}

#[test]
fn df_shows_the_size_of_the_snapshot() {
    let site = backed_up(|site| {
        site.write("d/a", noise("a", 3 * MIB));
        sparse(&site.source().join("sparse"), 7 << 20, &[]);
    });
    site.write("d/more", noise("more", 5 * MIB));
    settle();
    site.backup(&[]).ok();
    let all = site.mount(&[]);
    let mut snapshots: Vec<_> = fs::read_dir(all.path().join("source")).unwrap().map(|e| e.unwrap().path()).collect();
    snapshots.sort();
    let found = |path: &Path| {
        let stat = rustix::fs::statvfs(path).unwrap();
        assert_eq!((stat.f_bfree, stat.f_bavail, stat.f_ffree, stat.f_namemax), (0, 0, 0, 255));
        (stat.f_blocks * stat.f_frsize, stat.f_files)
    };
    let (older, newer) = ((10 << 20, 4), (15 << 20, 5));
    assert_eq!(found(&snapshots[0].join("d")), older);
    assert_eq!(found(&snapshots[1].join("d/more")), newer);
    drop(all);
    let one = site.mount(&["latest"]);
    assert_eq!(found(one.path()), newer);
}

/// Names and offsets of a directory, read with a buffer of `room` bytes.
fn listed(directory: &File, room: usize) -> Vec<(Vec<u8>, u64)> {
    let mut room = vec![MaybeUninit::uninit(); room];
    let mut entries = RawDir::new(directory, &mut room);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        found.push((entry.file_name().to_bytes().to_vec(), entry.next_entry_cookie()));
    }
    found
}

#[test]
fn a_large_directory_is_read_from_any_offset_and_by_many_readers() {
    let count = if common::ordeal::is_long() { 1_000_000 } else { 100_000 };
    let site = Site::on_tmpfs();
    let many = site.source().join("many");
    fs::create_dir(&many).unwrap();
    // Links to a few files: as many entries, and less to do.
    for at in 0..count {
        let name = |at: usize| many.join(format!("{}{at}", "long ".repeat(at % 7)));
        match at % 1000 {
            0 => drop(File::create(name(at)).unwrap()),
            _ => fs::hard_link(name(at - at % 1000), name(at)).unwrap(),
        }
    }
    settle();
    site.brackfs(&["init".as_ref(), site.repo().as_os_str(), "--no-encryption".as_ref()]).ok();
    site.backup(&[]).ok();
    let mounted = site.mount(&[]);
    let path = mounted.latest().join("many");
    let mut expected: Vec<_> = fs::read_dir(&many).unwrap().map(|e| e.unwrap().file_name()).collect();
    expected.sort();
    thread::scope(|threads| {
        // Concurrently, and before the kernel caches any of it.
        for room in [300, 4096, 32_768, 1 << 20] {
            let (path, expected) = (&path, &expected);
            threads.spawn(move || {
                let found = listed(&File::open(path).unwrap(), room);
                let names = found.iter().map(|(name, _)| name).filter(|name| !name.starts_with(b"."));
                assert!(names.eq(expected.iter().map(|name| name.as_bytes())), "{room} bytes at once");
            });
        }
    });
    let directory = File::open(&path).unwrap();
    let all = listed(&directory, 1 << 16);
    assert_eq!(all.len(), count + 2);
    // From offsets all over, back and forth.
    for step in 0..200 {
        let from = step * 7_919_231 % all.len();
        rustix::fs::seek(&directory, SeekFrom::Start(all[from].1)).unwrap();
        let mut room = [MaybeUninit::uninit(); 1000];
        let mut entries = RawDir::new(&directory, &mut room);
        for expected in all[from + 1..].iter().take(20) {
            let entry = entries.next().unwrap().unwrap();
            assert_eq!((entry.file_name().to_bytes(), entry.next_entry_cookie()), (&*expected.0, expected.1));
        }
        if from + 20 > all.len() {
            assert!(entries.next().is_none());
        }
    }
    rustix::fs::seek(&directory, SeekFrom::Start(0)).unwrap();
    assert!(listed(&directory, 5000) == all, "rewound");
}

#[test]
fn programs_run_from_the_mount_without_set_id() {
    let site = backed_up(|site| {
        let program = site.source().join("id");
        fs::copy("/usr/bin/id", &program).unwrap();
        chown(&program, Some(1), Some(1)).unwrap();
        set_mode(&program, 0o6755);
    });
    let user = |program: PathBuf| {
        let mut command = Command::new(program);
        command.args(["-u"]);
        run(command).ok().stdout
    };
    let mounted = site.mount(&[]);
    assert_eq!(user(site.source().join("id")), "1\n", "it works where it may");
    assert_eq!(user(mounted.latest().join("id")), "0\n");
    drop(mounted);
    let mounted = site.mount(&["-o", "noexec"]);
    let refused = Command::new(mounted.latest().join("id")).status().unwrap_err();
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::ACCESS));
}

#[test]
fn direct_reads_and_mappings_give_the_same_bytes() {
    let bytes = noise("direct", 3 * MIB + 123);
    let site = backed_up(|site| {
        site.write("file", &bytes);
        site.write("empty", "");
    });
    let mounted = site.mount(&[]);
    let path = mounted.latest().join("file");
    for flags in [OFlags::DIRECT, OFlags::empty()] {
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(&path).unwrap();
        for (at, length) in [(0, 4096), (MIB, 2 * MIB), (3 * MIB, 4096), (4096 * 7, 512)] {
            let mut room = vec![0; length];
            let found = file.read_at(&mut room, at as u64).unwrap();
            assert_eq!(found, length.min(bytes.len() - at));
            assert!(room[..found] == bytes[at..at + found], "{length} bytes at {at}");
        }
        assert_eq!(file.read_at(&mut [0; 512], 4 << 20).unwrap(), 0);
    }
    // Python can map a file without `unsafe`.
    let script = "
import errno, mmap, os, sys
wanted = open(sys.argv[1], 'rb').read()
fd = os.open(sys.argv[2], os.O_RDONLY)
for flags in [mmap.MAP_SHARED, mmap.MAP_PRIVATE]:
    assert mmap.mmap(fd, 0, flags, mmap.PROT_READ)[:] == wanted
try:
    mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    raise SystemExit('mapped to write')
except PermissionError as refused:
    assert refused.errno == errno.EACCES
mine = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
mine[:5] = b'other'
assert mine[5:] == wanted[5:] and os.pread(fd, 5, 0) == wanted[:5]
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(site.source().join("file")).arg(&path);
    run(command).ok();
}

#[test]
fn holes_are_found_from_any_offset_as_in_the_source() {
    let site = backed_up(|site| {
        sparse(&site.source().join("hole"), 1 << 20, &[]);
        sparse(&site.source().join("full"), 64 << 10, &[(0, 64 << 10)]);
        sparse(&site.source().join("mixed"), 1 << 20, &[(8192, 4096), (128 << 10, 12_288), ((1 << 20) - 4096, 4096)]);
        site.write("empty", "");
        site.write("small", "x");
    });
    let mounted = site.mount(&[]);
    for name in ["hole", "full", "mixed", "empty", "small"] {
        let [source, found] = [site.source(), mounted.latest()].map(|root| File::open(root.join(name)).unwrap());
        for at in (0..=(1 << 20)).step_by(4096).chain([1, 8191, 8193, 12_287, (1 << 20) + 1, 1 << 40]) {
            for to in [SeekFrom::Data, SeekFrom::Hole] {
                assert_eq!(rustix::fs::seek(&found, to(at)), rustix::fs::seek(&source, to(at)), "{name} from {at}");
            }
        }
    }
}

/// The ranges of data in a file of this size, as copying programs find them: start and end of each.
fn data_of(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
        if at >= size {
            break;
        }
    }
    found
}

#[test]
fn many_small_holes_are_skipped_and_data_is_never_reported_as_a_hole() {
    // Data ranges of a page, and the pages between them.
    let patterns = [("even", 2, 3000), ("wide", 4, 700), ("far", 16, 200)];
    let size = |step: u64, count: u64| (count * step + 1) * 4096;
    let site = backed_up(|site| {
        for (name, step, count) in patterns {
            let data: Vec<_> = (0..count).map(|island| (island * step * 4096, 4096)).collect();
            sparse(&site.source().join(name), size(step, count), &data);
        }
    });
    let mounted = site.mount(&[]);
    for (name, step, count) in patterns {
        let [source, found] = [site.source(), mounted.latest()].map(|root| File::open(root.join(name)).unwrap());
        let size = size(step, count);
        let islands = data_of(&source, size);
        let stretches = data_of(&found, size);
        assert_eq!(islands.len() as u64, count);
        match name {
            "even" => assert!(stretches.len() <= 10, "{} stretches", stretches.len()),
            _ => assert_eq!(stretches, islands, "{name}: a copy must not become much larger"),
        }
        let sum = |all: &[(u64, u64)]| all.iter().map(|(start, end)| end - start).sum::<u64>();
        assert!(sum(&stretches) <= 2 * sum(&islands), "{name}");
        for at in (0..size).step_by(4096) {
            let seek = |file: &File, to: SeekFrom| rustix::fs::seek(file, to).ok();
            assert_eq!(seek(&found, SeekFrom::Data(at)), seek(&source, SeekFrom::Data(at)), "{name} from {at}");
            let hole = seek(&found, SeekFrom::Hole(at)).unwrap();
            assert_eq!(seek(&source, SeekFrom::Hole(hole)), Some(hole), "{name}: {hole} from {at} is data");
        }
        assert_eq!(content(&mounted.latest().join(name)).unwrap(), content(&site.source().join(name)).unwrap());
    }
}
