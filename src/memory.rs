//! How the process takes memory from the system: the one place with `unsafe` code.

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
