//! The priority of the steps of a run: `nice` and `io`.

use super::settings::Settings;

/// The priority of a step. `None` changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Priority {
    /// The nice value, from 0 to 19. A higher one that the process has is kept.
    pub nice: Option<u8>,
    /// The class of its reads and writes.
    pub io: Option<IoClass>,
}

/// When the reads and writes of a process are served, compared with those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoClass {
    /// Only if no other process needs the disk.
    Idle,
    /// In turn with others. The level is from 0 (first) to 7.
    BestEffort(u8),
}

/// The level of ionice(1) without a number.
const BEST_EFFORT: u8 = 4;

impl Priority {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Priority { nice: settings.quantity("nice", nice), io: settings.parsed("io", io_class) }
    }
}

fn nice(text: &str) -> Result<u8, &'static str> {
    text.parse().ok().filter(|value| *value <= 19).ok_or("write a whole number from 0 to 19")
}

fn io_class(text: &str) -> Result<IoClass, &'static str> {
    let mut words = text.split(' ');
    let level = |word: &str| word.parse().ok().filter(|level| *level <= 7);
    let class = match (words.next(), words.next(), words.next()) {
        (Some("idle"), None, _) => Some(IoClass::Idle),
        (Some("best-effort"), None, _) => Some(IoClass::BestEffort(BEST_EFFORT)),
        (Some("best-effort"), Some(word), None) => level(word).map(IoClass::BestEffort),
        _ => None,
    };
    class.ok_or("write \"idle\", \"best-effort\", or \"best-effort N\" with a number from 0 to 7")
}
