//! The stat identity of a segment's entries, in a form that is compared as bytes.
//!
//! A nothing-changed backup is a listing, a stat for each entry, and a comparison of two byte strings for
//! every thousand entries: nothing has to be decoded.

use super::numbers::{put, put_signed};
use crate::format::{Kind, Timestamp};
use crate::source::Stat;

/// Which parts of a file's identity are believed to stay when the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Compare inode numbers. Some network and FUSE file systems make them up.
    pub inode: bool,
    /// Compare change times. Some programs touch them without touching the file.
    pub ctime: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Identity { inode: true, ctime: true }
    }
}

/// The identities of a segment's entries, to be compared as a whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats(pub(super) Vec<u8>);

impl Stats {
    /// Adds an entry.
    pub fn push(&mut self, name: &[u8], stat: &Stat, identity: Identity) {
        let out = &mut self.0;
        put(out, name.len() as u64);
        out.extend_from_slice(name);
        put(out, stat.kind.code() << 12 | u64::from(stat.mode));
        put(out, stat.uid.into());
        put(out, stat.gid.into());
        put_time(out, stat.mtime);
        let ctime = if identity.ctime { stat.ctime } else { Timestamp::default() };
        put_time(out, ctime);
        put(out, if identity.inode { stat.ino } else { 0 });
        // A directory's size and number of links say nothing of it that its entries don't.
        if stat.kind != Kind::Directory {
            put(out, stat.size);
            put(out, stat.nlink.into());
            put(out, stat.rdev);
        }
    }

    /// Adds an entry by what it was known by, as a [`StatsReader`] gave it.
    pub fn push_again(&mut self, identity: &[u8]) {
        self.0.extend_from_slice(identity);
    }

    /// Whether these are the identities in `bytes`.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.0 == bytes
    }

    /// Adds an entry whose next look must find it changed, whatever it then is.
    pub fn push_untrusted(&mut self, name: &[u8]) {
        put(&mut self.0, name.len() as u64);
        self.0.extend_from_slice(name);
        // No kind has this code.
        put(&mut self.0, u64::MAX);
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_signed(out, time.seconds);
    put(out, time.nanos.into());
}

/// The identities of a segment's entries one by one, for when the whole differs.
pub struct StatsReader<'b> {
    left: &'b [u8],
}

impl<'b> StatsReader<'b> {
    /// Reads `stats` from the start.
    pub fn new(stats: &'b Stats) -> Self {
        StatsReader { left: &stats.0 }
    }

    /// Name and identity of the next entry; the identity is bytes that [`Stats::push`] made for it.
    pub fn next_entry(&mut self) -> Option<(&'b [u8], &'b [u8])> {
        use super::numbers::{take, take_signed};
        let whole = self.left;
        let length = usize::try_from(take(&mut self.left)?).ok()?;
        let name = self.left.get(..length)?;
        self.left = self.left.get(length..)?;
        let kind_and_mode = take(&mut self.left)?;
        if kind_and_mode != u64::MAX {
            let directory = kind_and_mode >> 12 == Kind::Directory.code();
            take(&mut self.left)?;
            take(&mut self.left)?;
            for _ in 0..2 {
                take_signed(&mut self.left)?;
                take(&mut self.left)?;
            }
            for _ in 0..if directory { 1 } else { 4 } {
                take(&mut self.left)?;
            }
        }
        let used = whole.len() - self.left.len();
        Some((name, whole.get(..used)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: Kind, ino: u64) -> Stat {
        Stat {
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: Timestamp { seconds: -1, nanos: 5 },
            ctime: Timestamp { seconds: 9, nanos: 7 },
            dev: 1,
            ino,
            nlink: 1,
            rdev: 0,
            blocks: 8,
            nodump: false,
        }
    }

    #[test]
    fn entries_are_told_apart_one_by_one() {
        let mut stats = Stats::default();
        let everything = Identity::default();
        stats.push(b"a", &stat(Kind::File, 300), everything);
        stats.push(b"d", &stat(Kind::Directory, 2), everything);
        stats.push_untrusted(b"u");
        stats.push(b"z", &stat(Kind::Symlink, 4), everything);
        let mut reader = StatsReader::new(&stats);
        let mut seen = Vec::new();
        let mut parts = Vec::new();
        while let Some((name, identity)) = reader.next_entry() {
            seen.push(name.to_vec());
            parts.extend_from_slice(identity);
        }
        assert_eq!(seen, [b"a", b"d", b"u", b"z"]);
        assert_eq!(parts, stats.0);
    }

    #[test]
    fn what_is_ignored_does_not_count() {
        let encoded = |ino, identity| {
            let mut stats = Stats::default();
            stats.push(b"a", &stat(Kind::File, ino), identity);
            stats
        };
        let strict = Identity::default();
        let lax = Identity { inode: false, ctime: true };
        assert_ne!(encoded(1, strict), encoded(2, strict));
        assert_eq!(encoded(1, lax), encoded(2, lax));
    }
}
