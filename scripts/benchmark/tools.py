"""The measured tools and their commands. All tools run with their default options."""

import json
import os
import shutil
import subprocess

PASSPHRASE = "correct horse battery staple"
OURS = ("BRACKFS_", "RESTIC_", "BORG_", "RUSTIC_", "BUPSTASH_")


class Tool:
    """A tool with its own repository, cache and home below `home`. Operations without a command are skipped."""

    program = ""
    about = ""

    def __init__(self, name, home, source):
        self.name, self.home, self.source = name, home, source
        self.repo = home / "repo"
        home.mkdir(parents=True)

    def env(self):
        """The caller's environment, without variables that lead to the caller's own repositories."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        kept = {"HOME": self.home, "XDG_CACHE_HOME": self.home / "cache", "XDG_CONFIG_HOME": self.home / "config",
                "XDG_DATA_HOME": self.home / "data", "XDG_STATE_HOME": self.home / "state", "TZ": "UTC"}
        env |= kept | self.variables()
        return {name: str(value) for name, value in env.items()}

    def run(self, *arguments):
        """Runs a command without measuring it. Returns its output."""
        command = [str(self.program), *map(str, arguments)]
        done = subprocess.run(command, env=self.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    @classmethod
    def version(cls):
        return subprocess.run([cls.program, "--version"], capture_output=True, text=True).stdout.splitlines()[0]

    def variables(self):
        return {}

    def init(self):
        pass

    def backup(self):
        return None

    def unchanged(self):
        """The command for a backup without changes; overridden if it differs."""
        return self.backup()

    def restore(self, to):
        return None

    def restored(self, to):
        """The path of the source's files in `to` after a restore."""
        return to / str(self.source).lstrip("/")

    def mount(self, at):
        """The command that mounts the newest snapshot, or all snapshots, in the foreground."""
        return None

    def mounted(self, at):
        """The path of the source's files in the mount at `at`; None if the tool cannot mount."""
        return None


class Brackfs(Tool):
    about = "OpenPGP, zstd 3"
    profile, encrypted, options = "rfc9580", True, []

    def variables(self):
        return {"BRACKFS_REPOSITORY": self.repo, "BRACKFS_STATE_DIR": self.home / "state",
                "BRACKFS_KEY_FILE": self.home / "owner"}

    def init(self):
        if not self.encrypted:
            return self.run("init", self.repo, "--no-encryption")
        key = self.home / "owner"
        self.run("key", "generate", "--no-passphrase", "--profile", self.profile, "--output", key)
        return self.run("init", self.repo, "--recipient", f"{key}.pub")

    def backup(self):
        return [self.program, "backup", "-q", self.source, *self.options]

    def restore(self, to):
        return [self.program, "restore", "-q", "latest", "--to", to]

    def restored(self, to):
        return to

    def mount(self, at):
        return [self.program, "mount", "--foreground", at]

    def mounted(self, at):
        return at / self.source.name / "latest"


class BrackfsRfc4880(Brackfs):
    profile = "rfc4880"


class BrackfsNoEncryption(Brackfs):
    encrypted = False


class BrackfsLowMemory(Brackfs):
    options = ["--low-memory"]


class BrackfsLowMemoryLargeChunks(Brackfs):
    options = ["--low-memory", "--chunk-size", "256MiB"]


class Restic(Tool):
    program, about = "restic", "AES-256-CTR, zstd"

    @classmethod
    def version(cls):
        return subprocess.run(["restic", "version"], capture_output=True, text=True).stdout.split(" compiled")[0]

    def variables(self):
        return {"RESTIC_REPOSITORY": self.repo, "RESTIC_PASSWORD": PASSPHRASE}

    def init(self):
        # Some releases default to the older repository version, which does not compress.
        self.run("init", "--repository-version", "latest")

    def backup(self):
        return ["restic", "backup", "--quiet", self.source]

    def restore(self, to):
        return ["restic", "restore", "--quiet", "latest", "--target", to]

    def mount(self, at):
        return ["restic", "mount", at]

    def mounted(self, at):
        return at / "snapshots/latest" / str(self.source).lstrip("/")


class Borg(Tool):
    program, about = "borg", "AES-256-CTR, lz4"
    count = 0

    def variables(self):
        return {"BORG_REPO": self.repo, "BORG_PASSPHRASE": PASSPHRASE, "BORG_BASE_DIR": self.home}

    def init(self):
        self.run("init", "--encryption", "repokey-blake2")

    def backup(self):
        self.count += 1
        return ["borg", "create", f"::{self.count}", self.source]

    def restore(self, to):
        return ["borg", "extract", f"::{self.count}"]

    def mount(self, at):
        return ["borg", "mount", "--foreground", f"::{self.count}", at]

    def mounted(self, at):
        return at / str(self.source).lstrip("/")


class Rustic(Tool):
    program, about = "rustic", "AES-256-CTR, zstd"

    def variables(self):
        return {"RUSTIC_REPOSITORY": self.repo, "RUSTIC_PASSWORD": PASSPHRASE, "RUSTIC_NO_PROGRESS": "true"}

    def init(self):
        self.run("init")

    def backup(self):
        return ["rustic", "backup", self.source]

    def restore(self, to):
        return ["rustic", "restore", f"latest:{self.source}", to]

    def restored(self, to):
        return to


class Bupstash(Tool):
    program, about = "bupstash", "XChaCha20, zstd 3"

    def variables(self):
        return {"BUPSTASH_REPOSITORY": self.repo, "BUPSTASH_KEY": self.home / "key"}

    def init(self):
        self.run("new-key", "--output", self.home / "key")
        self.run("init")

    def backup(self):
        return ["bupstash", "put", "--quiet", "--send-log", self.home / "send-log", "name=source", self.source]

    def restore(self, to):
        lines = self.run("list", "--format=jsonl1").splitlines()
        newest = max(map(json.loads, lines), key=lambda item: item["unix_timestamp_millis"])
        return ["bupstash", "restore", "--quiet", "--into", to, f"id={newest['id']}"]

    def restored(self, to):
        return to


class Copy(Tool):
    """A lower bound: the cost of disk and kernel, without waiting for writeback."""

    program, about = "cp", "-a"

    def backup(self):
        return ["cp", "-a", self.source, self.repo]

    def unchanged(self):
        return None

    def restore(self, to):
        return ["cp", "-a", f"{self.repo}/.", to]

    def restored(self, to):
        return to


class Tar(Copy):
    program, about = "tar", "tar c | zstd -3"

    def backup(self):
        self.repo.mkdir()
        script = 'set -o pipefail; tar -C "$0" -cf - . | zstd -q -3 >"$1"'
        return ["bash", "-c", script, self.source, self.repo / "tar.zst"]

    def restore(self, to):
        script = 'set -o pipefail; zstd -q -d <"$0" | tar -C "$1" -xpf -'
        return ["bash", "-c", script, self.repo / "tar.zst", to]


class Disk(Tool):
    """A lower bound for mounts: the same operations on the source files."""

    program, about = "cp", "of the files themselves"

    def mounted(self, at):
        return self.source


class Find(Tool):
    """A lower bound for a backup without changes: only stat every entry."""

    program, about = "find", "-printf, all stat fields"

    def unchanged(self):
        return ["find", self.source, "-printf", "%y %m %n %U %G %s %b %T@ %C@ %A@ %i %D %l %P\\n"]


PEERS = {"restic": Restic, "borg": Borg, "rustic": Rustic, "bupstash": Bupstash}
FLOORS = {"cp": Copy, "tar": Tar, "find": Find, "disk": Disk}
MODES = {"default": Brackfs, "rfc4880": BrackfsRfc4880, "no-encryption": BrackfsNoEncryption,
         "low-memory": BrackfsLowMemory, "low-memory-large-chunks": BrackfsLowMemoryLargeChunks}
# These are skipped if they are not on PATH; the others are Debian packages.
OPTIONAL = ("rustic", "bupstash")


def there(program):
    return shutil.which(program) is not None
