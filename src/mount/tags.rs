//! Snapshots by tag.
//!
//! Tags are stored in the encrypted snapshots, so the first access to `by-tag` opens all of them. They are not kept open,
//! only their numbers for each tag are.

use std::collections::{HashMap, HashSet};

use super::snapshot_index::{SnapshotIndex, VirtualFolder};

/// Maximum number of tags; further ones are not shown.
pub(super) const TAGS: u64 = (1 << 16) - 1;
/// Maximum length of a name on Linux, in bytes.
const NAME_MAX: usize = 255;

/// The tags read so far, and the directories of tags.
#[derive(Default)]
pub(super) struct TagIndex {
    /// Snapshots whose tags are known.
    known: HashSet<u64>,
    numbers: HashMap<String, u64>,
    /// By number.
    tags: Vec<Tag>,
    /// The directories of tags.
    top: VirtualFolder,
    /// The edition of the snapshot index that the directories show.
    edition: Option<u64>,
}

#[derive(Default)]
struct Tag {
    /// Name of its directory.
    name: String,
    /// All snapshots that ever had it.
    snapshots: Vec<u64>,
    links: VirtualFolder,
}

impl TagIndex {
    /// Whether the directories show the current edition of the snapshot index.
    pub(super) fn is_up_to_date(&self, index: &SnapshotIndex) -> bool {
        self.edition == Some(index.edition())
    }

    /// Whether the tags of a snapshot are known.
    pub(super) fn knows(&self, snapshot: u64) -> bool {
        self.known.contains(&snapshot)
    }

    /// Adds the tags of a snapshot.
    pub(super) fn add(&mut self, snapshot: u64, tags: &[String]) {
        if !self.known.insert(snapshot) {
            return;
        }
        for tag in tags {
            let Some(name) = folder_name(tag) else { continue };
            let next = self.tags.len() as u64;
            if next >= TAGS && !self.numbers.contains_key(&name) {
                continue;
            }
            let number = *self.numbers.entry(name.clone()).or_insert(next);
            if number == next {
                self.tags.push(Tag { name, ..Tag::default() });
            }
            if let Some(tag) = usize::try_from(number).ok().and_then(|at| self.tags.get_mut(at))
                && tag.snapshots.last() != Some(&snapshot)
            {
                tag.snapshots.push(snapshot);
            }
        }
    }

    /// Rebuilds the directories, with a link for each existing snapshot.
    pub(super) fn show(&mut self, index: &SnapshotIndex) {
        self.top.clear();
        for (number, tag) in (0..).zip(&mut self.tags) {
            tag.links.clear();
            for snapshot in &tag.snapshots {
                if let Some((source, time)) = index.shown(*snapshot) {
                    tag.links.add(format!("{source}-{time}"), *snapshot);
                }
            }
            if !tag.links.is_empty() {
                self.top.add(tag.name.clone(), number);
            }
        }
        self.edition = Some(index.edition());
    }

    /// The directories of tags, with their numbers.
    pub(super) fn top(&self) -> &VirtualFolder {
        &self.top
    }

    /// Returns the directory of a tag: links, with the numbers of their snapshots. `None` if it has no links.
    pub(super) fn links_of(&self, tag: u64) -> Option<&VirtualFolder> {
        let tag = self.tags.get(usize::try_from(tag).ok()?)?;
        Some(&tag.links).filter(|links| !links.is_empty())
    }
}

/// Returns the target of the link to a snapshot in the directory of a tag.
pub(super) fn target(index: &SnapshotIndex, snapshot: u64) -> Option<String> {
    index.shown(snapshot).map(|(source, time)| format!("../../{source}/{time}"))
}

/// Returns the name of a tag's directory: the tag, in which `%`, characters that a file name cannot contain, and the dots
/// of `.` and `..` are written as `%` and two hex digits. `None` if the tag is empty or the name too long.
fn folder_name(tag: &str) -> Option<String> {
    let is_dots = matches!(tag, "." | "..");
    let mut name = String::with_capacity(tag.len());
    for c in tag.chars() {
        match c {
            '/' | '%' | '\0' => name.push_str(&format!("%{:02X}", u32::from(c))),
            '.' if is_dots => name.push_str("%2E"),
            c => name.push(c),
        }
    }
    (!name.is_empty() && name.len() <= NAME_MAX).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_any_tag_is_a_valid_file_name() {
        let names = ["weekly", "before/after", "50%", "..", ".", "a.b", "50%25"].map(|tag| folder_name(tag).unwrap());
        assert_eq!(names, ["weekly", "before%2Fafter", "50%25", "%2E%2E", "%2E", "a.b", "50%2525"]);
        assert_eq!(folder_name(&"x".repeat(256)), None);
        assert_eq!(folder_name(""), None);
    }

    #[test]
    fn tags_beyond_the_maximum_are_ignored() {
        let mut tags = TagIndex::default();
        for number in 0..TAGS + 10 {
            tags.add(number, &[format!("tag {number}"), "tag 0".into()]);
        }
        assert_eq!(tags.tags.len() as u64, TAGS);
        assert_eq!(tags.tags[0].snapshots.len() as u64, TAGS + 10, "all snapshots have the first tag");
    }
}
