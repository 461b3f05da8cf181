//! Writes shards of moves, which say where blocks lie that were moved, and chunks that were lost and stored again.

use super::error::Error;
use super::open::Session;
use crate::catalog::{Catalog, Folder};
use crate::format::id::ObjectId;
use crate::format::moved::Moved;
use crate::inventory::Inventory;

impl Session<'_> {
    /// Replaces the shards in the repository that are out of date. The packs that the new ones name must be stored.
    pub fn write_shards(&self, inventory: &Inventory<'_>, catalog: &mut Catalog) -> Result<(), Error> {
        let prefixes = catalog.dirty_shards()?;
        if prefixes.is_empty() {
            return Ok(());
        }
        self.announce(catalog)?;
        self.still_alone()?;
        let generation = self.generation();
        for prefix in prefixes {
            inventory.check_interrupted()?;
            let replaces: Vec<_> = catalog
                .documents()?
                .into_iter()
                .filter(|known| known.folder == Folder::Moved(prefix) && known.replaced.is_none())
                .map(|known| known.id)
                .collect();
            let (id, moved) = (ObjectId::random(), Moved { generation, replaces, ..catalog.shard(prefix)? });
            self.writer().put_moved(prefix, id, &moved)?;
            catalog.add_document(Folder::Moved(prefix), id, generation, &moved.replaces)?;
            catalog.set_shard_written(prefix)?;
            catalog.commit()?;
        }
        Ok(())
    }
}
