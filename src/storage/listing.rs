//! A listing that is kept until it is complete: a short one in memory, a long one in a temporary file.

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, Write};

use tempfile::{SpooledTempFile, spooled_tempfile};

use super::contract::ObjectInfo;

/// Bytes of a listing that are kept in memory.
const IN_MEMORY: usize = 1 << 20;

/// Objects of a listing. Each is stored as the length of its name, the name and its length.
pub(super) struct Listing {
    objects: BufWriter<SpooledTempFile>,
    /// The first error; nothing is stored after it.
    error: Option<io::Error>,
}

impl Listing {
    pub(super) fn new() -> Self {
        Listing { objects: BufWriter::new(spooled_tempfile(IN_MEMORY)), error: None }
    }

    /// Adds an object. An error is returned later, by [`Listing::each`].
    pub(super) fn push(&mut self, object: &ObjectInfo) {
        if self.error.is_none() {
            self.error = self.write(object).err();
        }
    }

    fn write(&mut self, ObjectInfo { name, length }: &ObjectInfo) -> io::Result<()> {
        self.objects.write_all(&(name.len() as u64).to_ne_bytes())?;
        self.objects.write_all(name.as_bytes())?;
        self.objects.write_all(&length.to_ne_bytes())
    }

    /// Calls `found` with each object, in the order in which they were added.
    pub(super) fn each(self, found: &mut dyn FnMut(ObjectInfo)) -> io::Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut file = self.objects.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut left = file.stream_position()?;
        file.rewind()?;
        let mut objects = BufReader::new(file);
        let mut number = [0; 8];
        while left > 0 {
            objects.read_exact(&mut number)?;
            let size = u64::from_ne_bytes(number);
            let mut name = String::new();
            (&mut objects).take(size).read_to_string(&mut name)?;
            objects.read_exact(&mut number)?;
            let read = size.saturating_add(2 * number.len() as u64);
            left = left.checked_sub(read).ok_or(ErrorKind::InvalidData)?;
            found(ObjectInfo { name, length: u64::from_ne_bytes(number) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_listings_are_returned_as_they_were_added() {
        for count in [0, 3, 100_000] {
            let object = |at: u64| ObjectInfo { name: format!("packs/ab/{at}"), length: at };
            let mut listing = Listing::new();
            (0..count).for_each(|at| listing.push(&object(at)));
            let mut at = 0;
            listing.objects.flush().unwrap();
            assert_eq!(listing.objects.get_ref().is_rolled(), count > 1000);
            listing
                .each(&mut |found| {
                    assert_eq!(found, object(at));
                    at += 1;
                })
                .unwrap();
            assert_eq!(at, count);
        }
    }
}
