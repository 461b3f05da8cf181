//! The contract of a storage, held against each kind and each wrapper; and backups to storage that is not a directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::any::Any;
use std::fs;
use std::io::Read;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use brackfs::archive::Archive;
use brackfs::backup::{Options, RunPolicy, Selection, back_up};
use brackfs::catalog::Catalog;
use brackfs::check::check;
use brackfs::failure::{Failure, FailureKind};
use brackfs::init::{Owner, init_at};
use brackfs::inventory::{Inventory, host_access, host_key};
use brackfs::monitor::{Monitor, Silent};
use brackfs::prune;
use brackfs::reader::Reader;
use brackfs::repository::{Access, Repository};
use brackfs::restore::restore;
use brackfs::session::LockWait;
use brackfs::state::RepositoryState;
use brackfs::storage::testing::{Fault, Faults, Faulty, Memory, Record, Recording};
use brackfs::storage::{
    DirectoryStorage, Error, ErrorKind, FtpStorage, Interrupt, Limit, Location, LocationKind, ObjectInfo, Operation,
    Parts, Rates, RcloneStorage, Remote, RetryPolicy, RetryStorage, S3Storage, SftpStorage, Storage, SwiftStorage,
    Target, WebdavStorage,
};
use common::ftp::{self, Program, Tls};
use common::rclone::Rclone;
use common::s3;
use common::sftp::Server;
use common::{Site, age, noise, settle, swift, tree, webdav};
use tempfile::TempDir;
use uuid::Uuid;

const RUN: Uuid = Uuid::from_u128(7);
const OTHER_RUN: Uuid = Uuid::from_u128(8);

/// Long enough for a program to start on a busy machine.
const STALL: Duration = Duration::from_secs(4);

/// A program that another test starts holds locks of this process until it runs.
const STARTING: Duration = Duration::from_secs(10);

/// Short waits, and a bound that is never reached.
const PATIENT: RetryPolicy = RetryPolicy {
    longest: Duration::from_secs(600),
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(5),
};

fn open(location: &Location) -> Result<SftpStorage, Error> {
    let LocationKind::Sftp(address) = location.kind() else { panic!("{location}") };
    SftpStorage::open(address, location.remote())
}

/// A storage without objects. Its directory and its server last as long as this does.
struct Empty {
    name: &'static str,
    storage: Box<dyn Storage>,
    /// The directory with the objects, if there is one.
    objects: Option<PathBuf>,
    _directory: Option<TempDir>,
    /// Dropped after the storage: all sessions must have ended then.
    _server: Option<Server>,
    _service: Option<Arc<dyn Any>>,
}

impl Empty {
    fn in_memory(name: &'static str, wrap: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>) -> Empty {
        Empty {
            name,
            storage: wrap(Box::new(Memory::default())),
            objects: None,
            _directory: None,
            _server: None,
            _service: None,
        }
    }

    fn in_directory(name: &'static str, wrap: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>) -> Empty {
        let directory = tempfile::tempdir().unwrap();
        let storage = wrap(Box::new(DirectoryStorage::open(directory.path()).unwrap()));
        let objects = Some(directory.path().to_owned());
        Empty { name, storage, objects, _directory: Some(directory), _server: None, _service: None }
    }

    /// On a server that runs `internal-sftp` with these options.
    fn on_server(name: &'static str, options: &str) -> Empty {
        let server = Server::with_options(options);
        let storage = Box::new(open(&server.location(&server.data())).unwrap());
        Empty { name, storage, objects: Some(server.data()), _directory: None, _server: Some(server), _service: None }
    }

    /// In a directory of its own on an FTP server that tests at the same time share.
    fn on_ftp(name: &'static str, program: Program, tls: Tls, server: &Mutex<Weak<ftp::Server>>) -> Empty {
        let server = shared(server, || ftp::Server::with(program, tls, ""));
        let folder = server.new_folder();
        let location = server.location(&folder);
        let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
        let storage = Box::new(FtpStorage::open(address, location.remote()).unwrap());
        let objects = Some(server.data().join(folder));
        Empty { name, storage, objects, _directory: None, _server: None, _service: Some(server) }
    }

    /// On a remote of rclone: this one, or a folder of a local directory.
    fn on_rclone(name: &'static str, remote: Option<&str>) -> Empty {
        let rclone = Rclone::new();
        let local = rclone.location("");
        let location =
            remote.map_or(local.clone(), |remote| remote.parse().unwrap()).with_remote(local.remote().clone());
        let LocationKind::Rclone(address) = location.kind() else { panic!("{location}") };
        let storage = Box::new(RcloneStorage::open(address, location.remote()).unwrap());
        let objects = remote.is_none().then(|| rclone.data());
        Empty { name, storage, objects, _directory: None, _server: None, _service: Some(Arc::new(rclone)) }
    }

    /// Below a prefix of its own in the bucket of a server that tests at the same time share.
    fn in_bucket(name: &'static str) -> Empty {
        static SERVER: Mutex<Weak<s3::Server>> = Mutex::new(Weak::new());
        let server = shared(&SERVER, s3::Server::start);
        let location = server.location(&s3::Server::new_prefix());
        let LocationKind::S3(address) = location.kind() else { panic!("{location}") };
        let storage = Box::new(S3Storage::open(address, location.remote()).unwrap());
        Empty { name, storage, objects: None, _directory: None, _server: None, _service: Some(server) }
    }

    /// Below a prefix of its own in the container of a Swift server that tests at the same time share.
    fn in_container(name: &'static str) -> Empty {
        static SERVER: Mutex<Weak<swift::Server>> = Mutex::new(Weak::new());
        let server = shared(&SERVER, swift::Server::start);
        let location = server.location(&swift::Server::new_prefix());
        let LocationKind::Swift(address) = location.kind() else { panic!("{location}") };
        let storage = Box::new(SwiftStorage::open(address, location.remote()).unwrap());
        Empty { name, storage, objects: None, _directory: None, _server: None, _service: Some(server) }
    }

    /// In a folder of its own on a WebDAV server that tests at the same time share.
    fn in_webdav_folder(name: &'static str) -> Empty {
        static SERVER: Mutex<Weak<webdav::Server>> = Mutex::new(Weak::new());
        let server = shared(&SERVER, webdav::Server::start);
        let folder = server.new_folder();
        let location = server.location(&folder);
        let LocationKind::Webdav(address) = location.kind() else { panic!("{location}") };
        let storage = Box::new(WebdavStorage::open(address, location.remote()).unwrap());
        let objects = Some(server.data().join(folder));
        Empty { name, storage, objects, _directory: None, _server: None, _service: Some(server) }
    }
}

/// The server that other tests use now, or a new one.
fn shared<S>(server: &Mutex<Weak<S>>, start: impl FnOnce() -> S) -> Arc<S> {
    let mut shared = server.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(start());
        *shared = Arc::downgrade(&server);
        server
    })
}

fn limited(storage: Box<dyn Storage>) -> Box<dyn Storage> {
    let rate = NonZeroU64::new(1 << 30);
    Box::new(Limit::new(storage, Rates { upload: rate, download: rate }, &Interrupt::default()))
}

/// FTP servers that tests at the same time share.
static FTP: [Mutex<Weak<ftp::Server>>; 3] = [const { Mutex::new(Weak::new()) }; 3];

/// Each kind of storage, and each wrapper around one.
fn kinds() -> Vec<Empty> {
    vec![
        Empty::in_directory("directory", |storage| storage),
        Empty::in_memory("memory", |storage| storage),
        Empty::on_server("sftp", ""),
        Empty::on_server("sftp without sync", "-P fsync,statvfs"),
        Empty::on_ftp("ftp", Program::ProFtpd, Tls::Never, &FTP[0]),
        Empty::on_ftp("ftps", Program::ProFtpd, Tls::Explicit, &FTP[1]),
        Empty::on_ftp("ftps without MLSD", Program::Vsftpd, Tls::Explicit, &FTP[2]),
        Empty::on_rclone("rclone", None),
        Empty::on_rclone("rclone with whole files", Some("rclone::memory:bucket")),
        Empty::in_bucket("s3"),
        Empty::in_container("swift"),
        Empty::in_webdav_folder("webdav"),
        Empty::in_directory("retry", |storage| Box::new(RetryStorage::new(storage, PATIENT))),
        Empty::in_directory("limit", limited),
        Empty::in_memory("faulty", |storage| Box::new(Faulty::new(storage).0)),
        Empty::in_memory("recording", |storage| Box::new(Recording::new(storage).0)),
        Empty::in_directory("all", |storage| {
            let faulty = Faulty::new(Box::new(Recording::new(storage).0)).0;
            Box::new(RetryStorage::new(limited(Box::new(faulty)), PATIENT))
        }),
    ]
}

fn put(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let mut spool = storage.spool(name, RUN)?;
    spool.append(bytes)?;
    storage.store(&spool)
}

fn get(storage: &dyn Storage, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = b"from before".to_vec();
    storage.read(name, offset, length, &mut bytes).map(|()| bytes).map_err(|error| error.kind)
}

fn list(storage: &dyn Storage, prefix: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    storage.visit(prefix, &mut |ObjectInfo { name, length }| found.push((name, length))).unwrap();
    found.sort();
    found
}

#[test]
fn a_stored_object_exists_at_once_and_is_never_replaced() {
    for Empty { name, storage, .. } in &kinds() {
        let storage = &**storage;
        let mut spool = storage.spool("packs/ab/x", RUN).unwrap();
        spool.append(b"hel").unwrap();
        spool.append(b"lo").unwrap();
        assert_eq!((spool.object(), spool.run(), spool.length()), ("packs/ab/x", RUN, 5), "{name}");
        assert_eq!(list(storage, ""), [], "{name}");
        assert_eq!(get(storage, "packs/ab/x", 0, 1), Err(ErrorKind::NotFound), "{name}");
        storage.store(&spool).unwrap();
        assert_eq!(get(storage, "packs/ab/x", 0, 5).unwrap(), b"hello", "{name}");
        let again = put(storage, "packs/ab/x", b"other").unwrap_err();
        assert_eq!(again.kind, ErrorKind::AlreadyExists, "{name}");
        assert!(again.to_string().contains("packs/ab/x"), "{name}: {again}");
        assert_eq!(get(storage, "packs/ab/x", 0, 5).unwrap(), b"hello", "{name}");
        assert_eq!(list(storage, ""), [("packs/ab/x".into(), 5)], "{name}");
    }
}

#[test]
fn ranges_are_read_completely_or_fail() {
    for Empty { name, storage, .. } in &kinds() {
        let storage = &**storage;
        let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        put(storage, "packs/ab/x", &bytes).unwrap();
        let length = bytes.len();
        assert_eq!(storage.length("packs/ab/x").unwrap(), length as u64, "{name}");
        for range in [0..0, 0..length, 17..18, 999_999..2_000_001, length - 1..length, length..length] {
            let read = get(storage, "packs/ab/x", range.start as u64, range.len());
            assert!(read.unwrap() == bytes[range.clone()], "{name}: {range:?}");
        }
        for (offset, length) in [(0, length + 1), (length - 1, 2), (length + 5, 1)] {
            assert_eq!(get(storage, "packs/ab/x", offset as u64, length), Err(ErrorKind::Truncated), "{name}");
        }
        assert_eq!(get(storage, "packs/ab/x", u64::MAX - 10, 100), Err(ErrorKind::Truncated), "{name}");
        // Parts come in order, empty ones too; each exactly once.
        for lengths in [&[0, 0][..], &[], &[7], &[0, 1_000_000, 0, 3_000_001, 1], &[length - 5, 0], &[100, length]] {
            let (mut taken, mut part) = (Vec::new(), b"from before".to_vec());
            let mut take = |part: &[u8]| taken.push(part.to_vec());
            let parts = Parts { offset: 5, lengths, bytes: &mut part, take: &mut take };
            let read = storage.read_parts("packs/ab/x", parts).map_err(|error| error.kind);
            let fits = lengths.iter().sum::<usize>() <= length - 5;
            assert_eq!(read, if fits { Ok(()) } else { Err(ErrorKind::Truncated) }, "{name}: {lengths:?}");
            assert!(taken.concat() == bytes[5..][..taken.concat().len()], "{name}: {lengths:?}");
            let sizes: Vec<_> = taken.iter().map(Vec::len).collect();
            assert!(if fits { sizes == lengths } else { sizes.len() < lengths.len() }, "{name}: {sizes:?}");
        }
        assert!(storage.get("packs/ab/x", length).unwrap() == bytes, "{name}");
        assert_eq!(storage.get("packs/ab/x", length - 1).unwrap_err().kind, ErrorKind::TooLarge, "{name}");
        put(storage, "empty", b"").unwrap();
        assert_eq!(storage.get("empty", 0).unwrap(), b"", "{name}");
        assert_eq!(storage.length("empty").unwrap(), 0, "{name}");
        assert_eq!(get(storage, "empty", 0, 1), Err(ErrorKind::Truncated), "{name}");
        // A hint has no effect on content, and none at all on a missing object.
        storage.evict("packs/ab/x", 0, length);
        storage.evict("packs/ab/y", 0, 1);
        assert_eq!(get(storage, "packs/ab/x", 4, 4).unwrap(), 1u32.to_le_bytes(), "{name}");
    }
}

#[test]
fn every_operation_reports_missing_objects() {
    for Empty { name, storage, .. } in &kinds() {
        put(&**storage, "there", b"x").unwrap();
        for object in ["missing", "packs/ab/x"] {
            assert_eq!(storage.length(object).unwrap_err().kind, ErrorKind::NotFound, "{name}");
            assert_eq!(get(&**storage, object, 0, 0), Err(ErrorKind::NotFound), "{name}");
            assert_eq!(storage.get(object, 100).unwrap_err().kind, ErrorKind::NotFound, "{name}");
            // S3 does not tell.
            match storage.remove(object) {
                Ok(()) => assert_eq!(*name, "s3"),
                Err(error) => assert_eq!(error.kind, ErrorKind::NotFound, "{name}"),
            }
        }
    }
}

/// Removes objects, and returns the result of each in the order of the names.
#[track_caller]
fn remove_all(storage: &dyn Storage, names: &[&str]) -> Vec<Result<(), ErrorKind>> {
    let mut results = vec![None; names.len()];
    let mut ended = |at: usize, result: Result<(), Error>| {
        let result = result.map_err(|error| {
            assert!(error.to_string().contains(names[at]), "{error}");
            error.kind
        });
        assert_eq!(results[at].replace(result), None, "{}", names[at]);
    };
    storage.remove_all(names, &mut ended).unwrap();
    results.into_iter().map(Option::unwrap).collect()
}

#[test]
fn many_objects_are_removed_and_each_result_is_told_once() {
    for Empty { name, storage, objects, .. } in &kinds() {
        let storage = &**storage;
        let there: Vec<_> = (0..140).map(|object| format!("packs/{:02x}/{object}", object % 3)).collect();
        for object in there.iter().map(String::as_str).chain(["index/a", "index/kept", "top"]) {
            put(storage, object, b"x").unwrap();
        }
        let mut names: Vec<_> = there.iter().map(String::as_str).collect();
        for (at, object) in [(0, "packs/00/none"), (70, "none/x"), (100, "index/a"), (143, "none"), (144, "top")] {
            names.insert(at, object);
        }
        for (object, result) in names.iter().zip(remove_all(storage, &names)) {
            // S3 does not tell.
            let is_missing = object.contains("none") && *name != "s3";
            assert_eq!(result, if is_missing { Err(ErrorKind::NotFound) } else { Ok(()) }, "{name}: {object}");
        }
        assert_eq!(list(storage, ""), [("index/kept".into(), 1)], "{name}");
        assert_eq!(remove_all(storage, &[]), []);
        // A removed name is free.
        put(storage, &there[0], b"new").unwrap();
        assert_eq!(get(storage, &there[0], 0, 3).unwrap(), b"new", "{name}");
        // A folder is no object, and does not stop the others.
        if let Some(objects) = objects.as_ref().filter(|_| *name != "webdav") {
            fs::create_dir(objects.join("index/folder")).unwrap();
            let results = remove_all(storage, &["index/folder", "index/kept", &there[0]]);
            assert!(results[0].is_err() && results[1..] == [Ok(()), Ok(())], "{name}: {results:?}");
            assert_eq!(list(storage, ""), [], "{name}");
        }
    }
}

#[test]
fn listings_show_all_objects_below_a_prefix_and_no_others() {
    for Empty { name, storage, .. } in &kinds() {
        let storage = &**storage;
        let objects = ["brackfs.toml", "index/a", "index/b", "packs/00/x", "packs/ff/y"];
        for object in objects {
            put(storage, object, object.as_bytes()).unwrap();
        }
        let expected = |prefix: &str| -> Vec<_> {
            let below = objects.iter().filter(|object| object.starts_with(prefix));
            below.map(|object| ((*object).to_owned(), object.len() as u64)).collect()
        };
        for prefix in ["", "index/", "packs/", "none/"] {
            assert_eq!(list(storage, prefix), expected(prefix), "{name}: {prefix:?}");
        }
        storage.remove("packs/00/x").unwrap();
        assert_eq!(list(storage, "packs/"), [("packs/ff/y".into(), 10)], "{name}");
        // A removed name is free.
        put(storage, "packs/00/x", b"new").unwrap();
        assert_eq!(get(storage, "packs/00/x", 0, 3).unwrap(), b"new", "{name}");
        assert!(!storage.abandon(&|object| object != "index/a"), "{name}");
        assert_eq!(list(storage, "").len(), objects.len(), "{name}");
    }
}

#[test]
fn a_stamp_changes_when_an_object_is_replaced() {
    for Empty { name, storage, .. } in &kinds() {
        let storage = &**storage;
        put(storage, "x", b"one").unwrap();
        let before = storage.stamp("x").unwrap();
        put(storage, "y", b"one").unwrap();
        get(storage, "x", 0, 3).unwrap();
        assert_eq!(storage.stamp("x").unwrap(), before, "{name}");
        storage.remove("x").unwrap();
        assert_eq!(storage.stamp("x").unwrap_err().kind, ErrorKind::NotFound, "{name}");
        // SFTP tells times in seconds.
        thread::sleep(Duration::from_millis(1100));
        put(storage, "x", b"two").unwrap();
        assert_ne!(storage.stamp("x").unwrap(), before, "{name}");
    }
}

#[test]
fn a_spool_can_be_stored_after_a_failure_and_cleans_up_on_drop() {
    for Empty { name, storage, objects, .. } in &kinds() {
        let storage = &**storage;
        put(storage, "index/a", b"old").unwrap();
        let mut spool = storage.spool("index/a", RUN).unwrap();
        spool.append(b"new").unwrap();
        assert_eq!(storage.store(&spool).unwrap_err().kind, ErrorKind::AlreadyExists, "{name}");
        storage.remove("index/a").unwrap();
        storage.store(&spool).unwrap();
        let mut text = String::new();
        spool.contents().read_to_string(&mut text).unwrap();
        assert_eq!(text, "new", "{name}");
        drop(spool);
        drop(storage.spool("index/b", RUN).unwrap());
        assert_eq!(list(storage, ""), [("index/a".into(), 3)], "{name}");
        storage.settle(&["index/", "none/"]).unwrap();
        assert_eq!(storage.discard(&["index/", "none/"], &[RUN, OTHER_RUN]).unwrap(), 0, "{name}");
        if let Some(objects) = objects {
            assert_eq!(tree(objects).len(), 3, "{name}: the root, a folder and an object");
        }
    }
}

#[test]
fn threads_use_a_storage_at_the_same_time() {
    for Empty { name, storage, .. } in &kinds() {
        let storage = &**storage;
        thread::scope(|threads| {
            for writer in 0..6u8 {
                threads.spawn(move || {
                    for object in 0..20 {
                        let object = format!("packs/{object:02x}/{writer}");
                        put(storage, &object, &[writer; 1000]).unwrap();
                        assert_eq!(get(storage, &object, 0, 1000).unwrap(), [writer; 1000], "{name}");
                    }
                });
            }
        });
        assert_eq!(list(storage, "packs/").len(), 120, "{name}");
    }
}

/// A storage in memory that fails on request, in a wrapper that tries again; and the waits of the wrapper: tries so far
/// and kind of error.
struct Trial {
    storage: RetryStorage,
    faults: Faults,
    memory: Memory,
    waits: Arc<Mutex<Vec<(u32, ErrorKind)>>>,
}

impl Trial {
    fn new(patience: RetryPolicy) -> Trial {
        let memory = Memory::default();
        let (faulty, faults) = Faulty::new(Box::new(memory.clone()));
        let waits = Arc::new(Mutex::new(Vec::new()));
        let noted = waits.clone();
        let storage = RetryStorage::new(Box::new(faulty), patience).with_notice(move |waiting| {
            assert!(waiting.wait <= patience.longest_wait, "{waiting:?}");
            noted.lock().unwrap().push((waiting.tries, waiting.error.kind));
        });
        put(&memory, "x", b"bytes").unwrap();
        Trial { storage, faults, memory, waits }
    }

    fn read(&self) -> Result<Vec<u8>, ErrorKind> {
        get(&self.storage, "x", 0, 5)
    }

    fn waits(&self) -> Vec<(u32, ErrorKind)> {
        std::mem::take(&mut self.waits.lock().unwrap())
    }
}

const ALL_KINDS: [ErrorKind; 12] = [
    ErrorKind::NotFound,
    ErrorKind::NotAFile,
    ErrorKind::AlreadyExists,
    ErrorKind::PermissionDenied,
    ErrorKind::Truncated,
    ErrorKind::TooLarge,
    ErrorKind::Full,
    ErrorKind::Damaged,
    ErrorKind::Unavailable,
    ErrorKind::Throttled,
    ErrorKind::Refused,
    ErrorKind::Other,
];

#[test]
fn only_temporary_errors_are_retried() {
    let trial = Trial::new(PATIENT);
    for kind in ALL_KINDS {
        trial.faults.add(Fault { times: 3, ..Fault::next(Operation::Read, kind) });
        if kind.is_temporary() {
            assert_eq!(trial.read().unwrap(), b"bytes", "{kind:?}");
            assert_eq!(trial.waits(), [(1, kind), (2, kind), (3, kind)]);
        } else {
            for _ in 0..3 {
                assert_eq!(trial.read(), Err(kind));
            }
            assert_eq!(trial.read().unwrap(), b"bytes", "{kind:?}");
            assert_eq!(trial.waits(), []);
        }
    }
}

#[test]
fn only_one_call_waits_for_an_unavailable_target() {
    let patience = RetryPolicy { longest: Duration::from_millis(100), ..PATIENT };
    let trial = Trial::new(patience);
    for _ in 0..3 {
        trial.faults.set_away(true);
        let begun = Instant::now();
        assert_eq!(trial.read(), Err(ErrorKind::Unavailable));
        assert!(begun.elapsed() >= patience.longest);
        assert!(!trial.waits().is_empty());
        // From now on each operation is tried once.
        assert_eq!(trial.read(), Err(ErrorKind::Unavailable));
        assert_eq!(trial.storage.length("x").unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(trial.waits(), []);
        trial.faults.set_away(false);
        assert_eq!(trial.read().unwrap(), b"bytes");
    }
}

#[test]
fn a_failing_operation_ends_even_if_others_succeed() {
    let trial = Trial::new(RetryPolicy { longest: Duration::from_millis(100), ..PATIENT });
    trial.faults.add(Fault { times: u64::MAX, ..Fault::next(Operation::Read, ErrorKind::Unavailable) });
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                trial.storage.length("x").unwrap();
            }
        });
        let read = trial.read();
        done.store(true, Ordering::Relaxed);
        assert_eq!(read, Err(ErrorKind::Unavailable));
    });
}

#[test]
fn an_interrupt_ends_all_waits() {
    let interrupt = Interrupt::default();
    let wait = Duration::from_secs(600);
    let patience = RetryPolicy { longest: wait, first_wait: wait, longest_wait: wait };
    let (faulty, faults) = Faulty::new(Box::new(Memory::default()));
    let (waits, begun) = mpsc::channel();
    let storage = RetryStorage::new(Box::new(faulty), patience)
        .with_interrupt(interrupt.clone())
        .with_notice(move |_| waits.send(()).unwrap());
    faults.set_away(true);
    thread::scope(|threads| {
        let readers = [0; 3].map(|_| threads.spawn(|| get(&storage, "x", 0, 1)));
        readers.iter().for_each(|_| begun.recv().unwrap());
        interrupt.set();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Err(ErrorKind::Unavailable));
        }
    });
    // Later calls fail, too.
    assert_eq!(get(&storage, "x", 0, 1), Err(ErrorKind::Unavailable));
}

#[test]
fn an_operation_whose_reply_was_lost_succeeds() {
    let trial = Trial::new(PATIENT);
    let lost = |operation| Fault { takes_effect: true, ..Fault::next(operation, ErrorKind::Unavailable) };
    trial.faults.add(lost(Operation::Store));
    put(&trial.storage, "generation/1", &[1; 3 << 20]).unwrap();
    assert_eq!(trial.storage.length("generation/1").unwrap(), 3 << 20);
    trial.faults.add(lost(Operation::Remove));
    trial.storage.remove("generation/1").unwrap();
    assert_eq!(trial.memory.names(), ["x"]);
    // Objects of others stay theirs, even those of the same length.
    for theirs in [&b"other"[..], b"longer than ours"] {
        put(&trial.memory, "generation/1", theirs).unwrap();
        trial.faults.add(Fault::next(Operation::Store, ErrorKind::Unavailable));
        let claimed = put(&trial.storage, "generation/1", b"bytes");
        assert_eq!(claimed.unwrap_err().kind, ErrorKind::AlreadyExists);
        trial.memory.remove("generation/1").unwrap();
    }
    trial.storage.remove("generation/1").unwrap_err();
}

#[test]
fn removals_are_tried_again_only_for_those_that_did_not_end() {
    let trial = Trial::new(PATIENT);
    let objects = ["packs/ab/a", "packs/ab/b", "packs/ab/c", "packs/cd/d", "packs/cd/missing"];
    for object in &objects[..4] {
        put(&trial.memory, object, b"x").unwrap();
    }
    // The first is removed, and the second one, too, but its reply is lost. The fourth is refused.
    let lost = Fault { after: 1, takes_effect: true, ..Fault::next(Operation::Remove, ErrorKind::Unavailable) };
    trial.faults.add(lost);
    // Counted from the second try on.
    trial.faults.add(Fault { after: 2, ..Fault::next(Operation::Remove, ErrorKind::PermissionDenied) });
    let results = remove_all(&trial.storage, &objects);
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Err(ErrorKind::PermissionDenied), Ok(())]);
    assert_eq!(trial.waits(), [(1, ErrorKind::Unavailable)]);
    assert_eq!(trial.memory.names(), ["packs/cd/d", "x"]);
    // At the first try, it is missing.
    assert_eq!(remove_all(&trial.storage, &["missing"]), [Err(ErrorKind::NotFound)]);
    // A target that stays away ends the call, and what was removed until then is told.
    let trial = Trial::new(RetryPolicy { longest: Duration::from_millis(20), ..PATIENT });
    put(&trial.memory, "y", b"x").unwrap();
    trial.faults.add(Fault { after: 1, times: u64::MAX, ..Fault::next(Operation::Remove, ErrorKind::Unavailable) });
    let mut ended = Vec::new();
    let away = trial.storage.remove_all(&["y", "x"], &mut |at, result| ended.push((at, result.is_ok()))).unwrap_err();
    assert_eq!((away.kind, ended), (ErrorKind::Unavailable, vec![(0, true)]));
}

#[test]
fn a_retried_listing_shows_each_object_once() {
    let trial = Trial::new(PATIENT);
    trial.faults.add(Fault { times: 2, takes_effect: true, ..Fault::next(Operation::List, ErrorKind::Throttled) });
    assert_eq!(list(&trial.storage, ""), [("x".into(), 5)]);
    assert_eq!(trial.waits().len(), 2);
}

#[test]
fn bytes_per_second_are_bounded_in_each_direction() {
    let rate = NonZeroU64::new(1_000_000);
    for (rates, is_slow) in [
        (Rates { upload: rate, download: None }, [true, false]),
        (Rates { upload: None, download: rate }, [false, true]),
    ] {
        let storage = Limit::new(Box::new(Memory::default()), rates, &Interrupt::default());
        let begun = Instant::now();
        put(&storage, "x", &[0; 200_000]).unwrap();
        put(&storage, "y", &[0; 100_000]).unwrap();
        let stored = begun.elapsed();
        get(&storage, "x", 0, 200_000).unwrap();
        get(&storage, "y", 0, 100_000).unwrap();
        for (took, is_slow) in [stored, begun.elapsed() - stored].into_iter().zip(is_slow) {
            assert!(!is_slow || took >= Duration::from_millis(300), "{rates:?}: {took:?}");
        }
    }
}

#[test]
fn operations_are_recorded() {
    let (storage, records) = Recording::new(Box::new(Memory::default()));
    put(&storage, "index/a", b"bytes").unwrap();
    put(&storage, "index/a", b"bytes").unwrap_err();
    get(&storage, "index/a", 1, 3).unwrap();
    list(&storage, "index/");
    storage.remove("index/a").unwrap();
    put(&storage, "index/b", b"x").unwrap();
    remove_all(&storage, &["index/b", "index/c"]);
    let record = |operation, name: &str, bytes, error| Record { operation, name: name.into(), bytes, error };
    assert_eq!(
        records.take(),
        [
            record(Operation::Spool, "index/a", 0, None),
            record(Operation::Store, "index/a", 5, None),
            record(Operation::Spool, "index/a", 0, None),
            record(Operation::Store, "index/a", 0, Some(ErrorKind::AlreadyExists)),
            record(Operation::Read, "index/a", 3, None),
            record(Operation::List, "index/", 0, None),
            record(Operation::Remove, "index/a", 0, None),
            record(Operation::Spool, "index/b", 0, None),
            record(Operation::Store, "index/b", 1, None),
            record(Operation::Remove, "index/b", 0, None),
            record(Operation::Remove, "index/c", 0, Some(ErrorKind::NotFound)),
        ]
    );
    assert_eq!(records.take(), []);
}

/// A directory that is served by OpenSSH's SFTP server with a fault.
struct Flawed {
    directory: TempDir,
    /// As for `sftp_server.py`.
    fault: &'static [&'static str],
}

impl Flawed {
    /// With empty folders.
    fn new(fault: &'static [&'static str]) -> Flawed {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("repo/index")).unwrap();
        fs::create_dir_all(directory.path().join("repo/packs/ab")).unwrap();
        Flawed { directory, fault }
    }

    fn objects(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    fn open(&self) -> SftpStorage {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/sftp_server.py");
        let mark = self.directory.path().join("mark");
        let program = [&["python3", script, mark.to_str().unwrap()][..], self.fault].concat();
        open(&self.location(program.into_iter().map(str::to_owned).collect())).unwrap()
    }

    /// The directory through another program than ssh. Connections may be silent for [`STALL`].
    fn location(&self, ssh: Vec<String>) -> Location {
        let location: Location = format!("sftp://host{}", self.objects().display()).parse().unwrap();
        location.with_remote(Remote { ssh, stall: STALL, ..Remote::default() })
    }

    /// All files are these ones: nothing temporary is left.
    fn holds(&self, objects: &[(&str, &[u8])]) {
        let mut files = common::paths_below(&self.objects());
        files.retain(|path| path.is_file());
        assert_eq!(files.len(), objects.len(), "{:?}: {files:?}", self.fault);
        for (name, bytes) in objects {
            assert!(fs::read(self.objects().join(name)).unwrap() == *bytes, "{:?}: {name}", self.fault);
        }
    }
}

#[test]
fn an_upload_that_is_cut_off_or_stalls_is_made_again() {
    let pack = noise("pack", 16 << 20);
    for fault in [&["cut", "6291456"][..], &["stall", "6291456"], &["cut", "16777216"], &["link"]] {
        let flawed = Flawed::new(fault);
        let storage = RetryStorage::new(Box::new(flawed.open()), PATIENT);
        put(&storage, "packs/ab/x", &pack).unwrap();
        assert!(flawed.directory.path().join("mark").exists(), "{fault:?}: the fault did not happen");
        flawed.holds(&[("packs/ab/x", &pack)]);
    }
}

#[test]
fn a_cut_or_silent_connection_is_unavailable_and_shows_nothing_partial() {
    let pack = noise("pack", 16 << 20);
    for (fault, why) in [
        (&["cut", "6291456"][..], "closed"),
        (&["stall", "6291456"], "silent for 4 s"),
        (&["cut", "16777216"], "closed"),
    ] {
        let flawed = Flawed::new(fault);
        let storage = flawed.open();
        let error = put(&storage, "packs/ab/x", &pack).unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.to_string().contains(why), "{fault:?}: {error}");
        assert_eq!(list(&storage, ""), [], "{fault:?}");
        // The partial upload is removed with the next object.
        put(&storage, "index/a", b"bytes").unwrap();
        flawed.holds(&[("index/a", b"bytes")]);
    }
}

#[test]
fn an_upload_with_a_limit_flows_at_that_rate() {
    const RATE: u64 = 1 << 20;
    let flawed = Flawed::new(&["none"]);
    let rates = Rates { upload: NonZeroU64::new(RATE), download: None };
    let storage = Limit::new(Box::new(flawed.open()), rates, &Interrupt::default());
    let bytes = noise("pack", 3 << 20);
    let begun = Instant::now();
    let mut seen = Vec::new();
    thread::scope(|threads| {
        let upload = threads.spawn(|| put(&storage, "packs/ab/x", &bytes).unwrap());
        while !upload.is_finished() {
            let files = common::paths_below(&flawed.objects().join("packs/ab"));
            let sizes = files.iter().filter_map(|path| fs::metadata(path).ok()).filter(|found| found.is_file());
            let size = sizes.map(|found| found.len()).max().unwrap_or_default();
            let most = begun.elapsed().as_millis() as u64 * RATE / 1000;
            assert!(size <= most, "{size} bytes in {:?}", begun.elapsed());
            seen.push(size);
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert!(seen.iter().any(|size| (RATE / 2..5 * RATE / 2).contains(size)), "{seen:?}");
    flawed.holds(&[("packs/ab/x", &bytes)]);
}

#[test]
fn an_effect_whose_reply_was_lost_is_looked_at() {
    let flawed = Flawed::new(&["link"]);
    let storage = flawed.open();
    let error = put(&storage, "generation/1", b"ours").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    // The object is whole. Another writer with other content does not take it for its own.
    assert_eq!(fs::read(flawed.objects().join("generation/1")).unwrap(), b"ours");
    let retry = RetryStorage::new(Box::new(storage), PATIENT);
    assert_eq!(put(&retry, "generation/1", b"else").unwrap_err().kind, ErrorKind::AlreadyExists);
    flawed.holds(&[("generation/1", b"ours")]);

    let flawed = Flawed::new(&["remove"]);
    let storage = RetryStorage::new(Box::new(flawed.open()), PATIENT);
    put(&storage, "index/a", b"bytes").unwrap();
    storage.remove("index/a").unwrap();
    flawed.holds(&[]);
    assert!(flawed.directory.path().join("mark").exists());
}

#[test]
fn a_server_that_turns_out_to_lack_links_gets_the_object_again() {
    let flawed = Flawed::new(&["no-links"]);
    let storage = flawed.open();
    for name in ["index/a", "index/b"] {
        put(&storage, name, b"bytes").unwrap();
    }
    assert_eq!(put(&storage, "index/a", b"else").unwrap_err().kind, ErrorKind::AlreadyExists);
    flawed.holds(&[("index/a", b"bytes"), ("index/b", b"bytes")]);
    let shortcomings = storage.capabilities().shortcomings;
    assert!(shortcomings.iter().any(|words| words.contains("hard links")), "{shortcomings:?}");
}

#[test]
fn a_hostile_server_is_an_error_and_never_a_panic() {
    for fault in ["length", "id", "kind", "handle", "much-data", "no-data", "text"] {
        let flawed = Flawed::new(Vec::leak(vec![fault]));
        fs::write(flawed.objects().join("index/a"), "bytes").unwrap();
        let storage = flawed.open();
        let error = storage.read("index/a", 0, 5, &mut Vec::new()).unwrap_err();
        let expected = if fault == "text" { ErrorKind::Other } else { ErrorKind::Unavailable };
        assert_eq!(error.kind, expected, "{fault}: {error}");
        assert!(error.to_string().len() < 1000, "{fault}");
        // The connection is replaced.
        assert_eq!(storage.length("index/a").unwrap(), 5, "{fault}");
    }
    // No place in a file is that far.
    let flawed = Flawed::new(&["none"]);
    fs::write(flawed.objects().join("index/a"), "bytes").unwrap();
    flawed.open().read("index/a", u64::MAX - 10, 1 << 20, &mut Vec::new()).unwrap_err();
}

#[test]
fn only_names_that_objects_can_have_are_listed() {
    let flawed = Flawed::new(&["names"]);
    let listed = list(&flawed.open(), "index/");
    assert_eq!(listed, [("index/?".into(), 5), ("index/plain".into(), 5)]);
}

#[test]
fn a_folder_with_a_million_names_is_listed() {
    let flawed = Flawed::new(&["many-names"]);
    let mut count = 0;
    flawed.open().visit("index/", &mut |_| count += 1).unwrap();
    assert_eq!(count, 1_000_000);
    let error = Flawed::new(&["many-folders"]).open().visit("index/", &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("too many folders"), "{error}");
}

#[test]
fn a_server_that_allows_one_connection_is_used_with_one() {
    let flawed = Flawed::new(&[]);
    let lock = flawed.directory.path().join("lock");
    let refused = flawed.directory.path().join("refused");
    let (lock, refusals) = (lock.display(), refused.display());
    let script = format!(
        "mkdir {lock} || {{ echo x >> {refusals}; echo too many connections >&2; exit 255; }}; /usr/lib/openssh/sftp-server; \
         rmdir {lock}"
    );
    let storage = open(&flawed.location(["sh", "-c", &script].map(str::to_owned).into())).unwrap();
    let bytes = noise("object", 1 << 20);
    for round in 0..3 {
        thread::scope(|threads| {
            for writer in 0..6 {
                let (storage, bytes) = (&storage, &bytes);
                threads.spawn(move || {
                    let name = format!("packs/ab/{round}-{writer}");
                    put(storage, &name, bytes).unwrap();
                    assert!(get(storage, &name, 0, bytes.len()).unwrap() == *bytes);
                });
            }
        });
    }
    // After a refusal, no further connection is tried for a while.
    let refusals = fs::read_to_string(refused).unwrap().lines().count();
    assert!((1..=3).contains(&refusals), "{refusals}");
}

#[test]
fn programs_other_than_ssh_are_errors_with_their_last_messages() {
    let flawed = Flawed::new(&[]);
    let held = flawed.directory.path().join("held");
    let hold = format!("setsid sleep 60 & echo $! > {}; exit 0", held.display());
    for (program, kind, why) in [
        (&["/missing/ssh"][..], ErrorKind::Other, "cannot start /missing/ssh"),
        (&["sh", "-c", "echo no such host >&2; exit 255"], ErrorKind::Unavailable, "(no such host)"),
        (&["sh", "-c", "echo Welcome to this server; cat"], ErrorKind::Unavailable, "login script"),
        // Neither a flood of messages nor silence is waited for.
        (&["sh", "-c", "yes message | head -c 1000000 >&2"], ErrorKind::Unavailable, "message; message)"),
        (&["sh", "-c", "yes message >&2 & exec sleep 60"], ErrorKind::Unavailable, "silent for 4 s"),
        (&["sleep", "infinity"], ErrorKind::Unavailable, "closed"),
        (&["sh", "-c", "exec sleep 60"], ErrorKind::Unavailable, "silent for 4 s"),
        // A process that outlives it holds the pipes.
        (&["sh", "-c", &hold], ErrorKind::Unavailable, "silent for 4 s"),
    ] {
        let begun = Instant::now();
        let error = open(&flawed.location(program.iter().map(|&word| word.to_owned()).collect())).unwrap_err();
        assert!(error.kind == kind && error.to_string().contains(why), "{program:?}: {error}");
        assert!(begun.elapsed() < common::wait::LIMIT && error.to_string().len() < 1000, "{program:?}");
    }
    let held = fs::read_to_string(held).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(held).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}

/// A site whose repository is in memory.
struct MemorySite {
    site: Site,
    memory: Memory,
}

impl MemorySite {
    fn new() -> MemorySite {
        let site = Site::with_files(&[("file", b"content".to_vec()), ("large", noise("large", 3 << 20))]);
        age(&site.source());
        let memory = Memory::default();
        let target = Target::new(Box::new(memory.clone()), "memory".into());
        init_at(target, &site.state(), Owner::Unencrypted).unwrap();
        MemorySite { site, memory }
    }

    fn repository(&self, wrap: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>) -> Repository {
        Repository::at(Target::new(wrap(Box::new(self.memory.clone())), "memory".into())).unwrap()
    }

    /// The repository on a storage with faults, and the faults.
    fn faulty(&self) -> (Repository, Faults) {
        let mut faults = None;
        let repository = self.repository(|storage| {
            let (faulty, steering) = Faulty::new(storage);
            faults = Some(steering);
            Box::new(faulty)
        });
        (repository, faults.unwrap())
    }

    fn back_up(&self, repository: &Repository) -> Result<(), brackfs::backup::Error> {
        let selection = Selection { paths: vec![self.site.source()], ..Selection::default() };
        let options = Options { selection, ..Options::default() };
        let summary = back_up(repository, &self.site.state(), &options, |_| (), &Silent, &AtomicBool::new(false))?;
        assert_eq!(summary.problems, 0);
        Ok(())
    }

    fn reader(&self) -> Reader {
        let repository = self.repository(|storage| storage);
        let access = Access::new(None, repository.keys().hosts().unwrap());
        Reader::new(repository, access, 4 << 20)
    }

    /// Checks every byte of the repository, and restores the last snapshot.
    fn holds(&self) {
        let reader = self.reader();
        let found = check(&reader, true, &Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(found.problems, 0, "{found:?}");
        let newest = reader.snapshots().unwrap().pop().unwrap();
        let top = reader.open(&newest).unwrap().root.clone();
        let out = self.site.path().join("out");
        restore(&reader, &top, &out, &Default::default(), &Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(tree(&out), tree(&self.site.source()));
        fs::remove_dir_all(out).unwrap();
    }

    /// Changes the source.
    fn change(&self, round: u64) {
        self.site.write("changing", format!("round {round}"));
        self.site.write("new", noise(&round.to_string(), 300_000));
        age(&self.site.source());
        settle();
    }
}

#[test]
fn a_repository_in_memory_supports_backup_check_and_restore() {
    let remote = MemorySite::new();
    let repository = remote.repository(|storage| storage);
    assert_eq!(repository.target().local_path(), None);
    for round in 0..3 {
        remote.change(round);
        remote.back_up(&repository).unwrap();
        remote.holds();
    }
    // A check finds damage there as well.
    let pack = remote.memory.names().into_iter().find(|name| name.starts_with("packs/")).unwrap();
    assert!(remote.memory.change(&pack, |bytes| bytes[10] ^= 1));
    let found = check(&remote.reader(), true, &Silent, &AtomicBool::new(false)).unwrap();
    assert!(found.problems > 0);
}

#[test]
fn a_failure_of_any_storage_operation_loses_nothing() {
    let remote = MemorySite::new();
    remote.back_up(&remote.repository(|storage| storage)).unwrap();
    let (mut after, mut failed) = (0, 0);
    loop {
        remote.change(after);
        let (repository, faults) = remote.faulty();
        let takes_effect = after % 2 == 1;
        faults.add(Fault { operation: None, after, times: u64::MAX, kind: ErrorKind::Other, takes_effect });
        let ended = remote.back_up(&repository);
        if faults.failures() == 0 {
            ended.unwrap();
            break;
        }
        failed += u64::from(ended.is_err());
        remote.back_up(&remote.repository(|storage| storage)).unwrap();
        remote.holds();
        after += 1;
    }
    assert!(failed > 20, "{failed} of {after} runs failed");
    remote.holds();
}

#[test]
fn a_backup_waits_for_a_briefly_unavailable_storage() {
    let remote = MemorySite::new();
    for (round, takes_effect) in [false, true].into_iter().enumerate() {
        remote.change(round as u64);
        let mut faults = None;
        let repository = remote.repository(|storage| {
            let (faulty, steering) = Faulty::new(storage);
            faults = Some(steering);
            Box::new(RetryStorage::new(Box::new(faulty), PATIENT))
        });
        let faults = faults.unwrap();
        // Every fourth operation needs three tries.
        for fault in 0..200 {
            let kind = if fault % 2 == 0 { ErrorKind::Unavailable } else { ErrorKind::Throttled };
            faults.add(Fault { operation: None, after: 3, times: 2, kind, takes_effect });
        }
        remote.back_up(&repository).unwrap();
        assert!(faults.failures() > 10, "{}", faults.failures());
        remote.holds();
    }
}

#[test]
fn as_many_packs_are_stored_at_the_same_time_as_the_storage_has_lanes() {
    let remote = MemorySite::new();
    remote.site.write("random", noise("random", 70 << 20));
    let (mut records, mut faults) = (None, None);
    let repository = remote.repository(|storage| {
        let (faulty, steering) = Faulty::new(storage);
        let (recording, seen) = Recording::new(Box::new(faulty));
        (records, faults) = (Some(seen), Some(steering));
        Box::new(RetryStorage::new(Box::new(recording), PATIENT))
    });
    let (records, faults) = (records.unwrap(), faults.unwrap());
    // All but the generation and the name of the source.
    faults.add(Fault { after: 2, times: u64::MAX, ..Fault::next(Operation::Store, ErrorKind::Unavailable) });
    let lanes = repository.target().capabilities().lanes;
    assert!(lanes > 1);
    let mut stored: Vec<String> = Vec::new();
    thread::scope(|threads| {
        threads.spawn(|| remote.back_up(&repository).unwrap());
        let begun = Instant::now();
        while stored.len() < lanes && begun.elapsed() < Duration::from_secs(120) {
            thread::sleep(Duration::from_millis(20));
            let failed = records.take().into_iter().filter(|record| record.error.is_some());
            stored.extend(failed.map(|record| record.name));
            stored.sort();
            stored.dedup();
        }
        // No others are begun.
        thread::sleep(Duration::from_millis(500));
        stored.extend(records.take().into_iter().filter(|record| record.error.is_some()).map(|record| record.name));
        faults.clear();
    });
    stored.sort();
    stored.dedup();
    assert!(stored.len() == lanes && stored.iter().all(|name| name.starts_with("packs/")), "{stored:?}");
    remote.holds();
}

/// Collects problems.
#[derive(Default)]
struct Problems(Mutex<Vec<String>>);

impl Monitor for Problems {
    fn problem(&self, path: &Path, message: &str) {
        self.0.lock().unwrap().push(format!("{}: {message}", path.display()));
    }

    fn note(&self, _message: &str) {}

    fn entry(&self, _path: &Path, _what: &str) {}
}

/// The name of a command, and a function that runs it on a repository.
type Command<'c> = (&'static str, Box<dyn Fn(Repository, &Problems) -> Result<(), FailureKind> + 'c>);

#[test]
fn a_target_that_goes_away_is_never_taken_for_a_damaged_one() {
    let remote = MemorySite::new();
    let stop = AtomicBool::new(false);
    for round in 0..3 {
        remote.change(round);
        remote.back_up(&remote.repository(|storage| storage)).unwrap();
    }
    let id = remote.repository(|storage| storage).id();
    let state = RepositoryState::new(&remote.site.state(), id);
    let commands: [Command<'_>; 4] = [
        (
            "check",
            Box::new(|repository, problems| {
                let access = Access::new(None, repository.keys().hosts().map_err(|error| error.kind())?);
                let reader = Reader::new(repository, access, 4 << 20);
                let found = check(&reader, true, problems, &stop).map_err(|error| error.kind())?;
                assert_eq!(found.problems, 0);
                Ok(())
            }),
        ),
        (
            "verify",
            Box::new(|repository, problems| {
                let key = host_key(&state).unwrap();
                let access = host_access(&key).unwrap();
                let catalog = Catalog::view(&state.catalog_path(), id).unwrap().read(anyhow::Ok).unwrap();
                let inventory = Inventory { repository: &repository, access: &access, monitor: problems, stop: &stop };
                let found = inventory.verify(&catalog, &state, &key.certificate()).map_err(|error| error.kind())?;
                assert_eq!(found.problems, 0);
                Ok(())
            }),
        ),
        (
            "prune",
            Box::new(|repository, problems| {
                let options = prune::Options {
                    max_waste: 0.0,
                    max_copy: u64::MAX,
                    max_duration: None,
                    grace: Duration::ZERO,
                    now: None,
                };
                let pruned = prune::prune(&repository, &state, &options, LockWait::option(STARTING), problems, &stop);
                assert_eq!(pruned.map_err(|error| error.kind())?.damaged_packs, 0);
                Ok(())
            }),
        ),
        (
            "backup",
            Box::new(|repository, problems| {
                let selection = Selection { paths: vec![remote.site.source()], ..Selection::default() };
                let policy =
                    RunPolicy { recheck: u64::MAX, wait_lock: LockWait::option(STARTING), ..RunPolicy::default() };
                let options = Options { selection, policy, ..Options::default() };
                let summary = back_up(&repository, &remote.site.state(), &options, |_| (), problems, &stop);
                assert_eq!(summary.map_err(|error| error.kind())?.problems, 0);
                Ok(())
            }),
        ),
    ];
    for (command, run) in &commands {
        for kind in [ErrorKind::Unavailable, ErrorKind::Refused] {
            let mut after = 0;
            loop {
                let (repository, faults) = remote.faulty();
                faults.add(Fault { operation: None, after, times: u64::MAX, kind, takes_effect: false });
                let problems = Problems::default();
                let result = run(repository, &problems);
                let problems = problems.0.into_inner().unwrap();
                assert_eq!(problems, [] as [String; 0], "{command}, {kind:?} after {after} operations");
                if faults.failures() == 0 {
                    result.unwrap();
                    break;
                }
                assert_eq!(result, Err(FailureKind::Unavailable), "{command}, {kind:?} after {after} operations");
                // Each run that fails leaves objects, so the next one has more to do.
                let writes = matches!(*command, "prune" | "backup");
                after += if writes { 1 + after / 4 } else { 1 };
            }
            assert!(after > 5, "{command}: {after} operations");
        }
    }
    remote.holds();
}

#[test]
fn a_listing_during_which_the_disk_goes_is_whole_or_an_error() {
    for is_mount_point_left in [false, true] {
        for Empty { name, storage, objects, .. } in &kinds() {
            let Some(objects) = objects else { continue };
            put(&**storage, "top", b"x").unwrap();
            put(&**storage, "packs/ab/x", b"x").unwrap();
            let aside = objects.with_extension("aside");
            let (mut found, mut is_gone) = (Vec::new(), false);
            let listed = storage.visit("", &mut |object| {
                if !is_gone {
                    fs::rename(objects, &aside).unwrap();
                    is_gone = true;
                    if is_mount_point_left {
                        fs::create_dir(objects).unwrap();
                    }
                }
                found.push(object.name);
            });
            match listed {
                Ok(()) => assert_eq!(found.len(), 2, "{name}: {found:?}"),
                // A wrapper that tries again waits.
                Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{name}: {error}"),
            }
            let _ = fs::remove_dir(objects);
            fs::rename(aside, objects).unwrap();
        }
    }
}
