//! An entry's header: a block of fixed fields (ustar), preceded by pax records for values that do not fit in them.
//!
//! All tar readers understand the fields: ASCII text, names of up to 100 bytes, octal numbers. A record is `LENGTH
//! KEYWORD=VALUE` and a newline, where LENGTH includes its own digits; values may contain any bytes. If a record
//! replaces a field, the field contains a truncated or the nearest possible value.

use super::acl;
use super::tar_output::BLOCK;
use crate::archive::EntryRef;
use crate::format::{Kind, Timestamp};

/// Size in bytes of the fields for paths.
const NAME: usize = 100;
/// Maximum length in bytes of user and group names: one less than the field, since old readers expect a NUL.
const USER: usize = 31;
/// The largest numbers in fields of 8 and 12 bytes, which end with a NUL.
const SMALL: u64 = 0o7777777;
const LARGE: u64 = 0o77777777777;

/// The data that follows a header.
pub(super) enum Body<'a> {
    None,
    /// The content of a file.
    File {
        size: u64,
    },
    /// The extent map and the extents of a sparse file, `stored` bytes in total.
    Sparse {
        size: u64,
        stored: u64,
    },
    /// None: the entry is a hard link to this name in the archive.
    Link(&'a [u8]),
}

/// An entry in the archive.
pub(super) struct Member<'a> {
    pub(super) entry: &'a EntryRef<'a>,
    /// The name in the archive; that of a directory ends in a slash.
    pub(super) path: &'a [u8],
    pub(super) user: Option<&'a str>,
    pub(super) group: Option<&'a str>,
    pub(super) body: Body<'a>,
}

/// Whether a device number fits in the fields; pax has no records for it. All device numbers of Linux fit.
pub(super) fn fits(entry: &EntryRef<'_>) -> bool {
    let (major, minor) = entry.device;
    u64::from(major.max(minor)) <= SMALL
}

impl Member<'_> {
    /// The header, in whole blocks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut records = PaxRecords::default();
        let own = self.own_header(&mut records);
        if records.bytes.is_empty() {
            return own.to_vec();
        }
        // Readers without pax support extract the records as a file of this name.
        let base = self.path.strip_suffix(b"/").unwrap_or(self.path);
        let name = [b"./PaxHeaders/", base.rsplit(|byte| *byte == b'/').next().unwrap_or_default()].concat();
        let mut header = TarHeader::new();
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

    fn own_header(&self, records: &mut PaxRecords) -> [u8; BLOCK as usize] {
        let entry = self.entry;
        let (user, group) = (self.user.unwrap_or_default(), self.group.unwrap_or_default());
        let target = self.target();
        if [self.path, target].iter().any(|name| str::from_utf8(name).is_err()) {
            records.push("hdrcharset", b"BINARY");
        }
        let sparse_name;
        let path = match self.body {
            Body::Sparse { .. } => {
                // Readers without sparse support extract map and extents, which must not have the name of the file.
                let (folder, base) = split(self.path);
                sparse_name = [folder, b"GNUSparseFile.0/", base].concat();
                sparse_name.as_slice()
            }
            _ => self.path,
        };
        let mut fields = TarHeader::new();
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
        let (major, minor) = entry.device;
        fields.number(329, 8, major.into());
        fields.number(337, 8, minor.into());
        if let Body::Sparse { size, .. } = self.body {
            records.push("GNU.sparse.major", b"1");
            records.push("GNU.sparse.minor", b"0");
            records.push("GNU.sparse.name", self.path);
            records.push("GNU.sparse.realsize", size.to_string().as_bytes());
        }
        // A hard link shares the attributes of the first name.
        if !matches!(self.body, Body::Link(_)) {
            entry.xattrs.iter().for_each(|(name, value)| records.attribute(name, value));
        }
        fields.finish()
    }

    /// The target of a symlink or hard link.
    fn target(&self) -> &[u8] {
        match self.body {
            Body::Link(first) => first,
            _ => self.entry.target,
        }
    }

    fn kind(&self) -> &'static [u8; 1] {
        match (&self.body, self.entry.kind) {
            (Body::Link(_), _) => b"1",
            // Sockets are skipped.
            (_, Kind::File | Kind::Socket) => b"0",
            (_, Kind::Symlink) => b"2",
            (_, Kind::CharDevice) => b"3",
            (_, Kind::BlockDevice) => b"4",
            (_, Kind::Directory) => b"5",
            (_, Kind::Fifo) => b"6",
        }
    }
}

/// Splits a path after its last slash.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1))
}

/// Seconds as a decimal number, without trailing zeros.
fn decimal(time: Timestamp) -> String {
    // The fraction is added to the seconds, so for a negative time both must be converted.
    let (sign, seconds, nanos) = match (time.seconds < 0, time.nanos) {
        (false, nanos) => ("", time.seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
        (true, nanos) => ("-", time.seconds.unsigned_abs() - 1, 1_000_000_000 - nanos.min(1_000_000_000)),
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[derive(Default)]
struct PaxRecords {
    bytes: Vec<u8>,
}

impl PaxRecords {
    fn push(&mut self, keyword: impl AsRef<[u8]>, value: &[u8]) {
        let keyword = keyword.as_ref();
        // 3 bytes for the space, the equals sign and the newline.
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

    /// Adds an extended attribute; as text if it is a valid ACL.
    fn attribute(&mut self, name: &[u8], value: &[u8]) {
        let list = acl::KINDS.iter().find(|(attribute, _)| *attribute == name);
        if let Some(((_, keyword), text)) = list.zip(acl::text(value)) {
            return self.push(keyword, text.as_bytes());
        }
        // An equals sign would end the keyword. GNU tar uses the same escapes; bsdtar does not decode them.
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

/// A ustar header block; its fields are set by offset and length.
struct TarHeader([u8; BLOCK as usize]);

impl TarHeader {
    fn new() -> Self {
        let mut fields = TarHeader([0; BLOCK as usize]);
        fields.put(257, b"ustar\x0000");
        fields
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (field, byte) in self.0.iter_mut().skip(at).zip(bytes) {
            *field = *byte;
        }
    }

    /// Sets a text, truncated to `room` bytes.
    fn text(&mut self, at: usize, room: usize, text: &[u8]) {
        self.put(at, text.get(..room).unwrap_or(text));
    }

    fn text_or_record(&mut self, at: usize, room: usize, text: &[u8], keyword: &str, records: &mut PaxRecords) {
        self.text(at, room, text);
        if text.len() > room || !text.is_ascii() {
            records.push(keyword, text);
        }
    }

    /// Sets a number, or the largest possible one if it does not fit.
    fn number(&mut self, at: usize, length: usize, number: u64) {
        let largest = if length == 8 { SMALL } else { LARGE };
        let number = number.min(largest);
        self.put(at, format!("{number:0width$o}\0", width = length - 1).as_bytes());
    }

    fn number_or_record(&mut self, at: usize, length: usize, number: u64, keyword: &str, records: &mut PaxRecords) {
        self.number(at, length, number);
        let largest = if length == 8 { SMALL } else { LARGE };
        if number > largest {
            records.push(keyword, number.to_string().as_bytes());
        }
    }

    /// Returns the block with its checksum: the sum of all bytes, with the checksum field as spaces.
    fn finish(mut self) -> [u8; BLOCK as usize] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::format::entry::HardLink;

    fn entry(kind: Kind) -> EntryRef<'static> {
        let mtime = Timestamp { seconds: 1_700_000_000, nanos: 0 };
        EntryRef { name: b"name", kind, mode: 0o640, uid: 1, gid: 2, mtime, ..EntryRef::EMPTY }
    }

    fn device(kind: Kind, major: u32, minor: u32) -> EntryRef<'static> {
        EntryRef { device: (major, minor), ..entry(kind) }
    }

    fn encoded(entry: &EntryRef<'_>, path: &[u8], body: Body<'_>) -> Vec<u8> {
        Member { entry, path, user: Some("daemon"), group: None, body }.encode()
    }

    /// A field of an entry's own header, which is the last block.
    fn field(encoded: &[u8], at: usize, length: usize) -> String {
        let block = &encoded[encoded.len() - 512..];
        String::from_utf8_lossy(&block[at..at + length]).trim_end_matches('\0').to_owned()
    }

    /// Parses the pax records.
    fn records(encoded: &[u8]) -> Vec<(String, Vec<u8>)> {
        if encoded.len() == 512 {
            return Vec::new();
        }
        assert_eq!(encoded[156], b'x');
        let size = usize::from_str_radix(str::from_utf8(&encoded[124..135]).unwrap(), 8).unwrap();
        assert_eq!(encoded.len(), 1024 + size.next_multiple_of(512));
        let mut rest = &encoded[512..512 + size];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').unwrap();
            let length: usize = str::from_utf8(&rest[..space]).unwrap().parse().unwrap();
            let (record, after) = rest.split_at(length);
            let equals = record.iter().position(|byte| *byte == b'=').unwrap();
            let value = record[equals + 1..].strip_suffix(b"\n").unwrap();
            records.push((String::from_utf8(record[space + 1..equals].to_vec()).unwrap(), value.to_vec()));
            rest = after;
        }
        records
    }

    fn record(encoded: &[u8], keyword: &str) -> Option<Vec<u8>> {
        records(encoded).into_iter().find(|(found, _)| found == keyword).map(|(_, value)| value)
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for value in (0..=1100).chain([99_980, 99_985, 99_990, 99_995]) {
            let mut records = PaxRecords::default();
            records.push("a", &vec![b'x'; value]);
            let text = String::from_utf8(records.bytes).unwrap();
            let (length, _) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), text.len(), "{value}");
        }
    }

    #[test]
    fn an_entry_that_fits_in_the_fields_takes_one_block() {
        let device = device(Kind::BlockDevice, 259, 1_048_575);
        let header = encoded(&device, b"./dev/disk", Body::None);
        assert_eq!(header.len(), 512);
        assert_eq!(field(&header, 0, 100), "./dev/disk");
        assert_eq!(field(&header, 100, 8), "0000640");
        assert_eq!((field(&header, 108, 8), field(&header, 116, 8)), ("0000001".into(), "0000002".into()));
        assert_eq!((field(&header, 124, 12), field(&header, 136, 12)), ("00000000000".into(), "14524770400".into()));
        assert_eq!(field(&header, 156, 1), "4");
        assert_eq!((field(&header, 257, 6), field(&header, 263, 2)), ("ustar".into(), "00".into()));
        assert_eq!((field(&header, 265, 32), field(&header, 297, 32)), ("daemon".into(), String::new()));
        assert_eq!((field(&header, 329, 8), field(&header, 337, 8)), ("0000403".into(), "3777777".into()));
        let others: u32 =
            header.iter().enumerate().filter(|(at, _)| !(148..156).contains(at)).map(|(_, b)| *b as u32).sum();
        assert_eq!(field(&header, 148, 8), format!("{:06o}\0 ", others + 8 * 32));
    }

    #[test]
    fn long_and_non_ascii_names_have_records() {
        let file = entry(Kind::File);
        let long = [b"./".as_slice(), &[b'n'; 300]].concat();
        let (just, beyond) = (&long[..100], &long[..101]);
        assert_eq!(record(&encoded(&file, just, Body::None), "path"), None);
        for path in [beyond, &long, "./grün".as_bytes(), b"./line\nbreak \xff"] {
            let header = encoded(&file, path, Body::None);
            let in_field = header.len() - 512;
            if path.is_ascii() {
                assert_eq!(header[in_field..in_field + 100], path[..100]);
            }
            assert_eq!(record(&header, "path").as_deref(), Some(path));
            let charset = str::from_utf8(path).is_err().then(|| b"BINARY".to_vec());
            assert_eq!(record(&header, "hdrcharset"), charset);
        }
        let link = EntryRef { target: b"\xff", ..entry(Kind::Symlink) };
        let header = encoded(&link, b"./link", Body::None);
        assert_eq!(record(&header, "linkpath").as_deref(), Some(b"\xff".as_slice()));
        assert_eq!(record(&header, "hdrcharset").as_deref(), Some(b"BINARY".as_slice()));
        let header = encoded(&file, b"./second", Body::Link(&long));
        assert_eq!((field(&header, 156, 1), record(&header, "linkpath")), ("1".into(), Some(long)));
    }

    #[test]
    fn numbers_that_do_not_fit_have_records() {
        let mut file = entry(Kind::File);
        (file.uid, file.gid) = (0o7777777, 0o10000000);
        let header = encoded(&file, b"./a", Body::File { size: (8 << 30) - 1 });
        assert_eq!(records(&header), [("gid".to_owned(), b"2097152".to_vec())]);
        assert_eq!((field(&header, 108, 8), field(&header, 116, 8)), ("7777777".into(), "7777777".into()));
        let header = encoded(&file, b"./a", Body::File { size: 8 << 30 });
        assert_eq!(record(&header, "size").as_deref(), Some(b"8589934592".as_slice()));
        let header = encoded(&file, b"./a", Body::Sparse { size: 1 << 40, stored: 1024 });
        assert_eq!((record(&header, "size"), field(&header, 124, 12)), (None, "00000002000".into()));
        assert_eq!(record(&header, "GNU.sparse.realsize").as_deref(), Some(b"1099511627776".as_slice()));
    }

    #[test]
    fn a_sparse_file_has_a_different_name_for_readers_without_sparse_support() {
        let header = encoded(&entry(Kind::File), b"./d/a", Body::Sparse { size: 9, stored: 512 });
        assert_eq!(field(&header, 0, 100), "./d/GNUSparseFile.0/a");
        assert_eq!(record(&header, "GNU.sparse.name").as_deref(), Some(b"./d/a".as_slice()));
    }

    #[test]
    fn times_are_exact_before_1970_and_after_2242() {
        let time = |seconds, nanos| Timestamp { seconds, nanos };
        for (time, field_text, expected) in [
            (time(0, 0), "00000000000", None),
            (time(0o77777777777, 0), "77777777777", None),
            (time(0o77777777777, 1), "77777777777", Some("8589934591.000000001")),
            (time(0o100000000000, 0), "77777777777", Some("8589934592")),
            (time(1, 120_000_000), "00000000001", Some("1.12")),
            (time(-1, 0), "00000000000", Some("-1")),
            (time(-1, 750_000_000), "00000000000", Some("-0.25")),
            (time(-100, 1), "00000000000", Some("-99.999999999")),
            (time(i64::MIN, 0), "00000000000", Some("-9223372036854775808")),
            (time(i64::MAX, 999_999_999), "77777777777", Some("9223372036854775807.999999999")),
        ] {
            let file = EntryRef { mtime: time, ..entry(Kind::File) };
            let header = encoded(&file, b"./a", Body::None);
            assert_eq!(field(&header, 136, 12), field_text, "{time:?}");
            assert_eq!(record(&header, "mtime").map(|value| String::from_utf8(value).unwrap()).as_deref(), expected);
        }
    }

    #[test]
    fn device_numbers_that_do_not_fit_are_detected() {
        assert!(fits(&device(Kind::CharDevice, 0o7777777, 0o7777777)));
        assert!(!fits(&device(Kind::CharDevice, 1, 0o10000000)));
        assert!(!fits(&device(Kind::CharDevice, 0o10000000, 1)));
    }

    /// An ACL as a Linux attribute: user::rw-, user:12345:rwx, group::r--, mask::rwx, other::---
    const ACL: &[u8] = b"\x02\0\0\0\
        \x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\x39\x30\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

    /// CAP_NET_BIND_SERVICE as a Linux attribute.
    const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn attributes() -> Vec<(Vec<u8>, Vec<u8>)> {
        [
            (b"security.capability".as_slice(), CAPABILITY),
            (b"system.posix_acl_access", ACL),
            (b"user.100%=sure", b"odd name"),
            (b"user.lines", b"a\nb=c\0d\xff\n"),
            (b"user.nothing", b""),
        ]
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .into()
    }

    #[test]
    fn attributes_and_access_lists_have_records() {
        let mut xattrs = attributes();
        xattrs.push((b"system.posix_acl_default".to_vec(), b"no list".to_vec()));
        let mut file = EntryRef { xattrs: &xattrs, ..entry(Kind::File) };
        let expected: Vec<_> = [
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("SCHILY.acl.access", b"user::rw-\nuser:12345:rwx\ngroup::r--\nmask::rwx\nother::---\n"),
            ("SCHILY.xattr.user.100%25%3Dsure", b"odd name"),
            ("SCHILY.xattr.user.lines", b"a\nb=c\0d\xff\n"),
            ("SCHILY.xattr.user.nothing", b""),
            ("SCHILY.xattr.system.posix_acl_default", b"no list"),
        ]
        .map(|(keyword, value)| (keyword.to_owned(), value.to_vec()))
        .into();
        assert_eq!(records(&encoded(&file, b"./a", Body::None)), expected);
        file.link = Some(HardLink { id: 1, count: 2 });
        assert_eq!(records(&encoded(&file, b"./b", Body::Link(b"./a"))), [], "those of the first name are its own");
    }

    #[test]
    fn gnu_tar_restores_attributes_and_access_lists() {
        let folder = tempfile::tempdir().unwrap();
        let (of_file, of_directory) = (attributes(), [(b"system.posix_acl_default".to_vec(), ACL.to_vec())]);
        let file = EntryRef { xattrs: &of_file, ..entry(Kind::File) };
        let directory = EntryRef { mode: 0o750, xattrs: &of_directory, ..entry(Kind::Directory) };
        let members = [encoded(&directory, b"./d/", Body::None), encoded(&file, b"./a", Body::File { size: 0 })];
        let archive = [members.concat(), vec![0; 1024]].concat();
        let mut tar = Command::new("tar");
        tar.args(["-xpf", "-", "--acls", "--xattrs", "--xattrs-include=*", "-C"]).arg(folder.path());
        let mut tar = tar.stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(tar.wait().unwrap().success());
        for (name, xattrs) in [("a", file.xattrs), ("d", directory.xattrs)] {
            for (attribute, expected) in xattrs {
                let mut value = vec![0; 1000];
                let length = rustix::fs::getxattr(folder.path().join(name), attribute.as_slice(), value.as_mut_slice())
                    .unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(attribute)));
                assert_eq!(&value[..length], expected, "{}", String::from_utf8_lossy(attribute));
            }
        }
    }
}
