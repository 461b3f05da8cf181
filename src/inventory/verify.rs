//! Compares all claims of the catalog with the repository, without changing anything.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::context::Inventory;
use super::error::Error;
use super::reconcile::is_foreign;
use crate::catalog::{Catalog, Claims, Presence};
use crate::crypt::Certificate;
use crate::failure::{Failure, FailureKind};
use crate::format::sums::{PackSum, SUMS_SIZE};
use crate::format::{Digest, PackId, name, sums};
use crate::monitor::count;
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

/// The records of a pack in the repository: its listing, and its digests in indexes and lists of sums.
#[derive(Default)]
struct PackRecords {
    length: Option<u64>,
    indexed: Option<Digest>,
    summed: Option<Digest>,
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
        let records = self.pack_records(&mut problem)?;
        let mut packs = 0;
        catalog.each_pack(&mut |pack, wrong| {
            packs += 1;
            let object = name::pack(pack.id);
            let mut problems = Vec::from_iter(wrong);
            let none = PackRecords::default();
            let PackRecords { length, indexed, summed } = records.get(&pack.id).unwrap_or(&none);
            match length {
                None => problems.push("the pack is missing".into()),
                Some(length) if *length != pack.length => {
                    problems.push(format!("the pack has {length} bytes where {} were stored", pack.length));
                }
                Some(_) => {}
            }
            for (digest, list) in [(indexed, "index"), (summed, "list of sums")] {
                match digest {
                    None => problems.push(format!("the pack is in no readable {list}")),
                    Some(digest) if *digest != pack.digest => {
                        problems.push(format!("the {list} has another digest of the pack"));
                    }
                    Some(_) => {}
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
        let lost_packs = catalog.lost_packs()?;
        Ok(Verified { packs, lost_packs, blocks: usable.len(), chunks, snapshots, ..found })
    }

    /// Collects the records of all packs from the listing, indexes and lists of sums.
    fn pack_records(&self, problem: &mut dyn FnMut(&Path, &str)) -> Result<HashMap<PackId, PackRecords>, Error> {
        let mut records: HashMap<PackId, PackRecords> = HashMap::new();
        self.repository.target().visit(name::PACKS, &mut |ObjectInfo { name, length }| {
            if let Some(pack) = name::parse_pack(&name) {
                records.entry(pack).or_default().length = Some(length);
            }
        })?;
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => {
                    for pack in index.packs {
                        records.entry(pack.id).or_default().indexed = pack.digest;
                    }
                    for carrier in index.carriers {
                        records.entry(carrier.id).or_default().indexed = Some(carrier.digest);
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
                if digest.is_some() {
                    records.entry(pack).or_default().summed = digest;
                }
            }
        }
        Ok(records)
    }
}
