//! From errors to exit codes.

use super::show;
use crate::{backup, catalog, check, crypt, dump, history, init, inventory, reader, repository, restore, state};

const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
/// Done, but some files could not be read consistently, or the repository has lost data.
pub(super) const PARTIAL: u8 = 3;
const NO_REPOSITORY: u8 = 10;
const LOCKED: u8 = 11;
/// The key or the passphrase is wrong or missing.
const KEY: u8 = 12;
pub(super) const INTERRUPTED: u8 = 130;

/// A command line that parses, but is not valid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// A required key or passphrase could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoSecret(pub(super) String);

/// The exit code of an error.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(known).unwrap_or(FAILED)
}

/// The message of an error, followed by the causes that it does not contain.
pub(super) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    show::worded(&text).into_owned()
}

/// Whether the error is a broken pipe.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(pipe)
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<Usage>() {
        return Some(USAGE);
    }
    if cause.is::<NoSecret>() {
        return Some(KEY);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_crypt(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_repository(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_state(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_catalog(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_reader(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_inventory(error);
    }
    match cause.downcast_ref() {
        Some(backup::Error::Repository(error)) => return of_repository(error),
        Some(backup::Error::State(error)) => return of_state(error),
        Some(backup::Error::Catalog(error)) => return of_catalog(error),
        Some(backup::Error::Inventory(error)) => return of_inventory(error),
        Some(error) if error.is_usage() => return Some(USAGE),
        Some(backup::Error::Interrupted | backup::Error::PreviewInterrupted) => return Some(INTERRUPTED),
        _ => {}
    }
    match cause.downcast_ref() {
        Some(init::Error::Repository(error)) => return of_repository(error),
        Some(init::Error::State(error)) => return of_state(error),
        _ => {}
    }
    match cause.downcast_ref() {
        Some(restore::Error::Reader(error)) => return of_reader(error),
        Some(restore::Error::Pattern(_)) => return Some(USAGE),
        Some(restore::Error::Interrupted) => return Some(INTERRUPTED),
        _ => {}
    }
    match cause.downcast_ref() {
        Some(history::Error::Reader(error)) => return of_reader(error),
        Some(history::Error::Pattern(_)) => return Some(USAGE),
        _ => {}
    }
    if let Some(dump::Error::Reader(error) | dump::Error::Cut { source: error, .. }) = cause.downcast_ref() {
        return of_reader(error);
    }
    match cause.downcast_ref() {
        Some(check::Error::Reader(error)) => of_reader(error),
        Some(check::Error::Interrupted) => Some(INTERRUPTED),
        _ => None,
    }
}

fn of_crypt(error: &crypt::Error) -> Option<u8> {
    error.is_key_problem().then_some(KEY)
}

fn of_repository(error: &repository::Error) -> Option<u8> {
    match error {
        repository::Error::Missing { .. } => Some(NO_REPOSITORY),
        error => error.is_key_problem().then_some(KEY),
    }
}

fn of_state(error: &state::Error) -> Option<u8> {
    match error {
        state::Error::Locked { .. } => Some(LOCKED),
        state::Error::Interrupted => Some(INTERRUPTED),
        state::Error::Io { .. } | state::Error::Damaged { .. } => None,
    }
}

fn of_inventory(error: &inventory::Error) -> Option<u8> {
    match error {
        inventory::Error::Repository(error) => of_repository(error),
        inventory::Error::State(error) => of_state(error),
        inventory::Error::Catalog(error) => of_catalog(error),
        inventory::Error::Crypt(error) => of_crypt(error),
        inventory::Error::Interrupted => Some(INTERRUPTED),
        _ => None,
    }
}

fn of_catalog(error: &catalog::Error) -> Option<u8> {
    matches!(error, catalog::Error::Busy { .. }).then_some(LOCKED)
}

fn of_reader(error: &reader::Error) -> Option<u8> {
    match error {
        reader::Error::Repository(error) => of_repository(error),
        error => error.is_key_problem().then_some(KEY),
    }
}
