//! Together with GnuPG, in a home of its own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::{content, host, opened, owner, sealed_to};
use crate::crypt::gpg::Gpg;
use crate::crypt::{Certificate, Error, Opener, Passphrase, Profile, Role, Sealer, SecretKey, Signer};

/// A home of gpg, whose agent goes when it goes.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = TempDir::with_prefix("gpg").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
        // Passphrases are stretched less than they should be, for speed, and asked for each time.
        let pinentry = home.path().join("pinentry");
        let settings = format!("s2k-count 65536\nmax-cache-ttl 0\npinentry-program {}\n", pinentry.display());
        fs::write(home.path().join("gpg-agent.conf"), settings).unwrap();
        Home(home)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs gpg, which must succeed, and returns what it writes.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.try_run(arguments, input);
        assert!(output.status.success(), "gpg {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn try_run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut gpg = Command::new("gpg")
            .arg("--homedir")
            .arg(self.path())
            .args(["--batch", "--quiet", "--pinentry-mode", "loopback"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = gpg.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input));
            gpg.wait_with_output().unwrap()
        })
    }

    /// Makes a key.
    fn generate(&self, algorithm: &str, passphrase: &str) {
        let (primary, subkey) = match algorithm {
            "rsa" => ("rsa3072", "rsa3072"),
            _ => ("ed25519", "cv25519"),
        };
        let passphrase = ["--passphrase", passphrase];
        self.run(
            &[passphrase.as_slice(), &["--quick-generate-key", "Greta", primary, "default", "never"]].concat(),
            b"",
        );
        let listing = self.run(&["--list-keys", "--with-colons"], b"");
        let listing = String::from_utf8(listing).unwrap();
        let fingerprint = listing.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
        let fingerprint = fingerprint.trim_end_matches(':');
        self.run(&[passphrase.as_slice(), &["--quick-add-key", fingerprint, subkey, "encr", "never"]].concat(), b"");
    }

    fn certificate(&self) -> Certificate {
        Certificate::parse(&self.run(&["--armor", "--export"], b"")).unwrap()
    }

    fn secret_key(&self, passphrase: &str) -> SecretKey {
        let exported = self.run(&["--passphrase", passphrase, "--export-secret-keys"], b"");
        SecretKey::parse(&exported).unwrap()
    }

    fn gpg(&self) -> Gpg {
        Gpg::with("gpg", &["--homedir".as_ref(), self.path().as_os_str()])
    }

    /// Whoever is asked for a passphrase answers with this piece of shell script.
    fn set_pinentry(&self, answer: &str) {
        let pinentry = self.path().join("pinentry");
        let script = format!("case $line in GETPIN*) {answer};; *) echo OK;; esac");
        fs::write(&pinentry, format!("#!/bin/sh\necho OK\nwhile read -r line; do {script}; done\n")).unwrap();
        fs::set_permissions(&pinentry, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let killed = Command::new("gpgconf").arg("--homedir").arg(self.path()).args(["--kill", "all"]).status();
        assert!(killed.unwrap().success());
    }
}

fn both_ways(home: &Home, key: SecretKey, passphrase: &str) {
    let certificate = home.certificate();
    certificate.check_recipient().unwrap();
    assert!(!certificate.supports_aead());
    assert_eq!(certificate.user_id().as_deref(), Some("Greta"));
    let sealer = Sealer::new(&[certificate]).unwrap();
    let (ours, theirs) = (Opener::new(key).unwrap(), Opener::with_gpg(home.gpg()));
    home.set_pinentry(&format!("echo D {passphrase}; echo OK"));
    for size in [0, 100_000] {
        let content = content(size);
        let mut message = Vec::new();
        sealer.seal(&content, &mut message).unwrap();
        let by_gpg = home.try_run(&["--passphrase", passphrase, "--decrypt"], &message);
        assert!(by_gpg.status.success() && by_gpg.stdout == content && by_gpg.stderr.is_empty(), "{by_gpg:?}");
        assert!(opened(&ours, &message).unwrap() == content);
        assert!(opened(&theirs, &message).unwrap() == content);
    }
    assert_eq!((ours.asked(), theirs.asked()), (1, 1));
}

#[test]
fn rsa_key_of_gpg_works_both_ways() {
    let home = Home::new();
    home.generate("rsa", "");
    both_ways(&home, home.secret_key(""), "");
}

#[test]
fn curve_key_of_gpg_works_both_ways() {
    let home = Home::new();
    home.generate("curve", "");
    both_ways(&home, home.secret_key(""), "");
}

#[test]
fn locked_key_of_gpg_works_both_ways() {
    let home = Home::new();
    home.generate("curve", "secret");
    let key = home.secret_key("secret");
    assert!(key.is_locked());
    let wrong = key.clone().unlock(&Passphrase::from("wrong".to_owned())).unwrap_err();
    assert!(matches!(wrong, Error::WrongPassphrase { .. }));
    let key = key.unlock(&Passphrase::from("secret".to_owned())).unwrap();
    both_ways(&home, key, "secret");
}

#[test]
fn passphrase_that_is_refused_or_wrong_is_told_apart() {
    let home = Home::new();
    home.generate("curve", "secret");
    let mut message = Vec::new();
    Sealer::new(&[home.certificate()]).unwrap().seal(b"hello", &mut message).unwrap();
    let answer = |answer: &str| {
        home.set_pinentry(answer);
        let error = opened(&Opener::with_gpg(home.gpg()), &message).unwrap_err();
        assert!(error.is_key_problem());
        error
    };
    let cancelled = answer("echo ERR 83886179 Operation cancelled");
    assert!(matches!(cancelled, Error::GpgCancelled), "{cancelled}");
    let wrong = answer("echo D wrong; echo OK");
    assert!(matches!(wrong, Error::WrongPassphrase { .. }), "{wrong}");
    let broken = answer("exit 1");
    assert!(matches!(broken, Error::Gpg { .. }), "{broken}");
}

#[test]
fn gpg_without_the_key_names_the_recipients() {
    let home = Home::new();
    let message = sealed_to(&[&owner(Profile::Rfc4880), &owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(home.gpg()), &message).unwrap_err();
    assert!(error.is_key_problem());
    match error {
        Error::NoKey { recipients, .. } => assert_eq!(recipients.split(", ").count(), 2),
        other => panic!("{other}"),
    }
}

#[test]
fn missing_gpg_is_said_so() {
    let message = sealed_to(&[&owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(Gpg::with("/nowhere/gpg", &[])), &message).unwrap_err();
    assert!(matches!(error, Error::GpgMissing { .. }) && error.is_key_problem(), "{error}");
}

#[test]
fn gpg_that_is_too_old_is_said_so() {
    let home = Home::new();
    let message = sealed_to(&[&owner(Profile::Rfc9580)], b"AEAD");
    let error = opened(&Opener::with_gpg(home.gpg()), &message).unwrap_err();
    assert!(error.is_key_problem());
    assert!(error.to_string().ends_with("it does not read RFC 9580; give the secret key as a file"), "{error}");
}

#[test]
fn gpg_takes_our_keys_locked_or_not() {
    for passphrase in [None, Some("secret")] {
        let home = Home::new();
        let given = passphrase.map(|text| Passphrase::from(text.to_owned()));
        let key = SecretKey::generate(Profile::Rfc4880, "Greta", Role::Owner, given.as_ref()).unwrap();
        home.run(&["--import"], &key.to_armored().unwrap());
        let message = sealed_to(&[&key], b"hello");
        let decrypted = home.run(&["--passphrase", passphrase.unwrap_or(""), "--decrypt"], &message);
        assert_eq!(decrypted, b"hello");
    }
}

#[test]
fn gpg_verifies_what_we_sign_and_opens_it_when_sealed() {
    let home = Home::new();
    let (host, owner) = (host(Profile::Rfc4880), owner(Profile::Rfc4880));
    let signed = Signer::new(host.clone()).unwrap().sign(b"document").unwrap();
    home.run(&["--import"], &host.certificate().to_armored().unwrap());
    let verify = ["--status-fd", "2", "--decrypt"];
    let output = home.try_run(&verify, &signed);
    let status = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout == b"document" && status.contains("[GNUPG:] GOODSIG "), "{status}");

    home.run(&["--import"], &owner.to_armored().unwrap());
    let mut sealed = Vec::new();
    Sealer::new(&[owner.certificate()]).unwrap().seal_message(&signed, &mut sealed).unwrap();
    let output = home.try_run(&verify, &sealed);
    assert!(output.stdout == b"document" && String::from_utf8_lossy(&output.stderr).contains("[GNUPG:] GOODSIG "));
    assert_eq!(Opener::with_gpg(home.gpg()).open_message(&sealed, 10_000).unwrap(), signed);
}
