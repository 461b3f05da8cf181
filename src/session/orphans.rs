//! Removes orphaned packs.
//!
//! A pack is an orphan, and is removed, if all of these conditions hold:
//!
//! 1. This catalog recorded that the run which wrote the pack began, and not that it finished. A run is recorded durably
//!    before its first byte is written to the repository, and each of its packs carries its mark ([`PackId::of_run`]).
//! 2. Nothing in the catalog comes from unproved listings: it was never rebuilt or reconciled, or a census has since
//!    proved that the listings were complete ([`Catalog::is_learnt`]). So at the start of every run the repository was
//!    as this catalog had left it.
//! 3. No index in the repository lists the pack.
//! 4. Everything is accounted for. Each pack and snapshot in the catalog is listed and in a readable index; each listed
//!    snapshot is in the catalog; each pack in a list of sums is in an index; generations have no gaps and all verify.
//!    Otherwise a listing is incomplete or another writer was active, and absence from a listing proves nothing. This
//!    catalog may also be an image from the middle of a run that went on.
//!
//! Temporary files of unfinished runs are removed under the first condition alone: no object refers to them. Everything
//! else is kept and reported; it takes space and is harmless. So nothing is lost if a machine image was restored that was
//! taken during a run, if a repository was copied partially, or if the storage's listings are outdated.
//!
//! Packs of a killed run that are in an index are added to the catalog, so that nothing is stored twice.

use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::remover::Remover;
use crate::catalog::{Catalog, Presence};
use crate::format::id::{RunId, SnapshotId};
use crate::format::pack::{IndexedCarrier, IndexedPack};
use crate::format::sums::SUMS_SIZE;
use crate::format::{PackId, name, sums};
use crate::inventory::{self, Inventory};
use crate::monitor::count;
use crate::repository::Access;
use crate::storage::{Ahead, ObjectInfo};

/// A number of objects and their total size.
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

/// The packs in the repository, compared with those in the catalog.
struct FoundPacks {
    /// Heads of the ids of all packs in the catalog, ascending, and whether each is usable. Heads save memory; a pack that
    /// shares its head with a known one is never an orphan.
    known: Vec<(u64, bool)>,
    /// For each of `known`: whether it is in an index.
    indexed: Vec<bool>,
    /// Packs of unfinished runs that are not in the catalog, and their lengths.
    orphans: HashMap<PackId, u64>,
    /// Former orphans that were found in an index.
    taken_in: HashSet<PackId>,
    /// Packs that are neither in the catalog nor of an unfinished run.
    unknown: Count,
}

impl FoundPacks {
    fn find(&self, pack: PackId) -> Option<usize> {
        find(&self.known, pack)
    }

    /// Records that a pack is in an index.
    fn set_indexed(&mut self, pack: PackId) {
        if let Some(indexed) = self.find(pack).and_then(|at| self.indexed.get_mut(at)) {
            *indexed = true;
        }
    }

    /// Usable packs of the catalog that were not found in `found`.
    fn missing_in(&self, found: &[bool]) -> u64 {
        self.known.iter().zip(found).filter(|((_, is_usable), found)| *is_usable && !**found).count() as u64
    }

    fn is_indexed(&self, pack: PackId) -> bool {
        let known = self.find(pack);
        known.is_some_and(|at| self.indexed.get(at) == Some(&true)) || self.taken_in.contains(&pack)
    }
}

/// The position of a pack.
fn find(known: &[(u64, bool)], pack: PackId) -> Option<usize> {
    known.binary_search_by_key(&head(pack), |(head, _)| *head).ok()
}

fn head(pack: PackId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *pack.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Cleans up after unfinished runs: adds their indexed packs to the catalog and removes their orphans.
pub(super) fn clean_up_unfinished(
    inventory: &Inventory<'_>,
    catalog: &mut Catalog,
    unfinished: &[RunId],
    remover: &Remover<'_>,
) -> Result<(), Error> {
    match try_clean_up(inventory, catalog, unfinished, remover) {
        Err(error) if must_end(&error) => return Err(error),
        Err(error) => inventory.monitor.note(&format!(
            "leftovers of an unfinished run are not removed from the repository: {error}; they take space and are harmless"
        )),
        Ok(()) => {}
    }
    Ok(catalog.commit()?)
}

/// Whether an error ends the run. After other errors, leftovers stay where they are.
fn must_end(error: &Error) -> bool {
    use inventory::Error as Cause;
    matches!(error, Error::Catalog(_) | Error::Inventory(Cause::Interrupted | Cause::Catalog(_)))
}

fn try_clean_up(
    inventory: &Inventory<'_>,
    catalog: &Catalog,
    unfinished: &[RunId],
    remover: &Remover<'_>,
) -> Result<(), Error> {
    let (mut packs, mut doubt) = compare_packs(inventory, catalog, unfinished)?;
    if catalog.is_learnt()? {
        doubt = Some("this machine's catalog was rebuilt or reconciled with the repository".into());
    }
    account(inventory, catalog, &mut packs, &mut doubt)?;
    let Count { objects: unknown, bytes } = packs.unknown;
    if unknown > 0 {
        inventory.monitor.note(&format!(
            "{} has {} ({bytes} bytes) in no index and not in this machine's catalog; nothing of that is removed",
            name::PACKS,
            count(unknown, "object", "objects")
        ));
    }
    remover.remove_temporaries(unfinished)?;
    match doubt {
        None => return remove(inventory, packs.orphans.into_keys(), remover),
        Some(_) if packs.orphans.is_empty() => {}
        Some(why) => {
            let (packs_left, bytes) = (packs_of(packs.orphans.len() as u64), packs.orphans.values().sum::<u64>());
            inventory.monitor.note(&format!(
                "leftovers of an unfinished run ({packs_left}, {bytes} bytes) are not removed from the repository: {why}; they take space and are harmless"
            ));
        }
    }
    Ok(())
}

fn remove(
    inventory: &Inventory<'_>,
    orphans: impl Iterator<Item = PackId>,
    remover: &Remover<'_>,
) -> Result<(), Error> {
    let objects: Vec<_> = orphans.map(name::pack).collect();
    for objects in remover.batches(&objects) {
        inventory.check_interrupted()?;
        let objects: Vec<_> = objects.iter().map(String::as_str).collect();
        let mut failed = None;
        remover.remove_all(&objects, |_, result| failed = failed.take().or(result.err()))?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Lists packs and compares them with the catalog. If any are missing, also returns a reason for doubt.
fn compare_packs(
    inventory: &Inventory<'_>,
    catalog: &Catalog,
    unfinished: &[RunId],
) -> Result<(FoundPacks, Option<String>), Error> {
    let known = catalog.pack_heads()?;
    let mut listed = vec![false; known.len()];
    let (mut orphans, mut unknown) = (HashMap::new(), Count::default());
    let retained: HashSet<_> = catalog.retained_packs()?.into_iter().map(|pack| pack.id).collect();
    inventory.repository.target().visit(name::PACKS, &mut |object| {
        let Some(pack) = name::parse_pack(&object.name) else { return };
        match find(&known, pack) {
            Some(at) => listed.iter_mut().skip(at).take(1).for_each(|listed| *listed = true),
            None if unfinished.iter().any(|run| pack.is_of_run(*run)) => _ = orphans.insert(pack, object.length),
            None if retained.contains(&pack) => {}
            None => unknown.add(object.length),
        }
    })?;
    let indexed = vec![false; known.len()];
    let packs = FoundPacks { known, indexed, orphans, taken_in: HashSet::new(), unknown };
    let missing = packs.missing_in(&listed);
    let doubt = (missing > 0).then(|| format!("{} of the catalog are not listed", packs_of(missing)));
    Ok((packs, doubt))
}

/// Reads all indexes and takes in their packs. Sets `doubt` if anything is unaccounted for.
fn account(
    inventory: &Inventory<'_>,
    catalog: &Catalog,
    packs: &mut FoundPacks,
    doubt: &mut Option<String>,
) -> Result<(), Error> {
    let mut named: HashSet<SnapshotId> = HashSet::new();
    let target = inventory.repository.target();
    let listed = target.list(name::INDEX)?;
    for object in target.in_turn(&listed, Access::read_of_document) {
        let Some(id) = name::parse_index(&object.name) else { continue };
        inventory.check_interrupted()?;
        match inventory.access.index(inventory.repository, id) {
            Ok(index) => {
                index.packs.iter().try_for_each(|pack| take_in(catalog, packs, pack))?;
                index.carriers.iter().try_for_each(|carrier| take_in_carrier(catalog, packs, carrier))?;
                named.extend(index.snapshots.iter().map(|usage| usage.snapshot.id));
                catalog.add_index(id, &index)?;
            }
            Err(error) => _ = doubt.get_or_insert(format!("cannot read an index: {error}")),
        }
    }
    let missing = packs.missing_in(&packs.indexed);
    if missing > 0 {
        doubt.get_or_insert(format!("{} of the catalog are in no index", packs_of(missing)));
    }
    account_for_snapshots(inventory, catalog, &named, doubt)?;
    account_for_sums(inventory, packs, doubt)?;
    if let (None, Some(why)) = (&doubt, inventory.doubt_of_generations()?) {
        *doubt = Some(why);
    }
    Ok(())
}

fn account_for_snapshots(
    inventory: &Inventory<'_>,
    catalog: &Catalog,
    named: &HashSet<SnapshotId>,
    doubt: &mut Option<String>,
) -> Result<(), Error> {
    let mut listed: HashSet<SnapshotId> = HashSet::new();
    let known: HashMap<_, _> =
        catalog.snapshots()?.into_iter().map(|row| (row.name.id, (row.presence, row.name))).collect();
    for snapshot in inventory.repository.snapshots()? {
        listed.insert(snapshot.id);
        match known.get(&snapshot.id) {
            Some(_) if named.contains(&snapshot.id) => {}
            Some(_) => _ = doubt.get_or_insert(format!("the snapshot {} is in no index", snapshot.object())),
            None => _ = doubt.get_or_insert(format!("the snapshot {} is not in the catalog", snapshot.object())),
        }
    }
    for (id, (presence, name)) in known {
        if presence == Presence::There && !listed.contains(&id) {
            doubt.get_or_insert(format!("the snapshot {} is not listed", name.object()));
        }
    }
    Ok(())
}

/// A list of sums is written just before the index of the same packs. If only the list is found, either the run was
/// killed between the two, or the index is missing from the listing; these cases cannot be told apart.
fn account_for_sums(inventory: &Inventory<'_>, packs: &FoundPacks, doubt: &mut Option<String>) -> Result<(), Error> {
    let target = inventory.repository.target();
    let mut lists = target.list(name::SUMS)?;
    lists.retain(|object| name::parse_sums(&object.name).is_some());
    let read = |list: &ObjectInfo| Ahead::of(list, SUMS_SIZE);
    for object in target.in_turn(&lists, read) {
        if doubt.is_some() {
            break;
        }
        inventory.check_interrupted()?;
        let list = target.get(&object.name, SUMS_SIZE)?;
        if !sums::lines(&list).flatten().all(|line| packs.is_indexed(line.pack)) {
            *doubt = Some(format!("{} contains packs that are in no index", object.name));
        }
    }
    Ok(())
}

/// Records that a pack is in an index, and adds it to the catalog if it is an orphan with the right length.
fn take_in(catalog: &Catalog, packs: &mut FoundPacks, pack: &IndexedPack) -> Result<(), Error> {
    packs.set_indexed(pack.id);
    if let Some(length) = packs.orphans.remove(&pack.id) {
        packs.taken_in.insert(pack.id);
        if length == pack.length {
            catalog.import_pack(pack, true)?;
        }
    }
    Ok(())
}

/// The same for a carrier.
fn take_in_carrier(catalog: &Catalog, packs: &mut FoundPacks, carrier: &IndexedCarrier) -> Result<(), Error> {
    packs.set_indexed(carrier.id);
    if let Some(length) = packs.orphans.remove(&carrier.id) {
        packs.taken_in.insert(carrier.id);
        if length == carrier.length() {
            catalog.import_carrier(carrier, true)?;
        }
    }
    Ok(())
}

/// A number of packs, for messages.
fn packs_of(number: u64) -> String {
    count(number, "pack", "packs")
}
