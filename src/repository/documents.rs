//! Writes and reads signed documents.

use super::error::Error;
use super::open::Repository;
use crate::crypt::{self, Certificate, Fingerprint, Opener, Sealer, Signer};
use crate::format::forgotten::Forgotten;
use crate::format::generation::Generation;
use crate::format::id::{ObjectId, SourceId};
use crate::format::index::Index;
use crate::format::moved::Moved;
use crate::format::name::{self, GenerationName, SnapshotName};
use crate::format::secrets::Secrets;
use crate::format::snapshot::{SNAPSHOT_SIZE, Snapshot};
use crate::format::source::Source;
use crate::format::{self, DOCUMENT_SIZE, sums};
use crate::storage::{Ahead, ObjectInfo};

/// The most bytes that signature and encryption add to a document.
const FRAMING: usize = 1 << 20;

/// Signs documents and seals them to their readers.
pub struct Writer<'r> {
    repository: &'r Repository,
    signer: Signer,
    /// Seals to the host key and the recipients; `None` in an unencrypted repository.
    shared: Option<Sealer>,
    /// Seals to the recipients only; `None` in an unencrypted repository.
    owners: Option<Sealer>,
}

impl<'r> Writer<'r> {
    /// `signer` has the host's key. In an encrypted repository `recipients` must not be empty.
    pub fn new(
        repository: &'r Repository,
        signer: Signer,
        host: &Certificate,
        recipients: &[Certificate],
    ) -> Result<Self, Error> {
        let seal = |audience: &[Certificate]| {
            let sealer = Sealer::new(audience);
            sealer.map_err(|source| Error::Crypt { object: repository.location().to_owned(), source })
        };
        let (mut shared, mut owners) = (None, None);
        if repository.encrypted() {
            let mut all = recipients.to_vec();
            all.push(host.clone());
            // Each audience has its own session key: the host must not be able to open the recipients' documents.
            shared = Some(seal(&all)?);
            owners = Some(seal(recipients)?);
        }
        Ok(Writer { repository, signer, shared, owners })
    }

    /// Returns a sealer for blocks, to the recipients; `None` in an unencrypted repository.
    pub fn block_sealer(&self) -> Option<Sealer> {
        self.owners.clone()
    }

    /// Returns the PKESK packets of the session keys that blocks and snapshots were sealed with so far; none in an unencrypted
    /// repository.
    pub fn session_keys(&self) -> Vec<Vec<u8>> {
        self.owners.as_ref().map(Sealer::pkesks).unwrap_or_default()
    }

    /// Writes a snapshot. Only the recipients can read it.
    pub fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.put(&snapshot.name.object(), snapshot.encode(self.repository.id), self.owners.as_ref())
    }

    /// Writes an index.
    pub fn put_index(&self, id: ObjectId, index: &Index) -> Result<(), Error> {
        self.put(&name::index(id), index.encode(self.repository.id, id), self.shared.as_ref())
    }

    /// Writes a secrets document.
    pub fn put_secrets(&self, id: ObjectId, secrets: &Secrets) -> Result<(), Error> {
        self.put(&name::secrets(id), secrets.encode(self.repository.id, id), self.shared.as_ref())
    }

    /// Writes a generation.
    pub fn put_generation(&self, generation: &Generation) -> Result<(), Error> {
        self.put(&generation.name().object(), generation.encode(self.repository.id), self.shared.as_ref())
    }

    /// Writes the shard of moves of packs whose ids begin with `prefix`.
    pub fn put_moved(&self, prefix: u8, id: ObjectId, moved: &Moved) -> Result<(), Error> {
        self.put(&name::moved(prefix, id), moved.encode(self.repository.id, prefix, id), self.shared.as_ref())
    }

    /// Writes a document of tombstones.
    pub fn put_forgotten(&self, id: ObjectId, forgotten: &Forgotten) -> Result<(), Error> {
        self.put(&name::forgotten(id), forgotten.encode(self.repository.id, id), self.shared.as_ref())
    }

    /// Writes a source document.
    pub fn put_source(&self, source: &Source) -> Result<(), Error> {
        self.put(&name::source(source.id), source.encode(self.repository.id), self.shared.as_ref())
    }

    /// Writes the digests of packs in the format of `b3sum --check`. This object is neither signed nor sealed, so that the
    /// operator of the target can check the packs.
    pub fn put_sums(&self, id: ObjectId, sums: &[(format::PackId, format::Digest)]) -> Result<(), Error> {
        Ok(self.repository.target.put(&name::sums(id), sums::encode(sums).as_bytes())?)
    }

    fn put(&self, object: &str, document: Vec<u8>, audience: Option<&Sealer>) -> Result<(), Error> {
        Ok(self.repository.target.put(object, &self.seal(object, document, audience)?)?)
    }

    /// Signs a document and seals it to its audience. Each step frees its input, since an index may have many megabytes.
    fn seal(&self, object: &str, document: Vec<u8>, audience: Option<&Sealer>) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Crypt { object: object.to_owned(), source };
        let signed = self.signer.sign(&document).map_err(failed)?;
        drop(document);
        let Some(sealer) = audience else { return Ok(signed) };
        let mut sealed = Vec::with_capacity(signed.len() + FRAMING);
        sealer.seal_message(&signed, &mut sealed).map_err(failed)?;
        Ok(sealed)
    }
}

impl Repository {
    /// Reads and opens the signed message in an object without verifying the signature. `size` is the largest document in
    /// bytes.
    pub(super) fn signed(&self, object: &str, opener: Option<&Opener>, size: usize) -> Result<Vec<u8>, Error> {
        let stored = self.target.get(object, size + FRAMING)?;
        match (self.encrypted, opener) {
            (true, Some(opener)) => {
                let opened = self.open_with(opener, &stored, || opener.open_message(&stored, size + FRAMING));
                opened.map_err(|source| Error::Crypt { object: object.to_owned(), source })
            }
            (true, None) => Err(Error::NoKey { object: object.to_owned() }),
            (false, _) => Ok(stored),
        }
    }
}

/// Opens documents with a secret key, and verifies that they are signed by trusted signers.
pub struct Access {
    opener: Option<Opener>,
    signers: Vec<Certificate>,
}

impl Access {
    /// `opener` is needed for encrypted repositories. `signers` are the trusted host keys.
    pub fn new(opener: Option<Opener>, signers: Vec<Certificate>) -> Self {
        Access { opener, signers }
    }

    /// Whether several host keys are trusted.
    pub fn trusts_several_hosts(&self) -> bool {
        self.signers.len() > 1
    }

    /// The key that opens blocks and documents.
    pub fn opener(&self) -> Option<&Opener> {
        self.opener.as_ref()
    }

    /// The trusted signers.
    pub fn signers(&self) -> &[Certificate] {
        &self.signers
    }

    /// Reads a snapshot. Returns its signer as well.
    pub fn snapshot(&self, repository: &Repository, name: &SnapshotName) -> Result<(Snapshot, Fingerprint), Error> {
        self.read(repository, name.object(), SNAPSHOT_SIZE, |bytes| Snapshot::decode(repository.id, name, bytes))
    }

    /// Reads a source document.
    pub fn source(&self, repository: &Repository, id: SourceId) -> Result<Source, Error> {
        let read =
            self.read(repository, name::source(id), DOCUMENT_SIZE, |bytes| Source::decode(repository.id, id, bytes))?;
        Ok(read.0)
    }

    /// Reads an index.
    pub fn index(&self, repository: &Repository, id: ObjectId) -> Result<Index, Error> {
        let read =
            self.read(repository, name::index(id), DOCUMENT_SIZE, |bytes| Index::decode(repository.id, id, bytes))?;
        Ok(read.0)
    }

    /// Reads a secrets document.
    pub fn secrets(&self, repository: &Repository, id: ObjectId) -> Result<Secrets, Error> {
        let read =
            self.read(repository, name::secrets(id), DOCUMENT_SIZE, |bytes| Secrets::decode(repository.id, id, bytes))?;
        Ok(read.0)
    }

    /// Reads a generation.
    pub fn generation(&self, repository: &Repository, name: GenerationName) -> Result<Generation, Error> {
        let read = self
            .read(repository, name.object(), DOCUMENT_SIZE, |bytes| Generation::decode(repository.id, name, bytes))?;
        Ok(read.0)
    }

    /// The read of a generation, for [`Target::begin`](crate::storage::Target::begin).
    pub fn read_of_generation(name: GenerationName) -> Ahead {
        Ahead::Get(name.object(), DOCUMENT_SIZE + FRAMING)
    }

    /// The read of a snapshot, likewise.
    pub fn read_of_snapshot(name: &SnapshotName) -> Ahead {
        Ahead::Get(name.object(), SNAPSHOT_SIZE + FRAMING)
    }

    /// The read of a source document, likewise.
    pub fn read_of_source(id: SourceId) -> Ahead {
        Ahead::Get(name::source(id), DOCUMENT_SIZE + FRAMING)
    }

    /// The read of any other document, likewise; `None` if it is large.
    pub fn read_of_document(object: &ObjectInfo) -> Option<Ahead> {
        Ahead::of(object, DOCUMENT_SIZE + FRAMING)
    }

    /// Reads a shard of moves.
    pub fn moved(&self, repository: &Repository, prefix: u8, id: ObjectId) -> Result<Moved, Error> {
        let read = self.read(repository, name::moved(prefix, id), DOCUMENT_SIZE, |bytes| {
            Moved::decode(repository.id, prefix, id, bytes)
        })?;
        Ok(read.0)
    }

    /// Reads a document of tombstones.
    pub fn forgotten(&self, repository: &Repository, id: ObjectId) -> Result<Forgotten, Error> {
        let read = self.read(repository, name::forgotten(id), DOCUMENT_SIZE, |bytes| {
            Forgotten::decode(repository.id, id, bytes)
        })?;
        Ok(read.0)
    }

    fn read<T>(
        &self,
        repository: &Repository,
        object: String,
        size: usize,
        decode: impl FnOnce(&[u8]) -> Result<T, format::Error>,
    ) -> Result<(T, Fingerprint), Error> {
        let signed = repository.signed(&object, self.opener.as_ref(), size)?;
        let failed = |source| Error::Crypt { object: object.clone(), source };
        let (document, signer) = crypt::verify(&signed, &self.signers).map_err(|e| match e {
            crypt::Error::UnknownSigner { signer } => Error::UnknownSigner { object: object.clone(), signer },
            other => failed(other),
        })?;
        match decode(document) {
            Ok(value) => Ok((value, signer)),
            Err(source) => Err(Error::Format { object, source }),
        }
    }
}
