//! Secrets: the settings of a repository that the hosts share with the owner.
//!
//! They are signed by the host key, so a host that lost its catalog can get the recipients back with its key alone.

use super::cbor::CborReader;
use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{ObjectId, RepositoryId};
use super::name;

/// The secrets of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The seed of the chunker. Without it, chunk sizes reveal nothing about the content.
    pub seed: u64,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The recipients' certificates, in binary.
    pub recipients: Vec<Vec<u8>>,
    /// The certificates of the writing host and of earlier hosts, in binary. A reader that knows the fingerprint of a host
    /// key finds the certificate here if it is missing in `keys/`.
    pub hosts: Vec<Vec<u8>>,
}

impl Secrets {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Secrets, name: name::secrets(id) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Secrets::header(repository, id).begin(4);
        w.uint(3).uint(self.seed);
        w.uint(4).uint(self.encrypted.into());
        for (key, certificates) in [(5, &self.recipients), (6, &self.hosts)] {
            w.uint(key).array(certificates.len());
            certificates.iter().for_each(|certificate| {
                w.bytes(certificate);
            });
        }
        w.finish()
    }

    /// Decodes the document with this `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let (mut seed, mut encrypted, mut recipients, mut hosts) = (None, None, Vec::new(), Vec::new());
        let r = Secrets::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => seed = Some(r.uint()?),
                4 => encrypted = Some(r.uint()? != 0),
                5 => recipients = certificates(r)?,
                6 => hosts = certificates(r)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Secrets { seed: r.need("seed", seed)?, encrypted: r.need("encryption", encrypted)?, recipients, hosts })
    }
}

fn certificates(r: &mut CborReader<'_>) -> Result<Vec<Vec<u8>>, Error> {
    (0..r.array()?).map(|_| r.bytes().map(<[u8]>::to_vec)).collect()
}
