//! Randomized failures during backups, and the invariants that must hold after each.
//!
//! An [`Ordeal`] is a site whose source changes between backups. One of them is killed, loses power or meets a full
//! disk. Then [`Ordeal::holds`] checks the invariants: all older snapshots restore byte for byte, `check --read-data`
//! finds no problem, the next backup succeeds, no committed data is stored again, and no unreferenced object is left.
//!
//! Tests run a few rounds. `scripts/soak` runs many (`BRACKFS_SOAK_ROUNDS`) with other seeds (`BRACKFS_SOAK_SEED`). A
//! failed round prints the seed that repeats it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brackfs::crypt::{Opener, SecretKey};
use brackfs::format::{PackId, name};
use brackfs::repository::{Access, Repository};

use super::{AGED, Entry, Run, Site, number, paths_below, run, set_time, settle, tree};

/// A directory tree, as [`tree`] returns it.
type Tree = BTreeMap<PathBuf, Entry>;

/// Runs `short` rounds, or the requested number. Each has its own seed.
pub fn rounds(name: &str, short: u64, mut round: impl FnMut(Random)) {
    let first = asked("BRACKFS_SOAK_SEED").unwrap_or(1);
    let count = asked("BRACKFS_SOAK_ROUNDS").unwrap_or(short);
    let until = asked("BRACKFS_SOAK_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut done = 0;
    for seed in first..first.saturating_add(count) {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        // With the name, tests have different seeds.
        let random = Random::new(seed, name);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| round(random))) {
            eprintln!("{name}: BRACKFS_SOAK_SEED={seed} BRACKFS_SOAK_ROUNDS=1 repeats this round");
            resume_unwind(panic);
        }
        done += 1;
    }
    eprintln!("{name}: BRACKFS_SOAK_SEED={first} BRACKFS_SOAK_ROUNDS={done} repeats these rounds");
}

/// The number in an environment variable.
fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// Duration of a round that can take any time: `long` in a long run, as far as its time allows.
pub fn time(short: Duration, long: Duration) -> Duration {
    match (is_long(), asked("BRACKFS_SOAK_SECONDS")) {
        (true, Some(seconds)) => long.min(Duration::from_secs(seconds)),
        (true, None) => long,
        (false, _) => short,
    }
}

/// Whether this is a long run.
pub fn is_long() -> bool {
    std::env::var_os("BRACKFS_SOAK_ROUNDS").is_some()
}

/// On drop, also after a failure, tells the helper threads of a test to stop.
pub struct End<'s>(pub &'s AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pseudorandom numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, name: &str) -> Random {
        let digest = blake3::Hasher::new().update(&seed.to_le_bytes()).update(name.as_bytes()).finalize();
        Random(u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes")))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number from `least` to below `limit`.
    pub fn within(&mut self, least: u64, limit: u64) -> u64 {
        least + self.below(limit - least)
    }

    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Incompressible bytes.
    pub fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        blake3::Hasher::new().update(&self.next().to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }
}

impl Memory {
    /// Forgets snapshots that no run reported.
    pub fn keep_only(&mut self, ids: &BTreeSet<String>) {
        self.kept.retain(|id, _| ids.contains(id));
    }

    /// Allows all new data to be stored again, because no commit was due.
    pub fn forget_what_is_new(&mut self) {
        self.new_bytes = u64::MAX / 4;
    }
}

/// A site on which failures are tested.
pub struct Ordeal {
    /// Shared with threads that read during backups.
    pub site: Arc<Site>,
    pub random: Random,
    pub memory: Memory,
    /// Number of files made so far.
    made: u64,
}

/// The expected snapshots.
#[derive(Clone, Default)]
pub struct Memory {
    /// The tree of each, by id.
    kept: BTreeMap<String, Arc<Tree>>,
    /// Bytes written to the source since the last snapshot.
    new_bytes: u64,
    /// Bytes of packs in the catalog at the last snapshot.
    known_bytes: u64,
}

impl Ordeal {
    /// A source with `mebibytes` of content, and one snapshot of it.
    pub fn new(random: Random, mebibytes: u64) -> Ordeal {
        Ordeal::at(Site::in_memory(), random, mebibytes)
    }

    /// The same at an existing site, whose repository and state may be on any file system.
    pub fn at(site: Site, random: Random, mebibytes: u64) -> Ordeal {
        let mut ordeal = Ordeal { site: Arc::new(site), random, memory: Memory::default(), made: 0 };
        for _ in 0..mebibytes {
            ordeal.change();
        }
        ordeal.site.init();
        ordeal.back_up();
        ordeal
    }

    /// Changes the source: about a MiB is new, in a few large files and many small ones; others go or move.
    pub fn change(&mut self) {
        let source = self.site.source();
        let mut files: Vec<_> = paths_below(&source).into_iter().filter(|path| path.is_file()).collect();
        for _ in 0..files.len() / 10 {
            let gone = self.random.below(files.len() as u64) as usize;
            fs::remove_file(files.swap_remove(gone)).expect("a file goes");
        }
        for _ in 0..files.len() / 20 {
            let path = self.random.choose(&files).clone();
            let more = self.random.within(1, 3000);
            self.write(&path, more);
        }
        let folder = format!("folder-{}", self.random.below(8));
        if self.random.one_in(3) && source.join(&folder).is_dir() {
            self.made += 1;
            fs::rename(source.join(&folder), source.join(format!("moved-{}", self.made))).expect("a folder moves");
        }
        for _ in 0..self.random.within(15, 30) {
            let (depth, length) = (self.random.below(3), self.random.below(12_000));
            self.make(depth, length);
        }
        for _ in 0..2 {
            let length = self.random.within(200 << 10, 700 << 10);
            self.make(0, length);
        }
        settle();
    }

    /// Adds a file.
    pub fn make(&mut self, depth: u64, length: u64) -> PathBuf {
        let mut path = self.site.source();
        for _ in 0..depth {
            path.push(format!("folder-{}", self.random.below(8)));
        }
        fs::create_dir_all(&path).expect("a folder");
        self.made += 1;
        path.push(format!("file-{}", self.made));
        self.write(&path, length);
        path
    }

    fn write(&mut self, path: &Path, length: u64) {
        fs::write(path, self.random.bytes(length)).expect("a file");
        set_time(path, AGED, 0);
        self.memory.new_bytes += length;
    }

    /// The command of a backup that commits often.
    pub fn command(&mut self) -> Command {
        let interval = self.random.choose(&["0s", "1ms", "20ms", "60s"]);
        let source = self.site.source().display().to_string();
        let mut arguments = vec!["backup", &source, "--json", "--commit-interval", interval];
        if self.random.one_in(8) {
            arguments.push("--low-memory");
        }
        self.site.command(&arguments)
    }

    /// Backs up without a failure.
    #[track_caller]
    pub fn back_up(&mut self) -> Run {
        let done = self.site.backup(&[]).ok();
        let id = done.json()["snapshot_id"].as_str().expect("a snapshot").to_owned();
        let source = tree(&self.site.source());
        self.restores(&id, &source);
        self.memory.kept.insert(id, Arc::new(source));
        self.memory.new_bytes = 0;
        self.memory.known_bytes = self.committed();
        done
    }

    /// Asserts all invariants after a failure during a backup of the current source.
    #[track_caller]
    pub fn holds(&mut self) {
        self.holds_so_far();
        let committed = self.committed().saturating_sub(self.memory.known_bytes);
        let new_bytes = self.memory.new_bytes;
        let done = self.back_up();
        // Encryption and padding add an eighth to large chunks; each commit stores trees again.
        let allowed = new_bytes + new_bytes / 7 + (256 << 10);
        let stored = number(&done.json(), "stored_bytes");
        assert!(
            committed + stored <= allowed,
            "{committed} bytes were committed, {stored} were stored after that, and {new_bytes} were new\n{done}"
        );
        self.nothing_is_left();
        self.site.brackfs(&["check", "--read-data"]).ok();
        let again = self.site.backup(&["--dry-run"]).ok();
        assert_eq!(number(&again.json(), "files_read"), 0, "backed-up files are to be read again\n{again}");
    }

    /// Makes some snapshots, and forgets all but the last two.
    #[track_caller]
    pub fn forget(&mut self) {
        for _ in 0..4 {
            self.change();
            self.back_up();
        }
        self.forget_all_but(2);
    }

    /// Forgets all but the last `kept` snapshots.
    #[track_caller]
    pub fn forget_all_but(&mut self, kept: usize) {
        self.site.brackfs(&["forget", "--keep-last", &kept.to_string(), "--force"]).ok();
        let listed = self.listed();
        assert_eq!(listed.len(), kept);
        self.memory.keep_only(&listed);
    }

    /// The command of a prune that removes all that no snapshot needs, without the owner's key.
    pub fn prune_command(&self) -> Command {
        let mut prune = self.site.command(&["prune", "--json", "--grace", "0", "--max-waste", "0"]);
        prune.env_remove("BRACKFS_KEY_FILE");
        prune
    }

    /// Asserts after a failure during a prune that the kept snapshots are whole, and that the next prune leaves what an
    /// undisturbed one does: nothing but live blocks.
    #[track_caller]
    pub fn holds_after_prune(&mut self) {
        for (id, older) in &self.memory.kept {
            self.restores(id, older);
        }
        let pruned = run(self.prune_command()).ok().json();
        assert_eq!(self.listed(), self.memory.kept.keys().cloned().collect());
        let names = objects(&self.site.repo()).into_iter().filter(|name| name.starts_with("packs/"));
        let packs: u64 = names.map(|name| fs::metadata(self.site.repo().join(name)).expect("a pack").len()).sum();
        // As in `nothing_is_left`.
        let indexed = self.indexed_packs();
        if self.summed_packs().iter().all(|pack| indexed.contains(pack)) {
            assert_eq!(packs, number(&pruned, "live_bytes"), "{pruned}");
        }
        for (id, older) in &self.memory.kept {
            self.restores(id, older);
        }
        self.site.brackfs(&["catalog", "verify"]).ok();
        self.site.brackfs(&["check", "--read-data"]).ok();
        self.back_up();
    }

    /// Ids of the snapshots that users see.
    #[track_caller]
    fn listed(&self) -> BTreeSet<String> {
        let listed = self.site.brackfs(&["snapshots", "--json"]).ok().stdout;
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("snapshots");
        listed.iter().map(|snapshot| snapshot["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Asserts that all snapshots are unchanged, before the next run writes.
    #[track_caller]
    pub fn holds_so_far(&mut self) {
        self.look();
        for (id, older) in &self.memory.kept {
            self.restores(id, older);
        }
        self.claims_no_more_than_there_is();
        self.site.brackfs(&["check", "--read-data"]).ok();
    }

    /// Records the snapshot of the current source if the last run made one, even if it failed. Call it before the
    /// source changes again.
    #[track_caller]
    pub fn look(&mut self) {
        let there = self.snapshots();
        let gone: Vec<_> = self.memory.kept.keys().filter(|id| !there.contains(*id)).collect();
        assert!(gone.is_empty(), "snapshots {gone:?} are gone; there are {there:?}");
        let source = Arc::new(tree(&self.site.source()));
        for id in there {
            if !self.memory.kept.contains_key(&id) {
                self.restores(&id, &source);
                self.memory.kept.insert(id, source.clone());
            }
        }
    }

    /// Ids of the snapshots at the target.
    pub fn snapshots(&self) -> BTreeSet<String> {
        let names = objects(&self.site.repo()).into_iter().filter(|name| name.starts_with("snapshots/"));
        let names = names.filter(|name| !name.contains(".tmp-"));
        names.filter_map(|name| Some(name.rsplit_once('-')?.1.to_owned())).collect()
    }

    #[track_caller]
    fn restores(&self, id: &str, expected: &Tree) {
        let folder = self.site.path().join("restored");
        let run = self.site.brackfs(&["restore", id, "--to", folder.to_str().expect("a path")]).ok();
        same(&tree(&folder), expected, &format!("snapshot {id}\n{run}"));
        fs::remove_dir_all(folder).expect("the restored tree goes");
    }

    /// Bytes of the packs in the catalog. Reads a copy of the catalog, since opening it would recover it, which
    /// the next run must do itself.
    #[track_caller]
    pub fn committed(&self) -> u64 {
        self.known_packs().values().sum()
    }

    /// Packs in the catalog: name and size.
    #[track_caller]
    pub fn known_packs(&self) -> BTreeMap<String, u64> {
        let copy = tempfile::tempdir().expect("a folder");
        let state = fs::canonicalize(self.site.state()).expect("the state directory");
        for path in paths_below(&state) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == "catalog.sqlite" || name == "catalog.sqlite-wal" {
                fs::copy(&path, copy.path().join(name)).expect("a copy of the catalog");
            }
        }
        let db = rusqlite::Connection::open(copy.path().join("catalog.sqlite")).expect("the catalog opens");
        let mut packs = db.prepare("SELECT uuid, length FROM packs").expect("packs");
        let rows = packs.query_map([], |row| {
            let id: Vec<u8> = row.get(0)?;
            Ok((name::pack(PackId::from_slice(&id).expect("an id")), row.get::<_, i64>(1)? as u64))
        });
        rows.expect("packs").collect::<Result<_, _>>().expect("packs")
    }

    /// Asserts that the repository has no unreferenced objects. After a kill between a list of sums and the
    /// index of the same packs, that index might as well be missing: then everything stays.
    #[track_caller]
    fn nothing_is_left(&self) {
        let indexed = self.indexed_packs();
        if self.summed_packs().iter().any(|pack| !indexed.contains(pack)) {
            return;
        }
        let orphans = self.orphans();
        assert!(orphans.is_empty(), "{orphans:?} was left");
    }

    /// Temporary files, and packs that are neither in the catalog nor in an index.
    #[track_caller]
    pub fn orphans(&self) -> Vec<String> {
        let (known, indexed) = (self.known_packs(), self.indexed_packs());
        let mut objects = objects(&self.site.repo());
        objects.retain(|name| {
            name.contains(".tmp-")
                || (name.starts_with("packs/") && !known.contains_key(name) && !indexed.contains(name))
        });
        objects
    }

    /// Asserts that each pack of the catalog is at the target, has its full length, and is in an index.
    #[track_caller]
    fn claims_no_more_than_there_is(&self) {
        let indexed = self.indexed_packs();
        for (pack, length) in self.known_packs() {
            let found = fs::metadata(self.site.repo().join(&pack)).map(|found| found.len());
            assert!(found.as_ref().is_ok_and(|found| *found == length), "{pack} has {found:?} bytes, not {length}");
            assert!(indexed.contains(&pack), "{pack} is in the catalog and in no index");
        }
    }

    /// Packs in lists of sums.
    #[track_caller]
    fn summed_packs(&self) -> BTreeSet<String> {
        let names = objects(&self.site.repo()).into_iter();
        let lists = names.filter(|name| name.starts_with("sums/") && !name.contains(".tmp-"));
        let texts = lists.map(|name| fs::read_to_string(self.site.repo().join(name)).expect("a list of sums"));
        texts
            .flat_map(|text| {
                text.lines().map(|line| line.split_once("  ").expect("a sum").1.to_owned()).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Packs in indexes, opened with the host key.
    #[track_caller]
    pub fn indexed_packs(&self) -> BTreeSet<String> {
        let repository = Repository::open(&self.site.repo().as_path().into()).expect("the repository");
        let key = self.site.state().join(repository.id().to_string()).join("host.key");
        let key = SecretKey::parse(&fs::read(key).expect("the host key")).expect("the host key");
        let signer = key.certificate();
        let access = Access::new(Some(Opener::new(key).expect("the host key opens")), vec![signer]);
        let names = objects(&self.site.repo()).into_iter().filter(|name| !name.contains(".tmp-"));
        let indexes = names.filter_map(|name| name.strip_prefix("index/").map(|id| id.parse().expect("an id")));
        let indexes = indexes.map(|id| access.index(&repository, id).expect("an index"));
        let packs = indexes.flat_map(|index| {
            let births = index.packs.into_iter().map(|pack| pack.id);
            births.chain(index.carriers.into_iter().map(|carrier| carrier.id)).collect::<Vec<_>>()
        });
        packs.map(name::pack).collect()
    }
}

/// The names of all files in a repository.
#[track_caller]
pub fn objects(repository: &Path) -> Vec<String> {
    let repository = fs::canonicalize(repository).expect("the repository");
    let files = paths_below(&repository).into_iter().filter(|path| path.is_file());
    let names = files.map(|path| path.strip_prefix(&repository).expect("below it").display().to_string());
    names.collect()
}

/// Moves the repository and the state of a site below another folder, to `repo/` and `state/`.
#[track_caller]
pub fn place(site: &Site, folder: &Path) {
    place_one(site, "repo", folder);
    place_one(site, "state", folder);
}

/// Moves a missing or empty folder of a site below another one.
#[track_caller]
pub fn place_one(site: &Site, name: &str, folder: &Path) {
    let place = folder.join(name);
    if !place.exists() {
        fs::create_dir(&place).expect("a place");
    }
    let link = site.path().join(name);
    let _ = fs::remove_dir(&link).or_else(|_| fs::remove_file(&link));
    std::os::unix::fs::symlink(place, link).expect("a link to the place");
}

/// Asserts that two trees are equal, and names the differences.
#[track_caller]
pub fn same(found: &Tree, expected: &Tree, what: &str) {
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for name in names {
        let (found, expected) = (found.get(name), expected.get(name));
        assert!(found == expected, "{} is {found:?} instead of {expected:?}: {what}", name.display());
    }
}

/// The command, run by strace with these arguments, in the same environment.
pub fn under_strace(arguments: &[&str], command: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(arguments).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        strace.current_dir(folder);
    }
    strace.stdin(std::process::Stdio::null());
    strace
}

/// For each of these system calls, the largest number of calls by a thread of a command.
#[track_caller]
pub fn count_calls(calls: &[&'static str], command: &Command) -> BTreeMap<&'static str, u64> {
    let log = tempfile::NamedTempFile::new().expect("a log");
    let trace = format!("trace={}", calls.join(","));
    let path = log.path().to_str().expect("a path");
    run(under_strace(&["-e", &trace, "-o", path], command)).ok();
    let text = fs::read_to_string(log.path()).expect("the log");
    let mut counts: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        // A call that another thread's interrupted continues on a line that begins with `<...`.
        let name = call.split('(').next().unwrap_or_default();
        if let Some(name) = calls.iter().find(|known| **known == name) {
            *counts.entry((thread, name)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let so_far = most.entry(call).or_insert(0);
        *so_far = count.max(*so_far);
    }
    most
}
