//! Entries of snapshots, as lines and as JSON.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use super::show;
use crate::archive::{EntryHandle, EntryRef};
use crate::format::Kind;

/// Writes mode, link count, owner, group, size and time, which come before the name.
pub(super) fn write_details(out: &mut dyn Write, listed: &EntryHandle) -> io::Result<()> {
    let entry = listed.entry();
    let owner = listed.user().map_or_else(|| entry.uid.to_string().into(), show::shown);
    let group = listed.group().map_or_else(|| entry.gid.to_string().into(), show::shown);
    let size = match entry.kind {
        Kind::CharDevice | Kind::BlockDevice => format!("{},{}", entry.device.0, entry.device.1),
        _ => entry.size.to_string(),
    };
    let mode = show::mode(entry.kind, entry.mode);
    let names = entry.link.map_or(1, |link| link.count);
    let time = show::local(entry.mtime);
    write!(out, "{mode} {names:>2} {owner:<8} {group:<8} {size:>12} {time:<20} ")
}

/// Writes the link target and the mark of changed files, which come after the name.
pub(super) fn write_suffix(out: &mut dyn Write, entry: &EntryRef<'_>) -> io::Result<()> {
    if entry.kind == Kind::Symlink {
        out.write_all(b" -> ")?;
        write_name(out, entry.target)?;
    }
    if entry.is_changed() {
        out.write_all(b"  (changed while it was read)")?;
    }
    Ok(())
}

/// Writes a name. Control characters are escaped on a terminal.
pub(super) fn write_name(out: &mut dyn Write, name: &[u8]) -> io::Result<()> {
    if io::stdout().is_terminal() {
        out.write_all(show::printable(&String::from_utf8_lossy(name)).as_bytes())
    } else {
        out.write_all(name)
    }
}

/// A JSON object with the fields of `head`, the path, and the metadata of the entry.
pub(super) fn object(head: Value, listed: &EntryHandle, path: &[u8]) -> Value {
    let mut object = at_path(head, path);
    if let (Value::Object(map), Value::Object(metadata)) = (&mut object, metadata(listed)) {
        map.extend(metadata);
    }
    object
}

/// A JSON object with the fields of `head` and a path.
pub(super) fn at_path(head: Value, path: &[u8]) -> Value {
    let mut object = json!({ "path": String::from_utf8_lossy(path) });
    if let Value::Object(map) = &mut object {
        if str::from_utf8(path).is_err() {
            map.insert("path_hex".into(), hex(path).into());
        }
        if let Value::Object(head) = head {
            map.extend(head);
        }
    }
    object
}

/// A JSON object with the metadata of an entry.
pub(super) fn metadata(listed: &EntryHandle) -> Value {
    let entry = listed.entry();
    let mut object = json!({
        "type": show::kind(entry.kind),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": listed.user(),
        "group": listed.group(),
        "size": entry.size,
        "mtime": show::rfc3339(entry.mtime),
        "mtime_nanos": entry.mtime.nanos,
        "links": entry.link.map_or(1, |link| link.count),
        "changed_while_read": entry.is_changed(),
        "unprivileged": entry.is_unprivileged(),
        "xattrs": entry.xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect::<Vec<_>>(),
        "inode_flags": entry.inode_flags,
    });
    if let (Value::Object(map), Kind::Symlink) = (&mut object, entry.kind) {
        map.insert("target".into(), String::from_utf8_lossy(entry.target).into());
    }
    object
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
