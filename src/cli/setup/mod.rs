//! `brackfs setup`
//!
//! First the questions, then the plan, then the steps. Until the plan is confirmed, nothing is written. What is there already is kept,
//! so a setup that failed can be run again.
//!
//! - [`ask`]: questions on a terminal
//! - [`mod@draft`]: the configuration, from the answers
//! - [`existing`]: what is there already
//! - [`asked`]: whether the options agree with it
//! - [`timer`]: the service and its timer
//! - [`page`]: what to keep for a restore

mod ask;
mod asked;
mod draft;
mod existing;
mod page;
mod timer;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::unistd::User;

use self::ask::Asker;
use self::draft::{Draft, absolute, checked_paths, checked_repository};
use self::existing::{repository_of, without_backup};
use self::timer::{Files, Schedule, Timer};
use super::exit::{Reported, Usage};
use super::global::Global;
use super::init::forget_former;
use super::key::owner_id;
use super::output;
use super::recipients::read_certificate;
use super::repository_arg::ResolvedRepository;
use super::run::{Args as RunArgs, run as run_steps};
use super::unit;
use crate::config::{Config, TargetConfig};
use crate::crypt::{Certificate, Passphrase};
use crate::init::{Owner, init};
use crate::monitor::Monitor;
use crate::state::{RepositoryState, create_folder};
use crate::sys::durable::{IfExists, write_file};

/// The user of the service.
const USER: &str = "brackfs";

/// Set up backups: configuration, repository, timer and first backup
///
/// On a terminal, setup asks what to back up, where to, who can read the backups, and when. Then it shows what it will do, and asks
/// whether to go ahead. Until then, nothing is written. Each question has an option; without a terminal, all of them are needed.
///
/// It writes the configuration, makes the repository, and makes the first backup. Where systemd runs, it enables a timer;
/// root's service runs as the user brackfs, which may read all files, but write only its state, its cache and the repositories.
/// Elsewhere it prints a line for cron. At the end it prints what to keep for a restore.
///
/// A new configuration forgets old snapshots, leaves out caches, and checks the repository once a week; setup shows the rules, and
/// --dry-run prints the file.
///
/// What exists is kept: a configuration, a repository that this machine writes to, an enabled timer, a backup. So after a
/// failure, run setup again. Options that differ from the configuration, or from the keys of its repositories, are refused; only the
/// times of the timer are changed by --when. To change the configuration later, edit it, and run setup again: it makes new
/// repositories, renews the drop-in of the service, and makes the first backups of new sources.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs setup
  brackfs setup --dry-run
  brackfs setup --path /etc --path /home --to /mnt/disk/brackfs --recipient owner.key.pub --when daily --yes
  brackfs setup --path /home --to sftp://me@host/srv/backup --passphrase --when weekly --yes")]
pub(super) struct Args {
    /// Back up PATH (repeatable)
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Make the repository in REPO: a directory, or a URL as for init
    #[arg(long, value_name = "REPO")]
    to: Option<String>,
    /// Read the login for the server from FILE; see brackfs-targets(7)
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Use the S3 service at URL
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Encrypt to this certificate (repeatable)
    #[arg(long, value_name = "CERT", conflicts_with = "passphrase")]
    recipient: Vec<PathBuf>,
    /// Encrypt to a new key, which is locked with a passphrase and stored in the repository
    ///
    /// The passphrase is asked for, or read from BRACKFS_PASSPHRASE and the like.
    #[arg(long)]
    passphrase: bool,
    /// Run backups hourly, daily, weekly, monthly, at the times of a calendar event of systemd such as 'Mon..Fri 12:30', or never
    ///
    /// Without systemd, a line for cron is printed; calendar events are then refused.
    #[arg(long, value_name = "WHEN")]
    when: Option<Schedule>,
    /// Go ahead without asking
    #[arg(short, long)]
    yes: bool,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What is to be done. What is `None` or empty is there already.
struct Plan {
    file: PathBuf,
    /// The text of a new configuration.
    text: Option<String>,
    config: Config,
    /// The targets whose repositories are to be made.
    new: Vec<TargetConfig>,
    /// What they are encrypted to; nothing for a new key with a passphrase.
    recipients: Vec<Certificate>,
    timer: Timer,
    /// The times that were asked for.
    schedule: Option<Schedule>,
    /// The files of the units.
    files: Files,
    /// The state directory.
    state: PathBuf,
    /// The sources without a backup.
    sources: Vec<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let asker = Asker::new();
    let plan = Plan::make(args, global, &asker)?;
    let (kept, steps) = plan.described();
    kept.iter().for_each(|line| output::message(format!("kept: {line}")));
    steps.iter().for_each(|line| output::message(format!("to do: {line}")));
    plan.warnings().iter().for_each(|line| output::warning(format!("brackfs: {line}")));
    if args.dry_run {
        if let Some(text) = &plan.text {
            output::result(text.trim_end())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut ended = Ok(ExitCode::SUCCESS);
    if steps.is_empty() {
        output::message("everything is set up already");
    } else {
        let key = plan.key(&asker)?;
        if !args.yes && !asker.agrees("Go ahead?", "--yes")? {
            output::message("nothing was changed");
            return Ok(ExitCode::SUCCESS);
        }
        plan.prepare()?;
        plan.make_repositories(key.as_ref(), global)?;
        if matches!(plan.schedule, Some(Schedule::At(_))) || plan.timer.is_enabled() {
            plan.timer.set(&plan.files)?;
        }
        if !plan.sources.is_empty() {
            ended = match run_steps(&RunArgs::backups_of(plan.sources.clone()), global) {
                Err(error) if !error.is::<Reported>() => return Err(error),
                // The page follows even if the first backup had problems.
                ended => ended,
            };
        }
    }
    output::result(page::text(&plan, global)?)?;
    ended
}

/// What a new repository is encrypted to.
enum Key {
    Recipients(Vec<Certificate>),
    Passphrase(Passphrase),
}

impl Plan {
    /// Finds what is there, and asks for the rest.
    fn make(args: &Args, global: &Global, asker: &Asker) -> Result<Self> {
        let file = std::path::absolute(global.config_path()?)?;
        let (config, draft) = match file.symlink_metadata().is_ok() {
            true => (Config::load(&file)?, None),
            false => {
                let draft = draft(args, asker)?;
                (Config::parse(&file, &draft.text(None))?, Some(draft))
            }
        };
        if config.sources.is_empty() {
            let why = format!("{} has no source; add one, or move the file away for a new one", file.display());
            return Err(Usage(why).into());
        }
        if draft.is_none() {
            asked::check_configuration(args, &config, &file)?;
        }
        let state = global.state()?;
        let mut new = Vec::new();
        for target in &config.targets {
            if repository_of(target, &state, global)?.is_none() {
                new.push(target.clone());
            }
        }
        let recipients = match (new.as_slice(), args.recipient.as_slice()) {
            (_, []) if args.passphrase || new.is_empty() => Vec::new(),
            (_, []) => asker.recipients()?,
            (_, given) => given.to_vec(),
        };
        let recipients: Vec<_> = recipients.iter().map(|path| read_certificate(path)).collect::<Result<_>>()?;
        asked::check_key(args, &recipients, &config, &new, &state, global)?;
        let timer = Timer::find(&state)?;
        let schedule = match (&args.when, timer.has_systemd(), timer.is_enabled()) {
            (Some(when), ..) => Some(when.clone()),
            (None, true, false) => Some(asker.schedule()?),
            // The timer keeps its times; the line for cron is only printed.
            (None, ..) => None,
        };
        let text = draft.map(|draft| draft.text(schedule.as_ref().and_then(Schedule::max_age)));
        let sources = without_backup(&config, &new, &state);
        let files = timer.files(schedule.as_ref(), &config, &file)?;
        if let Some(schedule) = &schedule {
            timer.check(schedule, &files)?;
        }
        Ok(Plan { file, text, config, new, recipients, timer, schedule, files, state, sources })
    }

    /// What is kept, and what is to be done.
    fn described(&self) -> (Vec<String>, Vec<String>) {
        let (mut kept, mut steps) = (Vec::new(), Vec::new());
        let file = self.file.display();
        match &self.text {
            Some(_) => {
                steps.push(format!("write the configuration {file}"));
                for (key, effect) in
                    [("keep", "forget old snapshots by its rule"), ("exclude", "leave out what it excludes")]
                {
                    let used = self.config.sources.iter().flat_map(|source| &source.used);
                    let used = used.filter(|used| used.key.starts_with(key));
                    let settings: Vec<_> = used.map(|used| format!("{} = {}", used.key, used.value)).collect();
                    steps.push(format!("{effect}: {}", settings.join(", ")));
                }
            }
            None => kept.push(format!("the configuration {file}")),
        }
        for target in &self.config.targets {
            let Some(target) = self.new.iter().find(|new| new.name == target.name) else {
                kept.push(format!("the repository at {}", target.location));
                continue;
            };
            let recipients: Vec<_> = self.recipients.iter().map(|it| it.fingerprint().to_string()).collect();
            let key = match recipients.as_slice() {
                [] => "a new key with a passphrase".to_owned(),
                recipients => recipients.join(", "),
            };
            steps.push(format!("make a repository at {}, encrypted to {key}", target.location));
        }
        if self.timer.is_enabled() {
            kept.push("the timer brackfs.timer".to_owned());
            steps.extend(self.files.new.iter().map(|(path, _)| format!("write {}", path.display())));
        } else if let Some(schedule @ Schedule::At(_)) = &self.schedule
            && self.timer.has_systemd()
        {
            steps.push(match &self.files.times {
                None => format!("enable brackfs.timer ({schedule})"),
                Some(file) => format!("enable brackfs.timer with the times in {}", file.display()),
            });
        }
        kept.extend(
            self.files.kept.iter().map(|path| format!("{}, which setup would write differently", path.display())),
        );
        match self.sources.as_slice() {
            [] => kept.push("the backups made so far".to_owned()),
            sources => steps.push(format!("make the first backup of {}", sources.join(", "))),
        }
        if let Some(user) = self.new_owner_of_state() {
            steps.insert(0, format!("give {} to the user {user}", self.state.display()));
        }
        if let Some(user) = self.user()
            && !steps.is_empty()
            && !matches!(User::from_name(user), Ok(Some(_)))
        {
            steps.insert(0, format!("make the user {user} for the service, which may read all files"));
        }
        (kept, steps)
    }

    /// What a person should know before going ahead.
    fn warnings(&self) -> Vec<String> {
        let device = |path: &Path| path.ancestors().find_map(|path| Some(fs::metadata(path).ok()?.dev()));
        let paths = || self.config.sources.iter().flat_map(|source| &source.options.selection.paths);
        let same = self.new.iter().filter_map(|target| {
            let repository = target.location.directory()?;
            let path = paths().find(|path| device(path).is_some_and(|it| Some(it) == device(repository)))?;
            let (repository, path) = (repository.display(), path.display());
            Some(format!("{repository} is on the same disk as {path}: if it breaks, both are lost"))
        });
        let root = unit::needs_root(&self.config).filter(|_| self.timer.is_system());
        let root = root.map(|why| format!("the service runs as root: {why}"));
        let kept = self.config.targets.iter().filter(|target| !self.new.iter().any(|new| new.name == target.name));
        let foreign = kept.filter_map(|target| {
            let folder =
                target.location.directory().filter(|it| self.user().is_some_and(|user| is_foreign(it, user)))?;
            let command = format!("chown -R {USER}: {}", page::quoted(&folder.to_string_lossy()));
            Some(format!("the user {USER} of the service does not own {}; run: {command}", folder.display()))
        });
        let doubtful = unit::doubtful_secrets(&self.config).filter(|_| self.timer.is_system());
        same.chain(root).chain(doubtful).chain(foreign).collect()
    }

    /// The user of the service, if a part of the state directory belongs to someone else.
    fn new_owner_of_state(&self) -> Option<&'static str> {
        let user = if self.timer.is_system() { self.user().unwrap_or("root") } else { return None };
        is_foreign(&self.state, user).then_some(user)
    }

    /// The key of the new repositories, if there are any.
    fn key(&self, asker: &Asker) -> Result<Option<Key>> {
        Ok(match (self.new.as_slice(), self.recipients.as_slice()) {
            ([], _) => None,
            (_, []) => Some(Key::Passphrase(asker.new_passphrase()?)),
            (_, recipients) => Some(Key::Recipients(recipients.to_vec())),
        })
    }

    /// The user that the service runs as, if it is not the one that runs this.
    fn user(&self) -> Option<&'static str> {
        let is_for_user = self.timer.is_system() && unit::needs_root(&self.config).next().is_none();
        is_for_user.then_some(USER)
    }

    /// Makes the user of the service, gives it the state directory, makes the directories of new repositories, and writes the
    /// configuration.
    fn prepare(&self) -> Result<()> {
        let owner = self.user().map(timer::make_user).transpose()?;
        if owner.is_some() {
            create_folder(&self.state).with_context(|| format!("cannot make {}", self.state.display()))?;
        }
        if let Some(user) = self.new_owner_of_state() {
            give_all(&self.state, user)?;
        }
        // Before the configuration is written: a later run keeps it, even if a directory in it cannot be made.
        for folder in self.new.iter().filter_map(|target| target.location.directory()) {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let Some(text) = &self.text else { return Ok(()) };
        let failed = || format!("cannot write {}", self.file.display());
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder).with_context(failed)?;
        }
        // It names commands and places, which are nobody else's business.
        let mode = if owner.is_some() { 0o640 } else { 0o600 };
        write_file(&self.file, text.as_bytes(), mode, IfExists::Fail).with_context(failed)?;
        if let Some(owner) = owner {
            chown(&self.file, None, Some(owner.gid.as_raw())).with_context(failed)?;
        }
        Ok(())
    }

    fn make_repositories(&self, key: Option<&Key>, global: &Global) -> Result<()> {
        let Some(key) = key else { return Ok(()) };
        let state = &self.state;
        let owner = self.user().map(timer::make_user).transpose()?;
        let give = |folder: &Path| -> Result<()> {
            let Some(owner) = &owner else { return Ok(()) };
            let failed = || {
                let folder = folder.display();
                format!(
                    "cannot give {folder} to the user {USER}; if its file system has no owners, mount it with uid={USER}"
                )
            };
            let is_given = || fs::metadata(folder).is_ok_and(|found| found.uid() == owner.uid.as_raw());
            match chown(folder, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())) {
                Err(error) if !is_given() => Err(error).with_context(failed),
                _ => Ok(()),
            }
        };
        for target in &self.new {
            if let Some(folder) = target.location.directory() {
                give(folder)?;
            }
            let location = ResolvedRepository::of(target, global).location;
            let owner = match key {
                Key::Recipients(certificates) => Owner::Recipients(certificates.clone()),
                Key::Passphrase(passphrase) => {
                    Owner::Passphrase { passphrase: passphrase.clone(), user_id: owner_id() }
                }
            };
            let made = init(&location, state, owner)?;
            RepositoryState::forget_looks(state, &location.identity());
            let monitor = global.monitor(false);
            forget_former(state, &target.name, &monitor);
            made.shortcomings.iter().for_each(|why| monitor.note(&format!("{location}: {why}")));
        }
        Ok(())
    }
}

/// Whether a directory, or something in it, exists and does not belong to a user.
fn is_foreign(folder: &Path, user: &str) -> bool {
    let user = User::from_name(user).ok().flatten().map(|user| user.uid.as_raw());
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all = [folder.to_owned()].into_iter().chain(below);
    all.any(|path| path.symlink_metadata().is_ok_and(|found| Some(found.uid()) != user))
}

/// Gives a directory and all that is in it to a user.
fn give_all(folder: &Path, user: &str) -> Result<()> {
    let mut command = Command::new("chown");
    command.args(["-R", "-h", "--", &format!("{user}:")]).arg(folder).stdin(Stdio::null());
    let status = command.status().context("cannot run chown")?;
    anyhow::ensure!(status.success(), "cannot give {} to the user {user}: chown failed ({status})", folder.display());
    Ok(())
}

/// Takes the answers from the options, and asks for the others.
fn draft(args: &Args, asker: &Asker) -> Result<Draft> {
    let paths = match args.paths.as_slice() {
        [] => asker.paths()?,
        given => checked_paths(&given.iter().map(PathBuf::as_path).collect::<Vec<_>>()).map_err(Usage)?,
    };
    let repository = match &args.to {
        Some(given) => checked_repository(given).map_err(Usage)?,
        None => asker.repository()?,
    };
    let credentials = args.credentials.as_deref().map(absolute).transpose().map_err(Usage)?;
    Ok(Draft { paths, repository, credentials, endpoint: args.endpoint.clone() })
}
