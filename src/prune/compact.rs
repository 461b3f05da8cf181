//! Copies live blocks out of packs that waste much space.

use std::path::Path;
use std::time::Instant;

use roaring::RoaringTreemap;

use super::context::{Pruner, Summary};
use super::error::Error;
use super::mark::Marked;
use crate::catalog::{BlockId, BlockInPack, Catalog, PackLoad, PackRow};
use crate::format::id::ObjectId;
use crate::format::index::Index;
use crate::format::pack::{CarriedBlock, IndexedCarrier};
use crate::format::{Check, name};
use crate::session::{FullPack, PackWriter};
use crate::storage::{self, ErrorKind};

/// A carrier of at least this many bytes is stored.
const CARRIER_SIZE: u64 = 16 << 20;
/// Bytes of carriers after which their index is written and the catalog is committed.
const BATCH: u64 = 256 << 20;
/// The same for the number of blocks, which are in memory until then.
const BATCH_BLOCKS: usize = 1 << 16;

/// The packs to compact: those that waste most per byte to copy, until the remaining waste is allowed.
pub(super) fn choose(marked: &Marked, max_waste: f64, max_copy: u64) -> Vec<PackLoad> {
    let usable = || marked.packs.iter().filter(|pack| pack.is_usable);
    let allowed = (marked.live_bytes() as f64 * max_waste) as u64;
    // Packs without live blocks are condemned without a copy.
    let mut candidates: Vec<_> = usable().filter(|pack| pack.live > 0 && pack.live < pack.length).cloned().collect();
    let mut waste: u64 = candidates.iter().map(|pack| pack.length - pack.live).sum();
    let gain = |pack: &PackLoad| (pack.length - pack.live) as f64 / pack.live as f64;
    // If gains are equal, trees come first: readers need them most.
    candidates.sort_by(|one, other| gain(other).total_cmp(&gain(one)).then(other.is_tree.cmp(&one.is_tree)));
    let mut copied = 0u64;
    let mut chosen = Vec::new();
    for pack in candidates {
        if waste <= allowed {
            break;
        }
        if copied.saturating_add(pack.live) > max_copy {
            continue;
        }
        copied += pack.live;
        waste -= pack.length - pack.live;
        chosen.push(pack);
    }
    // In the order in which they were written.
    chosen.sort_by_key(|pack| pack.row.0);
    chosen
}

/// A carrier that is being filled.
struct OpenCarrier {
    writer: PackWriter,
    blocks: Vec<(BlockId, u64)>,
    carried: Vec<CarriedBlock>,
}

/// Copies blocks of one run.
pub(super) struct Compactor<'p, 's> {
    pruner: &'p Pruner<'s>,
    /// One for each kind of data, and for blocks that a newest snapshot uses or does not use: long-lived blocks stay
    /// together.
    open: [Option<OpenCarrier>; 4],
    /// Blocks that a newest snapshot uses.
    current: RoaringTreemap,
    stored: Vec<IndexedCarrier>,
    damaged: Vec<PackRow>,
    bytes: u64,
    /// Copied blocks whose index is not written yet.
    blocks: usize,
}

impl<'p, 's> Compactor<'p, 's> {
    pub(super) fn new(pruner: &'p Pruner<'s>, current: RoaringTreemap) -> Self {
        let (stored, damaged) = (Vec::new(), Vec::new());
        Compactor { pruner, open: Default::default(), current, stored, damaged, bytes: 0, blocks: 0 }
    }

    /// Copies the live blocks of these packs into carriers.
    pub(super) fn compact(
        mut self,
        catalog: &mut Catalog,
        marked: &Marked,
        packs: &[PackLoad],
        until: Option<Instant>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for pack in packs {
            self.pruner.inventory.check_interrupted()?;
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            self.copy(catalog, marked, pack, &mut bytes, summary)?;
            if self.bytes >= BATCH || self.blocks >= BATCH_BLOCKS || self.pruner.is_wanted() {
                self.finish_batch(catalog)?;
                self.pruner.give_way()?;
            }
        }
        self.finish_batch(catalog)?;
        self.pruner.give_way()
    }

    fn copy(
        &mut self,
        catalog: &mut Catalog,
        marked: &Marked,
        pack: &PackLoad,
        bytes: &mut Vec<u8>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let blocks = catalog.blocks_in(pack.row)?;
        let blocks: Vec<_> = blocks.into_iter().filter(|block| marked.live.contains(block.block.0)).collect();
        // All of them are verified before any is copied: a damaged pack stays as it is.
        if let Some(why) = self.read(catalog, pack, &blocks, bytes)? {
            let path = name::pack(pack.id);
            let consequence = "the pack stays, and data still at the source is stored again";
            self.pruner.inventory.monitor.problem(Path::new(&path), &format!("{why}; {consequence}"));
            self.damaged.push(pack.row);
            summary.damaged_packs += 1;
            return Ok(());
        }
        let mut start = 0;
        for block in &blocks {
            let end = start + block.carried.length as usize;
            let class = usize::from(pack.is_tree) * 2 + usize::from(self.current.contains(block.block.0));
            self.append(catalog, class, block.block, block.carried, bytes.get(start..end).unwrap_or_default())?;
            start = end;
        }
        let progress = self.pruner.inventory.monitor.progress();
        progress.file();
        progress.bytes(bytes.len() as u64);
        summary.copied_bytes += bytes.len() as u64;
        summary.compacted_packs += 1;
        Ok(())
    }

    /// Reads blocks of a pack in order, adjacent ones at once, and verifies each. Returns the damage, if there is any.
    fn read(
        &self,
        catalog: &Catalog,
        pack: &PackLoad,
        blocks: &[BlockInPack],
        bytes: &mut Vec<u8>,
    ) -> Result<Option<String>, Error> {
        let object = name::pack(pack.id);
        self.pruner.inventory.monitor.progress().at(Path::new(&object));
        let mut run = Vec::new();
        bytes.clear();
        for neighbours in blocks.chunk_by(|one, next| one.offset + u64::from(one.carried.length) == next.offset) {
            let offset = neighbours.first().map_or(0, |block| block.offset);
            let length = neighbours.iter().map(|block| block.carried.length as usize).sum();
            match self.pruner.session.repository().target().read(&object, offset, length, &mut run) {
                Err(error) if error.kind == ErrorKind::NotFound => {
                    self.pruner.inventory.require_packs(catalog)?;
                    catalog.begin_listing()?;
                    return Ok(Some(error.to_string()));
                }
                Err(error) if is_damage(&error) => return Ok(Some(error.to_string())),
                other => other?,
            }
            let mut start = 0;
            for block in neighbours {
                let end = start + block.carried.length as usize;
                if Check::of(run.get(start..end).unwrap_or_default()) != block.carried.check {
                    return Ok(Some(format!("the block at {} is damaged", block.offset)));
                }
                start = end;
            }
            bytes.extend_from_slice(&run);
        }
        Ok(None)
    }

    fn append(
        &mut self,
        catalog: &mut Catalog,
        class: usize,
        block: BlockId,
        carried: CarriedBlock,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let Some(slot) = self.open.get_mut(class) else { return Ok(()) };
        let mut open = match slot.take() {
            Some(open) => open,
            None => {
                self.pruner.session.announce(catalog)?;
                let writer = self.pruner.session.packs().begin()?;
                OpenCarrier { writer, blocks: Vec::new(), carried: Vec::new() }
            }
        };
        let placed = open.writer.append(bytes)?;
        open.blocks.push((block, placed.at.offset));
        open.carried.push(carried);
        self.blocks += 1;
        if open.writer.length() < CARRIER_SIZE {
            *slot = Some(open);
            return Ok(());
        }
        self.store(catalog, open)
    }

    fn store(&mut self, catalog: &Catalog, open: OpenCarrier) -> Result<(), Error> {
        let OpenCarrier { writer, blocks, carried } = open;
        let full: FullPack = writer.finish();
        let stored = self.pruner.session.packs().store(full)?;
        catalog.add_carrier(stored.pack, stored.length, &stored.digest, &blocks)?;
        self.bytes += stored.length;
        self.stored.push(IndexedCarrier { id: stored.pack, digest: stored.digest, blocks: carried });
        Ok(())
    }

    /// Writes sums and index of the stored carriers, then commits the places of their blocks.
    fn finish_batch(&mut self, catalog: &mut Catalog) -> Result<(), Error> {
        for class in 0..self.open.len() {
            if let Some(open) = self.open.get_mut(class).and_then(Option::take) {
                self.store(catalog, open)?;
            }
        }
        (self.bytes, self.blocks) = (0, 0);
        catalog.condemn(&std::mem::take(&mut self.damaged))?;
        let carriers = std::mem::take(&mut self.stored);
        if carriers.is_empty() {
            return Ok(catalog.commit()?);
        }
        let session = self.pruner.session;
        session.still_alone()?;
        let sums: Vec<_> = carriers.iter().map(|carrier| (carrier.id, carrier.digest)).collect();
        let (id, index) =
            (ObjectId::random(), Index { generation: session.generation(), carriers, ..Index::default() });
        session.writer().put_sums(id, &sums)?;
        session.writer().put_index(id, &index)?;
        catalog.add_index(id, &index)?;
        Ok(catalog.commit()?)
    }
}

/// Whether an error shows that a part of a pack is lost, rather than that the storage is unavailable.
fn is_damage(error: &storage::Error) -> bool {
    matches!(error.kind, ErrorKind::NotAFile | ErrorKind::Truncated | ErrorKind::Damaged | ErrorKind::TooLarge)
}
