//! Object names: what lies where in a repository.

use super::Error;
use super::id::{ObjectId, PackId, SnapshotId, SourceId};

/// The plain description of a repository: version, id, whether blocks are encrypted.
pub const DESCRIPTION: &str = "brackfs.toml";
/// The same again, for when that is lost or damaged.
pub const DESCRIPTION_COPY: &str = "brackfs-copy.toml";
/// How to get data out without this program.
pub const README: &str = "README.txt";
/// Public certificates, and the owner's secret key under its passphrase.
pub const KEYS: &str = "keys/";
/// Blocks, one after the other.
pub const PACKS: &str = "packs/";
/// Digests of packs, in the format of `b3sum --check`.
pub const SUMS: &str = "sums/";
/// What one commit added.
pub const INDEX: &str = "index/";
/// The names of sources.
pub const SOURCES: &str = "sources/";
/// Snapshots, below the id of their source.
pub const SNAPSHOTS: &str = "snapshots/";
/// What the writers share with the owner.
pub const SECRETS: &str = "secrets/";
/// One object a run that writes.
pub const GENERATION: &str = "generation/";

/// All folders that objects lie in, but for the few at the top.
pub const FOLDERS: [&str; 8] = [KEYS, PACKS, SUMS, INDEX, SOURCES, SNAPSHOTS, SECRETS, GENERATION];

/// The name of a pack. The first two digits of the id are a folder, so that no folder grows huge.
pub fn pack(id: PackId) -> String {
    let id = id.to_string();
    let (head, _) = id.split_at(2);
    format!("{PACKS}{head}/{id}")
}

/// The pack that an object name stands for.
pub fn parse_pack(name: &str) -> Option<PackId> {
    let id: PackId = name.rsplit('/').next()?.parse().ok()?;
    (pack(id) == name).then_some(id)
}

/// The name of the list of pack digests of one commit.
pub fn sums(id: ObjectId) -> String {
    format!("{SUMS}{id}")
}

/// The name of the index of one commit.
pub fn index(id: ObjectId) -> String {
    format!("{INDEX}{id}")
}

/// The name of the document that holds a source's name.
pub fn source(id: SourceId) -> String {
    format!("{SOURCES}{id}")
}

/// The name of a secrets document.
pub fn secrets(id: ObjectId) -> String {
    format!("{SECRETS}{id}")
}

/// The highest number of a generation, and of a snapshot: what ten digits can say.
pub const LAST_NUMBER: u64 = 9_999_999_999;

/// The name of the generation `number`; ten digits, so that they sort as numbers.
pub fn generation(number: u64) -> String {
    format!("{GENERATION}{number:010}")
}

/// The number of the generation that an object name stands for. Only a name that [`generation`] makes of a number up to
/// [`LAST_NUMBER`] stands for one.
pub fn parse_generation(name: &str) -> Option<u64> {
    let number = name.strip_prefix(GENERATION)?.parse().ok()?;
    (number <= LAST_NUMBER && generation(number) == name).then_some(number)
}

/// A recipient's certificate.
pub fn recipient(fingerprint: &str) -> String {
    format!("{KEYS}recipient-{fingerprint}.asc")
}

/// The certificate of a machine that writes.
pub fn host(fingerprint: &str) -> String {
    format!("{KEYS}host-{fingerprint}.asc")
}

/// The owner's secret key, under a passphrase.
pub fn owner(fingerprint: &str) -> String {
    format!("{KEYS}owner-{fingerprint}.asc")
}

/// A snapshot's place: its source, when it was made (UTC, without colons) and its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// The source it is a snapshot of.
    pub source: SourceId,
    /// When the backup began: `20261120T145201Z`.
    pub time: String,
    /// Tells snapshots of the same second apart.
    pub id: SnapshotId,
}

impl SnapshotName {
    /// The name of the object.
    pub fn object(&self) -> String {
        format!("{SNAPSHOTS}{}/{}-{}", self.source, self.time, self.id)
    }

    /// The snapshot that an object name stands for.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let parts = || {
            let (source, leaf) = name.strip_prefix(SNAPSHOTS)?.split_once('/')?;
            let (time, id) = leaf.split_once('-')?;
            Some((source, time, id))
        };
        let (source, time, id) = parts().ok_or_else(|| Error::malformed("snapshot name", name))?;
        if !is_time(time) {
            return Err(Error::malformed("snapshot name", format!("{time} is no time")));
        }
        Ok(SnapshotName { source: source.parse()?, time: time.to_owned(), id: id.parse()? })
    }
}

/// Whether `text` has the shape `20261120T145201Z`.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 16
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 => *byte == b'T',
            15 => *byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let id = PackId::random();
        assert_eq!(parse_pack(&pack(id)), Some(id));
        assert_eq!(parse_pack(&format!("packs/zz/{id}")), None);
        assert_eq!(parse_generation(&generation(7)), Some(7));
        assert_eq!(parse_generation(&generation(LAST_NUMBER)), Some(LAST_NUMBER));
        let strange = ["7", "+000000007", " 000000007", "00000000007", "10000000000", "18446744073709551615", "x", ""];
        for number in strange {
            assert_eq!(parse_generation(&format!("generation/{number}")), None, "{number}");
        }
        let name =
            SnapshotName { source: SourceId::random(), time: "20261120T145201Z".into(), id: SnapshotId::random() };
        assert_eq!(SnapshotName::parse(&name.object()).unwrap(), name);
        assert!(SnapshotName::parse("snapshots/x/20261120T145201Z-0000000000000000").is_err());
        assert!(SnapshotName::parse("snapshots/../..").is_err());
    }
}
