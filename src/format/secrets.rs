//! Secrets: the settings of a repository that the hosts share with the owner.
//!
//! They are signed by the host key, so a host that lost its catalog can get the recipients back with its key alone. Of
//! several documents, the one of the highest edition counts.

use super::cbor::{CborReader, CborWriter};
use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{ObjectId, RepositoryId};
use super::name;

/// The secrets of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The number of the last generation when the document was written; 0 if there was none.
    pub generation: u64,
    /// One more than the edition of every earlier document; the first is 0.
    pub edition: u64,
    /// The seed of the chunker. Without it, chunk sizes reveal nothing about the content.
    pub seed: u64,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The recipients' certificates, in binary.
    pub recipients: Vec<Vec<u8>>,
    /// The writing host and earlier hosts. A reader that knows the fingerprint of a host key finds the certificate here if it
    /// is missing in `keys/`.
    pub hosts: Vec<DatedSigner>,
    /// Machines that may prune, and can read neither blocks nor snapshots.
    pub keepers: Vec<DatedSigner>,
}

/// A signer, and the generations in which its signatures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatedSigner {
    /// The certificate, in binary.
    pub certificate: Vec<u8>,
    /// The first generation; `None` if there is no such limit.
    pub from: Option<u64>,
    /// The first generation that does not count any more; `None` if there is no such limit.
    pub until: Option<u64>,
}

impl Secrets {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Secrets, name: name::secrets(id) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Secrets::header(repository, id).begin(7);
        w.uint(3).uint(self.generation).uint(4).uint(self.edition);
        w.uint(5).uint(self.seed).uint(6).uint(self.encrypted.into());
        w.uint(7).array(self.recipients.len());
        for certificate in &self.recipients {
            w.bytes(certificate);
        }
        for (key, signers) in [(8, &self.hosts), (9, &self.keepers)] {
            w.uint(key).array(signers.len());
            signers.iter().for_each(|signer| signer.write(&mut w));
        }
        w.finish()
    }

    /// Decodes the document with this `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let [mut generation, mut edition, mut seed] = [None; 3];
        let mut encrypted = None;
        let (mut recipients, mut hosts, mut keepers) = (Vec::new(), Vec::new(), Vec::new());
        let r = Secrets::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => generation = Some(r.uint()?),
                4 => edition = Some(r.uint()?),
                5 => seed = Some(r.uint()?),
                6 => encrypted = Some(r.uint()? != 0),
                7 => recipients = (0..r.array()?).map(|_| r.bytes().map(<[u8]>::to_vec)).collect::<Result<_, _>>()?,
                8 => hosts = DatedSigner::read_all(r)?,
                9 => keepers = DatedSigner::read_all(r)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Secrets {
            generation: r.need("generation", generation)?,
            edition: r.need("edition", edition)?,
            seed: r.need("seed", seed)?,
            encrypted: r.need("encryption", encrypted)?,
            recipients,
            hosts,
            keepers,
        })
    }
}

impl DatedSigner {
    /// A signer without limits.
    pub fn new(certificate: Vec<u8>) -> Self {
        DatedSigner { certificate, from: None, until: None }
    }

    fn write(&self, w: &mut CborWriter) {
        let limits = [(1, self.from), (2, self.until)].into_iter().filter_map(|(key, limit)| Some((key, limit?)));
        w.map(1 + limits.clone().count()).uint(0).bytes(&self.certificate);
        for (key, limit) in limits {
            w.uint(key).uint(limit);
        }
    }

    fn read_all(r: &mut CborReader<'_>) -> Result<Vec<Self>, Error> {
        (0..r.array()?).map(|_| DatedSigner::read(r)).collect()
    }

    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let (mut certificate, mut from, mut until) = (None, None, None);
        r.fields(|r, key| {
            match key {
                0 => certificate = Some(r.bytes()?.to_vec()),
                1 => from = Some(r.uint()?),
                2 => until = Some(r.uint()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(DatedSigner { certificate: r.need("certificate", certificate)?, from, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let signer = |from, until| DatedSigner { certificate: b"certificate".to_vec(), from, until };
        let secrets = Secrets {
            generation: 5,
            edition: 2,
            seed: 7,
            encrypted: true,
            recipients: vec![b"r".to_vec()],
            hosts: vec![signer(None, Some(4)), signer(Some(4), None)],
            keepers: vec![signer(Some(1), Some(2)), signer(None, None)],
        };
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let bytes = secrets.encode(repository, id);
        assert_eq!(Secrets::decode(repository, id, &bytes).unwrap(), secrets);
    }
}
