//! Options of commands that read a repository: the key, and the host keys to trust.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{ArgAction, Args, ValueHint};

use super::exit::NoSecret;
use super::global::{Global, service_directory, standard_directory};
use super::memory;
use super::passphrase::unlock;
use super::repository_arg::{HEADING, RepositoryArg, Use};
use super::show::{self, name_time};
use crate::archive::{Archive, OpenSnapshot, Selected, Selector};
use crate::catalog;
use crate::crypt::{self, Certificate, Fingerprint, KeyStore, Opener, Passphrase, SecretKey};
use crate::monitor::Monitor;
use crate::quantity::parse_size;
use crate::reader::Reader;
use crate::repository::{Access, Keys, Repository};
use crate::state::RepositoryState;
use crate::sys::bounded::{KEYS, read_file};

/// Default cache size, in bytes, of commands that read each block about once.
pub(super) const SMALL_CACHE: u64 = 24 << 20;
/// The same over a network, where more blocks are read ahead.
const REMOTE_CACHE: u64 = 64 << 20;
/// Default cache size, in bytes, of mounts, which read blocks repeatedly, and of commands that read file content in the order
/// of the tree, which alternates between blocks of many backups.
pub(super) const LARGE_CACHE: u64 = 128 << 20;

/// Most owner's keys in a repository that are tried: unlocking one takes a fraction of a second.
const MAX_OWNER_KEYS: usize = 16;

/// Heading of these options in help and manual pages.
const READER_HEADING: &str = "Keys and cache";

/// Options that select the repository, the key, and the trusted host keys.
#[derive(Debug, Args)]
pub(super) struct ReaderArgs {
    #[command(flatten)]
    pub(super) repository: RepositoryArg,
    /// Decrypt with the owner's secret key in FILE [default: the key in the repository, else gpg]
    ///
    /// FILE holds one OpenPGP secret key, armored or binary. If the key is locked, its passphrase is asked for. Without
    /// this option, the key that init stored in the repository is used. If the repository has none, gpg decrypts, with its
    /// agent and smart cards. A repository that is not encrypted needs no key.
    #[arg(help_heading = READER_HEADING, long, env = "BRACKFS_KEY_FILE", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Do not use or store cached session keys from gpg
    ///
    /// Each backup run encrypts with its own session key. If gpg has the secret key, the session keys that it decrypts are
    /// cached in the state directory, encrypted to the same secret key. With the cache, a command asks gpg or a smart card
    /// once, and once more for each run that is not in the cache yet; without it, once for each run whose data it reads. See
    /// brackfs-security(7).
    #[arg(help_heading = READER_HEADING, long)]
    pub(super) no_key_cache: bool,
    /// Trust snapshots signed by the host key with this fingerprint (repeatable)
    ///
    /// init prints the fingerprint. Snapshots signed by this machine's own host key or by a remembered one are trusted too.
    /// If none of these is known, the key found in the repository is trusted on first use, printed and remembered (adopt
    /// fails instead).
    #[arg(help_heading = READER_HEADING, long, value_name = "FINGERPRINT", action = ArgAction::Append)]
    pub(super) signer: Vec<Fingerprint>,
    /// Cache up to SIZE of decrypted data in memory [default: 128MiB for mount and dump, 16MiB for check, else 24MiB (64MiB over a network)]
    ///
    /// The default is less if memory is short: at most a quarter of the machine's memory, of the memory limit of the cgroup
    /// (a container, or a systemd service with MemoryMax=), and of the limit of ulimit -v.
    #[arg(help_heading = READER_HEADING, long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) cache_size: Option<u64>,
}

/// Options of commands that read blocks through the cache on disk.
#[derive(Debug, Args)]
pub(super) struct DiskCacheArgs {
    /// Cache about SIZE of data from a server on this machine's disk; 0 turns the cache off
    ///
    /// The limit is for each repository. The cache holds data as it is on the server: it is encrypted only if the repository
    /// is. Data is verified when it is read. The cache can be removed at any time. restore and dump read from it and add
    /// nothing.
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = parse_size, default_value = "1GiB")]
    disk_cache: u64,
    /// Keep that cache in DIR [default: $CACHE_DIRECTORY; without it /var/cache/brackfs for root, else
    /// $XDG_CACHE_HOME/brackfs or ~/.cache/brackfs]
    #[arg(long, help_heading = HEADING, env = "BRACKFS_CACHE_DIR", value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache_dir: Option<PathBuf>,
}

/// How a command uses the cache on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskCaching {
    /// It adds what it reads.
    Fill,
    /// It only reads, since it needs each block of content once.
    Read,
}

/// What a reader is made of.
struct Opened {
    repository: Repository,
    access: Access,
    /// The size of the cache in memory, in bytes.
    cache: usize,
    is_remote: bool,
}

impl Opened {
    /// The reader, with a cache on disk if the repository is on another machine.
    fn reader(self, args: &DiskCacheArgs, caching: DiskCaching) -> Result<Reader> {
        let Opened { mut repository, access, cache, is_remote } = self;
        let directory = match &args.cache_dir {
            Some(given) => Some(
                std::path::absolute(given)
                    .with_context(|| format!("cannot use the cache directory {}", given.display()))?,
            ),
            None => service_directory("CACHE_DIRECTORY")
                .or_else(|| standard_directory("/var/cache", "XDG_CACHE_HOME", ".cache")),
        };
        if let Some(directory) = directory.filter(|_| is_remote && args.disk_cache > 0) {
            let directory = directory.join(repository.id().to_string());
            repository = repository.with_disk_cache(directory, args.disk_cache, caching == DiskCaching::Fill);
        }
        Ok(Reader::new(repository, access, cache))
    }
}

impl ReaderArgs {
    /// Opens the snapshots for commands that work with any format. `cache` is the default size of the cache in memory, in
    /// bytes.
    pub(super) fn open_archive(
        &self,
        usage: Use,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
        (disk, caching): (&DiskCacheArgs, DiskCaching),
    ) -> Result<Arc<dyn Archive>> {
        let parts = self.open_parts(usage, FirstUse::Trusted, global, monitor, cache)?;
        Ok(Arc::new(parts.reader(disk, caching)?))
    }

    /// Opens a reader without a cache on disk: finds the key and the trusted host keys. `cache` is the default size of its
    /// cache in memory, in bytes.
    pub(super) fn open(&self, global: &Global, monitor: &dyn Monitor, cache: u64) -> Result<Reader> {
        let Opened { repository, access, cache, .. } =
            self.open_parts(Use::Command, FirstUse::Trusted, global, monitor, cache)?;
        Ok(Reader::new(repository, access, cache))
    }

    /// The same for a repository that is open; `first_use` decides if no host key is known yet.
    pub(super) fn open_in(
        &self,
        repository: Repository,
        first_use: FirstUse,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
    ) -> Result<Reader> {
        repository.target().begin(Repository::reads_of_readers());
        let Opened { repository, access, cache, .. } = self.parts_of(repository, first_use, global, monitor, cache)?;
        Ok(Reader::new(repository, access, cache))
    }

    /// Opens a reader for a mount.
    pub(super) fn open_for_mount(
        &self,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
        disk: &DiskCacheArgs,
    ) -> Result<Reader> {
        let parts = self.open_parts(Use::Mount, FirstUse::Trusted, global, monitor, cache)?;
        parts.reader(disk, DiskCaching::Fill)
    }

    fn open_parts(
        &self,
        usage: Use,
        first_use: FirstUse,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
    ) -> Result<Opened> {
        let repository = self.repository.resolve(global)?.open(usage, global, Repository::reads_of_readers())?;
        self.parts_of(repository, first_use, global, monitor, cache)
    }

    fn parts_of(
        &self,
        repository: Repository,
        first_use: FirstUse,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
    ) -> Result<Opened> {
        let state = RepositoryState::new(&global.state_to_read(), repository.id());
        let keys = repository.keys();
        let known = KnownSigners::find(&repository, &state, &self.signer, monitor)?;
        match known.is_empty() {
            true => keys.begin_all()?,
            false => keys.begin_hosts(&known.others),
        }
        let opener = if repository.encrypted() { Some(self.opener(&state, &keys, monitor)?) } else { None };
        let signers = Signers { keys: &keys, state: &state, opener: opener.as_ref(), monitor };
        let signers = signers.find(known, first_use)?;
        drop(keys);
        let is_remote = repository.target().local_path().is_none();
        let wanted = if is_remote && cache == SMALL_CACHE { REMOTE_CACHE } else { cache };
        let cache = usize::try_from(self.cache_size.unwrap_or_else(|| memory::cache(wanted)))
            .context("the value of --cache-size is too large")?;
        Ok(Opened { repository, access: Access::new(opener, signers), cache, is_remote })
    }

    fn opener(&self, state: &RepositoryState, keys: &Keys<'_>, monitor: &dyn Monitor) -> Result<Opener> {
        let Some(path) = &self.key else {
            let owners = owners(state, keys, monitor)?;
            return if owners.is_empty() { Ok(Opener::gpg(self.key_store(state))) } else { unlock_any(owners) };
        };
        let shown = path.display();
        let bytes = read_file(path, KEYS)
            .map_err(|e| NoSecret(format!("cannot read the key {shown}: {e}; give the file with the secret key")))?;
        let mut key = SecretKey::parse(&bytes).map_err(|error| match error {
            crypt::Error::NotAKey { .. } => NoSecret(format!(
                "cannot use the key {shown}: it holds no OpenPGP secret key, or is damaged; give another file with --key"
            )),
            crypt::Error::NoSecretKey { .. } => NoSecret(format!(
                "cannot use the key {shown}: it is only a public certificate; give the file with the secret key"
            )),
            error => NoSecret(format!("cannot use the key {shown}: {error}")),
        })?;
        if key.is_locked() {
            key = unlock(&format!("Passphrase for the key in {shown}: "), |passphrase| {
                key.clone().unlock(passphrase).with_context(|| format!("cannot unlock the key {shown}"))
            })?;
        }
        Ok(Opener::new(key)?)
    }

    /// Which key is needed, if an error says that the given one is another, or that none was given.
    pub(super) fn needed_key(&self, error: &anyhow::Error, global: &Global) -> Option<String> {
        let is_needed = |error: &crypt::Error| error.is_other_key() || matches!(error, crypt::Error::GpgMissing { .. });
        let cause = error.chain().filter_map(|cause| cause.downcast_ref()).find(|error| is_needed(error))?;
        let recipients = self.repository.open(global).ok()?.keys().recipients().ok()?;
        let recipients: Vec<_> = recipients.iter().map(ToString::to_string).collect();
        let recipients = Some(recipients.join(", ")).filter(|names| !names.is_empty())?;
        Some(match (cause, &self.key) {
            (crypt::Error::GpgMissing { .. }, _) => format!("{cause}; the repository is for {recipients}"),
            (_, Some(path)) => {
                let key = path.display();
                format!(
                    "cannot decrypt with the key {key}: the repository is for {recipients}; give its key with --key"
                )
            }
            (_, None) => format!("cannot decrypt: give the secret key (--key or BRACKFS_KEY_FILE) of {recipients}"),
        })
    }

    /// The cache of session keys from gpg, if it may be used.
    fn key_store(&self, state: &RepositoryState) -> Option<Box<dyn KeyStore>> {
        if self.no_key_cache { None } else { Some(Box::new(state.clone())) }
    }
}

/// The owner's keys in the repository, keys of recipients first, and the copy in the host's state. Anyone with write access
/// to the repository can add such a file, so each key is only a candidate.
fn owners(state: &RepositoryState, keys: &Keys<'_>, monitor: &dyn Monitor) -> Result<Vec<SecretKey>> {
    let mut owners: Vec<SecretKey> = Vec::new();
    owners.extend(state.owner_key()?.and_then(|bytes| SecretKey::parse(&bytes).ok()));
    for (object, key) in keys.owners()? {
        match key {
            Ok(key) if owners.iter().any(|known| known.fingerprint() == key.fingerprint()) => {}
            Ok(key) => owners.push(key),
            Err(error) => monitor.note(&format!("{object} is ignored: {error}")),
        }
    }
    if owners.len() > 1 {
        let recipients = keys.recipients()?;
        // The sort is stable, so the copy in the state stays first among its equals.
        owners.sort_by_key(|key| recipients.iter().all(|recipient| recipient.fingerprint() != key.fingerprint()));
        owners.truncate(MAX_OWNER_KEYS);
    }
    Ok(owners)
}

/// Makes an opener of all keys that are unlocked, or that the passphrase unlocks. A key that an attacker added does no harm:
/// each message is opened with the key that it is encrypted to.
fn unlock_any(owners: Vec<SecretKey>) -> Result<Opener> {
    let (locked, mut open): (Vec<_>, Vec<_>) = owners.into_iter().partition(SecretKey::is_locked);
    if !locked.is_empty() {
        open.extend(unlock("Passphrase for the key in the repository: ", |passphrase| {
            unlock_with(&locked, passphrase)
        })?);
    }
    Ok(Opener::with_any(open)?)
}

/// The keys that the passphrase unlocks, at least one.
fn unlock_with(locked: &[SecretKey], passphrase: &Passphrase) -> Result<Vec<SecretKey>> {
    let (mut unlocked, mut failed) = (Vec::new(), None);
    for key in locked {
        match key.clone().unlock(passphrase) {
            Ok(key) => unlocked.push(key),
            // An added key that needs too much memory must not hide that the passphrase is wrong.
            Err(error) if failed.is_none() || matches!(error, crypt::Error::WrongPassphrase { .. }) => {
                failed = Some(error);
            }
            Err(_) => {}
        }
    }
    match (unlocked.is_empty(), failed) {
        (true, Some(error)) => Err(error).context("cannot unlock the key in the repository"),
        _ => Ok(unlocked),
    }
}

/// Whether to trust the host key found in the repository if no host key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstUse {
    /// The key is trusted, printed and remembered.
    Trusted,
    /// The user must name the key.
    Refused,
}

/// The host keys that this machine trusts.
struct KnownSigners {
    /// The certificate of its own.
    own: Option<Certificate>,
    others: Vec<Fingerprint>,
}

impl KnownSigners {
    /// Its own key, those that it remembers, and those that are `given`.
    fn find(
        repository: &Repository,
        state: &RepositoryState,
        given: &[Fingerprint],
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut others = given.to_vec();
        others.extend(state.signers()?);
        match catalog::trust_of(&state.catalog_path(), repository.id()) {
            Ok(trust) => others.extend(trust.map(|trust| trust.host)),
            Err(error) => monitor.note(&format!("cannot read the trusted host key from the catalog: {error}")),
        }
        // The certificate of this machine's own key is derived from the key, so the repository need not have it.
        let own = state.host_key()?.and_then(|key| SecretKey::parse(&key).ok()).map(|key| key.certificate());
        others.retain(|signer| own.as_ref().is_none_or(|own| own.fingerprint() != *signer));
        others.sort();
        others.dedup();
        Ok(KnownSigners { own, others })
    }

    fn is_empty(&self) -> bool {
        self.own.is_none() && self.others.is_empty()
    }
}

/// Finds the certificates of the trusted host keys.
struct Signers<'s> {
    keys: &'s Keys<'s>,
    state: &'s RepositoryState,
    opener: Option<&'s Opener>,
    monitor: &'s dyn Monitor,
}

impl Signers<'_> {
    /// The certificates of the known host keys. If there are none, the one in the repository, if `first_use` allows it.
    fn find(&self, known: KnownSigners, first_use: FirstUse) -> Result<Vec<Certificate>> {
        if known.is_empty() { self.first(first_use) } else { self.certificates(known) }
    }

    fn certificates(&self, KnownSigners { own, others }: KnownSigners) -> Result<Vec<Certificate>> {
        let mut found = Vec::from_iter(own);
        let mut missing = Vec::new();
        for signer in others {
            match self.keys.host(&signer) {
                Ok(certificate) => found.push(certificate),
                Err(error) => missing.push((signer, error)),
            }
        }
        if !missing.is_empty() {
            let hosts = self.keys.hosts_in_secrets(self.opener)?;
            missing.retain(|(signer, _)| match hosts.iter().find(|host| host.fingerprint() == *signer) {
                Some(certificate) => {
                    found.push(certificate.clone());
                    false
                }
                None => true,
            });
        }
        // A missing certificate is an error only if there is no other.
        match (found.is_empty(), missing.into_iter().next()) {
            (true, Some((_, error))) => Err(error.into()),
            _ => Ok(found),
        }
    }

    /// Trust on first use: the only host key in the repository.
    fn first(&self, first_use: FirstUse) -> Result<Vec<Certificate>> {
        let mut hosts = self.keys.hosts()?;
        if hosts.is_empty() {
            hosts = self.keys.hosts_in_secrets(self.opener)?;
        }
        let shown: Vec<_> = hosts.iter().map(|host| host.fingerprint().to_string()).collect();
        let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        if first_use == FirstUse::Refused {
            anyhow::bail!(
                "cannot tell whether the repository's host key is genuine (it shows {shown}); give --signer with the fingerprint that `brackfs init` or `brackfs adopt` printed"
            );
        }
        let [host] = hosts.as_slice() else {
            anyhow::bail!(
                "cannot tell which host key to trust: this machine knows none, and the repository shows {shown}; name the right one with --signer"
            );
        };
        let signer = host.fingerprint();
        self.monitor.note(&format!(
            "first use of this repository on this machine: snapshots signed by host key {signer} are trusted from now on; compare it with the fingerprint that init printed"
        ));
        if let Err(error) = self.state.remember_signer(&signer) {
            self.monitor.note(&format!("cannot remember host key {signer}: {error}"));
        }
        Ok(hosts)
    }
}

/// Finds the snapshot that a selector names. Candidates that do not verify are reported and skipped.
pub(super) fn select(archive: &dyn Archive, selector: &Selector, monitor: &dyn Monitor) -> Result<Arc<OpenSnapshot>> {
    let Selected { snapshot, has_rivals } = archive.select(selector, &mut |name, error| {
        let (object, error) = (name.object(), error.to_string());
        let why = error.strip_prefix(&format!("{object}: ")).unwrap_or(&error);
        monitor.note(&format!("skipping {object}: {why}"));
    })?;
    let name = &snapshot.name;
    if has_rivals {
        let others = match selector.is_latest() {
            true => "there are other sources",
            false => "other sources have snapshots of this time",
        };
        monitor.note(&format!(
            "{selector} is snapshot {} of {source} ({}); {others}; use {source}/{selector} to choose one",
            name.id.short(),
            show::local_name_time(&name.time),
            source = snapshot.source
        ));
    }
    if selector.is_time_without_zone()
        && !selector.is_id_of(name)
        && show::local_name_time(&name.time) != name_time(&name.time)
    {
        monitor.note(&format!(
            "{selector} has no offset, so it is UTC; it names snapshot {} of {}",
            name.id.short(),
            show::local_name_time(&name.time)
        ));
    }
    Ok(snapshot)
}
