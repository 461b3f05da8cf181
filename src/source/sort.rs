//! External merge sort of names.
//!
//! Names are collected and sorted in runs. A single run stays in RAM, unless that is limited to less. Other runs are
//! written to one unnamed temporary file and merged while the names are read. All runs share a file because a walk keeps a
//! listing open on each level of the tree and file descriptors are limited. The size of the file is limited; more names
//! are an error.
//!
//! Memory: one run while names are collected (4 MiB, and 8 bytes per name), then 32 KiB for each run being merged, at
//! most 64. More runs are first merged into fewer, larger ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Buffer size in bytes for each run being merged.
const BUFFER: usize = 32 << 10;

/// The directory for temporary files: `$TMPDIR`, or `/var/tmp`, or `/tmp`. `/tmp` comes last because it may be in
/// memory.
pub fn temporary_folder() -> PathBuf {
    let given = std::env::var_os("TMPDIR").filter(|given| !given.is_empty()).map(PathBuf::from);
    let disk = || Some(PathBuf::from("/var/tmp")).filter(|folder| folder.is_dir());
    given.or_else(disk).unwrap_or_else(std::env::temp_dir)
}

/// The limits of memory and temporary space.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Names per run.
    pub(super) names: usize,
    /// Bytes of names per run; a longer name forms its own run.
    pub(super) bytes: usize,
    /// Bytes of names that stay in RAM while they are read.
    pub(super) kept: usize,
    /// Runs merged at once, at least 2.
    pub(super) runs: usize,
    /// Bytes in the temporary file. The directory of a malicious FUSE file system may be endless.
    pub(super) spilled: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { names: 50_000, bytes: 4 << 20, kept: usize::MAX, runs: 64, spilled: 1 << 30 }
    }
}

/// Collects names in any order.
#[derive(Debug)]
pub(super) struct Sorter {
    limits: Limits,
    run: NameRun,
    spilled: Option<RunFile>,
}

impl Sorter {
    pub(super) fn new(limits: Limits) -> Self {
        Sorter { limits, run: NameRun::default(), spilled: None }
    }

    pub(super) fn push(&mut self, name: &[u8]) -> io::Result<()> {
        let full = self.run.spans.len() >= self.limits.names || self.run.bytes.len() + name.len() > self.limits.bytes;
        if full && !self.run.spans.is_empty() {
            self.spill()?;
        }
        self.run.push(name);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let spill = match &mut self.spilled {
            Some(spill) => spill,
            none => none.insert(RunFile::create()?),
        };
        if spill.length + self.run.bytes.len() as u64 > self.limits.spilled {
            let most = self.limits.spilled >> 20;
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} MiB of names")));
        }
        self.run.sort();
        for &span in &self.run.spans {
            spill.write(self.run.name(span))?;
        }
        spill.end_run();
        self.run.spans.clear();
        self.run.bytes.clear();
        Ok(())
    }

    /// The collected names, ascending and without duplicates.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        if self.spilled.is_some() || self.run.bytes.len() > self.limits.kept {
            self.spill()?;
        }
        let Some(spill) = self.spilled else {
            self.run.sort();
            return Ok(Sorted::InMemory { run: self.run, taken: 0 });
        };
        // Free its memory before the merge.
        drop(self.run);
        let mut runs = spill.finish()?;
        while runs.len() > self.limits.runs {
            runs = shorten(&runs, self.limits.runs)?;
        }
        Ok(Sorted::Merged(Merge::new(runs)?))
    }
}

/// Merges each group of `at_once` runs into one run.
fn shorten(runs: &[Section], at_once: usize) -> io::Result<Vec<Section>> {
    let mut spill = RunFile::create()?;
    for group in runs.chunks(at_once.max(2)) {
        let mut merge = Merge::new(group.to_vec())?;
        while let Some(name) = merge.next()? {
            spill.write(&name)?;
        }
        spill.end_run();
    }
    spill.finish()
}

/// A run of names in RAM, in one buffer.
#[derive(Debug, Default)]
pub(super) struct NameRun {
    bytes: Vec<u8>,
    /// Start and end of each name.
    spans: Vec<(u32, u32)>,
}

impl NameRun {
    fn push(&mut self, name: &[u8]) {
        // Fits in u32: runs are limited to far less.
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.spans.push((start, self.bytes.len() as u32));
    }

    fn name(&self, (start, end): (u32, u32)) -> &[u8] {
        &self.bytes[start as usize..end as usize]
    }

    fn sort(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_unstable_by(|a, b| self.name(*a).cmp(self.name(*b)));
        // A directory that changes while it is read may show a name twice.
        spans.dedup_by(|a, b| self.name(*a) == self.name(*b));
        self.spans = spans;
    }
}

/// An iterator over sorted names.
#[derive(Debug)]
pub(super) enum Sorted {
    /// A single run.
    InMemory { run: NameRun, taken: usize },
    /// Runs in a temporary file.
    Merged(Merge),
}

impl Sorted {
    /// Bytes of RAM that it takes.
    pub(super) fn memory(&self) -> usize {
        match self {
            Sorted::InMemory { run, .. } => run.bytes.capacity() + run.spans.capacity() * size_of::<(u32, u32)>(),
            Sorted::Merged(merge) => merge.runs() * BUFFER,
        }
    }

    pub(super) fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        match self {
            Sorted::InMemory { run, taken } => {
                let span = *run.spans.get(*taken)?;
                *taken += 1;
                Some(Ok(run.name(span).to_vec()))
            }
            Sorted::Merged(merge) => merge.next().transpose(),
        }
    }
}

/// Writes runs to a temporary file. A name is encoded as its length in 4 bytes, little endian, and its bytes.
#[derive(Debug)]
struct RunFile {
    out: BufWriter<File>,
    /// Bytes written.
    length: u64,
    /// The end offset of each run.
    ends: Vec<u64>,
}

impl RunFile {
    fn create() -> io::Result<Self> {
        let file = tempfile::tempfile_in(temporary_folder())?;
        Ok(RunFile { out: BufWriter::with_capacity(BUFFER, file), length: 0, ends: Vec::new() })
    }

    fn write(&mut self, name: &[u8]) -> io::Result<()> {
        self.out.write_all(&(name.len() as u32).to_le_bytes())?;
        self.out.write_all(name)?;
        self.length += 4 + name.len() as u64;
        Ok(())
    }

    fn end_run(&mut self) {
        self.ends.push(self.length);
    }

    fn finish(self) -> io::Result<Vec<Section>> {
        let file = Arc::new(self.out.into_inner()?);
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        Ok(starts.zip(&self.ends).map(|(at, &end)| Section { file: file.clone(), at, end }).collect())
    }
}

/// A section of a file that is read concurrently with other sections.
#[derive(Debug, Clone)]
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = match buffer.get_mut(..length) {
            Some(buffer) => self.file.read_at(buffer, self.at)?,
            None => 0,
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// A k-way merge of runs.
#[derive(Debug)]
pub(super) struct Merge {
    runs: Vec<BufReader<Section>>,
    /// The next name of each unfinished run, and the index of the run.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Merge {
    fn new(runs: Vec<Section>) -> io::Result<Self> {
        let runs: Vec<_> = runs.into_iter().map(|run| BufReader::with_capacity(BUFFER, run)).collect();
        let mut merge = Merge { heads: BinaryHeap::with_capacity(runs.len()), runs };
        for run in 0..merge.runs.len() {
            merge.advance(run)?;
        }
        Ok(merge)
    }

    fn runs(&self) -> usize {
        self.runs.len()
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(name) = self.pop()? else { return Ok(None) };
        // Each run is free of duplicates, but several runs may contain the name.
        while self.heads.peek().is_some_and(|Reverse((next, _))| *next == name) {
            self.pop()?;
        }
        Ok(Some(name))
    }

    fn pop(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(Reverse((name, run))) = self.heads.pop() else { return Ok(None) };
        self.advance(run)?;
        Ok(Some(name))
    }

    /// Pushes the next name of a run to the heap, if there is one.
    fn advance(&mut self, run: usize) -> io::Result<()> {
        let Some(reader) = self.runs.get_mut(run) else { return Ok(()) };
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        let mut name = vec![0; u32::from_le_bytes(length) as usize];
        reader.read_exact(&mut name)?;
        self.heads.push(Reverse((name, run)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[Vec<u8>], limits: Limits) -> (Vec<Vec<u8>>, Sorted) {
        let mut sorter = Sorter::new(limits);
        for name in names {
            sorter.push(name).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        (std::iter::from_fn(|| sorted.next()).map(Result::unwrap).collect(), sorted)
    }

    /// Unsorted names of 1 to 200 bytes, some of them twice.
    fn names(count: u64) -> Vec<Vec<u8>> {
        let scatter = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let name = |n: u64| {
            let mut name = scatter(n % (count * 3 / 4 + 1)).to_be_bytes().to_vec();
            name.resize(1 + name[0] as usize % 200, 0xf0);
            name
        };
        (0..count).map(name).collect()
    }

    #[test]
    fn spilled_names_are_the_same_as_names_in_memory() {
        let names = names(5000);
        let (truth, state) = sorted(&names, Limits::default());
        assert!(matches!(state, Sorted::InMemory { .. }));
        assert!(truth.is_sorted_by(|a, b| a < b));
        assert!(truth.len() < names.len());
        for (by_names, by_bytes, runs) in [(100, 1 << 20, 64), (100, 1 << 20, 3), (1 << 20, 1000, 7), (1, 1, 2)] {
            let limits = Limits { names: by_names, bytes: by_bytes, runs, ..Limits::default() };
            let (found, state) = sorted(&names, limits);
            assert!(found == truth, "{limits:?}");
            let Sorted::Merged(merge) = state else { panic!("{limits:?} did not spill") };
            assert!(merge.runs.len() <= runs, "{limits:?} left {} runs", merge.runs.len());
        }
    }

    #[test]
    fn names_that_may_not_stay_in_memory_take_a_buffer_of_it() {
        let names = names(5000);
        let (truth, state) = sorted(&names, Limits::default());
        assert!(state.memory() > 10 * BUFFER);
        let (found, state) = sorted(&names, Limits { kept: BUFFER, ..Limits::default() });
        assert_eq!((found == truth, state.memory()), (true, BUFFER));
        let few = names.get(..100).unwrap();
        assert!(matches!(sorted(few, Limits { kept: BUFFER, ..Limits::default() }).1, Sorted::InMemory { .. }));
    }

    #[test]
    fn no_name_and_one_name() {
        assert!(sorted(&[], Limits::default()).0.is_empty());
        assert_eq!(sorted(&[b"x".to_vec()], Limits::default()).0, [b"x"]);
    }

    #[test]
    fn endless_names_are_an_error() {
        let mut sorter = Sorter::new(Limits { names: 100, runs: 2, spilled: 1 << 20, ..Limits::default() });
        let failed = (0u64..).find_map(|n| sorter.push(&n.to_be_bytes()).err()).unwrap();
        assert_eq!(failed.to_string(), "it has more than 1 MiB of names");
    }

    #[test]
    fn a_run_that_is_exactly_full_stays_in_memory() {
        let limits = Limits { names: 10, bytes: 1 << 20, runs: 2, ..Limits::default() };
        assert!(matches!(sorted(&names(10), limits).1, Sorted::InMemory { .. }));
        assert!(matches!(sorted(&names(11), limits).1, Sorted::Merged(_)));
    }
}
