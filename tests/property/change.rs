//! Changes between two backups.
//!
//! Paths are picked by index among the existing ones. So every list of changes is valid, and so is a shortened one.

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::strategy::Union;

/// An index into the existing entries, modulo their number.
pub type Pick = u16;

/// One of a few names, so that names recur.
pub type Name = u8;

/// The content of a new file: lengths of data and holes in turn.
#[derive(Debug, Clone)]
pub struct Shape {
    pub seed: u64,
    pub lengths: Vec<u64>,
    /// Whether the first length is that of a hole.
    pub hole_first: bool,
    /// Zeros that are written instead of noise.
    pub zeros: bool,
}

#[derive(Debug, Clone)]
pub enum Change {
    File {
        into: Pick,
        name: Name,
        shape: Shape,
    },
    Directory {
        into: Pick,
        name: Name,
    },
    Symlink {
        into: Pick,
        name: Name,
        target: Name,
    },
    Fifo {
        into: Pick,
        name: Name,
    },
    /// A series of tiny entries with numbers as names.
    Many {
        into: Pick,
        first: u16,
        count: u16,
        stride: u16,
        tiny: Tiny,
        seed: u64,
    },
    /// Removes some neighbours in a directory.
    Thin {
        at: Pick,
        part: f64,
        count: u16,
    },
    Delete {
        at: Pick,
    },
    Overwrite {
        at: Pick,
        shape: Shape,
        keep_time: bool,
    },
    Append {
        at: Pick,
        seed: u64,
        length: u64,
    },
    /// To a fraction of its size; above 1, it grows by a hole.
    Truncate {
        at: Pick,
        part: f64,
    },
    Flip {
        at: Pick,
        part: f64,
        seed: u64,
        keep_time: bool,
    },
    /// Shifts the rest of the file.
    Insert {
        at: Pick,
        part: f64,
        seed: u64,
        length: u64,
    },
    Punch {
        at: Pick,
        part: f64,
        length: u64,
    },
    Rename {
        at: Pick,
        into: Pick,
        name: Name,
    },
    Swap {
        one: Pick,
        other: Pick,
    },
    /// An entry of another kind with the same name.
    Replace {
        at: Pick,
        by: Kind,
    },
    Mode {
        at: Pick,
        mode: u8,
    },
    Time {
        at: Pick,
        time: u8,
    },
    Attribute {
        at: Pick,
        name: u8,
        value: Option<u8>,
    },
    Link {
        at: Pick,
        into: Pick,
        name: Name,
    },
    /// The same content in another file.
    Unlink {
        at: Pick,
    },
    Copy {
        at: Pick,
        into: Pick,
        name: Name,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Tiny {
    /// Small files, a third of them empty.
    Files,
    Empty,
    Symlinks,
    Directories,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
}

/// Which changes are likely.
#[derive(Debug, Clone, Copy)]
pub enum Mix {
    Any,
    /// Mostly of directories with thousands of entries.
    Many,
}

/// Lengths around the limits of gathered files, chunks and blocks.
fn length() -> impl Strategy<Value = u64> {
    const LIMIT: u64 = 128 << 10;
    const MIB: u64 = 1 << 20;
    prop_oneof![
        6 => 1..300u64,
        3 => 1000..20_000u64,
        2 => prop::sample::select(vec![4096, 8192, 4095, LIMIT - 1, LIMIT, LIMIT + 1]),
        1 => prop::sample::select(vec![MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 17]),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    // Few seeds, so that contents recur.
    let lengths = prop_oneof![1 => Just(vec![]), 6 => length().prop_map(|length| vec![length]), 2 => prop::collection::vec(length(), 2..5)];
    (0..12u64, lengths, prop::bool::weighted(0.2), prop::bool::weighted(0.15))
        .prop_map(|(seed, lengths, hole_first, zeros)| Shape { seed, lengths, hole_first, zeros })
}

fn part() -> impl Strategy<Value = f64> {
    0.0..1.0f64
}

pub fn change(mix: Mix) -> impl Strategy<Value = Change> {
    use Change::*;
    let pick = any::<Pick>;
    let name = any::<Name>;
    let seed = any::<u64>;
    let tiny = prop_oneof![4 => Just(Tiny::Files), 2 => Just(Tiny::Empty), 1 => Just(Tiny::Symlinks)];
    let kind = prop::sample::select(vec![Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo]);
    let (many, other) = match mix {
        Mix::Any => (1, 8),
        Mix::Many => (60, 2),
    };
    // Any number, and numbers at which segments have the same borders again.
    let row = prop_oneof![
        (0..6000u16, 1200..3500u16, 1..3u16),
        (0..4u16, 1..4u16).prop_map(|(first, count)| (1000 * first, 500 * count, 1)),
    ];
    let rows = (pick(), row, tiny, seed()).prop_map(|(into, (first, count, stride), tiny, seed)| Many {
        into,
        first,
        count,
        stride,
        tiny,
        seed,
    });
    let directories =
        (pick(), 0..6000u16, 1..60u16, 1..50u16, seed()).prop_map(|(into, first, count, stride, seed)| Many {
            into,
            first,
            count,
            stride,
            tiny: Tiny::Directories,
            seed,
        });
    let thin = (pick(), part(), 1..3000u16).prop_map(|(at, part, count)| Thin { at, part, count });
    let changes = vec![
        (many, rows.boxed()),
        (many, directories.boxed()),
        (many, thin.boxed()),
        (4 * other, (pick(), name(), shape()).prop_map(|(into, name, shape)| File { into, name, shape }).boxed()),
        (3 * other, (pick(), name()).prop_map(|(into, name)| Directory { into, name }).boxed()),
        (other, (pick(), name(), name()).prop_map(|(into, name, target)| Symlink { into, name, target }).boxed()),
        (other / 2, (pick(), name()).prop_map(|(into, name)| Fifo { into, name }).boxed()),
        (2 * other, pick().prop_map(|at| Delete { at }).boxed()),
        (
            other,
            (pick(), shape(), any::<bool>())
                .prop_map(|(at, shape, keep_time)| Overwrite { at, shape, keep_time })
                .boxed(),
        ),
        (other, (pick(), seed(), length()).prop_map(|(at, seed, length)| Append { at, seed, length }).boxed()),
        (other, (pick(), 0.0..2.0f64).prop_map(|(at, part)| Truncate { at, part }).boxed()),
        (
            2 * other,
            (pick(), part(), seed(), any::<bool>())
                .prop_map(|(at, part, seed, keep_time)| Flip { at, part, seed, keep_time })
                .boxed(),
        ),
        (
            other,
            (pick(), part(), seed(), length())
                .prop_map(|(at, part, seed, length)| Insert { at, part, seed, length })
                .boxed(),
        ),
        (other, (pick(), part(), length()).prop_map(|(at, part, length)| Punch { at, part, length }).boxed()),
        (3 * other, (pick(), pick(), name()).prop_map(|(at, into, name)| Rename { at, into, name }).boxed()),
        (2 * other, (pick(), pick()).prop_map(|(one, other)| Swap { one, other }).boxed()),
        (2 * other, (pick(), kind).prop_map(|(at, by)| Replace { at, by }).boxed()),
        (other, (pick(), any::<u8>()).prop_map(|(at, mode)| Mode { at, mode }).boxed()),
        (other, (pick(), any::<u8>()).prop_map(|(at, time)| Time { at, time }).boxed()),
        (
            2 * other,
            (pick(), any::<u8>(), prop::option::weighted(0.7, any::<u8>()))
                .prop_map(|(at, name, value)| Attribute { at, name, value })
                .boxed(),
        ),
        (2 * other, (pick(), pick(), name()).prop_map(|(at, into, name)| Link { at, into, name }).boxed()),
        (other, pick().prop_map(|at| Unlink { at }).boxed()),
        (other, (pick(), pick(), name()).prop_map(|(at, into, name)| Copy { at, into, name }).boxed()),
    ];
    Union::new_weighted(changes)
}
