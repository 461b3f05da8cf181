//! Finds chunks of lost and damaged packs in other packs, so that older snapshots can read them there.

use super::context::Inventory;
use super::error::Error;
use super::reconcile::is_foreign;
use crate::catalog::Catalog;
use crate::failure::{Failure, FailureKind};
use crate::format::index::Index;

impl Inventory<'_> {
    /// Finds new places for chunks of lost and damaged packs, and returns how many. Shards of moves name them once they are
    /// written. All packs of the catalog must be stored. Reads indexes only after a loss.
    pub fn place_lost_chunks(&self, catalog: &Catalog) -> Result<u64, Error> {
        let lost = catalog.unsearched_losses()?;
        if !lost.is_empty() {
            self.each_index(&mut |index| {
                Ok(index.packs.iter().try_for_each(|pack| catalog.note_lost_chunks(pack))?)
            })?;
            // A chunk may be in two packs, of which the catalog knew only the one that is lost.
            self.each_index(&mut |index| Ok(index.packs.iter().try_for_each(|pack| catalog.restore_chunks(pack))?))?;
            catalog.set_searched(&lost)?;
        }
        Ok(catalog.place_lost_chunks()?)
    }

    /// Calls `act` with each index that this machine can use.
    fn each_index(&self, act: &mut dyn FnMut(Index) -> Result<(), Error>) -> Result<(), Error> {
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => act(index)?,
                Err(error) if error.kind() == FailureKind::Unavailable && !is_foreign(&error) => {
                    return Err(error.into());
                }
                // Without it, some chunks are not found, and stored again if they are at the source.
                Err(_) => {}
            }
        }
        Ok(())
    }
}
