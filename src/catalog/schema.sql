-- sum: a checksum over those columns of a row that are not updated on their own; compared when the row is used.
CREATE TABLE trust (
    repository BLOB NOT NULL, catalog BLOB NOT NULL, encrypted INTEGER NOT NULL,
    seed INTEGER NOT NULL, host TEXT NOT NULL,
    generation INTEGER NOT NULL,  -- number of the last run's generation, and the run's id
    run BLOB,
    intended INTEGER NOT NULL,    -- number and id that a run was about to use
    intended_run BLOB,
    learnt INTEGER NOT NULL,      -- 1: some rows come from listings, so nothing in the repository may be removed
    -- 1: the tombstones in the repository are not those of the catalog
    stale_tombstones INTEGER NOT NULL DEFAULT 0,
    next_block INTEGER NOT NULL,  -- no block ever had this id or a higher one
    sum INTEGER NOT NULL
);
CREATE TABLE recipients (certificate BLOB NOT NULL);
-- Runs that began to write, until they or the next run finish, whether or not that could clean up after them.
CREATE TABLE unfinished (run BLOB PRIMARY KEY) WITHOUT ROWID;
-- Objects in generation/ that did not verify. They are not opened again while their length stays the same.
CREATE TABLE strange_generations (
    number INTEGER NOT NULL, writer BLOB NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (number, writer)
) WITHOUT ROWID;
-- A census that the catalog did not agree with when it was rebuilt or reconciled: some documents were missing.
CREATE TABLE unproved (generation INTEGER PRIMARY KEY, census BLOB NOT NULL);
-- Documents in the repository: indexes, moves, tombstones, secrets.
CREATE TABLE documents (
    folder INTEGER NOT NULL, id BLOB NOT NULL,
    detail INTEGER NOT NULL,      -- the shard of moves, or the edition of secrets
    generation INTEGER NOT NULL,
    replaced INTEGER,             -- generation of the document that replaced it
    removed INTEGER NOT NULL,     -- 1: the object was removed after that
    PRIMARY KEY (folder, id)
) WITHOUT ROWID;

CREATE TABLE packs (
    id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL,
    length INTEGER NOT NULL, digest BLOB NOT NULL,
    verified INTEGER NOT NULL,    -- time at which it was stored or last checked, in seconds since 1970
    -- 0: usable; 1: lost or damaged, no claim refers to it any more; 2: marked to become 1; 3: condemned for removal;
    -- 4: removed on purpose, its live blocks were moved
    condemned INTEGER NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0, -- 1: it was lost or damaged before it was condemned for removal
    searched INTEGER NOT NULL DEFAULT 0, -- 1: if it is lost or damaged, its chunks are in lost_chunks
    condemned_in INTEGER NOT NULL, -- generation of the tombstone, for 3; 0: none yet
    condemned_at INTEGER NOT NULL, -- time, for 3
    sum INTEGER NOT NULL
);
CREATE INDEX packs_by_age ON packs (verified) WHERE condemned = 0;
CREATE INDEX lost_packs ON packs (id) WHERE condemned = 1;
-- Blocks of condemned packs stay: snapshots refer to them, and ids are never reused.
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY, pack INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL, length INTEGER NOT NULL,
    hash INTEGER NOT NULL,        -- the check of the stored bytes
    sum INTEGER NOT NULL
);
CREATE UNIQUE INDEX blocks_by_place ON blocks (pack, ordinal);
-- Blocks whose bytes lie in a carrier.
CREATE TABLE moves (
    block INTEGER PRIMARY KEY, carrier INTEGER NOT NULL, ordinal INTEGER NOT NULL, start INTEGER NOT NULL,
    sum INTEGER NOT NULL
);
CREATE INDEX moves_by_carrier ON moves (carrier);
-- Generation and time at which a prune first saw that a snapshot is forgotten.
CREATE TABLE seen_forgotten (sequence INTEGER PRIMARY KEY, generation INTEGER NOT NULL, at INTEGER NOT NULL);
-- Packs that the target refused to remove. No index names them.
CREATE TABLE retained (pack BLOB PRIMARY KEY, length INTEGER NOT NULL) WITHOUT ROWID;
-- First bytes of the ids of packs whose moves changed since their shard was written.
CREATE TABLE dirty_shards (prefix BLOB PRIMARY KEY) WITHOUT ROWID;
-- Keyed by the digest's first eight bytes: integers make the smallest and fastest index. Only the first of two
-- chunks with the same head is deduplicated, which costs only space.
CREATE TABLE chunks (
    head INTEGER PRIMARY KEY,
    digest BLOB NOT NULL,         -- the digest without its head
    block INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, sum INTEGER NOT NULL
);
-- Chunks of lost and damaged packs.
CREATE TABLE lost_chunks (
    lost_block INTEGER NOT NULL,
    head INTEGER NOT NULL, digest BLOB NOT NULL, -- as in chunks
    block INTEGER, start INTEGER,                -- where the chunk is now; null: nowhere
    sum INTEGER NOT NULL,
    PRIMARY KEY (lost_block, head, digest)
) WITHOUT ROWID;
CREATE INDEX lost_chunks_by_head ON lost_chunks (head) WHERE block IS NULL;
CREATE INDEX lost_chunks_by_block ON lost_chunks (block) WHERE block IS NOT NULL;
-- All blocks below a node of a long extent list.
CREATE TABLE extent_nodes (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, blocks BLOB NOT NULL, sum INTEGER NOT NULL
);

-- The listed packs, during a comparison with the repository; otherwise empty.
CREATE TABLE listing (pack BLOB PRIMARY KEY, length INTEGER NOT NULL) WITHOUT ROWID;

-- dev: the device number, or, for FUSE and network mounts, a number that identifies the mounted file system.
CREATE TABLE directories (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL,
    linked INTEGER NOT NULL,      -- 90: the parent's segment refers to this row's node; 0: it does not. Several bits
                                  -- differ, so that no single flipped bit turns 0 into 90
    below INTEGER, digest BLOB, block INTEGER, start INTEGER, length INTEGER,
    indexes BLOB,                 -- blocks of the index nodes, if there are several segments
    sum INTEGER,                  -- null: the directory is incomplete, and the columns above are outdated
    UNIQUE (parent, name)
);
CREATE INDEX directories_by_inode ON directories (dev, ino);
-- Columns are in the order of use: of an unchanged segment nothing after stats is read. AUTOINCREMENT, because the
-- walk may ask for a segment that was replaced, and must not get another one with a reused id.
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, directory INTEGER NOT NULL, first BLOB NOT NULL,
    entries INTEGER NOT NULL, span INTEGER NOT NULL,
    digest BLOB NOT NULL, block INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    blocks BLOB NOT NULL,         -- the blocks of the node's block table, in its order
    more BLOB NOT NULL,           -- blocks below extent nodes
    sum INTEGER NOT NULL,         -- does not cover stats, nor node, which has a digest
    stats BLOB NOT NULL, node BLOB NOT NULL,
    UNIQUE (directory, first)
);
-- All names of a file share an id. The change time distinguishes a file from a later one with the same inode; content
-- (a digest of kind, size and content) distinguishes it from another file that claims the same inode, and from its own
-- state before a write. AUTOINCREMENT, because an id must never be reused for another file.
CREATE TABLE links (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dev INTEGER NOT NULL, ino INTEGER NOT NULL,
    seconds INTEGER NOT NULL, nanos INTEGER NOT NULL, content BLOB NOT NULL, UNIQUE (dev, ino)
);

-- Files that a run reads again before it makes its snapshot.
CREATE TABLE put_off (
    directory INTEGER NOT NULL, name BLOB NOT NULL, tries INTEGER NOT NULL, existed INTEGER NOT NULL,
    so_far INTEGER NOT NULL,      -- the file's entry in the directory: 0 none, 1 changed while read, 2 fresh
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;

CREATE TABLE sources (
    id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, name TEXT NOT NULL, sum INTEGER NOT NULL
);
CREATE TABLE snapshots (
    sequence INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, source INTEGER NOT NULL,
    time TEXT NOT NULL,
    labels BLOB NOT NULL,         -- host, paths and tags, as JSON
    files INTEGER NOT NULL, bytes INTEGER NOT NULL, stored INTEGER NOT NULL,
    presence INTEGER NOT NULL,    -- 0: about to be written; 3: in the repository; 5: not found there; 6: never written;
                                  -- 9: forgotten; 10: forgotten, and its object was removed
    usage INTEGER NOT NULL,       -- 90: the snapshot is in spans; 0: its blocks are unknown
    root BLOB NOT NULL,           -- the stat data of the root directory, which is in no segment
    sum INTEGER NOT NULL          -- does not cover presence, stored and usage
);
-- Snapshots that were held or released, also unknown ones. held: 0: released; other numbers: held
CREATE TABLE holds (
    snapshot BLOB PRIMARY KEY, held INTEGER NOT NULL, generation INTEGER NOT NULL
) WITHOUT ROWID;
-- Which snapshots use a block. For each group of 256 blocks: all spans (block, source, first and last snapshot), and a
-- checksum.
CREATE TABLE spans (id INTEGER PRIMARY KEY, spans BLOB NOT NULL);
-- A cache: the blocks of the newest snapshot of each source that is in spans.
CREATE TABLE newest_usages (
    source INTEGER PRIMARY KEY, sequence INTEGER NOT NULL,
    blocks BLOB NOT NULL          -- ends with a checksum
);
