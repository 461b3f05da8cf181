"""OpenSSH's SFTP server for tests, with a fault. Takes the place of ssh: speaks SFTP on its standard streams.

Usage: sftp_server.py MARK FAULT [ARGUMENT...]

A fault that ends or stops the server happens only in the process that creates the file MARK. Further arguments, such as
those for ssh, are ignored.

    cut N        ends after N bytes of content
    stall N      is silent after N bytes of content
    slow N       takes N bytes of content per second
    link         ends when a hard link is made, before the reply
    remove       ends when an object is removed, before the reply
    no-links     has no hard links, although it says so
    rounds       is far away: answers when the client has waited for a while, and adds a byte to MARK each time
    length, id, kind, handle, much-data, no-data, text, names, many-names, many-folders
                 changes replies, as a hostile server could
"""

import os
import queue
import struct
import subprocess
import sys
import threading
import time

SERVER = "/usr/lib/openssh/sftp-server"
OPEN, CLOSE, READ, WRITE, READDIR, REMOVE, EXTENDED = 3, 4, 5, 6, 12, 13, 200
VERSION, STATUS, HANDLE, DATA, NAMES = 2, 101, 102, 103, 104
BATCHES = 1000

# The time, in seconds, after which a client waits for an answer.
PATIENCE = 0.25

mark, fault = sys.argv[1:3]
number = int(sys.argv[3]) if fault in ("cut", "stall", "slow") else 0
kinds = {}
lost = set()
silent = threading.Event()
batches = {}
output = threading.Lock()


def take(stream):
    head = stream.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack(">I", head)
    return stream.read(length)


def text(value):
    return struct.pack(">I", len(value)) + value


def send(message):
    with output:
        sys.stdout.buffer.write(message)
        sys.stdout.buffer.flush()


def is_first():
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def names(id, entries, mode=0o100644):
    attributes = struct.pack(">IQI", 1 | 4, 5, mode)
    body = bytes([NAMES]) + id + struct.pack(">I", len(entries))
    return body + b"".join(text(name) + text(b"") + attributes for name in entries)


def changed(reply):
    """The message to the client in place of a reply."""
    kind, id, request = reply[0], reply[1:5], kinds.pop(reply[1:5], None)
    if request == READ and fault == "length":
        return b"\xff\xff\xff\xff"
    if request == READ and fault == "id":
        return text(reply[:1] + b"\x7f\xff\xff\xff" + reply[5:])
    if request == READ and fault == "kind":
        return text(b"\xff" + reply[1:])
    if request == READ and fault == "much-data" and kind == DATA:
        return text(bytes([DATA]) + id + text(reply[9:] + b"more"))
    if request == READ and fault == "no-data" and kind == DATA:
        return text(bytes([DATA]) + id + text(b""))
    if request == READ and fault == "text":
        return text(bytes([STATUS]) + id + struct.pack(">I", 4) + text(b"\x1b[31m" * 40_000) + text(b""))
    if request == OPEN and fault == "handle" and kind == HANDLE:
        return text(bytes([HANDLE]) + id + text(b"h" * 1000))
    if request == READDIR and fault == "names" and kind == NAMES:
        return text(names(id, [b".", b"..", b"", b"../x", b"a/b", b"a\0b", b"\xff", b".tmp-x", b"plain"]))
    return text(reply)


def answer():
    while (reply := take(child.stdout)) is not None:
        if reply[1:5] in lost:
            os._exit(0)
        if silent.is_set():
            time.sleep(3600)
        send(text(reply) if reply[0] == VERSION else changed(reply))
    os._exit(0)


def in_rounds(requests):
    """Hands on requests, those that arrive together at the same time."""
    while True:
        together = [requests.get()]
        try:
            while together[-1] is not None:
                together.append(requests.get(timeout=PATIENCE))
        except queue.Empty:
            pass
        messages = [message for message in together if message is not None]
        # Nobody waits until a file is closed.
        if any(message[0] != CLOSE for message in messages):
            with open(mark, "ab") as rounds:
                rounds.write(b".")
        child.stdin.write(b"".join(map(text, messages)))
        child.stdin.flush()
        if together[-1] is None:
            child.stdin.close()
            return


child = subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
threading.Thread(target=answer, daemon=True).start()
requests = queue.Queue()
if fault == "rounds":
    threading.Thread(target=in_rounds, args=(requests,), daemon=True).start()
written = 0
while (request := take(sys.stdin.buffer)) is not None:
    kind, id = request[0], request[1:5]
    kinds[id] = kind
    if kind == WRITE:
        written += len(request) - 17
    if kind == WRITE and fault in ("cut", "stall") and written >= number and is_first():
        if fault == "cut":
            os._exit(0)
        silent.set()
        time.sleep(3600)
    if kind == WRITE and fault == "slow":
        time.sleep(len(request) / number)
    if kind == READDIR and fault in ("many-names", "many-folders") and batches.setdefault(request[5:], 0) < BATCHES:
        mode = 0o100644 if fault == "many-names" else 0o040755
        send(text(names(id, [b"%09d-%d" % (at, batches[request[5:]]) for at in range(1000)], mode)))
        batches[request[5:]] += 1
        continue
    is_link = kind == EXTENDED and b"hardlink@openssh.com" in request[:40]
    if (is_link and fault == "link" or kind == REMOVE and fault == "remove" and b".tmp-" not in request) and is_first():
        lost.add(id)
    if is_link and fault == "no-links":
        send(text(bytes([STATUS]) + id + struct.pack(">I", 4) + text(b"no links") + text(b"")))
        continue
    if fault == "rounds":
        requests.put(request)
        continue
    child.stdin.write(text(request))
    child.stdin.flush()
requests.put(None)
if fault != "rounds":
    child.stdin.close()
child.wait()
