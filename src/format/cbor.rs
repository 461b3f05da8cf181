//! Bounded reading and plain writing of CBOR (RFC 8949), as far as the format needs it.
//!
//! All structures are maps with small unsigned keys, arrays of known length, integers, byte strings
//! and text. Everything has a definite length. Keys that a reader does not know are skipped.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::Error;

/// Writes CBOR into a growing buffer; cannot fail.
pub struct Writer(Encoder<Vec<u8>>);

impl Default for Writer {
    fn default() -> Self {
        Writer(Encoder::new(Vec::new()))
    }
}

/// A writer into a `Vec` has no way to fail.
fn infallible<T>(result: Result<T, minicbor::encode::Error<std::convert::Infallible>>) {
    debug_assert!(result.is_ok());
}

impl Writer {
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

    /// An unsigned integer: a key or a value.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        infallible(self.0.u64(value));
        self
    }

    /// A signed integer.
    pub fn int(&mut self, value: i64) -> &mut Self {
        infallible(self.0.i64(value));
        self
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        infallible(self.0.bytes(value));
        self
    }

    /// A text string.
    pub fn text(&mut self, value: &str) -> &mut Self {
        infallible(self.0.str(value));
        self
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0.into_writer()
    }
}

/// Reads CBOR out of a slice. `what` names the structure in errors.
pub struct Reader<'b> {
    decoder: Decoder<'b>,
    what: &'static str,
}

impl<'b> Reader<'b> {
    /// A reader of `bytes`, which should hold one `what`.
    pub fn new(what: &'static str, bytes: &'b [u8]) -> Self {
        Reader { decoder: Decoder::new(bytes), what }
    }

    /// An error in the structure being read.
    pub fn wrong(&self, why: impl ToString) -> Error {
        Error::malformed(self.what, why)
    }

    /// The start of an array of at most `limit` items.
    pub fn array_up_to(&mut self, limit: usize) -> Result<usize, Error> {
        match self.array()? {
            count if count <= limit => Ok(count),
            count => Err(self.wrong(format!("a list of {count} items, more than the {limit} allowed"))),
        }
    }

    /// Bytes not read yet.
    fn left(&self) -> usize {
        self.decoder.input().len().saturating_sub(self.decoder.position())
    }

    /// The length of an array. It can't be longer than the bytes that are left, so taking memory for
    /// it is safe up to a small factor.
    pub fn array(&mut self) -> Result<usize, Error> {
        let length = self.decoder.array().map_err(|e| self.wrong(e))?;
        self.definite(length)
    }

    /// An array of exactly `length` items.
    pub fn array_of(&mut self, length: usize) -> Result<(), Error> {
        match self.array()? {
            found if found == length => Ok(()),
            found => Err(self.wrong(format!("array of {found} items where {length} were expected"))),
        }
    }

    /// The number of pairs of a map.
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

    /// An unsigned integer of 64 bits.
    pub fn uint(&mut self) -> Result<u64, Error> {
        self.decoder.u64().map_err(|e| self.wrong(e))
    }

    /// An unsigned integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Error> {
        self.decoder.u32().map_err(|e| self.wrong(e))
    }

    /// A signed integer of 64 bits.
    pub fn int(&mut self) -> Result<i64, Error> {
        self.decoder.i64().map_err(|e| self.wrong(e))
    }

    /// A byte string of a definite length.
    pub fn bytes(&mut self) -> Result<&'b [u8], Error> {
        self.decoder.bytes().map_err(|e| self.wrong(e))
    }

    /// A text string of a definite length.
    pub fn text(&mut self) -> Result<&'b str, Error> {
        self.decoder.str().map_err(|e| self.wrong(e))
    }

    /// Skips the value of a key that this version does not know. Only four levels of arrays and maps are
    /// passed over, so that hostile nesting costs nothing.
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
            return Err(self.wrong("nested too deep"));
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

    /// Reads a map of unsigned keys, in strictly ascending order; `field` reads the value of a key, and
    /// returns false for a key it does not know.
    pub fn fields(&mut self, mut field: impl FnMut(&mut Self, u64) -> Result<bool, Error>) -> Result<(), Error> {
        let mut last = None;
        for _ in 0..self.map()? {
            let key = self.uint()?;
            if last.is_some_and(|last| key <= last) {
                return Err(self.wrong(format!("key {key} twice or out of order")));
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

    /// Demands that everything was read.
    pub fn end(&self) -> Result<(), Error> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.wrong(format!("{left} bytes too many"))),
        }
    }

    /// The value of a field that must be there.
    pub fn need<T>(&self, field: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.wrong(format!("no {field}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_lengths_are_checked_against_what_is_there() {
        // An array of 2^60 items in nine bytes.
        let bytes = [0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert!(Reader::new("test", &bytes).array().is_err());
        // A byte string of 2^60 bytes.
        let bytes = [0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert!(Reader::new("test", &bytes).bytes().is_err());
    }

    #[test]
    fn an_unknown_key_holds_nothing_of_indefinite_length_tagged_or_longer_than_what_is_there() {
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
                assert!(Reader::new("test", &bytes).fields(|_, _| Ok(false)).is_err(), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_unknown_keys_are_skipped() {
        let mut deep = vec![0xa1, 0x05];
        deep.extend([0x81; 10_000]);
        deep.push(0);
        assert!(Reader::new("test", &deep).fields(|_, _| Ok(false)).is_err());
        let known = [0xa1, 0x05, 0x82, 0x01, 0x41, 0xff];
        let mut reader = Reader::new("test", &known);
        reader.fields(|_, _| Ok(false)).unwrap();
        reader.end().unwrap();
    }

    #[test]
    fn keys_come_once_and_in_order() {
        let twice = [0xa2, 0x01, 0x00, 0x01, 0x00];
        assert!(Reader::new("test", &twice).fields(|r, _| r.uint().map(|_| true)).is_err());
    }
}
