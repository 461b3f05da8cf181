//! Index nodes over the segments of a directory, and over the extents of a file.

use super::nodes::{Link, Nodes, PLACEHOLDER, Purpose};
use crate::backup::error::Error;
use crate::format::entry::NodeRef;
use crate::format::{Items, Segment};

/// A segment, or an index over segments, and the link to its node.
pub(super) type LinkedSegment = (Segment, Link);

/// A node of extents, or an index over such nodes.
pub(super) struct LinkedExtents {
    /// Bytes of the file that it covers.
    pub(super) covers: u64,
    pub(super) link: Link,
}

/// Puts indexes above the segments of a directory of this owner until one node can list them. Returns the top node;
/// `None` if there are no segments.
pub(super) fn over_segments(
    nodes: &mut Nodes<'_>,
    owner: u32,
    mut parts: Vec<LinkedSegment>,
    most: usize,
) -> Result<Option<Link>, Error> {
    while parts.len() > most {
        let mut above = Vec::with_capacity(parts.len() / most + 1);
        let mut rest = parts.into_iter().peekable();
        while rest.peek().is_some() {
            let some: Vec<_> = rest.by_ref().take(most).collect();
            let segment = Segment {
                first: some.first().map(|(part, _)| part.first.clone()).unwrap_or_default(),
                entries: some.iter().map(|(part, _)| part.entries).sum(),
                span: some.iter().map(|(part, _)| part.span).sum(),
                node: PLACEHOLDER,
            };
            above.push((segment, segment_index(nodes, owner, some)?));
        }
        parts = above;
    }
    match parts.len() {
        0 | 1 => Ok(parts.pop().map(|(_, link)| link)),
        _ => segment_index(nodes, owner, parts).map(Some),
    }
}

fn segment_index(nodes: &mut Nodes<'_>, owner: u32, parts: Vec<LinkedSegment>) -> Result<Link, Error> {
    let (segments, links): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let key = nodes.open(owner, Purpose::Index, Items::Segments(segments));
    for (item, link) in links.into_iter().enumerate() {
        nodes.depend(key, item, 0, link)?;
    }
    nodes.close(key)
}

/// Puts indexes above nodes of extents until at most `most` are left. Returns the number of index levels, and those.
pub(super) fn over_extents(
    nodes: &mut Nodes<'_>,
    owner: u32,
    mut parts: Vec<LinkedExtents>,
    most: usize,
) -> Result<(u8, Vec<LinkedExtents>), Error> {
    let mut depth = 0;
    while parts.len() > most {
        let mut above = Vec::with_capacity(parts.len() / most + 1);
        for some in parts.chunks(most) {
            let items = some.iter().map(|part| NodeRef { covers: part.covers, node: PLACEHOLDER });
            let key = nodes.open(owner, Purpose::Extents, Items::ExtentIndex(items.collect()));
            for (item, part) in some.iter().enumerate() {
                nodes.depend(key, item, 0, part.link.clone())?;
            }
            above.push(LinkedExtents { covers: some.iter().map(|part| part.covers).sum(), link: nodes.close(key)? });
        }
        parts = above;
        depth += 1;
    }
    Ok((depth, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;
    use crate::format::Extent;

    fn leaf(nodes: &mut Nodes<'_>, length: u64) -> Link {
        let key = nodes.open(0, Purpose::Extents, Items::Extents(vec![Extent::Hole(length)]));
        nodes.close(key).unwrap()
    }

    #[test]
    fn extents_get_as_many_levels_as_they_need() {
        Site::new().with_nodes(|mut nodes| {
            for (count, depth, top) in [(0, 0, 0), (3, 0, 3), (4, 1, 2), (9, 1, 3), (10, 2, 2)] {
                let parts =
                    (1..=count).map(|covers| LinkedExtents { covers, link: leaf(&mut nodes, covers) }).collect();
                let (levels, parts) = over_extents(&mut nodes, 0, parts, 3).unwrap();
                assert_eq!((levels, parts.len()), (depth, top), "{count}");
                assert_eq!(parts.iter().map(|part| part.covers).sum::<u64>(), (1..=count).sum::<u64>());
            }
        });
    }

    #[test]
    fn segments_have_one_top_node() {
        Site::new().with_nodes(|mut nodes| {
            for count in [0, 1, 3, 4, 28] {
                let part = |nodes: &mut Nodes<'_>, number: u64| {
                    let first = number.to_be_bytes().to_vec();
                    (Segment { first, entries: 1, span: 2, node: PLACEHOLDER }, leaf(nodes, number))
                };
                let parts = (0..count).map(|number| part(&mut nodes, number)).collect();
                let top = over_segments(&mut nodes, 0, parts, 3).unwrap();
                assert_eq!(top.is_some(), count > 0, "{count}");
            }
        });
    }
}
