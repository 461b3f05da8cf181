//! Gets session keys from the user's gpg.
//!
//! The secret key stays in gpg's agent or on a smart card. gpg decrypts the whole message into a pipe (not into
//! `/dev/null`, which gpg may replace with a file when it runs as root). It reports the session key and the reasons for
//! failures as status lines on standard error. Its exit code is ignored: gpg also fails if it does not know the key that
//! signed the content.
//!
//! gpg also exports the certificate of that key, so that session keys can be saved encrypted to it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread;

use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::certificate::Certificate;
use super::error::Error;
use super::fingerprint::Fingerprint;

/// The most output of gpg that is used, in bytes. Certificates with many signatures are large.
const OUTPUT: usize = 1 << 20;

/// The prefix of a session key: the id of AES-256.
const AES256: &[u8] = b"9:";

/// A session key that gpg decrypted.
pub(super) struct GpgSessionKey {
    pub(super) key: SessionKey,
    /// The key that it was encrypted to, if gpg reported it.
    pub(super) recipient: Option<Fingerprint>,
}

/// The user's gpg.
#[derive(Debug, Clone)]
pub(super) struct Gpg {
    program: OsString,
    /// Leading arguments of every call.
    arguments: Vec<OsString>,
}

impl Default for Gpg {
    fn default() -> Self {
        Gpg { program: "gpg".into(), arguments: Vec::new() }
    }
}

impl Gpg {
    /// Uses another program or additional arguments.
    #[cfg(test)]
    pub(super) fn with(program: &str, arguments: &[&std::ffi::OsStr]) -> Self {
        Gpg { program: program.into(), arguments: arguments.iter().map(Into::into).collect() }
    }

    /// Returns the session key of `message`, which is encrypted to `recipients`.
    pub(super) fn session_key(&self, message: &[u8], recipients: &str) -> Result<GpgSessionKey, Error> {
        let decrypt = ["--no-auto-key-retrieve", "--skip-verify", "--status-fd", "2", "--show-session-key"];
        let (_, log) = self.run_command(&[decrypt.as_slice(), &["--output", "-", "--decrypt"]].concat(), message)?;
        Ok(GpgSessionKey { key: session_key(&log, recipients)?, recipient: decryption_key(&log) })
    }

    /// Returns the fingerprints of all secret keys and subkeys, including those on smart cards; none on failure.
    pub(super) fn secret_keys(&self) -> Vec<Fingerprint> {
        match self.run_command(&["--list-secret-keys", "--with-colons"], &[]) {
            Ok((listing, _)) => fingerprints(&listing),
            Err(_) => Vec::new(),
        }
    }

    /// Exports the certificate that has this key.
    pub(super) fn certificate(&self, key: &Fingerprint) -> Result<Certificate, Error> {
        // Not a minimal export, which omits expired keys.
        let export = ["--export-options", "no-export-attributes", "--export", &key.to_string()];
        Certificate::parse(&self.run_command(&export, &[])?.0)
    }

    /// Runs gpg and returns its standard output and standard error.
    fn run_command(&self, arguments: &[&str], input: &[u8]) -> Result<(Protected, Protected), Error> {
        let mut gpg = self.spawn(arguments).map_err(|source| Error::GpgMissing { source })?;
        let failed = |e: io::Error| Error::Gpg { why: e.to_string() };
        let (output, log) = communicate(&mut gpg, input);
        gpg.wait().map_err(failed)?;
        Ok((output.map_err(failed)?, log.map_err(failed)?))
    }

    fn spawn(&self, arguments: &[&str]) -> io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .arg("--batch")
            .args(arguments)
            // Error messages quote its log, in English.
            .env("LC_ALL", "C")
            .envs(terminal().map(|terminal| ("GPG_TTY", terminal)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// The terminal on which the agent may ask for a passphrase. gpg would use its standard input, which is a pipe here.
fn terminal() -> Option<PathBuf> {
    let at = [(io::stdin().is_terminal(), "/proc/self/fd/0"), (io::stderr().is_terminal(), "/proc/self/fd/2")];
    at.into_iter().find(|(is_terminal, _)| *is_terminal).and_then(|(_, link)| fs::read_link(link).ok())
}

type Output = io::Result<Protected>;

/// Writes gpg's input and reads its standard output and standard error, all at the same time, since pipe buffers are
/// small.
fn communicate(gpg: &mut Child, input: &[u8]) -> (Output, Output) {
    let (stdin, stdout, stderr) = (gpg.stdin.take(), gpg.stdout.take(), gpg.stderr.take());
    thread::scope(|scope| {
        let log_reader = thread::Builder::new().spawn_scoped(scope, move || read_output::<ChildStderr>(stderr));
        let writer = thread::Builder::new().spawn_scoped(scope, move || {
            // If gpg stops reading, its status lines say why.
            stdin.and_then(|mut stdin| stdin.write_all(input).ok())
        });
        // If the writer thread cannot start, its closure is dropped, which closes gpg's input, and gpg exits.
        let output = read_output::<ChildStdout>(stdout);
        let log = log_reader.and_then(|log| log.join().unwrap_or_else(|_| Ok(Protected::new(0))));
        (writer.and(output), log)
    })
}

/// Reads to the end. The output may hold the session key, so the buffer is never reallocated, and is wiped on drop.
fn read_output<R: Read>(from: Option<R>) -> Output {
    let mut buffer = Protected::new(OUTPUT);
    let mut filled = 0;
    if let Some(mut from) = from {
        while let Some(free @ [_, ..]) = buffer.get_mut(filled..) {
            match from.read(free)? {
                0 => break,
                count => filled += count,
            }
        }
        // Discard further output, so that gpg can finish.
        io::copy(&mut from, &mut io::sink())?;
    }
    Ok(Protected::from(buffer.get(..filled).unwrap_or_default()))
}

/// Returns the fingerprints in a listing with colons.
fn fingerprints(listing: &[u8]) -> Vec<Fingerprint> {
    let lines = listing.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"fpr:"));
    let found = lines.filter_map(|line| std::str::from_utf8(line.split(|byte| *byte == b':').nth(8)?).ok());
    found.filter_map(|text| text.parse().ok()).collect()
}

const STATUS: &[u8] = b"[GNUPG:] ";

/// Returns the arguments of the first status line with this keyword.
fn status_value<'s>(log: &'s [u8], keyword: &str) -> Option<&'s [u8]> {
    let lines = log.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(STATUS));
    lines.filter_map(|line| line.strip_prefix(keyword.as_bytes())?.strip_prefix(b" ")).next()
}

/// Returns the key that decrypted the message. The status line has its primary key after it.
fn decryption_key(status: &[u8]) -> Option<Fingerprint> {
    let key = status_value(status, "DECRYPTION_KEY")?.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(key).ok()?.parse().ok()
}

/// Returns the session key from the status lines, or the reason for the failure.
fn session_key(log: &[u8], recipients: &str) -> Result<SessionKey, Error> {
    if let Some(found) = status_value(log, "SESSION_KEY") {
        let key = found.strip_prefix(AES256).and_then(decode_hex);
        return key.map(Into::into).ok_or(Error::Refused { what: "it is not encrypted with AES-256" });
    }
    let words = String::from_utf8_lossy(log);
    let why = last_reason(&words);
    Err(match error_code(log) {
        Some(code::CANCELED | code::FULLY_CANCELED) => Error::GpgCancelled,
        Some(code::BAD_PASSPHRASE) => Error::WrongPassphrase { key: OF_GPG.to_owned() },
        // A pinentry that finds no terminal or display fails in one of these ways.
        Some(code::NO_PIN_ENTRY | code::PIN_ENTRY | code::EOF | code::ENOTTY | code::ENXIO | code::NO_PASSPHRASE) => {
            Error::GpgCannotAsk { why }
        }
        Some(code::NO_SECKEY) => no_key(recipients),
        Some(_) => Error::Gpg { why },
        // gpg 2.2 reports no failure if it has none of the keys.
        None if status_value(log, "NO_SECKEY").is_some() => no_key(recipients),
        // The message was parsed before, so it is valid; gpg does not support its version.
        None if status_value(log, "NODATA").is_some() => Error::GpgTooOld,
        None => Error::Gpg { why },
    })
}

/// The name of gpg's keys in error messages.
const OF_GPG: &str = "the keys of gpg";

fn no_key(recipients: &str) -> Error {
    Error::NoKey { key: OF_GPG.to_owned(), recipients: recipients.to_owned() }
}

/// Error codes of libgpg-error, which never change. They are the lower 16 bits of the number that gpg reports.
mod code {
    pub(super) const BAD_PASSPHRASE: u16 = 11;
    pub(super) const NO_SECKEY: u16 = 17;
    pub(super) const NO_PIN_ENTRY: u16 = 85;
    pub(super) const PIN_ENTRY: u16 = 86;
    pub(super) const CANCELED: u16 = 99;
    pub(super) const NO_PASSPHRASE: u16 = 177;
    pub(super) const FULLY_CANCELED: u16 = 198;
    pub(super) const EOF: u16 = 16383;
    /// The flag of system errors.
    const SYSTEM: u16 = 1 << 15;
    pub(super) const ENOTTY: u16 = SYSTEM | 102;
    pub(super) const ENXIO: u16 = SYSTEM | 104;
}

/// Returns the code of the error that kept gpg from using a secret key.
fn error_code(log: &[u8]) -> Option<u16> {
    let told = status_value(log, "ERROR")?.strip_prefix(b"pkdecrypt_failed ")?;
    let digits = told.split(|byte| !byte.is_ascii_digit()).next()?;
    let error: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(error as u16)
}

/// Returns the last error in gpg's log, for error messages.
fn last_reason(log: &str) -> String {
    // The log contains the session key as well.
    let is_reason = |line: &&str| line.starts_with("gpg: ") && !line.contains("session key:");
    let line = log.lines().rfind(is_reason).unwrap_or("it gave no reason");
    let reason = line.strip_prefix("gpg: ").unwrap_or(line);
    // The last line of gpg 2.2 does not have the reason.
    let failed = "public key decryption failed: ";
    let reason = log.lines().find_map(|line| line.strip_prefix("gpg: ")?.strip_prefix(failed)).unwrap_or(reason);
    reason.replace(char::is_control, " ")
}

/// Decodes 64 hexadecimal digits.
fn decode_hex(digits: &[u8]) -> Option<Protected> {
    let mut bytes = Protected::new(32);
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let mut nibbles = pair.iter().map(|digit| char::from(*digit).to_digit(16));
        *byte = (nibbles.next()?? * 16 + nibbles.next()??) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{decryption_key, fingerprints, session_key};
    use crate::crypt::Error;
    use crate::failure::Failure;

    #[test]
    fn the_session_key_is_found_among_other_lines() {
        let digits = "0aF1".repeat(16);
        let log = format!("[GNUPG:] ENC_TO 1 18 0\ngpg: words\n[GNUPG:] SESSION_KEY 9:{digits}\n[GNUPG:] ERRSIG 2\n");
        assert_eq!(session_key(log.as_bytes(), "").unwrap().to_vec(), [0x0A, 0xF1].repeat(16));
        for other in ["7:00", "9:00", "9:", &format!("9:{}", "zz".repeat(32)), &digits] {
            let log = format!("[GNUPG:] SESSION_KEY {other}\n");
            assert!(matches!(session_key(log.as_bytes(), ""), Err(Error::Refused { .. })));
        }
    }

    #[test]
    fn the_decryption_key_is_the_first_of_its_line() {
        let (subkey, primary) = ("A1".repeat(20), "B2".repeat(20));
        let log = format!("[GNUPG:] KEY_CONSIDERED {primary} 0\n[GNUPG:] DECRYPTION_KEY {subkey} {primary} u\n");
        assert_eq!(decryption_key(log.as_bytes()).unwrap().to_string(), subkey);
        for other in ["", "[GNUPG:] DECRYPTION_KEY", "[GNUPG:] DECRYPTION_KEYS A1 u", "[GNUPG:] DECRYPTION_KEY - u"] {
            assert!(decryption_key(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_listing_has_the_fingerprints_of_keys_and_subkeys() {
        let (primary, subkey) = ("A1".repeat(20), "B2".repeat(20));
        let listing = format!(
            "sec:u:255:22:A1A1A1A1A1A1A1A1:1:::u:::scESC:::D27600::ed25519:::0:\nfpr:::::::::{primary}:\n\
             grp:::::::::{}:\nssb:u:255:18:B2B2B2B2B2B2B2B2:1::::::e:::+::cv25519::\nfpr:::::::::{subkey}:\nfpr:x\nÿ",
            "C3".repeat(20)
        );
        let found: Vec<_> = fingerprints(listing.as_bytes()).iter().map(ToString::to_string).collect();
        assert_eq!(found, [primary, subkey]);
    }

    /// Returns the error for logs of gpg 2.2 and 2.4, which word their last line differently.
    #[track_caller]
    fn error_of_both_versions(code: Option<u32>, why: &str) -> Error {
        let error = |code: Option<u32>| code.map(|code| format!("[GNUPG:] ERROR pkdecrypt_failed {code}\n"));
        let words = match why {
            "" => String::new(),
            why => format!("gpg: public key decryption failed: {why}\n"),
        };
        let begin = "[GNUPG:] ENC_TO AAAA 18 0\n[GNUPG:] NO_SECKEY BBBB\ngpg: encrypted with ECDH key, ID BBBB\n";
        let old = format!(
            "{begin}{words}{}[GNUPG:] DECRYPTION_FAILED\ngpg: decryption failed: No secret key\n",
            error(code).unwrap_or_default()
        );
        // gpg 2.4 always reports the failure; without a code, that the key is missing.
        let (told, why) =
            (error(code.or(Some(33_554_449))).unwrap_or_default(), if why.is_empty() { "No secret key" } else { why });
        let new = format!(
            "{begin}gpg: public key decryption failed: {why}\n{told}[GNUPG:] DECRYPTION_FAILED\n\
             gpg: decryption failed: {why}\n[GNUPG:] FAILURE gpg-exit 33554433\n"
        );
        let [old, new] = [old, new].map(|log| session_key(log.as_bytes(), "AAAA, BBBB").unwrap_err());
        assert_eq!(old.to_string(), new.to_string());
        new
    }

    #[test]
    fn failures_of_gpg_are_distinguished_by_their_codes() {
        // The language of the text does not matter.
        assert!(matches!(error_of_both_versions(Some(83_886_179), "Operation cancelled"), Error::GpgCancelled));
        assert!(matches!(error_of_both_versions(Some(83_886_278), "abgebrochen"), Error::GpgCancelled));
        assert!(matches!(error_of_both_versions(Some(67_108_875), "falsch"), Error::WrongPassphrase { .. }));
        let cannot_ask =
            [(67_108_949, "No pinentry"), (83_918_950, "Inappropriate ioctl for device"), (83_902_463, "End of file")];
        for (code, why) in cannot_ask {
            let error = error_of_both_versions(Some(code), why);
            assert!(matches!(&error, Error::GpgCannotAsk { why: told } if told == why), "{error}");
            assert!(error.is_key_problem() && error.to_string().contains("--key"), "{error}");
        }
        assert_eq!(
            error_of_both_versions(Some(100_663_406), "Card removed").to_string(),
            "cannot get the session key from gpg: Card removed"
        );
        assert_eq!(
            error_of_both_versions(None, "").to_string(),
            "cannot open the message with the keys of gpg: it is encrypted to AAAA, BBBB; give the secret key of one of \
             them with --key"
        );
    }

    #[test]
    fn other_failures_quote_the_last_line_of_gpg() {
        let failed = |log: &str| session_key(log.as_bytes(), "").unwrap_err();
        assert!(matches!(failed("[GNUPG:] NODATA 3\ngpg: packet(1) with unknown version 6\n"), Error::GpgTooOld));
        assert_eq!(
            failed("gpg: a\ngpg: b\x1b\ngpg: session key: '9:00'\n[GNUPG:] FAILURE x 1\n\n").to_string(),
            "cannot get the session key from gpg: b "
        );
        assert_eq!(failed("").to_string(), "cannot get the session key from gpg: it gave no reason");
        assert_eq!(failed("[GNUPG:] ERROR pkdecrypt_failed x\n").to_string(), failed("").to_string());
    }
}
