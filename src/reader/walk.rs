//! Walks: all that is below a directory, in order, however deep it is.
//!
//! No step calls itself, and of a directory that the walk has left for one below it, only the place is kept: so
//! neither the stack nor the memory grows with the nodes that a hostile tree lines up, only by the levels.

use super::tree::Page;
use super::{EntryHandle, Error, Reader, SnapshotDirectory};

/// Levels whose listings are kept while the walk is below them. Those above are listed again on return.
const KEPT: usize = 8;

/// A walk. Whoever walks decides which directories are entered.
pub struct TreeWalk<'r> {
    reader: &'r Reader,
    levels: Vec<WalkLevel>,
}

struct WalkLevel {
    directory: SnapshotDirectory,
    /// Position of the first entry that was not handed out.
    next: u64,
    ready: Page,
    over: bool,
}

/// What a walk comes to.
pub enum WalkStep {
    /// An entry of the directory at hand. If it is a directory, [`TreeWalk::enter`] goes into it.
    Entry(EntryHandle),
    /// The rest of the directory at hand can't be read. It is left next.
    Failed(Error),
    /// The directory at hand is done; at hand is again the one that it was entered from.
    Leave,
}

impl<'r> TreeWalk<'r> {
    /// A walk that begins in `top`.
    pub fn new(reader: &'r Reader, top: SnapshotDirectory) -> Self {
        let mut walk = TreeWalk { reader, levels: Vec::new() };
        walk.enter(top);
        walk
    }

    /// Goes on in `directory`, and with what follows it when that is done.
    pub fn enter(&mut self, directory: SnapshotDirectory) {
        if let Some(far) = self.levels.len().checked_sub(KEPT).and_then(|at| self.levels.get_mut(at)) {
            far.ready = Page::default();
        }
        self.levels.push(WalkLevel { directory, next: 0, ready: Page::default(), over: false });
    }

    /// Directories that were entered and not left, the first one included.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The directory at hand.
    pub fn directory(&self) -> Option<&SnapshotDirectory> {
        self.levels.last().map(|level| &level.directory)
    }

    /// The next step; none when the directory that the walk began in was left.
    pub fn step(&mut self) -> Option<WalkStep> {
        let level = self.levels.last_mut()?;
        loop {
            if let Some(listed) = level.ready.next() {
                level.next += 1;
                return Some(WalkStep::Entry(listed));
            }
            if level.over {
                self.levels.pop();
                return Some(WalkStep::Leave);
            }
            match self.reader.list(&level.directory, level.next) {
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
