//! A repository for tests of the parts that store.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::blocks::BlockStore;
use super::nodes::Nodes;
use super::publisher::Publisher;
use super::seal::Sealing;
use crate::catalog::{Catalog, Trust};
use crate::crypt::{SecretKey, Signer};
use crate::format::id::{CatalogId, ObjectId};
use crate::inventory::{READ_AGAIN, host_key};
use crate::monitor::Silent;
use crate::repository::{ReadmeKeys, Repository, Writer};
use crate::session::{self, Checks, Mend, Session};
use crate::state::RepositoryState;

/// Chunks of files below this many bytes are gathered.
pub(super) const MERGE_UNDER: usize = 1000;

/// A new, unencrypted repository, and this machine's state.
pub(super) struct Site {
    folder: TempDir,
    pub(super) repository: Repository,
}

impl Site {
    pub(super) fn new() -> Self {
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
        Catalog::create(&state.catalog_path(), trust.clone()).unwrap().commit().unwrap();
        repository.keys().put_host(&certificate).unwrap();
        let writer = Writer::new(&repository, Signer::new(host).unwrap(), &certificate, &[]).unwrap();
        let secrets = trust.secrets(std::slice::from_ref(&certificate)).unwrap();
        writer.put_secrets(ObjectId::random(), &secrets).unwrap();
        repository.finish(&ReadmeKeys { host: &trust.host, owner: None }).unwrap();
        Site { folder, repository }
    }

    /// The number of objects in a folder of the repository.
    pub(super) fn count(&self, folder: &str) -> usize {
        self.repository.target().list(folder).unwrap().len()
    }

    /// Runs a test with a publisher that never commits by itself.
    pub(super) fn with_publisher<T>(&self, test: impl FnOnce(Publisher<'_>) -> T) -> T {
        let (repository, stop) = (&self.repository, AtomicBool::new(false));
        let state = RepositoryState::new(&self.folder.path().join("state"), repository.id());
        let lock = session::lock(&state, Duration::ZERO, &Silent, &stop).unwrap();
        let (key, checks) = (host_key(&state).unwrap(), Checks { mend: Mend::No, recheck: READ_AGAIN });
        let (session, catalog) = Session::open(repository, &state, &lock, key, checks, &Silent, &stop).unwrap();
        thread::scope(|threads| {
            let (sealing, _more) = Sealing::start(threads, session.packs(), None, 1).unwrap();
            test(Publisher::new(&session, catalog, sealing, Duration::MAX, &Silent))
        })
    }

    pub(super) fn with_blocks<T>(&self, test: impl FnOnce(BlockStore<'_>) -> T) -> T {
        self.with_publisher(|publisher| test(BlockStore::new(publisher, MERGE_UNDER).unwrap()))
    }

    pub(super) fn with_nodes<T>(&self, test: impl FnOnce(Nodes<'_>) -> T) -> T {
        self.with_blocks(|blocks| test(Nodes::new(blocks)))
    }
}
