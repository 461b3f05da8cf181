//! Other programs read objects of brackfs, and brackfs uses their keys: gpg, zstd, b3sum, and another OpenPGP library.
//! They must fail to read data that is not meant for them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::machine::spawn;
use common::{Run, Site, run, tree};
use pgp::composed::{Deserializable, Message, SignedSecretKey};
use pgp::types::Password;
use tempfile::TempDir;

/// An empty GnuPG home. Its agents are stopped on drop.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Home {
        // gpg's sockets are in it, so its name must be short.
        let folder = TempDir::with_prefix("gpg-").expect("temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("mode of the home");
        Home { folder }
    }

    /// With a new key of these algorithms, without a passphrase.
    fn with_key(key: &str, subkey: &str) -> Home {
        let home = Home::new();
        let description = home.path().join("description");
        let words = format!("%no-protection\n{key}\n{subkey}\nName-Real: owner\nExpire-Date: 0\n%commit\n");
        fs::write(&description, words).expect("description");
        let made = home.gpg(&["--gen-key", description.to_str().expect("a path")], &[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        home
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn gpg(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", self.path()).args(["--batch", "--quiet", "--no-tty"]).args(arguments);
        pipe(gpg, input)
    }

    /// Exports a key with gpg into a file.
    #[track_caller]
    fn export(&self, what: &str) -> PathBuf {
        let output = self.gpg(&["--armor", what, "owner"], &[]);
        assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = self.path().join(what);
        fs::write(&file, output.stdout).expect("key");
        file
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").env("GNUPGHOME", self.path()).args(["--kill", "all"]).status();
    }
}

/// Runs a command on this input.
fn pipe(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // It may stop reading early; then its output has the reason.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("output")
    })
}

#[track_caller]
fn unzstd(bytes: &[u8]) -> Vec<u8> {
    let mut zstd = Command::new("zstd");
    zstd.args(["--decompress", "--stdout"]);
    let output = pipe(zstd, bytes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

const LINE: &str = "the quick brown fox jumps over the lazy dog\n";

/// A site with two files, each too small to be cut.
fn site() -> Site {
    let mut noise = vec![0; 60 << 10];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    Site::with_files(&[("notes.txt", LINE.repeat(3).into_bytes()), ("folder/noise", noise)])
}

#[track_caller]
fn init(site: &Site, recipients: &[&Path]) {
    let mut arguments: Vec<OsString> = vec!["init".into(), site.repo().into()];
    for recipient in recipients {
        arguments.extend(["--recipient".into(), OsString::from(recipient)]);
    }
    site.brackfs(&arguments).ok();
}

/// Files below a folder of the repository.
#[track_caller]
fn objects(site: &Site, folder: &str) -> Vec<PathBuf> {
    let paths = tree(&site.repo().join(folder)).into_keys().map(|path| site.repo().join(folder).join(path));
    let files: Vec<_> = paths.filter(|path| path.is_file()).collect();
    assert!(!files.is_empty(), "nothing in {folder}/");
    files
}

/// The tag of a packet, and its length with the header. brackfs writes only headers of the new format, and
/// only definite lengths.
#[track_caller]
fn packet(bytes: &[u8]) -> (u8, usize) {
    assert_eq!(bytes[0] & 0xC0, 0xC0, "a header of the new format");
    let number = |range: std::ops::Range<usize>| bytes[range].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let length = match bytes[1] {
        0..192 => 2 + number(1..2),
        192..224 => 3 + ((number(1..2) - 192) << 8) + number(2..3) + 192,
        255 => 6 + number(2..6),
        partial => panic!("a partial length: {partial}"),
    };
    (bytes[0] & 0x3F, length)
}

/// The messages of a pack: encrypted session keys and the data that they open.
#[track_caller]
fn messages(pack: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(pack).expect("pack");
    let (mut messages, mut start, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let (tag, length) = packet(&bytes[at..]);
        at += length;
        match tag {
            1 => {}
            18 => {
                messages.push(bytes[start..at].to_vec());
                start = at;
            }
            other => panic!("a packet with tag {other} in a pack"),
        }
    }
    assert_eq!((start, at), (bytes.len(), bytes.len()), "the pack ends in the middle of a message");
    messages
}

#[track_caller]
fn all_messages(site: &Site) -> Vec<Vec<u8>> {
    objects(site, "packs").iter().flat_map(|pack| messages(pack)).collect()
}

/// Whether one of the blocks has all of the content.
fn is_in(blocks: &[Vec<u8>], content: &[u8]) -> bool {
    let head = &content[..32.min(content.len())];
    blocks.iter().any(|block| {
        let found = block.windows(head.len()).position(|window| window == head);
        found.is_some_and(|at| block[at..].starts_with(content))
    })
}

#[track_caller]
fn assert_holds_source(site: &Site, blocks: &[Vec<u8>]) {
    for name in ["notes.txt", "folder/noise"] {
        assert!(is_in(blocks, &fs::read(site.source().join(name)).unwrap()), "{name} is in no block");
    }
}

/// `cat` with these arguments and no key except those in this home of gpg.
fn cat(site: &Site, home: &Path, arguments: &[&str]) -> Run {
    let mut command = site.command(&[["cat", "latest:notes.txt"].as_slice(), arguments].concat());
    command.env("GNUPGHOME", home).env_remove("BRACKFS_KEY_FILE");
    run(command)
}

#[track_caller]
fn gpg_reads_objects_of_brackfs(home: &Home) {
    let site = site();
    init(&site, &[&home.export("--export")]);
    site.backup(&[]).ok();

    // Without brackfs.
    let decrypt = |message: &[u8]| {
        let output = home.gpg(&["--decrypt"], message);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        unzstd(&output.stdout)
    };
    let blocks: Vec<_> = all_messages(&site).iter().map(|message| decrypt(message)).collect();
    assert_holds_source(&site, &blocks);
    for snapshot in objects(&site, "snapshots") {
        // It cannot check the signature, so its exit code is not 0.
        let document = home.gpg(&["--decrypt"], &fs::read(&snapshot).unwrap()).stdout;
        let name = snapshot.strip_prefix(site.repo()).unwrap().to_str().unwrap().as_bytes();
        assert!(document.windows(name.len()).any(|window| window == name), "a snapshot that does not name itself");
    }

    // With brackfs: through gpg, and with the key that gpg exports.
    let content = LINE.repeat(3);
    assert_eq!(cat(&site, home.path(), &[]).ok().stdout, content);
    let secret = home.export("--export-secret-keys");
    let nobody = Home::new();
    assert_eq!(cat(&site, nobody.path(), &["--key", secret.to_str().unwrap()]).ok().stdout, content);
    cat(&site, nobody.path(), &[]).code(12);
    let mut command = site.command(&["check", "--read-data"]);
    run({
        command.env("GNUPGHOME", home.path());
        command
    })
    .ok();
}

#[test]
fn gpg_with_its_own_rsa_key_reads_objects_of_brackfs() {
    let key = "Key-Type: RSA\nKey-Length: 3072\nKey-Usage: sign";
    let subkey = "Subkey-Type: RSA\nSubkey-Length: 3072\nSubkey-Usage: encrypt";
    gpg_reads_objects_of_brackfs(&Home::with_key(key, subkey));
}

#[test]
fn gpg_with_its_own_curve25519_key_reads_objects_of_brackfs() {
    let key = "Key-Type: EDDSA\nKey-Curve: ed25519\nKey-Usage: sign";
    let subkey = "Subkey-Type: ECDH\nSubkey-Curve: cv25519\nSubkey-Usage: encrypt";
    gpg_reads_objects_of_brackfs(&Home::with_key(key, subkey));
}

#[test]
fn gpg_reads_backups_for_an_rfc4880_key_of_brackfs() {
    let site = site();
    let key = site.key("rfc4880");
    site.init();
    site.backup(&[]).ok();
    let home = Home::new();
    let import = home.gpg(&["--import", key.to_str().unwrap()], &[]);
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let decrypt = |message: &Vec<u8>| unzstd(&home.gpg(&["--decrypt"], message).stdout);
    let blocks: Vec<_> = all_messages(&site).iter().map(decrypt).collect();
    assert_holds_source(&site, &blocks);
    assert_eq!(cat(&site, home.path(), &[]).ok().stdout, LINE.repeat(3));
}

/// A gpg, first in PATH, that appends a line to the file `runs` next to it for each run.
struct CountedGpg {
    folder: TempDir,
}

impl CountedGpg {
    fn new() -> CountedGpg {
        let folder = TempDir::with_prefix("counted-").expect("temporary directory");
        let program = folder.path().join("gpg");
        let runs = folder.path().join("runs");
        fs::write(&runs, "").expect("no runs yet");
        let path = std::env::var("PATH").expect("PATH");
        let script = format!("#!/bin/sh\necho \"$*\" >> '{}'\nPATH='{path}' exec gpg \"$@\"\n", runs.display());
        fs::write(&program, script).expect("script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("mode of the script");
        CountedGpg { folder }
    }

    /// Runs brackfs, and counts the runs of gpg.
    #[track_caller]
    fn runs(&self, site: &Site, home: &Home, arguments: &[&str]) -> usize {
        let count = || fs::read_to_string(self.folder.path().join("runs")).expect("runs").lines().count();
        let path = std::env::var("PATH").expect("PATH");
        let mut command = site.command(arguments);
        command.env("GNUPGHOME", home.path()).env("PATH", format!("{}:{path}", self.folder.path().display()));
        let before = count();
        run(command).ok();
        count() - before
    }
}

#[test]
fn reading_all_snapshots_again_runs_gpg_once() {
    let home = Home::with_key(
        "Key-Type: EDDSA\nKey-Curve: ed25519\nKey-Usage: sign",
        "Subkey-Type: ECDH\nSubkey-Curve: cv25519\nSubkey-Usage: encrypt",
    );
    let (site, gpg) = (site(), CountedGpg::new());
    init(&site, &[&home.export("--export")]);
    for day in ["monday", "tuesday", "wednesday"] {
        site.write(day, day);
        site.backup(&[]).ok();
    }
    let snapshots = site.brackfs(&["snapshots", "--json"]).ok().stdout;
    let snapshots: serde_json::Value = serde_json::from_str(&snapshots).unwrap();
    let snapshots: Vec<_> = snapshots.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(snapshots.len(), 3);
    let kept = || tree(&site.state()).into_keys().find(|path| path.ends_with("session-keys"));

    let check = |extra: &[&str]| gpg.runs(&site, &home, &[&["check", "--read-data"], extra].concat());
    let all = check(&["--no-key-cache"]);
    assert!(all > snapshots.len(), "{all} session keys");
    assert_eq!(kept(), None);
    // Once more for the certificate.
    assert_eq!(check(&[]), all + 1);
    assert_eq!(check(&[]), 1);
    for snapshot in &snapshots {
        assert_eq!(gpg.runs(&site, &home, &["ls", snapshot]), 1);
    }
    // The next day has its own session key.
    site.write("thursday", "thursday");
    site.backup(&[]).ok();
    assert!(check(&[]) > 1);
    assert_eq!(check(&[]), 1);

    let kept = site.state().join(kept().expect("session keys that are kept"));
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o7777, 0o600);
    let content = home.gpg(&["--decrypt"], &fs::read(&kept).unwrap()).stdout;
    assert!(content.starts_with(b"brackfs session keys 1\n") && content.len() > 64 * all);
    assert!(check(&["--no-key-cache"]) > all);
    fs::write(&kept, "damaged").unwrap();
    assert!(check(&[]) > all);
    assert_eq!(check(&[]), 1);
    // Reading works without a place to cache session keys.
    fs::remove_file(&kept).unwrap();
    fs::create_dir_all(kept.join("in the way")).unwrap();
    assert!(check(&[]) > all);
    assert!(check(&[]) > all);
}

fn secret_key(file: &Path) -> SignedSecretKey {
    let armored = fs::read(file).expect("secret key");
    SignedSecretKey::from_armor_single(Cursor::new(armored)).expect("secret key").0
}

/// Decrypts with another library.
fn decrypt(message: &[u8], key: &SignedSecretKey) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut content = Message::from_bytes(Cursor::new(message.to_vec()))?.decrypt(&Password::empty(), key)?;
    Ok(content.as_data_vec()?)
}

#[test]
fn another_library_reads_backups_for_a_key_of_brackfs() {
    for profile in ["rfc9580", "rfc4880"] {
        let site = site();
        let key = secret_key(&site.key(profile));
        site.init();
        site.backup(&[]).ok();
        let decrypt = |message: &Vec<u8>| unzstd(&decrypt(message, &key).expect("a block"));
        let blocks: Vec<_> = all_messages(&site).iter().map(decrypt).collect();
        assert_holds_source(&site, &blocks);
    }
}

#[test]
fn b3sum_verifies_all_packs() {
    let site = site();
    site.init();
    site.backup(&[]).ok();
    site.write("later", "later");
    site.backup(&[]).ok();
    let mut sums = Vec::new();
    for object in objects(&site, "sums") {
        sums.extend(fs::read(object).unwrap());
    }
    let check = |sums: &[u8]| {
        let mut command = Command::new("b3sum");
        command.arg("--check").current_dir(site.repo());
        pipe(command, sums)
    };
    let output = check(&sums);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let packs = objects(&site, "packs");
    assert_eq!(said.lines().count(), packs.len(), "{said}");
    for pack in &packs {
        assert!(said.contains(pack.strip_prefix(site.repo()).unwrap().to_str().unwrap()), "{pack:?} has no sum");
    }
    let mut bytes = fs::read(&packs[0]).unwrap();
    bytes[10] ^= 1;
    fs::write(&packs[0], bytes).unwrap();
    assert!(!check(&sums).status.success(), "a changed pack has its old sum");
}

#[test]
fn the_host_can_write_backups_but_not_read_them() {
    for profile in ["rfc9580", "rfc4880"] {
        let site = site();
        let owner = site.key(profile);
        site.init();
        site.backup(&[]).ok();
        let nobody = Home::new();
        // The host has only its state, with the catalog, and its own key.
        let away = nobody.path().join("owner");
        fs::rename(&owner, &away).unwrap();
        let state = tree(&site.state()).into_keys().find(|path| path.ends_with("host.key")).expect("host.key");
        let host = site.state().join(state);
        for arguments in [[].as_slice(), &["--key", host.to_str().unwrap()]] {
            let run = cat(&site, nobody.path(), arguments).code(12);
            assert_eq!(run.stdout, "", "{run}");
        }
        // Another program cannot read them either.
        let (host, owner) = (secret_key(&host), secret_key(&away));
        for message in all_messages(&site) {
            assert!(decrypt(&message, &host).is_err(), "the host's key opens a block");
            decrypt(&message, &owner).expect("the owner's key opens every block");
        }
        // The state directory has no content of files.
        for path in tree(&site.state()).into_keys().map(|path| site.state().join(path)).filter(|path| path.is_file()) {
            assert!(!is_in(&[fs::read(&path).unwrap()], LINE.as_bytes()), "{path:?} holds content");
        }
    }
}

#[test]
fn an_encrypted_repository_has_no_plaintext_names_or_content() {
    let site = Site::with_files(&[("conspicuous-name", LINE.repeat(3))]);
    site.init();
    site.backup(&["--tag", "conspicuous-tag"]).ok();
    for object in tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file()) {
        let bytes = fs::read(site.repo().join(&object)).unwrap();
        for secret in [LINE, "conspicuous", site.path().to_str().unwrap()] {
            assert!(!is_in(std::slice::from_ref(&bytes), secret.as_bytes()), "{object:?} tells {secret:?}");
            assert!(!object.to_str().unwrap().contains(secret), "{object:?} tells {secret:?}");
        }
    }
}

#[test]
fn each_of_several_recipients_can_read_alone() {
    let gpg = Home::with_key(
        "Key-Type: EDDSA\nKey-Curve: ed25519\nKey-Usage: sign",
        "Subkey-Type: ECDH\nSubkey-Curve: cv25519\nSubkey-Usage: encrypt",
    );
    let nobody = Home::new();
    let content = LINE.repeat(3);
    for others in [["rfc9580", "rfc9580"], ["rfc4880", "rfc9580"]] {
        for with_gpg in [false, true] {
            let site = site();
            let keys = [site.key_named("alice", others[0]), site.key_named("bob", others[1])];
            let stranger = site.key_named("stranger", others[1]);
            let mut certificates: Vec<_> = keys.iter().map(|key| key.with_extension("pub")).collect();
            if with_gpg {
                certificates.push(gpg.export("--export"));
            }
            init(&site, &certificates.iter().map(PathBuf::as_path).collect::<Vec<_>>());
            site.backup(&[]).ok();
            for key in &keys {
                assert_eq!(cat(&site, nobody.path(), &["--key", key.to_str().unwrap()]).ok().stdout, content);
            }
            match with_gpg {
                true => assert_eq!(cat(&site, gpg.path(), &[]).ok().stdout, content),
                false => assert_eq!(cat(&site, gpg.path(), &[]).code(12).stdout, ""),
            }
            cat(&site, nobody.path(), &["--key", stranger.to_str().unwrap()]).code(12);
        }
    }
}
