//! Lists of the digests of packs, one line each, in the format of `b3sum --check`.
//!
//! They are neither signed nor encrypted, so that the operator of a storage can check it.

use super::id::{Digest, PackId};
use super::name;

/// Maximum size of a list that readers accept, in bytes.
pub const SUMS_SIZE: usize = 64 << 20;

/// A line of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSum {
    /// The pack.
    pub pack: PackId,
    /// The digest of its bytes; `None` if it is malformed.
    pub digest: Option<Digest>,
}

/// Encodes a list.
pub fn encode(sums: &[(PackId, Digest)]) -> String {
    sums.iter().map(|(pack, digest)| format!("{digest}  {}\n", name::pack(*pack))).collect()
}

/// The lines of a list; `None` for a line that does not name a pack.
pub fn lines(list: &[u8]) -> impl Iterator<Item = Option<PackSum>> {
    list.split_inclusive(|byte| *byte == b'\n').map(|line| parse(line.strip_suffix(b"\n").unwrap_or(line)))
}

/// Whether the list ends with a complete line.
pub fn is_complete(list: &[u8]) -> bool {
    list.ends_with(b"\n")
}

fn parse(line: &[u8]) -> Option<PackSum> {
    let (digest, pack) = std::str::from_utf8(line).ok()?.split_once("  ")?;
    let pack = name::parse_pack(pack)?;
    Some(PackSum { pack, digest: parse_digest(digest) })
}

/// Parses a digest as [`Digest`] is displayed: 64 hexadecimal digits in lower case.
fn parse_digest(text: &str) -> Option<Digest> {
    let digest = Digest::from(blake3::Hash::from_hex(text).ok()?);
    (digest.to_string() == text).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_decoded_as_it_was_encoded() {
        let sums = [1u8, 2].map(|byte| (PackId::random(), Digest::of(&[byte])));
        let list = encode(&sums);
        assert!(is_complete(list.as_bytes()));
        let decoded: Vec<_> = lines(list.as_bytes()).map(Option::unwrap).collect();
        assert_eq!(decoded, sums.map(|(pack, digest)| PackSum { pack, digest: Some(digest) }));
    }

    #[test]
    fn damaged_lines_do_not_hide_the_others() {
        let [a, b, c] = [PackId::random(), PackId::random(), PackId::random()];
        let digest = Digest::of(b"pack");
        let upper = digest.to_string().to_uppercase();
        let list = format!(
            "00  {}\nneither\n{upper}  {}\n22  packs/x\n\n{digest}  {}",
            name::pack(a),
            name::pack(b),
            name::pack(c)
        );
        let mut list = list.into_bytes();
        list.splice(0..0, *b"\xff  packs\n");
        assert!(!is_complete(&list));
        let found: Vec<_> = lines(&list).collect();
        let malformed = |pack| Some(PackSum { pack, digest: None });
        let last = Some(PackSum { pack: c, digest: Some(digest) });
        assert_eq!(found, [None, malformed(a), None, malformed(b), None, None, last]);
    }

    #[test]
    fn an_empty_list_has_no_lines() {
        assert_eq!(lines(b"").count(), 0);
        assert!(!is_complete(b""));
    }
}
