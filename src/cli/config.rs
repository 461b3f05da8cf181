//! `brackfs config`

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::show;
use super::unit;
use crate::config::{Config, Used};
use crate::monitor::count;

/// An example with every table. Most lines are comments.
const EXAMPLE: &str = include_str!("config.toml");

#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    Init(InitArgs),
    Check(CheckArgs),
    Show(ShowArgs),
    Unit(UnitArgs),
}

/// Write an example of a configuration file
///
/// The file explains all tables in comments. An existing file is never replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs config init
  brackfs config init --stdout | less")]
pub(super) struct InitArgs {
    /// Print the example instead of writing it
    #[arg(long)]
    stdout: bool,
}

/// Look for mistakes in the configuration
///
/// Prints every mistake as FILE:LINE:COLUMN: KEY: MESSAGE, and exits with code 2 if there is one. Files of exclude-from
/// are read; no repository is opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs config check
  brackfs config check --config new.toml")]
pub(super) struct CheckArgs {
    /// Print the result as a JSON object
    ///
    /// It has message_type config, file, sources and targets (arrays of names), and hooks (their number).
    #[arg(long)]
    json: bool,
}

/// Print all settings, and where each is set
///
/// Inherited settings are listed with the source that inherits them. Settings that no file sets have their defaults, and are not
/// listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs config show
  brackfs config show --json")]
pub(super) struct ShowArgs {
    /// Print a JSON object
    ///
    /// sources and targets are objects with a member for each name. hooks is an array. check and report are the tables of these
    /// names; check is null if there is no such table. Each source, target, hook and table is an object with a member for each
    /// setting: value (as TOML) and from (FILE:LINE:COLUMN).
    #[arg(long)]
    json: bool,
}

/// Print a drop-in for brackfs.service with the paths of the configuration
///
/// The service may write only to its state and its cache. The drop-in lets it write to the repositories on this machine's disks,
/// waits for the mounts that targets require, and hands over the credentials that the configuration names. Print it again after a
/// change of the configuration, or run `brackfs setup`, which does the same.
///
/// The service runs as the user brackfs, which may read all files. The drop-in has User=root if a source's command runs as
/// another user, if a source has snapshots of file systems, or if the login of a server is in root's home directory. It then also
/// gives the service the rights that it needs for snapshots, and for repositories that belong to the user brackfs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mkdir -p /etc/systemd/system/brackfs.service.d
  brackfs config unit > /etc/systemd/system/brackfs.service.d/config.conf
  systemctl daemon-reload")]
pub(super) struct UnitArgs {}

pub(super) fn run(command: &ConfigCommand, global: &Global) -> Result<ExitCode> {
    match command {
        ConfigCommand::Init(args) => init(args, global),
        ConfigCommand::Check(args) => check(args, global),
        ConfigCommand::Show(args) => show(args, global),
        ConfigCommand::Unit(args) => unit(args, global),
    }
}

fn init(args: &InitArgs, global: &Global) -> Result<ExitCode> {
    if args.stdout {
        output::stdout().write_all(EXAMPLE.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = global.config_path()?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow::Error::new(Usage(format!("{} exists already; it was left as it is", path.display())))
        }
        _ => anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
    };
    // It names commands and places, which are nobody else's business.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    file.write_all(EXAMPLE.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    if !global.quiet {
        output::message(format!("wrote {}; edit it, then run `brackfs config check`", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &CheckArgs, global: &Global) -> Result<ExitCode> {
    let config = global.required_config()?;
    config.check_files()?;
    let path = global.config_path()?;
    let sources: Vec<_> = config.sources.iter().map(|source| source.name.as_str()).collect();
    let targets: Vec<_> = config.targets.iter().map(|target| target.name.as_str()).collect();
    if args.json {
        output::object(&json!({
            "message_type": "config",
            "file": path.display().to_string(),
            "sources": sources,
            "targets": targets,
            "hooks": config.hooks.len(),
        }))?;
    } else if !global.quiet {
        output::result(format!(
            "{}: {}, {}, {}, no mistakes",
            path.display(),
            count(sources.len() as u64, "source", "sources"),
            count(targets.len() as u64, "target", "targets"),
            count(config.hooks.len() as u64, "hook", "hooks"),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs, global: &Global) -> Result<ExitCode> {
    let config = global.required_config()?;
    if args.json {
        let all = |things: Vec<(&str, &[Used])>| -> Value {
            things.into_iter().map(|(name, used)| (name.to_owned(), as_json(used))).collect()
        };
        output::object(&json!({
            "sources": all(config.sources.iter().map(|source| (source.name.as_str(), source.used.as_slice())).collect()),
            "targets": all(config.targets.iter().map(|target| (target.name.as_str(), target.used.as_slice())).collect()),
            "hooks": config.hooks.iter().map(|hook| as_json(&hook.used)).collect::<Vec<_>>(),
            "check": config.check.as_ref().map(|check| as_json(&check.used)),
            "report": as_json(&config.report.used),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = output::stdout();
    let Config { targets, sources, hooks, check, report, .. } = &config;
    let targets = targets.iter().map(|target| (format!("[target.{}]", target.name), &target.used));
    let sources = sources.iter().map(|source| (format!("[source.{}]", source.name), &source.used));
    let hooks = hooks.iter().map(|hook| ("[[hook]]".to_owned(), &hook.used));
    let check = check.iter().map(|check| ("[check]".to_owned(), &check.used));
    let report = [("[report]".to_owned(), &report.used)].into_iter().filter(|(_, used)| !used.is_empty());
    for (heading, used) in targets.chain(sources).chain(hooks).chain(check).chain(report) {
        writeln!(out, "{heading}")?;
        for Used { key, value, place } in used {
            writeln!(out, "{}", show::printable(&format!("{key} = {value}  # {place}")))?;
        }
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unit(UnitArgs {}: &UnitArgs, global: &Global) -> Result<ExitCode> {
    let config = global.required_config()?;
    let file = std::path::absolute(global.config_path()?)?;
    output::stdout().write_all(unit::drop_in(&config, &file).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(used: &[Used]) -> Value {
    used.iter()
        .map(|Used { key, value, place }| ((*key).to_owned(), json!({ "value": value, "from": place.to_string() })))
        .collect()
}
