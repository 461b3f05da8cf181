//! The life of a mount: from the checks before it to the moment when nobody uses it any more.

use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::filesystem::FileSystem;
use super::fuse::Shell;
use super::users::Users;

/// The kernel's name for our mounts is `fuse.` and this.
const SUBTYPE: &str = "brackfs";
/// The largest request that the kernel makes is of this many, too.
const READ_AHEAD_KIB: u32 = 1024;

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Let other users in; what they may read is decided by the permissions that were backed up.
    pub allow_other: bool,
    /// Options as they stand in an fstab.
    pub kernel: Vec<String>,
}

/// What options of an fstab mean to the kernel: flags, and what is left to say in words.
fn flags(options: &[String]) -> Result<(MountFlags, Vec<&str>), String> {
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let mut words = Vec::new();
    for option in options {
        match option.as_str() {
            "noexec" => flags |= MountFlags::NOEXEC,
            "exec" => flags -= MountFlags::NOEXEC,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            // It is so in any case, or means nothing to what never changes.
            "" | "defaults" | "ro" | "nosuid" | "nodev" | "noatime" | "relatime" | "async" | "default_permissions" => {}
            "auto" | "noauto" | "nofail" | "user" | "nouser" | "users" | "_netdev" => {}
            "rw" | "suid" | "dev" => return Err(format!("a mount of brackfs is never {option}")),
            other if other.starts_with("x-") || other.starts_with("comment=") => {}
            other => words.push(other),
        }
    }
    Ok((flags, words))
}

/// Why something is not mounted, or still is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount point can't be used.
    #[error("cannot mount on {path}: {why}")]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {path}: {source}{hint}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// There is no mount of ours.
    #[error("{path} is no mount of brackfs")]
    NotMounted {
        /// Where one was expected.
        path: PathBuf,
    },
    /// It could not be unmounted.
    #[error("cannot unmount {path}: {why}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The session broke.
    #[error("the mount on {path} broke: {source}")]
    Broken {
        /// The mount point.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Signals can't be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// What ends a mount.
enum End {
    /// Somebody unmounted it, or the session broke.
    Session(io::Result<()>),
    /// The process was told to end.
    Signal,
}

/// Mounts, calls `ready` once the mount answers, and returns when it is unmounted: by `umount`, or because
/// the process was told to end. `repository` is the repository's directory, which must not meet the mount.
pub fn mount(
    filesystem: Arc<FileSystem>,
    mountpoint: &Path,
    repository: Option<&Path>,
    options: &Options,
    ready: impl FnOnce(&Path),
    note: impl Fn(&str),
) -> Result<(), Error> {
    if let Some(dead) = dead_mount(mountpoint) {
        note(&format!("the program of the mount on {} is gone; it is unmounted first", dead.display()));
        unmount_now(&dead, true).map_err(|why| Error::Unmount { path: dead, why: why.to_string() })?;
    }
    let path = check_mountpoint(mountpoint, repository)?;
    let (ended, end) = mpsc::channel();
    // From here on a signal is kept until it can be served.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Error::Signals)?;
    let source = repository.and_then(|repository| fs::canonicalize(repository).ok());
    let source = source.unwrap_or_else(|| SUBTYPE.into());
    let session = start(filesystem, &path, &source, options)
        .and_then(Session::spawn)
        .map_err(|source| refused(&path, source, options))?;
    read_ahead(&path);
    ready(&path);

    let told = ended.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            if told.send(End::Signal).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || ended.send(End::Session(session.join())));
    let mut asked = false;
    loop {
        match end.recv() {
            Ok(End::Session(Ok(()))) | Err(mpsc::RecvError) => return Ok(()),
            Ok(End::Session(Err(source))) => return Err(Error::Broken { path, source }),
            // Told twice: whoever still uses it gets errors from now on.
            Ok(End::Signal) if asked => return Ok(()),
            Ok(End::Signal) => {
                asked = true;
                if let Err(why) = unmount_now(&path, false) {
                    note(&format!(
                        "{} can't be unmounted yet: {why}; it is detached now and goes when nobody uses it",
                        path.display()
                    ));
                    let failed = |why: Stays| Error::Unmount { path: path.clone(), why: why.to_string() };
                    unmount_now(&path, true).map_err(failed)?;
                }
            }
        }
    }
}

/// Unmounts a mount of ours; `lazy` detaches it even if it is in use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let path = match dead_mount(mountpoint) {
        Some(dead) => dead,
        None => fs::canonicalize(mountpoint).unwrap_or_else(|_| mountpoint.to_owned()),
    };
    if !is_mounted(&path) {
        return Err(Error::NotMounted { path });
    }
    unmount_now(&path, lazy).map_err(|why| {
        let hint = if matches!(why, Stays::InUse(_)) { "; end that, or give --lazy" } else { "" };
        Error::Unmount { path, why: format!("{why}{hint}") }
    })
}

/// Why a mount is still there.
enum Stays {
    InUse(Users),
    Otherwise(String),
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stays::InUse(users) => users.fmt(f),
            Stays::Otherwise(why) => f.write_str(why),
        }
    }
}

fn unmount_now(path: &Path, lazy: bool) -> Result<(), Stays> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW).map_err(|e| match e {
            rustix::io::Errno::BUSY => Stays::InUse(Users::of(path)),
            other => Stays::Otherwise(other.to_string()),
        });
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => match String::from_utf8_lossy(&output.stderr).trim() {
            said if said.contains("busy") => Err(Stays::InUse(Users::of(path))),
            said => Err(Stays::Otherwise(said.to_owned())),
        },
        Err(e) => Err(Stays::Otherwise(format!("fusermount3: {e}"))),
    }
}

/// The mount of ours at `mountpoint`, if its program was killed: nobody can use it.
fn dead_mount(mountpoint: &Path) -> Option<PathBuf> {
    let gone = fs::metadata(mountpoint).is_err_and(|error| error.kind() == io::ErrorKind::NotConnected);
    // It can't be looked at, so the path is that of its directory and its name.
    let name = mountpoint.file_name().filter(|_| gone)?;
    let absolute = std::path::absolute(mountpoint).ok()?;
    let path = fs::canonicalize(absolute.parent()?).ok()?.join(name);
    is_mounted(&path).then_some(path)
}

fn check_mountpoint(mountpoint: &Path, repository: Option<&Path>) -> Result<PathBuf, Error> {
    let refuse = |path: &Path, why: &str| Error::MountPoint { path: path.to_owned(), why: why.to_owned() };
    let path = fs::canonicalize(mountpoint).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => refuse(mountpoint, "there is no such directory"),
        io::ErrorKind::NotConnected => refuse(mountpoint, "a mount whose program is gone is there; unmount it first"),
        _ => refuse(mountpoint, &e.to_string()),
    })?;
    if !path.is_dir() {
        return Err(refuse(&path, "it is not a directory"));
    }
    if is_mounted(&path) {
        return Err(refuse(&path, "something is mounted there by brackfs already; unmount it first"));
    }
    if let Some(repository) = repository.and_then(|repository| fs::canonicalize(repository).ok())
        && (path.starts_with(&repository) || repository.starts_with(&path))
    {
        return Err(refuse(&path, "the repository lies there, and would wait for itself"));
    }
    let mut entries = fs::read_dir(&path).map_err(|e| refuse(&path, &e.to_string()))?;
    match entries.next() {
        Some(_) => Err(refuse(&path, "the directory is not empty")),
        None => Ok(path),
    }
}

/// Mounts: root by itself, others through fusermount3. `source` is what `mount` and `df` show as what is mounted.
fn start(filesystem: Arc<FileSystem>, path: &Path, source: &Path, options: &Options) -> io::Result<Session<Shell>> {
    let (flags, words) = flags(&options.kernel).map_err(io::Error::other)?;
    let config = config(source, options, flags, &words);
    if !rustix::process::geteuid().is_root() {
        return Session::new(Shell::new(filesystem, options.allow_other), path, &config);
    }
    // Not left to the library, which does not tell the kernel the subtype.
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    for word in words {
        data.push(',');
        data.push_str(word);
    }
    let data = CString::new(data)?;
    rustix::mount::mount(source, path, format!("fuse.{SUBTYPE}"), flags, data.as_c_str())?;
    let started = Session::from_fd(Shell::new(filesystem, options.allow_other), device.into(), config.acl, config);
    if started.is_err() {
        // The reason that is reported is why it did not start.
        let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
    }
    started
}

fn config(source: &Path, options: &Options, flags: MountFlags, words: &[&str]) -> Config {
    // fusermount3 takes options apart at commas.
    let source = source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(source),
        MountOption::Subtype(SUBTYPE.into()),
    ];
    if flags.contains(MountFlags::NOEXEC) {
        config.mount_options.push(MountOption::NoExec);
    }
    config.mount_options.extend(words.iter().map(|word| MountOption::CUSTOM((*word).to_owned())));
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    // Also more than CPUs: where the repository is far away, most of them wait.
    config.n_threads = Some(thread::available_parallelism().map_or(1, usize::from).clamp(4, 16));
    config.clone_fd = true;
    config
}

fn refused(path: &Path, source: io::Error, options: &Options) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => "; is fuse3 installed, and is there a /dev/fuse?",
        io::ErrorKind::PermissionDenied if options.allow_other => {
            "; --allow-other needs root, or user_allow_other in /etc/fuse.conf"
        }
        _ => "",
    };
    Error::Refused { path: path.to_owned(), source, hint }
}

/// Has the kernel read more of a file at once than it offers to a mount by itself. Who is not root can't have it.
fn read_ahead(path: &Path) {
    if let Some(device) = device_of(path) {
        let _ = fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string());
    }
}

/// Whether a mount of ours is on `path`.
fn is_mounted(path: &Path) -> bool {
    device_of(path).is_some()
}

/// The number of the mount of ours on `path`, as the kernel writes it.
fn device_of(path: &Path) -> Option<String> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    // The last one is on top.
    mounts.rsplit(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let on = fields.nth(1).map(unescape);
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        (kind == Some(b"fuse.brackfs") && on.as_deref() == Some(path))
            .then(|| String::from_utf8_lossy(device).into_owned())
    })
}

/// A path as mountinfo writes it: blanks, tabs, newlines and backslashes in octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u8, |value, digit| {
                matches!(digit, b'0'..=b'7').then(|| value.wrapping_mul(8).wrapping_add(digit - b'0'))
            })
        };
        match (byte, tail.get(..3).and_then(octal)) {
            (b'\\', Some(value)) => {
                path.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                path.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c\\012"), Path::new("/a b\\c\n"));
        assert_eq!(unescape(b"/a\\9"), Path::new("/a\\9"));
    }

    #[test]
    fn a_mount_never_meets_its_repository() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("repo");
        fs::create_dir_all(repository.join("packs")).unwrap();
        for path in [&repository, &repository.join("packs"), dir.path()] {
            assert!(check_mountpoint(path, Some(&repository)).is_err(), "{}", path.display());
        }
        let beside = dir.path().join("repo-mount");
        assert!(check_mountpoint(&beside, Some(&repository)).is_err());
        fs::create_dir(&beside).unwrap();
        assert!(check_mountpoint(&beside, Some(&repository)).is_ok());
        fs::write(beside.join("file"), "").unwrap();
        assert!(check_mountpoint(&beside, Some(&repository)).is_err());
    }

    #[test]
    fn options_of_an_fstab_are_understood() {
        let options = |list: &[&str]| list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let given = options(&["defaults", "noexec", "max_read=4096", "nofail", "x-systemd.automount"]);
        let (flags, words) = super::flags(&given).unwrap();
        assert!(flags.contains(MountFlags::NOEXEC | MountFlags::RDONLY | MountFlags::NOSUID));
        assert_eq!(words, ["max_read=4096"]);
        assert!(super::flags(&options(&["rw"])).unwrap_err().contains("rw"));
    }
}
