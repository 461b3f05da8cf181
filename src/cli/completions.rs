//! `brackfs completions`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

/// Write completions for a shell to standard output
///
/// They know commands, options and the words that an option takes. They are made from this program's own
/// definitions, so write them again after an update.
///
/// Where a shell looks for them, for one user: bash in ~/.local/share/bash-completion/completions/brackfs (it takes the
/// package bash-completion), zsh in a file _brackfs in any directory of its $fpath, fish in
/// ~/.config/fish/completions/brackfs.fish. For all users: /usr/share/bash-completion/completions/brackfs,
/// /usr/share/zsh/vendor-completions/_brackfs, /usr/share/fish/vendor_completions.d/brackfs.fish. elvish and PowerShell
/// read them from their startup files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs completions bash > ~/.local/share/bash-completion/completions/brackfs
  brackfs completions zsh > ~/.zfunc/_brackfs      with fpath+=~/.zfunc before compinit in ~/.zshrc
  brackfs completions fish > ~/.config/fish/completions/brackfs.fish")]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    // At once, so that a reader who goes away is an error of ours and no panic of the generator's.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "brackfs", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
