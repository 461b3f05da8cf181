//! The manual page of a command.
//!
//! clap_mangen renders name, synopsis, description and options. The other sections are rendered here: clap_mangen would
//! lose the layout of examples, and the definition of a command has no exit codes.

use std::collections::BTreeMap;

use brackfs::cli::manual::{self, escaped};
use clap::Command;
use clap_mangen::Man;

/// Fixed, so that the pages do not depend on the day on which they are made. Updated by hand.
const DATE: &str = "2026-11-29";

/// Every page, by file name.
pub fn all() -> BTreeMap<String, String> {
    let commands = commands();
    let names: Vec<_> = commands.iter().map(name).collect();
    commands.iter().map(|command| (format!("{}.1", name(command)), page(command, &commands, &names))).collect()
}

/// brackfs and all its commands, except for groups such as `key`.
fn commands() -> Vec<Command> {
    fn below(command: &Command, found: &mut Vec<Command>) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            if command.has_subcommands() {
                below(command, found);
            } else {
                found.push(command.clone());
            }
        }
    }
    let mut root = brackfs::cli::command().disable_help_subcommand(true);
    root.build();
    let mut found = vec![root.clone()];
    below(&root, &mut found);
    found
}

/// The name of the page, such as `brackfs-key-generate`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command, commands: &[Command], names: &[String]) -> String {
    // clap_mangen's own synopsis lists every option without its value, which takes half a page.
    let usage = command.clone().render_usage().to_string();
    let command = command.clone().override_usage(usage.trim_start_matches("Usage: ").to_owned());
    let is_root = command.has_subcommands();
    let man = Man::new(command.clone()).date(DATE).source("brackfs").manual("User Commands");
    let mut page = ".\\\" Made by tests/manuals: BRACKFS_RENEW=1 cargo test --test manuals\n".to_owned();
    page.push_str(&rendered(|out| man.render_title(out)));
    page.push_str(&rendered(|out| man.render_name_section(out)));
    page.push_str(&rendered(|out| man.render_synopsis_section(out)));
    page.push_str(&description(&rendered(|out| man.render_description_section(out))));
    if is_root {
        section(&mut page, "COMMANDS", &commands_section(commands));
        section(&mut page, "A FIRST BACKUP", manual::FIRST);
    }
    page.push_str(&arguments(&command));
    manual::arguments(&command).into_iter().for_each(|(name, text)| section(&mut page, name, &text));
    section(&mut page, "EXIT STATUS", &list(manual::exit_codes(&command)));
    section(&mut page, "ENVIRONMENT", &list(manual::environment(&command, commands)));
    if is_root {
        manual::ROOT.iter().for_each(|(name, text)| section(&mut page, name, text));
    }
    section(&mut page, "EXAMPLES", &examples_section(after(&command)));
    section(&mut page, "SEE ALSO", &see_also(&command, names));
    page
}

fn rendered(render: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    render(&mut out).expect("a page in memory");
    let text = String::from_utf8(out).expect("a page in UTF-8");
    // Drops the definition of a string for apostrophes in each section: \(aq works everywhere.
    let lines = text.lines().filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "));
    lines.map(|line| format!("{}\n", heading(line.trim_end()).replace("\\*(Aq", "\\(aq"))).collect()
}

/// Puts quotes around headings, as in the other sections.
fn heading(line: &str) -> String {
    match line.strip_prefix(".SH ") {
        Some(name) => format!(".SH \"{}\"", name.trim_matches('"')),
        None => line.to_owned(),
    }
}

/// Makes the first line, a heading in help, a sentence.
fn description(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if let Some(first) = lines.get_mut(1).filter(|line| !line.ends_with('.')) {
        first.push('.');
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Arguments, then options, as in help. Paragraphs and lists of values are indented below their option.
fn arguments(command: &Command) -> String {
    let only = |positional: bool| {
        let command =
            command.clone().mut_args(|arg| if arg.is_positional() == positional { arg } else { arg.hide(true) });
        if command.get_arguments().all(|arg| arg.is_hide_set()) {
            return String::new();
        }
        rendered(|out| Man::new(command).render_options_section(out))
    };
    let text = only(true).replace("\"OPTIONS\"", "\"ARGUMENTS\"") + &only(false);
    text.replace("\n\n", "\n.IP\n").replace("\n.br\n.IP\n.br\n", "\n.IP\n").replace("\n.RS 14\n", "\n.RS 7\n")
}

fn section(page: &mut String, name: &str, text: &str) {
    if !text.is_empty() {
        page.push_str(&format!(".SH \"{name}\"\n{}\n", text.trim_matches('\n')));
    }
}

/// A list of terms with their text, in roff.
fn list(entries: Vec<(String, String)>) -> String {
    entries.iter().map(|(term, text)| format!(".TP\n.B {}\n{text}\n", escaped(term))).collect()
}

fn commands_section(commands: &[Command]) -> String {
    let mut text = String::new();
    for command in commands.iter().filter(|command| !command.has_subcommands()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!(".TP\n.BR {} (1)\n{}\n", escaped(&name(command)), escaped(&about)));
    }
    text
}

fn after(command: &Command) -> String {
    command.get_after_long_help().or_else(|| command.get_after_help()).map(ToString::to_string).unwrap_or_default()
}

/// The text after `Examples:`: indented lines are blocks of code, other lines are text between them, and a blank line
/// ends a paragraph. Exit codes have their own section.
fn examples_section(text: String) -> String {
    let mut out = String::new();
    let mut apart = false;
    let mut paragraph = false;
    for line in text.lines().take_while(|line| !line.starts_with("Exit codes:")) {
        let now = line.starts_with(' ') || apart && line.is_empty();
        match (apart, now) {
            (false, true) if out.is_empty() => out.push_str(".RS 4\n.EX\n"),
            (false, true) => out.push_str(".PP\n.RS 4\n.EX\n"),
            (true, false) => out.push_str(".EE\n.RE\n.PP\n"),
            _ => {}
        }
        if paragraph && !now && !line.is_empty() {
            out.push_str(".PP\n");
        }
        paragraph = !now && line.is_empty();
        apart = now;
        match line {
            "Examples:" | "" if !now => {}
            line => out.push_str(&format!("{}\n", escaped(line.strip_prefix("  ").unwrap_or(line)))),
        }
    }
    if apart {
        out.push_str(".EE\n.RE\n");
    }
    // A blank line before text is not part of the block.
    out.replace("\n\n.EE", "\n.EE")
}

fn see_also(command: &Command, names: &[String]) -> String {
    let own = name(command);
    let mut pages: Vec<(String, &str)> = Vec::new();
    if command.has_subcommands() {
        pages.extend(names.iter().skip(1).map(|name| (name.clone(), "1")));
    } else {
        pages.push(("brackfs".to_owned(), "1"));
        let related = manual::related(command).iter().map(|name| format!("brackfs-{name}"));
        pages.extend(related.filter(|name| *name != own).map(|name| (name, "1")));
    }
    pages.extend(manual::further(command).iter().map(|(name, section)| ((*name).to_owned(), *section)));
    let lines: Vec<_> = pages.iter().map(|(name, section)| format!(".BR {} ({section})", escaped(name))).collect();
    lines.join(",\n")
}
