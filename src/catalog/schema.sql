-- sum: over the columns of a row that do not change by themselves; compared when the row is used.
CREATE TABLE trust (
    repository BLOB NOT NULL, catalog BLOB NOT NULL, encrypted INTEGER NOT NULL,
    seed INTEGER NOT NULL, host TEXT NOT NULL,
    generation INTEGER NOT NULL,  -- number of the last run that wrote, and its id
    run BLOB,
    intended INTEGER NOT NULL,    -- number that a run was about to take, and its id
    intended_run BLOB,
    learnt INTEGER NOT NULL,      -- 1: some of it was learnt from listings, so nothing at the target may be removed
    next_block INTEGER NOT NULL,  -- no block was ever given this id or a higher one
    sum INTEGER NOT NULL
);
CREATE TABLE recipients (certificate BLOB NOT NULL);
-- Runs that began to write, until the next run has dealt with what they may have left at the target.
CREATE TABLE unfinished (run BLOB PRIMARY KEY) WITHOUT ROWID;
-- Objects in generation/ that did not verify. They are not opened again while their length stays the same.
CREATE TABLE strange_generations (number INTEGER PRIMARY KEY, length INTEGER NOT NULL);

CREATE TABLE packs (
    id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL,
    length INTEGER NOT NULL, digest BLOB NOT NULL,
    verified INTEGER NOT NULL,    -- seconds since 1970 when it was stored, or last found to be there
    condemned INTEGER NOT NULL,   -- 0: it is there; 1: nothing refers to it any more; 2: about to become so
    sum INTEGER NOT NULL
);
CREATE INDEX packs_by_age ON packs (verified) WHERE condemned = 0;
-- Those of condemned packs stay: snapshots name them, and ids are never given out again.
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY, pack INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL, length INTEGER NOT NULL, sum INTEGER NOT NULL
);
CREATE UNIQUE INDEX blocks_by_place ON blocks (pack, ordinal);
-- Keyed by the digest's first eight bytes: integers make the smallest and fastest index. Of two chunks
-- with the same head the second is not found again, which costs space and nothing else.
CREATE TABLE chunks (
    head INTEGER PRIMARY KEY,
    digest BLOB NOT NULL,         -- the rest of it
    block INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, sum INTEGER NOT NULL
);
-- All blocks below a node of a long extent list.
CREATE TABLE extent_nodes (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, blocks BLOB NOT NULL, sum INTEGER NOT NULL
);

-- What a listing of packs showed; empty but for the transaction that compares.
CREATE TABLE listing (pack BLOB PRIMARY KEY, length INTEGER NOT NULL) WITHOUT ROWID;

-- dev: the number by which the device goes here. A FUSE mount or one of a server has a number of its own instead.
CREATE TABLE directories (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL,
    linked INTEGER NOT NULL,      -- 90: the parent's segment holds this row's node. No single bit makes that of 0
    below INTEGER, digest BLOB, block INTEGER, start INTEGER, length INTEGER,
    indexes BLOB,                 -- blocks of the index nodes, if there are several segments
    sum INTEGER,                  -- null: not all segments are here, and the columns above are out of date
    UNIQUE (parent, name)
);
CREATE INDEX directories_by_inode ON directories (dev, ino);
-- Columns are in the order of need: an unchanged segment is never read beyond stats. AUTOINCREMENT, because the
-- walk may still ask for a segment that was replaced, and must not get another one then.
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, directory INTEGER NOT NULL, first BLOB NOT NULL,
    entries INTEGER NOT NULL, span INTEGER NOT NULL,
    digest BLOB NOT NULL, block INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    blocks BLOB NOT NULL,         -- the blocks of the node's table, in its order
    more BLOB NOT NULL,           -- blocks below extent nodes
    sum INTEGER NOT NULL,         -- leaves out stats, and node, which has a digest
    stats BLOB NOT NULL, node BLOB NOT NULL,
    UNIQUE (directory, first)
);
-- Names of the same file share an id. The change time tells a file from another that got its inode later, the
-- digest of kind, size and content from another that claims its inode, and from what it was before a write;
-- AUTOINCREMENT, because an id that was given to one file must never mean another.
CREATE TABLE links (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dev INTEGER NOT NULL, ino INTEGER NOT NULL,
    seconds INTEGER NOT NULL, nanos INTEGER NOT NULL, content BLOB NOT NULL, UNIQUE (dev, ino)
);

-- Files that a run looks at again before it makes its snapshot.
CREATE TABLE put_off (
    directory INTEGER NOT NULL, name BLOB NOT NULL, tries INTEGER NOT NULL, existed INTEGER NOT NULL,
    so_far INTEGER NOT NULL,      -- what the directory has of it: 0 nothing, 1 changed while read, 2 fresh
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;

CREATE TABLE sources (
    id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, name TEXT NOT NULL, sum INTEGER NOT NULL
);
CREATE TABLE snapshots (
    sequence INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, source INTEGER NOT NULL,
    time TEXT NOT NULL,
    labels BLOB,                  -- host, paths and tags, as JSON; null: not known
    files INTEGER NOT NULL, bytes INTEGER NOT NULL, stored INTEGER NOT NULL,
    presence INTEGER NOT NULL,    -- 0: about to be written; 1: it is at the target; 2: it was not found there
    blocks BLOB,                  -- null: not known; ends in a sum of its own
    root BLOB NOT NULL,           -- the identity of the root directory, which is in no segment
    sum INTEGER NOT NULL          -- leaves out presence, stored and blocks
);
