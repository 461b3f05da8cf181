//! Why a walk ends early.

use crate::backup::error::Error;

/// Why a walk ends early.
pub(in crate::backup) enum WalkStop {
    /// The follower is gone, and has an error of its own.
    Gone,
    /// The walk itself failed.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for WalkStop {
    fn from(error: E) -> Self {
        WalkStop::Failed(error.into())
    }
}
