//! The digest of a file's content: its bytes and the positions of its holes.

use super::id::Digest;

/// Key derivation context, so that the digest of a file with holes never equals that of a file without.
const HOLES: &str = "brackfs 2026 file with holes";

/// Computes a file's digest from its data and holes, in order.
///
/// Without holes it is the BLAKE3 digest of the bytes, as printed by `b3sum`. With holes it is a digest in BLAKE3's key
/// derivation mode: of the offset and length of each hole, both as 64-bit big-endian numbers, followed by the BLAKE3 digest
/// of all data. Adjacent holes are merged, so the digest does not depend on how a hole is split.
#[derive(Debug, Clone, Default)]
pub struct ContentHasher {
    data: blake3::Hasher,
    /// Hashes the finished holes; `None` before the first one.
    holes: Option<Box<blake3::Hasher>>,
    /// Offset and length of the hole that ends at `at`.
    open: Option<(u64, u64)>,
    /// The current offset in the file.
    at: u64,
}

impl ContentHasher {
    /// Adds data.
    pub fn data(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(hole) = self.open.take() {
            hash_hole(self.holes.get_or_insert_with(hole_hasher), hole);
        }
        self.data.update(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
    }

    /// Adds a hole of `length` bytes.
    pub fn hole(&mut self, length: u64) {
        if length > 0 {
            let (_, open) = self.open.get_or_insert((self.at, 0));
            *open = open.saturating_add(length);
            self.at = self.at.saturating_add(length);
        }
    }

    /// Returns the digest of all data and holes so far.
    pub fn finish(&self) -> Digest {
        let data = self.data.finalize();
        let mut layout = match (&self.holes, self.open) {
            (None, None) => return data.into(),
            (closed, _) => closed.clone().unwrap_or_else(hole_hasher),
        };
        if let Some(hole) = self.open {
            hash_hole(&mut layout, hole);
        }
        layout.update(data.as_bytes()).finalize().into()
    }
}

fn hole_hasher() -> Box<blake3::Hasher> {
    Box::new(blake3::Hasher::new_derive_key(HOLES))
}

fn hash_hole(layout: &mut blake3::Hasher, (start, length): (u64, u64)) {
    layout.update(&start.to_be_bytes()).update(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Part<'a> {
        Data(&'a [u8]),
        Hole(u64),
    }
    use Part::{Data, Hole};

    fn digest(parts: &[Part<'_>]) -> Digest {
        let mut hasher = ContentHasher::default();
        for part in parts {
            match part {
                Data(bytes) => hasher.data(bytes),
                Hole(length) => hasher.hole(*length),
            }
        }
        hasher.finish()
    }

    #[test]
    fn the_digest_of_a_file_without_holes_is_that_of_its_bytes() {
        assert_eq!(digest(&[]), Digest::of(b""));
        assert_eq!(digest(&[Data(b"ab"), Data(b"c"), Hole(0)]), Digest::of(b"abc"));
    }

    #[test]
    fn files_with_the_same_bytes_and_different_holes_have_different_digests() {
        let q = [b'q'; 16];
        let layouts = [
            digest(&[Data(&q)]),
            digest(&[Hole(16), Data(&q)]),
            digest(&[Data(&q), Hole(16)]),
            digest(&[Data(&q[..8]), Hole(16), Data(&q[8..])]),
            digest(&[Hole(8), Data(&q), Hole(8)]),
            digest(&[Hole(32)]),
            digest(&[]),
        ];
        for (at, one) in layouts.iter().enumerate() {
            assert!(!layouts[at + 1..].contains(one), "layout {at}");
        }
    }

    #[test]
    fn adjacent_holes_are_merged() {
        let whole = digest(&[Data(b"a"), Hole(30), Data(b"b"), Hole(7)]);
        assert_eq!(digest(&[Data(b"a"), Hole(10), Data(b""), Hole(20), Data(b"b"), Hole(0), Hole(7)]), whole);
    }

    #[test]
    fn a_file_with_the_hashed_bytes_of_a_layout_has_another_digest() {
        // A file whose content is the hash input for a hole of 5 bytes and data.
        let mut layout = Vec::new();
        layout.extend([0u64.to_be_bytes(), 5u64.to_be_bytes()].concat());
        layout.extend(Digest::of(b"x").0);
        assert_ne!(digest(&[Data(&layout)]), digest(&[Hole(5), Data(b"x")]));
    }
}
