//! Secrets that are stored elsewhere: in a file, a variable, a credential of systemd, or what a command prints.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::bounded::{SECRET as LONGEST, read_file};
use crate::sys::process_group::{OutputPipe, ProcessGroup};

/// How long a command may take after an interrupt.
const LAST_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of the errors of a command that are shown.
const USED: usize = 8 << 10;

/// Where a secret is. It has at most 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A file.
    File(PathBuf),
    /// The value of a variable of the environment.
    Variable(String),
    /// What a command prints.
    Command(Vec<String>),
    /// A credential of the systemd unit: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// The value itself. Others may know it: it is a user name or the id of a key.
    Plain(String),
}

/// How long to wait for a command.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// The time that it may take.
    pub time: Duration,
    /// Whether an interrupt shortens that.
    pub is_interrupted: &'a dyn Fn() -> bool,
}

impl Secret {
    /// Reads all of it. The error does not contain it, unless a failing command printed it to standard error.
    pub fn text(&self, patience: Patience<'_>) -> Result<String, String> {
        match self {
            Secret::File(path) => read(path),
            Secret::Credential(name) => read(&credential_file(name)),
            Secret::Variable(name) => {
                std::env::var(name).map_err(|_| format!("the variable {name} is not set, or is not UTF-8"))
            }
            Secret::Command(words) => output(words, patience),
            Secret::Plain(text) => Ok(text.clone()),
        }
    }

    /// Reads the first line, without its line break.
    pub fn line(&self, patience: Patience<'_>) -> Result<String, String> {
        let text = self.text(patience)?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() { Err(format!("the first line of {} is empty", self.name())) } else { Ok(line.to_owned()) }
    }

    /// The file that has it.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Secret::File(path) => Some(path.clone()),
            Secret::Credential(name) => Some(credential_file(name)),
            Secret::Variable(_) | Secret::Command(_) | Secret::Plain(_) => None,
        }
    }

    /// Its name, if it is a credential.
    pub fn credential(&self) -> Option<&str> {
        match self {
            Secret::Credential(name) => Some(name),
            _ => None,
        }
    }

    /// Its name in messages.
    pub fn name(&self) -> String {
        match self {
            Secret::File(path) => path.display().to_string(),
            Secret::Credential(name) => credential_file(name).display().to_string(),
            Secret::Variable(name) => format!("the variable {name}"),
            Secret::Command(words) => format!("the output of {}", program(words)),
            Secret::Plain(_) => "the configuration".to_owned(),
        }
    }
}

/// Where root keeps the credentials that the service gets.
pub const CREDENTIALS: &str = "/etc/brackfs/credentials";

/// The file with a credential: where systemd put it, or outside of a service where it takes it from.
pub fn credential_file(name: &str) -> PathBuf {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    given.as_deref().unwrap_or(Path::new(CREDENTIALS)).join(name)
}

fn program(words: &[String]) -> &str {
    words.first().map(String::as_str).unwrap_or_default()
}

/// The output of a command that ends soon.
fn output(words: &[String], patience: Patience<'_>) -> Result<String, String> {
    let program = program(words);
    let failed = |error: io::Error| format!("cannot run {program}: {error}");
    let (output, output_end) = OutputPipe::new(LONGEST as usize).map_err(failed)?;
    let (errors, errors_end) = OutputPipe::new(LONGEST as usize).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(words.iter().skip(1)).stdin(Stdio::null()).stdout(output_end).stderr(errors_end);
    let group = ProcessGroup::start(&mut command).map_err(failed)?;
    // Its ends of the pipes belong to the child alone.
    drop(command);
    let begun = Instant::now();
    // Both are emptied each time.
    let is_full = || [&output, &errors].map(OutputPipe::is_full).contains(&true);
    let is_late = || begun.elapsed() > if (patience.is_interrupted)() { LAST_PATIENCE } else { patience.time };
    let status = group.wait(|| is_full() || is_late()).map_err(failed)?;
    let whole = |pipe: OutputPipe| pipe.end().map_err(|error| format!("cannot use the output of {program}: {error}"));
    let (output, errors) = (whole(output)?, whole(errors)?);
    match status {
        Some(status) if status.success() => {}
        Some(status) => {
            let text = String::from_utf8_lossy(errors.get(..USED).unwrap_or(&errors));
            let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let before = if lines.is_empty() { "" } else { ": " };
            return Err([format!("{program} failed ({status})"), lines.join("; ")].join(before));
        }
        None if (patience.is_interrupted)() => return Err(format!("interrupted during {program}")),
        None => return Err(format!("{program} took longer than {} s", begun.elapsed().as_secs())),
    }
    String::from_utf8(output).map_err(|_| format!("the output of {program} is not UTF-8"))
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let bytes = read_file(path, LONGEST).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience<'_> = Patience { time: Duration::from_secs(20), is_interrupted: &|| false };

    #[test]
    fn a_secret_is_all_of_it_or_the_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = Secret::File(folder.path().join("secret"));
        std::fs::write(folder.path().join("secret"), " one \r\ntwo\n").unwrap();
        assert_eq!(file.line(PATIENCE), Ok(" one ".into()), "a password may begin or end with a space");
        assert_eq!(file.text(PATIENCE), Ok(" one \r\ntwo\n".into()));
        assert_eq!(Secret::Plain("me".into()).line(PATIENCE), Ok("me".into()));
        let command = |script: &str| Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec());
        let line = |secret: &Secret| secret.line(PATIENCE);
        assert_eq!(command("echo x; echo y").text(PATIENCE), Ok("x\ny\n".into()));
        assert_eq!(line(&command("echo x; echo y")), Ok("x".into()));
        // A process in the background keeps the output open.
        let begun = Instant::now();
        assert_eq!(line(&command("sleep 100 & echo $! >&2; echo x")), Ok("x".into()));
        assert!(begun.elapsed() < PATIENCE.time);
        // More than a pipe holds.
        assert_eq!(line(&command("echo x; head -c 1000000 /dev/zero")), Ok("x".into()));
        assert_eq!(line(&command("head -c 100000 /dev/zero | tr '\\0' x")).map(|secret| secret.len()), Ok(100_000));
        for (wrong, why) in [
            (command("echo hidden; echo why >&2; exit 1"), "sh failed (exit status: 1): why"),
            (command("true"), "the first line of the output of sh is empty"),
            (Secret::Variable("BRACKFS_NO_SUCH".into()), "the variable BRACKFS_NO_SUCH is not set, or is not UTF-8"),
            (Secret::File("/nonexistent".into()), "cannot read /nonexistent: No such file or directory (os error 2)"),
            // Without end.
            (command("exec cat /dev/zero"), "cannot use the output of sh: it printed more than 1 MiB"),
            (command("exec cat /dev/zero >&2"), "cannot use the output of sh: it printed more than 1 MiB"),
            (Secret::File("/dev/zero".into()), "cannot read /dev/zero: it is larger than 1 MiB"),
        ] {
            assert_eq!(line(&wrong), Err(why.to_owned()));
        }
        let late = Patience { time: Duration::from_millis(200), ..PATIENCE };
        assert_eq!(command("sleep 100").line(late), Err("sh took longer than 0 s".to_owned()));
        let interrupted = Patience { is_interrupted: &|| true, ..PATIENCE };
        assert_eq!(command("sleep 100").line(interrupted), Err("interrupted during sh".to_owned()));
    }
}
