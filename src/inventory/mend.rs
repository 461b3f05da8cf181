//! A damaged catalog is mended: what is damaged is dropped, and learnt again as far as the repository tells.
//!
//! How files looked is told by the files, which are read once more. Where chunks lie is told by the indexes. If packs,
//! blocks or snapshots are damaged, or the database itself, the caller gets an error, and a new catalog has to be built.

use super::{Error, Inventory};
use crate::catalog::{Catalog, Claims};

impl Inventory<'_> {
    /// Drops what is damaged in a catalog, and adds chunks again that are lost by that.
    pub fn mend(&self, catalog: &mut Catalog) -> Result<Claims, Error> {
        let dropped = catalog.mend()?;
        if dropped.chunks > 0 {
            for id in self.indexes()? {
                self.check_interrupted()?;
                // One that can't be read costs space: its chunks are stored again.
                let Ok(index) = self.access.index(self.repository, id) else { continue };
                index.packs.iter().try_for_each(|pack| catalog.restore_chunks(pack))?;
            }
        }
        catalog.commit()?;
        Ok(dropped)
    }
}
