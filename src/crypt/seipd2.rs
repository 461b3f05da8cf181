//! The encrypted packet of RFC 9580 (SEIPD version 2): authenticated chunks of AES-256-OCB.
//!
//! The keys are derived from the session key and a salt, so many messages can share a session key.

use sequoia_openpgp::crypto::aead::{SEIPv2Schedule, Schedule};
use sequoia_openpgp::crypto::{AEADAlgorithm, SessionKey, SymmetricAlgorithm};

use super::error::Error;
use super::framing::{self, Payload};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;
const MODE: AEADAlgorithm = AEADAlgorithm::OCB;
/// The ids of the cipher and the mode.
const SUITE: [u8; 2] = [9, 2];
const TAG: usize = 16;
const SALT: usize = 32;

/// Smaller chunks than 4 KiB gain nothing; larger ones than 256 KiB exceed the CPU cache.
const CHUNKS_WRITTEN: (usize, usize) = (4 << 10, 256 << 10);
/// The encoded size of the largest chunk that RFC 9580 requires readers to support, 4 MiB.
const MAX_CHUNK_OCTET: u8 = 16;

/// Appends the encrypted packet for `content`.
pub(super) fn seal(key: &SessionKey, payload: Payload, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let failed = Error::during("encrypt a message");
    let head = payload.head(content.len())?;
    let plain = head.len() + content.len();
    let chunk = plain.next_power_of_two().clamp(CHUNKS_WRITTEN.0, CHUNKS_WRITTEN.1);
    let sealed = plain + TAG * (plain.div_ceil(chunk) + 1);
    let mut salt = [0; SALT];
    getrandom::fill(&mut salt)?;

    let body = 4 + SALT + sealed;
    out.reserve(6 + body);
    framing::push_header(framing::SEIPD, body, out)?;
    out.extend([2, SUITE[0], SUITE[1], (chunk.trailing_zeros() - 6) as u8]);
    out.extend(salt);
    let start = out.len();
    out.resize(start + sealed, 0);
    let target = out.get_mut(start..).unwrap_or_default();
    let schedule = SEIPv2Schedule::new(key, CIPHER, MODE, chunk, &salt).map_err(failed)?;
    encrypt_chunks(&schedule, chunk, &head, content, target).map_err(failed)
}

/// Encrypts `head` and `content` into `target`, which has their exact sealed size.
fn encrypt_chunks(
    schedule: &SEIPv2Schedule,
    chunk: usize,
    head: &[u8],
    content: &[u8],
    mut target: &mut [u8],
) -> sequoia_openpgp::Result<()> {
    // Only the first chunk needs a copy; the others are slices of the content.
    let (begin, rest) = content.split_at(content.len().min(chunk - head.len()));
    let first = [head, begin].concat();
    let mut index = 0;
    for plain in first.chunks(chunk).chain(rest.chunks(chunk)) {
        let (sealed, after) = target.split_at_mut(plain.len() + TAG);
        encrypt(schedule, AeadChunk::Data(index), plain, sealed)?;
        target = after;
        index += 1;
    }
    encrypt(schedule, AeadChunk::Final(index, (head.len() + content.len()) as u64), &[], target)
}

/// A packet whose structure has been checked.
pub(super) struct SeipdV2<'m> {
    /// The plaintext size of each chunk except the last, in bytes.
    chunk: usize,
    salt: &'m [u8],
    /// The chunks, each followed by its tag.
    chunks: &'m [u8],
    end_tag: &'m [u8],
    /// The plaintext size of all chunks, in bytes.
    plain: usize,
    head: Vec<u8>,
    content: usize,
}

impl<'m> SeipdV2<'m> {
    /// Checks the structure of a packet. `sealed` is its body without the version. Needs no key.
    pub(super) fn parse(sealed: &'m [u8], payload: Payload, limit: usize) -> Result<Self, Error> {
        let cut = || Error::Damaged { what: "it is cut off" };
        let (&[cipher, mode, octet], rest) = sealed.split_first_chunk().ok_or_else(cut)?;
        if [cipher, mode] != SUITE {
            return Err(Error::Refused { what: "it is not encrypted with AES-256-OCB" });
        }
        if octet > MAX_CHUNK_OCTET {
            return Err(Error::Refused { what: "its chunks are larger than 4 MiB" });
        }
        let chunk = 1usize << (octet + 6);
        let (salt, rest) = rest.split_at_checked(SALT).ok_or_else(cut)?;
        let (chunks, end_tag) = rest.len().checked_sub(TAG).and_then(|at| rest.split_at_checked(at)).ok_or_else(cut)?;
        // The last chunk may be short, but it has at least one byte and a tag.
        if (1..=TAG).contains(&(chunks.len() % (chunk + TAG))) {
            return Err(cut());
        }
        let plain = chunks.len() - TAG * chunks.len().div_ceil(chunk + TAG);
        let (head, content) = payload.expected(plain, limit)?;
        Ok(SeipdV2 { chunk, salt, chunks, end_tag, plain, head, content })
    }

    /// Appends the content. On error, `out` may hold truncated content.
    pub(super) fn open(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        let failed = |_| Error::Damaged { what: "its content does not match its authentication tags" };
        let schedule = SEIPv2Schedule::new(key, CIPHER, MODE, self.chunk, self.salt).map_err(failed)?;
        let mut chunks = self.chunks.chunks(self.chunk + TAG);
        let (start, head) = (out.len(), self.head.len());
        out.resize(start + self.plain, 0);
        let target = out.get_mut(start..).unwrap_or_default();
        let mut index = 0;
        if let Some(sealed) = chunks.next() {
            let first = target.get_mut(..self.plain.min(self.chunk)).unwrap_or_default();
            decrypt(&schedule, AeadChunk::Data(index), first, sealed).map_err(failed)?;
            index += 1;
            // The first chunk begins with the head, which is not part of the content.
            if !first.starts_with(&self.head) {
                return Err(Error::Refused { what: "its content is not a single literal packet" });
            }
            first.copy_within(head.., 0);
        }
        let rest = target.get_mut(self.chunk.saturating_sub(head)..self.content).unwrap_or_default();
        for (plain, sealed) in rest.chunks_mut(self.chunk).zip(chunks) {
            decrypt(&schedule, AeadChunk::Data(index), plain, sealed).map_err(failed)?;
            index += 1;
        }
        out.truncate(start + self.content);
        decrypt(&schedule, AeadChunk::Final(index, self.plain as u64), &mut [], self.end_tag).map_err(failed)
    }
}

/// A unit of encryption.
#[derive(Clone, Copy)]
enum AeadChunk {
    /// The chunk with this index.
    Data(u64),
    /// The empty final chunk, after this many chunks and bytes. Its tag proves that no chunk is missing.
    Final(u64, u64),
}

/// Encrypts `plain` into `sealed`, followed by its tag.
fn encrypt(
    schedule: &SEIPv2Schedule,
    chunk: AeadChunk,
    plain: &[u8],
    sealed: &mut [u8],
) -> sequoia_openpgp::Result<()> {
    let apply = &mut |key: &SessionKey, nonce: &[u8], associated: &[u8]| {
        MODE.context(CIPHER, key, associated, nonce)?.for_encryption()?.encrypt_seal(sealed, plain)
    };
    match chunk {
        AeadChunk::Data(index) => schedule.chunk(index, apply),
        AeadChunk::Final(index, length) => schedule.finalizer(index, length, apply),
    }
}

/// Decrypts `sealed` into `plain` and verifies its tag.
fn decrypt(
    schedule: &SEIPv2Schedule,
    chunk: AeadChunk,
    plain: &mut [u8],
    sealed: &[u8],
) -> sequoia_openpgp::Result<()> {
    let apply = &mut |key: &SessionKey, nonce: &[u8], associated: &[u8]| {
        MODE.context(CIPHER, key, associated, nonce)?.for_decryption()?.decrypt_verify(plain, sealed)
    };
    match chunk {
        AeadChunk::Data(index) => schedule.chunk(index, apply),
        AeadChunk::Final(index, length) => schedule.finalizer(index, length, apply),
    }
}
