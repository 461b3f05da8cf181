//! `check` and the documents of retention: replaced indexes, moved blocks, tombstones, and the census.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use brackfs::crypt::{SecretKey, Signer};
use brackfs::format::forgotten::Forgotten;
use brackfs::format::generation::{Census, Generation, NameSet, Role};
use brackfs::format::id::{CatalogId, ObjectId, RunId};
use brackfs::format::index::Index;
use brackfs::format::moved::{Moved, MovedRange};
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::pack::{CarriedBlock, IndexedCarrier, IndexedPack, PackKind};
use brackfs::format::{Digest, PackId};
use brackfs::repository::{Access, Repository, Writer};
use common::{Run, Site, age, noise, settle, tree};

/// A repository that is not encrypted, with a pack of data that is moved, and two snapshots, of which one is forgotten.
struct World {
    site: Site,
    repository: Repository,
    key: SecretKey,
    /// The removed pack with data, and the pack that holds its blocks.
    birth: PackId,
    carrier: PackId,
    shard: String,
    tombstones: String,
}

/// Changes to documents before they are written.
struct Lies {
    carrier: fn(&mut IndexedCarrier),
    moved: fn(&mut Moved),
}

const NONE: Lies = Lies { carrier: |_| (), moved: |_| () };

fn objects(site: &Site, folder: &str) -> Vec<String> {
    let names = tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file());
    names.map(|path| path.to_str().unwrap().to_owned()).filter(|name| name.starts_with(folder)).collect()
}

impl World {
    fn new(lies: &Lies) -> World {
        let site = Site::new();
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        for name in ["first", "second"] {
            for part in 0..3 {
                site.write(&format!("{name}/{part}"), noise(&format!("{name}{part}"), 300 << 10));
            }
            age(&site.source());
            settle();
            site.backup(&["--chunk-size", "1MiB", "--merge-files-under", "128KiB"]).ok();
        }
        let repository = Repository::open(&site.repo().as_path().into()).unwrap();
        let state = site.state().join(repository.id().to_string());
        let key = SecretKey::parse(&fs::read(state.join("host.key")).unwrap()).unwrap();
        let names = PackId::random();
        let (shard, tombstones) = (String::new(), String::new());
        let mut world = World { site, repository, key, birth: names, carrier: names, shard, tombstones };
        world.forget();
        world.move_pack(lies);
        world.announce(4);
        world
    }

    fn writer(&self) -> Writer<'_> {
        Writer::new(&self.repository, Signer::new(self.key.clone()).unwrap(), &self.key.certificate(), &[]).unwrap()
    }

    fn path(&self, object: &str) -> PathBuf {
        self.site.repo().join(object)
    }

    fn remove(&self, object: &str) {
        fs::remove_file(self.path(object)).unwrap();
    }

    /// Forgets the first snapshot and a pack that is in no index.
    fn forget(&mut self) {
        let first = SnapshotName::parse(&objects(&self.site, "snapshots/")[0]).unwrap();
        assert_eq!(first.sequence, 1);
        let condemned = PackId::random();
        fs::create_dir_all(self.path(&name::pack(condemned)).parent().unwrap()).unwrap();
        fs::write(self.path(&name::pack(condemned)), "condemned").unwrap();
        self.remove(&first.object());
        let id = ObjectId::random();
        let forgotten =
            Forgotten { generation: 3, snapshots: vec![first], packs: vec![condemned], replaces: Vec::new() };
        self.writer().put_forgotten(id, &forgotten).unwrap();
        self.tombstones = name::forgotten(id);
    }

    /// Moves the blocks of the largest pack into a carrier, and removes the pack. An index replaces the one with the pack.
    fn move_pack(&mut self, lies: &Lies) {
        let access = Access::new(None, vec![self.key.certificate()]);
        let of_index = |object: String| {
            let id = name::parse_index(&object).unwrap();
            (id, access.index(&self.repository, id).unwrap())
        };
        let found = objects(&self.site, "index/").into_iter().map(of_index).find_map(|(id, index)| {
            let pack = index.packs.iter().find(|pack| pack.kind == PackKind::Data && pack.blocks.len() > 2).cloned()?;
            Some((id, index, pack))
        });
        let (replaced, index, pack) = found.unwrap();
        let stored = fs::read(self.path(&name::pack(pack.id))).unwrap();

        let mut carrier = IndexedCarrier { id: PackId::random(), digest: Digest::of(&stored), blocks: Vec::new() };
        carrier.blocks.extend(pack.blocks.iter().map(|block| CarriedBlock {
            length: block.length,
            check: block.check,
            birth: pack.id,
            ordinal: block.ordinal,
        }));
        let (birth, prefix, length) = (pack.id, pack.id.as_bytes()[0], pack.length);
        let range = MovedRange { from: 0, length, carrier: 0, to: 0 };
        let mut moved = Moved {
            generation: 3,
            carriers: vec![carrier.id],
            ranges: vec![(birth, vec![range])],
            restored: Vec::new(),
            replaces: Vec::new(),
        };
        (lies.carrier)(&mut carrier);
        (lies.moved)(&mut moved);
        let stored = &stored[..carrier.length() as usize];
        carrier.digest = Digest::of(stored);

        let path = self.path(&name::pack(carrier.id));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, stored).unwrap();
        let writer = self.writer();
        writer.put_sums(ObjectId::random(), &[(carrier.id, carrier.digest)]).unwrap();
        let gone = |pack: IndexedPack| if pack.id == birth { IndexedPack { digest: None, ..pack } } else { pack };
        let packs = index.packs.into_iter().map(gone).collect();
        let carriers = vec![carrier.clone()];
        let index = Index { generation: 3, packs, carriers, replaces: vec![replaced], ..index };
        writer.put_index(ObjectId::random(), &index).unwrap();
        let id = ObjectId::random();
        writer.put_moved(prefix, id, &moved).unwrap();
        self.remove(&name::index(replaced));
        self.remove(&name::pack(birth));
        (self.birth, self.carrier, self.shard) = (birth, carrier.id, name::moved(prefix, id));
    }

    /// Writes the generation of a run that knows all objects that are there now, and what was forgotten.
    fn announce(&self, number: u64) {
        let names = |folder: &str| NameSet::of(objects(&self.site, folder));
        let mut snapshots = objects(&self.site, "snapshots/");
        if let Some(id) = name::parse_forgotten(&self.tombstones)
            && let Ok(forgotten) = Access::new(None, vec![self.key.certificate()]).forgotten(&self.repository, id)
        {
            snapshots.extend(forgotten.snapshots.iter().map(SnapshotName::object));
        }
        let census = Census {
            index: names("index/"),
            snapshots: NameSet::of(snapshots),
            moved: names("moved/"),
            forgotten: names("forgotten/"),
            secrets: names("secrets/"),
        };
        let (run, catalog, role) = (RunId::random(), CatalogId::random(), Role::Host);
        self.writer().put_generation(&Generation { number, run, catalog, role, census }).unwrap();
    }

    fn check(&self, arguments: &[&str]) -> Run {
        self.site.brackfs(&[&["check", "-v"], arguments].concat())
    }

    /// Asserts that `check -v`, with and without `--read-data`, prints these words.
    #[track_caller]
    fn finds(&self, words: &[&str]) {
        for arguments in [[].as_slice(), &["--read-data"]] {
            says(&self.check(arguments).code(1), words);
        }
    }
}

#[track_caller]
fn says(run: &Run, words: &[&str]) {
    for word in words {
        assert!(run.stderr.contains(word), "it does not say {word:?}\n{run}");
    }
}

#[test]
fn removed_packs_and_forgotten_snapshots_may_be_missing() {
    let world = World::new(&NONE);
    for arguments in [[].as_slice(), &["--read-data"]] {
        let run = world.check(arguments).ok();
        assert!(!run.stderr.contains("brackfs: "), "{run}");
    }
    // A forgotten snapshot that was not removed yet is not checked.
    let forgotten = world.path(&objects(&world.site, "snapshots/")[0]).with_file_name("x");
    assert!(!forgotten.exists());
    // Without the tombstone, both would be problems.
    world.remove(&world.tombstones);
    let run = world.check(&[]).code(1);
    says(&run, &["the previous snapshot", "it is missing: index/", "1 pack (9 bytes) in no index"]);
}

#[test]
fn a_census_shows_that_any_document_is_missing() {
    for folder in ["index/", "moved/", "forgotten/", "secrets/"] {
        let world = World::new(&NONE);
        world.remove(objects(&world.site, folder).last().unwrap());
        world.finds(&[&format!("{folder}: 1 object is missing")]);
    }
    let world = World::new(&NONE);
    let snapshot = objects(&world.site, "snapshots/").pop().unwrap();
    world.remove(&snapshot);
    world.finds(&[&format!("{snapshot}: it is missing: index/")]);
    // Nothing else names it.
    for index in objects(&world.site, "index/") {
        world.remove(&index);
    }
    world.finds(&["snapshots/: 1 object is missing"]);
}

#[test]
fn a_census_shows_an_exchange_and_notes_additions() {
    let world = World::new(&NONE);
    let add = || {
        let index = Index { generation: 2, ..Index::default() };
        world.writer().put_index(ObjectId::random(), &index).unwrap();
    };
    let first = objects(&world.site, "index/").remove(0);
    add();
    says(&world.check(&[]).ok(), &["index/ has objects that the last run did not know"]);
    world.remove(&first);
    world.finds(&["index/: objects are missing, and as many were added"]);
    add();
    world.finds(&["index/: 1 object is there that the last run did not know, and some that it knew may be missing"]);
    // A run that knows this counts it; documents of that run are not counted.
    world.announce(5);
    world.writer().put_index(ObjectId::random(), &Index { generation: 5, ..Index::default() }).unwrap();
    let run = world.check(&[]);
    assert!(!run.stderr.contains("index/:") && !run.stderr.contains("did not know"), "{run}");
    // A run whose generation is missing.
    world.writer().put_index(ObjectId::random(), &Index { generation: 6, ..Index::default() }).unwrap();
    says(&world.check(&[]), &["generation/ has no census of the run 6"]);
}

#[test]
fn documents_that_were_replaced_later_may_be_missing() {
    let world = World::new(&NONE);
    for object in objects(&world.site, "index/") {
        let replaced = name::parse_index(&object).unwrap();
        let access = Access::new(None, vec![world.key.certificate()]);
        let index = access.index(&world.repository, replaced).unwrap();
        let index = Index { generation: 4, replaces: vec![replaced], ..index };
        world.writer().put_index(ObjectId::random(), &index).unwrap();
        // First with both, then without the replaced one.
        world.check(&["--read-data"]).ok();
        world.remove(&object);
        world.check(&["--read-data"]).ok();
    }
}

#[test]
fn a_shard_that_is_missing_or_wrong_is_named() {
    let world = World::new(&NONE);
    world.remove(&world.shard);
    world.finds(&["moved/", "does not say where", &world.birth.to_string()]);

    let world = World::new(&Lies { moved: |moved| moved.ranges[0].1[0].to = 1, ..NONE });
    world.finds(&[&world.shard, "does not say where"]);
    let world = World::new(&Lies { moved: |moved| moved.carriers[0] = PackId::random(), ..NONE });
    world.finds(&[&world.shard, "does not say where"]);
}

#[test]
fn a_moved_block_that_no_carrier_has_is_lost() {
    let world = World::new(&Lies { carrier: |carrier| _ = carrier.blocks.pop(), ..NONE });
    let run = world.check(&[]).code(1);
    says(&run, &["its data is lost", &world.birth.to_string()]);
    assert_eq!(run.stderr.matches("its data is lost").count(), 1, "{run}");
    // Block 1 is said to be another one.
    let world = World::new(&Lies { carrier: |carrier| carrier.blocks[0].check.0[0] ^= 1, ..NONE });
    world.finds(&["has another block 0", &world.carrier.to_string(), "its data is lost"]);
}

#[test]
fn a_damaged_or_missing_carrier_is_named() {
    let world = World::new(&NONE);
    let path = world.path(&name::pack(world.carrier));
    let stored = fs::read(&path).unwrap();
    let mut flipped = stored.clone();
    flipped[1000] ^= 1;
    fs::write(&path, &flipped).unwrap();
    world.check(&[]).ok();
    says(&world.check(&["--read-data"]).code(1), &[&world.carrier.to_string(), "the block at 0 is not the one"]);
    fs::remove_file(&path).unwrap();
    world.finds(&[&world.carrier.to_string(), "it is missing", "its data is lost"]);
}

#[test]
fn a_block_is_named_once_with_all_files_that_need_it() {
    let site = Site::new();
    site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    for name in ["a", "b", "folder/c"] {
        site.write(name, noise("same", 300 << 10));
    }
    site.write("other", noise("other", 300 << 10));
    age(&site.source());
    settle();
    site.backup(&["--chunk-size", "1MiB", "--merge-files-under", "128KiB"]).ok();
    let largest = |a: &Path| fs::metadata(a).unwrap().len();
    let pack = objects(&site, "packs/").into_iter().map(|name| site.repo().join(name)).max_by_key(|path| largest(path));
    let pack = pack.unwrap();
    let mut stored = fs::read(&pack).unwrap();
    stored[1000] ^= 1;
    fs::write(&pack, &stored).unwrap();
    site.brackfs(&["check"]).ok();
    let run = site.brackfs(&["check", "-v", "--read-data"]).code(1);
    says(
        &run,
        &[
            "/a: ",
            "/b: ",
            "/folder/c: ",
            "the block at 0 is not the one that was stored: the digest of its chunk at 0 differs",
        ],
    );
    assert!(!run.stderr.contains("/other"), "{run}");
    assert_eq!(run.stderr.matches("packs/").count(), 1, "{run}");
}

/// A repository with one snapshot, of a file with two chunks in packs of their own. Returns these, and the pack of the tree.
fn file_in_two_packs() -> (Site, Vec<PathBuf>, PathBuf) {
    let site = Site::new();
    site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    let packs = || objects(&site, "packs/").into_iter().map(|name| site.repo().join(name)).collect::<Vec<_>>();
    let options = ["--chunk-size", "2MiB", "--merge-files-under", "128KiB"];
    let parts = ["one", "two"].map(|part| noise(part, 1 << 20));
    for part in &parts {
        site.write("file", part);
        age(&site.source());
        settle();
        site.backup(&options).ok();
    }
    let before = packs();
    site.write("file", parts.concat());
    settle();
    site.backup(&options).ok();
    let tree: Vec<_> = packs().into_iter().filter(|pack| !before.contains(pack)).collect();
    site.brackfs(&["forget", "--keep-last", "1", "--force"]).ok();
    let is_large = |pack: &PathBuf| fs::metadata(pack).unwrap().len() >= 1 << 20;
    let data: Vec<_> = before.into_iter().filter(is_large).collect();
    assert_eq!((data.len(), tree.len()), (2, 1));
    let tree = tree.into_iter().next().unwrap();
    (site, data, tree)
}

/// What a check says about packs: the end of each line.
fn needs(site: &Site, packs: &[PathBuf], arguments: &[&str]) -> Vec<String> {
    let run = site.brackfs(&[&["check", "-v"], arguments].concat()).code(1);
    let about = |pack: &PathBuf| {
        let name = pack.strip_prefix(site.repo()).unwrap().to_str().unwrap();
        let line = run.stderr.lines().find(|line| line.contains(&format!("brackfs: {name}: ")));
        line.unwrap_or_else(|| panic!("nothing about {name}: {run}")).rsplit("; ").next().unwrap().to_owned()
    };
    packs.iter().map(about).collect()
}

#[test]
fn every_lost_pack_is_reported_with_all_that_needs_it() {
    let (site, data, tree) = file_in_two_packs();
    let content: Vec<_> = data.iter().map(|pack| fs::read(pack).unwrap()).collect();
    // Both are damaged.
    for (pack, content) in data.iter().zip(&content) {
        let mut flipped = content.clone();
        flipped[1000] ^= 1;
        fs::write(pack, flipped).unwrap();
    }
    assert_eq!(needs(&site, &data, &["--read-data"]), ["1 file in 1 snapshot cannot be read"; 2]);
    // One is missing, the other is damaged.
    fs::remove_file(&data[0]).unwrap();
    assert_eq!(needs(&site, &data, &["--read-data"]), ["1 file in 1 snapshot cannot be read"; 2]);
    // Both are missing.
    fs::remove_file(&data[1]).unwrap();
    for arguments in [&[][..], &["--read-data"]] {
        assert_eq!(needs(&site, &data, arguments), ["1 file in 1 snapshot cannot be read"; 2]);
    }
    // The files of a directory that is lost are not known.
    let stored = fs::read(&tree).unwrap();
    fs::remove_file(&tree).unwrap();
    for arguments in [&[][..], &["--read-data"]] {
        let all = [&data[..], std::slice::from_ref(&tree)].concat();
        let unknown = "what needs it is not known";
        assert_eq!(needs(&site, &all, arguments), [unknown, unknown, "1 directory in 1 snapshot cannot be read"]);
    }
    // Nor those of a snapshot that cannot be read.
    fs::write(&tree, stored).unwrap();
    fs::write(site.repo().join(objects(&site, "snapshots/").pop().unwrap()), "damaged").unwrap();
    assert_eq!(needs(&site, &data, &[]), ["what needs it is not known"; 2]);
}

#[test]
fn a_lost_newest_snapshot_is_noted_and_reported_after_the_next_run() {
    let site = Site::new();
    site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    site.write("file", "content");
    settle();
    site.backup(&[]).ok();
    let snapshot = objects(&site, "snapshots/").pop().unwrap();
    fs::rename(site.repo().join(&snapshot), site.path().join("away")).unwrap();
    says(&site.brackfs(&["check", "-v"]).ok(), &["index/", &format!("names {snapshot}, which is missing")]);
    site.backup(&["--source", "other"]).ok();
    says(&site.brackfs(&["check", "-v"]).code(1), &[&format!("{snapshot}: it is missing: index/")]);
    fs::rename(site.path().join("away"), site.repo().join(&snapshot)).unwrap();
    let run = site.brackfs(&["check"]).ok();
    assert!(!run.stderr.contains("missing"), "{run}");
}
