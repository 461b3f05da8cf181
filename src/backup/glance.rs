//! The follower of a glance: ends the walk at the first change.
//!
//! A walk that sends nothing but unchanged segments would make the same tree as the last backup: see
//! [`Assembler`](super::store::assembler::Assembler), which keeps the rows of such directories.

use super::error::Error;
use super::pipeline::Follower;
use super::summary::Summary;
use super::walk::event::{EnterDirectory, Event};
use super::walk::tree::WalkCounts;
use crate::catalog::DirectoryRow;
use crate::catalog::stats::{ComparedFields, Stats};
use crate::source::EntryMount;

/// Finds out whether the source is as in a snapshot.
pub(super) struct Glance<'a> {
    /// The source's name.
    pub(super) source: &'a str,
    /// The identity of the snapshot's root directory.
    pub(super) root: Stats,
    pub(super) compared: ComparedFields,
    /// The number of directories above.
    pub(super) depth: usize,
}

impl Glance<'_> {
    /// Whether the catalog has this directory in this place, complete and in a snapshot.
    fn is_as_before(&self, found: &EnterDirectory) -> bool {
        let Some(DirectoryRow { subtree: Some(_), linked: true, in_place: true, inode, .. }) = &found.row else {
            return false;
        };
        let is_same_inode = (inode.device, inode.number) == (found.device, found.stat.ino);
        let is_same = (is_same_inode || !self.compared.inode) && !found.untrusted && !found.again;
        if self.depth > 0 {
            return is_same;
        }
        let mut root = Stats::default();
        root.push(b"", &found.stat, EntryMount::default());
        is_same && root.same_as(&self.root, self.compared)
    }
}

impl Follower for Glance<'_> {
    fn event(&mut self, event: Event) -> Result<(), Error> {
        let is_unchanged = match event {
            Event::Enter(enter) => {
                let is_same = self.is_as_before(&enter);
                self.depth += 1;
                is_same
            }
            Event::Leave { removed } => {
                self.depth = self.depth.saturating_sub(1);
                removed.is_empty()
            }
            // A backup notes other stats, even in fields that are not compared.
            Event::OldSegment(old) => old.stats.is_none(),
            Event::EndSegment => true,
            Event::NewSegment { .. }
            | Event::Reused(_)
            | Event::Kept(_)
            | Event::Again { .. }
            | Event::Files(_)
            | Event::Plain(_) => false,
        };
        if is_unchanged { Ok(()) } else { Err(Error::Changed) }
    }

    fn root_left(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn finish(self, counts: WalkCounts) -> Result<Summary, Error> {
        // A backup reports problems.
        if counts.problems > 0 { Err(Error::Changed) } else { Ok(Summary::of_walk(self.source, &counts)) }
    }

    fn interrupt(self) -> Error {
        Error::Interrupted
    }
}
