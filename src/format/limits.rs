//! The version of the format, and upper bounds on sizes.

/// The only format version that this program writes and reads.
pub const VERSION: u32 = 1;

/// The largest plaintext of a block, and so of a chunk, in bytes. Changing it changes the format.
pub const BLOCK_SIZE: usize = 2 << 20;

/// The largest stored block in bytes: incompressible plaintext with its frame, padding and OpenPGP framing for many
/// recipients. Readers refuse larger blocks.
pub const SEALED_SIZE: usize = BLOCK_SIZE + BLOCK_SIZE / 4;

/// The largest signed document in bytes; the largest ones are indexes.
pub const DOCUMENT_SIZE: usize = 64 << 20;
