#!/usr/bin/python3
"""Verifies the documents of a brackfs repository that readers of files do not need, the packs that they list, and the
census of the last generation. Written only from brackfs-format(5), like brackfs_by_hand.py, which it builds on.

    brackfs_documents.py [--signer FINGERPRINT] REPO

Prints the names of documents with their generation, and the sets of the census. Exit code 1 means damage, or a set that
differs from the census.
"""

import argparse
import re
import subprocess
import sys
import uuid

import brackfs_by_hand as reader
from brackfs_by_hand import HEADER, UUID
from brackfs_encoding import (
    DIGEST, ID, U32, U64, Failure, blake3, each, either, fixed, flat, led, need, number, octets, program, text,
)  # fmt: skip

CHECK, STORED, COUNT = octets(8, 8), number(2_621_440, 1), number(2**32 - 1, 1)


def keyed(required, optional):
    """A map with these keys."""
    shapes = required | optional
    return lambda value: type(value) is dict and all(
        shape(value[key]) if key in value else key in optional for key, shape in shapes.items()
    )


def block(value):
    return type(value) is list and fixed(STORED, CHECK)(value[:2]) and flat(DIGEST, U32)(value[2:])


GAP, CARRIED = fixed(COUNT, U64), fixed(STORED, CHECK, ID, U32)
PACK = keyed({0: ID, 1: number(2), 3: each(either(block, GAP, CARRIED))}, {2: DIGEST, 4: U64})
RANGES = each(led(ID, U32, COUNT))
USAGE = keyed(
    {0: text, 4: text, 5: U64, 6: U64, 7: U64},
    {1: text, 2: RANGES, 3: RANGES, 8: text, 9: each(octets(2**32)), 10: each(text)},
)
HOLD = keyed({0: text, 1: U64}, {})
SIGNERS = each(keyed({0: octets(2**32)}, {1: U64, 2: U64}))
CENSUS = keyed({key: fixed(U64, DIGEST) for key in range(5)}, {})
BYTES = each(octets(2**32))
INDEX = {**HEADER, 3: U64}, {4: each(PACK), 5: each(USAGE), 6: each(ID), 7: BYTES, 8: each(HOLD)}
SECRETS = {**HEADER, 3: U64, 4: U64, 5: U64, 6: U64}, {7: BYTES, 8: SIGNERS, 9: SIGNERS}
GENERATION = {**HEADER, 3: U64, 4: ID, 5: ID, 6: U64, 7: CENSUS}, {}

# Folder: form of the names, grammar, keys of arrays of maps, and the key of the ids of replaced documents.
FOLDERS = {
    "index": (UUID, INDEX, (4, 5, 8), 6),
    "moved": (f"[0-9a-f]{{2}}/{UUID}", reader.MOVED, (), 7),
    "forgotten": (UUID, reader.FORGOTTEN, (), 6),
    "secrets": (UUID, SECRETS, (8, 9), None),
    "sources": (UUID, ({**HEADER, 3: text}, {}), (), None),
    "generation": (f"[0-9]{{10}}-{UUID}", GENERATION, (), None),
}


def check_pack(repository, pack, where):
    """Compares a pack of an index with the stored one, and each block with its check."""
    name = reader.pack_name(pack[0])
    need((2 in pack) != bool(pack.get(4)), where, f"{name} needs a digest, unless it was deleted")
    fits = CARRIED if pack[1] == 2 else either(block, GAP)
    need(all(map(fits, pack[3])), where, f"{name} has items of another kind")
    if 2 not in pack:
        return
    data = (repository.path / name).read_bytes()
    need(blake3(data) == pack[2], where, f"{name} has another digest")
    at = 0
    for length, check, *_ in pack[3]:
        if GAP([length, check]):
            length = check
        else:
            right = blake3(data[at : at + length])[:8] == check
            need(right, where, f"{name} has another check at {at}")
        at += length
    need(at == len(data), where, f"{name} has another length")


def check_generation(document, where):
    """Compares the name with the number and the run."""
    context = "brackfs 2026-11-28 name of a run"
    command = ["b3sum", "--raw", "--length", "16", "--derive-key", context]
    derived, _ = program(where, command, document[5])
    right = f"generation/{document[3]:010}-{uuid.UUID(bytes=derived, version=4)}"
    need(where == right, where, f"its writer named it {right}")


def documents(repository):
    """All documents except for snapshots, by name."""
    found = {}
    for folder, (form, grammar, arrays, _) in FOLDERS.items():
        below = repository.path / folder
        names = sorted(path.relative_to(below).as_posix() for path in below.rglob("*"))
        for name in filter(re.compile(form).fullmatch, names):
            where = f"{folder}/{name}"
            found[where] = document = repository.document(where, grammar, arrays)
            if folder == "moved":
                reader.check_shard(document, where)
            if folder == "generation":
                check_generation(document, where)
    return found


def replaced(found, folder, generations):
    """The names of documents that documents of these generations replace."""
    key = FOLDERS[folder][3]
    for name, document in found.items():
        if name.startswith(f"{folder}/") and document[3] in generations:
            yield from (f"{name[:-36]}{uuid.UUID(bytes=other)}" for other in document.get(key, ()))


def compare(repository, found):
    """Computes the sets of the last generation, and compares them with its census."""
    last = max(name for name in found if name.startswith("generation/"))
    number, census = found[last][3], found[last][7]
    before, since = range(number), range(number, 1 << 64)
    snapshots = {f"snapshots/{name}" for name in {*repository.snapshots(), *repository.forgotten()}}
    sets = {"index": 0, "moved": 2, "forgotten": 3, "secrets": 4}
    for folder, key in sets.items():
        names = {name for name, document in found.items() if name.startswith(f"{folder}/") and document[3] in before}
        names = (names - {*replaced(found, folder, before)}) | {*replaced(found, folder, since)}
        yield last, folder, names, census[key]
    yield last, "snapshots", {name for name in snapshots if int(name.split("/")[2][:10]) < number}, census[1]


def main():
    parser = argparse.ArgumentParser(description="Verifies documents of a brackfs repository.")
    parser.add_argument("--signer", help="fingerprint of the trusted host key")
    parser.add_argument("repo")
    given = parser.parse_args()
    try:
        repository = reader.Repository(given.repo, given.signer)
        found = documents(repository)
        for name, document in found.items():
            print(name, *([] if name.startswith("sources/") else [document[3]]))
            for pack in document.get(4, ()) if name.startswith("index/") else ():
                check_pack(repository, pack, name)
        for last, folder, names, (count, digest) in compare(repository, found):
            right = len(names) == count and blake3("".join(f"{n}\n" for n in sorted(names)).encode()) == digest
            print("census", folder, len(names))
            need(right, folder, f"the names are not the {count} of the census in {last}")
    except (Failure, OSError, subprocess.SubprocessError) as error:
        print(f"brackfs_documents: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
