//! Session keys that are sealed again for a recipient who was added later.

use std::fs;
use std::path::Path;

use brackfs::crypt::{Opener, SecretKey};
use brackfs::repository::Repository;

use super::ordeal::objects;

/// Reads a secret key.
pub fn secret_key(path: &Path) -> SecretKey {
    SecretKey::parse(&fs::read(path).expect("a key file")).expect("a key")
}

/// The PKESK packets that a message begins with.
pub fn pkesks(message: &[u8]) -> Vec<u8> {
    let mut end = 0;
    // A PKESK packet and its length: one octet up to 191, else two.
    while message[end] == 0xC1 {
        end += match message[end + 1] {
            length @ 0..192 => 2 + usize::from(length),
            high => 3 + (usize::from(high) - 192) * 256 + usize::from(message[end + 2]) + 192,
        };
    }
    assert!(end > 0);
    message[..end].to_vec()
}

/// Seals the session keys of all objects in a repository again, for another key.
pub fn rewrap_all(repository: &Path, old: &Path, new: &Path) {
    let sealed = ["packs/", "index/", "sources/", "snapshots/", "secrets/", "generation/", "moved/", "forgotten/"];
    let names = objects(repository).into_iter().filter(|name| sealed.iter().any(|folder| name.starts_with(folder)));
    let mut keys: Vec<_> = names.map(|name| pkesks(&fs::read(repository.join(name)).expect("an object"))).collect();
    keys.sort();
    keys.dedup();
    let new = secret_key(new).certificate();
    let table = Opener::new(secret_key(old)).expect("the old key opens").rewrap(&keys, &new).expect("a table");
    assert_eq!(table.missing, 0);
    let repository = Repository::open(&repository.into()).expect("the repository");
    repository.put_rewrapped(&new.fingerprint(), &table.sealed).expect("the table is stored");
}
