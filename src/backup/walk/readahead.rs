//! A queue of work that helper threads do ahead of the walk.
//!
//! A walk that goes through a tree in order mostly waits: for the kernel, and on a cold disk for the disk. So it queues
//! its next tasks early, and helpers start on them. If no helper has started a task when the walk needs it, the walk does it
//! itself; it never waits for unstarted work.

use std::array;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most tasks whose results were not asked for yet. Further tasks are done when they are asked for.
const MOST: usize = 64;
/// The same for a level of the tree: those of upper levels stay unasked for as long as the walk is below.
const MOST_IN_LEVEL: usize = 16;
/// Most tasks that wait for a helper, also if the walk has done them. More wait only if no helper gets on.
const MOST_WAITING: usize = 4 * MOST;
/// Levels of a tree with a queue of their own.
const LEVELS: usize = 64;

/// The queue. Clones are the same queue.
#[derive(Clone, Default)]
pub(in crate::backup) struct Readahead(Arc<ReadaheadShared>);

#[derive(Default)]
struct ReadaheadShared {
    queue: Mutex<Queue>,
    more: Condvar,
}

struct Queue {
    /// Tasks by depth in the tree: the walk needs the deepest ones first.
    levels: [VecDeque<Arc<dyn Runnable>>; LEVELS],
    waiting: usize,
    /// Tasks whose results were not asked for yet, by depth, and of all.
    unasked_by_level: [usize; LEVELS],
    unasked: usize,
    closed: bool,
}

/// The future result of a task.
pub(in crate::backup) struct Later<T> {
    task: Arc<Task<T>>,
    /// The queue that counts it as not asked for, and its depth there.
    counted: Option<(Readahead, usize)>,
}

struct Task<T> {
    state: Mutex<TaskState<T>>,
    changed: Condvar,
}

enum TaskState<T> {
    Waiting(Box<dyn FnOnce() -> T + Send>),
    Begun,
    Done(T),
    /// The task panicked.
    Lost,
}

trait Runnable: Send + Sync {
    /// Does the task, unless another thread has started it.
    fn run_if_waiting(&self);
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            levels: array::from_fn(|_| VecDeque::new()),
            waiting: 0,
            unasked_by_level: [0; LEVELS],
            unasked: 0,
            closed: false,
        }
    }
}

impl Queue {
    /// The next task at `depth` or deeper.
    fn next(&mut self, depth: usize) -> Option<Arc<dyn Runnable>> {
        let next = self.levels.iter_mut().skip(depth.min(LEVELS - 1)).rev().find_map(VecDeque::pop_front);
        self.waiting -= usize::from(next.is_some());
        next
    }
}

impl Readahead {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the next task at `depth` or deeper. Returns whether there was one.
    fn help_once(&self, depth: usize) -> bool {
        let next = self.queue().next(depth);
        next.inspect(|task| task.run_if_waiting()).is_some()
    }

    /// Does tasks until [`Readahead::close`].
    pub(in crate::backup) fn help(&self) {
        loop {
            let idle = |queue: &mut Queue| !queue.closed && queue.waiting == 0;
            let mut queue = self.0.more.wait_while(self.queue(), idle).unwrap_or_else(PoisonError::into_inner);
            if queue.closed {
                return;
            }
            let next = queue.next(0);
            drop(queue);
            if let Some(task) = next {
                task.run_if_waiting();
            }
        }
    }

    /// Ends the helpers. Each finishes its current task.
    pub(in crate::backup) fn close(&self) {
        self.queue().closed = true;
        self.0.more.notify_all();
    }

    /// Queues `work` for a directory at this depth of the tree.
    pub(in crate::backup) fn send<T: Send + 'static>(
        &self,
        depth: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Later<T> {
        let task = Arc::new(Task { state: Mutex::new(TaskState::Waiting(Box::new(work))), changed: Condvar::new() });
        let (mut queue, level) = (self.queue(), depth.min(LEVELS - 1));
        let is_full = queue.unasked_by_level[level] >= MOST_IN_LEVEL || queue.unasked >= MOST;
        if is_full || queue.waiting >= MOST_WAITING {
            return Later { task, counted: None };
        }
        queue.unasked_by_level[level] += 1;
        queue.unasked += 1;
        queue.waiting += 1;
        queue.levels[level].push_back(task.clone());
        drop(queue);
        self.0.more.notify_one();
        Later { task, counted: Some((self.clone(), depth)) }
    }
}

impl<T: Send> Later<T> {
    /// A result that is available already.
    pub(in crate::backup) fn now(result: T) -> Self {
        Later {
            task: Arc::new(Task { state: Mutex::new(TaskState::Done(result)), changed: Condvar::new() }),
            counted: None,
        }
    }

    /// Does the task, or others at its depth or deeper until the result is there. `None` if the task panicked.
    pub(in crate::backup) fn get(self) -> Option<T> {
        self.task.run_if_waiting();
        let begun = |state: &mut TaskState<T>| matches!(state, TaskState::Begun);
        while begun(&mut self.task.state())
            && self.counted.as_ref().is_some_and(|(ahead, depth)| ahead.help_once(*depth))
        {}
        let state = self.task.changed.wait_while(self.task.state(), begun);
        match std::mem::replace(&mut *state.unwrap_or_else(PoisonError::into_inner), TaskState::Lost) {
            TaskState::Done(result) => Some(result),
            _ => None,
        }
    }
}

impl<T> Drop for Later<T> {
    fn drop(&mut self) {
        if let Some((ahead, depth)) = &self.counted {
            let mut queue = ahead.queue();
            queue.unasked_by_level[(*depth).min(LEVELS - 1)] -= 1;
            queue.unasked -= 1;
        }
    }
}

impl<T> Task<T> {
    fn state(&self) -> MutexGuard<'_, TaskState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, state: TaskState<T>) {
        *self.state() = state;
        self.changed.notify_all();
    }
}

impl<T: Send> Runnable for Task<T> {
    fn run_if_waiting(&self) {
        let mut state = self.state();
        if !matches!(*state, TaskState::Waiting(_)) {
            return;
        }
        let work = std::mem::replace(&mut *state, TaskState::Begun);
        drop(state);
        if let TaskState::Waiting(work) = work {
            let lost = PanicGuard(self);
            let result = work();
            std::mem::forget(lost);
            self.change(TaskState::Done(result));
        }
    }
}

/// Marks a task as lost when it is dropped, that is, on a panic.
struct PanicGuard<'p, T>(&'p Task<T>);

impl<T> Drop for PanicGuard<'_, T> {
    fn drop(&mut self) {
        self.0.change(TaskState::Lost);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_unstarted_task_is_done_by_the_thread_that_needs_it() {
        let ahead = Readahead::default();
        let here = thread::current().id();
        assert_eq!(ahead.send(0, move || thread::current().id() == here).get(), Some(true));
        assert_eq!(ahead.queue().unasked, 0);
    }

    #[test]
    fn helpers_take_the_deepest_and_oldest_tasks_first() {
        let ahead = Readahead::default();
        let (sender, order) = mpsc::channel();
        let later: Vec<_> = [(1, "c"), (9, "a"), (1, "d"), (9, "b"), (0, "e")]
            .map(|(depth, name)| {
                let sender = sender.clone();
                ahead.send(depth, move || sender.send(name).unwrap())
            })
            .into();
        thread::scope(|threads| {
            threads.spawn(|| ahead.help());
            assert_eq!(order.iter().take(5).collect::<String>(), "abcde");
            ahead.close();
        });
        assert!(later.into_iter().all(|later| later.get().is_some()));
    }

    #[test]
    fn the_walk_does_what_it_needs_next_while_it_waits() {
        let ahead = Readahead::default();
        let (begun, is_begun) = mpsc::channel();
        let (sender, other_is_done) = mpsc::channel();
        let first = ahead.send(1, move || {
            begun.send(()).unwrap();
            other_is_done.recv_timeout(Duration::from_secs(60)).is_ok()
        });
        thread::scope(|threads| {
            // It does the first task only, and waits for the second one in it.
            threads.spawn(|| ahead.help_once(1));
            is_begun.recv().unwrap();
            let above = ahead.send(0, || 1);
            let second = ahead.send(1, move || sender.send(()).unwrap());
            assert_eq!(first.get(), Some(true));
            assert_eq!(ahead.queue().waiting, 1);
            assert_eq!((second.get(), above.get()), (Some(()), Some(1)));
        });
    }

    #[test]
    fn tasks_beyond_the_bound_are_done_when_they_are_needed() {
        let ahead = Readahead::default();
        let later: Vec<_> = (0..2 * MOST).map(|n| ahead.send(n, move || n)).collect();
        assert_eq!(ahead.queue().waiting, MOST);
        assert!(later.into_iter().map(Later::get).eq((0..2 * MOST).map(Some)));
    }

    #[test]
    fn upper_levels_leave_room_for_deeper_ones() {
        let ahead = Readahead::default();
        let upper: Vec<_> = (0..MOST).map(|_| ahead.send(1, || 1)).collect();
        assert_eq!(ahead.queue().waiting, MOST_IN_LEVEL);
        let deeper = ahead.send(2, || 2);
        assert_eq!(ahead.queue().waiting, MOST_IN_LEVEL + 1);
        assert_eq!(deeper.get(), Some(2));
        drop(upper);
        let queue = ahead.queue();
        assert_eq!((queue.unasked, queue.unasked_by_level), (0, [0; LEVELS]));
    }

    #[test]
    fn without_helpers_the_queue_has_a_bound() {
        let ahead = Readahead::default();
        assert!((0..3 * MOST_WAITING).all(|n| ahead.send(1, move || n).get() == Some(n)));
        assert_eq!(ahead.queue().waiting, MOST_WAITING);
    }

    #[test]
    fn a_task_that_panicked_is_not_waited_for() {
        let ahead = Readahead::default();
        let later = ahead.send(0, || -> u8 { std::panic::resume_unwind(Box::new(())) });
        thread::scope(|threads| assert!(threads.spawn(|| ahead.help()).join().is_err()));
        assert!(later.get().is_none());
    }
}
