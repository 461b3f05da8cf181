//! The texts in every repository, which explain how to get data out without brackfs.
//!
//! `README.txt` is generated for each repository: it has the OpenPGP standard, the host key, and commands to paste.
//! `FORMAT.txt` is the man page brackfs-format(5).

use crate::crypt::Fingerprint;

/// brackfs-format(5) as plain text. The tests of the manual compare it with the man page.
pub(super) const FORMAT: &str = include_str!("FORMAT.txt");

/// The keys named in the README of a repository.
#[derive(Debug)]
pub struct ReadmeKeys<'a> {
    /// The host key, which signs the backups.
    pub host: &'a Fingerprint,
    /// The owner's key, if it is stored in the repository.
    pub owner: Option<&'a Fingerprint>,
}

/// Returns the text of README.txt.
pub(super) fn text(encrypted: bool, keys: &ReadmeKeys<'_>) -> String {
    let host = keys.host.to_string();
    // The host key has the newest standard that all recipients support.
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

Without brackfs you need a shell, zstd, b3sum, Python 3 with cbor2
(python3-cbor2), and an OpenPGP program. FORMAT.txt next to this file describes
every byte; with it you can write a program that restores everything. To get
single files, paste the commands below into a shell in this directory.

The host key signs the backups. Its fingerprint is
HOSTKEY.
If you noted the fingerprint that `brackfs init` printed, compare it: anyone who
can write to this directory could have replaced the certificate in keys/.

";

const NEWER: &str = "\
This repository is encrypted with OpenPGP (RFC 9580). GnuPG does not support it
(\"packet with unknown version\"). Use Sequoia's sq 1.0 or later, sqop, rsop or
gosop. sq asks for the passphrase of a locked key at each call; to avoid that,
write it to a file and add --password-file FILE before `decrypt`.
PASSPHRASE
0. Set the secret key, and define the functions that open a snapshot and a block:

    KEY=KEYFILE
    document() {
        sq decrypt --recipient-file \"$KEY\" \\
            --signer-file keys/host-HOSTKEY.asc \"$1\"
    }
    opened() { sq decrypt --recipient-file \"$KEY\"; }

   `document` must report one authenticated signature, by the host key. `opened`
   reports none: blocks are not signed, but verified with b3sum below.

";

const KEPT: &str = "\
The secret key is in keys/owner-*.asc, encrypted with the passphrase that was
given to `brackfs init` (AES-256, OCB, Argon2).
";

const OLDER: &str = "\
This repository is encrypted with OpenPGP (RFC 4880). GnuPG 2 and Sequoia's sq
support it.

0. Import the keys, and define the functions that open a snapshot and a block:

    gpg --import KEYFILE
    gpg --import keys/host-HOSTKEY.asc
    document() { gpg --decrypt \"$1\"; }
    opened() { gpg --quiet --decrypt; }

   `document` must report a good signature, with the host key as the primary key.
   Ignore the warning that the key is not certified with a trusted signature. If
   the host key was not imported, gpg prints the content but exits with code 2.
   With sq 1.0 or later instead of gpg:

    document() {
        sq decrypt --recipient-file KEYFILE \\
            --signer-file keys/host-HOSTKEY.asc \"$1\"
    }
    opened() { sq decrypt --recipient-file KEYFILE; }

";

const PLAIN: &str = "\
This repository is signed, but not encrypted.

0. Import the key, and define the functions that open a snapshot and a block:

    gpg --import keys/host-HOSTKEY.asc
    document() { gpg --decrypt \"$1\"; }
    opened() { cat; }

   `document` must report a good signature, with the host key as the primary key.
   Ignore the warning that the key is not certified with a trusted signature.

";

const STEPS: &str = r#"1. Define the functions that show opened data. `list` prints a node, with each
   reference as pack, offset and stored length of a block, and start, length and
   digest of the data in it. `fetch` takes the first five of these values.

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
            def chunk(word, digest, block, start, length):
                pack, offset, stored = table[3 * block : 3 * block + 3]
                pack = uuid.UUID(bytes=packs[pack])
                where = pack, offset, stored, start, length
                print(" ", word, *where, digest.hex())
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

    moved() {
        document "$1" | python3 -c 'if 1:
            import cbor2, sys, uuid
            shard = cbor2.load(sys.stdin.buffer)
            def name(pack):
                return uuid.UUID(bytes=pack)
            packs = [name(pack) for pack in shard[4]]
            print("generation", shard[3])
            for birth, *rest in shard[5]:
                for at, length, pack, to in zip(*[iter(rest)] * 4):
                    print(name(birth), at, length, packs[pack], to)
            for birth, *rest in shard.get(6, ()):
                for digest, pack, *place in zip(*[iter(rest)] * 5):
                    print(name(birth), digest.hex(), packs[pack], *place)
        '
    }

   START counts from 0. A pack is the file packs/ab/UUID, where ab are the first
   two digits of the UUID. `fetch` leaves the file `block`; remove it at the end.

2. Each folder in snapshots/ is a source. The name of a snapshot has a number,
   which is higher for later snapshots, and the time (UTC) at which the backup
   began. Print the source and the paths of each snapshot:

    for snapshot in snapshots/*/*; do about "$snapshot"; done

   Snapshots in the newest document of forgotten/ were deleted on purpose. Until
   their data is removed, they can be read like the others.

3. Print the root of a snapshot:

    root SNAPSHOT > root.node
    list < root.node

4. Go down one level, with the numbers of a `node` line. For a name in a large
   directory, use the last `from` whose name is not greater:

    fetch PACK OFFSET STORED START LENGTH > some.node
    b3sum some.node
    list < some.node

   b3sum must print the digest of that line; nothing else verifies the data. The
   node of a large file lists `chunk` or `node` lines in order.

5. Get a file. Start without `file`, and do this for each `chunk` line, in order;
   a `hole` line stands for that many zero bytes (truncate -s +BYTES file).

    fetch PACK OFFSET STORED START LENGTH > part
    b3sum part
    cat part >> file

   Again, b3sum must print the digest of the line.

6. If a pack is gone or damaged, its blocks may have been moved to another pack.
   Print the files in moved/ab, where ab are the first two digits of the pack.
   If there are several, the one with the highest generation counts:

    for shard in moved/ab/*; do moved "$shard"; done

   A line has a pack, the offset and length of a range of bytes in it, and the
   pack and offset where this range is now. Find the range with your block, and
   call `fetch` with the new pack, and with the new offset of the range plus the
   distance of the block from the beginning of the range. A line with a digest
   has the new PACK, OFFSET, STORED and START of the data with this digest.

To check whether the disk returns all packs unchanged:

    find sums -type f -exec cat {} + | b3sum --check
"#;
