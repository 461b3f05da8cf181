//! Session keys sealed again, for recipients who were added later.
//!
//! A run seals its blocks to the recipients of its time. A table is a sealed message to a later recipient with the session
//! keys of such runs, so that this recipient opens the old messages unchanged. Its content is that of saved session keys (see
//! [`super::session_keys`]). [`Opener::rewrap`](super::Opener::rewrap) makes a table;
//! [`Opener::find_rewrapped`](super::Opener::find_rewrapped) loads tables.
//!
//! Tables are not signed. A wrong session key opens no genuine message, but an attacker can seal a message with a key of
//! their own, and add this key to a table. So all candidates are tried on each message, and none is cached. A table that
//! cannot be used is skipped.

use blake3::Hash;
use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::error::Error;
use super::fingerprint::Fingerprint;
use super::framing::{self, Packet};
use super::session_keys::{self, MAX_KEYS};

/// The maximum number of tables that are decrypted: an attacker may have added some, and each may take a touch of a
/// smart card.
const MAX_TABLES: usize = 64;
/// The maximum number of session keys that are tried on a message.
const MAX_CANDIDATES: usize = 64;

/// Storage for tables of session keys that were sealed again.
pub trait RewrappedKeys {
    /// Calls `found` with each table of these recipients, up to `limit` bytes each. An error of `found` is the reason why
    /// the table is skipped. Returns whether the tables could be listed; if not, they are loaded when needed next.
    fn visit(
        &self,
        recipients: &[Fingerprint],
        limit: usize,
        found: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> bool;
}

/// A table for a recipient who was added later.
#[derive(Debug)]
pub struct Rewrapped {
    /// The sealed table.
    pub sealed: Vec<u8>,
    /// The number of session keys in it.
    pub keys: usize,
    /// The number of session keys that are encrypted to other keys than the opener's, and are not in the table.
    pub missing: usize,
}

/// All tables of an opener.
#[derive(Default)]
pub(super) struct Tables {
    /// The content of each table, with its records in order.
    contents: Vec<Protected>,
    keys: usize,
    decrypted: usize,
}

impl Tables {
    /// Counts a table that is decrypted next. Fails if there were too many.
    pub(super) fn count(&mut self) -> Result<(), Error> {
        if self.decrypted >= MAX_TABLES {
            return Err(Error::Refused { what: "there are more than 64 tables of session keys for this key" });
        }
        self.decrypted += 1;
        Ok(())
    }

    /// Adds a table.
    pub(super) fn add(&mut self, mut content: Protected) -> Result<(), Error> {
        let Some(records) = session_keys::records_mut(&mut content) else {
            return Err(Error::Refused { what: "it does not hold session keys" });
        };
        let keys = self.keys + records.len();
        if keys > MAX_KEYS.get() {
            return Err(Error::TooLarge { size: keys as u64, limit: MAX_KEYS.get() as u64 });
        }
        records.sort_unstable();
        self.keys = keys;
        self.contents.push(content);
        Ok(())
    }

    /// Returns the session keys that the tables have for these PKESK packets.
    pub(super) fn candidates(&self, digest: &Hash) -> impl Iterator<Item = SessionKey> {
        let digest = *digest.as_bytes();
        let of_table = move |content| {
            let records = session_keys::records(content).unwrap_or_default();
            let start = records.partition_point(|record| *session_keys::split(record).0 < digest);
            let (_, after) = records.split_at(start);
            let same = after.iter().map(session_keys::split).take_while(move |(found, _)| **found == digest);
            same.map(|(_, key)| SessionKey::from(key))
        };
        self.contents.iter().map(|content| &content[..]).flat_map(of_table).take(MAX_CANDIDATES)
    }
}

/// Returns a message that begins with these PKESK packets and has no content. Decrypting its session key needs nothing else.
pub(super) fn message_with(pkesks: &[u8]) -> Result<Vec<u8>, Error> {
    /// A version 1 packet: version, random block, its last two bytes, modification detection code.
    const EMPTY: usize = 1 + 18 + 22;
    let (first, _) = Packet::split(pkesks)?;
    let version = match first.body.first() {
        Some(6) => 2,
        _ => 1,
    };
    let mut message = pkesks.to_vec();
    framing::push_header(framing::SEIPD, EMPTY, &mut message)?;
    message.push(version);
    message.resize(message.len() + EMPTY - 1, 0);
    Ok(message)
}
