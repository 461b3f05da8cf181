//! Why a request failed, before the object is known.

use std::time::Duration;

use serde_json::Value;

use crate::storage::error::{Error, ErrorKind};
use crate::storage::http::{Answer, Lost};

/// Characters of a server's text that are shown.
const LONGEST_TEXT: usize = 200;
/// Bytes of an error's text.
const LONGEST_PROBLEM: u64 = 64 << 10;

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, why: impl Into<String>) -> Self {
        Failure { kind, why: why.into(), retry_after: None }
    }

    /// The failure of an answer with this status. Reads its text, so that the connection can be used again.
    pub(super) fn of(answer: &mut Answer<'_>) -> Self {
        let mut text = Vec::new();
        // A text that is cut off has no meaning, and the status remains.
        let _ = answer.read(LONGEST_PROBLEM, &mut text);
        let failure = Failure::explain(answer.status, &String::from_utf8_lossy(&text));
        Failure { retry_after: answer.retry_after(), ..failure }
    }

    fn explain(status: u16, text: &str) -> Self {
        let said = said(status, text);
        let (kind, why) = match status {
            404 | 410 => (ErrorKind::NotFound, "the server has no such object".to_owned()),
            412 => (ErrorKind::AlreadyExists, "the object exists".to_owned()),
            416 => (ErrorKind::Truncated, "it is shorter than expected".to_owned()),
            401 => (ErrorKind::Refused, format!("the server does not accept its own token ({said})")),
            403 => (
                ErrorKind::PermissionDenied,
                format!("the server denies access ({said}); check the user's permissions for the container"),
            ),
            407 => (ErrorKind::Refused, format!("the HTTP proxy refuses the request ({said})")),
            // Objects are far smaller than the largest size.
            413 | 507 => (
                ErrorKind::Full,
                format!("the server has no more room ({said}); free some and run again, no stored data is lost"),
            ),
            408 | 499 => (ErrorKind::Unavailable, format!("the server did not get the whole request ({said})")),
            422 => (ErrorKind::Unavailable, format!("bytes changed on the way to the server ({said})")),
            409 => (ErrorKind::Throttled, format!("another request for the object is under way ({said})")),
            429 | 498 | 500 | 502 | 503 | 504 => (ErrorKind::Throttled, format!("the server is busy ({said})")),
            301 | 302 | 303 | 307 | 308 => {
                (ErrorKind::Refused, format!("the server redirects the request, which is not followed ({said})"))
            }
            _ => (ErrorKind::Other, format!("the server reports an error ({said})")),
        };
        Failure { kind, why, retry_after: None }
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

/// The status and the text of an answer, without markup. Keystone's text is a part of a JSON object.
pub(super) fn said(status: u16, text: &str) -> String {
    let document: Option<Value> = serde_json::from_str(text).ok();
    let message = document.as_ref().and_then(|document| document.get("error")?.get("message")?.as_str());
    let text = message.unwrap_or(text);
    let (mut plain, mut is_tag) = (String::new(), false);
    for c in text.chars().take(4 * LONGEST_TEXT) {
        match c {
            '<' => is_tag = true,
            '>' if is_tag => {
                is_tag = false;
                plain.push(' ');
            }
            _ if is_tag => {}
            c if c.is_control() => plain.push(' '),
            c => plain.push(c),
        }
    }
    let words: Vec<_> = plain.split_whitespace().collect();
    let plain: String = words.join(" ").chars().take(LONGEST_TEXT).collect();
    if plain.is_empty() { format!("status {status}") } else { format!("status {status}: {plain}") }
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
            (404, ErrorKind::NotFound, "no such object"),
            (412, ErrorKind::AlreadyExists, "exists"),
            (416, ErrorKind::Truncated, "shorter"),
            (403, ErrorKind::PermissionDenied, "permissions"),
            (413, ErrorKind::Full, "no more room (status 413: As told .)"),
            (507, ErrorKind::Full, "no more room"),
            (422, ErrorKind::Unavailable, "changed on the way"),
            (409, ErrorKind::Throttled, "under way"),
            (498, ErrorKind::Throttled, "busy"),
            (429, ErrorKind::Throttled, "busy"),
            (503, ErrorKind::Throttled, "busy"),
            (302, ErrorKind::Refused, "redirects"),
            (400, ErrorKind::Other, "status 400"),
        ] {
            let error = Failure::explain(status, "<html><h1>As\ntold</h1>.</html>").into_error("read", "packs/x");
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let keystone = Failure::explain(400, "{\"error\":{\"code\":400,\"message\":\"As told.\"}}");
        assert!(keystone.why.contains("(status 400: As told.)"), "{}", keystone.why);
        let hostile = Failure::explain(400, &format!("\u{1b}[2J{}", "é".repeat(100_000)));
        assert!(hostile.why.len() < 600 && !hostile.why.contains('\u{1b}'));
    }
}
