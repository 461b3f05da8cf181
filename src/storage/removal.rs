//! Removal of many objects, one request for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::contract::Ended;
use super::error::Error;

/// Removes objects with `remove`, up to `lanes` at the same time. Begins no other removal once the target is away.
pub(super) fn one_by_one(
    lanes: usize,
    names: &[&str],
    remove: &(dyn Fn(&str) -> Result<(), Error> + Sync),
    ended: Ended<'_>,
) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let work = |results: Sender<(usize, Result<(), Error>)>| {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(at) else { break };
            let result = remove(name);
            if result.as_ref().is_err_and(Error::is_away) {
                next.fetch_max(names.len(), Ordering::Relaxed);
            }
            // The receiver outlives all threads.
            let _ = results.send((at, result));
        }
    };
    let (sender, results) = unbounded();
    thread::scope(|threads| {
        for _ in 1..lanes.min(names.len()) {
            let (work, sender) = (&work, sender.clone());
            // If no thread can be started, it only takes longer.
            let _ = thread::Builder::new().name("removal".into()).spawn_scoped(threads, move || work(sender));
        }
        work(sender);
    });
    let mut away = None;
    for (at, result) in results {
        match result {
            Err(error) if error.is_away() => _ = away.get_or_insert(error),
            result => ended(at, result),
        }
    }
    away.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn each_name_ends_once_and_none_begins_after_the_target_went_away() {
        let names: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fail = |kind, name: &str| Err(Error::new(kind, "remove", name, "as told"));
        for lanes in [0, 1, 3, 100] {
            let mut found = vec![None; names.len()];
            let remove = |name: &str| if name == "7" { fail(ErrorKind::PermissionDenied, name) } else { Ok(()) };
            one_by_one(lanes, &names, &remove, &mut |at, result| {
                assert_eq!(found[at].replace(result.map_err(|error| error.kind)), None);
            })
            .unwrap();
            let expected = |at| Some(if at == 7 { Err(ErrorKind::PermissionDenied) } else { Ok(()) });
            assert!(found.iter().enumerate().all(|(at, result)| *result == expected(at)), "{lanes}: {found:?}");
        }
        let tried = Mutex::new(Vec::new());
        let remove = |name: &str| {
            tried.lock().unwrap().push(name.to_owned());
            if name == "3" { fail(ErrorKind::Unavailable, name) } else { Ok(()) }
        };
        let mut ended = Vec::new();
        let away = one_by_one(1, &names, &remove, &mut |at, _| ended.push(at)).unwrap_err();
        assert_eq!((away.kind, ended, tried.lock().unwrap().len()), (ErrorKind::Unavailable, vec![0, 1, 2], 4));
    }
}
