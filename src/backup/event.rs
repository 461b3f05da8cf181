//! What the walk tells the engine, in preorder: the order in which a snapshot counts its entries.

use std::vec;

use crossbeam_channel::Receiver;

use super::Error;
use super::budget::Loan;
use super::calls::Calls;
use super::spill::Parked;
use crate::catalog::stats::Stats;
use crate::catalog::{BlockId, DirectoryRow, SegmentId, SegmentRow};
use crate::format::{BlockLocation, Digest, Entry};
use crate::source::{Extended, Stat};

/// A step of the walk. Directories nest; a directory's entries come in segments.
pub(super) enum Event {
    /// A directory begins. Its parent gets it as an entry when it ends.
    Enter(Box<Enter>),
    /// A segment whose entries are all the same. Its directories follow, each entered and left.
    OldSegment(Box<OldSegment>),
    /// A segment in which something changed. All of its entries follow.
    NewSegment {
        /// The segments that it takes the place of.
        replaces: Vec<SegmentId>,
    },
    /// An entry that looks as it did, in a new segment.
    Reused(Box<Reused>),
    /// An entry that is taken over as it was, in a segment in which files are looked at again.
    Kept(Box<Kept>),
    /// The file of this name, which was put off, is looked at now. What it is by now follows, if it is there.
    Again {
        /// The file's name.
        name: Vec<u8>,
    },
    /// Files to be stored; their content arrives on a channel of its own.
    Files(Box<NewFiles>),
    /// An entry without content to store: a link or a special file.
    Plain(Box<Plain>),
    /// A segment ends.
    EndSegment,
    /// A directory ends.
    Leave {
        /// Segments whose names are all gone.
        removed: Vec<SegmentId>,
    },
}

/// A segment whose entries are all the same.
pub(super) struct OldSegment {
    /// What the catalog has of it.
    pub(super) row: SegmentRow,
    /// What its entries look like, if that is something else than before, in fields that do not count.
    pub(super) stats: Option<Stats>,
}

/// The beginning of a directory.
pub(super) struct Enter {
    /// Its name; empty for the root.
    pub(super) name: Vec<u8>,
    /// What it looks like.
    pub(super) stat: Stat,
    /// What the catalog knows its device by.
    pub(super) device: u64,
    /// What else there is of it; not known if its parent's entry of it is the one from before.
    pub(super) extended: Extended,
    /// What is known of it may change, or be completed, without its identity showing it.
    pub(super) untrusted: bool,
    /// What the catalog has of it.
    pub(super) row: Option<DirectoryRow>,
    /// Only files in it that were put off are looked at.
    pub(super) again: bool,
    /// What was lent for its attributes on their way.
    pub(super) lent: Option<Loan>,
}

/// An entry that the catalog has, and that did not change.
pub(super) struct Reused {
    /// The entry; its references count in `blocks`.
    pub(super) entry: Entry,
    /// What it looks like.
    pub(super) stat: Stat,
    /// The blocks that it refers to.
    pub(super) blocks: Vec<(BlockId, BlockLocation)>,
    /// What was lent for its attributes.
    pub(super) lent: Option<Loan>,
}

/// An entry that the catalog has, and that is not looked at.
pub(super) struct Kept {
    /// The entry; its references count in `blocks`.
    pub(super) entry: Entry,
    /// What it is known by.
    pub(super) identity: Vec<u8>,
    /// The blocks that it refers to.
    pub(super) blocks: Vec<(BlockId, BlockLocation)>,
    /// What was lent for its attributes.
    pub(super) lent: Option<Loan>,
}

/// Files that are new, or look different.
pub(super) struct NewFiles {
    pub(super) files: Vec<NewFile>,
    /// The content of one after the other.
    pub(super) content: Receiver<Vec<Content>>,
}

/// Content as it arrives.
pub(super) struct Arriving<'c> {
    content: Receiver<Vec<Content>>,
    ready: vec::IntoIter<Content>,
    calls: &'c Calls,
}

impl<'c> Arriving<'c> {
    /// Content that no longer comes once `calls` are abandoned.
    pub(super) fn new(content: Receiver<Vec<Content>>, calls: &'c Calls) -> Self {
        Arriving { content, ready: Vec::new().into_iter(), calls }
    }
}

impl Iterator for Arriving<'_> {
    type Item = Content;

    /// Waits for what comes next. None: there will be no more.
    fn next(&mut self) -> Option<Content> {
        loop {
            if let Some(content) = self.ready.next() {
                return Some(content);
            }
            match self.calls.receive(&self.content) {
                Some(content) => self.ready = content.into_iter(),
                None if self.calls.are_abandoned() => return Some(Content::BrokenOff),
                None => return None,
            }
        }
    }
}

/// A link or a special file that is new, or looks different.
pub(super) struct Plain {
    pub(super) entry: Entry,
    /// What it looks like.
    pub(super) stat: Stat,
    /// Its identity says too little of it.
    pub(super) untrusted: bool,
    /// There was something of its name.
    pub(super) existed: bool,
    /// What was lent for its attributes.
    pub(super) lent: Option<Loan>,
}

/// A file that is new, or looks different.
pub(super) struct NewFile {
    /// Its name.
    pub(super) name: Vec<u8>,
    /// Whose it is.
    pub(super) owner: u32,
    /// There was something of its name.
    pub(super) existed: bool,
    /// Its size as the walk saw it; 0 if only reading it tells.
    pub(super) size: u64,
    /// How often it was tried already.
    pub(super) tries: u32,
}

/// Content of a file, in order.
pub(super) enum Content {
    /// A chunk.
    Chunk(Bytes, Digest),
    /// A chunk of this digest and length that came before.
    Known(Digest, u32),
    /// Zeros that are not stored.
    Hole(u64),
    /// The file was read to its end.
    End(Box<End>),
    /// The file is to be looked at again later; nothing of it came. Its content changed, or it was gone, or, if not
    /// `changed`, only fresh.
    PutOff { changed: bool },
    /// The file could not be read.
    Failed(String),
    /// The backup can't go on.
    Broken(Error),
    /// The whole backup breaks off here; whoever sends it says why.
    BrokenOff,
}

/// A chunk's bytes on their way to the engine.
pub(super) enum Bytes {
    /// In memory that was lent.
    Memory { bytes: Vec<u8>, _loan: Option<Loan> },
    /// In a temporary file.
    Parked(Parked),
}

impl Bytes {
    pub(super) fn len(&self) -> usize {
        match self {
            Bytes::Memory { bytes, .. } => bytes.len(),
            Bytes::Parked(parked) => parked.len(),
        }
    }

    /// How much of what may wait they take, in bytes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Bytes::Memory { bytes, .. } => bytes.len(),
            Bytes::Parked(parked) => parked.weight(),
        }
    }

    /// The bytes. What was lent for them is free then: from here on they count as a block's.
    pub(super) fn take(self) -> Result<Vec<u8>, Error> {
        match self {
            Bytes::Memory { bytes, .. } => Ok(bytes),
            Bytes::Parked(parked) => parked.take(),
        }
    }
}

/// What is known of a file once it is read.
pub(super) struct End {
    /// What it looked like when its first byte was read.
    pub(super) stat: Stat,
    /// What else there is of it.
    pub(super) extended: Extended,
    /// Bytes that were delivered, holes included.
    pub(super) size: u64,
    /// The digest of all bytes delivered, holes left out.
    pub(super) digest: Digest,
    /// It looked different afterwards: two states of it may be mixed.
    pub(super) changed: bool,
    /// A change after it was read may have left no trace: it was changed so shortly before, or somebody may still be
    /// writing to it.
    pub(super) doubtful: bool,
    /// It was read to its end, which is not where its size says.
    pub(super) wrong_size: bool,
    /// Because it changed, or because that can't be told, it is to be looked at again later.
    pub(super) put_off: bool,
    /// What was lent for its attributes.
    pub(super) lent: Option<Loan>,
}
