//! Names of objects in messages. Users need not know the layout of a repository, so only --verbose shows whole names.

use std::ops::Range;

use super::show::name_time;
use crate::format::PackId;
use crate::format::name::{self, SnapshotName};

/// The number of digits of an id that are shown.
const SHORT: usize = 8;

/// Replaces names of packs, indexes and snapshots: `packs/1a/1a2b3c4d-…` becomes `pack 1a2b3c4d`.
pub(super) fn shortened(text: &str) -> String {
    let (mut short, mut rest) = (String::new(), text);
    while let Some(Range { start, end }) = next_word(rest) {
        let (before, after) = rest.split_at(start);
        let (word, after) = after.split_at(end - start);
        short.push_str(before);
        match in_words(word, &short) {
            Some(words) => short.push_str(&words),
            None => short.push_str(word),
        }
        rest = after;
    }
    short + rest
}

/// The next run of characters that names of objects consist of.
fn next_word(text: &str) -> Option<Range<usize>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-/".contains(c);
    let start = text.find(is_part)?;
    let length = text.get(start..)?.find(|c| !is_part(c)).unwrap_or(text.len() - start);
    Some(start..start + length)
}

/// An object in the user's words; `None` if the word names none. `before` is the text in front of it.
fn in_words(word: &str, before: &str) -> Option<String> {
    let short = |id: String| id.chars().take(SHORT).collect::<String>();
    if let Some(pack) = name::parse_pack(word) {
        return Some(format!("pack {}", short(pack.to_string())));
    }
    if let Some(index) = name::parse_index(word) {
        return Some(format!("index {}", short(index.to_string())));
    }
    if let Ok(snapshot) = SnapshotName::parse(word) {
        return Some(format!("snapshot {} of {}", snapshot.id.short(), name_time(&snapshot.time)));
    }
    let pack: PackId = word.parse().ok().filter(|_| before.ends_with("pack "))?;
    Some(short(pack.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_objects_are_shortened() {
        let id = "fb70f637-60ca-4b9c-a4e2-e7f848b42261";
        for (text, short) in [
            (format!("cannot read packs/fb/{id}: gone"), "cannot read pack fb70f637: gone"),
            (format!("cannot read the block at 341 of pack {id}."), "cannot read the block at 341 of pack fb70f637."),
            (format!("(index/{id})"), "(index fb70f637)"),
            (
                format!("snapshots/{id}/0000000019-20261129T235417Z-5008c8a96c02423a: bad"),
                "snapshot 5008c8a9 of 2026-11-29T23:54:17Z: bad",
            ),
        ] {
            assert_eq!(shortened(&text), short);
        }
        for same in
            [String::new(), format!("/mnt/packs/fb/{id}"), format!("packs/aa/{id}"), id.into(), "é packs/ -".into()]
        {
            assert_eq!(shortened(&same), same);
        }
    }
}
