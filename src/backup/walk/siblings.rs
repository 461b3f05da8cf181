//! Neighbouring directories, some of which helpers look into before the walk gets there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};

use super::listing::{Ground, OpenedDirectory, PIECES, Piece, StatEntry, Unread, WalkContext};
use super::place::{Here, Position};
use super::readahead::{Later, Readahead};
use crate::backup::limits::HELPERS;
use crate::format::Kind;

/// Most neighbours in a piece of work.
const TOGETHER: usize = 8;

/// The queue of work ahead of the walk, and how much of it to hand over at once.
pub(super) struct SiblingsAhead {
    pub(super) queue: Readahead,
    /// Neighbours in a piece: as many as fill one.
    together: usize,
}

/// Neighbouring directories in order.
pub(super) struct Siblings {
    /// Those that helpers may look into.
    waiting: VecDeque<OsString>,
    sent: VecDeque<Sent>,
}

/// A piece of work for the helpers.
struct Sent {
    /// The name of its first directory.
    first: OsString,
    directories: usize,
    piece: Later<Piece>,
}

/// A helper panicked.
pub(super) struct HelperLost;

impl SiblingsAhead {
    pub(super) fn new(queue: Readahead) -> Self {
        SiblingsAhead { queue, together: 1 }
    }

    fn send(&self, here: &Here<'_>, unread: Vec<Unread>) -> Option<Sent> {
        let first = unread.first()?.name.clone();
        let directories = unread.len();
        let above = here.directory.clone();
        let piece = self.queue.send(here.place.depth + 1, move || Piece::of(&above, unread));
        Some(Sent { first, directories, piece })
    }

    /// Learns from a piece how many neighbours fill one.
    fn learn(&mut self, directories: usize, piece: &Piece) {
        if !piece.rest.is_empty() {
            self.together = (directories - piece.rest.len()).max(1);
        } else if piece.has_room && directories == self.together {
            self.together = (2 * self.together).min(TOGETHER);
        }
    }
}

impl Siblings {
    /// The directories among some entries of `here`.
    pub(super) fn of(here: &Here<'_>, entries: &[StatEntry], context: &WalkContext) -> Self {
        let may_be_ahead = |StatEntry { name, stat, mounted, .. }: &&StatEntry| {
            // Most entries are files.
            if stat.kind != Kind::Directory || mounted.is_some() {
                return false;
            }
            let part = here.place.part.child(name);
            part.whole && !part.leads_further() && context.rules.is_inside(stat, here.place.borders.device)
        };
        let waiting = entries.iter().filter(may_be_ahead).map(|entry| entry.name.clone());
        Siblings { waiting: waiting.collect(), sent: VecDeque::new() }
    }

    /// Goes on to the directory `name`, the next one, and returns it if helpers have looked into it.
    pub(super) fn next(
        &mut self,
        here: &Here<'_>,
        name: &OsStr,
        context: &WalkContext,
        ahead: &mut SiblingsAhead,
    ) -> Result<Option<OpenedDirectory>, HelperLost> {
        // Several are sent at once, so that helpers need not sleep in between.
        if self.sent.len() <= PIECES / 2 {
            // On a cold disk, each of few neighbours is worth a helper.
            let together = ahead.together.min(self.waiting.len().div_ceil(HELPERS + 1));
            while self.sent.len() < PIECES
                && let Some(sent) = ahead.send(here, self.take_unread(here, context, together))
            {
                self.sent.push_back(sent);
            }
        }
        if self.sent.front().is_some_and(|sent| sent.first == name)
            && let Some(Sent { directories, piece, .. }) = self.sent.pop_front()
        {
            let piece = piece.get().ok_or(HelperLost)?;
            ahead.learn(directories, &piece);
            here.add_below(piece.opened);
            if let Some(rest) = ahead.send(here, piece.rest) {
                self.sent.push_front(rest);
            }
        }
        Ok(here.take_below(name))
    }

    /// The next directories, at most `count`, that helpers have not looked into.
    fn take_unread(&mut self, here: &Here<'_>, context: &WalkContext, count: usize) -> Vec<Unread> {
        let waiting = std::iter::from_fn(|| self.waiting.pop_front());
        let unread = waiting.filter(|name| !here.is_read_below(name)).take(count);
        unread.map(|name| Unread { ground: ground_of(here.place.child(&name), context), name }).collect()
    }
}

/// The ground of a directory.
pub(super) fn ground_of(place: Position<'_>, context: &WalkContext) -> Ground {
    Ground { context: context.clone(), mounts: place.mounts.cloned(), borders: place.borders }
}
