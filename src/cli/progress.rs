//! The progress of a run, as text and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::show::{clock, printable, rate, size};
use crate::monitor::{ProgressSnapshot, Total, Unit, count};

/// Minimum number of columns for the path; less important numbers are dropped to make room for it.
const PATH_COLUMNS: usize = 20;
/// Below this fraction, the remaining time is not estimated.
const MIN_FRACTION: f64 = 0.01;

/// The progress of a run at a moment.
pub(super) struct Status {
    pub(super) look: ProgressSnapshot,
    pub(super) elapsed: Duration,
}

impl Status {
    /// The estimated time left, at the average rate so far.
    fn remaining(&self) -> Option<Duration> {
        let done = self.look.fraction().filter(|done| *done >= MIN_FRACTION)?;
        Duration::try_from_secs_f64(self.elapsed.as_secs_f64() * (1.0 - done) / done).ok()
    }

    fn percent(&self) -> Option<String> {
        let percent = (self.look.fraction()? * 100.0).floor();
        Some(format!("{}{percent}%", self.about()))
    }

    /// The prefix of estimated numbers.
    fn about(&self) -> &'static str {
        match self.look.total {
            Some(Total { estimated: true, .. }) => "~",
            _ => "",
        }
    }

    fn count(&self, files: u64) -> String {
        match self.look.unit {
            Unit::Files => count(files, "file", "files"),
            Unit::Packs => count(files, "pack", "packs"),
            Unit::Chunks => count(files, "chunk", "chunks"),
        }
    }

    /// The finished bytes, unless they are not counted.
    fn bytes(&self) -> Option<String> {
        (self.look.unit != Unit::Chunks).then(|| size(self.look.bytes))
    }

    /// A line of at most `width` columns: the numbers, and the end of the path if it does not fit.
    pub(super) fn line(&self, width: usize) -> String {
        let ProgressSnapshot { files, read_bytes, stored_bytes, .. } = self.look;
        let some = |bytes: u64, text: String| (bytes > 0).then_some(text);
        let mut parts = [
            self.percent(),
            Some(self.count(files)),
            self.bytes(),
            some(read_bytes, rate(read_bytes, self.elapsed)),
            some(stored_bytes, format!("{} stored", size(stored_bytes))),
            Some(clock(self.elapsed)),
            self.remaining().map(|left| format!("ETA {}", clock(left))),
        ];
        let join = |parts: &[Option<String>]| parts.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("  ");
        let mut text = join(&parts);
        for dispensable in [3, 4] {
            if text.chars().count() + PATH_COLUMNS > width
                && let Some(part) = parts.get_mut(dispensable)
            {
                *part = None;
                text = join(&parts);
            }
        }
        let path = self.look.path.to_string_lossy();
        let room = width.saturating_sub(text.chars().count() + 2);
        format!("{text}  {}", end_of(&printable(&path), room))
    }

    /// All numbers and the whole path.
    pub(super) fn sentence(&self) -> String {
        let ProgressSnapshot { files, read_bytes, stored_bytes, total, path, .. } = &self.look;
        let about = self.about();
        let mut parts = Vec::new();
        parts.extend(self.percent().map(|percent| format!("{percent} done")));
        match total {
            Some(total) => {
                parts.push(format!("{files} of {about}{}", self.count(total.files)));
                parts.extend(self.bytes().map(|bytes| format!("{bytes} of {about}{}", size(total.bytes))));
            }
            None => parts.extend([Some(self.count(*files)), self.bytes()].into_iter().flatten()),
        }
        if *read_bytes > 0 {
            parts.push(format!("{} read ({})", size(*read_bytes), rate(*read_bytes, self.elapsed)));
        }
        if *stored_bytes > 0 {
            parts.push(format!("{} stored", size(*stored_bytes)));
        }
        parts.push(format!("{} elapsed", clock(self.elapsed)));
        parts.extend(self.remaining().map(|left| format!("{} left", clock(left))));
        if !path.as_os_str().is_empty() {
            parts.push(format!("at {}", path.display()));
        }
        printable(&parts.join(", ")).into_owned()
    }

    /// A few words for `systemctl status`, without names of files.
    pub(super) fn brief(&self) -> String {
        let percent = self.look.fraction().map(|done| format!("{}{} %", self.about(), (done * 100.0).floor()));
        let left = self.remaining().map(|left| match left.as_secs() {
            seconds @ ..60 => format!("{seconds} s left"),
            seconds @ 60..3600 => format!("{} min left", seconds / 60),
            seconds => format!("{} h {} min left", seconds / 3600, seconds / 60 % 60),
        });
        let counts = [Some(self.count(self.look.files)), self.bytes()].into_iter().flatten();
        let parts: Vec<_> = percent.into_iter().chain(left).collect();
        if parts.is_empty() { counts.collect::<Vec<_>>().join(", ") } else { parts.join(", ") }
    }

    /// A `status` object.
    pub(super) fn json(&self) -> Value {
        let look = &self.look;
        json!({
            "message_type": "status",
            "percent_done": look.fraction(),
            "files_done": look.files,
            "total_files": look.total.map(|total| total.files),
            "bytes_done": look.bytes,
            "total_bytes": look.total.map(|total| total.bytes),
            "total_estimated": look.total.map(|total| total.estimated),
            "bytes_read": look.read_bytes,
            "stored_bytes": look.stored_bytes,
            "seconds_elapsed": self.elapsed.as_secs(),
            "seconds_remaining": self.remaining().map(|left| left.as_secs()),
            "path": look.path.to_string_lossy(),
        })
    }
}

/// The end of a text, in at most `room` columns. Each character counts as one column.
fn end_of(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    std::iter::once('…').take(room).chain(text.chars().skip(length + 1 - room.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halfway(estimated: bool) -> Status {
        let look = ProgressSnapshot {
            files: 1000,
            unit: Unit::Files,
            bytes: 1 << 30,
            read_bytes: 100 << 20,
            stored_bytes: 50 << 20,
            total: Some(Total { files: 2000, bytes: 2 << 30, estimated }),
            path: "/home/alice/photos/2026/holidays/one.jpg".into(),
        };
        Status { look, elapsed: Duration::from_secs(100) }
    }

    #[test]
    fn a_line_fits_every_width() {
        let status = halfway(true);
        assert_eq!(
            status.line(120),
            "~50%  1000 files  1.00 GiB  1.00 MiB/s  50.0 MiB stored  1:40  ETA 1:40  \
             /home/alice/photos/2026/holidays/one.jpg"
        );
        assert_eq!(status.line(80), "~50%  1000 files  1.00 GiB  50.0 MiB stored  1:40  ETA 1:40  …6/holidays/one.jpg");
        for width in 0..200 {
            let line = status.line(width);
            assert!(line.chars().count() <= width.max(45), "{width}: {line}");
        }
        assert!(halfway(false).line(80).starts_with("50%"));
    }

    #[test]
    fn unknown_numbers_are_left_out() {
        let status = Status {
            look: ProgressSnapshot { files: 3, ..ProgressSnapshot::default() },
            elapsed: Duration::from_millis(400),
        };
        assert_eq!(status.line(80), "3 files  0 B  0:00  ");
        assert_eq!(status.sentence(), "3 files, 0 B, 0:00 elapsed");
        let json = status.json();
        for field in ["percent_done", "total_files", "total_bytes", "seconds_remaining"] {
            assert!(json[field].is_null(), "{json}");
        }
    }

    #[test]
    fn the_status_of_a_service_is_short() {
        let mut status = halfway(false);
        assert_eq!(status.brief(), "50 %, 1 min left");
        status.elapsed = Duration::from_secs(2);
        assert_eq!(status.brief(), "50 %, 2 s left");
        status.elapsed = Duration::from_secs(3 * 3600 + 65);
        assert_eq!(status.brief(), "50 %, 3 h 1 min left");
        assert!(halfway(true).brief().starts_with("~50 %, "));
        status.look.total = None;
        assert_eq!(status.brief(), "1000 files, 1.00 GiB");
    }

    #[test]
    fn what_is_counted_has_its_name() {
        let mut status = halfway(false);
        status.look.unit = Unit::Packs;
        assert!(status.line(120).starts_with("50%  1000 packs  1.00 GiB  "));
        assert!(status.sentence().contains("1000 of 2000 packs, 1.00 GiB of 2.00 GiB, "));
        status.look.unit = Unit::Chunks;
        assert!(status.line(120).starts_with("50%  1000 chunks  1.00 MiB/s  "));
        assert!(status.sentence().contains("1000 of 2000 chunks, 100 MiB read"));
        status.look.total = None;
        assert_eq!(status.brief(), "1000 chunks");
    }

    #[test]
    fn a_report_has_all_numbers() {
        assert_eq!(
            halfway(true).sentence(),
            "~50% done, 1000 of ~2000 files, 1.00 GiB of ~2.00 GiB, 100 MiB read (1.00 MiB/s), 50.0 MiB stored, \
             1:40 elapsed, 1:40 left, at /home/alice/photos/2026/holidays/one.jpg"
        );
        let json = halfway(false).json();
        assert_eq!(json["percent_done"], 0.5);
        assert_eq!(json["total_estimated"], false);
        assert_eq!(json["seconds_remaining"], 100);
    }

    #[test]
    fn control_characters_in_paths_are_escaped() {
        let mut status = halfway(false);
        status.look.path = "/a\x1b[2J\n".into();
        assert!(!status.line(200).contains(char::is_control));
        assert!(!status.sentence().contains(char::is_control));
    }
}
