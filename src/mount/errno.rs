//! The one place that knows errno.

use fuser::Errno;

use super::error::Error;

/// The number that stands for an error. Damage is EIO, never ENOENT and never ENOSYS: the kernel takes the
/// first for an absence, and the second for a word never to ask again.
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
        Error::Reader(_) | Error::Unreadable => Errno::EIO,
    }
}
