//! Compares all claims of the catalog with the repository, without changing anything.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::context::Inventory;
use super::error::Error;
use super::reconcile::is_foreign;
use crate::catalog::{Catalog, Claims, PackRow, Presence};
use crate::crypt::Certificate;
use crate::failure::{Failure, FailureKind};
use crate::format::sums::{PackSum, SUMS_SIZE};
use crate::format::{Digest, name, sums};
use crate::monitor::count;
use crate::repository::Access;
use crate::state::RepositoryState;
use crate::storage::ObjectInfo;

/// Numbers of verified items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Packs that new snapshots may refer to.
    pub packs: u64,
    /// Condemned packs: lost, but older snapshots may need them.
    pub lost_packs: u64,
    /// Blocks in packs that are not condemned.
    pub blocks: u64,
    /// Chunks in the catalog.
    pub chunks: u64,
    /// Snapshots that should be in the repository.
    pub snapshots: u64,
    /// Problems; each was reported.
    pub problems: u64,
}

/// What a record in the repository says of a pack in the catalog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Record {
    #[default]
    Missing,
    Same,
    Other,
}

impl Record {
    /// Adds another record of the pack. A wrong one counts most.
    fn add(&mut self, is_same: bool) {
        *self = if !is_same || *self == Record::Other { Record::Other } else { Record::Same };
    }
}

/// The records of a pack: its listing, and its digests in indexes and lists of sums. Small, since there may be many packs.
#[derive(Debug, Default)]
struct PackRecords {
    listed: Record,
    indexed: Record,
    summed: Record,
}

impl Inventory<'_> {
    /// Compares all claims of a catalog with the repository. `host` is this machine's certificate. If the target is away, that
    /// is an error, and not a problem.
    pub fn verify(&self, catalog: &Catalog, state: &RepositoryState, host: &Certificate) -> Result<Verified, Error> {
        let path = &state.catalog_path();
        let mut found = Verified::default();
        let mut problem = |at: &Path, why: &str| {
            found.problems += 1;
            self.monitor.problem(at, why);
        };
        let findings = catalog.integrity()?;
        for finding in &findings {
            problem(path, finding);
        }
        if !findings.is_empty() {
            // Nothing that is read from a corrupt database can be relied on.
            return Ok(found);
        }
        if let Some(message) = self.divergence(catalog)?.message() {
            problem(path, &message);
        }
        let lost = self.lost(catalog, state, host)?;
        for lost in &lost {
            problem(Path::new(&lost.object), lost.message());
        }
        if lost.iter().all(|lost| lost.object != name::SECRETS)
            && let Err(error) = self.secrets()
        {
            if error.kind() == FailureKind::Unavailable {
                return Err(error);
            }
            problem(Path::new(name::SECRETS), &error.to_string());
        }
        let mut lengths = HashMap::new();
        let records = self.pack_records(catalog, &mut lengths, &mut problem)?;
        let mut packs = 0;
        catalog.each_pack(&mut |pack, wrong| {
            packs += 1;
            let object = name::pack(pack.id);
            let mut problems = Vec::from_iter(wrong);
            let none = PackRecords::default();
            let PackRecords { listed, indexed, summed } = records.get(&pack.row).unwrap_or(&none);
            match listed {
                Record::Missing => problems.push("the pack is missing".into()),
                Record::Other => {
                    let length = lengths.get(&pack.row).copied().unwrap_or_default();
                    problems.push(format!("the pack has {length} bytes where {} were stored", pack.length));
                }
                Record::Same => {}
            }
            for (record, list) in [(indexed, "index"), (summed, "list of sums")] {
                match record {
                    Record::Missing => problems.push(format!("the pack is in no readable {list}")),
                    Record::Other => problems.push(format!("the {list} has another digest of the pack")),
                    Record::Same => {}
                }
            }
            for message in problems {
                problem(Path::new(&object), &message);
            }
        })?;
        self.check_interrupted()?;
        let (usable, all) = catalog.block_sets()?;
        let (chunks, lost) = catalog.count_chunks(&usable)?;
        if lost > 0 {
            problem(path, &format!("{} to missing blocks", count(lost, "chunk refers", "chunks refer")));
        }
        let Claims { chunks: bad_chunks, nodes } = catalog.damaged_claims()?;
        for (count, rows) in [(bad_chunks, "locations of chunks"), (nodes, "parts of directories or of large files")] {
            if count > 0 {
                problem(
                    path,
                    &format!("{count} {rows} do not match their checksums; the next backup reads them again"),
                );
            }
        }
        if let Err(error) = catalog.check_blocks() {
            problem(path, &error.to_string());
        }
        let lost = catalog.count_lost_nodes(&usable)?;
        if lost > 0 {
            problem(
                path,
                &format!("{} to missing blocks", count(lost, "directory or file refers", "directories or files refer")),
            );
        }
        let there: HashSet<_> = self.repository.snapshots()?.into_iter().map(|name| name.id).collect();
        let mut snapshots = 0;
        for row in catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::There) {
            snapshots += 1;
            let object = row.name.object();
            if !there.contains(&row.name.id) {
                problem(Path::new(&object), "the snapshot is missing");
            }
            if !catalog.is_recorded(row.name.sequence)? {
                problem(Path::new(&object), "the catalog does not know which blocks the snapshot uses");
            }
        }
        match catalog.unknown_used_blocks(&all) {
            Ok(0) => {}
            Ok(unknown) => {
                let message = "used by snapshots, but not in the catalog";
                problem(path, &format!("{} {message}", count(unknown, "block is", "blocks are")));
            }
            Err(error) => problem(path, &error.to_string()),
        }
        if let Err(error) = catalog.check_lost_chunks() {
            problem(path, &error.to_string());
        }
        let lost_packs = catalog.lost_packs()?;
        Ok(Verified { packs, lost_packs, blocks: usable.len(), chunks, snapshots, ..found })
    }

    /// Compares packs of the catalog with the listing, indexes and lists of sums. Adds the length of packs that have another
    /// one to `lengths`.
    fn pack_records(
        &self,
        catalog: &Catalog,
        lengths: &mut HashMap<PackRow, u64>,
        problem: &mut dyn FnMut(&Path, &str),
    ) -> Result<HashMap<PackRow, PackRecords>, Error> {
        let mut records: HashMap<PackRow, PackRecords> = HashMap::new();
        let mut failure = None;
        self.repository.target().visit(name::PACKS, &mut |ObjectInfo { name, length }| {
            let Some(pack) = name::parse_pack(&name) else { return };
            match catalog.known_pack(pack) {
                Ok(Some(known)) => {
                    records.entry(known.row).or_default().listed.add(known.length == length);
                    if known.length != length {
                        lengths.insert(known.row, length);
                    }
                }
                Ok(None) => {}
                Err(error) => _ = failure.get_or_insert(error),
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let mut compare = |pack, digest: &Digest, record: fn(&mut PackRecords) -> &mut Record| -> Result<(), Error> {
            if let Some(known) = catalog.known_pack(pack)? {
                record(records.entry(known.row).or_default()).add(known.digest == *digest);
            }
            Ok(())
        };
        let target = self.repository.target();
        let listed = target.list(name::INDEX)?;
        for object in target.in_turn(&listed, Access::read_of_document) {
            let Some(id) = name::parse_index(&object.name) else { continue };
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => {
                    let packs = index.packs.iter().filter_map(|pack| Some((pack.id, pack.digest?)));
                    let carriers = index.carriers.iter().map(|carrier| (carrier.id, carrier.digest));
                    for (pack, digest) in packs.chain(carriers) {
                        compare(pack, &digest, |records| &mut records.indexed)?;
                    }
                }
                // Written by a former host; its packs are in another index, too.
                Err(error) if is_foreign(&error) => {}
                Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                Err(error) => problem(Path::new(&name::index(id)), &error.to_string()),
            }
        }
        for object in self.repository.target().list(name::SUMS)? {
            if name::parse_sums(&object.name).is_none() {
                continue;
            }
            self.check_interrupted()?;
            let list = match self.repository.target().get(&object.name, SUMS_SIZE) {
                Ok(list) => list,
                Err(error) if error.is_away() => return Err(error.into()),
                Err(error) => {
                    problem(Path::new(&object.name), &error.to_string());
                    continue;
                }
            };
            for PackSum { pack, digest } in sums::lines(&list).flatten() {
                if let Some(digest) = digest {
                    compare(pack, &digest, |records| &mut records.summed)?;
                }
            }
        }
        Ok(records)
    }
}
