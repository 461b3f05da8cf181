//! Asks the user's gpg for a session key.
//!
//! The secret key stays where it is: with gpg's agent, or on a smart card. gpg decrypts the whole
//! message to nowhere, and tells the session key on its status channel. Its exit code says nothing
//! here: what is inside may be signed by a key that it does not know.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread;

use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::Error;

/// Most bytes of what gpg says that are looked at.
const OUTPUT: usize = 64 << 10;

/// What stands before the session key: the id of AES-256.
const AES256: &str = "9:";

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
    pub(super) fn session_key(&self, message: &[u8], recipients: &str) -> Result<SessionKey, Error> {
        let mut gpg = self.spawn().map_err(|source| Error::GpgMissing { source })?;
        let failed = |e: io::Error| Error::Gpg { why: e.to_string() };
        let (status, log) = talk(&mut gpg, message);
        gpg.wait().map_err(failed)?;
        let (status, log) = (status.map_err(failed)?, log.map_err(failed)?);
        Status::parse(&status).into_result(recipients, &log)
    }

    fn spawn(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .args(["--batch", "--quiet", "--no-auto-key-retrieve", "--skip-verify"])
            .args(["--status-fd", "1", "--show-session-key", "--output", "/dev/null", "--decrypt"])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

type Output = io::Result<Protected>;

/// Gives gpg the message, and takes what it says on its status channel and in its log. All at once,
/// since pipes are short.
fn talk(gpg: &mut Child, message: &[u8]) -> (Output, Output) {
    let (stdin, stdout, stderr) = (gpg.stdin.take(), gpg.stdout.take(), gpg.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // If it reads no further, its status says why.
            stdin.and_then(|mut stdin| stdin.write_all(message).ok())
        });
        let log = scope.spawn(move || listen::<ChildStderr>(stderr));
        let status = listen::<ChildStdout>(stdout);
        (status, log.join().unwrap_or_else(|_| Ok(Protected::new(0))))
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

/// What gpg said on its status channel.
#[derive(Default)]
struct Status {
    session_key: Option<Protected>,
    /// A session key for another cipher than ours.
    other_cipher: bool,
    /// It has the secret key of none of the recipients.
    no_key: bool,
    cancelled: bool,
    wrong_passphrase: bool,
}

impl Status {
    fn parse(status: &[u8]) -> Self {
        let mut found = Status::default();
        for line in status.split(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(line).unwrap_or_default();
            let mut words = line.strip_prefix("[GNUPG:] ").unwrap_or_default().split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("SESSION_KEY"), Some(key)) => {
                    found.session_key = key.strip_prefix(AES256).and_then(decode_hex);
                    found.other_cipher = found.session_key.is_none();
                }
                (Some("NO_SECKEY"), _) => found.no_key = true,
                (Some("ERROR"), Some("pkdecrypt_failed")) => {
                    // The low half is the error, the high half names the program that met it.
                    let code = words.next().and_then(|code| code.parse::<u32>().ok());
                    match code.map(|code| code & 0xFFFF) {
                        Some(99 | 198) => found.cancelled = true,
                        Some(11) => found.wrong_passphrase = true,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn into_result(self, recipients: &str, log: &[u8]) -> Result<SessionKey, Error> {
        let gpg = || "the keys of gpg".to_owned();
        match self {
            Status { session_key: Some(key), .. } => Ok(key.into()),
            Status { other_cipher: true, .. } => {
                Err(Error::Refused { what: "it is encrypted by another algorithm than AES-256" })
            }
            Status { cancelled: true, .. } => Err(Error::GpgCancelled),
            Status { wrong_passphrase: true, .. } => Err(Error::WrongPassphrase { key: gpg() }),
            Status { no_key: true, .. } => Err(Error::NoKey { key: gpg(), recipients: recipients.to_owned() }),
            _ => Err(Error::Gpg { why: reason(log) }),
        }
    }
}

/// The last thing that gpg said, which is mostly why it gave up.
fn reason(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let said = log.lines().map(|line| line.strip_prefix("gpg: ").unwrap_or(line)).rev();
    let said = said.filter(|line| !line.contains("session key:") && !line.trim().is_empty());
    let last: Vec<_> = said.take(2).collect();
    match last.is_empty() {
        true => "it did not say why".into(),
        false => last.into_iter().rev().collect::<Vec<_>>().join("; ").replace(char::is_control, " "),
    }
}

/// The bytes of 64 hexadecimal digits.
fn decode_hex(digits: &str) -> Option<Protected> {
    let mut bytes = Protected::new(32);
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let mut nibbles = pair.iter().map(|digit| char::from(*digit).to_digit(16));
        *byte = (nibbles.next()?? * 16 + nibbles.next()??) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Status, reason};
    use crate::crypt::Error;

    fn result(status: &str) -> Result<Vec<u8>, Error> {
        let status = Status::parse(status.as_bytes());
        status.into_result("AAAA, BBBB", b"gpg: one\ngpg: session key: '9:00'\n").map(|key| key.to_vec())
    }

    #[test]
    fn session_key_is_found_among_other_lines() {
        let status =
            format!("[GNUPG:] ENC_TO 1 18 0\n[GNUPG:] SESSION_KEY 9:{}\n[GNUPG:] ERRSIG 2\n", "0aF1".repeat(16));
        assert_eq!(result(&status).unwrap(), [0x0A, 0xF1].repeat(16));
    }

    #[test]
    fn failures_of_gpg_are_told_apart() {
        let text = |status| result(status).unwrap_err().to_string();
        assert!(matches!(result("[GNUPG:] ERROR pkdecrypt_failed 83886179"), Err(Error::GpgCancelled)));
        assert!(matches!(result("[GNUPG:] ERROR pkdecrypt_failed 67108875"), Err(Error::WrongPassphrase { .. })));
        assert!(matches!(result("[GNUPG:] SESSION_KEY 7:00"), Err(Error::Refused { .. })));
        assert!(matches!(result("[GNUPG:] SESSION_KEY 9:zz"), Err(Error::Refused { .. })));
        assert_eq!(
            text("[GNUPG:] NO_SECKEY AAAA"),
            "the message can't be opened with the keys of gpg: it is encrypted to AAAA, BBBB; give the secret key of \
             one of them"
        );
        assert_eq!(text(""), "gpg could not get the session key: one");
    }

    #[test]
    fn reason_never_holds_the_session_key() {
        assert_eq!(reason(b"gpg: a\ngpg: b\x1b\ngpg: session key: '9:AB'\ngpg: c\n"), "b ; c");
        assert_eq!(reason(b""), "it did not say why");
    }
}
