//! Checks a few packs in each run.
//!
//! A catalog is used for years, and disks lose data. Each run therefore checks some packs that were not checked for
//! long, and condemns bad ones before new snapshots refer to them. The number is bounded, and a run without due packs
//! costs one query. The probability grows with the time since the last check, so that packs which were stored together
//! are not all due together (Tahoe-LAFS does the same with files in its backup database).

use std::collections::BTreeSet;
use std::path::Path;

use super::context::Inventory;
use super::error::Error;
use crate::catalog::{Catalog, Condemned, KnownPack, PackRow};
use crate::format::{Digest, PackId, name};
use crate::storage::{self, ErrorKind};

/// Default limit for the bytes of packs that a run reads again.
pub const READ_AGAIN: u64 = 32 << 20;

/// Seconds for which a checked pack is not checked again. After twice as long, it is always due.
const MONTH: i64 = 30 * 24 * 60 * 60;
/// The most packs that one run checks.
const PACKS: usize = 16;

/// The result of a recheck.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Packs that were checked.
    pub packs: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Packs that could not be read, for a reason that says nothing about their bytes; each was reported.
    pub unread: u64,
    /// Condemned packs; each was reported.
    pub condemned: Condemned,
}

/// Packs that a check found bad.
#[derive(Debug, Default)]
struct Bad {
    packs: Vec<PackRow>,
    /// One seems to be missing.
    missing: bool,
    unread: u64,
}

/// Whether a pack is due that was last checked `age` seconds ago; `random` is in the range 0..1.
fn is_due(age: i64, random: f64) -> bool {
    random < age.saturating_sub(MONTH) as f64 / MONTH as f64
}

impl Inventory<'_> {
    /// Checks packs that are due `now` (seconds since 1970): the length of each, and the content as long as at most
    /// `read_again` bytes are read in total. Reports and condemns bad packs. `random` returns numbers in the range 0..1.
    pub fn recheck(
        &self,
        catalog: &mut Catalog,
        read_again: u64,
        now: i64,
        mut random: impl FnMut() -> Result<f64, Error>,
    ) -> Result<Rechecked, Error> {
        let mut found = Rechecked::default();
        let candidates = catalog.longest_unverified(now.saturating_sub(MONTH), PACKS)?;
        if candidates.is_empty() {
            return Ok(found);
        }
        let mut found_bad = Bad::default();
        for pack in candidates {
            self.check_interrupted()?;
            if !is_due(now.saturating_sub(pack.verified), random()?) {
                continue;
            }
            found.packs += 1;
            let read = found.bytes + pack.length <= read_again;
            found.bytes += if read { pack.length } else { 0 };
            self.note_check(catalog, &pack, read, now, &mut found_bad)?;
        }
        found.condemned = self.condemn(catalog, &found_bad)?;
        catalog.commit()?;
        Ok(found)
    }

    /// Reads the next packs after `after`, in the order of their ids, and from the first one again after the last one, until
    /// at least `bytes` are read or all packs are. `now` is in seconds since 1970. After each batch, `done` is called with
    /// its last pack; the check ends if it returns false. Reports and condemns bad packs.
    pub fn read_part(
        &self,
        catalog: &mut Catalog,
        after: Option<PackId>,
        bytes: u64,
        now: i64,
        mut done: impl FnMut(PackId) -> Result<bool, Error>,
    ) -> Result<Rechecked, Error> {
        let mut found = Rechecked::default();
        let (mut last, mut is_again) = (after, after.is_none());
        while found.bytes < bytes {
            let mut batch = catalog.packs_after(last, PACKS)?;
            if is_again && let Some(after) = after {
                batch.retain(|pack| pack.id <= after);
            }
            if batch.is_empty() {
                if is_again {
                    break;
                }
                (last, is_again) = (None, true);
                continue;
            }
            let mut bad = Bad::default();
            for pack in batch {
                if found.bytes >= bytes {
                    break;
                }
                self.check_interrupted()?;
                self.monitor.progress().at(Path::new(&name::pack(pack.id)));
                self.note_check(catalog, &pack, true, now, &mut bad)?;
                self.monitor.progress().file();
                self.monitor.progress().bytes(pack.length);
                found.packs += 1;
                found.bytes += pack.length;
                last = Some(pack.id);
            }
            let condemned = self.condemn(catalog, &bad)?;
            found.unread += bad.unread;
            found.condemned.packs += condemned.packs;
            found.condemned.bytes += condemned.bytes;
            catalog.commit()?;
            if let Some(last) = last
                && !done(last)?
            {
                break;
            }
        }
        Ok(found)
    }

    /// Reads those of these packs that new snapshots may refer to, and condemns damaged ones.
    pub(super) fn condemn_damaged(&self, catalog: &Catalog, packs: BTreeSet<PackId>) -> Result<(), Error> {
        let mut damaged = Vec::new();
        for id in packs {
            self.check_interrupted()?;
            if let Some(pack) = catalog.usable_pack(id)?
                && let PackCheck::Damaged(why) = self.check_pack(&pack, true)?
            {
                self.report(&pack, &why);
                damaged.push(pack.row);
            }
        }
        Ok(catalog.condemn(&damaged).map(drop)?)
    }

    /// Checks a pack, and notes the result.
    fn note_check(
        &self,
        catalog: &Catalog,
        pack: &KnownPack,
        read: bool,
        now: i64,
        bad: &mut Bad,
    ) -> Result<(), Error> {
        match self.check_pack(pack, read)? {
            PackCheck::Intact => catalog.set_verified(pack.row, now)?,
            PackCheck::Damaged(why) => {
                self.report(pack, &why);
                bad.packs.push(pack.row);
                bad.missing |= why != WRONG_DIGEST;
            }
            PackCheck::Missing => bad.missing = true,
            PackCheck::Unknown(why) => {
                bad.unread += 1;
                self.monitor.problem(Path::new(&name::pack(pack.id)), &format!("{why}; it is checked again later"));
            }
        }
        Ok(())
    }

    /// Condemns bad packs.
    fn condemn(&self, catalog: &mut Catalog, bad: &Bad) -> Result<Condemned, Error> {
        let mut condemned = catalog.condemn(&bad.packs)?;
        if bad.missing {
            // Probably not the only one, or the storage was unavailable for a moment: list all packs.
            self.require_packs(catalog)?;
            let more = catalog.condemn_unlisted(&mut |pack, length| match length {
                Some(length) => self.report(pack, &wrong_length(length, pack.length)),
                None => self.report(pack, MISSING),
            })?;
            catalog.begin_listing()?;
            condemned.packs += more.packs;
            condemned.bytes += more.bytes;
        }
        Ok(condemned)
    }

    fn report(&self, pack: &KnownPack, why: &str) {
        let consequence = "older snapshots may need it; data still at the source is stored again";
        self.monitor.problem(Path::new(&name::pack(pack.id)), &format!("{why}; {consequence}"));
    }

    fn check_pack(&self, pack: &KnownPack, read: bool) -> Result<PackCheck, Error> {
        let object = name::pack(pack.id);
        let target = self.repository.target();
        let length = match target.length(&object) {
            Ok(length) => length,
            Err(error) => return missing_or_error(error),
        };
        if length != pack.length {
            return Ok(PackCheck::Missing);
        }
        if !read {
            return Ok(PackCheck::Intact);
        }
        let mut hasher = blake3::Hasher::new();
        match target.pieces(&object, length, self.stop, |bytes| _ = hasher.update(bytes)) {
            Ok(true) => {}
            Ok(false) => return Err(Error::Interrupted),
            // A part of the disk is unreadable. Other errors say nothing about the bytes.
            Err(error) if matches!(error.kind, ErrorKind::Damaged | ErrorKind::Truncated) => {
                return Ok(PackCheck::Damaged(error.to_string()));
            }
            Err(error) if error.kind == ErrorKind::Other => return Ok(PackCheck::Unknown(error.to_string())),
            Err(error) => return missing_or_error(error),
        }
        let intact = Digest::from(hasher.finalize()) == pack.digest;
        Ok(if intact { PackCheck::Intact } else { PackCheck::Damaged(WRONG_DIGEST.to_owned()) })
    }
}

const MISSING: &str = "the pack is missing";
const WRONG_DIGEST: &str = "the pack's bytes are not those that were stored";

fn wrong_length(found: u64, expected: u64) -> String {
    format!("the pack has {found} bytes where {expected} were stored")
}

/// The state of a pack in the repository.
enum PackCheck {
    Intact,
    /// It cannot be read, for a reason that says nothing about its bytes.
    Unknown(String),
    Damaged(String),
    /// Absent, or of another length.
    Missing,
}

/// Turns an error that shows that a pack is absent into a result. Other errors end the run.
fn missing_or_error(error: storage::Error) -> Result<PackCheck, Error> {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::NotAFile => Ok(PackCheck::Missing),
        _ => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probability_of_a_check_grows_from_day_30_to_day_60() {
        let day = 24 * 60 * 60;
        for random in [0.0, 0.5, 0.999] {
            assert!(!is_due(0, random));
            assert!(!is_due(30 * day, random));
            assert!(!is_due(-5 * day, random));
            assert!(is_due(60 * day, random));
            assert!(is_due(i64::MAX, random));
        }
        assert!(is_due(31 * day, 0.03) && !is_due(31 * day, 0.04));
        assert!(is_due(45 * day, 0.49) && !is_due(45 * day, 0.5));
    }
}
