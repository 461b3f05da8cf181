//! Listings: answers to PROPFIND.

use std::io::BufRead;

use crate::storage::url::decode;
use crate::storage::xml::{Malformed, Problem, elements};

/// The body of a request: it asks for the properties of an [`Entry`].
pub(super) const QUESTION: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><propfind xmlns=\"DAV:\"><prop><resourcetype/>\
                                   <getcontentlength/><getetag/><getlastmodified/></prop></propfind>";

/// A file or a folder of a listing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Decoded, without slashes at its end.
    pub(super) path: String,
    pub(super) is_folder: bool,
    /// It does not exist, or was removed in this moment.
    pub(super) is_missing: bool,
    /// In bytes, if the server tells it.
    pub(super) length: Option<u64>,
    pub(super) tag: String,
    pub(super) modified: String,
}

/// Calls `take` with each entry.
pub(super) fn each(source: impl BufRead, take: &mut dyn FnMut(Entry) -> Result<(), Malformed>) -> Result<(), Problem> {
    // Known properties are in one group, unknown ones in another.
    let (mut entry, mut group, mut path, mut is_known) = (Entry::default(), Entry::default(), None, true);
    elements(source, &mut |names, text| {
        let ["multistatus", inner @ ..] = names else { return Err(Malformed) };
        match inner {
            ["response", "href"] => path = Some(path_of(&text)?),
            ["response", "status"] => match status(&text)? {
                200..300 => {}
                404 | 410 => entry.is_missing = true,
                _ => return Err(Malformed),
            },
            ["response", "propstat", "prop", "resourcetype", "collection"] => group.is_folder = true,
            ["response", "propstat", "prop", "getcontentlength"] => group.length = text.trim().parse().ok(),
            ["response", "propstat", "prop", "getetag"] => group.tag = text,
            ["response", "propstat", "prop", "getlastmodified"] => group.modified = text,
            ["response", "propstat", "status"] => is_known = (200..300).contains(&status(&text)?),
            ["response", "propstat"] => {
                let group = std::mem::take(&mut group);
                if is_known {
                    entry.is_folder |= group.is_folder;
                    entry.length = entry.length.or(group.length);
                    entry.tag.push_str(&group.tag);
                    entry.modified.push_str(&group.modified);
                }
                is_known = true;
            }
            ["response"] => {
                take(Entry { path: path.take().ok_or(Malformed)?, ..std::mem::take(&mut entry) })?;
            }
            _ => {}
        }
        Ok(())
    })
}

/// The code of a line such as `HTTP/1.1 200 OK`.
fn status(line: &str) -> Result<u16, Malformed> {
    line.split_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or(Malformed)
}

/// The path of a URL, or of a path as it is in one.
fn path_of(text: &str) -> Result<String, Malformed> {
    let text = text.trim();
    let path = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').and_then(|start| rest.get(start..)).unwrap_or("/")
        }
        _ => text,
    };
    if !path.starts_with('/') {
        return Err(Malformed);
    }
    Ok(decode(path).map_err(|_| Malformed)?.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inner: &str) -> Result<Vec<Entry>, Problem> {
        let text = format!("<?xml version=\"1.0\"?>\n<D:multistatus xmlns:D=\"DAV:\">{inner}</D:multistatus>");
        let mut entries = Vec::new();
        each(text.as_bytes(), &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }

    fn entry(path: &str, length: Option<u64>) -> Entry {
        Entry { path: path.into(), is_folder: length.is_none(), length, ..Entry::default() }
    }

    #[test]
    fn entries_are_parsed() {
        let found = parse(
            "<D:response><D:href>/a/b%20c/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop>\
             <D:status>HTTP/1.1 200 OK</D:status></D:propstat><D:propstat><D:prop><D:getcontentlength/></D:prop>\
             <D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response>\n\
             <response xmlns=\"DAV:\"><href> http://host:80/a/x </href><propstat><prop><getcontentlength> 5 </getcontentlength>\
             <resourcetype/><getetag>\"1&amp;2\"</getetag></prop><status>HTTP/1.1 200 OK</status></propstat></response>\
             <D:response><D:href>/a/gone</D:href><D:status>HTTP/1.1 404 Not Found</D:status></D:response>\
             <D:response><D:href>https://host</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype>\
             </D:prop></D:propstat></D:response>",
        );
        let file = Entry { tag: "\"1&2\"".into(), ..entry("/a/x", Some(5)) };
        let gone = Entry { path: "/a/gone".into(), is_missing: true, ..Entry::default() };
        assert_eq!(found.unwrap(), [entry("/a/b c", None), file, gone, entry("", None)]);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn properties_of_which_the_server_reports_an_error_do_not_count() {
        let found = parse(
            "<response><href>/x</href><propstat><prop><resourcetype><collection/></resourcetype><getcontentlength>7\
             </getcontentlength></prop><status>HTTP/1.1 403 No</status></propstat></response>",
        );
        assert_eq!(found.unwrap(), [Entry { path: "/x".into(), ..Entry::default() }]);
    }

    #[test]
    fn hostile_answers_are_refused() {
        let response = |href: &str, more: &str| format!("<response><href>{href}</href>{more}</response>");
        for inner in [
            "<response></response>".to_owned(),
            response("relative", ""),
            response("", ""),
            response("/%zz", ""),
            response("/%ff", ""),
            response("/x", "<status>HTTP/1.1</status>"),
            response("/x", "<status>HTTP/1.1 500 Oops</status>"),
            response(&format!("/{}", "x".repeat(10_000)), ""),
            "<a>".repeat(20),
        ] {
            assert!(matches!(parse(&inner), Err(Problem::Malformed)), "{}", inner.get(..100).unwrap_or(&inner));
        }
        let mut none = |_| Ok(());
        for text in ["", "<html></html>", "{}", "<error xmlns=\"DAV:\"/>"] {
            assert!(matches!(each(text.as_bytes(), &mut none), Err(Problem::Malformed)), "{text}");
        }
    }
}
