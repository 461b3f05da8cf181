//! What to keep for a restore, and how to restore.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::process::geteuid;

use super::super::global::{Global, standard_config, standard_directory};
use super::super::show::printable;
use super::Plan;
use super::existing::repository_of;
use super::timer::{Schedule, cron_times};
use crate::catalog::trust_of;
use crate::config::TargetConfig;
use crate::state::RepositoryState;

/// The script of the package, for systems without systemd.
const CRON_DAILY: &str = "/etc/cron.daily/brackfs";

/// The page for the backups of a configuration.
pub(super) fn text(plan: &Plan, global: &Global) -> Result<String> {
    let Plan { config, file, timer, state, .. } = plan;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |line: &str| _ = writeln!(text, "{}", printable(line.trim_end()));
    ["", "KEEP THIS, on paper or on another machine.", ""].iter().for_each(|text| line(text));
    for target in &config.targets {
        repository(target, global, &mut line)?;
    }
    line("To make a backup now:   brackfs run");
    match (timer.is_system(), timer.has_systemd(), &plan.schedule) {
        (true, ..) => line("To see what happened:   journalctl -u brackfs"),
        // journald looks up the unit of a line later. A short run has ended by then, so -u would miss its lines.
        (false, true, _) => line("To see what happened:   journalctl --user -t brackfs"),
        (false, false, schedule) => {
            let is_standard = standard_config().as_deref() == Some(file) && standard_state().as_deref() == Some(state);
            let is_packaged = geteuid().is_root() && is_standard && Path::new(CRON_DAILY).exists();
            let entry = |times: &str| crontab(times, file, state);
            cron_advice(schedule.as_ref(), is_packaged, &entry).iter().for_each(|advice| line(advice));
        }
    }
    Ok(text.trim_end().to_owned())
}

/// What belongs to the repository of a target.
fn repository(target: &TargetConfig, global: &Global, line: &mut dyn FnMut(&str)) -> Result<()> {
    let (state, location) = (global.state()?, &target.location);
    let Some(id) = repository_of(target, &state, global)? else { return Ok(()) };
    let kept = RepositoryState::new(&state, id);
    let Some(trust) = trust_of(&kept.catalog_path(), id)? else { return Ok(()) };
    line(&format!("Repository   {location}"));
    line(&format!("Host key     {}", trust.host));
    line("             On another machine, it proves that a snapshot is yours.");
    let mut secret = "--key FILE ";
    if kept.owner_key()?.is_some() {
        line("Passphrase   __________________________________________");
        line("             Without it, nobody can read the backups, not even you.");
        secret = "";
    } else {
        for recipient in &trust.recipients {
            let user = recipient.user_id().map(|user| format!(" ({user})")).unwrap_or_default();
            line(&format!("Secret key   of the certificate {}{user}", recipient.fingerprint()));
        }
        line("             Without it, nobody can read the backups, not even you. Keep copies.");
    }
    let (host, location) = (&trust.host, quoted(&location.to_string()));
    line("");
    line("To restore, on any machine with brackfs:");
    line(&format!("  brackfs snapshots --repo {location} {secret}--signer {host}"));
    line(&format!("  brackfs restore latest --repo {location} {secret}--to DIR"));
    line(&format!("  brackfs mount DIR --repo {location} {secret}"));
    line("Without brackfs, README.txt in the repository says how.");
    line("");
    Ok(())
}

fn standard_state() -> Option<PathBuf> {
    standard_directory("/var/lib", "XDG_STATE_HOME", ".local/state")
}

/// What to do for backups by cron. `is_packaged`: the package's script makes one each day already. `entry` makes a line for a
/// crontab.
fn cron_advice(schedule: Option<&Schedule>, is_packaged: bool, entry: &dyn Fn(&str) -> String) -> Option<String> {
    let event = schedule.map_or("daily".to_owned(), Schedule::to_string);
    let wanted = cron_times(&event)
        .map(|(times, often)| format!("For a backup {often}, type `crontab -e` and add the line:   {}", entry(times)));
    let daily = format!("This system has no systemd. Its cron makes a backup every day, with {CRON_DAILY}.");
    match (is_packaged, wanted) {
        (true, _) if event == "daily" => Some(daily),
        (true, Some(wanted)) => Some(format!("{daily} {wanted}   To have only that one, remove {CRON_DAILY}.")),
        (true, None) => Some(format!("{daily} To stop that, remove this file.")),
        (false, wanted) => Some(format!("This system has no systemd. {}", wanted?)),
    }
}

/// A line for a crontab.
fn crontab(times: &str, file: &Path, state: &Path) -> String {
    // The PATH of cron is short.
    let program = std::env::current_exe().unwrap_or_else(|_| "brackfs".into());
    let mut command = format!("{} run", quoted(&program.to_string_lossy()));
    for (option, path, standard) in [("--config", file, standard_config()), ("--state-dir", state, standard_state())] {
        if standard.as_deref() != Some(path) {
            command = format!("{command} {option} {}", quoted(&path.to_string_lossy()));
        }
    }
    // cron takes the sign for a line break.
    format!("{times}  {}", command.replace('%', "\\%"))
}

/// A word for a shell.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:@+,".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packaged_script_of_cron_and_a_line_make_no_backups_twice() {
        let advice = |event: &str, is_packaged: bool| {
            let schedule = event.parse::<Schedule>().unwrap();
            cron_advice(Some(&schedule), is_packaged, &|times| format!("{times} run")).unwrap_or_default()
        };
        let line = "For a backup every week, type `crontab -e` and add the line:   17 3 * * 0 run";
        let daily = "This system has no systemd. Its cron makes a backup every day, with /etc/cron.daily/brackfs.";
        assert_eq!(advice("weekly", false), format!("This system has no systemd. {line}"));
        assert_eq!(
            advice("weekly", true),
            format!("{daily} {line}   To have only that one, remove /etc/cron.daily/brackfs.")
        );
        assert_eq!((advice("daily", true).as_str(), advice("never", false).as_str()), (daily, ""));
        assert!(advice("daily", false).contains("17 3 * * * run"));
        assert_eq!(advice("never", true), format!("{daily} To stop that, remove this file."));
    }
}
