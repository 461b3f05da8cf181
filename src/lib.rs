//! Encrypted, mountable backups: made with a public key only, in constant memory, verified on every read.
//!
//! Two data flows explain most of the code. A backup ([`backup`]) walks a [`source`], compares it with the
//! [`catalog`], and writes blocks ([`format`](mod@format), [`crypt`]) into packs of a [`repository`] in a [`storage`].
//! A [`session`] may write; the [`inventory`] ensures that the catalog never claims more than the repository has.
//! A policy ([`retention`]) decides which snapshots stay.
//! A read ([`reader`]) goes from a snapshot through trees to blocks, and verifies each; [`check`] is built on it.
//! [`mount`], [`restore`], [`dump`](mod@dump) and [`history`] read snapshots of any format through the trait of
//! [`archive`], which the reader implements. An [`overview`] is the state of all
//! configured backups. Engines report to a [`monitor`]; only [`cli`] prints.
//!
//! ## Layers
//!
//! Modules use only modules above them in this table; `tests/layers.rs` compares it with the code.
//!
//! <!-- layers -->
//! | module | may use |
//! | --- | --- |
//! | `failure` | – |
//! | `sys` | – |
//! | `secret` | `sys` |
//! | `storage` | `secret` `sys` `failure` |
//! | `threads` | – |
//! | `crypt` | `failure` |
//! | `format` | – |
//! | `quantity` | – |
//! | `monitor` | – |
//! | `source` | `format` `sys` `failure` |
//! | `repository` | `storage` `crypt` `format` `failure` |
//! | `state` | `sys` `crypt` `format` `failure` |
//! | `catalog` | `crypt` `format` `source` `sys` `failure` |
//! | `init` | `catalog` `state` `repository` `storage` `crypt` `format` `failure` |
//! | `inventory` | `catalog` `state` `repository` `storage` `crypt` `format` `monitor` `failure` |
//! | `session` | `inventory` `source` `catalog` `state` `repository` `storage` `crypt` `format` `sys` `monitor` `failure` |
//! | `prune` | `session` `inventory` `source` `catalog` `state` `repository` `storage` `crypt` `format` `monitor` `failure` |
//! | `backup` | `session` `inventory` `source` `catalog` `state` `repository` `storage` `crypt` `format` `sys` `monitor` `threads` `failure` |
//! | `archive` | `storage` `format` `failure` |
//! | `reader` | `archive` `repository` `crypt` `format` `failure` |
//! | `mount` | `sys` `archive` `format` `monitor` `failure` |
//! | `restore` | `archive` `source` `format` `sys` `monitor` `failure` |
//! | `dump` | `archive` `format` `monitor` `failure` |
//! | `retention` | `archive` `session` `inventory` `catalog` `state` `repository` `format` `monitor` `failure` |
//! | `config` | `backup` `prune` `retention` `storage` `secret` `quantity` `failure` |
//! | `job` | `config` `backup` `prune` `retention` `session` `source` `state` `repository` `storage` `secret` `format` `monitor` `sys` `failure` |
//! | `overview` | `job` `config` `catalog` `state` `crypt` `format` `sys` |
//! | `history` | `archive` `source` `format` `monitor` `failure` |
//! | `check` | `archive` `reader` `repository` `source` `storage` `crypt` `format` `monitor` `failure` |
//! | `cli` | `archive` `backup` `catalog` `check` `config` `crypt` `dump` `format` `history` `init` `inventory` `job` `sys` `monitor` `mount` `overview` `prune` `quantity` `reader` `repository` `restore` `retention` `secret` `session` `state` `storage` `failure` |
//! <!-- /layers -->

// Tests of targets remove objects without a session.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod archive;
pub mod backup;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod config;
pub mod crypt;
pub mod dump;
pub mod failure;
pub mod format;
pub mod history;
pub mod init;
pub mod inventory;
pub mod job;
pub mod monitor;
pub mod mount;
pub mod overview;
pub mod prune;
pub mod quantity;
pub mod reader;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod secret;
pub mod session;
pub mod source;
pub mod state;
pub mod storage;
mod sys;
pub mod threads;
