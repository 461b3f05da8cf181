//! Lost and added objects: no single object makes all others unusable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use brackfs::crypt::{Sealer, SecretKey};
use common::{Run, Site, age, run, settle, tree};
use tempfile::TempDir;

const PASSPHRASE: &str = "correct horse";

/// Kinds of repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Encrypted,
    /// The owner's key is in the repository, protected by a passphrase.
    Passphrase,
}

/// A repository with two snapshots.
struct World {
    site: Site,
    host: String,
}

impl World {
    fn new(kind: Kind) -> World {
        let site = Site::with_files(&[("a", "first"), ("folder/b", "second")]);
        match kind {
            Kind::Plain => _ = site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok(),
            Kind::Encrypted => site.init(),
            Kind::Passphrase => _ = World::say(&site, &["init".as_ref(), site.repo().as_os_str()]).ok(),
        }
        site.backup(&[]).ok();
        site.write("c", "third");
        age(&site.source());
        settle();
        site.backup(&[]).ok();
        let hosts = names(&site.repo().join("keys"));
        let host = hosts.iter().find_map(|name| name.strip_prefix("host-")?.strip_suffix(".asc"));
        World { host: host.unwrap().to_owned(), site }
    }

    fn say<A: AsRef<OsStr>>(site: &Site, arguments: &[A]) -> Run {
        run(with_passphrase(site.command(arguments)))
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        World::say(&self.site, arguments)
    }

    /// Runs on a machine that knows only the fingerprint of the host key.
    fn elsewhere(&self, arguments: &[&str]) -> Run {
        let state = TempDir::with_prefix_in("elsewhere-", self.site.path()).unwrap();
        let mut command = self.site.command(&[arguments, &["--signer", &self.host]].concat());
        command.env("BRACKFS_STATE_DIR", state.path());
        run(with_passphrase(command))
    }

    /// Whether a reader on another machine can read everything.
    fn opens(&self) -> bool {
        let listed = self.elsewhere(&["snapshots", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
        if listed.code != 0 || list.as_array().map(Vec::len) != Some(2) {
            return false;
        }
        if self.elsewhere(&["cat", &format!("{}:a", list[0]["id"].as_str().unwrap())]).code != 0 {
            return false;
        }
        let out = TempDir::with_prefix_in("out-", self.site.path()).unwrap();
        let restored = self.elsewhere(&["restore", "source/latest", "--to", out.path().to_str().unwrap()]);
        restored.code == 0 && tree(out.path()) == tree(&self.site.source())
    }

    fn objects(&self) -> Vec<PathBuf> {
        let repo = self.site.repo();
        tree(&repo).into_keys().map(|path| repo.join(path)).filter(|path| path.is_file()).collect()
    }

    /// The folder of the only source's snapshots.
    fn snapshots(&self) -> PathBuf {
        let folder = self.site.repo().join("snapshots");
        let sources = names(&folder);
        assert_eq!(sources.len(), 1);
        folder.join(&sources[0])
    }
}

fn with_passphrase(mut command: Command) -> Command {
    command.env("BRACKFS_PASSPHRASE", PASSPHRASE);
    command
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether the writer has another copy of an object's content.
fn has_copy(object: &str) -> bool {
    ["brackfs", "keys/", "secrets/", "sources/"].iter().any(|start| object.starts_with(start))
}

#[test]
fn after_the_loss_of_any_object_everything_opens_or_the_loss_is_reported() {
    for kind in [Kind::Plain, Kind::Encrypted, Kind::Passphrase] {
        let world = World::new(kind);
        assert!(world.opens());
        world.brackfs(&["check"]).ok();
        for path in world.objects() {
            // A passphrase is slow, and makes no difference to other objects.
            if kind == Kind::Passphrase && !path.starts_with(world.site.repo().join("keys")) {
                continue;
            }
            let object = path.strip_prefix(world.site.repo()).unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(&path).unwrap();
            // The second copy of the owner's key is only on the host.
            let is_owner = object.starts_with("keys/owner-");
            let changes: &[Option<&[u8]>] = if has_copy(&object) { &[None, Some(b"damaged")] } else { &[None] };
            for change in changes {
                let what = format!("{object} of a repository that is {kind:?}, {change:?}");
                match change {
                    None => fs::remove_file(&path).unwrap(),
                    Some(other) => fs::write(&path, other).unwrap(),
                }
                if has_copy(&object) {
                    assert!(is_owner || world.opens(), "it does not open without {what}");
                    let cat = world.brackfs(&["cat", "latest:a"]).ok();
                    assert_eq!(cat.stdout, "first", "without {what}");
                    if !is_owner {
                        world.brackfs(&["check"]).code(1);
                    }
                    // A backup does not open these each time; a check does.
                    if change.is_some() && ["secrets/", "sources/"].iter().any(|start| object.starts_with(start)) {
                        fs::write(&path, &bytes).unwrap();
                        continue;
                    }
                    let verified = world.site.brackfs(&["catalog", "verify"]).code(1);
                    assert!(verified.stderr.contains("the next backup"), "without {what}\n{verified}");
                    let backup = world.site.backup(&["--skip-if-unchanged"]).ok();
                    assert!(backup.stderr.contains("put back"), "without {what}\n{backup}");
                    assert!(world.opens(), "it was not restored: {what}");
                    world.brackfs(&["check"]).ok();
                } else {
                    let check = world.brackfs(&["check"]);
                    let verify = world.site.brackfs(&["catalog", "verify"]);
                    let is_said = check.code != 0 || verify.code != 0;
                    assert!(is_said || world.opens(), "its loss is not reported: {what}\n{check}\n{verify}");
                }
                if !path.exists() {
                    fs::write(&path, &bytes).unwrap();
                }
            }
        }
        world.brackfs(&["check", "--read-data"]).ok();
    }
}

#[test]
fn the_host_and_adopt_need_no_host_certificate_in_the_repository() {
    let world = World::new(Kind::Encrypted);
    let certificate = world.site.repo().join(format!("keys/host-{}.asc", world.host));
    fs::remove_file(&certificate).unwrap();
    for object in names(&world.site.repo().join("secrets")) {
        fs::remove_file(world.site.repo().join("secrets").join(object)).unwrap();
    }
    // Without both, only the host itself knows its certificate.
    assert!(world.elsewhere(&["cat", "latest:a"]).code(1).stderr.contains("certificate"));
    assert_eq!(world.brackfs(&["cat", "latest:a"]).ok().stdout, "first");
    assert!(world.site.backup(&[]).ok().stderr.contains("put back"));
    assert_eq!(world.elsewhere(&["cat", "latest:a"]).ok().stdout, "first");
    fs::remove_file(&certificate).unwrap();
    let state = world.site.path().join("new");
    let mut command = world.site.command(&["adopt", "--signer", &world.host]);
    command.env("BRACKFS_STATE_DIR", &state);
    run(command).ok();
    assert!(world.elsewhere(&["cat", "latest:a"]).ok().stdout == "first", "the former host is still known");
}

#[test]
fn a_first_use_without_certificates_trusts_the_signer_of_the_secrets() {
    let world = World::new(Kind::Encrypted);
    fs::remove_file(world.site.repo().join(format!("keys/host-{}.asc", world.host))).unwrap();
    let mut command = world.site.command(&["cat", "latest:a"]);
    command.env("BRACKFS_STATE_DIR", world.site.path().join("new"));
    let first = run(command).ok();
    assert!(first.stderr.contains(&world.host) && first.stdout == "first", "{first}");
}

#[test]
fn an_added_certificate_changes_no_recipient_and_stops_no_backup() {
    let world = World::new(Kind::Encrypted);
    let other = world.site.key_named("other", "rfc9580").with_extension("pub");
    let added = world.site.repo().join(format!("keys/recipient-{}.asc", "AB".repeat(32)));
    fs::copy(other, &added).unwrap();
    let backup = world.site.backup(&[]).ok();
    assert!(backup.stderr.contains("nothing is encrypted to it"), "{backup}");
    let mut command = world.site.command(&["cat", "latest:a"]);
    command.env("BRACKFS_KEY_FILE", world.site.keys().join("other"));
    run(command).code(12);
    world.brackfs(&["check"]).code(1);
    fs::remove_file(&added).unwrap();
    world.brackfs(&["check"]).ok();
}

#[test]
fn added_keys_do_not_shadow_the_owners_key() {
    let world = World::new(Kind::Passphrase);
    let keys = world.site.repo().join("keys");
    // Names before and after all others.
    let add = |name: &str, bytes: &[u8]| fs::write(keys.join(format!("owner-{name}.asc")), bytes).unwrap();
    let unlocked = world.site.key_named("unlocked", "rfc9580");
    let mut locked = world.site.command(&["key", "generate", "--output", "locked"]);
    locked.env("BRACKFS_PASSPHRASE", "another");
    run(locked).ok();
    add(&"0".repeat(64), &fs::read(&unlocked).unwrap());
    add(&"1".repeat(64), &fs::read(world.site.path().join("locked")).unwrap());
    add(&"2".repeat(64), b"no key");
    add(&"F".repeat(64), &fs::read(&unlocked).unwrap());
    fs::copy(unlocked.with_extension("pub"), keys.join(format!("recipient-{}.asc", "0".repeat(64)))).unwrap();
    assert!(world.opens());
    // A wrong passphrase is still reported as one.
    let mut wrong = world.site.command(&["cat", "latest:a"]);
    wrong.env("BRACKFS_PASSPHRASE", "wrong");
    assert!(run(wrong).code(12).stderr.contains("passphrase is wrong"));
}

#[test]
fn only_valid_snapshots_are_selected() {
    for kind in [Kind::Plain, Kind::Encrypted] {
        let world = World::new(kind);
        let folder = world.snapshots();
        let own = names(&folder);
        let newest = own.last().unwrap();
        let id = newest.rsplit('-').next().unwrap();
        // A later name than all others, for an invalid object and for a snapshot.
        let late = late_name(newest, "00112233445566ff");
        fs::write(folder.join(&late), "no snapshot").unwrap();
        let copy = late_name(newest, "00112233445566fe");
        fs::copy(folder.join(newest), folder.join(&copy)).unwrap();
        // The newest one again, as that of another source.
        let elsewhere = folder.with_file_name("0b5e3f1e-1111-4222-8333-444455556666");
        fs::create_dir(&elsewhere).unwrap();
        fs::copy(folder.join(newest), elsewhere.join(newest)).unwrap();
        if kind == Kind::Encrypted {
            // Objects for another key, as the first and the last.
            let other = SecretKey::parse(&fs::read(world.site.key_named("other", "rfc9580")).unwrap()).unwrap();
            let mut sealed = Vec::new();
            Sealer::new(&[other.certificate()]).unwrap().seal_message(b"not for you", &mut sealed).unwrap();
            let zeros: String = late.chars().map(|c| if c == '9' { '0' } else { c }).collect();
            fs::write(folder.join(zeros), &sealed).unwrap();
            fs::write(folder.join(late_name(newest, "f0112233445566ff")), &sealed).unwrap();
        }

        for snapshot in ["latest", "source/latest", id, &id[..6]] {
            let run = world.brackfs(&["cat", &format!("{snapshot}:c")]).ok();
            assert_eq!(run.stdout, "third", "{snapshot}\n{run}");
            let skipped = run.stderr.matches("skipping snapshot ").count();
            assert!((1..=4).contains(&skipped), "{snapshot}\n{run}");
        }
        // Selecting one by its id fails with a message.
        for id in ["00112233445566ff", "00112233445566fe"] {
            let run = world.brackfs(&["cat", &format!("{id}:c"), "-v"]).code(1);
            assert!(run.stderr.contains(id) && run.stdout.is_empty(), "{run}");
        }
        let listed = world.elsewhere(&["snapshots", "--json"]).code(1);
        let list: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(list.as_array().map(Vec::len), Some(2), "{listed}");
        assert_eq!(world.brackfs(&["find", "c"]).code(1).stdout.lines().count(), 1);
        assert!(world.brackfs(&["versions", "a"]).code(1).stdout.contains("2 snapshots since"));
        world.brackfs(&["check"]).code(1);
        world.site.backup(&[]).ok();
    }
}

/// The name of a snapshot that comes after `newest`.
fn late_name(newest: &str, id: &str) -> String {
    let (head, _) = newest.rsplit_once('-').unwrap();
    let nines: String = head.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    format!("{nines}-{id}")
}
