//! Memory of everything that reads or changes the whole repository hardly grows with its number of chunks.
//!
//! A long run uses ten million chunks and 10,000 snapshots, and prints how long each command takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::time::Instant;

use common::Site;
use common::forgery::{Forgery, IN_FILE};
use common::memory::peak;
use common::ordeal::is_long;

/// Numbers of files and snapshots of a small and of a large repository.
fn sizes() -> [(u64, u64); 2] {
    [(1, 50), if is_long() { (100, 10_000) } else { (10, 1000) }]
}

/// The most memory that a command may take, and how much more it may take in the large repository than in the small one,
/// in MiB. With ten million chunks, a prune takes 72: for the index with all blocks of the first snapshot that stays.
fn limits() -> (u64, u64) {
    if is_long() { (80, 44) } else { (64, 24) }
}

/// Runs commands one after the other, and notes their peaks of memory.
struct Measured {
    site: Site,
    peaks: Vec<(String, u64)>,
}

impl Measured {
    /// In a repository with this number of files and snapshots.
    fn new(files: u64, snapshots: u64) -> Measured {
        let site = Forgery::new().finish(files, snapshots);
        println!("{} chunks, {snapshots} snapshots", files * IN_FILE);
        Measured { site, peaks: Vec::new() }
    }

    fn run(&mut self, arguments: &[&str]) {
        let began = Instant::now();
        let peak = peak(self.site.command(arguments));
        let what = arguments.join(" ");
        println!("{peak:5} MiB {:8.2} s  {what}", began.elapsed().as_secs_f64());
        self.peaks.push((what, peak));
    }
}

#[test]
fn memory_hardly_grows_with_the_numbers_of_chunks_and_snapshots() {
    let [few, many] = sizes().map(|(files, snapshots)| {
        let mut measured = Measured::new(files, snapshots);
        let source = measured.site.source();
        fs::write(source.join("file"), "content").unwrap();
        let source = source.to_str().unwrap();
        measured.run(&["check"]);
        measured.run(&["catalog", "rebuild"]);
        measured.run(&["backup", source]);
        measured.run(&["backup", source]);
        measured.run(&["catalog", "verify"]);
        measured.run(&["snapshots"]);
        measured.run(&["stats"]);
        let kept = (snapshots / 10).to_string();
        measured.run(&["forget", "--source", "forged", "--keep-last", &kept, "--force"]);
        measured.run(&["prune", "--grace", "0", "--max-waste", "5%", "--dry-run"]);
        measured.run(&["prune", "--grace", "0", "--max-waste", "5%"]);
        measured.run(&["catalog", "verify"]);
        measured.run(&["catalog", "rebuild"]);
        measured.peaks
    });
    let (most, growth) = limits();
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        assert!(many <= most, "{what} took {many} MiB");
        assert!(many <= few + growth, "{what} took {few} MiB in a small repository, and {many} MiB in a large one");
    }
}
