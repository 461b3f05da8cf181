//! The generations of a repository: the last one that verifies, and the free numbers.
//!
//! Anyone with write access to the storage can create an object with any number in its name. Therefore only objects
//! count that open with the host key and have a known signer. Others do not stop a backup. They may belong to another
//! writer with its own host key, so nothing is removed while there are any.

use super::context::Inventory;
use super::error::Error;
use crate::format::generation::Generation;
use crate::format::name;
use crate::repository;
use crate::storage::ErrorKind;

/// The content of the folder of generations.
#[derive(Debug, Default)]
pub struct Generations {
    /// The last generation that verifies.
    pub last: Option<Generation>,
    /// Numbers and lengths (in bytes) of later objects that do not verify, ascending.
    pub strange: Vec<(u64, u64)>,
    /// The newly found ones among them that cannot verify while their length stays the same.
    pub learnt: Vec<(u64, u64)>,
}

impl Generations {
    /// The first unused number above `number`.
    pub fn free_after(&self, number: u64) -> Result<u64, Error> {
        let mut next = number.saturating_add(1);
        let from = self.strange.partition_point(|(strange, _)| *strange < next);
        for (strange, _) in self.strange.iter().skip(from) {
            if *strange != next {
                break;
            }
            next += 1;
        }
        if next <= name::LAST_NUMBER { Ok(next) } else { Err(Error::NoNumber { folder: name::GENERATION }) }
    }

    /// A warning about objects that do not verify, or `None` if there are none.
    pub fn warning(&self) -> Option<String> {
        let (last, _) = self.strange.last()?;
        Some(format!(
            "cannot verify {} in {} (such as {}): another machine with a host key of its own became the writer, or they do not belong there. The backup continues, but removes nothing while they exist",
            objects(self.strange.len() as u64),
            name::GENERATION,
            name::generation(*last),
        ))
    }
}

/// A number of objects, for messages.
fn objects(count: u64) -> String {
    match count {
        1 => "1 object".to_owned(),
        count => format!("{count} objects"),
    }
}

impl Inventory<'_> {
    /// Finds the last generation that verifies. Objects in `known` (sorted numbers and lengths) failed before and are
    /// not opened again.
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
                    // May be temporary, so it is not added to `learnt`.
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

    /// Opens every generation. Returns a reason to doubt that all of them are present and ours, if there is one.
    pub fn doubt_of_generations(&self) -> Result<Option<String>, Error> {
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
    fn a_free_number_is_unused_and_has_at_most_ten_digits() {
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
