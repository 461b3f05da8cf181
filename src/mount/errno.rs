//! Maps errors to errno values.

use fuser::Errno;

use super::error::Error;
use crate::failure::{Failure, FailureKind};

/// Returns the errno for an error. Damage is EIO, never ENOENT or ENOSYS: programs would take the entry for missing, and
/// after ENOSYS the kernel never sends that request again.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound | Error::NeverThere => Errno::ENOENT,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::IsADirectory => Errno::EISDIR,
        Error::NotALink | Error::NotAFile => Errno::EINVAL,
        Error::NoAttribute => Errno::ENODATA,
        Error::ReadOnly => Errno::EROFS,
        Error::Beyond => Errno::ENXIO,
        // The repository is away, which says nothing about the data.
        Error::Archive(error) if error.kind() == FailureKind::Unavailable => Errno::ETIMEDOUT,
        Error::Archive(_) | Error::Unreadable => Errno::EIO,
    }
}
