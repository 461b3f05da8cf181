//! The kernel's mount table, as this process sees it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The type of our mounts.
const OURS: &[u8] = b"fuse.brackfs";

/// A line of the mount table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// The kernel's id of the mount.
    pub(super) id: u64,
    /// The file system's device number, as `major:minor`.
    pub(super) device: String,
    /// The mount point.
    pub(super) point: PathBuf,
    /// Whether it is a brackfs mount.
    pub(super) is_ours: bool,
}

/// Reads all mounts.
pub(super) fn mounts() -> io::Result<Vec<MountEntry>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

/// Returns the id of the mount that an open file is on.
pub(super) fn mount_id(of: impl AsFd) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", of.as_fd().as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel does not say which mount a file is on"))
}

/// Parses a line such as `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`.
fn mount(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let point = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountEntry { id, device, point, is_ours: kind == OURS })
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
        let mount = mount(b"91 29 0:52 / /mnt/a\\040b ro,nosuid shared:4 - fuse.brackfs /repo ro,user_id=0").unwrap();
        assert_eq!((mount.id, mount.device.as_str(), mount.is_ours), (91, "0:52", true));
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert!(!super::mount(b"36 35 98:0 / /mnt rw - ext4 /dev/root rw").unwrap().is_ours);
        assert_eq!((super::mount(b""), super::mount(b"1 2 3 4 5 6")), (None, None));
    }

    #[test]
    fn an_open_file_has_the_id_of_its_mount() {
        let root = fs::File::open("/").unwrap();
        let id = mount_id(&root).unwrap();
        assert!(mounts().unwrap().iter().any(|mount| mount.id == id && mount.point == Path::new("/")));
    }
}
