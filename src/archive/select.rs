//! Finds the snapshot that the user names: `latest`, `SOURCE/latest`, a prefix of an id, or a time.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use super::error::Error;
use super::snapshots::{Archive, OpenSnapshot};
use super::when;
use crate::failure::Failure;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;

/// The name of the newest snapshot.
const LATEST: &str = "latest";
/// Maximum number of snapshots in a message.
const LISTED: usize = 10;

/// A snapshot as the user names it, and a path in it: `SNAP[:PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The source in `SOURCE/SNAP`.
    pub source: Option<String>,
    /// `latest`, or a prefix of an id or of a time, as the user wrote it.
    pub snapshot: String,
    /// A prefix of the time in the snapshot's name; `None` if `snapshot` is not a time.
    time: Option<String>,
    /// The path below the snapshot's root; empty for the root.
    pub path: Vec<u8>,
}

impl Display for Selector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source}/{}", self.snapshot),
            None => f.write_str(&self.snapshot),
        }
    }
}

impl Selector {
    /// Whether the path is that of the snapshot's root.
    pub fn is_root(&self) -> bool {
        self.path.iter().all(|byte| b"/.".contains(byte))
    }

    /// Parses `SNAP[:PATH]`.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let colon = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
        let source = text.iter().take(colon).rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let when = text.get(source..).and_then(when::parse_time);
        let (snapshot, path) = text.split_at(when.as_ref().map_or(colon, |(_, length)| source + length));
        let path = path.strip_prefix(b":").unwrap_or(path).to_vec();
        let snapshot = str::from_utf8(snapshot).map_err(|_| "the name of a snapshot must be UTF-8".to_owned())?;
        if let Some(path) = snapshot.strip_prefix('/') {
            return Err(format!(
                "no snapshot is named in {snapshot}; that path in the newest snapshot is latest:{path}"
            ));
        }
        let (source, snapshot) = match snapshot.rsplit_once('/') {
            Some((source, snapshot)) => (Some(source.to_owned()), snapshot),
            None => (None, snapshot),
        };
        match snapshot {
            "" => Err("no snapshot is named; use latest, or the beginning of an id or a time".to_owned()),
            snapshot => {
                // A date or a part of one. The dates in snapshot names have no dashes.
                let date = || snapshot.replace(['-', '_'], "");
                let time = when.map(|(time, _)| time).unwrap_or_else(date);
                let is_time = time.starts_with(|c: char| c.is_ascii_digit());
                Ok(Selector { source, snapshot: snapshot.to_owned(), time: is_time.then_some(time), path })
            }
        }
    }

    /// Whether this is `latest`, or the beginning of the snapshot's id or time. The source is not compared.
    pub fn means(&self, name: &SnapshotName) -> bool {
        let is_then = self.time.as_ref().is_some_and(|time| name.time.starts_with(time));
        self.snapshot == LATEST || self.is_id_of(name) || is_then
    }

    /// The message that no snapshot fits.
    pub fn not_found(&self) -> String {
        let word = &self.snapshot;
        match self.time {
            _ if word == LATEST => format!("there is no snapshot{}; `brackfs snapshots` lists them", self.of_source()),
            Some(_) => format!(
                "no snapshot{} has an id or a time (UTC unless it has an offset) that begins with {word}; `brackfs \
                 snapshots` lists them",
                self.of_source()
            ),
            None => format!(
                "no snapshot{} is called {word}; `brackfs snapshots` lists them, and the path {word} in the newest is \
                 latest:{word}",
                self.of_source()
            ),
        }
    }

    /// The message that several snapshots fit.
    pub fn ambiguous(&self, fitting: &[&SnapshotName]) -> String {
        let shown: Vec<_> = fitting.iter().take(LISTED).map(|name| format!("{} of {}", name.id, name.time)).collect();
        let more = match fitting.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "several snapshots have an id that begins with {}: {}{more}; write more of it",
            self.snapshot,
            shown.join(", ")
        )
    }

    fn of_source(&self) -> String {
        self.source.as_ref().map(|source| format!(" of {source}")).unwrap_or_default()
    }

    /// Whether this is a time that has no offset and no Z.
    pub fn is_time_without_zone(&self) -> bool {
        // With dashes, a date is two characters longer.
        let date = if self.snapshot.as_bytes().get(4).is_some_and(u8::is_ascii_digit) { 8 } else { 10 };
        let clock = self.snapshot.get(date..).unwrap_or_default();
        self.time.is_some() && !clock.contains(['Z', 'z', '+', '-'])
    }

    /// Whether this is `latest`.
    pub fn is_latest(&self) -> bool {
        self.snapshot == LATEST
    }

    /// Whether this is the beginning of the snapshot's id.
    pub fn is_id_of(&self, name: &SnapshotName) -> bool {
        name.id.to_string().starts_with(&self.snapshot)
    }
}

/// The snapshot that the user named.
pub struct Selected {
    /// The snapshot.
    pub snapshot: Arc<OpenSnapshot>,
    /// Whether a source with another name has snapshots that the user may have meant.
    pub has_rivals: bool,
}

impl dyn Archive + '_ {
    /// Returns the selected snapshot: the newest that matches `latest` or a time, or the only one with this id prefix.
    ///
    /// Object names are not authenticated, so only snapshots that verify are candidates. Calls `passed_over` for each
    /// snapshot that would have been selected but does not verify. If none verifies, returns the error of the newest.
    pub fn select(
        &self,
        selector: &Selector,
        passed_over: &mut dyn FnMut(&SnapshotName, &Error),
    ) -> Result<Selected, Error> {
        let names = self.snapshots()?;
        let wanted = match &selector.source {
            Some(source) => Some(self.source_called(source, &names)?),
            None => None,
        };
        let fitting: Vec<_> = names
            .iter()
            .filter(|name| wanted.as_ref().is_none_or(|ids| ids.contains(&name.source)))
            .filter(|name| selector.means(name))
            .collect();
        let (with_id, others): (Vec<_>, Vec<_>) = fitting.into_iter().partition(|name| selector.is_id_of(name));
        let (candidates, unique) = if with_id.is_empty() { (others, false) } else { (with_id, true) };
        let sources: BTreeSet<_> = candidates.iter().map(|name| name.source).collect();
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for name in candidates.into_iter().rev() {
            match self.open(name) {
                Ok(snapshot) => found.push(snapshot),
                Err(error) => failed.push((name, error)),
            }
            let closed = failed.iter().filter(|(_, error)| error.is_key_problem()).count();
            if !found.is_empty() && !unique || self.is_hopeless(closed) {
                break;
            }
        }
        if found.len() > 1 {
            found.reverse();
            let these: Vec<_> = found.iter().map(|snapshot| &snapshot.name).collect();
            return Err(Error::NotFound(selector.ambiguous(&these)));
        }
        if let Some(snapshot) = found.pop() {
            failed.iter().for_each(|(name, error)| passed_over(name, error));
            // Several sources may have the same name. The names of unreadable ones choose nothing.
            let is_rival = |id: &SourceId| self.source_name(*id).is_ok_and(|name| name != snapshot.source);
            let others = |id: &&SourceId| **id != snapshot.name.source;
            let has_rivals = selector.source.is_none() && sources.iter().filter(others).any(is_rival);
            return Ok(Selected { snapshot, has_rivals });
        }
        if !failed.is_empty() {
            return Err(failed.swap_remove(0).1);
        }
        if let Some(id) = self.forgotten_with_id(&selector.snapshot) {
            return Err(Error::NotFound(format!("snapshot {id} was forgotten")));
        }
        Err(Error::NotFound(match names.is_empty() {
            true => "the repository has no snapshots; `brackfs backup` makes one".to_owned(),
            false => selector.not_found(),
        }))
    }

    fn source_called(&self, name: &str, snapshots: &[SnapshotName]) -> Result<Vec<SourceId>, Error> {
        let mut ids: Vec<_> = snapshots.iter().map(|name| name.source).collect();
        ids.sort_unstable();
        ids.dedup();
        // One of the newest snapshots is needed next.
        let newest: Vec<_> = snapshots.last().cloned().into_iter().collect();
        self.begin(&newest, &ids);
        let (mut called, mut failed) = (Vec::new(), None);
        for id in ids {
            match self.source_name(id) {
                Ok(found) if found == name => called.push(id),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        match (called.is_empty(), failed) {
            (false, _) => Ok(called),
            (true, Some(error)) if error.is_key_problem() => Err(error),
            (true, _) => Err(Error::NotFound(format!(
                "no snapshot of a source called {name}; `brackfs snapshots` lists them, and PATH in the newest is \
                 latest:PATH"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_parsed() {
        let parsed = |text: &str| Selector::parse(text.as_bytes()).map(|s| (s.source, s.snapshot, s.path));
        assert_eq!(parsed("latest"), Ok((None, "latest".into(), vec![])));
        assert_eq!(parsed("home/latest:a:b"), Ok((Some("home".into()), "latest".into(), b"a:b".to_vec())));
        assert_eq!(parsed("12ab:/etc"), Ok((None, "12ab".into(), b"/etc".to_vec())));
        let full = "2026-11-20T14:52:01Z";
        assert_eq!(parsed(&format!("{full}:a:b")), Ok((None, full.into(), b"a:b".to_vec())));
        assert_eq!(parsed(&format!("home/{full}")), Ok((Some("home".into()), full.into(), vec![])));
        assert_eq!(parsed("2026-11-20:5/a"), Ok((None, "2026-11-20".into(), b"5/a".to_vec())));
        let time = |text: &str| Selector::parse(text.as_bytes()).unwrap().time;
        assert_eq!(time("2026-11-20"), Some("20261120".into()));
        assert_eq!(time("2026-11"), Some("202611".into()));
        assert_eq!(time("home/2026-11-20 15:52:01+01:00:x"), Some("20261120T145201".into()));
        assert_eq!(time("latest"), None);
        for (text, is_without) in [
            ("2026-11", true),
            ("2026-11-20", true),
            ("a/2026-11-20T14:52:a+b", true),
            ("2026-11-20T14:52-01:00", false),
            ("2026-11-20T14Z", false),
            ("20261120T14", true),
            ("20261120 145201", true),
            ("20261120", true),
            ("2026", true),
            ("20261120T14+01", false),
            ("20261120T145201Z", false),
            ("latest", false),
        ] {
            assert_eq!(Selector::parse(text.as_bytes()).unwrap().is_time_without_zone(), is_without, "{text}");
        }
        assert!(parsed("").is_err());
        assert!(parsed("/docs").is_err_and(|why| why.contains("latest:docs")));
        assert!(parsed("home/:x").is_err());
    }
}
