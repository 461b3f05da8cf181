//! The mount table: finds the mount of a file, and the mount points below a directory, so that a backup can skip a
//! mount without accessing it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::error::Error;
use super::mount::Mount;
use super::path_map::PathMap;
use super::stat::Stat;
use crate::sys::mountinfo::{self, MountInfo, TABLE};

/// The mounts visible to this process. Clones share the table.
#[derive(Debug, Clone, Default)]
pub struct MountTable {
    /// Cache of the mounts of files that were looked up.
    met: Arc<RwLock<HashMap<Key, Mount>>>,
    /// The root directory.
    top: Arc<MountPlace>,
}

/// Mount id and device of a file. The id alone is not enough, since ids are reused. With btrfs, the device differs from
/// the mount's.
type Key = (u64, u64);

/// A directory that is a mount point or contains mount points.
#[derive(Debug, Clone, Default)]
pub struct MountPlace {
    mounted: Option<Mount>,
    below: BTreeMap<OsString, Arc<MountPlace>>,
}

impl MountPlace {
    /// The visible mount on this directory.
    pub fn mounted(&self) -> Option<Mount> {
        self.mounted
    }

    /// A subdirectory; `None` if nothing is mounted on or below it.
    pub fn child(&self, name: &OsStr) -> Option<&Arc<MountPlace>> {
        self.below.get(name)
    }
}

impl MountTable {
    /// Reads the current mount table. A later mount has no [`MountPlace`]; it is looked up for its first file.
    pub fn read() -> Result<Self, Error> {
        let lines = read_lines().map_err(|e| Error::io("read", Path::new(TABLE), e))?;
        Ok(MountTable::of_lines(&lines))
    }

    fn of_lines(lines: &[MountLine]) -> Self {
        let met = lines.iter().map(|line| ((line.id, line.mount.device), line.mount)).collect();
        MountTable { met: Arc::new(RwLock::new(met)), top: Arc::new(visible(lines)) }
    }

    /// The table with the mounts of mapped paths as they are at their places.
    pub fn mapped(&self, map: &PathMap) -> Self {
        let mut top = self.top.clone();
        for (path, place) in map.pairs() {
            let (mounted, found) = self.find(&place);
            let below = found.map(|found| found.below.clone()).unwrap_or_default();
            let mut at = &mut top;
            for name in path.components() {
                if let Component::Normal(name) = name {
                    at = Arc::make_mut(at).below.entry(name.to_owned()).or_default();
                }
            }
            *at = Arc::new(MountPlace { mounted, below });
        }
        MountTable { met: self.met.clone(), top }
    }

    /// The mount that a file is on. [`LastMount`] is faster for many files.
    pub fn of(&self, stat: &Stat) -> Mount {
        let key = (stat.mount, stat.dev);
        if let Some(mount) = self.met.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return *mount;
        }
        // Reading the table succeeded before.
        let mount = find(&read_lines().unwrap_or_default(), key);
        self.met.write().unwrap_or_else(PoisonError::into_inner).insert(key, mount);
        mount
    }

    /// The mount that an absolute path is on, and its place if something is mounted on or below the path.
    pub fn find(&self, path: &Path) -> (Option<Mount>, Option<Arc<MountPlace>>) {
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

/// Finds a mount by its id. Without an id (kernels before 5.8), merges all mounts of the device: privileges count as
/// ignored only if all of them ignore them.
fn find(lines: &[MountLine], (id, device): Key) -> Mount {
    let meant = |line: &&MountLine| if id == 0 { line.mount.device == device } else { line.id == id };
    let mounts = lines.iter().filter(meant).map(|line| line.mount);
    let all = mounts.reduce(|mut one, other| {
        one.nosuid &= other.nosuid;
        one.nodev &= other.nodev;
        one
    });
    all.unwrap_or_else(|| Mount::unlisted(device))
}

/// A [`MountTable`] with a cache of one mount: consecutive files are usually on the same mount.
#[derive(Debug)]
pub struct LastMount {
    table: MountTable,
    last: Cell<(Key, Mount)>,
}

impl LastMount {
    /// A view of `table` for one thread.
    pub fn of_table(table: &MountTable) -> Self {
        LastMount { table: table.clone(), last: Cell::new(((u64::MAX, u64::MAX), Mount::unlisted(u64::MAX))) }
    }

    /// The mount that a file is on.
    pub fn of(&self, stat: &Stat) -> Mount {
        let key = (stat.mount, stat.dev);
        let (last, mount) = self.last.get();
        if last == key {
            return mount;
        }
        let mount = self.table.of(stat);
        self.last.set((key, mount));
        mount
    }
}

/// A line of the mount table.
struct MountLine {
    id: u64,
    /// The id of the mount below the mount point.
    parent: u64,
    point: PathBuf,
    mount: Mount,
}

fn read_lines() -> io::Result<Vec<MountLine>> {
    Ok(lines(&mountinfo::read()?))
}

fn lines(table: &[u8]) -> Vec<MountLine> {
    let line = |info: MountInfo<'_>| {
        let MountInfo { id, parent, .. } = info;
        MountLine { id, parent, point: info.mount_point(), mount: Mount::listed(&info) }
    };
    mountinfo::mounts(table).map(line).collect()
}

/// The tree of reachable mounts. A mount hides its siblings below its mount point.
fn visible(lines: &[MountLine]) -> MountPlace {
    let ids: HashSet<u64> = lines.iter().map(|line| line.id).collect();
    let mut children: HashMap<u64, Vec<&MountLine>> = HashMap::new();
    let mut reached: Vec<Vec<&MountLine>> = vec![Vec::new()];
    for line in lines {
        if line.id != line.parent && ids.contains(&line.parent) {
            children.entry(line.parent).or_default().push(line);
        } else {
            // A root of the visible tree.
            reached[0].push(line);
        }
    }
    let mut top = PlaceBuilder::default();
    while let Some(siblings) = reached.pop() {
        let points: HashSet<&Path> = siblings.iter().map(|line| line.point.as_path()).collect();
        for line in siblings {
            if line.point.ancestors().skip(1).any(|above| points.contains(above)) {
                continue;
            }
            top.mount(&line.point, line.mount);
            reached.extend(children.remove(&line.id));
        }
    }
    top.freeze()
}

/// Builds a [`MountPlace`].
#[derive(Default)]
struct PlaceBuilder {
    mounted: Option<Mount>,
    below: BTreeMap<OsString, PlaceBuilder>,
}

impl PlaceBuilder {
    fn mount(&mut self, point: &Path, mounted: Mount) {
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
    use std::fs::File;

    use rustix::fs::makedev;

    use super::*;

    fn table(table: &[u8]) -> MountTable {
        MountTable::of_lines(&lines(table))
    }

    fn mounted(minor: u32) -> Option<Mount> {
        Some(Mount::unlisted(makedev(0, minor)))
    }

    #[test]
    fn the_mount_of_a_file_is_found_by_its_id_or_else_by_its_device() {
        let lines = lines(
            b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            96 22 8:1 /home /a\\040b rw,nosuid - ext4 /dev/sda1 rw\n\
            97 22 8:17 / /u rw,nosuid,nodev - fuse.brackfs /dev/sdb1 rw\n\
            98 22 nonsense / /x rw - fuse.brackfs x rw\n",
        );
        assert_eq!(lines.len(), 3);
        let [one, other] = [1, 17].map(|minor| makedev(8, minor));
        assert!(!find(&lines, (22, one)).nosuid && find(&lines, (96, one)).nosuid);
        // The device of a btrfs subvolume differs from the mount's.
        assert!(find(&lines, (97, 7)).is_brackfs);
        // Without an id, nosuid must be set on all mounts of the device.
        assert!(!find(&lines, (0, one)).nosuid && find(&lines, (0, other)).nosuid);
        assert_eq!(find(&lines, (5, one)), Mount::unlisted(one));
        assert!(MountTable::of_lines(&lines).find(Path::new("/a b/c")).0.unwrap().nosuid);
    }

    #[test]
    fn places_lead_to_mounts() {
        let mounts = table(
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
    fn mapped_paths_have_the_mounts_of_their_places() {
        let mounts = table(
            b"22 1 0:1 / / rw - ext4 x rw\n\
            23 22 0:2 / /s rw - ext4 x rw\n\
            24 23 0:3 / /s/h/in rw - ext4 x rw\n\
            25 22 0:4 / /home rw - ext4 x rw\n\
            26 25 0:5 / /home/live rw - ext4 x rw\n",
        );
        let pairs = [("/home", "/s/h"), ("/home/live", "/home/live")];
        let map = PathMap::new(pairs.map(|(path, place)| (Path::new(path), Path::new(place))));
        let mapped = mounts.mapped(&map);
        for (path, minor) in
            [("/", 1), ("/home", 2), ("/home/x", 2), ("/home/in", 3), ("/home/live", 5), ("/s/h/in", 3)]
        {
            assert_eq!(mapped.find(Path::new(path)).0, mounted(minor), "{path}");
        }
        assert_eq!(mounts.find(Path::new("/home")).0, mounted(4));
    }

    #[test]
    fn hidden_mounts_are_not_found() {
        let mounts = table(
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
    fn a_mount_with_an_invisible_parent_is_a_root() {
        let mounts = table(b"30 29 0:1 / /data rw - ext4 x rw\n31 30 0:2 / /data/x rw - ext4 x rw\n");
        assert_eq!(mounts.find(Path::new("/data/x/y")).0, mounted(2));
        assert_eq!(mounts.find(Path::new("/")).0, None);
    }

    #[test]
    fn the_mount_table_of_this_machine_can_be_read() {
        let table = MountTable::read().unwrap();
        assert!(table.find(Path::new("/proc")).0.is_some());
        let stat = Stat::of_fd(File::open("/proc").unwrap()).unwrap();
        assert_eq!(table.of(&stat).foreign(stat.dev), None);
        assert_eq!(LastMount::of_table(&table).of(&stat), table.of(&stat));
        let elsewhere = Stat { mount: u64::MAX, dev: 7, ..stat };
        assert_eq!(table.of(&elsewhere), Mount::unlisted(7));
    }
}
