//! Repositories are read by a second program, `tests/by_hand/brackfs_by_hand.py`, and their documents are verified by
//! `brackfs_documents.py` next to it. Both were written from brackfs-format(5) alone and share no code with brackfs, so they
//! hold both to the page.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use brackfs::crypt::{Certificate, Opener, Sealer, SecretKey, Signer};
use brackfs::format::forgotten::Forgotten;
use brackfs::format::id::ObjectId;
use brackfs::format::moved::{Moved, MovedRange, RestoredChunk};
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::{Digest, PackId};
use brackfs::repository::{Access, Repository, Writer};
use common::machine::need;
use common::{AGED, Run, Site, noise, run, set_mode, settle, tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The key of a repository.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    /// gpg, with an RSA key that it made.
    Gpg,
    /// Nothing: it is not encrypted.
    None,
}

/// A site with a repository.
struct Shelf {
    site: Site,
    /// gpg's home; at first, the site's `keys/`.
    home: PathBuf,
    /// The fingerprint of the host key, as `init` prints it.
    signer: String,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        for home in [&self.site.keys(), &self.home] {
            let _ = Command::new("gpgconf").env("GNUPGHOME", home).args(["--kill", "all"]).status();
        }
    }
}

impl Shelf {
    fn new(key: Key) -> Shelf {
        let site = Site::new();
        let mut shelf = Shelf { home: site.keys(), site, signer: String::new() };
        shelf.signer = shelf.init("repo", key);
        shelf
    }

    /// Makes a repository, and returns the fingerprint of its host key.
    fn init(&self, name: &str, key: Key) -> String {
        let repo = self.site.path().join(name);
        let mut arguments: Vec<OsString> = vec!["init".into(), repo.into(), "--json".into()];
        match key {
            Key::None => arguments.push("--no-encryption".into()),
            Key::Gpg => arguments.extend(["--recipient".into(), self.key_of_gpg().into()]),
        }
        let said: serde_json::Value = serde_json::from_str(&self.site.brackfs(&arguments).ok().stdout).unwrap();
        said["host_key"].as_str().expect("the fingerprint of the host key").to_owned()
    }

    /// Generates a key with gpg, and returns its certificate.
    fn key_of_gpg(&self) -> PathBuf {
        let [description, certificate] = ["description", "owner.asc"].map(|name| self.home.join(name));
        let key = "Key-Type: RSA\nKey-Length: 3072\nKey-Usage: sign";
        let subkey = "Subkey-Type: RSA\nSubkey-Length: 3072\nSubkey-Usage: encrypt";
        let words = format!("%no-protection\n{key}\n{subkey}\nName-Real: owner\nExpire-Date: 0\n%commit\n");
        fs::write(&description, words).unwrap();
        let gpg = |arguments: &[&OsStr]| {
            let mut gpg = Command::new("gpg");
            gpg.env("GNUPGHOME", &self.home).args(["--batch", "--quiet", "--no-tty"]).args(arguments);
            run(gpg).ok()
        };
        gpg(&["--gen-key".as_ref(), description.as_ref()]);
        gpg(&["--output".as_ref(), certificate.as_ref(), "--armor".as_ref(), "--export".as_ref(), "owner".as_ref()]);
        certificate
    }

    /// Exports the secret key of gpg.
    fn secret_key_of_gpg(&self) -> PathBuf {
        let secret = self.home.join("secret.asc");
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", &self.home).args(["--batch", "--quiet", "--armor", "--output"]);
        gpg.arg(&secret).arg("--export-secret-keys");
        run(gpg).ok();
        secret
    }

    /// Runs the second program, which trusts this host key.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    fn by_hand_as(&self, signer: &str, arguments: &[&OsStr]) -> Run {
        self.python("brackfs_by_hand.py", signer, arguments)
    }

    /// Verifies the documents.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    fn documents(&self) -> Run {
        self.python("brackfs_documents.py", &self.signer, &["repo".as_ref()])
    }

    fn python(&self, program: &str, signer: &str, arguments: &[&OsStr]) -> Run {
        // Only Debian's own python3 finds Debian's cbor2; another one may come first in PATH.
        let mut python = Command::new("/usr/bin/python3");
        // -B: do not write bytecode next to the program.
        python.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/by_hand").join(program));
        python.args(["--signer", signer]).args(arguments);
        python.current_dir(self.site.path()).env("GNUPGHOME", &self.home);
        run(python)
    }

    #[must_use = "it may have failed: say .ok() or .code(n)"]
    fn list(&self) -> Run {
        self.by_hand_as(&self.signer, &["list".as_ref(), "repo".as_ref(), "latest".as_ref()])
    }

    /// Restores the newest snapshot into a directory of this name.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    fn restore(&self, to: &str) -> Run {
        self.by_hand_as(&self.signer, &["restore".as_ref(), "repo".as_ref(), "latest".as_ref(), to.as_ref()])
    }

    /// The host key.
    fn host_key(&self) -> SecretKey {
        let mut folders = fs::read_dir(self.site.state()).unwrap().map(|entry| entry.unwrap().path().join("host.key"));
        SecretKey::parse(&fs::read(folders.find(|key| key.exists()).expect("a host key")).unwrap()).unwrap()
    }

    /// Writes documents that are signed with this key.
    fn write_as(&self, key: SecretKey, write: impl FnOnce(&Writer<'_>)) {
        let repository = Repository::open(&self.site.repo().as_path().into()).unwrap();
        let recipients = repository.keys().recipients().unwrap();
        let certificate = key.certificate();
        write(&Writer::new(&repository, Signer::new(key).unwrap(), &certificate, &recipients).unwrap());
    }

    fn write(&self, write: impl FnOnce(&Writer<'_>)) {
        self.write_as(self.host_key(), write);
    }

    /// Objects below a folder of the repository, by their names in it.
    fn objects(&self, folder: &str) -> Vec<String> {
        let paths = tree(&self.site.repo().join(folder)).into_keys().map(|path| Path::new(folder).join(path));
        let objects: Vec<_> = paths.filter(|path| self.site.repo().join(path).is_file()).collect();
        assert!(!objects.is_empty(), "nothing in {folder}/");
        objects.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }
}

/// A sparse file with 4 KiB of data every 64 KiB. It begins and ends with a hole.
fn write_islands(site: &Site, name: &str, islands: u64) {
    let path = site.write(name, b"");
    let file = File::options().write(true).open(&path).unwrap();
    let bytes = noise(name, (4 * KIB * islands) as usize);
    for (island, bytes) in (0..).zip(bytes.chunks(4 << 10)) {
        file.write_all_at(bytes, 32 * KIB + island * 64 * KIB).unwrap();
    }
    file.set_len(islands * 64 * KIB).unwrap();
}

/// A source that needs every part of the format: all kinds of entries, content and nodes, except deeply nested ones.
fn write_source(site: &Site) {
    let below = site.source();
    site.write("empty", "");
    site.write("small", "small");
    site.write("large", noise("large", (3 * MIB + 17) as usize));
    fs::create_dir(below.join("nothing")).unwrap();
    // 600 and 2,200 extents: more than an entry can have, and more than a node can.
    write_islands(site, "sparse/some", 300);
    write_islands(site, "sparse/many", 1_100);
    File::create(below.join("sparse/hole")).unwrap().set_len(5 * MIB).unwrap();
    // Enough names for several segments; most files are empty.
    for number in 0..2_600 {
        let content = if number % 20 == 0 { format!("content {number}") } else { String::new() };
        site.write(&format!("many/{number:04}"), content);
    }
    site.write("many/1300-below/deep/er/file", "in a directory between them");
    symlink("small", below.join("link")).unwrap();
    symlink("nowhere/at all", below.join("dangling")).unwrap();
    site.write("names/first", "of three");
    for name in ["names/second", "many/third"] {
        fs::hard_link(below.join("names/first"), below.join(name)).unwrap();
    }
    for name in [&b"not \xff UTF-8 \xc3"[..], b"line\nbreak", b"back\\slash", b"-rf *"] {
        fs::write(below.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let node = |name: &str, kind, device| {
        need(
            rustix::fs::mknodat(CWD, below.join(name), kind, Mode::from_raw_mode(0o640), device),
            "root, to make devices",
        );
    };
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    node("device", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    need(chown(below.join("small"), Some(1), Some(4_000_000_000)), "root, to change owners");
    for (name, mode) in [("small", 0o6755), ("empty", 0o400), ("sparse", 0o1711)] {
        fs::set_permissions(below.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let attribute = rustix::fs::setxattr(below.join("large"), "user.colour", b"green", XattrFlags::empty());
    need(attribute, "user attributes in the temporary directory");
    // Distinct times, some before 1970.
    for (number, path) in (0..).zip(tree(&below).keys()) {
        let seconds = if number % 7 == 0 { -number } else { AGED + number };
        let time = Timespec { tv_sec: seconds, tv_nsec: 999_999_999 - number };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, below.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    settle();
}

#[track_caller]
fn a_second_reader_restores_everything(key: Key) {
    let shelf = Shelf::new(key);
    let site = &shelf.site;
    write_source(site);
    site.backup(&[]).ok();
    let listed = shelf.list().ok();
    let expected = tree(&site.source());
    assert_eq!(listed.stdout.lines().count(), expected.len(), "{listed}");
    let restored = shelf.restore("out").ok();
    assert_eq!(restored.stderr, "", "{restored}");

    let out = site.path().join("out");
    let found = tree(&out);
    for (path, entry) in &expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(fs::metadata(out.join("names/first")).unwrap().nlink(), 3);
    for name in ["some", "many", "hole"] {
        let [source, restored] =
            [site.source(), out.clone()].map(|root| fs::metadata(root.join("sparse").join(name)).unwrap());
        assert!(source.blocks() * 512 < source.size() / 4, "{name}: this file system stores no holes");
        assert!(restored.blocks() * 512 < restored.size() / 4, "{name}: {} blocks", restored.blocks());
    }
}

#[test]
fn a_second_reader_restores_everything_with_gpg() {
    a_second_reader_restores_everything(Key::Gpg);
}

#[test]
fn a_second_reader_restores_everything_without_encryption() {
    a_second_reader_restores_everything(Key::None);
}

/// A shelf with a snapshot of a file of one chunk, in a directory.
fn with_snapshot(key: Key) -> Shelf {
    let shelf = Shelf::new(key);
    shelf.site.write("folder/noise", noise("noise", (60 * KIB) as usize));
    settle();
    shelf.site.backup(&[]).ok();
    shelf.restore("before").ok();
    shelf
}

#[test]
fn a_second_reader_restores_a_single_byte() {
    let shelf = Shelf::new(Key::None);
    shelf.site.write("byte", "x");
    settle();
    shelf.site.backup(&[]).ok();
    shelf.restore("out").ok();
    assert_eq!(tree(&shelf.site.path().join("out")), tree(&shelf.site.source()));
}

/// Asserts that a run failed and named the object.
#[track_caller]
fn refuses(run: Run, object: &str, why: &str) {
    let run = run.code(1);
    let said = run.stderr.lines().last().unwrap_or_default();
    assert!(said.starts_with("brackfs_by_hand: ") && said.contains(object) && run.stderr.contains(why), "{run}");
}

#[test]
fn a_second_reader_refuses_a_flipped_byte_in_a_pack() {
    for key in [Key::Gpg, Key::None] {
        let shelf = with_snapshot(key);
        for pack in shelf.objects("packs") {
            let path = shelf.site.repo().join(&pack);
            let whole = fs::read(&path).unwrap();
            // The last bytes of an unencrypted object are padding, which is not verified.
            let last = if key == Key::Gpg { whole.len() - 1 } else { 20 };
            for position in [0, 20, last] {
                let mut bytes = whole.clone();
                bytes[position] ^= 1;
                fs::write(&path, bytes).unwrap();
                let to = format!("flipped-{}-{position}", &pack[9..]);
                refuses(shelf.restore(&to), &pack, "");
                let _ = fs::remove_dir_all(shelf.site.path().join(to));
            }
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            refuses(shelf.restore(&format!("short-{}", &pack[9..])), &pack, "ends too early");
            fs::write(&path, whole).unwrap();
        }
        shelf.restore("after").ok();
    }
}

#[test]
fn a_second_reader_refuses_swapped_blocks() {
    let shelf = Shelf::new(Key::None);
    // Equal lengths, so that only the digest differs, and too short to be cut.
    shelf.site.write("file", noise("one", (60 * KIB) as usize));
    settle();
    shelf.site.backup(&[]).ok();
    let first = shelf.objects("packs");
    shelf.site.write("file", noise("two", (60 * KIB) as usize));
    settle();
    shelf.site.backup(&["--reread"]).ok();
    let is_large = |pack: &&String| fs::metadata(shelf.site.repo().join(pack)).unwrap().len() > 30 * KIB;
    let every = shelf.objects("packs");
    let [old, new] = [true, false].map(|old| every.iter().filter(is_large).find(|pack| first.contains(pack) == old));
    let [old, new] = [old.expect("a pack"), new.expect("another pack")];
    fs::copy(shelf.site.repo().join(old), shelf.site.repo().join(new)).unwrap();
    refuses(shelf.restore("out"), new, "not the chunk");
}

#[test]
fn a_second_reader_refuses_foreign_and_misplaced_snapshots() {
    for key in [Key::Gpg, Key::None] {
        let shelf = with_snapshot(key);
        let repo = shelf.site.repo();
        let [snapshot] = &shelf.objects("snapshots")[..] else { panic!("one snapshot") };

        // Another host key, with its certificate in keys/.
        let other = shelf.init("other", Key::None);
        let certificate = format!("keys/host-{other}.asc");
        fs::copy(shelf.site.path().join("other").join(&certificate), repo.join(&certificate)).unwrap();
        let arguments: [&OsStr; 3] = ["list".as_ref(), "repo".as_ref(), "latest".as_ref()];
        refuses(shelf.by_hand_as(&other, &arguments), snapshot, "");

        // Another name.
        let (folder, name) = snapshot.rsplit_once('/').unwrap();
        // 2126 for 2026.
        let moved = format!("{folder}/21{}", &name[2..]);
        fs::rename(repo.join(snapshot), repo.join(&moved)).unwrap();
        refuses(shelf.list(), &moved, "its writer named it");
        fs::rename(repo.join(&moved), repo.join(snapshot)).unwrap();

        // The right name in another repository.
        let descriptions = ["brackfs.toml", "brackfs-copy.toml"].map(|name| repo.join(name));
        let settings = fs::read_to_string(&descriptions[0]).unwrap();
        let theirs = fs::read_to_string(shelf.site.path().join("other/brackfs.toml")).unwrap();
        let id = |settings: &str| settings.lines().find(|line| line.starts_with("id = ")).expect("an id").to_owned();
        let moved = settings.replace(&id(&settings), &id(&theirs));
        for description in &descriptions {
            fs::write(description, &moved).unwrap();
            refuses(shelf.list(), "brackfs.toml", "brackfs-copy.toml differs");
            fs::write(description, &settings).unwrap();
        }
        descriptions.iter().for_each(|description| fs::write(description, &moved).unwrap());
        refuses(shelf.list(), snapshot, "another repository");

        // Each is a copy of the other.
        for description in &descriptions {
            fs::write(description, "damaged").unwrap();
            let other = descriptions.iter().find(|other| *other != description).unwrap();
            fs::write(other, &settings).unwrap();
            shelf.list().ok();
        }
        descriptions.iter().for_each(|description| fs::write(description, &settings).unwrap());
        shelf.list().ok();
    }
}

/// A shelf whose packs were replaced with one carrier, and the shards that say where their blocks are, by prefix. The
/// packs are in `old/` of the site.
fn compacted(key: Key) -> (Shelf, BTreeMap<u8, Moved>) {
    let shelf = with_snapshot(key);
    let repo = shelf.site.repo();
    let carrier = PackId::random();
    let mut carried = Vec::new();
    let mut shards = BTreeMap::new();
    let mut packs: Vec<_> = shelf.objects("packs").iter().map(|pack| name::parse_pack(pack).unwrap()).collect();
    packs.sort();
    assert!(packs.len() > 1, "content and nodes are in packs of their own");
    fs::create_dir(shelf.site.path().join("old")).unwrap();
    for pack in packs {
        let path = repo.join(name::pack(pack));
        let bytes = fs::read(&path).unwrap();
        let range = MovedRange { from: 0, length: bytes.len() as u64, carrier: 0, to: carried.len() as u64 };
        let shard = shards.entry(pack.as_bytes()[0]).or_insert_with(|| Moved {
            generation: 2,
            carriers: vec![carrier],
            ..Moved::default()
        });
        shard.ranges.push((pack, vec![range]));
        carried.extend(bytes);
        fs::rename(path, shelf.site.path().join("old").join(pack.to_string())).unwrap();
    }
    let path = repo.join(name::pack(carrier));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, carried).unwrap();
    (shelf, shards)
}

fn put_shards(writer: &Writer<'_>, shards: &BTreeMap<u8, Moved>) {
    shards.iter().for_each(|(prefix, shard)| writer.put_moved(*prefix, ObjectId::random(), shard).unwrap());
}

#[track_caller]
fn assert_restored(shelf: &Shelf, to: &str) -> Run {
    let run = shelf.restore(to).ok();
    assert_eq!(tree(&shelf.site.path().join(to)), tree(&shelf.site.path().join("before")));
    run
}

#[test]
fn a_second_reader_finds_moved_blocks() {
    for key in [Key::Gpg, Key::None] {
        let (shelf, shards) = compacted(key);
        refuses(shelf.restore("gone"), "packs/", "No such file");
        shelf.write(|writer| put_shards(writer, &shards));
        assert_restored(&shelf, "moved");

        // Only the newest shard of a prefix counts, and only if its signer is known.
        let mut other = shards.clone();
        other.values_mut().for_each(|shard| (shard.generation, shard.carriers) = (1, vec![PackId::random()]));
        shelf.write(|writer| put_shards(writer, &other));
        assert_restored(&shelf, "older");
        other.values_mut().for_each(|shard| shard.generation = 3);
        shelf.write_as(SecretKey::generate_host(&[]).unwrap(), |writer| put_shards(writer, &other));
        assert!(assert_restored(&shelf, "foreign").stderr.contains("ignored: moved/"));
        shelf.write(|writer| put_shards(writer, &other));
        refuses(shelf.restore("newer"), "packs/", "No such file");
    }
}

#[test]
fn a_second_reader_finds_moved_blocks_of_a_damaged_pack() {
    let (shelf, shards) = compacted(Key::None);
    shelf.write(|writer| put_shards(writer, &shards));
    for entry in fs::read_dir(shelf.site.path().join("old")).unwrap() {
        let entry = entry.unwrap();
        let pack: PackId = entry.file_name().to_str().unwrap().parse().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        bytes[0] ^= 1;
        fs::write(shelf.site.repo().join(name::pack(pack)), bytes).unwrap();
    }
    assert_restored(&shelf, "out");
}

#[test]
fn a_second_reader_finds_chunks_that_were_stored_again() {
    let (shelf, mut shards) = compacted(Key::None);
    let digest = Digest::of(&noise("noise", (60 * KIB) as usize));
    // The pack of content is the one with more bytes.
    let length = |moved: &(PackId, Vec<MovedRange>)| moved.1[0].length;
    let (birth, ranges) =
        shards.values().flat_map(|shard| &shard.ranges).max_by_key(|moved| length(moved)).unwrap().clone();
    let MovedRange { length, to, .. } = ranges[0];
    let shard = shards.get_mut(&birth.as_bytes()[0]).unwrap();
    shard.ranges.retain(|(pack, _)| *pack != birth);
    let chunk = RestoredChunk { digest, carrier: 0, offset: to, stored: length as u32, start: 0 };
    shard.restored.push((birth, vec![chunk]));
    shelf.write(|writer| put_shards(writer, &shards));
    assert_restored(&shelf, "out");
}

#[test]
fn a_second_reader_uses_session_keys_that_were_sealed_again() {
    let mut shelf = with_snapshot(Key::Gpg);
    let owner = SecretKey::parse(&fs::read(shelf.secret_key_of_gpg()).unwrap()).unwrap();
    shelf.home = shelf.site.path().join("home");
    fs::create_dir(&shelf.home).unwrap();
    set_mode(&shelf.home, 0o700);
    let later = Certificate::parse(&fs::read(shelf.key_of_gpg()).unwrap()).unwrap();
    refuses(shelf.restore("too-late"), "snapshots/", "gpg fails");

    let [index] = &shelf.objects("index")[..] else { panic!("one index") };
    let repository = Repository::open(&shelf.site.repo().as_path().into()).unwrap();
    let host = shelf.host_key();
    let certificates = vec![host.certificate()];
    let access = Access::new(Some(Opener::new(host).unwrap()), certificates);
    let index = access.index(&repository, name::parse_index(index).unwrap()).unwrap();
    let table = Opener::new(owner).unwrap().rewrap(&index.session_keys, &later).unwrap();
    let put = |sealed: &[u8]| {
        let path = shelf.site.repo().join(name::rewrapped(&later.fingerprint().to_string(), ObjectId::random()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, sealed).unwrap();
    };
    // Anyone can add false session keys, and other objects.
    let Digest(digest) = Digest::of(&index.session_keys[0]);
    let mut false_table = Vec::new();
    let content = [b"brackfs session keys 1\n", &digest[..], &[7; 32]].concat();
    Sealer::new(std::slice::from_ref(&later)).unwrap().seal(&content, &mut false_table).unwrap();
    put(&false_table);
    put(b"not a table");
    refuses(shelf.restore("false"), "snapshots/", "gpg fails");
    put(&table.sealed);
    assert_restored(&shelf, "later");
}

#[test]
fn a_second_reader_hides_forgotten_snapshots() {
    for key in [Key::Gpg, Key::None] {
        let shelf = with_snapshot(key);
        let [snapshot] = &shelf.objects("snapshots")[..] else { panic!("one snapshot") };
        let snapshots = vec![SnapshotName::parse(snapshot).unwrap()];
        let forgotten = Forgotten { generation: 2, snapshots, ..Forgotten::default() };
        shelf.write_as(SecretKey::generate_host(&[]).unwrap(), |writer| {
            writer.put_forgotten(ObjectId::random(), &forgotten).unwrap();
        });
        assert!(shelf.list().ok().stderr.contains("ignored: forgotten/"));
        shelf.write(|writer| writer.put_forgotten(ObjectId::random(), &forgotten).unwrap());
        refuses(shelf.list(), "snapshots", "0 snapshots");
        let shown: [&OsStr; 4] = ["--forgotten".as_ref(), "list".as_ref(), "repo".as_ref(), "latest".as_ref()];
        shelf.by_hand_as(&shelf.signer, &shown).ok();
        // Earlier documents do not count from then on, even if none replaces them.
        let undone = Forgotten { generation: 3, ..Forgotten::default() };
        shelf.write(|writer| writer.put_forgotten(ObjectId::random(), &undone).unwrap());
        shelf.list().ok();
    }
}

#[test]
fn a_second_program_verifies_documents_and_the_census() {
    for key in [Key::Gpg, Key::None] {
        let shelf = with_snapshot(key);
        let repo = shelf.site.repo();
        let [first] = &shelf.objects("index")[..] else { panic!("one index") };
        let [snapshot] = &shelf.objects("snapshots")[..] else { panic!("one snapshot") };
        shelf.site.write("more", "more");
        settle();
        shelf.site.backup(&[]).ok();
        let told = shelf.documents().ok().stdout;
        for folder in ["index", "generation", "secrets", "sources"] {
            shelf.objects(folder).iter().for_each(|object| assert!(told.contains(object), "{object}: {told}"));
        }
        for object in [first, snapshot] {
            let away = shelf.site.path().join("away");
            fs::rename(repo.join(object), &away).unwrap();
            let run = shelf.documents().code(1);
            let folder = object.split('/').next().unwrap();
            assert!(run.stderr.contains(&format!("{folder}: the names are not the 1 of the census")), "{run}");
            if object == snapshot {
                // A tombstone accounts for it.
                let snapshots = vec![SnapshotName::parse(snapshot).unwrap()];
                let forgotten = Forgotten { generation: 99, snapshots, ..Forgotten::default() };
                shelf.write(|writer| writer.put_forgotten(ObjectId::random(), &forgotten).unwrap());
                shelf.documents().ok();
            }
            fs::rename(&away, repo.join(object)).unwrap();
        }
        for pack in shelf.objects("packs") {
            let whole = fs::read(repo.join(&pack)).unwrap();
            let mut bytes = whole.clone();
            bytes[whole.len() / 2] ^= 1;
            fs::write(repo.join(&pack), bytes).unwrap();
            let run = shelf.documents().code(1);
            assert!(run.stderr.contains(&format!("{pack} has another digest")), "{run}");
            fs::write(repo.join(&pack), whole).unwrap();
        }
    }
}

/// The commands of a README: its indented lines between two texts.
#[track_caller]
fn commands(readme: &str, from: &str, to: &str) -> String {
    let (_, rest) = readme.split_once(from).unwrap_or_else(|| panic!("no {from:?} in {readme}"));
    let (part, _) = rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} in {readme}"));
    part.lines().filter(|line| line.starts_with("    ")).map(|line| format!("{line}\n")).collect()
}

/// Pastes commands into a shell in the repository.
#[track_caller]
fn paste(shelf: &Shelf, commands: &str) -> Run {
    let mut shell = Command::new("bash");
    shell.args(["-e", "-o", "pipefail", "-c", commands]).current_dir(shelf.site.repo());
    // Debian's Python has Debian's cbor2.
    shell.env("GNUPGHOME", shelf.site.keys()).env("PATH", "/usr/bin:/bin:/usr/local/bin");
    run(shell).ok()
}

/// The lines that `list` prints below the entry of this name: the first word, and the rest.
fn lines_below<'l>(listed: &'l str, name: &str) -> Vec<(&'l str, &'l str)> {
    let below = listed.lines().skip_while(|line| !line.ends_with(&format!("b'{name}'"))).skip(1);
    let lines = below.take_while(|line| line.starts_with("  "));
    lines.map(|line| line.trim_start().split_once(' ').unwrap()).collect()
}

/// The numbers and the digest in a line of `list`: the first one of a node, below the entry of this name.
#[track_caller]
fn node_below<'l>(listed: &'l str, name: &str) -> (&'l str, &'l str) {
    let line = lines_below(listed, name).into_iter().find(|(word, _)| *word == "node");
    line.unwrap_or_else(|| panic!("no node of {name} in:\n{listed}")).1.rsplit_once(' ').unwrap()
}

#[track_caller]
fn the_commands_of_the_readme_restore_a_file(key: Key) {
    let shelf = Shelf::new(key);
    let site = &shelf.site;
    let content = noise("content", (60 * KIB) as usize);
    site.write("folder/file", &content);
    site.write("folder/small", "small");
    let several = [noise("first", 2 << 20), vec![0; 1 << 20], noise("last", 60 << 10)].concat();
    let path = site.write("folder/several", &several[..2 << 20]);
    let sparse = File::options().write(true).open(path).unwrap();
    sparse.write_all_at(&several[3 << 20..], 3 * MIB).unwrap();
    settle();
    site.backup(&[]).ok();
    let mut readme = fs::read_to_string(site.repo().join("README.txt")).unwrap();
    assert!(readme.contains(&shelf.signer), "the host key is not named: {readme}");
    if key == Key::Gpg {
        readme = readme.replace("YOUR-SECRET-KEY", shelf.secret_key_of_gpg().to_str().unwrap());
    }
    let end = if key == Key::Gpg { "With sq 1.0" } else { "\n1. " };
    let functions = commands(&readme, "\n0. ", end) + &commands(&readme, "\n1. ", "\n2. ");
    let step = |from: &str, to: &str, words: &[(&str, &str)]| {
        let mut step = commands(&readme, from, to);
        words.iter().for_each(|(word, value)| step = step.replace(word, value));
        paste(&shelf, &format!("{functions}{step}")).stdout
    };

    let about = step("\n2. ", "\n3. ", &[]);
    let [snapshot] = &shelf.objects("snapshots")[..] else { panic!("one snapshot") };
    let source = site.source();
    assert!(about.contains(&format!("{snapshot} source source paths [b'{}']", source.display())), "{about}");
    let root = step("\n3. ", "\n4. ", &[("SNAPSHOT", snapshot)]);
    let place = "PACK OFFSET STORED START LENGTH";
    let (numbers, _) = node_below(&root, "");
    let top = step("\n4. ", "\n5. ", &[(place, numbers)]);
    let (numbers, digest) = node_below(&top, "folder");
    let folder = step("\n4. ", "\n5. ", &[(place, numbers)]);
    assert!(folder.contains(digest), "b3sum prints another digest than {digest}: {folder}");
    let hole = "truncate -s +BYTES file";
    assert!(readme.contains(hole), "{readme}");
    for (name, content) in [("file", &content[..]), ("small", b"small"), ("several", &several)] {
        for (word, rest) in lines_below(&folder, name) {
            if word == "hole" {
                paste(&shelf, &hole.replace("BYTES", rest));
                continue;
            }
            let (numbers, digest) = rest.rsplit_once(' ').unwrap();
            let sum = step("\n5. ", "\n6. ", &[(place, numbers)]);
            assert!(word == "chunk" && sum.contains(digest), "{word} {rest}: {sum}");
        }
        assert!(fs::read(site.repo().join("file")).unwrap() == content, "{name}");
        fs::remove_file(site.repo().join("file")).unwrap();
    }
    let words: Vec<_> = lines_below(&folder, "several").into_iter().map(|(word, _)| word).collect();
    assert!(words.len() > 3 && words.contains(&"hole"), "not several chunks and a hole: {words:?}");
    for left in ["part", "block", "root.node", "some.node"] {
        fs::remove_file(site.repo().join(left)).unwrap();
    }
    let (_, sums) = readme.split_once("To check whether the disk returns all packs unchanged:\n").unwrap();
    let checked = paste(&shelf, sums).stdout;
    assert_eq!(
        checked.lines().filter(|line| line.ends_with(": OK")).count(),
        shelf.objects("packs").len(),
        "{checked}"
    );
}

#[test]
fn the_commands_of_the_readme_restore_a_file_with_gpg() {
    the_commands_of_the_readme_restore_a_file(Key::Gpg);
}

#[test]
fn the_commands_of_the_readme_restore_a_file_without_encryption() {
    the_commands_of_the_readme_restore_a_file(Key::None);
}

#[test]
fn the_commands_of_the_readme_find_a_moved_block() {
    let (shelf, shards) = compacted(Key::None);
    let snapshot = &shelf.objects("snapshots")[0];
    shelf.write(|writer| put_shards(writer, &shards));
    let readme = fs::read_to_string(shelf.site.repo().join("README.txt")).unwrap();
    let functions = commands(&readme, "\n0. ", "\n1. ") + &commands(&readme, "\n1. ", "\n2. ");
    let root = commands(&readme, "\n3. ", "\n4. ").replace("SNAPSHOT", snapshot);
    let root = paste(&shelf, &format!("{functions}{root}")).stdout;
    let (numbers, digest) = node_below(&root, "");
    let [pack, rest @ ..] = &numbers.split(' ').collect::<Vec<_>>()[..] else { panic!("no pack in {numbers}") };
    let [offset, stored, start, length] = rest else { panic!("other numbers: {numbers}") };

    let shards = commands(&readme, "\n6. ", "\nTo check").replace("moved/ab", &format!("moved/{}", &pack[..2]));
    let moved = paste(&shelf, &format!("{functions}{shards}")).stdout;
    let line = moved.lines().find_map(|line| line.strip_prefix(pack)).unwrap_or_else(|| panic!("no {pack} in {moved}"));
    let [from, _, carrier, to] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("other: {line}") };
    let number = |text: &str| text.parse::<u64>().unwrap();
    let offset = number(to) + number(offset) - number(from);
    let fetch = format!("{functions}fetch {carrier} {offset} {stored} {start} {length} | b3sum\n");
    assert!(paste(&shelf, &fetch).stdout.contains(digest), "{moved}");
}

#[test]
fn the_readme_names_the_standard_and_the_keys_of_the_repository() {
    let site = Site::new();
    let readme = |name: &str| fs::read_to_string(site.path().join(name).join("README.txt")).unwrap();
    for profile in ["rfc9580", "rfc4880"] {
        let key = site.key_named(profile, profile).with_extension("pub");
        let repo = site.path().join(profile).display().to_string();
        site.brackfs(&["init", &repo, "--recipient", key.to_str().unwrap()]).ok();
    }
    let (newer, older) = (readme("rfc9580"), readme("rfc4880"));
    assert!(newer.contains("(RFC 9580). GnuPG does not support it") && newer.contains("sq decrypt --recipient-file"));
    assert!(older.contains("(RFC 4880). GnuPG 2 and Sequoia") && older.contains("gpg --decrypt"));
    let mut command = site.command(&["init".into(), site.path().join("kept")]);
    command.env("BRACKFS_PASSPHRASE", "secret");
    run(command).ok();
    let kept = readme("kept");
    let owner = fs::read_dir(site.path().join("kept/keys")).unwrap().map(|entry| entry.unwrap().file_name());
    let owner = owner.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with("owner-")).unwrap();
    assert!(kept.contains(&format!("KEY=keys/{owner}")) && kept.contains("Argon2"), "{kept}");
    for repo in ["rfc9580", "rfc4880", "kept"] {
        assert!(!readme(repo).contains("HOSTKEY") && !readme(repo).contains("OPTION"), "{repo}");
        let format = fs::read_to_string(site.path().join(repo).join("FORMAT.txt")).unwrap();
        assert!(format.contains("SIGNED DOCUMENTS") && format.contains("Padmé"), "not the page");
    }
}
