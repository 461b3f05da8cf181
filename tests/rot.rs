//! A bit of the catalog flips: the next snapshot still equals the source, or the backup fails with a message. Damaged
//! rows are ignored and read again by the next run, without manual repair.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::machine;
use common::ordeal::{Random, rounds};
use common::{AGED, Entry, Run, Site, age, noise, number, set_time, settle, tree};
use rusqlite::Connection;

type Tree = BTreeMap<PathBuf, Entry>;

/// Number of flips in each round.
const FLIPS: u64 = 12;

/// Small chunks, so that large files have nodes of extents.
const OPTIONS: [&str; 3] = ["--chunk-size=16KiB", "--settle-max=0s", "--retries=0"];

/// A source with two snapshots, and a saved copy to return to.
struct Then {
    site: Site,
    /// Number of changes of the source since then.
    changes: u64,
}

impl Then {
    fn new() -> Then {
        let site = Site::in_memory();
        for i in 0..400 {
            site.write(&format!("d{}/{}/file {i}", i % 5, i % 3), noise(&format!("small {i}"), 50 + i * 7));
        }
        site.write("large", noise("large", 4 << 20));
        age(&site.source());
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        settle();
        site.backup(&OPTIONS).ok();
        site.write("d1/later", "later");
        site.backup(&OPTIONS).ok();
        let then = Then { site, changes: 0 };
        for name in ["repo", "state"] {
            copy(&then.place(name), &then.place(&format!("{name}-then")));
        }
        then
    }

    fn place(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    /// Restores repository and catalog of the second snapshot. The source stays, so its files keep their inodes.
    fn go_back(&self) {
        for name in ["repo", "state"] {
            copy(&self.place(&format!("{name}-then")), &self.place(name));
        }
    }

    /// Changes the source so that a run uses old rows of every kind. Most files stay unchanged.
    fn change(&mut self) {
        let (site, i) = (&self.site, self.changes);
        let mut written = vec![format!("d0/0/file {}", i % 27 * 15), format!("d3/new {i}")];
        for path in &written {
            site.write(path, noise(&format!("{path} {i}"), 5000));
        }
        // Stored content under other names.
        written.extend([format!("d2/again {i}"), format!("copies/large {i}")]);
        site.write(&written[2], noise("small 7", 50 + 7 * 7));
        let mut large = noise("large", 4 << 20);
        large.extend(i.to_le_bytes());
        site.write(&written[3], &large);
        let _ = fs::remove_file(site.source().join(format!("d4/1/file {}", 4 + i % 27 * 15)));
        let moved = |i: u64| site.source().join(format!("d{}/moved {i}", i % 2));
        let from = if i == 0 { site.source().join("d2/1") } else { moved(i - 1) };
        fs::rename(from, moved(i)).unwrap();
        for path in written {
            set_time(&site.source().join(path), AGED + i as i64, 0);
        }
        let _ = fs::remove_file(site.source().join(format!("copies/large {}", i.wrapping_sub(1))));
        settle();
        self.changes += 1;
    }

    fn catalog(&self) -> PathBuf {
        let folders = fs::read_dir(self.site.state()).unwrap().map(|entry| entry.unwrap().path());
        let folder = folders.into_iter().find(|path| path.join("host.key").exists()).unwrap();
        folder.join("catalog.sqlite")
    }

    /// Asserts that the snapshot of this run, if it made one, restores to the source.
    #[track_caller]
    fn is_right(&self, run: &Run, source: &Tree, what: &str) {
        let Some(summary) = run.stdout.lines().last().filter(|line| line.contains("snapshot_id")) else { return };
        let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        let Some(id) = summary["snapshot_id"].as_str() else { return };
        let to = self.place("out");
        let restored = self.site.brackfs(&["restore", id, "--to", to.to_str().unwrap()]);
        assert_eq!(restored.code, 0, "{what}: the snapshot is not whole\n{run}\n{restored}");
        let found = tree(&to);
        for path in source.keys().chain(found.keys()) {
            assert!(source.get(path) == found.get(path), "{what}: {} is wrong\n{run}", path.display());
        }
        fs::remove_dir_all(to).unwrap();
    }

    /// Backs up twice. The first run may fail with a message; the second, undisturbed one must succeed.
    #[track_caller]
    fn holds(&mut self, what: &str) -> Run {
        self.change();
        let source = tree(&self.site.source());
        let run = self.site.backup(&OPTIONS);
        assert!(!run.stderr.contains("panicked"), "{what}\n{run}");
        assert!(run.code == 0 || !run.stderr.is_empty(), "{what}: no message\n{run}");
        self.is_right(&run, &source, what);
        let second = self.site.backup(&OPTIONS);
        assert_eq!(second.code, 0, "{what}: the next run fails, too\n{run}\n{second}");
        self.is_right(&second, &source, what);
        run
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    machine::copy(from, to);
}

#[test]
fn a_flipped_bit_of_the_catalog_makes_no_wrong_snapshot() {
    rounds("flipped bits", 2, |mut random: Random| {
        let mut then = Then::new();
        for _ in 0..FLIPS {
            then.go_back();
            let path = then.catalog();
            let length = fs::metadata(&path).unwrap().len();
            let (at, bit) = (random.below(length), random.below(8));
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            then.holds(&format!("bit {bit} of byte {at} of {length}"));
        }
    });
}

/// Damages every column that snapshots are made from, one at a time, through SQLite, so that only the row is invalid.
#[test]
fn a_wrong_column_of_the_catalog_makes_no_wrong_snapshot() {
    let mut then = Then::new();
    let number = "UPDATE {table} SET {column} = {column} + 1 WHERE rowid % 3 = 0 AND {column} IS NOT NULL";
    let blob = "UPDATE {table} SET {column} = CAST(substr({column}, 1, length({column}) - 1) || x'07' AS BLOB)
                WHERE length({column}) > 0";
    for (table, columns, sql) in [
        ("chunks", "block start length", number),
        ("chunks", "digest", blob),
        ("blocks", "pack ordinal start length", number),
        ("packs", "kind length", number),
        ("packs", "uuid digest", blob),
        ("extent_nodes", "digest blocks", blob),
        ("directories", "below block start length linked", number),
        ("directories", "digest indexes name", blob),
        ("segments", "entries span block start length", number),
        ("segments", "first digest blocks more stats node", blob),
        ("sources", "uuid", blob),
        ("snapshots", "files bytes", number),
        ("snapshots", "usage", "UPDATE {table} SET {column} = 0"),
        ("snapshots", "uuid root", blob),
        ("spans", "spans", blob),
        ("newest_usages", "blocks", blob),
        ("newest_usages", "sequence", number),
        ("trust", "seed", number),
        ("recipients", "certificate", blob),
    ] {
        for column in columns.split(' ') {
            then.go_back();
            let db = Connection::open(then.catalog()).unwrap();
            let sql = sql.replace("{table}", table).replace("{column}", column);
            // Unique columns can't be changed in all rows at once: one row suffices.
            if let Err(error) = db.execute(&sql, []) {
                let one = format!("{sql} AND rowid = (SELECT max(rowid) FROM {table})");
                db.execute(&one, []).unwrap_or_else(|_| panic!("{sql}: {error}"));
            }
            drop(db);
            then.holds(&format!("{table}.{column}"));
        }
    }
}

/// `catalog verify` reports damaged rows; the next backup ignores them, with a message.
#[test]
fn damaged_rows_are_reported_and_replaced_without_a_rebuild() {
    let mut then = Then::new();
    let damages = [
        "UPDATE segments SET node = CAST(substr(node, 1, length(node) - 1) || x'70' AS BLOB)",
        "UPDATE chunks SET start = start + 1",
        "UPDATE directories SET below = below + 1",
        "UPDATE extent_nodes SET blocks = x'02'",
    ];
    for damage in damages {
        then.go_back();
        let db = Connection::open(then.catalog()).unwrap();
        assert!(db.execute(damage, []).unwrap() > 0, "{damage}");
        drop(db);
        let verify = then.site.brackfs(&["catalog", "verify"]).code(1);
        assert!(verify.stderr.contains("checksum"), "{damage}\n{verify}");
        let run = then.holds(damage);
        assert_eq!(run.code, 0, "{damage}\n{run}");
        assert!(run.stderr.contains("is damaged") && run.stderr.contains("was repaired"), "{damage}\n{run}");
        assert!(!run.stderr.contains("rebuilt"), "{damage}\n{run}");
        // Nothing is stored twice.
        assert!(number(&run.json(), "data_bytes") < 300_000, "{damage}\n{run}");
        then.site.brackfs(&["catalog", "verify"]).ok();
    }
}
