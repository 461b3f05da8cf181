//! Repositories are read by a second program, `tests/by_hand/brackfs_by_hand.py`. It was written from
//! brackfs-format(5) alone and shares no code with brackfs, so it holds both to the page.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::machine::need;
use common::{AGED, Run, Site, noise, run, settle, tree};
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

/// A site with a repository. gpg's home is the site's `keys/`.
struct Shelf {
    site: Site,
    /// The fingerprint of the host key, as `init` prints it.
    signer: String,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").env("GNUPGHOME", self.site.keys()).args(["--kill", "all"]).status();
    }
}

impl Shelf {
    fn new(key: Key) -> Shelf {
        let mut shelf = Shelf { site: Site::new(), signer: String::new() };
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
        let [description, certificate] = ["description", "owner.asc"].map(|name| self.site.path().join(name));
        let key = "Key-Type: RSA\nKey-Length: 3072\nKey-Usage: sign";
        let subkey = "Subkey-Type: RSA\nSubkey-Length: 3072\nSubkey-Usage: encrypt";
        let words = format!("%no-protection\n{key}\n{subkey}\nName-Real: owner\nExpire-Date: 0\n%commit\n");
        fs::write(&description, words).unwrap();
        let gpg = |arguments: &[&OsStr]| {
            let mut gpg = Command::new("gpg");
            gpg.env("GNUPGHOME", self.site.keys()).args(["--batch", "--quiet", "--no-tty"]).args(arguments);
            run(gpg).ok()
        };
        gpg(&["--gen-key".as_ref(), description.as_ref()]);
        gpg(&["--output".as_ref(), certificate.as_ref(), "--armor".as_ref(), "--export".as_ref(), "owner".as_ref()]);
        certificate
    }

    /// Runs the second program, which trusts this host key.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    fn by_hand_as(&self, signer: &str, arguments: &[&OsStr]) -> Run {
        // Only Debian's own python3 finds Debian's cbor2; another one may come first in PATH.
        let mut python = Command::new("/usr/bin/python3");
        // -B: do not write bytecode next to the program.
        python.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/by_hand/brackfs_by_hand.py"));
        python.args(["--signer", signer]).args(arguments);
        python.current_dir(self.site.path()).env("GNUPGHOME", self.site.keys());
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
        let secret = site.path().join("secret.asc");
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", site.keys()).args(["--batch", "--quiet", "--armor", "--export-secret-keys", "--output"]);
        run({
            gpg.arg(&secret);
            gpg
        })
        .ok();
        readme = readme.replace("YOUR-SECRET-KEY", secret.to_str().unwrap());
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
            let sum = step("\n5. ", "\nTo check", &[(place, numbers)]);
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
