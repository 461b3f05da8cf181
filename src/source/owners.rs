//! Names and ids of users and groups on this machine.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User};

/// The maximum number of cached answers of each kind. A full cache is cleared.
const REMEMBERED: usize = 4096;

/// Looks up users and groups, and caches the answers. A lookup may use the network (NSS).
#[derive(Debug, Default)]
pub struct Owners {
    users: HashMap<u32, Option<Arc<str>>>,
    groups: HashMap<u32, Option<Arc<str>>>,
    uids: HashMap<String, Option<u32>>,
    gids: HashMap<String, Option<u32>>,
}

impl Owners {
    /// A user's name; `None` if there is none or the lookup fails.
    pub fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        remember(&mut self.users, &uid, || named(User::from_uid(Uid::from_raw(uid)).ok().flatten()?.name))
    }

    /// A group's name; `None` if there is none or the lookup fails.
    pub fn group(&mut self, gid: u32) -> Option<Arc<str>> {
        remember(&mut self.groups, &gid, || named(Group::from_gid(Gid::from_raw(gid)).ok().flatten()?.name))
    }

    /// The uid of a user name; `None` if this machine does not know it.
    pub fn uid(&mut self, name: &str) -> Option<u32> {
        remember(&mut self.uids, name, || Some(User::from_name(name).ok()??.uid.as_raw()))
    }

    /// The gid of a group name; `None` if this machine does not know it.
    pub fn gid(&mut self, name: &str) -> Option<u32> {
        remember(&mut self.gids, name, || Some(Group::from_name(name).ok()??.gid.as_raw()))
    }
}

fn remember<Q: Eq + Hash + ToOwned<Owned = K> + ?Sized, K: Eq + Hash + Borrow<Q>, A: Clone>(
    answers: &mut HashMap<K, Option<A>>,
    question: &Q,
    ask: impl FnOnce() -> Option<A>,
) -> Option<A> {
    if let Some(answer) = answers.get(question) {
        return answer.clone();
    }
    if answers.len() >= REMEMBERED {
        answers.clear();
    }
    let answer = ask();
    answers.insert(question.to_owned(), answer.clone());
    answer
}

/// The name unless it is empty.
fn named(name: String) -> Option<Arc<str>> {
    (!name.is_empty()).then(|| Arc::from(name))
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
            assert_eq!((owners.uid("root"), owners.gid("root")), (Some(0), Some(0)));
            assert_eq!((owners.uid("no such user"), owners.gid("")), (None, None));
        }
    }

    #[test]
    fn answers_are_cached_up_to_a_limit() {
        let mut names = HashMap::new();
        assert_eq!(remember(&mut names, &7, || named("seven".into())).as_deref(), Some("seven"));
        assert_eq!(remember(&mut names, &7, || panic!("asked again")).as_deref(), Some("seven"));
        for number in 0..10_000 {
            remember(&mut names, &number, || None);
            assert!(names.len() <= REMEMBERED);
        }
    }
}
