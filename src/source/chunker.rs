//! Content, cut into chunks.
//!
//! Up to an average of 1 MiB cuts depend on the content (FastCDC), so a byte that is put in moves one or two
//! of them and no more. Above it they are at multiples of 1 MiB. A hole is never read, and ends a chunk.
//!
//! Where content is cut depends on a secret of the repository: who sees only the sizes of chunks can't compare
//! them with those of a file that he knows. All 256 entries of the gear table come from it. (The crate's own
//! seed is XORed to a table that everyone has, which leaves much less to guess.)
//!
//! Memory for each file that is being cut: a buffer of 2 MiB, or of the file's size if it is smaller, and the
//! piece that is handed out; at fixed offsets just that piece.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use rustix::fs::{Advice, fadvise};

use super::holes::next_data;
use super::{Error, UncachedReader};

/// Most bytes of a piece. A block takes two, so that small files which are gathered in one compress better.
pub const PIECE_MAX: usize = 1 << 20;
/// Smallest average. Chunks of a few hundred bytes would cost more than they hold.
const AVERAGE_MIN: usize = 1 << 10;
/// Bytes that are read at once: two of the largest chunks, so that less is moved than is read.
const BUFFER: usize = 2 * PIECE_MAX;
/// What the gear table is derived for. Changing it changes all cuts.
const GEAR_CONTEXT: &str = "brackfs 1 gear table of content-defined chunking";

/// The next part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A chunk. Never empty, at most 1 MiB.
    Data(Vec<u8>),
    /// This many zeros for which the file takes no space. Never 0.
    Hole(u64),
}

/// Says where content is cut. Cheap to clone; threads may share it.
#[derive(Clone)]
pub struct Chunker {
    rule: Rule,
}

#[derive(Clone)]
enum Rule {
    Content(ContentRule),
    /// At multiples of [`PIECE_MAX`].
    Fixed,
}

impl Chunker {
    /// Cuts into chunks of `average` bytes.
    ///
    /// Up to 1 MiB, chunks are defined by content: `average / 4` to `2 * average` bytes, at most 1 MiB, and
    /// `seed` decides where. (Near 1 MiB most of them are of the largest size. Below 1 KiB it is 1 KiB.) Above,
    /// cuts are at multiples of 1 MiB.
    pub fn new(seed: u64, average: usize) -> Self {
        let rule = match average {
            ..=PIECE_MAX => Rule::Content(ContentRule::new(seed, average)),
            _ => Rule::Fixed,
        };
        Chunker { rule }
    }

    /// Cuts a file's first `size` bytes and hands the pieces to `sink`, in order. `sparse` says that there may
    /// be holes; without it none are looked for.
    ///
    /// Returns the bytes that were handed out, holes included: less than `size` if the file is shorter by now.
    /// What it grew meanwhile is left out. An error of `sink` ends it.
    ///
    /// The place in `file` does not matter, but is moved if `sparse`: one thread at a time.
    pub fn cut<E: From<Error>>(
        &self,
        file: &File,
        size: u64,
        sparse: bool,
        sink: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<u64, E> {
        // A hint; without it reading is slower and no less right.
        let _ = fadvise(file, 0, None, Advice::Sequential);
        let mut passing = UncachedReader::new(file);
        let read = &mut |room: &mut [u8], at| passing.read_at(room, at);
        let mut pieces = Pieces { read, buffer: self.buffer(size), sink };
        let mut at = 0;
        while at < size {
            let data = match sparse {
                true => next_data(file, at, size).map_err(Error::Content)?,
                false => at..size,
            };
            if data.start > at {
                (pieces.sink)(Piece::Hole(data.start - at))?;
            }
            at = match &self.rule {
                _ if data.is_empty() => data.start,
                Rule::Content(rule) => pieces.by_content(rule, data.clone())?,
                Rule::Fixed => pieces.at_multiples(data.clone())?,
            };
            // The end of the file, sooner than it was.
            if data.is_empty() || at < data.end {
                break;
            }
        }
        Ok(at)
    }

    /// Cuts what `stream` gives until it ends, at the places where a file of the same content is cut. Returns how
    /// many bytes it gave. An error of `sink` ends it.
    pub fn cut_stream<E: From<Error>>(
        &self,
        stream: &mut dyn Read,
        sink: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<u64, E> {
        // Pieces are read one behind the other, so where the next one is read from need not be said.
        let read = &mut |room: &mut [u8], _| stream.read(room);
        let mut pieces = Pieces { read, buffer: self.buffer(u64::MAX), sink };
        match &self.rule {
            Rule::Content(rule) => pieces.by_content(rule, 0..u64::MAX),
            Rule::Fixed => pieces.at_multiples(0..u64::MAX),
        }
    }

    /// Room to find cuts in: for the file as a whole, or for more than the largest chunk.
    fn buffer(&self, size: u64) -> Vec<u8> {
        match &self.rule {
            Rule::Content(_) => vec![0; usize::try_from(size).map_or(BUFFER, |size| size.min(BUFFER))],
            Rule::Fixed => Vec::new(),
        }
    }
}

impl fmt::Debug for Chunker {
    /// Without the gear table, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (how, average) = match &self.rule {
            Rule::Content(rule) => ("by_content", rule.average as u64),
            Rule::Fixed => ("at_multiples", PIECE_MAX as u64),
        };
        f.debug_struct("Chunker").field(how, &average).finish_non_exhaustive()
    }
}

/// Cuts where the last bytes, as the gear table mixes them, have zeros in certain places.
#[derive(Clone)]
struct ContentRule {
    // In bytes, and even, as FastCDC wants them: it looks at two bytes at a time.
    min: usize,
    average: usize,
    max: usize,
    /// Which places have to be zero up to the average size, and which behind it, where it is made easier.
    strict: u64,
    loose: u64,
    gear: Arc<Gear>,
}

struct Gear {
    plain: [u64; 256],
    /// The same, a bit to the left.
    shifted: [u64; 256],
}

impl ContentRule {
    fn new(seed: u64, average: usize) -> Self {
        // A multiple of 8, so that a quarter is even.
        let average = average.max(AVERAGE_MIN) & !7;
        let (strict, loose) = select_masks(average, Normalization::Level1);
        let gear = Arc::new(Gear::new(seed));
        ContentRule { min: average / 4, average, max: (2 * average).min(PIECE_MAX), strict, loose, gear }
    }

    /// Length of the chunk that `bytes` begin with. Unless the data end with them, there are `max` or more.
    fn first_chunk(&self, bytes: &[u8]) -> usize {
        let Gear { plain, shifted } = &*self.gear;
        let (strict, loose) = (self.strict, self.loose);
        let (_, length) =
            cut_gear(bytes, self.min, self.average, self.max, strict, loose, strict << 1, loose << 1, plain, shifted);
        length
    }
}

impl Gear {
    fn new(seed: u64) -> Self {
        let mut stream = blake3::Hasher::new_derive_key(GEAR_CONTEXT).update(&seed.to_le_bytes()).finalize_xof();
        let plain = std::array::from_fn(|_| {
            let mut entry = [0; 8];
            stream.fill(&mut entry);
            u64::from_le_bytes(entry)
        });
        Gear { plain, shifted: plain.map(|entry| entry << 1) }
    }
}

/// Content on its way to a sink.
struct Pieces<'a, E> {
    /// Reads what is at an offset, as [`UncachedReader::read_at`] does.
    read: &'a mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
    buffer: Vec<u8>,
    sink: &'a mut dyn FnMut(Piece) -> Result<(), E>,
}

impl<E: From<Error>> Pieces<'_, E> {
    /// Cuts a stretch of data by content. Returns where it ended, which is before the end of the stretch only
    /// if the file is.
    fn by_content(&mut self, rule: &ContentRule, data: Range<u64>) -> Result<u64, E> {
        let buffer = self.buffer.as_mut_slice();
        // buffer[cut..filled] was read and not handed out; it is what the file has before `at`.
        let (mut cut, mut filled) = (0, 0);
        let mut at = data.start;
        let mut ended = false;
        loop {
            if filled - cut < rule.max && !ended {
                buffer.copy_within(cut..filled, 0);
                (cut, filled) = (0, filled - cut);
                let room = &mut buffer[filled..];
                let wanted = usize::try_from(data.end - at).map_or(room.len(), |left| left.min(room.len()));
                let read = fill(self.read, &mut room[..wanted], at).map_err(Error::Content)?;
                filled += read;
                at += read as u64;
                ended = read < wanted || at == data.end;
            }
            if cut == filled {
                return Ok(at);
            }
            let chunk = &buffer[cut..filled];
            let chunk = &chunk[..rule.first_chunk(chunk)];
            (self.sink)(Piece::Data(chunk.to_vec()))?;
            cut += chunk.len();
        }
    }

    /// Cuts a stretch of data at multiples of [`PIECE_MAX`] in the file. Returns what [`Self::by_content`] does.
    fn at_multiples(&mut self, data: Range<u64>) -> Result<u64, E> {
        let mut at = data.start;
        while at < data.end {
            let wanted = (PIECE_MAX as u64 - at % PIECE_MAX as u64).min(data.end - at) as usize;
            let mut piece = vec![0; wanted];
            let read = fill(self.read, &mut piece, at).map_err(Error::Content)?;
            piece.truncate(read);
            at += read as u64;
            if read > 0 {
                (self.sink)(Piece::Data(piece))?;
            }
            if read < wanted {
                break;
            }
        }
        Ok(at)
    }
}

/// Fills `buffer` with what is at `at`. Returns how many bytes there were: fewer only at the end of the file.
fn fill(read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(&mut buffer[filled..], at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::source::Stat;

    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;

    fn random(length: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pieces_of(file: &File, cutter: &Chunker, size: u64, sparse: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let delivered = cutter
            .cut::<Error>(file, size, sparse, &mut |piece| {
                pieces.push(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(delivered, pieces.iter().map(length).sum::<u64>());
        pieces
    }

    fn pieces(bytes: &[u8], cutter: &Chunker) -> Vec<Piece> {
        pieces_of(&file(bytes), cutter, bytes.len() as u64, false)
    }

    fn length(piece: &Piece) -> u64 {
        match piece {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Hole(length) => *length,
        }
    }

    fn joined(pieces: &[Piece]) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Data(bytes) => all.extend_from_slice(bytes),
                Piece::Hole(length) => all.resize(all.len() + *length as usize, 0),
            }
        }
        all
    }

    /// Digests of the chunks of content that is cut by content.
    fn chunks(bytes: &[u8], cutter: &Chunker) -> Vec<blake3::Hash> {
        let digest = |piece: &Piece| match piece {
            Piece::Data(bytes) => blake3::hash(bytes),
            other => panic!("{other:?}"),
        };
        pieces(bytes, cutter).iter().map(digest).collect()
    }

    #[test]
    fn pieces_joined_are_the_file() {
        for average in [512 * KIB, 64 * KIB, 1000, 0, MIB, MIB + 1, 3 * MIB] {
            let cutter = Chunker::new(7, average);
            for size in [0, 1, 2, 127 * KIB + 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 5 * MIB + 4321] {
                let bytes = random(size, 1);
                let pieces = pieces(&bytes, &cutter);
                assert!(joined(&pieces) == bytes, "{size} bytes cut by {average}");
                let longest = pieces.iter().map(length).max().unwrap_or_default();
                assert!(pieces.iter().all(|piece| length(piece) > 0) && longest <= MIB as u64);
            }
        }
    }

    /// Gives a few bytes at a time, as a pipe may, and fails after all of them if it is told to.
    struct Trickle<'b>(&'b [u8], bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() && self.1 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let length = self.0.len().min(room.len()).min(70_001);
            let (now, later) = self.0.split_at(length);
            room[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }

    #[test]
    fn a_stream_is_cut_where_a_file_is() {
        for average in [512 * KIB, 64 * KIB, 3 * MIB] {
            let cutter = Chunker::new(7, average);
            for size in [0, 1, MIB, 2 * MIB, 5 * MIB + 4321] {
                let bytes = random(size, 1);
                let mut streamed = Vec::new();
                let length = cutter.cut_stream::<Error>(&mut Trickle(&bytes, false), &mut |piece| {
                    streamed.push(piece);
                    Ok(())
                });
                assert_eq!(length.unwrap(), size as u64);
                assert!(streamed == pieces(&bytes, &cutter), "{size} bytes cut by {average}");
            }
        }
    }

    #[test]
    fn a_stream_that_fails_has_no_end() {
        for average in [64 * KIB, 3 * MIB] {
            let bytes = random(3 * MIB, 2);
            let result = Chunker::new(7, average).cut_stream::<Error>(&mut Trickle(&bytes, true), &mut |_| Ok(()));
            assert!(
                matches!(&result, Err(Error::Content(e)) if e.kind() == io::ErrorKind::ConnectionReset),
                "{result:?}"
            );
        }
    }

    #[test]
    fn chunks_keep_to_their_sizes() {
        for average in [512 * KIB, 256 * KIB, 64 * KIB] {
            let bytes = random(24 * MIB, 2);
            let lengths: Vec<_> = pieces(&bytes, &Chunker::new(3, average)).iter().map(length).collect();
            let all_but_last = &lengths[..lengths.len() - 1];
            assert!(all_but_last.iter().all(|&length| (average / 4..=2 * average).contains(&(length as usize))));
            let mean = bytes.len() / lengths.len();
            assert!((average * 2 / 3..average * 3 / 2).contains(&mean), "{mean} for {average}");
        }
        // Content without any variety has the largest chunks.
        let zeros = vec![0; 3 * MIB];
        assert!(pieces(&zeros, &Chunker::new(3, 512 * KIB)).iter().all(|piece| length(piece) == MIB as u64));
    }

    /// Other cuts would store everything again beside what older versions stored.
    #[test]
    fn cuts_stay_where_they_are_from_version_to_version() {
        let lengths = |seed, average| -> Vec<_> {
            pieces(&random(2 * MIB, 5), &Chunker::new(seed, average)).iter().take(4).map(length).collect()
        };
        assert_eq!(lengths(0, 512 * KIB), [609_381, 797_891, 568_491, 121_389]);
        assert_eq!(lengths(0x0123_4567_89ab_cdef, 64 * KIB), [131_072, 25_667, 88_405, 85_434]);
    }

    #[test]
    fn a_byte_in_front_moves_few_cuts() {
        let cutter = Chunker::new(11, 64 * KIB);
        let bytes = random(8 * MIB, 3);
        let before = chunks(&bytes, &cutter);
        let mut longer = vec![b'x'];
        longer.extend_from_slice(&bytes);
        let after = chunks(&longer, &cutter);
        let known = after.iter().filter(|chunk| before.contains(chunk)).count();
        assert!(before.len() > 50 && known + 10 > before.len(), "{known} of {}", before.len());
    }

    #[test]
    fn another_seed_cuts_elsewhere() {
        let bytes = random(4 * MIB, 4);
        let one = chunks(&bytes, &Chunker::new(1, 64 * KIB));
        let two = chunks(&bytes, &Chunker::new(2, 64 * KIB));
        assert!(two.iter().all(|chunk| !one.contains(chunk)));
        assert_eq!(one, chunks(&bytes, &Chunker::new(1, 64 * KIB)));
    }

    #[test]
    fn a_huge_sparse_file_costs_what_it_holds() {
        let started = Instant::now();
        let size = 1 << 40;
        let middle = 1 << 39;
        let bytes = random(3 * MIB, 6);
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&bytes, middle).unwrap();
        let stat = Stat::of_fd(&file).unwrap();
        assert!(stat.size == size && stat.blocks * 512 < size);
        for average in [512 * KIB, 2 * MIB] {
            let pieces = pieces_of(&file, &Chunker::new(1, average), size, true);
            let (Some((Piece::Hole(first), rest)), true) = (pieces.split_first(), pieces.len() > 3) else {
                panic!("{} pieces", pieces.len())
            };
            let (Some(Piece::Hole(last)), data) = (rest.last(), &rest[..rest.len() - 1]) else { panic!("no hole") };
            // The file system may find data a little earlier, and hold it a little longer, than was written.
            let data = joined(data);
            let early = usize::try_from(middle - first).unwrap();
            assert_eq!(first + last + data.len() as u64, size);
            assert!(data.len() < bytes.len() + MIB && data[early..][..bytes.len()] == bytes);
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_file_of_nothing_but_hole_is_one_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 30).unwrap();
        let cutter = Chunker::new(1, 512 * KIB);
        assert_eq!(pieces_of(&file, &cutter, 5 << 30, true), [Piece::Hole(5 << 30)]);
        // Shorter than it was when somebody looked, and longer.
        file.set_len(3 << 30).unwrap();
        assert_eq!(pieces_of(&file, &cutter, 5 << 30, true), [Piece::Hole(3 << 30)]);
        assert_eq!(pieces_of(&file, &cutter, 1 << 30, true), [Piece::Hole(1 << 30)]);
    }

    #[test]
    fn holes_do_not_shift_fixed_cuts() {
        let file = tempfile::tempfile().unwrap();
        let start = (MIB / 2) as u64;
        file.set_len(4 * MIB as u64).unwrap();
        file.write_all_at(&random(2 * MIB, 8), start).unwrap();
        let pieces = pieces_of(&file, &Chunker::new(1, 2 * MIB), 4 * MIB as u64, true);
        let mut at = 0;
        let mut ends = Vec::new();
        for piece in &pieces {
            at += self::length(piece);
            if matches!(piece, Piece::Data(_)) {
                ends.push(at);
            }
        }
        assert_eq!(pieces.first(), Some(&Piece::Hole(start)));
        assert_eq!(ends, [MIB as u64, 2 * MIB as u64, (2 * MIB + MIB / 2) as u64]);
        assert_eq!(pieces.last(), Some(&Piece::Hole((MIB + MIB / 2) as u64)));
    }

    #[test]
    fn above_a_block_cuts_are_at_multiples_of_it() {
        let lengths = |size: usize| -> Vec<u64> {
            pieces(&random(size, 9), &Chunker::new(1, 256 * MIB)).iter().map(length).collect()
        };
        let mib = MIB as u64;
        assert_eq!(lengths(2 * MIB), [mib, mib]);
        assert_eq!(lengths(2 * MIB + 1), [mib, mib, 1]);
        assert_eq!(lengths(10), [10]);
    }

    #[test]
    fn a_file_that_shrank_ends_early_and_one_that_grew_on_time() {
        let bytes = random(3 * MIB, 10);
        let file = file(&bytes);
        for average in [64 * KIB, 512 * KIB, 5 * MIB / 2, 3 * MIB, 8 * MIB] {
            let cutter = Chunker::new(1, average);
            for sparse in [false, true] {
                for size in [bytes.len() + 1, 100 * MIB] {
                    let pieces = pieces_of(&file, &cutter, size as u64, sparse);
                    assert!(joined(&pieces) == bytes);
                    assert!(matches!(pieces.last(), Some(Piece::Data(_))));
                }
                let pieces = pieces_of(&file, &cutter, MIB as u64 + 5, sparse);
                assert!(joined(&pieces) == bytes[..MIB + 5]);
            }
        }
    }

    #[test]
    fn the_sink_can_end_it() {
        let cutter = Chunker::new(1, 64 * KIB);
        let file = file(&random(MIB, 11));
        let mut taken = 0;
        let ended = cutter.cut(&file, MIB as u64, false, &mut |_| {
            taken += 1;
            if taken == 3 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().to_string(), "enough");
        assert_eq!(taken, 3);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let directory = File::open(std::env::temp_dir()).unwrap();
        let cut = Chunker::new(1, 64 * KIB).cut::<Error>(&directory, 10, false, &mut |_| Ok(()));
        assert!(matches!(cut, Err(Error::Content(_))));
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        assert_eq!(format!("{:?}", Chunker::new(99, 512 * KIB)), "Chunker { by_content: 524288, .. }");
    }
}
