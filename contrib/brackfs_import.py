"""What import-restic and import-borg share: backing up each old snapshot, oldest first, from a mount of its repository."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

# Exit code of brackfs: done, but with problems, which were reported.
PARTIAL = 3
# Seconds until a mount must be there.
MOUNTING = 120


class Failed(Exception):
    """Ends the program with a message."""


@dataclass
class Old:
    """A snapshot of the other program."""

    id: str
    time: str
    host: str
    # Where it is in the mount.
    place: str
    tags: list = field(default_factory=list)


def arguments(other, description, unit):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="See brackfs-switching(7).",
        allow_abbrev=False,
    )
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parser.add_argument("--repo", metavar="REPO", help="brackfs repository [default: as for brackfs]")
    parser.add_argument("--source", metavar="NAME", help="name of the source [default: that of the path, or root]")
    parser.add_argument("--host", metavar="HOST", help=f"import only {unit}s of this machine")
    parser.add_argument(
        "--mount",
        metavar="DIR",
        default=f"{cache}/brackfs-import-{other}",
        help="mount here; give the same directory to continue an import [default: %(default)s]",
    )
    parser.add_argument("--brackfs", metavar="PROGRAM", default="brackfs", help="the brackfs program")
    parser.add_argument("-n", "--dry-run", action="store_true", help=f"only list the {unit}s")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the commands")
    return parser


def output(words):
    """Returns the output of a command."""
    try:
        return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    except FileNotFoundError:
        raise Failed(f"{words[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        raise Failed(f"{words[0]} failed (exit code {error.returncode})") from None


@contextlib.contextmanager
def mounted(words, directory, is_ready):
    """Mounts a repository with a command that runs in the foreground."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.path.ismount(directory):
        raise Failed(f"something is mounted on {directory} already; unmount it, or give another --mount")
    program = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + MOUNTING
        while not (os.path.ismount(directory) and is_ready()):
            if program.poll() is not None:
                raise Failed(f"{words[0]} could not mount on {directory} (exit code {program.returncode})")
            if time.monotonic() > end:
                raise Failed(f"{words[0]} did not mount on {directory} within {MOUNTING} s")
            time.sleep(0.1)
        yield
    finally:
        if os.path.ismount(directory):
            unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
            subprocess.run([*unmount, directory], check=False)
        program.terminate()
        program.wait()


def placed(paths, place, root="/"):
    """The arguments that put each path where it was, below `root`. Paths below another one are part of it."""
    paths = sorted(set(os.path.normpath(path) for path in paths))
    tops = [path for path in paths if not any(is_below(path, other) for other in paths)]
    olds = {path: place + (path if path != "/" else "") for path in tops}
    tops = [path for path in tops if os.path.lexists(olds[path])]
    # Only directories can be placed by themselves.
    is_plain = all(os.path.isdir(olds[path]) and not os.path.islink(olds[path]) and "=" not in path for path in tops)
    if not tops or not is_plain:
        return ["--as", f"{root}={place}"], os.path.basename(root) or "root"
    news = {path: root.rstrip("/") + path.rstrip("/") or "/" for path in tops}
    name = os.path.basename(news[tops[0]]) if len(tops) == 1 else ""
    return [word for path in tops for word in ("--as", f"{news[path]}={olds[path]}")], name or "root"


def is_below(path, other):
    return path != other and path.startswith(other.rstrip("/") + "/")


class Import:
    """An import into a brackfs repository."""

    def __init__(self, args, other):
        self.args = args
        self.other = other
        self.repository = ["--repo", args.repo] if args.repo else []
        self.code = 0

    def imported(self):
        """The tags of all snapshots in the repository."""
        listed = json.loads(output([self.args.brackfs, "snapshots", "--json", *self.repository]))
        return {tag for snapshot in listed for tag in snapshot["tags"]}

    def tag(self, old):
        """The tag that an imported snapshot gets, by which it is found again."""
        return f"{self.other}-{old.id}"

    def left(self, olds):
        """The snapshots that are not in the repository yet, oldest first."""
        there = self.imported()
        left = [old for old in olds if self.tag(old) not in there]
        print(f"{len(olds)} snapshots, {len(olds) - len(left)} of them imported before", file=sys.stderr)
        return left

    def add(self, old, paths, root="/"):
        """Imports a snapshot whose content is mounted."""
        places, name = placed(paths, old.place, os.path.normpath(root))
        name = self.args.source or name
        tags = [self.tag(old), *(tag.replace(",", " ").strip() for tag in old.tags)]
        words = [self.args.brackfs, "backup", *self.repository, *places, "--source", name]
        words += ["--time", old.time, "--host", old.host, "--ignore-inode", "--ignore-ctime", "--allow-shrink"]
        words += ["--settle-max", "0s", *(word for tag in tags if tag for word in ("--tag", tag))]
        print(f"{old.time} {old.host} {' '.join(paths)} -> {name}", file=sys.stderr)
        if self.args.verbose:
            print("  " + " ".join(words), file=sys.stderr)
        code = subprocess.run(words, check=False).returncode
        if code == PARTIAL:
            self.code = PARTIAL
        elif code != 0:
            raise Failed(f"brackfs failed (exit code {code}); run this again to continue")


def main(run):
    """Runs the program."""
    try:
        sys.exit(run())
    except Failed as failed:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
