//! Whose the files of a mount are.

use std::collections::HashMap;

/// How owners are shown. By default as they were backed up.
#[derive(Debug, Clone, Default)]
pub struct OwnerMapping {
    /// Owner and group of everything.
    pub all: Option<(u32, u32)>,
    /// Users who are shown as others.
    pub users: HashMap<u32, u32>,
    /// Groups that are shown as others.
    pub groups: HashMap<u32, u32>,
}

impl OwnerMapping {
    /// What stands for an owner and a group.
    pub(super) fn shown(&self, user: u32, group: u32) -> (u32, u32) {
        let other = |map: &HashMap<u32, u32>, of: u32| map.get(&of).copied().unwrap_or(of);
        self.all.unwrap_or_else(|| (other(&self.users, user), other(&self.groups, group)))
    }
}
