//! Storage for tests of everything that works on a [`Storage`](super::Storage).
//!
//! - [`Memory`]: objects in memory
//! - [`Faulty`]: fails on request
//! - [`Recording`]: records all operations

mod faulty;
mod memory;
mod recording;

pub use faulty::{Fault, Faults, Faulty};
pub use memory::Memory;
pub use recording::{Record, Recording, Records};
