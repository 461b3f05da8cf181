//! The server's documents: pages of listings, and errors.

use crate::storage::xml::{Malformed, elements};

/// The longest name, once decoded: what S3 allows for a key.
const LONGEST_KEY: usize = 1024;
/// The most keys of a page.
const MOST_KEYS: usize = 1000;

/// A page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Keys, and lengths of objects.
    pub(super) objects: Vec<(String, u64)>,
    /// Where the next page begins; `None` for the last page.
    pub(super) next: Option<String>,
}

/// What became of the keys in a request that removes objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Removals {
    pub(super) removed: Vec<String>,
    /// Keys, and why they are not removed.
    pub(super) kept: Vec<(String, Problem)>,
}

/// An error of the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Problem {
    /// Such as `NoSuchKey`.
    pub(super) code: String,
    pub(super) message: String,
    /// The region of the bucket, if that is the problem.
    pub(super) region: Option<String>,
}

impl Page {
    /// Parses a page of keys that begin with `prefix`.
    pub(super) fn parse(text: &[u8], prefix: &str) -> Result<Page, Malformed> {
        let (mut page, mut key, mut length) = (Page::default(), None, None);
        let (mut truncated, mut encoded, mut raw) = (None, false, Vec::new());
        elements(text, &mut |path, text| {
            match path {
                ["ListBucketResult"] => {}
                ["ListBucketResult", "IsTruncated"] => truncated = Some(text == "true"),
                ["ListBucketResult", "EncodingType"] => encoded = text == "url",
                ["ListBucketResult", "NextContinuationToken"] => page.next = Some(text),
                ["ListBucketResult", "Contents", "Key"] => key = Some(text),
                ["ListBucketResult", "Contents", "Size"] => length = text.parse().ok(),
                ["ListBucketResult", "Contents"] => {
                    raw.push((key.take().ok_or(Malformed)?, length.take().ok_or(Malformed)?));
                    if raw.len() > MOST_KEYS {
                        return Err(Malformed);
                    }
                }
                ["ListBucketResult", ..] => {}
                _ => return Err(Malformed),
            }
            Ok(())
        })
        .map_err(|_| Malformed)?;
        for (key, length) in raw {
            let key = if encoded { decode(&key)? } else { key };
            if key.len() > LONGEST_KEY || !key.starts_with(prefix) {
                return Err(Malformed);
            }
            page.objects.push((key, length));
        }
        match (truncated, &page.next) {
            (Some(false), _) => page.next = None,
            (Some(true), Some(token)) if !token.is_empty() => {}
            _ => return Err(Malformed),
        }
        Ok(page)
    }
}

impl Removals {
    /// The document that asks for the removal of these keys.
    pub(super) fn request(keys: &[String]) -> String {
        let mut text = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for key in keys {
            text.push_str("<Object><Key>");
            text.push_str(&escape(key));
            text.push_str("</Key></Object>");
        }
        text.push_str("</Delete>");
        text
    }

    /// Parses the answer.
    pub(super) fn parse(text: &[u8]) -> Result<Removals, Malformed> {
        let (mut removals, mut key, mut problem) = (Removals::default(), None, Problem::default());
        elements(text, &mut |path, text| {
            match path {
                ["DeleteResult", "Deleted" | "Error", "Key"] => key = Some(text),
                ["DeleteResult", "Error", "Code"] => problem.code = text,
                ["DeleteResult", "Error", "Message"] => problem.message = text,
                ["DeleteResult", "Deleted"] => removals.removed.push(key.take().ok_or(Malformed)?),
                ["DeleteResult", "Error"] => {
                    removals.kept.push((key.take().ok_or(Malformed)?, std::mem::take(&mut problem)));
                }
                ["DeleteResult", ..] => {}
                _ => return Err(Malformed),
            }
            let count = removals.removed.len() + removals.kept.len();
            if count > MOST_KEYS { Err(Malformed) } else { Ok(()) }
        })
        .map_err(|_| Malformed)?;
        Ok(removals)
    }
}

impl Problem {
    /// Parses an error; `None` if the text is none of S3.
    pub(super) fn parse(text: &[u8]) -> Option<Problem> {
        let mut problem = Problem::default();
        let parsed = elements(text, &mut |path, text| {
            match path {
                ["Error", "Code"] => problem.code = text,
                ["Error", "Message"] => problem.message = text,
                ["Error", "Region"] => problem.region = Some(text),
                ["Error", ..] => {}
                _ => return Err(Malformed),
            }
            Ok(())
        });
        parsed.ok().filter(|()| !problem.code.is_empty()).map(|()| problem)
    }
}

/// Writes a key as the text of an element. It has no control characters.
fn escape(key: &str) -> String {
    key.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Decodes a key of a listing with `encoding-type=url`.
fn decode(text: &str) -> Result<String, Malformed> {
    // Some servers write a space as a plus sign, and a plus sign as %2B.
    let text = text.replace('+', " ");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(Malformed)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or(Malformed)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(inner: &str) -> Result<Page, Malformed> {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult \
             xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{inner}</ListBucketResult>"
        );
        Page::parse(text.as_bytes(), "a/")
    }

    #[test]
    fn pages_are_parsed() {
        let parsed = page(
            "<IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><Contents><Key>a/x%20y%2Bz+</Key>\
             <ETag>&quot;x&quot;</ETag><Size>5</Size><Owner><ID>1</ID></Owner></Contents><Contents><Key>a/y</Key>\n\
             <Size>0</Size></Contents><NextContinuationToken>a&amp;&#98;&#x63;</NextContinuationToken>",
        );
        let objects = vec![("a/x y+z ".to_owned(), 5), ("a/y".to_owned(), 0)];
        assert_eq!(parsed, Ok(Page { objects, next: Some("a&bc".into()) }));
        let last = "<IsTruncated>false</IsTruncated><Contents><Key>a/%</Key><Size>1</Size></Contents>";
        assert_eq!(page(last).unwrap().objects, [("a/%".to_owned(), 1)]);
        assert_eq!(page("<IsTruncated>false</IsTruncated>").unwrap(), Page::default());
    }

    #[test]
    fn hostile_pages_are_refused() {
        let end = "<IsTruncated>false</IsTruncated>";
        let object = |key: &str, size: &str| format!("<Contents><Key>{key}</Key><Size>{size}</Size></Contents>{end}");
        for inner in [
            String::new(),
            "<IsTruncated>true</IsTruncated>".into(),
            object("b/x", "1"),
            object("a/x", "-1"),
            object("a/x", "99999999999999999999999"),
            object(&format!("a/{}", "x".repeat(1023)), "1"),
            object(&"a/x".repeat(10_000), "1"),
            object("a/&unknown;", "1"),
            object("a/&#55296;", "1"),
            format!("<EncodingType>url</EncodingType>{}", object("a/%f", "1")),
            format!("<EncodingType>url</EncodingType>{}", object("a/%ff", "1")),
            format!("<Contents><Key>a/x</Key></Contents>{end}"),
            format!("<Contents><Size>1</Size></Contents>{end}"),
            "<x>".repeat(20),
            object("a/x", "1").repeat(1001),
        ] {
            assert_eq!(page(&inner), Err(Malformed), "{}", inner.get(..200).unwrap_or(&inner));
        }
        for text in ["", "<html></html>", "<!DOCTYPE x [<!ENTITY a \"b\">]><ListBucketResult/>", "\u{0}"] {
            assert_eq!(Page::parse(text.as_bytes(), ""), Err(Malformed), "{text}");
        }
        assert_eq!(Page::parse(b"<ListBucketResult>\xff</ListBucketResult>", ""), Err(Malformed));
    }

    #[test]
    fn removals_are_asked_for_and_their_answers_parsed() {
        let keys = ["a/x", "<a> & b"].map(str::to_owned);
        let text = Removals::request(&keys);
        assert!(text.contains("<Object><Key>a/x</Key></Object><Object><Key>&lt;a&gt; &amp; b</Key></Object></Delete>"));
        let answer = "<?xml version='1.0'?>\n<DeleteResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Deleted>\
                      <Key>a/x</Key><VersionId>1</VersionId></Deleted><Error><Key>&lt;a> &amp; b</Key><Code>AccessDenied\
                      </Code><Message>no</Message></Error><Error><Key>c</Key></Error></DeleteResult>";
        let denied = Problem { code: "AccessDenied".into(), message: "no".into(), region: None };
        let [x, b] = keys;
        let kept = vec![(b, denied), ("c".to_owned(), Problem::default())];
        assert_eq!(Removals::parse(answer.as_bytes()), Ok(Removals { removed: vec![x], kept }));
        assert_eq!(Removals::parse(b"<DeleteResult/>"), Ok(Removals::default()));
        let many = format!("<DeleteResult>{}</DeleteResult>", "<Deleted><Key>a</Key></Deleted>".repeat(1001));
        for text in ["", "<html></html>", "<DeleteResult>", "<DeleteResult><Deleted></Deleted></DeleteResult>", &many] {
            assert_eq!(Removals::parse(text.as_bytes()), Err(Malformed), "{text:.100}");
        }
    }

    #[test]
    fn errors_are_parsed() {
        let text = "<?xml version='1.0'?><Error><Code>PermanentRedirect</Code><Message>Go</Message><Region>eu</Region></Error>";
        let problem = Problem { code: "PermanentRedirect".into(), message: "Go".into(), region: Some("eu".into()) };
        assert_eq!(Problem::parse(text.as_bytes()), Some(problem));
        for text in ["", "<html><body>404</body></html>", "<Error></Error>", "<Error><Code>X</Code>"] {
            assert_eq!(Problem::parse(text.as_bytes()), None, "{text}");
        }
    }
}
