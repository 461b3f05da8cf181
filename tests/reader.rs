//! The library that reads a repository, without a kernel: no block is fetched and decoded more often than need be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::HashSet;
use std::fs;

use brackfs::crypt::{Opener, SecretKey};
use brackfs::format::BlockLocation;
use brackfs::reader::{Error, FileReader, Listed, Reader};
use brackfs::repository::{Access, Repository};
use common::{Site, noise};

const MIB: usize = 1 << 20;

fn reader(site: &Site, cache_size: usize) -> Reader {
    let repository = Repository::open(site.repo().to_str().unwrap()).unwrap();
    let key = SecretKey::parse(&fs::read(site.keys().join("owner")).unwrap()).unwrap();
    let hosts = repository.keys().hosts().unwrap();
    Reader::new(repository, Access::new(Some(Opener::new(key).unwrap()), hosts), cache_size)
}

fn backed_up(files: &[(&str, Vec<u8>)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site.backup(&[]).ok();
    site
}

fn at(reader: &Reader, path: &str) -> Listed {
    let name = reader.snapshots().unwrap().pop().unwrap();
    let (snapshot, _) = reader.snapshot(&name).unwrap();
    reader.at_path(&snapshot, path.as_bytes()).unwrap()
}

fn blocks_of(reader: &Reader, file: &FileReader) -> HashSet<BlockLocation> {
    let mut blocks = HashSet::new();
    let note = |_, at: &BlockLocation, _: &_| {
        blocks.insert(*at);
        Ok(())
    };
    file.each_chunk(reader, note).unwrap();
    blocks
}

/// How many blocks were decoded by the time that nobody decodes any more.
fn decoded(reader: &Reader) -> u64 {
    let mut last = reader.decoded_blocks();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(30));
        match reader.decoded_blocks() {
            now if now == last => return now,
            now => last = now,
        }
    }
}

#[test]
fn who_reads_a_large_file_in_order_has_each_block_decoded_once() {
    let content = noise("large", 40 * MIB);
    let site = backed_up(&[("large", content.clone())]);
    // Little cache and much; one who reads, and one who asks for two pieces at once in the wrong order.
    for (cache, pieces) in [(12 * MIB, 1), (12 * MIB, 2), (128 * MIB, 1)] {
        let reader = reader(&site, cache);
        let file = FileReader::new(at(&reader, "large"));
        let blocks = blocks_of(&reader, &file).len() as u64;
        assert!(blocks > 30);
        let before = decoded(&reader);
        let mut read = vec![0; content.len()];
        for group in (0..content.len()).step_by(pieces * (128 << 10)) {
            for piece in (0..pieces).rev() {
                let at = group + piece * (128 << 10);
                let take = |bytes: &[u8]| read[at..at + bytes.len()].copy_from_slice(bytes);
                file.read(&reader, at as u64, 128 << 10, take).unwrap();
            }
        }
        assert!(read == content);
        assert_eq!(decoded(&reader) - before, blocks, "cache of {cache}, {pieces} pieces at once");

        let before = decoded(&reader);
        let mut at = 0;
        let visit = |stretch: Result<&[u8], u64>| {
            let bytes = stretch.expect("no hole");
            assert!(bytes == &content[at..at + bytes.len()]);
            at += bytes.len();
            Ok::<_, Error>(())
        };
        let file = FileReader::new(self::at(&reader, "large"));
        file.each(&reader, visit).unwrap();
        assert!(decoded(&reader) - before <= blocks);
    }
}

#[test]
fn who_reads_here_and_there_has_nothing_else_decoded() {
    let content = noise("large", 24 * MIB);
    let site = backed_up(&[("large", content.clone())]);
    let reader = reader(&site, 128 * MIB);
    let file = FileReader::new(at(&reader, "large"));
    let before = decoded(&reader);
    for (reads, at) in [(1, 20), (2, 4), (3, 12), (4, 8), (5, 16)] {
        let at = at * MIB + 777;
        let right = file.read(&reader, at as u64, 100, |bytes| bytes == &content[at..at + 100]).unwrap();
        assert!(right);
        assert_eq!(decoded(&reader) - before, reads);
    }
}

#[test]
fn who_reads_small_files_in_order_has_each_block_decoded_once_and_the_next_one_before_it_is_wanted() {
    let files: Vec<_> = (0..400).map(|n| (format!("d/{n:03}"), noise(&n.to_string(), 20_000))).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let site = backed_up(&files);
    let reader = reader(&site, 24 * MIB);
    let mut blocks = HashSet::new();
    at(&reader, "d/000");
    let before = decoded(&reader);
    let mut ahead = false;
    for (name, content) in &files {
        let file = FileReader::new(at(&reader, name));
        blocks.extend(blocks_of(&reader, &file));
        assert!(file.read(&reader, 0, 1 << 20, |bytes| bytes == content).unwrap());
        ahead |= decoded(&reader) - before > blocks.len() as u64;
    }
    // All lie in a few blocks.
    assert!((4..10).contains(&blocks.len()), "{}", blocks.len());
    assert_eq!(decoded(&reader) - before, blocks.len() as u64);
    assert!(ahead);
}
