//! Files are written constantly while backups run: each file in each snapshot existed at some instant, or
//! is marked. After the writers stop, a backup equals the source.
//!
//! The content shows whether it existed at an instant. A page repeats one number, and pages are written in order, so
//! the numbers in a file never ascend and differ by at most one. Logs have lines that count up. Files that are renamed
//! into place have a single number.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::machine::spawn;
use common::ordeal::{End, Random, rounds, same};
use common::{Site, number, tree};

const PAGE: usize = 4096;

/// How a file is written. Each kind has its own folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Page by page, in place.
    Overwritten,
    /// The same through a mapping.
    Mapped,
    /// Line by line, at the end.
    Log,
    /// Truncated, then written again line by line.
    Rotated,
    /// Completely, under a temporary name that is then renamed.
    Replaced,
}

const KINDS: [(Kind, &str, u64); 5] = [
    (Kind::Overwritten, "overwritten", 25),
    (Kind::Mapped, "mapped", 10),
    (Kind::Log, "log", 25),
    (Kind::Rotated, "rotated", 15),
    (Kind::Replaced, "replaced", 25),
];

/// The files and the threads that write them.
struct Writers {
    files: Vec<(Kind, PathBuf, usize)>,
    random: Random,
}

impl Writers {
    /// A hundred files, among them some of several chunks.
    fn new(source: &Path, mut random: Random) -> Writers {
        let mut files = Vec::new();
        for (kind, folder, count) in KINDS {
            fs::create_dir(source.join(folder)).unwrap();
            for n in 0..count {
                let pages = if n % 8 == 7 { 300 } else { random.within(1, 20) as usize };
                let path = source.join(folder).join(format!("{n:02}"));
                let content = match kind {
                    Kind::Log | Kind::Rotated => Vec::new(),
                    _ => page(0).repeat(pages),
                };
                fs::write(&path, content).unwrap();
                files.push((kind, path, pages));
            }
        }
        Writers { files, random }
    }

    /// Writes until told to stop, to every file again and again.
    fn write(mut self, stop: &AtomicBool) {
        let mut turn = 0;
        let mut lines = 0u64;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            // Not all of them each time, or no file would ever be stable.
            for (kind, path, pages) in &self.files {
                if !self.random.one_in(4) {
                    continue;
                }
                match kind {
                    Kind::Overwritten => overwrite(path, *pages, turn),
                    Kind::Log => append(path, &mut lines),
                    Kind::Rotated if self.random.one_in(5) => drop(File::create(path).unwrap()),
                    Kind::Rotated => append(path, &mut lines),
                    Kind::Replaced => replace(path, *pages, turn),
                    Kind::Mapped => {}
                }
            }
            thread::sleep(Duration::from_millis(self.random.below(30)));
        }
    }
}

fn page(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(PAGE / 8)
}

fn overwrite(path: &Path, pages: usize, turn: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    // Continue the numbers of an earlier writer of the same test.
    let number = fs::read(path).ok().and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
    let number = number.unwrap_or(turn) + 1;
    for at in 0..pages {
        file.write_all_at(&page(number), (at * PAGE) as u64).unwrap();
    }
}

fn append(path: &Path, lines: &mut u64) {
    *lines += 1;
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(format!("{lines:020} {}\n", "x".repeat((*lines % 3000) as usize)).as_bytes()).unwrap();
}

fn replace(path: &Path, pages: usize, turn: u64) {
    let other = path.with_extension("new");
    fs::write(&other, page(turn).repeat(pages)).unwrap();
    fs::rename(&other, path).unwrap();
}

/// Writes to mapped files from front to back, which Python can do without `unsafe`.
const MAPPED: &str = "
import mmap, os, struct, sys, time
files = [mmap.mmap(os.open(path, os.O_RDWR), 0) for path in sys.argv[1:]]
number = struct.unpack('<Q', files[0][:8])[0]
print('ready', flush=True)
while True:
    number += 1
    page = struct.pack('<Q', number) * 512
    for file in files:
        for at in range(0, len(file), 4096):
            file[at:at + 4096] = page
    time.sleep(0.013)
";

struct Mapper(Child);

impl Mapper {
    fn start(files: &[(Kind, PathBuf, usize)]) -> Mapper {
        let mapped = files.iter().filter(|(kind, ..)| *kind == Kind::Mapped).map(|(_, path, _)| path);
        let mut child = spawn(Command::new("python3").args(["-c", MAPPED]).args(mapped).stdout(Stdio::piped()));
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Mapper(child)
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a file of this kind may have had this content at some instant.
fn existed(kind: Kind, content: &[u8]) -> Result<(), String> {
    match kind {
        Kind::Overwritten | Kind::Mapped => {
            let words: Vec<_> = content.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            let steps: Vec<_> = words.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]).collect();
            match steps.as_slice() {
                [] => Ok(()),
                [(_, pair)] if pair[0] == pair[1] + 1 => Ok(()),
                other => Err(format!("steps at {other:?}")),
            }
        }
        Kind::Replaced => match content.chunks(8).all(|word| word == &content[..8]) {
            true => Ok(()),
            false => Err("two files in one".into()),
        },
        Kind::Log | Kind::Rotated => {
            let text = str::from_utf8(content).map_err(|e| e.to_string())?;
            if !text.is_empty() && !text.ends_with('\n') {
                return Err("a line is cut off".into());
            }
            let numbers: Vec<u64> = text.lines().map(|line| line[..20].parse().unwrap()).collect();
            match numbers.is_sorted() {
                true => Ok(()),
                false => Err("lines are mixed".into()),
            }
        }
    }
}

/// Paths of files that a snapshot marks, from its root.
fn marked(site: &Site) -> BTreeSet<String> {
    let listed = site.brackfs(&["ls", "-R", "latest", "--json"]).ok().stdout;
    let entries = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let marked = entries.filter(|entry| entry["changed_while_read"] == true);
    marked.map(|entry| entry["path"].as_str().unwrap().trim_start_matches('/').to_owned()).collect()
}

#[test]
fn files_under_constant_writes_existed_at_an_instant_or_are_marked() {
    let site = Site::new();
    site.init();
    let (mut backups, mut marks, mut problems) = (0, 0, 0);
    let source = site.source();
    let mut first = true;
    rounds("hammer", 3, |mut random| {
        if !first {
            fs::remove_dir_all(&source).unwrap();
            fs::create_dir(&source).unwrap();
        }
        first = false;
        let writers = Writers::new(&source, random.clone());
        let stop = AtomicBool::new(false);
        let mapper = Mapper::start(&writers.files);
        thread::scope(|threads| {
            let end = End(&stop);
            threads.spawn(|| writers.write(&stop));
            for _ in 0..2 {
                let settle = *random.choose(&["0", "50ms", "300ms"]);
                let retries = *random.choose(&["0", "1", "3"]);
                let run = site.backup(&["--settle-max", settle, "--retries", retries]);
                assert!([0, 3].contains(&run.code), "{run}");
                let marked = marked(&site);
                backups += 1;
                marks += marked.len();
                problems += number(&run.json(), "problems");
                let to = site.path().join("out");
                site.brackfs(&["restore", "latest", "--to", to.to_str().unwrap()]).ok();
                for (kind, folder, _) in KINDS {
                    for entry in fs::read_dir(to.join(folder)).unwrap() {
                        let entry = entry.unwrap();
                        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
                        // A temporary file before its rename.
                        if marked.contains(&name) || name.ends_with(".new") {
                            continue;
                        }
                        if let Err(why) = existed(kind, &fs::read(entry.path()).unwrap()) {
                            panic!("{name} never was like that, and is not marked: {why}\n{run}");
                        }
                    }
                }
                fs::remove_dir_all(&to).unwrap();
            }
            drop(end);
        });
        drop(mapper);
        site.brackfs(&["check", "--read-data"]).ok();
        // Files read during the writes are not trusted too far.
        common::settle();
        site.backup(&[]).ok();
        let to = site.path().join("out");
        site.brackfs(&["restore", "latest", "--to", to.to_str().unwrap()]).ok();
        same(&tree(&to), &tree(&source), "after the writers stopped");
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(number(&site.backup(&[]).ok().json(), "files_read"), 0);
    });
    eprintln!("{backups} backups, {marks} files marked, {problems} problems");
}
