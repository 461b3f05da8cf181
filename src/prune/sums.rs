//! Lists of sums without removed packs. Many small lists are joined.
//!
//! Most lists are not read: the index that was written with a list has the same id, and is read in any case.

use std::collections::{HashMap, HashSet};

use super::context::Pruner;
use super::error::Error;
use crate::format::id::ObjectId;
use crate::format::index::Index;
use crate::format::sums::{PackSum, SUMS_SIZE, encode, lines};
use crate::format::{Digest, PackId, name};
use crate::session::Remover;
use crate::storage::{Ahead, ObjectInfo, Target};

/// The maximum number of packs in a joined list.
const LINES: usize = 4096;
/// Lists with fewer packs than that are joined if there are at least this many.
const SMALL_LISTS: usize = 64;

/// The lists in the repository.
pub(super) struct Lists {
    found: Vec<ObjectInfo>,
    /// The content of lists that need not be read: an index has their id, and the digests of the same packs.
    known: HashMap<String, Vec<(PackId, Digest)>>,
}

/// A list that has a successor.
struct Replaced {
    object: String,
    /// Its packs that are about to be removed.
    gone: Vec<PackId>,
}

impl Lists {
    /// Finds the lists.
    pub(super) fn find(target: &Target) -> Result<Self, Error> {
        let mut found = target.list(name::SUMS)?;
        found.retain(|object| name::parse_sums(&object.name).is_some());
        Ok(Lists { found, known: HashMap::new() })
    }

    /// Learns the content of the list that was written with this index.
    pub(super) fn learn(&mut self, id: ObjectId, index: &Index) {
        let object = name::sums(id);
        let Ok(at) = self.found.binary_search_by(|list| list.name.cmp(&object)) else { return };
        let packs = index.packs.iter().filter_map(|pack| Some((pack.id, pack.digest?)));
        let sums: Vec<_> = packs.chain(index.carriers.iter().map(|carrier| (carrier.id, carrier.digest))).collect();
        // A list of another length is damaged, or was not written with the index.
        if self.found.get(at).is_some_and(|list| list.length == encode(&sums).len() as u64) {
            self.known.insert(object, sums);
        }
    }

    /// The sums of a list. `None` if it is damaged.
    fn sums(&mut self, target: &Target, object: &str) -> Result<Option<Vec<(PackId, Digest)>>, Error> {
        if let Some(known) = self.known.remove(object) {
            return Ok(Some(known));
        }
        let bytes = target.get(object, SUMS_SIZE)?;
        Ok(lines(&bytes).map(|line| line.and_then(|PackSum { pack, digest }| Some((pack, digest?)))).collect())
    }
}

/// Writes successors of the lists that name packs in `gone`, then removes these lists. Takes the packs out of `gone` whose
/// list cannot be removed: no list may name a pack that is gone.
pub(super) fn rewrite(
    pruner: &Pruner<'_>,
    remover: &Remover<'_>,
    mut lists: Lists,
    gone: &mut HashSet<PackId>,
) -> Result<(), Error> {
    let target = pruner.session.repository().target();
    let found = std::mem::take(&mut lists.found);
    // About the length of a line.
    let is_small = |length: u64| length < LINES as u64 * 100;
    // Where lists cannot be removed, each join would only add another one.
    let join =
        pruner.clock.retained.get() == 0 && found.iter().filter(|list| is_small(list.length)).count() >= SMALL_LISTS;
    let unknown = found.iter().filter(|list| !lists.known.contains_key(&list.name));
    let reads = unknown.filter_map(|list| Ahead::of(list, SUMS_SIZE)).collect();
    target.reading_ahead(reads, || {
        let mut rest: Vec<(PackId, Digest)> = Vec::new();
        let mut replaced = Vec::new();
        for list in found {
            pruner.inventory.check_interrupted()?;
            // A list that was read and is damaged stays: `check` reports it.
            let Some(sums) = lists.sums(target, &list.name)? else { continue };
            let named: Vec<_> = sums.iter().map(|(pack, _)| *pack).filter(|pack| gone.contains(pack)).collect();
            if named.is_empty() && !(join && is_small(list.length)) {
                continue;
            }
            rest.extend(sums.into_iter().filter(|(pack, _)| !gone.contains(pack)));
            replaced.push(Replaced { object: list.name, gone: named });
            if rest.len() >= LINES {
                put(pruner, &mut rest)?;
                remove(pruner, remover, &mut replaced, gone)?;
            }
        }
        put(pruner, &mut rest)?;
        remove(pruner, remover, &mut replaced, gone)
    })
}

fn put(pruner: &Pruner<'_>, sums: &mut Vec<(PackId, Digest)>) -> Result<(), Error> {
    if !sums.is_empty() {
        sums.sort_unstable_by_key(|(pack, _)| *pack);
        sums.dedup_by_key(|(pack, _)| *pack);
        pruner.session.writer().put_sums(ObjectId::random(), sums)?;
        sums.clear();
    }
    Ok(())
}

fn remove(
    pruner: &Pruner<'_>,
    remover: &Remover<'_>,
    lists: &mut Vec<Replaced>,
    gone: &mut HashSet<PackId>,
) -> Result<(), Error> {
    let objects: Vec<_> = lists.iter().map(|list| list.object.clone()).collect();
    for (list, is_gone) in lists.drain(..).zip(pruner.remove_all(remover, &objects)?) {
        if !is_gone {
            list.gone.iter().for_each(|pack| _ = gone.remove(pack));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{IndexedCarrier, IndexedPack, PackKind};
    use crate::storage::testing::Memory;

    #[test]
    fn a_list_is_not_read_if_an_index_has_its_id_and_as_many_packs() {
        let target = Target::new(Box::new(Memory::default()), "memory".to_owned());
        let ids = [(); 3].map(|()| ObjectId::random());
        let [pack, carrier, other] = [1, 2, 3].map(|byte| (PackId::random(), Digest::of(&[byte])));
        for (id, sums) in ids.iter().zip([&[pack, carrier][..], &[other], &[other]]) {
            target.put(&name::sums(*id), encode(sums).as_bytes()).unwrap();
        }
        let index = |(id, digest): (PackId, Digest), carriers: Vec<IndexedCarrier>| {
            let birth =
                |digest| IndexedPack { id, kind: PackKind::Data, digest, count: 0, length: 0, blocks: Vec::new() };
            // A pack that is gone has no digest.
            Index { packs: vec![birth(Some(digest)), birth(None)], carriers, ..Index::default() }
        };
        let mut lists = Lists::find(&target).unwrap();
        lists
            .learn(ids[0], &index(pack, vec![IndexedCarrier { id: carrier.0, digest: carrier.1, blocks: Vec::new() }]));
        lists
            .learn(ids[1], &index(pack, vec![IndexedCarrier { id: carrier.0, digest: carrier.1, blocks: Vec::new() }]));
        lists.learn(ObjectId::random(), &index(pack, Vec::new()));
        assert_eq!(Vec::from_iter(lists.known.keys()), [&name::sums(ids[0])]);
        // Of another index, or of none: the list itself tells.
        for id in &ids[1..] {
            assert_eq!(lists.sums(&target, &name::sums(*id)).unwrap(), Some(vec![other]));
        }
        assert_eq!(lists.sums(&target, &name::sums(ids[0])).unwrap(), Some(vec![pack, carrier]));
        let damaged = ObjectId::random();
        target.put(&name::sums(damaged), &encode(&[other]).as_bytes()[1..]).unwrap();
        assert_eq!(lists.sums(&target, &name::sums(damaged)).unwrap(), None);
    }
}
