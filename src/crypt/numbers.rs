//! Secret key numbers (MPIs) in GnuPG's encoding.
//!
//! OpenPGP encodes a number as its length in bits and its bits, of which the first is set. GnuPG 2.3 and later export the
//! secret number of a locked elliptic-curve key with the length rounded up to whole octets, so leading bits may be zero.
//! The OpenPGP library rejects such numbers (always for Curve25519 keys, by chance for others), and its error looks like
//! that for a wrong passphrase. This module normalizes the numbers before the library parses them. The checksum covers the
//! original encoding, so it is verified here.

use std::io::Read;

use sequoia_openpgp::Packet;
use sequoia_openpgp::crypto::mem::Protected;
use sequoia_openpgp::crypto::mpi::{PublicKey, SecretKeyChecksum, SecretKeyMaterial as Numbers};
use sequoia_openpgp::crypto::symmetric::{BlockCipherMode, Decryptor, UnpaddingMode};
use sequoia_openpgp::crypto::{Password, SessionKey};
use sequoia_openpgp::packet::key::{Encrypted, Key4, PublicParts, SecretKeyMaterial, SecretParts, UnspecifiedRole};
use sequoia_openpgp::packet::{Key, Tag};
use sequoia_openpgp::parse::buffered_reader::Memory;
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::PublicKeyAlgorithm;
use sha1::{Digest, Sha1};

type AnySecretKey = Key<SecretParts, UnspecifiedRole>;

/// The sizes of the checksums in octets.
const SUM: usize = 2;
const SHA1: usize = 20;

/// Parses an unlocked secret key that the library could not parse. Returns other packets unchanged.
pub(super) fn repair_secret_key(packet: Packet) -> Packet {
    let key = match &packet {
        Packet::Unknown(unknown) => parse_unlocked(unknown.body()),
        _ => None,
    };
    match (packet.tag(), key) {
        (Tag::SecretKey, Some(key)) => key.role_into_primary().into(),
        (Tag::SecretSubkey, Some(key)) => key.role_into_subordinate().into(),
        _ => packet,
    }
}

/// Parses the body of an unlocked secret key packet of version 4.
fn parse_unlocked(body: &[u8]) -> Option<AnySecretKey> {
    let (&[version, t0, t1, t2, t3, algorithm], rest) = body.split_first_chunk()?;
    let algorithm = PublicKeyAlgorithm::from(algorithm);
    let public = PublicKey::parse(algorithm, rest).ok()?;
    // Public numbers have no leading zeros, so serializing them gives the length that was parsed.
    let (protection, secret) = rest.get(public.serialized_len()..)?.split_first()?;
    if (version, *protection) != (4, 0) {
        return None;
    }
    let numbers = parse(algorithm, checked(secret, SecretKeyChecksum::Sum16)?)?;
    let created = u32::from_be_bytes([t0, t1, t2, t3]);
    let public: Key4<PublicParts, UnspecifiedRole> =
        Key4::new(sequoia_openpgp::types::Timestamp::from(created), algorithm, public).ok()?;
    Some(Key::from(public).add_secret(numbers.into()).0)
}

/// Unlocks a key. `None` if the passphrase is wrong or the key is not locked.
pub(super) fn unlock(key: AnySecretKey, passphrase: &Password) -> Option<AnySecretKey> {
    match key.secret() {
        // GnuPG does not use the other ways to lock a key, which are from RFC 9580.
        SecretKeyMaterial::Encrypted(locked) if key.version() == 4 && locked.aead_algo().is_none() => {
            let plain = decrypt(locked, passphrase).ok()?;
            let numbers = parse(key.pk_algo(), checked(&plain, locked.checksum().unwrap_or_default())?)?;
            Some(key.take_secret().0.add_secret(numbers.into()).0)
        }
        _ => key.decrypt_secret(passphrase).ok(),
    }
}

/// Decrypts the numbers of a locked key, with their checksum.
fn decrypt(locked: &Encrypted, passphrase: &Password) -> sequoia_openpgp::Result<Protected> {
    let (cipher, stored) = (locked.algo(), locked.ciphertext()?);
    let key: SessionKey = locked.s2k().derive_key(passphrase, cipher.key_size()?)?;
    let source = Memory::with_cookie(stored, Default::default());
    let mut decryptor = Decryptor::new(cipher, BlockCipherMode::CFB, UnpaddingMode::None, &key, None, source)?;
    // The initialization vector precedes the ciphertext, so it decrypts as the first block, which is discarded.
    let mut vector = Protected::new(cipher.block_size()?);
    let mut plain = Protected::new(stored.len().saturating_sub(vector.len()));
    decryptor.read_exact(&mut vector)?;
    decryptor.read_exact(&mut plain)?;
    Ok(plain)
}

/// Returns the numbers before a checksum if the checksum is correct.
fn checked(secret: &[u8], checksum: SecretKeyChecksum) -> Option<&[u8]> {
    match checksum {
        SecretKeyChecksum::SHA1 => {
            let (numbers, sum) = secret.split_last_chunk::<SHA1>()?;
            (Sha1::digest(numbers).as_slice() == sum).then_some(numbers)
        }
        SecretKeyChecksum::Sum16 => {
            let (numbers, sum) = secret.split_last_chunk::<SUM>()?;
            let found = numbers.iter().fold(0u16, |sum, octet| sum.wrapping_add(u16::from(*octet)));
            (found.to_be_bytes() == *sum).then_some(numbers)
        }
    }
}

fn parse(algorithm: PublicKeyAlgorithm, numbers: &[u8]) -> Option<Numbers> {
    // First without normalizing: newer algorithms have secrets of fixed length instead of numbers.
    let parsed = Numbers::from_bytes(algorithm, numbers).ok();
    parsed.or_else(|| Numbers::from_bytes(algorithm, &exact(numbers)?).ok())
}

/// Encodes numbers with their exact lengths in bits.
fn exact(numbers: &[u8]) -> Option<Protected> {
    // Allocated once, so that no copy of the secret stays in memory.
    let mut exact = Vec::with_capacity(numbers.len());
    let mut rest = numbers;
    while let Some((bits, after)) = rest.split_first_chunk() {
        let octets = usize::from(u16::from_be_bytes(*bits)).div_ceil(8);
        let (number, after) = after.split_at_checked(octets)?;
        let start = number.iter().position(|octet| *octet != 0).unwrap_or(number.len());
        let number = number.get(start..)?;
        let unused = number.first().map_or(0, |octet| octet.leading_zeros() as usize);
        exact.extend(u16::try_from(number.len() * 8 - unused).ok()?.to_be_bytes());
        exact.extend(number);
        rest = after;
    }
    rest.is_empty().then(|| exact.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sequoia_openpgp::PacketPile;
    use sequoia_openpgp::crypto::symmetric::{Encryptor, PaddingMode};
    use sequoia_openpgp::crypto::{S2K, SymmetricAlgorithm};
    use sequoia_openpgp::packet::key::SubordinateRole;
    use sequoia_openpgp::parse::Parse;
    use sequoia_openpgp::types::{Curve, HashAlgorithm};

    use super::*;

    type SecretSubkey = Key<SecretParts, SubordinateRole>;

    const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES128;

    fn subkey() -> SecretSubkey {
        Key4::generate_ecc(false, Curve::Cv25519).unwrap().into()
    }

    /// Secret numbers with 0 to 20 leading zero bits.
    fn numbers() -> Vec<[u8; 32]> {
        let mut number = [0xA5; 32];
        let mut numbers = vec![number];
        for zeros in 1..=20 {
            number = std::array::from_fn(|at| if at < zeros / 8 { 0 } else { 0xA5 });
            number[zeros / 8] = 0xFF >> (zeros % 8);
            numbers.push(number);
        }
        numbers
    }

    /// Encodes a number like GnuPG.
    fn written(number: &[u8]) -> Vec<u8> {
        [&(8 * number.len() as u16).to_be_bytes(), number].concat()
    }

    fn sum(numbers: &[u8]) -> [u8; SUM] {
        numbers.iter().map(|octet| u16::from(*octet)).sum::<u16>().to_be_bytes()
    }

    #[track_caller]
    fn assert_holds(key: &AnySecretKey, number: &[u8; 32]) {
        let SecretKeyMaterial::Unencrypted(secret) = key.secret() else { panic!("locked") };
        secret.map(|numbers| match numbers {
            Numbers::ECDH { scalar } => assert_eq!(scalar.value_padded(32)[..], number[..]),
            other => panic!("{other:?}"),
        });
    }

    /// The packet of an unlocked secret subkey.
    fn unlocked(number: &[u8], change: u8) -> Packet {
        let key = subkey();
        let mut body = vec![4, 0, 0, 0, 1, key.pk_algo().into()];
        body.extend(key.mpis().to_vec().unwrap());
        body.push(0);
        let secret = written(number);
        let [high, low] = sum(&secret);
        body.extend(secret);
        body.extend([high, low ^ change]);
        let packet = [&[0xC7, 0xFF], &(body.len() as u32).to_be_bytes()[..], &body].concat();
        repair_secret_key(PacketPile::from_bytes(&packet).unwrap().into_children().next().unwrap())
    }

    #[test]
    fn unlocked_numbers_may_have_leading_zeros() {
        for number in numbers() {
            match unlocked(&number, 0) {
                Packet::SecretSubkey(key) => assert_holds(&key.role_into_unspecified(), &number),
                other => panic!("{other:?}"),
            }
            assert!(matches!(unlocked(&number, 1), Packet::Unknown(_)), "with a wrong checksum");
        }
    }

    fn locked(numbers: &[u8], checksum: SecretKeyChecksum, passphrase: &Password) -> AnySecretKey {
        let stretch = S2K::new_iterated(HashAlgorithm::SHA1, 1024).unwrap();
        let key = stretch.derive_key(passphrase, CIPHER.key_size().unwrap()).unwrap();
        let plain = match checksum {
            SecretKeyChecksum::SHA1 => [numbers, &Sha1::digest(numbers)].concat(),
            SecretKeyChecksum::Sum16 => [numbers, &sum(numbers)].concat(),
        };
        let mut stored = Vec::new();
        let mut encryptor =
            Encryptor::new(CIPHER, BlockCipherMode::CFB, PaddingMode::None, &key, None, &mut stored).unwrap();
        encryptor.write_all(&[7; 16]).unwrap();
        encryptor.write_all(&plain).unwrap();
        drop(encryptor);
        let secret = Encrypted::new(stretch, CIPHER, Some(checksum), stored.into());
        subkey().take_secret().0.add_secret(secret.into()).0.role_into_unspecified()
    }

    #[test]
    fn locked_numbers_may_have_leading_zeros() {
        let (right, wrong) = (Password::from("right"), Password::from("wrong"));
        for number in numbers() {
            for checksum in [SecretKeyChecksum::SHA1, SecretKeyChecksum::Sum16] {
                let key = locked(&written(&number), checksum, &right);
                assert_holds(&unlock(key.clone(), &right).unwrap(), &number);
                assert!(unlock(key, &wrong).is_none());
            }
        }
    }

    #[test]
    fn malformed_numbers_are_rejected() {
        let passphrase = Password::from("right");
        let number = written(&[0x15; 32]);
        for length in 0..number.len() {
            let cut = number.get(..length).unwrap();
            assert!(unlock(locked(cut, SecretKeyChecksum::SHA1, &passphrase), &passphrase).is_none(), "{length}");
        }
        assert!(exact(&[]).is_some() && exact(&[0]).is_none() && exact(&[0, 9, 1]).is_none());
        assert_eq!(exact(&[0, 8, 0, 0, 16, 0, 1]).unwrap()[..], [0, 0, 0, 1, 1]);
        // 65,535 bits take 8,192 octets, whose exact length in bits does not fit into two octets.
        let long = [&[0xFF, 0xFF][..], &[0xFF; 8192]].concat();
        assert!(exact(&long).is_none());
    }

    #[test]
    fn bodies_of_other_keys_are_rejected() {
        for body in [&[][..], &[4], &[4, 0, 0, 0, 1, 18], &[4, 0, 0, 0, 1, 18, 0], &[5, 0, 0, 0, 1, 18, 0, 0, 0, 0]] {
            assert!(parse_unlocked(body).is_none(), "{body:?}");
        }
    }
}
