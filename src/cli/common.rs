//! Flags that several commands share, and how a reader is opened.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgAction, Args, ValueHint};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::exit::{INTERRUPTED, NoSecret};
use super::memory;
use super::say;
use super::terminal::Terminal;
use crate::catalog;
use crate::crypt::{Certificate, Fingerprint, KeyStore, Opener, Passphrase, SecretKey};
use crate::format::snapshot::Snapshot;
use crate::monitor::Monitor;
use crate::reader::{Reader, Selector};
use crate::repository::{Access, Repository};
use crate::state::RepositoryState;

/// What help and manual pages call the flags of every command.
const COMMON: &str = "Common options";

/// Flags of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = COMMON)]
    pub(super) quiet: bool,
    /// Name every file, on standard error
    #[arg(short, long, global = true, help_heading = COMMON)]
    pub(super) verbose: bool,
    /// Where this machine keeps catalogs and its own keys [default: /var/lib/brackfs for root, else
    /// $XDG_STATE_HOME/brackfs or ~/.local/state/brackfs]
    #[arg(long, global = true, env = "BRACKFS_STATE_DIR", value_name = "DIR", help_heading = COMMON)]
    pub(super) state_dir: Option<PathBuf>,
}

/// Which repository.
#[derive(Debug, Args)]
pub(super) struct RepositoryArg {
    /// The repository: the path of its directory
    #[arg(long = "repo", env = "BRACKFS_REPOSITORY", value_name = "REPO", value_hint = ValueHint::DirPath)]
    #[arg(value_parser = parse_location)]
    pub(super) location: String,
}

/// The place of a repository. A colon before the first slash is another program's way to name a machine or a service; a
/// directory of such a name is written with `./` before it.
pub(super) fn parse_location(text: &str) -> Result<String, String> {
    let head = text.split('/').next().unwrap_or_default();
    let Some((place, _)) = head.split_once(':').filter(|_| !text.starts_with("file://")) else {
        return Ok(text.to_owned());
    };
    let help = match place {
        "sftp" | "ssh" => "mount it with sshfs, and give the mount point",
        "rclone" | "s3" | "b2" | "gs" | "azure" | "swift" | "rest" | "ftp" | "ftps" | "http" | "https" | "webdav"
        | "webdavs" => "mount it with `rclone mount`, and give the mount point",
        _ => "mount it, as with sshfs, and give the mount point",
    };
    Err(format!(
        "it names another machine or a service, and brackfs writes to directories only: {help}. For a local directory of this name, write ./{text}"
    ))
}

/// Bytes to cache for what reads everything once.
pub(super) const READ_ONCE: u64 = 24 << 20;
/// Bytes to cache for what is asked again and again, or reads in the order of the tree: there blocks of as many backups
/// as there were take turns.
pub(super) const READ_OFTEN: u64 = 128 << 20;

/// At most so many of the owner's keys in a repository are tried: unlocking one takes a fraction of a second.
const OWNERS: usize = 16;

/// What it takes to read.
#[derive(Debug, Args)]
pub(super) struct ReaderArgs {
    #[command(flatten)]
    pub(super) repository: RepositoryArg,
    /// The owner's secret key [default: the one kept in the repository, else your gpg]
    ///
    /// A file, armored or binary, with one OpenPGP secret key. Its passphrase is asked for if it has one. Without this
    /// option the key is taken that init was asked to keep in the repository. If there is none, gpg is asked, and with
    /// it its agent and smart cards. Not needed for a repository that is not encrypted.
    #[arg(long, env = "BRACKFS_KEY_FILE", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Keep no session keys of gpg's, and use none that were kept
    ///
    /// Each backup run encrypts with a session key of its own. If gpg has the secret key, those that it found out are
    /// kept in the state directory, encrypted to that same key, so that gpg or a smart card is asked once by each command
    /// that reads, and not once more for every run that it meets. See brackfs-security(7).
    #[arg(long)]
    pub(super) no_key_cache: bool,
    /// Trust snapshots signed by this host key (its fingerprint; init prints it); may be repeated
    ///
    /// Snapshots signed by this machine's own host key or by a remembered one are trusted too. If there is none of these,
    /// and none is given, the key found in the repository is trusted at first use, printed and remembered.
    #[arg(long, value_name = "FINGERPRINT", action = ArgAction::Append)]
    pub(super) signer: Vec<Fingerprint>,
    /// Decoded data to keep in memory, so that it need not be read and decrypted again [default: 128MiB for
    /// mount and dump, 24MiB otherwise; less where memory is short]
    ///
    /// The default is at most a quarter of the memory of the machine, of the limit of the cgroup (a container or a systemd
    /// service with MemoryMax=), and of what ulimit -v allows.
    #[arg(long, value_name = "SIZE", value_parser = super::show::parse_size)]
    pub(super) cache_size: Option<u64>,
}

impl Global {
    /// The state directory.
    ///
    /// A command that only reads can do without: see [`Global::state_to_read`].
    pub(super) fn state(&self) -> Result<PathBuf> {
        if let Some(given) = &self.state_dir {
            return std::path::absolute(given).with_context(|| format!("{}", given.display()));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/brackfs"));
        }
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|path| path.join("brackfs"))
            .context("there is no home directory for the state; give one with --state-dir or BRACKFS_STATE_DIR")
    }

    /// The state directory of a command that only reads. If the user has no home directory, a place where nothing is found
    /// or kept.
    fn state_to_read(&self) -> PathBuf {
        self.state().unwrap_or_else(|_| PathBuf::from("/nonexistent/brackfs"))
    }

    /// What a run tells the terminal.
    pub(super) fn monitor(&self, json: bool) -> Terminal {
        Terminal::new(self.quiet, self.verbose, json)
    }
}

impl ReaderArgs {
    /// Opens a reader: finds the key, and decides whose signatures are believed. `cache`: its size, if the user
    /// does not say another.
    pub(super) fn open(&self, global: &Global, monitor: &dyn Monitor, cache: u64) -> Result<Reader> {
        self.open_trusting(FirstUse::Trusted, global, monitor, cache)
    }

    /// The same, with a say in what happens where no host key is known yet.
    pub(super) fn open_trusting(
        &self,
        first_use: FirstUse,
        global: &Global,
        monitor: &dyn Monitor,
        cache: u64,
    ) -> Result<Reader> {
        let repository = Repository::open(&self.repository.location)?;
        let state = RepositoryState::new(&global.state_to_read(), repository.id());
        let opener = match repository.encrypted() {
            true => Some(self.opener(&state, &repository, monitor)?),
            false => None,
        };
        let signers = Signers { repository: &repository, state: &state, opener: opener.as_ref(), monitor };
        let signers = signers.find(&self.signer, first_use)?;
        let cache = usize::try_from(self.cache_size.unwrap_or_else(|| memory::cache(cache)))
            .context("the cache size is too large")?;
        Ok(Reader::new(repository, Access::new(opener, signers), cache))
    }

    fn opener(&self, state: &RepositoryState, repository: &Repository, monitor: &dyn Monitor) -> Result<Opener> {
        let Some(path) = &self.key else {
            let owners = owners(state, repository, monitor)?;
            return match owners.is_empty() {
                true => Ok(Opener::gpg(self.key_store(state))),
                false => unlock_any(owners),
            };
        };
        let bytes =
            std::fs::read(path).map_err(|e| NoSecret(format!("cannot read the key {}: {e}", path.display())))?;
        let key = SecretKey::parse(&bytes).with_context(|| format!("{}", path.display()))?;
        let key = match key.is_locked() {
            true => {
                let what = path.display();
                let passphrase = passphrase(&format!("Passphrase for the key in {what}: "))?;
                key.unlock(&passphrase).with_context(|| format!("the key in {what}"))?
            }
            false => key,
        };
        Ok(Opener::new(key)?)
    }

    /// Where session keys that gpg found out are kept, if they may be.
    fn key_store(&self, state: &RepositoryState) -> Option<Box<dyn KeyStore>> {
        match self.no_key_cache {
            true => None,
            false => Some(Box::new(state.clone())),
        }
    }
}

/// The owner's keys that the repository keeps, those of its recipients first, and on the host the copy of the right one.
/// Anyone who can write to the target can add such a file, so each is only a candidate.
fn owners(state: &RepositoryState, repository: &Repository, monitor: &dyn Monitor) -> Result<Vec<SecretKey>> {
    let mut owners: Vec<SecretKey> = Vec::new();
    owners.extend(state.owner_key()?.and_then(|bytes| SecretKey::parse(&bytes).ok()));
    for (object, key) in repository.keys().owners()? {
        match key {
            Ok(key) if owners.iter().any(|known| known.fingerprint() == key.fingerprint()) => {}
            Ok(key) => owners.push(key),
            Err(error) => monitor.note(&format!("{object} is not used: {error}")),
        }
    }
    if owners.len() > 1 {
        let recipients = repository.keys().recipients()?;
        // Stable: the copy on the host stays ahead of others of its kind.
        owners.sort_by_key(|key| recipients.iter().all(|recipient| recipient.fingerprint() != key.fingerprint()));
        owners.truncate(OWNERS);
    }
    Ok(owners)
}

/// An opener with all keys that are not locked, or that the passphrase unlocks. A key that was added does not get in the
/// way of the right one: a message is opened with the key that it is encrypted to.
fn unlock_any(owners: Vec<SecretKey>) -> Result<Opener> {
    let (locked, mut open): (Vec<_>, Vec<_>) = owners.into_iter().partition(SecretKey::is_locked);
    if !locked.is_empty() {
        let passphrase = passphrase("Passphrase for the key in the repository: ")?;
        let (mut unlocked, mut failed) = (Vec::new(), None);
        for key in locked {
            match key.unlock(&passphrase) {
                Ok(key) => unlocked.push(key),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let (true, Some(error)) = (unlocked.is_empty(), failed) {
            return Err(error).context("the key in the repository");
        }
        open.extend(unlocked);
    }
    Ok(Opener::with_any(open)?)
}

/// What to do where no host key is known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstUse {
    /// The key that the repository shows is trusted, printed and remembered.
    Trusted,
    /// It is not.
    Refused,
}

/// Looks for the certificates of the host keys to trust.
struct Signers<'s> {
    repository: &'s Repository,
    state: &'s RepositoryState,
    opener: Option<&'s Opener>,
    monitor: &'s dyn Monitor,
}

impl Signers<'_> {
    /// Certificates of this machine's own host key, of those that it remembers, and of those that were given. If there are
    /// none, the one that the repository shows, if first use is trusted.
    fn find(&self, given: &[Fingerprint], first_use: FirstUse) -> Result<Vec<Certificate>> {
        let mut known = given.to_vec();
        known.extend(self.state.signers()?);
        match catalog::trust_of(&self.state.catalog_path(), self.repository.id()) {
            Ok(trust) => known.extend(trust.map(|trust| trust.host)),
            Err(error) => self.monitor.note(&format!("the catalog cannot say which host key it trusts: {error}")),
        }
        // The machine's own certificate needs no copy at the target.
        let own = self.state.host_key()?.and_then(|key| SecretKey::parse(&key).ok()).map(|key| key.certificate());
        known.retain(|signer| own.as_ref().is_none_or(|own| own.fingerprint() != *signer));
        known.sort();
        known.dedup();
        match known.is_empty() && own.is_none() {
            true => self.first(first_use),
            false => self.certificates(own, known),
        }
    }

    fn certificates(&self, own: Option<Certificate>, known: Vec<Fingerprint>) -> Result<Vec<Certificate>> {
        let mut found = Vec::from_iter(own);
        let mut missing = Vec::new();
        for signer in known {
            match self.repository.keys().host(&signer) {
                Ok(certificate) => found.push(certificate),
                Err(error) => missing.push((signer, error)),
            }
        }
        if !missing.is_empty() {
            let kept = self.repository.keys().hosts_in_secrets(self.opener)?;
            missing.retain(|(signer, _)| match kept.iter().find(|host| host.fingerprint() == *signer) {
                Some(certificate) => {
                    found.push(certificate.clone());
                    false
                }
                None => true,
            });
        }
        // A missing one does no harm as long as another is there.
        match (found.is_empty(), missing.into_iter().next()) {
            (true, Some((_, error))) => Err(error.into()),
            _ => Ok(found),
        }
    }

    /// At first use, the one host key that the repository shows.
    fn first(&self, first_use: FirstUse) -> Result<Vec<Certificate>> {
        let mut hosts = self.repository.keys().hosts()?;
        if hosts.is_empty() {
            hosts = self.repository.keys().hosts_in_secrets(self.opener)?;
        }
        let shown: Vec<_> = hosts.iter().map(|host| host.fingerprint().to_string()).collect();
        let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        if first_use == FirstUse::Refused {
            anyhow::bail!(
                "this machine does not know the repository's host key, and the one that signed earlier backups must be given with --signer. The repository shows {shown}; use only a fingerprint that `brackfs init` or `brackfs adopt` printed"
            );
        }
        let [host] = hosts.as_slice() else {
            anyhow::bail!(
                "this machine does not know yet which host key to trust, and the repository shows {shown}; name the right one with --signer"
            );
        };
        let signer = host.fingerprint();
        self.monitor.note(&format!(
            "first use of this repository here: from now on snapshots signed by host key {signer} are trusted; compare it with the one that init printed"
        ));
        if let Err(error) = self.state.remember_signer(&signer) {
            self.monitor.note(&format!("it could not be remembered: {error}"));
        }
        Ok(hosts)
    }
}

/// The snapshot that is meant. Snapshots that would have been meant and do not verify are named.
pub(super) fn select(reader: &Reader, selector: &Selector, monitor: &dyn Monitor) -> Result<Arc<Snapshot>> {
    Ok(reader.select(selector, &mut |name, error| {
        monitor.note(&format!("{} is passed over: {error}", name.object()));
    })?)
}

/// The passphrase: from the environment, or asked for at the terminal.
pub(super) fn passphrase(prompt: &str) -> Result<Passphrase> {
    match passphrase_given()? {
        Some(passphrase) => Ok(passphrase),
        None => ask(prompt),
    }
}

/// A new passphrase: from the environment, or asked for twice.
pub(super) fn new_passphrase(prompt: &str) -> Result<Passphrase> {
    if let Some(passphrase) = passphrase_given()? {
        return Ok(passphrase);
    }
    let first = prompt_for(prompt)?;
    if first.is_empty() {
        return Err(NoSecret("an empty passphrase protects nothing".into()).into());
    }
    match prompt_for("The same again: ")? == first {
        true => Ok(Passphrase::from(first)),
        false => Err(NoSecret("the two are not the same".into()).into()),
    }
}

fn ask(prompt: &str) -> Result<Passphrase> {
    prompt_for(prompt).map(Passphrase::from)
}

fn prompt_for(prompt: &str) -> Result<String> {
    let missing = "there is no terminal to ask for the passphrase; set BRACKFS_PASSPHRASE, BRACKFS_PASSPHRASE_FILE \
                   or BRACKFS_PASSPHRASE_COMMAND";
    rpassword::prompt_password(prompt).map_err(|_| NoSecret(missing.into()).into())
}

fn passphrase_given() -> Result<Option<Passphrase>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(value) = variable("BRACKFS_PASSPHRASE") {
        return text(value.into_encoded_bytes(), "BRACKFS_PASSPHRASE").map(Some);
    }
    if let Some(path) = variable("BRACKFS_PASSPHRASE_FILE") {
        let path = PathBuf::from(path);
        let bytes = std::fs::read(&path)
            .map_err(|e| NoSecret(format!("BRACKFS_PASSPHRASE_FILE: cannot read {}: {e}", path.display())))?;
        return text(bytes, "BRACKFS_PASSPHRASE_FILE").map(Some);
    }
    if let Some(command) = variable("BRACKFS_PASSPHRASE_COMMAND") {
        return from_command(&command).map(Some);
    }
    Ok(None)
}

fn from_command(command: &OsString) -> Result<Passphrase> {
    let name = "BRACKFS_PASSPHRASE_COMMAND";
    let output = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| NoSecret(format!("{name}: {e}")))?;
    match output.status.success() {
        true => text(output.stdout, name),
        false => Err(NoSecret(format!("{name} failed ({})", output.status)).into()),
    }
}

/// A passphrase without the newline at its end.
fn text(bytes: Vec<u8>, from: &str) -> Result<Passphrase> {
    let text = String::from_utf8(bytes).map_err(|_| NoSecret(format!("{from} is not UTF-8")))?;
    Ok(Passphrase::from(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// How long a process that was told to end may take for it: less than service managers wait before they kill.
const ENDING: Duration = Duration::from_secs(60);

/// The same where nothing has to be put in order.
const ENDING_TO_READ: Duration = Duration::from_secs(2);

/// A flag that is set when the process is told to end; a second signal ends it at once, and so does [`ENDING`].
pub(super) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    stop_within(ENDING)
}

/// The same for a run that leaves nothing half done that matters: it ends soon even if it waits for a file system that does
/// not answer.
pub(super) fn stop_soon_on_signals() -> Result<Arc<AtomicBool>> {
    stop_within(ENDING_TO_READ)
}

fn stop_within(longest: Duration) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let failed = "cannot wait for signals";
    let (mut told, tell) = UnixStream::pair().context(failed)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal only sets the flag that the second one looks at.
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .and_then(|_| signal_hook::low_level::pipe::register(signal, tell.try_clone()?))
            .context(failed)?;
    }
    let end = move || {
        if told.read_exact(&mut [0]).is_ok() {
            thread::sleep(longest);
            say::aside(format!("brackfs: interrupted; it did not end within {} s, so it ends now", longest.as_secs()));
            std::process::exit(INTERRUPTED.into());
        }
    };
    // Where no thread can be had, the second signal still ends it.
    let _ending = thread::Builder::new().name("ending".into()).spawn(end);
    Ok(stop)
}

/// Ends the process with code 130 as soon as it is told to: for commands that read and print.
pub(super) fn end_on_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::new(AtomicBool::new(true)))
            .context("cannot wait for signals")?;
    }
    Ok(())
}

/// Whether somebody looks at standard error.
pub(super) fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// Reads a certificate, or the public part of a key, from a file.
pub(super) fn read_certificate(path: &Path) -> Result<Certificate> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the certificate {}", path.display()))?;
    Certificate::parse(&bytes).with_context(|| format!("{}", path.display()))
}
