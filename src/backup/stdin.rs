//! The backup of a pipe: standard input as the only file of a snapshot.
//!
//! It takes the walk's place: the same events, and content that is read here, in the walk's thread. The file is
//! noted as one that can't be known again, so the next backup reads all of its own input; what the
//! repository has of it is not stored again.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::bounded;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Error;
use super::event::{Content, End, Event, NewFile, NewFiles};
use super::read::{self, Lane, Out, ReadSetup, Sink};
use super::walk::{AHEAD, Known, Stop, Walk};
use crate::catalog::DirectoryId;
use crate::format::entry::Content as Stored;
use crate::format::{Digest, Items, Kind, Timestamp};
use crate::source::{Extended, Stat};

/// How long a wait for input may keep us from seeing that we are to stop, in nanoseconds.
const LOOK_UP: i64 = 100_000_000;

impl Walk<'_> {
    /// Sends a directory with one file `name` in it, whose content is standard input. `above` is the catalog's
    /// parent of the directory. If the input fails, nothing must become of it: how much is missing nobody knows.
    pub(super) fn stdin(
        &mut self,
        name: &[u8],
        above: DirectoryId,
        (reading, lane): (&ReadSetup, &Lane),
        started: Timestamp,
    ) -> Result<(), Stop> {
        // It has no inode to be found by, so only what stands at its own place counts.
        let row = self.past.directory(above, b"")?;
        let mut replaces = Vec::new();
        let mut before = None;
        if let Some(row) = &row {
            replaces = self.past.segment_ids(row.id)?;
            if let ([only], true) = (replaces.as_slice(), row.linked) {
                let node = self.past.segment_node(*only)?;
                before = node.and_then(|segment| content_of(&segment.node.items, name));
            }
        }
        let existed = before.is_some();
        let known = row.map(|row| Known { row, in_place: true, renumbered: false });
        let extended = (Extended::default(), started);
        self.enter(b"", &stat_of(Kind::Directory, 0o700, started), extended, known.as_ref())?;
        self.send(Event::NewSegment { replaces })?;
        let (sender, content) = bounded(AHEAD);
        let owner = rustix::process::geteuid().as_raw();
        let files = vec![NewFile { name: name.to_vec(), owner, existed, size: 0, tries: 0 }];
        self.send(Event::Files(Box::new(NewFiles { files, content })))?;
        self.send_batch()?;
        let mut out = Out::new(&sender);
        let mut sink = Sink::new(&mut out, lane, u64::MAX);
        match read_all(&mut sink, reading, self.stop) {
            Ok(()) => {}
            Err(Stop::Gone) => return Err(Stop::Gone),
            Err(failed) => {
                // If nobody listens any more, nobody needs to know.
                let _ = sender.send(vec![Content::BrokenOff]);
                return Err(failed);
            }
        }
        let (size, digest) = (sink.size, sink.digest());
        let stat = Stat { size, ..stat_of(Kind::File, 0o600, started) };
        if size == 0 {
            self.monitor.note("standard input was empty; the snapshot's file is, too");
        }
        self.counts.directories = 1;
        self.counts.files = 1;
        self.counts.bytes = size;
        match before == Some((size, digest)) {
            true => self.counts.unmodified = 1,
            false if existed => self.counts.changed = 1,
            false => self.counts.new = 1,
        }
        // Doubtful: no later look may take it for the same.
        let end = End {
            stat,
            extended: Extended::default(),
            size,
            digest,
            changed: false,
            doubtful: true,
            wrong_size: false,
            put_off: false,
            lent: None,
        };
        out.send(Content::End(Box::new(end))).and_then(|()| out.flush()).map_err(|_| Stop::Gone)?;
        self.send(Event::EndSegment)?;
        self.send(Event::Leave { removed: Vec::new() })
    }
}

/// What a pipe has no stat for.
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

/// Size and digest of the file, if it is the only entry.
fn content_of(items: &Items, name: &[u8]) -> Option<(u64, Digest)> {
    let Items::Entries(entries) = items else { return None };
    let [entry] = entries.as_slice() else { return None };
    let digest = match &entry.content {
        Stored::Chunk(chunk) => chunk.digest,
        Stored::Extents { digest, .. } | Stored::Nodes { digest, .. } => *digest,
        _ => Digest::of(&[]),
    };
    (entry.name == name && entry.kind == Kind::File).then_some((entry.size, digest))
}

fn read_all(sink: &mut Sink<'_, '_>, reading: &ReadSetup, stop: &AtomicBool) -> Result<(), Stop> {
    let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(Error::Stdin)?;
    let mut input = Input { file: File::from(stdin), stop };
    let result = reading.cutter.cut_stream(&mut input, &mut |piece| sink.piece(piece));
    // A pipe ends early when an interrupt ends those who fill it, so an end is none then.
    if stop.load(Ordering::Relaxed) {
        return Err(Stop::Failed(Error::Interrupted));
    }
    match result {
        Ok(_) => Ok(()),
        Err(read::Stop::Gone) => Err(Stop::Gone),
        Err(read::Stop::Broken(error)) => Err(Stop::Failed(error)),
        Err(read::Stop::Failed(why)) => Err(Stop::Failed(Error::Stdin(io::Error::other(why)))),
    }
}

/// Standard input, until it ends or we are to stop.
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
            let look_up = Timespec { tv_sec: 0, tv_nsec: LOOK_UP };
            match poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)], Some(&look_up)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(room),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
