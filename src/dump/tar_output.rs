//! Output of an archive: blocks of 512 bytes, in records of 20 blocks.

use std::io::{self, BufWriter, Write};

/// Block size in bytes. Headers and content begin at a block boundary.
pub(super) const BLOCK: u64 = 512;
/// Record size in bytes. Archives are padded to whole records.
const RECORD: u64 = 20 * BLOCK;
/// Size in bytes of the write buffer, which combines headers and small files.
const BUFFER: usize = 256 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

pub(super) struct TarOutput<W: Write> {
    to: BufWriter<W>,
    written: u64,
}

impl<W: Write> TarOutput<W> {
    pub(super) fn new(to: W) -> Self {
        TarOutput { to: BufWriter::with_capacity(BUFFER, to), written: 0 }
    }

    /// The number of bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let some = count.min(ZEROS.len() as u64);
            self.write(ZEROS.get(..some as usize).unwrap_or_default())?;
            count -= some;
        }
        Ok(())
    }

    /// Pads the archive with zeros to a whole block.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.zeros(self.written.next_multiple_of(BLOCK) - self.written)
    }

    /// Writes the end-of-archive mark, two blocks of zeros, and pads to a whole record.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK)?;
        self.zeros(self.written.next_multiple_of(RECORD) - self.written)?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_ends_with_two_zero_blocks_and_a_whole_record() {
        for (bytes, expected) in [(0, RECORD), (1, RECORD), (9 * 1024, RECORD), (9 * 1024 + 1, 2 * RECORD)] {
            let mut out = Vec::new();
            let mut archive = TarOutput::new(&mut out);
            archive.write(&vec![1; bytes]).and_then(|()| archive.pad()).and_then(|()| archive.finish()).unwrap();
            drop(archive);
            assert_eq!(out.len() as u64, expected, "{bytes}");
            assert!(out.iter().rev().take(1024).all(|byte| *byte == 0));
        }
    }
}
