//! FUSE mounts that no program serves. They need root.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A mount that never answers, or is dead. It is unmounted when dropped.
pub struct Silent {
    path: PathBuf,
    /// Keeps requests waiting: the kernel ends them when it is closed.
    device: Option<File>,
}

impl Silent {
    /// A mount at an empty directory whose program takes no request: every call waits, until it is killed.
    pub fn mount(at: &Path) -> Silent {
        Silent::of_type("fuse.silent", at, 0)
    }

    /// A mount whose program was killed: every call fails with ENOTCONN.
    pub fn dead(at: &Path) -> Silent {
        let mut mounted = Silent::mount(at);
        mounted.device = None;
        mounted
    }

    /// A mount of another user that is not shared: every call fails with EACCES.
    pub fn private(at: &Path) -> Silent {
        Silent::of_type("fuse.silent", at, 12_345)
    }

    /// A mount of brackfs's own that never answers.
    pub fn brackfs(at: &Path) -> Silent {
        Silent::of_type("fuse.brackfs", at, 0)
    }

    fn of_type(name: &str, at: &Path, user: u32) -> Silent {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id={user},group_id=0", device.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("options");
        mount("silent", at, name, MountFlags::empty(), options.as_c_str()).expect("root may mount");
        Silent { path: at.to_owned(), device: Some(device) }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        drop(self.device.take());
    }
}
