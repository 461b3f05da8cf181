//! Walks a subtree of any depth, in order.
//!
//! The walk is not recursive, and of the directories above the current one it keeps only the position (and the listings
//! of the nearest [`KEPT`]). So a hostile tree can increase its memory only by its depth, never the stack.

use super::entry::{EntryHandle, Page, SnapshotDirectory};
use super::error::Error;
use super::snapshots::Archive;

/// Levels whose listings are kept while the walk is below them. Levels further up are listed again on return.
const KEPT: usize = 8;

/// A depth-first walk. The caller decides which directories to enter.
pub struct TreeWalk<'a> {
    archive: &'a dyn Archive,
    levels: Vec<WalkLevel>,
}

struct WalkLevel {
    directory: SnapshotDirectory,
    /// Position of the next entry.
    next: u64,
    ready: Page,
    /// The entry before the next one.
    last: Option<EntryHandle>,
    over: bool,
}

/// One step of a walk.
pub enum WalkStep {
    /// An entry of the current directory. If it is a directory, [`TreeWalk::enter`] descends into it.
    Entry(EntryHandle),
    /// The rest of the current directory cannot be read. [`WalkStep::Leave`] follows.
    Failed(Error),
    /// The current directory is finished; the walk returns to its parent.
    Leave,
}

impl<'a> TreeWalk<'a> {
    /// Starts a walk in `top`.
    pub fn new(archive: &'a dyn Archive, top: SnapshotDirectory) -> Self {
        let mut walk = TreeWalk { archive, levels: Vec::new() };
        walk.enter(top);
        walk
    }

    /// Descends into `directory`; the entries after it follow when it is finished.
    pub fn enter(&mut self, directory: SnapshotDirectory) {
        if let Some(far) = self.levels.len().checked_sub(KEPT).and_then(|at| self.levels.get_mut(at)) {
            far.ready = Page::default();
            far.last = None;
        }
        if let Some(entered) = self.levels.last().and_then(|level| level.last.as_ref()) {
            self.archive.prefetch_after(entered);
        }
        self.levels.push(WalkLevel { directory, next: 0, ready: Page::default(), last: None, over: false });
    }

    /// Number of directories entered and not left, including the first.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The current directory.
    pub fn directory(&self) -> Option<&SnapshotDirectory> {
        self.levels.last().map(|level| &level.directory)
    }

    /// Returns the next step; `None` after the first directory was left.
    pub fn step(&mut self) -> Option<WalkStep> {
        let level = self.levels.last_mut()?;
        loop {
            if let Some(listed) = level.ready.next() {
                level.next += 1;
                level.last = Some(listed.clone());
                return Some(WalkStep::Entry(listed));
            }
            if level.over {
                self.levels.pop();
                return Some(WalkStep::Leave);
            }
            match self.archive.list(&level.directory, level.next) {
                Ok(page) => {
                    level.over = page.is_empty();
                    level.ready = page;
                }
                Err(error) => {
                    level.over = true;
                    return Some(WalkStep::Failed(error));
                }
            }
        }
    }
}
