//! The backup of a pipe: standard input, or the output of a command, as the only file of a snapshot.
//!
//! It replaces the walk: the same events, and content that is read in the walk's thread. The file is marked as one that
//! can't be recognized, so the next backup reads all of its own input; content that the repository has is not stored again.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};

use super::event::{EnterDirectory, Event, NewFile, NewFiles};
use super::input::Input;
use super::outbox::Outbox;
use super::stop::WalkStop;
use super::tree::WalkCounts;
use crate::backup::error::Error;
use crate::backup::limits::CONTENT_AHEAD;
use crate::backup::options::Stream;
use crate::backup::read::content::{FileContent, FileEnd};
use crate::backup::read::lanes::Lane;
use crate::backup::read::sink::{ContentSender, ReadStop, Sink};
use crate::backup::read::verdict::Verdict;
use crate::catalog::{DirectoryRow, Parent, Past, SegmentId, SourceRow};
use crate::format::entry::Content;
use crate::format::{Digest, Items, Kind, Timestamp};
use crate::monitor::Monitor;
use crate::source::{Chunker, Extended, Stat};

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
    /// Sends a directory with one file, and returns the counts. If the input fails, no snapshot may be made of it: how much
    /// is missing is unknown.
    pub(in crate::backup) fn send(&mut self, stream: &Stream) -> Result<WalkCounts, WalkStop> {
        let name = stream.filename.as_bytes();
        let LastBackup { row, segments, file: before } = self.last_backup(name)?;
        self.enter(row)?;
        self.outbox.send(Event::NewSegment { replaces: segments })?;
        let content = self.send_file(name, before.is_some())?;
        let now = self.send_content(&content, stream)?;
        self.outbox.send(Event::EndSegment)?;
        self.outbox.send(Event::Leave { removed: Vec::new() })?;
        self.outbox.flush()?;
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

    /// Reads the input to its end.
    fn send_content(&mut self, content: &Sender<Vec<FileContent>>, stream: &Stream) -> Result<PipeContent, WalkStop> {
        let mut out = ContentSender::new(content);
        let mut sink = Sink::new(&mut out, self.lane, u64::MAX);
        match read_all(&mut sink, self.chunker, stream, self.monitor, self.stop) {
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
            // No later backup may take it for unchanged.
            verdict: Verdict { doubtful: true, ..Verdict::default() },
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

fn read_all(
    sink: &mut Sink<'_, '_>,
    chunker: &Chunker,
    stream: &Stream,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<(), WalkStop> {
    let mut input = Input::open(&stream.source, monitor, stop)?;
    let result = chunker.cut_stream(&mut input, &mut |piece| sink.piece(piece));
    match result {
        Ok(_) => input.finish()?,
        Err(ReadStop::Gone) => return Err(WalkStop::Gone),
        Err(ReadStop::Broken(error)) => return Err(error.into()),
        Err(ReadStop::Failed(_)) if stop.load(Ordering::Relaxed) => return Err(Error::Interrupted.into()),
        Err(ReadStop::Failed(why)) => return Err(Error::Stdin(io::Error::other(why)).into()),
    }
    match sink.size() == 0 && !stream.allow_empty {
        true => Err(Error::EmptyStream.into()),
        false => Ok(()),
    }
}
