//! An LRU cache with a limit in bytes.
//!
//! Concurrent requests for a missing key load it once and share the result. All of them get the error if the load fails;
//! errors are not cached. If a load is given up, or panics, another one begins. A value larger than the whole cache is
//! returned and not cached.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// A value that counts against the limit of a cache.
pub(super) trait Weigh {
    /// Memory it uses, in bytes.
    fn weight(&self) -> usize;
}

/// Bytes per entry in addition to its value: list and table of the LRU, and the reference counts.
const OVERHEAD: usize = 128;

/// A cache of shared values.
pub(super) struct Cache<K, V, E> {
    state: Mutex<CacheState<K, V, E>>,
    limit: usize,
}

struct CacheState<K, V, E> {
    entries: LruCache<K, Arc<V>>,
    bytes: usize,
    loading: HashMap<K, Arc<Loading<V, E>>>,
}

/// A load in progress.
struct Loading<V, E> {
    end: Mutex<Option<End<V, E>>>,
    ended: Condvar,
}

/// How a load ended.
enum End<V, E> {
    Result(Result<Arc<V>, E>),
    GivenUp,
}

/// State of a value: cached, being loaded, or to be loaded by the caller.
enum Claim<'c, K: Hash + Eq + Clone, V: Weigh, E: Clone> {
    Cached(Arc<V>),
    /// The caller is to load it.
    Begun(Begun<'c, K, V, E>),
    /// Another thread loads it.
    Loading(Arc<Loading<V, E>>),
}

/// A load that was begun. If it is dropped without a result, threads that wait for the value load it themselves.
pub(super) struct Begun<'c, K: Hash + Eq + Clone, V: Weigh, E: Clone> {
    cache: &'c Cache<K, V, E>,
    key: K,
    loading: Arc<Loading<V, E>>,
    is_ended: bool,
}

impl<K: Hash + Eq + Clone, V: Weigh, E: Clone> Cache<K, V, E> {
    /// Creates a cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let state = CacheState { entries: LruCache::unbounded(), bytes: 0, loading: HashMap::new() };
        Cache { state: Mutex::new(state), limit }
    }

    /// The limit in bytes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a value is cached or being loaded.
    pub(super) fn has(&self, key: &K) -> bool {
        let state = self.state();
        state.entries.contains(key) || state.loading.contains_key(key)
    }

    /// Moves a cached value to the LRU tail if `is_done` returns true for it, and returns whether it did.
    pub(super) fn demote_if(&self, key: &K, is_done: impl FnOnce(&V) -> bool) -> bool {
        let mut state = self.state();
        let is_done = state.entries.peek(key).is_some_and(|value| is_done(value));
        if is_done {
            state.entries.demote(key);
        }
        is_done
    }

    fn state(&self) -> MutexGuard<'_, CacheState<K, V, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the value of `key`, loading it with `load` if it is not cached.
    pub(super) fn get(&self, key: &K, load: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let begun = loop {
            match self.claim(key) {
                Claim::Cached(value) => return Ok(value),
                Claim::Begun(begun) => break begun,
                Claim::Loading(loading) => {
                    if let Some(result) = loading.wait() {
                        return result;
                    }
                }
            }
        };
        begun.end(load().map(Arc::new))
    }

    /// Begins to load the value of `key`; `None` if it is cached or being loaded.
    pub(super) fn begin(&self, key: &K) -> Option<Begun<'_, K, V, E>> {
        match self.claim(key) {
            Claim::Begun(begun) => Some(begun),
            Claim::Cached(_) | Claim::Loading(_) => None,
        }
    }

    fn claim(&self, key: &K) -> Claim<'_, K, V, E> {
        let mut state = self.state();
        if let Some(value) = state.entries.get(key) {
            return Claim::Cached(value.clone());
        }
        if let Some(loading) = state.loading.get(key) {
            return Claim::Loading(loading.clone());
        }
        let loading = Arc::new(Loading { end: Mutex::new(None), ended: Condvar::new() });
        state.loading.insert(key.clone(), loading.clone());
        Claim::Begun(Begun { cache: self, key: key.clone(), loading, is_ended: false })
    }

    /// Whether the cached value of `key` is this one.
    pub(super) fn is_current(&self, key: &K, value: &Arc<V>) -> bool {
        self.state().entries.peek(key).is_some_and(|cached| Arc::ptr_eq(cached, value))
    }

    /// Removes the value of `key` if it still is this one.
    pub(super) fn remove(&self, key: &K, value: &Arc<V>) {
        let mut state = self.state();
        if state.entries.peek(key).is_some_and(|cached| Arc::ptr_eq(cached, value)) {
            state.entries.pop(key);
            state.bytes -= value.weight() + OVERHEAD;
        }
    }

    /// Caches the value of a load that ended, if it has one.
    fn finish(&self, key: &K, value: Option<&Arc<V>>) {
        let mut state = self.state();
        state.loading.remove(key);
        let Some(value) = value else { return };
        let weight = value.weight() + OVERHEAD;
        if weight > self.limit {
            return;
        }
        state.bytes += weight;
        if let Some((_, old)) = state.entries.push(key.clone(), value.clone()) {
            state.bytes -= old.weight() + OVERHEAD;
        }
        while state.bytes > self.limit {
            match state.entries.pop_lru() {
                Some((_, old)) => state.bytes -= old.weight() + OVERHEAD,
                None => break,
            }
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state().bytes
    }
}

impl<V, E: Clone> Loading<V, E> {
    /// Waits for the result; `None` if the load was given up.
    fn wait(&self) -> Option<Result<Arc<V>, E>> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.ended.wait_while(end, |end| end.is_none()).unwrap_or_else(PoisonError::into_inner);
        match &*end {
            Some(End::Result(result)) => Some(result.clone()),
            Some(End::GivenUp) | None => None,
        }
    }

    fn end(&self, end: End<V, E>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.ended.notify_all();
    }
}

impl<K: Hash + Eq + Clone, V: Weigh, E: Clone> Begun<'_, K, V, E> {
    /// Ends the load. All threads that wait get the result.
    pub(super) fn end(mut self, result: Result<Arc<V>, E>) -> Result<Arc<V>, E> {
        self.cache.finish(&self.key, result.as_ref().ok());
        self.loading.end(End::Result(result.clone()));
        self.is_ended = true;
        result
    }
}

impl<K: Hash + Eq + Clone, V: Weigh, E: Clone> Drop for Begun<'_, K, V, E> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.cache.finish(&self.key, None);
            self.loading.end(End::GivenUp);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    impl Weigh for Vec<u8> {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    type ByteCache = Cache<u32, Vec<u8>, &'static str>;

    fn get(cache: &ByteCache, key: u32, length: usize) -> Arc<Vec<u8>> {
        cache.get(&key, || Ok(vec![0; length])).unwrap()
    }

    #[test]
    fn bytes_are_bounded_and_the_least_recently_used_are_dropped_first() {
        let cache = ByteCache::new(3 * (100 + OVERHEAD));
        for key in 0..10 {
            get(&cache, key, 100);
            get(&cache, 0, 100);
            assert!(cache.bytes() <= cache.limit);
        }
        let loads = AtomicUsize::new(0);
        let probe = |key| {
            cache
                .get(&key, || {
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok(vec![])
                })
                .unwrap()
        };
        assert_eq!((probe(0).len(), probe(9).len()), (100, 100));
        assert_eq!(loads.load(Ordering::Relaxed), 0);
        probe(1);
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_value_is_removed_only_once() {
        let cache = ByteCache::new(10_000);
        let old = get(&cache, 1, 100);
        cache.remove(&1, &old);
        assert_eq!(cache.bytes(), 0);
        let new = get(&cache, 1, 200);
        cache.remove(&1, &old);
        assert!(Arc::ptr_eq(&get(&cache, 1, 5), &new));
    }

    #[test]
    fn a_value_larger_than_the_cache_is_returned_and_not_cached() {
        let cache = ByteCache::new(100);
        assert_eq!(get(&cache, 1, 1000).len(), 1000);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_miss_is_loaded_once_and_an_error_is_not_cached() {
        let cache = ByteCache::new(10_000);
        let (asked, loads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        while asked.load(Ordering::Relaxed) < 8 {
                            std::thread::yield_now();
                        }
                        Ok(vec![7])
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(*cache.get(&1, load).unwrap(), [7]);
                });
            }
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert_eq!(cache.get(&2, || Err("no")), Err("no"));
        assert_eq!(get(&cache, 2, 5).len(), 5);
    }

    #[test]
    fn a_load_that_is_given_up_or_panics_is_made_by_a_thread_that_waits() {
        let cache = ByteCache::new(10_000);
        let begun = cache.begin(&1).unwrap();
        assert!(cache.has(&1) && cache.begin(&1).is_none());
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| get(&cache, 1, 7));
            drop(begun);
            assert_eq!(waiting.join().unwrap().len(), 7);
            let panicked = threads.spawn(|| cache.get(&2, || panic!("a test"))).join();
            assert!(panicked.is_err() && !cache.has(&2));
        });
        let begun = cache.begin(&3).unwrap();
        assert_eq!(begun.end(Err("no")), Err("no"));
        assert_eq!(get(&cache, 3, 5).len(), 5);
    }
}
