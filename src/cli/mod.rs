//! The command line, one module per command.
//!
//! Shared by commands:
//!
//! - [`global`]: options of every command
//! - [`repository_arg`]: the repository of a command, and opening it
//! - [`reader_args`]: options of commands that read, and opening the reader
//! - [`passphrase`]: passphrases from the environment or the terminal
//! - [`signals`]: ending on signals
//! - [`memory`]: default cache sizes
//! - [`terminal`]: problems and progress of a run; [`progress`] formats the progress, [`ticker`] calls it
//! - [`entry`]: entries of snapshots, as text and as JSON
//! - [`mod@unit`]: units of systemd
//! - [`show`]: sizes, times and modes as text
//! - [`overview`]: the state of all backups as text; [`html`]: as a web page; [`record`]: steps made by hand
//! - [`output`]: lines on standard output and standard error; [`systemd`]: whether they go to the journal
//! - [`object_names`]: names of objects in messages
//! - [`exit`]: from errors to exit codes
//! - [`log`]: the log for bug reports
//! - [`version`]: the text of `--version`
//! - [`candidates`]: values in shell completions
//! - [`process`]: limits and signal handlers at startup
//! - [`mount_helper`]: the program under the name `mount.brackfs`, called by mount(8)
//! - [`manual`]: text of manual pages that clap does not generate

mod adopt;
mod backup;
mod candidates;
mod cat;
mod catalog;
mod check;
mod completions;
mod config;
mod diff;
mod dump;
mod entry;
mod exit;
mod find;
mod forget;
mod global;
mod html;
mod init;
mod key;
mod log;
mod ls;
pub mod manual;
mod memory;
mod mount;
mod mount_helper;
mod mount_log;
mod object_names;
mod output;
mod overview;
mod passphrase;
mod process;
mod progress;
mod prune;
mod reader_args;
mod recipients;
mod record;
mod report;
mod repository_arg;
mod restore;
mod run;
mod setup;
mod show;
mod signals;
mod snapshots;
mod stats;
mod status;
mod systemd;
mod terminal;
mod ticker;
mod umount;
mod unit;
mod version;
mod versions;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory, Parser, Subcommand};
use global::Global;
use reader_args::ReaderArgs;
use signals::run_in_thread;

use crate::failure::FailureKind;

/// Encrypted backup that you can mount
///
/// A machine needs only a public key to back itself up. With the secret key, the owner can mount any snapshot, browse it,
/// and copy files out. Every byte is decrypted and verified when it is read.
#[derive(Debug, Parser)]
#[command(name = "brackfs", version = version::VERSION, long_version = version::long(), propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  brackfs key generate --output owner.key          # make the owner's key; keep it off the machine
  brackfs init /backup --recipient owner.key.pub   # make a repository encrypted to it
  brackfs backup /home --repo /backup              # back up, as from cron; needs no secret key
  brackfs mount /mnt --repo /backup --key owner.key

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some files could not be read consistently or the \
repository has lost data, 10 no such repository, 11 locked by another run, 12 key or passphrase wrong or missing, \
130 interrupted.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an owner's key
    #[command(subcommand)]
    Key(key::KeyCommand),
    Setup(setup::Args),
    Init(init::Args),
    Backup(Box<backup::Args>),
    Run(run::Args),
    Status(status::Args),
    Report(report::Args),
    Snapshots(snapshots::Args),
    Ls(ls::Args),
    Find(find::Args),
    Versions(versions::Args),
    Diff(diff::Args),
    Cat(cat::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Restore(restore::Args),
    Dump(dump::Args),
    Prune(prune::Args),
    Stats(stats::Args),
    Check(check::Args),
    Forget(Box<forget::Args>),
    Hold(forget::HoldArgs),
    Release(forget::ReleaseArgs),
    /// Rebuild the catalog, or compare it with the repository
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// Write, check or show the configuration, or make a service of it
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// List or renew the certificates that backups are encrypted to
    #[command(subcommand)]
    Recipients(recipients::RecipientsCommand),
    Adopt(adopt::Args),
    Completions(completions::Args),
}

/// The definition of the command line. Shell completions and manual pages are generated from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    process::prepare();
    if let Some(code) = completions::answer() {
        return code;
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    if mount_helper::is_called(&arguments) {
        return mount_helper::main(&arguments);
    }
    let arguments = with_target(arguments);
    let json = wants_json(&arguments);
    output::set_json(json);
    let Cli { command, global } = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // clap counts environment variables as arguments, so it does not print help if one is set.
        Err(error) if error.kind() == ErrorKind::MissingSubcommand && !json => return help(&arguments),
        Err(error) => return unparsed(error, &arguments, json),
    };
    // A mount handles signals in its own way.
    if !matches!(command, Command::Mount(_)) {
        signals::end_on_signals();
    }
    let result = match process::refusal(command.prints()) {
        Some(why) => Err(anyhow::anyhow!(why)),
        None => log::start(global.log.as_deref()).and_then(|()| log::around(command.name(), || run(&command, &global))),
    };
    let result = match result {
        // Nobody reads the rest of the output. Problems that were reported before still count.
        Err(error) if exit::is_broken_pipe(&error) => exit::of_problems(terminal::reported_problems()),
        other => other,
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let text = exit::text(&error);
            let needed = command.reader().and_then(|reader| reader.needed_key(&error, &global));
            let text = match needed {
                Some(needed) if global.verbose => format!("{needed} ({text})"),
                Some(needed) => needed,
                None => text,
            };
            let code = match exit::kind(&error) {
                FailureKind::Usage if matches!(command, Command::Status(_)) => exit::USAGE_OF_STATUS,
                kind => exit::code(kind),
            };
            failed(&error, &terminal::words(&text, json || global.verbose), code, json)
        }
    }
}

/// Prints why a command failed, and returns the exit code.
fn failed(error: &anyhow::Error, text: &str, code: u8, json: bool) -> ExitCode {
    if json {
        output::exit_error(code, text);
    } else if !error.is::<exit::Reported>() {
        // Editors look for FILE:LINE:COLUMN at the beginning of a line.
        let prefix = if error.downcast_ref().is_some_and(config_mistakes) { "" } else { "brackfs: " };
        let lines: Vec<_> = text.lines().map(|line| show::printable(line).into_owned()).collect();
        output::error(format_args!("{prefix}{}", lines.join("\n")));
    }
    ExitCode::from(code)
}

/// Whether JSON is wanted: --json or --format json. Known before the command line is parsed, for errors in it.
fn wants_json(arguments: &[OsString]) -> bool {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let options = arguments.get(..end).unwrap_or_default();
    options.iter().any(|option| option == "--json" || option == "--format=json")
        || options.windows(2).any(|pair| pair == ["--format", "json"])
}

/// Prints help, the version, or why the command line is wrong.
fn unparsed(mut error: clap::Error, arguments: &[OsString], json: bool) -> ExitCode {
    if !error.use_stderr() {
        return match error.print().map_err(output::named).context("cannot print the help") {
            Err(error) if !exit::is_broken_pipe(&error) => {
                failed(&error, &exit::text(&error), exit::code(FailureKind::Failed), false)
            }
            _ => ExitCode::SUCCESS,
        };
    }
    // clap's usage line has options that come from environment variables.
    if error.get(ContextKind::Usage).is_some() {
        let usage = meant(arguments).render_usage();
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    let is_of_status = meant(arguments).get_name() == "status";
    let code = if is_of_status { exit::USAGE_OF_STATUS } else { exit::code(FailureKind::Usage) };
    if json {
        let text = error.render().to_string();
        let message = text.split("\n\n").next().unwrap_or_default();
        output::exit_error(code, message.strip_prefix("error: ").unwrap_or(message));
    } else if systemd::has_journal() {
        output::error(error.render());
    } else {
        // There is no other place to report that standard error cannot be written.
        let _ = error.print();
    }
    ExitCode::from(code)
}

fn config_mistakes(error: &crate::config::Error) -> bool {
    matches!(error, crate::config::Error::Mistakes(_))
}

/// The ids of the command's own options and arguments that are on the command line, not in the environment.
fn given_options() -> Vec<String> {
    let command = command();
    let Ok(matches) = command.clone().try_get_matches_from(with_target(std::env::args_os().collect())) else {
        return Vec::new();
    };
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let own = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let ids = own.filter(|argument| !argument.is_global_set()).map(|argument| argument.get_id().as_str());
    let is_given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    ids.filter(is_given).map(str::to_owned).collect()
}

/// Replaces `@NAME` after the command by `--repo=@NAME`, so that the other words stay where they are.
fn with_target(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut command = command();
    let mut at = 1;
    // A command may have commands of its own.
    while let Some(below) = arguments.get(at).and_then(|word| command.find_subcommand(word)) {
        command = below.clone();
        at += 1;
    }
    let name = arguments.get(at).and_then(|word| word.to_str()?.strip_prefix('@')).map(OsString::from);
    let is_repo = |word: &OsString| word == "--repo" || word.as_encoded_bytes().starts_with(b"--repo=");
    // With --repo, it can only be a path.
    if let Some(name) = name.filter(|_| at > 1 && !arguments.iter().any(is_repo)) {
        // `init` takes it as an argument.
        if command.get_arguments().any(|argument| argument.get_long() == Some("repo")) {
            let mut target = OsString::from("--repo=@");
            target.push(name);
            arguments.splice(at..=at, [target]);
        }
    }
    arguments
}

impl Command {
    /// The name of the command.
    fn name(&self) -> &'static str {
        match self {
            Command::Key(_) => "key",
            Command::Setup(_) => "setup",
            Command::Init(_) => "init",
            Command::Backup(_) => "backup",
            Command::Run(_) => "run",
            Command::Status(_) => "status",
            Command::Report(_) => "report",
            Command::Snapshots(_) => "snapshots",
            Command::Ls(_) => "ls",
            Command::Find(_) => "find",
            Command::Versions(_) => "versions",
            Command::Diff(_) => "diff",
            Command::Cat(_) => "cat",
            Command::Mount(_) => "mount",
            Command::Umount(_) => "umount",
            Command::Restore(_) => "restore",
            Command::Dump(_) => "dump",
            Command::Prune(_) => "prune",
            Command::Stats(_) => "stats",
            Command::Check(_) => "check",
            Command::Forget(_) => "forget",
            Command::Hold(_) => "hold",
            Command::Release(_) => "release",
            Command::Catalog(_) => "catalog",
            Command::Config(_) => "config",
            Command::Recipients(_) => "recipients",
            Command::Adopt(_) => "adopt",
            Command::Completions(_) => "completions",
        }
    }

    /// The options of a command that reads a repository.
    fn reader(&self) -> Option<&ReaderArgs> {
        match self {
            Command::Snapshots(args) => Some(&args.reader),
            Command::Ls(args) => Some(&args.reader),
            Command::Find(args) => Some(&args.reader),
            Command::Versions(args) => Some(&args.reader),
            Command::Diff(args) => Some(&args.reader),
            Command::Cat(args) => Some(&args.reader),
            Command::Mount(args) => Some(&args.reader),
            Command::Restore(args) => Some(&args.reader),
            Command::Dump(args) => Some(&args.reader),
            Command::Check(args) => Some(&args.reader),
            _ => None,
        }
    }

    /// Whether the command has no effect except its output.
    fn prints(&self) -> bool {
        matches!(
            self,
            Command::Status(_)
                | Command::Snapshots(_)
                | Command::Ls(_)
                | Command::Find(_)
                | Command::Versions(_)
                | Command::Diff(_)
                | Command::Cat(_)
                | Command::Dump(_)
                | Command::Completions(_)
                | Command::Stats(_)
                | Command::Config(config::ConfigCommand::Show(_))
                | Command::Config(config::ConfigCommand::Unit(_))
                | Command::Recipients(recipients::RecipientsCommand::List(_))
        ) || matches!(self, Command::Report(args) if !args.writes_file())
    }
}

fn run(command: &Command, global: &Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Key(command) => key::run(command, global),
        Command::Setup(args) => run_in_thread(|| setup::run(args, global)),
        Command::Init(args) => init::run(args, global),
        Command::Backup(args) => run_in_thread(|| backup::run(args, given_options, global)),
        Command::Run(args) => run_in_thread(|| run::run(args, global)),
        Command::Status(args) => status::run(args, global),
        Command::Report(args) => run_in_thread(|| report::run(args, global)),
        Command::Snapshots(args) => run_in_thread(|| snapshots::run(args, global)),
        Command::Ls(args) => run_in_thread(|| ls::run(args, global)),
        Command::Find(args) => run_in_thread(|| find::run(args, global)),
        Command::Versions(args) => run_in_thread(|| versions::run(args, global)),
        Command::Diff(args) => run_in_thread(|| diff::run(args, global)),
        Command::Cat(args) => run_in_thread(|| cat::run(args, global)),
        Command::Mount(args) => mount::run(args, global),
        Command::Umount(args) => umount::run(args),
        Command::Restore(args) => run_in_thread(|| restore::run(args, global)),
        Command::Dump(args) => run_in_thread(|| dump::run(args, global)),
        Command::Prune(args) => run_in_thread(|| prune::run(args, global)),
        Command::Stats(args) => run_in_thread(|| stats::run(args, global)),
        Command::Check(args) => run_in_thread(|| check::run(args, global)),
        Command::Forget(args) => run_in_thread(|| forget::run(args, global)),
        Command::Hold(args) => run_in_thread(|| forget::hold(args, global)),
        Command::Release(args) => run_in_thread(|| forget::release(args, global)),
        Command::Catalog(command) => run_in_thread(|| catalog::run(command, global)),
        Command::Config(command) => config::run(command, global),
        Command::Recipients(command) => run_in_thread(|| recipients::run(command, global)),
        Command::Adopt(args) => run_in_thread(|| adopt::run(args, global)),
        Command::Completions(args) => completions::run(args),
    }
}

/// Prints the help of a command that needs a subcommand and got none, which is wrong usage: a script that runs it does nothing.
fn help(arguments: &[OsString]) -> ExitCode {
    output::message(meant(arguments).render_help());
    ExitCode::from(exit::code(FailureKind::Usage))
}

/// The command that the arguments name.
fn meant(arguments: &[OsString]) -> clap::Command {
    let mut command = command();
    command.build();
    let mut is_value = false;
    for argument in arguments.get(1..).unwrap_or_default() {
        let is_option = argument.as_encoded_bytes().starts_with(b"-");
        match command.find_subcommand(argument) {
            Some(below) => command = below.clone(),
            None if is_option || is_value => {}
            // A word that is not a command.
            None => break,
        }
        is_value = is_option;
    }
    command
}

#[cfg(test)]
mod tests {
    use super::with_target;

    #[test]
    fn a_target_may_follow_the_command() {
        let changed = |words: &[&str]| -> Vec<String> {
            let words = words.iter().map(Into::into).collect();
            with_target(words).into_iter().map(|word| word.into_string().unwrap()).collect()
        };
        let repo = ["brackfs", "ls", "--repo=@nas", "latest"];
        assert_eq!(changed(&["brackfs", "ls", "@nas", "latest"]), repo);
        assert_eq!(changed(&["brackfs", "catalog", "verify", "@nas"]), ["brackfs", "catalog", "verify", "--repo=@nas"]);
        for same in [
            &["brackfs"][..],
            &["brackfs", "@nas"],
            &["brackfs", "ls", "latest", "@nas"],
            &["brackfs", "find", "x@y"],
            &["brackfs", "init", "@nas"],
            &["brackfs", "backup", "@home", "--repo", "x"],
        ] {
            assert_eq!(changed(same), same);
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
