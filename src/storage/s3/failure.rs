//! Why a request failed, before the object is known.

use std::time::Duration;

use super::xml::Problem;
use crate::storage::error::{Error, ErrorKind};
use crate::storage::http::{Answer, Lost};
use crate::storage::xml::Malformed;

/// Characters of a server's text that are shown.
const LONGEST_TEXT: usize = 200;
/// Bytes of an error's document.
const LONGEST_PROBLEM: u64 = 64 << 10;

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
    /// The code of the server, such as `NoSuchKey`; empty if it gave none.
    pub(super) code: String,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, why: impl Into<String>) -> Self {
        Failure { kind, why: why.into(), code: String::new(), retry_after: None }
    }

    /// The failure of an answer with this status.
    pub(super) fn of(answer: &mut Answer<'_>) -> Self {
        let mut text = Vec::new();
        // A text that is cut off has no meaning, and the status remains.
        let _ = answer.read(LONGEST_PROBLEM, &mut text);
        let mut problem = Problem::parse(&text);
        if let (Some(problem), Some(region)) = (&mut problem, answer.header("x-amz-bucket-region")) {
            problem.region.get_or_insert_with(|| region.to_owned());
        }
        let failure = Failure::explain(answer.status, problem);
        Failure { retry_after: answer.retry_after(), ..failure }
    }

    /// The failure of one of several keys. `None` if its code alone does not tell what it means.
    pub(super) fn of_key(problem: Problem) -> Option<Self> {
        let status = match problem.code.as_str() {
            "AccessDenied" => 403,
            "NoSuchKey" => 404,
            "OperationAborted" => 409,
            "InternalError" => 500,
            "ServiceUnavailable" | "SlowDown" => 503,
            _ => return None,
        };
        Some(Failure::explain(status, Some(problem)))
    }

    fn explain(status: u16, problem: Option<Problem>) -> Self {
        let is_known = problem.is_some();
        let Problem { code, message, region } = problem.unwrap_or_default();
        let message: String = message.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect();
        let code: String = code.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect();
        let said = match (code.as_str(), message.as_str()) {
            ("", _) => format!("status {status}"),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {message}"),
        };
        let region = region.filter(|region| region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        let (kind, why) = match (status, code.as_str()) {
            (_, "NoSuchKey") if status == 404 => (ErrorKind::NotFound, "the server has no such object".to_owned()),
            (_, "NoSuchBucket") => {
                (ErrorKind::Refused, "the bucket does not exist; create it, or correct the location".to_owned())
            }
            _ if code == "InvalidAccessKeyId" || (code == "AccessDenied" && message.contains("No such key")) => (
                ErrorKind::Refused,
                "the server does not know the access key; check AWS_ACCESS_KEY_ID or the credentials".to_owned(),
            ),
            _ if code == "SignatureDoesNotMatch"
                || (code == "AccessDenied" && message.contains("Invalid signature")) =>
            {
                (
                    ErrorKind::Refused,
                    "the secret key is not the one of the access key; check AWS_SECRET_ACCESS_KEY or the credentials"
                        .to_owned(),
                )
            }
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                (ErrorKind::Refused, format!("the session token is no longer valid; get a new one ({said})"))
            }
            (_, "RequestTimeTooSkewed" | "RequestExpired") => (
                ErrorKind::Refused,
                "the clocks of this machine and of the server differ by more than 15 minutes; set the clock".to_owned(),
            ),
            (301 | 302 | 303 | 307 | 308, _) | (_, "AuthorizationHeaderMalformed" | "PermanentRedirect") => {
                let help = match region {
                    Some(region) => format!("the bucket is in another region; set AWS_REGION={region}"),
                    None => format!("the server redirects the request; check --endpoint and AWS_REGION ({said})"),
                };
                (ErrorKind::Refused, help)
            }
            (409, "ConditionalRequestConflict" | "OperationAborted") => {
                (ErrorKind::Throttled, format!("another request for the object is under way ({said})"))
            }
            (412, _) => (ErrorKind::AlreadyExists, "the object exists".to_owned()),
            (416, _) => (ErrorKind::Truncated, "it is shorter than expected".to_owned()),
            (408, _) | (400, "RequestTimeout") => {
                (ErrorKind::Unavailable, format!("the server did not get the whole request ({said})"))
            }
            (400, "BadDigest" | "XAmzContentSHA256Mismatch" | "InvalidDigest") => {
                (ErrorKind::Unavailable, format!("bytes changed on the way to the server ({said})"))
            }
            (_, "EntityTooLarge") => {
                (ErrorKind::TooLarge, format!("the server does not store objects that large ({said})"))
            }
            (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage") => full(&said),
            (403, _) if said.to_ascii_lowercase().contains("quota") => full(&said),
            (429 | 500 | 502 | 503 | 504, _) | (_, "SlowDown") => {
                (ErrorKind::Throttled, format!("the server is busy ({said})"))
            }
            (401 | 403, _) => (
                ErrorKind::PermissionDenied,
                format!("the server denies access ({said}); check the access key and its permissions for the bucket"),
            ),
            _ if !is_known => {
                (ErrorKind::Other, format!("the server's answer is not one of S3 ({said}); check the endpoint"))
            }
            _ => (ErrorKind::Other, format!("the server reports: {said}")),
        };
        Failure { kind, why, code, retry_after: None }
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

fn full(said: &str) -> (ErrorKind, String) {
    (ErrorKind::Full, format!("the server has no more room ({said}); free some and run again, no stored data is lost"))
}

impl From<Lost> for Failure {
    fn from(Lost { kind, why }: Lost) -> Self {
        Failure::new(kind, why)
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Failure::new(ErrorKind::Other, "the server sent a list that is not one of S3; check the endpoint")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_kinds() {
        let of = |status, code: &str, message: &str, region: Option<&str>| {
            let problem = Problem { code: code.into(), message: message.into(), region: region.map(str::to_owned) };
            Failure::explain(status, (!code.is_empty()).then_some(problem)).into_error("read", "packs/x")
        };
        for (status, code, kind, words) in [
            (404, "NoSuchKey", ErrorKind::NotFound, "no such object"),
            (404, "NoSuchBucket", ErrorKind::Refused, "bucket does not exist"),
            (404, "", ErrorKind::Other, "check the endpoint"),
            (404, "NoSuchUpload", ErrorKind::Other, "NoSuchUpload"),
            (403, "InvalidAccessKeyId", ErrorKind::Refused, "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", ErrorKind::Refused, "AWS_SECRET_ACCESS_KEY"),
            (400, "ExpiredToken", ErrorKind::Refused, "get a new one"),
            (403, "RequestTimeTooSkewed", ErrorKind::Refused, "set the clock"),
            (403, "AccessDenied", ErrorKind::PermissionDenied, "denies access"),
            (403, "", ErrorKind::PermissionDenied, "denies access"),
            (403, "QuotaExceeded", ErrorKind::Full, "no more room"),
            (507, "", ErrorKind::Full, "no more room"),
            (307, "", ErrorKind::Refused, "redirects"),
            (409, "ConditionalRequestConflict", ErrorKind::Throttled, "under way"),
            (412, "PreconditionFailed", ErrorKind::AlreadyExists, "exists"),
            (416, "InvalidRange", ErrorKind::Truncated, "shorter"),
            (400, "RequestTimeout", ErrorKind::Unavailable, "whole request"),
            (400, "BadDigest", ErrorKind::Unavailable, "changed on the way"),
            (400, "EntityTooLarge", ErrorKind::TooLarge, "large"),
            (500, "InternalError", ErrorKind::Throttled, "busy"),
            (503, "SlowDown", ErrorKind::Throttled, "busy"),
            (429, "", ErrorKind::Throttled, "busy"),
            (502, "", ErrorKind::Throttled, "busy"),
            (400, "InvalidRequest", ErrorKind::Other, "InvalidRequest: text"),
        ] {
            let error = of(status, code, "text", None);
            assert_eq!(error.kind, kind, "{status} {code}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let quota = of(403, "AccessDenied", "Bucket size quota is reached", None);
        assert_eq!(quota.kind, ErrorKind::Full);
        // Garage has one code for all refusals.
        for (message, words) in [
            ("Forbidden: No such key: GK0123", "AWS_ACCESS_KEY_ID"),
            ("Forbidden: Invalid signature", "AWS_SECRET_ACCESS_KEY"),
        ] {
            let refused = of(403, "AccessDenied", message, None);
            assert_eq!(refused.kind, ErrorKind::Refused, "{message}");
            assert!(refused.to_string().contains(words), "{refused}");
        }
        let region = of(301, "PermanentRedirect", "", Some("eu-central-1"));
        assert!(region.to_string().contains("set AWS_REGION=eu-central-1"), "{region}");
        let hostile = of(400, "X", &format!("{}\u{1b}[2J", "é".repeat(100_000)), Some("$(reboot)"));
        assert!(hostile.to_string().len() < 600 && !hostile.to_string().contains('\u{1b}'));
    }
}
