//! Loans of memory: a thread that fills a buffer waits until there is room for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be held at once. Clones are the same budget.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    returned: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    lent: usize,
    closed: bool,
    /// Threads that wait: to wake nobody costs a system call, too.
    waiting: usize,
    /// Files up to this number need not wait.
    served: u64,
}

/// Bytes that were lent. They are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Loan {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Budget(Arc::new(Shared { state: Mutex::default(), returned: Condvar::new(), limit }))
    }

    /// Waits until `bytes` are free and takes them; none if the budget was closed. A loan above the limit
    /// is granted when nothing else is lent.
    pub(super) fn take(&self, bytes: usize) -> Option<Loan> {
        self.take_for(u64::MAX, bytes)
    }

    /// The same for a file that is being read. Files are read in any order and taken in that of their numbers, so the
    /// one that is taken next must not wait for loans of those after it: see [`Budget::serve`].
    pub(super) fn take_for(&self, number: u64, bytes: usize) -> Option<Loan> {
        let mut state = self.state();
        while !state.closed && number > state.served && self.is_full(&state, bytes) {
            state.waiting += 1;
            state = self.0.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        (!state.closed).then(|| self.lend(&mut state, bytes))
    }

    /// Takes `bytes` if they are free now.
    pub(super) fn try_take(&self, bytes: usize) -> Option<Loan> {
        let mut state = self.state();
        (!state.closed && !self.is_full(&state, bytes)).then(|| self.lend(&mut state, bytes))
    }

    /// Says that file `number` is taken now: up to it, none waits for a loan.
    pub(super) fn serve(&self, number: u64) {
        let mut state = self.state();
        state.served = number;
        self.wake(&state);
    }

    /// Wakes all threads that wait; they get nothing, now or later.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.wake(&state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, state: &State, bytes: usize) -> bool {
        state.lent > 0 && state.lent + bytes > self.0.limit
    }

    fn lend(&self, state: &mut State, bytes: usize) -> Loan {
        state.lent += bytes;
        Loan { budget: self.clone(), bytes }
    }

    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.0.returned.notify_all();
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.lent -= self.bytes;
        self.budget.wake(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back() {
        let budget = Budget::new(10);
        let first = budget.take(6).unwrap();
        let second = budget.take(4).unwrap();
        std::thread::scope(|threads| {
            let third = threads.spawn(|| budget.take(6).map(drop));
            drop((first, second));
            assert!(third.join().unwrap().is_some());
        });
        assert_eq!(budget.0.state.lock().unwrap().lent, 0);
    }

    #[test]
    fn more_than_there_is_is_lent_alone() {
        let budget = Budget::new(10);
        let large = budget.take(1000).unwrap();
        std::thread::scope(|threads| {
            let small = threads.spawn(|| budget.take(1).is_some());
            drop(large);
            assert!(small.join().unwrap());
        });
    }

    #[test]
    fn the_file_that_is_taken_next_waits_for_no_other() {
        let budget = Budget::new(10);
        let later = budget.take_for(9, 10).unwrap();
        assert!(budget.try_take(1).is_none());
        std::thread::scope(|threads| {
            let next = threads.spawn(|| budget.take_for(3, 100).is_some());
            budget.serve(3);
            assert!(next.join().unwrap());
        });
        drop(later);
        assert!(budget.try_take(10).is_some());
        assert_eq!(budget.state().waiting, 0);
    }

    #[test]
    fn nobody_waits_for_a_closed_budget() {
        let budget = Budget::new(10);
        let held = budget.take(10);
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| budget.take(1).is_none());
            budget.close();
            assert!(waiting.join().unwrap());
        });
        assert!(budget.take(1).is_none());
        drop(held);
    }
}
