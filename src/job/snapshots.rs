//! Snapshots of the file systems that a source is on, which exist during its backups.
//!
//! Each has a record in the state directory, written before it is made, and locked as long as its run lives. A run first
//! removes the snapshots of records that no run has locked: those runs were killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, flock, makedev};
use rustix::io::retry_on_intr;

use super::outcome::Failed;
use crate::backup::{Placed, SNAPSHOT_FOLDER};
use crate::config::{FileSystemSnapshot, SnapshotKind};
use crate::failure::FailureKind;
use crate::sys::mountinfo;
use crate::sys::process_group::{OutputPipe, ProcessGroup};

/// The directory of the records in the state directory.
const RECORDS: &str = "snapshots";
/// The ending of a record's name.
const RECORD: &str = ".record";
/// How long the removal of a snapshot may take. It also happens after an interrupt, when the process ends soon.
const REMOVAL: Duration = Duration::from_secs(60);
/// The inode number of the root of a btrfs subvolume.
const SUBVOLUME: u64 = 256;
/// Flags of a mount that the mount of its snapshot must have as well.
const RESTRICTIONS: [&str; 3] = ["nosuid", "nodev", "noexec"];
/// Maximum length of the output of a program in bytes. Lists of volumes are far shorter.
const LONGEST: usize = 64 << 20;
/// Maximum length of a record in bytes.
const RECORD_SIZE: u64 = 64 << 10;

/// The snapshots for a source. They are removed on drop.
pub(super) struct Snapshots<'a> {
    state: &'a Path,
    stop: &'a AtomicBool,
    note: &'a dyn Fn(&str),
    held: Vec<Held>,
    /// Where paths are read.
    pub(super) read_from: Vec<Placed>,
}

/// A snapshot and its locked record.
struct Held {
    record: PathBuf,
    _lock: File,
    what: Made,
}

/// A snapshot that was made, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Made {
    /// A subvolume.
    Btrfs(PathBuf),
    /// `DATASET@NAME`.
    Zfs(OsString),
    /// `GROUP/NAME`, and where it is mounted.
    Lvm(OsString, PathBuf),
}

/// A mounted file system.
#[derive(Debug, Clone)]
struct FileSystem {
    point: PathBuf,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    kind: Vec<u8>,
    source: OsString,
    device: u64,
    /// Which of [`RESTRICTIONS`] it has.
    restrictions: Vec<&'static str>,
}

impl<'a> Snapshots<'a> {
    /// Makes snapshots of the file systems that the paths are on.
    pub(super) fn make(
        wanted: &FileSystemSnapshot,
        paths: &[PathBuf],
        state: &'a Path,
        stop: &'a AtomicBool,
        note: &'a dyn Fn(&str),
    ) -> Result<Self, Failed> {
        check_owner(state)?;
        let mut all = Snapshots { state, stop, note, held: Vec::new(), read_from: Vec::new() };
        let table = FileSystem::all()?;
        let mut tops = Vec::new();
        for path in paths {
            // A missing path is reported by the backup.
            let Some(path) = real(path) else { continue };
            let Some(on) = FileSystem::of(&path, &table) else { continue };
            let Some(kind) = on.snapshot_kind(wanted.kind) else {
                note(&format!(
                    "{} is on {}, a file system without snapshots, and is read live",
                    path.display(),
                    on.kind()
                ));
                continue;
            };
            let top = match kind {
                SnapshotKind::Btrfs => on.subvolume(&path)?,
                _ => on.point.clone(),
            };
            if let Some(why) = Some(&top).filter(|_| kind == SnapshotKind::Btrfs).and_then(|top| exposure(top)) {
                if wanted.kind.is_some() {
                    return Err(Failed::new(format!("cannot make a snapshot of {}: {why}", top.display())));
                }
                note(&format!("{} is read live: {why}", path.display()));
                continue;
            }
            if !tops.contains(&top) {
                all.add(kind, on, &top, wanted.size)?;
                tops.push(top);
            }
        }
        // Other file systems below are not in the snapshots.
        for point in table.iter().map(|on| &on.point) {
            if tops.iter().any(|top| point.starts_with(top)) && !tops.contains(point) {
                all.read_from.push(Placed { path: point.clone(), from: point.clone() });
            }
        }
        Ok(all)
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn add(&mut self, kind: SnapshotKind, on: &FileSystem, top: &Path, size: u8) -> Result<(), Failed> {
        let name = format!("brackfs-{}-{}", jiff::Timestamp::now().as_microsecond(), std::process::id());
        let stop = self.stop;
        let ask = |program: &str, arguments: &[&OsStr]| command(program, arguments, &|| stop.load(Ordering::Relaxed));
        match kind {
            SnapshotKind::Btrfs => {
                let nested = nested_subvolumes(top, &ask)?;
                let folder = top.join(SNAPSHOT_FOLDER);
                make_private(&folder)?;
                if let Some(why) = exposure(&folder) {
                    return Err(Failed::new(format!("cannot make a snapshot in {}: {why}", folder.display())));
                }
                let at = folder.join(&name);
                self.hold(&name, Made::Btrfs(at.clone()))?;
                let words = ["subvolume", "snapshot", "-r"].map(OsStr::new);
                let made = ask("btrfs", &[&words[..], &[top.as_os_str(), at.as_os_str()]].concat());
                self.keep_if(made)?;
                self.read_from.push(Placed { path: top.to_owned(), from: at });
                self.read_from.extend(nested.into_iter().map(|path| Placed { path: path.clone(), from: path }));
            }
            SnapshotKind::Zfs => {
                let mut snapshot = on.source.clone();
                snapshot.push(format!("@{name}"));
                self.hold(&name, Made::Zfs(snapshot.clone()))?;
                let made = ask("zfs", &[OsStr::new("snapshot"), &snapshot]);
                self.keep_if(made)?;
                let from = top.join(".zfs/snapshot").join(&name);
                self.read_from.push(Placed { path: top.to_owned(), from });
            }
            SnapshotKind::Lvm => {
                let words = ["--noheadings", "--separator", "/", "-o", "vg_name,lv_name"].map(OsStr::new);
                let volume = ask("lvs", &[&words[..], &[&on.source]].concat())?;
                let Some((group, _)) = volume.split_once('/') else {
                    return Err(Failed::new(format!("lvs does not know the volume of {}", top.display())));
                };
                let snapshot = OsString::from(format!("{group}/{name}"));
                let at = self.state.join(RECORDS).join(&name);
                self.hold(&name, Made::Lvm(snapshot.clone(), at.clone()))?;
                let size = format!("{size}%ORIGIN");
                let words = ["--snapshot", "--quiet", "--extents", &size, "--name", &name, &volume].map(OsStr::new);
                let made = ask("lvcreate", &words);
                self.keep_if(made)?;
                let words = ["--noheadings", "-o", "lv_path"].map(OsStr::new);
                let device = ask("lvs", &[&words[..], &[&snapshot]].concat())?;
                fs::DirBuilder::new().mode(0o700).create(&at).map_err(|e| failed("make the directory", &at, &e))?;
                // Two mounts of xfs cannot have the same UUID.
                let uuid = (on.kind == b"xfs").then_some("nouuid");
                let options: Vec<_> = ["ro"].into_iter().chain(uuid).chain(on.restrictions.iter().copied()).collect();
                let (kind, options) = (on.kind(), options.join(","));
                let words = ["-t", &kind, "-o", &options, &device].map(OsStr::new);
                ask("mount", &[&words[..], &[at.as_os_str()]].concat())?;
                // Paths are read without following links, which the state directory's path may have.
                let at = at.canonicalize().map_err(|e| failed("find", &at, &e))?;
                let from = at.join(on.root.strip_prefix("/").unwrap_or(&on.root));
                self.read_from.push(Placed { path: top.to_owned(), from });
            }
        }
        Ok(())
    }

    /// Takes back the last record if its snapshot was not made. After an interrupt, that is not known.
    fn keep_if(&mut self, made: Result<String, Failed>) -> Result<(), Failed> {
        let Err(failed) = made else { return Ok(()) };
        if failed.kind != FailureKind::Interrupted
            && let Some(held) = self.held.pop()
        {
            // The next run tries to remove what a record says that stays, and finds nothing.
            let _ = fs::remove_file(&held.record);
        }
        Err(failed)
    }

    /// Records a snapshot that is about to be made.
    fn hold(&mut self, name: &str, what: Made) -> Result<(), Failed> {
        let folder = self.state.join(RECORDS);
        make_private(&folder)?;
        let record = folder.join(format!("{name}{RECORD}"));
        let write = || -> io::Result<File> {
            let mut file = create_locked(&record)?;
            file.write_all(&what.as_record())?;
            file.sync_all()?;
            Ok(file)
        };
        let lock = write().map_err(|e| failed("write", &record, &e))?;
        self.held.push(Held { record, _lock: lock, what });
        Ok(())
    }
}

impl Drop for Snapshots<'_> {
    fn drop(&mut self) {
        for Held { record, _lock, what } in self.held.drain(..).rev() {
            end(&record, &what, self.note);
        }
    }
}

/// Creates a record and locks it.
fn create_locked(record: &Path) -> io::Result<File> {
    loop {
        if let Some(file) = lock(create(record)?)? {
            return Ok(file);
        }
    }
}

fn create(record: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(record)
}

/// Locks a record that was just created. `None` if another run took it for that of a killed run before, and removed it.
fn lock(file: File) -> io::Result<Option<File>> {
    retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(is_named(&file).then_some(file))
}

/// Whether a file was not removed since it was opened. A record is only removed by the process that has locked it.
fn is_named(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.nlink() > 0)
}

/// Fails if another user could change the records, and so make this one remove any snapshot.
fn check_owner(state: &Path) -> Result<(), Failed> {
    let records = state.join(RECORDS);
    for (folder, found) in [(state, state.metadata()), (&records, records.symlink_metadata())] {
        if found.is_ok_and(|found| found.uid() != rustix::process::geteuid().as_raw()) {
            let why = "belongs to another user, so no snapshots of file systems are made or removed; `brackfs setup` gives it \
                       to the user of the service";
            return Err(Failed::new(format!("{} {why}", folder.display())));
        }
    }
    Ok(())
}

/// Returns how another user could put something else in the place of a directory with snapshots, and so make this one remove
/// any subvolume.
fn exposure(folder: &Path) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    let is_safe = |found: &fs::Metadata| {
        let mode = Mode::from_raw_mode(found.mode());
        let is_shared = mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX);
        found.is_dir() && !is_shared && [0, user].contains(&found.uid())
    };
    let exposed = folder.ancestors().find(|folder| !folder.symlink_metadata().is_ok_and(|found| is_safe(&found)))?;
    Some(format!("another user can change {}", exposed.display()))
}

/// The kind of the snapshots of each path, and the directory that a snapshot is made of.
pub fn snapshot_tops(wanted: &FileSystemSnapshot, paths: &[PathBuf]) -> Vec<(SnapshotKind, PathBuf)> {
    // A run reports the errors.
    let table = FileSystem::all().unwrap_or_default();
    let top = |path: &PathBuf| {
        let path = real(path)?;
        let on = FileSystem::of(&path, &table)?;
        match on.snapshot_kind(wanted.kind)? {
            SnapshotKind::Btrfs => Some((SnapshotKind::Btrfs, on.subvolume(&path).ok()?)),
            kind => Some((kind, on.point.clone())),
        }
    };
    paths.iter().filter_map(top).collect()
}

/// Removes the snapshots of runs that were killed.
pub(super) fn remove_leftovers(state: &Path, note: &dyn Fn(&str)) {
    let entries = fs::read_dir(state.join(RECORDS)).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_record = |path: &PathBuf| path.extension() == Some(OsStr::new(&RECORD[1..]));
    let records: Vec<_> = entries.filter(is_record).collect();
    if records.is_empty() {
        return;
    }
    if let Err(failed) = check_owner(state) {
        note(&failed.message);
        return;
    }
    for record in records {
        // NFS locks only files that are open for writing.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&record) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_named(&file) {
            continue;
        }
        let mut bytes = Vec::new();
        let read = (&file).take(RECORD_SIZE).read_to_end(&mut bytes);
        match (read, Made::of_record(&bytes)) {
            (Ok(_), Some(what)) => end(&record, &what, note),
            // It was not written to its end, so its snapshot was not made.
            (Ok(_), None) => drop(fs::remove_file(&record)),
            (Err(e), _) => note(&failed("read", &record, &e).message),
        }
    }
}

/// Removes a snapshot, and then its record. If that fails, the next run tries again.
fn end(record: &Path, what: &Made, note: &dyn Fn(&str)) {
    let removed = what.remove().and_then(|()| fs::remove_file(record).map_err(|e| failed("remove", record, &e)));
    if let Err(failed) = removed {
        note(&format!("a snapshot is left; the next run tries to remove it: {}", failed.message));
    }
}

impl Made {
    /// The record: its kind and names, each followed by a NUL.
    fn as_record(&self) -> Vec<u8> {
        let words: Vec<&[u8]> = match self {
            Made::Btrfs(at) => vec![b"btrfs", at.as_os_str().as_bytes()],
            Made::Zfs(name) => vec![b"zfs", name.as_bytes()],
            Made::Lvm(name, at) => vec![b"lvm", name.as_bytes(), at.as_os_str().as_bytes()],
        };
        words.iter().flat_map(|word| [word, &b"\0"[..]].concat()).collect()
    }

    fn of_record(record: &[u8]) -> Option<Self> {
        let words: Vec<_> = record.strip_suffix(b"\0")?.split(|byte| *byte == 0).collect();
        let text = |word: &[u8]| OsString::from_vec(word.to_vec());
        match words.as_slice() {
            [b"btrfs", at] => Some(Made::Btrfs(text(at).into())),
            [b"zfs", name] => Some(Made::Zfs(text(name))),
            [b"lvm", name, at] => Some(Made::Lvm(text(name), text(at).into())),
            _ => None,
        }
    }

    /// Removes it. It need not exist.
    fn remove(&self) -> Result<(), Failed> {
        let begun = Instant::now();
        let run = |program: &str, arguments: &[&OsStr]| command(program, arguments, &|| begun.elapsed() > REMOVAL);
        match self {
            Made::Btrfs(at) if at.symlink_metadata().is_err() => Ok(()),
            Made::Btrfs(at) => match at.parent().and_then(exposure) {
                Some(why) => Err(Failed::new(format!("cannot remove the snapshot {}: {why}", at.display()))),
                None => run("btrfs", &[OsStr::new("subvolume"), OsStr::new("delete"), at.as_os_str()]).map(drop),
            },
            Made::Zfs(name) => {
                gone(run("zfs", &[OsStr::new("destroy"), name]), &["does not exist", "could not find any snapshots"])
            }
            Made::Lvm(name, at) => {
                if FileSystem::all()?.iter().any(|on| on.point == *at) {
                    run("umount", &[at.as_os_str()])?;
                }
                match fs::remove_dir(at) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", at, &e)),
                    _ => {}
                }
                gone(
                    run(
                        "lvremove",
                        &["--yes", "--quiet"].map(OsStr::new).into_iter().chain([name.as_os_str()]).collect::<Vec<_>>(),
                    ),
                    &["Failed to find"],
                )
            }
        }
    }
}

/// A removal that may fail with one of these messages.
fn gone(removed: Result<String, Failed>, absent: &[&str]) -> Result<(), Failed> {
    match removed {
        Err(failed) if !absent.iter().any(|absent| failed.message.contains(absent)) => Err(failed),
        _ => Ok(()),
    }
}

impl FileSystem {
    /// All mounts, except those of a directory at its own path: systemd makes such bind mounts in a service, and they show the
    /// same file system. A later mount may hide an earlier one.
    fn all() -> Result<Vec<Self>, Failed> {
        let table = mountinfo::read().map_err(|e| failed("read", Path::new(mountinfo::TABLE), &e))?;
        let mounts = mountinfo::mounts(&table).map(|info| FileSystem {
            point: info.mount_point(),
            root: info.mounted_folder(),
            kind: info.kind.to_vec(),
            source: info.source_path().into_os_string(),
            device: makedev(info.device.0, info.device.1),
            restrictions: RESTRICTIONS.into_iter().filter(|flag| info.has_flag(flag)).collect(),
        });
        let mut all: Vec<FileSystem> = Vec::new();
        for mount in mounts {
            if !FileSystem::of(&mount.point, &all).is_some_and(|below| below.shows(&mount)) {
                all.push(mount);
            }
        }
        Ok(all)
    }

    /// The one that a path is on.
    fn of<'t>(path: &Path, table: &'t [FileSystem]) -> Option<&'t FileSystem> {
        // Of several on one directory, the last one is seen.
        let above = table.iter().filter(|on| path.starts_with(&on.point));
        above.max_by_key(|on| on.point.as_os_str().len())
    }

    /// Whether it has the same directory at the mount point of another one.
    fn shows(&self, other: &FileSystem) -> bool {
        let below = other.point.strip_prefix(&self.point);
        self.device == other.device && below.is_ok_and(|below| self.root.join(below) == other.root)
    }

    fn kind(&self) -> String {
        String::from_utf8_lossy(&self.kind).into_owned()
    }

    /// The kind of its snapshots; `None` if it has none.
    fn snapshot_kind(&self, wanted: Option<SnapshotKind>) -> Option<SnapshotKind> {
        wanted.or_else(|| match self.kind.as_slice() {
            b"btrfs" => Some(SnapshotKind::Btrfs),
            b"zfs" => Some(SnapshotKind::Zfs),
            _ => self.is_logical_volume().then_some(SnapshotKind::Lvm),
        })
    }

    /// Whether its device is a logical volume of LVM.
    fn is_logical_volume(&self) -> bool {
        let (major, minor) = (rustix::fs::major(self.device), rustix::fs::minor(self.device));
        let id = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid"));
        id.is_ok_and(|id| id.starts_with("LVM-"))
    }

    /// The root of the btrfs subvolume that a path is in.
    fn subvolume(&self, path: &Path) -> Result<PathBuf, Failed> {
        let is_root =
            |path: &&Path| path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.ino() == SUBVOLUME);
        let within = path.ancestors().take_while(|above| above.starts_with(&self.point));
        let found = within.filter(|_| self.kind == b"btrfs").find(|path| is_root(path));
        found.map(Path::to_owned).ok_or_else(|| {
            Failed::new(format!("cannot make a snapshot of {}: it is not in a subvolume of btrfs", path.display()))
        })
    }
}

/// The subvolumes in a subvolume, which are empty in its snapshots.
fn nested_subvolumes(
    top: &Path,
    ask: &impl Fn(&str, &[&OsStr]) -> Result<String, Failed>,
) -> Result<Vec<PathBuf>, Failed> {
    let words = ["subvolume", "show"].map(OsStr::new);
    let shown = ask("btrfs", &[&words[..], &[top.as_os_str()]].concat())?;
    // Older versions call the top of the file system <FS_TREE>.
    let own = shown.lines().next().unwrap_or_default().trim().trim_start_matches("<FS_TREE>");
    let words = ["subvolume", "list", "-o"].map(OsStr::new);
    let listed = ask("btrfs", &[&words[..], &[top.as_os_str()]].concat())?;
    let paths = listed.lines().filter_map(|line| Some(line.split_once(" path ")?.1));
    let below = paths.filter_map(|path| Path::new(path).strip_prefix(own.trim_start_matches('/')).ok());
    let others = below.filter(|path| !path.starts_with(SNAPSHOT_FOLDER));
    Ok(others.map(|path| top.join(path)).collect())
}

/// A path without symbolic links, except for one at its end that no slash follows.
fn real(path: &Path) -> Option<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !path.as_os_str().as_bytes().ends_with(b"/") => {
            Some(parent.canonicalize().ok()?.join(name))
        }
        _ => path.canonicalize().ok(),
    }
}

/// Makes a directory for its owner only, unless it exists.
fn make_private(folder: &Path) -> Result<(), Failed> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("make the directory", folder, &e)),
        _ => Ok(()),
    }
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Failed {
    Failed::new(format!("cannot {action} {}: {error}", path.display()))
}

/// Runs a program and returns its output, without blanks at the ends. If it fails, its standard error is in the message.
fn command(program: &str, arguments: &[&OsStr], gives_up: &dyn Fn() -> bool) -> Result<String, Failed> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let mut run = || -> io::Result<_> {
        let ((output, output_end), (errors, errors_end)) = (OutputPipe::new(LONGEST)?, OutputPipe::new(LONGEST)?);
        command.stdout(output_end).stderr(errors_end);
        // Both are emptied each time.
        let is_full = || [&output, &errors].map(OutputPipe::is_full).contains(&true);
        let status = ProcessGroup::start(&mut command)?.wait(|| is_full() || gives_up())?;
        let text = |pipe: OutputPipe| Ok::<_, io::Error>(String::from_utf8_lossy(&pipe.end()?).into_owned());
        Ok((status, text(output)?, text(errors)?))
    };
    let (status, output, errors) = run().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failed::new(format!("cannot run {program}: it is not installed")),
        _ => Failed::new(format!("cannot run {program}: {error}")),
    })?;
    match status {
        Some(status) if status.success() => Ok(output.trim().to_owned()),
        Some(status) => {
            let lines: Vec<_> = errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(Failed::new(format!("{program} failed ({status}): {}", lines.join("; "))))
        }
        None => Err(Failed { kind: FailureKind::Interrupted, message: format!("{program} was interrupted") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back() {
        for made in [
            Made::Btrfs("/home/a\nb".into()),
            Made::Zfs("tank/home@brackfs-1-2".into()),
            Made::Lvm("vg/brackfs-1-2".into(), "/var/lib/brackfs/snapshots/x".into()),
        ] {
            let record = made.as_record();
            assert_eq!(Made::of_record(&record), Some(made));
            assert_eq!(Made::of_record(&record[..record.len() - 1]), None);
        }
        assert_eq!(Made::of_record(b"other\0x\0"), None);
        assert_eq!(Made::of_record(b""), None);
    }

    #[test]
    fn a_record_is_not_taken_for_a_leftover_before_it_is_locked() {
        let folder = tempfile::tempdir().unwrap();
        let records = folder.path().join(RECORDS);
        fs::create_dir(&records).unwrap();
        let note = |message: &str| panic!("{message}");
        let names = || fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let record = records.join(format!("early{RECORD}"));
        let early = create(&record).unwrap();
        remove_leftovers(folder.path(), &note);
        assert!(lock(early).unwrap().is_none());
        let locked = create_locked(&record).unwrap();
        remove_leftovers(folder.path(), &note);
        assert_eq!(names(), [record.file_name().unwrap()]);
        drop(locked);
        remove_leftovers(folder.path(), &note);
        assert!(names().is_empty());
    }

    #[test]
    fn the_errors_of_a_program_are_in_the_message() {
        let run = |words: &[&str]| command("sh", &words.iter().map(OsStr::new).collect::<Vec<_>>(), &|| false);
        assert_eq!(run(&["-c", "echo ' out '"]).unwrap(), "out");
        let message = run(&["-c", "echo no such volume >&2; exit 5"]).unwrap_err().message;
        assert!(message.contains("sh failed") && message.contains("no such volume"), "{message}");
        let message = command("no-such-program", &[], &|| false).unwrap_err().message;
        assert_eq!(message, "cannot run no-such-program: it is not installed");
        let message = run(&["-c", "exec cat /dev/zero"]).unwrap_err().message;
        assert_eq!(message, "cannot run sh: it printed more than 64 MiB");
    }
}
