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

Without brackfs it takes patience, a CBOR viewer (python3-cbor2, or any other),
zstd, and an OpenPGP program. The manual page brackfs-format(5) describes every
byte; in short:

";

const ENCRYPTED: &str = "\
Snapshots and blocks are OpenPGP messages to your key. If the key was made for
the older standard (RFC 4880; RSA, Curve25519), every GnuPG opens them. If it was
made for RFC 9580, the default of brackfs, it takes a program that knows that
standard, such as Sequoia's sq 1.0 or later: sq decrypt instead of gpg --decrypt.
If the key was kept here, it is keys/owner-*.asc, under your passphrase, and of
RFC 9580.

1. A snapshot: the newest file in snapshots/*/. It holds a signed CBOR map.

    gpg --decrypt snapshots/SOURCE/NUMBER-TIME-ID > snapshot.cbor

";

const PLAIN: &str = "\
This repository is not encrypted, only signed.

1. A snapshot: the newest file in snapshots/*/. It holds a signed CBOR map.

    gpg --decrypt snapshots/SOURCE/NUMBER-TIME-ID > snapshot.cbor

   (gpg warns that it can't check the signature unless you import
   keys/host-*.asc; it writes the content all the same.)

";

const TAIL: &str = "\
2. Key 14 of that map is again CBOR: a node with the root directory's entry.
   A node is a map. 1 lists pack ids; 2 lists blocks as triples (which pack,
   offset, length); 3 lists what the node holds, and 0 says what that is:
   0 entries, 1 parts of a large directory (first name, entries, ranks, digest,
   block, start, length), 2 extents of a large file, 3 nodes of extents.
   An entry is a map. 0 is the name. 7 is the content of a small file (digest,
   block, start). 8 is that of a larger one: a digest, and a list of extents,
   each (digest, block, start, length), or a number of zeros. 9 is that of a
   very large one: a digest, a depth, and a list of nodes of extents. 11 is a
   directory: entries below it, then its node (digest, block, start, length).

3. A block, by the triple that its number stands for in the same node:

    dd if=packs/ab/PACKID iflag=skip_bytes,count_bytes \\
       skip=OFFSET count=LENGTH | gpg --decrypt | zstd --decompress > block

   (ab are the first two digits of PACKID; no gpg if it is not encrypted).
   From START on, LENGTH bytes (of a small file: its size, entry key 6) are what
   you want: content, or the next node. Their b3sum is the digest.

Whether the disk kept everything:   cat sums/* | b3sum --check
";
