//! The stat identity of a segment's entries, in a form that is compared as bytes.
//!
//! A nothing-changed backup is a listing, a stat for each entry, and a comparison of two byte strings for
//! every thousand entries: nothing has to be decoded.

use super::numbers::{put, put_signed, take, take_signed};
use crate::format::{Kind, Timestamp};
use crate::source::{EntryMount, Stat};

/// Which parts of a file's identity are expected to stay as long as the file does. Segments keep all parts, so one run
/// may choose otherwise than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComparedFields {
    /// Compare inode numbers. Some network and FUSE file systems make them up.
    pub inode: bool,
    /// Compare change times. Some programs touch them without touching the file.
    pub ctime: bool,
}

impl Default for ComparedFields {
    fn default() -> Self {
        ComparedFields { inode: true, ctime: true }
    }
}

impl ComparedFields {
    fn is_complete(self) -> bool {
        self == ComparedFields::default()
    }

    /// Whether two entries with these fields are the same, so far as it counts.
    fn same(self, one: &StatFields, other: &StatFields) -> bool {
        one.fixed == other.fixed && (one.ctime == other.ctime || !self.ctime) && (one.ino == other.ino || !self.inode)
    }
}

/// The identities of a segment's entries, to be compared as a whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats(pub(super) Vec<u8>);

impl Stats {
    /// Adds an entry.
    pub fn push(&mut self, name: &[u8], stat: &Stat, mount: EntryMount) {
        let out = &mut self.0;
        put(out, name.len() as u64);
        out.extend_from_slice(name);
        put(out, stat.kind.code() << 12 | u64::from(stat.mode));
        put(out, mount.0);
        put(out, stat.uid.into());
        put(out, stat.gid.into());
        put_time(out, stat.mtime);
        put_time(out, stat.ctime);
        put(out, stat.ino);
        // A directory's size and number of links say nothing of it that its entries don't.
        if stat.kind != Kind::Directory {
            put(out, stat.size);
            put(out, stat.nlink.into());
            put(out, stat.rdev);
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds an entry by its identity, as a [`StatsReader`] gave it.
    pub fn push_again(&mut self, identity: &[u8]) {
        self.0.extend_from_slice(identity);
    }

    /// Adds an entry whose next look must find it changed, whatever it then is.
    pub fn push_untrusted(&mut self, name: &[u8]) {
        put(&mut self.0, name.len() as u64);
        self.0.extend_from_slice(name);
        put(&mut self.0, UNTRUSTED);
    }

    /// Whether these are the same entries, so far as it counts for `identity`, and nothing in their segment depends on
    /// the rest. These are of now: none is untrusted.
    pub fn same_as(&self, other: &Stats, identity: ComparedFields) -> bool {
        let equal = self == other;
        if equal || identity.is_complete() {
            return equal;
        }
        let (mut one, mut other) = (StatsReader::new(self), StatsReader::new(other));
        loop {
            match (one.next_fields(), other.next_fields()) {
                (None, None) => return one.left.is_empty() && other.left.is_empty(),
                (Some((name, Some(this))), Some((other_name, Some(that))))
                    if name == other_name && (this == that || identity.same(&this, &that) && this.is_free(&that)) => {}
                _ => return false,
            }
        }
    }

    /// Whether the only entry of these is the one with identity `then`, so far as it counts for `identity`. A mount
    /// that ignores privileges, or does so no more, makes no other file of it.
    pub fn is(&self, then: &[u8], identity: ComparedFields) -> bool {
        let (mut one, mut other) = (StatsReader::new(self), StatsReader { left: then });
        match (one.next_fields(), other.next_fields()) {
            (Some((name, Some(this))), Some((other_name, Some(that)))) => {
                name == other_name && this.mount.same_file_system_as(that.mount) && identity.same(&this, &that)
            }
            _ => false,
        }
    }
}

/// Stands in the place of kind and mode; no kind has this code.
const UNTRUSTED: u64 = u64::MAX;

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_signed(out, time.seconds);
    put(out, time.nanos.into());
}

fn take_time(left: &mut &[u8]) -> Option<(i64, u64)> {
    Some((take_signed(left)?, take(left)?))
}

/// What a segment remembers of an entry, beside its name.
#[derive(PartialEq)]
struct StatFields {
    mount: EntryMount,
    ctime: (i64, u64),
    ino: u64,
    /// Kind and mode, owner, group; mtime; size, number of links and device, all 0 for a directory.
    fixed: ([u64; 3], (i64, u64), [u64; 3]),
}

impl StatFields {
    /// Whether the entry in the tree is the same for both, though they differ: the privileges are, and it has no other
    /// names, which are found by its inode number.
    fn is_free(&self, other: &StatFields) -> bool {
        let (_, _, [_, names, _]) = self.fixed;
        self.mount == other.mount && names <= 1
    }

    fn take(kind_and_mode: u64, left: &mut &[u8]) -> Option<Self> {
        let mount = EntryMount(take(left)?);
        let owner = [kind_and_mode, take(left)?, take(left)?];
        let (mtime, ctime, ino) = (take_time(left)?, take_time(left)?, take(left)?);
        let is_directory = kind_and_mode >> 12 == Kind::Directory.code();
        let rest = if is_directory { [0; 3] } else { [take(left)?, take(left)?, take(left)?] };
        Some(StatFields { mount, ctime, ino, fixed: (owner, mtime, rest) })
    }
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
        let whole = self.left;
        let (name, _) = self.next_fields()?;
        let used = whole.len() - self.left.len();
        Some((name, whole.get(..used)?))
    }

    /// Name and fields of the next entry; no fields for one that is not trusted.
    fn next_fields(&mut self) -> Option<(&'b [u8], Option<StatFields>)> {
        let length = usize::try_from(take(&mut self.left)?).ok()?;
        let name = self.left.get(..length)?;
        self.left = self.left.get(length..)?;
        let fields = match take(&mut self.left)? {
            UNTRUSTED => None,
            kind_and_mode => Some(StatFields::take(kind_and_mode, &mut self.left)?),
        };
        Some((name, fields))
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
            mount: 1,
            ino,
            nlink: 1,
            rdev: 0,
            blocks: 8,
            nodump: false,
        }
    }

    const NOTHING: EntryMount = EntryMount(0);
    const UNPRIVILEGED: EntryMount = EntryMount(1);
    const ELSEWHERE: EntryMount = EntryMount(1 << 63);

    fn of(stat: &Stat, mount: EntryMount) -> Stats {
        let mut stats = Stats::default();
        stats.push(b"a", stat, mount);
        stats
    }

    #[test]
    fn entries_are_told_apart_one_by_one() {
        let mut stats = Stats::default();
        stats.push(b"a", &stat(Kind::File, 300), UNPRIVILEGED);
        stats.push(b"d", &stat(Kind::Directory, 2), NOTHING);
        stats.push_untrusted(b"u");
        stats.push(b"z", &stat(Kind::Symlink, 4), NOTHING);
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
    fn ignored_fields_are_kept_and_do_not_count() {
        let then = stat(Kind::File, 1);
        let ino = Stat { ino: 2, ..then.clone() };
        let ctime = Stat { ctime: Timestamp::default(), ..then.clone() };
        let strict = ComparedFields::default();
        let [no_inode, no_ctime] = [(false, true), (true, false)].map(|(inode, ctime)| ComparedFields { inode, ctime });
        let none = ComparedFields { inode: false, ctime: false };
        for (now, same) in [
            (&then, [true, true, true, true]),
            (&ino, [false, true, false, true]),
            (&ctime, [false, false, true, true]),
            (&Stat { size: 4, ..then.clone() }, [false; 4]),
            (&Stat { mode: 0o600, ..then.clone() }, [false; 4]),
            (&Stat { mtime: Timestamp::default(), ..then.clone() }, [false; 4]),
        ] {
            for (identity, same) in [strict, no_inode, no_ctime, none].into_iter().zip(same) {
                let (now, then) = (of(now, NOTHING), of(&then, NOTHING));
                assert_eq!(now.same_as(&then, identity), same, "{now:?} {identity:?}");
                assert_eq!(now.is(&then.0, identity), same, "{now:?} {identity:?}");
            }
        }
        assert_ne!(of(&then, NOTHING), of(&ino, NOTHING));
        assert_ne!(of(&then, NOTHING), of(&ctime, NOTHING));
    }

    #[test]
    fn segments_are_the_same_only_as_a_whole() {
        let identity = ComparedFields { inode: false, ctime: false };
        let (one, other) = (stat(Kind::File, 1), stat(Kind::File, 2));
        let mut longer = of(&other, NOTHING);
        longer.push(b"b", &other, NOTHING);
        assert!(!of(&one, NOTHING).same_as(&longer, identity));
        assert!(!longer.same_as(&of(&one, NOTHING), identity));
        let mut renamed = Stats::default();
        renamed.push(b"c", &other, NOTHING);
        assert!(!of(&one, NOTHING).same_as(&renamed, identity));
    }

    /// An entry of the segment keeps the id that its other names have, and that goes by the inode number.
    #[test]
    fn a_segment_with_a_file_of_several_names_is_not_the_same_if_its_number_changed() {
        let identity = ComparedFields { inode: false, ctime: false };
        let [one, other] = [1, 2].map(|ino| Stat { nlink: 2, ..stat(Kind::File, ino) });
        assert!(of(&one, NOTHING).same_as(&of(&one, NOTHING), identity));
        assert!(!of(&one, NOTHING).same_as(&of(&other, NOTHING), identity));
        assert!(of(&one, NOTHING).is(&of(&other, NOTHING).0, identity));
    }

    #[test]
    fn an_untrusted_entry_is_like_none() {
        let mut untrusted = Stats::default();
        untrusted.push_untrusted(b"a");
        for identity in [ComparedFields::default(), ComparedFields { inode: false, ctime: false }] {
            assert!(!of(&stat(Kind::File, 1), NOTHING).same_as(&untrusted, identity));
            assert!(!of(&stat(Kind::File, 1), NOTHING).is(&untrusted.0, identity));
            assert!(!untrusted.is(&untrusted.0, identity));
        }
    }

    #[test]
    fn a_mount_that_ignores_privileges_changes_the_segment_and_not_the_file() {
        let file = stat(Kind::File, 1);
        let (with, without) = (of(&file, NOTHING), of(&file, UNPRIVILEGED));
        assert!(with.is(&without.0, ComparedFields::default()));
        for identity in [ComparedFields::default(), ComparedFields { inode: false, ctime: false }] {
            assert!(!with.same_as(&without, identity));
            assert!(!with.is(&of(&file, ELSEWHERE).0, identity));
        }
    }
}
