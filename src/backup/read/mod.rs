//! Reading files and handing on their content.
//!
//! - [`files`]: readers take jobs and read files
//! - [`verdict`]: whether a file changed while it was read, and whether to read it again
//! - [`sink`]: chunks on their way out of a reader
//! - [`content`]: the messages from a reader
//! - [`hard_links`]: files with several names are read once
//! - [`lanes`]: where chunks wait: [`budget`] bounds their memory, [`spill`] is a temporary file used instead

pub(super) mod budget;
pub(super) mod content;
pub(super) mod files;
pub(super) mod hard_links;
pub(super) mod lanes;
pub(super) mod sink;
pub(super) mod spill;
pub(super) mod verdict;
