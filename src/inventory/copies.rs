//! Finds other copies of blocks whose carrier is lost.
//!
//! Packs that were compacted stay until the grace period is over, so a block may lie in its birth pack or in a former carrier.

use super::context::Inventory;
use super::error::Error;
use super::reconcile::is_foreign;
use crate::catalog::Catalog;

impl Inventory<'_> {
    /// Lets the catalog refer to other copies of blocks whose carrier is lost or damaged, if there are any.
    pub fn find_copies(&self, catalog: &Catalog) -> Result<(), Error> {
        if !catalog.has_lost_moves()? {
            return Ok(());
        }
        self.list_packs(catalog)?;
        catalog.undo_lost_moves()?;
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => index.carriers.iter().try_for_each(|carrier| catalog.replace_lost_moves(carrier))?,
                Err(error) if is_foreign(&error) => {}
                // The only copies may be named there.
                Err(error) => return Err(error.into()),
            }
        }
        Ok(catalog.begin_listing()?)
    }

    /// Lists packs, and fails if no pack of the catalog is in the repository: its disk may not be mounted. The list stays in
    /// the catalog until [`Catalog::begin_listing`].
    pub fn require_packs(&self, catalog: &Catalog) -> Result<(), Error> {
        self.list_packs(catalog)?;
        if !catalog.any_listed()? {
            return Err(Error::NoPacks);
        }
        Ok(())
    }
}
