//! The keys stored in the repository.
//!
//! The certificates in `keys/` are not trusted: callers must compare fingerprints. If `init` generated the owner's secret
//! key, it is stored there as well, under its passphrase.

use std::cell::OnceCell;

use super::error::Error;
use super::open::Repository;
use super::open::is_damage;
use crate::crypt::{self, Certificate, Fingerprint, Opener, SecretKey};
use crate::format::id::ObjectId;
use crate::format::secrets::Secrets;
use crate::format::{DOCUMENT_SIZE, name};
use crate::storage::{Ahead, ObjectInfo};

/// The largest key file in bytes. Certificates with many signatures are large.
const KEY_SIZE: usize = 4 << 20;

/// Key files that are read at the same time.
const READ_AHEAD: usize = 16;

/// The keys of a repository. Their names are listed once, when they are first needed.
pub struct Keys<'r> {
    repository: &'r Repository,
    names: OnceCell<Vec<String>>,
}

/// The name of a key file, and its key or the reason why it cannot be parsed.
pub type KeyFile<T> = (String, Result<T, Error>);

impl<'r> Keys<'r> {
    pub(super) fn new(repository: &'r Repository) -> Self {
        Keys { repository, names: OnceCell::new() }
    }

    /// Stores a recipient's certificate. Replaces a damaged file.
    pub fn put_recipient(&self, certificate: &Certificate) -> Result<(), Error> {
        self.put(name::recipient(&certificate.fingerprint().to_string()), certificate.to_armored())
    }

    /// Stores a host's certificate. Replaces a damaged file.
    pub fn put_host(&self, certificate: &Certificate) -> Result<(), Error> {
        self.put(name::host(&certificate.fingerprint().to_string()), certificate.to_armored())
    }

    /// Stores the owner's secret key, which must be locked. Replaces a damaged file.
    pub fn put_owner(&self, key: &SecretKey) -> Result<(), Error> {
        self.put(name::owner(&key.fingerprint().to_string()), key.to_armored())
    }

    /// Returns the recipients' certificates, which are not trusted. Skips files that cannot be parsed.
    pub fn recipients(&self) -> Result<Vec<Certificate>, Error> {
        self.certificates("recipient-")
    }

    /// Returns the hosts' certificates, which are not trusted. Skips files that cannot be parsed.
    pub fn hosts(&self) -> Result<Vec<Certificate>, Error> {
        self.certificates("host-")
    }

    /// Returns the certificate of the host with this fingerprint.
    pub fn host(&self, fingerprint: &Fingerprint) -> Result<Certificate, Error> {
        let missing = || Error::NoCertificate { signer: fingerprint.clone() };
        let bytes = self.get(&name::host(&fingerprint.to_string())).map_err(|_| missing())?;
        // The file name is not trusted; the fingerprint is computed from the key.
        match Certificate::parse(&bytes) {
            Ok(certificate) if certificate.fingerprint() == *fingerprint => Ok(certificate),
            _ => Err(missing()),
        }
    }

    /// Returns the hosts' certificates from the documents in `secrets/`, in case one is missing in `keys/`. Each document is
    /// signed by a key that it contains itself, which proves nothing: the caller must know the fingerprint. Skips documents
    /// that cannot be opened.
    pub fn hosts_in_secrets(&self, opener: Option<&Opener>) -> Result<Vec<Certificate>, Error> {
        let mut found: Vec<Certificate> = Vec::new();
        for object in self.repository.target.list(name::SECRETS)? {
            let Some(id) = name::parse_secrets(&object.name) else { continue };
            let Ok(signed) = self.repository.signed(&object.name, opener, DOCUMENT_SIZE) else { continue };
            for certificate in self.hosts_of(id, &signed) {
                if found.iter().all(|known| known.fingerprint() != certificate.fingerprint()) {
                    found.push(certificate);
                }
            }
        }
        Ok(found)
    }

    fn hosts_of(&self, id: ObjectId, signed: &[u8]) -> Vec<Certificate> {
        let secrets =
            crypt::unverified(signed).ok().and_then(|bytes| Secrets::decode(self.repository.id, id, bytes).ok());
        let hosts = secrets.map(|secrets| secrets.hosts).unwrap_or_default();
        let hosts: Vec<_> = hosts.iter().filter_map(|host| Certificate::parse(&host.certificate).ok()).collect();
        match crypt::verify(signed, &hosts) {
            Ok(_) => hosts,
            Err(_) => Vec::new(),
        }
    }

    /// Returns the owner's secret keys that are stored in the repository.
    pub fn owners(&self) -> Result<Vec<KeyFile<SecretKey>>, Error> {
        let read = |object: String| {
            let failed = |source| Error::Crypt { object: object.clone(), source };
            let key = self.get(&object).and_then(|bytes| SecretKey::parse(&bytes).map_err(failed));
            (object, key)
        };
        let objects = self.objects("owner-")?;
        self.begin(&objects);
        Ok(objects.into_iter().map(read).collect())
    }

    /// Whether the certificate of this host is stored and undamaged.
    pub fn has_host(&self, certificate: &Certificate) -> Result<bool, Error> {
        self.holds(&name::host(&certificate.fingerprint().to_string()))
    }

    /// Whether the certificate of this recipient is stored and undamaged.
    pub fn has_recipient(&self, certificate: &Certificate) -> Result<bool, Error> {
        self.holds(&name::recipient(&certificate.fingerprint().to_string()))
    }

    /// Whether the owner's secret key is stored and undamaged.
    pub fn has_owner(&self, key: &SecretKey) -> Result<bool, Error> {
        self.holds(&name::owner(&key.fingerprint().to_string()))
    }

    /// Begins to read the certificates of these hosts.
    pub fn begin_hosts(&self, hosts: &[Fingerprint]) {
        self.begin(&hosts.iter().map(|host| name::host(&host.to_string())).collect::<Vec<_>>());
    }

    /// Begins to read all keys of owners and hosts.
    pub fn begin_all(&self) -> Result<(), Error> {
        self.begin(&[self.objects("owner-")?, self.objects("host-")?].concat());
        Ok(())
    }

    /// The read of a key file, for [`Target::begin`](crate::storage::Target::begin).
    pub fn read(object: String) -> Ahead {
        Ahead::Get(object, KEY_SIZE)
    }

    /// The same of a listed key file; `None` if it is large.
    pub fn read_of(object: &ObjectInfo) -> Option<Ahead> {
        Ahead::of(object, KEY_SIZE)
    }

    /// Whether the object is missing.
    pub fn is_missing(&self, object: &str) -> Result<bool, Error> {
        match self.repository.target.length(object) {
            Err(e) if is_damage(e.kind) => Ok(true),
            other => Ok(other.map(|_| false)?),
        }
    }

    /// Whether a key file exists and contains the key that it is named after. A failure of the target is an error.
    fn holds(&self, object: &str) -> Result<bool, Error> {
        match self.check(object) {
            Ok(()) => Ok(true),
            Err(Error::Target(e)) if !is_damage(e.kind) => Err(e.into()),
            Err(_) => Ok(false),
        }
    }

    /// Checks that a key file contains the key that it is named after. Ignores files with other names.
    pub fn check(&self, object: &str) -> Result<(), Error> {
        let Some((role, expected)) = name::parse_key(object) else { return Ok(()) };
        let bytes = self.get(object)?;
        let fingerprint = match role {
            "owner" => SecretKey::parse(&bytes).map(|key| key.fingerprint()),
            _ => Certificate::parse(&bytes).map(|certificate| certificate.fingerprint()),
        };
        let failed = |source| Error::Crypt { object: object.to_owned(), source };
        let found = fingerprint.map_err(failed)?;
        if found.to_string() != expected {
            return Err(Error::OtherKey { object: object.to_owned(), found });
        }
        Ok(())
    }

    fn get(&self, object: &str) -> Result<Vec<u8>, Error> {
        Ok(self.repository.target.get(object, KEY_SIZE)?)
    }

    fn put(&self, object: String, bytes: Result<Vec<u8>, crypt::Error>) -> Result<(), Error> {
        let bytes = bytes.map_err(|source| Error::Crypt { object: object.clone(), source })?;
        self.repository.replace(&object, &bytes)
    }

    fn certificates(&self, role: &str) -> Result<Vec<Certificate>, Error> {
        let objects = self.objects(role)?;
        self.begin(&objects);
        let mut found = Vec::new();
        for object in objects {
            found.extend(Certificate::parse(&self.get(&object)?).ok());
        }
        Ok(found)
    }

    /// Begins to read key files.
    fn begin(&self, objects: &[String]) {
        self.repository.target.begin(objects.iter().take(READ_AHEAD).cloned().map(Keys::read).collect());
    }

    fn objects(&self, role: &str) -> Result<Vec<String>, Error> {
        let prefix = format!("{}{role}", name::KEYS);
        let names = match self.names.get() {
            Some(names) => names,
            None => {
                let objects = self.repository.target.list(name::KEYS)?;
                self.names.get_or_init(|| objects.into_iter().map(|object| object.name).collect())
            }
        };
        Ok(names.iter().filter(|name| name.starts_with(&prefix)).cloned().collect())
    }
}
