//! Reading files: many small ones at the same time, large ones one after the other.
//!
//! On a cold disk a small file costs a seek, so many are read at the same time, regardless of the number of cores. Neighbouring
//! small files are one job: waking a reader, and then the assembler, takes longer than reading one of them. The content of
//! each job goes to a channel of its own, so the assembler takes files in the order of the walk, however they arrive. The
//! memory of a small file is lent by the walk, in the order in which files are taken; that of a large file by its reader,
//! one chunk at a time.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crossbeam_channel::Receiver;

use super::budget::{Budget, Loan};
use super::content::{FileContent, FileEnd};
use super::early::{EarlyFile, read_early};
use super::hard_links::{CachedFile, HardLinkCache};
use super::jobs::{FILE_OVERHEAD, JobFile, ReadJob, ReadSetup};
use super::lanes::Lane;
use super::opened::{OpenedFile, open};
use super::sink::{ContentSender, ReadStop, Sink};
use super::verdict::{Observation, Verdict};
use crate::format::Digest;
use crate::source::{Directory, Extended, Stat, WholeReader, now};

/// Reads files until there are no more jobs.
pub(in crate::backup) fn read_files(jobs: &Receiver<ReadJob>, setup: &ReadSetup, lane: &Lane) {
    let mut whole = WholeReader::default();
    for ReadJob { directory, files, content } in jobs {
        let mut out = ContentSender::new(&content);
        let mut reader = FileReader { directory: &directory, setup, lane, whole: &mut whole, out: &mut out };
        // If the receiver is gone, the run has ended.
        let _ = reader.read_all(files);
        let _ = out.flush();
    }
}

/// Reads the files of a job.
struct FileReader<'r, 'c> {
    directory: &'r Directory,
    setup: &'r ReadSetup,
    lane: &'r Lane,
    whole: &'r mut WholeReader,
    out: &'r mut ContentSender<'c>,
}

impl FileReader<'_, '_> {
    fn read_all(&mut self, files: Vec<JobFile>) -> Result<(), ReadStop> {
        let mut files = files.into_iter();
        loop {
            let batch: Vec<_> = files.by_ref().take(self.setup.files_at_once).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let early = read_early(self.directory, &batch, self.setup, self.whole);
            for (file, early) in batch.into_iter().zip(early) {
                match self.read(file, early) {
                    Err(ReadStop::Failed(why)) => self.out.send(FileContent::Failed(why))?,
                    Err(ReadStop::Broken(error)) => self.out.send(FileContent::Broken(error))?,
                    result => result?,
                }
            }
        }
    }

    /// Reads a file and sends its content.
    fn read(&mut self, job: JobFile, early: Option<EarlyFile>) -> Result<(), ReadStop> {
        let setup = self.setup;
        let name = OsStr::from_bytes(&job.name);
        let call = setup.calls.about_names(self.directory.shared_path(), [name]);
        if let Some((bytes, extended)) = early.and_then(|early| early.settled(&job.seen)) {
            drop(call);
            let mut sink = Sink::new(self.out, self.lane, job.seen.size).with_loan(job.loan);
            sink.chunk(bytes)?;
            let (size, digest) = (sink.size(), sink.digest());
            let end = FileEnd { stat: job.seen, extended, size, digest, verdict: Verdict::default(), lent: None };
            return send_end(setup, sink, job.number, end);
        }
        let opened = now();
        let file = open(self.directory, name, job.patience);
        let Some(file) = OpenedFile::observe(file, &job.seen, opened, job.patience)? else {
            drop(call);
            return self.out.send(FileContent::Deferred { changed: true });
        };
        let mut sink = Sink::new(self.out, self.lane, file.before.size).with_loan(job.loan);
        let cached = find_cached(setup, &file.before, job.number, &mut sink);
        let is_unsized = cached.is_none() && file.has_more(setup)?;
        // A small file is delivered once it is known whether it is deferred.
        let held = match &cached {
            Some(cached) => call.pause(|| sink.repeat(cached)).map(|()| None)?,
            None if is_unsized => file.read_unsized(&mut sink, &call)?,
            None => file.read_sized(setup, self.whole, &mut sink, &call)?,
        };
        let extended = Extended::of_fd(&file.file);
        let observed = Observation {
            same: file.is_same(self.directory, name)?,
            expected_size: file.before.size,
            size: sink.size() + held.as_ref().map_or(0, |bytes| bytes.len() as u64),
            is_unsized,
            fresh: file.before.fresh_for(file.opened, setup.mounts.of(&file.before).clock),
            written_to: file.written_to,
        };
        let verdict = observed.verdict(job.patience, || -> Result<bool, ReadStop> {
            let digest = match (&held, &cached) {
                (Some(bytes), _) => Digest::of(bytes),
                (None, Some(cached)) => cached.digest,
                (None, None) => sink.digest(),
            };
            Ok(file.digest(setup, &call)? != digest)
        })?;
        drop(call);
        match held {
            Some(_) if verdict.deferred => return self.out.send(FileContent::Deferred { changed: verdict.changed }),
            Some(bytes) => sink.chunk(bytes)?,
            None => {}
        }
        let digest = cached.map_or_else(|| sink.digest(), |cached| cached.digest);
        let is_certain = !verdict.changed && !verdict.doubtful && !verdict.wrong_size;
        if is_certain && let Some(pieces) = sink.take_pieces() {
            setup.hard_links.keep(CachedFile { number: job.number, stat: file.before.clone(), pieces, digest });
        }
        let end = FileEnd { stat: file.before, extended, size: sink.size(), digest, verdict, lent: None };
        send_end(setup, sink, job.number, end)
    }
}

/// Ends a file.
fn send_end(setup: &ReadSetup, mut sink: Sink<'_, '_>, number: u64, mut end: FileEnd) -> Result<(), ReadStop> {
    end.lent = lend(&setup.attributes, end.extended.bytes(), number, sink.sender())?;
    sink.sender().send(FileContent::End(Box::new(end)))
}

/// Finds the content of a file that was read under another name, or prepares to remember it.
fn find_cached(setup: &ReadSetup, before: &Stat, number: u64, sink: &mut Sink<'_, '_>) -> Option<CachedFile> {
    if !HardLinkCache::wants(before) {
        return None;
    }
    let cached = setup.hard_links.find(before, number);
    if cached.is_none() {
        sink.remember_pieces();
    }
    cached
}

/// Waits until there is room for this many bytes of attributes, unless the loan for the file covers them.
fn lend(attributes: &Budget, bytes: usize, number: u64, out: &mut ContentSender<'_>) -> Result<Option<Loan>, ReadStop> {
    if bytes <= FILE_OVERHEAD {
        return Ok(None);
    }
    if let Some(loan) = attributes.try_take(bytes) {
        return Ok(Some(loan));
    }
    // The assembler takes the files before this one first, and can do so only once they are sent.
    out.flush()?;
    attributes.take_for(number, bytes).map(Some).ok_or(ReadStop::Gone)
}
