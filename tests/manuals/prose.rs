//! What pages say beside the definition of the command line, in roff. Which page says what follows from the options that
//! a command has, so a new command needs nothing here, or little.

use clap::Command;

/// Whether a command has the option `--long`.
fn has(command: &Command, long: &str) -> bool {
    command.get_arguments().any(|argument| argument.get_long() == Some(long))
}

/// Whether an argument of a command is called so in its usage.
fn takes(command: &Command, value: &str) -> bool {
    let mut names = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| argument.get_value_names());
    names.any(|names| names.iter().any(|name| name.starts_with(value)))
}

fn is(command: &Command, names: &[&str]) -> bool {
    names.contains(&command.get_name())
}

fn is_root(command: &Command) -> bool {
    command.has_subcommands()
}

/// Whether it may ask for a passphrase.
fn asks(command: &Command) -> bool {
    has(command, "key") || is(command, &["init", "generate"])
}

fn entries(all: &[(&str, &str, bool)]) -> Vec<(String, String)> {
    let entries = all.iter().filter(|(_, _, applies)| *applies);
    entries.map(|(term, text, _)| ((*term).to_owned(), text.trim().to_owned())).collect()
}

/// Kinds of arguments that take more than a line to explain.
pub fn arguments(command: &Command) -> Vec<(&'static str, &'static str)> {
    let mut sections = Vec::new();
    if takes(command, "SNAP") || is_root(command) {
        sections.push(("SNAPSHOTS", SNAP));
    }
    if takes(command, "SIZE") || is_root(command) {
        sections.push(("SIZES", SIZE));
    }
    sections
}

const SNAP: &str = r"
.I SNAP
is
.B latest
(the newest snapshot of all),
.IB SOURCE /latest
(the newest of a source), the beginning of a snapshot's id, or the beginning of a time in UTC, such as
.B 2026\-11\-20
or
.BR 2026\-11\-20T14:52 ;
of several that begin so, the newest is taken.
An id or a time can have
.IB SOURCE /
before it, too.
.PP
.I PATH
begins at the snapshot's root.
That is the one directory that was backed up, or / if there were several paths.
A slash at its beginning makes no difference, and no symbolic link in it is followed.
";

const SIZE: &str = r"
.I SIZE
is a number of bytes, or a number and a unit in powers of 1024:
.BR K ,
.BR M ,
.B G
or
.BR T .
.BR KiB ,
.B KB
and
.B kb
mean the same as
.BR K .
";

/// Exit codes, and what they mean.
pub fn exit_codes(command: &Command) -> Vec<(String, String)> {
    let root = is_root(command);
    let done = match is(command, &["check", "verify"]) {
        true => "Done, and nothing is wrong.",
        false => "Done.",
    };
    let failed = match command.get_name() {
        "restore" => "Failed, or some entries could not be restored; they were named.",
        "check" | "verify" => "Something is wrong; it was named. Or the check failed.",
        "snapshots" => "Failed, or some snapshots can't be shown; they were named.",
        "find" => "Failed, or something could not be read; it was named, and the rest was searched.",
        "versions" => "Failed, or no snapshot has the path, or some snapshots could not be read; they were named.",
        _ => "Failed; standard error says why.",
    };
    entries(&[
        ("0", done, true),
        ("1", failed, true),
        ("2", "The command line makes no sense.", true),
        (
            "3",
            "Done, but some source files could not be read as they were, or packs of the repository are lost; they were named.",
            root || is(command, &["backup"]),
        ),
        ("10", "There is no such repository.", root || has(command, "repo")),
        (
            "11",
            "Locked: another run is writing to the repository.",
            root || is(command, &["backup", "rebuild", "update", "adopt"]),
        ),
        ("12", "The key or the passphrase is wrong, or missing.", root || asks(command)),
        (
            "130",
            "Interrupted by SIGINT, SIGTERM or SIGHUP.",
            root || is(command, &["backup", "restore", "check", "rebuild", "verify", "update", "adopt"]),
        ),
    ])
}

/// Variables, and what they are for: those that stand in for options, and the others.
pub fn environment(command: &Command, commands: &[Command]) -> Vec<(String, String)> {
    let root = is_root(command);
    let mut found: Vec<(String, String)> = Vec::new();
    for command in if root { commands } else { std::slice::from_ref(command) } {
        for argument in command.get_arguments() {
            let Some(variable) = argument.get_env() else { continue };
            let variable = variable.to_string_lossy().into_owned();
            let option = match argument.get_long() {
                Some(long) => format!(".BR \\-\\-{} .", super::page::escaped(long)),
                None => format!(".IR {} .", argument.get_value_names().unwrap_or_default().join(" ")),
            };
            if !found.iter().any(|(known, _)| *known == variable) {
                found.push((variable, format!("Stands in for\n{option}")));
            }
        }
    }
    found.sort();
    let asks = root || asks(command);
    found.extend(entries(&[
        ("BRACKFS_PASSPHRASE", "The passphrase.\nWhoever runs as the same user, or as root, can see it.", asks),
        ("BRACKFS_PASSPHRASE_FILE", "A file that holds the passphrase.\nNewlines at its end do not count.", asks),
        (
            "BRACKFS_PASSPHRASE_COMMAND",
            "A command, for\n.BR sh ,\nthat writes the passphrase to standard output.\nThe first of these three that is set and not empty is used; without any, the passphrase is asked for at the terminal.",
            asks,
        ),
        ("GNUPGHOME", "Where gpg looks for the secret key, if it is gpg that has it.", root || has(command, "key")),
        ("TMPDIR", "Where unnamed temporary files are made, instead of /var/tmp, or of /tmp if that is missing.", root || is(command, &["backup"])),
        (
            "XDG_STATE_HOME",
            "Where the state directory lies, for all users but root; see\n.BR \\-\\-state\\-dir .",
            !is(command, &["generate", "umount", "completions"]),
        ),
    ]));
    found
}

/// Other commands that whoever reads this page may look for.
pub fn related(command: &Command) -> &'static [&'static str] {
    match command.get_name() {
        "init" | "generate" | "backup" => &["key-generate", "init", "backup", "snapshots", "check"],
        "umount" => &["mount"],
        "mount" => &["umount", "snapshots", "ls", "find", "restore"],
        _ if has(command, "key") => {
            &["snapshots", "ls", "find", "versions", "cat", "mount", "restore", "dump", "check"]
        }
        _ => &[],
    }
}

/// Other pages.
pub fn further(command: &Command) -> &'static [(&'static str, &'static str)] {
    match command.get_name() {
        "mount" => &[("fusermount3", "1"), ("mount.brackfs", "8"), ("mount.fuse3", "8"), ("brackfs-security", "7")],
        "umount" => &[("fusermount3", "1"), ("umount", "8")],
        "check" => &[("b3sum", "1"), ("brackfs-format", "5"), ("brackfs-security", "7")],
        "generate" | "init" => &[("gpg", "1"), ("brackfs-security", "7")],
        "backup" => &[("crontab", "5"), ("gitignore", "5"), ("brackfs-security", "7")],
        "find" => &[("gitignore", "5"), ("brackfs-security", "7")],
        "completions" => &[],
        _ if is_root(command) => &[("brackfs-format", "5"), ("brackfs-security", "7"), ("gpg", "1")],
        _ => &[("brackfs-security", "7")],
    }
}

/// Further sections of brackfs(1).
pub const ROOT: &[(&str, &str)] = &[("FILES", FILES), ("OUTPUT", OUTPUT), ("SIGNALS", SIGNALS)];

/// What brackfs(1) begins with.
pub const FIRST: &str = r"
On a computer that you trust, make your key.
It asks for a passphrase.
.I owner.key
is the secret key,
.I owner.key.pub
the certificate, which is public.
Without the secret key nobody reads the backups, you neither: keep copies.
.PP
.RS 4
.EX
brackfs key generate \-\-output owner.key
.EE
.RE
.PP
On the machine to be backed up, with the certificate only, make a repository, then a backup of two directories.
.B init
prints the fingerprint of the machine's own key: write it down.
.PP
.RS 4
.EX
brackfs init /srv/backup \-\-recipient owner.key.pub
brackfs backup /etc /home \-\-repo /srv/backup \-\-source machine
brackfs snapshots \-\-repo /srv/backup
.EE
.RE
.PP
With the secret key at hand, on this machine or another, look at what there is, and take files out.
.PP
.RS 4
.EX
brackfs mount \-\-repo /srv/backup \-\-key owner.key /mnt
ls /mnt/machine/latest/etc
cp \-a /mnt/machine/latest/etc/hosts /tmp
brackfs umount /mnt
.EE
.RE
.PP
Or restore a part in one go, and see now and then whether all is there.
.PP
.RS 4
.EX
brackfs restore latest:/home \-\-repo /srv/backup \-\-key owner.key \-\-to /tmp/home
brackfs check \-\-repo /srv/backup \-\-key owner.key \-\-read\-data
.EE
.RE
";

const FILES: &str = r"
.TP
.I /var/lib/brackfs
The state directory of root.
.TP
.I $XDG_STATE_HOME/brackfs
The state directory of other users; without that variable,
.IR \(ti/.local/state/brackfs .
.PP
It has a folder for each repository, named by the repository's id, for its user only:
.TP
.I host.key
The machine's own secret key for the repository, with which it signs.
Only on the machine that was backed up.
It can't be made again: without it, that machine can write to the repository only after
.BR brackfs\-adopt (1)
with the owner's key.
.TP
.I catalog.sqlite
The catalog: what is in the repository, and how files looked when they were backed up.
It makes backups cheap.
Only on the machine that was backed up; no restore needs it.
Beside it lie
.I catalog.sqlite\-wal
and
.IR catalog.sqlite\-shm ,
which belong to it.
If it is lost, the next backup builds it anew from the repository; see
.BR brackfs\-catalog\-rebuild (1).
.TP
.I catalog.sqlite.old
The catalog that was there before one was built anew.
It can be removed.
.TP
.I lock
Held by a run that writes; it has the number of its process.
The system frees it when the run ends, however it ends; the file stays.
.TP
.I signers
Fingerprints of host keys that this machine believes when it reads, each on a line.
Lines can be added and removed by hand.
.TP
.I session\-keys
Session keys that gpg found out when this machine read, encrypted to the key that it used; see
.BR brackfs\-security (7).
It can be removed: gpg is asked for each of them again then.
.TP
.I mount.log
Messages of mounts in the background; a long one becomes mount.log.old.
.PP
What is in a repository is described in
.BR brackfs\-format (5).
";

const OUTPUT: &str = r"
Results go to standard output, everything else to standard error.
If standard error is a terminal, there is a line of progress, and a summary at the end; otherwise nothing is said unless there is a problem, so that a crontab needs no redirection.
.PP
With
.BR \-\-json ,
results are JSON objects, one on a line, and problems are too.
Each object has a
.BR message_type :
.TP
.B initialized
What
.BR brackfs\-init (1)
made.
.TP
.B adopted
What
.BR brackfs\-adopt (1)
did.
.TP
.B recipient
A recipient, from
.BR brackfs\-recipients\-list (1).
.TP
.B updated
What became of a renewed certificate, from
.BR brackfs\-recipients\-update (1).
.TP
.B summary
What a backup, a restore, a check or a look at the catalog came to; always the last.
.TP
.B status
How far a backup, a restore or a check is: once a second, if it takes longer; see
.BR brackfs\-backup (1).
.TP
.B verbose_status
With
.BR \-v ,
an entry that was handled:
.B action
says how, and
.B item
is its path.
.TP
.B entry
A file or directory in a snapshot, from
.BR brackfs\-ls (1).
.TP
.B found
The same, and in which snapshot it is, from
.BR brackfs\-find (1).
.TP
.B version
The same, and in how many snapshots it is so, from
.BR brackfs\-versions (1).
.TP
.B absence
In how many snapshots it is missing, from there too.
.TP
.B error
A problem with one file or object, with
.B path
and
.BR message ;
on standard error.
.PP
.BR brackfs\-snapshots (1)
writes one array of objects instead.
Programs should pass over types and fields that they do not know.
What ends a run before its end is said in words in any case, and by the exit code.
";

const SIGNALS: &str = r"
On SIGINT, SIGTERM or SIGHUP, a backup, restore or check ends as soon as it can, in good order, with exit code 130; a second signal ends it at once.
A mount is unmounted.
On SIGUSR1, a backup, restore, check or dump says on standard error how far it is, with or without a terminal, and with
.B \-q
too; whatever else runs passes it over.
What a snapshot holds is not lost by SIGKILL or a power cut either: see
.BR brackfs\-backup (1).
";
