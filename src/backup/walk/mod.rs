//! Walking the source: finding out which directories and files there are, and which of them changed.
//!
//! - [`scope`]: the paths to back up; [`list`] reads lists of paths, [`path_set`] holds them
//! - [`rules`]: exclusions, and how files are recognized
//! - [`tree`]: the walk through a tree; [`place`] is where it is, [`segments`] the directory as it was
//! - [`recognize`]: finds the catalog's row of a directory; [`devices`]: devices with other numbers than before
//! - [`listing`]: the entries of a directory, looked at ahead of the walk by helpers: [`readahead`], [`siblings`]
//! - [`retry`]: deferred files are visited again at the end
//! - [`pipe`]: standard input instead of a tree
//! - [`event`]: the messages of a walk; [`outbox`] sends them, and jobs to the readers
//! - [`path_stack`]: the path of the current directory, for followers
//! - [`stop`]: why a walk ends early

mod devices;
pub(super) mod event;
mod input;
mod list;
mod listing;
pub(super) mod outbox;
mod path_set;
pub(super) mod path_stack;
pub(super) mod pipe;
mod place;
pub(super) mod readahead;
mod recognize;
pub(super) mod retry;
pub(super) mod rules;
pub(super) mod scope;
mod segments;
mod siblings;
pub(super) mod stop;
pub(super) mod tree;
