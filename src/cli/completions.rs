//! `brackfs completions`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

use super::output;

/// Write shell completions to standard output
///
/// The completions cover commands, options and their possible values. They are generated from this version of the program, so
/// generate them again after an update.
///
/// For one user, bash reads ~/.local/share/bash-completion/completions/brackfs (with the package bash-completion), zsh reads
/// a file _brackfs in any directory of $fpath, and fish reads ~/.config/fish/completions/brackfs.fish. For all users, the
/// files are /usr/share/bash-completion/completions/brackfs, /usr/share/zsh/vendor-completions/_brackfs and
/// /usr/share/fish/vendor_completions.d/brackfs.fish. elvish and PowerShell read completions from their startup files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs completions bash > ~/.local/share/bash-completion/completions/brackfs
  brackfs completions zsh > ~/.zfunc/_brackfs      with fpath+=~/.zfunc before compinit in ~/.zshrc
  brackfs completions fish > ~/.config/fish/completions/brackfs.fish")]
pub(super) struct Args {
    /// Write completions for this shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    // Buffered, because the generator panics on a broken pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "brackfs", &mut script);
    output::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
