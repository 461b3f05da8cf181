//! XML documents of servers. Memory use does not grow with a document.

use std::io::{self, BufRead, Read};

use quick_xml::Reader;
use quick_xml::events::Event;

/// The longest text of an element, in bytes.
const LONGEST_TEXT: usize = 8 << 10;
/// The longest tag, comment or text between tags, in bytes.
const LONGEST_PART: usize = 64 << 10;
/// The deepest element.
const DEEPEST: usize = 12;

/// A document that is not valid, or lacks an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Why a document was not read to its end.
#[derive(Debug)]
pub(super) enum Problem {
    Malformed,
    /// The connection failed.
    Source(io::Error),
}

/// Takes an element: the names of the elements around it and its own, without their prefixes, and its text.
pub(super) type Take<'t> = &'t mut dyn FnMut(&[&str], String) -> Result<(), Malformed>;

/// Bytes of a document, of which each part is bounded.
struct Parts<R> {
    source: R,
    left: usize,
}

/// Calls `take` at the end of each element.
pub(super) fn elements(source: impl BufRead, take: Take<'_>) -> Result<(), Problem> {
    let mut reader = Reader::from_reader(Parts { source, left: LONGEST_PART });
    reader.config_mut().expand_empty_elements = true;
    let (mut path, mut value, mut ended): (Vec<String>, String, bool) = (Vec::new(), String::new(), false);
    let mut part = Vec::new();
    loop {
        part.clear();
        reader.get_mut().left = LONGEST_PART;
        match reader.read_event_into(&mut part)? {
            Event::Start(start) => {
                if path.len() == DEEPEST || ended {
                    return Err(Problem::Malformed);
                }
                path.push(start.local_name().as_ref().to_owned());
                value.clear();
            }
            Event::End(_) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                take(&names, std::mem::take(&mut value))?;
                path.pop();
                ended = path.is_empty();
            }
            Event::Text(text) => value.push_str(&text.xml10_content()),
            Event::CData(text) => value.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => value.push(character(&reference.xml10_content())?),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            // The latter are expanded to two events.
            Event::DocType(_) | Event::Empty(_) => return Err(Problem::Malformed),
            Event::Eof => return if ended { Ok(()) } else { Err(Problem::Malformed) },
        }
        if value.len() > LONGEST_TEXT {
            return Err(Problem::Malformed);
        }
    }
}

/// The character of a reference such as `amp` or `#10`.
fn character(reference: &str) -> Result<char, Malformed> {
    Ok(match reference {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        number => {
            let number = number.strip_prefix('#').ok_or(Malformed)?;
            let code = match number.strip_prefix('x') {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(code.map_err(|_| Malformed)?).ok_or(Malformed)?
        }
    })
}

impl<R: Read> Read for Parts<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.source.read(bytes)
    }
}

impl<R: BufRead> BufRead for Parts<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let available = self.source.fill_buf()?;
        Ok(available.get(..self.left).unwrap_or(available))
    }

    fn consume(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.source.consume(bytes);
    }
}

impl From<Malformed> for Problem {
    fn from(_: Malformed) -> Self {
        Problem::Malformed
    }
}

impl From<quick_xml::Error> for Problem {
    fn from(error: quick_xml::Error) -> Self {
        match error {
            quick_xml::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
                Problem::Source(io::Error::new(error.kind(), error.to_string()))
            }
            _ => Problem::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn read(source: impl Read) -> Result<Vec<(String, String)>, Problem> {
        let mut found = Vec::new();
        let source = BufReader::with_capacity(100, source);
        elements(source, &mut |path, text| {
            found.push((path.join("/"), text));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn elements_are_taken_at_their_ends() {
        let text = "<?xml version=\"1.0\"?><D:a xmlns:D=\"DAV:\"><!-- x --><b>1&amp;&#50;&#x33;</b>\n<c/><d><![CDATA[<&]]></d></D:a>\n";
        let found = read(text.as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        assert_eq!(found, [("a/b", "1&23"), ("a/c", ""), ("a/d", "<&"), ("a", "")]);
    }

    #[test]
    fn hostile_documents_are_refused_early() {
        for text in ["<a>", "<a ", "<!--", "<a><![CDATA[", "<a>&", "x"] {
            let mut counted = Counted { source: text.as_bytes().chain(io::repeat(b'x')), bytes: 0 };
            assert!(matches!(read(&mut counted), Err(Problem::Malformed)));
            assert!(counted.bytes <= 3 * LONGEST_PART, "{}", counted.bytes);
        }
        let deep = "<x>".repeat(20);
        let long = format!("<a>{}</a>", "x&amp;".repeat(10_000));
        for text in
            ["", "\0", "<a>", "<a></b>", "<a/><b/>", "<!DOCTYPE x [<!ENTITY a \"b\">]><a/>", "<a>&b;</a>", &deep, &long]
        {
            assert!(matches!(read(text.as_bytes()), Err(Problem::Malformed)), "{}", text.get(..50).unwrap_or(text));
        }
        assert!(matches!(read(&b"<a>\xff</a>"[..]), Err(Problem::Malformed)));
    }

    #[test]
    fn a_connection_that_fails_is_not_the_fault_of_the_document() {
        struct Cut;
        impl Read for Cut {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let found = read(b"<a><b>1".chain(Cut));
        assert!(matches!(&found, Err(Problem::Source(e)) if e.kind() == io::ErrorKind::ConnectionReset), "{found:?}");
    }

    struct Counted<R> {
        source: R,
        bytes: usize,
    }

    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let read = self.source.read(bytes)?;
            self.bytes += read;
            Ok(read)
        }
    }
}
