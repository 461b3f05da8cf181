//! The record of the steps of runs, in `journal.sqlite` in the state directory.
//!
//! It is not part of a catalog: a step can fail before its repository is known, and a catalog may be rebuilt.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, params};

use super::outcome::{Counts, Row, Step};

/// The name of the file.
const FILE: &str = "journal.sqlite";
/// The schema version, in SQLite's `user_version`.
const SCHEMA: i64 = 1;
/// How long another process may hold the journal.
const BUSY: Duration = Duration::from_secs(10);
/// How long entries are kept, in seconds: longer than a year, so that a year can be shown.
const KEPT: i64 = 400 * 24 * 60 * 60;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed.
    #[error("cannot use the record of runs {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A newer version of this program made it.
    #[error("the record of runs {} was made by a newer version of brackfs", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
    },
}

/// The record of the steps of runs.
#[derive(Debug)]
pub struct Journal {
    db: Connection,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal in a state directory, or makes it.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        let path = state.join(FILE);
        let failed = |source| JournalError::Database { path: path.clone(), source };
        make(&path).map_err(|e| failed(rusqlite::Error::ToSqlConversionFailure(e.into())))?;
        let open = || {
            let db = Connection::open(&path)?;
            db.busy_timeout(BUSY)?;
            let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if schema >= SCHEMA {
                return Ok((db, schema));
            }
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                CREATE TABLE IF NOT EXISTS steps (
                    id INTEGER PRIMARY KEY,
                    ended INTEGER NOT NULL,    -- seconds since 1970
                    seconds REAL NOT NULL,     -- how long it took
                    step TEXT NOT NULL,
                    source TEXT,
                    target TEXT,
                    outcome TEXT NOT NULL,     -- done, problems, skipped or failed
                    message TEXT NOT NULL,
                    -- of a backup
                    files INTEGER,
                    bytes INTEGER,
                    stored_bytes INTEGER,
                    problems INTEGER
                ) STRICT;
                CREATE INDEX IF NOT EXISTS by_what ON steps (step, target, source, ended);
                PRAGMA user_version = {SCHEMA};
                COMMIT;"
            ))?;
            Ok((db, SCHEMA))
        };
        match open().map_err(failed)? {
            (db, SCHEMA) => Ok(Journal { db, path }),
            _ => Err(JournalError::Newer { path }),
        }
    }

    fn failed(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Database { path: self.path.clone(), source }
    }

    /// The same, if there is one.
    pub fn open_existing(state: &Path) -> Result<Option<Self>, JournalError> {
        match state.join(FILE).exists() {
            true => Journal::open(state).map(Some),
            false => Ok(None),
        }
    }

    /// Adds a step that has just ended.
    pub fn add(&self, row: &Row) -> Result<(), JournalError> {
        let now = seconds(SystemTime::now());
        let add = || {
            let Row { step, source, target, outcome, counts, duration } = row;
            let count = |counter: fn(&Counts) -> u64| counts.as_ref().map(|counts| signed(counter(counts)));
            self.db.execute(
                "INSERT INTO steps
                    (ended, seconds, step, source, target, outcome, message, files, bytes, stored_bytes, problems)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    now,
                    duration.as_secs_f64(),
                    step.name(),
                    source,
                    target,
                    outcome.word(),
                    outcome.to_string(),
                    count(|counts| counts.files),
                    count(|counts| counts.bytes),
                    count(|counts| counts.stored_bytes),
                    count(|counts| counts.problems),
                ],
            )?;
            self.db.execute("DELETE FROM steps WHERE ended < ?", [now - KEPT])
        };
        add().map(drop).map_err(|e| self.failed(e))
    }

    /// The last try of each step that was not skipped.
    pub fn latest(&self) -> Result<Vec<Latest>, JournalError> {
        let read = || {
            let mut rows = self.db.prepare(
                "SELECT *, (
                    SELECT max(ended) FROM steps AS good
                    WHERE good.step = steps.step AND good.target IS steps.target AND good.source IS steps.source
                        AND outcome IN ('done', 'problems')
                ) AS succeeded FROM steps
                WHERE id IN (SELECT max(id) FROM steps WHERE outcome != 'skipped' GROUP BY step, source, target)
                ORDER BY step, source, target",
            )?;
            rows.query_map([], latest_of)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// Whether such a step was completed on a target within this time. A clock that was set back counts as no time.
    pub fn was_done(&self, step: Step, target: &str, within: Duration) -> Result<bool, JournalError> {
        let newest: Option<i64> = self
            .db
            .query_row(
                "SELECT max(ended) FROM steps WHERE step = ? AND target = ? AND outcome IN ('done', 'problems')",
                params![step.name(), target],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| self.failed(e))?
            .flatten();
        let age = newest.map(|newest| seconds(SystemTime::now()) - newest);
        Ok(age.is_some_and(|age| age >= 0 && (age as u64) < within.as_secs()))
    }
}

/// The last try of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    /// The name of the step.
    pub step: String,
    /// The source, if it was of one.
    pub source: Option<String>,
    /// The target, if it was on one.
    pub target: Option<String>,
    /// When it ended, in seconds since 1970.
    pub ended: i64,
    /// When one was completed last.
    pub succeeded: Option<i64>,
    /// How long it took.
    pub seconds: f64,
    /// The word for what came of it.
    pub outcome: String,
    /// What a backup found and stored.
    pub counts: Option<Counts>,
}

fn latest_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Latest> {
    let number = |column: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(i64::unsigned_abs));
    let counts = match (number("files")?, number("bytes")?, number("stored_bytes")?, number("problems")?) {
        (Some(files), Some(bytes), Some(stored_bytes), Some(problems)) => {
            Some(Counts { files, bytes, stored_bytes, problems })
        }
        _ => None,
    };
    Ok(Latest {
        step: row.get("step")?,
        source: row.get("source")?,
        target: row.get("target")?,
        ended: row.get("ended")?,
        succeeded: row.get("succeeded")?,
        seconds: row.get("seconds")?,
        outcome: row.get("outcome")?,
        counts,
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Makes the file, readable by its user only.
fn make(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        crate::state::create_folder(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::outcome::{Failed, Outcome};
    use super::*;

    fn row(outcome: Outcome) -> Row {
        Row {
            step: Step::Prune,
            source: None,
            target: Some("nas".into()),
            outcome,
            counts: None,
            duration: Duration::from_secs(1),
        }
    }

    #[test]
    fn only_completed_steps_count() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let journal = Journal::open(&state).unwrap();
        let hour = Duration::from_secs(3600);
        let was_done = |journal: &Journal| journal.was_done(Step::Prune, "nas", hour).unwrap();
        assert!(!was_done(&journal));
        journal.add(&row(Outcome::Failed(Failed::new("x")))).unwrap();
        journal.add(&row(Outcome::Skipped("x".into()))).unwrap();
        assert!(!was_done(&journal));
        journal.add(&row(Outcome::Done("x".into()))).unwrap();
        drop(journal);
        let journal = Journal::open(&state).unwrap();
        assert!(was_done(&journal));
        assert!(!journal.was_done(Step::Prune, "other", hour).unwrap());
        assert!(!journal.was_done(Step::Backup, "nas", hour).unwrap());
        assert!(!journal.was_done(Step::Prune, "nas", Duration::ZERO).unwrap());
        let mode = std::fs::metadata(state.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_last_try_and_the_last_success_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.latest().unwrap(), []);
        let counts = Some(Counts { files: 1, bytes: 2, stored_bytes: 3, problems: 4 });
        let backup = |source: &str, outcome| Row { step: Step::Backup, source: Some(source.into()), ..row(outcome) };
        journal.add(&Row { counts, ..backup("a", Outcome::Done("x".into())) }).unwrap();
        journal.add(&backup("b", Outcome::Failed(Failed::new("x")))).unwrap();
        journal.add(&backup("a", Outcome::Skipped("x".into()))).unwrap();
        let latest = journal.latest().unwrap();
        let seen: Vec<_> = latest.iter().map(|it| (it.source.as_deref(), it.outcome.as_str(), it.counts)).collect();
        assert_eq!(seen, [(Some("a"), "done", counts), (Some("b"), "failed", None)]);
        assert!(latest[0].succeeded == Some(latest[0].ended) && latest[1].succeeded.is_none());
    }

    #[test]
    fn entries_of_years_ago_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.add(&row(Outcome::Done("old".into()))).unwrap();
        journal.db.execute("UPDATE steps SET ended = ended - ?", [KEPT + 10]).unwrap();
        journal.add(&row(Outcome::Done("new".into()))).unwrap();
        let count: i64 = journal.db.query_row("SELECT count(*) FROM steps", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn a_journal_of_a_newer_version_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let version =
            |journal: &Journal| journal.db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(version(&journal), Ok(SCHEMA));
        journal.db.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Newer { .. })));
        assert_eq!(version(&journal), Ok(SCHEMA + 1));
    }

    #[test]
    fn a_damaged_journal_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("journal.sqlite"), [7; 5000]).unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("journal.sqlite"), "{error}");
    }
}
