//! Tests of session keys that were sealed again for recipients who were added later.

use std::cell::Cell;

use sequoia_openpgp::crypto::SessionKey;

use super::{PROFILES, opened, owner, sealed_to};
use crate::crypt::framing::Payload;
use crate::crypt::{
    Certificate, Error, Fingerprint, Opener, Profile, RewrappedKeys, Sealer, SecretKey, seipd1, seipd2,
};

/// Tables in memory, each with the fingerprint of its recipient.
#[derive(Default)]
struct MemoryTables {
    tables: Vec<(Fingerprint, Vec<u8>)>,
    is_away: Cell<bool>,
    visits: Cell<usize>,
    /// The number of tables that were skipped.
    skipped: Cell<usize>,
}

impl MemoryTables {
    fn with(recipient: &SecretKey, tables: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let tables = tables.into_iter().map(|sealed| (recipient.fingerprint(), sealed)).collect();
        MemoryTables { tables, ..MemoryTables::default() }
    }
}

impl RewrappedKeys for MemoryTables {
    fn visit(
        &self,
        recipients: &[Fingerprint],
        limit: usize,
        found: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> bool {
        self.visits.set(self.visits.get() + 1);
        if self.is_away.get() {
            return false;
        }
        for (recipient, sealed) in &self.tables {
            if recipients.contains(recipient) && sealed.len() <= limit && found(sealed).is_err() {
                self.skipped.set(self.skipped.get() + 1);
            }
        }
        true
    }
}

/// Opens a message as readers do.
fn opened_with(opener: &Opener, message: &[u8], tables: &MemoryTables) -> Result<Vec<u8>, Error> {
    match opened(opener, message) {
        Err(error) if error.is_other_key() && opener.find_rewrapped(message, tables) => opened(opener, message),
        other => other,
    }
}

/// A run that seals a message of its own to `recipient`.
struct Run {
    message: Vec<u8>,
    pkesks: Vec<u8>,
}

impl Run {
    fn new(recipient: &Certificate) -> Self {
        let sealer = Sealer::new(std::slice::from_ref(recipient)).unwrap();
        let mut message = Vec::new();
        sealer.seal(b"hello", &mut message).unwrap();
        Run { message, pkesks: sealer.pkesks().remove(0) }
    }
}

fn runs(recipient: &SecretKey, count: usize) -> Vec<Run> {
    (0..count).map(|_| Run::new(&recipient.certificate())).collect()
}

fn pkesks(runs: &[Run]) -> Vec<Vec<u8>> {
    runs.iter().map(|run| run.pkesks.clone()).collect()
}

fn table(opener: &Opener, runs: &[Run], recipient: &SecretKey) -> Vec<u8> {
    let table = opener.rewrap(&pkesks(runs), &recipient.certificate()).unwrap();
    assert_eq!((table.keys, table.missing), (runs.len(), 0));
    table.sealed
}

#[test]
fn a_later_recipient_opens_old_messages_with_a_table() {
    for profile in PROFILES {
        for later_profile in PROFILES {
            let (first, later) = (owner(profile), owner(later_profile));
            let runs = runs(&first, 3);
            let old = Opener::new(first).unwrap();
            let tables = MemoryTables::with(&later, [table(&old, &runs[..2], &later)]);
            let new = Opener::new(later).unwrap();
            assert!(matches!(opened(&new, &runs[0].message), Err(Error::NoKey { .. })));
            for _ in 0..2 {
                for run in &runs[..2] {
                    assert_eq!(opened_with(&new, &run.message, &tables).unwrap(), b"hello");
                }
            }
            // The third run is in no table.
            assert!(matches!(opened_with(&new, &runs[2].message, &tables), Err(Error::NoKey { .. })));
            assert_eq!((tables.visits.get(), tables.skipped.get()), (1, 0));
        }
    }
}

#[test]
fn unusable_tables_are_skipped() {
    let (first, later, other) = (owner(Profile::Rfc9580), owner(Profile::Rfc9580), owner(Profile::Rfc9580));
    let runs = runs(&first, 1);
    let old = Opener::new(first).unwrap();
    let good = table(&old, &runs, &later);
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let unusable = [
        b"garbage".to_vec(),
        Vec::new(),
        changed,
        good[..good.len() - 1].to_vec(),
        table(&old, &runs, &other),
        sealed_to(&[&later], b"other content"),
        sealed_to(&[&later], b"brackfs session keys 1\npartial record"),
    ];
    let count = unusable.len();
    let tables = MemoryTables::with(&later, unusable.into_iter().chain([good]));
    let new = Opener::new(later).unwrap();
    assert_eq!(opened_with(&new, &runs[0].message, &tables).unwrap(), b"hello");
    assert_eq!(tables.skipped.get(), count);
}

#[test]
fn a_wrong_session_key_in_a_table_does_no_harm() {
    for profile in PROFILES {
        let (first, later) = (owner(profile), owner(profile));
        let run = Run::new(&first.certificate());
        let wrong = |byte: u8| {
            let record = [blake3::hash(&run.pkesks).as_bytes().as_slice(), &[byte; 32]].concat();
            sealed_to(&[&later], &[b"brackfs session keys 1\n".as_slice(), &record].concat())
        };
        let good = table(&Opener::new(first.clone()).unwrap(), std::slice::from_ref(&run), &later);
        let tables = MemoryTables::with(&later, [wrong(0), good, wrong(255)]);
        let new = Opener::new(later.clone()).unwrap();
        assert_eq!(opened_with(&new, &run.message, &tables).unwrap(), b"hello");

        // Alone it opens nothing, and the error does not say that a key is missing.
        let tables = MemoryTables::with(&later, [wrong(0)]);
        let new = Opener::new(later.clone()).unwrap();
        let error = opened_with(&new, &run.message, &tables).unwrap_err();
        assert!(!error.is_other_key(), "{error}");

        // A key of the reader's own still opens the message.
        let both = Opener::with_any(vec![later.clone(), first.clone()]).unwrap();
        assert!(both.find_rewrapped(&run.message, &MemoryTables::with(&later, [wrong(0)])));
        assert_eq!(opened(&both, &run.message).unwrap(), b"hello");
    }
}

#[test]
fn a_forged_message_with_its_key_in_a_table_does_no_harm() {
    for profile in PROFILES {
        let (first, later) = (owner(profile), owner(profile));
        let run = Run::new(&first.certificate());
        let key = [7; 32];
        let record = [blake3::hash(&run.pkesks).as_bytes().as_slice(), &key].concat();
        let forged_table = sealed_to(&[&later], &[b"brackfs session keys 1\n".as_slice(), &record].concat());
        let mut forged = run.pkesks.clone();
        let seal = match profile {
            Profile::Rfc9580 => seipd2::seal,
            Profile::Rfc4880 => seipd1::seal,
        };
        seal(&SessionKey::from(key.as_slice()), Payload::Literal, b"forged", &mut forged).unwrap();

        let good = table(&Opener::new(first.clone()).unwrap(), std::slice::from_ref(&run), &later);
        let tables = MemoryTables::with(&later, [forged_table, good]);
        let new = Opener::new(later.clone()).unwrap();
        let both = Opener::with_any(vec![later, first]).unwrap();
        assert!(both.find_rewrapped(&run.message, &tables));
        for _ in 0..2 {
            // Signatures show that it is forged.
            assert_eq!(opened_with(&new, &forged, &tables).unwrap(), b"forged");
            assert_eq!(opened_with(&new, &run.message, &tables).unwrap(), b"hello");
            assert_eq!(opened(&both, &forged).unwrap(), b"forged");
            assert_eq!(opened(&both, &run.message).unwrap(), b"hello");
        }
    }
}

#[test]
fn tables_are_loaded_once_and_again_only_if_they_could_not_be_listed() {
    let (first, later) = (owner(Profile::Rfc9580), owner(Profile::Rfc9580));
    let runs = runs(&first, 2);
    let tables = MemoryTables::with(&later, [table(&Opener::new(first).unwrap(), &runs, &later)]);
    let new = Opener::new(later).unwrap();
    tables.is_away.set(true);
    assert!(opened_with(&new, &runs[0].message, &tables).unwrap_err().is_other_key());
    tables.is_away.set(false);
    for run in &runs {
        assert_eq!(opened_with(&new, &run.message, &tables).unwrap(), b"hello");
    }
    assert_eq!(tables.visits.get(), 2);
}

#[test]
fn at_most_64_tables_are_decrypted() {
    let (first, later) = (owner(Profile::Rfc9580), owner(Profile::Rfc9580));
    let runs = runs(&first, 2);
    let old = Opener::new(first).unwrap();
    let empty = || sealed_to(&[&later], b"brackfs session keys 1\n");
    // Garbage does not count.
    let garbage = std::iter::repeat_n(b"garbage".to_vec(), 1000);
    let all = garbage
        .chain(std::iter::repeat_with(empty).take(63))
        .chain(runs.iter().map(|run| table(&old, std::slice::from_ref(run), &later)));
    let tables = MemoryTables::with(&later, all.collect::<Vec<_>>());
    let new = Opener::new(later.clone()).unwrap();
    assert_eq!(opened_with(&new, &runs[0].message, &tables).unwrap(), b"hello");
    assert!(opened_with(&new, &runs[1].message, &tables).unwrap_err().is_other_key());
    assert_eq!(tables.skipped.get(), 1001);
}

#[test]
fn a_table_can_be_made_from_a_table() {
    let (first, second, third) = (owner(Profile::Rfc9580), owner(Profile::Rfc4880), owner(Profile::Rfc9580));
    let (mut runs, own) = (runs(&first, 3), runs(&second, 1));
    let tables = MemoryTables::with(&second, [table(&Opener::new(first).unwrap(), &runs[..2], &second)]);
    let opener = Opener::new(second.clone()).unwrap();
    assert!(opener.find_rewrapped(&runs[0].message, &tables));
    runs.extend(own);
    let made = opener.rewrap(&pkesks(&runs), &third.certificate()).unwrap();
    assert_eq!((made.keys, made.missing), (3, 1));
    let tables = MemoryTables::with(&third, [made.sealed]);
    let new = Opener::new(third).unwrap();
    for (at, run) in runs.iter().enumerate() {
        assert_eq!(opened_with(&new, &run.message, &tables).is_ok(), at != 2);
    }
}

#[test]
fn malformed_pkesk_packets_are_an_error() {
    let key = owner(Profile::Rfc9580);
    let good = Run::new(&key.certificate()).pkesks;
    let opener = Opener::new(key.clone()).unwrap();
    for wrong in [Vec::new(), b"garbage".to_vec(), good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat()] {
        assert!(opener.rewrap(&[good.clone(), wrong], &key.certificate()).is_err());
    }
}
