//! Many backups and prunes over networks that are cut at random moments, some of which are killed: nothing that was
//! acknowledged is lost, and nothing stays that no snapshot needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::ordeal::{Random, rounds};
use common::remote::{Begun, MIB, NO_FILES, RemoteServer, RemoteSite, is_locked_by};
use common::wait::until;
use common::{age, run, s3, settle, sftp};

/// One in so many runs is killed.
const KILLED: u64 = 5;
/// The most files in the source.
const FILES: u64 = 6;

/// A site whose network is cut.
struct Cut<S> {
    remote: RemoteSite<S>,
    /// Runs, killed runs, and cuts so far.
    counts: [u64; 3],
}

impl<S: RemoteServer> Cut<S> {
    fn new(server: S) -> Self {
        Cut { remote: RemoteSite::ready(server, &NO_FILES), counts: [0; 3] }
    }

    /// Cuts the network at random moments until the run ends, or kills it. Returns whether it went through.
    fn disturb(&mut self, mut run: Begun, random: &mut Random) -> bool {
        self.counts[0] += 1;
        // A command does not wait for a server that is away when it begins.
        until("the run holds the lock", || run.has_ended() || is_locked_by(&self.remote.site.state(), run.id()));
        for _ in 0..random.within(1, 4) {
            sleep(Duration::from_millis(random.below(400)));
            if run.has_ended() {
                break;
            }
            self.remote.server.stop();
            self.counts[2] += 1;
            sleep(Duration::from_millis(random.below(200)));
            self.remote.server.start_again();
        }
        if random.one_in(KILLED) && !run.has_ended() {
            run.stop();
            self.counts[1] += 1;
            return false;
        }
        run.succeeds();
        true
    }

    /// Changes the source, and backs it up until a backup goes through. Prunes now and then.
    fn round(&mut self, random: &mut Random) {
        let source = self.remote.site.source();
        let name = format!("file{}", random.below(FILES));
        self.remote.site.write(&name, random.bytes(random.clone().within(1, 4 * MIB as u64)));
        age(&source);
        settle();
        let before = self.remote.snapshots();
        loop {
            let backup = self.remote.begin_backup(&["--connections", "2", "--limit-upload", "8MiB"]);
            if self.disturb(backup, random) {
                break;
            }
        }
        let there = self.remote.snapshots();
        assert!(there > before, "{there} snapshots, and {before} before");
        self.remote.restores();
        if random.one_in(4) {
            self.prune(random);
        }
    }

    /// Prunes, and disturbs that.
    fn prune(&mut self, random: &mut Random) {
        self.remote.brackfs(&["forget", "--keep-last", "2", "--force"]).ok();
        let prune = Begun::start(self.remote.command(&["prune", "--grace", "0", "--max-waste", "0"]));
        self.disturb(prune, random);
    }

    /// Everything that is stored is needed.
    fn finish(self) {
        self.remote.brackfs(&["forget", "--keep-last", "2", "--force"]).ok();
        // The first one after a kill may only bring the catalog into agreement with the repository.
        for _ in 0..2 {
            let _ = run(self.remote.command(&["prune", "--grace", "0", "--max-waste", "0"]));
        }
        self.remote.brackfs(&["check", "--read-data"]).ok();
        let rest = self.remote.brackfs(&["prune", "--grace", "0", "--max-waste", "0", "--json"]).ok().json();
        assert_eq!((&rest["removed_packs"], &rest["condemned_packs"]), (&0.into(), &0.into()), "{rest}");
        let stored: u64 = self.remote.pack_bytes();
        // Two snapshots, which may have no file in common, and trees.
        let content: u64 =
            fs::read_dir(self.remote.site.source()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(stored <= 2 * content + 2 * MIB as u64 * FILES, "{stored} bytes stored of {content}");
        assert_eq!(self.remote.temporary_files().len(), 0);
        let [runs, killed, cuts] = self.counts;
        println!("{runs} runs, {killed} killed, {cuts} cuts: {}", self.remote.url());
        assert!(cuts > 0, "the network was never cut");
    }
}

fn of<S: RemoteServer>(name: &str, server: S) {
    let mut cut = Cut::new(server);
    let mut last = None;
    rounds(name, 3, |mut random| {
        cut.round(&mut random);
        last = Some(random);
    });
    // The rounds of a short run may have no prune.
    if let Some(mut random) = last {
        cut.prune(&mut random);
    }
    cut.finish();
}

#[test]
fn nothing_is_lost_over_sftp() {
    of("sftp", sftp::Server::start());
}

#[test]
fn nothing_is_lost_over_s3() {
    of("s3", s3::Server::start());
}
