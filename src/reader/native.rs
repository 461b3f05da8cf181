//! The reader as an [`Archive`].

use std::sync::Arc;
use std::time::Duration;

use super::blocks::NodeValue;
use super::error::Error;
use super::file::FileReader;
use super::open::Reader;
use super::tree::root_of;
use crate::archive::{self, Archive, EntryHandle, FileContent, Needs, OpenSnapshot, Page, SnapshotDirectory, Stamp};
use crate::crypt::Opener;
use crate::failure::Failure;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::SnapshotName;
use crate::repository;

impl Archive for Reader {
    fn id(&self) -> String {
        self.repository().id().to_string()
    }

    fn snapshots(&self) -> Result<Vec<SnapshotName>, archive::Error> {
        Ok(Reader::snapshots(self)?)
    }

    fn open(&self, name: &SnapshotName) -> Result<Arc<OpenSnapshot>, archive::Error> {
        let (snapshot, _) = self.snapshot(name)?;
        Ok(Arc::new(OpenSnapshot {
            name: snapshot.name.clone(),
            source: snapshot.source.clone(),
            root_path: snapshot.root_path.clone(),
            tags: snapshot.tags.clone(),
            statistics: snapshot.statistics,
            root: root_of(&snapshot)?,
        }))
    }

    fn begin(&self, snapshots: &[SnapshotName], sources: &[SourceId]) {
        Reader::begin(self, snapshots, sources);
    }

    fn forget_begun(&self, snapshots: &[SnapshotName]) {
        Reader::forget_begun(self, snapshots);
    }

    fn source_name(&self, id: SourceId) -> Result<String, archive::Error> {
        Ok(Reader::source_name(self, id)?)
    }

    fn forgotten_with_id(&self, prefix: &str) -> Option<SnapshotId> {
        Reader::forgotten_with_id(self, prefix)
    }

    fn is_forgotten(&self, name: &SnapshotName, error: &archive::Error) -> bool {
        error.cause::<Error>().is_some_and(Error::is_lost) && Reader::is_forgotten(self, name)
    }

    fn stamp(&self, name: &SnapshotName) -> Option<Stamp> {
        self.repository().target().stamp(&name.object()).ok()
    }

    fn lookup(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, archive::Error> {
        Ok(self.find_name(directory, name)?)
    }

    fn by_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, archive::Error> {
        Ok(self.find_rank(directory, rank)?)
    }

    fn list(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, archive::Error> {
        Ok(self.page(directory, from)?)
    }

    fn prefetch_limit(&self) -> usize {
        self.announced_files()
    }

    fn prefetch(&self, file: &EntryHandle) {
        self.prefetch_content(file);
    }

    fn prefetch_after(&self, directory: &EntryHandle) {
        if let Some((list, at)) = directory.in_list::<NodeValue>() {
            self.prefetch_directories(&list, at.saturating_add(1));
        }
    }

    fn shared_entries(
        &self,
        a: (&SnapshotDirectory, u64),
        b: (&SnapshotDirectory, u64),
    ) -> Result<u64, archive::Error> {
        Ok(Reader::shared_entries(self, a, b)?)
    }

    fn content(&self, file: &EntryHandle) -> Result<Arc<dyn FileContent>, archive::Error> {
        Ok(Arc::new(FileReader::new(self, file)?))
    }

    fn is_available(&self) -> bool {
        self.repository().is_there()
    }

    fn waited(&self) -> Duration {
        repository::waited()
    }

    fn is_permanent(&self, error: &archive::Error) -> bool {
        match error.cause::<Error>() {
            Some(Error::Encryption { .. }) => true,
            Some(Error::Repository(cause)) => match &**cause {
                repository::Error::Crypt { .. } if error.is_key_problem() => {
                    self.access().opener().is_some_and(|opener| !opener.is_slow())
                }
                repository::Error::Crypt { .. }
                | repository::Error::Format { .. }
                | repository::Error::UnknownSigner { .. } => true,
                _ => false,
            },
            _ => false,
        }
    }

    fn is_slow_to_open(&self) -> bool {
        self.access().opener().is_some_and(Opener::is_slow)
    }

    fn needs(&self) -> Needs {
        self.resources()
    }
}
