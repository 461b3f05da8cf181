//! Targets: the storage that a repository is kept on.
//!
//! A target holds immutable objects under names such as `packs/ab/…`. Other modules use [`Target`], which is opened at a
//! [`Location`] and works on a [`Storage`].
//!
//! - [`location`]: where a target is, as users write it
//! - [`target`]: an open target, with operations that are made of those of the storage
//! - [`ahead`]: reads that begin before their results are needed
//! - [`parts`]: parts of an object that are read with one request
//! - [`removal`]: removal of many objects, one by one
//! - [`spool`]: an object that is still being written, in a temporary file
//! - [`directory`]: objects as files in a directory; [`place`]: opens files in it without following symbolic links
//! - [`sftp`]: objects as files on an SFTP server
//! - [`ftp`]: objects as files on an FTP server
//! - [`s3`]: objects in a bucket of S3
//! - [`swift`]: objects in a container of OpenStack Swift
//! - [`webdav`]: objects as files on a WebDAV server
//! - [`http`]: what targets over HTTP share; [`socket`]: its connections; [`proxy`]: its
//!   proxy; [`url`](mod@url) and [`xml`]: parts of both
//! - [`netrc`]: logins of servers; [`secret`]: the login or the keys that are given
//! - [`rclone`]: objects as files on a remote of rclone, over HTTP
//! - [`remote`]: options of targets on other machines
//! - [`layout`]: folders and temporary files of storage that keeps objects as files
//! - [`wrapper`]: storage that adds something to another one: [`retry`] waits for a target that is away, [`limit`] bounds
//!   the bytes per second, [`log`] logs operations
//! - [`disk_cache`]: a cache on disk of blocks of a target on another machine
//! - [`pace`]: waits that bound a rate; [`listing`]: a listing that may be tried again
//! - [`connect`]: connections over TCP; [`interrupt`]: ends all waits; [`cut_off`]: ends uploads that take too long
//! - [`testing`]: storage in memory, storage that fails on request, and a record of all operations

mod ahead;
mod connect;
mod contract;
mod cut_off;
mod directory;
mod disk_cache;
mod error;
mod ftp;
mod http;
mod interrupt;
mod layout;
mod limit;
mod listing;
mod location;
mod log;
mod netrc;
mod pace;
mod parts;
mod place;
mod proxy;
mod rclone;
mod remote;
mod removal;
mod retry;
mod s3;
mod secret;
mod sftp;
mod socket;
mod spool;
mod swift;
mod target;
pub mod testing;
mod url;
mod webdav;
mod wrapper;
mod xml;

pub use ahead::{Ahead, InTurn};
pub use contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
pub use cut_off::CutOff;
pub use directory::DirectoryStorage;
pub use disk_cache::DiskCache;
pub use error::{Error, ErrorKind};
pub use ftp::{Address as FtpAddress, FtpStorage, Security as FtpSecurity};
pub use http::agent;
pub use interrupt::Interrupt;
pub use limit::{Limit, Rates};
pub use location::{Location, LocationError, LocationKind};
pub use parts::Parts;
pub use rclone::{Address as RcloneAddress, RcloneStorage};
pub use remote::Remote;
pub use retry::{RetryPolicy, RetryStorage, Waiting, waited};
pub use s3::{Address as S3Address, S3Storage, parse_endpoint};
pub use secret::Credentials;
pub use sftp::{Address as SftpAddress, SftpStorage};
pub use spool::{Spool, SpoolReader, Spools};
pub use swift::{Address as SwiftAddress, SwiftStorage};
pub use target::Target;
pub use webdav::{Address as WebdavAddress, WebdavStorage};
pub use wrapper::Operation;
