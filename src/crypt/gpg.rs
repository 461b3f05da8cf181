//! Asks the user's gpg for a session key.
//!
//! The secret key stays where it is: with gpg's agent, or on a smart card. gpg decrypts the whole message into a pipe
//! (never into `/dev/null`, which a gpg that runs as root may replace by a file), and tells the session key and why
//! something failed by status lines, which stand in its log. Its exit code says nothing here: the content may be signed by
//! a key that gpg does not know.
//!
//! gpg also gives the certificate of that key, so that something can be sealed to it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread;

use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::{Certificate, Error, Fingerprint};

/// Most bytes of what gpg says that are looked at: certificates that many have signed are large.
const OUTPUT: usize = 1 << 20;

/// What stands before the session key: the id of AES-256.
const AES256: &[u8] = b"9:";

/// A session key that gpg found out.
pub(super) struct Found {
    pub(super) key: SessionKey,
    /// The key that it was encrypted to, if gpg said so.
    pub(super) by: Option<Fingerprint>,
}

/// The user's gpg.
#[derive(Debug, Clone)]
pub(super) struct Gpg {
    program: OsString,
    /// Arguments before all others.
    arguments: Vec<OsString>,
}

impl Default for Gpg {
    fn default() -> Self {
        Gpg { program: "gpg".into(), arguments: Vec::new() }
    }
}

impl Gpg {
    /// Another program, or with other arguments.
    #[cfg(test)]
    pub(super) fn with(program: &str, arguments: &[&std::ffi::OsStr]) -> Self {
        Gpg { program: program.into(), arguments: arguments.iter().map(Into::into).collect() }
    }

    /// The session key of `message`, which is encrypted to `recipients`.
    pub(super) fn session_key(&self, message: &[u8], recipients: &str) -> Result<Found, Error> {
        let decrypt = ["--no-auto-key-retrieve", "--skip-verify", "--status-fd", "2", "--show-session-key"];
        let (_, log) = self.run(&[decrypt.as_slice(), &["--output", "-", "--decrypt"]].concat(), message)?;
        Ok(Found { key: session_key(&log, recipients)?, by: decryption_key(&log) })
    }

    /// The certificate that the user's gpg has for one of its keys.
    pub(super) fn certificate(&self, key: &Fingerprint) -> Result<Certificate, Error> {
        // Not a minimal export: that leaves out what has expired.
        let export = ["--export-options", "no-export-attributes", "--export", &key.to_string()];
        Certificate::parse(&self.run(&export, &[])?.0)
    }

    /// Runs gpg, and returns what it writes to standard output and to its log.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(Protected, Protected), Error> {
        let mut gpg = self.spawn(arguments).map_err(|source| Error::GpgMissing { source })?;
        let failed = |e: io::Error| Error::Gpg { why: e.to_string() };
        let (output, log) = talk(&mut gpg, input);
        gpg.wait().map_err(failed)?;
        Ok((output.map_err(failed)?, log.map_err(failed)?))
    }

    fn spawn(&self, arguments: &[&str]) -> io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .arg("--batch")
            .args(arguments)
            // Words of its log may become part of a message.
            .env("LC_ALL", "C")
            .envs(terminal().map(|terminal| ("GPG_TTY", terminal)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// The terminal on which the agent may ask for a passphrase. gpg looks for it at its standard input,
/// which is the message here.
fn terminal() -> Option<PathBuf> {
    let at = [(io::stdin().is_terminal(), "/proc/self/fd/0"), (io::stderr().is_terminal(), "/proc/self/fd/2")];
    at.into_iter().find(|(is_terminal, _)| *is_terminal).and_then(|(_, link)| fs::read_link(link).ok())
}

type Output = io::Result<Protected>;

/// Gives gpg its input, and takes what it writes to standard output and to its log. All at once,
/// since pipes are short.
fn talk(gpg: &mut Child, input: &[u8]) -> (Output, Output) {
    let (stdin, stdout, stderr) = (gpg.stdin.take(), gpg.stdout.take(), gpg.stderr.take());
    thread::scope(|scope| {
        let listener = thread::Builder::new().spawn_scoped(scope, move || listen::<ChildStderr>(stderr));
        let writer = thread::Builder::new().spawn_scoped(scope, move || {
            // If it reads no further, its status says why.
            stdin.and_then(|mut stdin| stdin.write_all(input).ok())
        });
        // Without a writer, gpg's input ends at once, and so does gpg.
        let output = listen::<ChildStdout>(stdout);
        let log = listener.and_then(|log| log.join().unwrap_or_else(|_| Ok(Protected::new(0))));
        (writer.and(output), log)
    })
}

/// Reads to the end. The session key may be in it, so the buffer never moves, and is wiped.
fn listen<R: Read>(from: Option<R>) -> Output {
    let mut buffer = Protected::new(OUTPUT);
    let mut filled = 0;
    if let Some(mut from) = from {
        while let Some(free @ [_, ..]) = buffer.get_mut(filled..) {
            match from.read(free)? {
                0 => break,
                count => filled += count,
            }
        }
        // What is more than that is of no interest, but gpg must get rid of it.
        io::copy(&mut from, &mut io::sink())?;
    }
    Ok(Protected::from(buffer.get(..filled).unwrap_or_default()))
}

const STATUS: &[u8] = b"[GNUPG:] ";

/// What follows a keyword on the first status line that has it.
fn said<'s>(log: &'s [u8], keyword: &str) -> Option<&'s [u8]> {
    let lines = log.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(STATUS));
    lines.filter_map(|line| line.strip_prefix(keyword.as_bytes())?.strip_prefix(b" ")).next()
}

/// The key that a message was decrypted with. Its owner's primary key stands after it.
fn decryption_key(status: &[u8]) -> Option<Fingerprint> {
    let key = said(status, "DECRYPTION_KEY")?.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(key).ok()?.parse().ok()
}

/// The session key that the status lines tell, or why there is none.
fn session_key(log: &[u8], recipients: &str) -> Result<SessionKey, Error> {
    if let Some(found) = said(log, "SESSION_KEY") {
        let key = found.strip_prefix(AES256).and_then(decode_hex);
        return key.map(Into::into).ok_or(Error::Refused { what: "it is encrypted by another algorithm than AES-256" });
    }
    let words = String::from_utf8_lossy(log);
    let why = last_words(&words);
    Err(match failure(log) {
        Some(code::CANCELED | code::FULLY_CANCELED) => Error::GpgCancelled,
        Some(code::BAD_PASSPHRASE) => Error::WrongPassphrase { key: OF_GPG.to_owned() },
        // A pinentry that finds no terminal or display fails in one of these ways.
        Some(code::NO_PIN_ENTRY | code::PIN_ENTRY | code::EOF | code::ENOTTY | code::ENXIO | code::NO_PASSPHRASE) => {
            Error::GpgCannotAsk { why }
        }
        Some(code::NO_SECKEY) => no_key(recipients),
        Some(_) => Error::Gpg { why },
        // gpg 2.2 names no failure if it has none of the keys.
        None if said(log, "NO_SECKEY").is_some() => no_key(recipients),
        // The message was looked at before gpg saw it, so it is one; gpg does not know its version.
        None if said(log, "NODATA").is_some() => Error::GpgTooOld,
        None => Error::Gpg { why },
    })
}

/// What messages call gpg's keys.
const OF_GPG: &str = "the keys of gpg";

fn no_key(recipients: &str) -> Error {
    Error::NoKey { key: OF_GPG.to_owned(), recipients: recipients.to_owned() }
}

/// Error codes of libgpg-error, which never change. The upper half of what gpg tells is where the error arose.
mod code {
    pub(super) const BAD_PASSPHRASE: u16 = 11;
    pub(super) const NO_SECKEY: u16 = 17;
    pub(super) const NO_PIN_ENTRY: u16 = 85;
    pub(super) const PIN_ENTRY: u16 = 86;
    pub(super) const CANCELED: u16 = 99;
    pub(super) const NO_PASSPHRASE: u16 = 177;
    pub(super) const FULLY_CANCELED: u16 = 198;
    pub(super) const EOF: u16 = 16383;
    /// Added to the codes of system errors.
    const SYSTEM: u16 = 1 << 15;
    pub(super) const ENOTTY: u16 = SYSTEM | 102;
    pub(super) const ENXIO: u16 = SYSTEM | 104;
}

/// The code of the error for which a secret key that gpg has could not be used.
fn failure(log: &[u8]) -> Option<u16> {
    let told = said(log, "ERROR")?.strip_prefix(b"pkdecrypt_failed ")?;
    let digits = told.split(|byte| !byte.is_ascii_digit()).next()?;
    let error: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(error as u16)
}

/// The last reason in gpg's log, for people.
fn last_words(log: &str) -> String {
    // It tells the session key there, too.
    let is_reason = |line: &&str| line.starts_with("gpg: ") && !line.contains("session key:");
    let line = log.lines().rfind(is_reason).unwrap_or("it did not say why");
    let reason = line.strip_prefix("gpg: ").unwrap_or(line);
    // gpg 2.2 ends with another sentence than the reason.
    let failed = "public key decryption failed: ";
    let reason = log.lines().find_map(|line| line.strip_prefix("gpg: ")?.strip_prefix(failed)).unwrap_or(reason);
    reason.replace(char::is_control, " ")
}

/// The bytes of 64 hexadecimal digits.
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
    use super::{decryption_key, session_key};
    use crate::crypt::Error;

    #[test]
    fn session_key_is_found_among_other_lines() {
        let digits = "0aF1".repeat(16);
        let log = format!("[GNUPG:] ENC_TO 1 18 0\ngpg: words\n[GNUPG:] SESSION_KEY 9:{digits}\n[GNUPG:] ERRSIG 2\n");
        assert_eq!(session_key(log.as_bytes(), "").unwrap().to_vec(), [0x0A, 0xF1].repeat(16));
        for other in ["7:00", "9:00", "9:", &format!("9:{}", "zz".repeat(32)), &digits] {
            let log = format!("[GNUPG:] SESSION_KEY {other}\n");
            assert!(matches!(session_key(log.as_bytes(), ""), Err(Error::Refused { .. })));
        }
    }

    #[test]
    fn key_that_decrypted_is_the_first_of_its_line() {
        let (subkey, primary) = ("A1".repeat(20), "B2".repeat(20));
        let log = format!("[GNUPG:] KEY_CONSIDERED {primary} 0\n[GNUPG:] DECRYPTION_KEY {subkey} {primary} u\n");
        assert_eq!(decryption_key(log.as_bytes()).unwrap().to_string(), subkey);
        for other in ["", "[GNUPG:] DECRYPTION_KEY", "[GNUPG:] DECRYPTION_KEYS A1 u", "[GNUPG:] DECRYPTION_KEY - u"] {
            assert!(decryption_key(other.as_bytes()).is_none(), "{other}");
        }
    }

    /// What the log of gpg 2.2 and 2.4 comes to; they word their last line differently.
    #[track_caller]
    fn both(code: Option<u32>, why: &str) -> Error {
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
        // The newer one always names the failure: here that there is no key.
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
    fn failures_of_gpg_are_told_apart_by_their_codes() {
        // In words of whatever language.
        assert!(matches!(both(Some(83_886_179), "Operation cancelled"), Error::GpgCancelled));
        assert!(matches!(both(Some(83_886_278), "abgebrochen"), Error::GpgCancelled));
        assert!(matches!(both(Some(67_108_875), "falsch"), Error::WrongPassphrase { .. }));
        let nobody_asks =
            [(67_108_949, "No pinentry"), (83_918_950, "Inappropriate ioctl for device"), (83_902_463, "End of file")];
        for (code, why) in nobody_asks {
            let error = both(Some(code), why);
            assert!(matches!(&error, Error::GpgCannotAsk { why: told } if told == why), "{error}");
            assert!(error.is_key_problem() && error.to_string().contains("--key"), "{error}");
        }
        assert_eq!(
            both(Some(100_663_406), "Card removed").to_string(),
            "gpg could not get the session key: Card removed"
        );
        assert_eq!(
            both(None, "").to_string(),
            "the message can't be opened with the keys of gpg: it is encrypted to AAAA, BBBB; give the secret key of \
             one of them"
        );
    }

    #[test]
    fn other_failures_are_told_in_the_last_words_of_gpg() {
        let failed = |log: &str| session_key(log.as_bytes(), "").unwrap_err();
        assert!(matches!(failed("[GNUPG:] NODATA 3\ngpg: packet(1) with unknown version 6\n"), Error::GpgTooOld));
        assert_eq!(
            failed("gpg: a\ngpg: b\x1b\ngpg: session key: '9:00'\n[GNUPG:] FAILURE x 1\n\n").to_string(),
            "gpg could not get the session key: b "
        );
        assert_eq!(failed("").to_string(), "gpg could not get the session key: it did not say why");
        assert_eq!(failed("[GNUPG:] ERROR pkdecrypt_failed x\n").to_string(), failed("").to_string());
    }
}
