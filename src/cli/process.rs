//! What the process asks of the system before it does anything.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kernel::keep_heap_small;

/// Keeps secrets out of core dumps, and allows as many open files as the system does: a walk holds each
/// directory between the root and where it is. Where that is refused, things still work, less deep. SIGUSR1, which asks
/// how far a run is, would end the process by default: where nothing runs yet, it is passed over.
pub(super) fn prepare() {
    keep_heap_small();
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::default());
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
}
