//! Checks carriers and shards of moves: blocks of packs that were removed on purpose are in carriers, and shards say where.

use std::collections::BTreeMap;
use std::path::Path;

use super::content::check_location;
use super::record::PackRecord;
use super::{Checker, Error};
use crate::failure::{Failure, FailureKind};
use crate::format::id::ObjectId;
use crate::format::moved::Moved;
use crate::format::{BlockLocation, ChunkRef, PackId, name};
use crate::monitor;
use crate::reader;
use crate::repository::Access;
use crate::storage::ObjectInfo;

impl Checker<'_> {
    /// Compares each block of the carriers with its birth pack, and notes which blocks of birth packs are carried.
    pub(super) fn carriers(&mut self) -> Result<(), Error> {
        for row in 0..self.packs.len() {
            let Some(pack) = self.packs.id(row) else { continue };
            let Some(record) = self.packs.load_carrier(row)? else { continue };
            self.check_interrupted()?;
            let is_usable = !self.packs.is_misfit(row);
            for carried in &record.carried {
                let Some(birth) = self.packs.find(carried.birth) else { continue };
                let Some(born) = self.packs.record(birth)? else { continue };
                let Some(block) = born.block(carried.ordinal) else { continue };
                if (block.length, block.check) != (carried.length, carried.check) {
                    let why = format!(
                        "{} has another block {} of {}",
                        self.index_name(record.header.index),
                        carried.ordinal,
                        name::pack(carried.birth)
                    );
                    self.problem(Path::new(&name::pack(pack)), &why);
                } else if is_usable {
                    let count = born.chunks_of(block).1.len();
                    let first = self.packs.first_chunk(birth) + block.first;
                    (first..).take(count).for_each(|number| _ = self.packs.carried.insert(number));
                }
            }
        }
        Ok(())
    }

    /// Compares the shards in this listing with the carriers in indexes. Of several shards of a prefix, the one of the
    /// highest generation counts.
    pub(super) fn shards(&mut self, objects: &[ObjectInfo]) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        let mut last: BTreeMap<u8, (u64, ObjectId)> = BTreeMap::new();
        for ObjectInfo { name: object, .. } in repository.target().in_turn(objects, Access::read_of_document) {
            let Some((prefix, id)) = name::parse_moved(object) else { continue };
            self.check_interrupted()?;
            match access.moved(repository, prefix, id) {
                Ok(moved) => {
                    self.known.moved.add(object.clone(), moved.generation);
                    let replaces = moved.replaces.iter().map(|id| name::moved(prefix, *id));
                    self.known.moved.replace(replaces, moved.generation);
                    let this = (moved.generation, id);
                    if last.get(&prefix).is_none_or(|newest| *newest < this) {
                        last.insert(prefix, this);
                        self.restored.retain(|pack| pack.as_bytes()[0] != prefix);
                        self.restored.extend(moved.restored.iter().map(|(birth, _)| *birth));
                    }
                }
                Err(error) => {
                    self.known.moved.is_incomplete = true;
                    self.unopened(Path::new(object), error.into())?;
                }
            }
        }
        self.restored_carriers()?;
        self.last_shards = last.into_iter().map(|(prefix, (_, id))| (prefix, id)).collect();
        let mut shard: Option<(u8, Option<Moved>)> = None;
        for row in 0..self.packs.len() {
            let is_lost = self.packs.is_gone(row) || self.packs.is_misfit(row) || self.packs.length(row).is_none();
            let Some(birth) = self.packs.id(row).filter(|_| is_lost) else { continue };
            self.check_interrupted()?;
            // Packs are sorted, so each shard is opened once.
            let prefix = birth.as_bytes()[0];
            let moved = match shard.take() {
                Some((there, moved)) if there == prefix => moved,
                _ => self.shard(prefix)?,
            };
            self.lost(row, birth, moved.as_ref())?;
            shard = Some((prefix, moved));
        }
        Ok(())
    }

    /// Opens the shard of a prefix; `None` if there is none.
    fn shard(&self, prefix: u8) -> Result<Option<Moved>, Error> {
        let Some(id) = self.last_shards.get(&prefix) else { return Ok(None) };
        match self.reader.access().moved(self.reader.repository(), prefix, *id) {
            Err(error) if error.kind() == FailureKind::Unavailable => Err(reader::Error::from(error).into()),
            // It was opened before, so it was removed or damaged meanwhile.
            moved => Ok(moved.ok()),
        }
    }

    /// Whether an index has this chunk in this block.
    fn has_chunk(&mut self, place: &BlockLocation, chunk: &ChunkRef) -> Result<bool, Error> {
        let Some(row) = self.packs.find(place.pack).filter(|row| !self.packs.is_misfit(*row)) else { return Ok(false) };
        let Some(record) = self.packs.record(row)? else { return Ok(false) };
        let Some(carried) = record.carried_at(place.offset).filter(|carried| carried.length == place.length) else {
            return Ok(record.find(place, chunk).is_some());
        };
        let Some(row) = self.packs.find(carried.birth) else { return Ok(false) };
        let Some(birth) = self.packs.record(row)? else { return Ok(false) };
        let Some(block) = birth.block(carried.ordinal) else { return Ok(false) };
        let born = BlockLocation { pack: carried.birth, offset: block.offset, length: block.length };
        Ok(birth.find(&born, chunk).is_some())
    }

    /// Adds the carriers to `restored` that have blocks of packs in it.
    fn restored_carriers(&mut self) -> Result<(), Error> {
        if self.restored.is_empty() {
            return Ok(());
        }
        let mut carriers = Vec::new();
        for row in 0..self.packs.len() {
            let is_restored =
                |record: PackRecord| record.carried.iter().any(|block| self.restored.contains(&block.birth));
            if self.packs.load_carrier(row)?.is_some_and(is_restored) {
                carriers.extend(self.packs.id(row));
            }
        }
        self.restored.extend(carriers);
        Ok(())
    }

    /// Checks that a shard says where the blocks of a pack are that was removed or damaged, and notes which chunks of it
    /// were stored again.
    fn lost(&mut self, row: usize, birth: PackId, moved: Option<&Moved>) -> Result<(), Error> {
        let Some(record) = self.packs.record(row)? else { return Ok(()) };
        let object = name::pack(birth);
        let mut wrong = 0;
        for block in &record.blocks {
            let at = BlockLocation { pack: birth, offset: block.offset, length: block.length };
            let place = moved.and_then(|moved| moved.location(&at));
            let is_there = match place.and_then(|place| Some((self.packs.find(place.pack)?, place.offset))) {
                None => false,
                Some((row, offset)) => self.packs.record(row)?.is_some_and(|carrier| {
                    carrier
                        .carried_at(offset)
                        .is_some_and(|carried| (carried.birth, carried.ordinal) == (birth, block.ordinal))
                }),
            };
            // A block that no carrier has is a problem only if a tree needs it.
            let (first, chunks) = record.chunks_of(block);
            let first = self.packs.first_chunk(row) + first;
            wrong += u64::from(self.packs.carried.has(first) && !is_there && !chunks.is_empty());
            for (number, chunk) in (first..).zip(chunks) {
                let restored = moved.and_then(|moved| moved.restored_chunk(birth, &chunk.digest));
                if let Some((place, start)) = restored
                    && check_location(&self.packs, &place).is_ok()
                    && self
                        .has_chunk(&place, &ChunkRef { digest: chunk.digest, block: 0, start, length: chunk.length })?
                {
                    self.packs.carried.insert(number);
                }
            }
        }
        if wrong > 0 {
            let shard = match self.last_shards.get(&birth.as_bytes()[0]) {
                Some(id) => name::moved(birth.as_bytes()[0], *id),
                None => format!("{}{:02x}/", name::MOVED, birth.as_bytes()[0]),
            };
            let blocks = monitor::count(wrong, "block", "blocks");
            self.report.doubt(Path::new(&shard), format!("it does not say where {blocks} of {object} were moved"));
        }
        Ok(())
    }
}
