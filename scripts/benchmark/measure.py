"""Measures one run of a command."""

import contextlib
import mmap
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

SAMPLE_SECONDS = 0.01
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    wall: float  # seconds from start to exit
    cpu: float  # seconds, user and system, of the process and its reaped children
    memory: int  # bytes: the maximum of tree_memory
    others: float  # fraction of the machine's CPU time that other processes used
    stored: int = 0  # bytes of all files in the repository afterwards
    added: int = 0  # bytes by which the repository grew


class Failed(Exception):
    """The command failed; the text has its exit code and output."""


def tree_memory(root):
    """The larger of: resident bytes of a process and its descendants, and the peak so far of the largest of them.
    ru_maxrss from wait4 is not usable: it includes this program's memory, from between fork and exec."""
    total, largest, todo = 0, 0, [str(root)]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) << 10
                    elif line.startswith("VmHWM:"):
                        largest = max(largest, int(line.split()[1]) << 10)
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as children:
                    todo.extend(children.read().split())
    return max(total, largest)


def busy_seconds():
    """CPU seconds that all processes used since the machine booted."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def measure(command, env, cwd, log):
    """Runs a command and waits for its exit. Its output goes to the file `log`."""
    peak, done = 0, threading.Event()

    def sample(pid):
        nonlocal peak
        while not done.is_set():
            peak = max(peak, tree_memory(pid))
            done.wait(SAMPLE_SECONDS)

    with open(log, "wb") as out:
        busy, start = busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        sampler = threading.Thread(target=sample, args=(process.pid,))
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
        except BaseException:
            # The command has a session of its own, so this kills no other processes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            done.set()
            sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        output = log.read_text(errors="replace")[-2000:]
        raise Failed(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{output}")
    cpu = usage.ru_utime + usage.ru_stime
    others = min(1.0, max(0.0, busy_seconds() - busy - cpu) / (wall * os.cpu_count()))
    return Figures(wall, cpu, peak, others)


def settle(cold):
    """Flushes dirty pages, so that they are not written during a measurement; with `cold`, also drops caches."""
    os.sync()
    if cold:
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("3")
        touch_memory()


def put_away(tree):
    """Renames a tree, which is removed with all others at the end. For minutes after files were removed, ext4 looks at each of
    their inodes again whenever it makes a file (recently_deleted() in fs/ext4/ialloc.c), so the next tool would take several
    times as long."""
    tree.rename(tempfile.mkdtemp(prefix="old-", dir=tree.parent))


def touch_memory():
    """Touches free memory, as much as any tool will use, and frees it. In a virtual machine whose host allocates memory on
    first use (a second or two per GB), the first tool would otherwise be slower than the others."""
    with open("/proc/meminfo") as info:
        free = next(int(line.split()[1]) << 10 for line in info if line.startswith("MemFree:"))
    page = 2 << 20
    with mmap.mmap(-1, min(free // 4 * 3, 12 << 30), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(memory), page):
            memory[at] = 1


def stored_bytes(folder):
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)


def listing(folder):
    """Files and links below a folder, with their sizes, to compare a restore with its source."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted((os.path.relpath(path, folder), os.lstat(path).st_size) for path in paths)
