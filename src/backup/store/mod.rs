//! Storing the files of a walk. Each part owns the next one.
//!
//! - [`assembler`]: events into entries, segments and directories; [`frames`] are the directories that the walk is in,
//!   [`file`](mod@file) is the content of a file, [`hard_link_ids`] joins the names of a file
//! - [`nodes`]: tree nodes that wait for the blocks they refer to; [`indexes`] are nodes above nodes, [`rows`] the catalog's rows
//!   about nodes
//! - [`blocks`]: chunks into blocks, without duplicates; [`composites`] are blocks of many small chunks
//! - [`packer`]: has packs of sealed blocks published; [`seal`] compresses and encrypts blocks, and fills packs

pub(super) mod assembler;
pub(super) mod blocks;
mod composites;
mod file;
#[cfg(test)]
mod fixture;
pub(super) mod frames;
mod hard_link_ids;
mod indexes;
pub(super) mod nodes;
pub(super) mod packer;
mod rows;
pub(super) mod seal;
