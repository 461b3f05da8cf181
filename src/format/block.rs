//! Blocks before sealing: one zstd frame, and padding that hides its exact length.
//!
//! The lengths of stored chunks are a fingerprint of known files (Truong et al., "Breaking and Fixing Content-Defined
//! Chunking"; Alexeev et al., eprint 2025/532). So a block with a single chunk is padded with a zstd skippable frame
//! (RFC 8878, 3.1.2), which decompressors ignore, to the next Padmé length (Nikitin et al., "Reducing Metadata Leakage from
//! Encrypted Files and Communication with PURBs"). The padding is at most 12 %, for a block of a megabyte at most 3 %.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::error::Error;
use super::limits::BLOCK_SIZE;

/// The size of a skippable frame's header: magic number and length.
const SKIPPABLE_HEADER: usize = 8;
/// The first of the sixteen magic numbers of a skippable frame, little endian.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Compresses blocks. Holds zstd's working memory, so each worker allocates it only once.
pub struct Encoder {
    compressor: Compressor<'static>,
}

impl Encoder {
    /// `level` is the zstd level: 1 to 19, or negative for even faster compression.
    pub fn new(level: i32) -> Result<Self, Error> {
        Ok(Encoder { compressor: Compressor::new(level).map_err(Error::Compress)? })
    }

    /// Compresses `plaintext` (at most [`BLOCK_SIZE`] bytes) into `frame`, which is cleared first. Pads it if `pad` is set.
    pub fn encode(&mut self, plaintext: &[u8], pad: bool, frame: &mut Vec<u8>) -> Result<(), Error> {
        if plaintext.len() > BLOCK_SIZE {
            return Err(Error::TooLarge { what: "block", found: plaintext.len() as u64, limit: BLOCK_SIZE as u64 });
        }
        frame.clear();
        frame.reserve_exact(zstd::zstd_safe::compress_bound(plaintext.len()));
        self.compressor.compress_to_buffer(plaintext, frame).map_err(Error::Compress)?;
        if pad {
            append_padding(frame);
        }
        Ok(())
    }
}

/// Pads a frame to a Padmé length.
fn append_padding(frame: &mut Vec<u8>) {
    let mut target = padme(frame.len());
    while target != frame.len() && target - frame.len() < SKIPPABLE_HEADER {
        target = padme(target + 1);
    }
    if target > frame.len() {
        let filler = target - frame.len() - SKIPPABLE_HEADER;
        frame.extend(SKIPPABLE_MAGIC);
        frame.extend((filler as u32).to_le_bytes());
        frame.resize(target, 0);
    }
}

/// Returns the smallest Padmé length of at least `length`: only its highest bits may be set, as many as the logarithm of
/// the length has bits.
fn padme(length: usize) -> usize {
    if length < 2 {
        return length;
    }
    let exponent = length.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1usize << exponent.saturating_sub(kept)) - 1;
    (length + mask) & !mask
}

thread_local! {
    /// zstd's working memory for decompression, allocated once per thread.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decompresses a block into a buffer from `take`, which gets the length that the frame announces. Never writes more than
/// the buffer's capacity. Refuses a frame that announces no length or more than [`BLOCK_SIZE`], or has another length.
pub fn decode(frame: &[u8], take: impl FnOnce(usize) -> Vec<u8>) -> Result<Vec<u8>, Error> {
    let size = zstd::zstd_safe::get_frame_content_size(frame)
        .map_err(|e| Error::Decompress(e.to_string()))?
        .ok_or_else(|| Error::Decompress("the frame does not announce its size".into()))?;
    if size > BLOCK_SIZE as u64 {
        return Err(Error::TooLarge { what: "block", found: size, limit: BLOCK_SIZE as u64 });
    }
    let mut plaintext = take(size as usize);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(ready) => ready,
            None => slot.insert(Decompressor::new().map_err(|e| Error::Decompress(e.to_string()))?),
        };
        decompressor.decompress_to_buffer(frame, &mut plaintext).map_err(|e| Error::Decompress(e.to_string()))
    })?;
    if plaintext.len() as u64 != size {
        return Err(Error::Decompress(format!("found {} bytes instead of {size}", plaintext.len())));
    }
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(plaintext: &[u8], pad: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        Encoder::new(3).unwrap().encode(plaintext, pad, &mut frame).unwrap();
        frame
    }

    #[test]
    fn round_trip_with_and_without_padding() {
        for size in [0, 1, 100, 4096, BLOCK_SIZE - 1, BLOCK_SIZE] {
            let plaintext: Vec<u8> = (0..size).map(|i| (i * i % 251) as u8).collect();
            for pad in [false, true] {
                let frame = encoded(&plaintext, pad);
                assert_eq!(decode(&frame, Vec::with_capacity).unwrap(), plaintext);
                if pad {
                    assert_eq!(padme(frame.len()), frame.len());
                }
            }
        }
        let mut frame = Vec::new();
        assert!(Encoder::new(3).unwrap().encode(&vec![0; BLOCK_SIZE + 1], false, &mut frame).is_err());
    }

    #[test]
    fn padded_lengths_are_as_in_the_paper() {
        assert_eq!([0, 1, 2, 9, 10, 100, 1000, 65537].map(padme), [0, 1, 2, 10, 10, 104, 1024, 67584]);
        let overhead = (1..200_000usize).map(|n| padme(n) as f64 / n as f64).fold(0.0, f64::max);
        assert!(overhead < 1.12);
    }

    #[test]
    fn bombs_and_malformed_frames_are_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 * BLOCK_SIZE], 1).unwrap();
        assert!(matches!(decode(&bomb, Vec::with_capacity), Err(Error::TooLarge { .. })));
        // Two frames: together they are longer than the first one announces.
        let mut twice = encoded(b"one", false);
        twice.extend(encoded(b"two", false));
        assert!(decode(&twice, Vec::with_capacity).is_err());
        // Frames that announce no size, a wrong size, or a window of any size, which must not cost memory.
        let plaintext = vec![7; 1000];
        let silent = zstd::stream::encode_all(plaintext.as_slice(), 1).unwrap();
        assert!(decode(&silent, Vec::with_capacity).unwrap_err().to_string().contains("does not announce its size"));
        let honest = encoded(&plaintext, false);
        // Magic number, descriptor (single segment, two bytes of size), and the size minus 256.
        assert_eq!(honest[4] & 0xe0, 0x60);
        for size in [0u16, 743, 745, 60_000] {
            let mut lying = honest.clone();
            lying[5..7].copy_from_slice(&size.to_le_bytes());
            assert!(decode(&lying, Vec::with_capacity).is_err(), "{size}");
        }
        for exponent in [0u8, 10, 20, 31] {
            // Not a single segment, a window of 2^(10 + exponent) bytes, eight bytes of size.
            let mut wide = [&honest[..4], &[0xc0, exponent << 3], &1000u64.to_le_bytes(), &honest[7..]].concat();
            if let Ok(decoded) = decode(&wide, Vec::with_capacity) {
                assert_eq!(decoded, plaintext);
            }
            wide[6..14].copy_from_slice(&u64::MAX.to_le_bytes());
            assert!(decode(&wide, Vec::with_capacity).is_err());
        }
        assert!(decode(b"", Vec::with_capacity).is_err());
        assert!(decode(b"not zstd at all", Vec::with_capacity).is_err());
        let whole = encoded(&[7; 1000], true);
        for length in 0..whole.len() {
            match decode(&whole[..length], Vec::with_capacity) {
                Ok(plaintext) => assert_eq!(plaintext, [7; 1000]),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}
