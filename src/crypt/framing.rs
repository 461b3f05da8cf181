//! Packet headers, and splitting messages into packets.
//!
//! Only the new format with definite lengths is accepted. Literal packets must be byte for byte as brackfs writes them.

use super::error::Error;

pub(super) const PKESK: u8 = 1;
pub(super) const SIGNATURE: u8 = 2;
const SKESK: u8 = 3;
pub(super) const ONE_PASS_SIGNATURE: u8 = 4;
const COMPRESSED: u8 = 8;
pub(super) const LITERAL: u8 = 11;
pub(super) const SEIPD: u8 = 18;

/// The most recipients of a message.
const MAX_RECIPIENTS: usize = 64;

/// Appends the header of a packet with `length` bytes, always with a five-octet length.
pub(super) fn push_header(tag: u8, length: usize, out: &mut Vec<u8>) -> Result<(), Error> {
    let limit = u32::MAX;
    let length = u32::try_from(length).map_err(|_| Error::TooLarge { size: length as u64, limit: u64::from(limit) })?;
    out.extend([0xC0 | tag, 0xFF]);
    out.extend(length.to_be_bytes());
    Ok(())
}

/// The plaintext of an encrypted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    /// One literal packet with the content.
    Literal,
    /// A sequence of packets; these are the content.
    Packets,
}

/// The number of bytes before the content of a literal packet.
const LITERAL_HEAD: usize = 12;

impl Payload {
    /// Returns the plaintext before `content` bytes of content.
    pub(super) fn head(self, content: usize) -> Result<Vec<u8>, Error> {
        let mut head = Vec::with_capacity(LITERAL_HEAD);
        if self == Payload::Literal {
            // The start of the body: binary, no file name, no date.
            push_header(LITERAL, content.saturating_add(6), &mut head)?;
            head.extend([b'b', 0, 0, 0, 0, 0]);
        }
        Ok(head)
    }

    /// Returns the head that a plaintext of `size` bytes must start with, and the number of bytes of content after it,
    /// which must not exceed `limit`.
    pub(super) fn expected(self, size: usize, limit: usize) -> Result<(Vec<u8>, usize), Error> {
        let head = match self {
            Payload::Literal => LITERAL_HEAD,
            Payload::Packets => 0,
        };
        let content = size.checked_sub(head).ok_or(Error::Damaged { what: "it is too short" })?;
        if content > limit {
            return Err(Error::TooLarge { size: content as u64, limit: limit as u64 });
        }
        Ok((self.head(content)?, content))
    }
}

/// Returns the content of a literal packet; `None` if brackfs would not write it like this.
pub(super) fn literal_content(packet: &[u8]) -> Option<&[u8]> {
    let head = Payload::Literal.head(packet.len().checked_sub(LITERAL_HEAD)?).ok()?;
    packet.strip_prefix(head.as_slice())
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet<'m> {
    pub(super) tag: u8,
    /// The packet with its header.
    pub(super) raw: &'m [u8],
    pub(super) body: &'m [u8],
}

impl<'m> Packet<'m> {
    /// Splits off the first packet.
    pub(super) fn split(bytes: &'m [u8]) -> Result<(Self, &'m [u8]), Error> {
        let cut = Error::Damaged { what: "it is cut off" };
        let (tag, header, length) = match *bytes {
            [first, ..] if first & 0xC0 != 0xC0 => {
                return Err(Error::Refused { what: "it does not consist of OpenPGP packets in the new format" });
            }
            [first, length @ 0..192, ..] => (first, 2, usize::from(length)),
            [first, high @ 192..224, low, ..] => (first, 3, (usize::from(high) - 192) * 256 + usize::from(low) + 192),
            [first, 255, a, b, c, d, ..] => (first, 6, u32::from_be_bytes([a, b, c, d]) as usize),
            [_, 224..=254, ..] => return Err(Error::Refused { what: "it has a packet of unknown length" }),
            _ => return Err(cut),
        };
        let end = length.saturating_add(header);
        match (bytes.split_at_checked(end), bytes.get(header..end)) {
            (Some((raw, rest)), Some(body)) => Ok((Packet { tag: tag & 0x3F, raw, body }, rest)),
            _ => Err(cut),
        }
    }
}

/// A sealed message, split into its packets.
#[derive(Debug)]
pub(super) struct Envelope<'m> {
    /// All PKESK packets (the session key encrypted to each recipient), with their headers.
    pub(super) pkesks: &'m [u8],
    /// The bodies of the PKESK packets.
    pub(super) recipients: Vec<&'m [u8]>,
    /// The version of the encrypted packet.
    pub(super) version: u8,
    /// The body of the encrypted packet without the version.
    pub(super) sealed: &'m [u8],
}

impl<'m> Envelope<'m> {
    /// Splits a sealed message. Refuses anything except PKESK packets and one encrypted packet.
    pub(super) fn parse(message: &'m [u8]) -> Result<Self, Error> {
        let mut recipients = Vec::new();
        let mut rest = message;
        loop {
            let here = rest;
            let packet;
            (packet, rest) = Packet::split(rest)?;
            let what = match packet.tag {
                PKESK if recipients.len() < MAX_RECIPIENTS => {
                    recipients.push(packet.body);
                    continue;
                }
                PKESK => "it has more than 64 recipients",
                SEIPD if recipients.is_empty() => "it has no recipient",
                SEIPD if !rest.is_empty() => "it has data after the encrypted packet",
                SEIPD => {
                    let pkesks = message.get(..message.len() - here.len()).unwrap_or_default();
                    let (&version, sealed) =
                        packet.body.split_first().ok_or(Error::Damaged { what: "it is cut off" })?;
                    return Ok(Envelope { pkesks, recipients, version, sealed });
                }
                SKESK => "it is encrypted with a password",
                COMPRESSED => "it holds compressed data",
                LITERAL | SIGNATURE | ONE_PASS_SIGNATURE => "it is not encrypted",
                _ => "it holds an unexpected packet",
            };
            return Err(Error::Refused { what });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Envelope, LITERAL, Packet, Payload, literal_content, push_header};
    use crate::crypt::Error;

    #[test]
    fn all_forms_of_definite_lengths_are_parsed() {
        for length in [0usize, 1, 191, 192, 8383, 8384, 70_000] {
            let mut header = vec![0xC0 | LITERAL];
            match length {
                0..192 => header.push(length as u8),
                192..8384 => header.extend([((length - 192) / 256 + 192) as u8, ((length - 192) % 256) as u8]),
                _ => {
                    header.clear();
                    push_header(LITERAL, length, &mut header).unwrap();
                }
            }
            let bytes = [header, vec![7; length], vec![9]].concat();
            let (packet, rest) = Packet::split(&bytes).unwrap();
            assert_eq!((packet.tag, packet.body.len(), rest), (LITERAL, length, [9].as_slice()));
            assert!(Packet::split(&bytes[..bytes.len() - 2]).is_err() || length == 0);
        }
    }

    #[test]
    fn partial_indeterminate_and_old_lengths_are_refused() {
        for bytes in [[0xD2, 0xE1, 0, 0].as_slice(), &[0xD2, 0xFE, 0, 0], &[0x84, 1, 0], &[0xA7, 0], &[0x12, 0]] {
            assert!(matches!(Packet::split(bytes), Err(Error::Refused { .. })), "{bytes:x?}");
        }
        for bytes in [[].as_slice(), &[0xD2], &[0xD2, 1], &[0xD2, 0xFF, 0, 0, 0], &[0xD2, 0xFF, 255, 255, 255, 255]] {
            assert!(matches!(Packet::split(bytes), Err(Error::Damaged { .. })), "{bytes:x?}");
        }
    }

    #[test]
    fn a_sealed_message_has_only_recipients_and_one_encrypted_packet() {
        let (pkesk, skesk, seipd) = ([0xC1, 1, 3], [0xC3, 1, 4], [0xD2, 2, 1, 0]);
        let good = [pkesk.as_slice(), &pkesk, &seipd].concat();
        let envelope = Envelope::parse(&good).unwrap();
        assert_eq!((envelope.pkesks, envelope.recipients.len()), (&good[..6], 2));
        assert_eq!((envelope.version, envelope.sealed), (1, [0].as_slice()));
        let refused = |parts: &[&[u8]]| match Envelope::parse(&parts.concat()) {
            Err(Error::Refused { what }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[&pkesk, &skesk, &seipd]), "it is encrypted with a password");
        assert_eq!(refused(&[&seipd]), "it has no recipient");
        assert_eq!(refused(&[&pkesk, &seipd, &[0]]), "it has data after the encrypted packet");
        assert_eq!(refused(&[&pkesk, &[0xC8, 0]]), "it holds compressed data");
        assert_eq!(refused(&[&pkesk.repeat(65), &seipd]), "it has more than 64 recipients");
        assert!(Envelope::parse(&[pkesk.repeat(64), seipd.to_vec()].concat()).is_ok());
    }

    #[test]
    fn only_the_literal_packets_that_brackfs_writes_are_accepted() {
        let head = Payload::Literal.head(3).unwrap();
        let good = [head.as_slice(), b"abc"].concat();
        assert_eq!(literal_content(&good), Some(b"abc".as_slice()));
        for at in 0..head.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(literal_content(&bad), None);
        }
        assert_eq!(literal_content(&good[..14]), None);
        assert_eq!(literal_content(&[]), None);
    }
}
