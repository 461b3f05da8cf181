//! How many threads serve a mount.
//!
//! Where few processes or little memory are allowed, a mount is slower and not dead: fewer threads serve it. Whether
//! they can be started is tried before anything is mounted, since a mount that nobody serves is worse than none.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::thread::{self, Builder};

use crossbeam_channel::{bounded, unbounded};

/// Most threads, however many processors there are.
const MOST: usize = 16;
/// Fewest, where nothing is short. More than processors: if the repository is far away, most of them wait.
const FEWEST: usize = 4;
/// Threads and processes that are needed besides: one that waits for those that serve, one for signals, and a helper that
/// unmounts.
const BESIDES: usize = 3;
/// Address space that a serving thread needs: the buffer for requests is 16 MiB, and blocks are decoded into others.
const ROOM: usize = 24 << 20;

/// How many threads can serve. An error says why none can.
pub(super) fn serving() -> io::Result<usize> {
    let wanted = thread::available_parallelism().map_or(1, usize::from).clamp(FEWEST, MOST);
    let (started, limit) = try_to_start(wanted + BESIDES);
    match (started.saturating_sub(BESIDES), limit) {
        (0, Some(error)) => Err(error),
        (threads, _) => Ok(threads.max(1)),
    }
}

/// Starts so many threads, which end at once. Returns how many could be had at the same time, and why no more.
fn try_to_start(count: usize) -> (usize, Option<io::Error>) {
    // They wait until this is dropped.
    let (hold, held) = bounded::<()>(0);
    let (tell, told) = unbounded();
    thread::scope(|scope| {
        let hold = hold;
        for number in 0..count {
            let (held, tell) = (held.clone(), tell.clone());
            let serves = number >= BESIDES;
            let probe = move || {
                let room = take_room(serves);
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
        (count, None)
    })
}

/// Takes what a thread needs that serves, or what one needs that does not.
fn take_room(serves: bool) -> io::Result<(Vec<u8>, [File; 2])> {
    let mut room = Vec::new();
    if serves {
        room.try_reserve_exact(ROOM).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    }
    Ok((black_box(room), [File::open("/dev/null")?, File::open("/dev/null")?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_short_all_threads_can_be_had() {
        assert!((FEWEST..=MOST).contains(&serving().unwrap()));
        assert!(matches!(try_to_start(0), (0, None)));
    }
}
