//! Errors of keys and messages.

use std::error::Error as StdError;
use std::io;

use crate::failure::{Failure, FailureKind};

/// An unusable key, or a message that cannot be opened or verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a fingerprint.
    #[error("`{text}` is not a key fingerprint: expected 40 or 64 hexadecimal digits")]
    Fingerprint {
        /// The text given.
        text: String,
    },
    /// The text is not the name of a profile.
    #[error("`{text}` is not a key profile: expected rfc9580 or rfc4880")]
    Profile {
        /// The text given.
        text: String,
    },
    /// The bytes are not a key or certificate.
    #[error("cannot parse the OpenPGP {expected}: {why}")]
    NotAKey {
        /// "certificate" or "secret key".
        expected: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// The key's version is neither 4 nor 6.
    #[error("OpenPGP keys of version {version} are not supported; use a key of version 4, the default of gpg, or 6")]
    KeyVersion {
        /// The key's version.
        version: u8,
    },
    /// There are several keys or certificates where one is expected.
    #[error("expected one OpenPGP key, found several; put each into its own file")]
    SeveralKeys,
    /// The key is a public certificate, but a secret key is needed.
    #[error("{key} is only a public certificate; give the file with the secret key")]
    NoSecretKey {
        /// The fingerprint and user id.
        key: String,
    },
    /// The secret key cannot decrypt.
    #[error("cannot decrypt with {key}: it has no secret encryption key; give a file that has one")]
    NoDecryptionKey {
        /// The fingerprint and user id.
        key: String,
    },
    /// The secret key cannot sign.
    #[error("cannot sign with {key}: it has no secret signing key that is valid today")]
    NoSigningKey {
        /// The fingerprint and user id.
        key: String,
    },
    /// The secret key has not been unlocked.
    #[error("{key} is locked; its passphrase is needed")]
    Locked {
        /// The fingerprint and user id.
        key: String,
    },
    /// The passphrase does not unlock the key.
    #[error("the passphrase is wrong for {key}")]
    WrongPassphrase {
        /// The fingerprint and user id.
        key: String,
    },
    /// There is too little memory to unlock the key.
    #[error(
        "cannot unlock {key}: it takes {} MiB of memory, and less is available; raise the limit (ulimit -v)",
        bytes >> 20
    )]
    NoMemory {
        /// The fingerprint and user id.
        key: String,
        /// The memory needed in bytes.
        bytes: usize,
    },
    /// There are no recipients.
    #[error("cannot encrypt without recipients; give at least one certificate")]
    NoAudience,
    /// The certificate has no valid self-signature.
    #[error(
        "cannot encrypt to {certificate}: its self-signatures are missing or invalid; export it again from the keyring \
         where it was created"
    )]
    Invalid {
        /// The fingerprint and user id.
        certificate: String,
    },
    /// The certificate's self-signatures use a broken hash and could be forged.
    #[error(
        "cannot encrypt to {certificate}: its self-signatures are too weak (SHA-1); ask its owner to renew it, in gpg \
         with --cert-digest-algo SHA256 --quick-set-expire FINGERPRINT 0"
    )]
    Weak {
        /// The fingerprint and user id.
        certificate: String,
    },
    /// The certificate or its encryption key is valid only from a later time on.
    #[error(
        "cannot encrypt to {certificate}: its {part} is not valid before {since}, and this machine's clock says {now}; \
         correct the clock or wait"
    )]
    NotYetValid {
        /// The fingerprint and user id.
        certificate: String,
        /// "certificate" or "encryption key".
        part: &'static str,
        /// The start of its validity, UTC.
        since: String,
        /// The current time, UTC.
        now: String,
    },
    /// The certificate or its encryption key has expired.
    #[error(
        "cannot encrypt to {certificate}: its {part} expired on {day}; ask its owner for a renewed certificate and run \
         `brackfs recipients update`"
    )]
    Expired {
        /// The fingerprint and user id.
        certificate: String,
        /// "certificate" or "encryption key".
        part: &'static str,
        /// The day, UTC.
        day: String,
    },
    /// The certificate or its encryption key was revoked.
    #[error("cannot encrypt to {certificate}: its {part} was revoked; ask its owner for a new one")]
    Revoked {
        /// The fingerprint and user id.
        certificate: String,
        /// "certificate" or "encryption key".
        part: &'static str,
    },
    /// The certificate has no key for encryption.
    #[error("cannot encrypt to {certificate}: it has no encryption key (is it for signing only?)")]
    NoEncryptionKey {
        /// The fingerprint and user id.
        certificate: String,
    },
    /// The certificate uses an algorithm that is too weak or not supported.
    #[error("cannot encrypt to {certificate}: the algorithm of its {part} ({algorithm}) is not supported")]
    UnsupportedAlgorithm {
        /// The fingerprint and user id.
        certificate: String,
        /// "primary key" or "encryption key".
        part: &'static str,
        /// The name of the algorithm.
        algorithm: String,
    },
    /// The message is encrypted to other keys.
    #[error(
        "cannot open the message with {key}: it is encrypted to {recipients}; give the secret key of one of them with \
         --key"
    )]
    NoKey {
        /// The fingerprints and user ids of the available keys.
        key: String,
        /// The ids of the keys that it is encrypted to.
        recipients: String,
    },
    /// gpg cannot be run.
    #[error("cannot run gpg to use its secret key: {source}; install gpg, or give the secret key as a file with --key")]
    GpgMissing {
        /// The error of starting gpg.
        source: io::Error,
    },
    /// The user cancelled the passphrase prompt.
    #[error("cannot decrypt with gpg: the passphrase prompt was cancelled")]
    GpgCancelled,
    /// gpg cannot prompt for the passphrase.
    #[error(
        "gpg cannot ask for the passphrase here ({why}); install a pinentry program and run at a terminal, use the key \
         with gpg first, or give it as a file with --key"
    )]
    GpgCannotAsk {
        /// The reason that gpg reported.
        why: String,
    },
    /// gpg supports only the older standard.
    #[error(
        "gpg does not support RFC 9580, which these backups are encrypted with; give the secret key as a file with --key"
    )]
    GpgTooOld,
    /// gpg failed for another reason.
    #[error("cannot get the session key from gpg: {why}")]
    Gpg {
        /// The reason that gpg reported.
        why: String,
    },
    /// The message was changed or truncated after it was written.
    #[error("the message is damaged: {what}")]
    Damaged {
        /// The evidence, a clause about the message.
        what: &'static str,
    },
    /// The message has a structure that brackfs never writes.
    #[error("refused to open the message, which brackfs did not write: {what}")]
    Refused {
        /// The reason, a clause about the message.
        what: &'static str,
    },
    /// The message has more content than the caller allows.
    #[error("refused to open the message: its content has {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// The size of the content in bytes, calculated from the message's length.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The message is signed by an unknown key.
    #[error("signed by the unknown key {signer}")]
    UnknownSigner {
        /// The fingerprint or key id that the signature claims.
        signer: String,
    },
    /// The signature is not valid.
    #[error("bad signature by {signer}: {why}")]
    BadSignature {
        /// The fingerprint or key id that the signature claims.
        signer: String,
        /// The reason.
        why: &'static str,
    },
    /// The system returned no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The OpenPGP library failed.
    #[error("cannot {action}: {source}")]
    OpenPgp {
        /// The failed operation, a verb and its object.
        action: &'static str,
        /// The library's error.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::NoSecretKey { .. }
            | Error::NoDecryptionKey { .. }
            | Error::Locked { .. }
            | Error::WrongPassphrase { .. }
            | Error::NoKey { .. }
            | Error::GpgMissing { .. }
            | Error::GpgCancelled
            | Error::GpgCannotAsk { .. }
            | Error::GpgTooOld
            | Error::Gpg { .. } => FailureKind::Key,
            _ => FailureKind::Failed,
        }
    }
}

impl Error {
    /// Whether the message is encrypted to other keys, or in a way that gpg does not support. Its session key may have been
    /// sealed again: see [`Opener::find_rewrapped`](super::Opener::find_rewrapped).
    pub fn is_other_key(&self) -> bool {
        matches!(self, Error::NoKey { .. } | Error::GpgTooOld)
    }

    /// Wraps an error of the library, for `map_err`. `action` is a verb and its object.
    pub(super) fn during<E: Into<Box<dyn StdError + Send + Sync>>>(action: &'static str) -> impl Fn(E) -> Error + Copy {
        move |source| Error::OpenPgp { action, source: source.into() }
    }
}
