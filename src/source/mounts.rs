//! What is mounted: our own mounts, since a backup that went into one would back up backups, file systems whose stamps
//! are not made by this machine, and where mounts are, so that one that is left out need not be asked anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

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
    /// The place `/`.
    top: Arc<MountPlace>,
}

/// A place in the tree of directories at or below which something is mounted.
#[derive(Debug, Default)]
pub struct MountPlace {
    mounted: Option<Mounted>,
    below: BTreeMap<OsString, Arc<MountPlace>>,
}

/// What is mounted at a place, and not hidden by another mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted {
    /// The file system's device. Equal for all mounts of one file system, also where a stat shows others (btrfs).
    pub device: u64,
    /// It is a mount of a brackfs repository.
    pub is_brackfs: bool,
}

impl MountPlace {
    /// What is mounted here.
    pub fn mounted(&self) -> Option<Mounted> {
        self.mounted
    }

    /// The place of this name below it. None: nothing is mounted there or below.
    pub fn child(&self, name: &OsStr) -> Option<&Arc<MountPlace>> {
        self.below.get(name)
    }
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
        let mut lines = Vec::new();
        for line in table.split(b'\n') {
            let line = line?;
            let Some(line) = Line::parse(&line) else { continue };
            if line.mounted.is_brackfs {
                mounts.ours.insert(line.mounted.device);
            }
            if line.is_remote {
                mounts.remote.insert(line.mounted.device);
            }
            lines.push(line);
        }
        mounts.top = Arc::new(visible(&lines));
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

    /// Goes to an absolute path: what is mounted at it or else above it, and the place, if something is mounted there or
    /// below.
    pub fn find(&self, path: &Path) -> (Option<Mounted>, Option<Arc<MountPlace>>) {
        let mut place = Some(&self.top);
        let mut mounted = self.top.mounted;
        for name in path.components() {
            if let Component::Normal(name) = name {
                place = place.and_then(|place| place.child(name));
                mounted = place.and_then(|place| place.mounted).or(mounted);
            }
        }
        (mounted, place.cloned())
    }
}

/// A line of the table.
struct Line {
    id: u64,
    /// The mount that it is mounted on.
    parent: u64,
    point: PathBuf,
    mounted: Mounted,
    is_remote: bool,
}

impl Line {
    /// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`: any number of fields stand before the
    /// lone dash, the type behind it. Blanks in a field are escaped.
    fn parse(line: &[u8]) -> Option<Line> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut text = || str::from_utf8(fields.next()?).ok();
        let (id, parent, device) = (text()?.parse().ok()?, text()?.parse().ok()?, text()?);
        let (major, minor) = device.split_once(':')?;
        let device = makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(1)?)));
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let is_remote = REMOTE.contains(&kind) || kind == b"fuse" || kind.starts_with(b"fuse.");
        Some(Line { id, parent, point, mounted: Mounted { device, is_brackfs: kind == OURS }, is_remote })
    }
}

/// Replaces `\` and three octal digits by the byte that they stand for.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let code = rest.get(1..4).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

/// The tree of mounts that can be reached. A mount hides those that its parent has below the same place.
fn visible(lines: &[Line]) -> MountPlace {
    let ids: HashSet<u64> = lines.iter().map(|line| line.id).collect();
    let mut children: HashMap<u64, Vec<&Line>> = HashMap::new();
    let mut reached: Vec<Vec<&Line>> = vec![Vec::new()];
    for line in lines {
        match line.id != line.parent && ids.contains(&line.parent) {
            true => children.entry(line.parent).or_default().push(line),
            // The first that this process can see.
            false => reached[0].push(line),
        }
    }
    let mut top = Place::default();
    while let Some(siblings) = reached.pop() {
        let points: HashSet<&Path> = siblings.iter().map(|line| line.point.as_path()).collect();
        for line in siblings {
            if line.point.ancestors().skip(1).any(|above| points.contains(above)) {
                continue;
            }
            top.mount(&line.point, line.mounted);
            reached.extend(children.remove(&line.id));
        }
    }
    top.freeze()
}

/// A [`MountPlace`] that is being made.
#[derive(Default)]
struct Place {
    mounted: Option<Mounted>,
    below: BTreeMap<OsString, Place>,
}

impl Place {
    fn mount(&mut self, point: &Path, mounted: Mounted) {
        let names = point.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let place = names.fold(self, |place, name| place.below.entry(name.to_owned()).or_default());
        place.mounted = Some(mounted);
    }

    fn freeze(self) -> MountPlace {
        let below = self.below.into_iter().map(|(name, place)| (name, Arc::new(place.freeze()))).collect();
        MountPlace { mounted: self.mounted, below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(table: &[u8]) -> MountTable {
        MountTable::parse(table).unwrap()
    }

    fn mounted(minor: u32) -> Option<Mounted> {
        Some(Mounted { device: makedev(0, minor), is_brackfs: false })
    }

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
        let mounts = parse(table);
        assert!(mounts.is_brackfs(makedev(0, 51)));
        assert!(mounts.is_brackfs(makedev(0, 300)));
        assert!(!mounts.is_brackfs(makedev(0, 52)) && !mounts.is_brackfs(makedev(8, 1)));
        assert_eq!(mounts.ours.len(), 2);
        assert_eq!(mounts.clock(makedev(8, 1)), Clock::Ours);
        assert_eq!([52, 54].map(|minor| mounts.clock(makedev(0, minor))), [Clock::Servers; 2]);
        let ours = Mounted { device: makedev(0, 51), is_brackfs: true };
        assert_eq!(mounts.find(Path::new("/mnt/a b")).0, Some(ours));
    }

    #[test]
    fn places_lead_to_mounts() {
        let mounts = parse(
            b"22 1 0:1 / / rw - ext4 x rw\n\
            23 22 0:2 / /a/b rw - ext4 x rw\n\
            24 23 0:3 / /a/b/c rw - ext4 x rw\n",
        );
        for (path, minor, is_place) in [
            ("/", 1, true),
            ("/a", 1, true),
            ("/a/b", 2, true),
            ("/a/b/d", 2, false),
            ("/a/b/c", 3, true),
            ("/x", 1, false),
        ] {
            let (found, place) = mounts.find(Path::new(path));
            assert_eq!((found, place.is_some()), (mounted(minor), is_place), "{path}");
        }
        let (_, a) = mounts.find(Path::new("/a"));
        let b = a.as_ref().unwrap().child(OsStr::new("b")).unwrap();
        assert_eq!((a.as_ref().unwrap().mounted(), b.mounted()), (None, mounted(2)));
        assert!(b.child(OsStr::new("d")).is_none());
    }

    #[test]
    fn hidden_mounts_are_not_there() {
        let mounts = parse(
            b"22 1 0:1 / / rw - ext4 x rw\n\
            23 22 0:2 / /a/b rw - ext4 x rw\n\
            24 22 0:3 / /a rw - ext4 over-the-one-above rw\n\
            25 24 0:4 / /a rw - ext4 on-top rw\n\
            26 24 0:5 / /a/c rw - ext4 below-that rw\n\
            27 25 0:6 / /a/d rw - ext4 x rw\n",
        );
        for (path, minor) in [("/a", 4), ("/a/b", 4), ("/a/c", 4), ("/a/d", 6)] {
            assert_eq!(mounts.find(Path::new(path)).0, mounted(minor), "{path}");
        }
    }

    #[test]
    fn mounts_whose_parent_is_not_seen_are_first() {
        let mounts = parse(b"30 29 0:1 / /data rw - ext4 x rw\n31 30 0:2 / /data/x rw - ext4 x rw\n");
        assert_eq!(mounts.find(Path::new("/data/x/y")).0, mounted(2));
        assert_eq!(mounts.find(Path::new("/")).0, None);
    }

    #[test]
    fn the_table_of_this_machine_can_be_read() {
        assert!(MountTable::read().unwrap().find(Path::new("/proc")).0.is_some());
    }
}
