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

use super::exit::Usage;
use super::global::Global;
use super::mount_log::Log;
use super::output;
use super::reader_args::{DiskCacheArgs, LARGE_CACHE, ReaderArgs, select};
use super::show;
use super::terminal::{Terminal, is_interactive};
use crate::archive::{Archive, Selector};
use crate::failure::Failure;
use crate::format::Kind;
use crate::monitor::Monitor;
use crate::mount::{FileSystem, Options, OwnerMapping, mount};
use crate::state::RepositoryState;
use crate::sys;

/// Mount snapshots, to browse them and copy files out
///
/// All snapshots appear as SOURCE/TIME and SOURCE/latest, and snapshots with tags also as by-tag/TAG/SOURCE-TIME, where
/// %2F and %25 stand for / and % in the tag. New snapshots appear automatically. Forgotten snapshots disappear;
/// programs that use one can still read it until its data is removed. The first access to by-tag opens every snapshot.
/// With SNAP, the top of the mount is that snapshot, or the directory PATH in it. The mount is read-only. Data is
/// fetched, decrypted and verified when it is read; damage is an input/output error (EIO).
///
/// Once the mount is ready, the program continues in the background. Messages about damaged files then go to mount.log in
/// the repository's folder in the state directory. Each is written at most once an hour. If several files need the same lost
/// pack, only one of them is named. A log of more than 1 MiB is renamed to mount.log.old. If the state directory is
/// read-only, no log is written.
///
/// To unmount, use brackfs umount, umount or fusermount3 -u, or send SIGINT, SIGTERM or SIGHUP. If the mount is in use, a
/// signal detaches it, and it ends after its last use; a second signal ends it at once. If the program was killed, umount or
/// a new mount at the same place cleans up.
///
/// If the repository is unavailable, for example because a disk was unplugged, reads wait for up to five seconds, or for up
/// to a minute if it is on a server, and then fail (ETIMEDOUT). They work again as soon as it is back.
///
/// Programs that look for holes in a file, such as cp and tar, are told that small holes are data (holes of up to 32 KiB, if
/// they have no more bytes in total than the data between them), since each query takes longer than reading the zeros. Their
/// copies can need up to twice the space. restore keeps all holes.
///
/// The mount point must be an empty directory outside of the repository, and not a symbolic link. Mounting needs fuse3 and
/// /dev/fuse. If limits on processes, memory or open files are low, fewer threads serve the mount; if no thread can be
/// started, nothing is mounted.
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
    /// Mount only this snapshot, or a directory in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: Option<OsString>,
    /// Mount on this directory, which must be empty
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Allow other users access, subject to the permissions in the snapshots
    ///
    /// Requires root, or user_allow_other in /etc/fuse.conf.
    #[arg(long)]
    allow_other: bool,
    /// Show all files as owned by the user who mounts
    ///
    /// An ordinary user can then read files of other users: the owner's permissions apply to this user. ACLs are unchanged.
    #[arg(long, conflicts_with_all = ["map_owner", "map_group"])]
    owner_me: bool,
    /// Show files of user FROM as owned by user TO (repeatable)
    ///
    /// FROM and TO are numbers, or names known to this machine. Permissions apply to TO. ACLs are unchanged.
    #[arg(long, value_name = "FROM:TO", value_parser = parse_users)]
    map_owner: Vec<(u32, u32)>,
    /// Show files of group FROM as belonging to group TO (repeatable)
    #[arg(long, value_name = "FROM:TO", value_parser = parse_groups)]
    map_group: Vec<(u32, u32)>,
    /// Stay in the foreground, and unmount on Ctrl-C
    #[arg(short, long)]
    foreground: bool,
    /// Set a mount option as in an fstab: noexec, nodiratime, allow_other, max_read=BYTES (repeatable)
    ///
    /// A mount always has ro, nosuid, nodev and noatime; rw, suid and dev have no effect. Options for mount(8) and systemd
    /// are ignored. Others are an error.
    #[arg(short, value_name = "OPTION", value_delimiter = ',')]
    options: Vec<String>,
    /// Run as the background process
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
    let (from, to) = text.split_once(':').ok_or("expected two values with a colon between them, FROM:TO")?;
    let number = |word: &str| {
        let number = word.parse().ok().or_else(|| named(word));
        number.ok_or_else(|| format!("{what} {word:?} is unknown on this machine"))
    };
    Ok((number(from)?, number(to)?))
}

/// Written to standard output by the background process when the mount is ready.
const READY: &[u8] = b"ready\n";

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    if let Some(why) = no_mount_point(args) {
        return Err(Usage(why).into());
    }
    if args.foreground || args.daemon {
        return serve(args, global);
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let code = start_in_background(&arguments, &[])?;
    if code == 0 && is_interactive() && !global.quiet {
        let path = args.mountpoint.display();
        output::message(show::printable(&format!("mounted on {path}; to unmount: brackfs umount {path}")));
    }
    Ok(ExitCode::from(code))
}

/// Recognizes a snapshot where the mount point should be.
fn no_mount_point(args: &Args) -> Option<String> {
    let word = args.mountpoint.to_str().filter(|_| args.what.is_none() && !args.mountpoint.exists())?;
    let names_snapshot = word == "latest" || word.ends_with("/latest") || word.contains(':');
    names_snapshot.then(|| format!("the mount point is missing: write brackfs mount {word} DIRECTORY"))
}

/// Starts this program with the given arguments in the background, and waits until its mount is ready or it ends. Returns
/// its exit code, or 0 once the mount is ready.
pub(super) fn start_in_background(arguments: &[OsString], environment: &[(&str, OsString)]) -> Result<u8> {
    let program = std::env::current_exe().context("cannot find the brackfs program")?;
    // After `--` it would be taken for a path.
    let options = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (options, rest) = arguments.split_at(options);
    let mut child = Command::new(program)
        .args(options)
        .arg("--daemon")
        .args(rest)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let mut written = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut written).context("cannot read from the background process")?;
    }
    if written == READY {
        return Ok(0);
    }
    // It has written the reason to standard error.
    let status = child.wait().context("cannot wait for the background process")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Ok(code.unwrap_or(1))
}

/// Mounts, and serves the mount until it is unmounted.
fn serve(args: &Args, global: &Global) -> Result<ExitCode> {
    let options = Options::parse(&args.options).map_err(Usage)?.allowing_other(args.allow_other);
    let selector = args.what.as_ref().map(|what| Selector::parse(what.as_bytes())).transpose().map_err(Usage)?;
    let terminal = global.monitor(false);
    let reader = args.reader.open_for_mount(global, &terminal, LARGE_CACHE, &args.disk)?;
    let local = reader.repository().target().local_path();
    let state = RepositoryState::new(&global.state()?, reader.repository().id());
    let log = if args.daemon { log(&state, &terminal) } else { Log::default() };
    let monitor: Box<dyn Monitor> = if args.daemon { Box::new(log.clone()) } else { Box::new(global.monitor(false)) };
    let archive: Arc<dyn Archive> = Arc::new(reader);
    let filesystem = match selector {
        Some(selector) => {
            let snapshot = select(&*archive, &selector, &*monitor)?;
            let top = archive.at_path(&snapshot, &selector.path)?;
            let shown = String::from_utf8_lossy(&selector.path).into_owned();
            anyhow::ensure!(
                top.entry().kind == Kind::Directory,
                "cannot mount {shown}: it is not a directory; `brackfs cat` writes a file"
            );
            FileSystem::of_one(archive, snapshot, &top, monitor)
        }
        None => {
            let filesystem = FileSystem::of_all(archive, monitor);
            if let Err(error) = filesystem.open_newest()? {
                anyhow::ensure!(!error.is_key_problem(), error);
                terminal.note(&format!("cannot show the newest snapshot: {error}"));
            }
            filesystem
        }
    };
    let ready = |path: &Path| {
        if args.daemon {
            detach();
        } else {
            terminal.note(&format!("mounted on {}; Ctrl-C unmounts", path.display()));
        }
    };
    let note = |message: &str| {
        terminal.note(message);
        log.note(message);
    };
    let filesystem = filesystem.with_owners(args.owners());
    mount(Arc::new(filesystem), &args.mountpoint, local.as_deref(), &options, ready, note)?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the log. If the state directory is not writable, as in a rescue system, messages are dropped.
fn log(state: &RepositoryState, terminal: &Terminal) -> Log {
    let opened = state.create().map_err(anyhow::Error::from).and_then(|()| Ok(Log::open(state.folder())?));
    opened.unwrap_or_else(|error| {
        terminal.note(&format!(
            "cannot log damaged files of this mount (set --state-dir to a writable directory): {}",
            super::exit::text(&error)
        ));
        Log::default()
    })
}

/// Reports that the mount is ready, and detaches from the terminal, the working directory, and all inherited files.
fn detach() {
    // The mount works even if any of this fails.
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
