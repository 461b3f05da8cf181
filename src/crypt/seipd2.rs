//! The encrypted packet of RFC 9580: AES-256-OCB in chunks, each authenticated, with keys derived from
//! the session key and a salt, so that one session key serves many messages.

use sequoia_openpgp::crypto::aead::{SEIPv2Schedule, Schedule};
use sequoia_openpgp::crypto::{AEADAlgorithm, SessionKey, SymmetricAlgorithm};

use super::Error;
use super::framing::{self, Inside};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;
const MODE: AEADAlgorithm = AEADAlgorithm::OCB;
/// Octets of cipher and mode on disk.
const SUITE: [u8; 2] = [9, 2];
const TAG: usize = 16;
const SALT: usize = 32;

/// Below 4 KiB nothing is gained, above 256 KiB the processor's cache is left.
const CHUNKS_WRITTEN: (usize, usize) = (4 << 10, 256 << 10);
/// Largest chunk that RFC 9580 wants read, 4 MiB, as its octet.
const MAX_CHUNK_OCTET: u8 = 16;

/// Appends a container around `content`.
pub(super) fn seal(key: &SessionKey, inside: Inside, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let failed = Error::during("encrypt a message");
    let head = inside.head(content.len())?;
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
    fill(&schedule, chunk, &head, content, target).map_err(failed)
}

/// Fills `target` with the ciphertext of `head` and `content`.
fn fill(
    schedule: &SEIPv2Schedule,
    chunk: usize,
    head: &[u8],
    content: &[u8],
    mut target: &mut [u8],
) -> sequoia_openpgp::Result<()> {
    // Only the first chunk has to be put together; the others are slices of the content.
    let (begin, rest) = content.split_at(content.len().min(chunk - head.len()));
    let first = [head, begin].concat();
    let mut index = 0;
    for plain in first.chunks(chunk).chain(rest.chunks(chunk)) {
        let (sealed, after) = target.split_at_mut(plain.len() + TAG);
        encrypt(schedule, Step::Chunk(index), plain, sealed)?;
        target = after;
        index += 1;
    }
    encrypt(schedule, Step::End(index, (head.len() + content.len()) as u64), &[], target)
}

/// A container whose shape is right.
pub(super) struct Container<'m> {
    /// Bytes of plaintext in each chunk but the last.
    chunk: usize,
    salt: &'m [u8],
    /// Chunks, each followed by its tag.
    chunks: &'m [u8],
    end_tag: &'m [u8],
    /// Bytes of plaintext in all chunks.
    plain: usize,
    head: Vec<u8>,
    content: usize,
}

impl<'m> Container<'m> {
    /// Looks at a container, which stands in `sealed` after its version, before there is a key.
    pub(super) fn parse(sealed: &'m [u8], inside: Inside, limit: usize) -> Result<Self, Error> {
        let cut = || Error::Damaged { what: "it is cut off" };
        let (&[cipher, mode, octet], rest) = sealed.split_first_chunk().ok_or_else(cut)?;
        if [cipher, mode] != SUITE {
            return Err(Error::Refused { what: "it is encrypted by another algorithm than AES-256-OCB" });
        }
        if octet > MAX_CHUNK_OCTET {
            return Err(Error::Refused { what: "it has chunks of more than 4 MiB" });
        }
        let chunk = 1usize << (octet + 6);
        let (salt, rest) = rest.split_at_checked(SALT).ok_or_else(cut)?;
        let (chunks, end_tag) = rest.len().checked_sub(TAG).and_then(|at| rest.split_at_checked(at)).ok_or_else(cut)?;
        // The last chunk may be short, but it holds a byte and its tag.
        if (1..=TAG).contains(&(chunks.len() % (chunk + TAG))) {
            return Err(cut());
        }
        let plain = chunks.len() - TAG * chunks.len().div_ceil(chunk + TAG);
        let (head, content) = inside.expected(plain, limit)?;
        Ok(Container { chunk, salt, chunks, end_tag, plain, head, content })
    }

    /// Appends the content. What was appended when an error is returned may be cut off.
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
            decrypt(&schedule, Step::Chunk(index), first, sealed).map_err(failed)?;
            index += 1;
            // The first chunk begins with the head, which does not belong there.
            if !first.starts_with(&self.head) {
                return Err(Error::Refused { what: "there is something else than one literal packet inside" });
            }
            first.copy_within(head.., 0);
        }
        let rest = target.get_mut(self.chunk.saturating_sub(head)..self.content).unwrap_or_default();
        for (plain, sealed) in rest.chunks_mut(self.chunk).zip(chunks) {
            decrypt(&schedule, Step::Chunk(index), plain, sealed).map_err(failed)?;
            index += 1;
        }
        out.truncate(start + self.content);
        decrypt(&schedule, Step::End(index, self.plain as u64), &mut [], self.end_tag).map_err(failed)
    }
}

/// What is encrypted next.
#[derive(Clone, Copy)]
enum Step {
    /// The chunk of this index.
    Chunk(u64),
    /// Nothing, after this many chunks and bytes: its tag shows that no chunk is missing.
    End(u64, u64),
}

/// Fills `sealed` with the ciphertext and the tag of `plain`.
fn encrypt(schedule: &SEIPv2Schedule, step: Step, plain: &[u8], sealed: &mut [u8]) -> sequoia_openpgp::Result<()> {
    let run = &mut |key: &SessionKey, nonce: &[u8], associated: &[u8]| {
        MODE.context(CIPHER, key, associated, nonce)?.for_encryption()?.encrypt_seal(sealed, plain)
    };
    match step {
        Step::Chunk(index) => schedule.chunk(index, run),
        Step::End(index, length) => schedule.finalizer(index, length, run),
    }
}

/// Fills `plain` with the plaintext of `sealed`, whose tag must be right.
fn decrypt(schedule: &SEIPv2Schedule, step: Step, plain: &mut [u8], sealed: &[u8]) -> sequoia_openpgp::Result<()> {
    let run = &mut |key: &SessionKey, nonce: &[u8], associated: &[u8]| {
        MODE.context(CIPHER, key, associated, nonce)?.for_decryption()?.decrypt_verify(plain, sealed)
    };
    match step {
        Step::Chunk(index) => schedule.chunk(index, run),
        Step::End(index, length) => schedule.finalizer(index, length, run),
    }
}
