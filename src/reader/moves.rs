//! Moved blocks: where to read a block whose pack is gone or damaged.
//!
//! A prune moves the live blocks of a pack into a carrier and writes a shard of moves before it removes the pack. Trees are
//! unchanged, so the reader tries the birth pack first, and only looks at a shard if the block is lost there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{Cache, Weigh};
use super::error::Error;
use crate::failure::Failure;
use crate::format::PackId;
use crate::format::id::ObjectId;
use crate::format::moved::Moved;
use crate::format::name;
use crate::repository::{self, Access, Repository};

/// Maximum size of the cached shards, in bytes.
pub(super) const MEMORY: usize = 4 << 20;
/// How long a cached shard without a block is taken as proof that the block was not moved. A mount may stay open while
/// packs are compacted.
const MOMENT: Duration = Duration::from_secs(2);

/// A cache of shards, by the first byte of the ids of packs.
pub(super) struct Moves {
    shards: Cache<u8, Shard, Error>,
}

/// The moves of one prefix at the time of a listing.
struct Shard {
    /// The shard of the highest generation; `None` if no shard verifies.
    newest: Option<Arc<Moved>>,
    /// All shards in the listing, sorted.
    listed: Vec<ObjectId>,
    at: Instant,
    /// Whether the same shards would lead to the same result. Errors of the target and of a key are not final.
    is_final: bool,
}

impl Weigh for Shard {
    fn weight(&self) -> usize {
        size_of_val(self.listed.as_slice()) + self.newest.as_ref().map_or(0, |moved| size_of_moves(moved))
    }
}

fn size_of_moves(moved: &Moved) -> usize {
    let ranges = moved.ranges.iter().map(|(_, ranges)| size_of_val(ranges.as_slice())).sum::<usize>();
    let restored = moved.restored.iter().map(|(_, chunks)| size_of_val(chunks.as_slice())).sum::<usize>();
    let births = size_of_val(moved.ranges.as_slice()) + size_of_val(moved.restored.as_slice());
    births + ranges + restored + size_of_val(moved.carriers.as_slice())
}

/// Frees memory that lookups do not need.
fn compact(mut moved: Moved) -> Moved {
    moved.replaces = Vec::new();
    moved.carriers.shrink_to_fit();
    moved.ranges.shrink_to_fit();
    moved.ranges.iter_mut().for_each(|(_, ranges)| ranges.shrink_to_fit());
    moved.restored.shrink_to_fit();
    moved.restored.iter_mut().for_each(|(_, chunks)| chunks.shrink_to_fit());
    moved
}

impl Moves {
    pub(super) fn new() -> Self {
        Moves { shards: Cache::new(MEMORY) }
    }

    /// Calls `read` with the moves of the prefix of a pack. `read` returns `None` if they do not contain the block, and an
    /// error if it cannot be read at its new location. If the location is lost, or the moves are old, the prefix is listed
    /// again, and `read` is called with newer moves, if there are any. Returns `None` if none of this helps.
    pub(super) fn find<T>(
        &self,
        (repository, access): (&Repository, &Access),
        birth: PackId,
        read: impl Fn(&Moved) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let [prefix, ..] = *birth.as_bytes();
        let mut known: Option<Arc<Shard>> = None;
        for _ in 0..2 {
            if let Some(known) = &known {
                self.shards.remove(&prefix, known);
            }
            let load = || load(repository, access, prefix, known.as_deref());
            let shard = self.shards.get(&prefix, load)?;
            if known.is_some_and(|known| shard.is_same(&known)) {
                break;
            }
            let is_lost = match shard.newest.as_deref().map(&read) {
                Some(Ok(Some(found))) => return Ok(Some(found)),
                Some(Err(error)) if error.is_lost() => true,
                Some(Err(error)) => return Err(error),
                Some(Ok(None)) | None => false,
            };
            if !is_lost && shard.at.elapsed() < MOMENT {
                break;
            }
            known = Some(shard);
        }
        Ok(None)
    }
}

impl Shard {
    fn is_same(&self, other: &Shard) -> bool {
        other.is_final && self.listed == other.listed
    }
}

/// Lists the shards of a prefix and opens them, unless they are the `known` ones. Returns only errors that are
/// of a target that is away: other shards than the newest must not be used because the target is unavailable.
fn load(repository: &Repository, access: &Access, prefix: u8, known: Option<&Shard>) -> Result<Shard, Error> {
    let at = Instant::now();
    let mut listed = Vec::new();
    let visited = repository.target().visit(&name::moved_folder(prefix), &mut |object| {
        listed.extend(name::parse_moved(&object.name).map(|(_, id)| id));
    });
    let mut is_final = match visited {
        Ok(()) => true,
        Err(error) if error.is_away() => return Err(repository::Error::from(error).into()),
        Err(_) => false,
    };
    listed.sort_unstable();
    listed.shrink_to_fit();
    if let Some(known) = known.filter(|known| known.is_final && is_final && known.listed == listed) {
        return Ok(Shard { newest: known.newest.clone(), listed, at, is_final });
    }
    let mut newest: Option<Moved> = None;
    // In ascending order: of equal generations the greater id counts.
    for id in &listed {
        match access.moved(repository, prefix, *id) {
            Ok(moved) if newest.as_ref().is_none_or(|newest| newest.generation <= moved.generation) => {
                newest = Some(compact(moved));
            }
            Ok(_) => {}
            Err(repository::Error::Target(error)) if error.is_away() => {
                return Err(repository::Error::from(error).into());
            }
            Err(error) => is_final &= !matches!(error, repository::Error::Target(_)) && !error.is_key_problem(),
        }
    }
    Ok(Shard { newest: newest.map(Arc::new), listed, at, is_final })
}
