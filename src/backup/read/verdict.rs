//! Whether a file changed while it was read, and whether to read it again later.
//!
//! Changes are found by comparing the time stamps before and after. The kernel sets stamps when a writing call begins, or
//! when a mapped page is first written to, and the bytes arrive later. So a file that was stamped in the last minute, and
//! that a process may be writing to, is read twice, and the next backup does not trust its stamps. A single writing call
//! that takes longer than a minute is not detected.
//!
//! A mapped page that is dirty is written to without new stamps, until the kernel has written it back: after half a minute,
//! or later if the disk is slow. So for a file that was stamped in the last hour, writeback is started before it is read.

use std::time::Duration;

/// The reasons for which a file may be deferred. The default is none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::backup) struct Patience {
    /// It changed while it was read, or was missing or replaced before.
    pub(in crate::backup) changed: bool,
    /// Its stamps are fresh, and will not be after at most this time.
    pub(in crate::backup) fresh: Duration,
}

/// Observations of a file before, while and after it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observation {
    /// Kind, size, stamps and inode were the same before and after.
    pub(super) same: bool,
    /// The size before.
    pub(super) expected_size: u64,
    /// Bytes that were read, holes included.
    pub(super) size: u64,
    /// The file was read to its end, regardless of its size.
    pub(super) is_unsized: bool,
    /// One more change could leave the same stamps for this time after the reading began.
    pub(super) fresh: Option<Duration>,
    /// A process may have been writing to it.
    pub(super) written_to: bool,
}

/// The judgement of a file that was read. The default is that of a file that kept still.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::backup) struct Verdict {
    /// It looked different afterwards, so the content may mix two states.
    pub(in crate::backup) changed: bool,
    /// A change after it was read may leave no trace: it has only just been changed, or a process may still be writing to it.
    pub(in crate::backup) doubtful: bool,
    /// It ended elsewhere than its size says, and did not change.
    pub(in crate::backup) wrong_size: bool,
    /// It is to be read again later.
    pub(in crate::backup) deferred: bool,
}

impl Observation {
    /// Judges a file. If its stamps prove nothing and it is not deferred anyway, calls `differs` to read it a second time:
    /// content that is equal twice did not change in between.
    pub(super) fn verdict<E>(
        &self,
        patience: Patience,
        differs: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Verdict, E> {
        let Observation { same, expected_size, size, is_unsized, fresh, written_to } = *self;
        let doubtful = fresh.is_some() || written_to;
        // A change of the size shows in the stamps, unless these are fresh. If they did not change, the size was wrong.
        let wrong_size = size != expected_size && (is_unsized || !doubtful);
        if !same || size != expected_size && !wrong_size {
            return Ok(Verdict { changed: true, doubtful, wrong_size, deferred: patience.changed });
        }
        let is_too_fresh = !wrong_size && fresh.is_some_and(|left| left <= patience.fresh);
        if is_too_fresh {
            return Ok(Verdict { changed: false, doubtful, wrong_size, deferred: true });
        }
        let changed = doubtful && !wrong_size && size > 0 && differs()?;
        Ok(Verdict { changed, doubtful, wrong_size, deferred: changed && patience.changed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STILL: Observation =
        Observation { same: true, expected_size: 9, size: 9, is_unsized: false, fresh: None, written_to: false };
    const FRESH: Observation = Observation { fresh: Some(Duration::from_millis(10)), ..STILL };
    const NONE: Patience = Patience { changed: false, fresh: Duration::ZERO };
    const ALL: Patience = Patience { changed: true, fresh: Duration::from_secs(5) };
    const GOOD: Verdict = Verdict { changed: false, doubtful: false, wrong_size: false, deferred: false };

    /// The verdict if a second reading differs or not. `None`: the file must not be read again.
    fn verdict(seen: Observation, patience: Patience, differs: Option<bool>) -> Verdict {
        let mut read = 0;
        let verdict = seen.verdict::<()>(patience, || {
            read += 1;
            differs.ok_or(())
        });
        assert_eq!(read, usize::from(differs.is_some()), "{seen:?} {patience:?}");
        verdict.unwrap()
    }

    #[test]
    fn a_file_that_keeps_still_is_read_once() {
        assert_eq!(verdict(STILL, NONE, None), GOOD);
        assert_eq!(verdict(STILL, ALL, None), GOOD);
    }

    #[test]
    fn other_stamps_or_a_size_that_fresh_stamps_explain_are_a_change() {
        for seen in [Observation { same: false, ..STILL }, Observation { size: 8, written_to: true, ..STILL }] {
            let doubtful = seen.written_to;
            let changed = Verdict { changed: true, doubtful, ..GOOD };
            assert_eq!(verdict(seen, NONE, None), changed);
            assert_eq!(verdict(seen, ALL, None), Verdict { deferred: true, ..changed });
        }
    }

    #[test]
    fn a_fresh_file_is_deferred_or_read_twice() {
        let doubtful = Verdict { doubtful: true, ..GOOD };
        assert_eq!(verdict(FRESH, ALL, None), Verdict { deferred: true, ..doubtful });
        assert_eq!(verdict(FRESH, NONE, Some(false)), doubtful);
        assert_eq!(verdict(FRESH, NONE, Some(true)), Verdict { changed: true, ..doubtful });
        // Longer than the time that is left.
        let server = Observation { fresh: Some(Duration::from_secs(50)), ..STILL };
        assert_eq!(verdict(server, ALL, Some(true)), Verdict { changed: true, deferred: true, ..doubtful });
    }

    #[test]
    fn a_file_that_a_process_may_write_to_is_read_twice_and_not_deferred_if_equal() {
        let written_to = Observation { written_to: true, ..STILL };
        assert_eq!(verdict(written_to, ALL, Some(false)), Verdict { doubtful: true, ..GOOD });
        assert!(!verdict(Observation { size: 0, expected_size: 0, ..written_to }, ALL, None).changed);
    }

    #[test]
    fn a_size_that_is_wrong_is_not_a_change() {
        let short = Observation { size: 7, ..STILL };
        assert_eq!(verdict(short, ALL, None), Verdict { wrong_size: true, ..GOOD });
        let made_up = Observation { is_unsized: true, expected_size: 0, ..FRESH };
        assert_eq!(verdict(made_up, ALL, None), Verdict { wrong_size: true, doubtful: true, ..GOOD });
    }

    #[test]
    fn an_error_of_the_second_reading_is_passed_on() {
        assert_eq!(FRESH.verdict(NONE, || Err("gone")), Err("gone"));
    }
}
