//! The lifecycle of a mount: checks, mounting, serving, signals and unmounting.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::Builder;

use fuser::{Config, Session, SessionACL};
use rustix::mount::MountFlags;
use signal_hook::iterator::Signals;

use super::filesystem::FileSystem;
use super::fuse::Shell;
use super::mount_point::{CoveredDirectory, MountPoint};
use super::options::Options;
use super::users::Users;
use super::{helper, threads};
use crate::sys::mountinfo::SUBTYPE;
use crate::sys::signals::ending;

/// The FUSE device.
const DEVICE: &str = "/dev/fuse";
/// Readahead of the mount. Also the maximum size of FUSE reads.
const READ_AHEAD_KIB: u32 = 1024;

/// Why mounting, serving or unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount point is not usable.
    #[error("cannot mount on {path}: {why}")]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// The cause and the remedy.
        why: String,
    },
    /// The kernel or fusermount3 refused to mount.
    #[error("cannot mount on {path}: {source}{hint}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The error of the kernel, or the message of fusermount3.
        source: io::Error,
        /// A possible remedy, or empty.
        hint: &'static str,
    },
    /// The resources for the serving threads are not available.
    #[error(
        "cannot mount on {path}: cannot start the threads that serve it: {source}; \
             raise the limit on processes (ulimit -u), memory (ulimit -v) or open files (ulimit -n), or lower --cache-size"
    )]
    Threads {
        /// The mount point.
        path: PathBuf,
        /// The error of the resource.
        source: io::Error,
    },
    /// The path to unmount is not the mount point of a brackfs mount.
    #[error("cannot unmount {path}: it is not a brackfs mount; findmnt -t fuse.brackfs lists them")]
    NotMounted {
        /// The path given.
        path: PathBuf,
    },
    /// The kernel or fusermount3 refused to unmount.
    #[error("cannot unmount {path}: {why}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The cause and the remedy.
        why: String,
    },
    /// The FUSE session ended with an error.
    #[error("the mount on {path} failed: {source}")]
    Broken {
        /// The mount point.
        path: PathBuf,
        /// The error of the session.
        source: io::Error,
    },
    /// The signal handlers cannot be installed.
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
}

/// An event that ends a mount.
enum Shutdown {
    /// The mount was unmounted, or the session failed.
    Session(io::Result<()>),
    /// The process received SIGINT, SIGTERM or SIGHUP.
    Signal,
}

/// Mounts a file system and serves it until it is unmounted, by umount(8) or because of a signal. Calls `ready` once the
/// mount answers, and `note` with messages for the user. `repository` is the repository's directory; neither it nor the
/// mount point may contain the other.
pub fn mount(
    filesystem: Arc<FileSystem>,
    mountpoint: &Path,
    repository: Option<&Path>,
    options: &Options,
    ready: impl FnOnce(&Path),
    note: impl Fn(&str),
) -> Result<(), Error> {
    let place = MountPoint::find(mountpoint).map_err(|error| unfit(mountpoint, &error))?;
    let path = place.path().to_owned();
    if is_dead(&place) {
        note(&format!("the program of the mount on {} has exited; unmounting it first", path.display()));
        place.unmount(true).map_err(|error| cannot_unmount(&place, error))?;
    }
    let directory = check_mountpoint(&place, repository)?;
    let (ended, end) = mpsc::channel();
    let failed = |source| Error::Threads { path: path.clone(), source };
    let serving = threads::serving(&filesystem.archive().needs()).map_err(failed)?;
    // Signals from here on are queued until the loop below handles them.
    let mut signals = Signals::new(ending()).map_err(Error::Signals)?;
    let signalled = ended.clone();
    let forward = move || {
        for _ in signals.forever() {
            if signalled.send(Shutdown::Signal).is_err() {
                break;
            }
        }
    };
    Builder::new().name("signals".into()).spawn(forward).map_err(failed)?;

    let source = repository.and_then(|repository| fs::canonicalize(repository).ok());
    let source = source.unwrap_or_else(|| SUBTYPE.into());
    let refused = |source| refused(&path, source, options);
    let device = attach(&directory, &source, options).map_err(refused)?;
    drop(directory);
    let started = serve(filesystem, device, serving, options).map_err(refused).and_then(|session| {
        let serve = move || drop(ended.send(Shutdown::Session(session.run())));
        Builder::new().name("session".into()).spawn(serve).map_err(failed)
    });
    let mut next = match started.and_then(|_| wait_until_ready(&place, &end)) {
        Ok(next) => next,
        Err(error) => {
            // The first error is reported, not that of unmounting.
            let _ = place.unmount(true);
            return Err(error);
        }
    };
    read_ahead(&place);
    ready(&path);

    let mut asked = false;
    loop {
        match next.take().map_or_else(|| end.recv(), Ok) {
            Ok(Shutdown::Session(Ok(()))) | Err(mpsc::RecvError) => return Ok(()),
            Ok(Shutdown::Session(Err(source))) => {
                // Without a server, leave the empty directory and not a dead mount.
                let _ = place.unmount(true);
                return Err(Error::Broken { path, source });
            }
            // The second signal: processes that still use the mount get errors.
            Ok(Shutdown::Signal) if asked => return Ok(()),
            Ok(Shutdown::Signal) => {
                asked = true;
                if let Err(error) = place.unmount(false) {
                    let why = UnmountFailure::of(&place, error);
                    note(&format!(
                        "cannot unmount {} yet: {why}; it is detached and ends when it is no longer in use",
                        path.display()
                    ));
                    place.unmount(true).map_err(|error| cannot_unmount(&place, error))?;
                }
            }
        }
    }
}

/// Waits until the mount answers. Returns an event received in that time; a failed session is an error.
fn wait_until_ready(place: &MountPoint, end: &mpsc::Receiver<Shutdown>) -> Result<Option<Shutdown>, Error> {
    let first = match place.ask().map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted) => end.recv().ok(),
        // Any other reply, also an error, comes from the serving threads.
        _ => end.try_recv().ok(),
    };
    match first {
        Some(Shutdown::Session(Err(source))) => Err(Error::Broken { path: place.path().to_owned(), source }),
        first => Ok(first),
    }
}

/// Unmounts a brackfs mount; `lazy` detaches it even if it is in use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let no_mount = |path: &Path| Error::NotMounted { path: path.to_owned() };
    let place = MountPoint::find(mountpoint).map_err(|_| no_mount(mountpoint))?;
    match place.mounted() {
        Ok(Some(_)) => place.unmount(lazy).map_err(|error| cannot_unmount(&place, error)),
        Ok(None) | Err(_) => Err(no_mount(place.path())),
    }
}

/// Why unmounting failed.
enum UnmountFailure {
    InUse(Users),
    Otherwise(io::Error),
}

impl UnmountFailure {
    fn of(place: &MountPoint, error: io::Error) -> UnmountFailure {
        match error.kind() {
            io::ErrorKind::ResourceBusy => UnmountFailure::InUse(Users::of(place.path())),
            _ => UnmountFailure::Otherwise(error),
        }
    }
}

impl fmt::Display for UnmountFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnmountFailure::InUse(users) => users.fmt(f),
            UnmountFailure::Otherwise(why) => why.fmt(f),
        }
    }
}

fn cannot_unmount(place: &MountPoint, error: io::Error) -> Error {
    let why = UnmountFailure::of(place, error);
    let hint = if matches!(why, UnmountFailure::InUse(_)) { "; stop using it, or give --lazy" } else { "" };
    Error::Unmount { path: place.path().to_owned(), why: format!("{why}{hint}") }
}

/// Whether a brackfs mount is there whose program was killed.
fn is_dead(place: &MountPoint) -> bool {
    matches!(place.mounted(), Ok(Some(_)))
        && place.ask().is_err_and(|error| error.kind() == io::ErrorKind::NotConnected)
}

fn unfit(path: &Path, error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such directory; make it first".to_owned(),
        io::ErrorKind::NotConnected => "a mount is there whose program has exited; unmount it first".to_owned(),
        _ => error.to_string(),
    };
    Error::MountPoint { path: path.to_owned(), why }
}

/// Checks the directory to mount on and returns it open, so that exactly this directory is covered.
fn check_mountpoint(place: &MountPoint, repository: Option<&Path>) -> Result<CoveredDirectory, Error> {
    let path = place.path();
    let unfit = |error: io::Error| unfit(path, &error);
    if place.mounted().map_err(unfit)?.is_some() {
        return Err(unfit(io::Error::other("a brackfs mount is already there; unmount it first")));
    }
    let directory = place.directory().map_err(unfit)?;
    if let Some(repository) = repository.and_then(|repository| fs::canonicalize(repository).ok())
        && (path.starts_with(&repository) || repository.starts_with(path))
    {
        return Err(unfit(io::Error::other("it contains the repository or is in it; choose another directory")));
    }
    if directory.is_empty().map_err(unfit)? {
        Ok(directory)
    } else {
        Err(unfit(io::Error::other("the directory is not empty")))
    }
}

/// Mounts as root directly, as other users through fusermount3. `source` is the device that mount(8) and df(1) show.
fn attach(directory: &CoveredDirectory, source: &Path, options: &Options) -> io::Result<OwnedFd> {
    let mut words = vec!["default_permissions".to_owned()];
    words.extend(options.allow_other.then(|| "allow_other".to_owned()));
    words.extend(options.words.iter().cloned());
    if !rustix::process::geteuid().is_root() {
        words.extend(["ro", "nosuid", "nodev", "noatime"].map(str::to_owned));
        words.extend(options.flags.contains(MountFlags::NOEXEC).then(|| "noexec".to_owned()));
        // fusermount3 splits options at commas.
        let source = source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
        words.extend([format!("fsname={source}"), format!("subtype={SUBTYPE}")]);
        return helper::mount(&directory.path(), &words.join(","));
    }
    let device = File::options().read(true).write(true).open(DEVICE)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},{}", device.as_raw_fd(), words.join(","));
    directory.mount(source, &format!("fuse.{SUBTYPE}"), options.flags, &CString::new(data)?)?;
    Ok(device.into())
}

fn serve(
    filesystem: Arc<FileSystem>,
    device: OwnedFd,
    threads: usize,
    options: &Options,
) -> io::Result<Session<Shell>> {
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    // One descriptor per thread is faster, but needs access to the device, which only fusermount3 may have.
    config.clone_fd = File::options().read(true).write(true).open(DEVICE).is_ok();
    Session::from_fd(Shell::new(filesystem, options.allow_other), device, config.acl, config)
}

fn refused(path: &Path, source: io::Error, options: &Options) -> Error {
    let hint = match source.kind() {
        // Of the device; a missing fusermount3 has a message of its own.
        io::ErrorKind::NotFound if rustix::process::geteuid().is_root() => {
            "; /dev/fuse is missing: load the kernel module (modprobe fuse), or pass the device into the container"
        }
        io::ErrorKind::PermissionDenied if options.allow_other => {
            "; --allow-other needs root, or user_allow_other in /etc/fuse.conf"
        }
        _ => "",
    };
    Error::Refused { path: path.to_owned(), source, hint }
}

/// Increases the kernel's readahead above the default of FUSE mounts. Works only as root.
fn read_ahead(place: &MountPoint) {
    if let Ok(Some((major, minor))) = place.mounted() {
        let _ = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_and_repository_cannot_contain_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("repo");
        fs::create_dir_all(repository.join("packs")).unwrap();
        let fits = |path: &Path| check_mountpoint(&MountPoint::find(path).unwrap(), Some(&repository)).is_ok();
        for path in [&repository, &repository.join("packs"), dir.path()] {
            assert!(!fits(path), "{}", path.display());
        }
        let beside = dir.path().join("repo-mount");
        assert!(!fits(&beside));
        fs::create_dir(&beside).unwrap();
        assert!(fits(&beside));
        fs::write(beside.join("file"), "").unwrap();
        assert!(!fits(&beside));
    }
}
