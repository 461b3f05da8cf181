//! An entry's header: a block of fixed fields (ustar), and before it, for what they can't hold, pax records.
//!
//! Every reader understands the fields, which hold ASCII, names of 100 bytes and octal numbers. A record is
//! `LENGTH KEYWORD=VALUE` and a newline, where LENGTH counts its own digits too; values may hold any bytes. Where a
//! record stands for a field, the field holds what comes nearest.

use super::acl;
use super::archive::BLOCK;
use crate::format::entry::Content;
use crate::format::{Entry, Kind, Timestamp};

/// Bytes of the fields for names and for names of users.
const NAME: usize = 100;
/// One less than the field, which old readers want to end with a zero.
const USER: usize = 31;
/// Largest numbers in fields of 8 and 12 bytes, whose last one is a zero.
const SMALL: u64 = 0o7777777;
const LARGE: u64 = 0o77777777777;

/// What comes with a header.
pub(super) enum Body<'a> {
    /// Nothing.
    None,
    /// A file's bytes.
    File { size: u64 },
    /// A list of islands and their data, `stored` bytes together.
    Sparse { size: u64, stored: u64 },
    /// Nothing, since it is the file that has this name in the archive.
    Link(&'a [u8]),
}

/// An entry in the archive.
pub(super) struct Member<'a> {
    pub(super) entry: &'a Entry,
    /// Its name there; that of a directory ends in a slash.
    pub(super) path: &'a [u8],
    pub(super) user: Option<&'a str>,
    pub(super) group: Option<&'a str>,
    pub(super) body: Body<'a>,
}

/// Whether the fields can hold a device's number, for which pax has no records. Those of Linux fit.
pub(super) fn fits(entry: &Entry) -> bool {
    match entry.content {
        Content::Device(major, minor) => u64::from(major.max(minor)) <= SMALL,
        _ => true,
    }
}

impl Member<'_> {
    /// The header, in whole blocks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut records = Records::default();
        let own = self.own_header(&mut records);
        if records.bytes.is_empty() {
            return own.to_vec();
        }
        // Whoever doesn't know pax takes the records for a file of this name.
        let base = self.path.strip_suffix(b"/").unwrap_or(self.path);
        let name = [b"./PaxHeaders/", base.rsplit(|byte| *byte == b'/').next().unwrap_or_default()].concat();
        let mut header = Fields::new();
        header.text(0, NAME, &name);
        header.number(100, 8, 0o644);
        header.number(124, 12, records.bytes.len() as u64);
        header.put(156, b"x");
        let mut encoded = header.finish().to_vec();
        encoded.append(&mut records.bytes);
        encoded.resize(encoded.len().next_multiple_of(BLOCK as usize), 0);
        encoded.extend_from_slice(&own);
        encoded
    }

    fn own_header(&self, records: &mut Records) -> [u8; BLOCK as usize] {
        let entry = self.entry;
        let (user, group) = (self.user.unwrap_or_default(), self.group.unwrap_or_default());
        let target = self.target();
        if [self.path, target].iter().any(|name| str::from_utf8(name).is_err()) {
            records.push("hdrcharset", b"BINARY");
        }
        let sparse_name;
        let path = match self.body {
            Body::Sparse { .. } => {
                // Whoever doesn't know sparse files gets list and islands, which must not look like the file.
                let (folder, base) = split(self.path);
                sparse_name = [folder, b"GNUSparseFile.0/", base].concat();
                sparse_name.as_slice()
            }
            _ => self.path,
        };
        let mut fields = Fields::new();
        fields.text_or_record(0, NAME, path, "path", records);
        fields.number(100, 8, entry.mode.into());
        fields.number_or_record(108, 8, entry.uid.into(), "uid", records);
        fields.number_or_record(116, 8, entry.gid.into(), "gid", records);
        let size = match self.body {
            Body::File { size } => size,
            Body::Sparse { stored, .. } => stored,
            Body::None | Body::Link(_) => 0,
        };
        fields.number_or_record(124, 12, size, "size", records);
        let seconds = u64::try_from(entry.mtime.seconds);
        fields.number(136, 12, seconds.unwrap_or(0));
        if entry.mtime.nanos != 0 || seconds.map_or(true, |seconds| seconds > LARGE) {
            records.push("mtime", decimal(entry.mtime).as_bytes());
        }
        fields.put(156, self.kind());
        fields.text_or_record(157, NAME, target, "linkpath", records);
        fields.text_or_record(265, USER, user.as_bytes(), "uname", records);
        fields.text_or_record(297, USER, group.as_bytes(), "gname", records);
        let (major, minor) = match entry.content {
            Content::Device(major, minor) => (major, minor),
            _ => (0, 0),
        };
        fields.number(329, 8, major.into());
        fields.number(337, 8, minor.into());
        if let Body::Sparse { size, .. } = self.body {
            records.push("GNU.sparse.major", b"1");
            records.push("GNU.sparse.minor", b"0");
            records.push("GNU.sparse.name", self.path);
            records.push("GNU.sparse.realsize", size.to_string().as_bytes());
        }
        // A further name shares those of the first.
        if !matches!(self.body, Body::Link(_)) {
            entry.xattrs.iter().for_each(|(name, value)| records.attribute(name, value));
        }
        fields.finish()
    }

    /// Where a link leads.
    fn target(&self) -> &[u8] {
        match (&self.body, &self.entry.content) {
            (Body::Link(first), _) => first,
            (_, Content::Target(target)) => target,
            _ => b"",
        }
    }

    fn kind(&self) -> &'static [u8; 1] {
        match (&self.body, self.entry.kind) {
            (Body::Link(_), _) => b"1",
            // Sockets get no header.
            (_, Kind::File | Kind::Socket) => b"0",
            (_, Kind::Symlink) => b"2",
            (_, Kind::CharDevice) => b"3",
            (_, Kind::BlockDevice) => b"4",
            (_, Kind::Directory) => b"5",
            (_, Kind::Fifo) => b"6",
        }
    }
}

/// A path up to its last slash, and what follows.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1))
}

/// A time in seconds, with as many decimals as it takes.
fn decimal(time: Timestamp) -> String {
    // Seconds are rounded down, but a decimal counts away from zero.
    let (sign, seconds, nanos) = match (time.seconds < 0, time.nanos) {
        (false, nanos) => ("", time.seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
        (true, nanos) => ("-", time.seconds.unsigned_abs() - 1, 1_000_000_000 - nanos.min(1_000_000_000)),
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Pax records.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
}

impl Records {
    fn push(&mut self, keyword: impl AsRef<[u8]>, value: &[u8]) {
        let keyword = keyword.as_ref();
        // A space, an equals sign, a newline.
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + digits(length) {
            length = rest + digits(length);
        }
        self.bytes.extend_from_slice(format!("{length} ").as_bytes());
        for part in [keyword, b"=", value, b"\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    /// An extended attribute; as text if it is an access control list that makes sense.
    fn attribute(&mut self, name: &[u8], value: &[u8]) {
        if let Some((_, keyword)) = acl::KINDS.iter().find(|(attribute, _)| *attribute == name) {
            if let Some(text) = acl::text(value) {
                return self.push(keyword, text.as_bytes());
            }
        }
        // An equals sign would end the keyword. GNU tar writes and reads it so.
        let mut keyword = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => keyword.extend_from_slice(b"%3D"),
                b'%' => keyword.extend_from_slice(b"%25"),
                byte => keyword.push(*byte),
            }
        }
        self.push(keyword, value);
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// The fields of a block, by offset and length.
struct Fields([u8; BLOCK as usize]);

impl Fields {
    fn new() -> Self {
        let mut fields = Fields([0; BLOCK as usize]);
        fields.put(257, b"ustar\x0000");
        fields
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (field, byte) in self.0.iter_mut().skip(at).zip(bytes) {
            *field = *byte;
        }
    }

    /// As much of a text as there is room for.
    fn text(&mut self, at: usize, room: usize, text: &[u8]) {
        self.put(at, text.get(..room).unwrap_or(text));
    }

    fn text_or_record(&mut self, at: usize, room: usize, text: &[u8], keyword: &str, records: &mut Records) {
        self.text(at, room, text);
        if text.len() > room || !text.is_ascii() {
            records.push(keyword, text);
        }
    }

    /// A number that fits, or the largest that does.
    fn number(&mut self, at: usize, length: usize, number: u64) {
        let largest = if length == 8 { SMALL } else { LARGE };
        let number = number.min(largest);
        self.put(at, format!("{number:0width$o}\0", width = length - 1).as_bytes());
    }

    fn number_or_record(&mut self, at: usize, length: usize, number: u64, keyword: &str, records: &mut Records) {
        self.number(at, length, number);
        let largest = if length == 8 { SMALL } else { LARGE };
        if number > largest {
            records.push(keyword, number.to_string().as_bytes());
        }
    }

    /// The block, with its checksum: the sum of all bytes, where those of the checksum count as spaces.
    fn finish(mut self) -> [u8; BLOCK as usize] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}
