//! Storage in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::storage::{Capabilities, Error, ErrorKind, ObjectInfo, Spool, Spools, Stamp, Storage};

/// The number of spools at a time.
const SPOOLS: usize = 8;
/// The number of objects that backups store at the same time.
const LANES: usize = 3;
/// The maximum size of an object, in bytes.
const LARGEST: u64 = 1 << 30;

#[derive(Debug, Clone)]
struct Object {
    bytes: Arc<Vec<u8>>,
    version: u64,
}

/// Objects in memory. Clones are the same storage.
#[derive(Debug, Clone)]
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Object>>>,
    /// The number of versions of objects so far.
    versions: Arc<AtomicU64>,
    /// Listings show objects of lower versions.
    listed: Arc<AtomicU64>,
    /// Objects to remove with one call.
    removals: Arc<AtomicUsize>,
    spools: Spools,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            objects: Arc::default(),
            versions: Arc::default(),
            listed: Arc::new(AtomicU64::new(u64::MAX)),
            removals: Arc::new(AtomicUsize::new(Capabilities::default().removals)),
            spools: Spools::new(None, SPOOLS, LARGEST),
        }
    }
}

impl Memory {
    /// The names of all objects, sorted.
    pub fn names(&self) -> Vec<String> {
        self.objects().keys().cloned().collect()
    }

    /// Calls `change` with the bytes of an object, to damage it. Returns false if there is no such object.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let version = self.next_version();
        let mut objects = self.objects();
        let Some(object) = objects.get_mut(name) else { return false };
        change(Arc::make_mut(&mut object.bytes));
        object.version = version;
        true
    }

    /// Lets listings lag behind: they show no objects that are stored from now on, until this is called with `false`.
    pub fn set_late(&self, late: bool) {
        let listed = if late { self.versions.load(Ordering::Relaxed) } else { u64::MAX };
        self.listed.store(listed, Ordering::Relaxed);
    }

    /// Sets how many objects to remove with one call from now on.
    pub fn set_removals(&self, removals: usize) {
        self.removals.store(removals, Ordering::Relaxed);
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    fn object(&self, name: &str) -> Result<Object, Error> {
        self.objects().get(name).cloned().ok_or_else(|| missing("read", name))
    }
}

fn missing(action: &'static str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, action, name, "there is no such object")
}

impl Storage for Memory {
    fn capabilities(&self) -> Capabilities {
        let removals = self.removals.load(Ordering::Relaxed);
        Capabilities { lanes: LANES, removals, ..Capabilities::default() }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let name = spool.object();
        let mut bytes = Vec::new();
        spool.upload().read_to_end(&mut bytes).map_err(|e| Error::io("store", name, e))?;
        match self.objects().entry(name.to_owned()) {
            Entry::Vacant(free) => _ = free.insert(Object { bytes: Arc::new(bytes), version: self.next_version() }),
            Entry::Occupied(_) => {
                return Err(Error::new(ErrorKind::AlreadyExists, "store", name, "the object exists"));
            }
        }
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let object = self.object(name)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(length);
        let truncated = || Error::truncated(name);
        let found = object.bytes.get(range).ok_or_else(truncated)?;
        bytes.clear();
        bytes.extend_from_slice(found);
        Ok(())
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        Ok(self.object(name)?.bytes.len() as u64)
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let Object { bytes, version } = self.object(name)?;
        Ok(Stamp::new(bytes.len() as u64, [version, 0, 0]))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        // Unlocked before `found` is called, which may use the storage.
        let objects: Vec<_> = {
            let objects = self.objects();
            let listed = self.listed.load(Ordering::Relaxed);
            let is_listed = |(name, object): &(&String, &Object)| name.starts_with(prefix) && object.version < listed;
            let below = objects.iter().filter(is_listed);
            below.map(|(name, object)| ObjectInfo { name: name.clone(), length: object.bytes.len() as u64 }).collect()
        };
        objects.into_iter().for_each(found);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.objects().remove(name).map(drop).ok_or_else(|| missing("remove", name))
    }

    fn settle(&self, _prefixes: &[&str]) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, _prefixes: &[&str], _runs: &[Uuid]) -> Result<u64, Error> {
        Ok(0)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let mut objects = self.objects();
        let may_go = objects.keys().all(|name| is_ours(name));
        if may_go {
            objects.clear();
        }
        may_go
    }
}
