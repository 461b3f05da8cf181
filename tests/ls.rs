//! `brackfs ls`: lists of damaged snapshots, and times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;

use common::{AGED, Site, age, paths_below, set_time};

#[test]
fn a_damaged_directory_is_reported_and_the_rest_is_listed() {
    let site = Site::with_files(&[("a/lost", "one")]);
    age(&site.source());
    site.init();
    site.backup(&[]).ok();
    let first: Vec<_> = paths_below(&site.repo().join("packs")).into_iter().filter(|path| path.is_file()).collect();
    site.write("b/there", "two");
    age(&site.source().join("b"));
    set_time(&site.source(), AGED, 0);
    site.backup(&[]).ok();
    // Everything from the first backup: the content of `lost`, and the node of `a`.
    for pack in first {
        fs::remove_file(pack).unwrap();
    }
    let run = site.brackfs(&["ls", "-R", "latest"]).code(1);
    assert_eq!(run.stdout, "a/\nb/\nb/there\n", "{run}");
    assert!(run.stderr.contains("a/: cannot list all of this directory"), "{run}");
    site.brackfs(&["ls", "latest"]).ok();
    site.brackfs(&["ls", "latest:a"]).code(1);
}
