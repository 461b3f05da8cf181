//! The backup of a pipe: standard input as the only file of a snapshot.
//!
//! It replaces the walk: the same events, and content that is read in the walk's thread. The file is marked as one that
//! can't be recognized, so the next backup reads all of its own input; content that the repository has is not stored again.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::event::{EnterDirectory, Event, NewFile, NewFiles};
use super::outbox::Outbox;
use super::stop::WalkStop;
use super::tree::WalkCounts;
use crate::backup::error::Error;
use crate::backup::limits::CONTENT_AHEAD;
use crate::backup::read::content::{FileContent, FileEnd};
use crate::backup::read::lanes::Lane;
use crate::backup::read::sink::{ContentSender, ReadStop, Sink};
use crate::catalog::{DirectoryRow, Parent, Past, SegmentId, SourceRow};
use crate::format::entry::Content;
use crate::format::{Digest, Items, Kind, Timestamp};
use crate::monitor::Monitor;
use crate::source::{Chunker, Extended, Stat};

/// How often a wait for input checks whether the run is to stop, in nanoseconds.
const STOP_POLL: i64 = 100_000_000;

/// Sends standard input as a file.
pub(in crate::backup) struct PipeWalk<'a> {
    pub(in crate::backup) past: Past,
    pub(in crate::backup) source: SourceRow,
    pub(in crate::backup) outbox: Outbox,
    pub(in crate::backup) chunker: &'a Chunker,
    pub(in crate::backup) lane: &'a Lane,
    pub(in crate::backup) started: Timestamp,
    pub(in crate::backup) monitor: &'a dyn Monitor,
    pub(in crate::backup) stop: &'a AtomicBool,
}

/// The directory and the file of the last backup.
struct LastBackup {
    row: Option<DirectoryRow>,
    segments: Vec<SegmentId>,
    file: Option<PipeContent>,
}

/// The size and digest of a pipe's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PipeContent {
    size: u64,
    digest: Digest,
}

impl PipeWalk<'_> {
    /// Sends a directory with one file `name`, whose content is standard input, and returns the counts. If the input fails,
    /// no snapshot may be made of it: how much is missing is unknown.
    pub(in crate::backup) fn send(&mut self, name: &[u8]) -> Result<WalkCounts, WalkStop> {
        let LastBackup { row, segments, file: before } = self.last_backup(name)?;
        self.enter(row)?;
        self.outbox.send(Event::NewSegment { replaces: segments })?;
        let content = self.send_file(name, before.is_some())?;
        let now = self.send_content(&content)?;
        self.outbox.send(Event::EndSegment)?;
        self.outbox.send(Event::Leave { removed: Vec::new() })?;
        self.outbox.flush()?;
        if now.size == 0 {
            self.monitor.note("standard input was empty; the snapshot's file is, too");
        }
        let mut counts = WalkCounts { directories: 1, files: 1, bytes: now.size, ..WalkCounts::default() };
        match before {
            Some(before) if before == now => counts.unmodified = 1,
            Some(_) => counts.changed = 1,
            None => counts.new = 1,
        }
        Ok(counts)
    }

    /// Finds the directory of the last backup. It has no inode to be found by, only its place.
    fn last_backup(&self, name: &[u8]) -> Result<LastBackup, Error> {
        let Some(row) = self.past.directory(Parent::Source(self.source), b"")? else {
            return Ok(LastBackup { row: None, segments: Vec::new(), file: None });
        };
        let segments = self.past.segment_ids(row.id)?;
        let mut file = None;
        if let ([only], true) = (segments.as_slice(), row.linked) {
            let node = self.past.segment_node(*only)?;
            file = node.and_then(|segment| content_of(&segment.node.items, name));
        }
        Ok(LastBackup { row: Some(row), segments, file })
    }

    fn enter(&mut self, row: Option<DirectoryRow>) -> Result<(), WalkStop> {
        self.outbox.send(Event::Enter(Box::new(EnterDirectory {
            name: Vec::new(),
            stat: stat_of(Kind::Directory, 0o700, self.started),
            device: 0,
            extended: Extended::default(),
            untrusted: true,
            row,
            again: false,
            lent: None,
        })))
    }

    /// Sends the file, and returns the channel for its content.
    fn send_file(&mut self, name: &[u8], existed: bool) -> Result<Sender<Vec<FileContent>>, WalkStop> {
        let (sender, content) = bounded(CONTENT_AHEAD);
        let owner = rustix::process::geteuid().as_raw();
        let files = vec![NewFile { name: name.to_vec(), owner, existed, size: 0, tries: 0 }];
        self.outbox.send(Event::Files(Box::new(NewFiles { files, content })))?;
        self.outbox.flush()?;
        Ok(sender)
    }

    /// Reads standard input to its end.
    fn send_content(&mut self, content: &Sender<Vec<FileContent>>) -> Result<PipeContent, WalkStop> {
        let mut out = ContentSender::new(content);
        let mut sink = Sink::new(&mut out, self.lane, u64::MAX);
        match read_all(&mut sink, self.chunker, self.stop) {
            Ok(()) => {}
            Err(WalkStop::Gone) => return Err(WalkStop::Gone),
            Err(failed) => {
                // If the follower is gone, it has failed itself.
                let _ = content.send(vec![FileContent::BrokenOff]);
                return Err(failed);
            }
        }
        let (size, digest) = (sink.size(), sink.digest());
        let end = FileEnd {
            stat: Stat { size, ..stat_of(Kind::File, 0o600, self.started) },
            extended: Extended::default(),
            size,
            digest,
            changed: false,
            // No later backup may take it for unchanged.
            doubtful: true,
            wrong_size: false,
            deferred: false,
            lent: None,
        };
        let sent = out.send(FileContent::End(Box::new(end))).and_then(|()| out.flush());
        sent.map_err(|_| WalkStop::Gone)?;
        Ok(PipeContent { size, digest })
    }
}

/// The stat of a pipe's file or directory.
fn stat_of(kind: Kind, mode: u32, time: Timestamp) -> Stat {
    Stat {
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        size: 0,
        mtime: time,
        ctime: time,
        dev: 0,
        mount: 0,
        ino: 0,
        nlink: 1,
        rdev: 0,
        blocks: 0,
        nodump: false,
    }
}

/// The content of the file `name`, if it is the only entry.
fn content_of(items: &Items, name: &[u8]) -> Option<PipeContent> {
    let Items::Entries(entries) = items else { return None };
    let [entry] = entries.as_slice() else { return None };
    let digest = match &entry.content {
        Content::Chunk(chunk) => chunk.digest,
        Content::Extents { digest, .. } | Content::Nodes { digest, .. } => *digest,
        _ => Digest::of(&[]),
    };
    (entry.name == name && entry.kind == Kind::File).then_some(PipeContent { size: entry.size, digest })
}

fn read_all(sink: &mut Sink<'_, '_>, chunker: &Chunker, stop: &AtomicBool) -> Result<(), WalkStop> {
    let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(Error::Stdin)?;
    let mut input = Input { file: File::from(stdin), stop };
    let result = chunker.cut_stream(&mut input, &mut |piece| sink.piece(piece));
    // An interrupt also ends the program that fills the pipe, so the end of the pipe proves nothing then.
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted.into());
    }
    match result {
        Ok(_) => Ok(()),
        Err(ReadStop::Gone) => Err(WalkStop::Gone),
        Err(ReadStop::Broken(error)) => Err(error.into()),
        Err(ReadStop::Failed(why)) => Err(Error::Stdin(io::Error::other(why)).into()),
    }
}

/// Standard input, until it ends or the run is to stop.
struct Input<'s> {
    file: File,
    stop: &'s AtomicBool,
}

impl Read for Input<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: STOP_POLL };
            match poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(room),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
