//! Names of users and groups, as this machine has them.

use std::collections::HashMap;
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User};

/// Most names that are remembered of users, and of groups. A machine with more asks again now and then.
const REMEMBERED: usize = 4096;

/// Looks up names and remembers the answers. Asking may go to the network, if the machine is set up so.
#[derive(Debug, Default)]
pub struct Owners {
    users: HashMap<u32, Option<Arc<str>>>,
    groups: HashMap<u32, Option<Arc<str>>>,
}

impl Owners {
    /// A user's name; `None` if the number has none, or nobody can say.
    pub fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        remember(&mut self.users, uid, || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name))
    }

    /// A group's name; `None` if the number has none, or nobody can say.
    pub fn group(&mut self, gid: u32) -> Option<Arc<str>> {
        remember(&mut self.groups, gid, || Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name))
    }
}

fn remember(
    names: &mut HashMap<u32, Option<Arc<str>>>,
    number: u32,
    ask: impl FnOnce() -> Option<String>,
) -> Option<Arc<str>> {
    if let Some(name) = names.get(&number) {
        return name.clone();
    }
    if names.len() >= REMEMBERED {
        names.clear();
    }
    let name: Option<Arc<str>> = ask().filter(|name| !name.is_empty()).map(Arc::from);
    names.insert(number, name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_a_random_number_has_none() {
        let mut owners = Owners::default();
        for _ in 0..2 {
            assert_eq!(owners.user(0).as_deref(), Some("root"));
            assert_eq!(owners.group(0).as_deref(), Some("root"));
            assert_eq!(owners.user(3_999_999_999), None);
            assert_eq!(owners.group(3_999_999_999), None);
        }
    }

    #[test]
    fn a_name_is_asked_for_once_and_few_are_remembered() {
        let mut names = HashMap::new();
        assert_eq!(remember(&mut names, 7, || Some("seven".into())).as_deref(), Some("seven"));
        assert_eq!(remember(&mut names, 7, || panic!("asked again")).as_deref(), Some("seven"));
        for number in 0..10_000 {
            remember(&mut names, number, || None);
            assert!(names.len() <= REMEMBERED);
        }
    }
}
