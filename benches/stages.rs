//! Benchmarks of the individual stages of a backup and of a read: `cargo bench`, or `cargo bench seal`.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;

use brackfs::catalog::stats::Stats;
use brackfs::crypt::{KeyPurpose, Opener, Profile, Sealer, SecretKey};
use brackfs::format::block::{Encoder, decode};
use brackfs::format::{
    BLOCK_SIZE, BlockLocation, ChunkRef, Content, Digest, Entry, Items, Kind, Node, PackId, Timestamp,
};
use brackfs::source::{Chunker, EntryMount, Error, Piece, Stat};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

/// The default profile of new repositories comes first.
const PROFILES: [Profile; 2] = [Profile::Rfc9580, Profile::Rfc4880];
/// About the largest number of entries in a segment of a directory.
const ENTRIES: usize = 1000;

fn main() {
    divan::main();
}

/// Incompressible bytes without repetitions.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"bench").finalize_xof().fill(&mut bytes);
    bytes
}

/// A block of words with a skewed distribution, which compresses about as well as text.
fn text() -> Vec<u8> {
    let letters: Vec<u8> = noise(16 << 10).iter().map(|byte| b"etaoinshrdlucmfw"[usize::from(byte & 15)]).collect();
    let word = |at: usize| &letters[at * 4..at * 4 + 2 + at % 7];
    let chosen = noise(BLOCK_SIZE);
    let mut text: Vec<u8> = chosen
        .chunks_exact(2)
        .flat_map(|pair| [word(usize::from(pair[0]) * usize::from(pair[1]) / 17), b" "].concat())
        .collect();
    text.truncate(BLOCK_SIZE);
    text
}

fn bytes(block: &[u8]) -> BytesCount {
    BytesCount::of_slice(block)
}

/// Average chunk sizes: the default, and one above which chunks have a fixed size.
#[divan::bench(args = [512 << 10, 4 << 20])]
fn cut(bencher: Bencher<'_, '_>, average: usize) {
    let content = noise(64 << 20);
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    let cutter = Chunker::new(1, average);
    bencher.counter(bytes(&content)).bench_local(|| {
        let mut pieces = 0;
        let sink = &mut |piece: Piece| {
            pieces += 1;
            drop(black_box(piece));
            Ok::<(), Error>(())
        };
        cutter.cut(&file, content.len() as u64, false, sink).unwrap();
        pieces
    });
}

#[divan::bench]
fn digest(bencher: Bencher<'_, '_>) {
    let block = noise(BLOCK_SIZE);
    bencher.counter(bytes(&block)).bench_local(|| Digest::of(&block));
}

#[divan::bench(args = [-1, 1, 3, 9])]
fn encode_block(bencher: Bencher<'_, '_>, level: i32) {
    let (block, mut frame) = (text(), Vec::new());
    let mut encoder = Encoder::new(level).unwrap();
    bencher.counter(bytes(&block)).bench_local(|| encoder.encode(&block, true, &mut frame).unwrap());
}

#[divan::bench]
fn decode_block(bencher: Bencher<'_, '_>) {
    let (block, mut frame) = (text(), Vec::new());
    Encoder::new(3).unwrap().encode(&block, true, &mut frame).unwrap();
    bencher.counter(bytes(&block)).bench_local(|| decode(&frame, Vec::with_capacity).unwrap());
}

fn owner(profile: Profile) -> (Sealer, Opener) {
    let key = SecretKey::generate(profile, "bench", KeyPurpose::Owner, None).unwrap();
    (Sealer::new(&[key.certificate()]).unwrap(), Opener::new(key).unwrap())
}

#[divan::bench(args = PROFILES)]
fn seal(bencher: Bencher<'_, '_>, profile: Profile) {
    let (sealer, _) = owner(profile);
    let (block, mut message) = (noise(BLOCK_SIZE), Vec::new());
    bencher.counter(bytes(&block)).bench_local(|| {
        message.clear();
        sealer.seal(&block, &mut message).unwrap();
    });
}

#[divan::bench(args = PROFILES)]
fn open(bencher: Bencher<'_, '_>, profile: Profile) {
    let (sealer, opener) = owner(profile);
    let (block, mut message, mut content) = (noise(BLOCK_SIZE), Vec::new(), Vec::new());
    sealer.seal(&block, &mut message).unwrap();
    bencher.counter(bytes(&block)).bench_local(|| {
        content.clear();
        opener.open(&message, BLOCK_SIZE, &mut content).unwrap();
    });
}

/// A directory of small files that share a few blocks.
fn node() -> Node {
    let pack = PackId::random();
    let blocks = (0..8).map(|block| BlockLocation { pack, offset: block << 20, length: 1 << 20 }).collect();
    let entry = |number: usize| Entry {
        name: format!("a-name-as-files-have-{number:06}.txt").into_bytes(),
        kind: Kind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        mtime: Timestamp { seconds: 1_700_000_000 + number as i64, nanos: 123_456_789 },
        size: 4096,
        content: Content::Chunk(ChunkRef {
            digest: Digest::of(&number.to_le_bytes()),
            block: number as u32 % 8,
            start: number as u32 / 8 * 4096,
            length: 4096,
        }),
        link: None,
        xattrs: Vec::new(),
        flags: 0,
        inode_flags: 0,
    };
    let users = [(1000, "user".to_owned())].into();
    Node { blocks, items: Items::Entries((0..ENTRIES).map(entry).collect()), users, groups: Default::default() }
}

#[divan::bench]
fn encode_node(bencher: Bencher<'_, '_>) {
    let node = node();
    bencher.counter(ItemsCount::new(ENTRIES)).bench_local(|| node.encode());
}

#[divan::bench]
fn decode_node(bencher: Bencher<'_, '_>) {
    let encoded = node().encode();
    bencher.counter(ItemsCount::new(ENTRIES)).bench_local(|| Node::decode(&encoded).unwrap());
}

/// A backup of an unchanged segment: encode the current stat data, and compare it.
#[divan::bench]
fn compare_segment(bencher: Bencher<'_, '_>) {
    let stat = |number: usize| Stat {
        kind: Kind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        size: 4096,
        mtime: Timestamp { seconds: 1_700_000_000 + number as i64, nanos: 123_456_789 },
        ctime: Timestamp { seconds: 1_700_000_000 + number as i64, nanos: 123_456_789 },
        dev: 1,
        mount: 1,
        ino: 1_000_000 + number as u64,
        nlink: 1,
        rdev: 0,
        blocks: 8,
        nodump: false,
    };
    let listed: Vec<_> = (0..ENTRIES).map(|n| (format!("a-name-as-files-have-{n:06}.txt"), stat(n))).collect();
    let now = || {
        let mut stats = Stats::default();
        listed.iter().for_each(|(name, stat)| stats.push(name.as_bytes(), stat, EntryMount::default()));
        stats
    };
    let known = now();
    bencher.counter(ItemsCount::new(ENTRIES)).bench_local(|| {
        let same = now() == known;
        assert!(same);
    });
}
