//! Mounts of repositories on servers of every kind that stay away.

use std::thread;

use crate::common::remote::{RemoteServer, RemoteSite, borrowed, many};
use crate::common::{ftp, rclone, s3, sftp, swift, webdav};

/// All kinds at the same time, since each takes a minute.
#[test]
fn a_mount_whose_server_stays_away_times_out() {
    fn of<S: RemoteServer>(start: impl FnOnce() -> S) {
        RemoteSite::ready(start(), &borrowed(&many(1))).a_mount_times_out();
    }
    thread::scope(|threads| {
        threads.spawn(|| of(ftp::Server::start));
        threads.spawn(|| of(rclone::Rclone::new));
        threads.spawn(|| of(s3::Server::start));
        threads.spawn(|| of(sftp::Server::start));
        threads.spawn(|| of(swift::Server::start));
        threads.spawn(|| of(webdav::Server::start));
    });
}
