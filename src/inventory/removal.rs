//! What may be removed from a repository. This is the only place that removes objects, and this is its rule.
//!
//! A pack is an orphan, and is removed, if all of this holds:
//!
//! 1. This very catalog recorded the run that wrote it as begun, and not as finished. A run is recorded, durably, before
//!    the first of its bytes is at the target, and each of its packs carries its mark (see [`PackId::of_run`]).
//! 2. Nothing in the catalog was learnt from listings: it was never rebuilt or reconciled ([`Catalog::is_learnt`]). So the
//!    repository was as this catalog left it at the beginning of every run.
//! 3. No index at the target names the pack.
//! 4. Everything is accounted for. Each pack and each snapshot that the catalog knows is listed and named by an index that
//!    can be read; each snapshot that is listed is known; each pack in a list of sums is named by an index; generations
//!    have no gaps and all verify. Otherwise something is missing from a listing, or was written by somebody else, and
//!    absence from a listing proves nothing.
//!
//! Temporaries of killed writers go under the same rule. All else stays, takes space and does no harm: that is said, and
//! the backup goes on. So a machine image that was restored from the middle of a run, a partial copy of a repository, and a
//! target whose listings lag behind lose nothing.
//!
//! Packs of a killed run that an index does name are taken into the catalog, so that nothing is stored twice.

use std::collections::{HashMap, HashSet};

use super::generations::objects;
use super::{Error, Inventory};
use crate::catalog::{Catalog, Presence};
use crate::format::id::{RunId, SnapshotId};
use crate::format::index::IndexedPack;
use crate::format::{PackId, name};

/// Most bytes of a list of sums.
const SUMS_SIZE: usize = 64 << 20;

/// Objects and their bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    objects: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The packs at the target, compared with those that the catalog knows.
struct Packs {
    /// Heads of the ids of all packs that the catalog knows, ascending. Many fit into memory; a pack that shares its head
    /// with a known one is never taken for an orphan.
    known: Vec<u64>,
    /// Which of them an index names.
    indexed: Vec<bool>,
    /// Packs of unfinished runs that the catalog does not know, and their bytes.
    orphans: HashMap<PackId, u64>,
    /// Those of them that an index names.
    taken_in: HashSet<PackId>,
    /// Packs that neither the catalog nor an unfinished run of it knows.
    unknown: Count,
}

impl Packs {
    fn is_indexed(&self, pack: PackId) -> bool {
        let known = self.known.binary_search(&head(pack)).ok();
        known.is_some_and(|at| self.indexed.get(at) == Some(&true)) || self.taken_in.contains(&pack)
    }
}

fn head(pack: PackId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *pack.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Inventory<'_> {
    /// Deals with what runs left at the target that did not come to their end: takes in what an index names, and removes
    /// what may be removed. This run must have announced itself before, so that a run with a copy of this catalog can no
    /// longer commit anything.
    pub fn clean_up_unfinished(&self, catalog: &mut Catalog, unfinished: &[RunId]) -> Result<(), Error> {
        if unfinished.is_empty() {
            return Ok(());
        }
        match self.try_clean_up(catalog, unfinished) {
            // Interrupted, or the catalog failed: that ends the run.
            Err(error @ (Error::Interrupted | Error::Catalog(_))) => return Err(error),
            Err(error) => self.monitor.note(&format!(
                "what an unfinished run left in the repository is not removed: {error}; it takes space and does no harm"
            )),
            Ok(()) => {}
        }
        Ok(catalog.commit()?)
    }

    fn try_clean_up(&self, catalog: &Catalog, unfinished: &[RunId]) -> Result<(), Error> {
        let (mut packs, mut doubt) = self.compare_packs(catalog, unfinished)?;
        if catalog.is_learnt()? {
            doubt = Some("this machine's catalog was rebuilt, or compared with what the repository lists".into());
        }
        self.account(catalog, &mut packs, &mut doubt)?;
        let Count { objects: unknown, bytes } = packs.unknown;
        if unknown > 0 {
            self.monitor.note(&format!(
                "{} in {} ({bytes} bytes) that neither an index nor this machine's catalog knows; nothing of that is removed",
                objects(unknown),
                name::PACKS
            ));
        }
        match doubt {
            None => return self.remove(packs.orphans.into_keys()),
            Some(_) if packs.orphans.is_empty() => {}
            Some(why) => {
                let (count, bytes) = (packs_of(packs.orphans.len() as u64), packs.orphans.values().sum::<u64>());
                self.monitor.note(&format!(
                    "what an unfinished run left in the repository ({count}, {bytes} bytes) is not removed: {why}; it takes space and does no harm"
                ));
            }
        }
        Ok(())
    }

    fn remove(&self, orphans: impl Iterator<Item = PackId>) -> Result<(), Error> {
        let target = self.repository.target();
        target.remove_temporaries(&name::FOLDERS)?;
        for pack in orphans {
            self.check_interrupted()?;
            target.remove(&name::pack(pack))?;
        }
        Ok(())
    }

    /// Lists packs. The second is a doubt, if there is one.
    fn compare_packs(&self, catalog: &Catalog, unfinished: &[RunId]) -> Result<(Packs, Option<String>), Error> {
        let known = catalog.pack_heads()?;
        let mut listed = vec![false; known.len()];
        let (mut orphans, mut unknown) = (HashMap::new(), Count::default());
        self.repository.target().visit(name::PACKS, &mut |object| {
            let Some(pack) = name::parse_pack(&object.name) else { return };
            match known.binary_search(&head(pack)) {
                Ok(at) => listed.iter_mut().skip(at).take(1).for_each(|listed| *listed = true),
                Err(_) if unfinished.iter().any(|run| pack.is_of_run(*run)) => _ = orphans.insert(pack, object.length),
                Err(_) => unknown.add(object.length),
            }
        })?;
        let missing = listed.iter().filter(|listed| !**listed).count() as u64;
        let missing = missing.saturating_sub(catalog.condemned_packs()?);
        let doubt = (missing > 0).then(|| format!("{} of the catalog are not listed", packs_of(missing)));
        let indexed = vec![false; known.len()];
        Ok((Packs { known, indexed, orphans, taken_in: HashSet::new(), unknown }, doubt))
    }

    /// Reads indexes, takes in packs that they name, and looks for whatever is not accounted for.
    fn account(&self, catalog: &Catalog, packs: &mut Packs, doubt: &mut Option<String>) -> Result<(), Error> {
        let mut named: HashSet<SnapshotId> = HashSet::new();
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => {
                    index.packs.iter().try_for_each(|pack| take_in(catalog, packs, pack))?;
                    named.extend(index.snapshot.map(|blocks| blocks.snapshot.id));
                }
                Err(error) => _ = doubt.get_or_insert(format!("cannot read an index: {error}")),
            }
        }
        let missing = packs.indexed.iter().filter(|indexed| !**indexed).count() as u64;
        if missing > 0 {
            doubt.get_or_insert(format!("{} of the catalog are named by no index", packs_of(missing)));
        }
        self.account_for_snapshots(catalog, &named, doubt)?;
        self.account_for_sums(packs, doubt)?;
        if let (None, Some(why)) = (&doubt, self.doubt_of_generations()?) {
            *doubt = Some(why);
        }
        Ok(())
    }

    fn account_for_snapshots(
        &self,
        catalog: &Catalog,
        named: &HashSet<SnapshotId>,
        doubt: &mut Option<String>,
    ) -> Result<(), Error> {
        let mut listed: HashSet<SnapshotId> = HashSet::new();
        let known: HashMap<_, _> =
            catalog.snapshots()?.into_iter().map(|row| (row.name.id, (row.presence, row.name))).collect();
        for snapshot in self.repository.snapshots()? {
            listed.insert(snapshot.id);
            match known.get(&snapshot.id) {
                Some(_) if named.contains(&snapshot.id) => {}
                Some(_) => _ = doubt.get_or_insert(format!("no index names the snapshot {}", snapshot.object())),
                None => {
                    _ = doubt
                        .get_or_insert(format!("{} is a snapshot that the catalog does not know", snapshot.object()))
                }
            }
        }
        for (id, (presence, name)) in known {
            if presence == Presence::There && !listed.contains(&id) {
                doubt.get_or_insert(format!("the snapshot {} is not listed", name.object()));
            }
        }
        Ok(())
    }

    /// Each list of sums is written just before the index of the same packs. One without the other means a kill between
    /// the two, or an index that is missing from the listing: which of them cannot be told.
    fn account_for_sums(&self, packs: &Packs, doubt: &mut Option<String>) -> Result<(), Error> {
        for object in self.repository.target().list(name::SUMS)? {
            if name::parse_sums(&object.name).is_none() {
                continue;
            }
            if doubt.is_some() {
                break;
            }
            self.check_interrupted()?;
            let text = self.repository.target().get(&object.name, SUMS_SIZE)?;
            if !packs_in(&text).all(|pack| packs.is_indexed(pack)) {
                *doubt = Some(format!("{} names packs that no index names", object.name));
            }
        }
        Ok(())
    }
}

/// Notes that an index names a pack, and takes it into the catalog if it is new there and whole.
fn take_in(catalog: &Catalog, packs: &mut Packs, pack: &IndexedPack) -> Result<(), Error> {
    if let Some(indexed) = packs.known.binary_search(&head(pack.id)).ok().and_then(|at| packs.indexed.get_mut(at)) {
        *indexed = true;
    }
    if let Some(length) = packs.orphans.remove(&pack.id) {
        packs.taken_in.insert(pack.id);
        if length == pack.length() {
            catalog.import_pack(pack, true)?;
        }
    }
    Ok(())
}

/// A number of packs, for people.
fn packs_of(count: u64) -> String {
    match count {
        1 => "1 pack".to_owned(),
        count => format!("{count} packs"),
    }
}

/// The packs that a list of sums names.
fn packs_in(sums: &[u8]) -> impl Iterator<Item = PackId> {
    let lines = sums.split(|byte| *byte == b'\n');
    lines.filter_map(|line| name::parse_pack(std::str::from_utf8(line).ok()?.split_once("  ")?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_sums_names_packs() {
        let [a, b] = [PackId::random(), PackId::random()];
        let text = format!("00  {}\n11  {}\nneither\n22  packs/x\n", name::pack(a), name::pack(b));
        assert_eq!(packs_in(text.as_bytes()).collect::<Vec<_>>(), [a, b]);
    }
}
