//! The differences between two snapshots.
//!
//! Both trees are walked together in the order of names. Directories with equal digests are skipped, and so are the parts
//! of large directories. For each level of the path, the walk keeps two positions and at most one list of entries each.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use super::error::Error;
use crate::archive::{self, Archive, EntryHandle, OpenSnapshot, Page, SnapshotDirectory};
use crate::format::Kind;
use crate::monitor::Monitor;

/// Levels whose lists are kept while the walk is below them. Levels further up are listed again on return.
const KEPT: usize = 4;

/// A snapshot, and the path in it to compare.
pub struct ComparedTree<'t> {
    /// The snapshot.
    pub snapshot: &'t Arc<OpenSnapshot>,
    /// Path below the snapshot's root; empty for the root.
    pub path: &'t [u8],
}

/// An entry that differs.
pub struct Change<'c> {
    /// Path below the compared paths; empty for the entries at these paths themselves.
    pub path: &'c [u8],
    /// The entry in the first snapshot, if it exists there.
    pub before: Option<&'c EntryHandle>,
    /// The entry in the second snapshot, if it exists there.
    pub after: Option<&'c EntryHandle>,
    /// The fields that differ, if the entry exists in both.
    pub fields: &'c [Field],
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only the second snapshot has it.
    Added,
    /// Only the first snapshot has it.
    Removed,
    /// It has another kind.
    Kind,
    /// It has another content: bytes, holes, target or device number.
    Content,
    /// Only its metadata differs.
    Metadata,
}

/// A field of an entry that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The kind.
    Kind,
    /// The size of a file.
    Size,
    /// The bytes or the holes of a file.
    Content,
    /// The target of a symbolic link.
    Target,
    /// The number of a device.
    Device,
    /// Permission, set-id and sticky bits.
    Mode,
    /// The owner's number or name.
    Owner,
    /// The group's number or name.
    Group,
    /// The modification time.
    Mtime,
    /// The extended attributes.
    Xattrs,
    /// The inode flags.
    InodeFlags,
    /// The number of the file's names.
    Links,
}

/// Counts of entries by kind, and bytes of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of files.
    pub files: u64,
    /// Number of directories.
    pub directories: u64,
    /// Number of other entries.
    pub others: u64,
    /// Size of files in bytes.
    pub bytes: u64,
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiffSummary {
    /// Added entries, and the bytes by which changed files grew.
    pub added: Counts,
    /// Removed entries, and the bytes by which changed files shrank. An entry of another kind is removed and added.
    pub removed: Counts,
    /// Number of files with another content.
    pub changed_files: u64,
    /// Number of other entries with another content.
    pub changed_others: u64,
    /// Number of entries of which only the metadata differs.
    pub metadata: u64,
    /// Number of problems reported to the monitor.
    pub problems: u64,
}

impl Change<'_> {
    /// How the entry differs.
    pub fn kind(&self) -> ChangeKind {
        match (self.before, self.after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            _ if self.fields.contains(&Field::Kind) => ChangeKind::Kind,
            _ if self.fields.iter().any(|field| field.is_content()) => ChangeKind::Content,
            _ => ChangeKind::Metadata,
        }
    }
}

impl Field {
    fn is_content(self) -> bool {
        matches!(self, Field::Size | Field::Content | Field::Target | Field::Device)
    }
}

impl Counts {
    fn count(&mut self, listed: Option<&EntryHandle>) {
        let Some(entry) = listed.map(EntryHandle::entry) else { return };
        match entry.kind {
            Kind::File => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(entry.size);
            }
            Kind::Directory => self.directories += 1,
            _ => self.others += 1,
        }
    }
}

impl DiffSummary {
    fn count(&mut self, change: &Change<'_>) {
        match change.kind() {
            ChangeKind::Added | ChangeKind::Removed | ChangeKind::Kind => {
                self.removed.count(change.before);
                self.added.count(change.after);
            }
            ChangeKind::Content => {
                let size = |listed: Option<&EntryHandle>| listed.map_or(0, |listed| listed.entry().size);
                let (before, after) = (size(change.before), size(change.after));
                if change.after.is_some_and(|after| after.entry().kind == Kind::File) {
                    self.changed_files += 1;
                    self.added.bytes = self.added.bytes.saturating_add(after.saturating_sub(before));
                    self.removed.bytes = self.removed.bytes.saturating_add(before.saturating_sub(after));
                } else {
                    self.changed_others += 1;
                }
            }
            ChangeKind::Metadata => self.metadata += 1,
        }
    }
}

/// Calls `found` with each entry that differs at `path` below the two compared paths: entries of a directory in order of
/// their names, and a directory before its entries. All entries below an added or removed directory are added or removed.
///
/// `path` may be missing in one of them. Problems go to `monitor`; the rest of a directory that cannot be read is skipped.
pub fn diff(
    archive: &dyn Archive,
    before: &ComparedTree<'_>,
    after: &ComparedTree<'_>,
    path: &[u8],
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&Change<'_>) -> io::Result<()>,
) -> Result<DiffSummary, Error> {
    let pair = (before.entry_at(archive, path)?, after.entry_at(archive, path)?);
    if let (None, None) = pair {
        return Err(Error::InNeither(String::from_utf8_lossy(path).into_owned()));
    }
    let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    let ids = [before, after].map(|tree| tree.snapshot.name.id.short());
    let (path, levels, summary) = (names.join(&b'/'), Vec::new(), DiffSummary::default());
    let mut comparison = Comparison { archive, monitor, found, ids, path, levels, fields: Vec::new(), summary };
    comparison.visit(0, pair)?;
    comparison.walk()?;
    Ok(comparison.summary)
}

impl ComparedTree<'_> {
    /// Returns the entry at `path` below the compared path, which must exist.
    fn entry_at(&self, archive: &dyn Archive, path: &[u8]) -> Result<Option<EntryHandle>, archive::Error> {
        archive.at_path(self.snapshot, self.path)?;
        match archive.at_path(self.snapshot, &[self.path, path].join(&b'/')) {
            Ok(found) => Ok(Some(found)),
            Err(archive::Error::NotFound(_) | archive::Error::NotADirectory(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

/// An entry in the first and in the second snapshot.
type Pair = (Option<EntryHandle>, Option<EntryHandle>);

/// A comparison in progress.
struct Comparison<'c> {
    archive: &'c dyn Archive,
    monitor: &'c dyn Monitor,
    found: &'c mut dyn FnMut(&Change<'_>) -> io::Result<()>,
    /// Ids of the snapshots, for messages.
    ids: [String; 2],
    /// The path of the current entry.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// The fields of the current entry that differ.
    fields: Vec<Field>,
    summary: DiffSummary,
}

/// A directory on the path to the current entry.
struct Level {
    /// Length of the path of its parent in bytes.
    above: usize,
    before: Side,
    after: Side,
}

/// A directory in one of the snapshots.
#[derive(Default)]
struct Side {
    /// `None` if the snapshot does not have the directory, or after its last entry.
    directory: Option<SnapshotDirectory>,
    /// Position of the next entry.
    next: u64,
    /// The next entry, once it is read.
    head: Option<EntryHandle>,
    /// The entries after it that are in the same list.
    ready: Page,
}

impl Comparison<'_> {
    fn walk(&mut self) -> Result<(), Error> {
        while let Some(level) = self.levels.last_mut() {
            match level.next_pair(self.archive) {
                Ok((None, None)) => self.leave(),
                Ok(pair) => {
                    let above = self.path.len();
                    let name = pair.0.as_ref().or(pair.1.as_ref()).map(EntryHandle::entry);
                    self.path.extend_from_slice(name.map_or(b"", |entry| entry.name));
                    self.visit(above, pair)?;
                }
                Err((side, error)) => {
                    let id = self.ids.get(side).map_or("", String::as_str);
                    let place = format!("{id}:{}", String::from_utf8_lossy(&self.path));
                    self.monitor.problem(place.as_ref(), &error.to_string());
                    self.summary.problems += 1;
                    self.leave();
                }
            }
        }
        Ok(())
    }

    /// Compares an entry, whose path is the current one, and enters it if there may be differences below it. `above` is
    /// the length of the path of its parent.
    fn visit(&mut self, above: usize, (before, after): Pair) -> Result<(), Error> {
        self.fields.clear();
        if let (Some(before), Some(after)) = (&before, &after) {
            compare(before, after, &mut self.fields);
        }
        if before.is_none() || after.is_none() || !self.fields.is_empty() {
            let (path, fields) = (&self.path, &self.fields);
            let change = Change { path, before: before.as_ref(), after: after.as_ref(), fields };
            self.summary.count(&change);
            (self.found)(&change)?;
        }
        let directories = [before, after].map(|listed| listed.and_then(|listed| listed.directory()));
        match directories {
            [None, None] => self.path.truncate(above),
            [Some(before), Some(after)] if before.has_same_tree(&after) => self.path.truncate(above),
            [before, after] => self.enter(above, before, after),
        }
        Ok(())
    }

    fn enter(&mut self, above: usize, before: Option<SnapshotDirectory>, after: Option<SnapshotDirectory>) {
        if let Some(far) = self.levels.len().checked_sub(KEPT).and_then(|at| self.levels.get_mut(at)) {
            far.before.forget();
            far.after.forget();
        }
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        let side = |directory| Side { directory, ..Side::default() };
        self.levels.push(Level { above, before: side(before), after: side(after) });
    }

    fn leave(&mut self) {
        self.path.truncate(self.levels.pop().map_or(0, |level| level.above));
    }
}

impl Level {
    /// Returns the next entry of the directory; two `None` at its end. An error comes with the number of the snapshot.
    fn next_pair(&mut self, archive: &dyn Archive) -> Result<Pair, (usize, archive::Error)> {
        if self.before.is_at_list() || self.after.is_at_list() {
            self.skip_shared(archive);
        }
        self.before.read_head(archive).map_err(|error| (0, error))?;
        self.after.read_head(archive).map_err(|error| (1, error))?;
        let order = match (&self.before.head, &self.after.head) {
            (Some(before), Some(after)) => before.entry().name.cmp(after.entry().name),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let before = if order.is_le() { self.before.take() } else { None };
        let after = if order.is_ge() { self.after.take() } else { None };
        Ok((before, after))
    }

    /// Skips entries that are known to be the same in both snapshots without reading their lists.
    fn skip_shared(&mut self, archive: &dyn Archive) {
        let (before, after) = (&mut self.before, &mut self.after);
        while let (Some(a), Some(b)) = (&before.directory, &after.directory) {
            // If an index is unreadable, so are the lists, which report it.
            match archive.shared_entries((a, before.next), (b, after.next)) {
                Ok(0) | Err(_) => return,
                Ok(shared) => {
                    before.skip(shared);
                    after.skip(shared);
                }
            }
        }
    }
}

impl Side {
    /// Whether the next entry is in a list that is not read yet.
    fn is_at_list(&self) -> bool {
        self.directory.is_some() && self.head.is_none() && self.ready.is_empty()
    }

    fn read_head(&mut self, archive: &dyn Archive) -> Result<(), archive::Error> {
        if let Some(directory) = self.directory.as_ref().filter(|_| self.is_at_list()) {
            self.ready = archive.list(directory, self.next)?;
            if self.ready.is_empty() {
                self.directory = None;
            }
        }
        if self.head.is_none() {
            self.head = self.ready.next();
        }
        Ok(())
    }

    fn take(&mut self) -> Option<EntryHandle> {
        self.next += 1;
        self.head.take()
    }

    fn skip(&mut self, entries: u64) {
        self.next = self.next.saturating_add(entries);
        self.forget();
    }

    /// Frees the lists of entries. They are read again when they are needed.
    fn forget(&mut self) {
        self.head = None;
        self.ready = Page::default();
    }
}

/// Collects the fields that differ. Link ids are not compared, since they are valid only in their snapshot, nor the marks
/// of entries that changed while they were read or whose mount ignored set-id bits, which say nothing about the file.
fn compare(before: &EntryHandle, after: &EntryHandle, fields: &mut Vec<Field>) {
    let (a, b) = (before.entry(), after.entry());
    // Some machines have no name for the number.
    let renamed = |a: Option<&str>, b: Option<&str>| a.is_some() && b.is_some() && a != b;
    let names = |entry: &archive::EntryRef<'_>| entry.link.map_or(1, |link| link.count);
    let same_kind = a.kind == b.kind;
    let comparisons = [
        (Field::Kind, !same_kind),
        (Field::Size, same_kind && a.kind == Kind::File && a.size != b.size),
        (Field::Content, same_kind && before.digest() != after.digest()),
        (Field::Target, same_kind && a.target != b.target),
        (Field::Device, same_kind && a.device != b.device),
        (Field::Mode, a.mode != b.mode),
        (Field::Owner, a.uid != b.uid || renamed(before.user(), after.user())),
        (Field::Group, a.gid != b.gid || renamed(before.group(), after.group())),
        (Field::Mtime, a.mtime != b.mtime),
        (Field::Xattrs, a.xattrs != b.xattrs),
        (Field::InodeFlags, a.inode_flags != b.inode_flags),
        (Field::Links, names(&a) != names(&b)),
    ];
    fields.extend(comparisons.iter().filter(|(_, differs)| *differs).map(|(field, _)| *field));
}
