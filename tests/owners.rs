//! Files of several users in one backup: stored lengths reveal nothing about the files of other users.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::{chown, lchown};
use std::path::Path;

use common::{Site, age, settle, tree};

const LUCY: u32 = 1001;
const MALLORY: u32 = 1002;

/// Text that compresses only where it repeats.
fn secret(seed: &str) -> String {
    blake3::hash(seed.as_bytes()).to_hex().to_string()
}

fn give(path: &Path, owner: u32) {
    lchown(path, Some(owner), Some(owner)).unwrap();
}

/// Bytes of all packs.
fn stored(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => stored(&entry.path()),
            false => entry.metadata().unwrap().len(),
        })
        .sum()
}

/// Bytes that a backup adds if a file of lucy has this secret in its content or name, and one of mallory
/// has this guess.
fn added(secret: &str, guess: &str, in_name: bool) -> u64 {
    let site = Site::new();
    for (user, word, owner) in [("lucy", secret, LUCY), ("mallory", guess, MALLORY)] {
        let (name, content) = if in_name { (word, user) } else { ("file", word) };
        let file = site.write(&format!("{user}/{name}"), format!("{user}: {content}"));
        give(&file, owner);
        give(file.parent().unwrap(), owner);
    }
    age(&site.source());
    settle();
    site.brackfs(&["init", site.repo().to_str().unwrap(), "--no-encryption"]).ok();
    site.backup(&[]).ok();
    stored(&site.repo().join("packs"))
}

#[test]
fn right_and_wrong_guesses_at_content_or_names_take_the_same_space() {
    let token = secret("lucy");
    for in_name in [false, true] {
        let right = added(&token, &token, in_name);
        for wrong in ["one", "two", "three"] {
            let wrong = added(&token, &secret(wrong), in_name);
            // A match would save the token of 64 digits. The compressed size of digests and times varies a little.
            assert!(right.abs_diff(wrong) < 16, "right: {right}, wrong: {wrong}, in the name: {in_name}");
        }
    }
}

#[test]
fn files_of_many_owners_in_one_directory_are_restored() {
    let site = Site::new();
    for number in 0..300 {
        // Contents and whole folders are duplicated.
        let path = format!("d{}/f{number}", number % 20);
        let file = site.write(&path, (number % 150).to_string());
        chown(&file, Some(1000 + number % 7), None).unwrap();
        give(file.parent().unwrap(), 1000 + number % 5);
    }
    site.init();
    settle();
    site.backup(&[]).ok();
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
    assert_eq!(tree(&out), tree(&site.source()));
    site.brackfs(&["check", "--read-data"]).ok();
    settle();
    assert_eq!(site.backup(&[]).ok().json()["files_read"], 0);
}
