//! From errors to exit codes.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use super::output;
use super::signals::interrupt;
use crate::failure::{Failure, FailureKind, worded};
use crate::monitor::count;
use crate::{
    archive, backup, catalog, check, config, crypt, dump, history, init, inventory, prune, reader, repository, restore,
    retention, session, state,
};

/// A command line that parses, but is not valid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// A required key or passphrase could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoSecret(pub(super) String);

/// A command completed, but with problems that it has reported. Nothing remains to be said, except in JSON.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Reported {
    kind: FailureKind,
    message: String,
}

/// Fails with code 1 if problems were reported.
pub(super) fn of_problems(problems: u64) -> anyhow::Result<ExitCode> {
    reported(FailureKind::Failed, problems)
}

/// Fails with the code of [`FailureKind::Partial`] if problems were reported.
pub(super) fn partial(problems: u64) -> anyhow::Result<ExitCode> {
    reported(FailureKind::Partial, problems)
}

/// Fails if a step of a run failed, with the kind of the worst failure.
pub(super) fn of_steps(worst: Option<FailureKind>) -> anyhow::Result<ExitCode> {
    match worst {
        None => Ok(ExitCode::SUCCESS),
        Some(kind) => Err(Reported { kind, message: "a step of the run failed".to_owned() }.into()),
    }
}

fn reported(kind: FailureKind, problems: u64) -> anyhow::Result<ExitCode> {
    match problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => {
            let message = count(problems, "problem was reported", "problems were reported");
            Err(Reported { kind, message }.into())
        }
    }
}

impl Failure for Reported {
    fn kind(&self) -> FailureKind {
        self.kind
    }
}

impl Failure for Usage {
    fn kind(&self) -> FailureKind {
        FailureKind::Usage
    }
}

impl Failure for NoSecret {
    fn kind(&self) -> FailureKind {
        FailureKind::Key
    }
}

/// The exit code of a kind of failure.
pub(super) const fn code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Failed | FailureKind::Full | FailureKind::Unavailable => 1,
        FailureKind::Usage => 2,
        FailureKind::Partial => 3,
        FailureKind::NoRepository => 10,
        FailureKind::Locked => 11,
        FailureKind::Key => 12,
        FailureKind::Interrupted => 130,
    }
}

/// The exit code of wrong usage of status, whose other codes tell how fresh backups are (EX_USAGE of sysexits.h).
pub(super) const USAGE_OF_STATUS: u8 = 64;

/// The kind of the first error in the chain that has a kind other than [`FailureKind::Failed`].
pub(super) fn kind(error: &anyhow::Error) -> FailureKind {
    if is_ended_wait(error) { FailureKind::Interrupted } else { kind_in_chain(error) }
}

fn kind_in_chain(error: &anyhow::Error) -> FailureKind {
    let mut kinds = error.chain().filter_map(|cause| FAILURES.iter().find_map(|kind_of| kind_of(cause)));
    kinds.find(|kind| *kind != FailureKind::Failed).unwrap_or(FailureKind::Failed)
}

/// Whether a signal ended a wait for a target.
fn is_ended_wait(error: &anyhow::Error) -> bool {
    interrupt().is_set() && !error.is::<Reported>() && kind_in_chain(error) == FailureKind::Unavailable
}

/// The kind of a cause, if it is of the function's type.
type KindOf = fn(&(dyn Error + 'static)) -> Option<FailureKind>;

/// The types of [`Failure`] that reach the command line: an error in a chain can only be found by its type.
const FAILURES: [KindOf; 21] = [
    kind_of::<Reported>,
    kind_of::<Usage>,
    kind_of::<NoSecret>,
    kind_of::<archive::Error>,
    kind_of::<backup::Error>,
    kind_of::<catalog::Error>,
    kind_of::<check::Error>,
    kind_of::<config::Error>,
    kind_of::<crypt::Error>,
    kind_of::<dump::Error>,
    kind_of::<history::Error>,
    kind_of::<init::Error>,
    kind_of::<inventory::Error>,
    kind_of::<prune::Error>,
    kind_of::<reader::Error>,
    kind_of::<repository::Error>,
    kind_of::<restore::Error>,
    kind_of::<retention::Error>,
    kind_of::<retention::ForgetError>,
    kind_of::<session::Error>,
    kind_of::<state::Error>,
];

fn kind_of<E: Failure + 'static>(cause: &(dyn Error + 'static)) -> Option<FailureKind> {
    cause.downcast_ref::<E>().map(Failure::kind)
}

/// The message of an error, followed by the causes that it does not contain.
pub(super) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    if is_ended_wait(error) {
        text.push_str("interrupted: ");
    }
    let begin = text.len();
    for cause in error.chain().map(ToString::to_string) {
        if text.len() == begin {
            text.push_str(&cause);
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    worded(&text).into_owned()
}

/// Whether the reader of standard output has closed it. Any other broken pipe, such as that of a mounted repository, is a
/// failure.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_closed = |cause: &(dyn Error + 'static)| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(error), _) => output::is_closed(error),
        // A dump writes to standard output in its own way.
        (None, Some(dump::Error::Write(error))) => error.kind() == io::ErrorKind::BrokenPipe,
        (None, _) => false,
    };
    error.chain().any(is_closed)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The documented exit code, and the code of an error with context around it.
    #[track_caller]
    fn assert_code(expected: u8, error: impl Error + Send + Sync + 'static) {
        let error = anyhow::Error::new(error).context("context");
        assert_eq!(code(kind(&error)), expected, "{error:?}");
    }

    fn missing() -> repository::Error {
        repository::Error::Missing { location: "/backup".into(), why: "brackfs.toml".into(), is_there: true }
    }

    fn locked() -> state::Error {
        state::Error::Locked { path: PathBuf::from("lock"), holder: "process 1".into(), setting: "--wait-lock" }
    }

    fn no_key() -> repository::Error {
        repository::Error::NoKey { object: "snapshot".into() }
    }

    #[test]
    fn each_kind_has_its_documented_code() {
        let kinds = [
            FailureKind::Failed,
            FailureKind::Usage,
            FailureKind::Partial,
            FailureKind::NoRepository,
            FailureKind::Locked,
            FailureKind::Key,
            FailureKind::Interrupted,
            FailureKind::Full,
        ];
        assert_eq!(kinds.map(code), [1, 2, 3, 10, 11, 12, 130, 1]);
    }

    #[test]
    fn errors_of_the_command_line_have_codes() {
        assert_code(2, Usage("wrong".into()));
        assert_code(2, backup::Error::Usage("wrong".into()));
        assert_code(12, NoSecret("missing".into()));
        assert_eq!(code(kind(&anyhow::anyhow!("any other"))), 1);
    }

    #[test]
    fn a_wrapped_error_keeps_its_code() {
        assert_code(10, missing());
        assert_code(10, backup::Error::from(missing()));
        assert_code(10, init::Error::from(missing()));
        assert_code(10, inventory::Error::from(missing()));
        assert_code(10, backup::Error::from(session::Error::from(inventory::Error::from(missing()))));
        assert_code(11, locked());
        assert_code(11, backup::Error::from(session::Error::from(locked())));
        assert_code(11, catalog::Error::Busy { path: PathBuf::new() });
        assert_code(11, inventory::Error::from(catalog::Error::Busy { path: PathBuf::new() }));
        let reader = || reader::Error::from(no_key());
        let archive = || archive::Error::from(reader());
        assert_code(12, crypt::Error::GpgCancelled);
        assert_code(12, no_key());
        assert_code(12, reader());
        assert_code(12, archive());
        assert_code(12, history::Error::from(archive()));
        assert_code(12, check::Error::from(reader()));
        assert_code(12, restore::Error::from(archive()));
        assert_code(12, dump::Error::Cut { path: PathBuf::new(), source: archive() });
    }

    #[test]
    fn only_a_broken_pipe_of_standard_output_is_no_failure() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        let is_quiet = |error: anyhow::Error| is_broken_pipe(&error.context("context"));
        assert!(is_quiet(output::named(pipe()).into()));
        assert!(is_quiet(history::Error::Output(output::named(pipe())).into()));
        assert!(is_quiet(dump::Error::Write(pipe()).into()));
        assert!(!is_quiet(output::named(io::ErrorKind::StorageFull.into()).into()));
        // The repository is on a mount whose server has gone.
        assert!(!is_quiet(state::Error::Io { action: "write", path: PathBuf::new(), source: pipe() }.into()));
        assert!(!is_quiet(pipe().into()));
    }

    #[test]
    fn interruption_has_a_code_in_each_engine() {
        assert_code(130, backup::Error::Interrupted);
        assert_code(130, backup::Error::PreviewInterrupted);
        assert_code(130, check::Error::Interrupted);
        assert_code(130, inventory::Error::Interrupted);
        assert_code(130, restore::Error::Interrupted);
        assert_code(130, state::Error::Interrupted);
    }

    #[test]
    fn other_errors_are_failures() {
        let source = std::io::Error::from_raw_os_error(5);
        assert_code(1, state::Error::Io { action: "read", path: PathBuf::new(), source });
        assert_code(1, archive::Error::NotFound("no such snapshot".into()));
        assert_code(1, backup::Error::NothingThere);
    }
}
