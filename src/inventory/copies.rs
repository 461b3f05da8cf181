//! Finds other copies of blocks whose carrier is lost.
//!
//! Packs that were compacted stay until the grace period is over, so a block may lie in its birth pack or in a former carrier.

use super::context::Inventory;
use super::error::Error;
use crate::catalog::Catalog;

impl Inventory<'_> {
    /// Lets the catalog refer to other copies of blocks whose carrier is lost or damaged, if there are any.
    pub fn find_copies(&self, catalog: &Catalog) -> Result<(), Error> {
        if !catalog.has_lost_moves()? {
            return Ok(());
        }
        catalog.undo_lost_moves()?;
        for id in self.indexes()? {
            self.check_interrupted()?;
            // Indexes that cannot be read are reported when the repository is compared with the catalog.
            if let Ok(index) = self.access.index(self.repository, id) {
                index.carriers.iter().try_for_each(|carrier| catalog.replace_lost_moves(carrier))?;
            }
        }
        Ok(())
    }

    /// Fails if no pack of the catalog is in the repository: its disk may not be mounted.
    pub fn require_packs(&self, catalog: &Catalog) -> Result<(), Error> {
        self.list_packs(catalog)?;
        if !catalog.any_listed()? {
            return Err(Error::NoPacks);
        }
        Ok(())
    }
}
