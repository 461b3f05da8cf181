//! A run that may write: it holds the lock, and its catalog claims nothing that the repository lacks.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, debug_span};

use super::announce::{Rivals, announce};
use super::early::EarlyRuns;
use super::error::Error;
use super::orphans::clean_up_unfinished;
use crate::catalog::{self, Catalog, Claims, Presence, Trust};
use crate::crypt::{Certificate, SecretKey, Signer};
use crate::format::generation::Generation;
use crate::format::id::RunId;
use crate::format::name::{self, GenerationName};
use crate::inventory::{self, Divergence, Inventory, Strange, host_access, host_key};
use crate::monitor::Monitor;
use crate::repository::{Access, Repository, Writer};
use crate::source::now;
use crate::state::{Lock, RepositoryState};
use crate::storage::{Ahead, ErrorKind};
use crate::sys::bounded::{KEYS, read_file};

/// The doubt about a repository without runs.
pub const NOTHING_YET: &str = "nothing was backed up yet";

/// Seconds that the clock may be behind the last backup without a warning. Clocks of two machines differ by less.
const CLOCK_TOLERANCE: i64 = 60;

/// The interval at which a wait checks for an interruption.
const POLL: Duration = Duration::from_millis(100);

/// Whether the whole catalog is verified before the run, and damaged rows are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// Rows are verified when they are used.
    No,
    /// The whole catalog is read first.
    Yes,
}

/// How long a backup relies on the look of another one for lost documents at the same server.
pub const LOOK_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Checks before a run.
#[derive(Debug, Clone, Copy)]
pub struct Checks<'c> {
    /// Whether to look for damage in the catalog.
    pub mend: Mend,
    /// Bytes of packs to verify again, oldest check first.
    pub recheck: u64,
    /// The identity of the target ([`Location::identity`](crate::storage::Location::identity)), if it is enough to look for
    /// lost documents there once a day.
    pub daily_at: Option<&'c str>,
    /// If the reads of the session were begun, the runs that were known before.
    pub early: Option<EarlyRuns>,
    /// The files with the certificates that the repository must be encrypted to; `None` if that is not compared.
    pub recipients: Option<&'c [PathBuf]>,
}

impl Default for Checks<'_> {
    /// As few as a run needs.
    fn default() -> Self {
        Checks { mend: Mend::No, recheck: 0, daily_at: None, early: None, recipients: None }
    }
}

/// A run that may write to a repository.
pub struct Session<'r> {
    repository: &'r Repository,
    writer: Writer<'r>,
    trust: Trust,
    /// Opens documents that this machine signed and may read.
    access: Access,
    /// Objects at or above the last generation that do not verify.
    strange: Mutex<Vec<Strange>>,
    /// Earlier runs that wrote and did not finish.
    unfinished: Vec<RunId>,
    /// The last generation before this run.
    last: Option<Generation>,
    /// This run rebuilt the catalog, or brought it into agreement with the repository.
    reconciled: bool,
    generation: u64,
    run: RunId,
    /// The generation of this run is at the target.
    announced: AtomicBool,
    /// The time at which it was written; `None` before that, and once [`Session::outlast_lag`] has found no other run.
    fresh: Mutex<Option<Instant>>,
    _lock: &'r Lock,
}

impl<'r> Session<'r> {
    /// Compares the target with the catalog and the keys that this machine trusts. A lost catalog is rebuilt; one that
    /// disagrees with the repository is corrected. `key` is the host key. Packs that are found lost are reported and
    /// added to `lost_packs`, even if opening fails later.
    pub fn open(
        repository: &'r Repository,
        lock: &'r Lock,
        key: SecretKey,
        checks: Checks<'_>,
        lost_packs: &mut u64,
        monitor: &dyn Monitor,
        stop: &AtomicBool,
    ) -> Result<(Self, Catalog), Error> {
        let _span = debug_span!("session", repository = %repository.id()).entered();
        let host = key.certificate();
        let access = host_access(&key)?;
        let inventory = Inventory { repository, access: &access, monitor, stop };
        let (mut catalog, built) = open_catalog(&inventory, lock, &host, checks.mend)?;
        let trust = catalog.trust().clone();
        compare(repository, &trust, &host)?;
        compare_recipients(&trust.recipients, checks.recipients)?;
        let is_look_due = checks.daily_at.is_none_or(|place| !lock.state().has_looked(place, LOOK_AGAIN));
        let mut reads = if is_look_due { inventory.reads_for_upkeep(&trust.recipients, &host) } else { Vec::new() };
        let runs = EarlyRuns::of(&catalog)?;
        if checks.early != Some(runs) {
            repository.target().forget_begun(&[Ahead::List(name::GENERATION.to_owned())]);
        }
        reads.extend(runs.reads());
        repository.target().reading_ahead(reads, move || {
            let inventory = Inventory { repository, access: &access, monitor, stop };
            if is_look_due {
                inventory.report_unknown_recipients(&trust.recipients)?;
            }
            warn_of_expiry(&trust.recipients, monitor);
            let mut number = choose_number(&inventory, &mut catalog, 0)?;
            if number.is_outdated {
                monitor.note("it has data that was removed since, so the catalog is rebuilt; every file is read once");
                drop(catalog);
                catalog = inventory::rebuild(&inventory, lock, &host.fingerprint())?.0;
                let next = number.generation;
                number = choose_number(&inventory, &mut catalog, next.saturating_sub(1))?;
                number.diverged = true;
            }
            let RunNumber { generation, last, strange, diverged, .. } = number;
            let mut session = Session {
                repository,
                writer: Writer::new(repository, Signer::new(key)?, &host, &trust.recipients)?,
                trust,
                access,
                unfinished: catalog.unfinished()?,
                last,
                reconciled: built || diverged,
                generation,
                strange: Mutex::new(strange),
                run: RunId::random(),
                announced: AtomicBool::new(false),
                fresh: Mutex::default(),
                _lock: lock,
            };
            repository.target().set_run(session.run.writer());
            if built || diverged {
                // So that the next run, or another machine, finds a generation that explains the difference.
                session.announce(&mut catalog)?;
                catalog.commit()?;
                let inventory = Inventory { repository, access: &session.access, monitor, stop };
                // A run that had begun before may have written until now. From now on it finds this one, and stops. Listings
                // that lag behind tell nothing about that.
                let is_listed_at_once = repository.target().capabilities().lag.is_zero();
                if is_listed_at_once && inventory.doubt_of_documents(&catalog)?.is_some() {
                    if agree(&inventory, &mut catalog, session.last.as_ref())? {
                        drop(catalog);
                        catalog = inventory::rebuild(&inventory, lock, &host.fingerprint())?.0;
                    }
                    session.announce_again(&mut catalog)?;
                    catalog.commit()?;
                }
            }
            let inventory = Inventory { repository, access: &session.access, monitor, stop };
            if is_look_due || session.reconciled {
                let lost = inventory.lost(&catalog, lock.state(), &host)?;
                if !lost.is_empty() {
                    // A run that finds a document lost removes nothing.
                    session.reconciled |= inventory.accept_loss(&lost, &catalog, session.generation)?;
                    session.announce(&mut catalog)?;
                    inventory.put_back(lost, &catalog, &session.writer, &host)?;
                }
                if let Some(place) = checks.daily_at.filter(|_| is_look_due)
                    && let Err(error) = lock.state().note_look(place)
                {
                    // The next backup looks again.
                    debug!(%error, "cannot note the search for lost documents");
                }
            }
            report_clock_behind(&catalog, monitor)?;
            session.recover(&mut catalog, checks.recheck, &inventory, lost_packs)?;
            debug!(
                generation = session.generation,
                run = %session.run,
                unfinished = session.unfinished.len(),
                diverged,
                lost_packs,
                "session opened"
            );
            Ok((session, catalog))
        })
    }

    /// The repository that the run writes to.
    pub fn repository(&self) -> &'r Repository {
        self.repository
    }

    /// Signs and seals the documents of this run.
    pub fn writer(&self) -> &Writer<'r> {
        &self.writer
    }

    /// The keys that the catalog trusts, and the chunker's seed.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The generation of this run.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The id of this run. It is part of the names of its packs.
    pub(super) fn run(&self) -> RunId {
        self.run
    }

    /// Cleans up after runs that did not finish, and verifies some packs again. Adds the number of lost packs to
    /// `lost_packs`.
    fn recover(
        &self,
        catalog: &mut Catalog,
        recheck: u64,
        inventory: &Inventory<'_>,
        lost_packs: &mut u64,
    ) -> Result<(), Error> {
        if !self.unfinished.is_empty() {
            // Objects of a killed run may be visible and not yet on disk; from here on they are relied on.
            self.repository.target().settle(&name::FOLDERS)?;
            // Before this run is announced, so that its census counts them.
            inventory.learn_new_documents(catalog)?;
        }
        look_for_snapshots(self.repository, catalog)?;
        // These packs are condemned durably, so a second attempt after an error does not find them again.
        *lost_packs += inventory.recheck(catalog, recheck, now().seconds, random)?.condemned.packs;
        if !self.unfinished.is_empty() {
            // From here on, a concurrent run with a copy of this catalog fails.
            let remover = self.remover(catalog)?;
            self.outlast_lag(inventory)?;
            clean_up_unfinished(inventory, catalog, &self.unfinished, &remover)?;
            // The run was killed before it wrote them. A catalog that was learnt may not know all of them.
            if catalog.has_stale_tombstones()? && !catalog.is_learnt()? {
                self.put_tombstones(catalog)?;
            }
        }
        Ok(())
    }

    /// Announces this run at the target, before it writes anything else there. Fails if another run began at the same time.
    pub fn announce(&self, catalog: &mut Catalog) -> Result<(), Error> {
        if self.announced.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.with_rivals(|rivals| announce(catalog, &self.writer, rivals, self.generation, self.run))?;
        *self.fresh() = Some(Instant::now());
        Ok(())
    }

    /// Waits until listings show all runs that may have ended without having seen this one, and looks for them again. A no-op
    /// on targets whose listings do not lag behind, and after it succeeded once.
    pub fn outlast_lag(&self, inventory: &Inventory<'_>) -> Result<(), Error> {
        // Such a run began before its listings had to show this one, and shows itself as long after that.
        let lag = 2 * self.repository.target().capabilities().lag;
        let announced = *self.fresh();
        let Some(announced) = announced.filter(|_| !lag.is_zero()) else { return Ok(()) };
        let left = || lag.saturating_sub(announced.elapsed());
        if !left().is_zero() {
            let seconds = left().as_secs_f64().ceil();
            inventory.monitor.note(&format!(
                "waiting {seconds} s before anything is removed, since the server's listings may lag behind"
            ));
        }
        while !left().is_zero() {
            inventory.check_interrupted()?;
            sleep(left().min(POLL));
        }
        self.still_alone()?;
        *self.fresh() = None;
        Ok(())
    }

    fn fresh(&self) -> MutexGuard<'_, Option<Instant>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the run is announced.
    pub(super) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// Opens documents that this machine may read.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Begins the listing of the next call of [`Session::still_alone`], over a network. It is not older than this call.
    pub(super) fn begin_to_look(&self) {
        let (listing, target) = (Ahead::List(name::GENERATION.to_owned()), self.repository.target());
        target.forget_begun(std::slice::from_ref(&listing));
        target.begin(vec![listing]);
    }

    /// Fails if another machine with a copy of this catalog has started a run: it may have deleted packs that no index
    /// lists yet.
    pub fn still_alone(&self) -> Result<(), Error> {
        let own = GenerationName::of_run(self.generation, self.run);
        if !self.with_rivals(|rivals| rivals.look(own))? {
            // A listing may be stale; the object itself is not.
            let found = self.repository.target().length(&own.object());
            match found {
                Err(e) if e.kind == ErrorKind::NotFound => return Err(Error::SetBack { generation: self.generation }),
                other => _ = other?,
            }
        }
        Ok(())
    }

    /// Ends the generation of this run and begins another one: from then on, no run is left that began before the first.
    pub fn announce_again(&mut self, catalog: &mut Catalog) -> Result<(), Error> {
        self.still_alone()?;
        if self.generation >= name::LAST_NUMBER {
            return Err(inventory::Error::NoNumber { folder: name::GENERATION }.into());
        }
        self.generation += 1;
        self.run = RunId::random();
        self.announced.store(false, Ordering::Relaxed);
        self.repository.target().set_run(self.run.writer());
        self.announce(catalog)
    }

    /// Returns the reason why this run may not remove data, if there is one. Otherwise the catalog counts as complete from
    /// now on.
    ///
    /// A run that rebuilt or reconciled the catalog removes nothing. A later one may if the census of the last generation
    /// proves that listings are complete.
    pub fn doubt(&self, catalog: &mut Catalog, inventory: &Inventory<'_>) -> Result<Option<String>, Error> {
        if self.reconciled {
            return Ok(Some(
                "this run brought the catalog into agreement with the repository; run the command again".into(),
            ));
        }
        let strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = strange.first() {
            return Ok(Some(first.doubt()));
        }
        drop(strange);
        let Some(last) = &self.last else { return Ok(Some(NOTHING_YET.into())) };
        let doubt = inventory.doubt_of_listings(catalog, last)?;
        if doubt.is_none() && catalog.is_learnt()? {
            catalog.set_proved()?;
            catalog.commit()?;
        }
        Ok(doubt)
    }

    /// The number of the last generation before this run; 0 if there was none.
    pub fn last_generation(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.number)
    }

    fn with_rivals<T>(&self, look: impl FnOnce(&mut Rivals<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut known = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        let strange = std::mem::take(&mut *known);
        let mut rivals = Rivals { repository: self.repository, access: &self.access, strange };
        let found = look(&mut rivals);
        *known = rivals.strange;
        found
    }
}

/// The generation of a run.
struct RunNumber {
    generation: u64,
    /// The last generation before it.
    last: Option<Generation>,
    /// Objects at or above the last generation that do not verify.
    strange: Vec<Strange>,
    /// The repository is not as the catalog knows it.
    diverged: bool,
    /// See [`inventory::Reconciled::is_outdated`].
    is_outdated: bool,
}

/// Chooses the generation of this run, above `above`. If the repository is not as the catalog knows it, corrects the catalog.
fn choose_number(inventory: &Inventory<'_>, catalog: &mut Catalog, above: u64) -> Result<RunNumber, Error> {
    let mut is_outdated = false;
    let monitor = inventory.monitor;
    let (known, _) = catalog.runs()?;
    let generations = inventory.generations(catalog)?;
    catalog.note_strange_generations(&generations.learnt)?;
    for warning in generations.warnings() {
        monitor.note(&warning);
    }
    let divergence = generations.divergence(catalog)?;
    let last = match divergence {
        Divergence::AsLeft => known.number,
        Divergence::Begun { number, run } => {
            catalog.set_run(number, run)?;
            number
        }
        Divergence::SetBack { found, known } | Divergence::Forgotten { found, known } => found.max(known),
    };
    // Another machine with a copy of the catalog may have removed packs in a run that cannot be read.
    let is_unread = || generations.strange.iter().any(|strange| strange.unread.is_some());
    let message = divergence.message().or_else(|| is_unread().then(|| "a run of the repository cannot be read".into()));
    if let Some(message) = &message {
        monitor.note(&format!("{message}. Packs are compared with the catalog before anything is stored"));
        is_outdated = agree(inventory, catalog, generations.last.first())?;
    }
    // Generations may have been lost too.
    let generation = generations.next(last.max(catalog.last_sequence()?).max(above))?;
    let last = generations.last.into_iter().next();
    Ok(RunNumber { generation, last, strange: generations.strange, diverged: message.is_some(), is_outdated })
}

/// Brings the catalog into agreement with the repository, whose last generation is `last`. Returns whether it is outdated:
/// see [`inventory::Reconciled::is_outdated`].
fn agree(inventory: &Inventory<'_>, catalog: &mut Catalog, last: Option<&Generation>) -> Result<bool, Error> {
    let found = inventory.reconcile(catalog)?;
    inventory.prove(catalog, last)?;
    inventory.monitor.note(&format!("the catalog agrees with the repository now: {}", found.summary()));
    Ok(found.is_outdated)
}

/// Opens the catalog. Returns true if it had to be rebuilt.
fn open_catalog(
    inventory: &Inventory<'_>,
    lock: &Lock,
    host: &Certificate,
    mend: Mend,
) -> Result<(Catalog, bool), Error> {
    let open = || -> Result<Catalog, inventory::Error> {
        let mut catalog = Catalog::open(&lock.state().catalog_path(), inventory.repository.id())?;
        if mend == Mend::Yes {
            let Claims { chunks, nodes } = inventory.mend(&mut catalog)?;
            inventory.monitor.note(&format!(
                "the catalog was repaired: {nodes} parts of directories or large files are read again; the locations of {chunks} chunks were taken from the repository"
            ));
        }
        Ok(catalog)
    };
    match open() {
        Err(inventory::Error::Catalog(error)) if error.is_lost() => {
            inventory.monitor.note(&format!(
                "{error}. It is rebuilt from the repository now; every file is read once, and known content is not stored again"
            ));
            let (catalog, found) = inventory::rebuild(inventory, lock, &host.fingerprint())?;
            inventory.monitor.note(&format!("the catalog was rebuilt: {}", found.summary()));
            Ok((catalog, true))
        }
        other => Ok((other?, false)),
    }
}

/// A random number in [0, 1).
fn random() -> Result<f64, inventory::Error> {
    // The bits of the mantissa.
    Ok((getrandom::u64()? >> 11) as f64 / (1u64 << 53) as f64)
}

/// Opens the catalog for a dry run, after the same comparisons. Takes no lock and changes nothing; reports the differences
/// that a backup would correct first. Then `read` reads it.
pub fn look<T, E: From<Error> + From<catalog::Error>>(
    repository: &Repository,
    state: &RepositoryState,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
    read: impl FnOnce(Catalog) -> Result<T, E>,
) -> Result<T, E> {
    let key = host_key(state).map_err(Error::from)?;
    let view = match Catalog::view(&state.catalog_path(), repository.id()) {
        Err(source) if source.is_lost() => return Err(Error::NothingToCompare { source }.into()),
        view => view?,
    };
    view.read(|catalog| {
        report_differences(&catalog, &key, repository, state, monitor, stop)?;
        read(catalog)
    })
}

/// Reports the differences between the catalog and the repository.
fn report_differences(
    catalog: &Catalog,
    key: &SecretKey,
    repository: &Repository,
    state: &RepositoryState,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let host = key.certificate();
    compare(repository, catalog.trust(), &host)?;
    warn_of_expiry(&catalog.trust().recipients, monitor);
    let access = host_access(key)?;
    let inventory = Inventory { repository, access: &access, monitor, stop };
    for lost in inventory.lost(catalog, state, &host)? {
        monitor.note(&format!("{}: {}", lost.object, lost.message()));
    }
    let again = || {
        let view = Catalog::view(&state.catalog_path(), repository.id())?;
        view.read(|catalog| inventory.divergence(&catalog))
    };
    if inventory.divergence(catalog)?.message().is_some()
        // Checked again: a backup of this machine may have started meanwhile.
        && let Some(message) = again()?.message()
    {
        monitor
            .note(&format!("{message}. A backup compares packs with the catalog first, and stores lost content again"));
    }
    Ok(())
}

/// Reports a clock that is behind the last snapshot: it is wrong now, or was wrong then.
fn report_clock_behind(catalog: &Catalog, monitor: &dyn Monitor) -> Result<(), Error> {
    let shown = |seconds| jiff::Timestamp::from_second(seconds).unwrap_or_default();
    let newest = catalog.newest_time()?;
    if let Some(newest) = newest.as_deref().and_then(name::parse_time)
        && newest.saturating_sub(now().seconds) > CLOCK_TOLERANCE
    {
        monitor.note(&format!(
            "the clock ({}) is behind the start of the last backup ({}); snapshots are listed in the order in which they were made",
            shown(now().seconds),
            shown(newest)
        ));
    }
    Ok(())
}

/// Time before the expiry of a certificate from which on every run warns.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Reports certificates that expire soon: backups fail after that.
fn warn_of_expiry(recipients: &[Certificate], monitor: &dyn Monitor) {
    let soon = SystemTime::now() + WARN_BEFORE;
    for recipient in recipients {
        if let Some(expiry) = recipient.expiry().filter(|expiry| *expiry < soon) {
            let day = jiff::Timestamp::try_from(expiry).map(|expiry| expiry.strftime("%Y-%m-%d").to_string());
            monitor.note(&format!(
                "the certificate {recipient} expires on {}; then backups fail. Give a renewed one to `brackfs recipients update`",
                day.unwrap_or_default()
            ));
        }
    }
}

/// Compares the host key and the target with the trust established at init.
fn compare(repository: &Repository, trust: &Trust, host: &Certificate) -> Result<(), Error> {
    if host.fingerprint() != trust.host {
        return Err(Error::HostKey { found: host.fingerprint(), expected: trust.host.clone() });
    }
    let word = |encrypted| if encrypted { "encrypted" } else { "not encrypted" };
    if repository.encrypted() != trust.encrypted {
        return Err(Error::Encryption { found: word(repository.encrypted()), expected: word(trust.encrypted) });
    }
    Ok(())
}

/// Compares the recipients with those that are expected, by their fingerprints: renewed certificates keep theirs.
fn compare_recipients(found: &[Certificate], expected: Option<&[PathBuf]>) -> Result<(), Error> {
    let Some(files) = expected else { return Ok(()) };
    let read = |path: &PathBuf| {
        let failed = |why: String| Error::BadRecipient { path: path.clone(), why };
        let bytes = read_file(path, KEYS).map_err(|e| failed(e.to_string()))?;
        Certificate::parse(&bytes).map_err(|e| failed(e.to_string()))
    };
    let expected = &files.iter().map(read).collect::<Result<Vec<_>, _>>()?[..];
    let fingerprints = |them: &[Certificate]| them.iter().map(Certificate::fingerprint).collect::<BTreeSet<_>>();
    if fingerprints(found) == fingerprints(expected) {
        return Ok(());
    }
    let names = |them: &[Certificate]| match them {
        [] => "nobody".to_owned(),
        them => them.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
    };
    Err(Error::OtherRecipients { found: names(found), expected: names(expected) })
}

/// Looks for snapshots that a killed run was about to write, and for those that were missing before: they may exist by
/// now.
fn look_for_snapshots(repository: &Repository, catalog: &mut Catalog) -> Result<(), Error> {
    let mut unsettled: Vec<_> = catalog.snapshots()?;
    unsettled.retain(|snapshot| {
        matches!(snapshot.presence, Presence::Intended | Presence::NotFound | Presence::NeverWritten)
    });
    if !unsettled.is_empty() {
        // One listing: separate lookups take a round trip each.
        let there: HashSet<_> = repository.snapshots()?.into_iter().collect();
        for snapshot in unsettled {
            match (there.contains(&snapshot.name), snapshot.presence) {
                (true, _) => catalog.set_there(snapshot.name.id, None)?,
                (false, Presence::Intended) => catalog.set_missing(snapshot.name.id, Presence::NeverWritten)?,
                (false, _) => {}
            }
        }
    }
    Ok(catalog.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::fixture::Site;
    use crate::storage::Storage;

    /// Announces a run, and returns its number.
    fn announced(session: &Session<'_>, mut catalog: Catalog) -> u64 {
        session.announce(&mut catalog).unwrap();
        catalog.commit().unwrap();
        session.generation()
    }

    #[test]
    fn a_run_is_known_before_a_listing_shows_it() {
        let (site, memory) = Site::in_memory();
        for is_late in [false, true] {
            memory.set_late(is_late);
            for _ in 0..3 {
                let number = site.with_session(announced);
                site.with_session(|session, _| {
                    assert!(!session.reconciled);
                    assert_eq!(session.generation(), number + 1);
                });
            }
        }
    }

    #[test]
    fn a_run_whose_object_is_gone_was_set_back() {
        let (site, memory) = Site::in_memory();
        site.with_session(announced);
        let generation = memory.names().into_iter().find(|name| name.starts_with(name::GENERATION)).unwrap();
        Storage::remove(&memory, &generation).unwrap();
        site.with_session(|session, _| assert!(session.reconciled));
    }
}
