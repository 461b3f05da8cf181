//! The mount: a thin FUSE shell over a file system that knows no kernel.
//!
//! - [`filesystem`]: the tree that is shown: sources, snapshots, their entries; inode numbers
//! - [`catalogue`]: which snapshots there are, and under which names; [`tags`]: which of them have which tag
//! - [`owners`]: whose the files are
//! - [`fuse`]: translates the kernel's requests and our answers
//! - [`errno`]: the one table from errors to numbers
//! - [`life`]: mounting, unmounting, and what must not be mounted over
//! - [`users`]: who uses a mount

mod catalogue;
mod errno;
mod filesystem;
mod fuse;
mod life;
mod owners;
mod tags;
mod users;

pub use filesystem::{Attributes, Error as FileSystemError, FileSystem, Ino, Item, Lasting};
pub use life::{Error, Options, mount, unmount};
pub use owners::Owners;
