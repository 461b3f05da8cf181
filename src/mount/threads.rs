//! The number of threads that serve a mount.
//!
//! Under tight limits on processes or memory fewer threads serve the mount, which makes it slower. Whether they can be
//! started is tried before mounting, since a mount without a server is worse than an error.

use std::fs::File;
use std::hint::black_box;
use std::thread::{self, Builder};
use std::{io, iter};

use crossbeam_channel::{bounded, unbounded};

use crate::archive::Needs;

/// Maximum number of threads.
const MAX_THREADS: usize = 16;
/// Minimum number of threads, unless limits allow fewer. It may exceed the number of processors, since threads wait for a
/// slow repository.
const MIN_THREADS: usize = 4;
/// Other threads and processes: the session thread, the signal thread, and the helper that unmounts.
const OTHERS: usize = 3;
/// Address space of a serving thread, in bytes: 16 MiB for requests, the rest for decoding blocks.
const ROOM: usize = 24 << 20;
/// Address space for small values on the heap and for stacks of other threads, in bytes.
const SPARE: usize = 8 << 20;
/// Address space of a thread that starts, in bytes: its stack, and what the standard library allocates in it.
const START: usize = (2 << 20) + (1 << 18);

/// Returns the number of threads that can serve if the archive uses its maximum; an error if none can.
pub(super) fn serving(archive: &Needs) -> io::Result<usize> {
    // Held while threads are tried, because the archive allocates it later, when a failed allocation would abort the
    // process and leave a dead mount.
    let room = take(archive.bytes.saturating_add(SPARE))?;
    let wanted = thread::available_parallelism().map_or(1, usize::from).clamp(MIN_THREADS, MAX_THREADS);
    // The first ones are required. With fewer prefetch threads or a single serving thread, reads are only slower.
    let mut rooms = vec![0; OTHERS];
    rooms.push(ROOM);
    rooms.extend(iter::repeat_n(0, archive.threads));
    rooms.extend(iter::repeat_n(ROOM, wanted - 1));
    let (started, limit) = try_to_start(&rooms);
    drop(room);
    match (started > OTHERS, limit) {
        (false, Some(error)) => Err(error),
        _ => Ok(1 + started.saturating_sub(OTHERS + 1 + archive.threads)),
    }
}

/// Starts one thread per element, which allocates that many bytes and waits for the others. Returns how many threads
/// could run at the same time, and the error of the next one.
fn try_to_start(rooms: &[usize]) -> (usize, Option<io::Error>) {
    // The threads wait until `hold` is dropped.
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
            // A thread whose stack takes the last memory would end the process when it starts.
            let started = take(START).and_then(|room| {
                drop(room);
                Builder::new().name("probe".into()).spawn_scoped(scope, probe)
            });
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

/// Allocates this many bytes without touching them.
fn take(bytes: usize) -> io::Result<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    Ok(black_box(room))
}

/// Opens as many descriptors as a thread needs: a copy of /dev/fuse, the directory of the repository, and an object.
fn take_files() -> io::Result<[File; 3]> {
    let open = || File::open("/dev/null");
    Ok([open()?, open()?, open()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_limits_all_threads_can_be_started() {
        assert!((MIN_THREADS..=MAX_THREADS).contains(&serving(&Needs { threads: 2, bytes: 64 << 20 }).unwrap()));
        assert!(matches!(try_to_start(&[]), (0, None)));
    }

    #[test]
    fn too_little_memory_for_the_archive_is_an_error() {
        for bytes in [usize::MAX, isize::MAX.unsigned_abs() - SPARE] {
            let error = serving(&Needs { threads: 2, bytes }).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
    }
}
