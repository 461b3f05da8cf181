//! Where content that was read ahead waits.

use super::budget::Budget;
use super::spill::SpillFile;
use crate::backup::error::Error;
use crate::backup::limits::{ATTRIBUTES_AHEAD, LARGE_AHEAD, SMALL_AHEAD, SmallReading, small_reading};
use crate::source::WholeReader;

/// Where the chunks of a reader wait.
pub(in crate::backup) enum Lane {
    /// In memory that was lent with the job.
    Lent,
    /// In memory that is lent one chunk at a time.
    Memory(Budget),
    /// In a temporary file.
    Spill(SpillFile),
}

/// Where content waits: that of small files, and that of large ones. Each has room of its own, since the assembler takes
/// files in the order of the walk, and one kind must not wait for the other.
pub(in crate::backup) struct Lanes {
    pub(in crate::backup) small: Lane,
    pub(in crate::backup) large: Lane,
    /// Lends memory for small files to the walk.
    pub(in crate::backup) budget: Option<Budget>,
    /// Lends memory for large sets of attributes.
    pub(in crate::backup) attributes: Budget,
    /// How small files are read. Files that are spilled wait for room when they are read: with a single reader the first one
    /// in the walk gets it first.
    pub(in crate::backup) reading: SmallReading,
}

impl Lanes {
    pub(in crate::backup) fn new(low_memory: bool) -> Result<Self, Error> {
        let attributes = Budget::new(ATTRIBUTES_AHEAD);
        let reading = small_reading(WholeReader::reads_in_batches());
        if low_memory {
            let [small, large] = [SpillFile::new()?, SpillFile::new()?].map(Lane::Spill);
            return Ok(Lanes {
                small,
                large,
                budget: None,
                attributes,
                reading: SmallReading { readers: 1, ..reading },
            });
        }
        let (small, large) = (Lane::Lent, Lane::Memory(Budget::new(LARGE_AHEAD)));
        Ok(Lanes { small, large, budget: Some(Budget::new(SMALL_AHEAD)), attributes, reading })
    }

    /// Wakes all threads that wait for room.
    pub(in crate::backup) fn close(&self) {
        for lane in [&self.small, &self.large] {
            match lane {
                Lane::Memory(budget) => budget.close(),
                Lane::Spill(file) => file.close(),
                Lane::Lent => {}
            }
        }
        self.attributes.close();
        if let Some(budget) = &self.budget {
            budget.close();
        }
    }
}
