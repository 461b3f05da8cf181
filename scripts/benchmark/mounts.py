"""Measures operations on a mounted snapshot, and the same operations on the source files."""

import contextlib
import os
import subprocess
import sys
import time

from benchmark.measure import TICKS, Failed, Figures, listing, measure, put_away, settle

# In this order: earlier operations warm caches for later ones, as in normal use.
OPERATIONS = ["mount", "find", "find-again", "copy-part", "copy-all", "read-random", "read-one", "read-four"]
PATIENCE_SECONDS = 120

RANDOM_READS = """
import os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
pages, places = os.fstat(fd).st_size // 4096, random.Random("reads")
for _ in range(2000):
    os.pread(fd, 4096, places.randrange(pages) * 4096)
"""
READERS = """
import os, sys, threading
path, count, length = sys.argv[1], int(sys.argv[2]), 256 << 20
def read(part):
    fd, at = os.open(path, os.O_RDONLY), part * length
    while at < (part + 1) * length:
        got = len(os.pread(fd, 1 << 20, at))
        # The file may be shorter.
        if not got: break
        at += got
threads = [threading.Thread(target=read, args=(part,)) for part in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


class Mount:
    """A context in which a tool's newest snapshot is mounted. `seconds`: from the start to the first listing."""

    def __init__(self, tool, at, log):
        self.tool, self.at, self.log, self.process, self.seconds = tool, at, log, None, 0.0

    def __enter__(self):
        command = self.tool.mount(self.at)
        # Source files need no mount.
        if command:
            self.at.mkdir()
            with open(self.log, "wb") as out:
                self.process = subprocess.Popen(
                    command, env=self.tool.env(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            try:
                self.wait()
            except BaseException:
                self.close()
                raise
        self.top = self.tool.mounted(self.at)
        return self

    def wait(self):
        start = time.perf_counter()
        while not self.shown():
            if self.process.poll() is not None or time.perf_counter() - start > PATIENCE_SECONDS:
                raise Failed(f"nothing is mounted\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.002)
        self.seconds = time.perf_counter() - start

    def shown(self):
        with contextlib.suppress(OSError):
            return bool(os.listdir(self.tool.mounted(self.at)))
        return False

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process:
            subprocess.run(["fusermount3", "-uz", self.at], capture_output=True)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.at.rmdir()

    def used(self):
        """CPU seconds and peak resident bytes, so far, of the process that serves the mount."""
        if not self.process:
            return 0.0, 0
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        with open(f"/proc/{self.process.pid}/status") as status:
            peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
        return (int(fields[11]) + int(fields[12])) / TICKS, peak


def command_of(operation, data_set, top, to):
    """The command of an operation; None if it does not apply to the data set."""
    part, image = data_set.part, data_set.image and top / data_set.image
    return {
        "find": ["find", f"{top}/", "-printf", "%s %m %T@\\n"],
        "find-again": ["find", f"{top}/", "-printf", "%s %m %T@\\n"],
        "copy-part": part and ["cp", "-r", top / part, to / "copy"],
        "copy-all": ["cp", "-r", f"{top}/.", to / "copy"],
        "read-random": image and [sys.executable, "-c", RANDOM_READS, image],
        "read-one": image and [sys.executable, "-c", READERS, image, "1"],
        "read-four": image and [sys.executable, "-c", READERS, image, "4"],
    }[operation]


def measure_mounted(tool, data_set, source, operations, cold, scratch, log):
    """Figures of the given operations, by name. CPU and memory include the process that serves the mount."""
    found = {}
    settle(cold)
    with Mount(tool, scratch / "mnt", log) as mount:
        cpu, memory = mount.used()
        if mount.process and "mount" in operations:
            found["mount"] = Figures(mount.seconds, cpu, memory, 0.0)
        for operation in (operation for operation in OPERATIONS[1:] if operation in operations):
            to = scratch / "copied"
            to.mkdir()
            command = command_of(operation, data_set, mount.top, to)
            if command:
                settle(cold and operation != "find-again")
                before = mount.used()[0]
                figures = measure(command, tool.env(), to, log)
                after, memory = mount.used()
                figures.cpu += after - before
                figures.memory = memory or figures.memory
                found[operation] = figures
            if operation.startswith("copy") and command:
                copied = source / data_set.part if operation == "copy-part" else source
                if listing(to / "copy") != listing(copied):
                    raise Failed(f"{operation}: the copy differs from the source")
            put_away(to)
    return found
