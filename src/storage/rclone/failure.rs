//! Why a request to rclone failed, before the object is known. rclone tells reasons in words only.

use crate::storage::error::{Error, ErrorKind};
use crate::storage::http::Lost;

/// Characters of rclone's text that are shown.
const LONGEST_TEXT: usize = 300;

/// Words in lower case, and the kind of error that they mean. The first that is found counts.
const MEANINGS: [(ErrorKind, &[&str]); 6] = [
    (ErrorKind::NotFound, &["object not found", "directory not found", "no such file"]),
    (
        ErrorKind::Full,
        &[
            "no space left",
            "remaining disk space",
            "quota",
            "disk full",
            "insufficient storage",
            "insufficientstorage",
            "storage full",
        ],
    ),
    (
        ErrorKind::Refused,
        &[
            "didn't find section",
            "didn't find backend",
            "couldn't decrypt",
            "unauthorized",
            "invalid_grant",
            "login failed",
            "unable to authenticate",
            "x509",
            "invalidaccesskeyid",
            "signaturedoesnotmatch",
            "error 401",
        ],
    ),
    (ErrorKind::PermissionDenied, &["permission denied", "access denied", "accessdenied", "forbidden", "read-only"]),
    (
        ErrorKind::Throttled,
        &[
            "too many requests",
            "rate limit",
            "ratelimit",
            "slow down",
            "slowdown",
            "error 429",
            "error 500",
            "error 502",
            "error 503",
            "error 504",
            "internal error",
            "internalerror",
            "backend error",
            "bad gateway",
            "service unavailable",
        ],
    ),
    (
        ErrorKind::Unavailable,
        &[
            "connection refused",
            "connection reset",
            "broken pipe",
            "no such host",
            "timeout",
            "timed out",
            "unreachable",
            "unexpected eof",
            "couldn't connect",
            "network is down",
            "server misbehaving",
        ],
    ),
];

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, why: impl Into<String>) -> Self {
        Failure { kind, why: why.into() }
    }

    /// The failure that rclone tells with these words.
    pub(super) fn said(text: &str) -> Self {
        let lower = text.to_lowercase();
        let meaning = MEANINGS.iter().find(|(_, words)| words.iter().any(|word| lower.contains(word)));
        let kind = meaning.map_or(ErrorKind::Other, |(kind, _)| *kind);
        let said = shown(text);
        let why = match kind {
            ErrorKind::Full => format!(
                "the remote has no more room (rclone says: {said}); free some and run again, no stored data is lost"
            ),
            _ => format!("rclone says: {said}"),
        };
        Failure { kind, why }
    }

    /// The error of an operation on an object.
    pub(super) fn into_error(self, action: &'static str, object: &str) -> Error {
        Error::new(self.kind, action, object, self.why)
    }
}

impl From<Lost> for Failure {
    fn from(Lost { kind, why }: Lost) -> Self {
        Failure { kind, why: why.replace("the server", "rclone") }
    }
}

/// Words of rclone in errors: one line without control characters.
pub(super) fn shown(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    match text.char_indices().nth_back(LONGEST_TEXT) {
        // The reason is at the end.
        Some((at, _)) => format!("…{}", text.get(at..).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_meanings() {
        for (text, kind) in [
            ("error in ListJSON: directory not found", ErrorKind::NotFound),
            ("write /x: no space left on device", ErrorKind::Full),
            (
                "googleapi: Error 403: The user's Drive storage quota has been exceeded., storageQuotaExceeded",
                ErrorKind::Full,
            ),
            ("didn't find section in config file (\"b2\")", ErrorKind::Refused),
            ("open /x: permission denied", ErrorKind::PermissionDenied),
            ("googleapi: Error 500: Internal Error", ErrorKind::Throttled),
            ("dial tcp: lookup x: no such host", ErrorKind::Unavailable),
            ("anything else", ErrorKind::Other),
        ] {
            assert_eq!(Failure::said(text).kind, kind, "{text}");
        }
        let hostile = shown(&format!("{}\u{1b}[2J end", "é".repeat(100_000)));
        assert!(hostile.len() < 800 && hostile.ends_with(" end") && !hostile.contains('\u{1b}'));
    }
}
