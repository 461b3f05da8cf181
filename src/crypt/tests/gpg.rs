//! Together with GnuPG, in a home of its own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{content, host, opened, owner, sealed_to};
use crate::crypt::gpg::Gpg;
use crate::crypt::{
    Certificate, Error, Fingerprint, KeyStore, Opener, Passphrase, Profile, Role, Sealer, SecretKey, Signer,
};

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

    /// The agent forgets passphrases.
    fn stop_agent(&self) {
        let killed = Command::new("gpgconf").arg("--homedir").arg(self.path()).args(["--kill", "all"]).status();
        assert!(killed.unwrap().success());
    }

    /// Opens messages with gpg, and tells how often it was asked for a session key.
    fn open_all(&self, messages: &[Vec<u8>], store: &Memory) -> u64 {
        let opener = Opener::with_gpg(self.gpg(), Some(Box::new(store.clone())));
        for message in messages {
            assert_eq!(opened(&opener, message).unwrap(), b"hello");
        }
        opener.asked()
    }

    /// A gpg that adds a line to the file `runs` each time.
    fn counted_gpg(&self) -> Gpg {
        let program = self.path().join("gpg");
        let (runs, home) = (self.path().join("runs"), self.path().display().to_string());
        let script = format!("#!/bin/sh\necho \"$*\" >> {}\nexec gpg --homedir {home} \"$@\"\n", runs.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        Gpg::with(program.to_str().unwrap(), &[])
    }

    fn lines(&self, file: &str) -> usize {
        fs::read_to_string(self.path().join(file)).unwrap_or_default().lines().count()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.stop_agent();
    }
}

fn both_ways(home: &Home, key: SecretKey, passphrase: &str) {
    let certificate = home.certificate();
    certificate.check_recipient().unwrap();
    assert!(!certificate.supports_aead());
    assert_eq!(certificate.user_id().as_deref(), Some("Greta"));
    let sealer = Sealer::new(&[certificate]).unwrap();
    let (ours, theirs) = (Opener::new(key).unwrap(), Opener::with_gpg(home.gpg(), None));
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
        let error = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
        assert!(error.is_key_problem());
        error
    };
    let cancelled = answer("echo ERR 83886179 Operation cancelled");
    assert!(matches!(cancelled, Error::GpgCancelled), "{cancelled}");
    let wrong = answer("echo D wrong; echo OK");
    assert!(matches!(wrong, Error::WrongPassphrase { .. }), "{wrong}");
    let broken = answer("exit 1");
    assert!(matches!(broken, Error::GpgCannotAsk { .. }), "{broken}");
    fs::remove_file(home.path().join("pinentry")).unwrap();
    home.stop_agent();
    let missing = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
    assert!(matches!(&missing, Error::GpgCannotAsk { why } if why == "No pinentry"), "{missing}");
}

#[test]
fn gpg_without_the_key_names_the_recipients() {
    let home = Home::new();
    let message = sealed_to(&[&owner(Profile::Rfc4880), &owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
    assert!(error.is_key_problem());
    match error {
        Error::NoKey { recipients, .. } => assert_eq!(recipients.split(", ").count(), 2),
        other => panic!("{other}"),
    }
}

#[test]
fn missing_gpg_is_said_so() {
    let message = sealed_to(&[&owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(Gpg::with("/nowhere/gpg", &[]), None), &message).unwrap_err();
    assert!(matches!(error, Error::GpgMissing { .. }) && error.is_key_problem(), "{error}");
}

#[test]
fn gpg_that_is_too_old_is_said_so() {
    let home = Home::new();
    let message = sealed_to(&[&owner(Profile::Rfc9580)], b"AEAD");
    let error = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
    assert!(error.is_key_problem());
    assert!(matches!(error, Error::GpgTooOld), "{error}");
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
    assert_eq!(Opener::with_gpg(home.gpg(), None).open_message(&sealed, 10_000).unwrap(), signed);
}

/// Kept in memory, and how often.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<(Option<Vec<u8>>, usize)>>);

impl Memory {
    fn holding(sealed: Vec<u8>) -> Self {
        Memory(Arc::new(Mutex::new((Some(sealed), 0))))
    }

    fn sealed(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().0.clone()
    }

    fn writes(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl KeyStore for Memory {
    fn read(&self, limit: usize) -> Option<Vec<u8>> {
        self.sealed().filter(|sealed| sealed.len() <= limit)
    }

    fn write(&self, sealed: &[u8]) {
        let mut held = self.0.lock().unwrap();
        *held = (Some(sealed.to_vec()), held.1 + 1);
    }
}

/// The fingerprints of somebody's key and of its subkeys.
fn fingerprints(home: &Home, who: &str) -> Vec<String> {
    let listing = String::from_utf8(home.run(&["--list-keys", "--with-colons", who], b"")).unwrap();
    let lines = listing.lines().filter_map(|line| line.strip_prefix("fpr:::::::::"));
    lines.map(|line| line.trim_end_matches(':').to_owned()).collect()
}

/// Messages with a session key of its own each.
fn messages(certificate: &Certificate, count: usize) -> Vec<Vec<u8>> {
    let seal = |_| {
        let mut message = Vec::new();
        Sealer::new(std::slice::from_ref(certificate)).unwrap().seal(b"hello", &mut message).unwrap();
        message
    };
    (0..count).map(seal).collect()
}

#[test]
fn all_session_keys_that_were_kept_cost_one_question() {
    let home = Home::new();
    home.generate("curve", "secret");
    let prompts = home.path().join("prompts");
    home.set_pinentry(&format!("echo asked >> {}; echo D secret; echo OK", prompts.display()));
    let (mut messages, store, gpg) = (messages(&home.certificate(), 5), Memory::default(), home.counted_gpg());
    let open_all = |messages: &[Vec<u8>]| {
        let before = home.lines("runs");
        let opener = Opener::with_gpg(gpg.clone(), Some(Box::new(store.clone())));
        messages.iter().for_each(|message| assert_eq!(opened(&opener, message).unwrap(), b"hello"));
        let asked = opener.asked();
        drop(opener);
        (asked, home.lines("runs") - before, store.writes())
    };
    // Once more than it is asked gpg gives the certificate to seal to.
    assert_eq!(open_all(&messages), (5, 6, 1));
    // Another agent, which knows no passphrase: it asks once.
    home.stop_agent();
    let before = home.lines("prompts");
    assert_eq!(open_all(&messages), (1, 1, 1));
    assert_eq!(home.lines("prompts"), before + 1);
    messages.extend(self::messages(&home.certificate(), 1));
    assert_eq!(open_all(&messages[4..]), (2, 3, 2));
    // Those that this run did not need are still there.
    assert_eq!(open_all(&messages), (1, 1, 2));
}

#[test]
fn session_keys_that_are_needed_by_nobody_are_not_brought_back() {
    let home = Home::new();
    home.generate("curve", "");
    let store = Memory::default();
    home.open_all(&messages(&home.certificate(), 1), &store);
    assert_eq!((home.open_all(&[], &store), store.writes()), (0, 1));
}

#[test]
fn whatever_is_wrong_with_what_was_kept_everything_opens_and_it_is_kept_anew() {
    let home = Home::new();
    home.generate("curve", "");
    let (messages, store) = (messages(&home.certificate(), 2), Memory::default());
    assert_eq!(home.open_all(&messages, &store), 2);
    let good = store.sealed().unwrap();
    let changed = |at: usize| {
        let mut sealed = good.clone();
        sealed[at] ^= 1;
        sealed
    };
    let mine = |content: &[u8]| {
        let mut message = Vec::new();
        Sealer::new(&[home.certificate()]).unwrap().seal(content, &mut message).unwrap();
        message
    };
    // Whether gpg is asked in vain depends on whether there is anything that it could know.
    let wrong = [
        ("empty", vec![], 0),
        ("no message", b"no message".to_vec(), 0),
        ("changed at its begin", changed(0), 0),
        ("changed at its end", changed(good.len() - 1), 1),
        ("cut off", good[..good.len() - 1].to_vec(), 0),
        ("longer", [&good[..], b"x"].concat(), 0),
        ("too long", vec![0; 1 << 20], 0),
        ("of somebody else", sealed_to(&[&owner(Profile::Rfc4880)], b"brackfs session keys 1\n"), 1),
        ("something else", mine(b"hello"), 1),
        ("something else that is large", mine(&[0; 1 << 19]), 0),
        ("a part of a record", mine(b"brackfs session keys 1\nhello"), 1),
        ("a later version", mine(b"brackfs session keys 2\n"), 1),
        ("nothing", mine(b"brackfs session keys 1\n"), 1),
    ];
    for (what, sealed, in_vain) in wrong {
        let store = Memory::holding(sealed);
        assert_eq!(home.open_all(&messages, &store), 2 + in_vain, "{what}");
        assert_eq!(home.open_all(&messages, &store), 1, "{what}");
    }
}

#[test]
fn what_was_kept_with_a_key_that_is_gone_is_kept_with_the_one_that_is_there() {
    let (lost, home) = (Home::new(), Home::new());
    lost.generate("curve", "");
    home.generate("rsa", "");
    let (mut message, store) = (Vec::new(), Memory::default());
    Sealer::new(&[lost.certificate(), home.certificate()]).unwrap().seal(b"hello", &mut message).unwrap();
    assert_eq!(lost.open_all(std::slice::from_ref(&message), &store), 1);
    assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 2);
    assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 1);
    assert_eq!(store.writes(), 2);
}

#[test]
fn session_keys_are_sealed_to_the_very_key_that_decrypted_even_if_it_has_expired() {
    let home = Home::new();
    home.generate("curve", "");
    let primary = home.certificate().fingerprint().to_string();
    let old = ["--faked-system-time", "20200101T000000!", "--passphrase", ""];
    home.run(&[&old[2..], &["--quick-add-key", &primary, "cv25519", "encr", "never"]].concat(), b"");
    // Another key, which was made in 2020, for a year.
    home.run(&[&old[..], &["--quick-generate-key", "Gone", "ed25519", "sign", "1y"]].concat(), b"");
    let gone = fingerprints(&home, "Gone").remove(0);
    home.run(&[&old[..], &["--quick-add-key", &gone, "cv25519", "encr", "1y"]].concat(), b"");
    let subkeys = [fingerprints(&home, "Greta").remove(1), fingerprints(&home, "Gone").remove(1)];
    for subkey in subkeys {
        let subkey: Fingerprint = subkey.parse().unwrap();
        let certificate = Certificate::parse(&home.run(&["--export", &subkey.to_string()], b"")).unwrap();
        let (mut message, store) = (Vec::new(), Memory::default());
        Sealer::to_key(&certificate, &subkey).unwrap().seal(b"hello", &mut message).unwrap();
        assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 1);
        let status = home.try_run(&["--status-fd", "2", "--decrypt"], &store.sealed().unwrap()).stderr;
        let status = String::from_utf8_lossy(&status);
        assert!(status.contains(&format!("DECRYPTION_KEY {subkey} ")), "{status}");
        assert_eq!(status.matches("ENC_TO ").count(), 1, "{status}");
        assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 1);
    }
}

#[test]
fn long_runs_keep_session_keys_before_they_end() {
    let home = Home::new();
    home.generate("curve", "");
    let (messages, store) = (messages(&home.certificate(), 65), Memory::default());
    let opener = Opener::with_gpg(home.gpg(), Some(Box::new(store.clone())));
    for (count, message) in messages.iter().enumerate() {
        assert_eq!(store.writes(), count / 64);
        opened(&opener, message).unwrap();
    }
    // As if it were killed now.
    std::mem::forget(opener);
    assert_eq!(home.open_all(&messages, &store), 2);
}

#[test]
fn what_gpg_could_not_open_is_not_kept() {
    let home = Home::new();
    let store = Memory::default();
    let opener = Opener::with_gpg(home.gpg(), Some(Box::new(store.clone())));
    assert!(opened(&opener, &sealed_to(&[&owner(Profile::Rfc4880)], b"not for gpg")).is_err());
    drop(opener);
    assert_eq!(store.writes(), 0);
}
