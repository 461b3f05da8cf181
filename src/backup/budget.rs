//! A loan of memory: who fills a buffer waits until there is room for it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

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
        let Shared { state, returned, limit } = &*self.0;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut State| !state.closed && state.lent > 0 && state.lent + bytes > *limit;
        let mut state = returned.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        state.lent += bytes;
        Some(Loan { budget: self.clone(), bytes })
    }

    /// Lets everyone who waits go away empty-handed.
    pub(super) fn close(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.returned.notify_all();
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Shared { state, returned, .. } = &*self.budget.0;
        state.lock().unwrap_or_else(PoisonError::into_inner).lent -= self.bytes;
        returned.notify_all();
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
