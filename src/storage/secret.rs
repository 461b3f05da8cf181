//! Files with logins or keys.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Bytes of a file.
const LONGEST_FILE: u64 = 1 << 20;

/// Reads a file, and whether other users can read it. `None` if it is missing, unless it is `required`. The error has nothing
/// of its content.
pub(super) fn read_secret(file: &Path, required: bool) -> Result<Option<(String, bool)>, String> {
    let failed = |why: String| format!("cannot read {}: {why}", file.display());
    let found = match fs::metadata(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        found => found.map_err(|e| failed(e.to_string()))?,
    };
    if !found.is_file() || found.len() > LONGEST_FILE {
        return Err(failed("it is not a file of a few lines".to_owned()));
    }
    let text = fs::read_to_string(file).map_err(|e| failed(e.to_string()))?;
    Ok(Some((text, found.permissions().mode() & 0o077 != 0)))
}
