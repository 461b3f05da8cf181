//! Reads of files and pipes that should be small. A device or a program may write without end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Maximum length of a secret in bytes.
pub(crate) const SECRET: u64 = 1 << 20;
/// Maximum length of a file with keys or certificates in bytes.
pub(crate) const KEYS: u64 = 16 << 20;

/// Reads a file of at most `most` bytes, a whole number of MiB.
pub(crate) fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(File::open(path)?, most)
}

/// Reads at most `most` bytes up to the end.
pub(crate) fn read_all(from: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {} MiB", most >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, vec![1; 1 << 20]).unwrap();
        assert_eq!(read_file(&file, 1 << 20).unwrap().len(), 1 << 20);
        std::fs::write(&file, vec![1; (1 << 20) + 1]).unwrap();
        for path in [&file, Path::new("/dev/zero")] {
            assert_eq!(read_file(path, 1 << 20).unwrap_err().to_string(), "it is larger than 1 MiB");
        }
    }
}
