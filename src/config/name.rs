//! Names of sources and targets.

/// Checks the name of a source or a target: a lowercase letter, then lowercase letters, digits, `_` and `-`.
pub(super) fn check(name: &str) -> Result<&str, String> {
    let is_first = |c: char| c.is_ascii_lowercase();
    let is_next = |c: char| is_first(c) || c.is_ascii_digit() || matches!(c, '_' | '-');
    match name.starts_with(is_first) && name.chars().all(is_next) {
        true => Ok(name),
        false => {
            Err(format!("{name:?} is not a name: write a lowercase letter, then lowercase letters, digits, _ and -"))
        }
    }
}
