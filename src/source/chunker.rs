//! Splits content into chunks.
//!
//! For an average size of up to 1 MiB, boundaries are content-defined (FastCDC): an inserted byte moves one or two of
//! them. For a larger average, boundaries are at multiples of 1 MiB. Holes are not read; a hole ends a chunk.
//!
//! Boundaries depend on a secret of the repository, so an attacker who sees only chunk sizes cannot match them with the
//! chunk sizes of a known file. All 256 entries of the gear table are derived from the secret. (The crate's own seed is
//! only XORed to a public table, which leaves far fewer possibilities.)
//!
//! Memory for each file being chunked: a buffer of 2 MiB, or of the file's size if that is smaller, and the current
//! chunk. With fixed boundaries, only the current chunk.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use rustix::fs::{Advice, fadvise};

use super::error::Error;
use super::holes::next_data;
use super::page_cache::UncachedReader;

/// The maximum chunk size in bytes. A block holds two, so that small files packed into one block compress better.
pub const PIECE_MAX: usize = 1 << 20;
/// The minimum average in bytes. The metadata of smaller chunks would outweigh their data.
const AVERAGE_MIN: usize = 1 << 10;
/// Buffer size in bytes: two maximum chunks, so that fewer bytes are moved within the buffer than are read.
const BUFFER: usize = 2 * PIECE_MAX;
/// Key derivation context of the gear table. Changing it changes all boundaries.
const GEAR_CONTEXT: &str = "brackfs 1 gear table of content-defined chunking";

/// The next part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A chunk of 1 byte to 1 MiB.
    Data(Vec<u8>),
    /// A hole of this many bytes, at least 1.
    Hole(u64),
}

/// The rule that places chunk boundaries. Cheap to clone; threads may share it.
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
    /// A chunker for chunks of `average` bytes, at least 1 KiB.
    ///
    /// Up to an average of 1 MiB, chunks are content-defined with boundaries that depend on `seed`: `average / 4` to
    /// `2 * average` bytes, at most 1 MiB. (With an average close to 1 MiB most chunks have the maximum size.) Above,
    /// boundaries are at multiples of 1 MiB.
    pub fn new(seed: u64, average: usize) -> Self {
        let rule = if average <= PIECE_MAX { Rule::Content(ContentRule::new(seed, average)) } else { Rule::Fixed };
        Chunker { rule }
    }

    /// Splits a file's first `size` bytes and passes the pieces to `sink`, in order. Holes are detected only if
    /// `sparse` is set. Stops at the first error of `sink`.
    ///
    /// Returns the number of bytes passed on, holes included. It is less than `size` if the file has been truncated;
    /// bytes appended beyond `size` are ignored.
    ///
    /// The file offset of `file` is ignored, but changes if `sparse` is set: one thread at a time.
    pub fn cut<E: From<Error>>(
        &self,
        file: &File,
        size: u64,
        sparse: bool,
        sink: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<u64, E> {
        // Best effort: only affects readahead.
        let _ = fadvise(file, 0, None, Advice::Sequential);
        let mut reader = UncachedReader::new(file);
        let read = &mut |room: &mut [u8], at| reader.read_at(room, at);
        let mut pieces = Pieces { read, buffer: self.buffer(size), sink };
        let mut at = 0;
        while at < size {
            let data = if sparse { next_data(file, at, size).map_err(Error::Content)? } else { at..size };
            if data.start > at {
                (pieces.sink)(Piece::Hole(data.start - at))?;
            }
            at = match &self.rule {
                _ if data.is_empty() => data.start,
                Rule::Content(rule) => pieces.by_content(rule, data.clone())?,
                Rule::Fixed => pieces.at_multiples(data.clone())?,
            };
            // The file was truncated.
            if data.is_empty() || at < data.end {
                break;
            }
        }
        Ok(at)
    }

    /// Splits a stream up to its end, at the same boundaries as a file with the same content. Returns the number of
    /// bytes read. Stops at the first error of `sink`.
    pub fn cut_stream<E: From<Error>>(
        &self,
        stream: &mut dyn Read,
        sink: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<u64, E> {
        // Reads are sequential, so the offset is not needed.
        let read = &mut |room: &mut [u8], _| stream.read(room);
        let mut pieces = Pieces { read, buffer: self.buffer(u64::MAX), sink };
        match &self.rule {
            Rule::Content(rule) => pieces.by_content(rule, 0..u64::MAX),
            Rule::Fixed => pieces.at_multiples(0..u64::MAX),
        }
    }

    /// A buffer for content-defined chunking: it holds the whole file, or more than the largest chunk.
    fn buffer(&self, size: u64) -> Vec<u8> {
        match &self.rule {
            Rule::Content(_) => vec![0; usize::try_from(size).map_or(BUFFER, |size| size.min(BUFFER))],
            Rule::Fixed => Vec::new(),
        }
    }
}

impl fmt::Debug for Chunker {
    /// Omits the gear table, which is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (how, average) = match &self.rule {
            Rule::Content(rule) => ("by_content", rule.average as u64),
            Rule::Fixed => ("at_multiples", PIECE_MAX as u64),
        };
        f.debug_struct("Chunker").field(how, &average).finish_non_exhaustive()
    }
}

/// Content-defined boundaries: a chunk ends where the masked bits of the gear hash are zero.
#[derive(Clone)]
struct ContentRule {
    // Sizes in bytes. FastCDC needs even ones, since it processes two bytes at a time.
    min: usize,
    average: usize,
    max: usize,
    /// The mask up to the average size, and the weaker one after it.
    strict: u64,
    loose: u64,
    gear: Arc<Gear>,
}

struct Gear {
    plain: [u64; 256],
    /// The entries of `plain`, shifted left by one bit.
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

    /// The length of the first chunk in `bytes`, which are at least `max` bytes or extend to the end of the data.
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
    /// Reads at an offset, like [`UncachedReader::read_at`].
    read: &'a mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
    buffer: Vec<u8>,
    sink: &'a mut dyn FnMut(Piece) -> Result<(), E>,
}

impl<E: From<Error>> Pieces<'_, E> {
    /// Splits an extent at content-defined boundaries. Returns the offset where reading ended: the end of the extent,
    /// or an earlier end of the file.
    fn by_content(&mut self, rule: &ContentRule, data: Range<u64>) -> Result<u64, E> {
        let buffer = self.buffer.as_mut_slice();
        // buffer[cut..filled] holds the bytes before `at` that are not part of a chunk yet.
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

    /// Splits an extent at multiples of [`PIECE_MAX`] in the file. Returns the same as [`Self::by_content`].
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

/// Fills `buffer` from offset `at`. Returns the number of bytes read, which is smaller only at the end of the file.
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

    /// Digests of content-defined chunks.
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

    /// Returns a few bytes at a time, like a pipe. At its end it fails if the flag is set.
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
    fn a_stream_that_fails_is_an_error() {
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
    fn chunk_sizes_are_within_their_limits() {
        for average in [512 * KIB, 256 * KIB, 64 * KIB] {
            let bytes = random(24 * MIB, 2);
            let lengths: Vec<_> = pieces(&bytes, &Chunker::new(3, average)).iter().map(length).collect();
            let all_but_last = &lengths[..lengths.len() - 1];
            assert!(all_but_last.iter().all(|&length| (average / 4..=2 * average).contains(&(length as usize))));
            let mean = bytes.len() / lengths.len();
            assert!((average * 2 / 3..average * 3 / 2).contains(&mean), "{mean} for {average}");
        }
        // Constant content has chunks of the maximum size.
        let zeros = vec![0; 3 * MIB];
        assert!(pieces(&zeros, &Chunker::new(3, 512 * KIB)).iter().all(|piece| length(piece) == MIB as u64));
    }

    /// Other boundaries would break deduplication against data that older versions stored.
    #[test]
    fn boundaries_are_the_same_in_all_versions() {
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
    fn a_huge_sparse_file_costs_only_its_data() {
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
            // The file system may report a slightly larger data extent than was written.
            let data = joined(data);
            let early = usize::try_from(middle - first).unwrap();
            assert_eq!(first + last + data.len() as u64, size);
            assert!(data.len() < bytes.len() + MIB && data[early..][..bytes.len()] == bytes);
        }
        // Reading the holes takes minutes.
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_file_without_data_is_one_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 30).unwrap();
        let cutter = Chunker::new(1, 512 * KIB);
        assert_eq!(pieces_of(&file, &cutter, 5 << 30, true), [Piece::Hole(5 << 30)]);
        // The file is shorter than its stat said, and longer.
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
    fn a_truncated_file_ends_early_and_appended_bytes_are_ignored() {
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
    fn chunking_stops_at_an_error_of_the_sink() {
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
    fn a_read_failure_is_an_error() {
        let directory = File::open(std::env::temp_dir()).unwrap();
        let cut = Chunker::new(1, 64 * KIB).cut::<Error>(&directory, 10, false, &mut |_| Ok(()));
        assert!(matches!(cut, Err(Error::Content(_))));
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        assert_eq!(format!("{:?}", Chunker::new(99, 512 * KIB)), "Chunker { by_content: 524288, .. }");
    }
}
