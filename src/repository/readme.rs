//! The texts in every repository, for the day when this program is gone.
//!
//! `README.txt` is made for its repository: it names the standard, the host key, and commands that can be pasted.
//! `FORMAT.txt` is the page brackfs-format(5).

use crate::crypt::Fingerprint;

/// brackfs-format(5) as plain text; the tests of the manual compare it with the page.
pub(super) const FORMAT: &str = include_str!("FORMAT.txt");

/// What the commands for a repository depend on.
#[derive(Debug)]
pub struct ForPeople<'a> {
    /// The host key.
    pub host: &'a Fingerprint,
    /// The owner's key, if it is kept in the repository.
    pub owner: Option<&'a Fingerprint>,
}

/// How to get data out of a repository without brackfs.
pub(super) fn text(encrypted: bool, keys: &ForPeople<'_>) -> String {
    let host = keys.host.to_string();
    // The host key follows the standard that all recipients read.
    let opening = match (encrypted, host.len()) {
        (false, _) => PLAIN,
        (true, 40) => OLDER,
        (true, _) => NEWER,
    };
    let (key, passphrase) = match keys.owner {
        Some(owner) => (format!("keys/owner-{owner}.asc"), "\n".to_owned() + KEPT),
        None => ("YOUR-SECRET-KEY".to_owned(), String::new()),
    };
    let option = match (encrypted, keys.owner) {
        (true, None) => " --key YOUR-SECRET-KEY",
        _ => "",
    };
    let opening = opening.replace("PASSPHRASE", &passphrase);
    format!("{HEAD}{opening}{STEPS}").replace("OPTION", option).replace("KEYFILE", &key).replace("HOSTKEY", &host)
}

const HEAD: &str = "\
This directory is a brackfs repository: backups of files, format version 1.
The easy way to get files back is brackfs itself:

    brackfs mount /mnt --repo HEREOPTION
    brackfs restore latest --repo HERE --to DIRECTORYOPTION

Without brackfs it takes a shell, zstd, b3sum, Python 3 with cbor2
(python3-cbor2), and an OpenPGP program. FORMAT.txt next to this file describes
every byte; with it you can write a program that restores everything. To get
single files, paste the commands below in this directory.

The host key, which signs the backups, is
HOSTKEY.
Compare it with what `brackfs init` printed, if you have a note of that: whoever
can write here could have put another certificate in keys/.

";

const NEWER: &str = "\
This repository: encrypted, OpenPGP of RFC 9580. GnuPG does not read that (\"packet
with unknown version\"). Sequoia's sq 1.0 or later does, and so do sqop, rsop and
gosop. sq asks for the passphrase of a locked key at each call; write it into a
file and add --password-file FILE before `decrypt` to prevent that.
PASSPHRASE
0. The secret key, and the functions that open a snapshot and a block:

    KEY=KEYFILE
    document() {
        sq decrypt --recipient-file \"$KEY\" \\
            --signer-file keys/host-HOSTKEY.asc \"$1\"
    }
    opened() { sq decrypt --recipient-file \"$KEY\"; }

   `document` must report one authenticated signature, by the host key. `opened`
   reports none: blocks are not signed, and b3sum checks them below.

";

const KEPT: &str = "\
The secret key is kept here, under the passphrase that `init` asked for (AES-256,
OCB, Argon2): keys/owner-*.asc.
";

const OLDER: &str = "\
This repository: encrypted, OpenPGP of RFC 4880. GnuPG 2 reads it, and so does
Sequoia's sq.

0. Import the keys, and define the functions that open a snapshot and a block:

    gpg --import KEYFILE
    gpg --import keys/host-HOSTKEY.asc
    document() { gpg --decrypt \"$1\"; }
    opened() { gpg --quiet --decrypt; }

   `document` must say: Good signature, and the host key as the primary key. That
   the key is not certified with a trusted signature does not matter. Without
   the import of the host key gpg writes the content, but exits with code 2.
   With sq 1.0 or later instead of gpg:

    document() {
        sq decrypt --recipient-file KEYFILE \\
            --signer-file keys/host-HOSTKEY.asc \"$1\"
    }
    opened() { sq decrypt --recipient-file KEYFILE; }

";

const PLAIN: &str = "\
This repository: not encrypted, only signed.

0. Import the key, and define the functions that open a snapshot and a block:

    gpg --import keys/host-HOSTKEY.asc
    document() { gpg --decrypt \"$1\"; }
    opened() { cat; }

   `document` must say: Good signature, and the host key as the primary key. That
   the key is not certified with a trusted signature does not matter.

";

const STEPS: &str = r#"1. Functions to look into what was opened. `list` prints a node: each reference
   as pack, offset, length of the stored block, start, length and digest of what
   it refers to. `fetch` takes the first five of these.

    about() {
        document "$1" | python3 -c 'if 1:
            import cbor2, sys
            snapshot = cbor2.load(sys.stdin.buffer)
            print(sys.argv[1], "source", snapshot[4], "paths", snapshot[8])
        ' "$1"
    }
    root() {
        document "$1" | python3 -c 'if 1:
            import cbor2, sys
            sys.stdout.buffer.write(cbor2.load(sys.stdin.buffer)[14])
        '
    }
    list() {
        python3 -c 'if 1:
            import cbor2, sys, uuid
            node = cbor2.load(sys.stdin.buffer)
            packs, table = node.get(1, ()), node.get(2, ())
            def chunk(what, digest, block, start, length):
                pack, offset, stored = table[3 * block : 3 * block + 3]
                pack = uuid.UUID(bytes=packs[pack])
                where = pack, offset, stored, start, length
                print(" ", what, *where, digest.hex())
            def extent(item):
                if isinstance(item, int):
                    print("  hole", item)
                else:
                    chunk("chunk", *item)
            for item in node[3]:
                if node[0] == 0:
                    print("kind", item[1], "size", item.get(6, 0), item[0])
                    if 7 in item:
                        chunk("chunk", *item[7], item[6])
                    for part in item.get(8, (0, ()))[1]:
                        extent(part)
                    for part in item.get(9, (0, 0, ()))[2]:
                        chunk("node", *part[1:])
                    if len(item.get(11, ())) == 5:
                        chunk("node", *item[11][1:])
                elif node[0] == 1:
                    print("from", item[0])
                    chunk("node", *item[3:])
                elif node[0] == 2:
                    extent(item)
                else:
                    chunk("node", *item[1:])
        '
    }
    fetch() {
        dd if="packs/$(printf %.2s "$1")/$1" skip="$2" count="$3" \
            iflag=skip_bytes,count_bytes status=none |
            opened | zstd --decompress --quiet --force -o block &&
            dd if=block skip="$4" count="$5" \
                iflag=skip_bytes,count_bytes status=none
    }

   START counts from 0. A pack is the file packs/ab/UUID; ab are the first two
   digits of the UUID. `fetch` leaves the file `block`; remove it at the end.

2. Each folder below snapshots/ is a source. In the name of a snapshot stand a
   number, which is greater for a later one, and when it began, in UTC. This says
   which source a folder is, and which paths were backed up:

    for snapshot in snapshots/*/*; do about "$snapshot"; done

3. The root of a snapshot, and what is in it:

    root SNAPSHOT > root.node
    list < root.node

4. One step down, with the numbers of a line that says `node`. For a name in a
   large directory, take the last `from` that is not above the name:

    fetch PACK OFFSET STORED START LENGTH > some.node
    b3sum some.node
    list < some.node

   b3sum must print the digest of that line: nothing else tells that it is the
   right one. A node of a large file lists `chunk` or `node` lines in order.

5. A file: its `chunk` lines one after the other; `hole` is that many zeros.

    fetch PACK OFFSET STORED START LENGTH > file
    b3sum file

   Again, b3sum must print the digest of the line.

Whether the disk kept everything:

    find sums -type f -exec cat {} + | b3sum --check
"#;
