//! What tests of targets on other machines share.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The files below a folder that a server may be changing: what is removed meanwhile may be missing.
#[track_caller]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.expect("a folder of the server"),
        };
        for entry in entries.map(|entry| entry.expect("an entry")) {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            (if is_folder { &mut folders } else { &mut files }).push(entry.path());
        }
    }
    files
}

/// The packs below the folder of a repository.
#[track_caller]
pub fn packs_below(repository: &Path) -> Vec<PathBuf> {
    let mut packs = files_below(&repository.join("packs"));
    packs.retain(|pack| !is_temporary(pack));
    packs
}

/// Whether a file of a repository is an upload that has not ended.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp-"))
}

/// The length of a file; 0 if it is missing.
pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}
