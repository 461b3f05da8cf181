//! The generations of a repository: the last one that verifies, and the next number.
//!
//! Anyone with write access to the storage can create an object with any number in its name. Therefore only objects
//! count that open with the host key and have a known signer. Others do not stop a backup. They may belong to another
//! writer with its own host key, so nothing is removed while there are any. Two runs that begin at the same time may have
//! the same number; then neither continues.

use super::context::Inventory;
use super::error::Error;
use crate::catalog::{Catalog, LastRun};
use crate::failure::{Failure, FailureKind};
use crate::format::generation::{Generation, Role};
use crate::format::name::{self, GenerationName};
use crate::repository::{self, Access};
use crate::storage::ErrorKind;

/// An object in the folder of generations that does not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strange {
    /// The generation that it is named as.
    pub name: GenerationName,
    /// In bytes.
    pub length: u64,
    /// Why it cannot be read; `None` if it was read.
    pub unread: Option<String>,
}

impl Strange {
    /// An object whose verification ended with `error`.
    pub fn new((name, length): (GenerationName, u64), error: &repository::Error) -> Strange {
        let unread = matches!(error, repository::Error::Target(_)).then(|| error.to_string());
        Strange { name, length, unread }
    }

    /// Why nothing may be removed while the object is there.
    pub fn doubt(&self) -> String {
        match &self.unread {
            Some(error) => error.clone(),
            None => format!("cannot verify {}; another machine may have written it", self.name.object()),
        }
    }
}

/// The content of the folder of generations.
#[derive(Debug, Default)]
pub struct Generations {
    /// The generations that verify and have the highest number. There are several if runs began at the same time.
    pub last: Vec<Generation>,
    /// The objects that do not verify and whose number is at least that, ascending.
    pub strange: Vec<Strange>,
    /// The newly found ones among them that cannot verify while their length stays the same.
    pub learnt: Vec<(GenerationName, u64)>,
}

impl Generations {
    /// The highest number of a generation that verifies; 0 if there is none.
    pub fn number(&self) -> u64 {
        self.last.first().map_or(0, |last| last.number)
    }

    /// The first number above `number` and above those of all generations that verify.
    pub fn next(&self, number: u64) -> Result<u64, Error> {
        let next = number.max(self.number()).saturating_add(1);
        if next <= name::LAST_NUMBER { Ok(next) } else { Err(Error::NoNumber { folder: name::GENERATION }) }
    }

    /// Adds a generation whose number is not lower than those of the others.
    fn add(&mut self, generation: Generation) {
        let number = generation.number;
        self.last.retain(|last| last.number == number);
        // A first attempt to read it may have failed.
        let own = generation.name();
        self.strange.retain(|strange| strange.name.number >= number && strange.name != own);
        self.learnt.retain(|(name, _)| *name != own);
        self.last.push(generation);
    }

    /// Adds an object that does not verify.
    fn add_strange(&mut self, strange: Strange) {
        if strange.name.number >= self.number() && self.strange.iter().all(|known| known.name != strange.name) {
            self.strange.push(strange);
            self.strange.sort_unstable_by_key(|strange| strange.name);
        }
    }

    /// Warnings about objects that do not verify.
    pub fn warnings(&self) -> Vec<String> {
        let (unread, read): (Vec<_>, Vec<_>) = self.strange.iter().partition(|strange| strange.unread.is_some());
        let mut warnings = Vec::new();
        if let Some(last) = read.last() {
            warnings.push(format!(
                "cannot verify {} in {} (such as {}): another machine with a host key of its own became the writer, or they do not belong there. The backup continues, but removes nothing while they exist",
                objects(read.len() as u64),
                name::GENERATION,
                last.name.object(),
            ));
        }
        if let Some(error) = unread.last().and_then(|last| last.unread.as_ref()) {
            let others = match unread.len() as u64 - 1 {
                0 => String::new(),
                others => format!(" (and {} more)", objects(others)),
            };
            warnings.push(format!("{error}{others}. The backup continues, but removes nothing while this is so"));
        }
        warnings
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
    /// Finds the last generation that verifies. Those of the catalog's own last runs count even if no listing shows them
    /// yet. Objects that the catalog knows as strange are not opened again. Fails if a machine with an unknown role was at
    /// work.
    pub fn generations(&self, catalog: &Catalog) -> Result<Generations, Error> {
        let mut found = self.listed_generations(&catalog.strange_generations()?)?;
        let (last, intended) = catalog.runs()?;
        for LastRun { number, run } in [last, intended] {
            let Some(name) = run.map(|run| GenerationName::of_run(number, run)) else { continue };
            if number < found.number() || found.last.iter().any(|last| last.name() == name) {
                continue;
            }
            match self.access.generation(self.repository, name) {
                Ok(generation) => found.add(generation),
                // It is gone, or never was there.
                Err(repository::Error::Target(error)) if error.kind == ErrorKind::NotFound => {}
                Err(error @ repository::Error::Target(_)) => return Err(error.into()),
                Err(error) => {
                    let length = self.repository.target().length(&name.object())?;
                    found.add_strange(Strange::new((name, length), &error));
                }
            }
        }
        Ok(found)
    }

    /// Finds the last generation that verifies among those that a listing shows. Objects in `known` (sorted names and
    /// lengths) failed before and are not opened again. Fails if a machine with an unknown role was at work.
    pub fn listed_generations(&self, known: &[(GenerationName, u64)]) -> Result<Generations, Error> {
        let mut found = Generations::default();
        for (name, length) in self.repository.generations()?.into_iter().rev() {
            self.check_interrupted()?;
            if name.number < found.number() {
                break;
            }
            let mut unread = None;
            if known.binary_search(&(name, length)).is_err() {
                match self.access.generation(self.repository, name) {
                    Ok(Generation { role: Role::Other(role), .. }) => {
                        return Err(Error::UnknownRole { object: name.object(), role });
                    }
                    Ok(generation) => {
                        found.last.push(generation);
                        continue;
                    }
                    Err(repository::Error::Target(error)) if error.kind == ErrorKind::NotFound => continue,
                    Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                    // May be temporary, so it is not added to `learnt`.
                    Err(error @ repository::Error::Target(_)) if !self.repository.is_there() => {
                        return Err(error.into());
                    }
                    Err(error @ repository::Error::Target(_)) => unread = Some(error.to_string()),
                    Err(_) => found.learnt.push((name, length)),
                }
            }
            found.strange.push(Strange { name, length, unread });
        }
        found.strange.reverse();
        Ok(found)
    }

    /// Opens every generation. Returns a reason to doubt that all of them are present and ours, if there is one.
    pub fn doubt_of_generations(&self) -> Result<Option<String>, Error> {
        let mut before = None;
        let generations = self.repository.generations()?;
        let read = |(name, _): &(GenerationName, u64)| Some(Access::read_of_generation(*name));
        for &(name, _) in self.repository.target().in_turn(&generations, read) {
            self.check_interrupted()?;
            let object = name.object();
            if let Err(error) = self.access.generation(self.repository, name) {
                return Ok(Some(format!("cannot verify {object}: {error}")));
            }
            if before.is_some_and(|before| name.number != before + 1) {
                return Ok(Some(format!("the object before {object} is missing, or has the same number")));
            }
            before = Some(name.number);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::generation::Census;
    use crate::format::id::{CatalogId, RunId};

    #[test]
    fn the_next_number_is_above_all_others_and_has_at_most_ten_digits() {
        let with = |number| {
            let (run, catalog, role) = (RunId::random(), CatalogId::random(), Role::Host);
            let last = Generation { number, run, catalog, role, census: Census::default() };
            Generations { last: vec![last], ..Generations::default() }
        };
        assert_eq!(Generations::default().next(0).unwrap(), 1);
        assert_eq!(with(7).next(4).unwrap(), 8);
        assert_eq!(with(7).next(9).unwrap(), 10);
        assert_eq!(with(name::LAST_NUMBER - 1).next(0).unwrap(), name::LAST_NUMBER);
        assert!(matches!(with(name::LAST_NUMBER).next(0), Err(Error::NoNumber { .. })));
        assert!(matches!(with(1).next(u64::MAX), Err(Error::NoNumber { .. })));
    }
}
