//! Why a command failed, before the object is known.

use std::io;
use std::time::Duration;

use super::wire::Reply;
use crate::storage::connect::Unreachable;
use crate::storage::error::{Error, ErrorKind};

/// Characters of a server's text that are shown.
const LONGEST_TEXT: usize = 200;

/// A failed command.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server says so. The connection can be used.
    Reply(Reply),
    /// The server has something else than it should have, for this reason. The connection can be used.
    Wrong(ErrorKind, String),
    /// The connection ended, was not made, or is out of step, for this reason. The server may have carried out the command.
    Lost(ErrorKind, String),
}

impl From<Unreachable> for Failure {
    fn from(error: Unreachable) -> Self {
        Failure::Lost(ErrorKind::Unavailable, error.to_string())
    }
}

impl Failure {
    /// The failure of a connection that an error of the system ended.
    pub(super) fn io(error: &io::Error, stall: Duration) -> Self {
        let why = match error.kind() {
            // Timeouts of sockets.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the server was silent for {} s", stall.as_secs_f64().round())
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WriteZero => "the server closed the connection".to_owned(),
            _ => format!("the connection failed: {error}"),
        };
        Failure::Lost(ErrorKind::Unavailable, why)
    }

    /// The failure of a server that does not follow the protocol.
    pub(super) fn malformed() -> Self {
        Failure::Lost(ErrorKind::Unavailable, "the server sent something that is not FTP".to_owned())
    }

    /// Whether the file or the folder may be missing. Servers use the same codes for other failures.
    pub(super) fn may_be_missing(&self) -> bool {
        matches!(self, Failure::Reply(Reply { code: 450 | 501 | 550 | 553, .. }))
    }

    /// Whether the connection can no longer be used.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Failure::Lost(..))
    }

    /// The error of an operation on an object.
    pub(super) fn into_error(self, action: &'static str, object: &str) -> Error {
        let (kind, why) = match self {
            Failure::Lost(kind, why) | Failure::Wrong(kind, why) => (kind, why),
            Failure::Reply(reply) => explain(&reply),
        };
        Error::new(kind, action, object, why)
    }
}

/// The kind of error and the message of a reply.
pub(super) fn explain(reply: &Reply) -> (ErrorKind, String) {
    let said = shown(reply);
    let text = reply.text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // Servers have limits of their own, with any code. The last text is the one of vsftpd for a failed write.
    if matches!(reply.code, 452 | 552) || has(&["no space left", "quota", "disk full", "failure writing to local file"])
    {
        let why = format!("the server has no more room ({said}); free some and run again, no stored data is lost");
        return (ErrorKind::Full, why);
    }
    match reply.code {
        421 | 530 if has(&["too many", "maximum", "limit"]) => {
            (ErrorKind::Throttled, format!("the server allows no more connections now ({said})"))
        }
        421 | 425 | 426 => {
            (ErrorKind::Unavailable, format!("the server ended the transfer or the connection ({said})"))
        }
        450 | 451 => (ErrorKind::Throttled, format!("the server cannot do it now ({said})")),
        332 | 530 | 532 => {
            (ErrorKind::Refused, format!("the server refuses the login ({said}); check the user and the password"))
        }
        _ if has(&["permission", "denied", "not permitted", "read-only"]) => {
            (ErrorKind::PermissionDenied, format!("the server denies permission ({said})"))
        }
        _ => (ErrorKind::Other, format!("the server reports: {said}")),
    }
}

/// A reply in errors: one line without control characters.
pub(super) fn shown(reply: &Reply) -> String {
    let text: String = reply.text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_TEXT).collect();
    format!("{} {}", reply.code, text.trim()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_kinds_and_texts_are_cut() {
        for (code, text, kind) in [
            (421, "There are too many connections from your internet address.", ErrorKind::Throttled),
            (530, "Sorry, the maximum number of clients (2) are already connected", ErrorKind::Throttled),
            (421, "Timeout", ErrorKind::Unavailable),
            (425, "Cannot open data connection", ErrorKind::Unavailable),
            (426, "Failure reading network stream.", ErrorKind::Unavailable),
            (426, "Failure writing to local file.", ErrorKind::Full),
            (451, "x", ErrorKind::Throttled),
            (452, "x", ErrorKind::Full),
            (552, "x", ErrorKind::Full),
            (550, "Disk quota exceeded", ErrorKind::Full),
            (530, "Login incorrect.", ErrorKind::Refused),
            (550, "Permission denied.", ErrorKind::PermissionDenied),
            (502, "x", ErrorKind::Other),
        ] {
            let error = Failure::Reply(Reply { code, text: text.into() }).into_error("read", "packs/x");
            assert_eq!(error.kind, kind, "{code} {text}: {error}");
        }
        let hostile = Reply { code: 550, text: format!("{}\u{1b}[2J\n", "é".repeat(100_000)) };
        assert!(shown(&hostile).len() < 500 && !shown(&Reply { code: 1, text: "\u{1b}".into() }).contains('\u{1b}'));
        let silent = Failure::io(&io::ErrorKind::WouldBlock.into(), Duration::from_secs(60));
        assert!(silent.into_error("read", "x").to_string().ends_with("silent for 60 s"));
    }
}
