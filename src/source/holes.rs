//! Data extents of sparse files.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::stat::Stat;

/// The next data extent at or after `at`, clipped to `limit`. The bytes between `at` and the extent are a hole.
///
/// If no data follows, an empty range at the end of the file or at `limit`, whichever is lower. If the file system does
/// not support holes, all bytes are data.
pub(super) fn next_data(file: &File, at: u64, limit: u64) -> io::Result<Range<u64>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.clamp(at, limit),
        // No data up to the end of the file, which may have been truncated.
        Err(Errno::NXIO) => {
            let end = file.metadata()?.len().clamp(at, limit);
            return Ok(end..end);
        }
        Err(e) if is_unsupported(e) => return Ok(at..limit),
        Err(e) => return Err(e.into()),
    };
    if start == limit {
        return Ok(limit..limit);
    }
    match seek(file, SeekFrom::Hole(start)) {
        Ok(end) if end > start => Ok(start..end.min(limit)),
        // A hole cannot begin where data begins. After a truncation (ENXIO) the reader finds the new end.
        Ok(_) | Err(Errno::NXIO) => Ok(start..limit),
        Err(e) if is_unsupported(e) => Ok(start..limit),
        Err(e) => Err(e.into()),
    }
}

/// Whether a file has holes. A file whose blocks cover its size is not probed.
pub fn has_holes(file: &File, stat: &Stat) -> io::Result<bool> {
    Ok(stat.may_have_holes() && next_data(file, 0, stat.size)? != (0..stat.size))
}

fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE)
}
