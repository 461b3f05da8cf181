//! Row ids.

/// The id of a block in this catalog. Ids ascend and are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);
