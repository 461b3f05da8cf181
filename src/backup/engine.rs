//! The engine: follows the walk, and turns what it hears into nodes, blocks and catalog rows.
//!
//! Everything that decides is here, in one thread: what is known, what goes where, when to commit. The walk,
//! the readers and the sealers run beside it; channels between them are bounded, and the engine takes files
//! in the order of the walk, so nothing overtakes without limit and nothing can wait in a circle.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use roaring::RoaringTreemap;

use super::budget::Budget;
use super::calls::Calls;
use super::entry::{CHANGED, change, entry_of, weight};
use super::event::{
    Arriving, Content as FileContent, End, Enter, Event, Kept, NewFile, NewFiles, OldSegment, Plain as PlainEntry,
    Reused,
};
use super::limits::{ATTRIBUTES_OPEN, ENTRIES_OPEN};
use super::nodes::{Link, NodeKey, Nodes, PLACEHOLDER, Purpose};
use super::path_stack::PathStack;
use super::read::ReadSetup;
use super::seal::{Done, OpenPacks, Plain};
use super::session::Session;
use super::store::Store;
use super::{Error, INLINE_EXTENTS, NODE_ITEMS, Options};
use crate::catalog::stats::Stats;
use crate::catalog::{
    BlockId, Catalog, DeferredFile, DirectoryId, DirectoryRow, PackRow, SegmentId, SegmentRow, Stored, StoredState,
};
use crate::format::entry::NodeRef;
use crate::format::index::{IndexedBlock, IndexedPack, PackKind};
use crate::format::{Content, Digest, Entry, Extent, HardLink, Items, PackId, Segment, Subtree};
use crate::monitor::Monitor;
use crate::source::{Extended, LastMount, Owners, Stat};

/// A commit comes earlier after so many chunks: until then SQLite holds back what it changed.
const COMMIT_CHUNKS: usize = 100_000;

/// A segment ends at about so many bytes, well before its node could be larger than a block.
const NODE_BYTES: usize = 512 << 10;

/// What the engine has of the stages behind it: where blocks go, where their buffers come from, the packs that they
/// end in, and what becomes of them.
pub(super) type Stages<'a> = (Sender<Plain>, Receiver<Vec<u8>>, Arc<OpenPacks<'a>>, Receiver<Done>);

/// The engine of one run.
pub(super) struct Engine<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) catalog: Catalog,
    pub(super) options: &'a Options,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) events: Receiver<Vec<Event>>,
    calls: &'a Calls,
    pub(super) plain: Sender<Plain>,
    /// Buffers of blocks that were sealed, to be filled again.
    pub(super) buffers: Receiver<Vec<u8>>,
    pub(super) open_packs: Arc<OpenPacks<'a>>,
    pub(super) done: Receiver<Done>,
    pub(super) store: Store,
    pub(super) nodes: Nodes,
    pub(super) owners: Owners,
    mounts: LastMount,
    /// Lends memory for attributes of files that are read.
    attributes: Budget,
    /// Files that were taken in.
    files_taken: u64,
    /// Bytes of attributes of the directories in `frames`, and about those of the entries in their open segments.
    attributes_open: usize,
    entries_open: usize,
    /// What devices go by, as far as directories on them were entered.
    devices: HashMap<u64, u64>,
    frames: Vec<Frame>,
    /// Where the frames lead to, for messages.
    trail: PathStack,
    /// Blocks of the snapshot that is being made.
    pub(super) used: RoaringTreemap,
    /// Directories were gone through again: `used` has blocks of what was in them before, too.
    pub(super) repeated: bool,
    /// Packs that are being filled, and those that are stored since the last commit.
    pub(super) packs: HashMap<PackId, Pack>,
    pub(super) finished: Vec<IndexedPack>,
    /// Chunks in those that are stored.
    pub(super) chunks_finished: usize,
    chunks_since_commit: usize,
    last_commit: Instant,
    /// Directories that were not found again; removed at the end, since they may turn up elsewhere.
    pub(super) vanished: Vec<(DirectoryId, Vec<u8>, DirectoryId)>,
    pub(super) tally: Tally,
    /// Files that did not end where their size says: the first, and how many.
    wrong_sizes: Option<(PathBuf, u64)>,
    above: DirectoryId,
}

/// What the engine counted.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) problems: u64,
    pub(super) read_files: u64,
    pub(super) read_bytes: u64,
    /// Plain bytes of what was stored.
    pub(super) added_bytes: u64,
    pub(super) missing_files: u64,
    pub(super) data_packs: u64,
    pub(super) tree_packs: u64,
    pub(super) data_bytes: u64,
    pub(super) tree_bytes: u64,
}

/// A pack that is being filled.
pub(super) struct Pack {
    row: PackRow,
    kind: PackKind,
    blocks: Vec<IndexedBlock>,
}

/// What became of a directory.
pub(super) struct Outcome {
    /// The directory as an entry.
    pub(super) name: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) extended: Extended,
    /// It may change without its identity showing it.
    pub(super) untrusted: bool,
    pub(super) below: u64,
    link: Option<Link>,
    pub(super) id: DirectoryId,
    /// Its node is not the one that its parent's old segment has.
    pub(super) changed: bool,
}

/// A directory that is being walked.
struct Frame {
    id: DirectoryId,
    name: Vec<u8>,
    stat: Stat,
    extended: Extended,
    untrusted: bool,
    row: Option<DirectoryRow>,
    parts: Vec<(Segment, Link)>,
    part: Part,
    /// Directories below it that were entered.
    children: HashSet<DirectoryId>,
    /// Something is different from what its row says.
    changed: bool,
    /// Only files in it that were put off are looked at.
    again: bool,
}

/// The segment at hand.
enum Part {
    None,
    Old {
        row: Box<SegmentRow>,
        changed: Vec<Outcome>,
    },
    /// The node, and about how many bytes it has so far.
    New(NodeKey, usize),
}

/// The content of a file, as far as it is stored.
struct Stretches {
    /// What stands in no node yet.
    extents: Vec<(Extent, Option<Stored>)>,
    /// Nodes of what comes before that, and what they cover.
    nodes: Vec<(u64, Link)>,
    /// Bytes of all holes.
    holes: u64,
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        session: &'a Session<'a>,
        catalog: Catalog,
        options: &'a Options,
        monitor: &'a dyn Monitor,
        (events, calls): (Receiver<Vec<Event>>, &'a Calls),
        (plain, buffers, open_packs, done): Stages<'a>,
        (above, trail, reading): (DirectoryId, PathStack, &ReadSetup),
    ) -> Result<Self, Error> {
        Ok(Engine {
            session,
            store: Store::new(catalog.next_block()?),
            catalog,
            options,
            monitor,
            events,
            calls,
            plain,
            buffers,
            open_packs,
            done,
            nodes: Nodes::default(),
            owners: Owners::default(),
            mounts: LastMount::of_table(&reading.mounts),
            attributes: reading.attributes.clone(),
            files_taken: 0,
            attributes_open: 0,
            entries_open: 0,
            devices: HashMap::new(),
            frames: Vec::new(),
            trail,
            used: RoaringTreemap::new(),
            repeated: false,
            packs: HashMap::new(),
            finished: Vec::new(),
            chunks_finished: 0,
            chunks_since_commit: 0,
            last_commit: Instant::now(),
            vanished: Vec::new(),
            tally: Tally::default(),
            wrong_sizes: None,
            above,
        })
    }

    /// Follows the walk to its end, and through the passes for files that were put off: what there is so far is
    /// committed before each, and `go` then says so. Returns the root directory; none if the walk broke off.
    pub(super) fn follow_all(&mut self, go: Sender<()>) -> Result<Option<Outcome>, Error> {
        let mut root = self.follow()?;
        while root.is_some() && self.catalog.has_deferred()? {
            self.settle()?;
            self.commit(None)?;
            // If the walk is over, it did what it could.
            if go.send(()).is_err() {
                break;
            }
            match self.follow()? {
                Some(again) => {
                    self.repeated = true;
                    root = Some(again);
                }
                None => break,
            }
        }
        drop(go);
        if let Some((first, count)) = self.wrong_sizes.take() {
            let what = "is not of the size that its file system says; it was read to its end";
            let more = if count > 1 { format!(", and so were {} more files", count - 1) } else { String::new() };
            self.monitor.note(&format!("{} {what}{more}", first.display()));
        }
        // The walk may have something left to say.
        match self.follow()? {
            None => Ok(root),
            Some(_) => Err(Error::Stopped("the walk")),
        }
    }

    /// Follows the walk to the end of the root directory, and returns that; none if the walk is over, or is no longer
    /// waited for.
    pub(super) fn follow(&mut self) -> Result<Option<Outcome>, Error> {
        while let Some(batch) = self.calls.receive(&self.events) {
            for event in batch {
                if self.calls.are_abandoned() {
                    return Ok(None);
                }
                let root = self.handle(event)?;
                self.take_results()?;
                self.seal_if_nodes_wait()?;
                self.commit_if_due()?;
                if root.is_some() {
                    return Ok(root);
                }
            }
        }
        Ok(None)
    }

    /// Handles an event. Returns the root directory when that ends.
    fn handle(&mut self, event: Event) -> Result<Option<Outcome>, Error> {
        match event {
            Event::Enter(enter) => self.enter(*enter)?,
            Event::OldSegment(old) => {
                let OldSegment { row, stats } = *old;
                if let Some(stats) = stats {
                    self.catalog.renew_stats(row.id, &stats)?;
                }
                self.frame()?.part = Part::Old { row: Box::new(row), changed: Vec::new() };
            }
            Event::NewSegment { replaces } => self.new_segment(replaces)?,
            Event::Reused(reused) => self.reuse(*reused)?,
            Event::Kept(kept) => self.keep(*kept)?,
            Event::Again { name } => {
                let directory = self.frame()?.id;
                self.catalog.remove_deferred(directory, &name)?;
            }
            Event::Files(new) => {
                let NewFiles { files, content } = *new;
                let mut content = Arriving::new(content, self.calls);
                for file in files {
                    self.file(file, &mut content)?;
                }
            }
            Event::Plain(plain) => {
                let PlainEntry { entry, stat, untrusted, existed, lent: _lent } = *plain;
                self.monitor.entry(&self.trail.child(&entry.name), change(existed));
                self.new_part()?;
                self.add_entry(entry, &stat, untrusted)?;
            }
            Event::EndSegment => self.end_segment()?,
            Event::Leave { removed } => return self.leave(&removed),
        }
        Ok(None)
    }

    /// The owner of the directory at hand.
    pub(super) fn owner(&self) -> u32 {
        self.frames.last().map_or(0, |frame| frame.stat.uid)
    }

    fn frame(&mut self) -> Result<&mut Frame, Error> {
        self.frames.last_mut().ok_or(Error::Stopped("the walk"))
    }

    fn enter(&mut self, enter: Enter) -> Result<(), Error> {
        let Enter { name, stat, device, mut extended, mut untrusted, row, again, lent: _lent } = enter;
        self.shorten_open_segment()?;
        self.trail.enter(&name);
        if self.attributes_open + extended.bytes() > ATTRIBUTES_OPEN {
            // A tree that was built to take memory.
            let most = ATTRIBUTES_OPEN >> 20;
            let why = format!(
                "it and the directories above have more than {most} MiB of extended attributes; its own are not stored"
            );
            self.tally.problems += 1;
            self.monitor.problem(self.trail.path(), &why);
            extended.xattrs.clear();
            untrusted = true;
        }
        self.attributes_open += extended.bytes();
        self.monitor.progress().at(self.trail.path());
        // That of a pipe has no path.
        if row.is_none() && !self.trail.path().as_os_str().is_empty() {
            self.monitor.entry(self.trail.path(), change(false));
        }
        let parent = self.frames.last().map_or(self.above, |frame| frame.id);
        self.devices.insert(stat.dev, device);
        let inode = (device, stat.ino);
        let id = match &row {
            Some(row) => {
                if !row.in_place {
                    self.catalog.move_directory(row.id, parent, &name)?;
                }
                if (row.device, row.inode) != inode {
                    self.catalog.renumber_directory(row.id, inode)?;
                }
                row.id
            }
            None => self.catalog.enter_directory(parent, &name, inode)?,
        };
        if let Some(above) = self.frames.last_mut() {
            above.children.insert(id);
        }
        let changed = row.as_ref().is_none_or(|row| row.subtree.is_none());
        let (parts, children) = (Vec::new(), HashSet::new());
        let part = Part::None;
        self.frames.push(Frame { id, name, stat, extended, untrusted, row, parts, part, children, changed, again });
        Ok(())
    }

    /// Ends the segment at hand if those of all open directories together hold much, before another one is opened.
    fn shorten_open_segment(&mut self) -> Result<(), Error> {
        let Some(Frame { part: Part::New(_, 1..), .. }) = self.frames.last() else { return Ok(()) };
        if self.entries_open <= ENTRIES_OPEN {
            return Ok(());
        }
        self.end_segment()?;
        self.new_segment(Vec::new())
    }

    fn new_segment(&mut self, replaces: Vec<SegmentId>) -> Result<(), Error> {
        let directory = self.frame()?.id;
        let purpose = Purpose::Segment { directory, replaces, stats: Stats::default(), children: Vec::new() };
        let key = self.open_node(purpose, Items::Entries(Vec::new()));
        let frame = self.frame()?;
        frame.part = Part::New(key, 0);
        frame.changed = true;
        Ok(())
    }

    /// The new segment that takes the next entry. One that is heavy ends, and another begins.
    fn new_part(&mut self) -> Result<NodeKey, Error> {
        if matches!(self.frame()?.part, Part::New(_, bytes) if bytes >= NODE_BYTES) {
            self.end_segment()?;
            self.new_segment(Vec::new())?;
        }
        match &self.frame()?.part {
            Part::New(key, _) => Ok(*key),
            _ => Err(Error::Stopped("the walk")),
        }
    }

    /// Adds an entry to the new segment at hand, and its identity, if that can be trusted later.
    fn add_entry(&mut self, mut entry: Entry, stat: &Stat, untrusted: bool) -> Result<usize, Error> {
        let frame = self.frame()?;
        let within = frame.stat.dev;
        let Part::New(key, bytes) = &mut frame.part else { return Err(Error::Stopped("the walk")) };
        let (key, weight) = (*key, weight(&entry));
        *bytes += weight;
        self.entries_open += weight;
        entry.link = None;
        if stat.nlink > 1 && stat.kind != crate::format::Kind::Directory {
            entry.link = self.hard_link(&entry, stat)?;
        }
        let mount = self.mounts.of(stat).entry_mount(stat, within);
        entry.flags &= !Entry::UNPRIVILEGED;
        if mount.is_unprivileged() && entry.has_privileges() {
            entry.flags |= Entry::UNPRIVILEGED;
        }
        if let Purpose::Segment { stats, .. } = self.node_purpose(key)? {
            match untrusted {
                true => stats.push_untrusted(&entry.name),
                false => stats.push(&entry.name, stat, mount),
            }
        }
        match self.node_items(key)? {
            Items::Entries(entries) => {
                entries.push(entry);
                Ok(entries.len() - 1)
            }
            _ => Err(Error::Stopped("the walk")),
        }
    }

    /// What makes this name one with the others of its file. None if no id is left, or if the number of the file's
    /// device is that by which another one goes: a file may be mounted alone, or come from a layer below its directory.
    fn hard_link(&self, entry: &Entry, stat: &Stat) -> Result<Option<HardLink>, Error> {
        let foreign = self.mounts.of(stat).foreign(stat.dev);
        let number = match foreign.or_else(|| self.devices.get(&stat.dev).copied()) {
            Some(number) => number,
            None if self.devices.values().any(|number| *number == stat.dev) => return Ok(None),
            None => stat.dev,
        };
        let by_ctime = self.options.reading.identity.ctime;
        let id = self.catalog.hard_link((number, stat.ino), stat.ctime, &entry.content_digest(), by_ctime)?;
        Ok((id < HardLink::ID_LIMIT).then_some(HardLink { id, count: stat.nlink }))
    }

    fn reuse(&mut self, Reused { mut entry, stat, blocks, lent: _lent }: Reused) -> Result<(), Error> {
        let key = self.new_part()?;
        self.refer_again(key, &mut entry, &blocks)?;
        if stat.kind == crate::format::Kind::File {
            self.monitor.progress().file();
            self.monitor.progress().bytes(entry.size);
        }
        self.add_entry(entry, &stat, false)?;
        Ok(())
    }

    /// Takes an entry over as it was.
    fn keep(&mut self, Kept { mut entry, identity, blocks, lent: _lent }: Kept) -> Result<(), Error> {
        let key = self.new_part()?;
        self.refer_again(key, &mut entry, &blocks)?;
        if let Part::New(_, bytes) = &mut self.frame()?.part {
            let weight = weight(&entry);
            *bytes += weight;
            self.entries_open += weight;
        }
        if let Purpose::Segment { stats, .. } = self.node_purpose(key)? {
            stats.push_again(&identity);
        }
        if let Items::Entries(entries) = self.node_items(key)? {
            entries.push(entry);
        }
        Ok(())
    }

    /// Moves an entry's references over to another node's table. `blocks` are what they refer to now.
    fn refer_again(
        &mut self,
        key: NodeKey,
        entry: &mut Entry,
        blocks: &[(BlockId, crate::format::BlockLocation)],
    ) -> Result<(), Error> {
        let is_nodes = matches!(entry.content, Content::Nodes { .. });
        for chunk in entry.chunk_refs_mut() {
            let (block, place) =
                *blocks.get(chunk.block as usize).ok_or_else(|| self.catalog.damaged("an entry refers to no block"))?;
            let stored = Stored { digest: chunk.digest, block, start: chunk.start, length: chunk.length };
            *chunk = self.refer_placed(key, &stored, Some(place))?;
            if is_nodes {
                let below = self.catalog.extent_node(&stored.digest)?;
                let below = below.ok_or_else(|| self.catalog.damaged("the blocks of a large file are not known"))?;
                self.add_more(key, &below)?;
            }
        }
        Ok(())
    }

    /// Takes in a file's content as it arrives, and adds the file.
    fn file(&mut self, file: NewFile, content: &mut Arriving<'_>) -> Result<(), Error> {
        let NewFile { name, owner, existed, tries, .. } = file;
        self.files_taken += 1;
        self.attributes.serve(self.files_taken);
        let path = self.trail.child(&name);
        let directory = self.frame()?.id;
        let put_off = |name: Vec<u8>, changed: bool, so_far: StoredState| {
            let tries = tries + u32::from(changed);
            DeferredFile { directory, name, tries, existed, stored: so_far }
        };
        self.monitor.progress().at(&path);
        let key = self.new_part()?;
        let mut extents: Vec<(Extent, Option<Stored>)> = Vec::new();
        let mut nodes: Vec<(u64, Link)> = Vec::new();
        let (mut holes, mut lost) = (0, false);
        let end = loop {
            let (extent, stored) = match content.next() {
                Some(FileContent::Chunk(bytes, digest)) => {
                    self.count_read(bytes.len() as u64);
                    let stored = self.store_data(bytes, digest, owner)?;
                    (extent_of(&stored), Some(stored))
                }
                Some(FileContent::Known(digest, length)) => match self.known(&digest)? {
                    Some(stored) if stored.length == length => (extent_of(&stored), Some(stored)),
                    // Of two digests with the same head the catalog knows one. What else comes of the file must
                    // still be taken, or it would pass for the next one's.
                    _ => {
                        lost = true;
                        continue;
                    }
                },
                Some(FileContent::Hole(length)) => {
                    holes += length;
                    (Extent::Hole(length), None)
                }
                Some(FileContent::End(_)) if lost => {
                    break Err("a part of it is not found again; the next backup stores it".into());
                }
                Some(FileContent::End(end)) => break Ok(end),
                Some(FileContent::PutOff { changed }) => {
                    return Ok(self.catalog.defer(&put_off(name, changed, StoredState::Nothing))?);
                }
                Some(FileContent::Failed(why)) => break Err(why),
                Some(FileContent::Broken(error)) => return Err(error),
                Some(FileContent::BrokenOff) => return Ok(()),
                None => return Err(Error::Stopped("reading files")),
            };
            self.monitor.progress().bytes(extent.length());
            extents.push((extent, stored));
            if extents.len() >= NODE_ITEMS {
                nodes.push(self.extents_node(&extents)?);
                extents.clear();
                self.seal_if_nodes_wait()?;
                self.commit_if_due()?;
            }
        };
        match end {
            Ok(end) if end.put_off => {
                let so_far = if end.changed { StoredState::Changed } else { StoredState::Fresh };
                self.catalog.defer(&put_off(name.clone(), end.changed, so_far))?;
                self.finish_file(key, name, &path, *end, Stretches { extents, nodes, holes })
            }
            Ok(end) => {
                self.tally.read_files += 1;
                self.monitor.progress().file();
                self.monitor.entry(&path, change(existed));
                self.finish_file(key, name, &path, *end, Stretches { extents, nodes, holes })
            }
            Err(why) => {
                self.tally.problems += 1;
                self.tally.missing_files += 1;
                self.monitor.problem(&path, &why);
                Ok(())
            }
        }
    }

    fn count_read(&mut self, bytes: u64) {
        self.tally.read_bytes += bytes;
        self.monitor.progress().read(bytes);
    }

    fn finish_file(
        &mut self,
        key: NodeKey,
        name: Vec<u8>,
        path: &std::path::Path,
        End { stat, extended, size, digest, changed, doubtful, wrong_size, put_off, lent: _lent }: End,
        Stretches { extents, mut nodes, holes }: Stretches,
    ) -> Result<(), Error> {
        let mut links = Vec::new();
        let content = match (nodes.is_empty(), extents.as_slice()) {
            (true, []) => Content::Empty,
            (true, [(Extent::Chunk(_), Some(stored))]) => Content::Chunk(self.refer(key, stored)?),
            (true, few) if few.len() <= INLINE_EXTENTS => {
                Content::Extents { digest, extents: self.place_extents(key, few)? }
            }
            (_, rest) => {
                if !rest.is_empty() {
                    nodes.push(self.extents_node(rest)?);
                }
                let (depth, top) = self.index_extents(nodes, INLINE_EXTENTS)?;
                let nodes = top.iter().map(|(covers, _)| NodeRef { covers: *covers, node: PLACEHOLDER }).collect();
                links = top;
                Content::Nodes { digest, depth, nodes, holes }
            }
        };
        let incomplete = extended.missing.is_some();
        // Of a file that is looked at again nothing is said yet.
        if let (false, Some(missing)) = (put_off, &extended.missing) {
            self.tally.problems += 1;
            self.monitor.problem(path, missing);
        }
        let mut entry = entry_of(name, &stat, extended, content);
        entry.size = size;
        if changed {
            entry.flags |= Entry::CHANGED;
        }
        if changed && !put_off {
            self.tally.problems += 1;
            self.monitor.problem(path, CHANGED);
        }
        if wrong_size && !changed {
            self.wrong_sizes.get_or_insert_with(|| (path.to_owned(), 0)).1 += 1;
        }
        let item = self.add_entry(entry, &stat, changed || doubtful || wrong_size || incomplete)?;
        for (reference, (_, link)) in links.into_iter().enumerate() {
            self.depend(key, item, reference, link)?;
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.frame()?.part, Part::None) {
            Part::None => Ok(()),
            Part::New(key, bytes) => {
                self.entries_open -= bytes;
                self.end_new_segment(key)
            }
            Part::Old { row, changed } if changed.is_empty() => {
                self.use_blocks(&row.blocks);
                self.use_blocks(&row.more);
                self.use_blocks(&[row.node.block]);
                let SegmentRow { first, entries, span, node, .. } = *row;
                let segment = Segment { first, entries, span, node: PLACEHOLDER };
                self.frame()?.parts.push((segment, Link::Ready(node, Vec::new())));
                Ok(())
            }
            Part::Old { row, changed } => self.change_segment(&row, changed),
        }
    }

    fn end_new_segment(&mut self, key: NodeKey) -> Result<(), Error> {
        let Items::Entries(entries) = self.node_items(key)? else { return Ok(()) };
        let segment = Segment {
            first: entries.first().map(|entry| entry.name.clone()).unwrap_or_default(),
            entries: entries.len() as u64,
            span: entries.iter().map(Entry::span).sum(),
            node: PLACEHOLDER,
        };
        if segment.entries == 0 {
            // All of its files failed: there is nothing to write, but what it replaces must go.
            let node = self.discard_node(key);
            if let Some(Purpose::Segment { directory, replaces, .. }) = node {
                self.catalog.remove_segments(directory, &replaces)?;
            }
            return Ok(());
        }
        let link = self.close_node(key)?;
        self.frame()?.parts.push((segment, link));
        Ok(())
    }

    /// Writes an old segment anew because directories in it changed further down.
    fn change_segment(&mut self, row: &SegmentRow, changed: Vec<Outcome>) -> Result<(), Error> {
        let old = self.catalog.segment_node(row.id)?;
        let Items::Entries(entries) = old.node.items else {
            return Err(self.catalog.damaged("a part of a directory has no entries").into());
        };
        let directory = self.frame()?.id;
        let children = changed.iter().map(|child| child.id).collect();
        let purpose = Purpose::Segment { directory, replaces: vec![row.id], stats: old.stats, children };
        let key = self.open_node(purpose, Items::Entries(Vec::new()));
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
        *self.node_items(key)? = Items::Entries(items);
        for (item, link) in links {
            self.depend(key, item, 0, link)?;
        }
        self.frame()?.changed = true;
        self.end_new_segment(key)
    }

    /// Ends a directory. Returns it if it is the root; otherwise its parent gets it.
    fn leave(&mut self, removed: &[SegmentId]) -> Result<Option<Outcome>, Error> {
        let frame = self.frames.pop().ok_or(Error::Stopped("the walk"))?;
        self.attributes_open -= frame.extended.bytes();
        self.trail.leave();
        self.monitor.progress().at(self.trail.path());
        let outcome = self.outcome(frame, removed)?;
        let Some(above) = self.frames.last_mut() else { return Ok(Some(outcome)) };
        match &mut above.part {
            Part::Old { changed, .. } => {
                if outcome.changed {
                    changed.push(outcome);
                }
                Ok(None)
            }
            Part::New(..) => {
                let key = self.new_part()?;
                let subtree = Subtree { below: outcome.below, node: None };
                let content = Content::Directory(subtree);
                let entry = entry_of(outcome.name, &outcome.stat, outcome.extended, content);
                let item = self.add_entry(entry, &outcome.stat, outcome.untrusted)?;
                if let Purpose::Segment { children, .. } = self.node_purpose(key)? {
                    children.push(outcome.id);
                }
                if let Some(link) = outcome.link {
                    self.depend(key, item, 0, link)?;
                }
                Ok(None)
            }
            Part::None => Err(Error::Stopped("the walk")),
        }
    }

    fn outcome(&mut self, frame: Frame, removed: &[SegmentId]) -> Result<Outcome, Error> {
        let Frame { id, name, stat, extended, untrusted, row, parts, children, changed, again, .. } = frame;
        if let (false, true, Some(DirectoryRow { subtree: Some((below, node)), linked, indexes, .. })) =
            (changed, removed.is_empty(), &row)
        {
            self.use_blocks(indexes);
            let link = node.map(|node| Link::Ready(node, Vec::new()));
            return Ok(Outcome { name, stat, extended, untrusted, below: *below, link, id, changed: !linked });
        }
        self.catalog.remove_segments(id, removed)?;
        if row.is_some() && !again {
            for (name, child) in self.catalog.children(id)? {
                if !children.contains(&child) {
                    self.vanished.push((id, name, child));
                }
            }
        }
        let below = parts.iter().map(|(segment, _)| segment.span).sum();
        let mut parts = self.index_segments(parts, NODE_ITEMS, stat.uid)?;
        let link = match parts.len() {
            0 => None,
            1 => parts.pop().map(|(_, link)| link),
            _ => Some(self.segment_index(parts, stat.uid)?),
        };
        let link = match link {
            Some(link) => Some(self.complete(link, id, below)?),
            None => {
                self.catalog.finish_directory(id, 0, None, &[])?;
                None
            }
        };
        Ok(Outcome { name, stat, extended, untrusted, below, link, id, changed: true })
    }

    /// Notes that the snapshot uses these blocks.
    pub(super) fn use_blocks(&mut self, blocks: &[BlockId]) {
        self.used.extend(blocks.iter().map(|block| block.0));
    }

    /// Handles what came back from sealing, without waiting.
    pub(super) fn take_results(&mut self) -> Result<(), Error> {
        while let Ok(done) = self.done.try_recv() {
            self.take_result(done)?;
        }
        Ok(())
    }

    /// Waits for something to come back from sealing, and handles it.
    pub(super) fn wait_for_result(&mut self) -> Result<(), Error> {
        match self.done.recv() {
            Ok(done) => self.take_result(done),
            Err(_) => Err(Error::Stopped("sealing")),
        }
    }

    fn take_result(&mut self, done: Done) -> Result<(), Error> {
        match done {
            Done::Failed(error) => Err(error),
            Done::Block { block, kind, ordinal, at } => self.take_block(block, kind, ordinal, at),
            Done::Pack { pack, length, digest } => self.take_pack(pack, length, digest),
        }
    }

    fn take_block(
        &mut self,
        block: BlockId,
        kind: PackKind,
        ordinal: u32,
        at: crate::format::BlockLocation,
    ) -> Result<(), Error> {
        let chunks = self.store.sealing.remove(&block).ok_or(Error::Stopped("sealing"))?;
        let row = match self.packs.get(&at.pack) {
            Some(pack) => pack.row,
            None => {
                let row = self.catalog.add_pack(at.pack, kind)?;
                self.packs.insert(at.pack, Pack { row, kind, blocks: Vec::new() });
                row
            }
        };
        self.tally.added_bytes += chunks.iter().map(|(_, length)| u64::from(*length)).sum::<u64>();
        self.monitor.progress().stored(at.length.into());
        self.catalog.add_block(block, row, ordinal, at)?;
        self.store.place(block, at);
        self.chunks_placed(block, &chunks)?;
        self.chunks_since_commit += chunks.len();
        if let Some(pack) = self.packs.get_mut(&at.pack) {
            pack.blocks.push(IndexedBlock { length: at.length, chunks });
        }
        self.placed(block)
    }

    fn take_pack(&mut self, id: PackId, length: u64, digest: Digest) -> Result<(), Error> {
        let Pack { row, kind, blocks } = self.packs.remove(&id).ok_or(Error::Stopped("storing packs"))?;
        self.catalog.finish_pack(row, (id, kind), length, &digest)?;
        match kind {
            PackKind::Data => {
                self.tally.data_packs += 1;
                self.tally.data_bytes += length;
            }
            PackKind::Tree => {
                self.tally.tree_packs += 1;
                self.tally.tree_bytes += length;
            }
        }
        self.chunks_finished += blocks.iter().map(|block| block.chunks.len()).sum::<usize>();
        self.finished.push(IndexedPack { id, kind, digest, blocks });
        self.index_if_due()
    }

    fn commit_if_due(&mut self) -> Result<(), Error> {
        if self.last_commit.elapsed() < self.options.policy.commit_interval && self.chunks_since_commit < COMMIT_CHUNKS
        {
            return Ok(());
        }
        self.commit(None)?;
        self.chunks_since_commit = 0;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// The error of the stage that stopped, or that it stopped.
    pub(super) fn why_stopped(&mut self, stage: &'static str) -> Error {
        // A stage sends its error before it closes its channel.
        for done in self.done.try_iter() {
            if let Done::Failed(error) = done {
                return error;
            }
        }
        Error::Stopped(stage)
    }
}

fn extent_of(stored: &Stored) -> Extent {
    let (digest, length) = (stored.digest, stored.length);
    Extent::Chunk(crate::format::ChunkRef { digest, block: 0, start: 0, length })
}
