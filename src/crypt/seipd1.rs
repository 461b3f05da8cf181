//! The encrypted packet of RFC 4880 (SEIPD version 1): AES-256-CFB over the plaintext and its SHA-1.

use std::io::{self, Read, Write};

use sequoia_openpgp::crypto::symmetric::{BlockCipherMode, Decryptor, Encryptor, PaddingMode, UnpaddingMode};
use sequoia_openpgp::crypto::{SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::parse::buffered_reader::Memory;
use sha1::{Digest, Sha1};

use super::error::Error;
use super::framing::{self, Payload};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;
const BLOCK: usize = 16;
/// The size of the prefix: a random block and its last two bytes repeated.
const PREFIX: usize = BLOCK + 2;
/// The header of the modification detection code packet, which holds the SHA-1.
const MDC_HEADER: [u8; 2] = [0xD3, 20];
/// The size of that packet with its header.
const MDC: usize = 22;
/// Bytes that are hashed and encrypted in turn, few enough to stay in the CPU cache.
const STRIDE: usize = 32 << 10;

/// Appends the encrypted packet for `content`.
pub(super) fn seal(key: &SessionKey, payload: Payload, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let head = payload.head(content.len())?;
    let body = 1 + PREFIX + head.len() + content.len() + MDC;
    let mut prefix = [0; PREFIX];
    getrandom::fill(&mut prefix[..BLOCK])?;
    prefix.copy_within(BLOCK - 2..BLOCK, BLOCK);

    out.reserve(6 + body);
    framing::push_header(framing::SEIPD, body, out)?;
    out.push(1);
    encrypt(key, &prefix, &head, content, out).map_err(Error::during("encrypt a message"))
}

fn encrypt(
    key: &SessionKey,
    prefix: &[u8],
    head: &[u8],
    content: &[u8],
    out: &mut Vec<u8>,
) -> sequoia_openpgp::Result<()> {
    let mut encryptor = Encryptor::new(CIPHER, BlockCipherMode::CFB, PaddingMode::None, key, None, out)?;
    let mut digest = Sha1::new();
    for plain in [prefix, head].into_iter().chain(content.chunks(STRIDE)).chain([MDC_HEADER.as_slice()]) {
        digest.update(plain);
        encryptor.write_all(plain)?;
    }
    encryptor.write_all(&digest.finalize())?;
    encryptor.finalize()?;
    Ok(())
}

/// A packet whose length has been checked.
pub(super) struct SeipdV1<'m> {
    sealed: &'m [u8],
    head: Vec<u8>,
    content: usize,
}

impl<'m> SeipdV1<'m> {
    /// Checks the length of a packet. `sealed` is its body without the version. Needs no key.
    pub(super) fn parse(sealed: &'m [u8], payload: Payload, limit: usize) -> Result<Self, Error> {
        let plain = sealed.len().checked_sub(PREFIX + MDC).ok_or(Error::Damaged { what: "it is cut off" })?;
        let (head, content) = payload.expected(plain, limit)?;
        Ok(SeipdV1 { sealed, head, content })
    }

    /// Appends the content. On error, `out` may hold unauthenticated bytes.
    pub(super) fn open(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + self.content, 0);
        let content = out.get_mut(start..).unwrap_or_default();
        let mut head = vec![0; self.head.len()];
        let decrypted = decrypt(key, self.sealed, &mut head, content);
        if !decrypted.map_err(Error::during("decrypt a message"))? {
            return Err(Error::Damaged { what: "its content does not match its digest" });
        }
        if head != self.head {
            return Err(Error::Refused { what: "its content is not a single literal packet" });
        }
        Ok(())
    }
}

/// Decrypts into `head` and `content`. Returns whether the digest after them is correct.
fn decrypt(key: &SessionKey, sealed: &[u8], head: &mut [u8], content: &mut [u8]) -> sequoia_openpgp::Result<bool> {
    let source = Memory::with_cookie(sealed, Default::default());
    let mut decryptor = Decryptor::new(CIPHER, BlockCipherMode::CFB, UnpaddingMode::None, key, None, source)?;
    let mut digest = Sha1::new();
    let mut read = |plain: &mut [u8]| -> io::Result<()> {
        decryptor.read_exact(plain)?;
        digest.update(plain);
        Ok(())
    };
    // The two repeated bytes are not compared: the digest covers them.
    let (mut prefix, mut mdc_header) = ([0; PREFIX], [0; MDC_HEADER.len()]);
    read(&mut prefix)?;
    read(head)?;
    content.chunks_mut(STRIDE).try_for_each(&mut read)?;
    read(&mut mdc_header)?;
    let mut found = [0; 20];
    decryptor.read_exact(&mut found)?;
    Ok(mdc_header == MDC_HEADER && digest.finalize().as_slice() == found)
}
