//! Neighbouring directories, some of which helpers look into before the walk gets there.

use std::collections::VecDeque;
use std::ffi::OsString;

use super::listing::{Ground, OpenedDirectory, SIBLINGS, StatEntry, WalkContext};
use super::place::{Here, Position};
use super::readahead::{Later, Readahead};
use crate::format::Kind;

/// A directory that may have been looked into ahead. `None` inside: it could not be opened yet.
pub(super) type OpenedAhead = Later<Option<OpenedDirectory>>;

/// Neighbouring directories in order.
pub(super) struct Siblings {
    waiting: VecDeque<Sibling>,
    sent: VecDeque<Option<OpenedAhead>>,
}

struct Sibling {
    name: OsString,
    /// Helpers may look into it.
    may_be_ahead: bool,
}

impl Siblings {
    /// The directories among some entries of `here`.
    pub(super) fn of(here: &Here<'_>, entries: &[StatEntry], context: &WalkContext) -> Self {
        let directories = entries.iter().filter(|entry| entry.stat.kind == Kind::Directory);
        let waiting = directories.map(|StatEntry { name, stat, mounted, .. }| {
            let part = here.place.part.child(name);
            let is_inside = mounted.is_none() && context.rules.is_inside(stat, here.place.borders.device);
            Sibling { name: name.clone(), may_be_ahead: is_inside && part.whole && !part.leads_further() }
        });
        Siblings { waiting: waiting.collect(), sent: VecDeque::new() }
    }

    /// Goes on to the next directory, and returns it if helpers were asked to look into it.
    pub(super) fn next(&mut self, here: &Here<'_>, context: &WalkContext, ahead: &Readahead) -> Option<OpenedAhead> {
        // Several are sent at once, so that helpers need not sleep in between.
        let refill = self.sent.len() <= SIBLINGS / 2;
        while refill
            && self.sent.len() < SIBLINGS
            && let Some(Sibling { name, may_be_ahead }) = self.waiting.pop_front()
        {
            self.sent.push_back(may_be_ahead.then(|| match here.take_below(&name) {
                Some(opened) => Later::now(Some(opened)),
                None => {
                    let parent = here.directory.clone();
                    let ground = ground_of(here.place.child(&name), context);
                    let look = move || OpenedDirectory::with_below(&parent, &name, &ground);
                    ahead.send(here.place.depth + 1, look)
                }
            }));
        }
        self.sent.pop_front().flatten()
    }
}

/// The ground of a directory.
pub(super) fn ground_of(place: Position<'_>, context: &WalkContext) -> Ground {
    Ground { context: context.clone(), mounts: place.mounts.cloned(), borders: place.borders }
}
