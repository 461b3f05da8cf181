//! Reads CBOR (RFC 8949) with limits, and writes it; only the subset that the format uses.
//!
//! All structures are maps with small unsigned keys, arrays, integers, byte strings and text. All lengths are definite.
//! Unknown keys are skipped.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::error::Error;

/// Writes CBOR to a growing buffer. Cannot fail.
pub struct CborWriter(Encoder<Vec<u8>>);

impl Default for CborWriter {
    fn default() -> Self {
        CborWriter(Encoder::new(Vec::new()))
    }
}

/// Checks the result of writing to a `Vec`, which cannot fail.
fn infallible<T>(result: Result<T, minicbor::encode::Error<std::convert::Infallible>>) {
    debug_assert!(result.is_ok());
}

impl CborWriter {
    /// Starts a map of `length` pairs.
    pub fn map(&mut self, length: usize) -> &mut Self {
        infallible(self.0.map(length as u64));
        self
    }

    /// Starts an array of `length` items.
    pub fn array(&mut self, length: usize) -> &mut Self {
        infallible(self.0.array(length as u64));
        self
    }

    /// Writes an unsigned integer, a key or a value.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        infallible(self.0.u64(value));
        self
    }

    /// Writes a signed integer.
    pub fn int(&mut self, value: i64) -> &mut Self {
        infallible(self.0.i64(value));
        self
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        infallible(self.0.bytes(value));
        self
    }

    /// Writes a text string.
    pub fn text(&mut self, value: &str) -> &mut Self {
        infallible(self.0.str(value));
        self
    }

    /// Returns the bytes written.
    pub fn finish(self) -> Vec<u8> {
        self.0.into_writer()
    }
}

/// Reads CBOR from a slice.
pub struct CborReader<'b> {
    decoder: Decoder<'b>,
    /// The structure's name in errors.
    what: &'static str,
}

impl<'b> CborReader<'b> {
    /// Makes a reader for one structure, which is called `what` in errors.
    pub fn new(what: &'static str, bytes: &'b [u8]) -> Self {
        CborReader { decoder: Decoder::new(bytes), what }
    }

    /// Makes an error about the structure being read.
    pub fn wrong(&self, why: impl ToString) -> Error {
        Error::malformed(self.what, why)
    }

    /// Reads the length of an array, at most `limit` items.
    pub fn array_up_to(&mut self, limit: usize) -> Result<usize, Error> {
        match self.array()? {
            count if count <= limit => Ok(count),
            count => Err(self.wrong(format!("a list of {count} items, more than the {limit} allowed"))),
        }
    }

    /// The number of unread bytes.
    fn left(&self) -> usize {
        self.decoder.input().len().saturating_sub(self.decoder.position())
    }

    /// Reads the length of an array. It is at most the number of unread bytes, so allocating memory for the items is safe,
    /// up to a small factor.
    pub fn array(&mut self) -> Result<usize, Error> {
        let length = self.decoder.array().map_err(|e| self.wrong(e))?;
        self.definite(length)
    }

    /// Reads the start of an array of exactly `length` items.
    pub fn array_of(&mut self, length: usize) -> Result<(), Error> {
        match self.array()? {
            found if found == length => Ok(()),
            found => Err(self.wrong(format!("array of {found} items where {length} were expected"))),
        }
    }

    /// Reads an array of ids.
    pub fn ids<T>(&mut self, id: impl Fn(&[u8]) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        (0..self.array()?).map(|_| id(self.bytes()?)).collect()
    }

    /// Reads the number of pairs of a map.
    pub fn map(&mut self) -> Result<usize, Error> {
        let length = self.decoder.map().map_err(|e| self.wrong(e))?;
        self.definite(length)
    }

    fn definite(&self, length: Option<u64>) -> Result<usize, Error> {
        let length = length.ok_or_else(|| self.wrong("a map or array of indefinite length"))?;
        match usize::try_from(length) {
            Ok(length) if length <= self.left() => Ok(length),
            _ => Err(self.wrong(format!("{length} items announced, but only {} bytes left", self.left()))),
        }
    }

    /// Reads an unsigned integer of 64 bits.
    pub fn uint(&mut self) -> Result<u64, Error> {
        self.decoder.u64().map_err(|e| self.wrong(e))
    }

    /// Reads an unsigned integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Error> {
        self.decoder.u32().map_err(|e| self.wrong(e))
    }

    /// Reads a signed integer of 64 bits.
    pub fn int(&mut self) -> Result<i64, Error> {
        self.decoder.i64().map_err(|e| self.wrong(e))
    }

    /// Reads a byte string of definite length.
    pub fn bytes(&mut self) -> Result<&'b [u8], Error> {
        self.decoder.bytes().map_err(|e| self.wrong(e))
    }

    /// Reads a text string of definite length.
    pub fn text(&mut self) -> Result<&'b str, Error> {
        self.decoder.str().map_err(|e| self.wrong(e))
    }

    /// Skips the value of an unknown key. Refuses more than four levels of arrays and maps, to limit recursion.
    pub fn skip(&mut self) -> Result<(), Error> {
        self.skip_within(4)
    }

    fn skip_within(&mut self, depth: usize) -> Result<(), Error> {
        let items = match self.decoder.datatype().map_err(|e| self.wrong(e))? {
            Type::Array => self.array()?,
            Type::Map => self.map()?.saturating_mul(2),
            Type::ArrayIndef | Type::MapIndef | Type::BytesIndef | Type::StringIndef | Type::Tag => {
                return Err(self.wrong("an item of indefinite length or with a tag"));
            }
            _ => return self.decoder.skip().map_err(|e| self.wrong(e)),
        };
        if depth == 0 {
            return Err(self.wrong("nested too deeply"));
        }
        (0..items).try_for_each(|_| self.skip_within(depth - 1))
    }

    /// Whether the next item is a signed or unsigned integer.
    pub fn at_integer(&mut self) -> bool {
        matches!(
            self.decoder.datatype(),
            Ok(Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int)
        )
    }

    /// Reads a map with unsigned keys in strictly ascending order. `field` reads the value of a key, or returns false for an
    /// unknown key.
    pub fn fields(&mut self, mut field: impl FnMut(&mut Self, u64) -> Result<bool, Error>) -> Result<(), Error> {
        let mut last = None;
        for _ in 0..self.map()? {
            let key = self.uint()?;
            if last.is_some_and(|last| key <= last) {
                return Err(self.wrong(format!("key {key} is repeated or out of order")));
            }
            last = Some(key);
            let before = self.decoder.position();
            if !field(self, key)? {
                self.decoder.set_position(before);
                self.skip()?;
            }
        }
        Ok(())
    }

    /// Fails unless everything was read.
    pub fn end(&self) -> Result<(), Error> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.wrong(format!("{left} extra bytes at the end"))),
        }
    }

    /// Returns the value of a required field.
    pub fn need<T>(&self, field: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.wrong(format!("no {field}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_beyond_the_input_are_refused() {
        // An array of 2^60 items in nine bytes.
        let bytes = [0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert!(CborReader::new("test", &bytes).array().is_err());
        // A byte string of 2^60 bytes.
        let bytes = [0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert!(CborReader::new("test", &bytes).bytes().is_err());
    }

    #[test]
    fn unknown_keys_with_indefinite_tagged_or_too_long_values_are_refused() {
        let huge = [0x10, 0, 0, 0, 0, 0, 0, 0];
        let values: [&[u8]; 9] = [
            &[0x9f, 0xff],
            &[0xbf, 0xff],
            &[0x5f, 0x41, 0x00, 0xff],
            &[0x7f, 0x61, 0x61, 0xff],
            &[0xc2, 0x41, 0x00],
            &[&[0x9b], huge.as_slice()].concat(),
            &[&[0xbb], huge.as_slice()].concat(),
            &[&[0x5b], huge.as_slice()].concat(),
            &[&[0x7b], huge.as_slice()].concat(),
        ];
        for value in values {
            for nested in [[].as_slice(), &[0x81], &[0xa1, 0x01]] {
                let bytes = [&[0xa1, 0x05], nested, value].concat();
                assert!(CborReader::new("test", &bytes).fields(|_, _| Ok(false)).is_err(), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_unknown_keys_are_skipped() {
        let mut deep = vec![0xa1, 0x05];
        deep.extend([0x81; 10_000]);
        deep.push(0);
        assert!(CborReader::new("test", &deep).fields(|_, _| Ok(false)).is_err());
        let known = [0xa1, 0x05, 0x82, 0x01, 0x41, 0xff];
        let mut reader = CborReader::new("test", &known);
        reader.fields(|_, _| Ok(false)).unwrap();
        reader.end().unwrap();
    }

    #[test]
    fn repeated_keys_are_refused() {
        let twice = [0xa2, 0x01, 0x00, 0x01, 0x00];
        assert!(CborReader::new("test", &twice).fields(|r, _| r.uint().map(|_| true)).is_err());
    }
}
