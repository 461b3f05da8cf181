//! Repositories on WebDAV servers and in Swift, and mounts of servers of every kind that stay away, through the real program
//! and real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod away;
mod swift;
mod webdav;

use common::http_proxy::Flaw;

/// An answer without content.
fn answer(status: &str, headers: &str) -> Flaw {
    Flaw::Answer(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n\r\n"))
}
