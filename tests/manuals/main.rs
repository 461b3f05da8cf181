//! The pages of commands in `man/` are generated from the definition of the command line and `cli::manual` by [`page`].
//! This test compares them. To renew them after a change:
//!
//! ```text
//! BRACKFS_RENEW=1 cargo test --test manuals
//! ```
//!
//! brackfs-json(5) is generated from `schemas/` by [`json`]. The other pages of sections 5, 7 and 8 are written by hand. The tests of layout, references and examples cover them too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod json;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// If this variable is set, files are written instead of compared.
const RENEW: &str = "BRACKFS_RENEW";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man")
}

/// The files in `man/`, by name.
fn committed() -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder()).expect("man/").map(|entry| entry.expect("entry of man/"));
    let text = |path| fs::read_to_string(path).expect("page");
    entries.map(|entry| (entry.file_name().into_string().expect("file name"), text(entry.path()))).collect()
}

/// All pages: the generated ones as they would be now, and those written by hand.
fn pages() -> BTreeMap<String, String> {
    let mut pages = committed();
    pages.retain(|name, _| !name.ends_with(".1"));
    pages.extend(page::all());
    pages
}

#[test]
fn committed_pages_match_the_definition() {
    let (made, mut there) = (page::all(), committed());
    there.retain(|name, _| name.ends_with(".1"));
    if std::env::var_os(RENEW).is_some() {
        there.keys().filter(|name| !made.contains_key(*name)).for_each(|name| {
            fs::remove_file(folder().join(name)).expect("page of a command that is gone");
        });
        made.iter().for_each(|(name, text)| fs::write(folder().join(name), text).expect("page"));
        return;
    }
    let names: BTreeSet<_> = made.keys().chain(there.keys()).collect();
    let other: Vec<_> = names.into_iter().filter(|name| made.get(*name) != there.get(*name)).collect();
    assert!(
        other.is_empty(),
        "these pages do not match the definition of the command line: {other:?}; renew them:\n    {RENEW}=1 cargo test --test manuals"
    );
}

#[test]
fn the_page_of_json_matches_the_schemas() {
    let file = folder().join("brackfs-json.5");
    let page = json::page(&folder().with_file_name("schemas"));
    if std::env::var_os(RENEW).is_some() {
        fs::write(file, page).expect("page");
    } else {
        let committed = fs::read_to_string(file).unwrap_or_default();
        assert_eq!(committed, page, "renew it: {RENEW}=1 cargo test --test manuals");
    }
}

#[test]
fn every_page_of_a_command_has_its_sections() {
    let pages = page::all();
    assert!(pages.contains_key("brackfs.1") && pages.contains_key("brackfs-key-generate.1"), "{:?}", pages.keys());
    for (name, text) in pages {
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            let found =
                text.lines().filter(|line| line.strip_prefix(".SH ") == Some(&format!("\"{section}\""))).count();
            assert_eq!(found, 1, "{section} in {name}");
        }
    }
}

#[test]
fn a_heading_covers_only_its_own_options() {
    let mut headings: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut root = brackfs::cli::command().disable_help_subcommand(true);
    root.build();
    for command in root.get_subcommands() {
        for argument in command.get_arguments() {
            if let Some(heading) = argument.get_help_heading() {
                headings.entry(heading.to_owned()).or_default().insert(argument.get_id().to_string());
            }
        }
    }
    let shared = |ids: &[&str]| BTreeSet::from_iter(ids.iter().map(ToString::to_string));
    let target = [
        "ssh",
        "rclone",
        "endpoint",
        "credentials",
        "ca",
        "listing_lag",
        "connections",
        "limit_upload",
        "limit_download",
        "spool_size",
        "disk_cache",
        "cache_dir",
    ];
    let policy = [
        "source",
        "group_by",
        "keep_last",
        "keep_hourly",
        "keep_daily",
        "keep_weekly",
        "keep_monthly",
        "keep_quarterly",
        "keep_yearly",
        "keep_within",
        "keep_within_hourly",
        "keep_within_daily",
        "keep_within_weekly",
        "keep_within_monthly",
        "keep_within_quarterly",
        "keep_within_yearly",
        "keep_tag",
        "utc",
        "force",
    ];
    let expected = [
        ("Common options", shared(&["quiet", "verbose", "log", "config", "state_dir"])),
        ("Target options", shared(&target)),
        ("Keys and cache", shared(&["key", "no_key_cache", "signer", "cache_size"])),
        ("What to back up", shared(&["files_from", "stdin_filename", "stdin_from_command", "allow_empty"])),
        (
            "What to leave out",
            shared(&[
                "exclude",
                "exclude_from",
                "exclude_caches",
                "exclude_if_present",
                "exclude_nodump",
                "one_file_system",
            ]),
        ),
        ("The snapshot", shared(&["source", "tag", "time", "host", "max_shrink", "allow_shrink", "skip_if_unchanged"])),
        ("Detection of changes", shared(&["ignore_inode", "ignore_ctime", "reread", "retries", "settle_max"])),
        (
            "Resources",
            shared(&[
                "chunk_size",
                "merge_files_under",
                "low_memory",
                "compression",
                "commit_interval",
                "wait_lock",
                "recheck",
            ]),
        ),
        ("Output", shared(&["dry_run", "json"])),
        ("Policy", shared(&policy)),
    ];
    assert_eq!(headings, BTreeMap::from(expected.map(|(heading, ids)| (heading.to_owned(), ids))));
}

#[test]
fn no_page_describes_a_hidden_argument() {
    fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
        for argument in command.get_arguments().filter(|argument| argument.is_hide_set()) {
            found.extend(argument.get_env().map(|variable| variable.to_string_lossy().into_owned()));
            found.extend(argument.get_long().map(|long| format!("--{long}")));
        }
        command.get_subcommands().for_each(|command| collect(command, found));
    }
    let mut hidden = BTreeSet::new();
    collect(&brackfs::cli::command(), &mut hidden);
    assert!(hidden.contains("BRACKFS_LISTING_LAG") && hidden.contains("--listing-lag"), "{hidden:?}");
    let has_word = |text: &str, word: &str| {
        text.match_indices(word).any(|(at, _)| {
            let after = text.get(at + word.len()..).and_then(|rest| rest.chars().next());
            !after.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        })
    };
    for (name, text) in pages() {
        let text = text.replace("\\-", "-");
        let named: Vec<_> = hidden.iter().filter(|word| has_word(&text, word)).collect();
        assert!(named.is_empty(), "{name} describes {named:?}");
    }
}

#[test]
fn groff_shows_every_page_without_a_warning() {
    for (name, text) in pages() {
        let mut groff = Command::new("groff")
            .args(["-t", "-ww", "-man", "-Tutf8", "-P-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("groff: it is in the Debian package groff-base, which scripts/setup --tests installs");
        let mut stdin = groff.stdin.take().expect("standard input of groff");
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).expect("page to groff"));
        let output = groff.wait_with_output().expect("end of groff");
        writer.join().expect("page to groff");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        let shown = String::from_utf8(output.stdout).expect("UTF-8 from groff");
        assert!(shown.lines().count() > 20, "{name} shows nothing: {shown}");
    }
}

/// A page as plain text; groff 1.22 and 1.23 give the same bytes.
fn plain(page: &str) -> String {
    let mut groff = Command::new("groff");
    groff.args(["-t", "-man", "-Tutf8", "-P-c", "-P-b", "-P-o", "-P-u", "-rLL=78n"]);
    // Versions hyphenate and adjust differently, so text is neither hyphenated nor adjusted. 1.23 takes the adjustment
    // from the string AD, 1.22 from the request below.
    groff.args(["-rHY=0", "-dAD=l"]);
    // One long page: each version breaks pages in other places.
    let page = page.replacen(".SH NAME", ".pl 30000v\n.ad l\n.SH NAME", 1);
    let mut groff =
        groff.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("groff, of the package groff-base");
    let mut stdin = groff.stdin.take().expect("standard input of groff");
    let writer = std::thread::spawn(move || stdin.write_all(page.as_bytes()).expect("page to groff"));
    let output = groff.wait_with_output().expect("end of groff");
    writer.join().expect("page to groff");
    assert!(output.status.success(), "groff failed: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("UTF-8 from groff");
    // Hyphens and minus signs, so that commands can be pasted.
    let text = text.replace(['\u{2010}', '\u{2212}'], "-");
    let mut lines: Vec<_> = text.trim().lines().map(str::trim_end).collect();
    // 1.22 leaves more blank lines around the header, the footer and tables.
    lines.dedup_by(|next, line| next.is_empty() && line.is_empty());
    lines.join("\n") + "\n"
}

#[test]
fn format_txt_equals_the_page_of_the_format() {
    let file = folder().join("../src/repository/FORMAT.txt");
    let made = plain(committed().get("brackfs-format.5").expect("the page"));
    if std::env::var_os(RENEW).is_some() {
        fs::write(&file, made).expect("FORMAT.txt");
        return;
    }
    let committed = fs::read_to_string(&file).expect("FORMAT.txt");
    let differs = made.lines().zip(committed.lines()).find(|(made, committed)| made != committed);
    assert!(
        made == committed,
        "src/repository/FORMAT.txt is not brackfs-format(5); renew it:\n    {RENEW}=1 cargo test --test manuals\n\
         the first lines that differ: {differs:?}"
    );
}

#[test]
fn references_lead_to_existing_pages() {
    let pages = pages();
    let mut seen = 0;
    for (name, text) in &pages {
        let plain = text.replace("\\-", "-");
        // As macros (`.BR brackfs (1)`), and within text (`brackfs-security(7)`).
        for (at, _) in plain.match_indices("brackfs") {
            let rest = plain.get(at..).expect("rest of the page");
            let word = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().expect("word");
            let after = rest.get(word.len()..).expect("rest of the page").trim_start_matches(' ');
            let Some(section @ ('1' | '5' | '7')) = after.strip_prefix('(').and_then(|rest| rest.chars().next()) else {
                continue;
            };
            if after.get(2..3) == Some(")") {
                seen += 1;
                assert!(pages.contains_key(&format!("{word}.{section}")), "{name} refers to {word}({section})");
            }
        }
    }
    assert!(seen > 3 * pages.len(), "only {seen} references were found");
}

#[test]
fn examples_are_valid_command_lines() {
    for (name, page) in pages() {
        let mut seen = 0;
        let blocks = page.split("\n.EX\n").skip(1).filter_map(|block| block.split("\n.EE\n").next());
        for line in blocks.flat_map(str::lines) {
            let line = line.replace("\\-", "-").replace("\\(aq", "'").replace("\\(ti", "~");
            // The example may have a time of a crontab in front, and a comment or a pipe at the end. Lines with a type
            // of file system or a link to the program are skipped.
            if line.contains("-t brackfs ") || line.starts_with("ln ") {
                continue;
            }
            let Some(at) = line.find("brackfs ") else { continue };
            let ours = line.get(at..).expect("rest of the line").split("  ").next().expect("command");
            let ours = ours.split([';', '|', '>', '&']).next().expect("command");
            let words = ours.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
            if let Err(error) = brackfs::cli::command().try_get_matches_from(words) {
                panic!("an example in {name} is not a valid command line: {ours}\n{error}");
            }
            seen += 1;
        }
        assert!(seen > 0 || !name.ends_with(".1"), "{name} has no example of a command line");
    }
}

#[test]
fn the_page_of_json_lists_all_message_types() {
    let page = committed().remove("brackfs-json.5").expect("brackfs-json.5");
    let mut seen = 0;
    let mut left = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli"))];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).expect("folder").map(|entry| entry.expect("entry of src/cli").path()));
            continue;
        }
        let code = fs::read_to_string(path).expect("source");
        for part in code.split("\"message_type\": \"").skip(1) {
            let kind = part.split('"').next().expect("kind");
            seen += 1;
            assert!(
                page.contains(&format!("\n.B {}\n", kind.replace('-', "\\-"))),
                "brackfs-json(5) does not describe message_type {kind}: see schemas/"
            );
        }
    }
    assert!(seen > 3, "only {seen} kinds of messages were found");
}
