//! What is asked of the system and no safe crate offers: the one place with `unsafe` code.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Lets all threads share one heap.
///
/// glibc gives each thread a heap of its own, up to eight for each core, and each of them keeps what was freed in it.
/// Buffers here go from thread to thread, so that every heap would come to hold a little of everything.
#[cfg(target_env = "gnu")]
pub(crate) fn share_one_heap() {
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: mallopt takes two numbers, and may be called at any time.
    let _done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have one heap as it is.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn share_one_heap() {}

/// Has the system begin to write what a file has in memory only, without waiting for the disk.
///
/// Whoever has the file mapped leaves no new stamps as long as he changes pages that are not written yet. From here on
/// his next change of any page leaves some. Where that can't be asked for nothing is lost but this.
pub(crate) fn begin_to_write(file: BorrowedFd<'_>) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: the descriptor is open as long as it is borrowed, and the call touches none of our memory.
    let _done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}
