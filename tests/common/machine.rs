//! Programs and abilities that tests need from the machine. A test that cannot run is never skipped: it fails and names
//! the missing part.

use std::ffi::CStr;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::yield_now;
use std::time::Instant;

use rustix::fs::XattrFlags;
use rustix::mount::MountFlags;

use super::wait::LIMIT;

/// Debian packages of programs, where their names differ.
const PACKAGES: [(&str, &str); 25] = [
    ("btrfs", "btrfs-progs"),
    ("cat", "coreutils"),
    ("chattr", "e2fsprogs"),
    ("cp", "coreutils"),
    ("fusermount3", "fuse3"),
    ("gpg", "gnupg"),
    ("groff", "groff-base"),
    ("lowntfs-3g", "ntfs-3g"),
    ("lsattr", "e2fsprogs"),
    ("mkfifo", "coreutils"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.ntfs", "ntfs-3g"),
    ("prlimit", "util-linux"),
    ("ps", "procps"),
    ("setcap", "libcap2-bin"),
    ("setfacl", "acl"),
    ("setfattr", "attr"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("sleep", "coreutils"),
    ("systemd-analyze", "systemd"),
    ("timeout", "coreutils"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
];

/// Unwraps a step that not every machine allows.
#[track_caller]
pub fn need<T, E: Display>(result: Result<T, E>, what: &str) -> T {
    result.unwrap_or_else(|e| panic!("this test needs {what}: {e}"))
}

/// Starts a program. If it is not installed, the test fails with the name of its Debian package.
#[track_caller]
pub fn spawn(command: &mut Command) -> Child {
    let start = Instant::now();
    let spawned = loop {
        match command.spawn() {
            // While a copy of a program is written, programs that other tests start inherit the open file for a moment.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && start.elapsed() < LIMIT => yield_now(),
            spawned => break spawned,
        }
    };
    match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
            let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(&*program, |(_, package)| package);
            panic!("this test needs {program} (Debian package {package}): {command:?}: {error}")
        }
        Err(error) => panic!("cannot run {command:?}: {error}"),
    }
}

/// Runs a program that must succeed.
#[track_caller]
pub fn succeed(command: &mut Command) {
    let status = spawn(command).wait().expect("waiting for a child");
    assert!(status.success(), "{command:?}: {status}");
}

/// Makes a certificate for this machine, which is its own authority, and its secret key.
#[track_caller]
pub fn make_certificate(certificate: &Path, key: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split(' '));
    openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    succeed(openssl.arg("-keyout").arg(key).arg("-out").arg(certificate).stderr(Stdio::null()));
}

/// Copies a file or a directory with all attributes to a path that does not exist.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-a").args([from, to]));
}

/// Fails if a tmpfs has no attributes for users.
#[track_caller]
pub fn need_user_attributes(tmpfs: &Path) {
    let name = "user.brackfs-test";
    let set = rustix::fs::setxattr(tmpfs, name, b"", XattrFlags::empty());
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    need(set, &format!("Linux 6.6 or later, for user.* attributes on tmpfs (this is {kernel})"));
    rustix::fs::removexattr(tmpfs, name).expect("it was just set");
}

/// Mounts a tmpfs with these options.
#[track_caller]
pub fn mount_tmpfs(at: &Path, options: &CStr) {
    need(rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), options), "root, to mount a tmpfs");
}
