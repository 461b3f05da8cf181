//! The messages of SFTP version 3, as in draft-ietf-secsh-filexfer-02, and the extensions of OpenSSH that are used.
//!
//! A server may be hostile: every length is checked against the message, and the message against [`LONGEST`].

/// The version of the protocol.
pub(super) const VERSION: u32 = 3;
/// Bytes of the longest message that is accepted. OpenSSH sends at most 256 KiB.
pub(super) const LONGEST: usize = 1 << 18;
/// Bytes of the longest handle, according to the draft.
const LONGEST_HANDLE: usize = 256;

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;
const IS_EXTENDED: u32 = 1 << 31;

/// An extension of OpenSSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    Fsync,
    Hardlink,
    Statvfs,
}

impl Extension {
    fn name(self) -> &'static str {
        match self {
            Extension::Fsync => "fsync@openssh.com",
            Extension::Hardlink => "hardlink@openssh.com",
            Extension::Statvfs => "statvfs@openssh.com",
        }
    }
}

/// Ways to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    /// Write to a new file; an existing one is an error.
    Create,
}

/// A request. Paths and handles are bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    Open {
        path: &'a str,
        mode: Mode,
    },
    Close {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        length: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        bytes: &'a [u8],
    },
    /// The attributes of a file, not of the target of a link.
    Lstat {
        path: &'a str,
    },
    Stat {
        path: &'a str,
    },
    Fstat {
        handle: &'a [u8],
    },
    OpenDir {
        path: &'a str,
    },
    ReadDir {
        handle: &'a [u8],
    },
    Remove {
        path: &'a str,
    },
    MkDir {
        path: &'a str,
    },
    RmDir {
        path: &'a str,
    },
    Rename {
        from: &'a str,
        to: &'a str,
    },
    Fsync {
        handle: &'a [u8],
    },
    Hardlink {
        from: &'a str,
        to: &'a str,
    },
    Statvfs {
        path: &'a str,
    },
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status(Status, String),
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<Entry>),
    Attributes(Attributes),
    Extended(Vec<u8>),
}

/// The status of a request that returns nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Eof,
    NoSuchFile,
    PermissionDenied,
    /// Any error that version 3 has no code for, such as a full disk or a name that is taken.
    Failure,
    Unsupported,
    Other(u32),
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// `None` if it is not UTF-8, which no object's name is.
    pub(super) name: Option<String>,
    pub(super) attributes: Attributes,
}

/// Attributes of a file, as far as the server sends them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) modified: Option<u32>,
}

/// The kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    File,
    Directory,
    Other,
}

impl Attributes {
    /// The kind of file; `None` if the server does not say it.
    pub(super) fn kind(&self) -> Option<FileKind> {
        self.mode.map(|mode| match mode & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Directory,
            _ => FileKind::Other,
        })
    }
}

/// The reply to [`Request::Statvfs`], as far as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileSystem {
    /// Bytes that the user can still store.
    pub(super) available: u64,
    /// Whether the user can create another file.
    pub(super) has_inodes: bool,
    pub(super) read_only: bool,
}

/// A message that is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The message that begins a connection.
pub(super) fn hello() -> Vec<u8> {
    let mut message = Message::new(1);
    message.number(VERSION);
    message.finish()
}

/// Parses the server's answer to [`hello`]: its version and its extensions.
pub(super) fn parse_hello(message: &[u8]) -> Result<(u32, Vec<Extension>), Malformed> {
    let mut parser = Parser(message);
    if parser.byte()? != 2 {
        return Err(Malformed);
    }
    let version = parser.number()?;
    let mut extensions = Vec::new();
    while !parser.0.is_empty() {
        let (name, _) = (parser.bytes()?, parser.bytes()?);
        let known = [Extension::Fsync, Extension::Hardlink, Extension::Statvfs];
        extensions.extend(known.into_iter().find(|known| known.name().as_bytes() == name));
    }
    Ok((version, extensions))
}

impl Request<'_> {
    /// The message with its length.
    pub(super) fn encode(&self, id: u32) -> Vec<u8> {
        let begin = |kind| {
            let mut message = Message::new(kind);
            message.number(id);
            message
        };
        let with = |kind, text: &[u8]| {
            let mut message = begin(kind);
            message.bytes(text);
            message
        };
        let extended = |extension: Extension| with(200, extension.name().as_bytes());
        let message = match *self {
            Request::Open { path, mode } => {
                let mut message = with(3, path.as_bytes());
                // READ; WRITE, CREAT and EXCL.
                match mode {
                    Mode::Read => {
                        message.number(1);
                        message.number(0);
                    }
                    Mode::Create => {
                        message.number(2 | 8 | 0x20);
                        message.number(HAS_MODE);
                        message.number(0o644);
                    }
                }
                message
            }
            Request::Close { handle } => with(4, handle),
            Request::Read { handle, offset, length } => {
                let mut message = with(5, handle);
                message.long(offset);
                message.number(length);
                message
            }
            Request::Write { handle, offset, bytes } => {
                let mut message = with(6, handle);
                message.long(offset);
                message.bytes(bytes);
                message
            }
            Request::Lstat { path } => with(7, path.as_bytes()),
            Request::Fstat { handle } => with(8, handle),
            Request::OpenDir { path } => with(11, path.as_bytes()),
            Request::ReadDir { handle } => with(12, handle),
            Request::Remove { path } => with(13, path.as_bytes()),
            Request::MkDir { path } => {
                let mut message = with(14, path.as_bytes());
                // No attributes: the server's defaults.
                message.number(0);
                message
            }
            Request::RmDir { path } => with(15, path.as_bytes()),
            Request::Stat { path } => with(17, path.as_bytes()),
            Request::Rename { from, to } => {
                let mut message = with(18, from.as_bytes());
                message.bytes(to.as_bytes());
                message
            }
            Request::Fsync { handle } => {
                let mut message = extended(Extension::Fsync);
                message.bytes(handle);
                message
            }
            Request::Hardlink { from, to } => {
                let mut message = extended(Extension::Hardlink);
                message.bytes(from.as_bytes());
                message.bytes(to.as_bytes());
                message
            }
            Request::Statvfs { path } => {
                let mut message = extended(Extension::Statvfs);
                message.bytes(path.as_bytes());
                message
            }
        };
        message.finish()
    }
}

impl Reply {
    /// Parses a message without its length. Returns the id of its request, too.
    pub(super) fn parse(message: &[u8]) -> Result<(u32, Reply), Malformed> {
        let mut parser = Parser(message);
        let (kind, id) = (parser.byte()?, parser.number()?);
        let reply = match kind {
            101 => {
                let status = match parser.number()? {
                    0 => Status::Ok,
                    1 => Status::Eof,
                    2 => Status::NoSuchFile,
                    3 => Status::PermissionDenied,
                    4 => Status::Failure,
                    8 => Status::Unsupported,
                    other => Status::Other(other),
                };
                // Some servers send no text.
                let text = parser.bytes().unwrap_or_default();
                Reply::Status(status, String::from_utf8_lossy(text).into_owned())
            }
            102 => match parser.bytes()? {
                handle if handle.len() <= LONGEST_HANDLE => Reply::Handle(handle.to_owned()),
                _ => return Err(Malformed),
            },
            103 => Reply::Data(parser.bytes()?.to_owned()),
            104 => {
                let count = parser.number()?;
                // Not reserved: the count may be wrong.
                let mut entries = Vec::new();
                for _ in 0..count {
                    let (name, _long) = (parser.bytes()?, parser.bytes()?);
                    let name = std::str::from_utf8(name).ok().map(str::to_owned);
                    entries.push(Entry { name, attributes: parser.attributes()? });
                }
                Reply::Names(entries)
            }
            105 => Reply::Attributes(parser.attributes()?),
            201 => Reply::Extended(parser.0.to_owned()),
            _ => return Err(Malformed),
        };
        Ok((id, reply))
    }
}

impl FileSystem {
    /// Parses the content of [`Reply::Extended`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut parser = Parser(bytes);
        let mut numbers = [0; 11];
        for number in &mut numbers {
            *number = parser.long()?;
        }
        let [_, unit, _, _, available, inodes, _, free_inodes, _, flags, _] = numbers;
        Ok(FileSystem {
            available: available.saturating_mul(unit),
            // Some file systems do not count inodes.
            has_inodes: inodes == 0 || free_inodes > 0,
            read_only: flags & 1 != 0,
        })
    }
}

/// A message being written.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u8) -> Self {
        // The first four bytes become the length.
        Message(vec![0, 0, 0, 0, kind])
    }

    fn number(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn long(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32 - 4;
        if let Some(start) = self.0.first_chunk_mut() {
            *start = length.to_be_bytes();
        }
        self.0
    }
}

/// The rest of a message being read.
struct Parser<'m>(&'m [u8]);

impl<'m> Parser<'m> {
    fn take(&mut self, length: usize) -> Result<&'m [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn bytes(&mut self) -> Result<&'m [u8], Malformed> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }

    fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.number()?;
        let mut found = Attributes::default();
        if flags & HAS_SIZE != 0 {
            found.size = Some(self.long()?);
        }
        if flags & HAS_OWNER != 0 {
            self.take(8)?;
        }
        if flags & HAS_MODE != 0 {
            found.mode = Some(self.number()?);
        }
        if flags & HAS_TIMES != 0 {
            self.number()?;
            found.modified = Some(self.number()?);
        }
        if flags & IS_EXTENDED != 0 {
            for _ in 0..self.number()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_encoded_as_the_draft_says() {
        assert_eq!(hello(), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
        let open = Request::Open { path: "a/b", mode: Mode::Create }.encode(7);
        assert_eq!(open, b"\0\0\0\x18\x03\0\0\0\x07\0\0\0\x03a/b\0\0\0\x2a\0\0\0\x04\0\0\x01\xa4");
        let read = Request::Read { handle: b"h", offset: 258, length: 5 }.encode(8);
        assert_eq!(read, b"\0\0\0\x16\x05\0\0\0\x08\0\0\0\x01h\0\0\0\0\0\0\x01\x02\0\0\0\x05");
        let sync = Request::Fsync { handle: b"h" }.encode(9);
        assert_eq!(sync, b"\0\0\0\x1f\xc8\0\0\0\x09\0\0\0\x11fsync@openssh.com\0\0\0\x01h");
    }

    #[test]
    fn the_servers_version_and_known_extensions_are_parsed() {
        let message = b"\x02\0\0\0\x03\0\0\0\x11fsync@openssh.com\0\0\0\x011\0\0\0\x03new\0\0\0\0";
        assert_eq!(parse_hello(message), Ok((3, vec![Extension::Fsync])));
        assert_eq!(parse_hello(&message[..message.len() - 1]), Err(Malformed));
        assert_eq!(parse_hello(b"Welcome to this machine"), Err(Malformed));
    }

    #[test]
    fn replies_are_parsed_and_lengths_are_not_believed() {
        let parse = |message: &[u8]| Reply::parse(message).map(|(_, reply)| reply);
        let full = b"\x65\0\0\0\x01\0\0\0\x04\0\0\0\x07Failure\0\0\0\0";
        assert_eq!(parse(full), Ok(Reply::Status(Status::Failure, "Failure".into())));
        assert_eq!(parse(b"\x65\0\0\0\x01\0\0\0\0"), Ok(Reply::Status(Status::Ok, String::new())));
        assert_eq!(parse(b"\x67\0\0\0\x01\0\0\0\x02hi"), Ok(Reply::Data(b"hi".to_vec())));
        assert_eq!(parse(b"\x67\0\0\0\x01\xff\xff\xff\xffhi"), Err(Malformed));
        // Four billion names, and none of them.
        assert_eq!(parse(b"\x68\0\0\0\x01\xff\xff\xff\xff"), Err(Malformed));
        let attributes = b"\x69\0\0\0\x01\0\0\0\x0d\0\0\0\0\0\0\0\x05\0\0\x81\xa4\0\0\0\x01\0\0\0\x02";
        let expected = Attributes { size: Some(5), mode: Some(0o100_644), modified: Some(2) };
        assert_eq!(parse(attributes), Ok(Reply::Attributes(expected)));
        assert_eq!(expected.kind(), Some(FileKind::File));
    }

    proptest! {
        #[test]
        fn no_message_panics(kind in 101u8..106, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = [&[kind, 0, 0, 0, 1][..], &bytes].concat();
            let _ = (Reply::parse(&message), Reply::parse(&bytes), parse_hello(&bytes), FileSystem::parse(&bytes));
        }
    }
}
