//! The digest of a file's content: its bytes, and where its holes are.

use super::Digest;

/// Separates the digest of a file with holes from that of any file whose bytes happen to be the same.
const HOLES: &str = "brackfs 2026 file with holes";

/// Computes a file's digest from its stretches in order.
///
/// Without holes it is BLAKE3 of the bytes, as `b3sum` prints it. With holes it is BLAKE3 in its key derivation mode
/// of the offset and length of each hole, both as 64 bits in big-endian order, and then BLAKE3 of all bytes between
/// the holes. Holes that touch count as one, so the digest does not depend on how a hole is cut into pieces.
#[derive(Debug, Clone, Default)]
pub struct ContentHasher {
    data: blake3::Hasher,
    /// The finished holes. Files that have none never make it.
    holes: Option<Box<blake3::Hasher>>,
    /// Offset and length of the hole that ends at `at`.
    open: Option<(u64, u64)>,
    at: u64,
}

impl ContentHasher {
    /// Adds bytes.
    pub fn data(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(hole) = self.open.take() {
            add(self.holes.get_or_insert_with(holes), hole);
        }
        self.data.update(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
    }

    /// Adds a hole.
    pub fn hole(&mut self, length: u64) {
        if length > 0 {
            let (_, open) = self.open.get_or_insert((self.at, 0));
            *open = open.saturating_add(length);
            self.at = self.at.saturating_add(length);
        }
    }

    /// Returns the digest of all stretches so far.
    pub fn finish(&self) -> Digest {
        let data = self.data.finalize();
        let mut layout = match (&self.holes, self.open) {
            (None, None) => return data.into(),
            (closed, _) => closed.clone().unwrap_or_else(holes),
        };
        if let Some(hole) = self.open {
            add(&mut layout, hole);
        }
        layout.update(data.as_bytes()).finalize().into()
    }
}

fn holes() -> Box<blake3::Hasher> {
    Box::new(blake3::Hasher::new_derive_key(HOLES))
}

fn add(layout: &mut blake3::Hasher, (start, length): (u64, u64)) {
    layout.update(&start.to_be_bytes()).update(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Stretch<'a> {
        Data(&'a [u8]),
        Hole(u64),
    }
    use Stretch::{Data, Hole};

    fn digest(stretches: &[Stretch<'_>]) -> Digest {
        let mut hasher = ContentHasher::default();
        for stretch in stretches {
            match stretch {
                Data(bytes) => hasher.data(bytes),
                Hole(length) => hasher.hole(*length),
            }
        }
        hasher.finish()
    }

    #[test]
    fn without_holes_it_is_the_digest_of_the_bytes() {
        assert_eq!(digest(&[]), Digest::of(b""));
        assert_eq!(digest(&[Data(b"ab"), Data(b"c"), Hole(0)]), Digest::of(b"abc"));
    }

    #[test]
    fn layouts_of_the_same_bytes_differ() {
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
    fn holes_that_touch_are_one() {
        let whole = digest(&[Data(b"a"), Hole(30), Data(b"b"), Hole(7)]);
        assert_eq!(digest(&[Data(b"a"), Hole(10), Data(b""), Hole(20), Data(b"b"), Hole(0), Hole(7)]), whole);
    }

    #[test]
    fn no_file_has_the_digest_of_another_ones_layout() {
        // The bytes that are digested for a hole of 5 bytes, as the content of a file.
        let mut layout = Vec::new();
        layout.extend([0u64.to_be_bytes(), 5u64.to_be_bytes()].concat());
        layout.extend(Digest::of(b"x").0);
        assert_ne!(digest(&[Data(&layout)]), digest(&[Hole(5), Data(b"x")]));
    }
}
