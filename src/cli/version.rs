//! `--version`

/// The version of brackfs, with the commit if it is known.
pub(super) const VERSION: &str = env!("BRACKFS_VERSION");

/// The versions of brackfs and of the OpenSSL library that it runs with, which may be newer than that it was built with.
pub(super) fn long() -> String {
    let linked = if cfg!(feature = "static") { ", part of this program" } else { "" };
    format!("{VERSION}\n{}{linked}", openssl::version::version())
}
