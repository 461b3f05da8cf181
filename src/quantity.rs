//! Quantities as users write them, on the command line and in configuration files.

use std::num::NonZeroU64;
use std::time::Duration;

/// Parses a size: a number of bytes, or a number with K, M, G or T (KiB, KB and kb mean the same as K). The number may have a
/// fraction, as in 1.5G; a part of a byte is dropped.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {unit:?}; write a number with K, M, G or T")),
    };
    let expected = || "expected a number, such as 100, 1.5G or 32MiB".to_owned();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = if whole.is_empty() && number.len() > 1 { "0" } else { whole };
    // Nine digits are exact enough for a quantity of bytes.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let scale = u32::try_from(fraction.len()).map_or(1, |digits| 10_u128.pow(digits));
    let (whole, fraction): (u64, u128) =
        (whole.parse().map_err(|_| expected())?, fraction.parse().map_err(|_| expected())?);
    let bytes = (u128::from(whole) << shift) + (fraction << shift) / scale;
    u64::try_from(bytes).map_err(|_| "the size is too large".to_owned())
}

/// Parses a rate in bytes per second: a size, to which /s may be added.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let size = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    NonZeroU64::new(size).ok_or_else(|| "must not be 0".to_owned())
}

/// Parses a duration: a number of seconds, or numbers with units (500ms, 5s, 10m, 1h30m, 2d, 1w). A day has 24 hours.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let expected = "not a duration; write a number with ms, s, m, h, d or w";
    let span: jiff::Span = text.parse().map_err(|_| expected.to_owned())?;
    // Fails for months and years, whose length differs.
    let exact = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| expected.to_owned())?;
    Duration::try_from(exact).map_err(|_| "a duration cannot be negative".to_owned())
}

/// Parses a percentage from 0 to `most`, such as 20%, as a fraction. The sign may be missing.
pub fn parse_percent(text: &str, most: u32) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    let number = number.map_err(|_| "expected a percentage, such as 20%".to_owned())?;
    match (0.0..=f64::from(most)).contains(&number) {
        true => Ok(number / 100.0),
        false => Err(format!("expected 0% to {most}%")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let read = |text| parse_size(text);
        assert_eq!(["0", "100", "7b", "2K", "3MiB", "1 G"].map(read), [0, 100, 7, 2048, 3 << 20, 1 << 30].map(Ok));
        assert_eq!(["1.5G", "0.25kb", "2.0", "0.0009765625M"].map(read), [3 << 29, 256, 2, 1023].map(Ok));
        assert_eq!([".5G", "100 MB", "3 GiB"].map(read), [1 << 29, 100 << 20, 3 << 30].map(Ok));
        for bad in ["", "G", ".", ".G", "1.", "1.2.3", "-1", "5 parsecs", "16777216T", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(
            ["2MiB", "2MiB/s", "5"].map(|text| parse_rate(text).map(NonZeroU64::get)),
            [2 << 20, 2 << 20, 5].map(Ok)
        );
        for bad in ["0", "0/s", "/s", "2MiB/m", "2MiB/s/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        let read = |text| parse_duration(text).map(|time| time.as_millis());
        assert_eq!(["0", "7", "250ms", "5s", "1h30m"].map(read), [0, 7000, 250, 5000, 5_400_000].map(Ok));
        assert_eq!(["2d", "1w", "1d12h"].map(read), [172_800_000, 604_800_000, 129_600_000].map(Ok));
        assert_eq!(["2 days", "90sec", "1.5h"].map(read), [172_800_000, 90_000, 5_400_000].map(Ok));
        for bad in ["", "s", "-5s", "5 parsecs", "1.5", "1mo", "1y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(["0", "20%", "12.5 %"].map(|text| parse_percent(text, 100)), [0.0, 0.2, 0.125].map(Ok));
        for bad in ["", "%", "-1%", "101%", "NaN", "inf", "ten"] {
            assert!(parse_percent(bad, 100).is_err(), "{bad}");
        }
    }
}
