//! The library that reads a repository, without a kernel: no block is fetched and decoded more often than necessary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use brackfs::archive::{Archive, EntryHandle, Error, FileData};
use brackfs::crypt::{Opener, SecretKey};
use brackfs::format::BlockLocation;
use brackfs::history::{ChangeKind, ComparedTree, Query, SearchScope, diff, find};
use brackfs::monitor::Silent;
use brackfs::reader::{FileReader, Reader};
use brackfs::repository::{Access, Repository};
use brackfs::restore::{Options, restore};
use brackfs::storage::Target;
use brackfs::storage::testing::Memory;
use common::wait::{threads, until};
use common::{Site, noise, settle, tree};

const MIB: usize = 1 << 20;

fn reader(site: &Site, cache_size: usize) -> Reader {
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let key = SecretKey::parse(&fs::read(site.keys().join("owner")).unwrap()).unwrap();
    let hosts = repository.keys().hosts().unwrap();
    Reader::new(repository, Access::new(Some(Opener::new(key).unwrap()), hosts), cache_size)
}

/// The same with a copy of the repository that is not on this machine.
fn remote_reader(site: &Site, cache_size: usize) -> Reader {
    let local = reader(site, 0);
    let target = Target::new(Box::new(Memory::default()), "memory".into());
    for object in local.repository().target().list("").unwrap() {
        target.put(&object.name, &local.repository().target().get(&object.name, usize::MAX).unwrap()).unwrap();
    }
    let key = SecretKey::parse(&fs::read(site.keys().join("owner")).unwrap()).unwrap();
    let repository = Repository::at(target).unwrap();
    let hosts = repository.keys().hosts().unwrap();
    Reader::new(repository, Access::new(Some(Opener::new(key).unwrap()), hosts), cache_size)
}

fn backed_up(files: &[(&str, Vec<u8>)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site.backup(&[]).ok();
    site
}

fn at(reader: &Reader, path: &str) -> EntryHandle {
    let name = reader.snapshots().unwrap().pop().unwrap();
    let snapshot = reader.open(&name).unwrap();
    reader.at_path(&snapshot, path.as_bytes()).unwrap()
}

fn blocks_of(reader: &Reader, file: &EntryHandle) -> HashSet<BlockLocation> {
    let mut blocks = HashSet::new();
    let note = |_, at: &BlockLocation, _: &_| {
        blocks.insert(*at);
        Ok(())
    };
    FileReader::new(reader, file).unwrap().each_chunk(note).unwrap();
    blocks
}

/// The number of blocks decoded so far, once no thread decodes another one.
fn decoded(reader: &Reader) -> u64 {
    until("all prefetch threads sleep", || {
        let threads = threads(std::process::id(), "stat");
        threads.iter().filter(|stat| stat.contains("(prefetch)")).all(|stat| stat.contains(") S "))
    });
    reader.decoded_blocks()
}

#[test]
fn sequential_reads_of_a_large_file_decode_each_block_once() {
    let content = noise("large", 40 * MIB);
    let site = backed_up(&[("large", content.clone())]);
    // A small and a large cache; single reads, and pairs of reads in reverse order.
    for (cache, pieces) in [(12 * MIB, 1), (12 * MIB, 2), (128 * MIB, 1)] {
        let reader = reader(&site, cache);
        let file = reader.content(&at(&reader, "large")).unwrap();
        let blocks = blocks_of(&reader, &at(&reader, "large")).len() as u64;
        assert!(blocks > 30);
        let before = decoded(&reader);
        let mut read = vec![0; content.len()];
        for group in (0..content.len()).step_by(pieces * (128 << 10)) {
            for piece in (0..pieces).rev() {
                let at = group + piece * (128 << 10);
                let take = |bytes: &[u8]| read[at..at + bytes.len()].copy_from_slice(bytes);
                file.read(at as u64, 128 << 10, take).unwrap();
            }
        }
        assert!(read == content);
        assert_eq!(decoded(&reader) - before, blocks, "cache of {cache}, {pieces} pieces at once");

        let before = decoded(&reader);
        let mut at = 0;
        let visit = |data: FileData<'_>| {
            let FileData::Bytes(bytes) = data else { panic!("a hole") };
            assert!(bytes == &content[at..at + bytes.len()]);
            at += bytes.len();
            Ok::<_, Error>(())
        };
        let file = reader.content(&self::at(&reader, "large")).unwrap();
        file.each(visit).unwrap();
        assert!(decoded(&reader) - before <= blocks);
    }
}

#[test]
fn random_reads_decode_only_their_blocks() {
    let content = noise("large", 24 * MIB);
    let site = backed_up(&[("large", content.clone())]);
    let reader = reader(&site, 128 * MIB);
    let file = reader.content(&at(&reader, "large")).unwrap();
    // Small pieces of it share a block.
    let mut pieces = Vec::new();
    let note = |begins, block: &BlockLocation, _: &_| {
        pieces.push((begins, *block));
        Ok(())
    };
    FileReader::new(&reader, &at(&reader, "large")).unwrap().each_chunk(note).unwrap();
    let mut wanted = HashSet::new();
    let before = decoded(&reader);
    for at in [20, 4, 12, 8, 16].map(|at| at * MIB + 777) {
        let right = file.read(at as u64, 100, |bytes| bytes == &content[at..at + 100]).unwrap();
        assert!(right);
        let from = |at: usize| pieces[pieces.partition_point(|(begins, _)| *begins <= at as u64) - 1].1;
        wanted.extend([from(at), from(at + 99)]);
        assert_eq!(decoded(&reader) - before, wanted.len() as u64);
    }
    assert!(wanted.len() > 2);
}

#[test]
fn sequential_reads_of_small_files_decode_each_block_once_and_prefetch_the_next_one() {
    let files: Vec<_> = (0..400).map(|n| (format!("d/{n:03}"), noise(&n.to_string(), 20_000))).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let site = backed_up(&files);
    let reader = reader(&site, 24 * MIB);
    let mut blocks = HashSet::new();
    at(&reader, "d/000");
    let before = decoded(&reader);
    let mut ahead = false;
    for (name, content) in &files {
        let file = reader.content(&at(&reader, name)).unwrap();
        blocks.extend(blocks_of(&reader, &at(&reader, name)));
        assert!(file.read(0, 1 << 20, |bytes| bytes == content).unwrap());
        ahead |= decoded(&reader) - before > blocks.len() as u64;
    }
    // All files are in a few blocks.
    assert!((15..30).contains(&blocks.len()), "{}", blocks.len());
    assert_eq!(decoded(&reader) - before, blocks.len() as u64);
    assert!(ahead);
}

#[test]
fn a_restore_of_files_from_many_backups_decodes_each_block_once() {
    let site = Site::new();
    site.init();
    let (folders, files, backups) = (20, 30, 6);
    let write = |folder: usize, file: usize, backup: usize| {
        let path = format!("d{folder:02}/f{file:02}");
        site.write(&path, noise(&format!("{path} {backup}"), 6000));
    };
    (0..folders).for_each(|folder| (0..files).for_each(|file| write(folder, file, 0)));
    site.backup(&[]).ok();
    for backup in 1..=backups {
        (0..folders).for_each(|folder| (0..3).for_each(|more| write(folder, 3 * backup + more, backup)));
        site.backup(&[]).ok();
    }
    let all = reader(&site, 64 * MIB);
    let mut blocks = HashSet::new();
    for (folder, file) in (0..folders).flat_map(|folder| (0..files).map(move |file| (folder, file))) {
        blocks.extend(blocks_of(&all, &at(&all, &format!("d{folder:02}/f{file:02}"))));
    }
    assert!(blocks.len() > backups + 1, "{}", blocks.len());
    // The cache cannot hold one block of each backup.
    let reader = reader(&site, MIB);
    let to = site.path().join("out");
    let restored = restore(&reader, &at(&reader, ""), &to, &Options::default(), &Silent, &AtomicBool::new(false));
    assert_eq!(restored.unwrap().files, (folders * files) as u64);
    assert!(tree(&to) == tree(&site.source()));
    // Plus blocks of directories, and on a busy machine a slow worker needs a block again that has left the small
    // cache. In the order of the tree, each folder would need a block of each backup.
    let most = 2 * blocks.len() as u64;
    assert!(most < folders as u64 * backups as u64 / 2);
    assert!((blocks.len() as u64..=most).contains(&decoded(&reader)), "{} of {}", decoded(&reader), blocks.len());
}

#[test]
fn a_search_reads_unchanged_directories_once() {
    let site = Site::new();
    site.init();
    for path in (0..200).flat_map(|folder| (0..30).map(move |file| format!("{}/{folder}/{file}", folder % 10))) {
        site.write(&path, "");
    }
    site.backup(&[]).ok();
    for backup in 0..8 {
        site.write("3/3/3", format!("{backup}"));
        site.backup(&[]).ok();
    }
    // The nodes of some directories stay cached, but not the block with all of them.
    let reader = reader(&site, 96 << 10);
    let wanted = Query {
        patterns: vec!["3".into()],
        ignore_case: false,
        kinds: Vec::new(),
        newer: None,
        older: None,
        larger: None,
        smaller: None,
    };
    let mut before = 0;
    let mut search = |within| {
        let mut names = 0;
        let problems = find(&reader, within, &wanted, &Silent, &mut |_| {
            names += 1;
            Ok(())
        });
        assert_eq!(problems.unwrap(), 0);
        let now = decoded(&reader);
        let blocks = now - before;
        before = now;
        (names, blocks)
    };
    let name = reader.snapshots().unwrap().pop().unwrap();
    let newest = reader.open(&name).unwrap();
    let (names, one) = search(SearchScope::One(newest));
    assert!(one > 150, "all of it stays in memory: {one}");
    let (more, all) = search(SearchScope::All(None));
    // The file that changed each time, and the names of its directories.
    assert!(more > names, "{more} and {names}");
    assert!(all < one + 8 * 12, "{all} blocks for all snapshots, {one} for one");
}

#[test]
fn a_comparison_reads_only_the_parts_of_large_directories_that_differ() {
    let files: Vec<_> =
        (0..40_000).map(|number| (format!("large/{number:05}"), noise(&number.to_string(), 8))).collect();
    let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
    let site = backed_up(&files);
    site.write("large/20000", "changed");
    site.backup(&[]).ok();
    let names = Reader::snapshots(&reader(&site, MIB)).unwrap();
    // The first pass reads both trees in full, and so counts their blocks.
    let decoded = [true, false].map(|in_full| {
        let reader = reader(&site, 128 * MIB);
        let [before, after] = [0, 1].map(|at| reader.open(&names[at]).unwrap());
        if in_full {
            for snapshot in [&before, &after] {
                let all = Query {
                    patterns: vec!["*".into()],
                    ignore_case: false,
                    kinds: Vec::new(),
                    newer: None,
                    older: None,
                    larger: None,
                    smaller: None,
                };
                find(&reader, SearchScope::One(snapshot.clone()), &all, &Silent, &mut |_| Ok(())).unwrap();
            }
        }
        let mut found = Vec::new();
        let [before, after] = [&before, &after].map(|snapshot| ComparedTree { snapshot, path: b"" });
        let summary = diff(&reader, &before, &after, b"", &Silent, &mut |change| {
            found.push((change.path.to_vec(), change.kind()));
            Ok(())
        });
        assert_eq!(summary.unwrap().changed_files, 1);
        assert_eq!(found, [(b"large/20000".to_vec(), ChangeKind::Content)]);
        reader.decoded_blocks()
    });
    // Of both trees, the node of the root, the index of the directory, and one of its forty parts.
    assert!(decoded[1] <= 8 && decoded[1] * 2 < decoded[0], "{decoded:?} blocks");
}

#[test]
fn a_restore_over_a_network_reads_each_block_once_and_none_of_files_that_exist() {
    let files: Vec<_> = (0..48).map(|at| (format!("folder{}/file{at}", at % 7), noise(&at.to_string(), MIB))).collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let site = backed_up(&files);
    let counts = [8 * MIB, 256 * MIB].map(|cache| {
        let reader = remote_reader(&site, cache);
        let into = site.path().join(format!("restored{cache}"));
        let restore_all = || {
            let before = decoded(&reader);
            restore(&reader, &at(&reader, ""), &into, &Options::default(), &Silent, &AtomicBool::new(false)).unwrap();
            decoded(&reader) - before
        };
        let first = restore_all();
        assert_eq!(tree(&site.source()), tree(&into));
        (first, restore_all())
    });
    let [(few, again), (all, _)] = counts;
    assert!(all >= 24, "{counts:?}");
    // With a small cache, some blocks leave it before they are used if a thread is held up. Without a bound, most do.
    assert!((all..=all + all / 4).contains(&few), "{counts:?}");
    assert!(again <= 4, "{counts:?}");
}

#[test]
fn large_files_that_are_read_at_the_same_time_share_the_cache() {
    let names: Vec<_> = (0..8).map(|at| format!("large{at}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), noise(name, 12 * MIB))).collect();
    let site = backed_up(&files);
    let reader = remote_reader(&site, 24 * MIB);
    let blocks: HashSet<_> = names.iter().flat_map(|name| blocks_of(&reader, &at(&reader, name))).collect();
    let before = decoded(&reader);
    thread::scope(|threads| {
        for (name, content) in &files {
            let file = reader.content(&at(&reader, name)).unwrap();
            threads.spawn(move || {
                let mut read = Vec::new();
                let visit = |data: FileData<'_>| {
                    let FileData::Bytes(bytes) = data else { panic!("a hole") };
                    read.extend_from_slice(bytes);
                    // Slower than the threads that read ahead.
                    thread::sleep(Duration::from_millis(5));
                    Ok::<_, Error>(())
                };
                file.each(visit).unwrap();
                assert!(read == *content);
            });
        }
    });
    // A few leave the cache before they are used if a thread is held up.
    let (decoded, blocks) = (decoded(&reader) - before, blocks.len() as u64);
    assert!((blocks..=blocks + blocks / 4).contains(&decoded), "{decoded} of {blocks}");
}

#[test]
fn directories_below_a_listed_one_are_read_ahead_over_a_network() {
    let names: Vec<_> = (0..6).map(|at| format!("folder{at}/file")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), b"first".to_vec())).collect();
    let site = backed_up(&files);
    // Each folder is in a block of its own.
    for name in &names {
        site.write(name, "second");
        settle();
        site.backup(&[]).ok();
    }
    // And the one above them in another.
    let blocks = names.len() as u64 + 1;
    let list = |reader: &Reader, path: &str| {
        reader.list(&at(reader, path).directory().unwrap(), 0).unwrap();
    };
    let local = reader(&site, 64 * MIB);
    list(&local, "");
    assert_eq!(decoded(&local), 1);
    let remote = remote_reader(&site, 64 * MIB);
    list(&remote, "");
    until("the blocks of all folders are read", || remote.decoded_blocks() == blocks);
    names.iter().for_each(|name| list(&remote, name.split_once('/').unwrap().0));
    assert_eq!(decoded(&remote), blocks);
    // A walk says where it enters, and the folders after that follow.
    let remote = remote_reader(&site, 64 * MIB);
    remote.prefetch_after(&at(&remote, "folder2"));
    until("the blocks of later folders are read", || remote.decoded_blocks() >= 4);
}
