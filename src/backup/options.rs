//! The options of a backup, by the stage that they are for.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::slice;
use std::time::Duration;

use super::error::Error;
use super::shrink::Guard;
use crate::catalog::stats::ComparedFields;
use crate::format::Timestamp;
use crate::format::entry::is_name;
use crate::format::snapshot::{PATHS, TAGS};
use crate::format::source::{SOURCE_NAME, is_source_name};
use crate::inventory::READ_AGAIN;
use crate::session::{EarlyRuns, LockWait};
use crate::source::{Pattern, Patterns};

/// Default average size of a chunk in bytes.
pub const CHUNK_SIZE: usize = 512 << 10;
/// Default size in bytes below which files are gathered into composites.
pub const MERGE_FILES_UNDER: usize = 512 << 10;
/// Default zstd level.
pub const COMPRESSION: i32 = 3;
/// Default time between commits.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(60);
/// Default number of times that a changing file is read again.
pub const RETRIES: u32 = 3;
/// Default total time to wait for files that have just changed.
pub const SETTLE_MAX: Duration = Duration::from_secs(5);

/// The name of directories with snapshots of btrfs that exist during backups. They are left out of these.
pub const SNAPSHOT_FOLDER: &str = ".brackfs-snapshots";

/// Maximum length of a tag in bytes.
const TAG_SIZE: usize = 255;

/// Checks a tag. Lists of tags are printed with commas, so a tag must not have one.
pub fn check_tag(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a tag can't be empty".into()),
        _ if text.trim() != text => Err("a tag can't begin or end with a blank".into()),
        _ if text.len() > TAG_SIZE => Err(format!("a tag has at most {TAG_SIZE} bytes")),
        _ if text.contains(',') => Err("a tag can't have a comma".into()),
        _ if text.contains(char::is_control) => Err("a tag is one line of text".into()),
        _ => Ok(text.to_owned()),
    }
}

/// Checks a pattern of files to exclude.
pub fn check_pattern(glob: &str) -> Result<String, Error> {
    Patterns::new(Path::new("/"), &[Pattern::new(glob)])?;
    Ok(glob.to_owned())
}

/// Checks the name of an entry of a directory.
pub fn check_entry_name(name: &OsStr) -> Result<OsString, Error> {
    match is_name(name.as_bytes()) {
        true => Ok(name.to_owned()),
        false => Err(Error::Usage(format!("{name:?} can't be the name of an entry of a directory"))),
    }
}

/// The options of a backup.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The paths to back up.
    pub selection: Selection,
    /// How files are recognized and read.
    pub reading: Reading,
    /// How content is stored.
    pub storing: Storing,
    /// Settings of the run itself.
    pub policy: RunPolicy,
}

impl Options {
    /// Fails if something is wrong that can be seen without the file system.
    pub fn check(&self) -> Result<(), Error> {
        let Selection { source, paths, placed, stream, exclude, exclude_if_present, .. } = &self.selection;
        let tags: BTreeSet<_> = self.policy.tags.iter().collect();
        let paths = paths.len() + placed.len();
        for (count, limit, what) in [(tags.len(), TAGS, "tags"), (paths, PATHS, "paths")] {
            if count > limit {
                let why = format!("{count} {what} are too many: a snapshot can have at most {limit}");
                return Err(Error::Usage(why));
            }
        }
        if let Some(name) = source.as_ref().filter(|name| !is_source_name(name)) {
            return Err(Error::Usage(format!("{name:?} can't name a source: {SOURCE_NAME}")));
        }
        for name in stream.iter().map(|stream| &stream.filename).chain(exclude_if_present) {
            check_entry_name(name)?;
        }
        let patterns: Vec<_> = exclude.iter().map(Pattern::new).collect();
        Patterns::new(Path::new("/"), &patterns)?;
        Ok(())
    }

    /// Reads the files of patterns. Returns an error for each file that cannot be read, and for each invalid pattern.
    pub fn check_files(&self) -> Vec<Error> {
        let check = |patterns: &[Pattern]| Patterns::new(Path::new("/"), patterns).err();
        let mut wrong = Vec::new();
        for file in &self.selection.exclude_from {
            match Pattern::read_file(file) {
                Err(error) => wrong.push(error),
                Ok(patterns) => {
                    let before = wrong.len();
                    wrong.extend(patterns.iter().filter_map(|pattern| check(slice::from_ref(pattern))));
                    if wrong.len() == before {
                        // All of them together may be too large.
                        wrong.extend(check(&patterns));
                    }
                }
            }
        }
        wrong.into_iter().map(Error::from).collect()
    }

    /// Whether a backup to a server need not open the repository if nothing changed. Packs are verified again only by one that
    /// opens it.
    pub fn may_skip_opening(&self) -> bool {
        let RunPolicy { skip_if_unchanged, dry_run, recheck, .. } = self.policy;
        skip_if_unchanged && !dry_run && recheck == RunPolicy::default().recheck
    }
}

/// The paths to back up, and exclusions.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The source's name. `None`: the last name of the only path, the name of standard input, or `root`.
    pub source: Option<String>,
    /// A single directory becomes the root of the snapshot. Otherwise the root is `/`, with the directories that lead to
    /// the paths. A symbolic link at the end of a path is followed only if the path ends with a slash.
    pub paths: Vec<PathBuf>,
    /// Directories that are backed up under other paths. They count as paths.
    pub placed: Vec<Placed>,
    /// Paths that are read elsewhere, with everything below them. They are not backed up unless `paths` leads to them.
    pub read_from: Vec<Placed>,
    /// Files that list more paths, one per line or NUL-terminated; `-` is standard input. With a list the root is always
    /// `/`. A listed directory is taken with everything below it; a listed symbolic link is never followed.
    pub files_from: Vec<PathBuf>,
    /// Back up these bytes instead of paths.
    pub stream: Option<Stream>,
    /// Patterns to leave out, as in a `.gitignore` at the root of the snapshot. Like every exclusion they also apply to
    /// the directories on the way to a path, and to listed paths.
    pub exclude: Vec<String>,
    /// Files of such patterns. They precede those in `exclude`; the last pattern that matches wins.
    pub exclude_from: Vec<PathBuf>,
    /// Of a directory with a valid `CACHEDIR.TAG`, take only that file.
    pub exclude_caches: bool,
    /// Of a directory with an entry of one of these names, take only that entry.
    pub exclude_if_present: Vec<OsString>,
    /// Leave out files and directories with the attribute `d` (`chattr +d`).
    pub exclude_nodump: bool,
    /// Leave mount points below the paths empty. Each path has its own file system.
    pub one_file_system: bool,
}

/// A directory that is read in another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its path in the snapshot, absolute and without `..`.
    pub path: PathBuf,
    /// The directory that is read.
    pub from: PathBuf,
}

impl Placed {
    /// Parses `NEW=OLD`, or `NEW` for the only one of `paths`, which is taken from them.
    pub fn parse_all<T: AsRef<OsStr>>(given: &[T], paths: &mut Vec<PathBuf>) -> Result<Vec<Placed>, String> {
        let is_only = given.len() == 1 && paths.len() == 1;
        let mut placed = Vec::new();
        for text in given {
            let text = text.as_ref().as_bytes();
            let (path, from) = match text.iter().position(|byte| *byte == b'=') {
                Some(middle) => {
                    let (path, from) = text.split_at(middle);
                    (path, PathBuf::from(OsStr::from_bytes(from.get(1..).unwrap_or_default())))
                }
                None => match paths.pop().filter(|_| is_only) {
                    Some(only) => (text, only),
                    None => return Err("write NEW=OLD; NEW alone is only possible with exactly one path".into()),
                },
            };
            let path = PathBuf::from(OsStr::from_bytes(path));
            let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !is_plain {
                return Err(format!("{} must be an absolute path without ..", path.display()));
            }
            if from.as_os_str().is_empty() {
                return Err(format!("no directory is given for {}", path.display()));
            }
            placed.push(Placed { path, from });
        }
        Ok(placed)
    }
}

/// Bytes that become the only file in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The name of the file.
    pub filename: OsString,
    /// Where the bytes come from.
    pub source: StreamSource,
    /// Make a snapshot even if there are none, which is usually a failure.
    pub allow_empty: bool,
}

/// Where the bytes of a [`Stream`] come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamSource {
    /// Standard input. The program at its other end may fail, which cannot be noticed.
    StandardInput,
    /// The output of a command, with its arguments. If it fails, no snapshot is made.
    Command(Vec<OsString>),
}

/// How files are recognized and read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The fields that must be equal for a file to count as unchanged.
    pub identity: ComparedFields,
    /// Read every file, even if it looks unchanged.
    pub reread: bool,
    /// How often a file that changes while it is read is read again before it is stored as read, and marked.
    pub retries: u32,
    /// Total time to wait for files that have just changed.
    pub settle_max: Duration,
}

impl Default for Reading {
    fn default() -> Self {
        Reading { identity: ComparedFields::default(), reread: false, retries: RETRIES, settle_max: SETTLE_MAX }
    }
}

/// How content is stored.
#[derive(Debug, Clone)]
pub struct Storing {
    /// Average bytes of a chunk. From 1 MiB on, files are cut at fixed offsets of 1 MiB.
    pub chunk_size: usize,
    /// Files, and tails of files, below this many bytes are gathered into composites.
    pub merge_files_under: usize,
    /// The zstd level.
    pub compression: i32,
}

impl Default for Storing {
    fn default() -> Self {
        Storing { chunk_size: CHUNK_SIZE, merge_files_under: MERGE_FILES_UNDER, compression: COMPRESSION }
    }
}

/// Settings of a run, apart from reading and storing.
#[derive(Debug, Clone)]
pub struct RunPolicy {
    /// Labels of the snapshot. Repeated ones count once.
    pub tags: Vec<String>,
    /// The time of the snapshot instead of the start of the run.
    pub time: Option<Timestamp>,
    /// The host name in the snapshot instead of this machine's.
    pub host: Option<String>,
    /// How much the source may lose; `None` for everything.
    pub guard: Option<Guard>,
    /// Make no snapshot if nothing changed.
    pub skip_if_unchanged: bool,
    /// The identity of the target ([`Location::identity`](crate::storage::Location::identity)), if it is enough to look for
    /// lost documents there once a day.
    pub daily_at: Option<String>,
    /// If the reads of the session were begun when the repository was opened, the runs that were known before.
    pub early: Option<EarlyRuns>,
    /// The files with the certificates that the repository must be encrypted to; `None` if that is not compared.
    pub recipients: Option<Vec<PathBuf>>,
    /// Only report new and changed files. No file is opened, and nothing is written.
    pub dry_run: bool,
    /// Use a single worker, and keep chunks that wait in unnamed temporary files.
    pub low_memory: bool,
    /// Time between commits. A run that is killed loses at most the work of this time.
    pub commit_interval: Duration,
    /// How long to wait for another run that holds the lock.
    pub wait_lock: LockWait,
    /// Bytes of packs to verify again, oldest check first.
    pub recheck: u64,
}

impl Default for RunPolicy {
    fn default() -> Self {
        RunPolicy {
            tags: Vec::new(),
            time: None,
            host: None,
            guard: Some(Guard::default()),
            skip_if_unchanged: false,
            daily_at: None,
            early: None,
            recipients: None,
            dry_run: false,
            low_memory: false,
            commit_interval: COMMIT_INTERVAL,
            wait_lock: LockWait::option(Duration::ZERO),
            recheck: READ_AGAIN,
        }
    }
}
