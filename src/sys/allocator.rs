//! The memory allocator of the static program.
//!
//! musl's own is slow with several threads, and mimalloc keeps large freed blocks for each thread: a first backup of 4 GB needed
//! three times the memory. So small blocks are mimalloc's, and large ones musl's, which returns them to the kernel at once.

#![expect(unsafe_code, reason = "an allocator has no safe interface")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use mimalloc::MiMalloc;

/// The size of the smallest block that is musl's. Smaller values save memory, and cost page faults when nothing has changed.
const LARGE: usize = 64 << 10;

/// Chooses by the size of a block.
struct BySize;

#[global_allocator]
static ALLOCATOR: BySize = BySize;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE
}

// SAFETY: both allocators keep the contract. A block is freed with the layout that it was allocated with, so by the same one.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this same function.
        unsafe { if is_large(layout) { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { if is_large(layout) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { if is_large(layout) { System.dealloc(block, layout) } else { MiMalloc.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is valid with this alignment, and that the block has this layout. The bytes
        // that are copied fit both blocks.
        unsafe {
            let wanted = Layout::from_size_align_unchecked(size, layout.align());
            match (is_large(layout), is_large(wanted)) {
                (false, false) => MiMalloc.realloc(block, layout, size),
                (true, true) => System.realloc(block, layout, size),
                _ => {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}
