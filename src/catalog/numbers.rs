//! Integers in compact blobs: LEB128, with delta encoding for lists.

use super::ids::BlockId;

/// Appends `value` in LEB128.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Removes a number from the front of `bytes`. Returns `None` if it is truncated or too large.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a signed number in zigzag encoding.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Removes a signed number from the front of `bytes`.
pub(super) fn take_signed(bytes: &mut &[u8]) -> Option<i64> {
    let value = take(bytes)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Encodes a list of blocks, keeping order and repetitions.
pub(super) fn from_blocks(blocks: &[BlockId]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() * 2);
    let mut last = 0;
    for BlockId(block) in blocks {
        put_signed(&mut out, (*block as i64).wrapping_sub(last));
        last = *block as i64;
    }
    out
}

/// Decodes a list of blocks.
pub(super) fn to_blocks(mut bytes: &[u8]) -> Option<Vec<BlockId>> {
    let mut blocks = Vec::with_capacity(bytes.len());
    let mut last = 0i64;
    while !bytes.is_empty() {
        last = last.wrapping_add(take_signed(&mut bytes)?);
        blocks.push(BlockId(last as u64));
    }
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for value in [0, 1, 127, 128, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(take(&mut out.as_slice()), Some(value));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            assert_eq!(take_signed(&mut out.as_slice()), Some(value));
        }
        let blocks: Vec<_> = [5, 6, 6, 1, 1 << 40].map(BlockId).into();
        assert_eq!(to_blocks(&from_blocks(&blocks)), Some(blocks));
        assert_eq!(take(&mut [0xff; 20].as_slice()), None);
        assert_eq!(to_blocks(&[0x80]), None);
    }
}
