//! System calls that several modules use or that need `unsafe` code. The only other `unsafe` code resumes a TLS session
//! (`storage::ftp`) and belongs to a test (`source::directory`).
//!
//! - `allocator`: the memory allocator of the static program
//! - [`batch_read`]: many reads at once
//! - [`below`]: directories that are opened without following symbolic links
//! - [`byte_lock`]: locks on single bytes of a file
//! - [`durable`]: durable writes of small files
//! - [`mountinfo`]: the kernel's table of mounts
//! - [`owner`]: the owner of what root writes for another user
//! - [`priority`]: the priority of a thread
//! - [`process_group`]: programs that are ended with everything that they start
//! - [`reserve`]: space that can be given up when the disk is full
//! - [`signals`]: signals that end a program

#[cfg(feature = "static")]
mod allocator;
pub(crate) mod batch_read;
pub(crate) mod below;
pub(crate) mod bounded;
pub(crate) mod byte_lock;
pub(crate) mod durable;
pub(crate) mod mountinfo;
pub(crate) mod owner;
pub(crate) mod priority;
pub(crate) mod process_group;
pub(crate) mod reserve;
pub(crate) mod signals;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, pread, retry_on_intr};
use rustix::process::Signal;

/// Allocations from this size on, in bytes, are mapped separately and unmapped when freed.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Configures the allocator to keep the heap small.
///
/// By default glibc creates an arena for each thread, up to eight per core, and freed memory stays in its arena. Our
/// buffers are passed between threads, so every arena would grow to a similar size: use a single one. Also, glibc
/// raises its mmap threshold after the first large buffer is freed, and then puts large buffers on the heap, which
/// fragments it: fix the threshold.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_heap_small() {
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD)] {
        #[expect(unsafe_code, reason = "there is no safe way to say it")]
        // SAFETY: mallopt takes two numbers, and may be called at any time.
        let _done = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries have a single heap, so this is a no-op.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_heap_small() {}

/// Starts writeback of a file's dirty pages, without waiting for its completion.
///
/// While a page of a shared mapping is dirty, further stores to it do not update mtime or ctime. After this call the
/// next store to any page faults and updates them. If the call is not supported, only this detection of changes is
/// lost.
pub(crate) fn start_writeback(file: BorrowedFd<'_>) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: the descriptor is open as long as it is borrowed, and the call touches none of our memory.
    let _done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}

/// The folder that a file is in. That of a bare name is the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the command run in a session and a process group of its own, without a terminal: a program that asks for a password
/// fails, and does not wait for ever.
pub(crate) fn without_terminal(command: &mut Command) {
    let prepare = || Ok(rustix::process::setsid().map(drop)?);
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: between fork and exec the closure makes a system call only, and touches no memory or locks of other threads.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Makes the kernel kill the command's process when the thread that started it ends, and so also when this process is killed.
pub(crate) fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: between fork and exec the closure makes system calls only, and touches no memory or locks of other threads.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Reads up to `most` bytes of a file at `offset` with one call, and appends them to `bytes`. Returns their number; 0
/// at the end of the file.
///
/// Reads into uninitialized memory, since zeroing it first would take as long as reading.
pub(crate) fn append_at(file: BorrowedFd<'_>, offset: u64, most: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
    bytes.reserve(most);
    let room = bytes.spare_capacity_mut().get_mut(..most).unwrap_or_default();
    let read = retry_on_intr(|| pread(file, &mut *room, offset).map(|(read, _)| read.len()))?;
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: pread initialized this number of bytes after the end, within the reserved capacity.
    unsafe {
        bytes.set_len(bytes.len() + read);
    }
    Ok(read)
}

/// Whether the process was started with standard output closed. Rust opens `/dev/null` in its place before `main`, so
/// output would be lost without an error.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before `main`.
#[used]
#[expect(unsafe_code, reason = "the check must run before the standard library's own setup")]
// SAFETY: functions in this section are called before main, and their arguments may be ignored. This one makes a system
// call and stores a flag, which needs no initialized runtime.
#[unsafe(link_section = ".init_array")]
static CHECK_STDOUT: extern "C" fn() = check_stdout;

extern "C" fn check_stdout() {
    #[expect(unsafe_code, reason = "the descriptor may be closed, which safe types exclude")]
    // SAFETY: the arguments are integers.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// Syncs a directory, which makes the names in it durable. Returns false if the file system does not support this
/// (CIFS, many FUSE file systems, Windows drives under WSL); there is no alternative.
pub(crate) fn sync_folder(folder: BorrowedFd<'_>) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::fsync(folder)) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether a process has a file open for writing or mapped writable. `file` must be open for reading only. Returns
/// false if the file system or the process's rights do not allow the test.
///
/// The test is a read lease, which the kernel refuses with EAGAIN in this case. A process that opens the file for
/// writing before the lease is released is blocked until then.
pub(crate) fn is_open_for_writing(file: BorrowedFd<'_>) -> bool {
    /// SIGIO reports a process that waits for a lease, and would end this process.
    static IGNORE_SIGIO: Once = Once::new();
    let fd = file.as_raw_fd();
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: the descriptor is open as long as it is borrowed, and the other arguments are constants. No code of this
    // program handles SIGIO.
    unsafe {
        IGNORE_SIGIO.call_once(|| {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
        });
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
            libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
            return false;
        }
    }
    Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::AGAIN)
}

/// Closes inherited file descriptors, except for standard input, output and error.
///
/// Inherited descriptors are those without `FD_CLOEXEC`: with the flag they would not have been inherited, and all
/// descriptors that the program opens itself have it.
pub(crate) fn close_inherited() {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<libc::c_int> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > libc::STDERR_FILENO) {
        #[expect(unsafe_code, reason = "no safe type owns a descriptor that was inherited")]
        // SAFETY: the arguments are integers. All owned descriptors were opened with O_CLOEXEC, so none of them is
        // closed.
        unsafe {
            if libc::fcntl(number, libc::F_GETFD) == 0 {
                libc::close(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn stores_to_a_mapping_update_mtime_after_writeback() {
        // tmpfs does not update mtime for stores to a mapping.
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let kind = rustix::fs::statfs(folder.path()).unwrap().f_type;
        assert_ne!(kind, libc::TMPFS_MAGIC, "the build directory must be on a disk, not on tmpfs");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(folder.path().join("f")).unwrap();
        file.set_len(4096).unwrap();
        let modified = |name| {
            let stat = std::fs::metadata(folder.path().join(name))?;
            std::io::Result::Ok((stat.mtime(), stat.mtime_nsec()))
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        #[expect(unsafe_code, reason = "the standard library has no mappings")]
        // SAFETY: a new mapping within the length of a file that no other code uses.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        // Waits until a new time stamp differs from all earlier ones.
        let tick = || {
            let stamp = || std::fs::write(folder.path().join("clock"), "").and_then(|()| modified("clock"));
            let before = stamp().unwrap();
            while stamp().unwrap() == before {
                std::thread::yield_now();
            }
        };
        let change = |byte: u8| {
            tick();
            #[expect(unsafe_code, reason = "as above")]
            // SAFETY: within the mapping, which is never unmapped.
            unsafe {
                page.cast::<u8>().write_volatile(byte)
            };
            modified("f").unwrap()
        };
        let first = change(1);
        assert_eq!(change(2), first);
        start_writeback(file.as_fd());
        assert_ne!(change(3), first);
    }

    #[test]
    fn bytes_are_appended_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = Vec::with_capacity(100);
        bytes.extend(b"ab");
        assert_eq!(append_at(file.as_fd(), 1, 3, &mut bytes).unwrap(), 3);
        assert_eq!(bytes, b"ab123");
        assert_eq!(append_at(file.as_fd(), 8, 200, &mut bytes).unwrap(), 2);
        assert_eq!(append_at(file.as_fd(), 10, 1, &mut bytes).unwrap(), 0);
        assert_eq!(append_at(file.as_fd(), 0, 0, &mut bytes).unwrap(), 0);
        assert_eq!(bytes, b"ab12389");
    }

    #[test]
    fn a_file_open_for_writing_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(is_open_for_writing(reader.as_fd()));
        drop(writer);
        assert!(!is_open_for_writing(reader.as_fd()));
        // The lease was released: opening the file does not block.
        File::create(&path).unwrap();
    }
}
