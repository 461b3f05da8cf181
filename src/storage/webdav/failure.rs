//! Why a request failed, before the object is known.

use std::time::Duration;

use crate::storage::error::{Error, ErrorKind};
use crate::storage::http::{Answer, Lost};
use crate::storage::xml::elements;

/// Characters of a server's text that are shown.
const LONGEST_TEXT: usize = 200;
/// Bytes of an error's document.
const LONGEST_PROBLEM: u64 = 64 << 10;

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
    /// The status of the answer, if there was one.
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, why: impl Into<String>) -> Self {
        Failure { kind, why: why.into(), status: None, retry_after: None }
    }

    /// The failure of a request with this method. Reads the answer's text, so that the connection can be used again.
    pub(super) fn of(method: &str, answer: &mut Answer<'_>) -> Self {
        let mut text = Vec::new();
        // A text that is cut off has no meaning, and the status remains.
        let _ = answer.read(LONGEST_PROBLEM, &mut text);
        let mut said = String::new();
        let _ = elements(text.as_slice(), &mut |path, text| {
            if let [_, .., "message" | "responsedescription"] = path {
                said = text;
            }
            Ok(())
        });
        let failure = Failure::explain(method, answer.status, &said);
        Failure { retry_after: answer.retry_after(), ..failure }
    }

    /// `said` is the server's text, which may be empty.
    fn explain(method: &str, status: u16, said: &str) -> Self {
        let said: String = said.trim().chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect();
        let said = if said.is_empty() { format!("status {status}") } else { format!("status {status}: {said}") };
        let (kind, why) = match status {
            404 | 410 => (ErrorKind::NotFound, "the server has no such file".to_owned()),
            409 if matches!(method, "PUT" | "MOVE" | "MKCOL") => {
                (ErrorKind::NotFound, "the folder does not exist on the server".to_owned())
            }
            412 => (ErrorKind::AlreadyExists, "the object exists".to_owned()),
            416 => (ErrorKind::Truncated, "it is shorter than expected".to_owned()),
            403 => (
                ErrorKind::PermissionDenied,
                format!("the server denies access ({said}); check the user's permissions for the folder"),
            ),
            407 => (ErrorKind::Refused, format!("the HTTP proxy refuses the request ({said})")),
            413 => (
                ErrorKind::TooLarge,
                format!("the server does not store files that large ({said}); raise its limit to at least 65 MiB"),
            ),
            507 => (
                ErrorKind::Full,
                format!("the server has no more room ({said}); free some and run again, no stored data is lost"),
            ),
            408 => (ErrorKind::Unavailable, format!("the server did not get the whole request ({said})")),
            423 => (ErrorKind::Throttled, format!("another program has locked it on the server ({said})")),
            429 | 500 | 502 | 503 | 504 => {
                (ErrorKind::Throttled, format!("the server is busy or has a problem ({said})"))
            }
            300..400 => (
                ErrorKind::Refused,
                format!(
                    "the server redirects to another address ({said}), which is not followed; correct the location"
                ),
            ),
            405 | 501 => (
                ErrorKind::Other,
                format!("the server does not support WebDAV at this address ({said}); check the location"),
            ),
            _ => (ErrorKind::Other, format!("the server reports an error ({said})")),
        };
        Failure { kind, why, status: Some(status), retry_after: None }
    }

    /// The error of an operation on an object.
    pub(super) fn into_error(self, action: &'static str, object: &str) -> Error {
        let error = Error::new(self.kind, action, object, self.why);
        match self.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        }
    }
}

impl From<Lost> for Failure {
    fn from(Lost { kind, why }: Lost) -> Self {
        Failure::new(kind, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_kinds() {
        for (status, kind, words) in [
            (404, ErrorKind::NotFound, "no such file"),
            (412, ErrorKind::AlreadyExists, "exists"),
            (416, ErrorKind::Truncated, "shorter"),
            (403, ErrorKind::PermissionDenied, "permissions"),
            (413, ErrorKind::TooLarge, "raise its limit"),
            (507, ErrorKind::Full, "no more room"),
            (423, ErrorKind::Throttled, "locked"),
            (429, ErrorKind::Throttled, "busy"),
            (500, ErrorKind::Throttled, "busy"),
            (503, ErrorKind::Throttled, "status 503: as told"),
            (301, ErrorKind::Refused, "correct the location"),
            (405, ErrorKind::Other, "does not support WebDAV"),
            (400, ErrorKind::Other, "status 400: as told"),
        ] {
            let failure = Failure::explain("GET", status, " as told\n");
            assert_eq!((failure.kind, failure.status), (kind, Some(status)));
            let error = failure.into_error("read", "packs/x").to_string();
            assert!(error.contains(words), "{error}");
        }
        let hostile = Failure::explain("GET", 400, &format!("\u{1b}[2J{}", "é".repeat(100_000)));
        assert!(hostile.why.len() < 600 && !hostile.why.contains('\u{1b}'));
    }

    #[test]
    fn a_conflict_is_a_missing_folder_only_where_something_is_stored() {
        for (method, kind) in [
            ("PUT", ErrorKind::NotFound),
            ("MOVE", ErrorKind::NotFound),
            ("MKCOL", ErrorKind::NotFound),
            ("GET", ErrorKind::Other),
            ("PROPFIND", ErrorKind::Other),
            ("DELETE", ErrorKind::Other),
        ] {
            assert_eq!(Failure::explain(method, 409, "").kind, kind, "{method}");
        }
    }
}
