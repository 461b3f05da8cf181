//! Lines of listings of folders. A line that is not understood is an error: a listing without some objects would be wrong.

/// An entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'l> {
    pub(super) name: &'l str,
    pub(super) kind: Kind,
    /// In bytes; 0 if it is not a file.
    pub(super) length: u64,
}

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// The listed folder itself, or the one above it.
    Listed,
    Other,
}

/// A line that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Parses a line of MLSD: `type=file;size=5;modify=20260101000000; name`.
pub(super) fn parse_machine(line: &str) -> Result<Option<Entry<'_>>, Malformed> {
    if line.is_empty() {
        return Ok(None);
    }
    let (facts, name) = line.split_once(' ').ok_or(Malformed)?;
    let fact = |wanted: &str| {
        let mut facts = facts.split(';').filter_map(|fact| fact.split_once('='));
        facts.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    };
    let kind = match fact("type").ok_or(Malformed)?.to_ascii_lowercase().as_str() {
        "cdir" | "pdir" => Kind::Listed,
        "dir" if matches!(name, "." | "..") => Kind::Listed,
        "dir" => Kind::Folder,
        "file" => Kind::File,
        _ => Kind::Other,
    };
    let length = match kind {
        Kind::File => fact("size").and_then(|size| size.parse().ok()).ok_or(Malformed)?,
        _ => 0,
    };
    Ok(Some(Entry { name, kind, length }))
}

/// Parses a line of LIST as most servers write it: `-rw-r--r-- 1 user group 5 Jan 31 12:00 name`. `None` for the line with
/// the total.
pub(super) fn parse_unix(line: &str) -> Result<Option<Entry<'_>>, Malformed> {
    if line.is_empty() || line.starts_with("total ") {
        return Ok(None);
    }
    let (mode, _) = line.split_at_checked(10).ok_or(Malformed)?;
    let is_mode = mode.bytes().skip(1).all(|byte| b"rwxsStTlL-".contains(&byte));
    let kind = match mode.as_bytes().first() {
        _ if !is_mode => return Err(Malformed),
        Some(b'-') => Kind::File,
        Some(b'd') => Kind::Folder,
        Some(b'l' | b'b' | b'c' | b'p' | b's') => Kind::Other,
        _ => return Err(Malformed),
    };
    let mut words = Words { line, at: 0 };
    let words: [(&str, usize); 8] = std::array::from_fn(|_| words.next());
    let is_month = |word: &str| {
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"].contains(&word)
    };
    // Mode, links, user, group, size, month, day, time. Some servers leave out the group; a device has two numbers.
    let month = match words.iter().position(|(word, _)| is_month(word)) {
        Some(at @ (4 | 5)) => at,
        Some(6) if kind == Kind::Other => return Ok(Some(Entry { name: "?", kind, length: 0 })),
        _ => return Err(Malformed),
    };
    let word = |at: usize| words.get(at).map_or("", |(word, _)| *word);
    let (size, day, time) = (word(month - 1), word(month + 1), word(month + 2));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_time = match time.split_once(':') {
        Some((hour, minute)) => is_number(hour) && is_number(minute),
        None => time.len() == 4 && is_number(time),
    };
    if !is_number(day) || !is_time {
        return Err(Malformed);
    }
    let length = match kind {
        Kind::File => size.parse().ok().filter(|_| is_number(size)).ok_or(Malformed)?,
        _ => 0,
    };
    let end = words.get(month + 2).map_or(0, |(_, end)| *end);
    let name =
        line.get(end..).and_then(|rest| rest.strip_prefix(' ')).filter(|name| !name.is_empty()).ok_or(Malformed)?;
    let kind = if kind == Kind::Folder && matches!(name, "." | "..") { Kind::Listed } else { kind };
    Ok(Some(Entry { name, kind, length }))
}

/// The words of a line, each with the place where it ends.
struct Words<'l> {
    line: &'l str,
    at: usize,
}

impl<'l> Words<'l> {
    /// The next word; an empty one at the end.
    fn next(&mut self) -> (&'l str, usize) {
        let rest = self.line.get(self.at..).unwrap_or_default();
        let word = rest.trim_start_matches(' ');
        let start = self.at + rest.len() - word.len();
        let word = word.split(' ').next().unwrap_or_default();
        self.at = start + word.len();
        (word, self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, kind: Kind, length: u64) -> Result<Option<Entry<'_>>, Malformed> {
        Ok(Some(Entry { name, kind, length }))
    }

    #[test]
    fn listings_for_programs_are_parsed() {
        for (line, expected) in [
            ("type=file;size=5;modify=20260101000000; a b;c=d", entry("a b;c=d", Kind::File, 5)),
            ("Size=7;Type=FILE;UNIX.mode=0644; x", entry("x", Kind::File, 7)),
            ("type=dir;perm=el; packs", entry("packs", Kind::Folder, 0)),
            ("type=cdir;modify=1; /repo", entry("/repo", Kind::Listed, 0)),
            ("type=dir; ..", entry("..", Kind::Listed, 0)),
            ("type=OS.unix=slink:/etc; link", entry("link", Kind::Other, 0)),
            ("", Ok(None)),
            ("type=file; x", Err(Malformed)),
            ("type=file;size=-1; x", Err(Malformed)),
            ("size=5; x", Err(Malformed)),
            ("type=file;size=5;x", Err(Malformed)),
            ("-rw-r--r--   1 u g 5 Jan  1 00:00 x", Err(Malformed)),
        ] {
            assert_eq!(parse_machine(line), expected, "{line}");
        }
    }

    #[test]
    fn listings_as_by_ls_are_parsed_and_others_refused() {
        for (line, expected) in [
            ("-rw-r--r--    1 113      120             5 Nov 29 12:00 a b", entry("a b", Kind::File, 5)),
            ("-rw-r--r--   1 user group 18446744073709551615 Feb  3  2024  x", entry(" x", Kind::File, u64::MAX)),
            ("-rw------- 1 user 9 Mar 10 01:02 no-group", entry("no-group", Kind::File, 9)),
            ("drwxr-xr-x    2 0        0            4096 Nov 29 12:00 packs", entry("packs", Kind::Folder, 0)),
            ("drwxr-xr-t    2 0        0            4096 Nov 29 12:00 .", entry(".", Kind::Listed, 0)),
            ("lrwxrwxrwx 1 u g 4 Jan 31 12:00 a -> b", entry("a -> b", Kind::Other, 0)),
            ("crw-rw-rw- 1 u g 1, 3 Jan 31 12:00 null", entry("?", Kind::Other, 0)),
            ("total 12", Ok(None)),
            ("", Ok(None)),
            ("01-31-26  12:00PM       <DIR>          packs", Err(Malformed)),
            ("-rw-r--r-- 1 u g 5 jan 31 12:00 x", Err(Malformed)),
            ("-rw-r--r-- 1 u g 5 Jän 31 12:00 x", Err(Malformed)),
            ("-rw-r--r-- 1 u g x5 Jan 31 12:00 x", Err(Malformed)),
            ("-rw-r--r-- 1 u g +5 Jan 31 12:00 x", Err(Malformed)),
            ("-rw-r--r-- 1 u g 5 Jan 31 noon x", Err(Malformed)),
            ("-rw-r--r-- 1 u g 5 Jan 31 12:00", Err(Malformed)),
            ("-rw-r--r-- 1 u g 5 Jan 31 12:00 ", Err(Malformed)),
            ("ls: /x: Permission denied", Err(Malformed)),
            ("-rw€r--r-- 1", Err(Malformed)),
        ] {
            assert_eq!(parse_unix(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "[-d ]?[rwx-]{0,9}[ 0-9a-zA-Zé:;=]*") {
            let _ = (parse_machine(&line), parse_unix(&line));
        }
    }
}
