//! The priority of a step: it is lowered for the step, and restored after it.

use std::io;

use crate::config::{IoClass, Priority};
use crate::sys::priority::{io_priority, nice, set_io_priority, set_nice};

/// The position of the class in the kernel's number.
const CLASS: i32 = 13;
const BEST_EFFORT: i32 = 2;
const IDLE: i32 = 3;

/// A lowered priority of this thread, and of threads and programs that it starts. It is restored on drop, as far as that is
/// allowed: the nice value only for root.
#[derive(Debug)]
pub(super) struct Lowered {
    nice: Option<i32>,
    io: Option<i32>,
}

impl Lowered {
    /// Lowers the priority. What cannot be lowered stays as it is, and is noted.
    pub(super) fn to(priority: Priority, note: impl Fn(&str)) -> Self {
        let done = |what: &str, result: io::Result<Option<i32>>| {
            result.unwrap_or_else(|error| {
                note(&format!("cannot set {what}: {error}"));
                None
            })
        };
        let nice = priority.nice.and_then(|value| done("the nice value", lower_nice(value.into())));
        let io = priority.io.and_then(|class| done("the I/O class", lower_io(class)));
        Lowered { nice, io }
    }
}

/// Returns the value before, if it was changed. A process that is nicer already stays so.
fn lower_nice(value: i32) -> io::Result<Option<i32>> {
    let before = nice()?;
    if before >= value {
        return Ok(None);
    }
    set_nice(value)?;
    Ok(Some(before))
}

fn lower_io(class: IoClass) -> io::Result<Option<i32>> {
    let before = io_priority()?;
    set_io_priority(match class {
        IoClass::Idle => IDLE << CLASS,
        IoClass::BestEffort(level) => BEST_EFFORT << CLASS | i32::from(level),
    })?;
    Ok(Some(before))
}

impl Drop for Lowered {
    fn drop(&mut self) {
        // Without the right to do this, the rest of the run is slower.
        let _ = self.nice.map(set_nice);
        let _ = self.io.map(set_io_priority);
    }
}
