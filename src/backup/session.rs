//! A run that may write: it holds the lock, and has found everything as it was left.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use crate::catalog::{Catalog, Trust};
use crate::crypt::{Certificate, Opener, SecretKey, Signer};
use crate::format::generation::Generation;
use crate::repository::{Access, Repository, Writer};
use crate::state::{Lock, RepositoryState};
use crate::target::ErrorKind;

/// A run that may write to a repository.
pub(super) struct Session<'r> {
    pub(super) repository: &'r Repository,
    pub(super) writer: Writer<'r>,
    pub(super) trust: Trust,
    /// Opens what this machine signed and may read.
    pub(super) access: Access,
    /// The last run that wrote did not come to its end.
    pub(super) after_unfinished: bool,
    /// The number of this run.
    pub(super) generation: u64,
    /// The target knows of this run.
    announced: AtomicBool,
    _lock: Lock,
}

impl<'r> Session<'r> {
    /// Takes the lock, and compares what the target shows with what this machine trusts. Nothing is
    /// written to the target yet.
    pub(super) fn open(repository: &'r Repository, state: &Path) -> Result<(Self, Catalog), Error> {
        let state = RepositoryState::new(state, repository.id());
        let key = host_key(&state)?;
        let lock = state.lock()?;
        let mut catalog = Catalog::open(&state.catalog_path(), repository.id())?;
        let trust = catalog.trust().clone();
        let host = key.certificate();
        compare(repository, &trust, &host)?;
        let access = Access::new(Some(Opener::new(key.clone())?), vec![host.clone()]);
        let generation = next_generation(repository, &access, &catalog)?;
        let after_unfinished = catalog.is_unfinished()?;
        if after_unfinished {
            // What a killed run left in sight may not be on disk yet, and is relied on from here on.
            repository.target().sync()?;
        }
        settle_snapshots(repository, &mut catalog)?;
        let writer = Writer::new(repository, Signer::new(key)?, &host, &trust.recipients)?;
        let announced = AtomicBool::new(false);
        let session =
            Session { repository, writer, trust, access, after_unfinished, generation, announced, _lock: lock };
        Ok((session, catalog))
    }

    /// Announces this run at the target, before it writes anything else there. Only one run can have this
    /// number.
    pub(super) fn announce(&self, catalog: &mut Catalog) -> Result<(), Error> {
        if self.announced.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        catalog.intend_generation(self.generation)?;
        catalog.commit()?;
        let generation = Generation { number: self.generation, catalog: self.trust.catalog };
        match self.writer.put_generation(&generation) {
            Err(crate::repository::Error::Target(e)) if e.kind == ErrorKind::AlreadyExists => {
                Err(Error::OtherWriter { found: self.generation, known: self.generation - 1 })
            }
            other => other.map_err(Error::from),
        }?;
        Ok(catalog.set_generation(self.generation)?)
    }
}

/// The catalog of a run that only looks, after the same comparisons. It takes no lock and settles nothing, so what only
/// a killed run could have left is taken for that.
pub(super) fn look(repository: &Repository, state: &Path) -> Result<Catalog, Error> {
    let state = RepositoryState::new(state, repository.id());
    let host = host_key(&state)?.certificate();
    let catalog = Catalog::view(&state.catalog_path(), repository.id())?;
    compare(repository, catalog.trust(), &host)?;
    let (known, _) = catalog.generation()?;
    let found = repository.generations()?.last().copied().unwrap_or(0);
    if found < known {
        return Err(Error::SetBack { found, known });
    }
    // Asked again: a run of our own may have begun meanwhile.
    let (known, intended) = catalog.generation()?;
    match found > known.max(intended) {
        true => Err(Error::OtherWriter { found, known }),
        false => Ok(catalog),
    }
}

fn host_key(state: &RepositoryState) -> Result<SecretKey, Error> {
    let no_host = || Error::NoHostKey { path: state.folder().join("host.key").display().to_string() };
    Ok(SecretKey::parse(&state.host_key()?.ok_or_else(no_host)?)?)
}

/// Compares the host key, and what the target shows, with what was fixed at init.
fn compare(repository: &Repository, trust: &Trust, host: &Certificate) -> Result<(), Error> {
    if host.fingerprint() != trust.host {
        return Err(Error::HostKey { found: host.fingerprint(), expected: trust.host.clone() });
    }
    let word = |encrypted| if encrypted { "encrypted" } else { "not encrypted" };
    if repository.encrypted() != trust.encrypted {
        return Err(Error::Encryption { found: word(repository.encrypted()), expected: word(trust.encrypted) });
    }
    let names = |certificates: &[Certificate]| {
        let mut names: Vec<_> = certificates.iter().map(|c| c.fingerprint().to_string()).collect();
        names.sort();
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        }
    };
    let (found, expected) = (names(&repository.keys().recipients()?), names(&trust.recipients));
    match found == expected {
        true => Ok(()),
        false => Err(Error::Recipients { found, expected }),
    }
}

/// The number of this run: one above the last, which must be this catalog's own.
fn next_generation(repository: &Repository, access: &Access, catalog: &Catalog) -> Result<u64, Error> {
    let (known, intended) = catalog.generation()?;
    let found = repository.generations()?.last().copied().unwrap_or(0);
    if found == known {
        return Ok(found + 1);
    }
    if found < known {
        return Err(Error::SetBack { found, known });
    }
    // A run that was killed between writing its number and noting that it did.
    if found == intended && access.generation(repository, found)?.catalog == catalog.trust().catalog {
        catalog.set_generation(found)?;
        return Ok(found + 1);
    }
    Err(Error::OtherWriter { found, known })
}

/// Finds out about snapshots that a killed run was about to write.
fn settle_snapshots(repository: &Repository, catalog: &mut Catalog) -> Result<(), Error> {
    for snapshot in catalog.snapshots()?.into_iter().filter(|snapshot| !snapshot.written) {
        match repository.target().length(&snapshot.name.object()) {
            Ok(_) => catalog.set_written(snapshot.name.id, None)?,
            Err(e) if e.kind == ErrorKind::NotFound => catalog.remove_snapshot(snapshot.name.id)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(catalog.commit()?)
}
