//! The generations at the target: the last one that verifies, and the numbers that are free.
//!
//! Whoever may create objects at the target can create one with any number in its name. So a name proves nothing: only an
//! object that opens with the host key and that a known key signed counts. The others stop no backup. They may be the
//! work of another writer with a key of its own, so nothing is removed while one of them is there.

use super::{Error, Inventory};
use crate::format::generation::Generation;
use crate::format::name;
use crate::repository;
use crate::storage::ErrorKind;

/// What was found in the folder of generations.
#[derive(Debug, Default)]
pub struct Generations {
    /// The last one that verifies.
    pub last: Option<Generation>,
    /// Numbers and lengths of objects above it that do not verify, ascending.
    pub strange: Vec<(u64, u64)>,
    /// Those of them that never will while their length stays the same, and that were not known before.
    pub learnt: Vec<(u64, u64)>,
}

impl Generations {
    /// The first number above `number` that no object has.
    pub fn free_after(&self, number: u64) -> Result<u64, Error> {
        let mut next = number.saturating_add(1);
        let from = self.strange.partition_point(|(strange, _)| *strange < next);
        for (strange, _) in self.strange.iter().skip(from) {
            match *strange == next {
                true => next += 1,
                false => break,
            }
        }
        match next <= name::LAST_NUMBER {
            true => Ok(next),
            false => Err(Error::NoNumber { folder: name::GENERATION }),
        }
    }

    /// What is to be said of objects that do not verify; none if there are none.
    pub fn warning(&self) -> Option<String> {
        let (last, _) = self.strange.last()?;
        Some(format!(
            "cannot verify {} in {} (such as {}): either another machine with a host key of its own became the writer of this repository, or they do not belong there. The backup goes on; nothing is removed from the repository while they are there",
            objects(self.strange.len() as u64),
            name::GENERATION,
            name::generation(*last),
        ))
    }
}

/// A number of objects, for people.
pub(super) fn objects(count: u64) -> String {
    match count {
        1 => "1 object".to_owned(),
        count => format!("{count} objects"),
    }
}

impl Inventory<'_> {
    /// Finds the last generation that verifies. Objects in `known`, numbers and lengths in order, are known not to, and
    /// are not opened.
    pub fn generations(&self, known: &[(u64, u64)]) -> Result<Generations, Error> {
        let mut found = Generations::default();
        for (number, length) in self.repository.generations()?.into_iter().rev() {
            self.check_interrupted()?;
            if known.binary_search(&(number, length)).is_err() {
                match self.access.generation(self.repository, number) {
                    Ok(generation) => {
                        found.last = Some(generation);
                        break;
                    }
                    Err(repository::Error::Target(error)) if error.kind == ErrorKind::NotFound => continue,
                    // A disk may read it the next time.
                    Err(error @ repository::Error::Target(_)) if !self.repository.is_there() => {
                        return Err(error.into());
                    }
                    Err(repository::Error::Target(_)) => {}
                    Err(_) => found.learnt.push((number, length)),
                }
            }
            found.strange.push((number, length));
        }
        found.strange.reverse();
        Ok(found)
    }

    /// What speaks against the generations being all there and all ours; none if nothing does. Opens every one of them.
    pub(super) fn doubt_of_generations(&self) -> Result<Option<String>, Error> {
        let mut before = None;
        for (number, _) in self.repository.generations()? {
            self.check_interrupted()?;
            let object = name::generation(number);
            if let Err(error) = self.access.generation(self.repository, number) {
                return Ok(Some(format!("cannot verify {object}: {error}")));
            }
            if before.is_some_and(|before| before + 1 != number) {
                return Ok(Some(format!("the object before {object} is missing")));
            }
            before = Some(number);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_number_is_one_that_no_object_has_and_ten_digits_can_say() {
        let with = |strange: &[u64]| Generations {
            strange: strange.iter().map(|number| (*number, 0)).collect(),
            ..Generations::default()
        };
        assert_eq!(with(&[]).free_after(0).unwrap(), 1);
        assert_eq!(with(&[3, 5, 6, 8, name::LAST_NUMBER]).free_after(4).unwrap(), 7);
        assert_eq!(with(&[name::LAST_NUMBER]).free_after(name::LAST_NUMBER - 2).unwrap(), name::LAST_NUMBER - 1);
        for (strange, after) in [(vec![], name::LAST_NUMBER), (vec![name::LAST_NUMBER], name::LAST_NUMBER - 1)] {
            assert!(matches!(with(&strange).free_after(after), Err(Error::NoNumber { .. })));
        }
        assert!(matches!(with(&[]).free_after(u64::MAX), Err(Error::NoNumber { .. })));
    }
}
