//! Talks to systemd: whether messages go to its journal, and the status of the service that this process is.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::LazyLock;

use rustix::fs::fstat;

/// The variable with the device and inode of the journal's socket; see sd-daemon(3).
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";
/// The variable with the address of the service manager's socket; see sd_notify(3).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Whether standard error is a stream to the journal. The variable alone may be inherited by a process whose output goes elsewhere.
pub(super) fn has_journal() -> bool {
    static HAS_JOURNAL: LazyLock<bool> = LazyLock::new(|| {
        let stat = fstat(rustix::stdio::stderr());
        let stream = std::env::var(JOURNAL_STREAM);
        stat.is_ok_and(|stat| stream.is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino)))
    });
    *HAS_JOURNAL
}

/// The service manager's socket, if there is one.
static MANAGER: LazyLock<Option<(UnixDatagram, SocketAddr)>> = LazyLock::new(|| {
    let address = address(&std::env::var_os(NOTIFY_SOCKET)?)?;
    let socket = UnixDatagram::unbound().ok()?;
    // A manager that does not answer must not stop a backup.
    socket.set_nonblocking(true).ok()?;
    Some((socket, address))
});

/// Whether the service manager shows a status of this process.
pub(super) fn takes_status() -> bool {
    MANAGER.is_some()
}

/// Sets the status that `systemctl status` shows; `text` is one line. Errors are ignored.
pub(super) fn set_status(text: &str) {
    if let Some((socket, manager)) = &*MANAGER {
        let _ = socket.send_to_addr(format!("STATUS={text}").as_bytes(), manager);
    }
}

/// The address of a socket: a path, or an abstract name after an @.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        let address = |name: &str| address(OsStr::new(name));
        assert_eq!(address("/run/systemd/notify").unwrap().as_pathname(), Some("/run/systemd/notify".as_ref()));
        assert_eq!(address("@/org/x").unwrap().as_abstract_name(), Some(&b"/org/x"[..]));
        assert!(address("").is_none() && address("vsock:2:1234").is_none());
    }
}
