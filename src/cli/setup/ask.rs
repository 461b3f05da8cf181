//! Questions on a terminal.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::super::exit::Usage;
use super::super::passphrase::new_passphrase;
use super::super::recipients::read_certificate;
use super::super::show::{printable, size};
use super::super::{exit, output};
use super::draft::{self, Disk};
use super::timer::Schedule;
use crate::crypt::Passphrase;
use crate::failure::FailureKind;

/// How often a passphrase may be typed wrongly.
const TRIES: usize = 3;

/// Asks questions, if there is a terminal.
pub(super) struct Asker {
    is_terminal: bool,
}

impl Asker {
    pub(super) fn new() -> Self {
        Asker { is_terminal: io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Asks until `parse` accepts the answer. An empty answer is the default. `flag` answers the question without a terminal.
    fn ask<T>(
        &self,
        question: &str,
        default: Option<&str>,
        flag: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T> {
        if !self.is_terminal {
            return Err(Usage(format!("there is no terminal to ask on; give {flag}")).into());
        }
        loop {
            let shown = default.map(|default| format!(" [{default}]")).unwrap_or_default();
            write!(io::stderr(), "{question}{shown}: ")?;
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line)? == 0 {
                return Err(Usage("the input ended before the last question; nothing was changed".into()).into());
            }
            let answer = match line.trim() {
                "" => default.unwrap_or_default(),
                answer => answer,
            };
            match parse(answer) {
                Ok(parsed) => return Ok(parsed),
                Err(why) => output::message(printable(&format!("  {why}"))),
            }
        }
    }

    /// The paths to back up.
    pub(super) fn paths(&self) -> Result<Vec<String>> {
        let default = draft::usual_paths().join(" ");
        let default = Some(default.as_str()).filter(|paths| !paths.is_empty());
        self.ask("What to back up? Paths, separated by spaces", default, "--path", |answer| {
            let paths: Vec<_> = answer.split_ascii_whitespace().map(Path::new).collect();
            if paths.is_empty() { Err("write at least one path".into()) } else { draft::checked_paths(&paths) }
        })
    }

    /// The place of the repository.
    pub(super) fn repository(&self) -> Result<String> {
        let disks = if self.is_terminal { Disk::mounted() } else { Vec::new() };
        if !disks.is_empty() {
            output::message("Where to? These disks are mounted:");
        }
        for (number, disk) in disks.iter().enumerate() {
            let (point, free) = (disk.point.display().to_string(), size(disk.free));
            output::message(printable(&format!("  {}) {point}  {}, {free} free", number + 1, disk.kind)));
        }
        let question = match disks.is_empty() {
            true => "Where to? A directory, or a URL such as sftp://USER@HOST/PATH",
            false => "A number, a directory, or a URL such as sftp://USER@HOST/PATH",
        };
        self.ask(question, None, "--to", |answer| {
            let number: Option<usize> = answer.parse().ok();
            let disk = number.and_then(|number| disks.get(number.checked_sub(1)?));
            match disk.and_then(|disk| disk.point.join("brackfs").into_os_string().into_string().ok()) {
                Some(path) => draft::checked_repository(&path),
                None => draft::checked_repository(answer),
            }
        })
    }

    /// The certificates to encrypt to; none for a new key with a passphrase.
    pub(super) fn recipients(&self) -> Result<Vec<PathBuf>> {
        let flags = "--passphrase or --recipient";
        if self.is_terminal {
            output::message("Who can read the backups?");
            output::message("  1) anyone with the passphrase of a new key, which is stored in the repository");
            output::message("  2) anyone with the secret key of a certificate, such as your OpenPGP key");
        }
        let with_certificate = self.ask("A number", Some("1"), flags, |answer| match answer {
            "1" => Ok(false),
            "2" => Ok(true),
            _ => Err("write 1 or 2".into()),
        })?;
        if !with_certificate {
            return Ok(Vec::new());
        }
        let certificate = self.ask("File with the certificate", None, "--recipient", |answer| {
            let path = PathBuf::from(answer);
            read_certificate(&path).map(|_| path).map_err(|error| exit::text(&error))
        })?;
        Ok(vec![certificate])
    }

    /// The passphrase of a new key.
    pub(super) fn new_passphrase(&self) -> Result<Passphrase> {
        let ask = || new_passphrase("Passphrase for the backups: ");
        for _ in 1..TRIES {
            match ask() {
                Err(error) if self.is_terminal && exit::kind(&error) == FailureKind::Key => {
                    output::message(format!("  {}", exit::text(&error)));
                }
                other => return other,
            }
        }
        ask()
    }

    /// When backups run.
    pub(super) fn schedule(&self) -> Result<Schedule> {
        let question = "When? hourly, daily, weekly, a calendar event of systemd, or never";
        self.ask(question, Some("daily"), "--when", str::parse)
    }

    /// Whether the answer is yes.
    pub(super) fn agrees(&self, question: &str, flag: &str) -> Result<bool> {
        self.ask(question, Some("yes"), flag, |answer| match answer.to_lowercase().as_str() {
            "y" | "yes" => Ok(true),
            "n" | "no" => Ok(false),
            _ => Err("write yes or no".into()),
        })
    }
}
