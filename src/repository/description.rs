//! The plaintext description of a repository, and its copy.
//!
//! They are not trusted: every signed document repeats the id, and snapshots and secrets repeat whether blocks are
//! encrypted. If one is missing or damaged, the other is used. If both are valid, they must agree, so that a forged one is
//! neither used nor treated as damage and replaced.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::open::Repository;
use super::open::is_damage;
use crate::format::id::RepositoryId;
use crate::format::{VERSION, name};
use crate::storage::{Ahead, ErrorKind, Target};

/// The largest description in bytes.
pub(super) const DESCRIPTION_SIZE: usize = 64 << 10;

/// The description and its copy.
const BOTH: [&str; 2] = [name::DESCRIPTION, name::DESCRIPTION_COPY];

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    id: String,
    encryption: String,
}

/// The value of `encryption` in a repository whose blocks are OpenPGP messages.
const OPENPGP: &str = "openpgp";
/// The value of `encryption` in a repository whose blocks are bare zstd frames.
const NONE: &str = "none";

/// A repository's id and encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RepositoryIdentity {
    pub(super) id: RepositoryId,
    pub(super) encrypted: bool,
}

/// The content of a valid description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParsedDescription {
    Known(RepositoryIdentity),
    /// An unsupported format version.
    Version(u32),
}

impl fmt::Display for ParsedDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParsedDescription::Known(RepositoryIdentity { id, encrypted: true }) => write!(f, "{id}, encrypted"),
            ParsedDescription::Known(RepositoryIdentity { id, encrypted: false }) => write!(f, "{id}, not encrypted"),
            ParsedDescription::Version(version) => write!(f, "format version {version}"),
        }
    }
}

/// The reads of the description and its copy, for [`Target::reading_ahead`].
pub fn reads() -> Vec<Ahead> {
    BOTH.map(|object| Ahead::Get(object.to_owned(), DESCRIPTION_SIZE)).into()
}

/// Reads the description and its copy. One of them is enough; if they differ, that is an error.
pub(super) fn read(target: &Target) -> Result<RepositoryIdentity, Error> {
    let parsed = match BOTH.map(|object| read_object(target, object)) {
        [Ok(one), Ok(other)] if one != other => return Err(disagreement(target, one, other)),
        [Ok(parsed), _] | [Err(_), Ok(parsed)] => parsed,
        [Err(Error::Missing { .. }), Err(error @ Error::Description { .. })] | [Err(error), Err(_)] => {
            return Err(error);
        }
    };
    match parsed {
        ParsedDescription::Known(identity) => Ok(identity),
        ParsedDescription::Version(found) => Err(Error::Version { found }),
    }
}

fn read_object(target: &Target, object: &'static str) -> Result<ParsedDescription, Error> {
    let bytes = target.get(object, DESCRIPTION_SIZE).map_err(|e| match e.kind {
        ErrorKind::NotFound => Error::Missing {
            location: target.location().to_owned(),
            why: format!("it has no {object} (is its disk mounted?)"),
            is_there: true,
        },
        _ => Error::Target(e),
    })?;
    parse(&bytes).map_err(|why| Error::Description { location: target.location().to_owned(), object, why })
}

/// Parses a description. The error is the reason.
fn parse(bytes: &[u8]) -> Result<ParsedDescription, String> {
    let text = str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let description: Description = match toml::from_str(text) {
        Ok(description) => description,
        // A newer version may lack the other fields.
        Err(e) => match version_of(text) {
            Some(version) if version != VERSION => return Ok(ParsedDescription::Version(version)),
            _ => return Err(e.message().to_owned()),
        },
    };
    if description.version != VERSION {
        return Ok(ParsedDescription::Version(description.version));
    }
    let id = description.id.parse().map_err(|e: crate::format::Error| e.to_string())?;
    let encrypted = match description.encryption.as_str() {
        OPENPGP => true,
        NONE => false,
        other => return Err(format!("unknown encryption {other:?}")),
    };
    Ok(ParsedDescription::Known(RepositoryIdentity { id, encrypted }))
}

/// Returns the version in a description whose other fields cannot be parsed.
fn version_of(text: &str) -> Option<u32> {
    let table: toml::Table = toml::from_str(text).ok()?;
    table.get("version")?.as_integer()?.try_into().ok()
}

fn disagreement(target: &Target, one: ParsedDescription, other: ParsedDescription) -> Error {
    Error::Disagreement {
        location: target.location().to_owned(),
        one: format!("{}: {one}", name::DESCRIPTION),
        other: format!("{}: {other}", name::DESCRIPTION_COPY),
    }
}

impl Repository {
    fn parsed_description(&self) -> ParsedDescription {
        ParsedDescription::Known(RepositoryIdentity { id: self.id, encrypted: self.encrypted })
    }

    /// Returns the text of the description.
    pub(super) fn description(&self) -> Result<String, Error> {
        let encryption = if self.encrypted { OPENPGP } else { NONE }.to_owned();
        let description = Description { version: VERSION, id: self.id.to_string(), encryption };
        let text = toml::to_string(&description).map_err(|e| Error::Description {
            location: self.location().to_owned(),
            object: name::DESCRIPTION,
            why: e.to_string(),
        })?;
        Ok(format!("# A brackfs repository. {} explains how to get data out.\n{text}", name::README))
    }

    /// Returns the names of the missing or damaged ones of the description and its copy. If one has become a different valid
    /// description since the repository was opened, that is an error: it may belong to another repository.
    pub fn lost_descriptions(&self) -> Result<Vec<&'static str>, Error> {
        let mut lost = Vec::new();
        let text = self.description()?;
        for object in BOTH {
            match self.target.get(object, DESCRIPTION_SIZE) {
                Ok(found) if found == text.as_bytes() => continue,
                Ok(found) => {
                    if let Some(parsed) = parse(&found).ok().filter(|parsed| *parsed != self.parsed_description()) {
                        return Err(Error::Disagreement {
                            location: self.location().to_owned(),
                            one: format!("{object}: {parsed}"),
                            other: format!("at the start of this run: {}", self.parsed_description()),
                        });
                    }
                }
                Err(e) if is_damage(e.kind) => {}
                Err(e) => return Err(e.into()),
            }
            lost.push(object);
        }
        Ok(lost)
    }

    /// Writes the description or its copy again. `object` is the name of the lost one.
    pub fn put_description(&self, object: &str) -> Result<(), Error> {
        self.replace(object, self.description()?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version = 1\nid = \"c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b\"\nencryption = \"none\"\n";

    /// Opens a repository with these two descriptions.
    fn open(description: Option<&str>, copy: Option<&str>) -> Result<Repository, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (object, text) in BOTH.into_iter().zip([description, copy]) {
            if let Some(text) = text {
                std::fs::write(dir.path().join(object), text).unwrap();
            }
        }
        Repository::open(&dir.path().into())
    }

    #[test]
    fn other_versions_and_damaged_descriptions_are_different_errors() {
        let newer = "version = 2\nnew = true\n";
        let error = |description, copy| open(description, copy).unwrap_err();
        for (one, other) in [(Some(newer), None), (None, Some(newer)), (Some(newer), Some(newer))] {
            assert!(matches!(error(one, other), Error::Version { found: 2 }));
        }
        for garbage in ["version = 1\nid = \"x\"\nencryption = \"none\"\n", "\u{0}"] {
            for (one, other, named) in [(Some(garbage), None, BOTH[0]), (None, Some(garbage), BOTH[1])] {
                assert!(matches!(error(one, other), Error::Description { object, .. } if object == named));
            }
        }
        assert!(matches!(error(None, None), Error::Missing { why, .. } if why.contains(BOTH[0])));
    }

    #[test]
    fn one_description_is_enough_and_two_must_agree() {
        for lost in [None, Some(""), Some("\u{0}"), Some("version = 1\n"), Some(GOOD)] {
            for (one, other) in [(Some(GOOD), lost), (lost, Some(GOOD))] {
                assert!(!open(one, other).unwrap().encrypted());
            }
        }
        let changes = [("none", "openpgp"), ("c28", "c29"), ("version = 1", "version = 2")];
        for changed in changes.map(|(from, to)| GOOD.replace(from, to)) {
            for (one, other) in [(GOOD, &*changed), (&*changed, GOOD)] {
                let error = open(Some(one), Some(other)).unwrap_err();
                assert!(matches!(error, Error::Disagreement { .. }), "{error}");
                assert!(BOTH.iter().all(|object| error.to_string().contains(object)), "{error}");
            }
        }
    }

    #[test]
    fn a_description_that_changes_while_the_repository_is_open_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let put = |object, text: &str| std::fs::write(dir.path().join(object), text).unwrap();
        put(BOTH[0], GOOD);
        let repository = Repository::open(&dir.path().into()).unwrap();
        put(BOTH[0], &repository.description().unwrap());
        assert_eq!(repository.lost_descriptions().unwrap(), [BOTH[1]]);
        put(BOTH[1], "damaged");
        assert_eq!(repository.lost_descriptions().unwrap(), [BOTH[1]]);
        put(BOTH[1], &GOOD.replace("none", "openpgp"));
        assert!(matches!(repository.lost_descriptions(), Err(Error::Disagreement { .. })));
    }
}
