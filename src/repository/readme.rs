//! The text that lies in every repository, for the day when this program is gone.

/// How to get data out of a repository without brackfs.
pub(super) fn text(encrypted: bool) -> String {
    let opening = if encrypted { ENCRYPTED } else { PLAIN };
    format!("{HEAD}{opening}{TAIL}")
}

const HEAD: &str = "\
This directory is a brackfs repository: backups of files, format version 1.
The easy way to get files back is brackfs itself:

    brackfs mount /mnt --repo HERE --key YOUR-SECRET-KEY
    brackfs restore latest --repo HERE --to DIRECTORY --key YOUR-SECRET-KEY

Without brackfs you need some patience, and standard tools:
";

const ENCRYPTED: &str = "\
an OpenPGP program, zstd, and a CBOR viewer (python3-cbor2, or any other).
Every object is a complete OpenPGP message. Older GnuPG (2.2, 2.4) opens
repositories made for RSA and Curve25519 keys of the older standard (RFC 4880);
repositories made for keys of RFC 9580 need a program that knows it, such as
Sequoia's sq 1.0 or later, or rsop. The secret key is yours; if it was kept
here, it is keys/owner-*.asc, under your passphrase:

    gpg --import keys/owner-*.asc

1. A snapshot: the newest file in snapshots/*/. It holds a signed CBOR map.

    gpg --decrypt snapshots/SOURCE/TIME-ID > snapshot.cbor

";

const PLAIN: &str = "\
an OpenPGP program, zstd, and a CBOR viewer (python3-cbor2, or any other).
This repository is not encrypted, only signed.

1. A snapshot: the newest file in snapshots/*/. It holds a signed CBOR map.

    gpg --decrypt snapshots/SOURCE/TIME-ID > snapshot.cbor

   (gpg warns that it can't check the signature unless you import
   keys/host-*.asc; it writes the content all the same.)

";

const TAIL: &str = "\
2. Key 14 of that map is again CBOR: a node that holds the root directory's
   entry. A node is a map: 1 lists pack ids, 2 lists blocks as triples (which
   pack, offset, length), 3 lists entries. An entry's key 0 is its name, 11 a
   directory's (entries below, digest, block, start, length), 7 a small file's
   (digest, block, start), 8 a larger file's list of (digest, block, start,
   length).

3. A block: the pack PACKID is packs/, its first two digits, /, PACKID.

    dd if=packs/ab/PACKID iflag=skip_bytes,count_bytes \\
       skip=OFFSET count=LENGTH | gpg --decrypt | zstd --decompress > block

   (without gpg in a repository that is not encrypted). From the byte START
   on, LENGTH (or the file's size) bytes are what you want: content of a file,
   or the next node. b3sum of that slice is the digest.

Whether the disk kept everything:   cat sums/* | b3sum --check

The manual page brackfs-format(5) describes every byte.
";
