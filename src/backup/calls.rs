//! System calls on the source that do not return.
//!
//! A call to a server, or to a FUSE program, may never return, and a thread that waits in the kernel can't be killed. So each
//! thread notes a call before it makes it, and a watcher thread reports paths that do not answer for long. If such a call
//! keeps the run from stopping, the run commits what it has, and the process exits.
//!
//! A note costs an uncontended lock and a copy of the names; each further name costs two stores.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::monitor::Monitor;
use crate::source::SharedPath;

/// Calls that can be noted at once: more than there are threads.
const MOST: usize = 64;

/// Bytes that suffice for most names with their NUL.
const NAME_LENGTH: usize = 24;

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallTimeouts {
    /// Until its path is reported.
    silence: Duration,
    /// Until a run that is to stop abandons it.
    stopping: Duration,
    /// Until a run that has abandoned it ends without a commit.
    commit: Duration,
    /// Time between two checks.
    poll: Duration,
}

impl Default for CallTimeouts {
    fn default() -> Self {
        CallTimeouts {
            silence: Duration::from_secs(30),
            stopping: Duration::from_secs(5),
            commit: Duration::from_secs(10),
            poll: Duration::from_millis(500),
        }
    }
}

/// The calls of one run.
pub(super) struct Calls {
    slots: [CallSlot; MOST],
    timeouts: CallTimeouts,
    /// The run no longer waits for calls that keep it from stopping.
    abandoned: AtomicBool,
    closed: Mutex<bool>,
    changed: Condvar,
}

#[derive(Default)]
struct CallSlot {
    /// The call; `None` if the slot is free.
    asked: Mutex<Option<Asked>>,
    /// The number of the name that the call is about.
    at: AtomicUsize,
    /// Changes with each call. Odd during a call.
    step: AtomicU64,
}

struct Asked {
    directory: SharedPath,
    /// Names in it, NUL-terminated. Empty if the call is about the directory itself.
    names: Vec<u8>,
}

impl Asked {
    fn path(&self, at: usize) -> PathBuf {
        let mut path = self.directory.to_path();
        if let Some(name) = self.names.split(|byte| *byte == 0).nth(at).filter(|name| !name.is_empty()) {
            path.push(OsStr::from_bytes(name));
        }
        path
    }
}

impl CallSlot {
    fn asked(&self) -> MutexGuard<'_, Option<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called only by the thread that has the slot.
    fn advance(&self, steps: u64) {
        self.step.store(self.step.load(Ordering::Relaxed).wrapping_add(steps), Ordering::Relaxed);
    }
}

/// Calls of one thread, one after the other. The last one ends when this is dropped.
pub(super) struct NotedCall<'c>(Option<&'c CallSlot>);

impl NotedCall<'_> {
    /// Goes on to the call about the next name.
    pub(super) fn next(&self) {
        if let Some(slot) = self.0 {
            slot.at.store(slot.at.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            slot.advance(2);
        }
    }

    /// Does `work` that makes no call to the source.
    pub(super) fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        if let Some(slot) = self.0 {
            slot.advance(1);
        }
        let result = work();
        if let Some(slot) = self.0 {
            slot.advance(1);
        }
        result
    }
}

impl Drop for NotedCall<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            *slot.asked() = None;
            slot.advance(1);
        }
    }
}

impl Default for Calls {
    fn default() -> Self {
        Calls::with(CallTimeouts::default())
    }
}

impl Calls {
    fn with(timeouts: CallTimeouts) -> Self {
        Calls {
            slots: std::array::from_fn(|_| CallSlot::default()),
            timeouts,
            abandoned: AtomicBool::new(false),
            closed: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Notes a call about a directory.
    pub(super) fn about(&self, directory: SharedPath) -> NotedCall<'_> {
        self.about_names(directory, [])
    }

    /// Notes calls about names in a directory, one after the other: see [`NotedCall::next`].
    pub(super) fn about_names<'n>(
        &self,
        directory: SharedPath,
        names: impl IntoIterator<Item = &'n OsStr>,
    ) -> NotedCall<'_> {
        /// The slot where a thread starts to search for a free one.
        fn first() -> usize {
            static THREADS: AtomicUsize = AtomicUsize::new(0);
            thread_local!(static FIRST: usize = THREADS.fetch_add(1, Ordering::Relaxed));
            FIRST.with(|first| *first)
        }
        for slot in self.slots.iter().cycle().skip(first() % MOST).take(MOST) {
            let Ok(mut asked) = slot.asked.try_lock() else { continue };
            if asked.is_none() {
                let names = names.into_iter();
                let mut all = Vec::with_capacity(names.size_hint().0 * NAME_LENGTH);
                for name in names {
                    all.extend_from_slice(name.as_bytes());
                    all.push(0);
                }
                *asked = Some(Asked { directory, names: all });
                slot.at.store(0, Ordering::Relaxed);
                slot.advance(1);
                return NotedCall(Some(slot));
            }
        }
        NotedCall(None)
    }

    /// Whether the run must end while a call has not returned.
    pub(super) fn are_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Waits for a message. `None` if the channel is closed, or once calls are abandoned.
    pub(super) fn receive<T>(&self, messages: &Receiver<T>) -> Option<T> {
        while !self.are_abandoned() {
            match messages.recv_timeout(self.timeouts.poll) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    /// Watches the calls until [`Calls::close`].
    pub(super) fn watch(&self, monitor: &dyn Monitor, stop: &AtomicBool) {
        let mut seen = [(0, Instant::now(), false); MOST];
        let (mut stopping, mut abandoned): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = self.changed.wait_timeout_while(closed, self.timeouts.poll, |closed| !*closed);
            if *wait.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            if stop.load(Ordering::Relaxed) {
                stopping.get_or_insert_with(Instant::now);
            }
            for (slot, (step, since, said)) in self.slots.iter().zip(&mut seen) {
                let now = slot.step.load(Ordering::Relaxed);
                if now != *step || now % 2 == 0 {
                    (*step, *since, *said) = (now, Instant::now(), false);
                    continue;
                }
                let is_over = |start: Instant, time| start.elapsed() >= time;
                if !*said && stopping.is_none() && is_over(*since, self.timeouts.silence) {
                    *said = true;
                    if let Some(path) = self.path(slot) {
                        let time = self.timeouts.silence.as_secs();
                        monitor.note(&format!(
                            "{} has not answered for {time} s; the backup waits for it",
                            path.display()
                        ));
                    }
                }
                let stuck = is_over(*since, self.timeouts.stopping);
                if stuck && stopping.is_some_and(|start| is_over(start, self.timeouts.stopping)) {
                    self.abandoned.store(true, Ordering::Relaxed);
                    let start = *abandoned.get_or_insert_with(Instant::now);
                    if is_over(start, self.timeouts.commit) {
                        self.leave(monitor);
                    }
                }
            }
        }
    }

    fn path(&self, slot: &CallSlot) -> Option<PathBuf> {
        slot.asked().as_ref().map(|asked| asked.path(slot.at.load(Ordering::Relaxed)))
    }

    /// Tells the monitor about an abandoned call. It may end the process.
    pub(super) fn leave(&self, monitor: &dyn Monitor) {
        let is_busy = |slot: &&CallSlot| slot.step.load(Ordering::Relaxed) % 2 == 1;
        if let Some(path) = self.slots.iter().filter(is_busy).find_map(|slot| self.path(slot)) {
            monitor.hangs(&path);
        }
    }

    /// Ends [`Calls::watch`].
    pub(super) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::*;

    /// A monitor that keeps its messages.
    #[derive(Default)]
    struct Told {
        notes: Mutex<Vec<String>>,
        hangs: Mutex<Vec<PathBuf>>,
    }

    impl Monitor for Told {
        fn problem(&self, _path: &Path, _message: &str) {}
        fn note(&self, message: &str) {
            self.notes.lock().unwrap().push(message.to_owned());
        }
        fn entry(&self, _path: &Path, _what: &str) {}
        fn hangs(&self, path: &Path) {
            self.hangs.lock().unwrap().push(path.to_owned());
        }
    }

    fn names(names: [&'static str; 2]) -> [&'static OsStr; 2] {
        names.map(OsStr::new)
    }

    /// Runs `work` while its calls are watched, until a condition holds.
    fn watched(timeouts: CallTimeouts, stop: bool, work: impl FnOnce(&Calls, &Told)) -> Told {
        let (calls, told, stop) = (Calls::with(timeouts), Told::default(), AtomicBool::new(stop));
        thread::scope(|threads| {
            threads.spawn(|| calls.watch(&told, &stop));
            work(&calls, &told);
            calls.close();
        });
        told
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "the watch does nothing");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a call that begins now is reported: a message about an earlier one would come before.
    fn wait_for_another(calls: &Calls, told: &Told) {
        let _call = calls.about(SharedPath::from(Path::new("/another")));
        wait_until(|| told.notes.lock().unwrap().iter().any(|note| note.starts_with("/another")));
    }

    const LONG: Duration = Duration::from_secs(10_000);
    const SHORT: Duration = Duration::from_millis(5);
    const QUICK: CallTimeouts = CallTimeouts { silence: SHORT, stopping: SHORT, commit: SHORT, poll: SHORT };

    #[test]
    fn a_path_that_does_not_answer_is_named_once() {
        let told = watched(QUICK, false, |calls, told| {
            let path = SharedPath::from(Path::new("/d"));
            let call = calls.about_names(path.clone(), names(["a", "b"]));
            call.next();
            wait_until(|| told.notes.lock().unwrap().len() == 1);
            wait_for_another(calls, told);
            assert_eq!(told.notes.lock().unwrap().len(), 2);
            drop(call);
            let _other = calls.about(path);
            wait_until(|| told.notes.lock().unwrap().len() == 3);
        });
        let notes = told.notes.into_inner().unwrap();
        assert!(notes[0].starts_with("/d/b has not answered for ") && notes[2].starts_with("/d has not answered for "));
        assert!(told.hangs.into_inner().unwrap().is_empty());
    }

    #[test]
    fn other_work_may_take_long() {
        watched(CallTimeouts { stopping: LONG, ..QUICK }, false, |calls, told| {
            let call = calls.about(SharedPath::from(Path::new("/d")));
            call.pause(|| {
                // On a busy machine, the call itself may have taken long.
                let notes = || told.notes.lock().unwrap().iter().filter(|note| note.starts_with("/d")).count();
                let before = notes();
                wait_for_another(calls, told);
                assert_eq!(notes(), before);
            });
        });
    }

    #[test]
    fn a_run_that_is_to_stop_abandons_a_call_that_hangs() {
        let told = watched(QUICK, true, |calls, told| {
            let _call = calls.about(SharedPath::from(Path::new("/d")));
            wait_until(|| calls.are_abandoned());
            wait_until(|| !told.hangs.lock().unwrap().is_empty());
        });
        assert_eq!(told.hangs.into_inner().unwrap()[0], Path::new("/d"));
    }

    #[test]
    fn more_calls_than_are_noted_do_no_harm() {
        let calls = Calls::default();
        let path = SharedPath::from(Path::new("/d"));
        let all: Vec<_> = (0..2 * MOST).map(|_| calls.about(path.clone())).collect();
        all.iter().for_each(NotedCall::next);
        drop(all);
        assert!(calls.slots.iter().all(|slot| slot.asked().is_none() && slot.step.load(Ordering::Relaxed) % 2 == 0));
    }
}
