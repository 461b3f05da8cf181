//! Snapshots: the signed root of one finished backup.

use super::Error;
use super::cbor::{Reader, Writer};
use super::document::{DocumentKind, Header};
use super::entry::{Entry, Timestamp};
use super::id::{RepositoryId, SnapshotId};
use super::name::{self, SnapshotName};
use super::node::{Items, Node};
use super::source::is_source_name;

/// Most bytes of a snapshot's document. Its root node, the largest part, has one entry.
pub const SNAPSHOT_SIZE: usize = 4 << 20;
/// Most paths of a snapshot.
pub const PATHS: usize = 65_536;
/// Most tags of a snapshot.
pub const TAGS: usize = 1024;

/// What a backup counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Regular files in the snapshot.
    pub files: u64,
    /// Directories in the snapshot, its root included.
    pub directories: u64,
    /// All other entries.
    pub others: u64,
    /// Sizes of the regular files added up.
    pub bytes: u64,
    /// Bytes that this backup added to packs.
    pub stored_bytes: u64,
}

/// One finished backup of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its place, with its source, number, time and id.
    pub name: SnapshotName,
    /// The source's name.
    pub source: String,
    /// The name of the machine.
    pub host: String,
    /// When the backup began.
    pub started: Timestamp,
    /// When everything was read.
    pub finished: Timestamp,
    /// The paths that were given.
    pub paths: Vec<Vec<u8>>,
    /// The path of the root directory on the machine: of the one directory that was given, else `/`. `None`: the content
    /// came through a pipe.
    pub root_path: Option<Vec<u8>>,
    /// The tags that were given.
    pub tags: Vec<String>,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The snapshot of the same source before this one.
    pub previous: Option<SnapshotId>,
    /// What was counted.
    pub statistics: Statistics,
    /// The program that wrote it.
    pub program: String,
    /// A node with one entry without a name: the root directory.
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

    /// The document's bytes.
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

    /// Reads the document found under `name`.
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
        // The name is the place, and it is shown without opening the snapshot.
        let (sequence, started) = (r.need("sequence", sequence)?, r.need("start", started)?);
        if sequence != name.sequence || name::time(started.seconds) != name.time {
            return Err(r.wrong("another number or time than its name"));
        }
        let source = r.need("source", source)?;
        if !is_source_name(&source) {
            return Err(r.wrong(format!("the source name {source:?}")));
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
    fn write(&self, w: &mut Writer) {
        w.array(5).uint(self.files).uint(self.directories).uint(self.others);
        w.uint(self.bytes).uint(self.stored_bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
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
    fn lists_have_limits() {
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
