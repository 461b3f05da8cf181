//! Others who may write to a file while it is read.
//!
//! A file's stamps change when a call that writes begins, or when a page of a mapping is first written to; what is
//! written may come later. So that a file did not change takes more than equal stamps.

use std::fs::File;
use std::os::fd::AsFd;

use crate::sys;

/// Sees to it that from now on nobody changes a file without its stamps showing it, not even through a mapping: one who
/// has mapped it leaves no new stamps by changing pages that are not written yet, so writing them is begun. Where memory
/// is all there is (tmpfs), changes through a mapping never show.
pub fn have_changes_stamped(file: &File) {
    sys::start_writeback(file.as_fd());
}

/// Whether somebody may be about to change a file, with stamps that are set already. Where nobody can tell, the answer
/// is no.
pub fn is_open_for_writing(file: &File) -> bool {
    sys::is_open_for_writing(file.as_fd())
}
