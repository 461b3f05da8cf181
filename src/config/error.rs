//! Why a configuration cannot be used.

use std::path::PathBuf;

use super::place::Mistake;
use crate::failure::{Failure, FailureKind};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("there is no configuration file {}; `brackfs config init` writes one", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file or folder cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Other users can change the file, and with it the commands that it names.
    #[error("other users can change {}, and so run commands as you; make yourself or root its owner, and run chmod go-w on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than any configuration.
    #[error("the configuration {} is larger than 1 MiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("the configuration {} is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The files have mistakes.
    #[error("{}", listed(.0))]
    Mistakes(Vec<Mistake>),
    /// No source or target has this name.
    #[error("the configuration has no {kind} {name}{suggestion}")]
    Unknown {
        /// `source` or `target`.
        kind: &'static str,
        /// The name.
        name: String,
        /// The most similar name, as a remark.
        suggestion: String,
    },
}

fn listed(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Usage
    }
}
