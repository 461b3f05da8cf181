//! A few packs each run: are they still there, and what they were?
//!
//! A catalog is believed for years, and disks forget. So each run looks at some packs that nobody looked at for long, and
//! what fails is condemned before the run builds on it. How many that are is bounded, and a run that finds nothing due
//! asks the catalog once. The chance of a pack grows with the time since it was last looked at, so that packs which were
//! stored together are not all due together (as in Tahoe-LAFS, whose backup database does so with files).

use std::path::Path;

use super::{Error, Inventory};
use crate::catalog::{Catalog, Condemned, KnownPack};
use crate::format::{Digest, name};
use crate::storage::{self, ErrorKind};

/// Bytes of packs that a run reads again, unless asked otherwise.
pub const READ_AGAIN: u64 = 32 << 20;

/// Seconds in which nobody looks again; after as many more everyone does.
const MONTH: i64 = 30 * 24 * 60 * 60;
/// Packs that one run looks at, at most.
const PACKS: usize = 16;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Packs that were looked at.
    pub packs: u64,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// What was condemned. Each was named.
    pub condemned: Condemned,
}

/// Whether a pack is due that was not looked at for `age` seconds; `random` is from 0 up to, but not including, 1.
fn is_due(age: i64, random: f64) -> bool {
    random < age.saturating_sub(MONTH) as f64 / MONTH as f64
}

impl Inventory<'_> {
    /// Looks at packs that are due `now`, in seconds since 1970: at the length of each, and at all bytes of as many as
    /// `read_again` bytes allow. `random` gives a number for each, from 0 up to 1. What fails is named and condemned.
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
        let (mut bad, mut missing) = (Vec::new(), false);
        for pack in candidates {
            self.check_interrupted()?;
            if !is_due(now.saturating_sub(pack.verified), random()?) {
                continue;
            }
            found.packs += 1;
            let read = found.bytes + pack.length <= read_again;
            found.bytes += if read { pack.length } else { 0 };
            match self.check_pack(&pack, read)? {
                PackCheck::Intact => catalog.set_verified(pack.row, now)?,
                PackCheck::Damaged(why) => {
                    self.report(&pack, &why);
                    bad.push(pack.row);
                    missing |= why != ANOTHER_SUM;
                }
                PackCheck::Missing => missing = true,
            }
        }
        found.condemned = catalog.condemn(&bad)?;
        if missing {
            // It is hardly the only one, or none is and the target was away for a moment: the listing tells.
            self.list_packs(catalog)?;
            if !catalog.any_listed()? {
                return Err(Error::NoPacks);
            }
            let more = catalog.condemn_unlisted(&mut |pack, length| match length {
                Some(length) => self.report(pack, &of_another_length(length, pack.length)),
                None => self.report(pack, MISSING),
            })?;
            catalog.begin_listing()?;
            found.condemned.packs += more.packs;
            found.condemned.bytes += more.bytes;
        }
        catalog.commit()?;
        Ok(found)
    }

    fn report(&self, pack: &KnownPack, why: &str) {
        let consequence = "older snapshots may need it; what is still at the source is stored again";
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
            // A disk that can't read a part of it any more, or that is gone: then the listing fails.
            Err(error) if matches!(error.kind, ErrorKind::Other | ErrorKind::Truncated) => {
                return Ok(PackCheck::Damaged(error.to_string()));
            }
            Err(error) => return missing_or_error(error),
        }
        match Digest::from(hasher.finalize()) == pack.digest {
            true => Ok(PackCheck::Intact),
            false => Ok(PackCheck::Damaged(ANOTHER_SUM.to_owned())),
        }
    }
}

const MISSING: &str = "the pack is missing";
const ANOTHER_SUM: &str = "the pack's bytes are not those that were stored";

fn of_another_length(found: u64, expected: u64) -> String {
    format!("the pack has {found} bytes where {expected} were stored")
}

/// What a look at a pack showed.
enum PackCheck {
    Intact,
    Damaged(String),
    /// It is not there, or not whole.
    Missing,
}

/// What an error says of a pack. One that says nothing of it ends the run.
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
    fn the_chance_of_a_pack_grows_from_its_thirtieth_day_to_its_sixtieth() {
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
