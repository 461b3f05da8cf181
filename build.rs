//! Sets `BRACKFS_VERSION`: the version of the crate, with the commit if it is known.
//!
//! The commit is read from the variable `BRACKFS_COMMIT`, else from the file that `cargo package` adds to the crate, else
//! from git. Only release builds ask git, so that a new commit does not rebuild all tests.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const COMMIT: &str = "BRACKFS_COMMIT";

/// The number of digits that are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    match given().or_else(packaged).or_else(checked_out) {
        Some(commit) => println!("cargo::rustc-env=BRACKFS_VERSION={version} ({commit})"),
        None => println!("cargo::rustc-env=BRACKFS_VERSION={version}"),
    }
}

fn given() -> Option<String> {
    env::var(COMMIT).ok().filter(|commit| !commit.is_empty())
}

fn packaged() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let commit = text.split_once(r#""sha1": ""#)?.1.get(..DIGITS)?;
    let mark = if text.contains(r#""dirty": true"#) { "-dirty" } else { "" };
    Some(format!("{commit}{mark}"))
}

fn checked_out() -> Option<String> {
    // Without a .git of its own, this is a copy inside of another project's repository.
    if env::var("PROFILE").as_deref() != Ok("release") || !Path::new(".git").exists() {
        return None;
    }
    let head = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for changes in ["build.rs", "Cargo.toml", "Cargo.lock", "src", &head] {
        println!("cargo::rerun-if-changed={changes}");
    }
    git(&["describe", "--always", "--dirty", "--exclude=*", &format!("--abbrev={DIGITS}")])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
