//! An overview as metrics for Prometheus, in its text format.

use std::fmt::Write;
use std::io;
use std::path::Path;

use super::backup::Backups;
use super::target::{TargetOverview, Tries};
use super::whole::Overview;
use crate::job::{Counts, Ending, Step};
use crate::sys::durable::{IfExists, write_file};

/// Writes the metrics to a file, for the textfile collector of Prometheus. The file appears as a whole.
pub fn write_metrics(path: &Path, overview: &Overview) -> io::Result<()> {
    write_file(path, metrics(overview).as_bytes(), 0o644, IfExists::Replace)
}

/// A metric with its help and its samples: the labels and the value of each.
type Metric = (&'static str, &'static str, Vec<(String, f64)>);

/// The metrics of an overview. Names and labels are described in brackfs-config(5), and do not change.
pub fn metrics(overview: &Overview) -> String {
    let mut text = String::new();
    for (name, help, samples) in all(overview) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP brackfs_{name} {help}\n# TYPE brackfs_{name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(text, "brackfs_{name}{labels} {value}");
        }
    }
    text
}

fn all(overview: &Overview) -> Vec<Metric> {
    let Overview { backups, targets, last_run, .. } = overview;
    let steps = steps(overview);
    let of_steps = |value: &dyn Fn(&Tries) -> Option<f64>| {
        samples(&steps, |(labels, tries)| Some((labels.clone(), value(tries)?)))
    };
    let of_backups = |value: &dyn Fn(&Backups) -> Option<f64>| samples(backups, |it| Some((pair(it), value(it)?)));
    let of_targets = |value: &dyn Fn(&TargetOverview) -> Option<f64>| {
        samples(targets, |it| Some((format!("{{target=\"{}\"}}", it.name), value(it)?)))
    };
    let counted = |counter: fn(&Counts) -> u64| {
        of_steps(&|tries| Some(counter(tries.completed.as_ref()?.counts.as_ref()?) as f64))
    };
    let expiries = targets.iter().flat_map(|target| {
        let recipients = target.known.iter().flat_map(|known| &known.recipients);
        recipients.filter_map(|it| {
            let labels = format!("{{target=\"{}\",fingerprint=\"{}\"}}", target.name, it.fingerprint);
            Some((labels, it.expires? as f64))
        })
    });
    let alone = |value: Option<f64>| value.map(|value| (String::new(), value)).into_iter().collect();
    let version = vec![(format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0)];
    vec![
        (
            "last_run_timestamp_seconds",
            "When the step was last tried.",
            of_steps(&|it| Some(it.tried.as_ref()?.ended as f64)),
        ),
        (
            "last_success_timestamp_seconds",
            "When the step was last completed.",
            of_steps(&|it| Some(it.completed.as_ref()?.ended as f64)),
        ),
        (
            "last_run_failed",
            "Whether the last try failed (1) or not (0).",
            of_steps(&|it| Some(f64::from(it.tried.as_ref()?.ending == Ending::Failed))),
        ),
        ("last_run_duration_seconds", "How long the last try took.", of_steps(&|it| Some(it.tried.as_ref()?.seconds))),
        ("last_run_problems", "Problems of the last completed backup.", counted(|counts| counts.problems)),
        ("source_files", "Files of the source in its last backup.", counted(|counts| counts.files)),
        ("source_bytes", "Size of the source in its last backup.", counted(|counts| counts.bytes)),
        ("stored_bytes", "Bytes that the last backup stored.", counted(|counts| counts.stored_bytes)),
        ("max_age_seconds", "The age up to which a backup is fresh.", of_backups(&|it| Some(it.max_age.as_secs_f64()))),
        ("snapshots", "Snapshots of the source on the target.", of_backups(&|it| Some(it.snapshots?.count as f64))),
        (
            "snapshots_stored_bytes",
            "Bytes that the backups of these snapshots added to the repository.",
            of_backups(&|it| Some(it.snapshots?.stored_bytes as f64)),
        ),
        (
            "repository_bytes",
            "Size of the data in the repository.",
            of_targets(&|it| Some(it.known.as_ref()?.stored_bytes as f64)),
        ),
        ("recipient_expiry_timestamp_seconds", "When the certificate of a recipient expires.", expiries.collect()),
        ("run_timestamp_seconds", "When the last run ended.", alone(last_run.map(|run| run.ended as f64))),
        ("run_exit_code", "Exit code of the last run.", alone(last_run.map(|run| f64::from(run.code)))),
        ("build_info", "The version.", version),
    ]
}

fn samples<T>(items: &[T], sample: impl Fn(&T) -> Option<(String, f64)>) -> Vec<(String, f64)> {
    items.iter().filter_map(sample).collect()
}

fn pair(backups: &Backups) -> String {
    format!("{{source=\"{}\",target=\"{}\"}}", backups.source, backups.target)
}

/// The labels and the tries of each step. Names of sources and targets need no escapes.
fn steps(overview: &Overview) -> Vec<(String, &Tries)> {
    let labels = |step: Step, source: &str, target: &str| {
        format!("{{step=\"{}\",source=\"{source}\",target=\"{target}\"}}", step.name())
    };
    let of_sources = overview.backups.iter().flat_map(|it| {
        let label = |step| labels(step, &it.source, &it.target);
        [(label(Step::Backup), &it.tries), (label(Step::Forget), &it.forget)]
    });
    let of_targets = overview.targets.iter().flat_map(|it| {
        let label = |step| labels(step, "", &it.name);
        [(label(Step::Prune), &it.prune), (label(Step::Check), &it.check)]
    });
    of_sources.chain(of_targets).collect()
}
