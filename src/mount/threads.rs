//! How many threads serve a mount.
//!
//! Where few processes or little memory are allowed, a mount is slower and not dead: fewer threads serve it. Whether
//! they can be started is tried before anything is mounted, since a mount that nobody serves is worse than none.

use std::fs::File;
use std::hint::black_box;
use std::thread::{self, Builder};
use std::{io, iter};

use crossbeam_channel::{bounded, unbounded};

use crate::reader::Needs;

/// Most threads, however many processors there are.
const MOST: usize = 16;
/// Fewest, where nothing is short. More than processors: if the repository is far away, most of them wait.
const FEWEST: usize = 4;
/// Threads and processes that are needed besides: one that waits for those that serve, one for signals, and a helper that
/// unmounts.
const BESIDES: usize = 3;
/// Address space that a serving thread needs: the buffer for requests is 16 MiB, and blocks are decoded into others.
const ROOM: usize = 24 << 20;
/// Address space for the rest: small values on the heap, and stacks of other threads.
const SPARE: usize = 8 << 20;

/// How many threads can serve if the reader takes all that it needs. An error says why none can.
pub(super) fn serving(reader: &Needs) -> io::Result<usize> {
    // Held while threads are tried, since the reader takes it later: a failed allocation ends the process and leaves a
    // dead mount.
    let room = take(reader.bytes.saturating_add(SPARE))?;
    let wanted = thread::available_parallelism().map_or(1, usize::from).clamp(FEWEST, MOST);
    // The first ones are required. Without a prefetch thread, or a second one that serves, reads are slower.
    let mut rooms = vec![0; BESIDES];
    rooms.push(ROOM);
    rooms.extend(iter::repeat_n(0, reader.threads));
    rooms.extend(iter::repeat_n(ROOM, wanted - 1));
    let (started, limit) = try_to_start(&rooms);
    drop(room);
    match (started > BESIDES, limit) {
        (false, Some(error)) => Err(error),
        _ => Ok(1 + started.saturating_sub(BESIDES + 1 + reader.threads)),
    }
}

/// Starts one thread for each of these numbers. It takes that many bytes and waits until all were tried. Returns how many
/// threads could run at the same time, and the error that stopped the next one.
fn try_to_start(rooms: &[usize]) -> (usize, Option<io::Error>) {
    // They wait until this is dropped.
    let (hold, held) = bounded::<()>(0);
    let (tell, told) = unbounded();
    thread::scope(|scope| {
        let hold = hold;
        for (number, bytes) in rooms.iter().enumerate() {
            let (held, tell) = (held.clone(), tell.clone());
            let probe = move || {
                let room = take(*bytes).and_then(|room| Ok((room, take_files()?)));
                let _ = tell.send(room.as_ref().err().map(|error| io::Error::new(error.kind(), error.to_string())));
                let _ = held.recv();
            };
            let started = Builder::new().name("probe".into()).spawn_scoped(scope, probe);
            let failed = match started {
                Ok(_) => told.recv().ok().flatten(),
                Err(error) => Some(error),
            };
            if failed.is_some() {
                return (number, failed);
            }
        }
        drop(hold);
        (rooms.len(), None)
    })
}

/// Allocates this many bytes and does not touch them.
fn take(bytes: usize) -> io::Result<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    Ok(black_box(room))
}

/// Opens as many descriptors as a thread needs.
fn take_files() -> io::Result<[File; 2]> {
    Ok([File::open("/dev/null")?, File::open("/dev/null")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_short_all_threads_can_be_had() {
        assert!((FEWEST..=MOST).contains(&serving(&Needs { threads: 2, bytes: 64 << 20 }).unwrap()));
        assert!(matches!(try_to_start(&[]), (0, None)));
    }

    #[test]
    fn memory_that_the_reader_cannot_have_is_an_error() {
        for bytes in [usize::MAX, isize::MAX.unsigned_abs() - SPARE] {
            let error = serving(&Needs { threads: 2, bytes }).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
    }
}
