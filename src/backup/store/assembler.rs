//! Assembles the tree of a snapshot from the events of the walk.
//!
//! Every decision is made here, in one thread: which chunks are known, where new ones go, when to commit. The walk, the
//! readers and the sealers run beside it. The channels between them are bounded, and files are taken in the order of the
//! walk, so no stage gets ahead without limit, and no two stages wait for each other.

use std::path::{Path, PathBuf};

use roaring::RoaringTreemap;

use super::file::{FilePart, StoredContent};
use super::frames::{FinishedDirectory, Frame, Frames, NewPart, OpenSegment};
use super::hard_link_ids::HardLinkIds;
use super::indexes::over_segments;
use super::nodes::{Link, NodeKey, Nodes, PLACEHOLDER, Purpose, SegmentDraft};
use crate::backup::calls::Calls;
use crate::backup::entry::{CHANGED, change, entry_of, weight};
use crate::backup::error::Error;
use crate::backup::limits::ATTRIBUTES_OPEN;
use crate::backup::read::budget::Budget;
use crate::backup::read::content::{Arriving, FileContent, FileEnd};
use crate::backup::read::jobs::ReadSetup;
use crate::backup::read::verdict::Verdict;
use crate::backup::walk::event::{
    EnterDirectory, Event, KeptEntry, NewFile, NewFiles, OldSegment, PlainEntry, ReusedEntry,
};
use crate::catalog::stats::Stats;
use crate::catalog::{
    BlockId, DeferredFile, DirectoryId, DirectoryRow, Parent, SegmentId, SegmentRow, Stored, StoredState,
};
use crate::format::{BlockLocation, Content, Entry, Items, Kind, Segment, Subtree};
use crate::monitor::Monitor;
use crate::source::{Inode, LastMount, Stat};

/// Segments, or indexes of segments, in an index node.
const INDEX_ITEMS: usize = 1000;

/// The counts of the assembler.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::backup) struct ReadCounts {
    pub(in crate::backup) problems: u64,
    pub(in crate::backup) read_files: u64,
    pub(in crate::backup) read_bytes: u64,
    /// Files that could not be read, and are not in the snapshot.
    pub(in crate::backup) missing_files: u64,
}

/// A directory that was not found again. It may turn up elsewhere before the walk ends.
pub(in crate::backup) struct VanishedDirectory {
    pub(in crate::backup) parent: DirectoryId,
    pub(in crate::backup) name: Vec<u8>,
    pub(in crate::backup) id: DirectoryId,
}

/// The result of a whole walk.
pub(in crate::backup) struct AssembledTree<'a> {
    pub(in crate::backup) nodes: Nodes<'a>,
    pub(in crate::backup) root: FinishedDirectory,
    pub(in crate::backup) vanished: Vec<VanishedDirectory>,
    /// Directories were visited again: the blocks noted as used include blocks that are not used any more.
    pub(in crate::backup) repeated: bool,
    pub(in crate::backup) counts: ReadCounts,
}

/// Turns events into entries, segments and directories.
pub(in crate::backup) struct Assembler<'a> {
    nodes: Nodes<'a>,
    monitor: &'a dyn Monitor,
    calls: &'a Calls,
    hard_links: HardLinkIds,
    mounts: LastMount,
    /// Lends memory for attributes of files that are read.
    attributes: Budget,
    /// The parent of the root directory.
    above: Parent,
    frames: Frames,
    /// Files whose content was taken.
    files_taken: u64,
    root: Option<FinishedDirectory>,
    repeated: bool,
    vanished: Vec<VanishedDirectory>,
    counts: ReadCounts,
    wrong_sizes: WrongSizes,
}

impl<'a> Assembler<'a> {
    /// An assembler of the tree at the path `root`, whose parent in the catalog is `above`.
    pub(in crate::backup) fn new(
        nodes: Nodes<'a>,
        above: Parent,
        root: &Path,
        setup: &'a ReadSetup,
        by_ctime: bool,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Assembler {
            nodes,
            monitor,
            calls: &setup.calls,
            hard_links: HardLinkIds::new(&setup.mounts, by_ctime),
            mounts: LastMount::of_table(&setup.mounts),
            attributes: setup.attributes.clone(),
            above,
            frames: Frames::new(root),
            files_taken: 0,
            root: None,
            repeated: false,
            vanished: Vec::new(),
            counts: ReadCounts::default(),
            wrong_sizes: WrongSizes::default(),
        }
    }

    /// Handles an event, and the results of sealing that have arrived meanwhile.
    pub(in crate::backup) fn event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Enter(enter) => self.enter(*enter)?,
            Event::OldSegment(old) => self.old_segment(*old)?,
            Event::NewSegment { replaces } => self.new_segment(replaces)?,
            Event::Reused(reused) => self.reuse(*reused)?,
            Event::Kept(kept) => self.keep(*kept)?,
            Event::Again { name } => {
                let directory = self.frames.last()?.id;
                self.nodes.catalog().remove_deferred(directory, &name)?;
            }
            Event::Files(new) => self.files(*new)?,
            Event::Plain(plain) => self.plain(*plain)?,
            Event::EndSegment => self.end_segment()?,
            Event::Leave { removed } => self.leave(&removed)?,
        }
        self.nodes.take_results()?;
        self.nodes.commit_if_due()
    }

    /// The walk has left the root. If files are deferred, commits, so that the walk can visit these again, and returns true.
    pub(in crate::backup) fn prepare_retry(&mut self) -> Result<bool, Error> {
        if self.root.is_none() || !self.nodes.catalog().has_deferred()? {
            return Ok(false);
        }
        self.nodes.settle()?;
        self.nodes.commit()?;
        Ok(true)
    }

    /// Waits until everything is sealed, and has a place.
    pub(in crate::backup) fn settle(&mut self) -> Result<(), Error> {
        if self.root.is_some() { self.nodes.settle() } else { Err(Error::Stopped("the walk")) }
    }

    /// Ends the assembly of a tree that is settled.
    pub(in crate::backup) fn finish(mut self) -> Result<AssembledTree<'a>, Error> {
        self.wrong_sizes.report(self.monitor);
        let root = self.root.ok_or(Error::Stopped("the walk"))?;
        let Assembler { nodes, vanished, repeated, counts, .. } = self;
        Ok(AssembledTree { nodes, root, vanished, repeated, counts })
    }

    /// Breaks off, and commits the content that is stored by now or shortly after.
    pub(in crate::backup) fn interrupt(mut self) -> Result<(), Error> {
        self.wrong_sizes.report(self.monitor);
        self.nodes.keep_stored()
    }

    fn enter(&mut self, enter: EnterDirectory) -> Result<(), Error> {
        let EnterDirectory { name, stat, device, mut extended, mut untrusted, row, again, lent: _lent } = enter;
        if self.frames.is_heavy() {
            self.split_segment()?;
        }
        self.frames.enter(&name);
        if !self.frames.has_room_for(&extended) {
            // Only a tree that was built to take memory gets here.
            let most = ATTRIBUTES_OPEN >> 20;
            let why = format!(
                "it and the directories above have more than {most} MiB of extended attributes; its own are not stored"
            );
            self.counts.problems += 1;
            self.monitor.problem(self.frames.path(), &why);
            extended.xattrs.clear();
            untrusted = true;
        }
        self.monitor.progress().at(self.frames.path());
        // The directory of a pipe has no path.
        if row.is_none() && !self.frames.path().as_os_str().is_empty() {
            self.monitor.entry(self.frames.path(), change(false));
        }
        self.hard_links.note_device(stat.dev, device);
        let id = self.enter_row(row.as_ref(), &name, Inode { device, number: stat.ino })?;
        if let Some(parent) = self.frames.innermost().filter(|parent| parent.row.is_some()) {
            parent.entered.insert(id.0.cast_unsigned());
        }
        let changed = row.as_ref().is_none_or(|row| row.subtree.is_none());
        self.frames.push(Frame {
            id,
            name,
            stat,
            extended,
            untrusted,
            row,
            parts: Vec::new(),
            segment: OpenSegment::None,
            entered: RoaringTreemap::new(),
            changed,
            again,
        });
        Ok(())
    }

    /// Enters a directory into the catalog, or updates its row.
    fn enter_row(&mut self, row: Option<&DirectoryRow>, name: &[u8], inode: Inode) -> Result<DirectoryId, Error> {
        let parent = self.frames.innermost().map_or(self.above, |frame| Parent::Directory(frame.id));
        let catalog = self.nodes.catalog();
        let Some(row) = row else { return Ok(catalog.enter_directory(parent, name, inode)?) };
        if !row.in_place {
            catalog.move_directory(row.id, parent, name)?;
        }
        if row.inode != inode {
            catalog.renumber_directory(row.id, inode)?;
        }
        Ok(row.id)
    }

    fn old_segment(&mut self, OldSegment { row, stats }: OldSegment) -> Result<(), Error> {
        if let Some(stats) = stats {
            self.nodes.catalog().renew_stats(row.id, &stats)?;
        }
        self.frames.last()?.segment = OpenSegment::Old { row: Box::new(row), changed: Vec::new() };
        Ok(())
    }

    fn new_segment(&mut self, replaces: Vec<SegmentId>) -> Result<(), Error> {
        let owner = self.frames.owner();
        let frame = self.frames.last()?;
        let draft = SegmentDraft { directory: frame.id, replaces, stats: Stats::default(), children: Vec::new() };
        let key = self.nodes.open(owner, Purpose::Segment(draft), Items::Entries(Vec::new()));
        frame.segment = OpenSegment::New(NewPart { key, bytes: 0 });
        frame.changed = true;
        Ok(())
    }

    /// Ends the open segment and begins another one.
    fn split_segment(&mut self) -> Result<(), Error> {
        self.end_segment()?;
        self.new_segment(Vec::new())
    }

    /// The node of the new segment that takes the next entry.
    fn new_part(&mut self) -> Result<NodeKey, Error> {
        if matches!(&self.frames.last()?.segment, OpenSegment::New(part) if part.is_full()) {
            self.split_segment()?;
        }
        match &self.frames.last()?.segment {
            OpenSegment::New(part) => Ok(part.key),
            _ => Err(Error::Internal("an entry is in no new segment")),
        }
    }

    /// Adds an entry to the new segment, and its identity if that can be trusted later. Returns the number of the entry.
    fn add_entry(&mut self, mut entry: Entry, stat: &Stat, untrusted: bool) -> Result<usize, Error> {
        let within = self.frames.last()?.stat.dev;
        let key = self.frames.add(weight(&entry))?;
        entry.link = None;
        if stat.nlink > 1 && stat.kind != Kind::Directory {
            entry.link = self.hard_links.find(self.nodes.catalog(), &entry, stat)?;
        }
        let mount = self.mounts.of(stat).entry_mount(stat, within);
        entry.flags &= !Entry::UNPRIVILEGED;
        if mount.is_unprivileged() && entry.has_privileges() {
            entry.flags |= Entry::UNPRIVILEGED;
        }
        let stats = &mut self.nodes.segment(key)?.stats;
        if untrusted {
            stats.push_untrusted(&entry.name);
        } else {
            stats.push(&entry.name, stat, mount);
        }
        self.push_entry(key, entry)
    }

    fn push_entry(&mut self, key: NodeKey, entry: Entry) -> Result<usize, Error> {
        match self.nodes.items(key)? {
            Items::Entries(entries) => {
                entries.push(entry);
                Ok(entries.len() - 1)
            }
            _ => Err(Error::Internal("an entry is in no new segment")),
        }
    }

    /// Adds an entry that looks as it did in the last backup.
    fn reuse(&mut self, ReusedEntry { mut entry, stat, blocks, lent: _lent }: ReusedEntry) -> Result<(), Error> {
        let key = self.new_part()?;
        self.refer_again(key, &mut entry, &blocks)?;
        if stat.kind == Kind::File {
            self.monitor.progress().file();
            self.monitor.progress().bytes(entry.size);
        }
        self.add_entry(entry, &stat, false)?;
        Ok(())
    }

    /// Takes an entry over as it is in the catalog.
    fn keep(&mut self, KeptEntry { mut entry, identity, blocks, lent: _lent }: KeptEntry) -> Result<(), Error> {
        let key = self.new_part()?;
        self.refer_again(key, &mut entry, &blocks)?;
        self.frames.add(weight(&entry))?;
        self.nodes.segment(key)?.stats.push_again(&identity);
        self.push_entry(key, entry)?;
        Ok(())
    }

    /// Moves an entry's references to the table of another node. They count in `blocks` now.
    fn refer_again(
        &mut self,
        key: NodeKey,
        entry: &mut Entry,
        blocks: &[(BlockId, BlockLocation)],
    ) -> Result<(), Error> {
        let is_nodes = matches!(entry.content, Content::Nodes { .. });
        for chunk in entry.chunk_refs_mut() {
            let place = blocks.get(chunk.block as usize);
            let (block, place) = *place.ok_or_else(|| self.nodes.catalog().damaged("an entry refers to no block"))?;
            let stored = Stored { digest: chunk.digest, block, start: chunk.start, length: chunk.length };
            *chunk = self.nodes.refer(key, &stored, Some(place))?;
            if is_nodes {
                let catalog = self.nodes.catalog();
                let below = catalog.extent_node(&stored.digest)?;
                let below = below.ok_or_else(|| catalog.damaged("the blocks of a large file are not known"))?;
                self.nodes.add_more(key, &below)?;
            }
        }
        Ok(())
    }

    /// Adds a link or a special file.
    fn plain(&mut self, plain: PlainEntry) -> Result<(), Error> {
        let PlainEntry { entry, stat, untrusted, existed, lent: _lent } = plain;
        self.monitor.entry(&self.frames.child_path(&entry.name), change(existed));
        self.new_part()?;
        self.add_entry(entry, &stat, untrusted)?;
        Ok(())
    }

    fn files(&mut self, NewFiles { files, content }: NewFiles) -> Result<(), Error> {
        let mut content = Arriving::new(content, self.calls);
        files.into_iter().try_for_each(|file| self.file(file, &mut content))
    }

    /// Takes a file's content as it arrives, and adds the file.
    fn file(&mut self, file: NewFile, arriving: &mut Arriving<'_>) -> Result<(), Error> {
        self.files_taken += 1;
        self.attributes.serve(self.files_taken);
        let path = self.frames.child_path(&file.name);
        self.monitor.progress().at(&path);
        let key = self.new_part()?;
        let mut content = StoredContent::new(self.frames.owner());
        match self.receive(arriving, file.owner, &mut content)? {
            Received::End(end) => {
                let Verdict { changed, deferred, .. } = end.verdict;
                if deferred {
                    let stored = if changed { StoredState::Changed } else { StoredState::Fresh };
                    self.defer(&file, changed, stored)?;
                } else {
                    self.counts.read_files += 1;
                    self.monitor.progress().file();
                    self.monitor.entry(&path, change(file.existed));
                }
                self.finish_file(key, file.name, &path, *end, content)
            }
            Received::Deferred { changed } => self.defer(&file, changed, StoredState::Nothing),
            Received::Failed(why) => {
                self.counts.problems += 1;
                self.counts.missing_files += 1;
                self.monitor.problem(&path, &why);
                Ok(())
            }
            Received::BrokenOff => Ok(()),
        }
    }

    fn defer(&mut self, file: &NewFile, changed: bool, stored: StoredState) -> Result<(), Error> {
        Ok(self.nodes.catalog().defer(&DeferredFile {
            directory: self.frames.last()?.id,
            name: file.name.clone(),
            tries: file.tries + u32::from(changed),
            existed: file.existed,
            stored,
        })?)
    }

    /// Stores a file's content as it arrives.
    fn receive(
        &mut self,
        arriving: &mut Arriving<'_>,
        owner: u32,
        content: &mut StoredContent,
    ) -> Result<Received, Error> {
        let mut lost = false;
        loop {
            let part = match arriving.next().ok_or(Error::Stopped("reading files"))? {
                FileContent::Chunk(bytes, digest) => {
                    let length = bytes.len() as u64;
                    self.counts.read_bytes += length;
                    self.monitor.progress().read(length);
                    FilePart::Chunk(self.nodes.blocks_mut().store_data(digest, owner, || bytes.take())?)
                }
                FileContent::Known(digest, length) => match self.nodes.blocks().known(&digest)? {
                    Some(stored) if stored.length == length => FilePart::Chunk(stored),
                    // Of two digests with the same head the catalog knows one. The rest of the file's content must still
                    // be received, or it would be taken for the next file's.
                    _ => {
                        lost = true;
                        continue;
                    }
                },
                FileContent::Hole(length) => FilePart::Hole(length),
                FileContent::End(_) if lost => {
                    return Ok(Received::Failed("a part of it is not found again; the next backup stores it".into()));
                }
                FileContent::End(end) => return Ok(Received::End(end)),
                FileContent::Deferred { changed } => return Ok(Received::Deferred { changed }),
                FileContent::Failed(why) => return Ok(Received::Failed(why)),
                FileContent::Broken(error) => return Err(error),
                FileContent::BrokenOff => return Ok(Received::BrokenOff),
            };
            self.monitor.progress().bytes(part.length());
            content.push(part, &mut self.nodes)?;
            self.nodes.take_results()?;
            self.nodes.commit_if_due()?;
        }
    }

    fn finish_file(
        &mut self,
        key: NodeKey,
        name: Vec<u8>,
        path: &Path,
        end: FileEnd,
        content: StoredContent,
    ) -> Result<(), Error> {
        let FileEnd { stat, extended, size, digest, verdict, lent: _lent } = end;
        let Verdict { changed, doubtful, wrong_size, deferred } = verdict;
        let content = content.finish(key, digest, &mut self.nodes)?;
        let incomplete = extended.missing.is_some();
        // The retry reports the problems of a deferred file.
        let missing = extended.missing.as_deref().filter(|_| !deferred);
        for problem in missing.into_iter().chain((changed && !deferred).then_some(CHANGED)) {
            self.counts.problems += 1;
            self.monitor.problem(path, problem);
        }
        if wrong_size && !changed {
            self.wrong_sizes.add(path);
        }
        let mut entry = entry_of(name, &stat, extended, content.content);
        entry.size = size;
        if changed {
            entry.flags |= Entry::CHANGED;
        }
        let item = self.add_entry(entry, &stat, changed || doubtful || wrong_size || incomplete)?;
        for (reference, link) in content.links.into_iter().enumerate() {
            self.nodes.depend(key, item, reference, link)?;
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        match self.frames.take_segment()? {
            OpenSegment::None => Ok(()),
            OpenSegment::New(part) => self.end_new_segment(part.key),
            OpenSegment::Old { row, changed } if changed.is_empty() => {
                self.nodes.use_blocks(&row.blocks);
                self.nodes.use_blocks(&row.more);
                self.nodes.use_blocks(&[row.node.block]);
                let SegmentRow { first, entries, span, node, .. } = *row;
                let segment = Segment { first, entries, span, node: PLACEHOLDER };
                self.frames.last()?.parts.push((segment, Link::Written(node, Vec::new())));
                Ok(())
            }
            OpenSegment::Old { row, changed } => self.change_segment(&row, changed),
        }
    }

    fn end_new_segment(&mut self, key: NodeKey) -> Result<(), Error> {
        let Items::Entries(entries) = self.nodes.items(key)? else { return Ok(()) };
        let segment = Segment {
            first: entries.first().map(|entry| entry.name.clone()).unwrap_or_default(),
            entries: entries.len() as u64,
            span: entries.iter().map(Entry::span).sum(),
            node: PLACEHOLDER,
        };
        if segment.entries == 0 {
            // All of its files failed: there is nothing to write, but the segments that it replaces must go.
            if let Some(Purpose::Segment(draft)) = self.nodes.discard(key) {
                self.nodes.catalog().remove_segments(draft.directory, &draft.replaces)?;
            }
            return Ok(());
        }
        let link = self.nodes.close(key)?;
        self.frames.last()?.parts.push((segment, link));
        Ok(())
    }

    /// Rewrites an old segment because directories in it changed further down.
    fn change_segment(&mut self, row: &SegmentRow, changed: Vec<FinishedDirectory>) -> Result<(), Error> {
        let old = self.nodes.catalog().segment_node(row.id)?;
        let Items::Entries(entries) = old.node.items else {
            return Err(self.nodes.catalog().damaged("a part of a directory has no entries").into());
        };
        let owner = self.frames.owner();
        let draft = SegmentDraft {
            directory: self.frames.last()?.id,
            replaces: vec![row.id],
            stats: old.stats,
            children: changed.iter().map(|child| child.id).collect(),
        };
        let key = self.nodes.open(owner, Purpose::Segment(draft), Items::Entries(Vec::new()));
        let blocks: Vec<_> = old.blocks.iter().copied().zip(old.node.blocks.iter().copied()).collect();
        let mut changed = changed.into_iter().peekable();
        let mut links = Vec::new();
        let mut items = Vec::with_capacity(entries.len());
        for (item, mut entry) in entries.into_iter().enumerate() {
            match changed.next_if(|child| child.name == entry.name) {
                Some(child) => {
                    entry.content = Content::Directory(Subtree { below: child.below, node: None });
                    links.extend(child.link.map(|link| (item, link)));
                }
                None => self.refer_again(key, &mut entry, &blocks)?,
            }
            items.push(entry);
        }
        *self.nodes.items(key)? = Items::Entries(items);
        for (item, link) in links {
            self.nodes.depend(key, item, 0, link)?;
        }
        self.frames.last()?.changed = true;
        self.end_new_segment(key)
    }

    /// Ends a directory: its parent gets it, or it is the root.
    fn leave(&mut self, removed: &[SegmentId]) -> Result<(), Error> {
        let frame = self.frames.pop()?;
        self.monitor.progress().at(self.frames.path());
        let done = self.finish_directory(frame, removed)?;
        let Some(parent) = self.frames.innermost() else {
            self.repeated = self.root.replace(done).is_some();
            return Ok(());
        };
        match &mut parent.segment {
            OpenSegment::Old { changed, .. } => {
                if done.changed {
                    changed.push(done);
                }
                Ok(())
            }
            OpenSegment::New(_) => self.add_directory(done),
            OpenSegment::None => Err(Error::Internal("a directory is in no segment")),
        }
    }

    /// Adds the entry of a directory that the walk has left.
    fn add_directory(&mut self, done: FinishedDirectory) -> Result<(), Error> {
        let FinishedDirectory { id, name, stat, extended, untrusted, below, link, .. } = done;
        let key = self.new_part()?;
        let content = Content::Directory(Subtree { below, node: None });
        let item = self.add_entry(entry_of(name, &stat, extended, content), &stat, untrusted)?;
        self.nodes.segment(key)?.children.push(id);
        match link {
            Some(link) => self.nodes.depend(key, item, 0, link),
            None => Ok(()),
        }
    }

    fn finish_directory(&mut self, frame: Frame, removed: &[SegmentId]) -> Result<FinishedDirectory, Error> {
        let Frame { id, name, stat, extended, untrusted, row, parts, entered, changed, again, .. } = frame;
        if !changed
            && removed.is_empty()
            && let Some(DirectoryRow { subtree: Some((below, node)), linked, indexes, .. }) = &row
        {
            self.nodes.use_blocks(indexes);
            let link = node.map(|node| Link::Written(node, Vec::new()));
            let (below, changed) = (*below, !linked);
            return Ok(FinishedDirectory { id, name, stat, extended, untrusted, below, link, changed });
        }
        let catalog = self.nodes.catalog();
        catalog.remove_segments(id, removed)?;
        if row.is_some() && !again {
            let gone = catalog.children_except(id, &entered)?;
            self.vanished.extend(gone.into_iter().map(|(name, child)| VanishedDirectory {
                parent: id,
                name,
                id: child,
            }));
        }
        let below = parts.iter().map(|(segment, _)| segment.span).sum();
        let link = match over_segments(&mut self.nodes, stat.uid, parts, INDEX_ITEMS)? {
            Some(link) => Some(self.nodes.complete(link, id, below)?),
            None => {
                self.nodes.catalog().finish_directory(id, 0, None, &[])?;
                None
            }
        };
        Ok(FinishedDirectory { id, name, stat, extended, untrusted, below, link, changed: true })
    }
}

/// The outcome of receiving a file's content.
enum Received {
    End(Box<FileEnd>),
    /// Nothing of it is stored, and it is to be read again.
    Deferred {
        changed: bool,
    },
    Failed(String),
    /// The whole run breaks off.
    BrokenOff,
}

/// Files that did not end where their size says: the first one, and how many.
#[derive(Default)]
struct WrongSizes(Option<(PathBuf, u64)>);

impl WrongSizes {
    fn add(&mut self, path: &Path) {
        self.0.get_or_insert_with(|| (path.to_owned(), 0)).1 += 1;
    }

    fn report(&mut self, monitor: &dyn Monitor) {
        let Some((first, count)) = self.0.take() else { return };
        let what = "is not of the size that its file system says; it was read to its end";
        let more = if count > 1 { format!(", and so were {} more files", count - 1) } else { String::new() };
        monitor.note(&format!("{} {what}{more}", first.display()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::backup::read::content::ChunkBytes;
    use crate::backup::read::hard_links::HardLinkCache;
    use crate::backup::store::fixture::Site;
    use crate::catalog::SourceRow;
    use crate::format::Digest;
    use crate::monitor::Silent;
    use crate::source::{Chunker, Extended, MountTable};

    fn stat(kind: Kind) -> Stat {
        Stat { kind, ..Stat::of_fd(tempfile::tempfile().unwrap()).unwrap() }
    }

    fn enter(name: &str, number: u64) -> Event {
        Event::Enter(Box::new(EnterDirectory {
            name: name.into(),
            stat: Stat { ino: number, ..stat(Kind::Directory) },
            device: 1,
            extended: Extended::default(),
            untrusted: false,
            row: None,
            again: false,
            lent: None,
        }))
    }

    fn leave() -> Event {
        Event::Leave { removed: Vec::new() }
    }

    fn link(name: &str) -> Event {
        let stat = Stat { nlink: 1, ..stat(Kind::Symlink) };
        let entry = entry_of(name.into(), &stat, Extended::default(), Content::Target(b"target".to_vec()));
        Event::Plain(Box::new(PlainEntry { entry, stat, untrusted: false, existed: false, lent: None }))
    }

    /// A file with this content.
    fn file(name: &str, content: Vec<FileContent>) -> Event {
        let (sender, receiver) = bounded(1);
        sender.send(content).unwrap();
        let files = vec![NewFile { name: name.into(), owner: 0, existed: false, size: 1, tries: 0 }];
        Event::Files(Box::new(NewFiles { files, content: receiver }))
    }

    fn end(deferred: bool) -> FileContent {
        FileContent::End(Box::new(FileEnd {
            stat: Stat { nlink: 1, ..stat(Kind::File) },
            extended: Extended::default(),
            size: 1,
            digest: Digest::of(b"x"),
            verdict: Verdict { changed: deferred, deferred, ..Verdict::default() },
            lent: None,
        }))
    }

    fn chunk() -> FileContent {
        FileContent::Chunk(ChunkBytes::Memory { bytes: b"x".to_vec(), _loan: None }, Digest::of(b"x"))
    }

    /// Sends events to a new assembler.
    fn assemble<T>(events: Vec<Event>, test: impl FnOnce(Result<Assembler<'_>, Error>) -> T) -> T {
        let setup = ReadSetup {
            chunker: Chunker::new(1, 1 << 20),
            files_at_once: 1,
            whole_below: 0,
            attributes: Budget::new(1),
            hard_links: HardLinkCache::default(),
            mounts: MountTable::default(),
            calls: Arc::default(),
        };
        Site::new().with_nodes(|nodes| {
            let source = Parent::Source(SourceRow(1));
            let mut assembler = Assembler::new(nodes, source, Path::new("/"), &setup, true, &Silent);
            let result = events.into_iter().try_for_each(|event| assembler.event(event));
            test(result.map(|()| assembler))
        })
    }

    fn segment(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut all = vec![Event::NewSegment { replaces: Vec::new() }];
        all.extend(events);
        all.push(Event::EndSegment);
        all
    }

    fn tree(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut all = vec![enter("", 1)];
        all.extend(segment(events));
        all.push(leave());
        all
    }

    fn finish(mut assembler: Assembler<'_>) -> Result<AssembledTree<'_>, Error> {
        assembler.settle()?;
        assembler.finish()
    }

    #[test]
    fn entries_become_a_tree() {
        let mut below = vec![enter("d", 2)];
        below.extend(segment([link("l"), file("f", vec![chunk(), end(false)])]));
        below.extend([leave(), link("m")]);
        assemble(tree(below), |assembler| {
            let tree = finish(assembler.unwrap()).unwrap();
            assert_eq!((tree.root.below, tree.repeated, tree.vanished.len()), (4, false, 0));
            assert_eq!((tree.counts.read_files, tree.counts.read_bytes), (1, 1));
            assert!(tree.root.link.is_some() && tree.root.changed);
            assert_eq!(tree.nodes.catalog().subtree(tree.root.id).unwrap().0, 4);
        });
    }

    #[test]
    fn a_file_that_failed_is_a_problem_and_an_empty_directory_has_no_node() {
        assemble(tree([file("f", vec![chunk(), FileContent::Failed("it is gone".into())])]), |assembler| {
            let tree = finish(assembler.unwrap()).unwrap();
            assert_eq!((tree.counts.problems, tree.counts.missing_files), (1, 1));
            assert!(tree.root.below == 0 && tree.root.link.is_none());
        });
    }

    #[test]
    fn a_deferred_file_makes_the_walk_go_on() {
        assemble(tree([file("f", vec![FileContent::Deferred { changed: true }])]), |assembler| {
            assert!(assembler.unwrap().prepare_retry().unwrap());
        });
        assemble(tree([file("f", vec![chunk(), end(true)])]), |assembler| {
            let mut assembler = assembler.unwrap();
            assert!(assembler.prepare_retry().unwrap());
            // It is reported when it is read again.
            assert_eq!((assembler.counts.problems, assembler.counts.read_files), (0, 0));
        });
        assemble(tree([file("f", vec![chunk(), end(false)])]), |assembler| {
            assert!(!assembler.unwrap().prepare_retry().unwrap());
        });
    }

    #[test]
    fn a_walk_that_ends_within_the_tree_has_no_root() {
        let mut events = tree([link("l")]);
        events.pop();
        assemble(events, |assembler| assert!(finish(assembler.unwrap()).is_err()));
    }

    #[test]
    fn events_out_of_order_are_an_error() {
        for events in [vec![leave()], vec![Event::EndSegment], vec![enter("", 1), link("l")], vec![link("l")]] {
            assemble(events, |assembler| assert!(assembler.is_err()));
        }
    }

    #[test]
    fn a_lost_reader_is_an_error_and_a_broken_off_run_is_not() {
        assemble(tree([file("f", vec![chunk()])]), |assembler| assert!(assembler.is_err()));
        assemble(tree([file("f", vec![FileContent::BrokenOff])]), |assembler| {
            assembler.unwrap().interrupt().unwrap();
        });
    }
}
