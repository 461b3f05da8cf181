//! Compares lists of sums with indexes.

use std::path::Path;

use super::record::RecordHeader;
use super::{Checker, Error};
use crate::format::sums::{PackSum, SUMS_SIZE};
use crate::format::{name, sums};
use crate::storage::{Ahead, ErrorKind, ObjectInfo};

impl Checker<'_> {
    /// Compares the digests of packs in lists of sums with those in indexes. Each pack of an index is in a list.
    pub(super) fn sums(&mut self) -> Result<(), Error> {
        let mut objects = self.list(name::SUMS)?;
        objects.retain(|object| name::parse_sums(&object.name).is_some());
        let target = self.reader.repository().target();
        let read = |object: &ObjectInfo| Ahead::of(object, SUMS_SIZE);
        for ObjectInfo { name: object, .. } in target.in_turn(&objects, read) {
            match target.get(object, SUMS_SIZE) {
                Ok(list) => self.sums_of(Path::new(object), &list)?,
                // A concurrent run may remove leftovers of a killed one.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => self.unread(Path::new(object), error)?,
            }
        }
        for row in 0..self.packs.len() {
            if self.packs.is_summed(row) || self.packs.is_gone(row) || self.packs.is_condemned(row) {
                continue;
            }
            if let (Some(pack), Some(header)) = (self.packs.id(row), self.packs.header(row)?) {
                let index = self.index_name(header.index);
                let why = format!("it is in {index}, but no list in {} has its sum", name::SUMS);
                self.report.doubt(Path::new(&name::pack(pack)), why);
            }
        }
        Ok(())
    }

    fn sums_of(&mut self, object: &Path, list: &[u8]) -> Result<(), Error> {
        if !sums::is_complete(list) {
            self.problem(object, "its last line is truncated");
        }
        for line in sums::lines(list) {
            self.check_interrupted()?;
            let Some(PackSum { pack, digest: sum }) = line else {
                self.problem(object, "it has a line that is not the sum of a pack");
                continue;
            };
            let Some(row) = self.packs.find(pack) else { continue };
            let Some(RecordHeader { index, digest, .. }) = self.packs.header(row)? else { continue };
            self.packs.set_summed(row);
            if digest.is_some() && sum != digest {
                let why = format!("its sum of {} differs from {}", name::pack(pack), self.index_name(index));
                self.problem(object, &why);
            }
        }
        Ok(())
    }
}
