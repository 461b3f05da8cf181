//! What can go wrong with keys and messages.

use std::error::Error as StdError;
use std::io;

/// A key that does not fit, or a message that is not as it was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that is no fingerprint.
    #[error("`{text}` is not a fingerprint; it should be 40 or 64 hexadecimal digits")]
    Fingerprint {
        /// The text.
        text: String,
    },
    /// Text that names no profile.
    #[error("`{text}` is not a key profile; there are rfc9580 and rfc4880")]
    Profile {
        /// The text.
        text: String,
    },
    /// Bytes that are no key or certificate.
    #[error("this is not an OpenPGP {expected}: {why}")]
    NotAKey {
        /// What was expected.
        expected: &'static str,
        /// What was found instead.
        why: &'static str,
    },
    /// A key of a version that only other programs know.
    #[error(
        "keys of version {version} are not supported; brackfs uses those of version 4, which gpg makes by default, and 6"
    )]
    KeyVersion {
        /// The version.
        version: u8,
    },
    /// More than one key or certificate where one is needed.
    #[error("there are several OpenPGP keys here, and one is needed; put each into a file of its own")]
    SeveralKeys,
    /// A public certificate where a secret key is needed.
    #[error("{key} holds no secret key, only the public certificate; give the file with the secret key")]
    NoSecretKey {
        /// Which key.
        key: String,
    },
    /// A secret key that cannot decrypt.
    #[error("{key} has no secret key for decryption; give a file that has it")]
    NoDecryptionKey {
        /// Which key.
        key: String,
    },
    /// A secret key that cannot sign.
    #[error("{key} has no secret key for signing that is valid today")]
    NoSigningKey {
        /// Which key.
        key: String,
    },
    /// A secret key whose passphrase was not given yet.
    #[error("{key} is locked; its passphrase is needed")]
    Locked {
        /// Which key.
        key: String,
    },
    /// The passphrase does not unlock the key.
    #[error("the passphrase is wrong for {key}")]
    WrongPassphrase {
        /// Which key.
        key: String,
    },
    /// There is too little memory to unlock the key.
    #[error(
        "cannot unlock {key}: it takes {} MiB of memory, and less is available; raise the limit (ulimit -v)",
        bytes >> 20
    )]
    NoMemory {
        /// Which key.
        key: String,
        /// Bytes that are needed at once.
        bytes: usize,
    },
    /// An audience of nobody.
    #[error("there is no certificate to encrypt to; at least one recipient is needed")]
    NoAudience,
    /// A certificate without a signature of its owner that holds.
    #[error(
        "cannot encrypt to {certificate}: its owner's signatures on it are missing or wrong; export it again from where \
         it was made"
    )]
    Invalid {
        /// Whose.
        certificate: String,
    },
    /// A certificate whose signatures could be forged.
    #[error(
        "cannot encrypt to {certificate}: its owner's signatures on it are too weak (SHA-1); ask its owner to renew it, \
         in gpg with --cert-digest-algo SHA256 --quick-set-expire FINGERPRINT 0"
    )]
    Weak {
        /// Whose.
        certificate: String,
    },
    /// A certificate, or its key for encryption, from a time that has not come yet.
    #[error(
        "cannot encrypt to {certificate}: its {part} is not valid before {since}, and the clock of this machine says \
         {now}; set the clock if it is wrong, or wait"
    )]
    NotYetValid {
        /// Whose.
        certificate: String,
        /// What is not valid yet.
        part: &'static str,
        /// When it will be.
        since: String,
        /// What the clock says.
        now: String,
    },
    /// A certificate, or its key for encryption, that has expired.
    #[error(
        "cannot encrypt to {certificate}: its {part} expired on {day}; ask its owner for a renewed certificate; a \
         repository takes it with `brackfs recipients update`"
    )]
    Expired {
        /// Whose.
        certificate: String,
        /// What has expired.
        part: &'static str,
        /// When.
        day: String,
    },
    /// A certificate, or its key for encryption, that was revoked.
    #[error("cannot encrypt to {certificate}: its {part} was revoked; ask its owner for a new one")]
    Revoked {
        /// Whose.
        certificate: String,
        /// What was revoked.
        part: &'static str,
    },
    /// A certificate without a key for encryption.
    #[error("cannot encrypt to {certificate}: it has no encryption key (is it for signing only?)")]
    NoEncryptionKey {
        /// Whose.
        certificate: String,
    },
    /// A certificate with an algorithm that is too weak or not known here.
    #[error("cannot encrypt to {certificate}: the algorithm of its {part} ({algorithm}) is not supported here")]
    UnsupportedAlgorithm {
        /// Whose.
        certificate: String,
        /// Which key has it.
        part: &'static str,
        /// The algorithm.
        algorithm: String,
    },
    /// A message for others.
    #[error(
        "the message can't be opened with {key}: it is encrypted to {recipients}; give the secret key of one of them"
    )]
    NoKey {
        /// The key at hand.
        key: String,
        /// The ids of the keys that it is encrypted to.
        recipients: String,
    },
    /// There is no gpg.
    #[error("cannot run gpg, which holds the secret key: {source}; install it, or give the secret key as a file")]
    GpgMissing {
        /// Why it cannot be run.
        source: io::Error,
    },
    /// The user has cancelled the question for the passphrase.
    #[error("gpg was not given the passphrase: the question was cancelled")]
    GpgCancelled,
    /// Nothing can ask for the passphrase.
    #[error(
        "gpg has the secret key, but cannot ask for its passphrase here ({why}); run brackfs at a terminal with a \
         pinentry program installed, use the key with gpg once before, or give it as a file with --key"
    )]
    GpgCannotAsk {
        /// What gpg calls the reason.
        why: String,
    },
    /// A gpg that knows only the older standard.
    #[error(
        "this gpg does not read RFC 9580, which the backups are encrypted by; give the secret key as a file with --key"
    )]
    GpgTooOld,
    /// gpg failed for a reason of its own.
    #[error("gpg could not get the session key: {why}")]
    Gpg {
        /// What it said.
        why: String,
    },
    /// Bytes that were changed or cut off since they were written.
    #[error("the message is damaged: {what}")]
    Damaged {
        /// What shows it.
        what: &'static str,
    },
    /// A message of a shape that this program never writes.
    #[error("refused to open the message: {what}, which brackfs never writes")]
    Refused {
        /// What is in it.
        what: &'static str,
    },
    /// A message with more content than is expected here.
    #[error("refused to open the message: {size} bytes inside, more than the {limit} allowed")]
    TooLarge {
        /// Bytes of content, by the message's length.
        size: u64,
        /// Most bytes allowed.
        limit: u64,
    },
    /// Signed by a key that is not known.
    #[error("signed by {signer}, which is not a known key")]
    UnknownSigner {
        /// The fingerprint or key id that the signature claims.
        signer: String,
    },
    /// A signature that does not hold.
    #[error("the signature of {signer} is bad: {why}")]
    BadSignature {
        /// The fingerprint or key id that the signature claims.
        signer: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The machine gives no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The OpenPGP library failed.
    #[error("cannot {action}: {source}")]
    OpenPgp {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Whether it is the key or passphrase that is missing or wrong, and not the message.
    pub fn is_key_problem(&self) -> bool {
        matches!(
            self,
            Error::NoSecretKey { .. }
                | Error::NoDecryptionKey { .. }
                | Error::Locked { .. }
                | Error::WrongPassphrase { .. }
                | Error::NoKey { .. }
                | Error::GpgMissing { .. }
                | Error::GpgCancelled
                | Error::GpgCannotAsk { .. }
                | Error::GpgTooOld
                | Error::Gpg { .. }
        )
    }

    /// For `map_err`: the library failed at `action`.
    pub(super) fn during<E: Into<Box<dyn StdError + Send + Sync>>>(action: &'static str) -> impl Fn(E) -> Error + Copy {
        move |source| Error::OpenPgp { action, source: source.into() }
    }
}
