//! Tests with GnuPG, in a separate home directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;
use tempfile::TempDir;

use super::{content, host, opened, owner, sealed_to};
use crate::crypt::framing::{Envelope, Payload};
use crate::crypt::gpg::Gpg;
use crate::crypt::seipd1;
use crate::crypt::session_keys::SessionKeyCache;
use crate::crypt::{
    Certificate, Error, Fingerprint, KeyPurpose, KeyStore, Opener, Passphrase, Profile, RewrappedKeys, Sealer,
    SecretKey, Signer,
};
use crate::failure::Failure;

/// A home directory of gpg. Dropping it stops its agent.
struct GpgHome(TempDir);

impl GpgHome {
    fn new() -> Self {
        let home = TempDir::with_prefix("gpg").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
        // Fast key derivation, and a passphrase prompt for every use.
        let pinentry = home.path().join("pinentry");
        let settings = format!("s2k-count 65536\nmax-cache-ttl 0\npinentry-program {}\n", pinentry.display());
        fs::write(home.path().join("gpg-agent.conf"), settings).unwrap();
        GpgHome(home)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs gpg, which must succeed, and returns its standard output.
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

    /// Generates a key.
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

    /// Sets the shell code that answers passphrase prompts.
    fn set_pinentry(&self, answer: &str) {
        let pinentry = self.path().join("pinentry");
        let script = format!("case $line in GETPIN*) {answer};; *) echo OK;; esac");
        fs::write(&pinentry, format!("#!/bin/sh\necho OK\nwhile read -r line; do {script}; done\n")).unwrap();
        fs::set_permissions(&pinentry, fs::Permissions::from_mode(0o700)).unwrap();
    }

    /// Stops the agent, which clears its cache of passphrases.
    fn stop_agent(&self) {
        let killed = Command::new("gpgconf").arg("--homedir").arg(self.path()).args(["--kill", "all"]).status();
        assert!(killed.unwrap().success());
    }

    /// Opens messages with gpg. Returns the number of session keys requested from it.
    fn open_all(&self, messages: &[Vec<u8>], store: &MemoryStore) -> u64 {
        let opener = Opener::with_gpg(self.gpg(), Some(Box::new(store.clone())));
        for message in messages {
            assert_eq!(opened(&opener, message).unwrap(), b"hello");
        }
        opener.lookups()
    }

    /// A gpg that appends a line to the file `runs` on each call.
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

impl Drop for GpgHome {
    fn drop(&mut self) {
        self.stop_agent();
    }
}

fn both_ways(home: &GpgHome, key: SecretKey, passphrase: &str) {
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
    assert_eq!((ours.lookups(), theirs.lookups()), (1, 1));
}

#[test]
fn rsa_keys_of_gpg_work_both_ways() {
    let home = GpgHome::new();
    home.generate("rsa", "");
    both_ways(&home, home.secret_key(""), "");
}

#[test]
fn curve_keys_of_gpg_work_both_ways() {
    let home = GpgHome::new();
    home.generate("curve", "");
    both_ways(&home, home.secret_key(""), "");
}

#[test]
fn locked_keys_of_gpg_work_both_ways() {
    let home = GpgHome::new();
    home.generate("curve", "secret");
    let key = home.secret_key("secret");
    assert!(key.is_locked());
    let wrong = key.clone().unlock(&Passphrase::from("wrong".to_owned())).unwrap_err();
    assert!(matches!(wrong, Error::WrongPassphrase { .. }));
    let key = key.unlock(&Passphrase::from("secret".to_owned())).unwrap();
    both_ways(&home, key, "secret");
}

#[test]
fn a_cancelled_prompt_and_a_wrong_passphrase_are_different_errors() {
    let home = GpgHome::new();
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
    let home = GpgHome::new();
    let message = sealed_to(&[&owner(Profile::Rfc4880), &owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
    assert!(error.is_key_problem());
    match error {
        Error::NoKey { recipients, .. } => assert_eq!(recipients.split(", ").count(), 2),
        other => panic!("{other}"),
    }
}

#[test]
fn a_missing_gpg_is_reported() {
    let message = sealed_to(&[&owner(Profile::Rfc4880)], b"not for gpg");
    let error = opened(&Opener::with_gpg(Gpg::with("/nowhere/gpg", &[]), None), &message).unwrap_err();
    assert!(matches!(error, Error::GpgMissing { .. }) && error.is_key_problem(), "{error}");
}

#[test]
fn a_gpg_that_is_too_old_is_reported() {
    let home = GpgHome::new();
    let message = sealed_to(&[&owner(Profile::Rfc9580)], b"AEAD");
    let error = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
    assert!(error.is_key_problem());
    assert!(matches!(error, Error::GpgTooOld), "{error}");
}

#[test]
fn gpg_imports_generated_keys_locked_or_not() {
    for passphrase in [None, Some("secret")] {
        let home = GpgHome::new();
        let given = passphrase.map(|text| Passphrase::from(text.to_owned()));
        let key = SecretKey::generate(Profile::Rfc4880, "Greta", KeyPurpose::Owner, given.as_ref()).unwrap();
        home.run(&["--import"], &key.to_armored().unwrap());
        let message = sealed_to(&[&key], b"hello");
        let decrypted = home.run(&["--passphrase", passphrase.unwrap_or(""), "--decrypt"], &message);
        assert_eq!(decrypted, b"hello");
    }
}

#[test]
fn gpg_verifies_and_opens_signed_documents() {
    let home = GpgHome::new();
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

/// A store in memory: the bytes, and the number of writes.
#[derive(Clone, Default)]
struct MemoryStore(Arc<Mutex<(Option<Vec<u8>>, usize)>>);

impl MemoryStore {
    fn holding(sealed: Vec<u8>) -> Self {
        MemoryStore(Arc::new(Mutex::new((Some(sealed), 0))))
    }

    fn sealed(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().0.clone()
    }

    fn writes(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl KeyStore for MemoryStore {
    fn read(&self, limit: usize) -> Option<Vec<u8>> {
        self.sealed().filter(|sealed| sealed.len() <= limit)
    }

    fn write(&self, sealed: &[u8]) {
        let mut held = self.0.lock().unwrap();
        *held = (Some(sealed.to_vec()), held.1 + 1);
    }
}

/// The fingerprints of a user's primary key and subkeys.
fn fingerprints(home: &GpgHome, who: &str) -> Vec<String> {
    let listing = String::from_utf8(home.run(&["--list-keys", "--with-colons", who], b"")).unwrap();
    let lines = listing.lines().filter_map(|line| line.strip_prefix("fpr:::::::::"));
    lines.map(|line| line.trim_end_matches(':').to_owned()).collect()
}

/// Messages with different session keys.
fn messages(certificate: &Certificate, count: usize) -> Vec<Vec<u8>> {
    let seal = |_| {
        let mut message = Vec::new();
        Sealer::new(std::slice::from_ref(certificate)).unwrap().seal(b"hello", &mut message).unwrap();
        message
    };
    (0..count).map(seal).collect()
}

#[test]
fn loading_all_saved_session_keys_takes_one_passphrase_prompt() {
    let home = GpgHome::new();
    home.generate("curve", "secret");
    let prompts = home.path().join("prompts");
    home.set_pinentry(&format!("echo asked >> {}; echo D secret; echo OK", prompts.display()));
    let (mut messages, store, gpg) = (messages(&home.certificate(), 5), MemoryStore::default(), home.counted_gpg());
    let open_all = |messages: &[Vec<u8>]| {
        let before = home.lines("runs");
        let opener = Opener::with_gpg(gpg.clone(), Some(Box::new(store.clone())));
        messages.iter().for_each(|message| assert_eq!(opened(&opener, message).unwrap(), b"hello"));
        let asked = opener.lookups();
        drop(opener);
        (asked, home.lines("runs") - before, store.writes())
    };
    // The additional run exports the certificate to seal to.
    assert_eq!(open_all(&messages), (5, 6, 1));
    // A new agent has no cached passphrase and prompts once.
    home.stop_agent();
    let before = home.lines("prompts");
    assert_eq!(open_all(&messages), (1, 1, 1));
    assert_eq!(home.lines("prompts"), before + 1);
    messages.extend(self::messages(&home.certificate(), 1));
    assert_eq!(open_all(&messages[4..]), (2, 3, 2));
    // Session keys not used by this run are still saved.
    assert_eq!(open_all(&messages), (1, 1, 2));
}

#[test]
fn saved_session_keys_are_not_loaded_before_they_are_needed() {
    let home = GpgHome::new();
    home.generate("curve", "");
    let store = MemoryStore::default();
    home.open_all(&messages(&home.certificate(), 1), &store);
    assert_eq!((home.open_all(&[], &store), store.writes()), (0, 1));
}

#[test]
fn damaged_saved_session_keys_are_ignored_and_replaced() {
    let home = GpgHome::new();
    home.generate("curve", "");
    let (messages, store) = (messages(&home.certificate(), 2), MemoryStore::default());
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
    // gpg is asked once more if the saved message looks valid.
    let wrong = [
        ("empty", vec![], 0),
        ("no message", b"no message".to_vec(), 0),
        ("changed first byte", changed(0), 0),
        ("changed last byte", changed(good.len() - 1), 1),
        ("truncated", good[..good.len() - 1].to_vec(), 0),
        ("trailing byte", [&good[..], b"x"].concat(), 0),
        ("too long", vec![0; 17 << 20], 0),
        ("sealed to another key", sealed_to(&[&owner(Profile::Rfc4880)], b"brackfs session keys 1\n"), 1),
        ("other content", mine(b"hello"), 1),
        ("large other content", mine(&[0; 17 << 20]), 0),
        ("partial record", mine(b"brackfs session keys 1\nhello"), 1),
        ("later version", mine(b"brackfs session keys 2\n"), 1),
        ("no records", mine(b"brackfs session keys 1\n"), 1),
    ];
    for (case, sealed, extra) in wrong {
        let store = MemoryStore::holding(sealed);
        assert_eq!(home.open_all(&messages, &store), 2 + extra, "{case}");
        assert_eq!(home.open_all(&messages, &store), 1, "{case}");
    }
}

#[test]
fn session_keys_saved_for_a_lost_key_are_saved_again_for_the_available_key() {
    let (lost, home) = (GpgHome::new(), GpgHome::new());
    lost.generate("curve", "");
    home.generate("rsa", "");
    let (mut message, store) = (Vec::new(), MemoryStore::default());
    Sealer::new(&[lost.certificate(), home.certificate()]).unwrap().seal(b"hello", &mut message).unwrap();
    assert_eq!(lost.open_all(std::slice::from_ref(&message), &store), 1);
    assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 2);
    assert_eq!(home.open_all(std::slice::from_ref(&message), &store), 1);
    assert_eq!(store.writes(), 2);
}

#[test]
fn session_keys_are_sealed_to_the_key_that_decrypted_them_even_if_it_has_expired() {
    let home = GpgHome::new();
    home.generate("curve", "");
    let primary = home.certificate().fingerprint().to_string();
    let old = ["--faked-system-time", "20200101T000000!", "--passphrase", ""];
    home.run(&[&old[2..], &["--quick-add-key", &primary, "cv25519", "encr", "never"]].concat(), b"");
    // Another key, created in 2020 and valid for one year.
    home.run(&[&old[..], &["--quick-generate-key", "Gone", "ed25519", "sign", "1y"]].concat(), b"");
    let gone = fingerprints(&home, "Gone").remove(0);
    home.run(&[&old[..], &["--quick-add-key", &gone, "cv25519", "encr", "1y"]].concat(), b"");
    let subkeys = [fingerprints(&home, "Greta").remove(1), fingerprints(&home, "Gone").remove(1)];
    for subkey in subkeys {
        let subkey: Fingerprint = subkey.parse().unwrap();
        let certificate = Certificate::parse(&home.run(&["--export", &subkey.to_string()], b"")).unwrap();
        let (mut message, store) = (Vec::new(), MemoryStore::default());
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
fn long_runs_save_session_keys_before_they_end() {
    let home = GpgHome::new();
    home.generate("curve", "");
    let (messages, store) = (messages(&home.certificate(), 65), MemoryStore::default());
    let opener = Opener::with_gpg(home.gpg(), Some(Box::new(store.clone())));
    for (count, message) in messages.iter().enumerate() {
        assert_eq!(store.writes(), count / 64);
        opened(&opener, message).unwrap();
    }
    // Simulates a kill.
    std::mem::forget(opener);
    assert_eq!(home.open_all(&messages, &store), 2);
}

/// A gpg without cryptography, which is fast. Session keys are in the clear in its messages (see [`plain_message`]).
struct StubGpg {
    folder: TempDir,
    /// The key that saved session keys are sealed to.
    owner: SecretKey,
    encryption_key: Fingerprint,
}

impl StubGpg {
    fn new() -> Self {
        let (folder, owner) = (TempDir::new().unwrap(), owner(Profile::Rfc4880));
        let stub = StubGpg {
            folder,
            encryption_key: owner.certificate().encryption_key().unwrap().fingerprint().into(),
            owner,
        };
        fs::write(stub.file("certificate"), stub.owner.certificate().to_bytes().unwrap()).unwrap();
        let script = format!(
            r#"#!/bin/sh
            cd {folder}
            case "$*" in *--export*) exec cat certificate;; *--list*) exit;; esac
            echo >> runs
            read -r first && read -r key
            case "$first" in *plain*) ;; *) read -r key < saved;; esac
            echo "[GNUPG:] DECRYPTION_KEY {encryption_key} {primary} u
[GNUPG:] SESSION_KEY 9:$key" >&2
            "#,
            folder = stub.folder.path().display(),
            encryption_key = stub.encryption_key,
            primary = stub.owner.fingerprint(),
        );
        fs::write(stub.file("gpg"), script).unwrap();
        fs::set_permissions(stub.file("gpg"), fs::Permissions::from_mode(0o700)).unwrap();
        stub
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Tells the stub the session key of the saved message.
    fn learn(&self, saved: &[u8]) {
        let keys = self.owner.decryption_pairs().unwrap();
        let envelope = Envelope::parse(saved).unwrap();
        let pkesk = PKESK::from_bytes(envelope.recipients[0]).unwrap();
        let (_, key) = pkesk.decrypt(&mut keys[0].clone(), None).unwrap();
        fs::write(self.file("saved"), hex(&key)).unwrap();
    }

    /// Opens all messages as one run does. Returns the number of times that the secret key was used.
    fn open_all(&self, messages: &[Vec<u8>], store: &MemoryStore) -> usize {
        let used = || fs::read(self.file("runs")).unwrap_or_default().len();
        let before = used();
        let gpg = Gpg::with(self.file("gpg").to_str().unwrap(), &[]);
        let opener = Opener::with_gpg(gpg, Some(Box::new(store.clone())));
        messages.iter().for_each(|message| assert_eq!(opened(&opener, message).unwrap(), b"hello"));
        drop(opener);
        self.learn(&store.sealed().unwrap());
        used() - before
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>() + "\n"
}

/// A message whose PKESK packet has the session key in the clear, on its second line.
fn plain_message(number: u32) -> (Vec<u8>, [u8; 32]) {
    let key = *blake3::hash(&number.to_le_bytes()).as_bytes();
    let pkesk = [b"\x03keyident\x64 plain\n".as_slice(), hex(&key).as_bytes()].concat();
    let mut message = vec![0xC1, u8::try_from(pkesk.len()).unwrap()];
    message.extend(pkesk);
    seipd1::seal(&key.as_slice().into(), Payload::Literal, b"hello", &mut message).unwrap();
    (message, key)
}

#[test]
fn a_second_pass_over_ten_thousand_runs_uses_the_key_once() {
    const RUNS: u32 = 10_000;
    const SAVED: u32 = 9_500;
    let stub = StubGpg::new();
    let (messages, keys): (Vec<_>, Vec<_>) = (0..RUNS).map(plain_message).unzip();
    let mut known = SessionKeyCache::new();
    for (message, key) in messages.iter().zip(&keys).take(SAVED as usize) {
        known.put(blake3::hash(Envelope::parse(message).unwrap().pkesks), key);
    }
    let mut sealed = Vec::new();
    Sealer::new(&[stub.owner.certificate()]).unwrap().seal(&known.encode(), &mut sealed).unwrap();
    stub.learn(&sealed);
    let store = MemoryStore::holding(sealed);
    // One use loads the saved session keys.
    assert_eq!(stub.open_all(&messages, &store), (RUNS - SAVED) as usize + 1);
    assert_eq!(store.writes(), 1);
    assert_eq!(stub.open_all(&messages, &store), 1);
    assert_eq!(store.writes(), 1);
}

#[test]
fn a_later_key_of_gpg_opens_old_messages_with_a_table() {
    let home = GpgHome::new();
    home.generate("curve", "");
    // gpg does not support the messages of RFC 9580, but it opens the table.
    for profile in [Profile::Rfc9580, Profile::Rfc4880] {
        let first = owner(profile);
        let sealer = Sealer::new(&[first.certificate()]).unwrap();
        let mut message = Vec::new();
        sealer.seal(b"hello", &mut message).unwrap();
        let old = Opener::new(first.clone()).unwrap();
        let for_other = old.rewrap(&sealer.pkesks(), &first.certificate()).unwrap().sealed;
        let good = old.rewrap(&sealer.pkesks(), &home.certificate()).unwrap().sealed;
        let tables = Tables(home.certificate().fingerprint(), vec![for_other, b"garbage".to_vec(), good]);

        let store = MemoryStore::default();
        let open = |uses| {
            let opener = Opener::with_gpg(home.gpg(), Some(Box::new(store.clone())));
            let result = match opened(&opener, &message) {
                Err(error) if error.is_other_key() && opener.find_rewrapped(&message, &tables) => {
                    opened(&opener, &message)
                }
                other => other,
            };
            assert_eq!((result.unwrap(), opener.lookups()), (b"hello".to_vec(), uses));
        };
        // The message and the table; the table for another key is not tried. A session key from a table is not saved.
        open(2);
        open(2);
        let without = opened(&Opener::with_gpg(home.gpg(), None), &message).unwrap_err();
        assert!(without.is_other_key() && without.is_key_problem(), "{without}");
    }
}

/// Tables for one recipient.
struct Tables(Fingerprint, Vec<Vec<u8>>);

impl RewrappedKeys for Tables {
    fn visit(
        &self,
        recipients: &[Fingerprint],
        _limit: usize,
        found: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> bool {
        assert!(recipients.contains(&self.0));
        let usable = self.1.iter().filter(|table| found(table).is_ok()).count();
        assert_eq!(usable, 1);
        true
    }
}

#[test]
fn gpg_seals_session_keys_again_for_a_later_recipient() {
    let home = GpgHome::new();
    home.generate("curve", "");
    let later = owner(Profile::Rfc9580);
    let sealer = Sealer::new(&[home.certificate()]).unwrap();
    let mut message = Vec::new();
    sealer.seal(b"hello", &mut message).unwrap();
    let other = Sealer::new(&[owner(Profile::Rfc4880).certificate()]).unwrap();
    let pkesks = [sealer.pkesks(), other.pkesks()].concat();
    let table = Opener::with_gpg(home.gpg(), None).rewrap(&pkesks, &later.certificate()).unwrap();
    assert_eq!((table.keys, table.missing), (1, 1));
    let new = Opener::new(later.clone()).unwrap();
    assert!(new.find_rewrapped(&message, &Tables(later.fingerprint(), vec![table.sealed])));
    assert_eq!(opened(&new, &message).unwrap(), b"hello");
}

#[test]
fn session_keys_of_unopened_messages_are_not_saved() {
    let home = GpgHome::new();
    let store = MemoryStore::default();
    let opener = Opener::with_gpg(home.gpg(), Some(Box::new(store.clone())));
    assert!(opened(&opener, &sealed_to(&[&owner(Profile::Rfc4880)], b"not for gpg")).is_err());
    drop(opener);
    assert_eq!(store.writes(), 0);
}
