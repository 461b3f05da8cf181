//! Snapshots: the signed root of one finished backup.

use super::cbor::{CborReader, CborWriter};
use super::document::{DocumentKind, Header};
use super::entry::{Entry, Timestamp};
use super::error::Error;
use super::id::{RepositoryId, SnapshotId};
use super::name::{self, SnapshotName};
use super::node::{Items, Node};
use super::source::is_source_name;

/// The largest snapshot document in bytes. Its largest part, the root node, has one entry.
pub const SNAPSHOT_SIZE: usize = 4 << 20;
/// The most paths of a snapshot.
pub const PATHS: usize = 65_536;
/// The most tags of a snapshot.
pub const TAGS: usize = 1024;

/// The statistics of a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The number of regular files in the snapshot.
    pub files: u64,
    /// The number of directories in the snapshot, including the root.
    pub directories: u64,
    /// The number of all other entries.
    pub others: u64,
    /// The total size of the regular files in bytes.
    pub bytes: u64,
    /// The number of bytes that this backup added to packs.
    pub stored_bytes: u64,
}

/// One finished backup of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The object's name, with source id, number, time and snapshot id.
    pub name: SnapshotName,
    /// The source's name.
    pub source: String,
    /// The host name of the machine.
    pub host: String,
    /// The start of the backup.
    pub started: Timestamp,
    /// The time when all files had been read.
    pub finished: Timestamp,
    /// The paths given on the command line.
    pub paths: Vec<Vec<u8>>,
    /// The path of the snapshot's root on the machine: the directory if one was given, else `/`. `None` if the content came
    /// from standard input.
    pub root_path: Option<Vec<u8>>,
    /// The tags given on the command line.
    pub tags: Vec<String>,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The previous snapshot of the same source.
    pub previous: Option<SnapshotId>,
    /// The counts of files and bytes.
    pub statistics: Statistics,
    /// The name and version of the program that wrote it.
    pub program: String,
    /// A node with a single entry without a name: the root directory.
    pub root: Node,
}

impl Snapshot {
    fn header(repository: RepositoryId, name: &SnapshotName) -> Header {
        Header { repository, kind: DocumentKind::Snapshot, name: name.object() }
    }

    /// The root directory's entry.
    pub fn root_entry(&self) -> Option<&Entry> {
        match &self.root.items {
            Items::Entries(entries) => entries.first(),
            _ => None,
        }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let header = Snapshot::header(repository, &self.name);
        let mut w = header.begin(11 + usize::from(self.previous.is_some()) + usize::from(self.root_path.is_some()));
        w.uint(3).uint(self.name.sequence);
        w.uint(4).text(&self.source);
        w.uint(5).text(&self.host);
        self.started.write(w.uint(6));
        self.finished.write(w.uint(7));
        w.uint(8).array(self.paths.len());
        self.paths.iter().for_each(|path| {
            w.bytes(path);
        });
        w.uint(9).array(self.tags.len());
        self.tags.iter().for_each(|tag| {
            w.text(tag);
        });
        w.uint(10).uint(self.encrypted.into());
        if let Some(previous) = &self.previous {
            w.uint(11).bytes(&previous.0);
        }
        self.statistics.write(w.uint(12));
        w.uint(13).text(&self.program);
        w.uint(14).bytes(&self.root.encode());
        if let Some(path) = &self.root_path {
            w.uint(15).bytes(path);
        }
        w.finish()
    }

    /// Decodes the snapshot with this `name`.
    pub fn decode(repository: RepositoryId, name: &SnapshotName, bytes: &[u8]) -> Result<Self, Error> {
        let (mut sequence, mut source, mut host) = (None, None, None);
        let (mut started, mut finished) = (None, None);
        let (mut paths, mut root_path, mut tags) = (Vec::new(), None, Vec::new());
        let (mut encrypted, mut previous, mut statistics) = (None, None, None);
        let (mut program, mut root) = (None, None);
        let r = Snapshot::header(repository, name).read(bytes, |r, key| {
            match key {
                3 => sequence = Some(r.uint()?),
                4 => source = Some(r.text()?.to_owned()),
                5 => host = Some(r.text()?.to_owned()),
                6 => started = Some(Timestamp::read(r)?),
                7 => finished = Some(Timestamp::read(r)?),
                8 => {
                    let count = r.array_up_to(PATHS)?;
                    paths = (0..count).map(|_| r.bytes().map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
                }
                9 => {
                    let count = r.array_up_to(TAGS)?;
                    tags = (0..count).map(|_| r.text().map(str::to_owned)).collect::<Result<_, _>>()?;
                }
                10 => encrypted = Some(r.uint()? != 0),
                11 => previous = Some(SnapshotId::from_slice(r.bytes()?)?),
                12 => statistics = Some(Statistics::read(r)?),
                13 => program = Some(r.text()?.to_owned()),
                14 => root = Some(Node::decode_root(r.bytes()?)?),
                15 => root_path = Some(r.bytes()?.to_vec()),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        // Listings show the number and time from the name without opening the snapshot, so they must match.
        let (sequence, started) = (r.need("sequence", sequence)?, r.need("start", started)?);
        if sequence != name.sequence || name::time(started.seconds) != name.time {
            return Err(r.wrong("the number or time differs from the object's name"));
        }
        let source = r.need("source", source)?;
        if !is_source_name(&source) {
            return Err(r.wrong(format!("invalid source name {source:?}")));
        }
        Ok(Snapshot {
            name: name.clone(),
            source,
            host: r.need("host", host)?,
            started,
            finished: r.need("end", finished)?,
            paths,
            root_path,
            tags,
            encrypted: r.need("encryption", encrypted)?,
            previous,
            statistics: r.need("statistics", statistics)?,
            program: r.need("program", program)?,
            root: r.need("root", root)?,
        })
    }
}

impl Statistics {
    fn write(&self, w: &mut CborWriter) {
        w.array(5).uint(self.files).uint(self.directories).uint(self.others);
        w.uint(self.bytes).uint(self.stored_bytes);
    }

    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        r.array_of(5)?;
        Ok(Statistics {
            files: r.uint()?,
            directories: r.uint()?,
            others: r.uint()?,
            bytes: r.uint()?,
            stored_bytes: r.uint()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::SourceId;

    #[test]
    fn too_many_tags_or_paths_are_refused() {
        let name = SnapshotName {
            source: SourceId::random(),
            sequence: 7,
            time: name::time(1_795_186_321),
            id: SnapshotId([7; 8]),
        };
        let root = Node {
            blocks: Vec::new(),
            items: Items::Entries(Vec::new()),
            users: Default::default(),
            groups: Default::default(),
        };
        let snapshot = Snapshot {
            name: name.clone(),
            source: "home".into(),
            host: "host".into(),
            started: Timestamp { seconds: 1_795_186_321, nanos: 5 },
            finished: Timestamp::default(),
            paths: Vec::new(),
            root_path: None,
            tags: Vec::new(),
            encrypted: true,
            previous: None,
            statistics: Statistics::default(),
            program: "test".into(),
            root,
        };
        let repository = RepositoryId::random();
        let why = |snapshot: &Snapshot| {
            let bytes = snapshot.encode(repository);
            Snapshot::decode(repository, &snapshot.name, &bytes).map(drop).unwrap_err().to_string()
        };
        let tags = vec!["x".to_owned(); TAGS + 1];
        assert!(why(&Snapshot { tags, ..snapshot.clone() }).contains("1025 items"));
        let paths = vec![b"x".to_vec(); PATHS + 1];
        assert!(why(&Snapshot { paths, ..snapshot }).contains("65537 items"));
    }
}
