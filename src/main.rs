//! The `brackfs` program.

use std::process::ExitCode;

// musl's allocator is slow with several threads.
#[cfg(feature = "static")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    brackfs::cli::main()
}
