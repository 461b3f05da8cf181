//! Where the data of a sparse file is: its islands, as GNU tar's sparse format 1.0 lists them.
//!
//! The list comes before the data, in decimal: how many islands, then offset and length of each. GNU tar lets each
//! island's data begin at a block, other readers expect it right behind the one before. DataExtents of whole blocks suit
//! both, so each is rounded up, unless it ends with the file; what lies closer together becomes one island. A file
//! that ends in a hole has an empty island at its end, which says how long it is.

use super::archive::BLOCK;

/// A part of a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Island {
    pub(super) start: u64,
    pub(super) length: u64,
}

impl Island {
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Its two lines in the list.
    pub(super) fn line(&self) -> String {
        format!("{}\n{}\n", self.start, self.length)
    }
}

/// Finds islands in what is stored of a file, in order and in constant memory.
pub(super) struct DataExtents {
    size: u64,
    /// The island at hand, not rounded.
    open: Option<Island>,
}

impl DataExtents {
    /// Those of a file of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        DataExtents { size, open: None }
    }

    /// Takes the next stored bytes; gives the island before them, if they are not part of it.
    pub(super) fn push(&mut self, start: u64, length: u64) -> Option<Island> {
        match self.open {
            Some(open) if start <= self.rounded(open).end() => {
                let end = start.saturating_add(length);
                self.open = Some(Island { start: open.start, length: end - open.start });
                None
            }
            before => {
                self.open = Some(Island { start, length });
                before.map(|island| self.rounded(island))
            }
        }
    }

    /// The last islands: that at hand, and an empty one if the file ends in a hole.
    pub(super) fn finish(self) -> Vec<Island> {
        let last = self.open.map(|island| self.rounded(island));
        let end = last.map_or(0, |island| island.end());
        let hole = (end < self.size).then_some(Island { start: self.size, length: 0 });
        last.into_iter().chain(hole).collect()
    }

    /// Up to a whole block, or to the end of the file.
    fn rounded(&self, island: Island) -> Island {
        let blocks = island.length.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        Island { length: blocks.min(self.size.saturating_sub(island.start)), ..island }
    }
}

/// How much the islands of a file take.
#[derive(Debug, Default)]
pub(super) struct Size {
    count: u64,
    /// Bytes of their lines.
    lines: u64,
    /// Bytes of their data.
    pub(super) data: u64,
}

impl Size {
    pub(super) fn add(&mut self, island: &Island) {
        self.count += 1;
        self.lines += island.line().len() as u64;
        self.data = self.data.saturating_add(island.length);
    }

    /// The first line of the list.
    pub(super) fn heading(&self) -> String {
        format!("{}\n", self.count)
    }

    /// Bytes of the list, in whole blocks.
    pub(super) fn encoded(&self) -> u64 {
        (self.heading().len() as u64 + self.lines).next_multiple_of(BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The islands of a file, as (start, length).
    fn islands(size: u64, stored: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut islands = DataExtents::new(size);
        let mut found: Vec<_> = stored.iter().filter_map(|(start, length)| islands.push(*start, *length)).collect();
        found.extend(islands.finish());
        found.iter().map(|island| (island.start, island.length)).collect()
    }

    #[test]
    fn chunks_without_a_hole_between_them_are_one_island() {
        assert_eq!(islands(3000, &[(0, 1000), (1000, 2000)]), [(0, 3000)]);
        assert_eq!(islands(5120, &[(1024, 512), (1536, 100), (1636, 924)]), [(1024, 1536), (5120, 0)]);
    }

    #[test]
    fn islands_are_whole_blocks_unless_they_end_with_the_file() {
        assert_eq!(islands(9000, &[(100, 1), (2000, 513)]), [(100, 512), (2000, 1024), (9000, 0)]);
        assert_eq!(islands(9000, &[(8192, 808)]), [(8192, 808)]);
        // Rounded up it would end behind the file.
        assert_eq!(islands(9000, &[(8192, 600)]), [(8192, 808)]);
    }

    #[test]
    fn what_lies_in_the_blocks_of_an_island_becomes_part_of_it() {
        assert_eq!(islands(9000, &[(0, 10), (500, 20), (1024, 1), (2048, 1)]), [(0, 1536), (2048, 512), (9000, 0)]);
    }

    #[test]
    fn a_file_that_is_all_hole_has_one_empty_island() {
        assert_eq!(islands(1 << 40, &[]), [(1 << 40, 0)]);
    }

    #[test]
    fn the_list_takes_whole_blocks() {
        let mut size = Size::default();
        for start in 0..100 {
            size.add(&Island { start: 10_000 + start * 1000, length: 512 });
        }
        // "100\n", 100 times "512\n", 90 offsets of five digits and 10 of six.
        assert_eq!(size.lines, 400 + 90 * 6 + 10 * 7);
        assert_eq!((size.heading().as_str(), size.encoded(), size.data), ("100\n", 1024, 51_200));
    }
}
