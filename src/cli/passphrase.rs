//! Passphrases: from the environment, or asked for at the terminal.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Result;

use super::exit::NoSecret;
use super::{output, terminal};
use crate::crypt::{self, Passphrase};
use crate::sys::bounded::{SECRET, read_file};
use crate::sys::process_group::{LinePipe, OutputPipe, POLL};

/// How often the terminal is asked for a passphrase.
const TRIES: u32 = 3;

/// Unlocks a key with its passphrase. At the terminal, another one may be tried.
pub(super) fn unlock<T>(prompt: &str, unlock: impl Fn(&Passphrase) -> Result<T>) -> Result<T> {
    if let Some((_, passphrase)) = from_environment()? {
        return unlock(&passphrase.into());
    }
    for _ in 1..TRIES {
        match unlock(&ask(prompt)?.into()) {
            Err(error) if is_wrong(&error) => terminal::announce("the passphrase is wrong; try again"),
            result => return result,
        }
    }
    unlock(&ask(prompt)?.into())
}

fn is_wrong(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(crypt::Error::WrongPassphrase { .. })))
}

/// The passphrase of a new key. At the terminal it is asked for twice, and again if the two differ.
pub(super) fn new_passphrase(prompt: &str) -> Result<Passphrase> {
    match from_environment()? {
        Some((variable, passphrase)) if passphrase.is_empty() => {
            let why = "the passphrase is empty, which protects nothing";
            return Err(NoSecret(format!("cannot set a passphrase with {variable}: {why}; give another one")).into());
        }
        Some((_, passphrase)) => return Ok(passphrase.into()),
        None => {}
    }
    let mut tries = 1;
    loop {
        let first = ask(prompt)?;
        let why = match first.is_empty() {
            true => "the passphrase is empty, which protects nothing",
            false if ask("Repeat the passphrase: ")? == first => return Ok(first.into()),
            false => "the two passphrases differ",
        };
        if tries == TRIES {
            return Err(NoSecret(format!("cannot set a passphrase: {why}; run the command again")).into());
        }
        terminal::announce(&format!("{why}; try again"));
        tries += 1;
    }
}

fn ask(prompt: &str) -> Result<String> {
    let missing = "cannot ask for the passphrase: there is no terminal; set BRACKFS_PASSPHRASE, \
                   BRACKFS_PASSPHRASE_FILE or BRACKFS_PASSPHRASE_COMMAND";
    rpassword::prompt_password(prompt).map_err(|_| NoSecret(missing.into()).into())
}

/// Gets the passphrase from the value of a variable. The name is for messages.
type Source = fn(OsString, &str) -> Result<Vec<u8>>;

/// The variables.
const VARIABLES: [(&str, Source); 3] = [
    ("BRACKFS_PASSPHRASE", |value, _| Ok(value.into_encoded_bytes())),
    ("BRACKFS_PASSPHRASE_FILE", from_file),
    ("BRACKFS_PASSPHRASE_COMMAND", from_command),
];

/// The passphrase and its variable. The first variable that is set and not empty decides.
fn from_environment() -> Result<Option<(&'static str, String)>> {
    for (variable, read) in VARIABLES {
        if let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
            let bytes = read(value, variable)?;
            let text =
                String::from_utf8(bytes).map_err(|_| NoSecret(format!("the value of {variable} is not UTF-8")))?;
            // Newlines at the end do not belong to the passphrase.
            return Ok(Some((variable, text.trim_end_matches(['\n', '\r']).to_owned())));
        }
    }
    Ok(None)
}

fn from_file(path: OsString, name: &str) -> Result<Vec<u8>> {
    let path = PathBuf::from(path);
    Ok(read_file(&path, SECRET).map_err(|e| NoSecret(format!("{name}: cannot read {}: {e}", path.display())))?)
}

fn from_command(command: OsString, name: &str) -> Result<Vec<u8>> {
    let failed = |error: io::Error| NoSecret(format!("{name}: cannot run sh: {error}"));
    let (secret, end) = OutputPipe::new(SECRET as usize).map_err(failed)?;
    let mut shell = Command::new("sh");
    // It can ask at /dev/tty. Standard input belongs to this program, or to the loop of a script.
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(end);
    let mut said = None;
    if output::is_json() {
        let (lines, end) = LinePipe::new().map_err(failed)?;
        shell.stderr(end);
        said = Some(lines);
    }
    // Not in a process group: it may ask at the terminal.
    let mut child = shell.spawn().map_err(failed)?;
    let say = |line: &str| output::message(output::program_line(name, line));
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        said.iter_mut().for_each(|lines| lines.take(&say));
        if secret.is_full() {
            // It may have ended by now. The programs that it has started end when they write to the closed pipe.
            let _ = child.kill();
        }
        thread::sleep(POLL);
    };
    said.into_iter().for_each(|lines| lines.end(&say));
    let secret = secret.end();
    let secret = secret.map_err(|e| NoSecret(format!("{name}: cannot use the output of the command: {e}")))?;
    if !status.success() {
        return Err(NoSecret(format!("{name} failed ({status})")).into());
    }
    Ok(secret)
}
