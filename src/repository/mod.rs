//! Repositories: combines the encoding of [`crate::format`], the OpenPGP of [`crate::crypt`] and the targets of
//! [`crate::storage`].
//!
//! - [`Repository`]: an open repository: its target, its id, and whether its blocks are encrypted
//! - [`description`]: the plaintext description and its copy, which have the id and the encryption
//! - [`keys`]: the certificates and the owner's key in the repository
//! - [`documents`]: signed documents: [`Writer`] signs and seals them, [`Access`] opens and verifies them
//! - [`rewrapped`]: session keys that were sealed again for recipients who were added later
//! - [`readme`]: README.txt and FORMAT.txt

mod description;
mod documents;
mod error;
mod keys;
mod open;
mod readme;
mod rewrapped;

pub use crate::storage::{Ahead, ObjectInfo, Stamp, waited};
pub use description::reads as reads_of_description;
pub use documents::{Access, Writer};
pub use error::Error;
pub use keys::Keys;
pub use open::Repository;
pub use readme::ReadmeKeys;
