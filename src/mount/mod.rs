//! The mount: a thin FUSE shell over a file system that knows no kernel.
//!
//! - [`filesystem`]: the tree that is shown
//! - [`above`]: of it, what stands above the snapshots; [`catalogue`]: which of those there are, and under which names;
//!   [`tags`]: which of them have which tag
//! - [`number`]: inode numbers; [`links`]: those that names of one file share; [`attributes`]: what is told of a thing; [`owners`]: whose the files are
//! - [`fuse`]: translates the kernel's requests and our answers
//! - [`error`]: why there is no answer; [`errno`]: the one table from that to numbers
//! - [`lifecycle`]: mounting, unmounting, and what must not be mounted over; [`options`]: options of an fstab
//! - [`mount_point`]: mount points, found once; [`table`]: the kernel's table of mounts; [`helper`]: fusermount3
//! - [`threads`]: how many threads serve a mount
//! - [`users`]: who uses a mount

mod attributes;
mod errno;
mod error;
mod filesystem;
mod fuse;
mod helper;
mod lifecycle;
mod links;
mod lock;
mod mount_point;
mod number;
mod options;
mod owners;
mod snapshot_index;
mod table;
mod tags;
mod threads;
mod users;
mod virtual_tree;

pub use attributes::{Attributes, ListingEntry, Validity};
pub use error::Error as FileSystemError;
pub use filesystem::FileSystem;
pub use lifecycle::{Error, mount, unmount};
pub use number::Ino;
pub use options::{OptionEffect, Options, meaning};
pub use owners::OwnerMapping;
