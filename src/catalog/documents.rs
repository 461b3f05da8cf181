//! The documents in the repository that this catalog knows, and their census.

use rusqlite::params;

use super::database::Catalog;
use super::error::Error;
use crate::format::generation::{Census, NameSet};
use crate::format::id::ObjectId;
use crate::format::index::Index;
use crate::format::name;

/// The documents that a census counts, apart from snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Folder {
    /// Indexes.
    Index,
    /// Shards of moves, of packs whose ids begin with this byte.
    Moved(u8),
    /// Tombstones.
    Forgotten,
    /// Secrets, of this edition.
    Secrets(u64),
}

impl Folder {
    fn codes(self) -> (i64, i64) {
        match self {
            Folder::Index => (0, 0),
            Folder::Moved(prefix) => (1, prefix.into()),
            Folder::Forgotten => (2, 0),
            Folder::Secrets(edition) => (3, edition as i64),
        }
    }

    fn from_codes(folder: i64, detail: i64) -> Option<Self> {
        match folder {
            0 => Some(Folder::Index),
            1 => u8::try_from(detail).ok().map(Folder::Moved),
            2 => Some(Folder::Forgotten),
            3 => Some(Folder::Secrets(detail as u64)),
            _ => None,
        }
    }
}

/// A document in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDocument {
    /// The folder of the document.
    pub folder: Folder,
    /// The document's id.
    pub id: ObjectId,
    /// The generation of the run that wrote it; 0 if it is unknown.
    pub generation: u64,
    /// The generation of the document that replaced it.
    pub replaced: Option<u64>,
    /// Whether the object was removed, after it was replaced.
    pub is_removed: bool,
}

impl KnownDocument {
    /// The name of the object.
    pub fn object(&self) -> String {
        match self.folder {
            Folder::Index => name::index(self.id),
            Folder::Moved(prefix) => name::moved(prefix, self.id),
            Folder::Forgotten => name::forgotten(self.id),
            Folder::Secrets(_) => name::secrets(self.id),
        }
    }

    /// Whether a run of `generation` relied on the document when it began.
    fn counts_in(&self, generation: u64) -> bool {
        self.generation < generation && self.replaced.is_none_or(|replaced| replaced >= generation)
    }
}

impl Catalog {
    /// Adds a document that was written, or found in the repository, and marks those that it replaces.
    pub fn add_document(
        &self,
        folder: Folder,
        id: ObjectId,
        generation: u64,
        replaces: &[ObjectId],
    ) -> Result<(), Error> {
        let (code, detail) = folder.codes();
        let add = || {
            let add = "INSERT INTO documents VALUES (?1, ?2, ?3, ?4, NULL, 0)
                 ON CONFLICT DO UPDATE SET detail = ?3, generation = ?4";
            let id = id.as_bytes();
            self.db.prepare_cached(add)?.execute(params![code, id, detail, generation as i64])?;
            let replace = "INSERT INTO documents VALUES (?1, ?2, ?3, 0, ?4, 0)
                 ON CONFLICT DO UPDATE SET replaced = coalesce(replaced, ?4)";
            let mut statement = self.db.prepare_cached(replace)?;
            replaces
                .iter()
                .try_for_each(|id| statement.execute(params![code, id.as_bytes(), detail, generation as i64]).map(drop))
        };
        add().map_err(self.failed("add a document"))
    }

    /// Marks documents that are in the repository as valid, before all of them are read again: the documents that replaced
    /// them may be gone, because the repository was set back.
    pub fn set_documents_valid(&self, found: &[(Folder, ObjectId)]) -> Result<(), Error> {
        let set = || {
            let set = "UPDATE documents SET replaced = NULL, removed = 0 WHERE folder = ? AND id = ?";
            let mut statement = self.db.prepare_cached(set)?;
            found
                .iter()
                .try_for_each(|(folder, id)| statement.execute(params![folder.codes().0, id.as_bytes()]).map(drop))
        };
        set().map_err(self.failed("mark documents"))
    }

    /// Adds an index that was written, or found in the repository, and the holds in it.
    pub fn add_index(&self, id: ObjectId, index: &Index) -> Result<(), Error> {
        self.add_document(Folder::Index, id, index.generation, &index.replaces)?;
        index.holds.iter().try_for_each(|hold| self.set_hold(hold, index.generation))
    }

    /// Marks all secrets documents as lost before the run of `generation`: its census does not count them.
    pub fn lose_secrets(&self, generation: u64) -> Result<(), Error> {
        let (code, _) = Folder::Secrets(0).codes();
        let lose = "UPDATE documents SET replaced = ? WHERE folder = ? AND replaced IS NULL";
        let lost = self.db.execute(lose, params![generation.saturating_sub(1) as i64, code]);
        lost.map(drop).map_err(self.failed("mark lost documents"))
    }

    /// Records that a replaced document was removed from the repository. The census of the last generation may count it.
    pub fn set_document_removed(&self, document: &KnownDocument) -> Result<(), Error> {
        let (code, _) = document.folder.codes();
        let set = "UPDATE documents SET removed = 1 WHERE folder = ? AND id = ?";
        let set = self.db.execute(set, params![code, document.id.as_bytes()]);
        set.map(drop).map_err(self.failed("remove a document"))
    }

    /// Drops a document from the catalog that no census counts any more.
    pub fn remove_document(&self, document: &KnownDocument) -> Result<(), Error> {
        let (code, _) = document.folder.codes();
        let remove = "DELETE FROM documents WHERE folder = ? AND id = ?";
        let removed = self.db.execute(remove, params![code, document.id.as_bytes()]);
        removed.map(drop).map_err(self.failed("remove a document"))
    }

    /// All known documents, in no particular order.
    pub fn documents(&self) -> Result<Vec<KnownDocument>, Error> {
        let find = || {
            let mut statement =
                self.db.prepare("SELECT folder, id, detail, generation, replaced, removed FROM documents")?;
            let rows = statement.query_map([], |row| {
                let (folder, id): (_, Vec<u8>) = (Folder::from_codes(row.get(0)?, row.get(2)?), row.get(1)?);
                let replaced = row.get::<_, Option<i64>>(4)?.map(|replaced| replaced as u64);
                Ok((folder, id, row.get::<_, i64>(3)? as u64, replaced, row.get(5)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let known =
            |(folder, id, generation, replaced, is_removed): (Option<Folder>, Vec<u8>, u64, Option<u64>, bool)| {
                let folder = folder.ok_or_else(|| self.damaged("a document is in no known folder"))?;
                let id = ObjectId::from_slice(&id).map_err(|e| self.damaged(e))?;
                Ok(KnownDocument { folder, id, generation, replaced, is_removed })
            };
        find().map_err(self.failed("read documents"))?.into_iter().map(known).collect()
    }

    /// The census of a run of `generation` that is about to begin.
    pub fn census(&self, generation: u64) -> Result<Census, Error> {
        let mut names: [Vec<String>; 4] = Default::default();
        let [index, moved, forgotten, secrets] = &mut names;
        for document in self.documents()?.into_iter().filter(|document| document.counts_in(generation)) {
            let names = match document.folder {
                Folder::Index => &mut *index,
                Folder::Moved(_) => &mut *moved,
                Folder::Forgotten => &mut *forgotten,
                Folder::Secrets(_) => &mut *secrets,
            };
            names.push(document.object());
        }
        let snapshots = self.counted_snapshots(generation)?.iter().map(name::SnapshotName::object).collect();
        let [index, moved, forgotten, secrets] = names.map(NameSet::of);
        Ok(Census { index, snapshots: NameSet::of(snapshots), moved, forgotten, secrets })
    }

    /// Remembers a census that does not agree with this catalog. Nothing may be removed until it does.
    pub fn set_unproved(&self, generation: u64, census: &Census) -> Result<(), Error> {
        let insert = "INSERT OR IGNORE INTO unproved VALUES (?, ?)";
        let set = self.db.execute(insert, params![generation as i64, census.encode()]);
        set.map(drop).map_err(self.failed("remember a census"))
    }

    /// The first generation whose census does not agree with this catalog.
    pub fn unproved(&self) -> Result<Option<u64>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT generation, census FROM unproved ORDER BY generation")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        for (generation, census) in find().map_err(self.failed("read a census"))? {
            if Census::decode(&census).map_err(|e| self.damaged(e))? != self.census(generation)? {
                return Ok(Some(generation));
            }
        }
        Ok(None)
    }

    /// The edition for a new secrets document.
    pub fn next_edition(&self) -> Result<u64, Error> {
        let editions = self.documents()?.into_iter().filter_map(|document| match document.folder {
            Folder::Secrets(edition) => Some(edition),
            _ => None,
        });
        Ok(editions.max().map_or(0, |edition| edition.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::database::tests::catalog;

    #[test]
    fn a_census_counts_documents_of_earlier_generations_that_none_of_these_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let [a, b, c, d] = [(); 4].map(|()| ObjectId::random());
        let add = |folder, id, generation, replaces: &[ObjectId]| {
            catalog.add_document(folder, id, generation, replaces).unwrap();
        };
        add(Folder::Index, a, 3, &[]);
        add(Folder::Index, b, 4, &[]);
        add(Folder::Index, c, 6, &[a, d]);
        add(Folder::Moved(7), a, 5, &[]);
        add(Folder::Secrets(2), a, 0, &[]);
        let set = |ids: &[ObjectId]| NameSet::of(ids.iter().map(|id| name::index(*id)).collect());
        let index = |generation| catalog.census(generation).unwrap().index;
        // The document d is known only as a replaced one.
        assert_eq!(index(3), set(&[d]));
        assert_eq!(index(5), set(&[a, b, d]));
        assert_eq!(index(6), set(&[a, b, d]));
        assert_eq!(index(7), set(&[b, c]));
        let census = catalog.census(6).unwrap();
        assert_eq!(census.moved, NameSet::of(vec![name::moved(7, a)]));
        assert_eq!(census.secrets, NameSet::of(vec![name::secrets(a)]));
        assert_eq!(census.forgotten, NameSet::default());
        assert_eq!(catalog.next_edition().unwrap(), 3);
        catalog.lose_secrets(6).unwrap();
        let secrets = |generation| catalog.census(generation).unwrap().secrets.count;
        assert_eq!([secrets(5), secrets(6)], [1, 0]);
        assert_eq!(catalog.next_edition().unwrap(), 3);
        let replaced = catalog.documents().unwrap().into_iter().find(|known| known.id == d).unwrap();
        catalog.remove_document(&replaced).unwrap();
        assert_eq!(index(5), set(&[a, b]));
        assert_eq!(index(7), set(&[b, c]));
    }
}
