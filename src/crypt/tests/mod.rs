//! What the parts promise together, and what other programs make of it.

mod gpg;
mod keys;
mod messages;
mod signatures;

use sequoia_openpgp::Cert;
use sequoia_openpgp::serialize::MarshalInto;

use super::{Opener, Profile, Role, Sealer, SecretKey};

const PROFILES: [Profile; 2] = [Profile::Rfc9580, Profile::Rfc4880];
const LIMIT: usize = 4 << 20;

fn owner(profile: Profile) -> SecretKey {
    SecretKey::generate(profile, "Olga Owner", Role::Owner, None).unwrap()
}

fn host(profile: Profile) -> SecretKey {
    SecretKey::generate(profile, "host", Role::Host, None).unwrap()
}

/// The key of a certificate that the library made.
fn secret_key(cert: &Cert) -> SecretKey {
    SecretKey::parse(&cert.as_tsk().to_vec().unwrap()).unwrap()
}

fn sealed_to(keys: &[&SecretKey], content: &[u8]) -> Vec<u8> {
    let audience: Vec<_> = keys.iter().map(|key| key.certificate()).collect();
    let mut message = Vec::new();
    Sealer::new(&audience).unwrap().seal(content, &mut message).unwrap();
    message
}

fn opened(opener: &Opener, message: &[u8]) -> Result<Vec<u8>, super::Error> {
    let mut content = Vec::new();
    opener.open(message, LIMIT, &mut content)?;
    Ok(content)
}

/// Bytes that repeat nowhere soon.
fn content(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}
