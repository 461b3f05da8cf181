//! Files that change during a backup. Their stored content is consistent or marked, and the next backup reads them
//! again.
//!
//! With fanotify, the kernel asks the test before each read of a file of the source. So each change happens at an exact
//! moment, independent of the clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::machine::{spawn, succeed};
use common::wait::{ended, send, until};
use common::{Run, Site, noise, number, settle, tree};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// A site with these files, without a backup.
fn ready(files: &[(&str, &[u8])]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site
}

/// Backs up, and calls `meddle` before each read of a file directly in the source, with its name and how
/// often it was read before. `meddle` must not read it.
fn backup_while(site: &Site, extra: &[&str], mut meddle: impl FnMut(&str, usize) + Send) -> Run {
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_NONBLOCK;
    let watch = Fanotify::init(flags, EventFFlags::O_RDONLY).expect("fanotify, as root");
    let mask = MaskFlags::FAN_ACCESS_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
    watch.mark(MarkFlags::FAN_MARK_ADD, mask, nix::fcntl::AT_FDCWD, Some(&site.source())).expect("a mark");
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let serve = || {
            let mut reads: HashMap<String, usize> = HashMap::new();
            while !done.load(Ordering::Relaxed) {
                let Ok(events) = watch.read_events() else {
                    thread::sleep(Duration::from_micros(200));
                    continue;
                };
                for event in events {
                    let fd = event.fd().expect("a file");
                    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
                    let path = fs::read_link(path).expect("its path");
                    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                    let before = reads.entry(name.clone()).or_default();
                    meddle(&name, *before);
                    *before += 1;
                    watch.write_response(FanotifyResponse::new(fd, Response::FAN_ALLOW)).expect("an answer");
                }
            }
        };
        let server = threads.spawn(serve);
        let run = site.backup(extra);
        done.store(true, Ordering::Relaxed);
        server.join().expect("no panic while the source was changed");
        run
    })
}

fn problems(run: &Run) -> Vec<&str> {
    run.stderr.lines().filter(|line| line.contains("\"error\"")).collect()
}

fn restored(site: &Site, into: &str) -> PathBuf {
    let to = site.path().join(into);
    site.brackfs(&["restore", "latest", "--to", to.to_str().unwrap()]).ok();
    to
}

#[track_caller]
fn assert_latest_equals_source(site: &Site, into: &str) {
    assert_eq!(tree(&restored(site, into)), tree(&site.source()));
}

/// Asserts that the catalog trusts all files: the next backup reads none.
#[track_caller]
fn assert_nothing_is_read_again(site: &Site) {
    assert_eq!(number(&site.backup(&[]).ok().json(), "files_read"), 0);
}

fn overwrite(path: &Path, content: &[u8]) {
    // In place, so that the inode stays.
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(content).unwrap();
}

#[test]
fn a_directory_that_was_read_ahead_long_ago_is_read_again() {
    // The walk reads `b` ahead when it is in `a`. Then it waits, since these are more than may be read ahead.
    let many: Vec<_> = (0..1200).map(|n| (format!("aa{n:04}"), noise(&n.to_string(), 5 << 10))).collect();
    let mut files: Vec<_> = many.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    files.extend([("a/x", &b"x"[..]), ("b/old", b"old")]);
    let site = ready(&files);
    let b = site.source().join("b");
    let is_slow = AtomicBool::new(true);
    backup_while(&site, &[], |_, _| {
        if is_slow.swap(false, Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5500));
            fs::remove_file(b.join("old")).unwrap();
            fs::write(b.join("new"), "new").unwrap();
        }
    })
    .ok();
    assert_eq!(site.brackfs(&["ls", "latest:b"]).ok().stdout, "new\n");
}

#[test]
fn a_file_that_changes_once_is_read_again_after_the_others() {
    for length in [10_000, 3 * MIB] {
        let site = ready(&[("f", &noise("old", length)), ("g", b"still")]);
        let path = site.source().join("f");
        let run = backup_while(&site, &[], |name, before| {
            if (name, before) == ("f", 0) {
                overwrite(&path, &noise("new", length));
            }
        });
        let run = run.ok();
        assert_eq!(problems(&run), [""; 0]);
        assert_eq!(number(&run.json(), "files_read"), 2);
        assert_eq!(number(&run.json(), "files"), 2);
        assert_latest_equals_source(&site, "out");
        assert_nothing_is_read_again(&site);
        site.brackfs(&["check", "--read-data"]).ok();
    }
}

#[test]
fn a_file_that_keeps_changing_is_stored_as_read_and_marked() {
    for (length, retries) in [(10_000, 3), (3 * MIB, 1), (10_000, 0)] {
        let site = ready(&[("f", &noise("0", length)), ("d/g", b"still")]);
        let path = site.source().join("f");
        let mut reads = 0;
        let retries = retries.to_string();
        let run = backup_while(&site, &["--retries", &retries, "--settle-max", "0"], |name, before| {
            if name == "f" {
                reads += usize::from(before == 0);
                overwrite(&path, &noise(&before.to_string(), length));
            }
        });
        let run = run.code(3);
        assert_eq!(problems(&run).len(), 1, "{run}");
        assert!(run.stderr.contains("it changed while it was read; what was read is stored and marked"), "{run}");
        assert_eq!((reads, number(&run.json(), "problems")), (1, 1));

        let listed = site.brackfs(&["ls", "-R", "latest", "--json"]).ok().stdout;
        let marked: Vec<_> = listed.lines().filter(|line| line.contains("\"changed_while_read\":true")).collect();
        assert_eq!(marked.len(), 1, "{listed}");
        let mounted = site.mount(&[]);
        let flags = common::xattrs(&mounted.latest().join("f")).unwrap();
        assert!(!common::xattrs(&mounted.latest().join("d/g")).unwrap().contains_key("user.brackfs.flags"));
        drop(mounted);
        // The attribute is readable by name but not listed, so that programs do not copy it.
        assert!(!flags.contains_key("user.brackfs.flags"));
        let to = site.path().join("marked");
        let warned = site.brackfs(&["restore", "latest", "--to", to.to_str().unwrap()]).ok();
        assert!(warned.stderr.contains("changed while"), "{warned}");
        assert_eq!(fs::metadata(to.join("f")).unwrap().size(), length as u64);
        site.brackfs(&["check", "--read-data"]).ok();

        // The next backup must read it, even if its stamps are unchanged.
        settle();
        let next = site.backup(&[]).ok();
        assert_eq!(number(&next.json(), "files_read"), 1, "{next}");
        assert_latest_equals_source(&site, "out");
        assert_nothing_is_read_again(&site);
    }
}

#[test]
fn a_file_that_is_replaced_before_it_is_opened_is_stored_as_its_replacement() {
    let files = ["m", "n_dir", "n_gone", "n_link", "n_log", "n_other", "n_zero"];
    let files: Vec<_> = files.iter().map(|name| (*name, &b"as it was listed"[..])).collect();
    let site = ready(&files);
    let source = site.source();
    // With little memory there is one reader, which reads files in the order of their names.
    let run = backup_while(&site, &["--low-memory"], |name, before| {
        if (name, before) == ("m", 0) {
            let at = |name: &str| source.join(name);
            fs::remove_file(at("n_gone")).unwrap();
            fs::remove_file(at("n_link")).unwrap();
            symlink("m", at("n_link")).unwrap();
            fs::remove_file(at("n_dir")).unwrap();
            fs::create_dir_all(at("n_dir/below")).unwrap();
            fs::write(at("n_dir/below/file"), "new").unwrap();
            fs::write(site.path().join("other"), "another file").unwrap();
            fs::rename(site.path().join("other"), at("n_other")).unwrap();
            File::create(at("n_zero")).unwrap();
            OpenOptions::new().append(true).open(at("n_log")).unwrap().write_all(b", and more").unwrap();
        }
    });
    let run = run.code(3);
    assert_eq!(problems(&run).len(), 1, "{run}");
    assert!(problems(&run)[0].contains("n_gone") && problems(&run)[0].contains("it vanished"), "{run}");
    let json = run.json();
    let counts = ["files", "directories", "others"].map(|field| number(&json, field));
    assert_eq!(counts, [5, 3, 1], "{json}");
    assert_latest_equals_source(&site, "out");
    settle();
    assert_nothing_is_read_again(&site);
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_file_that_becomes_excluded_before_it_is_opened_is_not_stored() {
    let site = ready(&[("m", b"as it was"), ("n", b"as it was listed")]);
    let path = site.source().join("n");
    let run = backup_while(&site, &["--low-memory", "--exclude", "n/"], |name, before| {
        if (name, before) == ("m", 0) {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "new").unwrap();
        }
    });
    let json = run.ok().json();
    assert_eq!(["files", "directories"].map(|field| number(&json, field)), [1, 1], "{json}");
    assert!(!restored(&site, "out").join("n").exists());
}

#[test]
fn a_file_that_grows_or_shrinks_while_it_is_read_is_read_again() {
    let site = ready(&[("grows", &noise("g", 2 * MIB)), ("shrinks", &noise("s", 2 * MIB)), ("zero", b"much")]);
    let source = site.source();
    let run = backup_while(&site, &[], |name, before| {
        let open = || OpenOptions::new().append(true).open(source.join(name)).unwrap();
        match (name, before) {
            ("grows", 0 | 1) => open().write_all(&noise("more", 100)).unwrap(),
            ("shrinks", 0) => open().set_len(1_500_000).unwrap(),
            ("zero", 0) => open().set_len(0).unwrap(),
            _ => {}
        }
    });
    assert_eq!(problems(&run.ok()), [""; 0]);
    assert_latest_equals_source(&site, "out");
    settle();
    assert_nothing_is_read_again(&site);
}

#[test]
fn a_file_with_several_names_has_valid_content_under_each() {
    let site = ready(&[("a", &noise("old", 5000)), ("z", b"last")]);
    for name in ["b", "d1"] {
        fs::hard_link(site.source().join("a"), site.source().join(name)).unwrap();
    }
    settle();
    let source = site.source();
    let run = backup_while(&site, &["--low-memory"], |name, before| {
        // Between two of its names.
        if (name, before) == ("z", 0) {
            overwrite(&source.join("a"), &noise("new", 5000));
        }
    });
    run.ok();
    // All names were read before; the next backup detects the change.
    settle();
    site.backup(&[]).ok();
    assert_latest_equals_source(&site, "out");
}

#[test]
fn a_directory_may_vanish_during_a_backup() {
    let site = ready(&[("a", b"first"), ("d/x", b"one"), ("d/e/y", b"two"), ("f/z", b"three")]);
    let source = site.source();
    let run = backup_while(&site, &[], |name, before| {
        if (name, before) == ("a", 0) {
            fs::rename(source.join("d"), source.join("moved")).unwrap();
            fs::remove_dir_all(source.join("f")).unwrap();
        }
    });
    // The walk may have passed it before.
    assert!([0, 3].contains(&run.code), "{run}");
    site.brackfs(&["check", "--read-data"]).ok();
    settle();
    site.backup(&[]).ok();
    assert_latest_equals_source(&site, "out");
}

/// A deferred file whose directory is gone when it is read again.
#[test]
fn a_file_whose_directory_vanishes_is_reported() {
    let site = ready(&[("f", b"some"), ("d/x", b"still")]);
    // A directory of its own for the marked file.
    let inner = site.source().join("d");
    let flags = InitFlags::FAN_CLASS_CONTENT;
    let watch = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
    let mask = MaskFlags::FAN_ACCESS_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
    watch.mark(MarkFlags::FAN_MARK_ADD, mask, nix::fcntl::AT_FDCWD, Some(&inner)).unwrap();
    let run = thread::scope(|threads| {
        threads.spawn(|| {
            for event in watch.read_events().unwrap() {
                overwrite(&inner.join("x"), b"other");
                fs::rename(&inner, site.path().join("elsewhere")).unwrap();
                let answer = FanotifyResponse::new(event.fd().unwrap(), Response::FAN_ALLOW);
                watch.write_response(answer).unwrap();
            }
        });
        site.backup(&["--settle-max", "200ms"])
    });
    let run = run.code(3);
    assert_eq!(problems(&run).len(), 1, "{run}");
    assert!(problems(&run)[0].contains("d/x") && problems(&run)[0].contains("it vanished"), "{run}");
    site.brackfs(&["check", "--read-data"]).ok();
    settle();
    site.backup(&[]).ok();
    assert_latest_equals_source(&site, "out");
}

/// Mounts a separate ext4 at the source.
fn on_ext4(site: &Site, options: &[&str]) {
    let image = site.path().join("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(&image));
    // It is unmounted with the site.
    succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(site.source()));
    fs::remove_dir(site.source().join("lost+found")).unwrap();
}

fn stamps(path: &Path) -> (i64, i64, i64, i64) {
    let stat = fs::metadata(path).unwrap();
    (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec())
}

/// Waits for the beginning of a second.
fn wait_for_next_second() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    thread::sleep(Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into()));
}

#[test]
fn the_next_backup_sees_changes_within_a_tick_of_the_clock() {
    let site = Site::new();
    site.init();
    // Such small inodes store only whole seconds.
    on_ext4(&site, &["-I", "128"]);
    let path = site.source().join("f");
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 20, "a backup takes longer than a second");
        wait_for_next_second();
        fs::write(&path, format!("old {tries:4}")).unwrap();
        let before = stamps(&path);
        assert_eq!((before.1, before.3), (0, 0));
        site.backup(&["--settle-max", "0"]).ok();
        overwrite(&path, format!("new {tries:4}").as_bytes());
        common::set_time(&path, before.0, 0);
        // The stamps do not show the change.
        if stamps(&path) == before {
            break;
        }
    }
    site.backup(&["--settle-max", "0"]).ok();
    assert_latest_equals_source(&site, "out");
}

#[test]
fn a_backup_waits_until_fresh_files_can_be_trusted() {
    let site = Site::new();
    site.init();
    on_ext4(&site, &["-I", "128"]);
    site.write("d/f", "new");
    site.write("d/e/g", noise("large", 2 * MIB));
    let run = site.backup(&[]).ok();
    let json = run.json();
    assert_eq!(number(&json, "files_read"), 2, "{json}");
    assert!(json["seconds"].as_f64().unwrap() > 0.9, "{json}");
    assert_latest_equals_source(&site, "out");
    assert_nothing_is_read_again(&site);
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn an_interrupt_ends_the_wait() {
    let site = Site::new();
    site.init();
    on_ext4(&site, &["-I", "128"]);
    site.write("f", "new");
    // Half an hour ahead of the clock: a time more than an hour ahead would be ignored.
    let ahead = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + 1800;
    common::set_time(&site.source().join("f"), ahead, 0);
    let log = site.path().join("log");
    let arguments = ["backup", "source", "--settle-max", "1h", "--log", log.to_str().unwrap()];
    let mut child = site.command(&arguments).spawn().unwrap();
    until("it waits for the file", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended without waiting");
        fs::read_to_string(&log).is_ok_and(|log| log.contains("waiting for files that have just changed"))
    });
    send(&child, Signal::INT);
    assert_eq!(ended(&mut child).code(), Some(130));
    // Does not wait.
    site.backup(&["--settle-max", "0"]).ok();
}

/// Python can map a file and write to it without `unsafe`.
const MAPPED: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
for line in sys.stdin:
    mapped[0:len(line) - 1] = line[:-1].encode()
    print('done', flush=True)
";

#[test]
fn writes_through_a_mapping_are_seen() {
    let site = Site::new();
    site.init();
    on_ext4(&site, &[]);
    let path = site.write("f", noise("f", 20_000));
    settle();
    let mut writer = Command::new("python3");
    writer.args(["-c", MAPPED]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = spawn(&mut writer);
    let (mut orders, mut answers) = (writer.stdin.take().unwrap(), writer.stdout.take().unwrap());
    let mut order = |text: &str| {
        writeln!(orders, "{text}").unwrap();
        let mut answer = [0; 5];
        std::io::Read::read_exact(&mut answers, &mut answer).unwrap();
    };
    order("first");
    settle();
    // The page may not be written back yet, so a second change would leave no new stamps.
    site.backup(&[]).ok();
    order("second");
    site.backup(&[]).ok();
    assert_latest_equals_source(&site, "second");
    drop(orders);
    writer.wait().unwrap();
    settle();
    site.backup(&[]).ok();
    assert_nothing_is_read_again(&site);
}

/// Its next write may already have a time stamp.
#[test]
fn a_young_file_that_is_open_for_writing_is_read_again() {
    let site = ready(&[("f", b"some"), ("g", b"other")]);
    // In another process: programs that other tests start inherit open files of this one for a moment.
    let file = OpenOptions::new().append(true).open(site.source().join("f")).unwrap();
    let mut writer = spawn(Command::new("sleep").arg("1000").stdout(file));
    for _ in 0..2 {
        site.backup(&["--reread"]).ok();
        assert_eq!(number(&site.backup(&[]).ok().json(), "files_read"), 1);
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    site.backup(&[]).ok();
    assert_nothing_is_read_again(&site);
    assert_latest_equals_source(&site, "out");
}

#[test]
fn a_device_with_another_number_is_the_same_device() {
    let site = ready(&[("d/e/a", b"one"), ("d/b", b"two"), ("h1", b"linked")]);
    fs::hard_link(site.source().join("h1"), site.source().join("d/h2")).unwrap();
    settle();
    site.backup(&[]).ok();
    // As after a reboot that numbered devices in another order.
    let catalogs: Vec<_> = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let catalog = rusqlite::Connection::open(catalogs[0].join("catalog.sqlite")).unwrap();
    catalog.execute_batch("UPDATE directories SET dev = dev + 7; UPDATE links SET dev = dev + 7").unwrap();
    drop(catalog);
    fs::rename(site.source().join("d"), site.source().join("moved")).unwrap();
    site.write("new", "");
    settle();
    let json = site.backup(&[]).ok().json();
    assert_eq!(number(&json, "files_read"), 1, "{json}");
    // Both names still share one inode.
    assert_latest_equals_source(&site, "out");
}
