//! Every byte of a repository is changed, cut off or extended: a reader returns correct bytes or an error that names
//! the object. It never returns wrong bytes, panics, hangs, or allocates memory without bounds.
//!
//! The tests call the library in this process, so a whole read takes a few milliseconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use brackfs::archive::{Archive, TreeWalk, WalkStep};
use brackfs::check::check;
use brackfs::crypt::{Fingerprint, Opener, SecretKey};
use brackfs::format::Kind;
use brackfs::format::name::SnapshotName;
use brackfs::monitor::Monitor;
use brackfs::reader::Reader;
use brackfs::repository::{Access, Repository};
use common::wait::LIMIT;
use common::{Site, age, noise, settle, tree};
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::{Packet, PacketPile};
use tempfile::TempDir;

/// Limit for the growth of peak memory over all cases: a few times the caches of a reader.
const GROWTH: u64 = 128 << 20;
/// Bytes of a reader's caches.
const CACHE: usize = 1 << 20;

/// A repository with two snapshots, in memory, and how to read it.
struct Original {
    objects: BTreeMap<String, Vec<u8>>,
    key: Option<Vec<u8>>,
    signer: Fingerprint,
    /// The entries of each snapshot, by its id.
    content: BTreeMap<String, BTreeMap<String, Shown>>,
}

/// An entry as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    File(Vec<u8>),
    Other(Kind, Vec<u8>),
}

/// The result of reading everything: entries by snapshot and path, and error messages.
#[derive(Debug, Default)]
struct Seen {
    content: BTreeMap<String, BTreeMap<String, Shown>>,
    errors: Vec<String>,
}

/// How an object is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A reader of files needs it.
    Needed,
    /// A description of the repository. A reader needs one of the two.
    Description,
    /// Only writers or people need it; check looks at it.
    Checked,
    /// For people, or without meaning. No program reads it.
    Unread,
}

fn role(object: &str) -> Role {
    match object.split('/').next().unwrap_or_default() {
        "packs" | "snapshots" => Role::Needed,
        // Signatures are verified with the certificate of the host; those of recipients are for people.
        "keys" if object.contains("/host-") => Role::Needed,
        "brackfs.toml" | "brackfs-copy.toml" => Role::Description,
        "README.txt" | "FORMAT.txt" | "reserve" => Role::Unread,
        _ => Role::Checked,
    }
}

impl Original {
    fn new(profile: Option<&str>) -> Original {
        let site = Site::with_files(&[
            ("large", noise("large", 1100)),
            ("folder/one", b"one".repeat(40)),
            ("folder/two", b"two".repeat(50)),
            ("empty", Vec::new()),
        ]);
        std::os::unix::fs::symlink("folder/one", site.source().join("link")).unwrap();
        match profile {
            Some(profile) => {
                site.key(profile);
                site.init();
            }
            None => _ = site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok(),
        }
        site.backup(&[]).ok();
        site.write("folder/three", noise("three", 300));
        age(&site.source());
        settle();
        site.backup(&[]).ok();

        let paths = tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file());
        let objects = paths.map(|path| (path.to_str().unwrap().to_owned(), fs::read(site.repo().join(path)).unwrap()));
        let objects: BTreeMap<_, _> = objects.collect();
        let read = objects.iter().filter(|(name, _)| role(name) != Role::Unread);
        let size: usize = read.map(|(_, bytes)| bytes.len()).sum();
        assert!(size < 30 << 10, "programs read {size} bytes of the repository, and every one costs time");
        for folder in ["packs/", "sums/", "index/", "sources/", "snapshots/", "secrets/", "generation/", "keys/"] {
            assert!(objects.keys().any(|name| name.starts_with(folder)), "{folder} is empty");
        }
        assert_eq!(objects.keys().filter(|name| name.starts_with("packs/")).count(), 4);
        let host = objects.keys().find_map(|name| name.strip_prefix("keys/host-")?.strip_suffix(".asc"));
        let mut original = Original {
            signer: host.expect("a host key").parse().unwrap(),
            key: profile.map(|_| fs::read(site.keys().join("owner")).unwrap()),
            content: BTreeMap::new(),
            objects,
        };
        let copy = Copy::new(&original);
        let seen = copy.read();
        assert_eq!((seen.errors, seen.content.len()), (vec![], 2));
        assert_eq!(copy.check(), [""; 0]);
        let files = seen.content.values().map(|entries| entries.len()).collect::<BTreeSet<_>>();
        assert_eq!(files, [6, 7].into(), "{:?}", seen.content);
        original.content = seen.content;
        original
    }

    /// Names of the objects with this role.
    fn named(&self, wanted: Role) -> impl Iterator<Item = &String> {
        self.objects.keys().filter(move |name| role(name) == wanted)
    }
}

/// The objects in a directory of their own, to be damaged.
struct Copy<'o> {
    original: &'o Original,
    folder: TempDir,
    key: Option<SecretKey>,
}

impl<'o> Copy<'o> {
    fn new(original: &'o Original) -> Copy<'o> {
        let folder = TempDir::with_prefix("brackfs-flip-").unwrap();
        for (name, bytes) in &original.objects {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let key = original.key.as_ref().map(|bytes| SecretKey::parse(bytes).unwrap());
        Copy { original, folder, key }
    }

    fn path(&self, object: &str) -> PathBuf {
        self.folder.path().join(object)
    }

    fn write(&self, object: &str, bytes: &[u8]) {
        fs::write(self.path(object), bytes).unwrap();
    }

    fn repair(&self, object: &str) {
        self.write(object, &self.original.objects[object]);
    }

    fn reader(&self) -> Result<Reader, String> {
        let repository = Repository::open(&self.folder.path().into()).map_err(|e| e.to_string())?;
        let opener = match repository.encrypted() {
            true => self.key.clone().map(|key| Opener::new(key).unwrap()),
            false => None,
        };
        let host = repository.keys().host(&self.original.signer).map_err(|e| e.to_string())?;
        Ok(Reader::new(repository, Access::new(opener, vec![host]), CACHE))
    }

    /// Reads everything.
    fn read(&self) -> Seen {
        let mut seen = Seen::default();
        match self.reader() {
            Ok(reader) => match reader.snapshots() {
                Ok(names) => names.iter().for_each(|name| seen.snapshot(&reader, name)),
                Err(error) => seen.errors.push(error.to_string()),
            },
            Err(error) => seen.errors.push(error),
        }
        seen
    }

    /// The findings of a check of all data. An error that ends it is a finding, too.
    fn check(&self) -> Vec<String> {
        let problems = Problems::default();
        let failed = match self.reader() {
            Ok(reader) => check(&reader, true, &problems, &AtomicBool::new(false)).err().map(|e| e.to_string()),
            Err(error) => Some(error),
        };
        let mut found = problems.0.into_inner().unwrap();
        found.extend(failed);
        found
    }

    /// Reads with damaged objects: each result is correct, or an error that names one of the objects.
    fn read_damaged(&self, objects: &[&str], case: &dyn Fn() -> String) -> Seen {
        let start = Instant::now();
        let seen = self.read();
        assert!(start.elapsed() < LIMIT, "{}: it took {:?}", case(), start.elapsed());
        for (snapshot, entries) in &seen.content {
            let right = self.original.content.get(snapshot);
            let right = right.unwrap_or_else(|| panic!("{}: snapshot {snapshot} came from nowhere", case()));
            for (path, shown) in entries {
                assert_eq!(Some(shown), right.get(path), "{}: {path} of {snapshot} is wrong", case());
            }
        }
        if seen.errors.is_empty() {
            assert_eq!(seen.content, self.original.content, "{}: something is missing without an error", case());
        }
        for error in &seen.errors {
            let named = objects.iter().any(|object| names(error, object));
            assert!(named, "{}: the error names another object or none: {error}", case());
        }
        seen
    }
}

/// Whether an error names an object. Packs are named by id.
fn names(error: &str, object: &str) -> bool {
    let leaf = object.rsplit('/').next().unwrap();
    let host = object.strip_prefix("keys/host-").and_then(|name| name.strip_suffix(".asc"));
    // A damaged certificate may still have its key; then the error names the key.
    error.contains(leaf) || host.is_some_and(|fingerprint| error.contains(fingerprint))
}

impl Seen {
    fn snapshot(&mut self, reader: &Reader, name: &SnapshotName) {
        let root = match reader.open(name) {
            Ok(snapshot) => snapshot.root.clone(),
            Err(error) => return self.errors.push(error.to_string()),
        };
        let entries = self.content.entry(name.id.to_string()).or_default();
        let mut walk = TreeWalk::new(reader, root.directory().unwrap());
        let mut path = PathBuf::new();
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Entry(listed) => {
                    let entry = listed.entry();
                    path.push(str::from_utf8(entry.name).unwrap());
                    let key = path.to_str().unwrap().to_owned();
                    match (entry.kind, listed.directory()) {
                        (_, Some(below)) => {
                            entries.insert(key, Shown::Other(Kind::Directory, Vec::new()));
                            walk.enter(below);
                            continue;
                        }
                        (Kind::File, _) => {
                            let file = reader.content(&listed).unwrap();
                            match file.read(0, file.size() as usize, <[u8]>::to_vec) {
                                Ok(bytes) => _ = entries.insert(key, Shown::File(bytes)),
                                Err(error) => self.errors.push(error.to_string()),
                            }
                        }
                        (kind, _) => {
                            _ = entries.insert(
                                key,
                                Shown::Other(kind, format!("{:?} {:?}", entry.target, entry.device).into()),
                            )
                        }
                    }
                    path.pop();
                }
                WalkStep::Failed(error) => self.errors.push(error.to_string()),
                WalkStep::Leave => _ = path.pop(),
            }
        }
    }
}

/// Collects the findings of a check.
#[derive(Default)]
struct Problems(Mutex<Vec<String>>);

impl Monitor for Problems {
    fn problem(&self, path: &Path, why: &str) {
        self.0.lock().unwrap().push(format!("{}: {why}", path.display()));
    }
    fn note(&self, _message: &str) {}
    fn entry(&self, _path: &Path, _what: &str) {}
}

/// Damage to the bytes of an object.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flipped(usize, u8),
    CutTo(usize),
    Longer(usize),
}

impl Damage {
    /// All damage to try on an object: each byte changed by each of `patterns`, each length, and a few extra bytes.
    fn all(length: usize, patterns: &[u8]) -> Vec<Damage> {
        let flips = patterns.iter().flat_map(|&bits| (0..length).map(move |at| Damage::Flipped(at, bits)));
        flips.chain((0..length).map(Damage::CutTo)).chain([1, 7, 4096].map(Damage::Longer)).collect()
    }

    fn of(self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self {
            Damage::Flipped(at, bits) => bytes[at] ^= bits,
            Damage::CutTo(length) => bytes.truncate(length),
            Damage::Longer(by) => bytes.extend(noise("longer", by)),
        }
        bytes
    }
}

/// Runs `case` for each item, each worker on its own copy. Prints the number of cases and the time.
fn run_all<T: Sync>(what: &str, original: &Original, cases: &[T], case: impl Fn(&Copy<'_>, &T) + Sync) {
    let (start, next) = (Instant::now(), AtomicUsize::new(0));
    let before = peak();
    thread::scope(|threads| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            threads.spawn(|| {
                let copy = Copy::new(original);
                while let Some(one) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    case(&copy, one);
                }
            });
        }
    });
    // The kernel counts pages in batches, so the peak can seem to shrink a little.
    let grown = peak().saturating_sub(before);
    println!("{what}: {} cases in {:.1?}, peak memory grew by {} KiB", cases.len(), start.elapsed(), grown >> 10);
    assert!(grown < GROWTH, "peak memory grew by {grown} bytes");
}

/// Peak memory of this process, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The range of the first two bytes of the digest in a message that is signed and not encrypted. They are only a hint
/// for verifiers: the signature is over the whole digest.
fn hint(message: &[u8]) -> Range<usize> {
    let packets = PacketPile::from_bytes(message).unwrap();
    let Some(Packet::Signature(signature)) = packets.children().last() else { panic!("it is not signed") };
    let end = message.len() - signature.mpis().serialized_len();
    assert_eq!(message[end - 2..end], *signature.digest_prefix());
    end - 2..end
}

/// Damages every object that a reader needs.
fn needed(profile: Option<&str>, patterns: &[u8]) {
    let original = Original::new(profile);
    let mut cases = Vec::new();
    for object in original.named(Role::Needed) {
        let damages = Damage::all(original.objects[object].len(), patterns);
        cases.extend(damages.into_iter().map(|damage| (object.as_str(), damage)));
    }
    let what = format!("read by readers, {}", profile.unwrap_or("not encrypted"));
    let noticed = Mutex::new(BTreeMap::<&str, usize>::new());
    run_all(&what, &original, &cases, |copy, &(object, damage)| {
        copy.write(object, &damage.of(&original.objects[object]));
        let seen = copy.read_damaged(&[object], &|| format!("{object} {damage:?}"));
        let is_noticed = !seen.errors.is_empty();
        *noticed.lock().unwrap().entry(object).or_default() += usize::from(is_noticed);
        let harmless = match (role_of_bytes(object), damage) {
            // Bytes after the last block are unused, and padding is not verified.
            (Bytes::Pack, Damage::Longer(_)) => true,
            (Bytes::Pack, Damage::Flipped(..)) => profile.is_none(),
            // A comment, white space, an armor header.
            (Bytes::Text, _) => true,
            (Bytes::Snapshot, Damage::Flipped(at, _)) => {
                profile.is_none() && hint(&original.objects[object]).contains(&at)
            }
            _ => false,
        };
        assert!(harmless || is_noticed, "{object} {damage:?}: not detected");
        copy.repair(object);
    });
    // The damage is the cause: undamaged objects pass.
    for (object, count) in noticed.into_inner().unwrap() {
        assert!(count > 0, "no damage to {object} was noticed");
    }
}

/// Damages one or both descriptions. A valid one suffices, unless the other has become a valid
/// description with other content: then the error names both.
fn descriptions(profile: Option<&str>) {
    let original = Original::new(profile);
    let both: Vec<_> = original.named(Role::Description).map(String::as_str).collect();
    assert_eq!(both, ["brackfs-copy.toml", "brackfs.toml"]);
    let bytes = &original.objects[both[0]];
    assert_eq!(bytes, &original.objects[both[1]]);
    let damages = Damage::all(bytes.len(), &[0xff, 0x01]);
    let cases = |objects| damages.iter().map(move |&damage| (objects, damage));
    let cases: Vec<_> = cases(&both[..1]).chain(cases(&both[1..])).chain(cases(&both[..])).collect();
    let (served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let what = format!("descriptions, {}", profile.unwrap_or("not encrypted"));
    run_all(&what, &original, &cases, |copy, &(objects, damage)| {
        let damaged = damage.of(bytes);
        objects.iter().for_each(|object| copy.write(object, &damaged));
        let case = || format!("{objects:?} {damage:?}");
        let seen = copy.read();
        let found = copy.check();
        for object in objects {
            let named = |problem: &String| names(problem, object);
            // Equal damage to both can make another repository, and then its documents are named.
            let is_one = objects.len() == 1;
            assert!(!found.is_empty() && (!is_one || found.iter().any(named)), "{}: {found:?}", case());
        }
        match &seen.errors[..] {
            [] => assert_eq!(seen.content, original.content, "{}", case()),
            errors => {
                assert_eq!(seen.content, BTreeMap::new(), "{}", case());
                if let [object] = objects {
                    let is_both = errors.len() == 1 && both.iter().all(|one| names(&errors[0], one));
                    assert!(is_both, "{}: {errors:?}", case());
                    let says = |text: &[u8]| toml::from_slice::<toml::Table>(text).ok();
                    assert_ne!(says(&damaged).expect("valid"), says(bytes).unwrap(), "{object}: {errors:?}");
                }
            }
        }
        if objects.len() == 1 {
            let counter = if seen.errors.is_empty() { &served } else { &refused };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        objects.iter().for_each(|object| copy.repair(object));
    });
    let (served, refused) = (served.into_inner(), refused.into_inner());
    assert!(served > 4 * refused && refused > 40, "{served} served, {refused} refused");
}

#[test]
fn a_change_of_any_byte_of_a_description_never_changes_content_and_a_check_reports_it() {
    descriptions(None);
    descriptions(Some("rfc9580"));
}

enum Bytes {
    Text,
    Pack,
    Snapshot,
}

fn role_of_bytes(object: &str) -> Bytes {
    match object.split('/').next().unwrap() {
        "packs" => Bytes::Pack,
        "snapshots" => Bytes::Snapshot,
        _ => Bytes::Text,
    }
}

#[test]
fn a_change_of_any_byte_of_an_unencrypted_repository_never_changes_content() {
    needed(None, &[0xff, 0x01]);
}

#[test]
fn a_change_of_any_byte_of_an_encrypted_repository_never_changes_content() {
    needed(Some("rfc9580"), &[0xff]);
}

#[test]
fn a_change_of_any_byte_of_a_repository_encrypted_for_older_programs_never_changes_content() {
    needed(Some("rfc4880"), &[0xff]);
}

/// Where the encrypted session keys end that a message begins with; 0 if it is not encrypted.
fn envelope(message: &[u8]) -> usize {
    let mut at = 0;
    while message[at] == 0xC1 {
        at += 2 + usize::from(message[at + 1]);
    }
    at
}

/// Damages every object that no reader of files needs: readers are not affected, and a check names the object.
fn unneeded(profile: Option<&str>) {
    let original = Original::new(profile);
    let mut cases = Vec::new();
    for object in original.named(Role::Checked) {
        let damages = Damage::all(original.objects[object].len(), &[0xff]);
        // Certificates are long, and their requirements are few.
        let every = if object.starts_with("keys/") { 11 } else { 1 };
        cases.extend(damages.into_iter().step_by(every).map(|damage| (object.as_str(), damage)));
    }
    let unread: Vec<_> = original.named(Role::Unread).collect();
    assert_eq!(unread, ["FORMAT.txt", "README.txt", "reserve"]);
    for object in unread {
        let damages = [Damage::Flipped(0, 0xff), Damage::CutTo(0), Damage::Longer(4096)];
        cases.extend(damages.map(|damage| (object.as_str(), damage)));
    }
    let what = format!("for writers and people, {}", profile.unwrap_or("not encrypted"));
    run_all(&what, &original, &cases, |copy, &(object, damage)| {
        let bytes = &original.objects[object];
        copy.write(object, &damage.of(bytes));
        let case = || format!("{object} {damage:?}");
        // Reading opens none of them, so a sample suffices.
        let now_and_then = match damage {
            Damage::Flipped(at, _) | Damage::CutTo(at) => at % 16 == 0,
            Damage::Longer(_) => true,
        };
        if now_and_then {
            let seen = copy.read();
            assert!(seen.errors.is_empty() && seen.content == original.content, "{}: reading is not as before", case());
        }
        let found = copy.check();
        let hidden = match (object.split('/').next().unwrap(), damage) {
            // The owner decrypts his own copy of the session key and ignores that of the host.
            ("index" | "sources" | "secrets" | "generation", Damage::Flipped(at, _)) => match profile {
                Some(_) => at < envelope(bytes),
                None => hint(bytes).contains(&at),
            },
            // Only for people. The writer encrypts to the copy in the catalog, and armor has white space, headers and a
            // checksum that are not verified.
            ("keys", _) => true,
            _ => role(object) == Role::Unread,
        };
        assert!(role(object) != Role::Unread || found.is_empty(), "{}: {found:?}", case());
        assert!(hidden || !found.is_empty(), "{}: check found nothing", case());
        for problem in &found {
            // A list of sums names packs, and a changed name is another pack's.
            let of_pack = object.starts_with("sums/") && problem.contains("packs/");
            assert!(names(problem, object) || of_pack, "{}: check names another object: {problem}", case());
        }
        copy.repair(object);
    });
}

#[test]
fn damage_to_objects_that_readers_do_not_need_is_reported_by_a_check_only() {
    unneeded(None);
}

#[test]
fn damage_to_encrypted_objects_that_readers_do_not_need_is_reported_by_a_check_only() {
    unneeded(Some("rfc9580"));
}

/// Swaps any two objects of one kind, and replaces one by the other.
fn exchanged(profile: Option<&str>) {
    let original = Original::new(profile);
    let folder = |object: &str| object.split('/').next().unwrap().to_owned();
    let mut cases = Vec::new();
    for one in original.objects.keys() {
        for two in original.objects.keys().filter(|two| *two != one && folder(two) == folder(one)) {
            cases.extend([(one, two, false), (one, two, true)]);
        }
    }
    assert!(cases.len() > 20, "{cases:?}");
    let what = format!("exchanged, {}", profile.unwrap_or("not encrypted"));
    run_all(&what, &original, &cases, |copy, &(one, two, both)| {
        copy.write(two, &original.objects[one]);
        if both {
            copy.write(one, &original.objects[two]);
        }
        let case = || format!("{one} in the place of {two}, and the other way round: {both}");
        let seen = copy.read_damaged(&[one, two], &case);
        let found = copy.check();
        if role(two) == Role::Needed {
            assert!(!seen.errors.is_empty(), "{}: not detected", case());
        }
        // Swapped lists of sums have the same sums. With one of them twice, packs have no sum.
        let sums = two.starts_with("sums/");
        let named = |problem: &String| names(problem, one) || names(problem, two) || sums && problem.contains("packs/");
        assert!(sums && both || found.iter().any(named), "{}: {found:?}", case());
        copy.repair(one);
        copy.repair(two);
    });
}

#[test]
fn swapped_objects_are_detected() {
    exchanged(None);
    exchanged(Some("rfc9580"));
}
