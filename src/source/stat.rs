//! The stat fields that a backup stores or detects changes by.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, makedev, statx};
use rustix::io::retry_on_intr;
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

use crate::format::{Kind, Timestamp};

const FIELDS: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);
const SECOND: i128 = 1_000_000_000;
/// Lower bound of the timestamp granularity in nanoseconds: one tick of a kernel with 100 Hz, such as a server may run.
const TICK_MIN: i128 = SECOND / 100;
/// The coarsest timestamp granularity in use, that of FAT, in nanoseconds.
const TICK_COARSE: i128 = 2 * SECOND;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;
/// The maximum difference in nanoseconds between the local clock and a server's that change detection tolerates.
const SKEW: i128 = MINUTE;
/// A timestamp up to this many nanoseconds ahead of the local clock may come from a recent write by a machine whose
/// clock is ahead. A later one was set explicitly, and waiting would not help.
const AHEAD: i128 = HOUR;

/// The stat of an inode.
#[derive(Debug, Clone, PartialEq)]
pub struct Stat {
    /// The file type.
    pub kind: Kind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u32,
    /// The owner's uid.
    pub uid: u32,
    /// The group's gid.
    pub gid: u32,
    /// Bytes in a file, holes included, or of a symlink's target; 0 for other kinds.
    pub size: u64,
    /// Time of the last change of content. Programs can set it to any value.
    pub mtime: Timestamp,
    /// Time of the last change of content or metadata. Only the kernel sets it.
    pub ctime: Timestamp,
    /// The device of the file system, encoded as by `makedev`.
    pub dev: u64,
    /// The id of the mount; 0 if the kernel does not report it (before 5.8).
    pub mount: u64,
    /// The inode number.
    pub ino: u64,
    /// The number of hard links.
    pub nlink: u32,
    /// The number of a device file, encoded as by `makedev`; 0 for other kinds.
    pub rdev: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Whether the nodump flag is set (`chattr +d`), which excludes the file from backups.
    pub nodump: bool,
}

/// What names a file on this machine, as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The device, as `makedev` makes it.
    pub device: u64,
    /// The inode number on that device.
    pub number: u64,
}

impl Stat {
    /// The device and inode number.
    pub fn inode(&self) -> Inode {
        Inode { device: self.dev, number: self.ino }
    }

    /// Stats an open file.
    pub fn of_fd(fd: impl AsFd) -> io::Result<Stat> {
        Stat::at(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    /// Stats an entry of an open directory; does not follow a symlink.
    pub(super) fn child(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
        Stat::at(directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Like [`Stat::child`], but only from the kernel's cache: contacts no server or FUSE program.
    pub(super) fn cached_child(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        Stat::new(&retry_on_intr(|| statx(directory, name, flags, FIELDS))?)
    }

    /// A placeholder for an inaccessible directory, such as another user's FUSE mount: private, empty, on device `dev`.
    pub(super) fn of_hidden_directory(dev: u64) -> Stat {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Stat {
            kind: Kind::Directory,
            mode: 0o700,
            uid: owner.0,
            gid: owner.1,
            size: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            dev,
            mount: 0,
            ino: 0,
            nlink: 1,
            rdev: 0,
            blocks: 0,
            nodump: false,
        }
    }

    fn at(fd: impl AsFd, name: &OsStr, flags: AtFlags) -> io::Result<Stat> {
        // Not DONT_SYNC: a network file system could return stale timestamps, and a change would be missed.
        // NO_AUTOMOUNT: a stat must not trigger a mount.
        let flags = flags | AtFlags::STATX_SYNC_AS_STAT | AtFlags::NO_AUTOMOUNT;
        Stat::new(&retry_on_intr(|| statx(&fd, name, flags, FIELDS))?)
    }

    fn new(stat: &Statx) -> io::Result<Stat> {
        let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Unknown => {
                let what = format!("a file of unknown type (mode {:o})", stat.stx_mode);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        };
        let has_mount = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        let sized = matches!(kind, Kind::File | Kind::Symlink);
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Ok(Stat {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: if sized { stat.stx_size } else { 0 },
            mtime: stamp(stat.stx_mtime),
            ctime: stamp(stat.stx_ctime),
            dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            mount: if has_mount { stat.stx_mnt_id } else { 0 },
            ino: stat.stx_ino,
            nlink: stat.stx_nlink,
            rdev: if device { makedev(stat.stx_rdev_major, stat.stx_rdev_minor) } else { 0 },
            blocks: stat.stx_blocks,
            nodump: stat.stx_attributes.contains(StatxAttributes::NODUMP),
        })
    }

    /// Whether the content is presumably unchanged: kind, size, mtime, ctime and inode are equal.
    pub fn same_content_as(&self, other: &Stat) -> bool {
        self.kind == other.kind
            && self.size == other.size
            && self.mtime == other.mtime
            && self.ctime == other.ctime
            && self.ino == other.ino
    }

    /// Whether the file changed so shortly before `read_started` that a later change could have the same timestamps:
    /// see [`Stat::fresh_for`].
    pub fn is_fresh(&self, read_started: Timestamp, clock: Clock) -> bool {
        self.fresh_for(read_started, clock).is_some()
    }

    /// Whether the file changed within the last minute before `now`, so that a writer may not be finished yet.
    pub fn is_young(&self, now: Timestamp) -> bool {
        self.fresh_for(now, Clock::Servers).is_some()
    }

    /// Whether the file changed within the last hour before `now`, so that the kernel may not have written all of it to the
    /// disk.
    pub fn is_recent(&self, now: Timestamp) -> bool {
        [self.mtime, self.ctime].into_iter().any(|stamp| nanoseconds(now) - nanoseconds(stamp) < HOUR)
    }

    /// Whether the file has fewer blocks than its size needs. A compressed or inline file may have fewer too.
    pub fn may_have_holes(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }

    /// How long after `read_started` a change of the file could still have the same timestamps. `None` if it could not:
    /// mtime and ctime are older than the granularity of the clock that set them.
    ///
    /// The granularity is a tick of this machine, at least 10 ms, or 2 s if both timestamps are whole seconds. A
    /// server's clock may differ from the local one, so its granularity counts as one minute. A timestamp more than an
    /// hour after `read_started` is ignored.
    pub fn fresh_for(&self, read_started: Timestamp, clock: Clock) -> Option<Duration> {
        let whole_seconds = self.mtime.nanos == 0 && self.ctime.nanos == 0;
        let tick = match clock {
            Clock::Servers => SKEW,
            Clock::Ours if whole_seconds => TICK_COARSE,
            Clock::Ours => tick(),
        };
        let started = nanoseconds(read_started);
        let left = [self.mtime, self.ctime].into_iter().filter_map(|stamp| {
            let age = started - nanoseconds(stamp);
            (-AHEAD..=tick).contains(&age).then(|| u64::try_from(tick - age + 1).ok()).flatten()
        });
        left.max().map(Duration::from_nanos)
    }
}

/// The mount id of an entry of an open directory, or of the directory itself if `name` is empty. `None` with kernels
/// before 5.8.
pub(super) fn mount_id(directory: impl AsFd, name: &OsStr) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = retry_on_intr(|| statx(&directory, name, flags, StatxFlags::MNT_ID)).ok()?;
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

/// The clock that sets the timestamps of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The clock of this machine.
    Ours,
    /// The clock of a server, or of a FUSE program that may use a server.
    Servers,
}

/// The current time.
pub fn now() -> Timestamp {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Realtime);
    Timestamp { seconds: tv_sec, nanos: u32::try_from(tv_nsec).unwrap_or_default() }
}

/// The granularity of this kernel's file timestamps in nanoseconds.
fn tick() -> i128 {
    static TICK: OnceLock<i128> = OnceLock::new();
    *TICK.get_or_init(|| {
        let Timespec { tv_sec, tv_nsec } = clock_getres(ClockId::RealtimeCoarse);
        TICK_MIN.max(i128::from(tv_sec) * SECOND + i128::from(tv_nsec))
    })
}

fn nanoseconds(time: Timestamp) -> i128 {
    i128::from(time.seconds) * SECOND + i128::from(time.nanos)
}

fn stamp(stamp: StatxTimestamp) -> Timestamp {
    // A FUSE file system may report invalid nanoseconds.
    Timestamp { seconds: stamp.tv_sec, nanos: stamp.tv_nsec.min(999_999_999) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn with_stamps(mtime: (i64, u32), ctime: (i64, u32)) -> Stat {
        let file = tempfile::tempfile().unwrap();
        Stat {
            mtime: Timestamp { seconds: mtime.0, nanos: mtime.1 },
            ctime: Timestamp { seconds: ctime.0, nanos: ctime.1 },
            ..Stat::of_fd(file).unwrap()
        }
    }

    const STARTED: Timestamp = Timestamp { seconds: 1_000_000, nanos: 500_000_000 };

    #[test]
    fn a_file_is_fresh_if_either_timestamp_is_within_a_tick() {
        let old = (999_000, 1);
        assert!(!with_stamps(old, old).is_fresh(STARTED, Clock::Ours));
        for recent in [(1_000_000, 500_000_000), (1_000_000, 495_000_000), (1_000_000, 500_000_001), (1_000_007, 1)] {
            assert!(with_stamps(recent, old).is_fresh(STARTED, Clock::Ours), "{recent:?}");
            assert!(with_stamps(old, recent).is_fresh(STARTED, Clock::Ours), "{recent:?}");
        }
        assert!(!with_stamps((1_000_000, 400_000_000), old).is_fresh(STARTED, Clock::Ours));
    }

    #[test]
    fn timestamps_in_whole_seconds_are_fresh_for_two_seconds() {
        assert!(with_stamps((999_999, 0), (999_999, 0)).is_fresh(STARTED, Clock::Ours));
        assert!(!with_stamps((999_998, 0), (999_998, 0)).is_fresh(STARTED, Clock::Ours));
        // One timestamp with a fraction proves that the file system stores fractions.
        assert!(!with_stamps((999_999, 0), (999_999, 1)).is_fresh(STARTED, Clock::Ours));
    }

    #[test]
    fn a_timestamp_far_in_the_future_is_not_fresh() {
        assert!(!with_stamps((2_000_000, 0), (900_000, 1)).is_fresh(STARTED, Clock::Ours));
        assert!(!with_stamps((i64::MAX, 0), (i64::MIN, 0)).is_fresh(STARTED, Clock::Ours));
    }

    #[test]
    fn timestamps_of_a_server_are_fresh_for_a_minute() {
        let old = (900_000, 1);
        for (stamp, fresh) in [((999_950, 7), true), ((999_940, 500_000_000), true), ((999_930, 7), false)] {
            assert_eq!(with_stamps(stamp, old).is_fresh(STARTED, Clock::Servers), fresh, "{stamp:?}");
            assert!(!with_stamps(stamp, old).is_fresh(STARTED, Clock::Ours), "{stamp:?}");
        }
    }

    #[test]
    fn a_file_is_fresh_until_the_returned_time_has_passed() {
        let stat = with_stamps((1_000_000, 0), (999_999, 0));
        let left = stat.fresh_for(STARTED, Clock::Ours).unwrap();
        assert_eq!(left, Duration::from_millis(1500) + Duration::from_nanos(1));
        let mut later = STARTED;
        later.seconds += 1;
        assert!(stat.is_fresh(later, Clock::Ours));
        later.seconds += 1;
        assert!(!stat.is_fresh(later, Clock::Ours));
    }

    #[test]
    fn a_file_just_written_is_fresh() {
        let file = tempfile::tempfile().unwrap();
        assert!(Stat::of_fd(&file).unwrap().is_fresh(now(), Clock::Ours));
    }

    #[test]
    fn content_is_the_same_until_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let before = Stat::of_fd(&file).unwrap();
        assert_eq!((before.kind, before.size), (Kind::File, 3));
        assert!(before.same_content_as(&Stat::of_fd(&file).unwrap()));
        std::fs::write(&path, "four").unwrap();
        assert!(!before.same_content_as(&Stat::of_fd(&file).unwrap()));
        let replaced = Stat { ino: before.ino + 1, ..before.clone() };
        assert!(!before.same_content_as(&replaced));
        let renamed_over = Stat { mode: 0, uid: 7, nlink: 2, ..before.clone() };
        assert!(before.same_content_as(&renamed_over));
    }
}
