#!/usr/bin/python3
"""Lists and restores snapshots of a brackfs repository. Written only from brackfs-format(5), which must suffice.

    brackfs_by_hand.py [--signer FINGERPRINT] [--forgotten] list REPO [SNAPSHOT]
    brackfs_by_hand.py [--signer FINGERPRINT] [--forgotten] restore REPO SNAPSHOT DESTINATION

SNAPSHOT is a name below snapshots/, the beginning of an id, or `latest`; forgotten ones only with --forgotten. gpg
decrypts, with the keys of GNUPGHOME, and checks signatures; zstd decompresses; b3sum computes digests. All rules of the
page are checked. Exit code 1 means damage or another failure, 3 that all content was restored, but some metadata was
not, for lack of rights.
"""

import argparse
import array
import fcntl
import functools
import itertools
import os
import pathlib
import re
import stat
import subprocess
import sys
import tomllib
import typing
import uuid

from brackfs_encoding import (
    B3SUM, DIGEST, ID, MIB, NAME, TIMESTAMP, U32, U64, Failure, ascending, blake3, check_keys, decode, decompress,
    each, either, fixed, flat, groups, led, literal, names, need, number, octets, packets, read, text, unseal, verify,
)  # fmt: skip

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SNAPSHOT_NAME = rf"{UUID}/[0-9]{{10}}-[0-9]{{8}}T[0-9]{{6}}Z-[0-9a-f]{{16}}"
# Inode attribute flags of Linux that may be stored.
FLAGS = 0x2083_00F8
# Flag of an entry whose mount ignored set-id bits, capabilities and device numbers.
UNPRIVILEGED = 2
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER_DEVICE, BLOCK_DEVICE = range(7)
TYPES = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER_DEVICE: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}


# --- The grammar ---

REFERENCE = (DIGEST, U32, U32, number(2 * MIB, 1))
ABOVE_0 = number(2**64 - 1, 1)
EXTENT, NODE_REFERENCE = either(fixed(*REFERENCE), ABOVE_0), fixed(ABOVE_0, *REFERENCE)
# Item types by kind of node.
ITEMS = lambda entry: type(entry) is dict, fixed(NAME, ABOVE_0, ABOVE_0, *REFERENCE), EXTENT, NODE_REFERENCE
# Required keys and optional keys.
NODE = {0: number(3), 3: each(lambda _: True)}, {
    1: each(ID),
    2: flat(U32, U64, number(2_621_440, 1)),
    4: names,
    5: names,
}
ENTRY = {0: octets(1024), 1: number(6), 2: number(0o7777), 3: U32, 4: U32, 5: TIMESTAMP}, {
    6: U64,
    7: fixed(DIGEST, U32, U32),
    8: fixed(DIGEST, each(EXTENT)),
    9: fixed(DIGEST, number(8), each(NODE_REFERENCE)),
    10: octets(4096, 1),
    11: either(fixed(number(0)), fixed(U64, *REFERENCE)),
    12: fixed(U32, U32),
    13: fixed(U32, U32),
    14: flat(octets(2**32), octets(2**32)),
    15: U64,
    16: U64,
}
HEADER = {0: ID, 1: text, 2: text}
SNAPSHOT = {
    **HEADER,
    **{3: U64, 4: text, 5: text, 6: TIMESTAMP, 7: TIMESTAMP, 10: U64, 12: fixed(*[U64] * 5), 13: text},
    14: octets(2 * MIB, 1),
}, {8: each(octets(2**32)), 9: each(text), 11: octets(8, 8), 15: octets(2**32)}
MOVED = {**HEADER, 3: U64, 4: each(ID), 5: each(led(ID, U64, U64, U32, U64))}, {
    6: each(led(ID, DIGEST, U32, U64, U32, U32)),
    7: each(ID),
}
FORGOTTEN = {**HEADER, 3: U64}, {4: each(led(ID, U64, text, octets(8, 8))), 5: each(ID), 6: each(ID)}


# --- Nodes and entries ---


def pack_name(pack):
    name = str(uuid.UUID(bytes=pack))
    return f"packs/{name[:2]}/{name}"


class Chunk(typing.NamedTuple):
    digest: bytes
    pack: bytes
    offset: int
    stored: int
    start: int
    length: int


class Node:
    """A node whose own rules were checked."""

    def __init__(self, data, where, is_root=False):
        node = decode(data, where, (3,))
        check_keys(node, NODE, where)
        self.kind, self.items, self.packs, self.table = node[0], node[3], node.get(1, []), node.get(2, [])
        self.where = where
        for pack, offset, stored in groups(self.table, 3):
            need(pack < len(self.packs) and offset + stored < 1 << 64, where, "a block in no pack, or beyond its end")
        need(all(map(ITEMS[self.kind], self.items)), where, f"an item that a node of kind {self.kind} cannot have")
        if self.kind == 0:
            for entry in self.items:
                check_entry(entry, where, is_root)
        if self.kind < 2:
            need(ascending(item[0] for item in self.items), where, "names that are not in ascending order")

    def chunk(self, digest, block, start, length):
        """The chunk that a reference of this node names."""
        need(3 * block < len(self.table), self.where, f"no block {block} in the table")
        pack, offset, stored = self.table[3 * block : 3 * block + 3]
        need(start + length <= 2 * MIB, self.where, "a chunk that is not within a block")
        return Chunk(digest, self.packs[pack], offset, stored, start, length)


def check_entry(entry, node, is_root):
    name, kind, size = entry.get(0), entry.get(1), entry.get(6, 0)
    where = f"{node}, entry {name!r}"
    check_keys(entry, ENTRY, where)
    right = name == b"" if is_root else NAME(name) and name not in (b".", b"..") and not {0, ord("/")} & set(name)
    need(right, where, "not a valid name")
    content = [key for key in range(7, 13) if key in entry]
    allowed = [[7], [8], [9]] if kind == FILE and size else [[], [11], [10], [], [], [12], [12]][kind : kind + 1]
    need(content in allowed, where, f"content {content} that does not go with kind {kind}")
    need(kind == FILE or size == 0, where, "a size that does not go with the kind")
    need(7 not in entry or size <= 2 * MIB, where, "a chunk of more than 2 MiB")
    need(0 not in entry.get(10, b""), where, "a link target with a zero byte")
    need(kind != DIRECTORY or 13 not in entry, where, "a directory with a hard-link id")
    attributes = entry.get(14, [])[::2]
    right = ascending(attributes) and all(attribute and 0 not in attribute for attribute in attributes)
    need(right, where, "names of extended attributes that are not valid or not in order")


def span(entry):
    return 1 + (entry[11][0] if entry[1] == DIRECTORY else 0)


def content_of(entry):
    """The key from 7 to 12 that an entry has, and its value."""
    return next(((key, entry[key]) for key in range(7, 13) if key in entry), (None, [None]))


def shown(name):
    """A printable form of a name, on one line."""
    escaped = name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in escaped)


def check_shard(shard, where):
    ranges, chunks, prefix = shard[5], shard.get(6, []), where.split("/")[1]
    for places in ranges, chunks:
        births = [birth for birth, *_ in places]
        right = ascending(births) and all(birth.hex()[:2] == prefix for birth in births)
        need(right, where, "packs of another prefix, or out of order")
    carriers = [group[2] for _, *items in ranges for group in groups(items, 4)]
    carriers += [group[1] for _, *items in chunks for group in groups(items, 5)]
    need(all(carrier < len(shard[4]) for carrier in carriers), where, "a position that is not in the list of packs")
    for _, *items in ranges:
        end = 0
        for start, length, _, to in groups(items, 4):
            right = end <= start and length and max(start, to) + length < 1 << 64
            need(right, where, "ranges that are empty, overlap or are out of order")
            end = start + length


# --- The repository ---


DESCRIPTIONS = ("brackfs.toml", "brackfs-copy.toml")
# Types of documents whose names differ from their folders.
TYPES_OF = {"snapshots": "snapshot", "sources": "source"}


def describe(path, where):
    """The version in a description. For version 1 also the id, and whether the repository is encrypted."""
    settings = tomllib.loads(read(path, where, 64 << 10).decode())
    version = settings.get("version")
    need(type(version) is int, where, "no version")
    if version != 1:
        return version, None, None
    need(re.fullmatch(UUID, str(settings.get("id"))), where, "the id is not a UUID")
    need(settings.get("encryption") in ("openpgp", "none"), where, "encryption is neither openpgp nor none")
    return version, uuid.UUID(settings["id"]).bytes, settings["encryption"] == "openpgp"


class Repository:
    def __init__(self, path, signer, shows_forgotten=False):
        self.path, self.shows_forgotten = pathlib.Path(path), shows_forgotten
        said, lost = set(), []
        for where in DESCRIPTIONS:
            try:
                said.add(describe(self.path / where, where))
            except (Failure, OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                lost.append(error)
        if not said:
            raise lost[0]
        need(len(said) == 1, DESCRIPTIONS[0], f"{DESCRIPTIONS[1]} differs")
        version, self.id, self.encrypted = said.pop()
        need(version == 1, DESCRIPTIONS[0], "not of version 1")
        self.signer = signer and signer.upper()
        if not signer:
            print("signatures are NOT checked: no --signer was given", file=sys.stderr)
        # gpg supports only keys of version 4, whose fingerprints have 40 digits.
        need(not signer or re.fullmatch("[0-9A-F]{40}", self.signer), signer, "not the fingerprint of a key for gpg")
        # Neighbours in a composite are read one after the other.
        self.block = functools.lru_cache(16)(self.block)
        self.newest_shard = functools.cache(self.shard)
        self.session_keys = functools.cache(self.rewrapped)

    def snapshots(self):
        """Names of all snapshots that are not hidden, oldest first."""
        paths = (path.relative_to(self.path / "snapshots").as_posix() for path in self.path.glob("snapshots/*/*"))
        hidden = set() if self.shows_forgotten else self.forgotten()
        found = (name for name in paths if re.fullmatch(SNAPSHOT_NAME, name) and name not in hidden)
        return sorted(found, key=lambda name: name.split("/")[1])

    def find(self, wanted):
        wanted = wanted.removeprefix("snapshots/")
        every = self.snapshots()
        found = every[-1:] if wanted == "latest" else [n for n in every if n == wanted or n[-16:].startswith(wanted)]
        need(len(found) == 1, "snapshots", f"{len(found)} snapshots are meant by {wanted!r}")
        return found[0]

    def document(self, where, shapes, arrays=()):
        message = read(self.path / where, where, 65 * MIB)
        message = unseal(message, where, self.session_keys) if self.encrypted else message
        parts = packets(message, where)
        need([tag for tag, _ in parts] == [4, 11, 2], where, "not a signed message of three packets")
        data = literal(parts[1][1], where)
        need(len(data) <= 64 * MIB, where, "a document of more than 64 MiB")
        if self.signer:
            key = f"keys/host-{self.signer}.asc"
            verify(read(self.path / key, key, 4 * MIB), self.signer, message, where)
        document = decode(data, where, arrays)
        check_keys(document, shapes, where)
        need(document[0] == self.id, where, "belongs to another repository")
        kind = where.split("/")[0]
        need(document[1] == TYPES_OF.get(kind, kind), where, f"a document of type {document[1]}")
        need(document[2] == where, where, f"its writer named it {document[2]}")
        return document

    def documents(self, folder, shapes, check=lambda document, where: None):
        """The documents in a folder that verify, by id. Anyone could have added the others, which are ignored."""
        found = {}
        for name in sorted(path.name for path in self.path.glob(f"{folder}/*") if re.fullmatch(UUID, path.name)):
            where = f"{folder}/{name}"
            try:
                document = self.document(where, shapes)
                check(document, where)
                found[uuid.UUID(name).bytes] = document
            except (Failure, OSError) as error:
                print(f"ignored: {error}", file=sys.stderr)
        return found

    def forgotten(self):
        """Names of the snapshots that have a tombstone."""
        documents = self.documents("forgotten", FORGOTTEN).values()
        newest = max((document[3] for document in documents), default=0)
        lists = [document.get(4, ()) for document in documents if document[3] == newest]
        return {
            f"{uuid.UUID(bytes=source)}/{sequence:010}-{time}-{identity.hex()}"
            for source, *items in itertools.chain(*lists)
            for sequence, time, identity in groups(items, 3)
        }

    def snapshot(self, name):
        where = f"snapshots/{name}"
        document = self.document(where, SNAPSHOT)
        need(bool(document[10]) == self.encrypted, where, "brackfs.toml disagrees on encryption")
        root = Node(document[14], f"{where}, root", is_root=True)
        right = root.kind == 0 and len(root.items) == 1 and root.items[0][1] == DIRECTORY
        need(right, where, "the root is not one directory")
        return document, root

    def rewrapped(self):
        """Lists of session keys by the digest of PKESK packets, from the tables that gpg has a key for."""
        keys, title = {}, b"brackfs session keys 1\n"
        for path in self.path.glob("rewrapped/*/*"):
            where = path.relative_to(self.path).as_posix()
            try:
                ((_, packet),) = packets(unseal(path.read_bytes(), where), where)
                data = literal(packet, where)
                need(data.startswith(title), where, "not a table of session keys")
            except (Failure, OSError, ValueError):
                continue
            for at in range(len(title), len(data), 64):
                keys.setdefault(data[at : at + 32], []).append(data[at + 32 : at + 64])
        return keys

    def block(self, pack, offset, stored):
        where = f"{pack_name(pack)}, block at {offset}"
        try:
            with open(self.path / pack_name(pack), "rb") as file:
                file.seek(offset)
                data = file.read(stored)
        except (OSError, OverflowError) as error:
            raise Failure(f"{where}: {error}") from error
        need(len(data) == stored, where, "the pack ends too early")
        if self.encrypted:
            parts = packets(unseal(data, where, self.session_keys), where)
            need([tag for tag, _ in parts] == [11], where, "not one literal data packet")
            data = literal(parts[0][1], where)
        return decompress(data, where)

    def shard(self, prefix):
        """The newest shard of a prefix, or one without places."""
        shards = self.documents(f"moved/{prefix}", MOVED, check_shard).items()
        return max(((shard[3], name, shard) for name, shard in shards), default=(0, b"", {4: [], 5: []}))[2]

    def moved(self, chunk):
        """Other places of a chunk."""
        shard = self.newest_shard(chunk.pack.hex()[:2])
        carriers = shard[4]
        for birth, *ranges in shard[5]:
            for start, length, carrier, to in groups(ranges, 4):
                if birth == chunk.pack and start <= chunk.offset and chunk.offset + chunk.stored <= start + length:
                    yield chunk._replace(pack=carriers[carrier], offset=to + chunk.offset - start)
        for birth, *chunks in shard.get(6, ()):
            for digest, carrier, offset, stored, start in groups(chunks, 5):
                if birth == chunk.pack and digest == chunk.digest:
                    yield chunk._replace(pack=carriers[carrier], offset=offset, stored=stored, start=start)

    def read(self, chunk):
        """The bytes of a chunk, from its birth pack or from the pack that a shard names."""
        try:
            return self.read_at(chunk)
        except Failure as error:
            failure = error
        for _ in range(2):
            for place in self.moved(chunk):
                try:
                    return self.read_at(place)
                except Failure as error:
                    failure = error
            # The place may be gone because the block was moved again.
            self.newest_shard.cache_clear()
        raise failure

    def read_at(self, chunk):
        data = self.block(chunk.pack, chunk.offset, chunk.stored)[chunk.start : chunk.start + chunk.length]
        where = f"{pack_name(chunk.pack)}, block at {chunk.offset}"
        need(len(data) == chunk.length, where, "a chunk that is not within its block")
        need(blake3(data) == chunk.digest, where, f"not the chunk {chunk.digest.hex()}")
        return data

    def node(self, chunk, kinds):
        node = Node(self.read(chunk), f"{pack_name(chunk.pack)}, node {chunk.digest.hex()}")
        need(node.kind in kinds, node.where, f"a node of kind {node.kind}, where {kinds} should be")
        return node

    def entries(self, chunk, ranks, own=None, first=None, limit=None, depth=1):
        """Entries of a directory or segment in order, each with its node. `ranks` is the number of their ranks."""
        node = self.node(chunk, (0, 1))
        items, where = node.items, node.where
        need(depth <= 8, where, "segments that are nested too deep")
        if node.kind == 0:
            counts, spans = [1] * len(items), [span(entry) for entry in items]
        else:
            counts, spans = [item[1] for item in items], [item[2] for item in items]
        need(sum(spans) == ranks, where, f"takes {sum(spans)} ranks, not {ranks}")
        need(own in (None, sum(counts)), where, f"has {sum(counts)} entries, not {own}")
        need(first in (None, items[0][0]), where, "its first name is not the segment's")
        need(limit is None or items[-1][0] < limit, where, "a name that belongs to the next segment")
        if node.kind == 0:
            yield from ((entry, node) for entry in items)
            return
        limits = [item[0] for item in items[1:]] + [limit]
        for (name, count, ranks, *reference), limit in zip(items, limits):
            need(count <= ranks, where, "a segment of more entries than ranks")
            yield from self.entries(node.chunk(*reference), ranks, count, name, limit, depth + 1)

    def walk(self, root):
        """All entries in preorder: rank, path, entry, node."""
        stack, ranks = [(b"", iter([(root.items[0], root)]))], itertools.count()
        while stack:
            above, entries = stack[-1]
            entry, node = next(entries, (None, None))
            if entry is None:
                stack.pop()
                continue
            path = above + b"/" + entry[0] if above else entry[0]
            yield next(ranks), path, entry, node
            if len(entry.get(11, ())) > 1:
                below, *reference = entry[11]
                stack.append((path, self.entries(node.chunk(*reference), below)))

    def extents(self, entry, node):
        """The extents of a file in order: the length, and the chunk or None for a hole."""
        size, (key, content) = entry.get(6, 0), content_of(entry)
        if key == 7:
            yield size, node.chunk(*content, size)
        elif key == 8:
            yield from self.listed(content[1], node, size)
        elif key == 9:
            yield from self.covered(content[2], node, content[1], size)

    def covered(self, references, node, depth, size):
        need(sum(item[0] for item in references) == size, node.where, f"nodes that do not cover {size} bytes")
        for covers, *reference in references:
            child = self.node(node.chunk(*reference), (3,) if depth else (2,))
            if depth:
                yield from self.covered(child.items, child, depth - 1, covers)
            else:
                yield from self.listed(child.items, child, covers)

    def listed(self, extents, node, size):
        lengths = [extent if type(extent) is int else extent[3] for extent in extents]
        need(sum(lengths) == size, node.where, f"extents that do not add up to {size} bytes")
        for extent, length in zip(extents, lengths):
            yield length, None if type(extent) is int else node.chunk(*extent)


# --- Restoring ---


class Restore:
    def __init__(self, repository, destination):
        self.repository, self.destination = repository, os.fsencode(destination)
        self.problems = 0

    def run(self, root):
        made, links = [], {}
        for _, path, entry, node in self.repository.walk(root):
            target = os.path.join(self.destination, path) if path else self.destination
            key, content = content_of(entry)
            # Names of one file may differ only in name and chunk locations. An equal link id is not enough.
            fields = sorted((key, value) for key, value in entry.items() if key not in (0, 7, 8, 9))
            file = str((fields, content[0] if key in (7, 8, 9) else None))
            if 13 in entry and file in links:
                os.link(links[file], target, follow_symlinks=False)
            elif self.make(target, entry, node):
                links[file] = target
                made.append((target, entry))
        # Children first, since creating them changes the time of a directory. Flags last: some forbid other changes.
        for target, entry in reversed(made):
            self.describe(target, entry)
        for target, entry in reversed(made):
            if 16 in entry and entry[1] in (FILE, DIRECTORY):
                self.attempt(target, set_flags, target, entry[16] & FLAGS)

    def attempt(self, path, action, *arguments, **options):
        try:
            action(*arguments, **options)
            return True
        except (OSError, OverflowError) as error:
            print(f"{shown(path)}: {error}", file=sys.stderr)
            self.problems += 1
            return False

    def make(self, target, entry, node):
        kind = entry[1]
        if kind == FILE:
            self.write(target, entry, node)
        elif kind == DIRECTORY:
            os.mkdir(target, 0o700)
        elif kind == SYMLINK:
            os.symlink(entry[10], target)
        elif kind in (CHARACTER_DEVICE, BLOCK_DEVICE) and entry.get(15, 0) & UNPRIVILEGED:
            print(f"{shown(target)}: not created, the device had no effect on the source", file=sys.stderr)
            return False
        else:
            device = os.makedev(*entry.get(12, (0, 0)))
            return self.attempt(target, os.mknod, target, TYPES[kind] | 0o600, device)
        return True

    def write(self, target, entry, node):
        size, (_, content) = entry.get(6, 0), content_of(entry)
        with open(target, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            # Unwritten ranges remain holes.
            os.ftruncate(file.fileno(), size)
            digest = self.fill(file, self.repository.extents(entry, node)) if size else None
        need(digest == content[0], f"{node.where}, entry {entry[0]!r}", "the file has another digest")

    def fill(self, file, extents):
        """Writes the chunks of a file, and returns its digest."""
        holes = []
        # After a bad chunk, b3sum complains that its output pipe is closed.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(B3SUM, **pipes) as b3sum:
            at = 0
            for length, chunk in extents:
                if chunk:
                    data = self.repository.read(chunk)
                    file.seek(at)
                    file.write(data)
                    b3sum.stdin.write(data)
                elif length and holes and sum(holes[-1]) == at:
                    holes[-1] = holes[-1][0], holes[-1][1] + length
                elif length:
                    holes.append((at, length))
                at += length
            b3sum.stdin.close()
            digest = bytes.fromhex(b3sum.stdout.read().decode())
        if not holes:
            return digest
        layout = b"".join(number.to_bytes(8, "big") for hole in holes for number in hole)
        command = [*B3SUM, "--derive-key", "brackfs 2026 file with holes"]
        b3sum = subprocess.run(command, input=layout + digest, capture_output=True, check=True)
        return bytes.fromhex(b3sum.stdout.decode())

    def describe(self, target, entry):
        if os.geteuid() == 0:
            self.attempt(target, os.chown, target, entry[3], entry[4], follow_symlinks=False)
        unprivileged = entry.get(15, 0) & UNPRIVILEGED
        for name, value in groups(entry.get(14, []), 2):
            if not (unprivileged and name == b"security.capability"):
                self.attempt(target, os.setxattr, target, name, value, follow_symlinks=False)
        if entry[1] != SYMLINK:
            self.attempt(target, os.chmod, target, entry[2] & ~0o6000 if unprivileged else entry[2])
        seconds, nanos = entry[5]
        time = seconds * 10**9 + nanos
        self.attempt(target, os.utime, target, ns=(time, time), follow_symlinks=False)


def set_flags(path, flags):
    """Adds inode attribute flags: FS_IOC_GETFLAGS, then FS_IOC_SETFLAGS."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        present = array.array("i", [0])
        fcntl.ioctl(descriptor, 0x80086601, present)
        fcntl.ioctl(descriptor, 0x40086602, array.array("i", [present[0] | flags]))
    finally:
        os.close(descriptor)


# --- Commands ---


def list_snapshots(repository):
    for name in repository.snapshots():
        document, _ = repository.snapshot(name)
        files, directories, others, sizes, _ = document[12]
        print(name, document[4], files, directories, others, sizes)


def list_entries(repository, root):
    """Rank, kind, mode, owner, size, mtime, path; target of a link or number of a device."""
    for rank, path, entry, _ in repository.walk(root):
        seconds, nanos = entry[5]
        words = [rank, "fdlpscb"[entry[1]], f"{entry[2]:04o}", f"{entry[3]}:{entry[4]}", entry.get(6, 0)]
        words += [f"{seconds}.{nanos:09}", shown(path) or "/"]
        words += ["->", shown(entry[10])] if 10 in entry else [*entry.get(12, ())]
        print(*words)


def main():
    parser = argparse.ArgumentParser(description="Reads a brackfs repository without brackfs.")
    parser.add_argument("--signer", help="fingerprint of the trusted host key")
    parser.add_argument("--forgotten", action="store_true", help="show forgotten snapshots, too")
    commands = parser.add_subparsers(dest="command", required=True)
    listing, restoring = [commands.add_parser(command) for command in ("list", "restore")]
    for command in listing, restoring:
        command.add_argument("repo")
    listing.add_argument("snapshot", nargs="?")
    restoring.add_argument("snapshot")
    restoring.add_argument("destination")
    given = parser.parse_args()
    try:
        repository = Repository(given.repo, given.signer, given.forgotten)
        if given.snapshot is None:
            return list_snapshots(repository)
        _, root = repository.snapshot(repository.find(given.snapshot))
        if given.command == "list":
            return list_entries(repository, root)
        restore = Restore(repository, given.destination)
        restore.run(root)
        return 3 if restore.problems else 0
    except (Failure, OSError, OverflowError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        print(f"brackfs_by_hand: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
