//! Making a repository, and what this machine keeps of it.
//!
//! The description is written last: until then there is no repository. A run that fails removes what it wrote, and a run
//! finds out what a killed one left, and removes that.

use std::path::Path;

use crate::catalog::{Catalog, Trust};
use crate::crypt::{self, Certificate, Fingerprint, Passphrase, Profile, Role, SecretKey, Signer};
use crate::format::RepositoryId;
use crate::format::id::{CatalogId, ObjectId};
use crate::repository::{ForPeople, Repository, Writer};
use crate::state::RepositoryState;
use crate::{catalog, repository, state};

/// Who will be able to read a new repository.
pub enum Owner {
    /// The holders of these certificates' secret keys.
    Recipients(Vec<Certificate>),
    /// Whoever knows the passphrase: a key is made, and kept in the repository under it.
    Passphrase(Passphrase),
    /// Blocks are not encrypted.
    Unencrypted,
}

/// A new repository.
#[derive(Debug)]
pub struct Made {
    /// The repository.
    pub id: RepositoryId,
    /// This machine's own key for it. Whoever reads the repository should compare it.
    pub host: Fingerprint,
    /// Whom it is encrypted to.
    pub recipients: Vec<Fingerprint>,
    /// What its target does not guarantee, in words that follow its location.
    pub shortcomings: Vec<&'static str>,
}

/// Why a repository could not be made. Nothing usable is left at the target.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key or certificate can't be used.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// The repository could not be written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog could not be made.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The machine has no randomness.
    #[error("cannot get random bytes: {0}")]
    Random(getrandom::Error),
}

/// Makes a repository at `location`, with this machine as its host; `state` is the state directory.
pub fn init(location: &str, state: &Path, owner: Owner) -> Result<Made, Error> {
    let mut kept = None;
    let recipients = match owner {
        Owner::Recipients(recipients) => {
            recipients.iter().try_for_each(Certificate::check_recipient)?;
            recipients
        }
        Owner::Passphrase(passphrase) => {
            let key = SecretKey::generate(Profile::Rfc9580, "brackfs owner", Role::Owner, Some(&passphrase))?;
            let certificate = key.certificate();
            kept = Some(key);
            vec![certificate]
        }
        Owner::Unencrypted => Vec::new(),
    };
    let repository = Repository::create(location, !recipients.is_empty())?;
    let kept_here = RepositoryState::new(state, repository.id());
    let made = fill(&repository, &kept_here, recipients, kept);
    if made.is_err() && repository.abandon() {
        // Keys of a repository that does not exist.
        kept_here.discard();
    }
    made
}

/// Writes all that makes a repository, and what this machine keeps of it.
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
    let mut catalog = Catalog::create(&kept_here.catalog_path(), trust.clone())?;
    catalog.commit()?;

    let keys = repository.keys();
    trust.recipients.iter().try_for_each(|recipient| keys.put_recipient(recipient))?;
    keys.put_host(&certificate)?;
    let owner = kept.as_ref().map(SecretKey::fingerprint);
    if let Some(key) = kept {
        // The repository's copy is the only one otherwise.
        kept_here.put_owner_key(&key.to_armored()?)?;
        keys.put_owner(&key)?;
    }
    let writer = Writer::new(repository, Signer::new(host)?, &certificate, &trust.recipients)?;
    writer.put_secrets(ObjectId::random(), &trust.secrets(std::slice::from_ref(&certificate))?)?;
    repository.finish(&ForPeople { host: &trust.host, owner: owner.as_ref() })?;
    Ok(Made {
        id: trust.repository,
        host: trust.host,
        recipients: trust.recipients.iter().map(Certificate::fingerprint).collect(),
        shortcomings: repository.target().shortcomings(),
    })
}
