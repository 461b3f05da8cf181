//! Lists of paths: one per line, or NUL-terminated.
//!
//! A list is NUL-terminated if there is a NUL within the first 64 KiB, which is more than any path has. Paths are taken
//! literally: blanks count, and there are no comments or patterns. Empty paths are skipped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::backup::error::Error;

/// More bytes than a path may have.
const LONGEST: u64 = 64 << 10;

/// Calls `each` with the paths of a list, one after the other; `-` is standard input. Fails if the list is empty, or not a
/// list of paths.
pub(super) fn read(list: &Path, each: &mut dyn FnMut(&Path)) -> Result<(), Error> {
    let failed = |e| Error::Usage(format!("cannot read the list of files {}: {e}", list.display()));
    let result = if list == Path::new("-") {
        read_from(io::stdin().lock(), each)
    } else {
        File::open(list).and_then(|file| read_from(BufReader::new(file), each))
    };
    match result.map_err(failed)? {
        0 => Err(Error::Usage(format!("the list of files {} is empty: it names nothing to back up", list.display()))),
        _ => Ok(()),
    }
}

/// Returns the number of paths.
fn read_from(mut list: impl BufRead, each: &mut dyn FnMut(&Path)) -> io::Result<u64> {
    let mut head = Vec::new();
    list.by_ref().take(LONGEST).read_to_end(&mut head)?;
    let separator = if head.contains(&0) { 0 } else { b'\n' };
    let mut list = head.as_slice().chain(list);
    let mut path = Vec::new();
    let mut count = 0;
    loop {
        path.clear();
        list.by_ref().take(LONGEST).read_until(separator, &mut path)?;
        match path.last() {
            None => return Ok(count),
            Some(last) if *last == separator => _ = path.pop(),
            Some(_) if path.len() as u64 == LONGEST => {
                let what = format!("what follows path {count} is too long for a path");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Some(_) => {}
        }
        if !path.is_empty() {
            count += 1;
            each(Path::new(std::ffi::OsStr::from_bytes(&path)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[u8]) -> Vec<String> {
        let mut paths = Vec::new();
        let count = read_from(list, &mut |path| paths.push(path.display().to_string())).unwrap();
        assert_eq!(count, paths.len() as u64);
        paths
    }

    #[test]
    fn lines_are_taken_literally() {
        assert_eq!(paths(b"/a\n\n b \n#c\n./-\nlast"), ["/a", " b ", "#c", "./-", "last"]);
        assert!(paths(b"").is_empty() && paths(b"\n\n").is_empty());
    }

    #[test]
    fn a_list_with_a_nul_is_nul_terminated() {
        assert_eq!(paths(b"/a\nb\0c\0"), ["/a\nb", "c"]);
        assert_eq!(paths(b"one\0two"), ["one", "two"]);
        assert!(paths(b"\0\0").is_empty());
    }

    #[test]
    fn a_list_may_be_long() {
        for separator in ['\n', '\0'] {
            let names: Vec<_> = (0..20_000).map(|number| format!("/some/directory/{number}")).collect();
            let list: String = names.iter().flat_map(|name| [name.as_str().into(), separator.to_string()]).collect();
            assert!(paths(list.as_bytes()) == names);
        }
    }

    #[test]
    fn other_files_do_not_fill_the_memory() {
        let error = read_from(BufReader::new(io::repeat(b'x')), &mut |_| panic!("a path")).unwrap_err();
        assert_eq!(error.to_string(), "what follows path 0 is too long for a path");
    }
}
