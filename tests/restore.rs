//! `brackfs restore`, `cat` and `ls`: unchanged files, and no change to other files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::machine;
use common::{Run, Site, content, run, set_mode, set_time, settle, tree, with_umask};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A site with these files, backed up.
fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site.backup(&[]).ok();
    site
}

/// Restores into a directory with these options.
#[must_use = "it may have failed: say .ok() or .code(n)"]
fn restore(site: &Site, what: &str, to: &Path, extra: &[&str]) -> Run {
    let mut arguments = vec!["restore", what, "--json", "--to", to.to_str().unwrap()];
    arguments.extend(extra);
    site.brackfs(&arguments)
}

/// A source with an entry of every kind.
fn motley() -> Site {
    let site = Site::new();
    let mut large = vec![0; 3 * MIB + 17];
    blake3::Hasher::new().update(b"large").finalize_xof().fill(&mut large);
    site.write("large", &large);
    for (name, mode) in [("plain", 0o644), ("private", 0o600), ("set-id", 0o6755), ("closed", 0o000)] {
        set_mode(&site.write(&format!("modes/{name}"), name), mode);
    }
    set_mode(&site.source().join("modes"), 0o3711);
    for (name, owner, group) in [("daemon", 1, 1), ("unknown", 123_456, 4_000_000_000)] {
        let path = site.write(&format!("owners/{name}"), name);
        chown(&path, Some(owner), Some(group)).unwrap();
        set_mode(&path, 0o4750);
    }
    chown(site.source().join("owners"), Some(1), Some(2)).unwrap();
    let below = site.source();
    symlink("nowhere/at all", below.join("dangling")).unwrap();
    symlink("modes/plain", below.join("link")).unwrap();
    lchown(below.join("link"), Some(7), Some(8)).unwrap();
    fs::create_dir(below.join("empty")).unwrap();
    site.write("nothing", "");
    site.write("names/first", "of three");
    fs::create_dir(below.join("names/more")).unwrap();
    for name in ["names/second", "names/more/third"] {
        fs::hard_link(below.join("names/first"), below.join(name)).unwrap();
    }
    for name in [&b"line\nbreak"[..], b"not \xff UTF-8 \xc3", b"-rf *"] {
        fs::write(below.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, below.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    for (name, seconds, nanoseconds) in [
        ("times/long-ago", -1_234_567_890, 987_654_321),
        ("times/just-before", -1, 999_999_999),
        ("times/now", 1_700_000_000, 123_456_789),
        ("times/after-2038", 4_102_444_800, 1),
    ] {
        set_time(&site.write(name, name), seconds, nanoseconds);
    }
    set_time(&below.join("dangling"), 1_000_000_000, 5);
    set_time(&below.join("fifo"), 1_000_000_000, 6);
    for (name, nanoseconds) in [("times", 1), ("names/more", 2), ("names", 3), ("empty", 4), ("", 5)] {
        set_time(&below.join(name), -86_400, nanoseconds);
    }
    settle();
    site.init();
    site.backup(&[]).ok();
    site
}

#[test]
fn the_restored_tree_equals_the_source() {
    let site = motley();
    let out = site.path().join("out");
    let summary = restore(&site, "latest", &out, &[]).ok().json();
    assert_eq!(summary["problems"], 0);
    let (found, expected) = (tree(&out), tree(&site.source()));
    for (path, entry) in &expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    assert_eq!(found, expected);
    let first = fs::metadata(out.join("names/first")).unwrap();
    assert_eq!(first.nlink(), 3);
}

#[test]
fn modes_and_owners_are_those_of_the_snapshot_under_any_umask_and_below_any_directory() {
    let site = motley();
    for mode in [0o400, 0o444, 0o640, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4777] {
        set_mode(&site.write(&format!("modes/{mode:o}"), "content"), mode);
    }
    site.backup(&[]).ok();
    for umask in [0o000, 0o022, 0o077, 0o777] {
        let above = site.path().join(format!("{umask:o}"));
        fs::create_dir(&above).unwrap();
        // New entries inherit the group.
        chown(&above, Some(3), Some(4)).unwrap();
        set_mode(&above, 0o2777);
        let to = above.join("restored");
        let brackfs = site.command(&["restore", "latest", "--json", "--to", to.to_str().unwrap()]);
        run(with_umask(umask, &brackfs)).ok();
        assert_eq!(tree(&to), tree(&site.source()), "umask {umask:o}");
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let site = Site::with_files(&[("small", "beside it")]);
    let path = site.write("sparse", "the beginning");
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(40 * MIB as u64)).unwrap();
    file.write_all(b"the middle").unwrap();
    file.set_len(64 * MIB as u64).unwrap();
    settle();
    site.init();
    site.backup(&[]).ok();
    let out = site.path().join("out");
    restore(&site, "latest:sparse", &out, &[]).ok();
    let stat = fs::metadata(out.join("sparse")).unwrap();
    assert_eq!(stat.size(), 64 * MIB as u64);
    assert!(stat.blocks() * 512 < MIB as u64, "{} blocks", stat.blocks());
    assert_eq!(content(&out.join("sparse")).unwrap(), content(&path).unwrap());
}

#[test]
fn restoring_a_directory_restores_its_entries() {
    let site = motley();
    let out = site.path().join("out");
    restore(&site, "source/latest:names", &out, &[]).ok();
    assert_eq!(tree(&out), tree(&site.source().join("names")));
}

#[test]
fn one_file_can_be_restored() {
    let site = motley();
    let out = site.path().join("out/new/folders");
    restore(&site, "latest:times/long-ago", &out, &[]).ok();
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["long-ago"]);
    assert_eq!(tree(&out.join("long-ago")), tree(&site.source().join("times/long-ago")));
}

#[test]
fn one_name_of_several_can_be_restored() {
    let site = motley();
    let out = site.path().join("out");
    restore(&site, "latest:names/second", &out, &[]).ok();
    assert_eq!(fs::read(out.join("second")).unwrap(), b"of three");
}

#[test]
fn a_path_that_is_not_in_the_snapshot_cannot_be_restored() {
    let site = ready(&[("a", "one")]);
    let out = site.path().join("out");
    for what in ["latest:missing", "latest:a/below", "other/latest", "ffffffffffff"] {
        let run = restore(&site, what, &out, &[]).code(1);
        assert!(!run.stderr.is_empty(), "{run}");
    }
}

/// A destination where `same` is as in the snapshot, and `differs` is not.
fn occupied() -> (Site, PathBuf) {
    let site = ready(&[("differs", "from the snapshot"), ("missing", "not there yet"), ("same", "the same")]);
    let out = site.path().join("out");
    restore(&site, "latest:same", &out, &[]).ok();
    fs::write(out.join("differs"), "mine").unwrap();
    // Equal size and time, so only an unconditional replacement changes it.
    let time = fs::metadata(out.join("same")).unwrap().modified().unwrap();
    fs::write(out.join("same"), "THE SAME").unwrap();
    File::options().write(true).open(out.join("same")).unwrap().set_modified(time).unwrap();
    (site, out)
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_conflict_stops_the_restore_and_nothing_is_overwritten() {
    let (site, out) = occupied();
    for extra in [&[][..], &["--conflict", "abort"]] {
        let run = restore(&site, "latest", &out, extra).code(1);
        assert!(run.stderr.contains(out.to_str().unwrap()) && run.stderr.contains("--conflict"), "{run}");
        assert_eq!(read(out.join("differs")), "mine");
        assert_eq!(read(out.join("same")), "THE SAME");
    }
}

#[test]
fn conflict_skip_keeps_existing_files() {
    let (site, out) = occupied();
    let summary = restore(&site, "latest", &out, &["--conflict", "skip"]).ok().json();
    assert_eq!(summary["skipped"], 2);
    assert_eq!(summary["files"], 1);
    assert_eq!(read(out.join("differs")), "mine");
    assert_eq!(read(out.join("same")), "THE SAME");
    assert_eq!(read(out.join("missing")), "not there yet");
}

#[test]
fn conflict_overwrite_replaces_existing_files() {
    let (site, out) = occupied();
    let summary = restore(&site, "latest", &out, &["--conflict", "overwrite"]).ok().json();
    assert_eq!(summary["files"], 3);
    assert_eq!(tree(&out), tree(&site.source()));
}

#[test]
fn conflict_update_replaces_files_that_look_different() {
    let (site, out) = occupied();
    let summary = restore(&site, "latest", &out, &["--conflict", "update"]).ok().json();
    assert_eq!(summary["skipped"], 1);
    assert_eq!(read(out.join("differs")), "from the snapshot");
    assert_eq!(read(out.join("missing")), "not there yet");
    assert_eq!(read(out.join("same")), "THE SAME");
}

#[test]
fn a_second_restore_with_overwrite_gives_the_same_tree() {
    let site = motley();
    let out = site.path().join("out");
    restore(&site, "latest", &out, &[]).ok();
    for conflict in ["overwrite", "update", "skip"] {
        restore(&site, "latest", &out, &["--conflict", conflict]).ok();
        assert_eq!(tree(&out), tree(&site.source()), "{conflict}");
    }
}

#[test]
fn files_that_are_not_in_the_snapshot_stay() {
    let site = ready(&[("d/a", "one")]);
    let out = site.path().join("out");
    fs::create_dir_all(out.join("d")).unwrap();
    fs::write(out.join("d/mine"), "mine").unwrap();
    restore(&site, "latest", &out, &[]).ok();
    assert_eq!(read(out.join("d/mine")), "mine");
    assert_eq!(read(out.join("d/a")), "one");
}

#[test]
fn a_link_in_place_of_a_directory_is_not_followed() {
    let site = ready(&[("dir/a", "one"), ("dir/below/b", "two"), ("z", "last")]);
    let elsewhere = site.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("below")).unwrap();
    let before = tree(&elsewhere);
    for conflict in ["abort", "skip", "overwrite", "update"] {
        let out = site.path().join(format!("out-{conflict}"));
        fs::create_dir(&out).unwrap();
        symlink(&elsewhere, out.join("dir")).unwrap();
        let run = restore(&site, "latest", &out, &["--conflict", conflict]);
        assert_eq!(tree(&elsewhere), before, "written through the link\n{run}");
        if fs::symlink_metadata(out.join("dir")).unwrap().is_symlink() {
            // It was not restored, so the output must name it.
            let run = run.code(1);
            assert!(run.stderr.contains("dir"), "{run}");
        }
        assert_eq!(read(out.join("z")), "last", "the rest is restored");
    }
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let site = ready(&[("a", "one")]);
    let elsewhere = site.path().join("elsewhere");
    fs::write(&elsewhere, "not to be touched").unwrap();
    let before = tree(&elsewhere);
    for conflict in ["abort", "skip", "overwrite", "update"] {
        let out = site.path().join(format!("out-{conflict}"));
        fs::create_dir(&out).unwrap();
        symlink(&elsewhere, out.join("a")).unwrap();
        let run = restore(&site, "latest", &out, &["--conflict", conflict]);
        assert_eq!(tree(&elsewhere), before, "written through the link\n{run}");
        let replaced = !fs::symlink_metadata(out.join("a")).unwrap().is_symlink();
        assert_eq!(replaced, ["overwrite", "update"].contains(&conflict), "{run}");
    }
}

#[test]
fn a_file_that_looks_the_same_is_not_a_conflict() {
    let (site, out) = occupied();
    fs::remove_file(out.join("differs")).unwrap();
    let summary = restore(&site, "latest", &out, &[]).ok().json();
    assert_eq!((summary["skipped"].as_u64(), summary["files"].as_u64()), (Some(1), Some(2)));
    assert_eq!(read(out.join("differs")), "from the snapshot");
}

#[test]
fn patterns_select_the_restored_files() {
    let site =
        ready(&[("a/x.c", "1"), ("a/x.h", "2"), ("a/old/y.c", "3"), ("b/all/one", "4"), ("b/z", "5"), ("e/f", "6")]);
    fs::set_permissions(site.source().join("a"), fs::Permissions::from_mode(0o711)).unwrap();
    settle();
    site.backup(&[]).ok();
    let restored = |out: &str, extra: &[&str]| {
        let out = site.path().join(out);
        let summary = restore(&site, "latest", &out, extra).ok().json();
        let found: Vec<_> = tree(&out).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
        (summary["files"].as_u64().unwrap(), found[1..].join(" "))
    };
    let chosen = restored("include", &["--include", "*.c", "--include", "/b/all"]);
    assert_eq!(chosen, (3, "a a/old a/old/y.c a/x.c b b/all b/all/one".into()));
    // Parents of included files get their recorded modes.
    assert_eq!(fs::metadata(site.path().join("include/a")).unwrap().mode() & 0o777, 0o711);
    let chosen = restored("both", &["--include", "*.c", "--exclude", "old/"]);
    assert_eq!(chosen, (1, "a a/x.c".into()));
    assert_eq!(restored("exclude", &["--exclude", "/a", "--exclude", "z"]), (2, "b b/all b/all/one e e/f".into()));
    assert_eq!(restored("nothing", &["--include", "nowhere"]), (0, String::new()));
    for (include, noted) in [("nowhere", true), ("z", false), ("e/", false)] {
        let run = restore(&site, "latest", &site.path().join("both"), &["--include", include, "-n"]).ok();
        assert_eq!(run.stderr.contains("nothing in the snapshot matches --include"), noted, "{include} {run}");
    }
    let run = restore(&site, "latest", &site.path().join("bad"), &["--include", "[a"]).code(2);
    assert!(run.stderr.contains("[a"), "{run}");
}

#[test]
fn nothing_is_restored_into_the_repository() {
    let site = ready(&[("packs/f", "f")]);
    std::os::unix::fs::symlink(site.repo(), site.path().join("link")).unwrap();
    let before = tree(&site.repo());
    for to in
        ["repo", "repo/packs", "repo/new/below", "link/packs", "link", "new/../repo/x", "link/../repo/packs/new/.."]
    {
        for extra in [&["--conflict", "overwrite"][..], &["--dry-run"]] {
            let run = restore(&site, "latest", &site.path().join(to), extra).code(1);
            assert!(run.stderr.contains("it is in the repository"), "{to} {run}");
        }
    }
    assert_eq!(tree(&site.repo()), before);
    for to in ["repository", "repo/../beside", "link/../next"] {
        restore(&site, "latest", &site.path().join(to), &[]).ok();
    }
}

#[test]
fn a_dry_run_prints_its_result_without_a_terminal() {
    let site = ready(&[("a", "one")]);
    let mut arguments = vec!["restore", "latest", "--to", "out", "-n"];
    assert!(site.brackfs(&arguments).ok().stderr.contains("would be restored; 0 skipped"));
    arguments.push("-q");
    assert_eq!(site.brackfs(&arguments).ok().stderr, "");
}

#[test]
fn existing_parents_of_restored_files_keep_their_metadata() {
    let site = ready(&[("a/b", "1"), ("a/c", "2")]);
    let out = site.path().join("out");
    fs::create_dir_all(out.join("a")).unwrap();
    set_mode(&out.join("a"), 0o750);
    set_mode(&out, 0o751);
    restore(&site, "latest", &out, &["--include", "b"]).ok();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(out.join("a")), mode(out.clone())), (0o750, 0o751));
    assert_eq!(read(out.join("a/b")), "1");
}

#[test]
fn a_dry_run_changes_nothing_and_has_the_same_counts() {
    let (site, out) = occupied();
    let before = tree(&out);
    for extra in [&["--conflict", "skip"][..], &["--conflict", "update"], &["--conflict", "overwrite"]] {
        let dry = restore(&site, "latest", &out, &[extra, &["--dry-run"]].concat()).ok().json();
        assert_eq!(tree(&out), before);
        let copy = site.path().join(format!("copy {}", extra[1]));
        machine::copy(&out, &copy);
        let real = restore(&site, "latest", &copy, extra).ok().json();
        for count in ["files", "bytes", "skipped", "directories", "others", "problems"] {
            assert_eq!(dry[count], real[count], "{count} {extra:?}");
        }
    }
    let run = restore(&site, "latest", &out, &["--dry-run"]).code(1);
    assert!(run.stderr.contains("--conflict"), "{run}");
    let missing = site.path().join("not there");
    let run = restore(&site, "latest", &missing, &["--dry-run", "-v"]).ok();
    assert!(!missing.exists());
    assert_eq!(run.stderr, "");
    let lines = run.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    assert_eq!(lines.filter(|line| line["action"] == "would restore").count(), 3, "{run}");
}

/// A site, and a restore of it to `out` that was interrupted by a signal.
fn broken_off(signal: Signal) -> (Site, PathBuf, i32) {
    let site = Site::on_tmpfs();
    let mut noise = vec![0; 8 * MIB];
    for i in 0..40 {
        blake3::Hasher::new().update(&[i]).finalize_xof().fill(&mut noise);
        site.write(&format!("d{}/{i}", i % 4), &noise);
    }
    fs::hard_link(site.source().join("d0/0"), site.source().join("d1/zz")).unwrap();
    set_mode(&site.source().join("d0"), 0o2511);
    set_mode(&site.source(), 0o751);
    let immutable = File::open(site.source().join("d0/0")).unwrap();
    rustix::fs::ioctl_setflags(&immutable, rustix::fs::IFlags::IMMUTABLE).unwrap();
    settle();
    site.brackfs(&["init", site.repo().to_str().unwrap(), "--no-encryption"]).ok();
    site.backup(&[]).ok();
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    let files = || fs::read_dir(out.join("d0")).map_or(0, |names| names.count());
    // Slow enough for a signal in the middle.
    let slow = ["--limit-download", "100MiB"];
    let arguments = [&["restore", "latest", "--to", out.to_str().unwrap()], &slow[..]].concat();
    let mut child = site.command(&arguments).spawn().unwrap();
    while files() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
    let status = child.wait().unwrap();
    assert!(!out.join("d3").exists() || fs::read_dir(out.join("d3")).unwrap().count() < 10, "it was done before");
    (site, out, status.code().unwrap_or_default())
}

#[test]
fn an_interrupted_restore_continues_when_it_is_run_again() {
    for (signal, code) in [(Signal::KILL, 0), (Signal::INT, 130)] {
        let (site, out, found) = broken_off(signal);
        assert_eq!(found, code);
        let summary = restore(&site, "latest", &out, &[]).ok().json();
        assert!(summary["skipped"].as_u64().unwrap() > 0, "{summary}");
        // No temporary file is left, and late metadata is complete.
        assert_eq!(tree(&out), tree(&site.source()));
        let flags = rustix::fs::ioctl_getflags(File::open(out.join("d1/zz")).unwrap()).unwrap();
        assert!(flags.contains(rustix::fs::IFlags::IMMUTABLE));
    }
}

#[test]
fn existing_directories_keep_their_metadata_unless_files_are_replaced() {
    let site = ready(&[("d/a", "one"), ("d/e/b", "two")]);
    for (conflict, mode) in [("abort", 0o1777), ("skip", 0o1777), ("update", 0o755), ("overwrite", 0o755)] {
        let out = site.path().join(conflict);
        fs::create_dir_all(out.join("d/mine")).unwrap();
        set_mode(&out, 0o1777);
        set_mode(&out.join("d"), 0o1777);
        restore(&site, "latest", &out, &["--conflict", conflict]).ok();
        for path in [out.clone(), out.join("d")] {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
        }
        assert_eq!(fs::metadata(out.join("d/e")).unwrap().mode() & 0o7777, 0o755);
    }
}

#[test]
fn existing_private_directories_stay_private() {
    let site = ready(&[("d/a", "one"), ("d/e/b", "two")]);
    for path in ["", "d", "d/e"] {
        chown(site.source().join(path), Some(1), Some(2)).unwrap();
        set_mode(&site.source().join(path), 0o777);
    }
    settle();
    site.backup(&[]).ok();
    for conflict in ["abort", "skip"] {
        let out = site.path().join(conflict);
        fs::create_dir_all(out.join("d/e")).unwrap();
        fs::write(out.join("d/secret"), "mine").unwrap();
        for path in ["", "d", "d/e"] {
            set_mode(&out.join(path), 0o700);
        }
        restore(&site, "latest", &out, &["--conflict", conflict]).ok();
        for path in ["", "d", "d/e"] {
            let stat = fs::metadata(out.join(path)).unwrap();
            assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o700, 0, 0), "{path:?} {conflict}");
        }
        assert_eq!(read(out.join("d/e/b")), "two");
    }
}

#[test]
fn a_directory_that_gets_one_file_keeps_its_metadata() {
    let site = ready(&[("a", "one")]);
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    set_mode(&out, 0o751);
    restore(&site, "latest:a", &out, &[]).ok();
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o751);
}

#[test]
fn metadata_that_cannot_be_set_does_not_prevent_the_content() {
    let site = Site::on_tmpfs();
    let (path, value) = (site.write("file", "content"), vec![b'x'; 60_000]);
    rustix::fs::setxattr(&path, "user.large", &value, rustix::fs::XattrFlags::empty()).unwrap();
    fs::create_dir(site.source().join("directory")).unwrap();
    rustix::fs::setxattr(site.source().join("directory"), "user.large", &value, rustix::fs::XattrFlags::empty())
        .unwrap();
    set_mode(&site.source().join("directory"), 0o711);
    settle();
    site.brackfs(&["init", site.repo().to_str().unwrap(), "--no-encryption"]).ok();
    site.backup(&[]).ok();
    // A file system without space for such attributes.
    let image = site.path().join("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let out = site.path().join("mnt");
    for command in [&["mkfs.ext4", "-q", "-F", "-I", "256"][..], &["mount", "-o", "loop"]] {
        let mut run = std::process::Command::new(command[0]);
        run.args(&command[1..]).arg(&image);
        if command[0] == "mount" {
            run.arg(&out);
        }
        machine::succeed(&mut run);
    }
    let run = restore(&site, "latest", &out, &[]).code(1);
    assert!(run.stderr.contains("user.large") && run.stderr.contains("file"), "{run}");
    assert_eq!(run.json()["problems"], 2, "{run}");
    assert_eq!(read(out.join("file")), "content");
    assert_eq!(fs::metadata(out.join("directory")).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fs::metadata(out.join("file")).unwrap().mtime(), fs::metadata(&path).unwrap().mtime());
    // The same for an owner without a mapping, as in a user namespace.
    chown(&path, Some(1234), Some(1234)).unwrap();
    site.backup(&[]).ok();
    let inner = site.command(&["restore", "latest", "--to", site.path().join("inner").to_str().unwrap()]);
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(inner.get_program()).args(inner.get_args());
    command.env("BRACKFS_STATE_DIR", site.state()).env("BRACKFS_REPOSITORY", site.repo());
    let run = common::run(command).ok();
    assert_eq!(run.stderr.matches("owner or group").count(), 1, "{run}");
    assert_eq!(read(site.path().join("inner/file")), "content");
}

#[test]
fn a_dry_run_predicts_links_and_conflicts() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("e", "three")]);
    for name in ["a2", "d/a3"] {
        fs::hard_link(site.source().join("a"), site.source().join(name)).unwrap();
    }
    settle();
    site.backup(&[]).ok();
    let compare = |name: &str, prepare: &dyn Fn(&Path), extra: &[&str]| {
        let [dry, real] = ["dry", "real"].map(|kind| {
            let out = site.path().join(format!("{name} {kind}"));
            fs::create_dir(&out).unwrap();
            prepare(&out);
            let mut arguments = extra.to_vec();
            arguments.extend((kind == "dry").then_some("--dry-run"));
            let run = restore(&site, "latest", &out, &arguments);
            let words = match kind {
                "dry" => "cannot be restored completely; the others can",
                _ => "could not be restored completely; the others are restored",
            };
            assert_eq!(run.stderr.contains(words), run.code == 1, "{run}");
            (run.code, run.stdout.replace("\"dry_run\":true", "\"dry_run\":false"))
        });
        assert_eq!(dry, real, "{name}");
    };
    compare("links", &|_| {}, &[]);
    compare("file for directory", &|out| fs::write(out.join("d"), "in the way").unwrap(), &["--conflict", "skip"]);
    compare("directory for file", &|out| fs::create_dir(out.join("e")).unwrap(), &["--conflict", "overwrite"]);
    compare("directory replaced", &|out| fs::write(out.join("d"), "in the way").unwrap(), &["--conflict", "update"]);
}

#[test]
fn no_unfinished_files_are_left() {
    let (site, out) = occupied();
    restore(&site, "latest", &out, &[]).code(1);
    restore(&site, "latest", &out, &["--conflict", "overwrite"]).ok();
    let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["differs", "missing", "same"]);
}

#[test]
fn cat_writes_the_content_of_a_file() {
    let site = motley();
    for name in ["large", "nothing", "modes/closed", "names/more/third"] {
        let copy = site.path().join("copy");
        let mut command = site.command(&["cat", &format!("latest:{name}")]);
        let status = command.stdout(File::create(&copy).unwrap()).stderr(Stdio::inherit()).status().unwrap();
        assert!(status.success(), "{name}: {status}");
        assert_eq!(content(&copy).unwrap(), content(&site.source().join(name)).unwrap(), "{name}");
    }
}

#[test]
fn cat_of_a_path_that_is_not_a_file_is_an_error() {
    let site = motley();
    for what in ["latest:modes", "latest:missing", "latest:fifo", "latest"] {
        let run = site.brackfs(&["cat", what]);
        assert_ne!(run.code, 0, "{run}");
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{run}");
    }
}

#[track_caller]
fn ls(site: &Site, arguments: &[&str]) -> Vec<String> {
    let run = site.brackfs(&[&["ls"], arguments].concat()).ok();
    run.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn ls_lists_one_directory_or_the_tree_below_it() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("d/e/c", "three"), ("z", "last")]);
    assert_eq!(ls(&site, &["latest"]), ["a", "d/", "z"]);
    assert_eq!(ls(&site, &["source/latest:d"]), ["b", "e/"]);
    assert_eq!(ls(&site, &["-R", "latest"]), ["a", "d/", "d/b", "d/e/", "d/e/c", "z"]);
    assert_eq!(ls(&site, &["--recursive", "latest:d"]), ["b", "e/", "e/c"]);
    assert_eq!(ls(&site, &["latest:d/b"]), ["b"]);
    assert_eq!(site.brackfs(&["ls", "latest:missing"]).code(1).stdout, "");
}

#[test]
fn ls_shows_mode_links_size_time_and_target() {
    let site = Site::with_files(&[("file", "seven b"), ("d/x", "")]);
    let file = site.source().join("file");
    set_mode(&file, 0o4750);
    chown(&file, Some(123_456), Some(654_321)).unwrap();
    set_mode(&file, 0o4750);
    fs::hard_link(&file, site.source().join("other")).unwrap();
    symlink("some/where", site.source().join("link")).unwrap();
    set_mode(&site.source().join("d"), 0o1777);
    settle();
    site.init();
    site.backup(&[]).ok();
    let lines = ls(&site, &["-l", "latest"]);
    let words: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
    let of =
        |name: &str| words.iter().find(|words| words.contains(&name)).unwrap_or_else(|| panic!("{name}: {lines:?}"));
    assert_eq!(of("file")[..], ["-rwsr-x---", "2", "123456", "654321", "7", "2020-01-01T00:00:00Z", "file"]);
    assert_eq!(of("other")[1], "2");
    assert_eq!(of("d")[0], "drwxrwxrwt");
    assert!(of("link")[0].starts_with('l'));
    assert!(of("link").ends_with(&["link", "->", "some/where"]), "{lines:?}");
    assert_eq!(words.len(), 4);
    // Entries below are shown with paths, as with -R alone.
    assert!(ls(&site, &["-lR", "latest"]).iter().any(|line| line.ends_with(" d/x")));
}

#[test]
fn ls_prints_an_object_for_each_entry() {
    let site = motley();
    let lines = ls(&site, &["--json", "-R", "latest"]);
    let objects: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut expected = tree(&site.source());
    expected.remove(Path::new(""));
    assert_eq!(objects.len(), expected.len());
    for (path, entry) in &expected {
        let lossy = path.to_string_lossy();
        let object = objects.iter().find(|object| object["path"] == *lossy).unwrap_or_else(|| panic!("{lossy}"));
        assert_eq!(object["mode"], entry.mode, "{lossy}");
        assert_eq!((&object["uid"], &object["gid"]), (&entry.uid.into(), &entry.gid.into()), "{lossy}");
        assert_eq!(object["mtime_nanos"], u64::try_from(entry.mtime.rem_euclid(1_000_000_000)).unwrap(), "{lossy}");
        if entry.content.is_some() {
            assert_eq!(object["size"], entry.size, "{lossy}");
        }
        let links = fs::symlink_metadata(site.source().join(path)).unwrap();
        if !links.is_dir() {
            assert_eq!(object["links"], links.nlink(), "{lossy}");
        }
        match &entry.target {
            Some(target) => assert_eq!(object["target"], *target.to_string_lossy()),
            None => assert_eq!(object["target"], Value::Null),
        }
        // Names that are not UTF-8 are also given exactly.
        assert_eq!(object["path_hex"].is_string(), path.to_str().is_none(), "{lossy}");
    }
}
