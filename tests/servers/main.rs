//! Repositories on servers that are large or slow to start: Garage with one node and with three, nginx with WebDAV, Swift behind
//! Keystone, and the S3 interface of Swift.
//!
//! `scripts/setup --soak` installs them, and `scripts/soak` runs these tests. `cargo test` reports them as ignored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

/// Tests that hold a server to the promises of [`common::remote::RemoteSite`]. The function starts the server.
macro_rules! promises {
    ($start:path) => {
        mod promises {
            use crate::common::noise;
            use crate::common::remote::{MIB, RemoteSite, borrowed, many, round_files};

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn a_whole_round_works() {
                RemoteSite::ready($start(), &round_files()).a_whole_round_works();
            }

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn a_killed_backup_leaves_nothing() {
                RemoteSite::ready($start(), &borrowed(&many(2))).a_killed_backup_leaves_nothing();
            }

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn a_backup_waits_for_a_server_that_is_restarted() {
                RemoteSite::ready($start(), &borrowed(&many(2))).a_backup_waits_for_the_server();
            }

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn a_mount_waits_for_a_server_that_is_restarted() {
                RemoteSite::ready($start(), &borrowed(&many(2))).a_mount_waits_for_the_server();
            }

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn two_machines_with_one_state_lose_nothing() {
                RemoteSite::ready($start(), &[("file", noise("file", MIB))]).two_machines_lose_nothing();
            }

            #[test]
            #[ignore = "scripts/soak runs it"]
            fn a_silent_server_is_given_up_and_the_backup_goes_on() {
                let remote = RemoteSite::ready($start(), &borrowed(&many(2)));
                remote.server.proxy.fail("PUT", "packs/", 1, crate::common::http_proxy::Flaw::Stall);
                remote.a_silent_server_is_given_up(|| (), || ());
                assert_eq!(remote.server.proxy.failures_left(), 0);
                remote.is_whole();
            }
        }
    };
}

mod cluster;
mod garage;
mod keystone;
mod nginx;
mod s3api;
