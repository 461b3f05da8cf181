//! `brackfs mount`

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::unistd::{Group, User};

use super::common::{Global, READ_OFTEN, ReaderArgs, select};
use super::exit::Usage;
use super::mount_log::Log;
use super::terminal::Terminal;
use crate::format::Kind;
use crate::monitor::Monitor;
use crate::mount::{FileSystem, Options, OwnerMapping, mount};
use crate::reader::Selector;
use crate::state::RepositoryState;
use crate::sys;

/// Mount snapshots, to browse them and copy files out
///
/// All snapshots appear as SOURCE/TIME and SOURCE/latest, and those with tags also as by-tag/TAG/SOURCE-TIME; new ones
/// by themselves. (The first look into by-tag opens every snapshot. Where a tag has a / or a %, it is %2F or %25.) With SNAP, that snapshot is at the
/// top, or the directory PATH in it. The mount is read-only. What is read is fetched, decrypted and verified at that
/// moment; damage is an input/output error (EIO).
///
/// The program goes to the background once the mount answers. From then on its messages about damaged files go to the
/// file mount.log in the repository's state, each at most once an hour. A log of more than 1 MiB becomes mount.log.old. If
/// the state directory cannot be written to, there is no log. The mount ends with brackfs umount, umount, or fusermount3 -u; SIGINT, SIGTERM
/// and SIGHUP unmount too, and if the mount is in use it goes when nobody uses it any more; a second signal ends it at
/// once. A mount whose program was killed is cleaned up by umount, and by a new mount at the same place.
///
/// If the repository is away, as on a disk that was unplugged, reads wait up to five seconds for it, and fail after that
/// (EIO). They work again as soon as it is back.
///
/// Programs that look for holes in a file, such as cp and tar, are not told of small ones (up to 32 KiB each, and in all
/// no more bytes than the data between them), since asking for each takes longer than reading it. Their copies can need up
/// to twice the room. restore keeps all holes.
///
/// The mount point must be an empty directory, not a symbolic link to one, and not within the repository. fuse3 and
/// /dev/fuse are needed. Where few processes, little memory or few open files are allowed, fewer threads serve the mount;
/// if none can be started, nothing is mounted.
#[derive(Debug, clap::Args)]
#[command(
    allow_missing_positional = true,
    after_help = "\
Examples:
  brackfs mount /mnt --repo /backup --key owner.key
  cp -a /mnt/home/latest/alice/notes.txt .
  brackfs umount /mnt

  brackfs mount home/latest:alice /mnt --repo /backup --key owner.key"
)]
pub(super) struct Args {
    /// A snapshot, and a directory in it, to mount instead of all
    #[arg(value_name = "SNAP[:PATH]")]
    what: Option<OsString>,
    /// Where to mount: an empty directory
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    #[command(flatten)]
    reader: ReaderArgs,
    /// Let other users in; what they may read is decided by the permissions that were backed up
    ///
    /// Takes root, or user_allow_other in /etc/fuse.conf.
    #[arg(long)]
    allow_other: bool,
    /// Show everything as owned by who mounts it
    ///
    /// So an ordinary user can read what was backed up as somebody else: of the permissions, those of the owner are
    /// his. ACLs are left as they were.
    #[arg(long, conflicts_with_all = ["map_owner", "map_group"])]
    owner_me: bool,
    /// Show what belongs to user FROM as belonging to user TO; may be repeated
    ///
    /// Each is a number, or a name of this machine. Permissions count for whom is shown. ACLs are left as they were.
    #[arg(long, value_name = "FROM:TO", value_parser = parse_users)]
    map_owner: Vec<(u32, u32)>,
    /// Show what belongs to group FROM as belonging to group TO; may be repeated
    #[arg(long, value_name = "FROM:TO", value_parser = parse_groups)]
    map_group: Vec<(u32, u32)>,
    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short, long)]
    foreground: bool,
    /// An option as in an fstab: noexec, nodiratime, allow_other, max_read=BYTES; may be repeated
    ///
    /// Options that hold in any case, such as ro and nosuid, and those for mount(8) and systemd are accepted too. Others
    /// are an error.
    #[arg(short, value_name = "OPTION", value_delimiter = ',')]
    options: Vec<String>,
    /// The part of the program that stays in the background
    #[arg(long, hide = true)]
    daemon: bool,
}

impl Args {
    fn owners(&self) -> OwnerMapping {
        let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        OwnerMapping {
            all: self.owner_me.then_some(me),
            users: self.map_owner.iter().copied().collect(),
            groups: self.map_group.iter().copied().collect(),
        }
    }
}

fn parse_users(text: &str) -> Result<(u32, u32), String> {
    parse_pair(text, "user", |name| Some(User::from_name(name).ok()??.uid.as_raw()))
}

fn parse_groups(text: &str) -> Result<(u32, u32), String> {
    parse_pair(text, "group", |name| Some(Group::from_name(name).ok()??.gid.as_raw()))
}

fn parse_pair(text: &str, what: &str, named: impl Fn(&str) -> Option<u32>) -> Result<(u32, u32), String> {
    let (from, to) = text.split_once(':').ok_or("two are needed, with a colon between")?;
    let number = |word: &str| {
        let number = word.parse().ok().or_else(|| named(word));
        number.ok_or_else(|| format!("this machine knows no {what} {word:?}"))
    };
    Ok((number(from)?, number(to)?))
}

/// What the part in the background says when the mount answers.
const READY: &[u8] = b"ready\n";

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    match args.foreground || args.daemon {
        true => stay(args, global),
        false => {
            let arguments: Vec<_> = std::env::args_os().skip(1).collect();
            in_background(&arguments, &[]).map(ExitCode::from)
        }
    }
}

/// Starts the program with these arguments, to stay, and waits until its mount answers or it gives up. Returns its exit
/// code, or 0 if it stays.
pub(super) fn in_background(arguments: &[OsString], environment: &[(&str, OsString)]) -> Result<u8> {
    let program = std::env::current_exe().context("cannot find the program itself")?;
    // Behind `--` it would be no option.
    let options = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (options, rest) = arguments.split_at(options);
    let mut child = Command::new(program)
        .args(options)
        .arg("--daemon")
        .args(rest)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the part that stays in the background")?;
    let mut said = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut said).context("cannot hear from the part that stays in the background")?;
    }
    if said == READY {
        return Ok(0);
    }
    // It said on standard error why.
    let status = child.wait().context("cannot wait for the part that stays in the background")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Ok(code.unwrap_or(1))
}

fn stay(args: &Args, global: &Global) -> Result<ExitCode> {
    let options = Options::read(&args.options).map_err(Usage)?.allowing_other(args.allow_other);
    let selector = args.what.as_ref().map(|what| Selector::parse(what.as_bytes())).transpose().map_err(Usage)?;
    let terminal = global.monitor(false);
    let reader = args.reader.open(global, &terminal, READ_OFTEN)?;
    let local = reader.repository().target().local_path().map(Path::to_owned);
    let state = RepositoryState::new(&global.state()?, reader.repository().id());
    let log = if args.daemon { log(&state, &terminal) } else { Log::default() };
    let monitor: Box<dyn Monitor> = match args.daemon {
        true => Box::new(log.clone()),
        false => Box::new(global.monitor(false)),
    };
    let filesystem = match selector {
        Some(selector) => {
            let snapshot = select(&reader, &selector, &*monitor)?;
            let top = reader.at_path(&snapshot, &selector.path)?;
            let shown = String::from_utf8_lossy(&selector.path).into_owned();
            anyhow::ensure!(top.entry().kind == Kind::Directory, "{shown:?} is not a directory");
            FileSystem::of_one(reader, snapshot, &top, monitor)
        }
        None => {
            // A wrong key should be an error now, and not in the middle of the night.
            if let Some(newest) = reader.snapshots()?.last()
                && let Err(error) = reader.snapshot(newest)
            {
                anyhow::ensure!(!error.is_key_problem(), error);
                terminal.note(&format!("the newest snapshot can't be shown: {error}"));
            }
            FileSystem::of_all(reader, monitor)
        }
    };
    let ready = |path: &Path| match args.daemon {
        true => detach(),
        false => terminal.note(&format!("mounted on {}; Ctrl-C unmounts", path.display())),
    };
    let note = |message: &str| {
        terminal.note(message);
        log.note(message);
    };
    let filesystem = filesystem.with_owners(args.owners());
    mount(Arc::new(filesystem), &args.mountpoint, local.as_deref(), &options, ready, note)?;
    Ok(ExitCode::SUCCESS)
}

/// The log. Where the state cannot be written to, as in a rescue system, there is none.
fn log(state: &RepositoryState, terminal: &Terminal) -> Log {
    let opened = state.create().map_err(anyhow::Error::from).and_then(|()| Ok(Log::open(state.folder())?));
    opened.unwrap_or_else(|error| {
        terminal.note(&format!(
            "this mount keeps no log of damaged files (give --state-dir for one): {}",
            super::exit::text(&error)
        ));
        Log::default()
    })
}

/// Says that the mount answers, and lets go of the terminal, the working directory, and all files that whoever
/// started the program had open.
fn detach() {
    // Whatever fails here, the mount is there and works.
    let mut out = std::io::stdout();
    let _ = out.write_all(READY).and_then(|()| out.flush());
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    sys::close_inherited();
}
