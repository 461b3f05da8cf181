//! The properties of one mount: whether it is a brackfs mount (which a backup must not enter), which clock sets its
//! timestamps, whether a server or a user controls its content, and which privileges it ignores.

use rustix::fs::makedev;

use super::stat::{Clock, Stat};
use crate::format::{Digest, Kind};
use crate::sys::mountinfo::MountInfo;

/// Types of network file systems.
const REMOTE: [&[u8]; 13] = [
    b"nfs",
    b"nfs4",
    b"cifs",
    b"smb3",
    b"smbfs",
    b"ceph",
    b"9p",
    b"virtiofs",
    b"afs",
    b"coda",
    b"lustre",
    b"gpfs",
    b"orangefs",
];
/// Set in every number of a foreign file system, and in no device number of Linux.
const FOREIGN: u64 = 1 << 63;

/// The properties of a mount that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// The clock that sets the timestamps of its files.
    pub clock: Clock,
    /// Whether it is a mount of a brackfs repository.
    pub is_brackfs: bool,
    /// Whether set-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Whether device files cannot be opened.
    pub nodev: bool,
    /// The file system's device. It is the same for all mounts of one file system; the device in a stat may differ
    /// (btrfs).
    pub device: u64,
    /// A number for the mount if a server or a FUSE program controls its content.
    foreign: Option<u64>,
}

impl Mount {
    /// A local mount that is not in the mount table.
    pub(super) fn unlisted(device: u64) -> Self {
        Mount { clock: Clock::Ours, is_brackfs: false, nosuid: false, nodev: false, device, foreign: None }
    }

    /// A number that identifies the device `dev` on this mount, if the mount is foreign: a server or a FUSE program
    /// controls its content. Inode numbers and times of a foreign file system are not trusted for other file systems,
    /// and its device number may be reused. So the number is a hash of type, source, root, mount point and mounting
    /// user. It is the same after a remount and distinct from all device numbers: see [`is_foreign`].
    pub fn foreign(&self, dev: u64) -> Option<u64> {
        let number = self.foreign?;
        // A server may show several file systems in one mount.
        let apart = if dev == self.device { 0 } else { dev.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        Some(number ^ apart | FOREIGN)
    }

    /// The properties of this mount that matter for an entry on it. `device` is the device of the entry's directory.
    pub fn entry_mount(&self, stat: &Stat, device: u64) -> EntryMount {
        let unprivileged = match stat.kind {
            Kind::File => self.nosuid,
            Kind::CharDevice | Kind::BlockDevice => self.nodev,
            Kind::Directory | Kind::Symlink | Kind::Fifo | Kind::Socket => false,
        };
        let number = if stat.dev == device || stat.kind == Kind::Directory { None } else { self.foreign(stat.dev) };
        EntryMount(number.unwrap_or_default() & !EntryMount::UNPRIVILEGED | u64::from(unprivileged))
    }

    /// The properties of a mount in the table.
    pub(super) fn listed(info: &MountInfo<'_>) -> Self {
        let MountInfo { kind, source, root, point, device: (major, minor), .. } = *info;
        let user = info.user();
        let users = user.is_some_and(|user| user != b"0");
        let fuse = kind == b"fuse" || kind.starts_with(b"fuse.");
        let remote = fuse || REMOTE.contains(&kind);
        let foreign = (remote || users).then(|| {
            let what = [kind, source, root, point, user.unwrap_or_default()].join(&0);
            Digest::of(&what).head() as u64
        });
        Mount {
            clock: if remote { Clock::Servers } else { Clock::Ours },
            is_brackfs: info.is_brackfs(),
            nosuid: users || info.has_flag("nosuid"),
            nodev: users || info.has_flag("nodev"),
            device: makedev(major, minor),
            foreign,
        }
    }
}

/// The properties of an entry's mount that change detection compares, in one number that is nearly always 0. Bit 0: the
/// mount ignores the entry's privileges. The other bits: the [foreign](Mount::foreign) file system that is mounted on
/// the entry itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryMount(pub u64);

impl EntryMount {
    const UNPRIVILEGED: u64 = 1;

    /// Whether the set-id bits and capabilities of this file, or the number of this device, have no effect.
    pub fn is_unprivileged(self) -> bool {
        self.0 & EntryMount::UNPRIVILEGED != 0
    }

    /// Whether both are on the same file system, regardless of their privileges.
    pub fn same_file_system_as(self, other: EntryMount) -> bool {
        (self.0 ^ other.0) & !EntryMount::UNPRIVILEGED == 0
    }
}

/// Whether a number identifies a foreign file system: see [`Mount::foreign`].
pub fn is_foreign(number: u64) -> bool {
    number & FOREIGN != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mountinfo;

    const MOUNTS: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        90 22 0:51 / /mnt/a\\040b ro,nosuid,nodev shared:3 master:2 - fuse.brackfs brackfs ro,user_id=0\n\
        91 22 0:300 / /mnt/- ro - fuse.brackfs /repo ro\n\
        92 22 0:52 / /fuse.brackfs rw - fuse.sshfs fuse.brackfs rw,user_id=1000,group_id=5\n\
        \n\
        93 22 nonsense / /x rw - fuse.brackfs x rw\n\
        94 22 0:53\n\
        95 22 0:54 / /n rw - nfs4 server:/ rw\n\
        96 22 8:1 /home /h rw,nosuid - ext4 /dev/sda1 rw\n\
        97 22 8:17 / /u rw,nosuid,nodev - fuseblk /dev/sdb1 rw,user_id=0\n";

    fn at(wanted: u64) -> Mount {
        Mount::listed(&mountinfo::mounts(MOUNTS).find(|info| info.id == wanted).unwrap())
    }

    #[test]
    fn mounts_are_recognized_by_their_type() {
        assert!(at(90).is_brackfs && at(91).is_brackfs);
        assert!(![22, 92, 95].iter().any(|id| at(*id).is_brackfs));
        assert_eq!([22, 96, 97].map(|id| at(id).clock), [Clock::Ours; 3]);
        assert_eq!([90, 92, 95].map(|id| at(id).clock), [Clock::Servers; 3]);
    }

    #[test]
    fn a_mount_ignores_privileges_by_its_options_or_if_a_user_mounted_it() {
        let ignored = |mount: Mount| (mount.nosuid, mount.nodev);
        assert_eq!(ignored(at(22)), (false, false));
        assert_eq!(ignored(at(96)), (true, false));
        assert_eq!(ignored(at(90)), (true, true));
        // Mounted without these options, but by an ordinary user.
        assert_eq!(ignored(at(92)), (true, true));
        assert_eq!(ignored(at(97)), (true, true));
    }

    #[test]
    fn foreign_file_systems_have_numbers_that_no_device_has() {
        let number = |id, dev| at(id).foreign(dev);
        assert_eq!([22, 96, 97].map(|id| number(id, 7)), [None; 3]);
        let foreign = [number(90, makedev(0, 51)), number(92, makedev(0, 52)), number(95, makedev(0, 54))];
        assert!(foreign.iter().all(|number| number.is_some_and(is_foreign)));
        assert!(foreign[0] != foreign[1] && foreign[1] != foreign[2]);
        // Another file system of the same server.
        assert_ne!(number(95, makedev(0, 54)), number(95, makedev(0, 55)));
        // A remount has a different id and device.
        let again = MountInfo::parse(b"99 22 0:77 / /n rw - nfs4 server:/ rw").unwrap();
        assert_eq!(Mount::listed(&again).foreign(makedev(0, 77)), number(95, makedev(0, 54)));
    }
}
