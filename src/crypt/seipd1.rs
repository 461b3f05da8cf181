//! The encrypted packet of RFC 4880: AES-256 in CFB mode around the plaintext and its SHA-1.

use std::io::{self, Read, Write};

use sequoia_openpgp::crypto::symmetric::{BlockCipherMode, Decryptor, Encryptor, PaddingMode, UnpaddingMode};
use sequoia_openpgp::crypto::{SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::parse::buffered_reader::Memory;
use sha1::{Digest, Sha1};

use super::Error;
use super::framing::{self, Inside};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;
const BLOCK: usize = 16;
/// A random block, and its last two bytes again.
const PREFIX: usize = BLOCK + 2;
/// The packet with the SHA-1: its header, and the digest.
const MDC_HEADER: [u8; 2] = [0xD3, 20];
const MDC: usize = 22;
/// Bytes between two looks of the digest and the cipher, so that both find them in the cache.
const STRIDE: usize = 32 << 10;

/// Appends a container around `content`.
pub(super) fn seal(key: &SessionKey, inside: Inside, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let head = inside.head(content.len())?;
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

/// A container whose length is right.
pub(super) struct Container<'m> {
    sealed: &'m [u8],
    head: Vec<u8>,
    content: usize,
}

impl<'m> Container<'m> {
    /// Looks at a container, which stands in `sealed` after its version, before there is a key.
    pub(super) fn parse(sealed: &'m [u8], inside: Inside, limit: usize) -> Result<Self, Error> {
        let plain = sealed.len().checked_sub(PREFIX + MDC).ok_or(Error::Damaged { what: "it is cut off" })?;
        let (head, content) = inside.expected(plain, limit)?;
        Ok(Container { sealed, head, content })
    }

    /// Appends the content. What was appended when an error is returned is not authenticated.
    pub(super) fn open(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + self.content, 0);
        let content = out.get_mut(start..).unwrap_or_default();
        let mut head = vec![0; self.head.len()];
        let decrypted = decrypt(key, self.sealed, &mut head, content);
        if !decrypted.map_err(Error::during("decrypt a message"))? {
            return Err(Error::Damaged { what: "its content does not match its digest" });
        }
        match head == self.head {
            true => Ok(()),
            false => Err(Error::Refused { what: "there is something else than one literal packet inside" }),
        }
    }
}

/// Fills `head` and `content`, and tells whether the digest after them is right.
fn decrypt(key: &SessionKey, sealed: &[u8], head: &mut [u8], content: &mut [u8]) -> sequoia_openpgp::Result<bool> {
    let source = Memory::with_cookie(sealed, Default::default());
    let mut decryptor = Decryptor::new(CIPHER, BlockCipherMode::CFB, UnpaddingMode::None, key, None, source)?;
    let mut digest = Sha1::new();
    let mut read = |plain: &mut [u8]| -> io::Result<()> {
        decryptor.read_exact(plain)?;
        digest.update(plain);
        Ok(())
    };
    // The two repeated bytes need no look of their own: the digest covers them.
    let (mut prefix, mut mdc_header) = ([0; PREFIX], [0; MDC_HEADER.len()]);
    read(&mut prefix)?;
    read(head)?;
    content.chunks_mut(STRIDE).try_for_each(&mut read)?;
    read(&mut mdc_header)?;
    let mut found = [0; 20];
    decryptor.read_exact(&mut found)?;
    Ok(mdc_header == MDC_HEADER && digest.finalize().as_slice() == found)
}
