//! Sites whose repository is on a server, and promises that hold for servers of every kind.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::backup::{Options, Selection, back_up};
use brackfs::monitor::Silent;
use brackfs::repository::Repository;
use brackfs::storage::{
    Interrupt, Limit, Location, ObjectInfo, Rates, Remote, RetryPolicy, RetryStorage, Storage, Target, Waiting,
};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tempfile::NamedTempFile;

use super::machine::{copy, mount_tmpfs, spawn};
use super::sftp::below;
use super::wait::{self, ended, until};
use super::{Mounted, Run, Site, age, is_mounted, noise, run, settle, tree};

pub const MIB: usize = 1 << 20;

/// An empty source.
pub const NO_FILES: [(&str, &str); 0] = [];

/// Bytes per second of a backup that is disturbed in an upload: a pack takes four seconds.
const SLOW: &str = "4MiB";

/// For so long, a server may be silent in [`RemoteSite::a_silent_server_is_given_up`]. A busy one answers sooner.
const STALL: Duration = Duration::from_secs(12);

/// A server, or a service, that has the repository of a [`RemoteSite`].
pub trait RemoteServer {
    /// The location of the repository.
    fn repository(&self) -> Location;
    /// Sets the variables with which a command reaches the server and logs in.
    fn connect(&self, command: &mut Command);
    /// Cuts all connections, and refuses new ones.
    fn stop(&mut self);
    /// Accepts connections again.
    fn start_again(&mut self);
    /// The folder with the files of the repository. `None` if the server does not keep objects as files.
    fn folder(&self) -> Option<PathBuf> {
        None
    }
    /// Whether it has received a part of a pack, and not yet all.
    fn is_receiving(&self) -> bool;
    /// The processes that serve connections.
    fn sessions(&self) -> Vec<Pid> {
        Vec::new()
    }
}

/// A site whose repository is on a server. Fields are dropped in this order: nothing may use the server at its end.
pub struct RemoteSite<S> {
    pub site: Site,
    pub server: S,
}

impl<S: RemoteServer> RemoteSite<S> {
    /// A site with these files, and without a repository.
    pub fn new<C: AsRef<[u8]>>(server: S, files: &[(&str, C)]) -> Self {
        let site = Site::with_files(files);
        site.key("rfc9580");
        RemoteSite { site, server }
    }

    /// The same with a repository.
    pub fn ready<C: AsRef<[u8]>>(server: S, files: &[(&str, C)]) -> Self {
        let remote = RemoteSite::new(server, files);
        remote.init().ok();
        remote
    }

    /// The location of the repository, as users write it.
    pub fn url(&self) -> String {
        self.server.repository().to_string()
    }

    #[must_use = "it may have failed: say .ok() or .code(n)"]
    pub fn init(&self) -> Run {
        let certificate = self.site.keys().join("owner.pub");
        self.brackfs(&["init", &self.url(), "--recipient", certificate.to_str().expect("a path")])
    }

    /// brackfs with these arguments. It finds neither the server's address nor a login.
    pub fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        remove_settings(&mut command);
        command.env("BRACKFS_REPOSITORY", self.url()).env("HOME", self.site.path());
        command
    }

    /// brackfs with these arguments, and a login.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        self.server.connect(&mut command);
        command
    }

    #[must_use = "it may have failed: say .ok() or .code(n)"]
    pub fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    pub fn source(&self) -> String {
        self.site.source().to_str().expect("a path").to_owned()
    }

    /// Backs up the source with `--json`.
    #[must_use = "it may have failed: say .ok() or .code(n)"]
    pub fn backup(&self, extra: &[&str]) -> Run {
        self.brackfs(&[&["backup", &self.source(), "--json"], extra].concat())
    }

    /// Starts a backup of the source.
    pub fn begin_backup(&self, extra: &[&str]) -> Begun {
        Begun::start(self.command(&[&["backup", &self.source()], extra].concat()))
    }

    /// Starts a backup that uploads slowly.
    pub fn begin_slow_backup(&self) -> Begun {
        self.begin_backup(&["--connections", "2", "--limit-upload", SLOW])
    }

    /// Mounts the repository without a cache on disk, and with a small one in memory.
    pub fn mount(&self) -> Mounted {
        let mnt = self.site.mnt();
        let guard = Mounted { path: mnt.clone() };
        let arguments = ["mount", "--cache-size", "1MiB", "--disk-cache", "0", mnt.to_str().expect("a path")];
        let run = self.brackfs(&arguments).ok();
        assert!(is_mounted(&mnt), "mount was done, but nothing is mounted\n{run}");
        guard
    }

    /// Restores the newest snapshot and compares it with the source.
    #[track_caller]
    pub fn restores(&self) {
        let out = self.site.path().join("out");
        self.brackfs(&["restore", "latest", "--to", out.to_str().expect("a path")]).ok();
        assert!(tree(&out) == tree(&self.site.source()), "the restored files differ");
        fs::remove_dir_all(out).expect("the restored files");
    }

    /// Checks everything, and restores the newest snapshot.
    #[track_caller]
    pub fn is_whole(&self) {
        self.brackfs(&["check", "--read-data"]).ok();
        self.restores();
    }

    #[track_caller]
    pub fn snapshots(&self) -> usize {
        self.brackfs(&["snapshots"]).ok().stdout.lines().count()
    }

    /// The number of packs that are stored.
    pub fn packs(&self) -> usize {
        match self.server.folder() {
            Some(folder) => packs_below(&folder).len(),
            None => self.listed_packs().len(),
        }
    }

    /// The bytes of all packs.
    pub fn pack_bytes(&self) -> u64 {
        self.listed_packs().iter().map(|pack| pack.length).sum()
    }

    fn listed_packs(&self) -> Vec<ObjectInfo> {
        let target = Target::open(&self.server.repository()).unwrap_or_else(|error| panic!("{error}"));
        target.list("packs/").unwrap_or_else(|error| panic!("{error}"))
    }

    /// Temporary files of uploads, if the server has a folder.
    pub fn temporary_files(&self) -> Vec<PathBuf> {
        let files = self.server.folder().map(|folder| files_below(&folder)).unwrap_or_default();
        files.into_iter().filter(|path| is_temporary(path)).collect()
    }

    /// Copies the state, as a clone of the machine has it.
    pub fn clone_state(&self, clone: &Path) {
        let _ = fs::remove_dir_all(clone);
        copy(&self.site.state(), clone);
    }

    /// A command under way with this state.
    pub fn begin_as(&self, state: &Path, arguments: &[&str]) -> Begun {
        let mut command = self.command(arguments);
        command.env("BRACKFS_STATE_DIR", state);
        Begun::start(command)
    }

    /// After two machines with one state wrote, data is whole. The user decides for one of them, which removes the
    /// leftovers.
    #[track_caller]
    pub fn goes_on_after_a_race(&self) {
        self.brackfs(&["check", "--read-data"]).ok();
        self.brackfs(&["adopt"]).ok();
        self.backup(&[]).ok();
        self.is_whole();
    }

    /// Adds a small file to the source.
    pub fn add_a_file(&self) {
        self.site.write("new", "new");
        settle();
    }
}

/// Promises. The tests of each kind of server hold it to them.
impl<S: RemoteServer> RemoteSite<S> {
    /// Runs all common commands on [`round_files`]. The repository was just made. Returns the run of `prune`.
    #[track_caller]
    pub fn a_whole_round_works(&self) -> Run {
        let again = self.init().code(1);
        assert!(again.stderr.contains("already"), "{again}");
        self.backup(&[]).ok();
        self.restores();
        let unchanged = self.backup(&["--skip-if-unchanged"]).ok().json();
        assert_eq!(unchanged["bytes_read"], 0, "the catalog is used: {unchanged}");
        self.site.write("new", noise("new", MIB));
        fs::remove_file(self.site.source().join("large")).expect("a file of the source");
        age(&self.site.source());
        settle();
        self.backup(&[]).ok();
        self.is_whole();
        assert_eq!(self.snapshots(), 2);
        self.brackfs(&["catalog", "verify"]).ok();
        let found = self.brackfs(&["find", "larg?"]).ok();
        assert!(found.stdout.contains("large") && !found.stdout.contains("file"), "{found}");

        let mnt = self.site.mnt();
        self.brackfs(&["mount", mnt.to_str().expect("a path")]).ok();
        let copied = self.site.path().join("copy");
        copy(&mnt.join("source/latest/."), &copied);
        assert!(tree(&copied) == tree(&self.site.source()), "the files in the mount differ");
        self.brackfs(&["umount", mnt.to_str().expect("a path")]).ok();

        let before = self.packs();
        self.brackfs(&["forget", "--keep-last", "1"]).ok();
        let prune = self.brackfs(&["prune", "--grace", "0"]).ok();
        assert!(self.packs() < before, "{before} packs before, {} after", self.packs());
        assert_eq!(self.snapshots(), 1);
        self.is_whole();
        assert_eq!(self.temporary_files(), [] as [PathBuf; 0]);
        assert_eq!(fs::read_dir(self.site.state().join("spool")).map_or(0, Iterator::count), 0);
        prune
    }

    /// A backup that loses the server in an upload waits for it, says so once, and then stores everything.
    #[track_caller]
    pub fn a_backup_waits_for_the_server(&mut self) {
        let begun = Instant::now();
        let mut backup = self.begin_slow_backup();
        backup.until("a pack is uploaded", |_| self.server.is_receiving());
        self.server.stop();
        let waiting = format!("waiting for {}", self.url());
        backup.until("the backup waits", |backup| backup.said().contains(&waiting));
        self.server.start_again();
        backup.succeeds();
        let said = backup.said();
        // Once in a minute.
        assert!(said.matches("waiting for").count() == 1 || begun.elapsed() > Duration::from_secs(60), "{said}");
        self.is_whole();
    }

    /// Uploads that are cut off in the middle are made again. Packs have their names only when they are complete, and the next
    /// backup removes temporary files. The server has a folder, the source [`many`] files: six or more.
    #[track_caller]
    pub fn an_upload_that_is_cut_off_is_made_again(&self, cut: impl Fn()) {
        let folder = self.server.folder().expect("a folder");
        // A pack takes more than a second.
        let mut backup = self.begin_backup(&["--connections", "2", "--limit-upload", "16MiB"]);
        let (mut lost, mut stored): (Vec<PathBuf>, BTreeMap<PathBuf, u64>) = Default::default();
        for _ in 0..2 {
            backup.until("an upload is cut", |_| {
                let mut uploads = uploads_below(&folder);
                uploads.retain(|upload| !lost.contains(upload));
                if uploads.is_empty() {
                    return false;
                }
                cut();
                // No connection is left, so an upload that has not ended yet never does. A pack takes 16 MiB.
                let is_cut = uploads.iter().any(|upload| (1..12 * MIB as u64).contains(&length(upload)));
                lost.extend(uploads);
                is_cut
            });
            stored.extend(packs_below(&folder).into_iter().map(|pack| (pack.clone(), length(&pack))));
        }
        backup.succeeds();
        assert!(backup.said().contains(&format!("waiting for {}", self.url())), "{}", backup.said());
        assert!(stored.iter().all(|(pack, stored)| length(pack) == *stored), "{stored:?}");
        self.is_whole();
        // A temporary file of the last cut may be left until the next object is stored.
        self.add_a_file();
        self.backup(&[]).ok();
        assert_eq!(self.temporary_files(), [] as [PathBuf; 0]);
    }

    /// A reader of a mount waits for the server. The source has [`many`] files: two or more.
    #[track_caller]
    pub fn a_mount_waits_for_the_server(&mut self) {
        self.backup(&[]).ok();
        let mounted = self.mount();
        let [first, second] = ["file0", "file1"].map(|name| mounted.latest().join(name));
        let expected =
            |path: &Path| fs::read(self.site.source().join(path.file_name().expect("a name"))).expect("a source file");
        assert!(fs::read(&first).expect("a file in the mount") == expected(&first));
        let content = expected(&second);
        self.server.stop();
        let (send, started) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            send.send(fs::canonicalize("/proc/thread-self").expect("a thread")).expect("the test waits");
            fs::read(second)
        });
        wait::until_thread_waits_for_fuse(&started.recv().expect("the reader"));
        sleep(Duration::from_secs(1));
        assert!(!reader.is_finished(), "nothing was read from the server");
        self.server.start_again();
        assert!(reader.join().expect("the reader").expect("a file in the mount") == content);
    }

    /// A reader of a mount fails with the error for a timeout if the server stays away, and reads when it is back. It takes a
    /// minute. The source has [`many`] files.
    #[track_caller]
    pub fn a_mount_times_out(&mut self) {
        self.backup(&[]).ok();
        let mounted = self.mount();
        let file = mounted.latest().join("file0");
        fs::metadata(&file).expect("a file in the mount");
        self.server.stop();
        let error = fs::read(&file).expect_err("the server is away");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::TIMEDOUT), "{error}: {}", self.url());
        self.server.start_again();
        let content = fs::read(self.site.source().join("file0")).expect("a file of the source");
        assert!(fs::read(&file).expect("a file in the mount") == content);
    }

    /// A backup that is killed in an upload stores no part of a pack under its name, and ends its connections.
    #[track_caller]
    pub fn a_backup_is_killed(&self) {
        let mut backup = self.begin_slow_backup();
        backup.until("a pack is uploaded", |_| self.server.is_receiving());
        // Small packs may be whole. The server ends the requests that it has.
        backup.send(Signal::STOP);
        sleep(Duration::from_secs(1));
        let whole = self.packs();
        let children = below(&backup.child);
        backup.kill();
        until("the programs that it started end", || !children.iter().any(|child| is_alive(*child)));
        until("sessions end", || self.server.sessions().is_empty());
        assert_eq!(self.packs(), whole, "a part of a pack has its name");
    }

    /// After a backup that was killed in an upload, the next one removes its temporary files. Returns how many there were.
    #[track_caller]
    pub fn a_killed_backup_leaves_nothing(&self) -> usize {
        self.a_backup_is_killed();
        let left = self.temporary_files().len();
        self.backup(&[]).ok();
        assert_eq!(self.temporary_files(), [] as [PathBuf; 0]);
        self.is_whole();
        left
    }

    /// Two machines with one state back up at the same time. One of them may be stopped, and no snapshot of the other is lost.
    #[track_caller]
    pub fn two_machines_lose_nothing(&self) {
        self.backup(&[]).ok();
        let clone = self.site.path().join("clone");
        for round in 0..2 {
            self.clone_state(&clone);
            let before = self.snapshots();
            self.site.write("changing", noise(&format!("round {round}"), 16 * MIB));
            age(&self.site.source());
            settle();
            let arguments = ["backup", &self.source(), "--limit-upload", SLOW];
            let states = [self.site.state(), clone.clone()];
            let mut runs = states.each_ref().map(|state| self.begin_as(state, &arguments));
            until("both write", || {
                let mut runs = runs.iter_mut().zip(&states);
                runs.all(|(run, state)| is_locked_by(state, run.id()) || run.has_ended())
            });
            let written = runs.map(|mut run| usize::from(!run.is_stopped_by_a_rival())).iter().sum::<usize>();
            assert!(self.snapshots() >= before + written, "a snapshot is lost: {written} were written");
            self.goes_on_after_a_race();
        }
    }

    /// A full disk ends a backup at once, with these words, and leaves room for less. The server has a folder, which does not
    /// exist yet, and the source six of [`many`] files.
    #[track_caller]
    pub fn a_full_disk_ends_a_backup(&self, words: &str) {
        let folder = self.server.folder().expect("a folder");
        fs::create_dir(&folder).expect("the folder");
        mount_tmpfs(&folder, c"size=24m,mode=777");
        self.init().ok();
        let full = self.backup(&[]).code(1);
        assert!(full.stderr.contains(words) && !full.stderr.contains("waiting for"), "{full}");
        assert_eq!(self.temporary_files(), [] as [PathBuf; 0]);
        for at in 1..6 {
            fs::remove_file(self.site.source().join(format!("file{at}"))).expect("a file of the source");
        }
        settle();
        self.backup(&[]).ok();
        self.is_whole();
    }

    /// Only an empty place becomes a repository. `put` stores a foreign file in it, and `clear` removes it.
    #[track_caller]
    pub fn init_accepts_only_an_empty_place(&self, put: impl FnOnce(), clear: impl FnOnce()) {
        put();
        let refused = self.init().code(1);
        let words = ["is not empty", "there are other objects"];
        assert!(words.iter().any(|words| refused.stderr.contains(words)), "{refused}");
        clear();
        self.init().ok();
        let again = self.init().code(1);
        assert!(again.stderr.contains("already"), "{again}");
    }

    /// Without permission to write, a repository can be restored. A backup ends at once, with these words.
    #[track_caller]
    pub fn can_be_read_and_not_written(&self, words: &str) {
        self.is_whole();
        self.add_a_file();
        let refused = self.backup(&[]).code(1);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{refused}");
    }

    /// A backup gives up connections on which the server is silent, and uploads again. `silence` is called in an upload, and
    /// `resume` when the backup has noticed it.
    #[track_caller]
    pub fn a_silent_server_is_given_up(&self, silence: impl FnOnce(), resume: impl FnOnce()) {
        let location = self.server.repository();
        let options = Remote { stall: STALL, ..location.remote().clone() };
        let said = Arc::new(Mutex::new(Vec::new()));
        let repository = Repository::open_wrapped(&location.with_remote(options), Vec::new(), |storage| {
            let upload = NonZeroU64::new(4 << 20);
            let limited = Limit::new(storage, Rates { upload, download: None }, &Interrupt::default());
            let [longest, first_wait, longest_wait] = [120_000, 100, 1000].map(Duration::from_millis);
            let said = said.clone();
            let note = move |waiting: &Waiting<'_>| said.lock().expect("lock").push(waiting.error.to_string());
            let policy = RetryPolicy { longest, first_wait, longest_wait };
            Box::new(RetryStorage::new(Box::new(limited) as Box<dyn Storage>, policy).with_notice(note))
        });
        let repository = repository.unwrap_or_else(|error| panic!("{error}"));
        let (source, state) = (self.site.source(), self.site.state());
        std::thread::scope(|threads| {
            let backup = threads.spawn(|| {
                let selection = Selection { paths: vec![source], ..Selection::default() };
                let options = Options { selection, ..Options::default() };
                back_up(&repository, &state, &options, |_| (), &Silent, &AtomicBool::new(false))
            });
            let until = |what: &str, holds: &dyn Fn() -> bool| {
                until(what, || {
                    assert!(!backup.is_finished(), "the backup ended before {what}");
                    holds()
                });
            };
            until("a pack is uploaded", &|| self.server.is_receiving());
            silence();
            let silent = format!("was silent for {} s", STALL.as_secs());
            until("the backup gives up", &|| said.lock().expect("lock").iter().any(|said| said.contains(&silent)));
            resume();
            let summary = backup.join().expect("the backup").unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(summary.problems, 0);
        });
    }

    /// One signal ends a backup whose server falls silent during an upload.
    #[track_caller]
    pub fn an_interrupt_ends_a_wait_for_a_silent_server(&self, silence: impl FnOnce()) {
        let mut backup = self.begin_slow_backup();
        backup.until("a pack is uploaded", |_| self.server.is_receiving());
        silence();
        // The silence must have begun when the signal arrives, or the last packs may still be stored.
        sleep(Duration::from_secs(1));
        let begun = Instant::now();
        backup.send(Signal::TERM);
        backup.ends_with(130);
        let (took, said) = (begun.elapsed(), backup.said());
        assert!(took < Duration::from_secs(20) && said.contains("interrupted"), "{took:?}: {said}");
    }

    /// Neither the processes of a backup nor its messages and its log show one of these secrets.
    #[track_caller]
    pub fn no_secret_is_shown(&self, secrets: &[&str]) {
        let log = self.site.path().join("log");
        let mut backup = self.begin_backup(&["--limit-upload", SLOW, "--log", log.to_str().expect("a path"), "-v"]);
        let mut shown = String::new();
        while !backup.has_ended() {
            let processes = below(&backup.child).into_iter().chain([Pid::from_child(&backup.child)]);
            for process in processes.map(Pid::as_raw_nonzero) {
                for file in ["cmdline", "environ"] {
                    shown += &String::from_utf8_lossy(&fs::read(format!("/proc/{process}/{file}")).unwrap_or_default());
                }
            }
            sleep(Duration::from_millis(20));
        }
        backup.succeeds();
        assert!(shown.contains("BRACKFS_REPOSITORY") && shown.contains("--limit-upload"), "{shown}");
        shown += &backup.said();
        shown += &fs::read_to_string(log).expect("the log");
        for secret in secrets {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
    }
}

/// A command under way. It is killed if it is dropped before its end.
pub struct Begun {
    pub child: Child,
    messages: NamedTempFile,
}

impl Begun {
    pub fn start(mut command: Command) -> Begun {
        let messages = NamedTempFile::new().expect("a file for messages");
        command.stdout(Stdio::null()).stderr(messages.reopen().expect("another handle"));
        Begun { child: spawn(&mut command), messages }
    }

    /// The messages so far.
    pub fn said(&self) -> String {
        fs::read_to_string(self.messages.path()).expect("messages")
    }

    /// Waits until a condition holds. The command must not end before.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Begun) -> bool) {
        until(what, || {
            let has_ended = self.has_ended();
            let holds = holds(self);
            assert!(holds || !has_ended, "it ended before {what}: {}", self.said());
            holds
        });
    }

    /// Waits for its end, and asserts that it succeeds.
    #[track_caller]
    pub fn succeeds(&mut self) {
        self.ends_with(0);
    }

    /// Waits for its end, and asserts an exit code.
    #[track_caller]
    pub fn ends_with(&mut self, code: i32) {
        let status = ended(&mut self.child);
        assert_eq!(status.code(), Some(code), "{status}: {}", self.said());
    }

    /// Kills it.
    #[track_caller]
    pub fn kill(&mut self) {
        self.child.kill().expect("killing a child");
        let status = self.child.wait().expect("waiting for a child");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "it had ended: {}", self.said());
    }

    /// Kills it, if it has not ended.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("waiting for a child");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child").is_some()
    }

    #[track_caller]
    pub fn send(&self, signal: Signal) {
        wait::send(&self.child, signal);
    }

    /// Waits for its end. Returns whether it was stopped because of another machine with the same state.
    #[track_caller]
    pub fn is_stopped_by_a_rival(&mut self) -> bool {
        let status = ended(&mut self.child);
        let said = self.said();
        match status.code() {
            Some(0) => false,
            Some(1) => {
                let is_rival = said.contains("another machine") && said.contains("brackfs adopt");
                // A prune may also find that the repository is not as it was.
                assert!(is_rival || said.contains("nothing was removed"), "{said}");
                true
            }
            _ => panic!("{status}: {said}"),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Removes the variables of the user that tell how to reach servers.
pub fn remove_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let is_of_a_target =
            ["AWS_", "FTP_", "OS_", "RCLONE_", "ST_", "WEBDAV_"].iter().any(|prefix| text.starts_with(prefix));
        if is_of_a_target || text == "NETRC" || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
}

/// The files of [`RemoteSite::a_whole_round_works`].
pub fn round_files() -> [(&'static str, Vec<u8>); 2] {
    [("file", b"content".to_vec()), ("large", noise("large", 20 * MIB))]
}

/// Files `file0`, `file1` and so on, of 8 MiB of random bytes. Two fill a pack.
pub fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|at| (format!("file{at}"), noise(&format!("file{at}"), 8 * MIB))).collect()
}

pub fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
}

/// The files below a folder that a server may be changing: what is removed meanwhile may be missing.
#[track_caller]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.expect("a folder of the server"),
        };
        for entry in entries.map(|entry| entry.expect("an entry")) {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            (if is_folder { &mut folders } else { &mut files }).push(entry.path());
        }
    }
    files
}

/// The packs below the folder of a repository.
#[track_caller]
pub fn packs_below(repository: &Path) -> Vec<PathBuf> {
    let mut packs = files_below(&repository.join("packs"));
    packs.retain(|pack| !is_temporary(pack));
    packs
}

/// Temporary files of packs below the folder of a repository that the server has received a part of.
#[track_caller]
pub fn uploads_below(repository: &Path) -> Vec<PathBuf> {
    let mut uploads = files_below(&repository.join("packs"));
    uploads.retain(|upload| is_temporary(upload) && length(upload) > 0);
    uploads
}

/// Whether a file of a repository is an upload that has not ended. Apache names those that it receives itself.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().map_or(&b""[..], OsStr::as_encoded_bytes);
    name.starts_with(b".tmp-") || name.starts_with(b".davfs.tmp")
}

/// The length of a file; 0 if it is missing.
pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// Whether a process holds the lock of a state.
pub fn is_locked_by(state: &Path, process: u32) -> bool {
    let mut locks = fs::read_dir(state).expect("the state").map(|entry| entry.expect("an entry").path().join("lock"));
    locks.any(|lock| fs::read_to_string(lock).is_ok_and(|holder| holder == process.to_string()))
}

pub fn is_alive(process: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    state.is_ok_and(|state| state.rsplit_once(')').is_some_and(|(_, fields)| !fields.starts_with(" Z")))
}
