//! Repositories whose packs were compacted, and forgotten snapshots: readers find moved blocks, and hide what was forgotten.
//!
//! The tests compact by hand: see [`Compactor`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use brackfs::crypt::{Certificate, Opener, SecretKey, Signer};
use brackfs::format::block::Encoder;
use brackfs::format::forgotten::Forgotten;
use brackfs::format::id::ObjectId;
use brackfs::format::index::Index;
use brackfs::format::moved::{Moved, MovedRange, RestoredChunk};
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::pack::{CarriedBlock, IndexedCarrier, IndexedPack};
use brackfs::format::{BlockLocation, Check, Digest, PackId};
use brackfs::repository::{Access, Repository, Writer};
use common::wait::until;
use common::{Run, Site, noise, snapshot_objects, tree};

/// A block, and where it lies now.
#[derive(Clone, Copy)]
struct Block {
    birth: BlockLocation,
    ordinal: u32,
    check: Check,
    place: BlockLocation,
}

/// Compacts a repository as a prune does: moves all blocks to a new carrier, and removes the packs in which they were.
struct Compactor {
    repository: Repository,
    host: SecretKey,
    recipients: Vec<Certificate>,
    access: Access,
    generation: u64,
    /// All blocks, by their births.
    blocks: Vec<Block>,
    indexes: Vec<ObjectId>,
    shards: Vec<(u8, ObjectId)>,
}

fn secret_key(path: &Path) -> SecretKey {
    SecretKey::parse(&fs::read(path).unwrap()).unwrap()
}

impl Compactor {
    fn new(site: &Site) -> Compactor {
        let repository = Repository::open(&site.repo().as_path().into()).unwrap();
        let host = secret_key(&site.state().join(repository.id().to_string()).join("host.key"));
        let owner = repository.encrypted().then(|| secret_key(&site.keys().join("owner")));
        let recipients = owner.iter().map(SecretKey::certificate).collect();
        let opener = owner.map(|owner| Opener::new(owner).unwrap());
        let access = Access::new(opener, vec![host.certificate()]);
        let mut compactor = Compactor {
            repository,
            host,
            recipients,
            access,
            generation: 100,
            blocks: Vec::new(),
            indexes: Vec::new(),
            shards: Vec::new(),
        };
        for object in compactor.repository.target().list(name::INDEX).unwrap() {
            let id = name::parse_index(&object.name).unwrap();
            compactor.indexes.push(id);
            for pack in compactor.index(id).packs {
                compactor.blocks.extend(pack.blocks.iter().map(|block| {
                    let birth = BlockLocation { pack: pack.id, offset: block.offset, length: block.length };
                    Block { birth, ordinal: block.ordinal, check: block.check, place: birth }
                }));
            }
        }
        compactor.blocks.sort_by_key(|block| (block.birth.pack, block.birth.offset));
        compactor
    }

    fn index(&self, id: ObjectId) -> Index {
        self.access.index(&self.repository, id).unwrap()
    }

    fn writer(&self) -> Writer<'_> {
        self.writer_of(&self.host)
    }

    fn writer_of(&self, host: &SecretKey) -> Writer<'_> {
        let signer = Signer::new(host.clone()).unwrap();
        Writer::new(&self.repository, signer, &host.certificate(), &self.recipients).unwrap()
    }

    fn file(&self, object: &str) -> PathBuf {
        self.repository.target().local_path().unwrap().join(object)
    }

    fn remove(&self, object: &str) {
        fs::remove_file(self.file(object)).unwrap();
    }

    fn write_pack(&self, bytes: &[u8]) -> PackId {
        let pack = PackId::random();
        let file = self.file(&name::pack(pack));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
        pack
    }

    fn block(&self, at: &BlockLocation) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.repository.read_block(at, &mut bytes).unwrap();
        bytes
    }

    /// Moves all blocks to a new carrier, in the reverse order.
    fn carry(&mut self) -> PackId {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        for block in self.blocks.iter().rev() {
            places.push(bytes.len() as u64);
            bytes.extend(self.block(&block.place));
        }
        let pack = self.write_pack(&bytes);
        for (block, offset) in self.blocks.iter_mut().zip(places.into_iter().rev()) {
            block.place = BlockLocation { pack, offset, length: block.birth.length };
        }
        let mut old: Vec<Index> = self.indexes.iter().map(|id| self.index(*id)).collect();
        let carried = self.blocks.iter().rev().map(|block| CarriedBlock {
            length: block.birth.length,
            check: block.check,
            birth: block.birth.pack,
            ordinal: block.ordinal,
        });
        let digest = Digest::of(&bytes);
        let index = Index {
            generation: self.generation,
            packs: old
                .iter_mut()
                .flat_map(|index| std::mem::take(&mut index.packs))
                .map(|pack| IndexedPack { digest: None, ..pack })
                .collect(),
            carriers: vec![IndexedCarrier { id: pack, digest, blocks: carried.collect() }],
            snapshots: old.iter_mut().flat_map(|index| std::mem::take(&mut index.snapshots)).collect(),
            replaces: self.indexes.clone(),
            session_keys: old.iter_mut().flat_map(|index| std::mem::take(&mut index.session_keys)).collect(),
            ..Index::default()
        };
        let id = ObjectId::random();
        self.writer().put_sums(ObjectId::random(), &[(pack, digest)]).unwrap();
        self.writer().put_index(id, &index).unwrap();
        for old in std::mem::replace(&mut self.indexes, vec![id]) {
            self.remove(&name::index(old));
        }
        pack
    }

    /// The shards of the current places.
    fn moves(&self) -> BTreeMap<u8, Moved> {
        let mut shards: BTreeMap<u8, Moved> = BTreeMap::new();
        for Block { birth, place, .. } in &self.blocks {
            let shard = shards.entry(birth.pack.as_bytes()[0]).or_default();
            shard.generation = self.generation;
            let at = shard.carriers.iter().position(|carrier| *carrier == place.pack).unwrap_or_else(|| {
                shard.carriers.push(place.pack);
                shard.carriers.len() - 1
            });
            let length = u64::from(birth.length);
            let range = MovedRange { from: birth.offset, length, carrier: at as u32, to: place.offset };
            match shard.ranges.last_mut() {
                Some((pack, ranges)) if *pack == birth.pack => ranges.push(range),
                _ => shard.ranges.push((birth.pack, vec![range])),
            }
        }
        shards
    }

    fn put(&self, shards: &BTreeMap<u8, Moved>) -> Vec<(u8, ObjectId)> {
        let put = |(prefix, shard): (&u8, &Moved)| {
            let id = ObjectId::random();
            self.writer().put_moved(*prefix, id, shard).unwrap();
            (*prefix, id)
        };
        shards.iter().map(put).collect()
    }

    fn remove_packs_but(&self, kept: PackId) {
        for object in self.repository.target().list(name::PACKS).unwrap() {
            if object.name != name::pack(kept) {
                self.remove(&object.name);
            }
        }
    }

    fn remove_shards(&self, shards: &[(u8, ObjectId)]) {
        for (prefix, id) in shards {
            self.remove(&name::moved(*prefix, *id));
        }
    }

    /// Compacts. Returns the shards that were there before.
    fn compact(&mut self) -> Vec<(u8, ObjectId)> {
        self.generation += 1;
        let sums = self.repository.target().list(name::SUMS).unwrap();
        let carrier = self.carry();
        let shards = self.put(&self.moves());
        for list in sums {
            self.remove(&list.name);
        }
        self.remove_packs_but(carrier);
        std::mem::replace(&mut self.shards, shards)
    }

    fn forget(&self, generation: u64, snapshots: &[SnapshotName]) {
        let forgotten = Forgotten { generation, snapshots: snapshots.to_vec(), ..Forgotten::default() };
        self.writer().put_forgotten(ObjectId::random(), &forgotten).unwrap();
    }

    fn snapshots(&self) -> Vec<SnapshotName> {
        self.repository.snapshots().unwrap()
    }
}

/// A site with two snapshots of files of many sizes.
fn site(encrypted: bool) -> Site {
    let site = Site::with_files(&[
        ("large", noise("large", 9 << 20)),
        ("d/e/small", b"small".to_vec()),
        ("d/text", b"text that compresses well ".repeat(9000)),
        ("d/old", noise("old", 70_000)),
        ("empty", Vec::new()),
    ]);
    for number in 0..300 {
        site.write(&format!("many/file-{number}"), noise(&number.to_string(), 100 + number));
    }
    if encrypted {
        site.init();
    } else {
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    }
    site.backup(&[]).ok();
    fs::remove_file(site.source().join("d/old")).unwrap();
    site.write("d/new", noise("new", 3 << 20));
    site.backup(&[]).ok();
    site
}

/// Output and exit code of the commands that read snapshots.
fn shown(site: &Site) -> Vec<(i32, String)> {
    let ids = ids(site);
    let large = format!("{}:large", ids[1]);
    let commands: [&[&str]; 8] = [
        &["ls", "-R", "latest"],
        &["ls", "-R", &ids[0]],
        &["cat", &large],
        &["cat", &format!("{}:d/old", ids[0])],
        &["dump", "latest"],
        &["diff", &ids[0], &ids[1]],
        &["find", "old"],
        &["versions", "d/text"],
    ];
    commands.map(|command| site.brackfs(command)).map(|run| (run.code, run.stdout)).into()
}

/// The ids of the snapshots in the repository, oldest first.
fn ids(site: &Site) -> Vec<String> {
    let id = |object: PathBuf| object.to_str().unwrap().rsplit('-').next().unwrap().to_owned();
    snapshot_objects(site).into_iter().map(id).collect()
}

#[track_caller]
fn restored_like(site: &Site, source: &BTreeMap<PathBuf, common::Entry>, to: &str) {
    site.brackfs(&["restore", "latest", "--to", to]).ok();
    assert_eq!(tree(&site.path().join(to)), *source);
}

#[test]
fn commands_read_the_same_from_a_compacted_repository() {
    for encrypted in [true, false] {
        let site = site(encrypted);
        let (before, source) = (shown(&site), tree(&site.source()));
        assert!(before.iter().all(|(_, stdout)| !stdout.is_empty()));
        assert_eq!(before.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [0; 8]);
        let mut compactor = Compactor::new(&site);
        for round in ["first", "second"] {
            let old = compactor.compact();
            assert_eq!(shown(&site), before);
            restored_like(&site, &source, round);
            site.brackfs(&["check", "--read-data"]).ok();
            let mount = site.mount(&["latest"]);
            assert_eq!(tree(&site.mnt()), source);
            drop(mount);
            compactor.remove_shards(&old);
        }
        restored_like(&site, &source, "third");
    }
}

/// Makes the kernel forget inodes and their data, so that the mount reads again.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    tree(root).into_keys().map(|path| (path.clone(), fs::symlink_metadata(root.join(path)).unwrap().ino())).collect()
}

#[test]
fn a_mount_stays_open_over_several_compactions() {
    let site = site(true);
    let source = tree(&site.source());
    let mut compactor = Compactor::new(&site);
    let mount = site.mount(&["--cache-size", "0"]);
    let latest = fs::canonicalize(site.mnt().join("source/latest")).unwrap();
    let numbers = inodes(&latest);
    for is_kept in [true, true, false, false] {
        let old = compactor.compact();
        if !is_kept {
            compactor.remove_shards(&old);
        }
        drop_caches();
        assert_eq!(tree(&latest), source);
        assert_eq!(inodes(&latest), numbers);
        let found = common::run({
            let mut find = std::process::Command::new("find");
            find.arg(&latest).args(["-name", "file-299", "-size", "1"]);
            find
        });
        assert_eq!(found.ok().stdout.lines().count(), 1);
    }
    // Without the shards nothing is found, and every file that is read fails.
    compactor.remove_shards(&compactor.shards);
    drop(mount);
    let mount = site.mount(&["--cache-size", "0"]);
    assert!(fs::read_dir(&latest).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).is_err());
    drop(mount);
    let run = site.brackfs(&["cat", "latest:large"]).code(1);
    assert!(run.stderr.contains("cannot read pack ") && run.stdout.is_empty(), "{run}");
}

#[test]
fn only_the_newest_shard_of_a_trusted_key_counts() {
    let site = site(true);
    let source = tree(&site.source());
    let mut compactor = Compactor::new(&site);
    compactor.compact();
    // A shard of a later generation that a stranger signed leads nowhere.
    let stranger = SecretKey::generate_host(&[]).unwrap();
    let lie = |shard: &Moved| Moved { generation: 900, carriers: vec![PackId::random(); 9], ..shard.clone() };
    for (prefix, shard) in compactor.moves() {
        compactor.writer_of(&stranger).put_moved(prefix, ObjectId::random(), &lie(&shard)).unwrap();
        fs::write(compactor.file(&name::moved(prefix, ObjectId::random())), "damaged").unwrap();
        // An older one of the host that leads nowhere.
        let older = Moved { generation: 3, ..lie(&shard) };
        compactor.writer().put_moved(prefix, ObjectId::random(), &older).unwrap();
    }
    restored_like(&site, &source, "good");
    // The host's own of a later generation counts.
    for (prefix, shard) in compactor.moves() {
        compactor.writer().put_moved(prefix, ObjectId::random(), &lie(&shard)).unwrap();
    }
    let run = site.brackfs(&["restore", "latest", "--to", "bad"]).code(1);
    assert!(run.stderr.contains("cannot read pack "), "{run}");
}

/// Asserts that a restore fails, and that no restored file has wrong content.
#[track_caller]
fn never_wrong(site: &Site, words: &str) -> Run {
    let to = format!("out-{words}").replace(' ', "-");
    let run = site.brackfs(&["restore", "latest", "--to", &to]).code(1);
    assert!(run.stderr.contains(words), "{run}");
    let (source, restored) = (tree(&site.source()), tree(&site.path().join(&to)));
    for (path, entry) in restored {
        assert!(entry.content.is_none() || entry.content == source[&path].content, "{}", path.display());
    }
    run
}

#[test]
fn a_shard_that_leads_to_other_bytes_is_an_error() {
    for encrypted in [true, false] {
        let site = Site::with_files(&[("a", noise("a", 5000))]);
        if encrypted {
            site.init();
        } else {
            site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        }
        site.backup(&[]).ok();
        site.write("b", noise("b", 5000));
        common::age(&site.source());
        common::settle();
        site.backup(&[]).ok();
        let mut compactor = Compactor::new(&site);
        compactor.compact();
        restored_like(&site, &tree(&site.source()), "good");
        // Two blocks of the same length, swapped.
        let mut by_length: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, block) in compactor.blocks.iter().enumerate() {
            by_length.entry(block.birth.length).or_default().push(at);
        }
        let contents = by_length.into_iter().rev().find(|(length, _)| *length >= 5000).unwrap().1;
        let [one, other] = contents[..] else { panic!("{} blocks with content of one length", contents.len()) };
        let places = [one, other].map(|at| compactor.blocks[at].place);
        (compactor.blocks[one].place, compactor.blocks[other].place) = (places[1], places[0]);
        compactor.generation += 1;
        compactor.put(&compactor.moves());
        let run = never_wrong(&site, "is damaged: its digest differs");
        assert_eq!(run.stderr.matches("is damaged").count(), 2, "{run}");
        // Offsets in the middle of blocks.
        for block in &mut compactor.blocks {
            block.place.offset /= 2;
        }
        compactor.generation += 1;
        compactor.put(&compactor.moves());
        never_wrong(&site, "cannot read");
    }
}

#[test]
fn a_chunk_that_was_stored_again_replaces_a_lost_or_damaged_block() {
    for encrypted in [true, false] {
        let content = noise("lost", 5000);
        let site = Site::with_files(&[("lost", content.clone())]);
        if encrypted {
            site.init();
        } else {
            site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        }
        site.backup(&[]).ok();
        let compactor = Compactor::new(&site);
        let block = compactor.blocks.iter().find(|block| block.birth.length >= 5000).unwrap().birth;
        let file = compactor.file(&name::pack(block.pack));
        let good = fs::read(&file).unwrap();
        let mut damaged = good.clone();
        let at = block.offset as usize + 1000;
        damaged[at] ^= 1;
        fs::write(&file, &damaged).unwrap();
        site.brackfs(&["cat", "latest:lost"]).code(1);

        // The chunk is in the middle of a block of another pack.
        let (mut frame, mut sealed) = (Vec::new(), Vec::new());
        let plaintext = [&noise("before", 300), content.as_slice(), &noise("after", 200)].concat();
        Encoder::new(1).unwrap().encode(&plaintext, true, &mut frame).unwrap();
        match compactor.writer().block_sealer() {
            Some(sealer) => sealer.seal(&frame, &mut sealed).unwrap(),
            None => sealed = frame,
        }
        let mut carrier = vec![7; 50];
        carrier.extend(&sealed);
        let pack = compactor.write_pack(&carrier);
        let digest = Digest::of(&content);
        let chunk = RestoredChunk { digest, carrier: 0, offset: 50, stored: sealed.len() as u32, start: 300 };
        let restored = vec![(block.pack, vec![chunk])];
        let shard = Moved { generation: 9, carriers: vec![pack], restored, ..Moved::default() };
        compactor.writer().put_moved(block.pack.as_bytes()[0], ObjectId::random(), &shard).unwrap();

        let source = tree(&site.source());
        restored_like(&site, &source, "damaged");
        let read = site.brackfs(&["cat", "latest:lost"]).ok();
        fs::write(&file, &good).unwrap();
        assert_eq!(site.brackfs(&["cat", "latest:lost"]).ok().stdout, read.stdout);
        // Only the block is lost; the tree is in another pack or at another place of this one.
        let nodes = compactor.blocks.iter().filter(|other| other.birth.pack == block.pack).count();
        if nodes == 1 {
            fs::remove_file(&file).unwrap();
        } else {
            fs::write(&file, &good[..block.offset as usize]).unwrap();
        }
        restored_like(&site, &source, "short");
        // No index has the pack to which the shard leads.
        let checked = site.brackfs(&["check"]).code(1);
        assert!(checked.stderr.contains("1 file in 1 snapshot cannot be read"), "{checked}");
        let _mount = site.mount(&["latest"]);
        assert_eq!(fs::read(site.mnt().join("lost")).unwrap(), content);
    }
}

#[test]
fn forgotten_snapshots_are_hidden() {
    let site = site(true);
    let compactor = Compactor::new(&site);
    let [old, new] = compactor.snapshots().try_into().unwrap();
    let [old_id, new_id] = [&old, &new].map(|name| name.id.to_string());
    let key = site.keys().join("owner");
    let listed = || {
        let run = site.brackfs(&["snapshots", "--key", key.to_str().unwrap()]).ok();
        run.stdout.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let short = |id: &str| id[..listed()[0].len()].to_owned();
    assert_eq!(listed().len(), 2);
    let mount = site.mount(&[]);
    let times = || {
        let names = fs::read_dir(site.mnt().join("source")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != "latest").count()
    };
    assert_eq!(times(), 2);

    // Tombstones of a stranger and damaged ones are passed over.
    let stranger = SecretKey::generate_host(&[]).unwrap();
    let lie = Forgotten { generation: 200, snapshots: vec![new.clone()], ..Forgotten::default() };
    compactor.writer_of(&stranger).put_forgotten(ObjectId::random(), &lie).unwrap();
    fs::write(compactor.file(&name::forgotten(ObjectId::random())), "damaged").unwrap();
    assert_eq!(listed().len(), 2);

    compactor.forget(100, std::slice::from_ref(&old));
    assert_eq!(listed(), [short(&new_id)]);
    until("the mount hides the forgotten snapshot", || times() == 1);
    assert!(!site.brackfs(&["versions", "d/old"]).stdout.contains("70000"));
    assert_eq!(site.brackfs(&["find", "old"]).ok().stdout, "");
    // A check names those that are not valid, and nothing else.
    let check = site.brackfs(&["check"]).code(1);
    assert!(check.stderr.matches("forgotten/").count() == 2 && check.stderr.contains("2 problems"), "{check}");
    for command in [&["ls", &old_id][..], &["restore", &old_id, "--to", "x"], &["mount", &old_id, "mnt"]] {
        let run = site.brackfs(command).code(1);
        assert!(run.stderr.contains(&format!("snapshot {old_id} was forgotten")), "{run}");
    }
    site.brackfs(&["ls", "latest:d/new"]).ok();

    // A later document names only the newest snapshot. Earlier ones do not count from then on.
    compactor.forget(101, std::slice::from_ref(&new));
    compactor.forget(99, std::slice::from_ref(&old));
    assert_eq!(listed(), [short(&old_id)]);
    until("latest is the older snapshot", || site.mnt().join("source/latest/d/old").exists());
    site.brackfs(&["ls", "latest:d/old"]).ok();
    drop(mount);

    // Of the same generation, both count.
    compactor.forget(101, &[old]);
    let run = site.brackfs(&["ls", "latest"]).code(1);
    assert!(run.stderr.contains("the repository has no snapshots"), "{run}");
}

#[test]
fn a_mounted_snapshot_that_is_forgotten_works_until_its_data_is_removed() {
    let site = site(true);
    let compactor = Compactor::new(&site);
    let newest = compactor.snapshots().pop().unwrap();
    let _mount = site.mount(&["--cache-size", "0", "latest"]);
    compactor.forget(100, &[newest]);
    assert_eq!(tree(&site.mnt()), tree(&site.source()));
    for pack in compactor.repository.target().list(name::PACKS).unwrap() {
        compactor.remove(&pack.name);
    }
    until("data that was removed is not read", || {
        drop_caches();
        fs::read(site.mnt().join("large")).is_err()
    });
    let log = site.state().join(compactor.repository.id().to_string()).join("mount.log");
    let says = |words: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(words));
    until("the log says why", || says("the snapshot was forgotten and its data was removed"));
}
