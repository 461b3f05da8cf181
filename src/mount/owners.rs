//! Owners and groups shown for files in a mount.

use std::collections::HashMap;

/// Maps stored owners to shown ones. The default shows them unchanged.
#[derive(Debug, Clone, Default)]
pub struct OwnerMapping {
    /// Owner and group shown for all files, instead of the maps.
    pub all: Option<(u32, u32)>,
    /// Stored to shown user ids.
    pub users: HashMap<u32, u32>,
    /// Stored to shown group ids.
    pub groups: HashMap<u32, u32>,
}

impl OwnerMapping {
    /// Returns the shown user and group.
    pub(super) fn shown(&self, user: u32, group: u32) -> (u32, u32) {
        let other = |map: &HashMap<u32, u32>, of: u32| map.get(&of).copied().unwrap_or(of);
        self.all.unwrap_or_else(|| (other(&self.users, user), other(&self.groups, group)))
    }
}
