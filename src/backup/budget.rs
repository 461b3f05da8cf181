//! A loan of memory: who fills a buffer waits until there is room for it.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that may be held at once.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    returned: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    lent: usize,
    closed: bool,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Budget { state: Mutex::default(), returned: Condvar::new(), limit }
    }

    /// Waits until `bytes` are free and takes them; false if the budget was closed. A loan above the limit
    /// is granted when nothing else is lent.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut State| !state.closed && state.lent > 0 && state.lent + bytes > self.limit;
        let mut state = self.returned.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        state.lent += bytes;
        !state.closed
    }

    /// Gives `bytes` back.
    pub(super) fn give_back(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lent = state.lent.saturating_sub(bytes);
        self.returned.notify_one();
    }

    /// Lets everyone who waits go away empty-handed.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.returned.notify_all();
    }
}
