//! What is mounted: our own mounts, since a backup that went into one would back up backups, and file systems whose
//! stamps are not made by this machine.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use rustix::fs::makedev;

use super::{Clock, Error};

const TABLE: &str = "/proc/self/mountinfo";
/// What a mount of ours is called there.
const OURS: &[u8] = b"fuse.brackfs";
/// Types of file systems that lie on a server, beside all of FUSE, behind which anything may be.
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

/// The mounts that this process saw when it looked.
#[derive(Debug, Clone, Default)]
pub struct MountTable {
    ours: HashSet<u64>,
    remote: HashSet<u64>,
}

impl MountTable {
    /// Reads the table of this moment. Mounts that come later are not in it.
    pub fn read() -> Result<Self, Error> {
        let path = Path::new(TABLE);
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        MountTable::parse(BufReader::new(file)).map_err(|e| Error::io("read", path, e))
    }

    fn parse(table: impl BufRead) -> io::Result<Self> {
        let mut mounts = MountTable::default();
        for line in table.split(b'\n') {
            let line = line?;
            let Some((device, kind)) = device_and_type(&line) else { continue };
            if kind == OURS {
                mounts.ours.insert(device);
            }
            if REMOTE.contains(&kind) || kind == b"fuse" || kind.starts_with(b"fuse.") {
                mounts.remote.insert(device);
            }
        }
        Ok(mounts)
    }

    /// Whether a device, as [`Stat::dev`](super::Stat::dev) has it, is a mount of a brackfs repository.
    pub fn is_brackfs(&self, dev: u64) -> bool {
        self.ours.contains(&dev)
    }

    /// Whose clock stamps the files on a device.
    pub fn clock(&self, dev: u64) -> Clock {
        match self.remote.contains(&dev) {
            true => Clock::Servers,
            false => Clock::Ours,
        }
    }
}

/// The device of a line of the table, and the type of the file system.
///
/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`: any number of fields stand before the
/// lone dash, the type behind it. Blanks in a field are escaped.
fn device_and_type(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let (major, minor) = device.split_once(':')?;
    Some((makedev(major.parse().ok()?, minor.parse().ok()?), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_known_by_their_type() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            90 22 0:51 / /mnt/a\\040b ro,nosuid,nodev shared:3 master:2 - fuse.brackfs brackfs ro,user_id=0\n\
            91 22 0:300 / /mnt/- ro - fuse.brackfs /repo ro\n\
            92 22 0:52 / /fuse.brackfs rw - fuse.sshfs fuse.brackfs rw\n\
            \n\
            93 22 nonsense / /x rw - fuse.brackfs x rw\n\
            94 22 0:53\n\
            95 22 0:54 / /n rw - nfs4 server:/ rw\n";
        let mounts = MountTable::parse(&table[..]).unwrap();
        assert!(mounts.is_brackfs(makedev(0, 51)));
        assert!(mounts.is_brackfs(makedev(0, 300)));
        assert!(!mounts.is_brackfs(makedev(0, 52)) && !mounts.is_brackfs(makedev(8, 1)));
        assert_eq!(mounts.ours.len(), 2);
        assert_eq!(mounts.clock(makedev(8, 1)), Clock::Ours);
        assert_eq!([52, 54].map(|minor| mounts.clock(makedev(0, minor))), [Clock::Servers; 2]);
    }

    #[test]
    fn the_table_of_this_machine_can_be_read() {
        MountTable::read().unwrap();
    }
}
