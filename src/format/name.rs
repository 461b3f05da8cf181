//! Object names, which are the layout of a repository.

use std::str::FromStr;

use uuid::Uuid;

use super::error::Error;
use super::id::{ObjectId, PackId, RunId, SnapshotId, SourceId};

/// The plaintext description of a repository: version, id, and whether blocks are encrypted.
pub const DESCRIPTION: &str = "brackfs.toml";
/// A copy of the description, in case it is lost or damaged.
pub const DESCRIPTION_COPY: &str = "brackfs-copy.toml";
/// Instructions to get data out without brackfs.
pub const README: &str = "README.txt";
/// The documentation of the format.
pub const FORMAT: &str = "FORMAT.txt";
/// The folder of certificates and of the owner's secret key, which is under a passphrase.
pub const KEYS: &str = "keys/";
/// The folder of packs, which are concatenated blocks.
pub const PACKS: &str = "packs/";
/// The folder of pack digests, in the format of `b3sum --check`.
pub const SUMS: &str = "sums/";
/// The folder of indexes.
pub const INDEX: &str = "index/";
/// The folder of the names of sources.
pub const SOURCES: &str = "sources/";
/// The folder of snapshots, with a subfolder for each source id.
pub const SNAPSHOTS: &str = "snapshots/";
/// The folder of secrets documents.
pub const SECRETS: &str = "secrets/";
/// The folder of generations, one object for each writing run.
pub const GENERATION: &str = "generation/";

/// The folder of moves, with a subfolder for each first byte of the ids of packs.
pub const MOVED: &str = "moved/";
/// The folder of tombstones.
pub const FORGOTTEN: &str = "forgotten/";
/// The folder of session keys for recipients that were added later, with a subfolder for each recipient.
pub const REWRAPPED: &str = "rewrapped/";

/// All folders of objects. A few objects are at the top level.
pub const FOLDERS: [&str; 11] =
    [KEYS, PACKS, SUMS, INDEX, SOURCES, SNAPSHOTS, SECRETS, GENERATION, MOVED, FORGOTTEN, REWRAPPED];

/// Returns the name of a pack. The first two digits of the id name a subfolder, to keep folders small.
pub fn pack(id: PackId) -> String {
    let id = id.to_string();
    let (head, _) = id.split_at(2);
    format!("{PACKS}{head}/{id}")
}

/// Parses the name of a pack.
pub fn parse_pack(name: &str) -> Option<PackId> {
    let id: PackId = name.rsplit('/').next()?.parse().ok()?;
    (pack(id) == name).then_some(id)
}

/// Returns the name of a commit's list of pack digests.
pub fn sums(id: ObjectId) -> String {
    format!("{SUMS}{id}")
}

/// Returns the name of a commit's index.
pub fn index(id: ObjectId) -> String {
    format!("{INDEX}{id}")
}

/// Returns the name of a source document.
pub fn source(id: SourceId) -> String {
    format!("{SOURCES}{id}")
}

/// Returns the name of a secrets document.
pub fn secrets(id: ObjectId) -> String {
    format!("{SECRETS}{id}")
}

/// The highest number of a generation or snapshot: ten digits.
pub const LAST_NUMBER: u64 = 9_999_999_999;

/// Returns the folder of the shards of moves of packs whose ids begin with `prefix`.
pub fn moved_folder(prefix: u8) -> String {
    format!("{MOVED}{prefix:02x}/")
}

/// Returns the name of a shard of moves.
pub fn moved(prefix: u8, id: ObjectId) -> String {
    format!("{}{id}", moved_folder(prefix))
}

/// Returns the name of a document of tombstones.
pub fn forgotten(id: ObjectId) -> String {
    format!("{FORGOTTEN}{id}")
}

/// Returns the name of a table of session keys for the recipient with this fingerprint.
pub fn rewrapped(fingerprint: &str, id: ObjectId) -> String {
    format!("{REWRAPPED}{fingerprint}/{id}")
}

/// The name of a generation: its number and its run. The run makes the name unique, since few storages can create an object
/// only if it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationName {
    /// The number of the run: above that of every earlier run; at most [`LAST_NUMBER`].
    pub number: u64,
    /// The public name of the run: see [`RunId::writer`].
    pub writer: Uuid,
}

impl GenerationName {
    /// The name of the generation of `run`.
    pub fn of_run(number: u64, run: RunId) -> Self {
        GenerationName { number, writer: run.writer() }
    }

    /// Returns the object's name. The number has ten digits, so that names sort by number.
    pub fn object(&self) -> String {
        format!("{GENERATION}{:010}-{}", self.number, self.writer)
    }

    /// Parses the name of a generation's object.
    pub fn parse(name: &str) -> Option<Self> {
        let (number, writer) = name.strip_prefix(GENERATION)?.split_once('-')?;
        let found = GenerationName { number: number.parse().ok()?, writer: Uuid::try_parse(writer).ok()? };
        (found.number <= LAST_NUMBER && found.object() == name).then_some(found)
    }
}

/// Parses the name of a shard of moves.
pub fn parse_moved(name: &str) -> Option<(u8, ObjectId)> {
    let (prefix, id) = name.strip_prefix(MOVED)?.split_once('/')?;
    let found = (u8::from_str_radix(prefix, 16).ok()?, id.parse().ok()?);
    (moved(found.0, found.1) == name).then_some(found)
}

/// Parses the name of a document of tombstones.
pub fn parse_forgotten(name: &str) -> Option<ObjectId> {
    parse_id(FORGOTTEN, name)
}

/// Parses the name of a list of pack digests.
pub fn parse_sums(name: &str) -> Option<ObjectId> {
    parse_id(SUMS, name)
}

/// Parses the name of an index.
pub fn parse_index(name: &str) -> Option<ObjectId> {
    parse_id(INDEX, name)
}

/// Parses the name of a source document.
pub fn parse_source(name: &str) -> Option<SourceId> {
    parse_id(SOURCES, name)
}

/// Parses the name of a secrets document.
pub fn parse_secrets(name: &str) -> Option<ObjectId> {
    parse_id(SECRETS, name)
}

fn parse_id<T: FromStr>(folder: &str, name: &str) -> Option<T> {
    name.strip_prefix(folder)?.parse().ok()
}

/// Parses the name of a key file: the role (`recipient`, `host` or `owner`) and the fingerprint.
pub fn parse_key(name: &str) -> Option<(&str, &str)> {
    let (role, fingerprint) = name.strip_prefix(KEYS)?.strip_suffix(".asc")?.split_once('-')?;
    matches!(role, "recipient" | "host" | "owner").then_some((role, fingerprint))
}

/// Parses the name of a table of session keys: the fingerprint of the recipient, and the id.
pub fn parse_rewrapped(name: &str) -> Option<(&str, ObjectId)> {
    let (fingerprint, id) = name.strip_prefix(REWRAPPED)?.split_once('/')?;
    let is_hex = !fingerprint.is_empty() && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((Some(fingerprint).filter(|_| is_hex)?, id.parse().ok()?))
}

/// Whether `name` is the name of an object in one of the [`FOLDERS`]. File managers and synchronization programs create
/// other files there, which are not objects.
pub fn is_object(name: &str) -> bool {
    parse_key(name).is_some()
        || parse_pack(name).is_some()
        || parse_sums(name).is_some()
        || parse_index(name).is_some()
        || parse_source(name).is_some()
        || SnapshotName::parse(name).is_ok()
        || parse_secrets(name).is_some()
        || GenerationName::parse(name).is_some()
        || parse_moved(name).is_some()
        || parse_forgotten(name).is_some()
        || parse_rewrapped(name).is_some()
}

/// Returns the name of a recipient's certificate.
pub fn recipient(fingerprint: &str) -> String {
    format!("{KEYS}recipient-{fingerprint}.asc")
}

/// Returns the name of a host's certificate.
pub fn host(fingerprint: &str) -> String {
    format!("{KEYS}host-{fingerprint}.asc")
}

/// Returns the name of the owner's secret key, which is under a passphrase.
pub fn owner(fingerprint: &str) -> String {
    format!("{KEYS}owner-{fingerprint}.asc")
}

/// Whether `init` writes this object, or creates this folder (such as `keys/`), before the description. If a directory has
/// nothing else and no description, it is the leftover of an interrupted `init` and can be removed.
pub fn precedes_description(name: &str) -> bool {
    [KEYS, SECRETS, README, FORMAT].contains(&name) || parse_key(name).is_some() || parse_secrets(name).is_some()
}

/// The name of a snapshot: its source, number, start time and id.
///
/// The number determines the order, since the clock may be wrong. Number and time are part of the name, so that snapshots
/// can be listed in order with their times without opening them. Only the document authenticates them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// The id of the source.
    pub source: SourceId,
    /// The number, greater than those of all earlier snapshots of the repository; at most [`LAST_NUMBER`].
    pub sequence: u64,
    /// The start of the backup in UTC, such as `20261120T145201Z`.
    pub time: String,
    /// The snapshot's id.
    pub id: SnapshotId,
}

/// The first and the last time that fit into a name, whose year has four digits; in seconds since 1970.
const TIMES: (i64, i64) = (-62_167_219_200, 253_402_207_200);

/// Formats a time for a snapshot's name. Times out of range become the nearest one in range.
pub fn time(seconds: i64) -> String {
    let (first, last) = TIMES;
    // This cannot fail in the range.
    let time = jiff::Timestamp::from_second(seconds.clamp(first, last)).unwrap_or_default();
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Parses a time in a snapshot's name to seconds since 1970. `None` if there is no such date.
pub fn parse_time(text: &str) -> Option<i64> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(time.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

impl SnapshotName {
    /// Returns the object's name.
    pub fn object(&self) -> String {
        format!("{SNAPSHOTS}{}/{:010}-{}-{}", self.source, self.sequence, self.time, self.id)
    }

    /// Parses the name of a snapshot's object.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let parts = || {
            let (source, leaf) = name.strip_prefix(SNAPSHOTS)?.split_once('/')?;
            let (sequence, rest) = leaf.split_once('-')?;
            let (time, id) = rest.split_once('-')?;
            Some((source, sequence, time, id))
        };
        let (source, number, time, id) = parts().ok_or_else(|| Error::malformed("snapshot name", name))?;
        let sequence = number.parse().ok().filter(|_| number.len() == 10 && is_digits(number));
        let sequence =
            sequence.ok_or_else(|| Error::malformed("snapshot name", format!("{number} is not a number")))?;
        if !is_time(time) {
            return Err(Error::malformed("snapshot name", format!("{time} is not a time")));
        }
        Ok(SnapshotName { source: source.parse()?, sequence, time: time.to_owned(), id: id.parse()? })
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `text` has the form `20261120T145201Z`.
pub(super) fn is_time(text: &str) -> bool {
    let parts = text.strip_suffix('Z').and_then(|text| text.split_once('T'));
    parts.is_some_and(|(date, time)| date.len() == 8 && time.len() == 6 && is_digits(date) && is_digits(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generated_names_are_parsed() {
        let id = PackId::random();
        assert_eq!(parse_pack(&pack(id)), Some(id));
        assert_eq!(parse_pack(&format!("packs/zz/{id}")), None);
        let id = ObjectId::random();
        assert_eq!(parse_sums(&sums(id)), Some(id));
        assert_eq!(parse_index(&index(id)), Some(id));
        assert_eq!(parse_secrets(&secrets(id)), Some(id));
        for other in [sums(id), secrets(id), format!("index/x/{id}"), format!("index/{id}.tmp"), id.to_string()] {
            assert_eq!(parse_index(&other), None, "{other}");
        }
        let id = SourceId::random();
        assert_eq!(parse_source(&source(id)), Some(id));
        assert_eq!(parse_key(&host("ab")), Some(("host", "ab")));
        assert_eq!([parse_key("keys/guest-ab.asc"), parse_key("keys/host-ab"), parse_key("host-ab.asc")], [None; 3]);
        for number in [7, LAST_NUMBER] {
            let name = GenerationName::of_run(number, RunId::random());
            assert_eq!(GenerationName::parse(&name.object()), Some(name));
        }
        let writer = Uuid::new_v4();
        let strange = ["7", "+000000007", " 000000007", "00000000007", "10000000000", "18446744073709551615", "x", ""];
        for number in strange {
            assert_eq!(GenerationName::parse(&format!("generation/{number}-{writer}")), None, "{number}");
        }
        let (source, id) = (SourceId::random(), SnapshotId::random());
        let name = SnapshotName { source, sequence: 7, time: "20261120T145201Z".into(), id };
        assert_eq!(SnapshotName::parse(&name.object()).unwrap(), name);
        let last = SnapshotName { sequence: LAST_NUMBER, ..name };
        assert_eq!(SnapshotName::parse(&last.object()).unwrap(), last);
        let leaves = [
            format!("20261120T145201Z-{id}"),
            format!("7-20261120T145201Z-{id}"),
            format!("+000000007-20261120T145201Z-{id}"),
            format!("00000000007-20261120T145201Z-{id}"),
            format!("0000000007-20261120T145201-{id}"),
            format!("0000000007-2026112aT145201Z-{id}"),
            "0000000007-20261120T145201Z-".into(),
        ];
        for leaf in leaves {
            assert!(SnapshotName::parse(&format!("snapshots/{source}/{leaf}")).is_err(), "{leaf}");
        }
        assert!(SnapshotName::parse(&format!("snapshots/x/0000000007-20261120T145201Z-{id}")).is_err());
        assert!(SnapshotName::parse("snapshots/../..").is_err());
        let ids = [host("ab"), owner("ab"), recipient("ab"), secrets(ObjectId::random())];
        for name in [KEYS, SECRETS, README, FORMAT].into_iter().chain(ids.iter().map(String::as_str)) {
            assert!(precedes_description(name), "{name}");
        }
        for name in [
            DESCRIPTION,
            DESCRIPTION_COPY,
            PACKS,
            &pack(PackId::random()),
            &GenerationName::of_run(1, RunId::random()).object(),
            &moved(0xab, ObjectId::random()),
            &forgotten(ObjectId::random()),
            &rewrapped("00AB", ObjectId::random()),
            "keys/notes",
            "secrets/notes",
            "notes",
            "notes/",
        ] {
            assert!(!precedes_description(name), "{name}");
        }
    }

    #[test]
    fn names_sort_by_number_even_with_a_wrong_clock() {
        let source = SourceId::random();
        let name = |sequence, seconds| {
            SnapshotName { source, sequence, time: time(seconds), id: SnapshotId::random() }.object()
        };
        assert!(name(9, 4_000_000_000) < name(10, 0));
        for (seconds, shown) in [
            (1_795_186_321, "20261120T145201Z"),
            (-1, "19691231T235959Z"),
            (4_323_398_400, "21070102T080000Z"),
            (i64::MIN, "00000101T000000Z"),
            (i64::MAX, "99991230T220000Z"),
        ] {
            assert_eq!(time(seconds), shown);
        }
        assert_eq!(parse_time(&time(1_795_186_321)), Some(1_795_186_321));
        assert_eq!(parse_time("99999999T999999Z"), None);
    }
}
