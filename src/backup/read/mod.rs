//! Reading files and handing on their content.
//!
//! - [`jobs`]: what readers are asked to do
//! - [`files`]: readers take jobs and read files
//! - [`early`]: small files that keep still are read several at once; [`opened`]: all others
//! - [`verdict`]: whether a file changed while it was read, and whether to read it again
//! - [`sink`]: chunks on their way out of a reader
//! - [`content`]: the messages from a reader
//! - [`hard_links`]: files with several names are read once
//! - [`lanes`]: where chunks wait: [`budget`] bounds their memory, [`spill`] is a temporary file used instead

pub(super) mod budget;
pub(super) mod content;
mod early;
pub(super) mod files;
pub(super) mod hard_links;
pub(super) mod jobs;
pub(super) mod lanes;
mod opened;
pub(super) mod sink;
pub(super) mod spill;
pub(super) mod verdict;
