//! Memory budgets: a thread takes a loan before it fills a buffer, and waits until there is room.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be held at once. Clones are the same budget.
#[derive(Debug, Clone)]
pub(in crate::backup) struct Budget(Arc<BudgetShared>);

#[derive(Debug)]
struct BudgetShared {
    state: Mutex<BudgetState>,
    returned: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct BudgetState {
    lent: usize,
    closed: bool,
    /// Threads that wait. A notification costs a system call even if there are none.
    waiting: usize,
    /// Files up to this number need not wait.
    served: u64,
}

/// A loan of bytes. They are given back when it is dropped.
#[derive(Debug)]
pub(in crate::backup) struct Loan {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(in crate::backup) fn new(limit: usize) -> Self {
        Budget(Arc::new(BudgetShared { state: Mutex::default(), returned: Condvar::new(), limit }))
    }

    /// Waits until `bytes` are free and takes them. `None` if the budget is closed. A loan above the limit is granted when
    /// there are no other loans.
    pub(in crate::backup) fn take(&self, bytes: usize) -> Option<Loan> {
        self.take_for(u64::MAX, bytes)
    }

    /// The same for a file that is being read. Files are read in any order and taken in the order of their numbers, so the
    /// next one to be taken must not wait for loans of later ones: see [`Budget::serve`].
    pub(in crate::backup) fn take_for(&self, number: u64, bytes: usize) -> Option<Loan> {
        let mut state = self.state();
        while !state.closed && number > state.served && self.is_full(&state, bytes) {
            state.waiting += 1;
            state = self.0.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        (!state.closed).then(|| self.lend(&mut state, bytes))
    }

    /// Takes `bytes` if they are free, without waiting.
    pub(in crate::backup) fn try_take(&self, bytes: usize) -> Option<Loan> {
        let mut state = self.state();
        (!state.closed && !self.is_full(&state, bytes)).then(|| self.lend(&mut state, bytes))
    }

    /// Notes that file `number` is being taken: files up to it get loans at once.
    pub(in crate::backup) fn serve(&self, number: u64) {
        let mut state = self.state();
        state.served = number;
        self.wake(&state);
    }

    /// Wakes all waiting threads. No loan is granted from here on.
    pub(in crate::backup) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.wake(&state);
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, state: &BudgetState, bytes: usize) -> bool {
        state.lent > 0 && state.lent + bytes > self.0.limit
    }

    fn lend(&self, state: &mut BudgetState, bytes: usize) -> Loan {
        state.lent += bytes;
        Loan { budget: self.clone(), bytes }
    }

    fn wake(&self, state: &BudgetState) {
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
    fn loans_are_given_back() {
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
    fn a_loan_above_the_limit_is_granted_alone() {
        let budget = Budget::new(10);
        let large = budget.take(1000).unwrap();
        std::thread::scope(|threads| {
            let small = threads.spawn(|| budget.take(1).is_some());
            drop(large);
            assert!(small.join().unwrap());
        });
    }

    #[test]
    fn the_next_file_does_not_wait_for_later_ones() {
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
    fn a_closed_budget_wakes_all_threads() {
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
