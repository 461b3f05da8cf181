//! The command line: one file a command. Each has its flags, one call, and what is printed.
//!
//! - [`common`]: flags that several commands share, and how a reader is opened
//! - [`entry`]: entries of snapshots, as lines and as JSON
//! - [`exit`]: from errors to exit codes
//! - [`terminal`]: what a run says while it goes on; [`status`] puts it into words, [`watch`] says when
//! - [`mount_helper`]: the program as mount(8) calls it, by another name
//! - [`process`]: what is asked of the system at the start
//! - [`say`]: lines to standard output and standard error
//! - [`show`]: sizes, times and modes as people read them

mod adopt;
mod backup;
mod cat;
mod catalog;
mod check;
mod common;
mod completions;
mod dump;
mod entry;
mod exit;
mod find;
mod init;
mod key;
mod ls;
mod memory;
mod mount;
mod mount_helper;
mod mount_log;
mod process;
mod recipients;
mod restore;
mod say;
mod show;
mod snapshots;
mod status;
mod terminal;
mod umount;
mod versions;
mod watch;

use std::ffi::OsString;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::thread;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Encrypted backup that you can mount.
///
/// A machine backs itself up with nothing but a public key; the owner of the secret key mounts any snapshot,
/// browses it, and copies files out. Every byte is decrypted and verified when it is read.
#[derive(Debug, Parser)]
#[command(name = "brackfs", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  brackfs key generate --output owner.key          the owner's key; keep it off the machine
  brackfs init /backup --recipient owner.key.pub   a repository for it
  brackfs backup /home --repo /backup              from cron; needs no secret
  brackfs mount /mnt --repo /backup --key owner.key

Exit codes: 0 done, 1 failed, 2 usage, 3 done but some files could not be read as they were, or
the repository has lost data, 10 no such repository, 11 locked, 12 key or passphrase wrong, 130 interrupted.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: common::Global,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an owner's key
    #[command(subcommand)]
    Key(key::KeyCommand),
    Init(init::Args),
    Backup(backup::Args),
    Snapshots(snapshots::Args),
    Ls(ls::Args),
    Find(find::Args),
    Versions(versions::Args),
    Cat(cat::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Restore(restore::Args),
    Dump(dump::Args),
    Check(check::Args),
    /// Build the catalog anew, or compare it with the repository
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// List the certificates that backups are encrypted to, or take renewed ones
    #[command(subcommand)]
    Recipients(recipients::RecipientsCommand),
    Adopt(adopt::Args),
    Completions(completions::Args),
}

/// The command line's definition: what completions and the manual pages are made from.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    process::prepare();
    let arguments: Vec<_> = std::env::args_os().collect();
    if mount_helper::is_meant(&arguments) {
        return mount_helper::main(&arguments);
    }
    let Cli { command, global } = match Cli::try_parse() {
        Ok(cli) => cli,
        // Variables of the environment count as arguments, so clap does not see that there are none.
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => return help(&arguments),
        Err(error) => error.exit(),
    };
    let result = match process::refusal(command.prints()) {
        Some(why) => Err(anyhow::anyhow!(why)),
        None => run(command, &global),
    };
    match result {
        Ok(code) => code,
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit::code(&error);
            let lines: Vec<_> = exit::text(&error).lines().map(|line| show::printable(line).into_owned()).collect();
            say::aside(format_args!("brackfs: {}", lines.join("\n")));
            ExitCode::from(code)
        }
    }
}

/// Stack of a command's thread: as large as the first thread's usually is.
const COMMAND_STACK: usize = 8 << 20;

/// Runs a command that handles signals in a thread of its own. The kernel hands a signal to the first thread if it can, and
/// while a thread waits for a file system that does not answer, the signal waits, too.
fn hearing_signals(run: impl Fn() -> anyhow::Result<ExitCode> + Sync) -> anyhow::Result<ExitCode> {
    thread::scope(|threads| {
        let command = thread::Builder::new().name("command".into()).stack_size(COMMAND_STACK);
        match command.spawn_scoped(threads, &run) {
            Ok(command) => command.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // Where no thread can be had, this one does it.
            Err(_) => run(),
        }
    })
}

impl Command {
    /// Whether what it prints is all that it does.
    fn prints(&self) -> bool {
        matches!(
            self,
            Command::Snapshots(_)
                | Command::Ls(_)
                | Command::Find(_)
                | Command::Versions(_)
                | Command::Cat(_)
                | Command::Dump(_)
                | Command::Completions(_)
        )
    }
}

fn run(command: Command, global: &common::Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Key(command) => key::run(&command, global),
        Command::Init(args) => init::run(&args, global),
        Command::Backup(args) => hearing_signals(|| backup::run(&args, global)),
        Command::Snapshots(args) => snapshots::run(&args, global),
        Command::Ls(args) => hearing_signals(|| ls::run(&args, global)),
        Command::Find(args) => hearing_signals(|| find::run(&args, global)),
        Command::Versions(args) => hearing_signals(|| versions::run(&args, global)),
        Command::Cat(args) => hearing_signals(|| cat::run(&args, global)),
        Command::Mount(args) => mount::run(&args, global),
        Command::Umount(args) => umount::run(&args),
        Command::Restore(args) => hearing_signals(|| restore::run(&args, global)),
        Command::Dump(args) => hearing_signals(|| dump::run(&args, global)),
        Command::Check(args) => hearing_signals(|| check::run(&args, global)),
        Command::Catalog(command) => hearing_signals(|| catalog::run(&command, global)),
        Command::Recipients(command) => hearing_signals(|| recipients::run(&command, global)),
        Command::Adopt(args) => hearing_signals(|| adopt::run(&args, global)),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Prints the help of a command that needs a subcommand and got none, which is wrong usage.
fn help(arguments: &[OsString]) -> ExitCode {
    let mut command = command();
    command.build();
    for argument in arguments.get(1..).unwrap_or_default() {
        if let Some(below) = command.find_subcommand(argument) {
            command = below.clone();
        }
    }
    say::aside(command.render_help());
    ExitCode::from(exit::USAGE)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
