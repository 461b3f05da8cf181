//! The mount: a thin FUSE shell over a file system that does not depend on the kernel.
//!
//! - [`lifecycle`]: checks, mounting, serving, signals and unmounting
//! - [`options`]: mount options, one table for `brackfs mount` and `mount.brackfs`
//! - [`mount_point`]: a mount point, held by descriptor; [`helper`]: fusermount3
//! - [`threads`]: the number of threads that serve a mount; [`users`]: processes that use a mount
//! - [`fuse`]: translates FUSE requests and replies; [`errno`]: maps errors to errno values
//! - [`filesystem`]: the mounted tree
//! - [`virtual_tree`]: the directories above the snapshots; [`snapshot_index`]: snapshots and their names there;
//!   [`tags`]: snapshots by tag
//! - [`number`]: inode numbers; [`links`]: inode numbers of hard-linked files
//! - [`attributes`]: attributes of entries; [`owners`]: shown owners and groups
//! - [`error`]: errors of the file system; [`lock`]: locking mutexes

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
mod tags;
mod threads;
mod users;
mod virtual_tree;

pub use attributes::{Attributes, ListingEntry, Validity};
pub use error::Error as FileSystemError;
pub use filesystem::FileSystem;
pub use lifecycle::{Error, mount, unmount};
pub use number::Ino;
pub use options::{OptionEffect, Options, parse_option};
pub use owners::OwnerMapping;
