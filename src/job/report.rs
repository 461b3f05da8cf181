//! Reports of a run: metrics for Prometheus, and pings of a URL.

use std::fmt::Write;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::journal::Latest;
use super::outcome::{Counts, Step};
use crate::config::Secret;
use crate::sys::durable::{IfExists, write_file};
use crate::sys::process_group::ProcessGroup;

/// How long a ping may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum length of a secret in bytes.
const SECRET: u64 = 8 << 10;

/// Writes the metrics of all sources and targets to a file, for the textfile collector of Prometheus. The file appears as a
/// whole.
pub fn write_metrics(path: &Path, latest: &[Latest], code: u8) -> io::Result<()> {
    write_file(path, metrics(latest, code).as_bytes(), 0o644, IfExists::Replace)
}

/// A metric: its name, what it is, and its value for a step.
type Metric = (&'static str, &'static str, fn(&Latest) -> Option<f64>);

/// The value of a counter of the last backup.
fn counted(latest: &Latest, counter: fn(&Counts) -> u64) -> Option<f64> {
    latest.counts.as_ref().map(|counts| counter(counts) as f64)
}

const METRICS: [Metric; 8] = [
    ("last_run_timestamp_seconds", "When the step was last tried.", |last| Some(last.ended as f64)),
    ("last_success_timestamp_seconds", "When the step was last completed.", |last| last.succeeded.map(|at| at as f64)),
    ("last_run_failed", "Whether the last try failed (1) or not (0).", |last| {
        Some(f64::from(last.outcome == "failed"))
    }),
    ("last_run_duration_seconds", "How long the last try took.", |last| Some(last.seconds)),
    ("last_run_problems", "Problems of the last backup.", |last| counted(last, |counts| counts.problems)),
    ("source_files", "Files of the source in its last backup.", |last| counted(last, |counts| counts.files)),
    ("source_bytes", "Size of the source in its last backup.", |last| counted(last, |counts| counts.bytes)),
    ("stored_bytes", "Bytes that the last backup stored.", |last| counted(last, |counts| counts.stored_bytes)),
];

fn metrics(latest: &[Latest], code: u8) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |line: String| _ = writeln!(text, "{line}");
    for (name, help, value) in METRICS {
        line(format!("# HELP brackfs_{name} {help}"));
        line(format!("# TYPE brackfs_{name} gauge"));
        for last in latest.iter().filter(|last| last.step != Step::Hook.name()) {
            if let Some(value) = value(last) {
                let [source, target] = [&last.source, &last.target].map(|name| name.as_deref().unwrap_or_default());
                let labels = format!("step=\"{}\",source=\"{source}\",target=\"{target}\"", last.step);
                line(format!("brackfs_{name}{{{labels}}} {value}"));
            }
        }
    }
    for (name, help, labels, value) in [
        ("run_exit_code", "Exit code of the last run.", String::new(), code),
        ("build_info", "The version.", format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1),
    ] {
        line(format!("# HELP brackfs_{name} {help}"));
        line(format!("# TYPE brackfs_{name} gauge"));
        line(format!("brackfs_{name}{labels} {value}"));
    }
    text
}

/// Tells a URL about a run: `end` is added to its path. The error has no secret.
pub fn ping(url: &Secret, end: &str, body: Option<&str>) -> Result<(), String> {
    let url = reveal(url)?;
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    let agent = Agent::config_builder().timeout_global(Some(PATIENCE)).tls_config(tls).build().new_agent();
    let whole = format!("{}/{end}", url.trim_end_matches('/'));
    let sent = match body {
        Some(body) => agent.post(&whole).send(body),
        None => agent.get(&whole).call(),
    };
    // The words of an error may repeat the URL.
    sent.map(drop).map_err(|error| error.to_string().replace(&whole, "the URL").replace(&url, "the URL"))
}

/// Reads a secret: the first line.
fn reveal(secret: &Secret) -> Result<String, String> {
    let text = match secret {
        Secret::File(path) => read(path)?,
        Secret::Credential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
            let folder = folder.ok_or("there are no credentials: CREDENTIALS_DIRECTORY is not set")?;
            read(&folder.join(name))?
        }
        Secret::Variable(name) => {
            std::env::var(name).map_err(|_| format!("the variable {name} is not set, or is not UTF-8"))?
        }
        Secret::Command(words) => {
            let program = words.first().map(String::as_str).unwrap_or_default();
            let mut command = Command::new(program);
            command.args(words.iter().skip(1)).stdin(Stdio::null()).stdout(Stdio::piped());
            output(&mut command, program)?
        }
    };
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { Err("the secret is empty".to_owned()) } else { Ok(line.to_owned()) }
}

/// The output of a command that ends soon.
fn output(command: &mut Command, program: &str) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot run {program}: {error}");
    let mut group = ProcessGroup::start(command).map_err(failed)?;
    let output = group.take_output();
    let begun = Instant::now();
    match group.wait(|| begun.elapsed() > PATIENCE).map_err(failed)? {
        Some(status) if status.success() => {}
        Some(status) => return Err(format!("{program} failed ({status})")),
        None => return Err(format!("{program} took longer than {} s", PATIENCE.as_secs())),
    }
    let mut text = String::new();
    // What it printed fits into the pipe, or it would not have ended.
    output
        .into_iter()
        .try_for_each(|output| output.take(SECRET).read_to_string(&mut text).map(drop))
        .map_err(failed)?;
    Ok(text)
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(SECRET).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_a_line_for_each_value() {
        let latest = |source: &str, outcome: &str, counts| Latest {
            step: "backup".into(),
            source: Some(source.into()),
            target: Some("nas".into()),
            ended: 1_795_000_000,
            succeeded: (outcome != "failed").then_some(1_795_000_000),
            seconds: 1.5,
            outcome: outcome.into(),
            counts,
        };
        let counts = Counts { files: 7, bytes: 100, stored_bytes: 50, problems: 1 };
        let text = metrics(&[latest("a", "problems", Some(counts)), latest("b", "failed", None)], 10);
        let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        has("brackfs_last_success_timestamp_seconds{step=\"backup\",source=\"a\",target=\"nas\"} 1795000000");
        has("brackfs_last_run_failed{step=\"backup\",source=\"b\",target=\"nas\"} 1");
        has("brackfs_last_run_duration_seconds{step=\"backup\",source=\"a\",target=\"nas\"} 1.5");
        has("brackfs_source_files{step=\"backup\",source=\"a\",target=\"nas\"} 7");
        has("brackfs_run_exit_code 10");
        assert!(!text.contains("brackfs_last_success_timestamp_seconds{step=\"backup\",source=\"b\""), "{text}");
        // Each name is described once.
        let names: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(names.len(), METRICS.len() + 2);
    }

    #[test]
    fn secrets_are_the_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, " one \ntwo\n").unwrap();
        assert_eq!(reveal(&Secret::File(file)), Ok("one".into()));
        let command = |script: &str| Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec());
        assert_eq!(reveal(&command("echo x; echo y")), Ok("x".into()));
        for wrong in [command("exit 1"), command("true"), Secret::Variable("BRACKFS_NO_SUCH".into())] {
            reveal(&wrong).unwrap_err();
        }
        reveal(&Secret::File("/nonexistent".into())).unwrap_err();
    }
}
