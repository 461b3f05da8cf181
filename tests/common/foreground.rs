//! A mount whose program is a child of the test: it can be signalled, listened to and measured.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};

use super::{Site, is_mounted};

/// Longer than a read waits for an unavailable repository, even on a busy machine.
pub const BOUND: Duration = Duration::from_secs(20);

/// A mount that stays in the foreground.
pub struct Foreground {
    pub child: Child,
    pub mnt: PathBuf,
    said: PathBuf,
}

/// Resources that a process uses.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Number of open files.
    pub files: usize,
    pub threads: u64,
    /// Memory that is not paged out.
    pub kibibytes: u64,
}

impl Foreground {
    pub fn of(site: &Site, extra: &[&str]) -> Foreground {
        let (mnt, said) = (site.mnt(), site.path().join("said"));
        let mut command = site.command(&["mount", "--foreground"]);
        command.args(extra).arg(&mnt).stderr(File::create(&said).expect("a log")).stdout(Stdio::null());
        let mut mounted = Foreground { child: command.spawn().expect("brackfs"), mnt, said };
        mounted.until("it is mounted", |mounted| {
            assert!(mounted.is_running(), "it ended: {}", mounted.said());
            // Not earlier, since the program first looks at the mount itself.
            mounted.said().contains("mounted on")
        });
        assert!(is_mounted(&mounted.mnt));
        mounted
    }

    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Foreground) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < BOUND, "{what}: not yet\n{}", self.said());
            sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("the log")
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    pub fn latest(&self) -> PathBuf {
        self.mnt.join("source/latest").canonicalize().expect("source/latest")
    }

    pub fn usage(&self) -> Usage {
        let process = Path::new("/proc").join(self.child.id().to_string());
        let status = fs::read_to_string(process.join("status")).expect("its status");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().trim_end_matches(" kB").parse().expect(name)
        };
        Usage {
            files: fs::read_dir(process.join("fd")).expect("its files").count(),
            threads: number("Threads:"),
            kibibytes: number("VmRSS:"),
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a file so that the program answers every read, instead of the page cache.
pub fn open_direct(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)
}

pub fn read_direct(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
