//! The record of the steps of runs, in `journal.sqlite` in the state directory.
//!
//! It is not part of a catalog: a step can fail before its repository is known, and a catalog may be rebuilt.
//!
//! A step that may take long has a row from its beginning on, and its process holds a lock on a byte of the file `running`. The
//! kernel releases the lock when the process ends, so the next command that opens the journal finds the steps of processes that
//! were killed.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, Transaction, TransactionBehavior, params};

use super::outcome::{Counts, Ending, Row, Step};
use crate::format::RepositoryId;
use crate::sys::byte_lock;
use crate::sys::owner::open_private;

/// The name of the file.
const FILE: &str = "journal.sqlite";
/// The file in which processes hold locks: for each step, on the byte with its number.
const RUNNING: &str = "running";
/// The byte for the run with the number 0.
const RUNS: i64 = 1 << 62;
/// The outcome of a step that has not ended.
const STARTED: &str = "started";
/// The code of a run that has not ended.
const RUNS_ON: i64 = -1;
/// The code of a run whose process ended without a result, as shells report SIGKILL.
const KILLED_RUN: u8 = 137;
/// The message of a step whose process ended without a result.
const KILLED: &str = "interrupted: it was killed, or the machine stopped";
/// The version of the schema, stored in SQLite's `user_version`. A database of another version is refused.
const SCHEMA: i64 = 2;
/// How long another process may hold the journal.
const BUSY: Duration = Duration::from_secs(10);
/// How much earlier than planned a step may run again, as a part of the planned time, and at most in seconds. Runs do not begin
/// at the same second of each day or week, and other steps come first.
const EARLY: (f64, f64) = (0.1, 6.0 * 60.0 * 60.0);
/// How long entries are kept, in seconds: longer than a year, so that a year can be shown.
const KEPT: i64 = 400 * 24 * 60 * 60;
/// How many of the last entries are kept in any case: for a clock that is years ahead, all others are old.
const LAST: i64 = 1000;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed.
    #[error("cannot use the record of runs {}: {why}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The database is damaged.
    #[error("the record of runs {} is damaged: {why}; move the file away, and the next run begins a new one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        why: String,
    },
    /// Another version of this program made it.
    #[error(
        "the record of runs {} has schema {found}, which this version of brackfs does not read; install the version that made \
         it, or move the file away", path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
    },
    /// A process was killed while it changed the database, which cannot be undone without writing.
    #[error(
        "cannot read the record of runs {}: a run was interrupted, and undoing its last change needs write access to its \
         directory; run the command once with write access", path.display()
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
}

impl JournalError {
    fn of(path: &Path, error: &rusqlite::Error) -> Self {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, SqlInputError};
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let (path, why) = (path.to_owned(), error.to_string());
        let code = error.sqlite_error().map(|error| error.extended_code);
        if code == Some(rusqlite::ffi::SQLITE_READONLY_ROLLBACK) {
            return JournalError::Unfinished { path };
        }
        match (error.sqlite_error_code(), error) {
            (Some(DatabaseCorrupt | NotADatabase), _) => JournalError::Damaged { path, why },
            // The statements are correct, so a table or a column is missing.
            (_, SqlInputError { msg, .. }) => JournalError::Damaged { path, why: msg.clone() },
            (_, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)) => {
                JournalError::Damaged { path, why }
            }
            _ if why.starts_with("no such ") => JournalError::Damaged { path, why },
            _ => JournalError::Database { path, why },
        }
    }
}

/// The record of the steps of runs.
#[derive(Debug)]
pub struct Journal {
    db: Connection,
    path: PathBuf,
}

/// A step of a source, of a target, or of both.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// What it was.
    pub step: Step,
    /// The source, if it was of one.
    pub source: Option<&'a str>,
    /// The target, if it was on one.
    pub target: Option<&'a str>,
}

/// A step or a run that has begun, and has a row. If it is dropped without an end, it counts as killed.
#[derive(Debug)]
pub struct Begun {
    id: i64,
    lock: File,
}

/// A step that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When it ended, in seconds since 1970. For a step whose process was killed: when it began.
    pub ended: i64,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub ending: Ending,
    /// What was said about it.
    pub message: String,
    /// What a backup found and stored.
    pub counts: Option<Counts>,
}

/// A step that failed or had problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// The name of the step.
    pub step: String,
    /// The source, if it was of one.
    pub source: Option<String>,
    /// The target, if it was on one.
    pub target: Option<String>,
    /// How it ended the last time.
    pub entry: Entry,
    /// How often it ended with this message.
    pub times: u64,
}

/// A run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRun {
    /// When it ended, in seconds since 1970. If its process was killed: when it began.
    pub ended: i64,
    /// Its exit code; 137 if its process was killed.
    pub code: u8,
}

impl Journal {
    /// Opens the journal in a state directory, or makes it.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        let path = state.join(FILE);
        let failed = |error| JournalError::of(&path, &error);
        make(&path).map_err(|e| JournalError::Database { path: path.clone(), why: e.to_string() })?;
        let open = || {
            let db = Connection::open(&path)?;
            db.busy_timeout(BUSY)?;
            let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if schema != 0 {
                return Ok((db, schema));
            }
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                CREATE TABLE IF NOT EXISTS steps (
                    id INTEGER PRIMARY KEY,
                    ended INTEGER NOT NULL,    -- seconds since 1970; when it began, if it has no end
                    seconds REAL NOT NULL,     -- how long it took
                    step TEXT NOT NULL,
                    source TEXT,
                    target TEXT,
                    repository TEXT,           -- the id, if the target was opened
                    outcome TEXT NOT NULL,     -- started, done, problems, skipped or failed
                    message TEXT NOT NULL,
                    -- of a backup
                    files INTEGER,
                    bytes INTEGER,
                    stored_bytes INTEGER,
                    problems INTEGER
                ) STRICT;
                CREATE INDEX IF NOT EXISTS by_what ON steps (step, target, source, ended);
                CREATE INDEX IF NOT EXISTS by_repository ON steps (target, ended) WHERE repository IS NOT NULL;
                CREATE INDEX IF NOT EXISTS unfinished ON steps (id) WHERE outcome = '{STARTED}';
                CREATE TABLE IF NOT EXISTS runs (
                    id INTEGER PRIMARY KEY,
                    ended INTEGER NOT NULL,
                    code INTEGER NOT NULL      -- the exit code; -1 before the end
                ) STRICT;
                PRAGMA user_version = {SCHEMA};
                COMMIT;"
            ))?;
            Ok((db, SCHEMA))
        };
        match open().map_err(failed)? {
            (db, SCHEMA) => {
                let journal = Journal { db, path };
                journal.end_killed().map_err(|e| journal.failed(e))?;
                Ok(journal)
            }
            (_, found) => Err(JournalError::Schema { path, found }),
        }
    }

    /// Ends the steps and runs whose processes have ended without a result.
    fn end_killed(&self) -> rusqlite::Result<()> {
        let (steps, runs) = self.killed()?;
        // Each may have ended since it was found.
        for id in steps {
            let end = format!("UPDATE steps SET outcome = ?, message = ? WHERE id = ? AND outcome = '{STARTED}'");
            self.db.execute(&end, params![Ending::Failed.name(), KILLED, id])?;
        }
        for id in runs {
            let end = format!("UPDATE runs SET code = ? WHERE id = ? AND code = {RUNS_ON}");
            self.db.execute(&end, params![KILLED_RUN, id])?;
        }
        Ok(())
    }

    /// Makes these steps and runs look ended on this connection: temporary views hide the tables of the same name.
    fn show_killed(&self) -> rusqlite::Result<()> {
        let (steps, runs) = self.killed()?;
        if steps.is_empty() && runs.is_empty() {
            return Ok(());
        }
        let listed = |ids: Vec<i64>| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let (steps, runs, failed) = (listed(steps), listed(runs), Ending::Failed.name());
        self.db.execute_batch(&format!(
            "CREATE TEMP VIEW steps AS SELECT id, ended, seconds, step, source, target, repository,
                iif(outcome = '{STARTED}' AND id IN ({steps}), '{failed}', outcome) AS outcome,
                iif(outcome = '{STARTED}' AND id IN ({steps}), '{KILLED}', message) AS message,
                files, bytes, stored_bytes, problems FROM main.steps;
            CREATE TEMP VIEW runs AS SELECT id, ended,
                iif(code = {RUNS_ON} AND id IN ({runs}), {KILLED_RUN}, code) AS code FROM main.runs;"
        ))
    }

    /// The steps and runs whose processes have ended without a result.
    fn killed(&self) -> rusqlite::Result<(Vec<i64>, Vec<i64>)> {
        let find = |which: &str| {
            let mut find = self.db.prepare(&format!("SELECT id FROM {which}"))?;
            find.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()
        };
        let mut steps = find(&format!("steps WHERE outcome = '{STARTED}'"))?;
        let mut runs = find(&format!("runs WHERE code = {RUNS_ON}"))?;
        if !steps.is_empty() || !runs.is_empty() {
            // Without the file, no process has a lock.
            let running = File::open(self.path.with_file_name(RUNNING)).ok();
            let is_running = |byte: i64| running.as_ref().is_some_and(|running| byte_lock::is_held(running, byte));
            steps.retain(|id| !is_running(*id));
            runs.retain(|id| !is_running(RUNS + id));
        }
        Ok((steps, runs))
    }

    fn failed(&self, error: rusqlite::Error) -> JournalError {
        JournalError::of(&self.path, &error)
    }

    /// Opens the journal to read it; `None` if nothing was recorded yet. Nothing on the disk is changed, except that the
    /// unfinished change of a process that was killed is undone.
    pub fn view(state: &Path) -> Result<Option<Self>, JournalError> {
        let path = state.join(FILE);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // The record of another user must not look like none.
            Err(error) => return Err(JournalError::Database { path, why: error.to_string() }),
        }
        let failed = |error| JournalError::of(&path, &error);
        let open = || {
            // A read-only connection could not undo what a killed process has half written.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let db = Connection::open_with_flags(&path, flags)?;
            db.busy_timeout(BUSY)?;
            let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            db.pragma_update(None, "temp_store", "memory")?;
            Ok((db, schema))
        };
        match open().map_err(failed)? {
            (_, 0) => Ok(None),
            (db, SCHEMA) => {
                let journal = Journal { db, path };
                journal.show_killed().map_err(|e| journal.failed(e))?;
                Ok(Some(journal))
            }
            (_, found) => Err(JournalError::Schema { path, found }),
        }
    }

    /// Adds steps that begin now. Their order is that of `subjects`.
    pub fn begin(&self, subjects: &[Subject<'_>]) -> Result<Vec<Begun>, JournalError> {
        let insert = format!(
            "INSERT INTO steps (ended, seconds, step, source, target, outcome, message)
                VALUES (?, 0, ?, ?, ?, '{STARTED}', '')"
        );
        let now = seconds(SystemTime::now());
        self.transact(|| {
            let add = |subject: &Subject<'_>| {
                let Subject { step, source, target } = subject;
                self.db.execute(&insert, params![now, step.name(), source, target])?;
                self.lock_row(0)
            };
            subjects.iter().map(add).collect()
        })
    }

    /// Adds a run that begins now.
    pub fn begin_run(&self) -> Result<Begun, JournalError> {
        self.transact(|| {
            let insert = "INSERT INTO runs (ended, code) VALUES (?, ?)";
            self.db.execute(insert, params![seconds(SystemTime::now()), RUNS_ON])?;
            self.lock_row(RUNS)
        })
    }

    /// Adds rows and locks them in one transaction, so that no other process sees a row before it is locked.
    fn transact<T>(&self, add: impl FnOnce() -> rusqlite::Result<T>) -> Result<T, JournalError> {
        let begin = || {
            let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
            let added = add()?;
            transaction.commit()?;
            Ok(added)
        };
        begin().map_err(|e| self.failed(e))
    }

    /// Locks the row that was added last. `first` is the byte for the row 0.
    fn lock_row(&self, first: i64) -> rusqlite::Result<Begun> {
        let id = self.db.last_insert_rowid();
        let lock = || {
            let path = self.path.with_file_name(RUNNING);
            let file = open_private(&path, OpenOptions::new().read(true).write(true))?;
            byte_lock::take(&file, first + id)?;
            io::Result::Ok(file)
        };
        match lock() {
            Ok(lock) => Ok(Begun { id, lock }),
            // Of the errors of SQLite, this one has room for another error.
            Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(error.into())),
        }
    }

    /// Ends a step.
    pub fn end(&self, begun: Begun, row: &Row) -> Result<(), JournalError> {
        self.write(Some(begun.id), row)
    }

    /// Removes the row of a step that could not begin.
    pub fn cancel(&self, begun: Begun) -> Result<(), JournalError> {
        // Without the row, its number may be given again, so the lock must be released before.
        let Begun { id, lock } = begun;
        drop(lock);
        self.db.execute("DELETE FROM steps WHERE id = ?", [id]).map(drop).map_err(|e| self.failed(e))
    }

    /// Adds a step that has just ended.
    pub fn add(&self, row: &Row) -> Result<(), JournalError> {
        self.write(None, row)
    }

    /// Writes a step that has just ended: in its row, if it has one.
    fn write(&self, id: Option<i64>, row: &Row) -> Result<(), JournalError> {
        let now = seconds(SystemTime::now());
        let write = || {
            let Row { step, source, target, repository, outcome, counts, duration } = row;
            let count = |counter: fn(&Counts) -> u64| counts.as_ref().map(|counts| signed(counter(counts)));
            self.db.execute(
                "INSERT OR REPLACE INTO steps
                    (id, ended, seconds, step, source, target, repository, outcome, message, files, bytes, stored_bytes, problems)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    id,
                    now,
                    duration.as_secs_f64(),
                    step.name(),
                    source,
                    target,
                    repository.map(|id| id.to_string()),
                    outcome.ending().name(),
                    outcome.to_string(),
                    count(|counts| counts.files),
                    count(|counts| counts.bytes),
                    count(|counts| counts.stored_bytes),
                    count(|counts| counts.problems),
                ],
            )?;
            self.remove_old("steps", now)
        };
        write().map(drop).map_err(|e| self.failed(e))
    }

    /// Removes old entries of a table.
    fn remove_old(&self, table: &str, now: i64) -> rusqlite::Result<usize> {
        let old = format!("DELETE FROM {table} WHERE ended < ? AND id <= (SELECT max(id) FROM {table}) - ?");
        self.db.execute(&old, [now - KEPT, LAST])
    }

    /// Ends a run.
    pub fn end_run(&self, begun: Begun, code: u8) -> Result<(), JournalError> {
        let now = seconds(SystemTime::now());
        let end = || {
            self.db.execute("UPDATE runs SET ended = ?, code = ? WHERE id = ?", params![now, code, begun.id])?;
            self.remove_old("runs", now)
        };
        end().map(drop).map_err(|e| self.failed(e))
    }

    /// The last run that has ended.
    pub fn last_run(&self) -> Result<Option<EndedRun>, JournalError> {
        let find = "SELECT ended, code FROM runs WHERE code != ? ORDER BY id DESC LIMIT 1";
        let found = self.db.query_row(find, [RUNS_ON], |row| Ok(EndedRun { ended: row.get(0)?, code: row.get(1)? }));
        found.optional().map_err(|e| self.failed(e))
    }

    /// The last entry of a step that ended in one of these ways, up to the time `until`: a clock that was wrong for a while may
    /// have left entries of the future.
    pub fn last(&self, of: Subject<'_>, endings: &[Ending], until: i64) -> Result<Option<Entry>, JournalError> {
        let names: Vec<_> = endings.iter().map(|ending| format!("'{}'", ending.name())).collect();
        let which = format!("ended <= ? AND outcome IN ({}) ORDER BY ended DESC, id DESC LIMIT 1", names.join(", "));
        Ok(self.entries(of, &which, &[&until])?.pop())
    }

    /// The entries of a step that ended after the time `from` and up to `until`, oldest first.
    pub fn between(&self, of: Subject<'_>, from: i64, until: i64) -> Result<Vec<Entry>, JournalError> {
        self.entries(of, "ended > ? AND ended <= ? AND outcome != ? ORDER BY ended, id", &[&from, &until, &STARTED])
    }

    fn entries(&self, of: Subject<'_>, which: &str, values: &[&dyn ToSql]) -> Result<Vec<Entry>, JournalError> {
        let read = || {
            let find = format!("SELECT * FROM steps WHERE step = ? AND target IS ? AND source IS ? AND {which}");
            let mut statement = self.db.prepare_cached(&find)?;
            let (step, subject): (_, [&dyn ToSql; 2]) = (of.step.name(), [&of.target, &of.source]);
            let values: Vec<&dyn ToSql> =
                [&step as &dyn ToSql].into_iter().chain(subject).chain(values.iter().copied()).collect();
            statement.query_map(values.as_slice(), entry)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// Steps that failed or had problems, after the time `from` and up to `until`, newest first. Those with the same message
    /// are one.
    pub fn troubles(&self, from: i64, until: i64, most: usize) -> Result<Vec<Trouble>, JournalError> {
        let read = || {
            let mut statement = self.db.prepare(
                // The other columns are those of the row with the maximum.
                "SELECT *, max(ended) AS newest, count(*) AS times FROM steps
                WHERE ended > ? AND ended <= ? AND outcome IN ('failed', 'problems')
                GROUP BY step, source, target, outcome, message ORDER BY newest DESC, id DESC LIMIT ?",
            )?;
            let trouble = |row: &rusqlite::Row<'_>| {
                let [source, target] = [row.get("source")?, row.get("target")?];
                let times = row.get::<_, i64>("times")?.unsigned_abs();
                Ok(Trouble { step: row.get("step")?, source, target, entry: entry(row)?, times })
            };
            statement.query_map(params![from, until, most as i64], trouble)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// The repository that was last opened for a target, up to now.
    pub fn repository(&self, target: &str) -> Result<Option<RepositoryId>, JournalError> {
        let find = "SELECT repository FROM steps WHERE target = ? AND repository IS NOT NULL AND ended <= ? ORDER BY ended DESC, id DESC LIMIT 1";
        let now = seconds(SystemTime::now());
        let found = self.db.query_row(find, params![target, now], |row| row.get::<_, String>(0)).optional();
        Ok(found.map_err(|e| self.failed(e))?.and_then(|id| id.parse().ok()))
    }

    /// Forgets all steps on a target, since it has a new repository.
    pub fn forget_target(&self, target: &str) -> Result<(), JournalError> {
        let deleted = self.db.execute("DELETE FROM steps WHERE target = ?", [target]);
        deleted.map(drop).map_err(|e| self.failed(e))
    }

    /// Whether such a step is due on a target, counted from the beginning of the last one that was completed. Entries of a clock
    /// that was ahead do not count.
    pub fn is_due(&self, step: Step, target: &str, every: Duration) -> Result<bool, JournalError> {
        let (now, of) = (seconds(SystemTime::now()), Subject { step, source: None, target: Some(target) });
        let (every, (part, most)) = (every.as_secs_f64(), EARLY);
        let newest = self.last(of, &Ending::COMPLETED, now)?;
        let age = |newest: Entry| (now - newest.ended) as f64 + newest.seconds;
        Ok(newest.is_none_or(|newest| age(newest) >= every - (every * part).min(most)))
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let number = |column: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(i64::unsigned_abs));
    let counts = match (number("files")?, number("bytes")?, number("stored_bytes")?, number("problems")?) {
        (Some(files), Some(bytes), Some(stored_bytes), Some(problems)) => {
            Some(Counts { files, bytes, stored_bytes, problems })
        }
        _ => None,
    };
    Ok(Entry {
        ended: row.get("ended")?,
        seconds: row.get("seconds")?,
        ending: Ending::named(&row.get::<_, String>("outcome")?),
        message: row.get("message")?,
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
    open_private(path, OpenOptions::new().write(true)).map(drop)
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
            repository: None,
            outcome,
            counts: None,
            duration: Duration::from_secs(1),
        }
    }

    /// Waits until this holds: a program that another test is starting may have a copy of a lock.
    #[track_caller]
    fn soon(holds: impl Fn() -> bool) {
        let begin = SystemTime::now();
        while !holds() {
            assert!(begin.elapsed().unwrap() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn only_completed_steps_count() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let journal = Journal::open(&state).unwrap();
        let hour = Duration::from_secs(3600);
        let is_due = |journal: &Journal| journal.is_due(Step::Prune, "nas", hour).unwrap();
        assert!(is_due(&journal));
        journal.add(&row(Outcome::Failed(Failed::new("x")))).unwrap();
        journal.add(&row(Outcome::Skipped("x".into()))).unwrap();
        assert!(is_due(&journal));
        journal.add(&row(Outcome::Done("x".into()))).unwrap();
        drop(journal);
        let journal = Journal::open(&state).unwrap();
        assert!(!is_due(&journal));
        assert!(journal.is_due(Step::Prune, "other", hour).unwrap());
        assert!(journal.is_due(Step::Backup, "nas", hour).unwrap());
        assert!(journal.is_due(Step::Prune, "nas", Duration::ZERO).unwrap());
        let mode = std::fs::metadata(state.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn runs_that_begin_a_little_earlier_than_the_last_one_do_not_miss_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        const DAY: i64 = 24 * 60 * 60;
        let is_due = |every: i64, ago: i64, took: f64| {
            journal.db.execute("DELETE FROM steps", []).unwrap();
            journal.add(&row(Outcome::Done("x".into()))).unwrap();
            journal.db.execute("UPDATE steps SET ended = ended - ?, seconds = ?", params![ago, took]).unwrap();
            journal.is_due(Step::Prune, "nas", Duration::from_secs(every.unsigned_abs())).unwrap()
        };
        // A timer with a random delay of an hour, and a prune that took two hours.
        assert!(is_due(7 * DAY, 7 * DAY - 3600, 0.0) && is_due(7 * DAY, 7 * DAY - 3 * 3600, 7200.0));
        assert!(is_due(DAY, DAY - 2 * 3600, 0.0));
        // Not on the day before, whatever the interval is.
        assert!(!is_due(7 * DAY, 6 * DAY + 3600, 0.0) && !is_due(90 * DAY, 89 * DAY + 3600, 0.0));
        assert!(!is_due(DAY, DAY / 2, 3600.0) && !is_due(3600, 3000, 0.0));
    }

    #[test]
    fn the_last_entries_of_a_step_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let of = |source| Subject { step: Step::Backup, source: Some(source), target: Some("nas") };
        assert_eq!(journal.last(of("a"), &Ending::TRIED, i64::MAX).unwrap(), None);
        let counts = Some(Counts { files: 1, bytes: 2, stored_bytes: 3, problems: 4 });
        let backup = |source: &str, outcome| Row { step: Step::Backup, source: Some(source.into()), ..row(outcome) };
        journal.add(&Row { counts, ..backup("a", Outcome::Done("x".into())) }).unwrap();
        journal.add(&backup("b", Outcome::Failed(Failed::new("why")))).unwrap();
        journal.add(&backup("a", Outcome::Skipped("x".into()))).unwrap();
        let last = |source, endings: &[Ending]| journal.last(of(source), endings, i64::MAX).unwrap();
        let tried = last("a", &Ending::TRIED).unwrap();
        assert_eq!((tried.ending, tried.counts), (Ending::Done, counts));
        assert_eq!(last("a", &Ending::ALL).unwrap().ending, Ending::Skipped);
        assert_eq!(last("b", &Ending::TRIED).unwrap().message, "why");
        assert_eq!(last("b", &Ending::COMPLETED), None);
        assert_eq!(journal.between(of("a"), tried.ended - 1, i64::MAX).unwrap().len(), 2);
        assert_eq!(journal.between(of("a"), tried.ended + 9, i64::MAX).unwrap(), []);
        // Entries of a clock that was ahead do not count.
        assert_eq!(journal.last(of("a"), &Ending::ALL, tried.ended - 9).unwrap(), None);
    }

    #[test]
    fn the_repository_of_a_target_and_the_code_of_the_last_run_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!((journal.repository("nas").unwrap(), journal.last_run().unwrap()), (None, None));
        let repository = Some(RepositoryId::random());
        journal.add(&Row { repository, ..row(Outcome::Done("x".into())) }).unwrap();
        journal.add(&row(Outcome::Failed(Failed::new("x")))).unwrap();
        assert_eq!((journal.repository("nas").unwrap(), journal.repository("usb").unwrap()), (repository, None));
        let code = |journal: &Journal| journal.last_run().unwrap().map(|run| run.code);
        [0, 10].iter().for_each(|code| journal.end_run(journal.begin_run().unwrap(), *code).unwrap());
        assert_eq!(code(&journal), Some(10));
        // One that runs, and one whose process has ended.
        let running = journal.begin_run().unwrap();
        assert_eq!(code(&Journal::open(folder.path()).unwrap()), Some(10));
        drop(running);
        soon(|| code(&Journal::open(folder.path()).unwrap()) == Some(137));
    }

    #[test]
    fn entries_of_a_clock_that_was_ahead_do_not_hide_later_ones() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let is_due = || journal.is_due(Step::Prune, "nas", Duration::from_secs(3600)).unwrap();
        let [before, after] = [RepositoryId::random(), RepositoryId::random()].map(Some);
        journal.add(&Row { repository: before, ..row(Outcome::Done("x".into())) }).unwrap();
        journal.db.execute("UPDATE steps SET ended = ended + 86400", []).unwrap();
        assert!(is_due());
        journal.add(&Row { repository: after, ..row(Outcome::Done("x".into())) }).unwrap();
        assert!(!is_due());
        assert_eq!(journal.repository("nas").unwrap(), after);
    }

    #[test]
    fn only_steps_that_no_process_holds_are_ended() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path()).unwrap();
        let journal = open();
        let subject = |source| Subject { step: Step::Backup, source: Some(source), target: Some("nas") };
        let begun = journal.begin(&[subject("a"), subject("b"), subject("c")]).unwrap();
        let found = |source| open().last(subject(source), &Ending::ALL, i64::MAX).unwrap();
        assert_eq!(["a", "b", "c"].map(found), [const { None }; 3]);
        assert_eq!(open().between(subject("a"), 0, i64::MAX).unwrap(), []);
        let [a, b, c] = begun.try_into().unwrap();
        let done = Row { step: Step::Backup, source: Some("a".into()), ..row(Outcome::Done("x".into())) };
        journal.end(a, &done).unwrap();
        journal.cancel(b).unwrap();
        drop(c);
        assert_eq!((found("a").unwrap().ending, found("b")), (Ending::Done, None));
        soon(|| found("c").is_some());
        let killed = found("c").unwrap();
        assert_eq!((killed.ending, killed.message.as_str()), (Ending::Failed, KILLED));
        assert_eq!(open().between(subject("a"), 0, i64::MAX).unwrap().len(), 1);
    }

    #[test]
    fn entries_of_years_ago_are_removed_unless_they_are_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let of = Subject { step: Step::Prune, source: None, target: Some("nas") };
        let has_old = || journal.between(of, 0, i64::MAX).unwrap().iter().any(|entry| entry.message == "old");
        journal.add(&row(Outcome::Done("old".into()))).unwrap();
        journal.db.execute("UPDATE steps SET ended = ended - ?", [KEPT + 10]).unwrap();
        // To a clock that is years ahead, this looks the same.
        journal.add(&row(Outcome::Done("new".into()))).unwrap();
        assert!(has_old());
        let many = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
            INSERT INTO steps (ended, seconds, step, outcome, message) SELECT unixepoch(), 0, 'check', 'done', '' FROM numbers";
        journal.db.execute(many, [LAST]).unwrap();
        journal.add(&row(Outcome::Done("new".into()))).unwrap();
        assert!(!has_old());
    }

    #[test]
    fn a_journal_of_another_version_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let version =
            |journal: &Journal| journal.db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(version(&journal), Ok(SCHEMA));
        for other in [SCHEMA - 1, SCHEMA + 1] {
            journal.db.pragma_update(None, "user_version", other).unwrap();
            for opened in [Journal::open(folder.path()).map(Some), Journal::view(folder.path())] {
                assert!(matches!(opened, Err(JournalError::Schema { found, .. }) if found == other));
            }
            assert_eq!(version(&journal), Ok(other));
        }
    }

    #[test]
    fn a_damaged_journal_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("journal.sqlite"), [7; 5000]).unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("journal.sqlite is damaged") && text.contains("move the file away"), "{text}");
        // The message has its cause once.
        assert_eq!(text.matches("not a database").count(), 1, "{text}");
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn damage_that_is_found_later_is_reported_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.add(&row(Outcome::Done("x".into()))).unwrap();
        journal.db.execute_batch("PRAGMA writable_schema = on; DELETE FROM sqlite_schema").unwrap();
        drop(journal);
        let journal = Journal::open(folder.path());
        assert!(matches!(journal, Err(JournalError::Damaged { .. })), "{journal:?}");
    }
}
