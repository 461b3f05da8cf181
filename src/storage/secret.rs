//! Files with logins or keys.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::sys::bounded::{SECRET, read_file};

/// Reads a file, and whether other users can read it. `None` if it is missing, unless it is `required`. The error has nothing
/// of its content.
pub(super) fn read_secret(file: &Path, required: bool) -> Result<Option<(String, bool)>, String> {
    let failed = |why: String| format!("cannot read {}: {why}", file.display());
    let found = match fs::metadata(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        found => found.map_err(|e| failed(e.to_string()))?,
    };
    if !found.is_file() {
        return Err(failed("it is not a file".to_owned()));
    }
    let bytes = read_file(file, SECRET).map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))?;
    Ok(Some((text, found.permissions().mode() & 0o077 != 0)))
}
