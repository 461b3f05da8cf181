//! Entries of a tree: files, directories, links and special files with their metadata.

use super::cbor::{CborReader, CborWriter};
use super::error::Error;
use super::id::Digest;
use super::limits::BLOCK_SIZE;

/// The longest name in bytes. Linux allows 255; some foreign file systems a little more.
const NAME_MAX: usize = 1024;
/// The longest link target in bytes, as on Linux.
const TARGET_MAX: usize = 4096;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];

    /// The type's number in the format.
    pub fn code(self) -> u64 {
        Kind::ALL.iter().position(|kind| *kind == self).unwrap_or_default() as u64
    }

    fn from_code(code: u64) -> Option<Self> {
        Kind::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

/// A point in time, as the time since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds to add, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    pub(super) fn write(&self, w: &mut CborWriter) {
        w.array(2).int(self.seconds).uint(self.nanos.into());
    }

    pub(super) fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        r.array_of(2)?;
        let (seconds, nanos) = (r.int()?, r.u32()?);
        if nanos >= 1_000_000_000 {
            return Err(r.wrong(format!("a time with {nanos} nanoseconds")));
        }
        Ok(Timestamp { seconds, nanos })
    }
}

/// A reference to a chunk, which is a slice of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// The digest of the chunk.
    pub digest: Digest,
    /// The block, as an index into the node's table of blocks.
    pub block: u32,
    /// The offset of the chunk in the block's plaintext.
    pub start: u32,
    /// The size of the chunk in bytes.
    pub length: u32,
}

impl ChunkRef {
    pub(super) fn write<'w>(&self, w: &'w mut CborWriter) -> &'w mut CborWriter {
        w.bytes(&self.digest.0).uint(self.block.into()).uint(self.start.into()).uint(self.length.into())
    }

    pub(super) fn read(r: &mut CborReader<'_>, table: usize) -> Result<Self, Error> {
        let (digest, block, start) = read_location(r)?;
        let length = r.u32()?;
        ChunkRef { digest, block, start, length }.checked(r, table)
    }

    /// Checks the reference against the number of blocks in the node's table.
    fn checked(self, r: &CborReader<'_>, table: usize) -> Result<Self, Error> {
        let inside = u64::from(self.start) + u64::from(self.length) <= BLOCK_SIZE as u64;
        if self.length == 0 || !inside || self.block as usize >= table {
            return Err(r.wrong("a chunk reference beyond its block or the table of blocks"));
        }
        Ok(self)
    }
}

fn read_location(r: &mut CborReader<'_>) -> Result<(Digest, u32, u32), Error> {
    let digest = read_digest(r)?;
    Ok((digest, r.u32()?, r.u32()?))
}

pub(super) fn read_digest(r: &mut CborReader<'_>) -> Result<Digest, Error> {
    let bytes = r.bytes()?;
    Digest::from_slice(bytes).ok_or_else(|| r.wrong("a digest that is not 32 bytes"))
}

/// A part of a file: a chunk or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Stored data.
    Chunk(ChunkRef),
    /// A hole (unallocated zeros) of this many bytes.
    Hole(u64),
}

impl Extent {
    /// The number of bytes of the file in this extent.
    pub fn length(&self) -> u64 {
        match self {
            Extent::Chunk(chunk) => chunk.length.into(),
            Extent::Hole(length) => *length,
        }
    }

    pub(super) fn write(&self, w: &mut CborWriter) {
        match self {
            Extent::Chunk(chunk) => {
                chunk.write(w.array(4));
            }
            Extent::Hole(length) => {
                w.uint(*length);
            }
        }
    }

    pub(super) fn read(r: &mut CborReader<'_>, table: usize) -> Result<Self, Error> {
        if r.at_integer() {
            return match r.uint()? {
                0 => Err(r.wrong("an empty hole")),
                length => Ok(Extent::Hole(length)),
            };
        }
        r.array_of(4)?;
        Ok(Extent::Chunk(ChunkRef::read(r, table)?))
    }
}

/// A reference to a node of a long extent list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef {
    /// The number of bytes of the file below this node.
    pub covers: u64,
    /// The node's chunk.
    pub node: ChunkRef,
}

impl NodeRef {
    pub(super) fn write(&self, w: &mut CborWriter) {
        self.node.write(w.array(5).uint(self.covers));
    }

    pub(super) fn read(r: &mut CborReader<'_>, table: usize) -> Result<Self, Error> {
        r.array_of(5)?;
        let covers = r.uint()?;
        if covers == 0 {
            return Err(r.wrong("a node without extents"));
        }
        Ok(NodeRef { covers, node: ChunkRef::read(r, table)? })
    }
}

/// The content of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subtree {
    /// The number of entries below the directory at any depth, without the directory itself.
    pub below: u64,
    /// The directory's top node; `None` if it is empty.
    pub node: Option<ChunkRef>,
}

/// The content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An empty file, or an entry of a type without content.
    Empty,
    /// A file with one chunk.
    Chunk(ChunkRef),
    /// A file with several chunks or holes, all listed here.
    Extents {
        /// The file's digest; see [`ContentHasher`](super::ContentHasher).
        digest: Digest,
        /// The extents in order. Their lengths add up to the file's size.
        extents: Vec<Extent>,
    },
    /// A file with too many extents for one node.
    Nodes {
        /// The file's digest; see [`ContentHasher`](super::ContentHasher).
        digest: Digest,
        /// The number of levels of extent indexes between these references and the extents; 0 if these nodes contain
        /// extents.
        depth: u8,
        /// The nodes in order. The bytes that they cover add up to the file's size.
        nodes: Vec<NodeRef>,
        /// The total size of the holes in bytes, known without reading the nodes. Optional: writers may store 0, and
        /// readers of the content must not rely on it.
        holes: u64,
    },
    /// The target of a symbolic link.
    Target(Vec<u8>),
    /// The entries of a directory.
    Directory(Subtree),
    /// A device number (major, minor).
    Device(u32, u32),
}

/// The link id and link count of a file with several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardLink {
    /// The same for all entries of a snapshot that are the same file; below 2^32. Entries with the same id may still
    /// differ: see [`Entry::inode_digest`].
    pub id: u64,
    /// The number of names of the file, inside and outside of the snapshot.
    pub count: u32,
}

impl HardLink {
    /// Upper bound of ids, exclusive. Mount inode numbers have room for an id, a snapshot number and a part of a digest.
    pub const ID_LIMIT: u64 = 1 << 32;
}

/// The name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: any bytes except `/` and NUL.
    pub name: Vec<u8>,
    /// The type.
    pub kind: Kind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u32,
    /// The numeric user id.
    pub uid: u32,
    /// The numeric group id.
    pub gid: u32,
    /// The time of the last change of the content.
    pub mtime: Timestamp,
    /// The size of a file or of a link's target in bytes; otherwise 0.
    pub size: u64,
    /// The content; its variant matches `kind`.
    pub content: Content,
    /// Set if the file has other names.
    pub link: Option<HardLink>,
    /// The extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Bits of [`Entry::CHANGED`] and [`Entry::UNPRIVILEGED`].
    pub flags: u64,
    /// Bits of [`Entry::INODE_FLAGS`].
    pub inode_flags: u32,
}

impl Subtree {
    /// Upper bound, exclusive, of the number of entries below a directory and of the span of a segment. Mount inode numbers
    /// have room for a rank and a snapshot number, and no sum of them in a node overflows.
    pub const LIMIT: u64 = 1 << 40;
}

impl Entry {
    /// The file changed while it was read; the stored content may mix two states.
    pub const CHANGED: u64 = 1;
    /// The entry has set-id bits, file capabilities or a device number, but the mount that it was read from ignored them
    /// (`nosuid`, `nodev`, or a FUSE mount of an ordinary user). Restoring them would give them an effect that they did not
    /// have on the source. Set only if there are any, never on directories.
    pub const UNPRIVILEGED: u64 = 2;

    /// The inode flags that are stored, with the values of Linux's `FS_IOC_GETFLAGS`: those that users set with `chattr`
    /// and that do not depend on the file system's storage.
    pub const INODE_FLAGS: u32 = Entry::SYNCHRONOUS
        | Entry::IMMUTABLE
        | Entry::APPEND_ONLY
        | Entry::NO_DUMP
        | Entry::NO_ATIME
        | Entry::DIR_SYNC
        | Entry::TOP_DIR
        | Entry::NO_COW
        | Entry::PROJECT_INHERIT;
    /// `chattr +S`: synchronous updates.
    pub const SYNCHRONOUS: u32 = 0x8;
    /// `chattr +i`: immutable.
    pub const IMMUTABLE: u32 = 0x10;
    /// `chattr +a`: append only.
    pub const APPEND_ONLY: u32 = 0x20;
    /// `chattr +d`: backups may omit it.
    pub const NO_DUMP: u32 = 0x40;
    /// `chattr +A`: no updates of the access time.
    pub const NO_ATIME: u32 = 0x80;
    /// `chattr +D`: synchronous directory updates.
    pub const DIR_SYNC: u32 = 0x1_0000;
    /// `chattr +T`: the subdirectories are unrelated (top of a directory hierarchy).
    pub const TOP_DIR: u32 = 0x2_0000;
    /// `chattr +C`: no copy on write.
    pub const NO_COW: u32 = 0x80_0000;
    /// `chattr +P`: new entries inherit the project id.
    pub const PROJECT_INHERIT: u32 = 0x2000_0000;

    /// The most bytes of extended attributes (names and values) that a writer stores for one entry, so that the entry fits
    /// into a node.
    pub const XATTRS_MAX: usize = 384 << 10;

    /// The set-user-id and set-group-id bits of the mode.
    pub const SET_ID: u32 = 0o6000;
    /// The extended attribute for file capabilities.
    pub const CAPABILITIES: &[u8] = b"security.capability";

    /// The number of entries in a preorder walk of this entry: itself and everything below it.
    pub fn span(&self) -> u64 {
        match &self.content {
            Content::Directory(subtree) => subtree.below.saturating_add(1),
            _ => 1,
        }
    }

    /// Returns a digest of the inode: all fields except the name and the location of chunks.
    ///
    /// Entries with the same link id are the same file only if this digest is equal.
    pub fn inode_digest(&self) -> Digest {
        let mut inode = Entry { name: Vec::new(), ..self.clone() };
        for chunk in inode.chunk_refs_mut() {
            (chunk.block, chunk.start) = (0, 0);
        }
        let mut encoded = CborWriter::default();
        inode.write(&mut encoded);
        Digest::of(&encoded.finish())
    }

    /// Like [`Entry::inode_digest`], but with only the digest of the content, so it does not depend on how the content was
    /// split into chunks. For readers that verify the content's digest.
    pub fn file_digest(&self) -> Digest {
        let mut w = CborWriter::default();
        let inode = Entry { name: Vec::new(), content: Content::Empty, xattrs: self.xattrs.clone(), ..*self };
        inode.write(&mut w);
        w.bytes(&self.content_digest().0);
        Digest::of(&w.finish())
    }

    /// Whether [`Entry::UNPRIVILEGED`] may apply: it is a file with set-id bits or capabilities, or a device.
    pub fn has_privileges(&self) -> bool {
        match self.kind {
            Kind::File => self.mode & 0o6000 != 0 || self.xattrs.iter().any(|(name, _)| name == b"security.capability"),
            Kind::CharDevice | Kind::BlockDevice => true,
            Kind::Directory | Kind::Symlink | Kind::Fifo | Kind::Socket => false,
        }
    }

    /// Returns a digest of type, size and content, independent of where the content is stored. Not for directories, whose
    /// entries it does not include.
    pub fn content_digest(&self) -> Digest {
        let mut w = CborWriter::default();
        w.uint(self.kind.code()).uint(self.size);
        match &self.content {
            Content::Chunk(chunk) => w.bytes(&chunk.digest.0),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => w.bytes(&digest.0),
            Content::Target(target) => w.bytes(target),
            Content::Device(major, minor) => w.uint((*major).into()).uint((*minor).into()),
            Content::Empty | Content::Directory(_) => &mut w,
        };
        Digest::of(&w.finish())
    }

    /// The total size of the holes of a [`Content::Nodes`] in bytes, otherwise 0.
    fn holes(&self) -> u64 {
        match self.content {
            Content::Nodes { holes, .. } => holes,
            _ => 0,
        }
    }

    /// Returns all chunk references in the entry itself.
    pub fn chunk_refs_mut(&mut self) -> Vec<&mut ChunkRef> {
        match &mut self.content {
            Content::Chunk(chunk) => vec![chunk],
            Content::Extents { extents, .. } => extents
                .iter_mut()
                .filter_map(|extent| match extent {
                    Extent::Chunk(chunk) => Some(chunk),
                    Extent::Hole(_) => None,
                })
                .collect(),
            Content::Nodes { nodes, .. } => nodes.iter_mut().map(|node| &mut node.node).collect(),
            Content::Directory(subtree) => subtree.node.iter_mut().collect(),
            Content::Empty | Content::Target(_) | Content::Device(..) => Vec::new(),
        }
    }

    pub(super) fn write(&self, w: &mut CborWriter) {
        let content = match &self.content {
            Content::Empty => 0,
            _ => 1,
        };
        let sized = matches!(self.kind, Kind::File) && self.size > 0;
        let optional = usize::from(sized)
            + content
            + usize::from(self.link.is_some())
            + usize::from(!self.xattrs.is_empty())
            + usize::from(self.flags != 0)
            + usize::from(self.inode_flags != 0)
            + usize::from(self.holes() != 0);
        w.map(6 + optional);
        w.uint(0).bytes(&self.name);
        w.uint(1).uint(self.kind.code());
        w.uint(2).uint(self.mode.into());
        w.uint(3).uint(self.uid.into());
        w.uint(4).uint(self.gid.into());
        self.mtime.write(w.uint(5));
        if sized {
            w.uint(6).uint(self.size);
        }
        match &self.content {
            Content::Empty => {}
            Content::Chunk(chunk) => {
                w.uint(7).array(3).bytes(&chunk.digest.0).uint(chunk.block.into()).uint(chunk.start.into());
            }
            Content::Extents { digest, extents } => {
                w.uint(8).array(2).bytes(&digest.0).array(extents.len());
                extents.iter().for_each(|extent| extent.write(w));
            }
            Content::Nodes { digest, depth, nodes, .. } => {
                w.uint(9).array(3).bytes(&digest.0).uint((*depth).into()).array(nodes.len());
                nodes.iter().for_each(|node| node.write(w));
            }
            Content::Target(target) => {
                w.uint(10).bytes(target);
            }
            Content::Directory(Subtree { below, node }) => match node {
                Some(node) => {
                    node.write(w.uint(11).array(5).uint(*below));
                }
                None => {
                    w.uint(11).array(1).uint(*below);
                }
            },
            Content::Device(major, minor) => {
                w.uint(12).array(2).uint((*major).into()).uint((*minor).into());
            }
        }
        if let Some(link) = &self.link {
            w.uint(13).array(2).uint(link.id).uint(link.count.into());
        }
        if !self.xattrs.is_empty() {
            w.uint(14).array(self.xattrs.len() * 2);
            for (name, value) in &self.xattrs {
                w.bytes(name).bytes(value);
            }
        }
        if self.flags != 0 {
            w.uint(15).uint(self.flags);
        }
        if self.inode_flags != 0 {
            w.uint(16).uint(self.inode_flags.into());
        }
        if self.holes() != 0 {
            w.uint(17).uint(self.holes());
        }
    }

    /// Reads an entry. `table` is the number of blocks in the node's table. `root` allows an empty name, for the root of a
    /// snapshot.
    pub(super) fn read(r: &mut CborReader<'_>, table: usize, root: bool) -> Result<Self, Error> {
        let mut name = None;
        let mut kind = None;
        let (mut mode, mut uid, mut gid) = (None, None, None);
        let mut mtime = None;
        let mut size = 0;
        let mut content = None;
        let mut link = None;
        let mut xattrs = Vec::new();
        let (mut flags, mut inode_flags) = (0, 0);
        r.fields(|r, key| {
            match key {
                0 => name = Some(r.bytes()?),
                1 => kind = Kind::from_code(r.uint()?),
                2 => mode = Some(r.u32()?),
                3 => uid = Some(r.u32()?),
                4 => gid = Some(r.u32()?),
                5 => mtime = Some(Timestamp::read(r)?),
                6 => size = r.uint()?,
                7..=12 if content.is_some() => return Err(r.wrong("an entry with several contents")),
                7..=12 => content = Some(read_content(r, key, size, table)?),
                13 => link = Some(read_link(r)?),
                14 => xattrs = read_xattrs(r)?,
                15 => flags = r.uint()?,
                16 => inode_flags = r.u32()? & Entry::INODE_FLAGS,
                17 => match (r.uint()?, &mut content) {
                    (found, Some(Content::Nodes { holes, .. })) if found <= size => *holes = found,
                    _ => return Err(r.wrong("holes that exceed the file, or without a list of nodes")),
                },
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let kind = r.need("known kind", kind)?;
        let content = content.unwrap_or(Content::Empty);
        let name = r.need("name", name)?;
        if !(is_name(name) || root && name.is_empty()) {
            return Err(r.wrong(format!("invalid name {:?}", String::from_utf8_lossy(name))));
        }
        let mode = r.need("mode", mode)?;
        let fits = match (&content, kind) {
            (Content::Empty, Kind::File) => size == 0,
            (Content::Chunk(_) | Content::Extents { .. } | Content::Nodes { .. }, Kind::File) => size > 0,
            (Content::Target(_), Kind::Symlink)
            | (Content::Directory(_), Kind::Directory)
            | (Content::Device(..), Kind::CharDevice | Kind::BlockDevice)
            | (Content::Empty, Kind::Fifo | Kind::Socket) => size == 0,
            _ => false,
        };
        let linked = link.is_some() && kind == Kind::Directory;
        if !fits || linked || mode > 0o7777 {
            return Err(r.wrong("an entry with contradicting type, size, mode, links or content"));
        }
        if let Content::Target(target) = &content {
            size = target.len() as u64;
        }
        Ok(Entry {
            name: name.to_vec(),
            kind,
            mode,
            uid: r.need("uid", uid)?,
            gid: r.need("gid", gid)?,
            mtime: r.need("mtime", mtime)?,
            size,
            content,
            link,
            xattrs,
            flags,
            inode_flags,
        })
    }
}

/// Whether `name` is valid for a directory entry. Names from a hostile repository must not escape from the directory.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

fn read_content(r: &mut CborReader<'_>, key: u64, size: u64, table: usize) -> Result<Content, Error> {
    match key {
        7 => {
            r.array_of(3)?;
            let (digest, block, start) = read_location(r)?;
            let length = u32::try_from(size).map_err(|_| r.wrong("a chunk longer than a block"))?;
            let chunk = ChunkRef { digest, block, start, length }.checked(r, table)?;
            Ok(Content::Chunk(chunk))
        }
        8 => {
            r.array_of(2)?;
            let digest = read_digest(r)?;
            let extents = (0..r.array()?).map(|_| Extent::read(r, table)).collect::<Result<Vec<_>, _>>()?;
            check_sum(r, size, extents.iter().map(Extent::length))?;
            Ok(Content::Extents { digest, extents })
        }
        9 => {
            r.array_of(3)?;
            let digest = read_digest(r)?;
            let depth = r.uint()?;
            let depth = match u8::try_from(depth) {
                Ok(depth) if depth <= 8 => depth,
                _ => return Err(Error::TooLarge { what: "depth of extent indexes", found: depth, limit: 8 }),
            };
            let nodes = (0..r.array()?).map(|_| NodeRef::read(r, table)).collect::<Result<Vec<_>, _>>()?;
            check_sum(r, size, nodes.iter().map(|node| node.covers))?;
            Ok(Content::Nodes { digest, depth, nodes, holes: 0 })
        }
        10 => match r.bytes()? {
            target if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) => {
                Err(r.wrong("a link target that is empty, too long or contains a NUL"))
            }
            target => Ok(Content::Target(target.to_vec())),
        },
        11 => match r.array()? {
            1 if r.uint()? == 0 => Ok(Content::Directory(Subtree::default())),
            5 => {
                let below = read_entry_count(r)?;
                if below == 0 {
                    return Err(r.wrong("an empty directory with a node"));
                }
                let node = ChunkRef::read(r, table)?;
                Ok(Content::Directory(Subtree { below, node: Some(node) }))
            }
            _ => Err(r.wrong("a subtree with neither one nor five items")),
        },
        _ => {
            r.array_of(2)?;
            Ok(Content::Device(r.u32()?, r.u32()?))
        }
    }
}

/// Reads a number of entries.
pub(super) fn read_entry_count(r: &mut CborReader<'_>) -> Result<u64, Error> {
    match r.uint()? {
        found if found >= Subtree::LIMIT => {
            Err(Error::TooLarge { what: "number of entries", found, limit: Subtree::LIMIT - 1 })
        }
        found => Ok(found),
    }
}

/// Checks that the sizes of parts add up to the whole.
pub(super) fn check_sum(r: &CborReader<'_>, whole: u64, parts: impl Iterator<Item = u64>) -> Result<(), Error> {
    let sum = parts.into_iter().try_fold(0u64, u64::checked_add);
    if sum != Some(whole) {
        return Err(r.wrong(format!("extents that do not add up to {whole} bytes")));
    }
    Ok(())
}

fn read_link(r: &mut CborReader<'_>) -> Result<HardLink, Error> {
    r.array_of(2)?;
    let link = HardLink { id: r.uint()?, count: r.u32()? };
    if link.id >= HardLink::ID_LIMIT {
        return Err(r.wrong("a hard-link id that is too large"));
    }
    Ok(link)
}

/// The most extended attributes of an entry. Linux lists at most 64 KiB of names, so it allows fewer.
const XATTRS: usize = 16_384;

fn read_xattrs(r: &mut CborReader<'_>) -> Result<Vec<Xattr>, Error> {
    let items = r.array()?;
    if items % 2 != 0 {
        return Err(r.wrong("an extended attribute without a value"));
    }
    let mut xattrs: Vec<Xattr> = Vec::new();
    if items / 2 > XATTRS {
        return Err(r.wrong("too many extended attributes"));
    }
    for _ in 0..items / 2 {
        let (name, value) = (r.bytes()?, r.bytes()?);
        let follows = xattrs.last().is_none_or(|(last, _)| last.as_slice() < name);
        if name.is_empty() || name.contains(&0) || !follows {
            return Err(r.wrong("the name of an extended attribute is empty, out of order or contains a NUL"));
        }
        xattrs.push((name.to_vec(), value.to_vec()));
    }
    Ok(xattrs)
}
