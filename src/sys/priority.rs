//! The priority of the calling thread and of the threads and programs that it starts: its nice value, and its I/O priority.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};

/// The first argument of the calls for I/O priorities: the next one is a thread, and 0 is the calling one.
const WHO_PROCESS: libc::c_int = 1;

/// The nice value, from -20 (most CPU time) to 19.
pub(crate) fn nice() -> io::Result<i32> {
    Ok(getpriority_process(None)?)
}

/// Sets the nice value. A lower one than the current one needs privileges.
pub(crate) fn set_nice(value: i32) -> io::Result<()> {
    Ok(setpriority_process(None, value)?)
}

/// The I/O priority as a number of the kernel: the class in the highest three of 16 bits, and the level in it.
pub(crate) fn io_priority() -> io::Result<libc::c_int> {
    #[expect(unsafe_code, reason = "no crate has this call")]
    // SAFETY: the arguments are integers.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
    libc::c_int::try_from(priority).ok().filter(|priority| *priority >= 0).ok_or_else(io::Error::last_os_error)
}

/// Sets the I/O priority.
pub(crate) fn set_io_priority(priority: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "no crate has this call")]
    // SAFETY: the arguments are integers.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
