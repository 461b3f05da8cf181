//! Options that say where the repository is and how to reach it, and opening it.

use std::ffi::OsStr;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Args, Command, ValueHint};

use super::exit::Usage;
use super::global::Global;
use super::{signals, terminal};
use crate::config::TargetConfig;
use crate::quantity::{parse_duration, parse_rate, parse_size};
use crate::repository::Repository;
use crate::storage::{
    Ahead, Credentials, Limit, Location, LocationError, Rates, Remote, RetryPolicy, RetryStorage, Storage, Waiting,
    parse_endpoint,
};

/// Heading of these options in help and manual pages. Each option names it: a heading for the whole struct would also apply to
/// the options after it.
pub(super) const HEADING: &str = "Target options";

/// The longest wait of a command for a server.
const SERVER: Duration = Duration::from_secs(15 * 60);
/// The longest wait of a read in a mount for a server, and for a disk.
const MOUNTED: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(5)];
/// The interval of messages about a wait.
const REMINDER: Duration = Duration::from_secs(60);

/// The repository of a command.
#[derive(Debug, Args)]
pub(super) struct RepositoryArg {
    /// Use this repository: a directory, sftp://USER@HOST/PATH, ftps://USER@HOST/PATH, s3://BUCKET/PREFIX,
    /// swift://CONTAINER/PREFIX, webdavs://HOST/PATH, or rclone:REMOTE:PATH
    ///
    /// See brackfs-targets(7).
    /// REPO may also be the name of a target in the configuration, see brackfs-config(5); ./NAME is a directory in any case. If
    /// this option is missing and exactly one target is configured, it is used. @NAME directly after the name of any command,
    /// as in `brackfs ls @NAME`, is short for --repo NAME.
    #[arg(
        long = "repo",
        short_alias = 'r',
        env = "BRACKFS_REPOSITORY",
        hide_env_values = true,
        value_name = "REPO",
        value_hint = ValueHint::DirPath,
        value_parser = LocationParser
    )]
    location: Option<Location>,
    #[command(flatten)]
    target: TargetArgs,
}

/// How to use a repository on a server.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// Connect to SFTP servers with COMMAND: a program and its options, separated by spaces [default: ssh]
    #[arg(long, help_heading = HEADING, env = "BRACKFS_SSH", value_name = "COMMAND")]
    ssh: Option<String>,
    /// Run COMMAND instead of rclone: a program and its options, separated by spaces [default: rclone]
    #[arg(long, help_heading = HEADING, env = "BRACKFS_RCLONE", value_name = "COMMAND")]
    rclone: Option<String>,
    /// Use the S3 service at URL instead of Amazon's, such as https://HOST:PORT
    ///
    /// Without this option, the first of these is used: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, endpoint_url in ~/.aws/config.
    #[arg(long, help_heading = HEADING, env = "BRACKFS_ENDPOINT", hide_env_values = true, value_name = "URL", value_parser = EndpointParser)]
    endpoint: Option<String>,
    /// Read the login for S3, Swift, WebDAV or FTP from FILE
    ///
    /// FILE has the format of ~/.aws/credentials for S3 (the profile is that of AWS_PROFILE, or else default), of an openrc
    /// file for Swift, and of ~/.netrc for WebDAV and FTP. Without this option, the login is found in environment variables or
    /// in files in the home directory; see brackfs-targets(7).
    #[arg(long, help_heading = HEADING, env = "BRACKFS_CREDENTIALS", hide_env_values = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    credentials: Option<PathBuf>,
    /// Trust the certificates in FILE (PEM) instead of the system's, for servers over HTTPS or FTPS
    #[arg(long, help_heading = HEADING, env = "BRACKFS_CA", hide_env_values = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// Assume that listings of Swift lag behind by at most DURATION
    #[arg(long, help_heading = HEADING, env = "BRACKFS_LISTING_LAG", hide = true, hide_env_values = true, value_name = "DURATION", value_parser = parse_duration)]
    listing_lag: Option<Duration>,
    /// Open up to N connections to a server [default: 8 for S3 and Swift, 4 for others]
    ///
    /// A backup stores up to N packs at the same time. If the server allows fewer connections, brackfs uses fewer.
    #[arg(long, help_heading = HEADING, value_name = "N")]
    connections: Option<NonZeroUsize>,
    /// Send at most SIZE per second to the repository
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = parse_rate)]
    limit_upload: Option<NonZeroU64>,
    /// Read at most SIZE per second from the repository
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = parse_rate)]
    limit_download: Option<NonZeroU64>,
    /// Use about SIZE of the state directory for packs that wait for a server [default: 128MiB]
    ///
    /// The packs are in unnamed files. When they take SIZE, a backup reads no more files until one is stored. Values below
    /// 64MiB count as 64MiB.
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = parse_size)]
    spool_size: Option<u64>,
}

/// Parses a location. Unlike clap's own message, the error does not repeat the value, which may have a password.
#[derive(Debug, Clone)]
pub(super) struct LocationParser;

impl TypedValueParser for LocationParser {
    type Value = Location;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Location, clap::Error> {
        let parse = |text: &str| match text {
            "" => Err("it is empty".to_owned()),
            text => text.parse().map_err(|error: LocationError| error.to_string()),
        };
        discreetly(command, arg, value, parse)
    }
}

/// Parses the URL of a server, likewise.
#[derive(Debug, Clone)]
struct EndpointParser;

impl TypedValueParser for EndpointParser {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        discreetly(command, arg, value, parse_endpoint)
    }
}

/// Parses a value. The error does not repeat it.
fn discreetly<T, E: fmt::Display>(
    command: &Command,
    arg: Option<&Arg>,
    value: &OsStr,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, clap::Error> {
    let mut command = command.clone();
    let name = arg.map(ToString::to_string).unwrap_or_default();
    let why = match value.to_str().map(parse) {
        Some(Ok(parsed)) => return Ok(parsed),
        Some(Err(error)) => format!("invalid value for '{name}': {error}"),
        None => return Err(clap::Error::new(ErrorKind::InvalidUtf8).with_cmd(&command)),
    };
    Err(command.error(ErrorKind::ValueValidation, why))
}

/// The use of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A command, which waits for a server, and fails at once if a disk is unplugged.
    Command,
    /// A command that reads much.
    Transfer,
    /// A mount, whose readers wait for both, but not long.
    Mount,
}

impl RepositoryArg {
    /// The repository that is named.
    pub(super) fn given(&self) -> Option<&Location> {
        self.location.as_ref()
    }

    /// Finds the repository that is meant: the given one, or a target of the configuration.
    pub(super) fn resolve(&self, global: &Global) -> Result<ResolvedRepository> {
        let target = match &self.location {
            None => Some(only_target(global)?),
            Some(given) => target_called(given, global)?,
        };
        let recipients = target.as_ref().and_then(|target| target.recipients.clone());
        let (target, location, rates) = match (target, &self.location) {
            (Some(target), _) => (Some(target.name), target.location, target.rates),
            (None, Some(given)) => (None, given.clone(), Rates::default()),
            (None, None) => return Err(Usage(WHICH.to_owned()).into()),
        };
        let TargetArgs { limit_upload, limit_download, .. } = self.target;
        let rates = Rates { upload: limit_upload.or(rates.upload), download: limit_download.or(rates.download) };
        Ok(ResolvedRepository { target, location: self.target.locate(&location, global), recipients, rates })
    }

    /// Opens the repository. This waits for nothing; later operations wait for a target that is away.
    pub(super) fn open(&self, global: &Global) -> Result<Repository> {
        self.resolve(global)?.open(Use::Command, global, Vec::new())
    }
}

/// The target that is meant by `@NAME`, or by NAME if there is such a target. `None` if a location is meant.
pub(super) fn target_called(given: &Location, global: &Global) -> Result<Option<TargetConfig>> {
    let Some(word) = given.as_name() else { return Ok(None) };
    match word.strip_prefix('@') {
        Some(name) => Ok(Some(global.required_config()?.target(name)?.clone())),
        None => {
            let targets = global.config()?.map(|config| config.targets).unwrap_or_default();
            Ok(targets.into_iter().find(|target| target.name == word))
        }
    }
}

/// What to say if no repository is named.
const WHICH: &str =
    "which repository? give --repo REPO, set BRACKFS_REPOSITORY, or write a target into the configuration";

/// The only target of the configuration.
fn only_target(global: &Global) -> Result<TargetConfig> {
    let targets = global.config()?.map(|config| config.targets).unwrap_or_default();
    match <[TargetConfig; 1]>::try_from(targets) {
        Ok([target]) => Ok(target),
        Err(targets) if targets.is_empty() => Err(Usage(WHICH.to_owned()).into()),
        Err(targets) => {
            let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
            Err(Usage(format!("which target? give --repo with one of {}", names.join(", "))).into())
        }
    }
}

/// A repository and how to reach it.
pub(super) struct ResolvedRepository {
    /// The name of the target, if it is a configured one.
    pub(super) target: Option<String>,
    /// The location with the options for it.
    pub(super) location: Location,
    /// The files with the certificates that it must be encrypted to.
    pub(super) recipients: Option<Vec<PathBuf>>,
    rates: Rates,
}

impl ResolvedRepository {
    /// The repository of a configured target.
    pub(super) fn of(target: &TargetConfig, global: &Global) -> Self {
        ResolvedRepository {
            target: Some(target.name.clone()),
            location: with_spool(target.location.clone(), global),
            recipients: target.recipients.clone(),
            rates: target.rates,
        }
    }

    /// Opens the repository. This waits for nothing; later operations wait for a target that is away. The reads `ahead` begin
    /// at once.
    pub(super) fn open(&self, usage: Use, global: &Global, ahead: Vec<Ahead>) -> Result<Repository> {
        let ResolvedRepository { location, rates, .. } = self;
        let policy = policy(usage, location.is_remote());
        let (shown, is_silent) = (location.to_string(), global.quiet);
        let wrap = |storage: Box<dyn Storage>| -> Box<dyn Storage> {
            let storage: Box<dyn Storage> = match *rates {
                Rates { upload: None, download: None } => storage,
                rates => Box::new(Limit::new(storage, rates, signals::interrupt())),
            };
            match policy {
                None => storage,
                Some(policy) => {
                    let reminder = Reminder::default();
                    let retry = RetryStorage::new(storage, policy).with_interrupt(signals::interrupt().clone());
                    match location.is_remote() && !is_silent {
                        true => Box::new(retry.with_notice(move |waiting| reminder.note(&shown, waiting))),
                        false => Box::new(retry),
                    }
                }
            }
        };
        let repository = Repository::open_wrapped(location, ahead, wrap)?;
        if usage == Use::Transfer {
            repository.target().widen();
        }
        Ok(repository)
    }
}

/// Packs that wait for a server are in the state directory.
fn with_spool(location: Location, global: &Global) -> Location {
    let spool = global.state().ok().map(|state| state.join("spool"));
    let remote = Remote { spool, interrupt: signals::interrupt().clone(), ..location.remote().clone() };
    location.with_remote(remote)
}

impl TargetArgs {
    /// The location with the options for it, which take precedence over those that it has.
    pub(super) fn locate(&self, location: &Location, global: &Global) -> Location {
        let words = |text: &String| text.split_ascii_whitespace().map(str::to_owned).collect();
        let given = location.remote().clone();
        let remote = Remote {
            ssh: self.ssh.as_ref().map_or(given.ssh, words),
            rclone: self.rclone.as_ref().map_or(given.rclone, words),
            endpoint: self.endpoint.clone().or(given.endpoint),
            credentials: self.credentials.clone().map(Credentials::in_file).or(given.credentials),
            ca: self.ca.clone().or(given.ca),
            connections: self.connections.or(given.connections),
            lag: self.listing_lag.unwrap_or(given.lag),
            spool_size: self.spool_size.unwrap_or(given.spool_size),
            ..given
        };
        with_spool(location.clone().with_remote(remote), global)
    }
}

/// How long to wait for a target that is away.
fn policy(usage: Use, is_remote: bool) -> Option<RetryPolicy> {
    let [server, disk] = MOUNTED;
    let longest = match (usage, is_remote) {
        (Use::Command | Use::Transfer, true) => SERVER,
        (Use::Command | Use::Transfer, false) => return None,
        (Use::Mount, true) => server,
        (Use::Mount, false) => disk,
    };
    let (first, most) = if is_remote { (500, 60_000) } else { (100, 400) };
    let [first_wait, longest_wait] = [first, most].map(Duration::from_millis);
    Some(RetryPolicy { longest, first_wait, longest_wait })
}

/// Says that a server is waited for, at the beginning and then once a minute.
#[derive(Debug, Default)]
struct Reminder(Mutex<Option<Instant>>);

impl Reminder {
    fn note(&self, location: &str, waiting: &Waiting<'_>) {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < REMINDER) {
            return;
        }
        *last = Some(Instant::now());
        let away = match waiting.away.as_secs() {
            0 => String::new(),
            seconds => format!(" for {seconds} s"),
        };
        terminal::announce(&format!("waiting for {location}{away}: {}", waiting.error));
    }
}
