//! Reads all packs, each once.

use std::collections::VecDeque;
use std::path::Path;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::pack::{Findings, ListedBlock, ListedPack, PackReader};
use super::record::PackRecord;
use super::{Checker, Error};
use crate::archive::Archive;
use crate::failure::Failure;
use crate::format::name::SnapshotName;
use crate::format::{BlockLocation, PackId, name};
use crate::monitor::{Total, Unit};
use crate::storage::ErrorKind;

/// Maximum number of packs that are read from a server at the same time.
const AT_ONCE: usize = 8;

/// Maximum number of packs whose findings wait for those of earlier ones.
const WAITING: usize = 64;

/// A pack for a thread, and the channel for its findings.
type Job = (ListedPack, Sender<Findings>);

impl Checker<'_> {
    /// Reads the packs of indexes. Packs of another length were reported before and are not read, since they may be huge. Reads
    /// nothing if the key opens none of the snapshots, which is reported with them.
    pub(super) fn data(&mut self, snapshots: &[SnapshotName]) -> Result<(), Error> {
        if !self.is_key_right(snapshots) {
            return Ok(());
        }
        let lengths = (0..self.packs.len()).filter_map(|row| self.readable_length(row));
        let (files, bytes) = lengths.fold((0, 0), |(packs, bytes), length| (packs + 1, bytes + length));
        let progress = self.monitor.progress();
        progress.count(Unit::Packs);
        progress.expect(Total { files, bytes, estimated: false });
        let from = PackReader { reader: self.reader, progress, stop: self.stop };
        let target = self.reader.repository().target().capabilities();
        // A disk reads one pack after the other fastest.
        let wanted = if target.directory.is_some() { 1 } else { target.lanes.clamp(1, AT_ONCE) };
        thread::scope(|threads| {
            let (jobs, queue) = bounded::<Job>(0);
            // If not all threads can be started, fewer packs are read at the same time.
            let start = |_| {
                let queue = queue.clone();
                let read = move || queue.iter().for_each(|(pack, found)| _ = found.send(from.read(&pack)));
                thread::Builder::new().name("check".into()).spawn_scoped(threads, read).ok()
            };
            let started = (0..wanted).map_while(start).count();
            drop(queue);
            self.packs_of_indexes(from, (started > 0).then_some(&jobs))
        })
    }

    /// Has each pack read, by this thread if no other takes `jobs`, and notes the findings, in the order of the packs.
    fn packs_of_indexes(&mut self, from: PackReader<'_>, jobs: Option<&Sender<Job>>) -> Result<(), Error> {
        let mut under_way = VecDeque::new();
        let ended = self.hand_out(from, jobs, &mut under_way);
        // Also if the check ends early.
        let found = under_way.into_iter().filter_map(|found| found.recv().ok());
        found.fold(ended, |ended, found| {
            let noted = self.note(found);
            ended.and(noted)
        })
    }

    /// Hands out the packs. The channels of those that are still being read are in `under_way` afterwards.
    fn hand_out(
        &mut self,
        from: PackReader<'_>,
        jobs: Option<&Sender<Job>>,
        under_way: &mut VecDeque<Receiver<Findings>>,
    ) -> Result<(), Error> {
        for row in 0..self.packs.len() {
            let (Some(id), Some(_)) = (self.packs.id(row), self.readable_length(row)) else { continue };
            self.check_interrupted()?;
            let Some(record) = self.packs.load(row)? else { continue };
            let pack = self.listed_pack(row, id, &record)?;
            let Some(jobs) = jobs else {
                self.note(from.read(&pack))?;
                continue;
            };
            let (sender, found) = bounded(1);
            // Waits for a thread that is ready.
            if jobs.send((pack, sender)).is_ok() {
                under_way.push_back(found);
            }
            while let Some(first) = under_way.front() {
                if under_way.len() <= WAITING && first.is_empty() {
                    break;
                }
                let found = under_way.pop_front().and_then(|first| first.recv().ok());
                found.map_or(Ok(()), |found| self.note(found))?;
            }
        }
        Ok(())
    }

    /// Notes the findings about a pack.
    fn note(&mut self, found: Findings) -> Result<(), Error> {
        let object = name::pack(found.pack);
        found.problems.iter().for_each(|why| self.problem(Path::new(&object), why));
        found.flaws.into_iter().for_each(|why| self.flaw(found.pack, why));
        found.verified.into_iter().for_each(|number| _ = self.packs.verified.insert(number));
        self.check_interrupted()?;
        self.monitor.progress().file();
        match found.read {
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.report.doubt(Path::new(&object), error.to_string());
                return Ok(());
            }
            Err(error) => self.unread(Path::new(&object), error)?,
            Ok(()) => {}
        }
        self.summary.packs += 1;
        Ok(())
    }

    /// The length of a pack that is read: it is in an index and has the right length.
    fn readable_length(&self, row: usize) -> Option<u64> {
        let is_read = self.packs.is_indexed(row) && !self.packs.is_misfit(row) && !self.packs.is_gone(row);
        self.packs.length(row).filter(|_| is_read)
    }

    fn is_key_right(&self, snapshots: &[SnapshotName]) -> bool {
        for (tried, name) in snapshots.iter().rev().enumerate() {
            match self.reader.snapshot(name) {
                Err(error) if error.is_key_problem() && !self.reader.is_hopeless(tried + 1) => {}
                Err(error) if error.is_key_problem() => return false,
                _ => return true,
            }
        }
        snapshots.is_empty()
    }

    /// A pack and its blocks. Those in a carrier have the chunks of the block in its birth pack.
    fn listed_pack(&mut self, row: usize, id: PackId, record: &PackRecord) -> Result<ListedPack, Error> {
        let own = record.blocks.iter().map(|block| ListedBlock {
            at: BlockLocation { pack: id, offset: block.offset, length: block.length },
            check: block.check,
            chunks: Some(record.content(block)),
            first: self.packs.first_chunk(row) + block.first,
        });
        let mut blocks: Vec<_> = own.collect();
        let mut offset = 0;
        for carried in &record.carried {
            let (mut chunks, mut first) = (None, 0);
            if let Some(row) = self.packs.find(carried.birth)
                && let Some(birth) = self.packs.record(row)?
                && let Some(block) = birth.block(carried.ordinal)
            {
                chunks = Some(birth.content(block));
                first = self.packs.first_chunk(row) + block.first;
            }
            let at = BlockLocation { pack: id, offset, length: carried.length };
            blocks.push(ListedBlock { at, check: carried.check, chunks, first });
            offset += u64::from(carried.length);
        }
        let (index, header) = (self.index_name(record.header.index), &record.header);
        Ok(ListedPack { id, index, length: header.length, digest: header.digest, blocks })
    }
}
