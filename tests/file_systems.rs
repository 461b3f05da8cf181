//! Repositories on file systems with missing features, and repositories with foreign files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::disk::{Disk, Operation};
use common::machine::copy;
use common::ordeal::{place_one, under_strace};
use common::silent::Silent;
use common::wait::{ended, send, until_it_waits_for_fuse};
use common::{Run, Site, age, run, settle, tree, with_umask};
use rustix::io::Errno;

fn files() -> Site {
    Site::with_files(&[("file", b"content".to_vec()), ("large", vec![7; 3 << 20])])
}

fn init_command(site: &Site) -> Command {
    site.command(&["init".into(), site.repo(), "--no-encryption".into()])
}

/// Backs up twice, checks, and restores.
#[track_caller]
fn serves(site: &Site, wrapped: impl Fn(Command) -> Command) {
    for content in ["more", "still more"] {
        site.write("new", content);
        age(&site.source());
        settle();
        run(wrapped(site.command(&["backup".into(), site.source()]))).ok();
    }
    run(wrapped(site.command(&["check", "--read-data"]))).ok();
    let out = site.path().join("out");
    let arguments: [OsString; 4] = ["restore".into(), "latest".into(), "--to".into(), out.clone().into()];
    run(wrapped(site.command(&arguments))).ok();
    assert_eq!(tree(&out), tree(&site.source()));
    let left = temporaries(site);
    assert!(left.is_empty(), "temporary files are left: {left:?}");
}

#[track_caller]
fn says(run: &Run, words: &[&str]) {
    for word in words {
        assert_eq!(run.stderr.matches(word).count(), 1, "it does not say {word:?} once\n{run}");
    }
}

#[test]
fn a_repository_needs_neither_hard_links_nor_sync_of_folders() {
    for error in [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOTTY] {
        let site = files();
        let at = site.path().join("disk");
        fs::create_dir(&at).unwrap();
        let disk = Disk::mount(&at);
        place_one(&site, "repo", &at);
        disk.rename_plainly();
        disk.refuse(Operation::SyncFolder, 1, error.raw_os_error(), false);
        let made = run(init_command(&site)).ok();
        says(&made, &["hard links", "does not sync directories"]);
        serves(&site, |command| command);
        // `init` reports it; backups do not repeat it.
        assert_eq!(site.backup(&[]).ok().stderr, "");
        assert!(disk.relent() > 0);
    }
}

#[test]
fn a_repository_needs_no_unnamed_files_openat2_or_proc() {
    for injected in [
        &["linkat:error=EPERM"][..],
        &["linkat:error=ENOENT"],
        &["linkat:error=EIO", "renameat2:error=EINVAL"],
        &["linkat:error=EPERM", "renameat2:error=ENOSYS"],
        &["openat2:error=ENOSYS"],
        &["openat2:error=EPERM"],
    ] {
        let site = files();
        let wrapped = |command: Command| {
            let injected = injected.iter().flat_map(|what| ["-e".to_owned(), format!("inject={what}")]);
            let calls = ["-o", "/dev/null", "-e", "trace=linkat,renameat2,openat2"].map(str::to_owned);
            let arguments: Vec<_> = calls.into_iter().chain(injected).collect();
            under_strace(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &command)
        };
        run(wrapped(init_command(&site))).ok();
        for content in ["more", "still more"] {
            site.write("new", content);
            age(&site.source());
            settle();
            run(wrapped(site.command(&["backup".into(), site.source()]))).ok();
        }
        run(wrapped(site.command(&["check", "--read-data"]))).ok();
        serves(&site, |command| command);
    }
}

#[test]
fn a_file_is_written_where_its_mode_cannot_be_changed() {
    let site = Site::new();
    let key = site.path().join("new.key");
    let mut command = site.command(&["key".into(), "generate".into(), "--output".into(), key.clone()]);
    command.env("BRACKFS_PASSPHRASE", "secret");
    let refused = ["-o", "/dev/null", "-e", "trace=fchmod", "-e", "inject=fchmod:error=EPERM"];
    // The umask restricts the mode of the public certificate.
    run(under_strace(&refused, &with_umask(0o077, &command))).ok();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&key), mode(&site.path().join("new.key.pub"))), (0o600, 0o600));
}

#[test]
fn a_failed_init_leaves_nothing() {
    let site = files();
    let at = site.path().join("disk");
    fs::create_dir(&at).unwrap();
    let disk = Disk::mount(&at);
    place_one(&site, "repo", &at);
    for nth in 1..20 {
        disk.refuse(Operation::Rename, nth, Errno::IO.raw_os_error(), true);
        let made = run(init_command(&site));
        if disk.relent() == 0 {
            made.ok();
            break;
        }
        made.code(1);
        assert_eq!(fs::read_dir(site.repo()).unwrap().count(), 0, "a part of a repository is left");
        assert_eq!(fs::read_dir(site.state()).unwrap().count(), 0, "keys of no repository are left");
    }
    serves(&site, |command| command);
}

#[test]
fn the_next_init_replaces_a_killed_one() {
    for nth in 1..100 {
        let site = files();
        let kill = format!("inject=fsync:signal=KILL:when={nth}");
        let arguments = ["-o", "/dev/null", "-e", "trace=fsync", "-e", kill.as_str()];
        let whole = run(under_strace(&arguments, &init_command(&site))).code == 0;
        if !whole && !site.repo().join("brackfs.toml").exists() {
            run(init_command(&site)).ok();
        }
        serves(&site, |command| command);
        if whole {
            assert!(nth > 5);
            return;
        }
    }
    panic!("init syncs without end");
}

/// The temporary files in the repository.
fn temporaries(site: &Site) -> Vec<PathBuf> {
    tree(&site.repo()).into_keys().filter(|path| path.to_string_lossy().contains(".tmp-")).collect()
}

/// Runs a command without links, so that each object is written to a temporary file that has a name, and kills it at a
/// rename.
fn killed_at_rename(nth: u32, command: &Command) -> Run {
    let kill = format!("inject=renameat2:signal=KILL:when={nth}");
    let arguments = ["-o", "/dev/null", "-e", "trace=linkat,renameat2", "-e", "inject=linkat:error=EPERM", "-e", &kill];
    run(under_strace(&arguments, command))
}

#[test]
fn temporary_files_of_a_killed_run_are_removed_by_the_next_and_those_of_others_stay() {
    let mut removed = 0;
    for nth in 1..20 {
        let site = files();
        run(init_command(&site)).ok();
        site.backup(&[]).ok();
        let other = format!("packs/.tmp-{}-{}", uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        fs::write(site.repo().join(&other), "another writer").unwrap();
        site.write("new", "new");
        age(&site.source());
        settle();
        let whole = killed_at_rename(nth, &site.command(&["backup".into(), site.source()])).code == 0;
        let left = temporaries(&site);
        let next = site.backup(&[]).ok();
        assert_eq!(temporaries(&site), [Path::new(&other)], "killed at the rename {nth}\n{next}");
        removed += left.len() - 1;
        if whole {
            assert!(removed > 1, "{removed}");
            return;
        }
    }
    panic!("backup renames without end");
}

#[test]
fn temporary_files_of_a_killed_adoption_are_removed_by_the_next() {
    let site = files();
    run(init_command(&site)).ok();
    site.backup(&[]).ok();
    let host = |key: PathBuf| Some(key.to_str()?.strip_prefix("host-")?.strip_suffix(".asc")?.to_owned());
    let before = site.path().join("before");
    copy(&site.repo(), &before);
    let mut removed = 0;
    for nth in 1..60 {
        // Each adoption writes more documents for the next one to copy.
        fs::remove_dir_all(site.repo()).unwrap();
        copy(&before, &site.repo());
        let state = site.path().join(format!("state-{nth}"));
        fs::create_dir(&state).unwrap();
        let on_new_machine = |arguments: &[&str]| {
            let mut command = site.command(arguments);
            command.env("BRACKFS_STATE_DIR", &state);
            command
        };
        let signers: Vec<_> = tree(&site.repo().join("keys")).into_keys().filter_map(host).collect();
        let signers = signers.iter().flat_map(|signer| ["--signer", signer]);
        let arguments: Vec<_> = ["adopt"].into_iter().chain(signers).collect();
        // Killed in the repository or in the state directory.
        let adopt = || on_new_machine(&arguments);
        let whole = killed_at_rename(nth, &adopt()).code == 0;
        removed += temporaries(&site).len();
        run(adopt()).ok();
        assert_eq!(temporaries(&site), Vec::<PathBuf>::new(), "killed at the rename {nth}");
        let source = site.source();
        run(on_new_machine(&["backup", source.to_str().unwrap()])).ok();
        if whole {
            assert!(removed > 1, "{removed}");
            return;
        }
    }
    panic!("adopt renames without end");
}

#[test]
fn links_in_a_repository_lead_no_command_outside() {
    let site = files();
    run(init_command(&site)).ok();
    site.backup(&[]).ok();
    let outside = site.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for folder in ["packs", "sums", "index", "sources", "snapshots", "secrets", "generation", "keys"] {
        let at = site.repo().join(folder);
        let there = at.exists();
        if there {
            fs::rename(&at, outside.join(folder)).unwrap();
        }
        symlink(outside.join(folder), &at).unwrap();
        let before = tree(&outside);
        site.write("new", folder);
        age(&site.source());
        settle();
        let refused = site.brackfs(&["backup".into(), site.source()]);
        let read = site.brackfs(&["restore", "latest", "--to", "out"]);
        let checked = site.brackfs(&["check", "--read-data"]).code(1);
        let words = ["symbolic link", "certificate of the signing key"];
        assert!(words.iter().any(|words| checked.stderr.contains(words)), "{checked}");
        assert_eq!(tree(&outside), before, "{folder}: written outside of the repository\n{refused}\n{read}");
        fs::remove_file(&at).unwrap();
        if there {
            fs::rename(outside.join(folder), &at).unwrap();
        }
        let _ = fs::remove_dir_all(site.path().join("out"));
    }
    // Pack folders that do not exist yet.
    for folder in 0..256 {
        let _ = symlink(&outside, site.repo().join(format!("packs/{folder:02x}")));
    }
    site.write("new", "the last");
    age(&site.source());
    settle();
    let refused = site.brackfs(&["backup".into(), site.source()]);
    assert!(refused.code == 1 && refused.stderr.contains("symbolic link"), "{refused}");
    assert_eq!(tree(&outside).len(), 1, "{refused}");
}

#[test]
fn the_path_of_a_repository_may_be_a_link() {
    let site = files();
    let real = site.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, site.repo()).unwrap();
    run(init_command(&site)).ok();
    serves(&site, |command| command);
}

#[test]
fn foreign_files_in_a_repository_are_not_a_problem() {
    let site = files();
    run(init_command(&site)).ok();
    site.backup(&[]).ok();
    for folder in ["packs", "sums", "index", "sources", "snapshots", "secrets", "generation", "keys"] {
        fs::write(site.repo().join(folder).join(".DS_Store"), "stranger").unwrap();
    }
    serves(&site, |command| command);
}

/// Sends a signal to a run that waits for a repository which does not answer. Returns its messages.
#[track_caller]
fn assert_ends_on_signal(site: &Site, arguments: &[&str]) -> String {
    let (stderr, mut text) = (tempfile::tempfile().unwrap(), String::new());
    let mut command = site.command(arguments);
    let mut child = command.stdout(Stdio::null()).stderr(stderr.try_clone().unwrap()).spawn().unwrap();
    until_it_waits_for_fuse(&mut child);
    send(&child, rustix::process::Signal::TERM);
    let ended = ended(&mut child);
    (&stderr).rewind().and_then(|()| (&stderr).read_to_string(&mut text)).unwrap();
    assert_eq!(ended.code(), Some(130), "{arguments:?}: {text}");
    text
}

#[test]
fn the_first_signal_ends_a_run_that_waits_for_an_unresponsive_repository() {
    let site = files();
    run(init_command(&site)).ok();
    site.backup(&[]).ok();
    // Cached data would not be read.
    site.brackfs(&["ls", "latest"]).ok();
    let packs: Vec<_> = fs::read_dir(site.repo().join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let _silent: Vec<_> = packs.iter().map(|path: &std::path::PathBuf| Silent::mount(Path::new(path))).collect();
    for arguments in [
        &["check"][..],
        &["restore", "latest", "--to", "out"],
        &["dump", "latest"],
        &["find", "file"],
        &["versions", "file"],
        &["diff", "latest", "latest", "file"],
        &["ls", "latest"],
        &["cat", "latest:file"],
        &["catalog", "verify"],
    ] {
        assert_ends_on_signal(&site, arguments);
    }
    let said = assert_ends_on_signal(&site, &["check", "--json"]);
    let last: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&last["message_type"], &last["code"]), (&"exit_error".into(), &130.into()), "{said}");
    let _silent = Silent::mount(&site.repo().join("snapshots"));
    // A machine without a catalog reads the snapshots from the repository.
    let state = site.path().join("elsewhere");
    assert_ends_on_signal(&site, &["snapshots", "--state-dir", state.to_str().unwrap()]);
}
