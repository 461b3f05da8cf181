"""One run of a command, measured."""

import contextlib
import mmap
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

SAMPLE_SECONDS = 0.01
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    wall: float  # seconds from start to exit
    cpu: float  # seconds, user and system, of the process and all that it waited for
    memory: int  # bytes: the most that tree_memory said
    others: float  # part of the machine's CPU time that went to other processes meanwhile
    stored: int = 0  # bytes of all files in the repository afterwards
    added: int = 0  # by how much that grew


class Failed(Exception):
    """The command failed; the text says how."""


def tree_memory(root):
    """Resident bytes of a process and its descendants, and the peak so far of the largest of them. Not what wait4
    says: that counts this program, which the process was until it became another."""
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
    """CPU time that all processes took since the machine started."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def measure(command, env, cwd, log):
    """Runs a command to its end. What it prints goes to the file `log`."""
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
            # The session is ours alone, so nothing else is hit.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            done.set()
            sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(errors="replace")[-2000:]
        raise Failed(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{said}")
    cpu = usage.ru_utime + usage.ru_stime
    others = min(1.0, max(0.0, busy_seconds() - busy - cpu) / (wall * os.cpu_count()))
    return Figures(wall, cpu, peak, others)


def settle(cold):
    """Lets nothing be written to disk meanwhile that somebody else left; with `cold`, makes the kernel forget."""
    os.sync()
    if cold:
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("3")
        touch_memory()


def touch_memory():
    """Uses memory that is free, as much as any tool here will, and gives it back: a virtual machine whose host lends it
    memory only when it is used waits for that, a second or two for each GB, and the tool that comes first would pay for all."""
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
    """Files and links below a folder, with their sizes: what a restore is compared by."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted((os.path.relpath(path, folder), os.lstat(path).st_size) for path in paths)
