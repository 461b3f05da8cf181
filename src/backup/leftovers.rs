//! What a run left that did not come to its end.
//!
//! A kill, a power cut or a full disk leaves at most: temporaries, on file systems without nameless files; packs that
//! an index names, and the catalog does not know yet; packs that no index names; and a list of sums of such packs. What
//! an index names is taken into the catalog, so that it is not stored again. To the rest nobody refers, nobody ever
//! will, and this machine alone can have written it: the next run that writes removes it, after it has announced itself.
//!
//! If an index can't be read everything stays. Where nothing may be deleted, leftovers take space and nothing else; that
//! is said, and the backup goes on.

use std::collections::HashMap;

use super::Error;
use super::session::Session;
use crate::catalog::Catalog;
use crate::format::id::ObjectId;
use crate::format::{PackId, name};
use crate::monitor::Monitor;

/// Most bytes of a list of sums.
const SUMS_SIZE: usize = 64 << 20;

/// Takes in or removes what the last run left, if it did not come to its end. Announces this run before.
pub(super) fn clear(session: &Session<'_>, catalog: &mut Catalog, monitor: &dyn Monitor) -> Result<(), Error> {
    if !session.after_unfinished {
        return Ok(());
    }
    // Who could be writing at this moment with a copy of this catalog is refused from here on.
    session.announce(catalog)?;
    if let Err(error) = remove(session, catalog) {
        monitor.note(&format!(
            "what a run left that did not come to its end was not removed: {error}; it takes space and nothing else"
        ));
    }
    Ok(catalog.commit()?)
}

fn remove(session: &Session<'_>, catalog: &Catalog) -> Result<(), Error> {
    let target = session.repository.target();
    target.remove_temporaries(&name::FOLDERS)?;
    let mut orphans = unknown(session, catalog)?;
    if orphans.is_empty() {
        return Ok(());
    }
    for object in target.list(name::INDEX)? {
        let id = object.name.strip_prefix(name::INDEX).and_then(|id| id.parse::<ObjectId>().ok());
        let Some(id) = id else { continue };
        for pack in session.access.index(session.repository, id)?.packs {
            if let Some(length) = orphans.remove(&pack.id)
                && length == pack.length()
            {
                catalog.import_pack(&pack, true)?;
            }
        }
    }
    if orphans.is_empty() {
        return Ok(());
    }
    // Sums before packs: no list may name a pack that is gone.
    for object in target.list(name::SUMS)? {
        let text = target.get(&object.name, SUMS_SIZE)?;
        let packs = packs_of(&text);
        match !packs.is_empty() && packs.iter().all(|pack| orphans.contains_key(pack)) {
            true => target.remove(&object.name)?,
            false => packs.iter().for_each(|pack| _ = orphans.remove(pack)),
        }
    }
    for pack in orphans.into_keys() {
        target.remove(&name::pack(pack))?;
    }
    Ok(())
}

/// Packs that the catalog does not know, and their bytes. It is asked by the heads of their ids, of which many fit into
/// memory; that two share one is next to impossible, and then the second stays.
fn unknown(session: &Session<'_>, catalog: &Catalog) -> Result<HashMap<PackId, u64>, Error> {
    let known = catalog.pack_heads()?;
    let mut unknown = HashMap::new();
    session.repository.target().visit(name::PACKS, &mut |object| {
        if let Some(pack) = name::parse_pack(&object.name)
            && known.binary_search(&head(pack)).is_err()
        {
            unknown.insert(pack, object.length);
        }
    })?;
    Ok(unknown)
}

fn head(pack: PackId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *pack.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The packs that a list of sums names.
fn packs_of(sums: &[u8]) -> Vec<PackId> {
    let text = String::from_utf8_lossy(sums);
    text.lines().filter_map(|line| name::parse_pack(line.split_once("  ")?.1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_sums_names_packs() {
        let [a, b] = [PackId::random(), PackId::random()];
        let text = format!("00  {}\n11  {}\nneither\n22  packs/x\n", name::pack(a), name::pack(b));
        assert_eq!(packs_of(text.as_bytes()), [a, b]);
    }
}
