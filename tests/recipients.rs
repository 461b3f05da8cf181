//! Certificates of recipients expire and are renewed, and backups continue.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::machine::spawn;
use common::ordeal::under_strace;
use common::{Run, Site, run};
use tempfile::TempDir;

/// An owner with a GnuPG home.
struct Owner {
    folder: TempDir,
    fingerprint: String,
}

impl Owner {
    /// A key that was made `made` days ago and expires in `ends` days.
    fn new(name: &str, made: i64, ends: i64) -> Owner {
        let folder = TempDir::with_prefix("gpg-").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut owner = Owner { folder, fingerprint: String::new() };
        let made = moment(-made);
        let valid = format!("seconds={}", ends * 86_400 + seconds_since(&made));
        let old = ["--faked-system-time", &made];
        owner.gpg(&[&old[..], &["--quick-generate-key", name, "ed25519", "sign", &valid]].concat());
        let listing = String::from_utf8(owner.gpg(&["--list-keys", "--with-colons"])).unwrap();
        let fingerprint = listing.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
        owner.fingerprint = fingerprint.trim_end_matches(':').to_owned();
        owner.gpg(&[&old[..], &["--quick-add-key", &owner.fingerprint, "cv25519", "encr", &valid]].concat());
        owner
    }

    fn gpg(&self, arguments: &[&str]) -> Vec<u8> {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--homedir"]);
        gpg.arg(self.folder.path()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = spawn(&mut gpg).wait_with_output().expect("output of gpg");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn renew(&self) {
        self.gpg(&["--quick-set-expire", &self.fingerprint, "0"]);
        // By its fingerprint: gpg takes `*` for subkeys that have not expired only.
        let listing = String::from_utf8(self.gpg(&["--list-keys", "--with-colons"])).unwrap();
        let subkey = listing.lines().filter_map(|line| line.strip_prefix("fpr:::::::::")).nth(1).unwrap();
        self.gpg(&["--quick-set-expire", &self.fingerprint, "0", subkey.trim_end_matches(':')]);
    }

    fn file(&self, name: &str, what: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        fs::write(&file, self.gpg(&[what, &self.fingerprint])).unwrap();
        file
    }

    fn certificate(&self) -> PathBuf {
        self.file("certificate", "--export")
    }

    fn secret_key(&self) -> PathBuf {
        self.file("key", "--export-secret-keys")
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.folder.path()).args(["--kill", "all"]).status();
    }
}

/// The time in this many days, in the format of gpg.
fn moment(days: i64) -> String {
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    now.strftime("%Y%m%dT%H%M%S!").to_string()
}

fn seconds_since(moment: &str) -> i64 {
    let then = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S!", moment).unwrap();
    let then = then.to_zoned_datetime(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    jiff::Timestamp::now().duration_since(then).as_secs()
}

/// A site whose repository is encrypted to these owners.
fn site(owners: &[&Owner]) -> Site {
    let site = Site::with_files(&[("file", "content")]);
    let mut arguments = vec!["init".into(), site.repo().into_os_string()];
    for owner in owners {
        arguments.extend(["--recipient".into(), owner.certificate().into_os_string()]);
    }
    site.brackfs(&arguments).ok();
    site
}

fn update(site: &Site, certificate: &Path) -> Run {
    site.brackfs(&["recipients".as_ref(), "update".as_ref(), certificate.as_os_str()])
}

/// Runs with another date, as when the certificate was still valid. brackfs uses the system clock, which a
/// test must not set.
fn at(site: &Site, days: i64, arguments: &[&str]) -> Run {
    let inner = site.command(arguments);
    let mut command = Command::new("faketime");
    command.args(["-f", &format!("{days:+}d")]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(site.path());
    run(command)
}

#[test]
fn a_certificate_that_expires_soon_is_reported_once_per_run() {
    let (soon, late) = (Owner::new("soon", 5, 29), Owner::new("late", 5, 32));
    let site = site(&[&soon, &late]);
    for arguments in [&["backup"][..], &["backup", "--dry-run"]] {
        let source = site.source();
        let run = site.brackfs(&[arguments, &[source.to_str().unwrap()]].concat()).ok();
        assert_eq!(run.stderr.matches(&soon.fingerprint).count(), 1, "{run}");
        assert!(run.stderr.contains("expires on 20") && run.stderr.contains("brackfs recipients update"), "{run}");
        assert!(!run.stderr.contains(&late.fingerprint), "{run}");
    }
    let config = site.path().join("config.toml");
    let text = format!(
        "[target.nas]\nrepository = \"{}\"\n[source.a]\npaths = [\"{}\"]\nto = [\"nas\"]\n",
        site.repo().display(),
        site.source().display()
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    site.brackfs(&["run".as_ref(), "--config".as_ref(), config.as_os_str()]).ok();
    let status = site.brackfs(&["status".as_ref(), "--config".as_ref(), config.as_os_str()]).ok();
    // Depending on the time of the day.
    let is_said = |days: u32| status.stdout.contains(&format!("the certificate of soon expires in {days} days"));
    assert!(is_said(28) || is_said(29), "{status}");
    assert!(!status.stdout.contains("certificate of late"), "{status}");
    soon.renew();
    update(&site, &soon.certificate()).ok();
    let run = site.backup(&[]).ok();
    assert!(!run.stderr.contains(&soon.fingerprint), "{run}");
}

#[test]
fn backups_continue_after_an_expired_certificate_is_renewed() {
    let owner = Owner::new("owner", 5, -2);
    let site = Site::with_files(&[("file", "content")]);
    let certificate = owner.certificate();
    let source = site.source();
    at(&site, -3, &["init", site.repo().to_str().unwrap(), "--recipient", certificate.to_str().unwrap()]).ok();
    at(&site, -3, &["backup", source.to_str().unwrap()]).ok();
    let refused = site.backup(&[]).code(1);
    assert!(refused.stderr.contains("expired on 20") && refused.stderr.contains("recipients update"), "{refused}");
    let listed = site.brackfs(&["recipients", "list", "--json"]).code(1);
    let recipient: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(recipient["fingerprint"], owner.fingerprint);
    assert!(recipient["problem"].as_str().unwrap().contains("expired"), "{listed}");
    // A machine that cannot become the writer for this reason keeps its state.
    let refused = site.brackfs(&["adopt"]).code(1);
    assert!(refused.stderr.contains("expired on 20"), "{refused}");
    // The old certificate does not help.
    update(&site, &certificate).code(1);

    owner.renew();
    // Of a secret key, the public part is used.
    update(&site, &owner.secret_key()).ok();
    let again = update(&site, &owner.certificate()).ok();
    assert!(again.stderr.contains("nothing new"), "{again}");
    let listed = site.brackfs(&["recipients", "list"]).ok();
    assert_eq!(listed.stdout.trim(), format!("{}  does not expire  owner", owner.fingerprint));
    site.write("later", "content");
    site.backup(&[]).ok();
    let cat = |path: &str| {
        let mut command = site.command(&["cat", path]);
        command.env("BRACKFS_KEY_FILE", owner.secret_key());
        run(command).ok().stdout
    };
    assert_eq!((cat("latest:file"), cat("latest:later")), ("content".to_owned(), "content".to_owned()));
    let mut check = site.command(&["check", "--read-data"]);
    check.env("BRACKFS_KEY_FILE", owner.secret_key());
    run(check).ok();

    // The certificate in keys/ is the renewed one, too.
    let listed = owner.gpg(&[
        "--show-keys",
        "--with-colons",
        &format!("{}/keys/recipient-{}.asc", site.repo().display(), owner.fingerprint),
    ]);
    let listed = String::from_utf8(listed).unwrap();
    assert!(
        listed
            .lines()
            .filter(|line| line.starts_with("pub:") || line.starts_with("sub:"))
            .all(|line| line.split(':').nth(6) == Some("")),
        "{listed}"
    );

    // A rebuilt catalog has the renewed certificate again, and so has a new machine.
    fs::remove_file(only(&site.state(), "catalog.sqlite")).unwrap();
    site.brackfs(&["catalog", "rebuild"]).ok();
    site.backup(&[]).ok();
    let state = site.path().join("another machine");
    fs::create_dir(&state).unwrap();
    let signer = only(&site.repo().join("keys"), "host-");
    let signer = signer.file_stem().unwrap().to_str().unwrap().strip_prefix("host-").unwrap().to_owned();
    let elsewhere = |arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env("BRACKFS_STATE_DIR", &state).env("BRACKFS_KEY_FILE", owner.secret_key());
        run(command)
    };
    elsewhere(&["adopt", "--signer", &signer]).ok();
    elsewhere(&["backup", source.to_str().unwrap()]).ok();
}

#[test]
fn temporary_files_of_a_killed_update_are_removed_by_the_next_backup() {
    let owner = Owner::new("owner", 5, 5);
    let mut removed = 0;
    for nth in 1..9 {
        let site = site(&[&owner]);
        site.backup(&[]).ok();
        owner.gpg(&["--quick-set-expire", &owner.fingerprint, &(100 + nth).to_string()]);
        let certificate = owner.certificate();
        // Without links each object is written to a temporary file that has a name.
        let kill = format!("inject=renameat2:signal=KILL:when={nth}");
        let arguments =
            ["-o", "/dev/null", "-e", "trace=linkat,renameat2", "-e", "inject=linkat:error=EPERM", "-e", &kill];
        let command = site.command(&["recipients".as_ref(), "update".as_ref(), certificate.as_os_str()]);
        let whole = run(under_strace(&arguments, &command)).code == 0;
        let left = || common::tree(&site.repo()).into_keys().filter(|path| path.to_string_lossy().contains(".tmp-"));
        removed += left().count();
        site.backup(&[]).ok();
        assert_eq!(left().count(), 0, "killed at the rename {nth}");
        update(&site, &certificate).ok();
        if whole {
            assert!(removed > 0, "{removed}");
            return;
        }
    }
    panic!("the update renames without end");
}

/// The only file below a folder with this prefix.
fn only(folder: &Path, begin: &str) -> PathBuf {
    let found: Vec<_> = common::tree(folder)
        .into_keys()
        .filter(|path| path.file_name().is_some_and(|name| name.to_str().unwrap().starts_with(begin)))
        .filter(|path| !path.to_str().unwrap().ends_with("-wal") && !path.to_str().unwrap().ends_with("-shm"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    folder.join(&found[0])
}

#[test]
fn recipients_are_renewed_one_by_one_or_all_at_once() {
    let owners = [Owner::new("alice", 5, -2), Owner::new("bob", 5, -1)];
    let certificates = |which: &str| owners.each_ref().map(|owner| owner.file(which, "--export").display().to_string());
    let old = certificates("old");
    owners.iter().for_each(Owner::renew);
    let [alice, bob] = certificates("new");
    for at_once in [false, true] {
        let site = Site::with_files(&[("file", "content")]);
        at(&site, -3, &["init", site.repo().to_str().unwrap(), "--recipient", &old[0], "--recipient", &old[1]]).ok();
        match at_once {
            true => _ = site.brackfs(&["recipients", "update", &alice, &bob]).ok(),
            false => {
                site.brackfs(&["recipients", "update", &alice]).ok();
                // Bob's has still expired.
                site.backup(&[]).code(1);
                site.brackfs(&["recipients", "update", &bob]).ok();
            }
        }
        site.backup(&[]).ok();
        for owner in &owners {
            let mut command = site.command(&["cat", "latest:file"]);
            command.env("BRACKFS_KEY_FILE", owner.secret_key());
            assert_eq!(run(command).ok().stdout, "content");
        }
    }
}

#[test]
fn the_certificate_of_another_key_is_refused() {
    let site = Site::with_files(&[("file", "content")]);
    site.init();
    let stranger = site.key_named("stranger", "rfc9580").with_extension("pub");
    let before = common::tree(&site.repo());
    let refused = update(&site, &stranger).code(1);
    assert!(refused.stderr.contains("is not a recipient of this repository"), "{refused}");
    assert_eq!(common::tree(&site.repo()), before);
    let missing = update(&site, Path::new("nowhere")).code(1);
    assert!(missing.stderr.contains("cannot read the certificate nowhere"), "{missing}");
}

#[test]
fn a_user_id_cannot_send_commands_to_the_terminal() {
    let site = Site::with_files(&[("a", "one")]);
    let key = site.path().join("odd.key");
    let key = key.to_str().unwrap();
    site.brackfs(&["key", "generate", "--output", key, "--no-passphrase", "--user-id", "odd \u{9b}31m\u{202e}"]).ok();
    site.brackfs(&["init", site.repo().to_str().unwrap(), "--recipient", &format!("{key}.pub")]).ok();
    site.backup(&[]).ok();
    for arguments in [&["recipients", "list"][..], &["recipients", "list", "--json"]] {
        let list = site.brackfs(arguments).ok();
        assert!(list.stdout.contains("odd ") && !list.stdout.contains(['\u{9b}', '\u{202e}']), "{list}");
    }
}
