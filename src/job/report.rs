//! Pings of a URL at the beginning and the end of a run.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::config::{Secret, credential_file};
use crate::storage::{Interrupt, agent};
use crate::sys::bounded::{SECRET as LONGEST, read_file};
use crate::sys::process_group::{OutputPipe, ProcessGroup};

/// How long a ping may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a command may take after an interrupt.
const LAST_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of the errors of a command that are shown.
const USED: usize = 8 << 10;

/// Tells a URL about a run: `end` is added to its path. An interrupt shortens all waits. The error has no secret.
pub fn ping(url: &Secret, end: &str, body: Option<&str>, interrupt: &Interrupt) -> Result<(), String> {
    let url = reveal(url, interrupt)?;
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    let config = Agent::config_builder().timeout_global(Some(PATIENCE)).tls_config(tls).build();
    let agent = agent(config, interrupt);
    let whole = format!("{}/{end}", url.trim_end_matches('/'));
    let sent = match body {
        Some(body) => agent.post(&whole).send(body),
        None => agent.get(&whole).call(),
    };
    // The words of an error may repeat the URL. Those of a connector have no meaning of their own in front.
    let told = |error: ureq::Error| match error {
        ureq::Error::Other(cause) => cause.to_string(),
        error => error.to_string(),
    };
    sent.map(drop).map_err(|error| told(error).replace(&whole, "the URL").replace(&url, "the URL"))
}

/// Reads a secret: the first line.
fn reveal(secret: &Secret, interrupt: &Interrupt) -> Result<String, String> {
    let text = match secret {
        Secret::File(path) => read(path)?,
        Secret::Credential(name) => read(&credential_file(name))?,
        Secret::Variable(name) => {
            std::env::var(name).map_err(|_| format!("the variable {name} is not set, or is not UTF-8"))?
        }
        Secret::Command(words) => {
            let program = words.first().map(String::as_str).unwrap_or_default();
            let mut command = Command::new(program);
            command.args(words.iter().skip(1)).stdin(Stdio::null());
            output(&mut command, program, interrupt)?
        }
    };
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { Err("the secret is empty".to_owned()) } else { Ok(line.to_owned()) }
}

/// The output of a command that ends soon.
fn output(command: &mut Command, program: &str, interrupt: &Interrupt) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot run {program}: {error}");
    let (output, output_end) = OutputPipe::new(LONGEST as usize).map_err(failed)?;
    let (errors, errors_end) = OutputPipe::new(LONGEST as usize).map_err(failed)?;
    let group = ProcessGroup::start(command.stdout(output_end).stderr(errors_end)).map_err(failed)?;
    let begun = Instant::now();
    // Both are emptied each time.
    let is_full = || [&output, &errors].map(OutputPipe::is_full).contains(&true);
    let is_late = || begun.elapsed() > if interrupt.is_set() { LAST_PATIENCE } else { PATIENCE };
    let status = group.wait(|| is_full() || is_late()).map_err(failed)?;
    let whole = |pipe: OutputPipe| pipe.end().map_err(|error| format!("cannot use the output of {program}: {error}"));
    let (output, errors) = (whole(output)?, whole(errors)?);
    match status {
        Some(status) if status.success() => {}
        Some(status) => {
            let text = String::from_utf8_lossy(errors.get(..USED).unwrap_or(&errors));
            let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            return Err([format!("{program} failed ({status})"), lines.join("; ")].join(if lines.is_empty() {
                ""
            } else {
                ": "
            }));
        }
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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn secrets_are_the_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::default();
        let reveal = |secret: &Secret| reveal(secret, &interrupt);
        let file = folder.path().join("secret");
        std::fs::write(&file, " one \ntwo\n").unwrap();
        assert_eq!(reveal(&Secret::File(file)), Ok("one".into()));
        let command = |script: &str| Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec());
        assert_eq!(reveal(&command("echo x; echo y")), Ok("x".into()));
        // A process in the background keeps the output open.
        let begun = Instant::now();
        assert_eq!(reveal(&command("sleep 100 & echo $! >&2; echo x")), Ok("x".into()));
        assert!(begun.elapsed() < PATIENCE);
        // More than a pipe holds.
        assert_eq!(reveal(&command("echo x; head -c 1000000 /dev/zero")), Ok("x".into()));
        assert_eq!(reveal(&command("head -c 100000 /dev/zero | tr '\\0' x")).map(|secret| secret.len()), Ok(100_000));
        for wrong in [command("exit 1"), command("true"), Secret::Variable("BRACKFS_NO_SUCH".into())] {
            reveal(&wrong).unwrap_err();
        }
        // Without end.
        for (wrong, why) in [
            (command("exec cat /dev/zero"), "cannot use the output of sh: it printed more than 1 MiB"),
            (command("exec cat /dev/zero >&2"), "cannot use the output of sh: it printed more than 1 MiB"),
            (Secret::File("/dev/zero".into()), "cannot read /dev/zero: it is larger than 1 MiB"),
        ] {
            assert_eq!(reveal(&wrong), Err(why.to_owned()));
        }
        reveal(&Secret::File("/nonexistent".into())).unwrap_err();
    }

    #[test]
    fn an_interrupt_ends_the_wait_for_a_silent_server_or_command() {
        // It accepts connections by itself, and never answers.
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        std::fs::write(&file, url).unwrap();
        for secret in [Secret::File(file), Secret::Command(["sleep", "1000"].map(str::to_owned).to_vec())] {
            let interrupt = Interrupt::default();
            let begun = Instant::now();
            std::thread::scope(|threads| {
                let pinging = threads.spawn(|| ping(&secret, "start", None, &interrupt));
                std::thread::sleep(Duration::from_millis(200));
                interrupt.set();
                interrupt.end_silence(Duration::from_secs(4));
                pinging.join().unwrap().unwrap_err();
            });
            assert!(begun.elapsed() < PATIENCE / 2);
        }
    }
}
