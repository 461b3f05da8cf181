//! The messages of a walk, in preorder: the order in which a snapshot counts its entries.

use crossbeam_channel::Receiver;

use crate::backup::read::budget::Loan;
use crate::backup::read::content::FileContent;
use crate::catalog::stats::Stats;
use crate::catalog::{BlockId, DirectoryRow, SegmentId, SegmentRow};
use crate::format::{BlockLocation, Entry};
use crate::source::{Extended, Stat};

/// A step of the walk. Directories nest; the entries of a directory come in segments.
pub(in crate::backup) enum Event {
    /// A directory begins. It becomes an entry of its parent when it ends.
    Enter(Box<EnterDirectory>),
    /// A segment whose entries are all unchanged. Its directories follow, each entered and left.
    OldSegment(Box<OldSegment>),
    /// A segment in which something changed. All its entries follow.
    NewSegment {
        /// The segments that it replaces.
        replaces: Vec<SegmentId>,
    },
    /// An unchanged entry in a new segment.
    Reused(Box<ReusedEntry>),
    /// An entry that is taken over unseen, in a segment in which deferred files are visited.
    Kept(Box<KeptEntry>),
    /// The deferred file of this name is visited now. Its entry follows, if it still exists.
    Again {
        /// The file's name.
        name: Vec<u8>,
    },
    /// Files to be stored. Their content arrives on a channel of its own.
    Files(Box<NewFiles>),
    /// An entry without content: a link or a special file.
    Plain(Box<PlainEntry>),
    /// A segment ends.
    EndSegment,
    /// A directory ends.
    Leave {
        /// Segments none of whose names exist any more.
        removed: Vec<SegmentId>,
    },
}

/// A segment whose entries are all unchanged.
pub(in crate::backup) struct OldSegment {
    /// Its row, without the stats.
    pub(in crate::backup) row: SegmentRow,
    /// The stats of its entries, if these differ in fields that are not compared.
    pub(in crate::backup) stats: Option<Stats>,
}

/// The beginning of a directory.
pub(in crate::backup) struct EnterDirectory {
    /// Its name; empty for the root.
    pub(in crate::backup) name: Vec<u8>,
    pub(in crate::backup) stat: Stat,
    /// The number by which the catalog knows its device.
    pub(in crate::backup) device: u64,
    /// Its metadata, unless its parent's entry of it is reused.
    pub(in crate::backup) extended: Extended,
    /// It may change, or be completed, without its identity showing it.
    pub(in crate::backup) untrusted: bool,
    /// Its row in the catalog.
    pub(in crate::backup) row: Option<DirectoryRow>,
    /// Only deferred files in it are visited.
    pub(in crate::backup) again: bool,
    /// The loan for its attributes.
    pub(in crate::backup) lent: Option<Loan>,
}

/// An unchanged entry.
pub(in crate::backup) struct ReusedEntry {
    /// The entry. Its references count in `blocks`.
    pub(in crate::backup) entry: Entry,
    pub(in crate::backup) stat: Stat,
    pub(in crate::backup) blocks: Vec<(BlockId, BlockLocation)>,
    /// The loan for its attributes.
    pub(in crate::backup) lent: Option<Loan>,
}

/// An entry that is taken over unseen.
pub(in crate::backup) struct KeptEntry {
    /// The entry. Its references count in `blocks`.
    pub(in crate::backup) entry: Entry,
    /// Its identity in the catalog.
    pub(in crate::backup) identity: Vec<u8>,
    pub(in crate::backup) blocks: Vec<(BlockId, BlockLocation)>,
    /// The loan for its attributes.
    pub(in crate::backup) lent: Option<Loan>,
}

/// Files that are new, or look different.
pub(in crate::backup) struct NewFiles {
    pub(in crate::backup) files: Vec<NewFile>,
    /// Their content, one file after the other.
    pub(in crate::backup) content: Receiver<Vec<FileContent>>,
}

/// A file that is new, or looks different.
pub(in crate::backup) struct NewFile {
    pub(in crate::backup) name: Vec<u8>,
    pub(in crate::backup) owner: u32,
    /// The last backup has an entry of this name.
    pub(in crate::backup) existed: bool,
    /// Its size as the walk saw it; 0 for a pipe.
    pub(in crate::backup) size: u64,
    /// How often it was found changing before.
    pub(in crate::backup) tries: u32,
}

/// A link or a special file that is new, or looks different.
pub(in crate::backup) struct PlainEntry {
    pub(in crate::backup) entry: Entry,
    pub(in crate::backup) stat: Stat,
    /// It may change, or be completed, without its identity showing it.
    pub(in crate::backup) untrusted: bool,
    /// The last backup has an entry of this name.
    pub(in crate::backup) existed: bool,
    /// The loan for its attributes.
    pub(in crate::backup) lent: Option<Loan>,
}
