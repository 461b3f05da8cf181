//! Repairs a damaged catalog: drops damaged claims, and restores them from the repository where possible.
//!
//! The state of files is recovered by reading the files again in the next backup, the locations of chunks from indexes.
//! If rows of packs, blocks or snapshots are damaged, or the database itself, repair fails and the catalog must be
//! rebuilt.

use super::context::Inventory;
use super::error::Error;
use crate::catalog::{Catalog, Claims};

impl Inventory<'_> {
    /// Drops the damaged claims of a catalog, and adds dropped chunks again from the indexes.
    pub fn mend(&self, catalog: &mut Catalog) -> Result<Claims, Error> {
        let dropped = catalog.mend()?;
        if dropped.chunks > 0 {
            for id in self.indexes()? {
                self.check_interrupted()?;
                // An unreadable index only costs space: its chunks are stored again.
                let Ok(index) = self.access.index(self.repository, id) else { continue };
                index.packs.iter().try_for_each(|pack| catalog.restore_chunks(pack))?;
            }
        }
        catalog.commit()?;
        Ok(dropped)
    }
}
