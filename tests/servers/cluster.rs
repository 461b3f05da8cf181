//! Garage with three nodes. One is killed at any moment, and two machines with one state use different nodes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use crate::common::ordeal::{End, Random, rounds};
use crate::common::remote::{Begun, MIB, RemoteServer, RemoteSite, borrowed, many};
use crate::common::{age, noise, settle, tree};
use crate::garage::Garage;

/// A node that is killed while a command runs, and started again after it.
struct Victim {
    node: usize,
    /// When it is killed, after the command has begun its transfers.
    delay: Duration,
}

impl Victim {
    /// The first node serves the requests; if it is killed, they lead to another one.
    fn choose(random: &mut Random) -> Victim {
        Victim { node: random.below(3) as usize, delay: Duration::from_millis(random.below(400)) }
    }

    fn kill(&self, garage: &mut Garage) {
        sleep(self.delay);
        garage.kill(self.node);
        garage.lead_to((self.node + 1) % 3);
    }

    fn start_again(&self, garage: &mut Garage) {
        garage.start_node(self.node);
    }
}

/// Asserts that a command succeeds, and says nothing but that it waits.
#[track_caller]
fn succeeds_quietly(command: &mut Begun) {
    command.succeeds();
    let said = command.said();
    assert!(said.lines().all(|line| line.contains("waiting for s3://")) && said.lines().count() <= 1, "{said}");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_node_that_is_killed_is_not_noticed() {
    rounds("cluster", 3, |mut random| {
        let mut remote = RemoteSite::ready(Garage::with_nodes(3), &borrowed(&many(4)));
        let victim = Victim::choose(&mut random);
        eprintln!("node {} is killed during a backup, after {:?}", victim.node, victim.delay);
        let mut backup = remote.begin_backup(&["--limit-upload", "16MiB"]);
        backup.until("a pack is uploaded", |_| remote.server.is_receiving());
        victim.kill(&mut remote.server);
        succeeds_quietly(&mut backup);
        victim.start_again(&mut remote.server);

        let victim = Victim::choose(&mut random);
        eprintln!("node {} is killed during a restore, after {:?}", victim.node, victim.delay);
        let out = remote.site.path().join("out");
        remote.server.proxy.requests();
        let arguments = ["restore", "latest", "--to", out.to_str().unwrap(), "--limit-download", "16MiB"];
        let mut restore = Begun::start(remote.command(&arguments));
        restore.until("packs are read", |_| {
            remote.server.proxy.requests().iter().any(|request| request.contains("packs/"))
        });
        victim.kill(&mut remote.server);
        succeeds_quietly(&mut restore);
        assert!(tree(&out) == tree(&remote.site.source()), "the restored files differ");
        victim.start_again(&mut remote.server);

        let victim = Victim::choose(&mut random);
        eprintln!("node {} is killed during reads of a mount, after {:?}", victim.node, victim.delay);
        let (mounted, source) = (remote.mount(), remote.site.source());
        let (latest, stop) = (mounted.latest(), AtomicBool::new(false));
        let turns = scope(|threads| {
            let end = End(&stop);
            let reader = threads.spawn(|| {
                let mut turns = 0;
                while turns < 2 || !stop.load(Ordering::Relaxed) {
                    for at in 0..4 {
                        let [found, expected] = [&latest, &source]
                            .map(|folder| fs::read(folder.join(format!("file{at}"))).expect("a file"));
                        assert!(found == expected, "file{at} differs in the mount");
                    }
                    turns += 1;
                }
                turns
            });
            victim.kill(&mut remote.server);
            drop(end);
            reader.join().expect("the reader")
        });
        assert!(turns >= 2);
        victim.start_again(&mut remote.server);
        drop(mounted);
        remote.is_whole();
    });
}

/// A command of a machine that reaches the cluster through its own node.
fn through(remote: &RemoteSite<Garage>, node: usize, state: &Path, arguments: &[&str]) -> Command {
    let mut command = remote.command(arguments);
    command.env("BRACKFS_STATE_DIR", state).env("BRACKFS_ENDPOINT", remote.server.endpoint_of(node));
    command
}

#[test]
#[ignore = "scripts/soak runs it"]
fn two_machines_with_one_state_that_start_together_lose_nothing() {
    rounds("rivals", 6, |mut random| {
        let remote = RemoteSite::ready(Garage::with_nodes(3), &[("file", noise("file", MIB))]);
        remote.backup(&[]).ok();
        let clone = remote.site.path().join("clone");
        for turn in 0..4 {
            // Something to remove, and something to store.
            remote.site.write("changing", noise(&format!("turn {turn}"), 2 * MIB));
            age(&remote.site.source());
            settle();
            remote.backup(&[]).ok();
            remote.brackfs(&["forget", "--keep-last", "1", "--force"]).ok();
            remote.site.write("changing", noise(&format!("later {turn}"), 2 * MIB));
            settle();
            remote.clone_state(&clone);
            let before = remote.snapshots();
            let source = remote.source();
            let (backup, prune) = (["backup", source.as_str()], ["prune", "--grace", "0", "--max-waste", "0"]);
            let others: [&[&str]; 2] = [&backup, &prune];
            let mut first = Begun::start(through(&remote, 0, &remote.site.state(), &backup));
            sleep(Duration::from_millis(random.below(150)));
            let other = *random.choose(&others);
            let mut second = Begun::start(through(&remote, 1, &clone, other));
            let stopped = [first.is_stopped_by_a_rival(), second.is_stopped_by_a_rival()];
            eprintln!("turn {turn}: a backup and a {}, stopped: {stopped:?}", other[0]);
            let written = usize::from(!stopped[0]) + usize::from(other == backup && !stopped[1]);
            assert!(remote.snapshots() >= before + written, "a snapshot is lost: {written} were written");
            remote.goes_on_after_a_race();
        }
    });
}
