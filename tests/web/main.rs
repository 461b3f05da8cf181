//! Repositories on WebDAV servers and in Swift, through the real program and real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod swift;
mod webdav;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::http_proxy::Flaw;
use common::noise;

const MIB: usize = 1 << 20;

/// Files of random bytes: many packs.
fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|at| (format!("file{at}"), noise(&format!("file{at}"), 8 * MIB))).collect()
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, Vec<u8>)> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect()
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// An answer without content.
fn answer(status: &str, headers: &str) -> Flaw {
    Flaw::Answer(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n\r\n"))
}
