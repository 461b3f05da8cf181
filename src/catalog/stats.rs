//! The stat data of a segment's entries, in a form that is compared bytewise.
//!
//! A backup without changes lists directories, calls stat for each entry, and compares two byte strings for
//! every thousand entries. It decodes nothing.

use super::numbers::{put, put_signed, take, take_signed};
use crate::format::{Kind, Timestamp};
use crate::source::{EntryMount, Stat};

/// The optional stat fields that are compared to detect changes. Segments store all fields, so the choice may differ
/// from run to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComparedFields {
    /// Compare inode numbers. On some network and FUSE file systems they change without reason.
    pub inode: bool,
    /// Compare change times. Some programs update them without changing the file.
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

    /// Whether the compared fields of two entries are equal.
    fn same(self, one: &StatFields, other: &StatFields) -> bool {
        one.fixed == other.fixed && (one.ctime == other.ctime || !self.ctime) && (one.ino == other.ino || !self.inode)
    }
}

/// The encoded stat data of a segment's entries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats(pub(super) Vec<u8>);

impl Stats {
    /// No entries yet, with room for this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Stats(Vec::with_capacity(bytes))
    }

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
        // A directory's size and link count carry no information beyond its entries.
        if stat.kind != Kind::Directory {
            put(out, stat.size);
            put(out, stat.nlink.into());
            put(out, stat.rdev);
        }
    }

    /// The encoded size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds an encoded entry from a [`StatsReader`].
    pub fn push_again(&mut self, entry: &[u8]) {
        self.0.extend_from_slice(entry);
    }

    /// Adds an entry that the next run must treat as changed, whatever its stat data then is.
    pub fn push_untrusted(&mut self, name: &[u8]) {
        put(&mut self.0, name.len() as u64);
        self.0.extend_from_slice(name);
        put(&mut self.0, UNTRUSTED);
    }

    /// Whether these entries are the same as in `other` regarding the compared fields, and the segment's node does not
    /// depend on the ignored ones. `self` is the current state, without untrusted entries.
    pub fn same_as(&self, other: &Stats, compared: ComparedFields) -> bool {
        let equal = self == other;
        if equal || compared.is_complete() {
            return equal;
        }
        let (mut one, mut other) = (StatsReader::new(self), StatsReader::new(other));
        loop {
            match (one.next_fields(), other.next_fields()) {
                (None, None) => return one.left.is_empty() && other.left.is_empty(),
                (Some((name, Some(this))), Some((other_name, Some(that))))
                    if name == other_name
                        && (this == that || compared.same(&this, &that) && this.keeps_node(&that)) => {}
                _ => return false,
            }
        }
    }

    /// Whether the single entry of `self` is the same as the encoded entry `then` regarding the compared fields. It is
    /// also the same if the mount has begun or ceased to ignore privileges.
    pub fn is(&self, then: &[u8], compared: ComparedFields) -> bool {
        let (mut one, mut other) = (StatsReader::new(self), StatsReader { left: then });
        match (one.next_fields(), other.next_fields()) {
            (Some((name, Some(this))), Some((other_name, Some(that)))) => {
                name == other_name && this.mount.same_file_system_as(that.mount) && compared.same(&this, &that)
            }
            _ => false,
        }
    }
}

/// Replaces kind and mode of an untrusted entry; no kind has this code.
const UNTRUSTED: u64 = u64::MAX;

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_signed(out, time.seconds);
    put(out, time.nanos.into());
}

fn take_time(left: &mut &[u8]) -> Option<(i64, u64)> {
    Some((take_signed(left)?, take(left)?))
}

/// The decoded stat data of an entry.
#[derive(PartialEq)]
struct StatFields {
    mount: EntryMount,
    ctime: (i64, u64),
    ino: u64,
    /// Kind and mode, owner, group; mtime; size, number of links and device, all 0 for a directory.
    fixed: ([u64; 3], (i64, u64), [u64; 3]),
}

impl StatFields {
    /// Whether the entry's tree node stays the same although ignored fields differ: privileges are equal, and it has no
    /// other hard links, whose id depends on the inode number.
    fn keeps_node(&self, other: &StatFields) -> bool {
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

/// Iterates over the entries of a segment's stat data, to compare them one by one.
pub struct StatsReader<'b> {
    left: &'b [u8],
}

impl<'b> StatsReader<'b> {
    /// Starts at the first entry of `stats`.
    pub fn new(stats: &'b Stats) -> Self {
        StatsReader { left: &stats.0 }
    }

    /// The next entry: its name, and all its bytes as [`Stats::push`] encoded them.
    pub fn next_entry(&mut self) -> Option<(&'b [u8], &'b [u8])> {
        let whole = self.left;
        let (name, _) = self.next_fields()?;
        let used = whole.len() - self.left.len();
        Some((name, whole.get(..used)?))
    }

    /// Name and fields of the next entry; the fields of an untrusted entry are `None`.
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
    fn a_reader_splits_stats_into_entries() {
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
    fn ignored_fields_are_stored_but_not_compared() {
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
    fn segments_with_other_entries_are_not_the_same() {
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

    /// The entry has the link id of its file, which depends on the inode number.
    #[test]
    fn a_segment_with_a_hard_link_is_not_the_same_if_its_inode_number_changed() {
        let identity = ComparedFields { inode: false, ctime: false };
        let [one, other] = [1, 2].map(|ino| Stat { nlink: 2, ..stat(Kind::File, ino) });
        assert!(of(&one, NOTHING).same_as(&of(&one, NOTHING), identity));
        assert!(!of(&one, NOTHING).same_as(&of(&other, NOTHING), identity));
        assert!(of(&one, NOTHING).is(&of(&other, NOTHING).0, identity));
    }

    #[test]
    fn an_untrusted_entry_equals_no_other() {
        let mut untrusted = Stats::default();
        untrusted.push_untrusted(b"a");
        for identity in [ComparedFields::default(), ComparedFields { inode: false, ctime: false }] {
            assert!(!of(&stat(Kind::File, 1), NOTHING).same_as(&untrusted, identity));
            assert!(!of(&stat(Kind::File, 1), NOTHING).is(&untrusted.0, identity));
            assert!(!untrusted.is(&untrusted.0, identity));
        }
    }

    #[test]
    fn ignored_privileges_change_the_segment_and_not_the_file() {
        let file = stat(Kind::File, 1);
        let (with, without) = (of(&file, NOTHING), of(&file, UNPRIVILEGED));
        assert!(with.is(&without.0, ComparedFields::default()));
        for identity in [ComparedFields::default(), ComparedFields { inode: false, ctime: false }] {
            assert!(!with.same_as(&without, identity));
            assert!(!with.is(&of(&file, ELSEWHERE).0, identity));
        }
    }
}
