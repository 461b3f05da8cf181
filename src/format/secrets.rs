//! Secrets: what the machines that write share with the owner, and what they agreed on at init.
//!
//! Signed by the host key, so that a host that lost its catalog learns again, from its key alone, whom it
//! encrypts to.

use super::Error;
use super::document::{DocumentKind, Header};
use super::id::{ObjectId, RepositoryId};
use super::name;

/// The secrets of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Seeds the cutting of files, so that chunk sizes say nothing to those who don't know it.
    pub seed: u64,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The recipients' certificates, in binary.
    pub recipients: Vec<Vec<u8>>,
}

impl Secrets {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Secrets, name: name::secrets(id) }
    }

    /// The document's bytes.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Secrets::header(repository, id).begin(3);
        w.uint(3).uint(self.seed);
        w.uint(4).uint(self.encrypted.into());
        w.uint(5).array(self.recipients.len());
        self.recipients.iter().for_each(|certificate| {
            w.bytes(certificate);
        });
        w.finish()
    }

    /// Reads the document found under `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let (mut seed, mut encrypted, mut recipients) = (None, None, Vec::new());
        let r = Secrets::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => seed = Some(r.uint()?),
                4 => encrypted = Some(r.uint()? != 0),
                5 => {
                    recipients = (0..r.array()?).map(|_| r.bytes().map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Secrets { seed: r.need("seed", seed)?, encrypted: r.need("encryption", encrypted)?, recipients })
    }
}
