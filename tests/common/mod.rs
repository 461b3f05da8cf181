//! Helpers of tests that run the binary: a temporary site, runs of brackfs, mounts, and trees to compare.
//!
//! ```text
//! <site>/source/   the tree to back up; its source is named `source`
//! <site>/repo/     the repository, after `init`
//! <site>/state/    the state directory
//! <site>/keys/     owner and owner.pub, once generated
//! <site>/mnt/      the mount point
//! ```

#![allow(dead_code, reason = "each file of tests uses a part of this")]

pub mod disk;
pub mod foreground;
pub mod forgery;
pub mod ftp;
pub mod http_proxy;
pub mod liar;
pub mod machine;
pub mod made_up;
pub mod memory;
pub mod ordeal;
pub mod rclone;
pub mod remote;
pub mod rewrap;
pub mod s3;
pub mod sftp;
pub mod silent;
pub mod stopped;
pub mod swift;
pub mod wait;
pub mod webdav;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, Timespec, Timestamps};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

const BRACKFS: &str = env!("CARGO_BIN_EXE_brackfs");

/// Time limit of a run.
const PATIENCE: Duration = Duration::from_secs(300);

/// The number of the user `nobody`, and of the group that Debian calls `nogroup`.
pub const NOBODY: u32 = 65_534;

/// 2020-01-01 00:00:00 UTC, the time that `age` sets: too old to be fresh.
pub const AGED: i64 = 1_577_836_800;

/// A temporary directory for one test. On drop, everything mounted in it is unmounted, and it is removed.
pub struct Site {
    folder: TempDir,
}

impl Site {
    /// A site with an empty source and neither repository nor key.
    pub fn new() -> Site {
        Site::in_folder(TempDir::with_prefix("brackfs-test-").expect("temporary directory"))
    }

    /// A site on its own tmpfs, which supports attributes of every kind and size, and can be unmounted with immutable
    /// files in it.
    pub fn on_tmpfs() -> Site {
        let folder = TempDir::with_prefix("brackfs-test-").expect("temporary directory");
        machine::mount_tmpfs(folder.path(), c"mode=755");
        machine::need_user_attributes(folder.path());
        Site::in_folder(folder)
    }

    /// A site in `/dev/shm`, or in `$TMPDIR` if that is set. For tests of many sites, which would wait for the disk.
    pub fn in_memory() -> Site {
        let place = Path::new("/dev/shm");
        if std::env::var_os("TMPDIR").is_some() || rustix::fs::access(place, Access::WRITE_OK).is_err() {
            return Site::new();
        }
        Site::in_folder(TempDir::with_prefix_in("brackfs-test-", place).expect("temporary directory"))
    }

    fn in_folder(folder: TempDir) -> Site {
        for name in ["source", "state", "keys", "mnt"] {
            fs::create_dir(folder.path().join(name)).expect("directory of the site");
        }
        // gpg requires this mode.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path().join("keys"), private).expect("mode of keys");
        Site { folder }
    }

    /// A site whose source has these files. They are old, so that the catalog trusts them at once.
    pub fn with_files<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
        let site = Site::new();
        for (path, content) in files {
            site.write(path, content);
        }
        age(&site.source());
        settle();
        site
    }

    /// The temporary directory.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn source(&self) -> PathBuf {
        self.path().join("source")
    }

    pub fn repo(&self) -> PathBuf {
        self.path().join("repo")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn keys(&self) -> PathBuf {
        self.path().join("keys")
    }

    pub fn mnt(&self) -> PathBuf {
        self.path().join("mnt")
    }

    /// Writes a file below the source, and makes its parents. The file is fresh: see [`age`] and [`settle`].
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.source().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directory below the source");
        fs::write(&path, content).expect("file below the source");
        path
    }

    /// brackfs with these arguments. Without the caller's `BRACKFS_` variables; defaults are the site's repository and
    /// state directory, and the owner's secret key if `keys/` has it.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(BRACKFS);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"BRACKFS_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command.env("BRACKFS_STATE_DIR", self.state()).env("BRACKFS_REPOSITORY", self.repo());
        command.env("BRACKFS_CACHE_DIR", self.path().join("cache"));
        // Never use the keys of the user that runs the tests.
        command.env("GNUPGHOME", self.keys());
        let key = self.keys().join("owner");
        if key.exists() {
            command.env("BRACKFS_KEY_FILE", key);
        }
        command
    }

    /// [`Site::command`], run as the user `nobody`.
    ///
    /// Opens the site to all users and copies the program into it: other users may be unable to enter the build
    /// directory.
    pub fn command_as_nobody<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let inner = self.command(arguments);
        let mut command = Command::new(self.program_for_everyone());
        command.args(inner.get_args()).current_dir(self.path()).stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// A copy of brackfs in the site, for users that may not enter the build directory.
    pub fn program_for_everyone(&self) -> PathBuf {
        let program = self.path().join("brackfs");
        if !program.exists() {
            fs::copy(BRACKFS, &program).expect("copy of brackfs");
        }
        for path in [self.path(), &program] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode for everyone");
        }
        program
    }

    /// Runs brackfs to its end.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    pub fn brackfs<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Run {
        run(self.command(arguments))
    }

    /// Generates the owner's key, `keys/owner` with `keys/owner.pub`. Profiles are `rfc9580` and `rfc4880`.
    pub fn key(&self, profile: &str) -> PathBuf {
        self.key_named("owner", profile)
    }

    /// Generates a key in `keys/`.
    pub fn key_named(&self, name: &str, profile: &str) -> PathBuf {
        let file = self.keys().join(name);
        let words = ["key", "generate", "--no-passphrase", "--profile", profile, "--output"];
        let mut arguments: Vec<OsString> = words.map(OsString::from).into();
        arguments.push(file.clone().into());
        self.brackfs(&arguments).ok();
        file
    }

    /// Makes the repository with the owner as its only recipient. Generates the owner's key if it is missing.
    pub fn init(&self) {
        let certificate = self.keys().join("owner.pub");
        if !certificate.exists() {
            self.key("rfc9580");
        }
        let arguments: [OsString; 4] = ["init".into(), self.repo().into(), "--recipient".into(), certificate.into()];
        self.brackfs(&arguments).ok();
    }

    /// Backs up the source with `--json`.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    pub fn backup(&self, extra: &[&str]) -> Run {
        let mut arguments: Vec<OsString> = vec!["backup".into(), self.source().into(), "--json".into()];
        arguments.extend(extra.iter().map(OsString::from));
        self.brackfs(&arguments)
    }

    /// Mounts at `mnt/`. `extra` precedes the mount point, so it may name a snapshot.
    #[must_use = "it is unmounted when dropped"]
    pub fn mount(&self, extra: &[&str]) -> Mounted {
        let mut arguments: Vec<OsString> = vec!["mount".into()];
        arguments.extend(extra.iter().map(OsString::from));
        arguments.push(self.mnt().into());
        self.mount_by(self.command(&arguments))
    }

    /// Runs a command that mounts at the usual place.
    pub fn mount_by(&self, command: Command) -> Mounted {
        let guard = Mounted { path: self.mnt() };
        let run = run(command).ok();
        assert!(is_mounted(&guard.path), "mount was done, but nothing is mounted\n{run}");
        guard
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for path in mounts_below(self.path()) {
            unmount(&path);
        }
        end_daemons(self.path());
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

impl Run {
    /// Asserts exit code 0.
    #[track_caller]
    pub fn ok(self) -> Run {
        self.code(0)
    }

    /// Asserts an exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Run {
        assert_eq!(self.code, code, "exit code is not as expected\n{self}");
        self
    }

    /// The last JSON message of type "summary".
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let mut lines = self.stdout.lines().rev();
        let summary = lines.find_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            (value["message_type"] == "summary").then_some(value)
        });
        summary.unwrap_or_else(|| panic!("no summary\n{self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run { code, stdout, stderr, command } = self;
        write!(f, "$ {command}\nexit code {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// A command in its own mount namespace: its mounts are invisible to other processes.
#[track_caller]
pub fn in_mount_namespace(program: impl AsRef<OsStr>) -> Command {
    // unshare can make mounts private only if the root directory is a mount point.
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let is_mount = mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"));
    assert!(
        is_mount,
        "/ is not a mount point (a plain chroot?): bind the directory to itself before chroot(1) enters it"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(program);
    command
}

/// The same command with a umask.
pub fn with_umask(umask: u32, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("umask {umask:o}; exec \"$@\"");
    shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// Runs a command to its end. Its output goes to files, since a daemon that it starts would keep a pipe open.
#[must_use = "it may have failed: say .ok() or .code(n)"]
pub fn run(command: Command) -> Run {
    run_within(command, PATIENCE)
}

/// [`run`] with another time limit. A run that takes longer is killed, and the test fails.
#[must_use = "it may have failed: say .ok() or .code(n)"]
pub fn run_within(mut command: Command, patience: Duration) -> Run {
    let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().expect("temporary file"));
    command.stdout(stdout.try_clone().expect("another handle"));
    command.stderr(stderr.try_clone().expect("another handle"));
    let mut child = machine::spawn(&mut command);
    let start = Instant::now();
    let (status, hung) = loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            break (status, false);
        }
        if start.elapsed() > patience {
            child.kill().expect("killing a child");
            break (child.wait().expect("waiting for a child"), true);
        }
        sleep(Duration::from_millis(2));
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let run = Run {
        // The exit code of a shell for a signal.
        code: status.code().or(status.signal().map(|signal| 128 + signal)).expect("a code or a signal"),
        stdout: read_back(&mut stdout),
        stderr: read_back(&mut stderr),
        command: words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
    };
    assert!(!hung, "no end after {patience:?}\n{run}");
    run
}

fn read_back(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A mount of the repository. Dropping it unmounts, by force if necessary.
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root of the newest snapshot of the site's source, if no snapshot was named.
    pub fn latest(&self) -> PathBuf {
        self.path.join("source/latest").canonicalize().expect("source/latest")
    }

    /// Whether it is still mounted.
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path);
        end_daemons(&self.path);
    }
}

/// Whether a path is a mount point.
pub fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|mounted| mounted == path)
}

/// The mount points at or below a folder, the newest first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut paths: Vec<_> = paths.filter(|path| path.starts_with(folder)).collect();
    paths.reverse();
    paths
}

fn unmount(path: &Path) {
    for option in ["-u", "-uz"] {
        if is_mounted(path) {
            let _ = Command::new("fusermount3").arg(option).arg(path).stderr(Stdio::null()).status();
        }
    }
    // Other mounts of the test are not FUSE mounts.
    if is_mounted(path) {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Gives brackfs processes with an argument at or below `folder` two seconds to exit, then kills them. Processes of
/// other tests have other folders.
fn end_daemons(folder: &Path) {
    let start = Instant::now();
    loop {
        let daemons = daemons_of(folder);
        if daemons.is_empty() {
            return;
        }
        if start.elapsed() > Duration::from_secs(2) {
            for daemon in daemons {
                let _ = rustix::process::kill_process(daemon, Signal::KILL);
            }
            return;
        }
        sleep(Duration::from_millis(5));
    }
}

fn daemons_of(folder: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let ours = pids.filter(|pid: &i32| {
        // A zombie has no arguments, so it doesn't count.
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command_line.split(|&byte| byte == 0).map(|word| Path::new(OsStr::from_bytes(word)));
        let is_brackfs = words.next().is_some_and(|program| program.file_name() == Path::new(BRACKFS).file_name());
        is_brackfs && words.any(|word| word.starts_with(folder))
    });
    ours.filter_map(Pid::from_raw).collect()
}

/// The objects of all snapshots, oldest first.
#[track_caller]
pub fn snapshot_objects(site: &Site) -> Vec<PathBuf> {
    let folders = fs::read_dir(site.repo().join("snapshots")).expect("folders of snapshots");
    let folders = folders.map(|folder| fs::read_dir(folder.expect("a folder").path()).expect("snapshots"));
    let mut objects: Vec<_> = folders.flat_map(|folder| folder.map(|entry| entry.expect("an object").path())).collect();
    objects.sort();
    objects
}

/// The fields of an entry that a backup must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since 1970.
    pub mtime: i128,
    /// Bytes; 0 for a directory, whose size depends on the file system.
    pub size: u64,
    /// BLAKE3 of a file's content.
    pub content: Option<blake3::Hash>,
    /// Target of a symbolic link.
    pub target: Option<PathBuf>,
    /// The first name of a file that has several in the tree.
    pub first_name: Option<PathBuf>,
    /// Number of a device file.
    pub rdev: u64,
    /// Extended attributes, including ACLs and capabilities.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// All entries at and below a path, by relative path; the path of the root is empty.
#[track_caller]
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut names_of_inode: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    for path in paths_below(root) {
        let (entry, inode) = entry(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let name = path.strip_prefix(root).expect("a path below the root").to_owned();
        if entry.kind != Kind::Directory {
            names_of_inode.entry(inode).or_default().push(name.clone());
        }
        entries.insert(name, entry);
    }
    for names in names_of_inode.values().filter(|names| names.len() > 1) {
        let first = names.iter().min().expect("several names");
        for name in names {
            entries.get_mut(name).expect("an entry").first_name = Some(first.clone());
        }
    }
    entries
}

/// An entry without its other names, and its device and inode.
pub fn entry(path: &Path) -> io::Result<(Entry, (u64, u64))> {
    let stat = fs::symlink_metadata(path)?;
    let kind = kind(stat.file_type());
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let entry = Entry {
        kind,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec()),
        size: if kind == Kind::Directory { 0 } else { stat.size() },
        content: if kind == Kind::File { Some(content(path)?) } else { None },
        target: if kind == Kind::Symlink { Some(fs::read_link(path)?) } else { None },
        first_name: None,
        rdev: if is_device { stat.rdev() } else { 0 },
        xattrs: xattrs(path)?,
    };
    Ok((entry, (stat.dev(), stat.ino())))
}

/// Extended attributes of a path. Does not follow symbolic links.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice())?;
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
            value.truncate(length);
            Ok((String::from_utf8_lossy(name).into_owned(), value))
        })
        .collect()
}

fn kind(of: fs::FileType) -> Kind {
    match of {
        _ if of.is_file() => Kind::File,
        _ if of.is_dir() => Kind::Directory,
        _ if of.is_symlink() => Kind::Symlink,
        _ if of.is_fifo() => Kind::Fifo,
        _ if of.is_socket() => Kind::Socket,
        _ if of.is_char_device() => Kind::CharDevice,
        _ => Kind::BlockDevice,
    }
}

/// BLAKE3 of a file, in constant memory.
pub fn content(path: &Path) -> io::Result<blake3::Hash> {
    Ok(blake3::Hasher::new().update_reader(File::open(path)?)?.finalize())
}

/// The ranges of a file that hold data, between holes: start and end of each.
#[track_caller]
pub fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    let (mut at, mut found) = (0, Vec::new());
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).expect("a hole at the end");
        found.push((start, at));
    }
    found
}

/// Incompressible bytes, determined by the seed.
pub fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A numeric field of a summary.
#[track_caller]
pub fn number(summary: &serde_json::Value, field: &str) -> u64 {
    summary[field].as_u64().unwrap_or_else(|| panic!("{field} is not a number in {summary}"))
}

#[track_caller]
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// Sets both times of a path. Does not follow symbolic links.
#[track_caller]
pub fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
}

/// A path and all paths below it, parents first. Does not follow symbolic links.
#[track_caller]
pub fn paths_below(root: &Path) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut done = 0;
    while done < paths.len() {
        let path = paths[done].clone();
        done += 1;
        let failed = |e: io::Error| -> ! { panic!("cannot list {}: {e}", path.display()) };
        if fs::symlink_metadata(&path).unwrap_or_else(|e| failed(e)).is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|e| failed(e));
            paths.extend(entries.map(|entry| entry.unwrap_or_else(|e| failed(e)).path()));
        }
    }
    paths
}

/// Sets the mtime of everything at and below a path to [`AGED`]. This updates the ctimes: see [`settle`].
#[track_caller]
pub fn age(root: &Path) {
    let time = Timespec { tv_sec: AGED, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for path in paths_below(root) {
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|e| panic!("cannot age {}: {e}", path.display()));
    }
}

/// Waits until a ctime of now is older than the clock's granularity.
pub fn settle() {
    sleep(Duration::from_millis(30));
}
