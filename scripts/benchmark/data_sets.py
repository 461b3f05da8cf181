"""Data sets: trees that are identical on every machine, and reversible changes of them."""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

MIB = 1 << 20
LINUX_PACKAGE = "linux-source-6.1"


class Material:
    """Deterministic content from a seed: noise, and text that compresses but has no duplicate chunks."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["".join(self.random.choices(letters, k=self.below(9) + 2)) for _ in range(5000)]
        self.pool = " ".join(self.random.choices(words, k=650_000)).encode()

    def below(self, limit):
        return self.random.randrange(limit)

    def noise(self, length):
        return self.random.randbytes(length)

    def text(self, length):
        slices = []
        for _ in range(0, length, 4096):
            at = self.below(len(self.pool) - 4096)
            slices.append(self.pool[at:at + 4096])
        return b"".join(slices)[:length]

    def either(self, length):
        return self.text(length) if self.below(10) < 7 else self.noise(length)


def write(path, content, seconds):
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


def files(folder, count, limit, material):
    """Fills a new folder with files of less than `limit` bytes."""
    folder.mkdir(parents=True)
    for number in range(count):
        content = material.either(material.below(limit))
        write(folder / f"file{number:07}", content, 1_600_000_000 + number)


def image(path, mebibytes, material):
    """A file of alternating ranges of noise and text, of 32 MiB each (a quarter of the file, if it is smaller)."""
    stretch = min(32, mebibytes // 4)
    with open(path, "wb") as out:
        for at in range(mebibytes):
            out.write(material.text(MIB) if at // stretch % 2 else material.noise(MIB))


def make_tiny(root):
    material = Material("tiny")
    for a in range(3):
        for b in range(5):
            files(root / f"tree{a}" / f"part{b}", 20, 16384, material)
    image(root / "disk.img", 4, material)


def make_small(root):
    material = Material("small")
    for a in range(50):
        for b in range(100):
            files(root / f"tree{a:02}" / f"part{b:02}", 100, 2049, material)


def make_flat(root):
    files(root / "files", 1_000_000, 64, Material("flat"))


def make_big(root):
    image(root / "disk.img", 4096, Material("big"))


def make_linux(root):
    """The sources of Debian's kernel, from the installed package or a downloaded one."""
    archive = Path(f"/usr/src/{LINUX_PACKAGE}.tar.xz")
    if not archive.exists():
        archive = root / archive.name
        subprocess.run(["apt-get", "download", LINUX_PACKAGE], cwd=root, check=True, stdout=subprocess.DEVNULL)
        package, = root.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, root / "package"], check=True)
        (root / "package/usr/src" / archive.name).rename(archive)
        shutil.rmtree(root / "package")
        package.unlink()
    unpack = ["tar", "-xJf", archive, "-C", root, "--strip-components=1", "--no-same-owner"]
    subprocess.run(unpack, check=True)
    if archive.parent == root:
        archive.unlink()


class DataSet:
    def __init__(self, name, make, operations, directory=None, image=None, part=None):
        self.name, self.make, self.operations = name, make, operations
        # The directory to rename, the file to overwrite at scattered offsets, and the directory to copy alone.
        self.directory, self.image, self.part = directory, image, part

    def cached(self, data):
        """The cached data set, made if it is missing. Incomplete ones have another name."""
        folder, part = data / self.name, data / f"{self.name}.part"
        if not folder.exists():
            if part.exists():
                shutil.rmtree(part)
            part.mkdir(parents=True)
            self.make(part)
            part.rename(folder)
        return folder

    def copy(self, data, to):
        """Makes a copy that may be changed."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.cached(data), to], check=True)
        # borg treats the newest file of a backup as changed the next time: make it a tiny one.
        time.sleep(1.1)
        (to / "newest").write_text("newest\n")


TREE = ["first", "unchanged", "mounted", "changed", "renamed", "restore"]
DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("tiny", make_tiny, TREE[:-1] + ["scattered", "restore"], "tree0", "disk.img", "tree1"),
        DataSet("linux", make_linux, TREE, "drivers", part="drivers/net"),
        DataSet("big", make_big, ["first", "unchanged", "mounted", "scattered", "restore"], image="disk.img"),
        DataSet("small", make_small, TREE, "tree00", part="tree01"),
        DataSet("flat", make_flat, TREE, "files"),
    )
}


def change(data_set, root, operation):
    """Changes the tree for an operation. Returns a function that undoes it."""
    if operation == "changed":
        return change_files(root)
    if operation == "renamed":
        old, new = root / data_set.directory, root / f"{data_set.directory}.renamed"
        old.rename(new)
        return lambda: new.rename(old)
    if operation == "scattered":
        return scatter(root / data_set.image)
    return lambda: None


def change_files(root):
    """Inserts a line in the middle and at the end of every hundredth file."""
    paths = sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    paths = [path for path in paths if not path.is_symlink()][::100]
    before = [path.read_bytes() for path in paths]
    for number, (path, content) in enumerate(zip(paths, before)):
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"\nchange %d\n" % number + content[middle:] + b"\nend %d\n" % number)

    def undo():
        for path, content in zip(paths, before):
            path.write_bytes(content)

    return undo


def scatter(path, count=200, length=64 << 10):
    """Overwrites `count` ranges of a file in place, as a virtual machine does with its disk image."""
    material = random.Random("scatter")
    places = [material.randrange(path.stat().st_size // 4096 - length // 4096) * 4096 for _ in range(count)]
    before = []
    with open(path, "r+b") as file:
        for at in places:
            file.seek(at)
            before.append(file.read(length))
            file.seek(at)
            file.write(material.randbytes(length))

    def undo():
        # Ranges may overlap, so undo them in reverse order.
        with open(path, "r+b") as file:
            for at, content in reversed(list(zip(places, before))):
                file.seek(at)
                file.write(content)

    return undo
