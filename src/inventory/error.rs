//! What ends a comparison of catalog and repository.

use std::path::PathBuf;

use crate::crypt::Fingerprint;
use crate::{catalog, crypt, repository, state, storage};

/// Catalog and repository could not be made to agree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory failed, or another run holds the lock.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// A key can't be used.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// This machine can't write to the repository.
    #[error(
        "this machine has no host key for the repository ({path} is missing); a repository is written to by the machine that made it, or that was made its writer with `brackfs adopt`"
    )]
    NoHostKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// Another catalog is the repository's writer.
    #[error(
        "another machine, or another state directory of this one, is the writer of this repository (generation {found}, this catalog knows {known}); nothing was written. If this machine shall be the writer, run `brackfs adopt` here; the other one is refused from then on"
    )]
    OtherWriter {
        /// The last generation at the target.
        found: u64,
        /// The last generation of this catalog.
        known: u64,
    },
    /// Every number for a run is in use, which only objects that no program of ours wrote can bring about.
    #[error("cannot begin a run: no number is free in {folder}; remove the objects there that brackfs did not write")]
    NoNumber {
        /// Where the numbers are.
        folder: &'static str,
    },
    /// Generations are as they were left, and packs are not there.
    #[error(
        "not one of the packs is there that the catalog knows, though the repository is as it was left: is a disk not mounted at packs/? Nothing was changed. If they are lost, `brackfs catalog rebuild` lets the next backup store everything again"
    )]
    NoPacks,
    /// There is no secrets document that this machine can open and believe.
    #[error(
        "the repository has no document in secrets/ that this machine's host key can open and has signed{why}; the catalog can't be built without it"
    )]
    NoSecrets {
        /// What is wrong with one that is there.
        why: String,
    },
    /// There are secrets that contradict each other.
    #[error("the documents in secrets/ are not of one mind about recipients or encryption; nothing was changed")]
    SecretsDiffer,
    /// A certificate of a key that backups are not encrypted to.
    #[error(
        "{found} is not a recipient of this repository (see `brackfs recipients list`), and recipients cannot be added \
         yet; encrypting to another key takes a new repository"
    )]
    NoRecipient {
        /// The fingerprint.
        found: Fingerprint,
    },
    /// A machine that has a host key needs no owner's key to adopt.
    #[error("this machine has a host key for the repository already ({path}): run `brackfs adopt` without --key")]
    HasHostKey {
        /// The host key.
        path: PathBuf,
    },
    /// There are documents of an unknown signer, and this machine does not trust at first use when it adopts.
    #[error(
        "documents of this repository are signed by host keys that this machine does not know: {signers}. Nothing was written. Compare each with the fingerprint that `brackfs init` or `brackfs adopt` printed on the machine before, and give those that are right with --signer; remove the objects of any other"
    )]
    UnknownSigners {
        /// Who signed how many of them.
        signers: String,
    },
    /// The recipients in the repository's secrets are not the ones that were given.
    #[error("the repository encrypts to {found}, and --recipient names {expected}; nothing was written")]
    Recipients {
        /// Fingerprints of the repository's recipients.
        found: String,
        /// Fingerprints of those that were given.
        expected: String,
    },
    /// The machine has no randomness.
    #[error("cannot get random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// It was told to stop.
    #[error("interrupted; what was found out so far is not kept")]
    Interrupted,
}
