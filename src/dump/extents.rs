//! The extent map of a sparse file, as in GNU tar's sparse format 1.0.
//!
//! The map precedes the data and consists of decimal numbers: the number of extents, then offset and length of each.
//! GNU tar starts the data of each extent at a block boundary; other readers expect it directly after the previous
//! extent. Extents of whole blocks suit both. So each extent is rounded up to a block, unless it ends with the file,
//! and extents that overlap or touch after rounding are merged. If the file ends in a hole, an empty extent at its end
//! gives its size.

use super::tar_output::BLOCK;

/// A range of a file that is written to the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataExtent {
    pub(super) start: u64,
    pub(super) length: u64,
}

impl DataExtent {
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// The two lines of the extent in the map.
    pub(super) fn line(&self) -> String {
        format!("{}\n{}\n", self.start, self.length)
    }
}

/// Merges a file's stored chunks, in order, into extents. Uses constant memory.
pub(super) struct DataExtents {
    size: u64,
    /// The current extent, not rounded.
    open: Option<DataExtent>,
}

impl DataExtents {
    /// The extents of a file of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        DataExtents { size, open: None }
    }

    /// Adds the next stored bytes. Returns the previous extent if they do not belong to it.
    pub(super) fn push(&mut self, start: u64, length: u64) -> Option<DataExtent> {
        match self.open {
            Some(open) if start <= self.rounded(open).end() => {
                let end = start.saturating_add(length);
                self.open = Some(DataExtent { start: open.start, length: end - open.start });
                None
            }
            before => {
                self.open = Some(DataExtent { start, length });
                before.map(|extent| self.rounded(extent))
            }
        }
    }

    /// Returns the last extents: the current one, and an empty one if the file ends in a hole.
    pub(super) fn finish(self) -> Vec<DataExtent> {
        let last = self.open.map(|extent| self.rounded(extent));
        let end = last.map_or(0, |extent| extent.end());
        let hole = (end < self.size).then_some(DataExtent { start: self.size, length: 0 });
        last.into_iter().chain(hole).collect()
    }

    /// Rounds an extent up to a whole block or to the end of the file.
    fn rounded(&self, extent: DataExtent) -> DataExtent {
        let blocks = extent.length.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        DataExtent { length: blocks.min(self.size.saturating_sub(extent.start)), ..extent }
    }
}

/// The size of an extent map and of the data it describes.
#[derive(Debug, Default)]
pub(super) struct SparseMapSize {
    count: u64,
    /// Bytes of the extents' lines.
    lines: u64,
    /// Bytes of the extents' data.
    pub(super) data: u64,
}

impl SparseMapSize {
    pub(super) fn add(&mut self, extent: &DataExtent) {
        self.count += 1;
        self.lines += extent.line().len() as u64;
        self.data = self.data.saturating_add(extent.length);
    }

    /// The first line of the map.
    pub(super) fn heading(&self) -> String {
        format!("{}\n", self.count)
    }

    /// Bytes of the map, in whole blocks.
    pub(super) fn encoded(&self) -> u64 {
        (self.heading().len() as u64 + self.lines).next_multiple_of(BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The extents of a file, as (start, length).
    fn extents(size: u64, stored: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut extents = DataExtents::new(size);
        let mut found: Vec<_> = stored.iter().filter_map(|(start, length)| extents.push(*start, *length)).collect();
        found.extend(extents.finish());
        found.iter().map(|extent| (extent.start, extent.length)).collect()
    }

    #[test]
    fn adjacent_chunks_are_one_extent() {
        assert_eq!(extents(3000, &[(0, 1000), (1000, 2000)]), [(0, 3000)]);
        assert_eq!(extents(5120, &[(1024, 512), (1536, 100), (1636, 924)]), [(1024, 1536), (5120, 0)]);
    }

    #[test]
    fn extents_are_whole_blocks_unless_they_end_with_the_file() {
        assert_eq!(extents(9000, &[(100, 1), (2000, 513)]), [(100, 512), (2000, 1024), (9000, 0)]);
        assert_eq!(extents(9000, &[(8192, 808)]), [(8192, 808)]);
        // Rounding up does not exceed the file.
        assert_eq!(extents(9000, &[(8192, 600)]), [(8192, 808)]);
    }

    #[test]
    fn chunks_within_the_last_block_of_an_extent_are_merged_into_it() {
        assert_eq!(extents(9000, &[(0, 10), (500, 20), (1024, 1), (2048, 1)]), [(0, 1536), (2048, 512), (9000, 0)]);
    }

    #[test]
    fn a_file_without_data_has_one_empty_extent() {
        assert_eq!(extents(1 << 40, &[]), [(1 << 40, 0)]);
    }

    #[test]
    fn the_map_takes_whole_blocks() {
        let mut size = SparseMapSize::default();
        for start in 0..100 {
            size.add(&DataExtent { start: 10_000 + start * 1000, length: 512 });
        }
        // "100\n", 100 times "512\n", 90 offsets of five digits and 10 of six.
        assert_eq!(size.lines, 400 + 90 * 6 + 10 * 7);
        assert_eq!((size.heading().as_str(), size.encoded(), size.data), ("100\n", 1024, 51_200));
    }
}
