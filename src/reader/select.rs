//! Which snapshot is meant: `latest`, `SOURCE/latest`, an id's beginning, or a time.

use std::sync::Arc;

use super::{Error, Reader};
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;

/// A snapshot as people name it, and a path in it: `SNAP[:PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The source, if one was named.
    pub source: Option<String>,
    /// `latest`, the beginning of an id, or of a time.
    pub snapshot: String,
    /// The path below the snapshot's root; empty for the root.
    pub path: Vec<u8>,
}

impl Selector {
    /// Takes `SNAP[:PATH]` apart.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let (snapshot, path) = match text.iter().position(|byte| *byte == b':') {
            Some(colon) => text.split_at(colon),
            None => (text, &[][..]),
        };
        let path = path.strip_prefix(b":").unwrap_or(path).to_vec();
        let snapshot = str::from_utf8(snapshot).map_err(|_| "a snapshot's name is text".to_owned())?;
        let (source, snapshot) = match snapshot.rsplit_once('/') {
            Some((source, snapshot)) => (Some(source.to_owned()), snapshot),
            None => (None, snapshot),
        };
        match snapshot {
            "" => Err("no snapshot is named; say latest, or the beginning of an id or a time".to_owned()),
            snapshot => Ok(Selector { source, snapshot: snapshot.to_owned(), path }),
        }
    }

    fn means(&self, name: &SnapshotName) -> bool {
        // People write 2026-11-20T14:52:01Z or parts of it; names have no separators.
        let time: String = self.snapshot.chars().filter(|c| !matches!(c, '-' | '_')).collect();
        self.snapshot == "latest" || name.id.to_string().starts_with(&self.snapshot) || name.time.starts_with(&time)
    }
}

impl Reader {
    /// The snapshot that is meant: the newest that fits `latest` or a time, or the only one whose id begins so.
    pub fn select(&self, selector: &Selector) -> Result<Arc<Snapshot>, Error> {
        let wanted = match &selector.source {
            Some(source) => Some(self.source_called(source)?),
            None => None,
        };
        let names = self.snapshots()?;
        let fitting: Vec<_> = names
            .iter()
            .filter(|name| wanted.as_ref().is_none_or(|ids| ids.contains(&name.source)))
            .filter(|name| selector.means(name))
            .collect();
        let by_id = |name: &&&SnapshotName| name.id.to_string().starts_with(&selector.snapshot);
        let with_id: Vec<_> = fitting.iter().filter(by_id).collect();
        if with_id.len() > 1 {
            return Err(Error::NotFound(format!(
                "several snapshots have an id that begins with {}",
                selector.snapshot
            )));
        }
        let chosen = with_id.first().copied().or(fitting.last());
        let chosen = chosen.ok_or_else(|| {
            let source = selector.source.as_ref().map(|source| format!(" of {source}")).unwrap_or_default();
            Error::NotFound(match (selector.snapshot.as_str(), names.is_empty()) {
                (_, true) => "there is no snapshot in the repository yet".to_owned(),
                ("latest", false) => format!("there is no snapshot{source}"),
                (other, false) => format!("no snapshot{source} has an id or time that begins with {other}"),
            })
        })?;
        Ok(self.snapshot(chosen)?.0)
    }

    fn source_called(&self, name: &str) -> Result<Vec<SourceId>, Error> {
        let mut ids: Vec<_> = self.snapshots()?.iter().map(|name| name.source).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut called = Vec::new();
        for id in ids {
            if self.source_name(id)? == name {
                called.push(id);
            }
        }
        match called.is_empty() {
            false => Ok(called),
            true => Err(Error::NotFound(format!("no snapshot of a source called {name}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let parsed = |text: &str| Selector::parse(text.as_bytes()).map(|s| (s.source, s.snapshot, s.path));
        assert_eq!(parsed("latest"), Ok((None, "latest".into(), vec![])));
        assert_eq!(parsed("home/latest:a:b"), Ok((Some("home".into()), "latest".into(), b"a:b".to_vec())));
        assert_eq!(parsed("12ab:/etc"), Ok((None, "12ab".into(), b"/etc".to_vec())));
        assert!(parsed("").is_err());
        assert!(parsed("home/:x").is_err());
    }
}
