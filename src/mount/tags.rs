//! Snapshots by their tags.
//!
//! Tags stand in the sealed snapshots, so all of them have to be opened: once, when somebody looks. They are not kept
//! open; what stays is which of them have which tag.

use std::collections::{HashMap, HashSet};

use super::snapshot_index::{SnapshotIndex, VirtualFolder};

/// Numbers of tags are below this. Who has more of them sees the first.
pub(super) const TAGS: u64 = (1 << 16) - 1;
/// Most bytes of a name on Linux.
const NAME_MAX: usize = 255;

/// Tags as far as they were looked at.
#[derive(Default)]
pub(super) struct TagIndex {
    /// Snapshots whose tags are known.
    known: HashSet<u64>,
    numbers: HashMap<String, u64>,
    /// By number.
    tags: Vec<Tag>,
    /// Folders of tags.
    top: VirtualFolder,
    /// The edition of the index from which folders were filled.
    edition: Option<u64>,
}

#[derive(Default)]
struct Tag {
    /// Its folder's name.
    name: String,
    /// All that ever had it.
    snapshots: Vec<u64>,
    links: VirtualFolder,
}

impl TagIndex {
    /// Whether the folders show what the index does.
    pub(super) fn is_up_to_date(&self, index: &SnapshotIndex) -> bool {
        self.edition == Some(index.edition())
    }

    /// Whether the tags of a snapshot are known.
    pub(super) fn knows(&self, snapshot: u64) -> bool {
        self.known.contains(&snapshot)
    }

    /// Takes in the tags of a snapshot.
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

    /// Fills the folders anew: with a link for each snapshot that is there.
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

    /// Folders of tags, with their numbers.
    pub(super) fn top(&self) -> &VirtualFolder {
        &self.top
    }

    /// The folder of a tag: links, with the numbers of the snapshots that they lead to. None if there are none (any more).
    pub(super) fn links_of(&self, tag: u64) -> Option<&VirtualFolder> {
        let tag = self.tags.get(usize::try_from(tag).ok()?)?;
        Some(&tag.links).filter(|links| !links.is_empty())
    }
}

/// Where the link to a snapshot leads from the folder of a tag.
pub(super) fn target(index: &SnapshotIndex, snapshot: u64) -> Option<String> {
    index.shown(snapshot).map(|(source, time)| format!("../../{source}/{time}"))
}

/// The name of a tag's folder: the tag, with what can't be in a name as `%` and two digits, and then `%` itself so too.
/// None for a tag that is too long.
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
    fn any_tag_has_a_name_that_a_folder_can_have() {
        let names = ["weekly", "before/after", "50%", "..", ".", "a.b", "50%25"].map(|tag| folder_name(tag).unwrap());
        assert_eq!(names, ["weekly", "before%2Fafter", "50%25", "%2E%2E", "%2E", "a.b", "50%2525"]);
        assert_eq!(folder_name(&"x".repeat(256)), None);
        assert_eq!(folder_name(""), None);
    }

    #[test]
    fn more_tags_than_there_are_numbers_do_no_harm() {
        let mut tags = TagIndex::default();
        for number in 0..TAGS + 10 {
            tags.add(number, &[format!("tag {number}"), "tag 0".into()]);
        }
        assert_eq!(tags.tags.len() as u64, TAGS);
        assert_eq!(tags.tags[0].snapshots.len() as u64, TAGS + 10, "the first is had by all");
    }
}
