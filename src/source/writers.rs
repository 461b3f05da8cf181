//! Detection of concurrent writers.
//!
//! A file's timestamps change when a write call begins, or at the first store to a clean page of a shared mapping; the
//! data may follow later. So equal timestamps do not prove that a file did not change.

use std::fs::File;
use std::os::fd::AsFd;

use crate::sys;

/// Ensures that later changes of a file update its timestamps, even changes through a shared mapping: stores to dirty
/// pages do not update them, so writeback of dirty pages is started. On tmpfs, changes through a mapping never update
/// the timestamps.
pub fn have_changes_stamped(file: &File) {
    sys::start_writeback(file.as_fd());
}

/// Whether a process has a file open for writing, so that it may still change without new timestamps. False if the
/// system cannot tell.
pub fn is_open_for_writing(file: &File) -> bool {
    sys::is_open_for_writing(file.as_fd())
}
