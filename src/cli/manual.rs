//! Text of manual pages that clap does not generate, in roff: exit codes, environment, references, and the sections of
//! brackfs(1). The sections of a page follow from the options of its command, so most new commands need no text here.
//!
//! `tests/manuals` makes the pages.

use clap::{Arg, Command};

/// The arguments that the page describes.
fn described(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| !argument.is_hide_set())
}

fn has(command: &Command, long: &str) -> bool {
    described(command).any(|argument| argument.get_long() == Some(long))
}

/// Whether an argument of the command has this name for its value.
fn takes(command: &Command, value: &str) -> bool {
    let mut names = described(command).filter_map(|argument| argument.get_value_names());
    names.any(|names| names.iter().any(|name| name.starts_with(value)))
}

fn is(command: &Command, names: &[&str]) -> bool {
    names.contains(&command.get_name()) && !is_of_config(command)
}

/// Whether it is a command of `brackfs config`, whose names other commands have as well.
fn is_of_config(command: &Command) -> bool {
    command.get_display_name().is_some_and(|name| name.starts_with("brackfs-config-"))
}

fn is_root(command: &Command) -> bool {
    command.has_subcommands()
}

/// Whether the command may ask for a passphrase.
fn may_ask(command: &Command) -> bool {
    has(command, "key") || is(command, &["init", "generate", "setup"])
}

/// The terms that apply, with their text.
fn entries(all: &[(&str, &str, bool)]) -> Vec<(String, String)> {
    let entries = all.iter().filter(|(_, _, applies)| *applies);
    entries.map(|(term, text, _)| ((*term).to_owned(), text.trim().to_owned())).collect()
}

/// Sections on arguments that need more than a line.
pub fn arguments(command: &Command) -> Vec<(&'static str, String)> {
    let mut sections = Vec::new();
    if takes(command, "SNAP") || is(command, &["diff"]) || is_root(command) {
        let several = match is(command, &["forget", "hold", "release"]) {
            true => SEVERAL_REFUSED,
            false => SEVERAL_NOTED,
        };
        sections.push(("SNAPSHOTS", SNAP.replace("SEVERAL", several.trim())));
    }
    if takes(command, "SIZE") || is_root(command) {
        sections.push(("SIZES", SIZE.to_owned()));
    }
    sections
}

const SNAP: &str = r"
.I SNAP
is
.B latest
(the newest snapshot of all),
.IB SOURCE /latest
(the newest of a source), the beginning of a snapshot's id, or a time as
.BR brackfs\-snapshots (1)
prints it, or the beginning of one, such as
.B 2026\-11\-20
or
.BR 2026\-11\-20T14:52 .
A time without an offset such as +01:00 is in UTC; where the local time zone is another one, a note says so.
If several snapshots match a time, the newest is used.
An id or a time can have
.IB SOURCE /
in front, too.
SEVERAL
.PP
.I PATH
begins at the snapshot's root: the directory that was backed up, or / if there were several paths.
A slash at its beginning makes no difference.
Symbolic links in it are not followed.
";

/// What reading commands do if a name fits snapshots of several sources.
const SEVERAL_NOTED: &str = r"
If there are several sources,
.B latest
alone prints a note that says which snapshot it is, and so does a time that fits snapshots of several sources.
";

/// What commands do that change snapshots.
const SEVERAL_REFUSED: &str = r"
If there are several sources,
.B latest
alone is refused, and so is a time that fits snapshots of several sources.
";

const SIZE: &str = r"
.I SIZE
is a number of bytes, or a number such as 1.5 and a unit in powers of 1024:
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

/// Commands that end with code 130 on a signal.
const INTERRUPTIBLE: &[&str] = &[
    "backup",
    "run",
    "setup",
    "restore",
    "check",
    "rebuild",
    "verify",
    "update",
    "adopt",
    "forget",
    "hold",
    "release",
    "prune",
    "stats",
    "snapshots",
    "ls",
    "find",
    "versions",
    "diff",
    "cat",
    "dump",
];

/// Exit codes and their meanings.
pub fn exit_codes(command: &Command) -> Vec<(String, String)> {
    let root = is_root(command);
    let may_prune = is(command, &["prune"]) || has(command, "prune");
    let partly = match command.get_name() {
        "prune" => "Done, but some packs are damaged; they were reported and stay.",
        "forget" => "Done, but with \\-\\-prune, some packs are damaged; they were reported and stay.",
        "run" | "setup" => {
            "Done, but there were problems, such as files that could not be read or a source that lost most of its files; they were reported."
        }
        "status" => "A backup was never completed.",
        "backup" => {
            "Done, but some source files could not be read consistently, packs of the repository are lost, or no snapshot was made because the source lost most of its files; all were reported."
        }
        _ => {
            "Done, but some source files could not be read consistently, packs of the repository are lost or damaged, or no snapshot was made because a source lost most of its files; all were reported."
        }
    };
    let done = match command.get_name() {
        _ if is_of_config(command) => "Done.",
        "check" | "verify" => "Done, and no problems were found.",
        "status" => "All backups are fresh.",
        _ => "Done.",
    };
    let failed = match command.get_name() {
        "restore" => "Failed, or some entries could not be restored and were reported.",
        _ if is_of_config(command) => "Failed; standard error has the reason.",
        "check" | "verify" => "Problems were found and reported, or the check failed.",
        "snapshots" => "Failed, or some snapshots could not be listed and were reported.",
        "find" => "Failed, or some data could not be read; it was reported, and the rest was searched.",
        "versions" => "Failed, no snapshot has the path, or some snapshots could not be read and were reported.",
        "diff" => "Failed, or some directories could not be read; they were reported, and the rest was compared.",
        "status" => "A backup is too old, or the command failed.",
        "run" => "A step failed; standard error has the reason. If several failed, the code is that of the worst.",
        _ => "Failed; standard error has the reason.",
    };
    entries(&[
        ("0", done, true),
        ("1", failed, true),
        (
            "2",
            match command.get_name() {
                _ if is_of_config(command) => "Wrong usage, or a mistake in the configuration.",
                "status" => "The last try of a step failed, wrong usage, or a mistake in the configuration.",
                _ => "Wrong usage.",
            },
            true,
        ),
        ("3", partly, root || may_prune || is(command, &["backup", "run", "setup", "status"])),
        ("10", "The repository does not exist.", root || has(command, "repo") || is(command, &["run", "setup"])),
        (
            "11",
            "Locked: another run is writing to the repository.",
            root || is(
                command,
                &["backup", "run", "setup", "rebuild", "update", "adopt", "forget", "hold", "release", "prune"],
            ),
        ),
        ("12", "The key or the passphrase is wrong or missing.", root || may_ask(command) || is(command, &["run"])),
        ("130", "Interrupted by SIGINT, SIGTERM or SIGHUP.", root || is(command, INTERRUPTIBLE)),
    ])
}

/// Environment variables: first those that set options, then the others.
pub fn environment(command: &Command, commands: &[Command]) -> Vec<(String, String)> {
    let root = is_root(command);
    let mut found: Vec<(String, String)> = Vec::new();
    let commands = if root { commands } else { std::slice::from_ref(command) };
    let mut arguments: Vec<_> = commands.iter().flat_map(described).collect();
    // REPO is an option of most commands.
    arguments.sort_by_key(|argument| argument.get_long().is_none());
    for argument in arguments {
        let Some(variable) = argument.get_env() else { continue };
        let variable = variable.to_string_lossy().into_owned();
        let option = match argument.get_long() {
            Some(long) => format!(".BR \\-\\-{} .", escaped(long)),
            None => format!(".IR {} .", argument.get_value_names().unwrap_or_default().join(" ")),
        };
        if !found.iter().any(|(known, _)| *known == variable) {
            found.push((variable, format!("Default for\n{option}")));
        }
    }
    found.sort();
    let may_ask = root || may_ask(command);
    found.extend(entries(&[
        (
            "BRACKFS_LOG",
            "The level of the log: off, error, warn, info, debug or trace.\nThe default is debug with\n.BR \\-\\-log ,\nand off without it.\nWith a level and no\n.BR \\-\\-log ,\nthe log goes to standard error.",
            true,
        ),
        ("BRACKFS_PASSPHRASE", "The passphrase.\nProcesses of the same user and of root can read it.", may_ask),
        ("BRACKFS_PASSPHRASE_FILE", "A file that holds the passphrase.\nNewlines at its end are ignored.", may_ask),
        (
            "BRACKFS_PASSPHRASE_COMMAND",
            "A command, run by\n.B sh\nwith an empty standard input, that writes the passphrase to standard output.\nThe file and the output may have at most 1 MiB.\nThe first of these three variables that is set and not empty is used; otherwise the passphrase is asked for at the terminal.",
            may_ask,
        ),
        ("GNUPGHOME", "The directory of gpg, if gpg has the secret key.", root || has(command, "key")),
        (
            "STATE_DIRECTORY, CACHE_DIRECTORY",
            "The state directory and the cache on disk of a systemd service with\n.BR StateDirectory= \" and \" CacheDirectory= .\nThe first of several is used.",
            !is(command, &["generate", "umount", "completions"]),
        ),
        (
            "NOTIFY_SOCKET, JOURNAL_STREAM",
            "Set by systemd for services.\nThe progress is shown by\n.BR \"systemctl status\" .\nMessages for the journal begin with their priority: <3> for errors, <4> for warnings, and <6> for the rest.",
            root || is(command, &["backup", "run", "setup"]),
        ),
        (
            "TMPDIR",
            "The directory for unnamed temporary files. The default is /var/tmp, or /tmp if /var/tmp does not exist.",
            root || is(command, &["backup", "run", "setup", "restore", "dump", "check"]),
        ),
        (
            "XDG_CACHE_HOME",
            "The parent of the cache on disk, except for root; see\n.BR \\-\\-cache\\-dir .",
            root || has(command, "cache-dir"),
        ),
        (
            "XDG_CONFIG_HOME",
            "The parent of the directory of the configuration, except for root; see\n.BR \\-\\-config .",
            root || is_of_config(command) || has(command, "repo") || is(command, &["run", "setup", "status"]),
        ),
        (
            "NO_COLOR",
            "If it is set and not empty, the output has no colors.",
            is(command, &["status"]),
        ),
        (
            "LC_ALL, LC_CTYPE, LANG",
            "Marks that are not ASCII are printed only if the first of these that is set names UTF\\-8.",
            is(command, &["status"]),
        ),
        (
            "XDG_STATE_HOME",
            "The parent of the state directory, except for root; see\n.BR \\-\\-state\\-dir .",
            !is(command, &["generate", "umount", "completions"]),
        ),
        (
            "AWS_ACCESS_KEY_ID, FTP_USER, OS_AUTH_URL, ST_AUTH, WEBDAV_USER and others",
            "The login for a server.\nThe HTTP proxy\n.RB ( HTTPS_PROXY\nand others) is read too; see\n.BR brackfs\\-targets (7).",
            root || has(command, "credentials"),
        ),
    ]));
    found
}

/// Related commands.
pub fn related(command: &Command) -> &'static [&'static str] {
    match command.get_name() {
        _ if is_of_config(command) => &["config-init", "config-check", "config-show", "config-unit", "run"],
        "init" | "generate" | "backup" => &["key-generate", "init", "backup", "snapshots", "check"],
        "setup" => &["config-check", "config-unit", "init", "run", "restore"],
        "run" => &["status", "report", "config-check", "backup", "forget", "prune", "check"],
        "status" | "report" => &["status", "report", "run", "snapshots", "stats", "check", "recipients-update"],
        "umount" => &["mount"],
        "forget" | "hold" | "release" | "prune" | "stats" => {
            &["snapshots", "forget", "hold", "release", "prune", "stats", "check"]
        }
        "mount" => &["umount", "snapshots", "ls", "find", "restore"],
        _ if has(command, "key") => {
            &["snapshots", "ls", "find", "versions", "diff", "cat", "mount", "restore", "dump", "check"]
        }
        _ => &[],
    }
}

/// Related pages other than those of commands.
pub fn further(command: &Command) -> &'static [(&'static str, &'static str)] {
    match command.get_name() {
        _ if is_of_config(command) => &[CONFIG],
        "mount" => {
            &[("fusermount3", "1"), ("mount.brackfs", "8"), ("mount.fuse3", "8"), TARGETS, ("brackfs-security", "7")]
        }
        "run" | "setup" => &[CONFIG, ("crontab", "5"), TARGETS, ("brackfs-security", "7")],
        "status" | "report" => &[CONFIG],
        "umount" => &[("fusermount3", "1"), ("umount", "8")],
        "check" => &[("b3sum", "1"), ("brackfs-format", "5"), TARGETS, ("brackfs-security", "7")],
        "generate" => &[("gpg", "1"), ("brackfs-security", "7")],
        "init" => &[("gpg", "1"), TARGETS, ("brackfs-security", "7")],
        "backup" => {
            &[("crontab", "5"), ("gitignore", "5"), TARGETS, ("brackfs-security", "7"), ("brackfs-switching", "7")]
        }
        "find" => &[("gitignore", "5"), ("brackfs-security", "7")],
        "completions" => &[],
        _ if is_root(command) => &[
            CONFIG,
            ("brackfs-json", "5"),
            ("brackfs-format", "5"),
            TARGETS,
            ("brackfs-security", "7"),
            ("brackfs-switching", "7"),
            ("gpg", "1"),
        ],
        _ => &[("brackfs-security", "7")],
    }
}

/// The page about the places where a repository can be.
const TARGETS: (&str, &str) = ("brackfs-targets", "7");
/// The page about the configuration.
const CONFIG: (&str, &str) = ("brackfs-config", "5");

/// Escapes text for roff.
pub fn escaped(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('~', "\\(ti")
        .replace('^', "\\(ha");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// The last sections of brackfs(1).
pub const ROOT: &[(&str, &str)] = &[("FILES", FILES), ("OUTPUT", OUTPUT), ("SIGNALS", SIGNALS)];

/// The first section of brackfs(1).
pub const FIRST: &str = r"
On a computer that you trust, make your key.
The command asks for a passphrase.
.I owner.key
is the secret key, and
.I owner.key.pub
is the public certificate.
Without the secret key, the backups cannot be read.
Keep copies of it.
.PP
.RS 4
.EX
brackfs key generate \-\-output owner.key
.EE
.RE
.PP
On the machine to be backed up, which needs only the certificate, make a repository and back up two directories.
.B init
prints the fingerprint of the machine's host key.
Write it down.
.PP
.RS 4
.EX
brackfs init /srv/backup \-\-recipient owner.key.pub
brackfs backup /etc /home \-\-repo /srv/backup \-\-source machine
brackfs snapshots \-\-repo /srv/backup
.EE
.RE
.PP
With the secret key, on this machine or another, browse the snapshots and copy files out.
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
Or restore a directory, and check the repository from time to time.
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
.I /etc/brackfs/config.toml
The configuration; see
.BR brackfs\-config (5).
.TP
.I /var/lib/brackfs
The state directory of root.
.TP
.I $XDG_STATE_HOME/brackfs
The state directory of other users; without that variable,
.IR \(ti/.local/state/brackfs .
.PP
The state directory has a folder for each repository, named by the repository's id and accessible only to its user:
.TP
.I host.key
The machine's own secret key for the repository.
It signs the backups, and exists only on the machine that is backed up.
It cannot be recreated: without it, the machine can write to the repository only after
.BR brackfs\-adopt (1)
with the owner's key.
.TP
.I catalog.sqlite
The catalog: the content of the repository, and the metadata of the files that were backed up.
It makes backups fast, and exists only on the machine that is backed up; a restore does not need it.
.I catalog.sqlite\-wal
and
.I catalog.sqlite\-shm
are part of it; they exist while it is in use, and after a run was killed.
If it is lost, the next backup rebuilds it from the repository; see
.BR brackfs\-catalog\-rebuild (1).
.TP
.I owner.asc
A copy of the owner's secret key, locked with its passphrase, if
.BR brackfs\-init (1)
made the key and stored it in the repository.
.TP
.I catalog.sqlite.old
The catalog from before the last rebuild.
It can be removed.
.TP
.I adopting
While
.BR brackfs\-adopt (1)
runs on a new machine: the id in the names of its temporary files, so that they are removed if it was interrupted.
.TP
.I looked
A hash of the server at which a backup last searched for lost documents; the time of the file is the time of the search.
It can be removed.
.TP
.I read\-until
The pack that the last check of a part of the packs ended with; the next one goes on from there.
.TP
.I lock
Locked by a run that writes; contains its process id.
The kernel releases the lock when the process ends; the file remains.
.TP
.I lock.waiting
Locked by a run that waits for the lock.
.BR brackfs\-prune (1)
then lets that run go first, and continues after it.
.TP
.I reserve
Up to 4 MiB of meaningless bytes.
If the disk is full, a command that frees space removes it first.
It can be removed.
.TP
.I signers
Fingerprints of the host keys that this machine trusts as a reader, one per line.
Lines can be added and removed by hand.
.TP
.I session\-keys
Session keys that gpg decrypted for this machine as a reader, encrypted to the owner's key; see
.BR brackfs\-security (7).
It can be removed: gpg is then asked for them again.
.TP
.I mount.log
Messages of background mounts.
A long log is renamed to mount.log.old.
.PP
The state directory also has a folder
.IR spool ,
in which packs wait for a server in unnamed files.
.PP
Blocks that were read from a server are cached in another place; see
.BR \-\-disk\-cache
and
.BR \-\-cache\-dir :
.TP
.I /var/cache/brackfs
The cache of root.
.TP
.I $XDG_CACHE_HOME/brackfs
The cache of other users; without that variable,
.IR \(ti/.cache/brackfs .
.PP
It has a folder for each repository, named by the repository's id and accessible only to its user.
It can be removed at any time.
.PP
The files of a repository are described in
.BR brackfs\-format (5).
";

const OUTPUT: &str = r"
Results go to standard output, and messages to standard error.
If standard error is a terminal, it shows a line of progress, and a summary at the end.
The journal of systemd gets a summary too.
Otherwise only problems are printed, so that a crontab needs no redirection.
.PP
Of many problems of a run, the first 20 are printed.
With
.BR \-v ,
all are printed, and names of objects in the repository are not shortened.
.PP
With
.BR \-\-json ,
results, progress, problems and notes are JSON objects, one per line; see
.BR brackfs\-json (5).
";

const SIGNALS: &str = r"
On SIGINT, SIGTERM or SIGHUP, a backup, prune, restore or check cleans up and ends as soon as possible with exit code 130; a second signal ends it at once.
A server that is silent then is given up within a few seconds.
A mount is unmounted.
On SIGUSR1, a backup, restore, check, prune or dump prints its progress to standard error, with or without a terminal, even with
.BR \-q ;
other commands ignore it.
SIGKILL or a power failure does not damage a snapshot; see
.BR brackfs\-backup (1).
";
