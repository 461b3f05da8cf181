//! Ordinary failures: exit codes and helpful messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::machine::{spawn, succeed};
use common::{Run, Site, age, run, run_within, settle, tree};
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

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs gpg, which must succeed.
    #[track_caller]
    fn gpg(&self, arguments: &[&str]) -> Vec<u8> {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", self.path())
            .args(["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = spawn(&mut gpg).wait_with_output().expect("output of gpg");
        assert!(output.status.success(), "gpg {arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The public certificate of a user, in a file.
    #[track_caller]
    fn export(&self, user: &str) -> PathBuf {
        let file = self.path().join(format!("{user}.asc"));
        fs::write(&file, self.gpg(&["--armor", "--export", user])).expect("certificate");
        file
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").env("GNUPGHOME", self.path()).args(["--kill", "all"]).status();
    }
}

/// A file system of its own in memory; unmounted when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    #[track_caller]
    fn new(path: PathBuf, size: &str) -> Disk {
        fs::create_dir(&path).expect("mount point");
        let disk = Disk { path };
        disk.mount(&format!("size={size}"));
        disk
    }

    #[track_caller]
    fn grow(&self, size: &str) {
        self.mount(&format!("remount,size={size}"));
    }

    #[track_caller]
    fn mount(&self, options: &str) {
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.path));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A site with one file, backed up.
fn backed_up() -> Site {
    let site = Site::with_files(&[("file", "content")]);
    site.init();
    site.backup(&[]).ok();
    site
}

#[track_caller]
fn says(run: &Run, words: &str) {
    let said = run.stderr.to_lowercase();
    assert!(said.contains(&words.to_lowercase()), "it does not say {words:?}\n{run}");
    assert!(!said.contains("panicked"), "{run}");
}

/// All objects of the repository, to detect changes.
fn objects(site: &Site) -> Vec<(PathBuf, Vec<u8>)> {
    let files = tree(&site.repo()).into_keys().filter(|path| site.repo().join(path).is_file());
    files.map(|path| (path.clone(), fs::read(site.repo().join(path)).expect("object"))).collect()
}

/// The only object below a folder of the repository, by its prefix.
#[track_caller]
fn object(repository: &Path, prefix: &str) -> PathBuf {
    let prefix = repository.join(prefix);
    let fits = |path: &PathBuf| path.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes());
    let paths = tree(repository).into_keys().map(|path| repository.join(path));
    let found: Vec<_> = paths.filter(|path| path.is_file() && fits(path)).collect();
    assert_eq!(found.len(), 1, "objects that begin with {prefix:?}: {found:?}");
    found.into_iter().next().expect("one")
}

/// The same command without a terminal to prompt on.
fn without_terminal(command: &Command) -> Command {
    let mut bare = Command::new("setsid");
    bare.arg("--wait").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bare.env(name, value),
            None => bare.env_remove(name),
        };
    }
    bare
}

/// All ways to read, each with its arguments.
fn ways_to_read(site: &Site) -> Vec<Vec<OsString>> {
    let to: OsString = site.path().join("out").into();
    vec![
        vec!["ls".into(), "latest".into()],
        vec!["cat".into(), "latest:file".into()],
        vec!["mount".into(), site.mnt().into()],
        vec!["restore".into(), "latest".into(), "--to".into(), to],
        vec!["check".into()],
    ]
}

/// Asserts that all ways to read, with these arguments, fail with this code and message.
#[track_caller]
fn assert_nothing_is_read(site: &Site, extra: &[&str], environment: &[(&str, &Path)], code: i32, words: &str) {
    for mut arguments in ways_to_read(site) {
        arguments.extend(extra.iter().map(OsString::from));
        let mut command = site.command(&arguments);
        command.envs(environment.iter().copied());
        let run = run(without_terminal(&command)).code(code);
        says(&run, words);
        assert!(!common::is_mounted(&site.mnt()), "it is mounted\n{run}");
        assert!(!site.path().join("out/file").exists(), "it was restored\n{run}");
    }
}

#[track_caller]
fn restores(site: &Site, snapshot: &str, environment: &[(&str, &Path)]) -> PathBuf {
    let out = TempDir::with_prefix_in("out-", site.path()).expect("temporary directory").keep();
    let arguments: [OsString; 4] = ["restore".into(), snapshot.into(), "--to".into(), out.clone().into()];
    let mut command = site.command(&arguments);
    command.envs(environment.iter().copied());
    run(without_terminal(&command)).ok();
    out
}

#[test]
fn every_command_exits_with_10_if_the_repository_is_missing() {
    let site = Site::with_files(&[("file", "content")]);
    let to = site.path().join("out");
    let (source, mnt, to) = (site.source(), site.mnt(), to);
    let (source, mnt, to) = (source.to_str().unwrap(), mnt.to_str().unwrap(), to.to_str().unwrap());
    let commands: [&[&str]; 7] = [
        &["backup", source],
        &["snapshots"],
        &["ls", "latest"],
        &["cat", "latest:file"],
        &["mount", mnt],
        &["restore", "latest", "--to", to],
        &["check"],
    ];
    for is_empty_directory in [false, true] {
        if is_empty_directory {
            fs::create_dir(site.repo()).unwrap();
        }
        for command in commands {
            let run = site.brackfs(command).code(10);
            says(&run, "no repository");
            says(&run, site.repo().to_str().unwrap());
        }
    }
    assert!(!Path::new(to).exists(), "something was restored from nowhere");
}

#[test]
fn a_repository_of_a_newer_version_is_refused_and_unchanged() {
    let site = backed_up();
    for object in ["brackfs.toml", "brackfs-copy.toml"] {
        let description = site.repo().join(object);
        let text = fs::read_to_string(&description).unwrap();
        assert!(text.contains("version = 1\n"), "{text}");
        fs::write(&description, text.replace("version = 1\n", "version = 2\n")).unwrap();
    }
    let before = objects(&site);
    says(&site.backup(&[]).code(1), "version");
    says(&site.brackfs(&["snapshots"]).code(1), "version 2");
    assert_nothing_is_read(&site, &[], &[], 1, "version");
    assert_eq!(objects(&site), before, "the repository was changed");
}

#[test]
fn a_wrong_key_file_gives_exit_code_12() {
    let site = backed_up();
    let other = site.key_named("other", "rfc9580");
    assert_nothing_is_read(&site, &["--key", other.to_str().unwrap()], &[], 12, "key");
    let run = site.brackfs(&["snapshots", "--key", other.to_str().unwrap()]).code(12);
    says(&run, "key");
}

#[test]
fn a_missing_key_file_gives_exit_code_12() {
    let site = backed_up();
    assert_nothing_is_read(&site, &["--key", "/nowhere/owner"], &[], 12, "/nowhere/owner");
}

#[test]
fn a_public_certificate_given_as_the_key_is_reported_as_one() {
    let site = backed_up();
    let certificate = site.keys().join("owner.pub");
    assert_nothing_is_read(&site, &["--key", certificate.to_str().unwrap()], &[], 12, "secret");
}

#[test]
fn reading_without_a_key_gives_exit_code_12() {
    let site = backed_up();
    let home = Home::new();
    fs::remove_file(site.keys().join("owner")).unwrap();
    assert_nothing_is_read(&site, &[], &[("GNUPGHOME", home.path())], 12, "key");
    // Backups continue.
    site.backup(&[]).ok();
    site.brackfs(&["snapshots"]).ok();
}

#[test]
fn a_passphrase_opens_a_repository_with_a_stored_key() {
    let site = Site::with_files(&[("file", "content")]);
    let init = |passphrase: &str| {
        let mut command = site.command(&["init".into(), site.repo()]);
        command.env("BRACKFS_PASSPHRASE", passphrase);
        run(without_terminal(&command))
    };
    init("the right one").ok();
    // A backup prompts for nothing.
    run(without_terminal(&site.command(&["backup".into(), site.source()]))).ok();

    let file = site.keys().join("passphrase");
    fs::write(&file, "the right one\n").unwrap();
    let ask = format!("cat '{}'", file.display());
    // Each of these opens the key, which takes a while.
    for (name, value) in [
        ("BRACKFS_PASSPHRASE", Path::new("the right one")),
        ("BRACKFS_PASSPHRASE_FILE", &file),
        ("BRACKFS_PASSPHRASE_COMMAND", Path::new(&ask)),
    ] {
        let out = restores(&site, "latest", &[(name, value)]);
        assert_eq!(fs::read_to_string(out.join("file")).unwrap(), "content", "with {name}");
    }

    for (name, value, words) in [
        ("BRACKFS_PASSPHRASE", Path::new("a wrong one"), "passphrase"),
        ("BRACKFS_PASSPHRASE_FILE", Path::new("/nowhere/passphrase"), "/nowhere/passphrase"),
        ("BRACKFS_PASSPHRASE_COMMAND", Path::new("false"), "BRACKFS_PASSPHRASE_COMMAND"),
        ("BRACKFS_PASSPHRASE_FILE", Path::new("/dev/zero"), "cannot read /dev/zero: it is larger than 1 MiB"),
        ("BRACKFS_PASSPHRASE_COMMAND", Path::new("cat /dev/zero"), "output of the command: it printed more than 1 MiB"),
        ("BRACKFS_PASSPHRASE_COMMAND", Path::new("cat /dev/zero; true"), "it printed more than 1 MiB"),
        ("BRACKFS_KEY_FILE", Path::new("/dev/zero"), "cannot read the key /dev/zero: it is larger than 16 MiB"),
    ] {
        let mut command = site.command(&["cat", "latest:file"]);
        command.env(name, value);
        let run = run(without_terminal(&command)).code(12);
        says(&run, words);
        assert_eq!(run.stdout, "");
    }
    // Standard input may be the list that the loop of a script reads.
    let mut list = fs::File::open(&file).unwrap();
    let mut command = site.command(&["ls", "latest"]);
    command.current_dir(site.keys()).env("BRACKFS_PASSPHRASE_COMMAND", "cat > taken; cat passphrase");
    assert!(command.stdin(list.try_clone().unwrap()).output().unwrap().status.success());
    assert_eq!(std::io::read_to_string(&mut list).unwrap(), "the right one\n");
    // A process in the background that keeps the pipes open.
    for (script, code) in [
        ("sleep 1000 & echo $! > sleeping; cat passphrase", 0),
        ("(sleep 1000 & echo $! > sleeping); cat /dev/zero", 12),
    ] {
        let mut command = site.command(&["ls", "latest", "--json"]);
        command.env("BRACKFS_PASSPHRASE_COMMAND", script);
        let mut command = without_terminal(&command);
        command.current_dir(site.keys());
        run_within(command, Duration::from_secs(60)).code(code);
        let sleeping = fs::read_to_string(site.keys().join("sleeping")).unwrap();
        assert!(Command::new("sh").args(["-c", &format!("kill {sleeping}")]).status().unwrap().success());
    }
    // No passphrase.
    assert_nothing_is_read(&site, &[], &[], 12, "BRACKFS_PASSPHRASE");
}

#[test]
fn init_without_a_passphrase_makes_no_repository() {
    let site = Site::new();
    let command = site.command(&["init".into(), site.repo()]);
    says(&run(without_terminal(&command)).code(12), "BRACKFS_PASSPHRASE");
    site.brackfs(&["check"]).code(10);
}

#[test]
fn a_repository_without_encryption_needs_no_key() {
    let site = Site::with_files(&[("file", "content"), ("folder/other", "more")]);
    let home = Home::new();
    let plain: &[(&str, &Path)] = &[("GNUPGHOME", home.path())];
    site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    site.backup(&[]).ok();
    let out = restores(&site, "latest", plain);
    assert_eq!(tree(&out), tree(&site.source()));
    site.brackfs(&["check", "--read-data"]).ok();
    let mounted = site.mount(&[]);
    assert_eq!(tree(&mounted.latest()), tree(&site.source()));
}

#[test]
fn init_never_changes_existing_files() {
    let site = backed_up();
    let certificate = site.keys().join("owner.pub");
    let init = |at: &Path| {
        let words: [OsString; 4] = ["init".into(), at.into(), "--recipient".into(), certificate.clone().into()];
        site.brackfs(&words)
    };
    let before = objects(&site);
    says(&init(&site.repo()).code(1), "already");
    assert_eq!(objects(&site), before, "the repository was changed");

    let before = tree(&site.source());
    let refused = init(&site.source()).code(1);
    says(&refused, site.source().to_str().unwrap());
    assert_eq!(tree(&site.source()), before, "the directory was changed");

    says(&init(&site.source().join("file")).code(1), "file");
    assert_eq!(tree(&site.source()), before, "the file was changed");
}

#[test]
fn a_repository_without_write_permission_is_unchanged() {
    let site = backed_up();
    site.write("new", "more");
    age(&site.source());
    settle();
    for path in tree(&site.state()).into_keys().map(|path| site.state().join(path)) {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let before = objects(&site);
    let command = site.command_as_nobody(&["backup".into(), site.source()]);
    let refused = run(command).code(1);
    says(&refused, "permission denied");
    assert_eq!(objects(&site), before, "the repository was changed");
    // The state of the failed run does not affect the next one.
    for path in tree(&site.state()).into_keys().map(|path| site.state().join(path)) {
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
    }
    site.backup(&[]).ok();
    assert_eq!(tree(&restores(&site, "latest", &[])), tree(&site.source()));
}

#[test]
fn a_read_only_file_system_is_reported_as_one() {
    let site = Site::with_files(&[("file", "content")]);
    let disk = Disk::new(site.repo(), "8m");
    site.init();
    site.backup(&[]).ok();
    site.write("new", "more");
    age(&site.source());
    settle();
    disk.mount("remount,ro");
    says(&site.backup(&[]).code(1), "read-only file system");
    site.brackfs(&["check"]).ok();
}

#[test]
fn a_full_disk_ends_a_backup_and_harms_no_snapshot() {
    let site = Site::with_files(&[("small", noise(1, 200 << 10))]);
    let disk = Disk::new(site.repo(), "8m");
    site.init();
    site.backup(&[]).ok();
    let older = tree(&site.source());

    let large = site.write("large", noise(2, 20 << 20));
    age(&site.source());
    settle();
    let full = site.backup(&[]).code(1);
    says(&full, "space");
    for arguments in [["snapshots", "--json"].as_slice(), &["snapshots", "--json", "--key", "keys/owner"]] {
        let listed: serde_json::Value = serde_json::from_str(&site.brackfs(arguments).ok().stdout).unwrap();
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "snapshots after the disk was full: {listed}");
    }
    assert_eq!(tree(&restores(&site, "latest", &[])), older);
    site.brackfs(&["check", "--read-data"]).ok();

    // A small backup still fits, or fits once there is room.
    fs::remove_file(large).unwrap();
    site.write("little", "little");
    age(&site.source());
    settle();
    let again = site.backup(&[]);
    if again.code != 0 {
        says(&again, "space");
        disk.grow("32m");
        site.backup(&[]).ok();
    }
    assert_eq!(tree(&restores(&site, "latest", &[])), tree(&site.source()));
    // So does the large one.
    disk.grow("64m");
    site.write("large", noise(2, 20 << 20));
    age(&site.source());
    settle();
    site.backup(&[]).ok();
    assert_eq!(tree(&restores(&site, "latest", &[])), tree(&site.source()));
    site.brackfs(&["check", "--read-data"]).ok();
}

/// Incompressible bytes, determined by the number.
fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn recipients_without_an_encryption_key_are_refused_with_a_message() {
    let site = Site::new();
    let home = Home::new();
    let past = ["--faked-system-time", "20200101T000000"];
    let key = ["--quick-generate-key", "expired", "future-default", "default", "1d"];
    home.gpg(&[past.as_slice(), &key].concat());
    home.gpg(&["--quick-generate-key", "revoked", "future-default", "default", "never"]);
    home.gpg(&["--quick-generate-key", "signs-only", "rsa2048", "sign", "never"]);
    home.gpg(&["--quick-generate-key", "fine", "future-default", "default", "never"]);

    // gpg keeps a revocation of every key, made harmless by a colon.
    let listed = String::from_utf8(home.gpg(&["--with-colons", "--list-keys", "revoked"])).unwrap();
    let fingerprint = listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
    let kept = home.path().join(format!("openpgp-revocs.d/{}.rev", fingerprint.trim_end_matches(':')));
    let revocation = home.path().join("revocation");
    fs::write(&revocation, fs::read_to_string(kept).unwrap().replace(":-----BEGIN", "-----BEGIN")).unwrap();
    home.gpg(&["--import", revocation.to_str().unwrap()]);

    let fine = home.export("fine");
    for (user, words) in [("expired", "expired"), ("revoked", "revoked"), ("signs-only", "encrypt")] {
        let certificate = home.export(user);
        let alone: Vec<OsString> =
            vec!["init".into(), site.repo().into(), "--recipient".into(), certificate.clone().into()];
        // One of several is enough.
        let beside = [alone.clone(), vec!["--recipient".into(), fine.clone().into()]].concat();
        for arguments in [alone, beside] {
            let refused = site.brackfs(&arguments).code(1);
            says(&refused, words);
            says(&refused, user);
            site.brackfs(&["check"]).code(10);
        }
    }
    site.brackfs(&["init".into(), site.repo(), "--recipient".into(), fine]).ok();
}

#[test]
fn only_certificates_can_be_recipients() {
    let site = Site::new();
    for (name, content) in [("empty", ""), ("text", "not a key\n")] {
        let file = site.keys().join(name);
        fs::write(&file, content).unwrap();
        let refused = site.brackfs(&["init".into(), site.repo(), "--recipient".into(), file.clone()]).code(1);
        says(&refused, file.to_str().unwrap());
    }
    let missing = site.brackfs(&["init".into(), site.repo(), "--recipient".into(), "/nowhere/cert".into()]).code(1);
    says(&missing, "/nowhere/cert");
    site.brackfs(&["check"]).code(10);
}

#[test]
fn an_exchanged_certificate_is_replaced_and_never_encrypted_to() {
    let site = backed_up();
    let other = site.key_named("other", "rfc9580");
    let recipient = object(&site.repo(), "keys/recipient-");
    let own = fs::read(&recipient).unwrap();
    fs::copy(other.with_extension("pub"), &recipient).unwrap();
    site.brackfs(&["check"]).code(1);
    says(&site.backup(&[]).ok(), "put back");
    assert_eq!(fs::read(&recipient).unwrap(), own);
    let mut command = site.command(&["cat", "latest:file"]);
    command.env("BRACKFS_KEY_FILE", other);
    run(command).code(12);
    site.brackfs(&["check"]).ok();
}

#[test]
fn a_repository_with_a_false_encryption_setting_is_refused() {
    for encrypted in [true, false] {
        let site = Site::with_files(&[("file", "content")]);
        match encrypted {
            true => site.init(),
            false => {
                site.key("rfc9580");
                site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
            }
        }
        site.backup(&[]).ok();
        let (is, becomes) = if encrypted { ("openpgp", "none") } else { ("none", "openpgp") };
        let is = format!("encryption = \"{is}\"");
        for object in ["brackfs.toml", "brackfs-copy.toml"] {
            let description = site.repo().join(object);
            let text = fs::read_to_string(&description).unwrap();
            assert!(text.contains(&is), "{text}");
            fs::write(&description, text.replace(&is, &format!("encryption = \"{becomes}\""))).unwrap();
        }
        let before = objects(&site);
        says(&site.backup(&[]).code(1), "brackfs.toml");
        for arguments in ways_to_read(&site) {
            // The list of all snapshots does not read content.
            if arguments[0] == "mount" {
                continue;
            }
            let run = site.brackfs(&arguments);
            assert!([1, 12].contains(&run.code), "it was not refused\n{run}");
            assert_eq!(run.stdout, "", "{run}");
        }
        assert!(!site.path().join("out/file").exists(), "it was restored");
        assert_eq!(objects(&site), before, "the repository was changed");
    }
}

#[test]
fn a_snapshot_signed_by_a_stranger_is_reported_and_not_shown() {
    let site = backed_up();
    let own = object(&site.repo(), "snapshots/");
    let stranger = site.path().join("stranger");
    fs::create_dir_all(stranger.join("source")).unwrap();
    fs::write(stranger.join("source/evil"), "evil").unwrap();
    let as_stranger = |arguments: &[OsString]| {
        let mut command = site.command(arguments);
        command.env("BRACKFS_STATE_DIR", stranger.join("state")).env("BRACKFS_REPOSITORY", stranger.join("repo"));
        run(command).ok()
    };
    let recipient = site.keys().join("owner.pub");
    as_stranger(&["init".into(), stranger.join("repo").into(), "--recipient".into(), recipient.into()]);
    as_stranger(&["backup".into(), stranger.join("source").into()]);

    // Including its packs and the certificate of its signer.
    let theirs = object(&stranger.join("repo"), "snapshots/");
    let name = theirs.file_name().unwrap().to_str().unwrap().to_owned();
    let planted = own.with_file_name(&name);
    fs::copy(&theirs, &planted).unwrap();
    for path in tree(&stranger.join("repo")).into_keys() {
        let (from, to) = (stranger.join("repo").join(&path), site.repo().join(&path));
        let is_theirs = ["packs", "keys", "sums", "snapshots", "sources"].iter().any(|folder| path.starts_with(folder));
        if is_theirs && from.is_dir() {
            fs::create_dir_all(&to).unwrap();
        } else if is_theirs && !to.exists() {
            fs::copy(&from, &to).unwrap();
        }
    }

    for arguments in
        [["check", "-v"].as_slice(), &["check", "-v", "--read-data"], &["snapshots", "-v", "--key", "keys/owner"]]
    {
        let run = site.brackfs(arguments).code(1);
        says(&run, &name);
        assert!(!run.stdout.contains("evil"), "{run}");
    }
    let (_, their_id) = name.rsplit_once('-').unwrap();
    let (_, own_id) = own.file_name().unwrap().to_str().unwrap().rsplit_once('-').unwrap();
    site.brackfs(&["ls", their_id]).code(1);
    assert_eq!(tree(&restores(&site, own_id, &[])), tree(&site.source()));

    let mounted = site.mount(&[]);
    let mut found = Vec::new();
    let mut folders = vec![mounted.path().to_owned()];
    while let Some(folder) = folders.pop() {
        // An unreadable directory has no entries.
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            match fs::symlink_metadata(&path) {
                Ok(stat) if stat.is_dir() => folders.push(path),
                Ok(stat) if stat.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    assert!(!found.iter().any(|path| path.ends_with("evil")), "the mount shows {found:?}");
    let good = found.iter().find(|path| path.ends_with("file")).expect("our own file in the mount");
    assert_eq!(fs::read_to_string(good).unwrap(), "content");
}

#[test]
fn another_machine_cannot_back_up_to_the_repository() {
    let site = backed_up();
    let before = objects(&site);
    let mut command = site.command(&["backup".into(), site.source()]);
    command.env("BRACKFS_STATE_DIR", site.path().join("elsewhere"));
    says(&run(command).code(1), "host key");
    assert_eq!(objects(&site), before, "the repository was changed");
}

#[test]
fn the_catalog_of_another_repository_is_refused() {
    let site = backed_up();
    let other = site.path().join("other");
    site.brackfs(&["init".into(), other.clone(), "--recipient".into(), site.keys().join("owner.pub")]).ok();
    let id = |repository: &Path| {
        let text = fs::read_to_string(repository.join("brackfs.toml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("id = ")).unwrap();
        line.trim_matches('"').to_owned()
    };
    let catalog = |repository: &Path| site.state().join(id(repository)).join("catalog.sqlite");
    fs::copy(catalog(&other), catalog(&site.repo())).unwrap();
    let before = objects(&site);
    says(&site.backup(&[]).code(1), "catalog");
    assert_eq!(objects(&site), before, "the repository was changed");
}

#[test]
fn an_invalid_command_line_gives_exit_code_2() {
    let site = backed_up();
    let before = objects(&site);
    let wrong: [&[&str]; 12] = [
        &[],
        &["no-such-command"],
        &["backup"],
        &["backup", "source", "--chunk-size", "banana"],
        &["backup", "source", "--compression", "99"],
        &["backup", "source", "--no-such-flag"],
        &["backup", "source", "--quiet", "--verbose"],
        &["restore", "latest"],
        &["restore", "latest", "--to", "out", "--conflict", "perhaps"],
        &["cat", ":file"],
        &["check", "--cache-size", "-1"],
        &["check", "--signer", "not a fingerprint"],
    ];
    for arguments in wrong {
        let run = site.brackfs(arguments).code(2);
        assert!(!run.stderr.is_empty(), "it says nothing\n{run}");
        assert_eq!(run.stdout, "", "{run}");
    }
    assert_eq!(objects(&site), before, "the repository was changed");
}

#[test]
fn a_missing_snapshot_or_path_gives_exit_code_1() {
    let site = Site::with_files(&[("file", "content")]);
    site.init();
    says(&site.brackfs(&["ls", "latest"]).code(1), "no snapshot");
    site.backup(&[]).ok();
    for selector in ["ffffffffffffffffffff", "nobody/latest", "1999"] {
        says(&site.brackfs(&["ls", selector]).code(1), "no snapshot");
        says(&site.brackfs(&["restore", selector, "--to", "out"]).code(1), "no snapshot");
    }
    says(&site.brackfs(&["cat", "latest:no/such"]).code(1), "no");
    says(&site.brackfs(&["restore", "latest:nothing", "--to", "out"]).code(1), "nothing");
    assert!(!site.path().join("out/file").exists());
}

/// Runs as on a machine that never used the repository.
fn elsewhere(site: &Site, state: &Path, arguments: &[&str]) -> Run {
    let mut command = site.command(arguments);
    command.env("BRACKFS_STATE_DIR", state);
    run(command)
}

#[test]
fn the_first_use_on_another_machine_prints_and_remembers_the_host_key() {
    let site = Site::with_files(&[("file", "content")]);
    site.key("rfc9580");
    let words = ["init".into(), site.repo(), "--json".into(), "--recipient".into(), site.keys().join("owner.pub")];
    let made: serde_json::Value = serde_json::from_str(&site.brackfs(&words).ok().stdout).unwrap();
    let host = made["host_key"].as_str().unwrap();
    site.backup(&[]).ok();
    let state = site.path().join("elsewhere");
    let first = elsewhere(&site, &state, &["cat", "latest:file"]).ok();
    assert_eq!(first.stdout, "content");
    says(&first, host);
    let second = elsewhere(&site, &state, &["cat", "latest:file"]).ok();
    assert_eq!(second.stdout, "content");
    assert!(!second.stderr.contains(host), "it was not remembered\n{second}");
    // The machine itself needs no message.
    let own = site.brackfs(&["cat", "latest:file"]).ok();
    assert!(!own.stderr.contains(host), "{own}");
    // The right one can be given in advance.
    let state = site.path().join("careful");
    let given = elsewhere(&site, &state, &["cat", "latest:file", "--signer", host]).ok();
    assert_eq!(given.stdout, "content");
    assert!(!given.stderr.contains("first use"), "{given}");
}

#[test]
fn a_host_key_exchanged_after_the_first_use_is_not_trusted() {
    let site = backed_up();
    let state = site.path().join("elsewhere");
    elsewhere(&site, &state, &["check"]).ok();
    let host = object(&site.repo(), "keys/host-");
    let other = site.key_named("other", "rfc9580").with_extension("pub");
    fs::copy(&other, &host).unwrap();
    elsewhere(&site, &state, &["check"]).code(1);
    fs::rename(&host, site.repo().join(format!("keys/host-{}.asc", "AB".repeat(32)))).unwrap();
    // The right certificate is also in secrets; the other one is not trusted.
    let run = elsewhere(&site, &state, &["cat", "latest:file"]).ok();
    assert_eq!(run.stdout, "content", "{run}");
    assert!(!run.stderr.contains("first use"), "{run}");
}

#[test]
fn a_wrong_signer_refuses_all_snapshots() {
    let site = backed_up();
    let wrong = "AB".repeat(32);
    let state = site.path().join("elsewhere");
    let run = elsewhere(&site, &state, &["cat", "latest:file", "--signer", &wrong]).code(1);
    says(&run, &wrong);
    assert_eq!(run.stdout, "", "{run}");
    elsewhere(&site, &state, &["restore", "latest", "--to", "out", "--signer", &wrong]).code(1);
    assert!(!site.path().join("out/file").exists());
}

#[test]
fn a_path_that_looks_remote_is_refused_and_no_directory_is_made() {
    let site = Site::with_files(&[("file", "content")]);
    site.key("rfc9580");
    let before = tree(site.path());
    for place in
        ["user@host:repo", "host:/srv/repo", "sftp:host:repo", "s3:bucket", "b2:bucket:repo", "ssh://host/repo"]
    {
        let init = site.brackfs(&["init", place, "--no-encryption"]).code(2);
        says(&init, &format!("./{place}"));
        site.brackfs(&["backup", "source", "--repo", place]).code(2);
        site.brackfs(&["ls", "latest", "--repo", place]).code(2);
        let mut command = site.command(&["check"]);
        command.env("BRACKFS_REPOSITORY", place);
        says(&run(command).code(2), &format!("./{place}"));
    }
    assert_eq!(tree(site.path()), before);
    site.brackfs(&["init", "./user@host:repo", "--no-encryption"]).ok();
    site.brackfs(&["backup", "source", "--repo", "./user@host:repo"]).ok();
    assert!(site.path().join("user@host:repo/brackfs.toml").exists());
}

#[test]
fn help_is_shown_without_a_command() {
    let site = Site::new();
    // The environment of a site names a repository and a state directory.
    for (arguments, words) in [([].as_slice(), "Usage: brackfs [OPTIONS] <COMMAND>"), (&["catalog"], "rebuild")] {
        let run = site.brackfs::<&str>(arguments).code(2);
        says(&run, words);
        assert!(run.stdout.is_empty(), "{run}");
    }
}

#[test]
fn files_of_other_programs_in_a_repository_are_reported_as_notes() {
    let site = Site::with_files(&[("file", "content")]);
    site.init();
    site.backup(&[]).ok();
    let folders: Vec<_> =
        tree(&site.repo()).into_keys().map(|path| site.repo().join(path)).filter(|path| path.is_dir()).collect();
    for folder in folders {
        for name in [".DS_Store", "Thumbs.db", "._x", ".stfolder", "x~"] {
            fs::write(folder.join(name), "junk").unwrap();
        }
    }
    let check = site.brackfs(&["check", "--read-data"]).ok();
    says(&check, "this is harmless");
    site.backup(&[]).ok();
    site.brackfs(&["catalog", "verify"]).ok();
    assert_eq!(site.brackfs(&["cat", "latest:file"]).ok().stdout, "content");
}

#[test]
fn an_empty_passphrase_of_a_new_key_is_refused() {
    let site = Site::with_files(&[("file", "content")]);
    let [empty, line] = ["", "\n"].map(|text| {
        let path = site.keys().join(format!("passphrase-{}", text.len()));
        fs::write(&path, text).unwrap();
        path
    });
    let key = site.keys().join("new.key");
    for (name, value) in [
        ("BRACKFS_PASSPHRASE", Path::new("\n")),
        ("BRACKFS_PASSPHRASE_FILE", &empty),
        ("BRACKFS_PASSPHRASE_FILE", &line),
        ("BRACKFS_PASSPHRASE_COMMAND", Path::new("true")),
    ] {
        for arguments in
            [&["init".into(), site.repo()][..], &["key".into(), "generate".into(), "--output".into(), key.clone()]]
        {
            let mut command = site.command(arguments);
            command.env(name, value);
            let run = run(without_terminal(&command)).code(12);
            says(&run, name);
            says(&run, "is empty");
        }
        assert!(!site.repo().exists() && !key.exists());
    }
}
