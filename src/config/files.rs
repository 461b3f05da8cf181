//! Finds and reads configuration files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;

/// Maximum size of a file in bytes.
const LARGEST: u64 = 1 << 20;

/// A file and its text.
pub(super) struct Text {
    pub(super) file: Arc<Path>,
    pub(super) text: String,
}

/// Reads `file`, and the files `*.toml` in the folder `conf.d` beside it, in the order of their names.
pub(super) fn read(file: &Path) -> Result<Vec<Text>, Error> {
    let folder = file.parent().unwrap_or(Path::new("/")).join("conf.d");
    let mut files = vec![file.to_owned()];
    match fs::read_dir(&folder) {
        Ok(entries) => {
            let failed = |source| Error::Read { path: folder.clone(), source };
            let entries = entries.collect::<io::Result<Vec<_>>>().map_err(failed)?;
            let mut parts: Vec<_> =
                entries.into_iter().map(|entry| entry.path()).filter(|path| is_part(path)).collect();
            parts.sort();
            files.extend(parts);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path: folder, source }),
    }
    let read = |path: &PathBuf| {
        read_one(path).map_err(|error| match error {
            // A link that leads nowhere: the file itself exists.
            Error::Missing { path: missing } if missing != *file => {
                Error::Read { path: missing, source: io::ErrorKind::NotFound.into() }
            }
            error => error,
        })
    };
    files.iter().map(read).collect()
}

/// Whether a file in `conf.d` belongs to the configuration. Editors leave hidden files there.
fn is_part(path: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    path.extension().is_some_and(|extension| extension == "toml") && !is_hidden
}

fn read_one(path: &Path) -> Result<Text, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.to_owned() },
        _ => Error::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    // Whoever can write to it decides which commands run.
    let ours = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || ![0, ours].contains(&metadata.uid()) {
        return Err(Error::Exposed { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::NotText { path: path.to_owned() })?;
    Ok(Text { file: Arc::from(path), text })
}
