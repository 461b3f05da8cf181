//! Fingerprints of keys.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

/// The fingerprint of a certificate: 40 (version 4) or 64 (version 6) upper-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(String);

impl From<sequoia_openpgp::Fingerprint> for Fingerprint {
    fn from(fingerprint: sequoia_openpgp::Fingerprint) -> Self {
        Fingerprint(fingerprint.to_hex())
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// Accepts spaces and lower-case digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_uppercase()).collect();
        if !matches!(digits.len(), 40 | 64) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::Fingerprint { text: text.to_owned() });
        }
        Ok(Fingerprint(digits))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn a_fingerprint_may_have_spaces_and_lower_case_digits() {
        let plain = "0123456789ABCDEF0123456789ABCDEF01234567";
        let copied = " 0123 4567 89ab cdef 0123  4567 89ab cdef 0123 4567\n";
        assert_eq!(copied.parse::<Fingerprint>().unwrap().to_string(), plain);
        assert_eq!("AB".repeat(32).parse::<Fingerprint>().unwrap().to_string(), "AB".repeat(32));
        for wrong in ["", "0123456789ABCDEF", &plain.replace('0', "G"), &format!("{plain}00"), &"é".repeat(20)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
        assert_eq!(
            "beef".parse::<Fingerprint>().unwrap_err().to_string(),
            "`beef` is not a key fingerprint: expected 40 or 64 hexadecimal digits"
        );
    }
}
