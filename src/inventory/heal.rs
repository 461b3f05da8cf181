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
            let all_read = self.each_index(&mut |index| {
                index.packs.iter().try_for_each(|pack| catalog.note_lost_chunks(pack))?;
                Ok(())
            })?;
            // A chunk may be in two packs, of which the catalog knew only the one that is lost.
            self.each_index(&mut |index| {
                for pack in &index.packs {
                    catalog.restore_chunks_if(pack, |chunk| catalog.is_lost(chunk))?;
                }
                Ok(())
            })?;
            if all_read {
                catalog.set_searched(&lost)?;
            }
        }
        Ok(catalog.place_lost_chunks()?)
    }

    /// Calls `act` with each index that this machine can read. Returns whether all indexes of this machine were read; the lost
    /// chunks may be in one that was not.
    fn each_index(&self, act: &mut dyn FnMut(Index) -> Result<(), Error>) -> Result<bool, Error> {
        let mut all_read = true;
        for id in self.indexes()? {
            self.check_interrupted()?;
            match self.access.index(self.repository, id) {
                Ok(index) => act(index)?,
                Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                Err(error) => all_read &= is_foreign(&error),
            }
        }
        Ok(all_read)
    }
}
