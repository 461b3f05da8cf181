//! OpenPGP: sealing to public certificates, opening with secret keys, signing and verifying.
//!
//! Everything that rests at a target is a complete OpenPGP message, so that `gpg` or `sq` can open it
//! without this program. The packets are framed here and not by a streaming library, for three reasons:
//! one session key serves many messages, so a smart card is asked once and not per block; AEAD chunks
//! of up to 256 KiB and a SHA-1 made for the processor are several times as fast; and a reader that
//! takes only the exact shape that [`Sealer`] and [`Signer`] write leaves little to attack.
//!
//! ```text
//! sealed:  PKESK… SEIPD( literal( content ) )          Sealer::seal           Opener::open
//!          PKESK… SEIPD( signed )                      Sealer::seal_message   Opener::open_message
//! signed:  one-pass signature, literal( document ), signature    Signer::sign    verify
//! ```
//!
//! SEIPD is version 2 (AES-256-OCB, RFC 9580) if every certificate of the audience announces it, else
//! version 1 (AES-256-CFB and SHA-1, RFC 4880), which every OpenPGP program reads. All lengths are
//! definite. Nothing is handed out before it is authenticated, and memory is taken only after the
//! message's length was compared with the caller's limit.
//!
//! The files, in the order in which a message meets them:
//!
//! - `certificate`: whom to seal to: public keys, and whether they are fit for it
//! - `fingerprint`: the name of a key
//! - `secret_key`: keys of owners and hosts: generated, parsed, unlocked
//! - `numbers`: secret numbers that GnuPG writes with zeros in front
//! - `seal`: an audience, its session key, and when to take a new one
//! - `seipd1`, `seipd2`: the encrypted packet of each version
//! - `framing`: packet headers
//! - `open`: from a message to its session key, asked for once, and to the content
//! - `gpg`: asks the user's gpg for a session key
//! - `kept`: session keys that are kept between runs, sealed to the key that found them out
//! - `sign`: signed messages
//! - `error`: what can go wrong

mod certificate;
mod error;
mod fingerprint;
mod framing;
mod gpg;
mod kept;
mod numbers;
mod open;
mod seal;
mod secret_key;
mod seipd1;
mod seipd2;
mod sign;
#[cfg(test)]
mod tests;

pub use certificate::Certificate;
pub use error::Error;
pub use fingerprint::Fingerprint;
pub use kept::KeyStore;
pub use open::Opener;
pub use seal::Sealer;
pub use secret_key::{Passphrase, Profile, Role, SecretKey};
pub use sign::{Signer, unverified, verify};
