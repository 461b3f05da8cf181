//! Where a target is, as users write it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The location of a target: parsed once, on the command line, and handed down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    given: String,
    kind: LocationKind,
}

/// The kinds of target that a location can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocationKind {
    /// A directory on this machine.
    Directory(PathBuf),
}

/// A location that names no target of a supported kind. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LocationError(String);

impl Location {
    /// The kind of target, and where it is.
    pub fn kind(&self) -> &LocationKind {
        &self.kind
    }
}

impl FromStr for Location {
    type Err = LocationError;

    /// Parses a path or a `file://` URL. A colon before the first slash is how other programs name a machine or a service,
    /// so it is refused; `./` in front makes it a path.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        let directory = |path: &str| Location { given: text.to_owned(), kind: LocationKind::Directory(path.into()) };
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(directory(path));
        }
        let head = text.split('/').next().unwrap_or_default();
        let Some((place, _)) = head.split_once(':') else { return Ok(directory(text)) };
        let help = match place {
            "sftp" | "ssh" => "mount it with sshfs, and give the mount point",
            "rclone" | "s3" | "b2" | "gs" | "azure" | "swift" | "rest" | "ftp" | "ftps" | "http" | "https"
            | "webdav" | "webdavs" => "mount it with `rclone mount`, and give the mount point",
            _ => "mount it, as with sshfs, and give the mount point",
        };
        Err(LocationError(format!(
            "this names another machine or a service, but a repository must be a local directory: {help}. For a local directory of this name, write ./{text}"
        )))
    }
}

impl From<&Path> for Location {
    /// The location of a directory, whatever characters are in its path.
    fn from(path: &Path) -> Self {
        Location { given: path.display().to_string(), kind: LocationKind::Directory(path.to_owned()) }
    }
}

impl fmt::Display for Location {
    /// Writes the location as it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        text.parse()
    }

    #[test]
    fn paths_and_file_urls_are_directories_and_print_as_given() {
        for (text, path) in [
            ("/backup", "/backup"),
            ("relative/path", "relative/path"),
            ("file:///backup", "/backup"),
            ("./host:repo", "./host:repo"),
            ("a/b:c", "a/b:c"),
            ("", ""),
        ] {
            let location = parse(text).unwrap();
            assert_eq!(location.kind(), &LocationKind::Directory(path.into()));
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn other_machines_and_services_are_refused_with_the_way_to_use_them() {
        for (text, help) in [
            ("sftp://host/repo", "sshfs"),
            ("s3://bucket/repo", "rclone mount"),
            ("rclone:remote:repo", "rclone mount"),
            ("host:repo", "as with sshfs"),
            ("user@host:/repo", "as with sshfs"),
        ] {
            let refused = parse(text).unwrap_err().to_string();
            assert!(refused.contains(help) && refused.ends_with(&format!("write ./{text}")), "{refused}");
        }
    }
}
