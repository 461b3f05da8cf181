//! Asks the user's gpg for a session key.
//!
//! The secret key stays where it is: with gpg's agent, or on a smart card. gpg decrypts the whole
//! message to nowhere, and tells the session key on its status channel. Its exit code says nothing
//! here: what is inside may be signed by a key that it does not know.
//!
//! It gives the certificate of that key, too, so that something can be sealed to it.

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
        let decrypt = ["--no-auto-key-retrieve", "--skip-verify", "--status-fd", "1", "--show-session-key"];
        let (status, log) =
            self.run(&[decrypt.as_slice(), &["--output", "/dev/null", "--decrypt"]].concat(), message)?;
        let key = session_key(&status, &String::from_utf8_lossy(&log), recipients)?;
        Ok(Found { key, by: decryption_key(&status) })
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
            // Why it fails is only told in words.
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
        scope.spawn(move || {
            // If it reads no further, its status says why.
            stdin.and_then(|mut stdin| stdin.write_all(input).ok())
        });
        let log = scope.spawn(move || listen::<ChildStderr>(stderr));
        let output = listen::<ChildStdout>(stdout);
        (output, log.join().unwrap_or_else(|_| Ok(Protected::new(0))))
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

/// What follows a word on the status channel, where it stands first.
fn said<'s>(status: &'s [u8], word: &str) -> Option<&'s [u8]> {
    let lines = status.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"[GNUPG:] "));
    lines.filter_map(|line| line.strip_prefix(word.as_bytes())?.strip_prefix(b" ")).next()
}

/// The key that a message was decrypted with. Its owner's primary key stands after it.
fn decryption_key(status: &[u8]) -> Option<Fingerprint> {
    let key = said(status, "DECRYPTION_KEY")?.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(key).ok()?.parse().ok()
}

/// What gpg's words mean.
fn session_key(status: &[u8], log: &str, recipients: &str) -> Result<SessionKey, Error> {
    if let Some(found) = said(status, "SESSION_KEY") {
        let key = found.strip_prefix(AES256).and_then(decode_hex);
        return key.map(Into::into).ok_or(Error::Refused { what: "it is encrypted by another algorithm than AES-256" });
    }
    let gpg = || "the keys of gpg".to_owned();
    match failure(log) {
        Some("Operation cancelled") => Err(Error::GpgCancelled),
        Some("Bad passphrase") => Err(Error::WrongPassphrase { key: gpg() }),
        Some(other) => Err(Error::Gpg { why: other.to_owned() }),
        None if log.contains("decryption failed: No secret key") => {
            Err(Error::NoKey { key: gpg(), recipients: recipients.to_owned() })
        }
        None if log.contains("with unknown version") => {
            Err(Error::Gpg { why: "it does not read RFC 9580; give the secret key as a file".into() })
        }
        None => Err(Error::Gpg { why: last_words(log) }),
    }
}

/// Why a secret key that gpg has could not be used.
fn failure(log: &str) -> Option<&str> {
    log.lines().find_map(|line| line.strip_prefix("gpg: public key decryption failed: "))
}

/// The last thing that gpg said, which is mostly why it gave up.
fn last_words(log: &str) -> String {
    // It may have told the session key there, too.
    let last = log.lines().rfind(|line| !line.trim().is_empty() && !line.contains("session key:"));
    let last = last.unwrap_or("it did not say why");
    last.strip_prefix("gpg: ").unwrap_or(last).replace(char::is_control, " ")
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
        let status = format!("[GNUPG:] ENC_TO 1 18 0\n[GNUPG:] SESSION_KEY 9:{digits}\n[GNUPG:] ERRSIG 2\n");
        assert_eq!(session_key(status.as_bytes(), "", "").unwrap().to_vec(), [0x0A, 0xF1].repeat(16));
        for other in ["7:00", "9:00", "9:", &format!("9:{}", "zz".repeat(32)), &digits] {
            let status = format!("[GNUPG:] SESSION_KEY {other}\n");
            assert!(matches!(session_key(status.as_bytes(), "", ""), Err(Error::Refused { .. })));
        }
    }

    #[test]
    fn key_that_decrypted_is_the_first_of_its_line() {
        let (subkey, primary) = ("A1".repeat(20), "B2".repeat(20));
        let status = format!("[GNUPG:] KEY_CONSIDERED {primary} 0\n[GNUPG:] DECRYPTION_KEY {subkey} {primary} u\n");
        assert_eq!(decryption_key(status.as_bytes()).unwrap().to_string(), subkey);
        for other in ["", "[GNUPG:] DECRYPTION_KEY", "[GNUPG:] DECRYPTION_KEYS A1 u", "[GNUPG:] DECRYPTION_KEY - u"] {
            assert!(decryption_key(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn failures_of_gpg_are_told_apart() {
        let failed = |log: &str| session_key(b"[GNUPG:] DECRYPTION_FAILED\n", log, "AAAA, BBBB").unwrap_err();
        let end = "gpg: decryption failed: No secret key\n";
        let because =
            |why: &str| failed(&format!("gpg: encrypted to\ngpg: public key decryption failed: {why}\n{end}"));
        assert!(matches!(because("Operation cancelled"), Error::GpgCancelled));
        assert!(matches!(because("Bad passphrase"), Error::WrongPassphrase { .. }));
        assert_eq!(because("Card removed").to_string(), "gpg could not get the session key: Card removed");
        assert_eq!(
            failed(end).to_string(),
            "the message can't be opened with the keys of gpg: it is encrypted to AAAA, BBBB; give the secret key of \
             one of them"
        );
        assert_eq!(
            failed("gpg: a\ngpg: b\x1b\ngpg: session key: '9:00'\n\n").to_string(),
            "gpg could not get the session key: b "
        );
        assert_eq!(failed("").to_string(), "gpg could not get the session key: it did not say why");
    }
}
