//! Where a sparse file has data.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Stat;

/// The next stretch of data from `at` on, as far as it is below `limit`: before it is a hole.
///
/// Empty if there is no more data; it then begins where the file or `limit` ends. A file system that does not
/// know of holes has none.
pub(super) fn next_data(file: &File, at: u64, limit: u64) -> io::Result<Range<u64>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.clamp(at, limit),
        // No data up to the end of the file, which may be nearer than it was.
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
        // No hole where data begins: what else a file system may say makes no sense. Cut off meanwhile: the
        // reader will see it.
        Ok(_) | Err(Errno::NXIO) => Ok(start..limit),
        Err(e) if is_unsupported(e) => Ok(start..limit),
        Err(e) => Err(e.into()),
    }
}

/// Whether a file has holes; `stat` is what it looks like. That of a file without is enough to tell.
pub fn has_holes(file: &File, stat: &Stat) -> io::Result<bool> {
    let sparse = stat.blocks.saturating_mul(512) < stat.size;
    // It may also be compressed, or so small that it takes no blocks.
    Ok(sparse && next_data(file, 0, stat.size)? != (0..stat.size))
}

fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE)
}
