//! The `brackfs` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    brackfs::cli::main()
}
