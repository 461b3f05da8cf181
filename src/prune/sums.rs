//! Lists of sums without removed packs. Many small lists are joined.

use std::collections::HashSet;

use super::context::Pruner;
use super::error::Error;
use crate::format::id::ObjectId;
use crate::format::sums::{PackSum, SUMS_SIZE, lines};
use crate::format::{Digest, PackId, name};
use crate::session::Remover;

/// The maximum number of packs in a joined list.
const LINES: usize = 4096;
/// Lists with fewer packs than that are joined if there are at least this many.
const SMALL_LISTS: usize = 64;

/// A list that has a successor.
struct Replaced {
    object: String,
    /// Its packs that are about to be removed.
    gone: Vec<PackId>,
}

/// Writes successors of the lists that name packs in `gone`, then removes these lists. Takes the packs out of `gone` whose
/// list cannot be removed: no list may name a pack that is gone.
pub(super) fn rewrite(pruner: &Pruner<'_>, remover: &Remover<'_>, gone: &mut HashSet<PackId>) -> Result<(), Error> {
    let target = pruner.session.repository().target();
    let mut lists = Vec::new();
    for object in target.list(name::SUMS)? {
        if name::parse_sums(&object.name).is_some() {
            lists.push(object);
        }
    }
    // About the length of a line.
    let is_small = |length: u64| length < LINES as u64 * 100;
    // Where lists cannot be removed, each join would only add another one.
    let join =
        pruner.clock.retained.get() == 0 && lists.iter().filter(|list| is_small(list.length)).count() >= SMALL_LISTS;
    let mut rest: Vec<(PackId, Digest)> = Vec::new();
    let mut replaced = Vec::new();
    for list in lists {
        pruner.inventory.check_interrupted()?;
        let bytes = target.get(&list.name, SUMS_SIZE)?;
        let found: Vec<_> = lines(&bytes).collect();
        let named: Vec<_> = found.iter().flatten().map(|line| line.pack).filter(|pack| gone.contains(pack)).collect();
        // A list that is damaged stays: `check` reports it.
        let whole = found.iter().all(|line| matches!(line, Some(PackSum { digest: Some(_), .. })));
        if !whole || !(!named.is_empty() || (join && is_small(list.length))) {
            continue;
        }
        let sums = found.into_iter().flatten().filter(|line| !gone.contains(&line.pack));
        rest.extend(sums.filter_map(|line| Some((line.pack, line.digest?))));
        replaced.push(Replaced { object: list.name, gone: named });
        if rest.len() >= LINES {
            put(pruner, &mut rest)?;
            remove(pruner, remover, &mut replaced, gone)?;
        }
    }
    put(pruner, &mut rest)?;
    remove(pruner, remover, &mut replaced, gone)
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
    for list in lists.drain(..) {
        if !pruner.remove(remover, &list.object)? {
            list.gone.iter().for_each(|pack| _ = gone.remove(pack));
        }
    }
    Ok(())
}
