//! Creates a repository and this machine's state for it.
//!
//! The description is written last; until then there is no repository. A run that fails removes its objects, and also
//! recognizes and removes those of a killed run.

use std::path::Path;

use crate::catalog::{Catalog, Folder, Trust};
use crate::crypt::{self, Certificate, Fingerprint, KeyPurpose, Passphrase, Profile, SecretKey, Signer};
use crate::failure::{Failure, FailureKind};
use crate::format::RepositoryId;
use crate::format::id::{CatalogId, ObjectId};
use crate::repository::{ReadmeKeys, Repository, Writer};
use crate::state::RepositoryState;
use crate::storage::{Location, Target};
use crate::{catalog, repository, state};

/// The encryption of a new repository.
pub enum Owner {
    /// Encrypt to these certificates.
    Recipients(Vec<Certificate>),
    /// Generate a key, lock it with this passphrase, and store it in the repository.
    Passphrase {
        /// The passphrase.
        passphrase: Passphrase,
        /// The user id of the key.
        user_id: String,
    },
    /// Do not encrypt blocks.
    Unencrypted,
}

/// A new repository.
#[derive(Debug)]
pub struct Made {
    /// The repository's id.
    pub id: RepositoryId,
    /// This machine's host key. Readers should compare its fingerprint.
    pub host: Fingerprint,
    /// The keys that the repository is encrypted to.
    pub recipients: Vec<Fingerprint>,
    /// Guarantees that the storage lacks, as phrases that continue a sentence with its location.
    pub shortcomings: Vec<&'static str>,
}

/// A repository could not be created. No usable repository is left at the location.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key or certificate is unusable.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// The repository could not be written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog could not be created.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory could not be written.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The operating system returned no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(getrandom::Error),
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Crypt(error) => error.kind(),
            Error::Repository(error) => error.kind(),
            Error::Catalog(error) => error.kind(),
            Error::State(error) => error.kind(),
            Error::Random(_) => FailureKind::Failed,
        }
    }
}

/// Creates a repository at `location`, with this machine as its host; `state` is the state directory.
pub fn init(location: &Location, state: &Path, owner: Owner) -> Result<Made, Error> {
    make(|encrypted| Repository::create(location, encrypted), state, owner)
}

/// Creates a repository at an empty target, with this machine as its host; `state` is the state directory.
pub fn init_at(target: Target, state: &Path, owner: Owner) -> Result<Made, Error> {
    make(|encrypted| Ok(Repository::new_at(target, encrypted)), state, owner)
}

/// Creates a repository with `create`, whose argument is whether it is encrypted.
fn make(
    create: impl FnOnce(bool) -> Result<Repository, repository::Error>,
    state: &Path,
    owner: Owner,
) -> Result<Made, Error> {
    let mut kept = None;
    let recipients = match owner {
        Owner::Recipients(recipients) => {
            recipients.iter().try_for_each(Certificate::check_recipient)?;
            recipients
        }
        Owner::Passphrase { passphrase, user_id } => {
            let key = SecretKey::generate(Profile::Rfc9580, &user_id, KeyPurpose::Owner, Some(&passphrase))?;
            let certificate = key.certificate();
            kept = Some(key);
            vec![certificate]
        }
        Owner::Unencrypted => Vec::new(),
    };
    let repository = create(!recipients.is_empty())?;
    let kept_here = RepositoryState::new(state, repository.id());
    let made = fill(&repository, &kept_here, recipients, kept);
    if made.is_err() && repository.abandon() {
        // The keys are useless without the repository.
        kept_here.discard();
    }
    made
}

/// Writes the objects of a new repository and this machine's state.
fn fill(
    repository: &Repository,
    kept_here: &RepositoryState,
    recipients: Vec<Certificate>,
    kept: Option<SecretKey>,
) -> Result<Made, Error> {
    let host = SecretKey::generate_host(&recipients)?;
    let certificate = host.certificate();
    kept_here.create()?;
    kept_here.put_host_key(&host.to_armored()?)?;
    let trust = Trust {
        repository: repository.id(),
        catalog: CatalogId::random(),
        encrypted: repository.encrypted(),
        seed: getrandom::u64().map_err(Error::Random)?,
        host: certificate.fingerprint(),
        recipients,
    };
    let secrets = ObjectId::random();
    let mut catalog = Catalog::create(&kept_here.catalog_path(), trust.clone())?;
    catalog.add_document(Folder::Secrets(0), secrets, 0, &[])?;
    catalog.commit()?;

    let keys = repository.keys();
    trust.recipients.iter().try_for_each(|recipient| keys.put_recipient(recipient))?;
    keys.put_host(&certificate)?;
    let owner = kept.as_ref().map(SecretKey::fingerprint);
    if let Some(key) = kept {
        // A second copy, in case the repository's is lost.
        kept_here.put_owner_key(&key.to_armored()?)?;
        keys.put_owner(&key)?;
    }
    let writer = Writer::new(repository, Signer::new(host)?, &certificate, &trust.recipients)?;
    writer.put_secrets(secrets, &trust.secrets(&certificate)?)?;
    repository.finish(&ReadmeKeys { host: &trust.host, owner: owner.as_ref() })?;
    Ok(Made {
        id: trust.repository,
        host: trust.host,
        recipients: trust.recipients.iter().map(Certificate::fingerprint).collect(),
        shortcomings: repository.target().capabilities().shortcomings,
    })
}
