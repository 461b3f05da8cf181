//! The kernel's table of mounts, as this process sees it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The path of the table.
pub(crate) const TABLE: &str = "/proc/self/mountinfo";
/// The subtype of brackfs file systems. Their type is `fuse.` and the subtype.
pub(crate) const SUBTYPE: &str = "brackfs";

/// A line of the table. Fields are as in the line: spaces, tabs, newlines and backslashes are octal escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountInfo<'t> {
    /// The id of the mount.
    pub(crate) id: u64,
    /// The id of the mount that has the mount point.
    pub(crate) parent: u64,
    /// Major and minor device number of the file system.
    pub(crate) device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub(crate) root: &'t [u8],
    /// The mount point.
    pub(crate) point: &'t [u8],
    /// The type of the file system.
    pub(crate) kind: &'t [u8],
    /// The source of the file system, such as a device.
    pub(crate) source: &'t [u8],
    flags: &'t [u8],
    options: &'t [u8],
}

impl<'t> MountInfo<'t> {
    /// Parses a line such as `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`. The number of fields before
    /// the single dash varies.
    pub(crate) fn parse(line: &'t [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let (major, minor) = str::from_utf8(fields.next()?).ok()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let (root, point, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source, options) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
        Some(MountInfo { id, parent, device, root, point, kind, source, flags, options })
    }

    /// Whether it is a mount of brackfs.
    pub(crate) fn is_brackfs(&self) -> bool {
        self.kind.strip_prefix(b"fuse.") == Some(SUBTYPE.as_bytes())
    }

    /// The mount point, without escapes.
    pub(crate) fn mount_point(&self) -> PathBuf {
        unescape(self.point)
    }

    /// The directory of the file system that is mounted, without escapes.
    pub(crate) fn mounted_folder(&self) -> PathBuf {
        unescape(self.root)
    }

    /// The source of the file system, without escapes.
    pub(crate) fn source_path(&self) -> PathBuf {
        unescape(self.source)
    }

    /// Whether the mount has this flag, such as `nosuid`.
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(|byte| *byte == b',').any(|there| there == flag.as_bytes())
    }

    /// The user that mounted a FUSE file system, as a number.
    pub(crate) fn user(&self) -> Option<&'t [u8]> {
        self.options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"user_id="))
    }
}

/// Reads the table.
pub(crate) fn read() -> io::Result<Vec<u8>> {
    fs::read(TABLE)
}

/// Parses a table. Skips lines that are not as documented.
pub(crate) fn mounts(table: &[u8]) -> impl Iterator<Item = MountInfo<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(MountInfo::parse)
}

/// Returns the id of the mount that an open file is on.
pub(crate) fn mount_id(of: impl AsFd) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", of.as_fd().as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel does not say which mount a file is on"))
}

fn number(field: &[u8]) -> Option<u64> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// Decodes a path of the table, in which spaces, tabs, newlines and backslashes are octal escapes.
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
    use std::path::Path;

    use super::*;

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c\\012"), Path::new("/a b\\c\n"));
        assert_eq!(unescape(b"/a\\9"), Path::new("/a\\9"));
    }

    #[test]
    fn lines_are_parsed() {
        let line = b"91 29 0:52 / /mnt/a\\040b ro,nosuid shared:4 master:2 - fuse.brackfs /repo ro,user_id=7";
        let mount = MountInfo::parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (91, 29, (0, 52)));
        assert_eq!((mount.root, mount.kind, mount.source), (&b"/"[..], &b"fuse.brackfs"[..], &b"/repo"[..]));
        assert_eq!(mount.mount_point(), Path::new("/mnt/a b"));
        assert!(mount.is_brackfs() && mount.has_flag("nosuid") && !mount.has_flag("suid"));
        assert_eq!(mount.user(), Some(&b"7"[..]));
        let other = MountInfo::parse(b"36 35 98:0 / /fuse.brackfs rw - ext4 fuse.brackfs rw").unwrap();
        assert!(!other.is_brackfs());
        assert_eq!(other.user(), None);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let table = b"\n1 2 3 4 5 6\n93 22 nonsense / /x rw - fuse.brackfs x rw\n94 22 0:53\n\
            22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        assert_eq!(mounts(table).map(|mount| mount.id).collect::<Vec<_>>(), [22]);
    }

    #[test]
    fn an_open_file_has_the_id_of_its_mount() {
        let root = fs::File::open("/").unwrap();
        let id = mount_id(&root).unwrap();
        let table = read().unwrap();
        assert!(mounts(&table).any(|mount| mount.id == id && mount.mount_point() == Path::new("/")));
    }
}
