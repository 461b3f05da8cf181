//! Why a request failed, before the object is known.

use super::wire::{Malformed, Reply, Status};
use crate::storage::error::{Error, ErrorKind};

/// Characters of a server's text that are shown.
const LONGEST_TEXT: usize = 200;

/// A failed request.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server says so.
    Status(Status, String),
    /// The connection ended or was not made, for this reason. The server may have carried out the request.
    Lost(ErrorKind, String),
}

impl Failure {
    /// The failure of a reply that does not fit its request.
    pub(super) fn unexpected(reply: Reply) -> Self {
        match reply {
            Reply::Status(status, text) if status != Status::Ok => Failure::Status(status, text),
            _ => Failure::from(Malformed),
        }
    }

    /// Whether the server reports that the file does not exist.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Failure::Status(Status::NoSuchFile, _))
    }

    /// Whether the connection can no longer be used.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Failure::Lost(..))
    }

    /// The error of an operation on an object.
    pub(super) fn into_error(self, action: &'static str, object: &str) -> Error {
        let (kind, why) = match self {
            Failure::Lost(kind, why) => (kind, why),
            Failure::Status(Status::NoSuchFile, _) => (ErrorKind::NotFound, "the server has no such file".to_owned()),
            Failure::Status(Status::PermissionDenied, _) => {
                (ErrorKind::PermissionDenied, "the server denies permission".to_owned())
            }
            Failure::Status(Status::Unsupported, _) => {
                (ErrorKind::Other, "the server does not support this operation".to_owned())
            }
            Failure::Status(status, text) if text.is_empty() => {
                (ErrorKind::Other, format!("the server reports {status:?}"))
            }
            Failure::Status(_, text) => {
                let text: String = text.chars().take(LONGEST_TEXT).collect();
                (ErrorKind::Other, format!("the server reports: {text}"))
            }
        };
        Error::new(kind, action, object, why)
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        let why = "the server sent something that is not SFTP; if its login script prints text, remove that";
        Failure::Lost(ErrorKind::Unavailable, why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_kinds_and_texts_are_cut() {
        let of = |status, text: &str| Failure::Status(status, text.to_owned()).into_error("read", "packs/x");
        for (status, kind) in [
            (Status::NoSuchFile, ErrorKind::NotFound),
            (Status::PermissionDenied, ErrorKind::PermissionDenied),
            (Status::Unsupported, ErrorKind::Other),
            (Status::Failure, ErrorKind::Other),
            (Status::Eof, ErrorKind::Other),
            (Status::Other(5), ErrorKind::Other),
        ] {
            assert_eq!(of(status, "no").kind, kind, "{status:?}");
        }
        assert_eq!(of(Status::Failure, "no").to_string(), "cannot read packs/x: the server reports: no");
        assert_eq!(of(Status::Other(9), "").to_string(), "cannot read packs/x: the server reports Other(9)");
        assert!(of(Status::Failure, &"é".repeat(100_000)).to_string().len() < 500);
    }
}
