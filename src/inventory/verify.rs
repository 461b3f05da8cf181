//! Everything that the catalog claims, held against the repository. Nothing is changed.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::reconcile::is_foreign;
use super::{Error, Inventory};
use crate::catalog::{Catalog, Claims, Presence};
use crate::crypt::Certificate;
use crate::format::{Digest, PackId, name};
use crate::monitor::count;
use crate::state::RepositoryState;
use crate::storage::ObjectInfo;

/// Most bytes of a list of sums.
const SUMS_SIZE: usize = 64 << 20;

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Packs that the catalog builds upon.
    pub packs: u64,
    /// Packs that are lost, and that it does not build upon any more. Older snapshots may need them.
    pub lost_packs: u64,
    /// Blocks.
    pub blocks: u64,
    /// Chunks.
    pub chunks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// What is wrong. Each was named.
    pub problems: u64,
}

/// Where a pack is listed: the digest that indexes say it has, and that sums say.
#[derive(Default)]
struct PackRecords {
    length: Option<u64>,
    indexed: Option<Digest>,
    summed: Option<Digest>,
}

impl Inventory<'_> {
    /// Compares all that a catalog claims with what the repository shows. `host`: this machine's certificate.
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
            // What can be read of it may be anything.
            return Ok(found);
        }
        if let Some(words) = self.divergence(catalog)?.message() {
            problem(path, &words);
        }
        let lost = self.lost(catalog, state, host)?;
        for lost in &lost {
            problem(Path::new(&lost.object), lost.message());
        }
        if lost.iter().all(|lost| lost.object != name::SECRETS)
            && let Err(error) = self.secrets()
        {
            problem(Path::new(name::SECRETS), &error.to_string());
        }
        let listed = self.lists(&mut problem)?;
        let mut packs = 0;
        catalog.each_pack(&mut |pack, wrong| {
            packs += 1;
            let object = name::pack(pack.id);
            let mut wrongs = Vec::from_iter(wrong);
            let none = PackRecords::default();
            let PackRecords { length, indexed, summed } = listed.get(&pack.id).unwrap_or(&none);
            match length {
                None => wrongs.push("the pack is missing".into()),
                Some(length) if *length != pack.length => {
                    wrongs.push(format!("the pack has {length} bytes where {} were stored", pack.length));
                }
                Some(_) => {}
            }
            for (digest, whose) in [(indexed, "index"), (summed, "list of sums")] {
                match digest {
                    None => wrongs.push(format!("no {whose} that can be read has it")),
                    Some(digest) if *digest != pack.digest => {
                        wrongs.push(format!("the {whose} says that it has another digest"));
                    }
                    Some(_) => {}
                }
            }
            for wrong in wrongs {
                problem(Path::new(&object), &wrong);
            }
        })?;
        self.check_interrupted()?;
        let (usable, all) = catalog.block_sets()?;
        let (chunks, lost) = catalog.count_chunks(&usable)?;
        if lost > 0 {
            problem(
                path,
                &format!("{} said to be in blocks that are not there", count(lost, "chunk is", "chunks are")),
            );
        }
        let Claims { chunks: bad_chunks, nodes } = catalog.damaged_claims()?;
        for (count, what) in [(bad_chunks, "places of chunks"), (nodes, "parts of directories or of large files")] {
            if count > 0 {
                problem(path, &format!("{count} {what} are not what was written; the next backup reads them again"));
            }
        }
        if let Err(error) = catalog.check_blocks() {
            problem(path, &error.to_string());
        }
        let lost = catalog.count_lost_nodes(&usable)?;
        if lost > 0 {
            problem(
                path,
                &format!(
                    "{} to blocks that are not there",
                    count(lost, "directory or file refers", "directories or files refer")
                ),
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
            match catalog.snapshot_blocks(row.name.id)? {
                Some(blocks) if blocks.is_subset(&all) => {}
                Some(_) => problem(Path::new(&object), "it is said to use blocks that the catalog does not have"),
                None => problem(Path::new(&object), "the catalog does not know which blocks it uses"),
            }
        }
        let lost_packs = catalog.condemned_packs()?;
        Ok(Verified { packs, lost_packs, blocks: usable.len(), chunks, snapshots, ..found })
    }

    /// What the repository shows of packs.
    fn lists(&self, problem: &mut dyn FnMut(&Path, &str)) -> Result<HashMap<PackId, PackRecords>, Error> {
        let mut listed: HashMap<PackId, PackRecords> = HashMap::new();
        self.repository.target().visit(name::PACKS, &mut |ObjectInfo { name, length }| {
            if let Some(pack) = name::parse_pack(&name) {
                listed.entry(pack).or_default().length = Some(length);
            }
        })?;
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => {
                    for pack in index.packs {
                        listed.entry(pack.id).or_default().indexed = Some(pack.digest);
                    }
                }
                // That of a host before this one. What it lists stands in another one, too.
                Err(error) if is_foreign(&error) => {}
                Err(error) => problem(Path::new(&name::index(id)), &error.to_string()),
            }
        }
        for object in self.repository.target().list(name::SUMS)? {
            if name::parse_sums(&object.name).is_none() {
                continue;
            }
            self.check_interrupted()?;
            let text = match self.repository.target().get(&object.name, SUMS_SIZE) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) => {
                    problem(Path::new(&object.name), &error.to_string());
                    continue;
                }
            };
            for (sum, pack) in text.lines().filter_map(|line| line.split_once("  ")) {
                if let (Ok(sum), Some(pack)) = (blake3::Hash::from_hex(sum), name::parse_pack(pack)) {
                    listed.entry(pack).or_default().summed = Some(sum.into());
                }
            }
        }
        Ok(listed)
    }
}
