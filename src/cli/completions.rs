//! `brackfs completions`, and the completions themselves: the shell runs brackfs with [`VARIABLE`] for each of them.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Command;
use clap_complete::CompleteEnv;
use clap_complete::env::{EnvCompleter, Shells};

use super::exit::Usage;
use super::{candidates, output};

/// If this variable names a shell, the program prints completions for it.
const VARIABLE: &str = "BRACKFS_COMPLETE";

const PROGRAM: &str = "brackfs";

/// Write shell completions to standard output
///
/// The completions cover commands, options and their values: snapshots and sources from this machine's catalog, targets of the
/// configuration, and mounts. Paths in snapshots are completed if the repository is on this machine, and either it is not
/// encrypted or --key or BRACKFS_KEY_FILE names a key without a passphrase. The script runs brackfs for each completion, so it
/// need not be made again after an update.
///
/// For one user, bash reads ~/.local/share/bash-completion/completions/brackfs (with the package bash-completion), zsh reads
/// a file _brackfs in any directory of $fpath, and fish reads ~/.config/fish/completions/brackfs.fish. For all users, the
/// files are /usr/share/bash-completion/completions/brackfs, /usr/share/zsh/vendor-completions/_brackfs and
/// /usr/share/fish/vendor_completions.d/brackfs.fish. elvish and PowerShell read completions from their startup files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs completions bash > ~/.local/share/bash-completion/completions/brackfs
  brackfs completions zsh > ~/.zfunc/_brackfs      # with fpath+=~/.zfunc before compinit in ~/.zshrc
  brackfs completions fish > ~/.config/fish/completions/brackfs.fish")]
pub(super) struct Args {
    /// Write completions for this shell
    #[arg(value_name = "SHELL", value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

/// bash splits words at colons, equals signs and others, so the parts without a space between them are put together again.
/// Readline replaces only the last part. `head` is the text before it.
const BASH: &str = r#"_brackfs() {
    local line=$COMP_LINE rest word part i index=0 words=() head quoted
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        rest=${line#"${line%%[![:space:]]*}"}
        if [[ $word == [\"\']* ]]; then
            part=${word:1} quoted=1
            part=${part%[\"\']}
        else
            part=${word//\\} quoted=
        fi
        if ((i > 0)) && [[ $rest == "$line" ]]; then
            head=${words[index]}
            words[index]+=$part
        else
            head=
            index=${#words[@]}
            words+=("$part")
        fi
        line=${rest#"$word"}
    done
    if [[ -z ${word//[$COMP_WORDBREAKS]} ]]; then
        head=${words[index]}
    fi
    mapfile -d $'\013' -t COMPREPLY < <(_CLAP_IFS=$'\013' _CLAP_COMPLETE_INDEX=$index BRACKFS_COMPLETE=bash brackfs -- "${words[@]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    if [[ -z $quoted ]]; then
        for i in "${!COMPREPLY[@]}"; do
            [[ -z ${COMPREPLY[i]} ]] || printf -v "COMPREPLY[i]" %q "${COMPREPLY[i]}"
        done
    fi
}
complete -o bashdefault -o nosort -F _brackfs brackfs
"#;

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    match args.shell.as_str() {
        "bash" => script.extend_from_slice(BASH.as_bytes()),
        shell => {
            let shells = Shells::builtins();
            let known: Option<&dyn EnvCompleter> = shells.completer(shell);
            let known = known.ok_or_else(|| Usage(format!("there are no completions for {shell}")))?;
            known.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
        }
    }
    output::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// The command line, with candidates for values.
fn command() -> Command {
    with_candidates(super::command())
}

fn with_candidates(command: Command) -> Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|argument| {
        let takes = |name: &str| name.starts_with("SNAP") || ["A", "B"].contains(&name);
        let is_snapshot = argument.get_value_names().is_some_and(|names| names.iter().any(|name| takes(name)));
        let id = argument.get_id().to_string();
        match (name.as_str(), id.as_str()) {
            _ if is_snapshot => argument.add(candidates::snapshots()),
            ("backup", "source") => argument,
            (_, "source") => argument.add(candidates::sources()),
            ("run" | "status", "sources") => argument.add(candidates::configured_sources()),
            ("umount", "mountpoint") => argument.add(candidates::mounts()),
            (_, "location") | ("init", "repository") => argument.add(candidates::repositories()),
            _ => argument,
        }
    });
    command.mut_subcommands(with_candidates)
}

/// Prints completions if the shell asks for them. An error gives none: the user is in the middle of a line.
pub(super) fn answer() -> Option<ExitCode> {
    let directory = std::env::current_dir().ok();
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let line = words.iter().position(|word| *word == "--").map_or(words.len(), |dashes| dashes + 1);
    let line = words.split_off(line);
    // The name of a target is not known while it is typed.
    let is_typed = line.last().is_some_and(|word| word.as_encoded_bytes().starts_with(b"@"));
    words.extend(if is_typed { line } else { super::with_target(line) });
    let completing = CompleteEnv::with_factory(command).var(VARIABLE).bin(PROGRAM);
    match completing.try_complete(words, directory.as_deref()) {
        Ok(false) => None,
        Ok(true) | Err(_) => Some(ExitCode::SUCCESS),
    }
}
