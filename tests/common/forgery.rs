//! A repository with very many chunks, made without a backup.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;

use brackfs::crypt::{SecretKey, Signer};
use brackfs::format::block::Encoder;
use brackfs::format::entry::{Content, Subtree};
use brackfs::format::id::{ObjectId, SourceId};
use brackfs::format::index::Index;
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::pack::{IndexedBlock, IndexedPack, PackKind};
use brackfs::format::snapshot::{Snapshot, Statistics};
use brackfs::format::source::Source;
use brackfs::format::usage::{Labels, SnapshotUsage};
use brackfs::format::{
    BlockLocation, Check, ChunkRef, Digest, Entry, Extent, Items, Kind, Node, NodeRef, PackId, SnapshotId, Timestamp,
};
use brackfs::repository::{Repository, Writer};

use super::Site;

/// A repository whose blocks of data are random bytes: with indexes and trees, but its files cannot be read.
pub struct Forgery {
    site: Site,
    repository: Repository,
    encoder: Encoder,
    random: blake3::OutputReader,
    /// All packs of data with their numbers of blocks, in order.
    data: Vec<(PackId, u32)>,
    /// The same of trees.
    trees: Vec<(PackId, u32)>,
}

/// Size of a chunk, also when it is stored.
const CHUNK: u32 = 100;

/// Chunks in a pack of data, each in a block of its own.
const IN_PACK: u32 = 32;

/// Packs from which each snapshot but the first removes blocks, and as many that it adds.
const CHANGED: usize = 15;

/// Chunks of a file.
pub const IN_FILE: u64 = 100_000;

impl Forgery {
    /// A repository without files.
    pub fn new() -> Forgery {
        let site = Site::in_memory();
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        let repository = Repository::open(&site.repo().as_path().into()).unwrap();
        let random = blake3::Hasher::new().update(b"chunks").finalize_xof();
        let encoder = Encoder::new(1).unwrap();
        Forgery { site, repository, encoder, random, data: Vec::new(), trees: Vec::new() }
    }

    fn digest(&mut self) -> Digest {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes);
        Digest(bytes)
    }

    /// Stores a pack with these blocks, each of one chunk of that length.
    fn pack(&mut self, kind: PackKind, stored: &[u8], blocks: Vec<IndexedBlock>) -> IndexedPack {
        let (id, count) = (PackId::random(), blocks.len() as u32);
        let path = self.site.repo().join(name::pack(id));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().write_all(stored).unwrap();
        match kind {
            PackKind::Data => self.data.push((id, count)),
            PackKind::Tree => self.trees.push((id, count)),
        }
        IndexedPack { id, kind, digest: Some(Digest::of(stored)), count, length: stored.len() as u64, blocks }
    }

    /// Stores a pack of `count` blocks with a chunk each.
    fn data(&mut self, count: u32) -> IndexedPack {
        let mut stored = vec![0; (count * CHUNK) as usize];
        self.random.fill(&mut stored);
        let blocks = (0..).zip(stored.chunks(CHUNK as usize));
        let blocks = blocks.map(|(ordinal, block)| IndexedBlock {
            ordinal,
            offset: u64::from(ordinal * CHUNK),
            length: CHUNK,
            check: Check::of(block),
            chunks: vec![(Digest::of(block), CHUNK)],
        });
        let blocks = blocks.collect();
        self.pack(PackKind::Data, &stored, blocks)
    }

    /// Stores nodes in a pack. Returns references to them, by position in a table of their blocks.
    fn nodes(&mut self, nodes: &[Node]) -> (IndexedPack, Vec<BlockLocation>, Vec<ChunkRef>) {
        let (mut stored, mut frame, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for (ordinal, node) in (0..).zip(nodes) {
            let plaintext = node.encode();
            self.encoder.encode(&plaintext, false, &mut frame).unwrap();
            let (offset, length, check) = (stored.len() as u64, frame.len() as u32, Check::of(&frame));
            let chunks = vec![(Digest::of(&plaintext), plaintext.len() as u32)];
            blocks.push(IndexedBlock { ordinal, offset, length, check, chunks });
            stored.extend(&frame);
        }
        let pack = self.pack(PackKind::Tree, &stored, blocks);
        let at = |block: &IndexedBlock| BlockLocation { pack: pack.id, offset: block.offset, length: block.length };
        let reference = |(number, block): (u32, &IndexedBlock)| {
            let (digest, length) = block.chunks[0];
            ChunkRef { digest, block: number, start: 0, length }
        };
        let (places, references) =
            (pack.blocks.iter().map(at).collect(), (0..).zip(&pack.blocks).map(reference).collect());
        (pack, places, references)
    }

    /// Makes a file of a hundred nodes with a thousand chunks each, which lie in packs of [`IN_PACK`] chunks.
    fn large_file(&mut self, name: &str) -> (Entry, Vec<BlockLocation>, Vec<IndexedPack>) {
        let mut packs = Vec::new();
        let nodes: Vec<_> = (0..100)
            .map(|_| {
                let (mut blocks, mut extents) = (Vec::new(), Vec::new());
                for count in [vec![IN_PACK; 31], vec![8]].concat() {
                    let pack = self.data(count);
                    for block in &pack.blocks {
                        let ((digest, length), number) = (block.chunks[0], blocks.len() as u32);
                        extents.push(Extent::Chunk(ChunkRef { digest, block: number, start: 0, length }));
                        blocks.push(BlockLocation { pack: pack.id, offset: block.offset, length: block.length });
                    }
                    packs.push(pack);
                }
                node(blocks, Items::Extents(extents))
            })
            .collect();
        let (pack, places, references) = self.nodes(&nodes);
        packs.push(pack);
        let covers = u64::from(1000 * CHUNK);
        let nodes: Vec<_> = references.into_iter().map(|node| NodeRef { covers, node }).collect();
        let (size, digest) = (covers * nodes.len() as u64, self.digest());
        (entry(name, Kind::File, size, Content::Nodes { digest, depth: 0, nodes, holes: 0 }), places, packs)
    }

    /// The blocks that the `n`-th of `snapshots` uses, as the difference to the one before. The first uses half of the
    /// data; each later one adds some packs of the other half, and removes some blocks from packs of the first.
    fn usage(&self, n: usize, snapshots: usize, name: &SnapshotName, base: Option<&SnapshotName>) -> SnapshotUsage {
        let whole = |packs: &[(PackId, u32)]| packs.iter().map(|(pack, count)| (*pack, [(0, *count)].into())).collect();
        let (first, later) = self.data.split_at(self.data.len() / 2);
        let changed = CHANGED.min(later.len() / snapshots);
        let (added, removed) = match base {
            None => (whole(&[&self.trees, first].concat()), Vec::new()),
            Some(_) => {
                let part = n * changed..(n + 1) * changed;
                let removed =
                    first[part.clone()].iter().map(|(pack, count)| (*pack, [(0, 1 + n as u32 % count)].into()));
                (whole(&later[part]), removed.collect())
            }
        };
        SnapshotUsage {
            snapshot: name.clone(),
            base: base.cloned(),
            added,
            removed,
            source: "forged".into(),
            files: 1,
            bytes: 1,
            stored_bytes: 1,
            labels: Labels { host: "nowhere".into(), ..Labels::default() },
        }
    }

    /// Makes a repository with this number of files of [`IN_FILE`] chunks, and of snapshots.
    pub fn finish(mut self, files: u64, snapshots: u64) -> Site {
        let state = self.site.state().join(self.repository.id().to_string());
        let key = SecretKey::parse(&fs::read(state.join("host.key")).unwrap()).unwrap();
        let host = key.certificate();
        let index = |repository: &Repository, packs: Vec<IndexedPack>, snapshots: Vec<SnapshotUsage>| {
            let writer = Writer::new(repository, Signer::new(key.clone()).unwrap(), &host, &[]).unwrap();
            let sums: Vec<_> = packs.iter().map(|pack| (pack.id, pack.digest.unwrap())).collect();
            if !sums.is_empty() {
                writer.put_sums(ObjectId::random(), &sums).unwrap();
            }
            let index = Index { generation: 1, packs, snapshots, ..Index::default() };
            writer.put_index(ObjectId::random(), &index).unwrap();
        };
        let mut folders = Vec::new();
        for file in 0..files {
            let (entry, blocks, packs) = self.large_file("file");
            let (pack, mut place, reference) = self.nodes(&[node(blocks, Items::Entries(vec![entry]))]);
            folders.push((file, place.remove(0), reference[0]));
            for packs in packs.chunks(320) {
                index(&self.repository, packs.to_vec(), Vec::new());
            }
            index(&self.repository, vec![pack], Vec::new());
        }
        let directory = |name: &str, below, node| {
            entry(name, Kind::Directory, 0, Content::Directory(Subtree { below, node: Some(node) }))
        };
        let entries = folders.iter().map(|(number, _, reference)| {
            directory(&format!("{number:04}"), 1, ChunkRef { block: *number as u32, ..*reference })
        });
        let entries = entries.collect();
        let top = node(folders.iter().map(|(_, place, _)| *place).collect(), Items::Entries(entries));
        let (pack, places, references) = self.nodes(&[top]);
        index(&self.repository, vec![pack], Vec::new());
        let root = node(places, Items::Entries(vec![directory("", 2 * files, references[0])]));

        let writer = Writer::new(&self.repository, Signer::new(key.clone()).unwrap(), &host, &[]).unwrap();
        let source = Source { id: SourceId::random(), name: "forged".into() };
        writer.put_source(&source).unwrap();
        // 20251120T145201Z.
        let time = Timestamp { seconds: 1_763_650_321, nanos: 0 };
        let (mut previous, mut usages) = (None::<SnapshotName>, Vec::new());
        for sequence in 1..=snapshots {
            let name =
                SnapshotName { source: source.id, sequence, time: "20251120T145201Z".into(), id: SnapshotId::random() };
            usages.push(self.usage(sequence as usize - 1, snapshots as usize, &name, previous.as_ref()));
            if usages.len() == 64 || sequence == snapshots {
                index(&self.repository, Vec::new(), std::mem::take(&mut usages));
            }
            let previous = previous.replace(name.clone()).map(|name| name.id);
            let snapshot = Snapshot {
                name,
                source: source.name.clone(),
                host: "nowhere".into(),
                started: time,
                finished: time,
                paths: Vec::new(),
                root_path: None,
                tags: Vec::new(),
                encrypted: false,
                previous,
                statistics: Statistics { files: 3 * files, ..Statistics::default() },
                program: "forgery".into(),
                root: root.clone(),
            };
            writer.put_snapshot(&snapshot).unwrap();
        }
        self.site
    }
}

fn node(blocks: Vec<BlockLocation>, items: Items) -> Node {
    Node { blocks, items, users: BTreeMap::new(), groups: BTreeMap::new() }
}

/// An entry of root, which others may read and execute.
pub fn entry(name: impl AsRef<[u8]>, kind: Kind, size: u64, content: Content) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size,
        content,
        link: None,
        xattrs: Vec::new(),
        flags: 0,
        inode_flags: 0,
    }
}
