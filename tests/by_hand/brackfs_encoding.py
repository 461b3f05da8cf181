"""The encodings of a brackfs repository: blocks, sealed and signed messages, and CBOR. Written only from
brackfs-format(5); zstd, gpg and b3sum do the work.
"""

import itertools
import os
import pathlib
import subprocess
import tempfile

import cbor2

MIB = 1 << 20
B3SUM = ["b3sum", "--no-names"]


class Failure(Exception):
    """An object, named in the message, that is unreadable or breaks a rule of the page."""


def need(condition, where, rule):
    if not condition:
        raise Failure(f"{where}: {rule}")


def read(path, where, most):
    need(os.path.getsize(path) <= most, where, f"more than {most} bytes")
    return pathlib.Path(path).read_bytes()


def program(where, arguments, data):
    """Passes data through a program. Returns its standard output and standard error."""
    run = subprocess.run(arguments, input=data, capture_output=True)
    said = run.stderr.decode(errors="replace")
    problems = [line for line in said.splitlines() if not line.startswith("[GNUPG:]")]
    need(run.returncode == 0, where, f"{arguments[0]} fails: {'; '.join(problems)}")
    return run.stdout, said


def blake3(data):
    return bytes.fromhex(program("b3sum", B3SUM, data)[0].decode())


# --- Blocks: zstd ---


def decompress(data, where):
    """The plaintext of one frame. zstd ignores the padding after it."""
    need(data[:4] == b"\x28\xb5\x2f\xfd" and len(data) > 5, where, "not a zstd frame")
    # RFC 8878, 3.1.1.1: offset and width of the content size.
    at = 6 - (data[4] >> 5 & 1) + (0, 1, 2, 4)[data[4] & 3]
    width = (data[4] >> 5 & 1, 2, 4, 8)[data[4] >> 6]
    size = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
    need(width, where, "a frame that does not state its size")
    need(size <= 2 * MIB, where, "a block of more than 2 MiB")
    plain, _ = program(where, ["zstd", "--decompress", "--stdout", "--quiet"], data)
    need(len(plain) == size, where, "a frame that states another size than it has")
    return plain


# --- Sealed objects and signed messages: gpg ---


def packets(message, where):
    """The OpenPGP packets of a message: tag and bytes of each."""
    found, at = [], 0
    while at < len(message):
        need(message[at] & 0xC0 == 0xC0, where, "not OpenPGP packets with headers of the new format")
        first, *octets = message[at + 1 : at + 6].ljust(5, b"\0")
        need(first < 224 or first == 255, where, "a packet of unknown length")
        if first < 192:
            begin, length = at + 2, first
        elif first < 224:
            begin, length = at + 3, (first - 192) * 256 + octets[0] + 192
        else:
            begin, length = at + 6, int.from_bytes(octets)
        need(begin + length <= len(message), where, "a packet that ends too early")
        found.append((message[at] & 0x3F, message[at : begin + length]))
        at = begin + length
    return found


def literal(packet, where):
    """The content of a literal data packet."""
    right = packet[:2] == b"\xcb\xff" and packet[6:12] == b"b\0\0\0\0\0"
    need(right, where, "a literal data packet with a name, a date, or another format")
    return packet[12:]


GPG = ["gpg", "--batch", "--no-tty", "--quiet", "--status-fd", "2"]


def unseal(message, where, session_keys=dict):
    """The packets inside an encrypted message. gpg fails if the message is not authentic. `session_keys` returns lists
    of session keys by the digest of PKESK packets, to try if gpg has no key for the message."""
    tags, parts = zip(*packets(message, where)) if message else ((), ())
    need(tags[-1:] == (18,) and {*tags[:-1]} == {1}, where, f"not one encrypted message, but packets {tags}")
    need(len(tags) <= 65, where, "more than 64 recipients")

    def decrypt(*options):
        inner, said = program(where, [*GPG, *options, "--decrypt", "--unwrap"], message)
        need("[GNUPG:] DECRYPTION_OKAY" in said, where, "gpg did not find the message authentic")
        return inner

    try:
        return decrypt()
    except Failure as error:
        failure = error
    for key in session_keys().get(blake3(b"".join(parts[:-1])), ()):
        try:
            return decrypt("--override-session-key", f"9:{key.hex()}")
        except Failure as error:
            failure = error
    raise failure


def verify(certificate, fingerprint, message, where):
    """Checks the signature of a message by the key with this fingerprint, in a GnuPG home with no other key."""
    with tempfile.TemporaryDirectory(prefix="brackfs-by-hand-") as home:
        gpg = [*GPG, "--homedir", home, "--no-autostart", "--trust-model", "always"]
        program(where, [*gpg, "--import"], certificate)
        _, said = program(where, [*gpg, "--decrypt"], message)
    status = [line.split()[1:] for line in said.splitlines() if line.startswith("[GNUPG:] ")]
    # An expired key is valid: it had not expired when it signed.
    good = [words for words in status if words[0] in ("GOODSIG", "EXPKEYSIG")]
    # The type of the signature and the primary key of the signing key.
    valid = [words[9:11] for words in status if words[0] == "VALIDSIG"]
    need(len(good) == 1 and valid == [["00", fingerprint]], where, f"not signed by the host key {fingerprint}")


# --- CBOR: checks that the library lacks, then the grammar ---


def head(data, at, where):
    """Major type and argument of the item at a position, and the position after them."""
    major, low = data[at] >> 5, data[at] & 31
    if low < 24:
        return major, low, at + 1
    need(low < 28, where, "CBOR of indefinite length")
    end = at + 1 + (1 << low - 24)
    return major, int.from_bytes(data[at + 1 : end]), end


def skip(data, at, where, deep=4):
    """The position after a value without tags and with at most `deep` levels of nesting."""
    major, number, at = head(data, at, where)
    need(major != 6, where, "CBOR with a tag")
    if major in (2, 3):
        at += number
    elif major in (4, 5):
        need(deep > 0, where, "CBOR that is nested too deep")
        for _ in range(number * (major - 3)):
            at = skip(data, at, where, deep - 1)
    return at


def skip_map(data, at, where, arrays=()):
    """The position after a map with ascending integer keys. Maps in the arrays of these keys have such keys, too."""
    major, count, at = head(data, at, where)
    need(major == 5, where, "not a CBOR map")
    last = -1
    for _ in range(count):
        major, key, at = head(data, at, where)
        need(major == 0 and key > last, where, "keys of a map that are not ascending unsigned integers")
        last = key
        if key in arrays and data[at] >> 5 == 4:
            _, items, at = head(data, at, where)
            for _ in range(items):
                at = skip_map(data, at, where) if data[at] >> 5 == 5 else skip(data, at, where, 3)
        else:
            at = skip(data, at, where)
    return at


def decode(data, where, arrays=()):
    try:
        end = skip_map(data, 0, where, arrays)
        need(end == len(data), where, "CBOR that ends too early, or has trailing data")
        return cbor2.loads(data)
    except (IndexError, cbor2.CBORDecodeError) as error:
        raise Failure(f"{where}: not CBOR: {error}") from error


def number(most, least=0):
    return lambda value: type(value) is int and least <= value <= most


def octets(most, least=0):
    return lambda value: type(value) is bytes and least <= len(value) <= most


def text(value):
    return type(value) is str


def each(shape):
    return lambda value: type(value) is list and all(map(shape, value))


def fixed(*shapes):
    return lambda value: type(value) is list and len(value) == len(shapes) and all(s(v) for s, v in zip(shapes, value))


def either(*shapes):
    return lambda value: any(shape(value) for shape in shapes)


def groups(items, size):
    return zip(*[iter(items)] * size)


def flat(*shapes):
    def fits(value):
        whole = type(value) is list and len(value) % len(shapes) == 0
        return whole and all(fixed(*shapes)([*group]) for group in groups(value, len(shapes)))

    return fits


def led(first, *shapes):
    """An array of one item, and then of groups."""
    return lambda value: type(value) is list and value and first(value[0]) and flat(*shapes)(value[1:])


def names(value):
    return type(value) is dict and all(U32(key) and text(value[key]) for key in value)


U32, U64 = number(2**32 - 1), number(2**64 - 1)
TIMESTAMP = fixed(number(2**63 - 1, -(2**63)), number(999_999_999))
DIGEST, ID, NAME = octets(32, 32), octets(16, 16), octets(1024, 1)


def check_keys(value, shapes, where):
    required, optional = shapes
    for key, shape in (required | optional).items():
        if key in required or key in value:
            need(key in value and shape(value[key]), where, f"key {key} is missing or invalid")


def ascending(values):
    return all(one < next_one for one, next_one in itertools.pairwise(values))
