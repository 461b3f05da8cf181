//! OpenPGP: sealing to public certificates, opening with secret keys, signing and verifying.
//!
//! Every block and document is stored as a complete OpenPGP message, so that `gpg` or `sq` can open it without brackfs.
//! This module writes and parses the packets itself instead of using a streaming library, for three reasons: many messages
//! share a session key, so a smart card is used once and not for each block; AEAD chunks of up to 256 KiB and a SHA-1
//! optimized for the CPU are several times as fast; and a parser that accepts only the exact structure written by
//! [`Sealer`] and [`Signer`] has little attack surface.
//!
//! ```text
//! sealed:  PKESK… SEIPD( literal( content ) )          Sealer::seal           Opener::open
//!          PKESK… SEIPD( signed )                      Sealer::seal_message   Opener::open_message
//! signed:  one-pass signature, literal( document ), signature    Signer::sign    verify
//! ```
//!
//! SEIPD is version 2 (AES-256-OCB, RFC 9580) if every certificate of the audience announces support for it. Otherwise it
//! is version 1 (AES-256-CFB and SHA-1, RFC 4880), which every OpenPGP program supports. All lengths are definite. Content
//! is returned only after authentication, and memory is allocated only after checking the message's length against the
//! caller's limit.
//!
//! The files, in the order in which a message passes them:
//!
//! - `certificate`: public keys of recipients and hosts, and checks of their validity
//! - `fingerprint`: fingerprints of keys
//! - `secret_key`: generates, parses and unlocks the keys of owners and hosts
//! - `numbers`: normalizes secret numbers that GnuPG writes with leading zeros
//! - `seal`: seals messages; manages the session key
//! - `seipd1`, `seipd2`: the encrypted packet of each version
//! - `framing`: packet headers
//! - `open`: opens messages; looks up and caches session keys
//! - `gpg`: gets session keys from the user's gpg
//! - `session_keys`: caches session keys, and saves them between runs, sealed to the key that decrypted them
//! - `rewrapped`: session keys sealed again, for recipients who were added later
//! - `sign`: signs documents and verifies signatures
//! - `error`: the error type

mod certificate;
mod error;
mod fingerprint;
mod framing;
mod gpg;
mod numbers;
mod open;
mod rewrapped;
mod seal;
mod secret_key;
mod seipd1;
mod seipd2;
mod session_keys;
mod sign;
#[cfg(test)]
mod tests;

pub use certificate::Certificate;
pub use error::Error;
pub use fingerprint::Fingerprint;
pub use open::Opener;
pub use rewrapped::{Rewrapped, RewrappedKeys};
pub use seal::Sealer;
pub use secret_key::{KeyPurpose, Passphrase, Profile, SecretKey};
pub use session_keys::KeyStore;
pub use sign::{Signer, unverified, verify};
