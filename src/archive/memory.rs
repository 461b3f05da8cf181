//! An archive in memory: a second format, which shows that commands need nothing else than [`Archive`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::entry::DirectoryLocation;
use super::{
    Archive, ContentPosition, EntryHandle, EntryList, EntryRef, Error, FileContent, FileData, Needs, OpenSnapshot,
    Page, Seek, SnapshotDirectory, Stamp,
};
use crate::failure::{Failure, FailureKind};
use crate::format::entry::HardLink;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::SnapshotName;
use crate::format::snapshot::Statistics;
use crate::format::{Digest, Kind, Timestamp};

/// Entries of a list: few, so that listings have several pages.
const PAGE: usize = 2;

/// An entry, and the entries below it.
#[derive(Debug, Clone)]
pub(crate) struct MemoryEntry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) mtime: i64,
    pub(crate) link: Option<HardLink>,
    /// The content of a file, or the target of a link.
    pub(crate) bytes: Vec<u8>,
    pub(crate) children: Vec<MemoryEntry>,
    /// Whether the entries of the directory cannot be read.
    pub(crate) is_damaged: bool,
}

impl MemoryEntry {
    fn new(name: &str, kind: Kind) -> Self {
        let (bytes, children) = (Vec::new(), Vec::new());
        MemoryEntry { name: name.into(), kind, mtime: 1_000_000_000, link: None, bytes, children, is_damaged: false }
    }

    pub(crate) fn file(name: &str, bytes: &[u8]) -> Self {
        MemoryEntry { bytes: bytes.to_vec(), ..MemoryEntry::new(name, Kind::File) }
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        MemoryEntry { bytes: target.into(), ..MemoryEntry::new(name, Kind::Symlink) }
    }

    pub(crate) fn directory(name: &str, children: Vec<MemoryEntry>) -> Self {
        MemoryEntry { children, ..MemoryEntry::new(name, Kind::Directory) }
    }

    /// Makes a handle to the entry alone, with this rank.
    pub(crate) fn handle(self, rank: u64) -> EntryHandle {
        EntryHandle::new(Arc::new(MemoryList { entries: vec![self], directories: vec![None], ranks: vec![0] }), 0, rank)
    }

    fn below(&self) -> u64 {
        self.children.iter().map(MemoryEntry::span).sum()
    }

    fn span(&self) -> u64 {
        self.below() + 1
    }
}

/// Returns the start of each of several consecutive lengths.
fn starts(first: u64, lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut next = first;
    let mut starts = Vec::new();
    for length in lengths {
        starts.push(next);
        next += length;
    }
    starts
}

/// A snapshot of one source for each tree.
pub(crate) struct MemoryArchive {
    snapshots: Vec<(SnapshotName, EntryHandle)>,
    directories: Vec<MemoryDirectory>,
}

struct MemoryDirectory {
    pages: Vec<Arc<MemoryList>>,
    is_damaged: bool,
}

struct MemoryList {
    entries: Vec<MemoryEntry>,
    /// Indexes in the archive's directories.
    directories: Vec<Option<usize>>,
    /// Ranks before each entry.
    ranks: Vec<u64>,
}

/// The only error that the format itself has.
#[derive(Debug, thiserror::Error)]
#[error("the directory is damaged")]
struct Damaged;

impl Failure for Damaged {
    fn kind(&self) -> FailureKind {
        FailureKind::Failed
    }
}

impl MemoryArchive {
    /// Creates an archive with a snapshot for each of these root directories, oldest first.
    pub(crate) fn new(roots: Vec<Vec<MemoryEntry>>) -> Self {
        let mut archive = MemoryArchive { snapshots: Vec::new(), directories: Vec::new() };
        let source = SourceId::random();
        for (day, children) in (1..).zip(roots) {
            let name = SnapshotName {
                source,
                sequence: day,
                time: format!("202611{day:02}T010000Z"),
                id: SnapshotId::random(),
            };
            let root = archive.add_list(vec![MemoryEntry::directory("", children)]);
            archive.snapshots.push((name, EntryHandle::new(root, 0, 0)));
        }
        archive
    }

    fn add_list(&mut self, entries: Vec<MemoryEntry>) -> Arc<MemoryList> {
        let directories =
            entries.iter().map(|entry| (entry.kind == Kind::Directory).then(|| self.add(entry))).collect();
        let ranks = starts(0, entries.iter().map(MemoryEntry::span));
        Arc::new(MemoryList { entries, directories, ranks })
    }

    fn add(&mut self, directory: &MemoryEntry) -> usize {
        let pages = directory.children.chunks(PAGE).map(|page| self.add_list(page.to_vec())).collect();
        self.directories.push(MemoryDirectory { pages, is_damaged: directory.is_damaged });
        self.directories.len() - 1
    }

    /// Returns the pages of a directory with the rank of the first entry of each.
    fn pages(&self, directory: &SnapshotDirectory) -> Result<Vec<(Arc<MemoryList>, u64)>, Error> {
        let found = &self.directories[directory.location[0] as usize];
        if found.is_damaged {
            return Err(Error::Unreadable(Arc::new(Damaged)));
        }
        let spans = found.pages.iter().map(|page| page.entries.iter().map(MemoryEntry::span).sum());
        let ranks = starts(directory.rank + 1, spans);
        Ok(found.pages.iter().cloned().zip(ranks).collect())
    }

    fn all(&self, directory: &SnapshotDirectory) -> Result<impl Iterator<Item = EntryHandle>, Error> {
        Ok(self.pages(directory)?.into_iter().flat_map(|(page, rank)| Page::new(page, 0, rank)))
    }
}

impl Archive for MemoryArchive {
    fn id(&self) -> String {
        "memory".into()
    }

    fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        Ok(self.snapshots.iter().map(|(name, _)| name.clone()).collect())
    }

    fn open(&self, name: &SnapshotName) -> Result<Arc<OpenSnapshot>, Error> {
        let found = self.snapshots.iter().find(|(known, _)| known == name);
        let (name, root) = found.cloned().ok_or_else(|| Error::NotFound("no such snapshot".into()))?;
        let (source, root_path, tags) = ("memory".to_owned(), None, Vec::new());
        Ok(Arc::new(OpenSnapshot { name, source, root_path, tags, statistics: Statistics::default(), root }))
    }

    fn source_name(&self, _id: SourceId) -> Result<String, Error> {
        Ok("memory".into())
    }

    fn stamp(&self, _name: &SnapshotName) -> Option<Stamp> {
        None
    }

    fn lookup(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, Error> {
        Ok(self.all(directory)?.find(|listed| listed.entry().name == name))
    }

    fn by_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, Error> {
        Ok(self.all(directory)?.take_while(|listed| listed.rank <= rank).last())
    }

    fn list(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, Error> {
        let (page, at) = (from as usize / PAGE, from as usize % PAGE);
        let found = self.pages(directory)?.into_iter().nth(page);
        Ok(found.map_or_else(Page::default, |(page, rank)| Page::new(page, at, rank)))
    }

    fn content(&self, file: &EntryHandle) -> Result<Arc<dyn FileContent>, Error> {
        let (list, at) = file.in_list::<MemoryList>().ok_or_else(|| Error::NotFound("a foreign entry".into()))?;
        Ok(Arc::new(MemoryContent(list.entries[at].bytes.clone())))
    }

    fn is_available(&self) -> bool {
        true
    }

    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    fn is_permanent(&self, error: &Error) -> bool {
        error.cause::<Damaged>().is_some()
    }

    fn is_slow_to_open(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs { threads: 0, bytes: 0 }
    }
}

impl EntryList for MemoryList {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn bytes(&self) -> usize {
        size_of_val(self.entries.as_slice())
    }

    fn entry(&self, at: usize) -> Option<EntryRef<'_>> {
        let entry = self.entries.get(at)?;
        Some(EntryRef {
            name: entry.name.as_bytes(),
            kind: entry.kind,
            mode: 0o755,
            mtime: Timestamp { seconds: entry.mtime, nanos: 0 },
            size: entry.bytes.len() as u64,
            target: if entry.kind == Kind::Symlink { &entry.bytes } else { b"" },
            link: entry.link,
            ..EntryRef::EMPTY
        })
    }

    fn ranks_before(&self, at: usize) -> u64 {
        self.ranks[at]
    }

    fn directory(&self, at: usize, rank: u64) -> Option<SnapshotDirectory> {
        let location: DirectoryLocation = [self.directories[at]? as u64, 0, 0, 0, 0];
        let entry = &self.entries[at];
        let digest = Some(Digest::of(format!("{:?}", entry.children).as_bytes()));
        Some(SnapshotDirectory { rank, below: entry.below(), digest, location })
    }

    fn user(&self, _at: usize) -> Option<&str> {
        None
    }

    fn group(&self, _at: usize) -> Option<&str> {
        None
    }

    fn digest(&self, at: usize) -> Option<Digest> {
        let entry = self.entries.get(at).filter(|entry| entry.kind == Kind::File)?;
        Some(Digest::of(&entry.bytes))
    }

    fn stored_bytes(&self, at: usize) -> u64 {
        self.entries[at].bytes.len() as u64
    }

    fn file_digest(&self, at: usize) -> Digest {
        let entry = MemoryEntry { name: String::new(), ..self.entries[at].clone() };
        Digest::of(format!("{entry:?}").as_bytes())
    }

    fn inode_digest(&self, at: usize) -> Digest {
        self.file_digest(at)
    }

    fn content_position(&self, _at: usize) -> Option<ContentPosition> {
        None
    }
}

struct MemoryContent(Vec<u8>);

impl FileContent for MemoryContent {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_with(&self, offset: u64, length: usize, use_bytes: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let start = self.0.len().min(offset as usize);
        let end = self.0.len().min(start + length);
        use_bytes(&self.0[start..end]);
        Ok(())
    }

    fn visit(&self, visit: &mut dyn FnMut(FileData<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        let _ = visit(FileData::Bytes(&self.0));
        Ok(())
    }

    fn stored_ranges(&self, visit: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), Error> {
        visit(0, self.size());
        Ok(())
    }

    fn seek(&self, offset: u64, to: Seek) -> Result<Option<u64>, Error> {
        let is_within = offset < self.size();
        Ok(is_within.then_some(if to == Seek::Data { offset } else { self.size() }))
    }

    fn unverified_digest(&self) -> Option<Digest> {
        None
    }
}

mod tests {
    use super::super::{Selector, TreeWalk, WalkStep};
    use super::*;

    fn archive() -> MemoryArchive {
        let file = |name| MemoryEntry::file(name, b"text");
        let damaged = MemoryEntry { is_damaged: true, ..MemoryEntry::directory("c", vec![file("lost")]) };
        let folder = MemoryEntry::directory("b", vec![file("1"), file("2"), file("3")]);
        MemoryArchive::new(vec![vec![file("old")], vec![file("a"), folder, damaged, MemoryEntry::symlink("d", "a")]])
    }

    fn select(archive: &dyn Archive, text: &str) -> Result<Arc<OpenSnapshot>, Error> {
        archive
            .select(&Selector::parse(text.as_bytes()).unwrap(), &mut |_, error| panic!("{error}"))
            .map(|selected| selected.snapshot)
    }

    #[test]
    fn snapshots_are_selected_by_name_and_time() {
        let archive = archive();
        let sequence = |text| select(&archive, text).map(|snapshot| snapshot.name.sequence);
        assert_eq!(sequence("latest").unwrap(), 2);
        assert_eq!(sequence("memory/2026-11-01").unwrap(), 1);
        assert!(matches!(sequence("other/latest"), Err(Error::NotFound(_))));
    }

    #[test]
    fn a_walk_visits_all_entries_in_the_order_of_their_ranks() {
        let archive = archive();
        let snapshot = select(&archive, "latest").unwrap();
        let mut walk = TreeWalk::new(&archive, snapshot.root.directory().unwrap());
        let (mut names, mut ranks, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Entry(listed) => {
                    names.push(String::from_utf8(listed.entry().name.to_vec()).unwrap());
                    ranks.push(listed.rank);
                    listed.directory().into_iter().for_each(|below| walk.enter(below));
                }
                WalkStep::Failed(error) => failed.push(error.to_string()),
                WalkStep::Leave => {}
            }
        }
        assert_eq!(names, ["a", "b", "1", "2", "3", "c", "d"]);
        // The unreadable entry has a rank, too.
        assert_eq!(ranks, [1, 2, 3, 4, 5, 6, 8]);
        assert_eq!(failed, ["the directory is damaged"]);
    }

    #[test]
    fn entries_are_found_by_path_and_by_rank() {
        let archive = archive();
        let snapshot = select(&archive, "latest").unwrap();
        let found = archive.at_path(&snapshot, b"/b/./3").unwrap();
        assert_eq!((found.entry().name, found.rank), (b"3".as_slice(), 5));
        assert_eq!(archive.at_rank(&snapshot, 5).unwrap().entry().name, b"3");
        let text = archive.content(&found).unwrap().read(1, 2, <[u8]>::to_vec).unwrap();
        assert_eq!(text, b"ex");
        assert!(matches!(archive.at_path(&snapshot, b"b/4"), Err(Error::NotFound(_))));
        assert!(matches!(archive.at_path(&snapshot, b"a/4"), Err(Error::NotADirectory(_))));
        assert!(matches!(archive.at_path(&snapshot, b"c/lost"), Err(Error::Unreadable(_))));
    }
}
