//! The backup engine: from a live file system to a snapshot, in bounded memory.
//!
//! ```text
//! helpers ─► walk ─► events ─────────────────► assembler ─► sealers ─► storer ─► target
//!              └───► jobs ─► readers ─► content ─┘ ▲ ▲        └────────┴─ places ─┐
//!                                        catalog ──┘ └───────────────────────────┘
//! ```
//!
//! - [`options`], [`summary`], [`error`]: input and output
//! - [`invocation`]: one backup from start to end
//! - [`pipeline`]: starts the walk and the readers, and hands their events to a follower
//! - [`snapshot`]: the follower of a backup; [`preview`]: that of a dry run; [`glance`]: that of a look for changes
//! - [`shrink`]: the guard against a source that lost most of its files
//! - [`walk`]: finds out which directories and files there are, and which of them changed
//! - [`read`]: reads files
//! - [`store`]: makes tree nodes and blocks, and stores them
//! - [`entry`]: entries as the file system describes them
//! - [`calls`]: calls to the source that do not return
//! - [`limits`]: upper bounds on memory

mod calls;
mod entry;
mod error;
mod glance;
mod invocation;
mod limits;
mod options;
mod pipeline;
mod preview;
mod read;
mod shrink;
mod snapshot;
mod store;
mod summary;
mod walk;

pub use error::Error;
pub use invocation::{back_up, back_up_if_changed};
pub use options::{
    CHUNK_SIZE, COMMIT_INTERVAL, COMPRESSION, MERGE_FILES_UNDER, Options, Placed, RETRIES, Reading, RunPolicy,
    SETTLE_MAX, SNAPSHOT_FOLDER, Selection, Storing, Stream, StreamSource, check_entry_name, check_pattern, check_tag,
};
pub use shrink::Guard;
pub use summary::Summary;
