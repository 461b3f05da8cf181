//! Options that all targets on other machines share.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::interrupt::Interrupt;
use super::secret::Credentials;
use super::spool::Spools;

/// How to use a target on another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The program that connects to SFTP servers, and options for it.
    pub ssh: Vec<String>,
    /// The program that reaches remotes of rclone, and options for it.
    pub rclone: Vec<String>,
    /// The URL of the server, for kinds of target whose location does not name one; `None` for the usual one.
    pub endpoint: Option<String>,
    /// The login, or the keys of an account; `None` to look in the usual places.
    pub credentials: Option<Credentials>,
    /// The file with the certificates that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// The maximum number of connections, which is also the number of objects that are stored at the same time; `None` for as
    /// many as suit the kind of target.
    pub connections: Option<NonZeroUsize>,
    /// How long a connection may be silent while an answer is due, before it is closed.
    pub stall: Duration,
    /// Ends waits for a silent server.
    pub interrupt: Interrupt,
    /// How long listings may lag behind, for services that promise nothing about it.
    pub lag: Duration,
    /// The folder for objects that are being stored; `None` for the system's folder for temporary files. A missing one is
    /// made.
    pub spool: Option<PathBuf>,
    /// The bytes of packs in that folder.
    pub spool_size: u64,
}

/// Connections to a server that many may be too much for.
pub(super) const FEW: usize = 4;
/// Connections to a service that serves many.
pub(super) const MANY: usize = 8;

impl Remote {
    /// Bytes that a pack takes in the spool.
    const PACK: u64 = 16 << 20;
    /// The spools that a backup needs at least; see [`Spools::new`].
    const LEAST: u64 = 4;

    /// The maximum number of connections, to a kind of target which `usual` suits.
    pub(super) fn connections(&self, usual: usize) -> NonZeroUsize {
        self.connections.or(NonZeroUsize::new(usual)).unwrap_or(NonZeroUsize::MIN)
    }

    /// The spools for objects that are being stored.
    pub(super) fn spools(&self) -> Spools {
        let count = (self.spool_size / Self::PACK).max(Self::LEAST);
        Spools::new(self.spool.clone(), usize::try_from(count).unwrap_or(usize::MAX), u64::MAX)
    }
}

impl Default for Remote {
    fn default() -> Self {
        Remote {
            ssh: vec!["ssh".to_owned()],
            rclone: vec!["rclone".to_owned()],
            endpoint: None,
            credentials: None,
            ca: None,
            connections: None,
            stall: Duration::from_secs(60),
            interrupt: Interrupt::default(),
            lag: Duration::from_secs(60),
            spool: None,
            spool_size: 128 << 20,
        }
    }
}
