//! Locks on single bytes of a file, which may be beyond its end. The kernel releases them when all descriptors of the open file
//! are closed, and so also when the process is killed.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

/// Locks a byte of a file that is open for writing, until the file is closed. Fails if another open file has the lock.
pub(crate) fn take(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_on(byte)))?;
    Ok(())
}

/// Whether another open file has a lock on a byte. If the file system does not tell, there is none.
pub(crate) fn is_held(file: &File, byte: i64) -> bool {
    let mut lock = lock_on(byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
}

fn lock_on(byte: i64) -> libc::flock {
    let [l_type, l_whence] = [libc::F_WRLCK, libc::SEEK_SET].map(|number| number as libc::c_short);
    // The process must be 0 for locks of open files.
    libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_on_one_byte_until_its_file_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let open = || File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let (holder, other) = (open(), open());
        take(&holder, 7).unwrap();
        take(&other, 8).unwrap();
        take(&other, 7).unwrap_err();
        let reader = File::open(&path).unwrap();
        assert_eq!([6, 7, 8].map(|byte| is_held(&reader, byte)), [false, true, true]);
        drop(holder);
        // A program that another test is starting may have a copy of the lock.
        while is_held(&reader, 7) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(is_held(&reader, 8));
    }
}
