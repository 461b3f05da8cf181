//! Converts POSIX ACLs from Linux's extended attributes to the text format of tar archives.
//!
//! Attribute: version 2 in four bytes, then eight bytes per entry: tag, permissions, and an id that is used only for
//! named users and groups; all little endian. Text: one line per entry, like `getfacl --numeric`. Ids are used because
//! a name would be resolved on the machine that extracts the archive.

/// The extended attributes of ACLs, and their pax keywords.
pub(super) const KINDS: [(&[u8], &str); 2] =
    [(b"system.posix_acl_access", "SCHILY.acl.access"), (b"system.posix_acl_default", "SCHILY.acl.default")];

/// The text of an ACL; `None` if it is malformed.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let (entries, rest) = entries.as_chunks::<8>();
    if entries.is_empty() || !rest.is_empty() {
        return None;
    }
    entries.iter().map(line).collect()
}

fn line(entry: &[u8; 8]) -> Option<String> {
    let [t0, t1, p0, p1, i0, i1, i2, i3] = *entry;
    let id = u32::from_le_bytes([i0, i1, i2, i3]);
    let who = match u16::from_le_bytes([t0, t1]) {
        0x01 => "user:".to_owned(),
        0x02 => format!("user:{id}"),
        0x04 => "group:".to_owned(),
        0x08 => format!("group:{id}"),
        0x10 => "mask:".to_owned(),
        0x20 => "other:".to_owned(),
        _ => return None,
    };
    let allowed = u16::from_le_bytes([p0, p1]);
    if allowed > 7 {
        return None;
    }
    let letter = |bit, letter| if allowed & bit != 0 { letter } else { '-' };
    Some(format!("{who}:{}{}{}\n", letter(4, 'r'), letter(2, 'w'), letter(1, 'x')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes an ACL from entries of tag, permissions and id.
    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let encode = |(tag, allowed, id): &(u16, u16, u32)| {
            [tag.to_le_bytes().as_slice(), &allowed.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(encode).collect()].concat()
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn each_kind_of_entry_is_converted() {
        let all = [
            (1, 6, NONE),
            (2, 7, 12_345),
            (2, 0, 4_000_000_000),
            (4, 4, NONE),
            (8, 5, 0),
            (16, 7, NONE),
            (32, 1, NONE),
        ];
        let expected =
            "user::rw-\nuser:12345:rwx\nuser:4000000000:---\ngroup::r--\ngroup:0:r-x\nmask::rwx\nother::--x\n";
        assert_eq!(text(&list(&all)).as_deref(), Some(expected));
    }

    #[test]
    fn a_malformed_list_has_no_text() {
        let good = list(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]);
        assert!(text(&good).is_some());
        assert_eq!(text(&good[..good.len() - 1]), None, "cut off");
        assert_eq!(text(&good[..4]), None, "empty");
        assert_eq!(text(b""), None);
        assert_eq!(text(&[&[3], &good[1..]].concat()), None, "another version");
        assert_eq!(text(&list(&[(3, 6, NONE)])), None, "an unknown tag");
        assert_eq!(text(&list(&[(1, 8, NONE)])), None, "an unknown permission");
    }
}
