//! A repository for tests of runs that write.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tempfile::TempDir;

use super::{Checks, EarlyRuns, LockWait, Mend, Priority, Session, lock};
use crate::catalog::{Catalog, Folder, Trust};
use crate::crypt::{SecretKey, Signer};
use crate::format::id::{CatalogId, ObjectId};
use crate::inventory::{READ_AGAIN, host_key};
use crate::monitor::Silent;
use crate::repository::{ReadmeKeys, Repository, Writer};
use crate::state::RepositoryState;
use crate::storage::Target;
use crate::storage::testing::Memory;

/// A new, unencrypted repository, and this machine's state.
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) repository: Repository,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(&folder.path().join("repository").as_path().into(), false).unwrap();
        let host = SecretKey::generate_host(&[]).unwrap();
        let certificate = host.certificate();
        let state = RepositoryState::new(&folder.path().join("state"), repository.id());
        state.create().unwrap();
        state.put_host_key(&host.to_armored().unwrap()).unwrap();
        let trust = Trust {
            repository: repository.id(),
            catalog: CatalogId::random(),
            encrypted: false,
            seed: 1,
            host: certificate.fingerprint(),
            recipients: Vec::new(),
        };
        let id = ObjectId::random();
        let mut catalog = Catalog::create(&state.catalog_path(), trust.clone()).unwrap();
        catalog.add_document(Folder::Secrets(0), id, 0, &[]).unwrap();
        catalog.commit().unwrap();
        repository.keys().put_host(&certificate).unwrap();
        let writer = Writer::new(&repository, Signer::new(host).unwrap(), &certificate, &[]).unwrap();
        let secrets = trust.secrets(&certificate).unwrap();
        writer.put_secrets(id, &secrets).unwrap();
        repository.finish(&ReadmeKeys { host: &trust.host, owner: None }).unwrap();
        Site { folder, repository }
    }

    /// The same site with the repository in memory.
    pub(crate) fn in_memory() -> (Self, Memory) {
        let Site { folder, repository } = Site::new();
        let memory = Memory::default();
        let target = Target::new(Box::new(memory.clone()), "memory".into());
        for object in repository.target().list("").unwrap() {
            target.put(&object.name, &repository.target().get(&object.name, usize::MAX).unwrap()).unwrap();
        }
        (Site { folder, repository: Repository::at(target).unwrap() }, memory)
    }

    /// The number of objects in a folder of the repository.
    pub(crate) fn count(&self, folder: &str) -> usize {
        self.repository.target().list(folder).unwrap().len()
    }

    /// Runs a test with a session.
    pub(crate) fn with_session<T>(&self, test: impl FnOnce(&Session<'_>, Catalog) -> T) -> T {
        self.with_session_in(&self.repository, None, test)
    }

    /// The same with a repository that may have begun the reads of a session.
    pub(crate) fn with_session_in<T>(
        &self,
        repository: &Repository,
        early: Option<EarlyRuns>,
        test: impl FnOnce(&Session<'_>, Catalog) -> T,
    ) -> T {
        let stop = AtomicBool::new(false);
        let state = RepositoryState::new(&self.folder.path().join("state"), repository.id());
        let lock = lock(&state, LockWait::option(Duration::ZERO), Priority::Normal, &Silent, &stop).unwrap();
        let key = host_key(&state).unwrap();
        let checks = Checks { mend: Mend::No, recheck: READ_AGAIN, early, ..Checks::default() };
        let (session, catalog) = Session::open(repository, &lock, key, checks, &mut 0, &Silent, &stop).unwrap();
        test(&session, catalog)
    }
}
