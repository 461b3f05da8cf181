//! Sealing and opening.

use std::io::Write;
use std::sync::Arc;
use std::thread;

use sequoia_openpgp::Packet;
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::serialize::stream::{Encryptor, LiteralWriter, Message};

use super::{LIMIT, PROFILES, content, opened, owner, sealed_to};
use crate::crypt::framing::{self, Envelope};
use crate::crypt::{Error, Opener, Profile, Sealer};
use crate::failure::Failure;

fn version(message: &[u8]) -> u8 {
    Envelope::parse(message).unwrap().version
}

fn pkesks(message: &[u8]) -> &[u8] {
    Envelope::parse(message).unwrap().pkesks
}

/// Replaces the encrypted packet of a message.
fn with_seipd(message: &[u8], body: &[u8]) -> Vec<u8> {
    let mut forged = pkesks(message).to_vec();
    framing::push_header(framing::SEIPD, body.len(), &mut forged).unwrap();
    [forged.as_slice(), body].concat()
}

#[test]
fn content_of_any_size_can_be_sealed_and_opened() {
    for (profile, expected) in PROFILES.into_iter().zip([2, 1]) {
        let key = owner(profile);
        let sealer = Sealer::new(&[key.certificate()]).unwrap();
        let opener = Opener::new(key).unwrap();
        let chunk = 256 << 10;
        for size in [0, 1, 4083, 4084, 4085, 4095, 4096, 4097, 32_768, chunk - 12, chunk - 11, chunk + 1, 1 << 20] {
            let content = content(size);
            // Earlier bytes in the buffer stay.
            let mut message = b"before".to_vec();
            sealer.seal(&content, &mut message).unwrap();
            let message = message.strip_prefix(b"before").unwrap();
            assert_eq!(version(message), expected);
            let mut out = b"before".to_vec();
            opener.open(message, size, &mut out).unwrap();
            assert!(out.strip_prefix(b"before").unwrap() == content, "{profile}, {size} bytes");
        }
        assert_eq!(opener.lookups(), 1);
    }
}

#[test]
fn packets_of_any_size_can_be_sealed_and_opened() {
    for profile in PROFILES {
        let key = owner(profile);
        let sealer = Sealer::new(&[key.certificate()]).unwrap();
        let opener = Opener::new(key).unwrap();
        for size in [0, 1, 4095, 4096, 4097, 300_000] {
            let content = content(size);
            let mut message = Vec::new();
            sealer.seal_message(&content, &mut message).unwrap();
            assert!(opener.open_message(&message, size).unwrap() == content);
        }
    }
}

#[test]
fn only_the_recipients_can_open_a_message() {
    for profile in PROFILES {
        let keys = [owner(profile), owner(profile), owner(profile)];
        let message = sealed_to(&keys.each_ref(), b"for three");
        for key in &keys {
            assert_eq!(opened(&Opener::new(key.clone()).unwrap(), &message).unwrap(), b"for three");
        }
        let stranger = Opener::new(owner(profile)).unwrap();
        let error = opened(&stranger, &message).unwrap_err();
        assert!(error.is_key_problem());
        match error {
            Error::NoKey { recipients, .. } => assert_eq!(recipients.split(", ").count(), 3),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn one_recipient_without_aead_makes_the_message_version_1() {
    let (new, old) = (owner(Profile::Rfc9580), owner(Profile::Rfc4880));
    let message = sealed_to(&[&new, &old], b"for both");
    assert_eq!(version(&message), 1);
    for key in [new, old] {
        assert_eq!(opened(&Opener::new(key).unwrap(), &message).unwrap(), b"for both");
    }
}

#[test]
fn a_repeated_recipient_gets_one_encrypted_session_key() {
    let key = owner(Profile::Rfc9580);
    assert_eq!(Envelope::parse(&sealed_to(&[&key, &key], b"")).unwrap().recipients.len(), 1);
}

#[test]
fn messages_share_a_session_key_but_no_ciphertext() {
    for profile in PROFILES {
        let sealer = Sealer::new(&[owner(profile).certificate()]).unwrap();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        sealer.seal(&[0; 1000], &mut one).unwrap();
        sealer.clone().seal(&[0; 1000], &mut two).unwrap();
        assert_eq!(pkesks(&one), pkesks(&two));
        let (one, two) = (&one[one.len() - 1000..], &two[two.len() - 1000..]);
        let same = one.iter().zip(two).filter(|(one, two)| one == two).count();
        assert!(same < 50, "{same} of 1000 bytes are the same");
    }
}

#[test]
fn many_threads_look_up_a_session_key_only_once() {
    let key = owner(Profile::Rfc9580);
    let message = Arc::new(sealed_to(&[&owner(Profile::Rfc9580), &key], b"once"));
    let opener = Opener::new(key).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(opened(&opener, &message).unwrap(), b"once"));
        }
    });
    assert_eq!(opener.lookups(), 1);
}

#[test]
fn a_message_that_is_too_large_is_refused_before_the_key_is_used() {
    for profile in PROFILES {
        let key = owner(profile);
        let message = sealed_to(&[&key], &content(5000));
        let opener = Opener::new(key).unwrap();
        let mut out = b"before".to_vec();
        let error = opener.open(&message, 4999, &mut out).unwrap_err();
        assert_eq!(
            error.to_string(),
            "refused to open the message: its content has 5000 bytes, more than the 4999 allowed"
        );
        assert!(!error.is_key_problem());
        assert_eq!((opener.lookups(), out.as_slice()), (0, b"before".as_slice()));
        opener.open(&message, 5000, &mut out).unwrap();
    }
}

#[test]
fn a_truncated_message_is_an_error() {
    for profile in PROFILES {
        let key = owner(profile);
        let message = sealed_to(&[&key], &content(4200));
        let opener = Opener::new(key).unwrap();
        for length in (0..500).chain(4000..message.len()) {
            let mut out = b"before".to_vec();
            assert!(opener.open(&message[..length], LIMIT, &mut out).is_err(), "{profile}, {length} bytes");
            assert_eq!(out, b"before");
        }
    }
}

#[test]
fn a_truncated_message_with_an_adjusted_length_is_an_error() {
    for profile in PROFILES {
        let key = owner(profile);
        let message = sealed_to(&[&key], &content(5000));
        let opener = Opener::new(key).unwrap();
        let body = [&[version(&message)], Envelope::parse(&message).unwrap().sealed].concat();
        assert_eq!(opened(&opener, &with_seipd(&message, &body)).unwrap(), content(5000));
        for length in 0..body.len() {
            assert!(opened(&opener, &with_seipd(&message, &body[..length])).is_err(), "{profile}, {length} bytes");
        }
    }
}

#[test]
fn flipping_any_bit_is_an_error_or_has_no_effect() {
    for profile in PROFILES {
        let key = owner(profile);
        let message = sealed_to(&[&key], b"small content");
        let pkesks = pkesks(&message).len();
        let opener = Opener::new(key).unwrap();
        for at in 0..message.len() {
            for bit in 0..8 {
                let mut flipped = message.clone();
                flipped[at] ^= 1 << bit;
                let mut out = b"before".to_vec();
                match opener.open(&flipped, LIMIT, &mut out) {
                    Err(_) => assert_eq!(out, b"before"),
                    // Some bits of a curve point and of a number are ignored.
                    Ok(()) if at < pkesks => assert_eq!(out, b"beforesmall content"),
                    Ok(()) => panic!("{profile}: bit {bit} of byte {at} can be flipped"),
                }
            }
        }
    }
}

#[test]
fn chunks_can_be_neither_swapped_nor_omitted() {
    let key = owner(Profile::Rfc9580);
    let content = content((512 << 10) + 100);
    let message = sealed_to(&[&key], &content);
    let opener = Opener::new(key).unwrap();
    let body = [&[2], Envelope::parse(&message).unwrap().sealed].concat();
    let (header, chunks) = body.split_at(36);
    let chunk = (256 << 10) + 16;
    let (one, two, rest) = (&chunks[..chunk], &chunks[chunk..2 * chunk], &chunks[2 * chunk..]);
    assert_eq!(opened(&opener, &with_seipd(&message, &[header, one, two, rest].concat())).unwrap(), content);
    for other in [[two, one, rest].concat(), [one, rest].concat(), [one, two, two, rest].concat(), [one, two].concat()]
    {
        let error = opened(&opener, &with_seipd(&message, &[header, &other].concat())).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. } | Error::Refused { .. }), "{error}");
    }
}

#[test]
fn other_algorithms_versions_and_chunk_sizes_are_refused() {
    let refused = |key: &super::SecretKey, at: usize, value: u8| {
        let message = sealed_to(&[key], b"content");
        let mut body = [&[version(&message)], Envelope::parse(&message).unwrap().sealed].concat();
        body[at] = value;
        match opened(&Opener::new(key.clone()).unwrap(), &with_seipd(&message, &body)) {
            Err(Error::Refused { what }) => what,
            other => panic!("{other:?}"),
        }
    };
    let (new, old) = (owner(Profile::Rfc9580), owner(Profile::Rfc4880));
    assert_eq!(refused(&new, 1, 7), "it is not encrypted with AES-256-OCB");
    assert_eq!(refused(&new, 2, 3), "it is not encrypted with AES-256-OCB");
    assert_eq!(refused(&new, 3, 17), "its chunks are larger than 4 MiB");
    assert_eq!(refused(&new, 0, 1), "the versions of its session key and its content do not match");
    assert_eq!(refused(&old, 0, 3), "the version of its encrypted packet is unknown");
}

#[test]
fn the_session_key_of_an_aead_message_does_not_open_version_1() {
    let (new, old) = (owner(Profile::Rfc9580), owner(Profile::Rfc4880));
    let aead = sealed_to(&[&new], b"content");
    let plain = sealed_to(&[&old], b"content");
    let forged = with_seipd(&aead, &[&[1], Envelope::parse(&plain).unwrap().sealed].concat());
    let error = opened(&Opener::new(new).unwrap(), &forged).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[test]
fn a_message_encrypted_with_a_password_is_refused() {
    let opener = Opener::new(owner(Profile::Rfc9580)).unwrap();
    let mut message = Vec::new();
    let encryptor = Encryptor::with_passwords(Message::new(&mut message), Some("password")).build().unwrap();
    let mut literal = LiteralWriter::new(encryptor).build().unwrap();
    literal.write_all(b"content").unwrap();
    literal.finalize().unwrap();
    let text = |message: &[u8]| opened(&opener, message).unwrap_err().to_string();
    let refusal = "refused to open the message, which brackfs did not write: it is encrypted with a password";
    assert_eq!(text(&message), refusal);
    // With a recipient as well.
    let addressed = sealed_to(&[&owner(Profile::Rfc9580)], b"content");
    assert_eq!(text(&[pkesks(&addressed), &message].concat()), refusal);
}

#[test]
fn partial_lengths_are_refused() {
    let key = owner(Profile::Rfc4880);
    let message = sealed_to(&[&key], &content(2000));
    let Envelope { pkesks, sealed, .. } = Envelope::parse(&message).unwrap();
    let (first, rest) = sealed.split_at(1023);
    let length = (rest.len() as u32).to_be_bytes();
    let partial = [pkesks, &[0xD2, 0xEA, 1], first, &[0xFF], &length, rest].concat();
    let error = opened(&Opener::new(key).unwrap(), &partial).unwrap_err();
    assert_eq!(
        error.to_string(),
        "refused to open the message, which brackfs did not write: it has a packet of unknown length"
    );
}

#[test]
fn content_other_than_a_single_literal_packet_is_refused() {
    for profile in PROFILES {
        let key = owner(profile);
        let sealer = Sealer::new(&[key.certificate()]).unwrap();
        let opener = Opener::new(key).unwrap();
        let literal = framing::Payload::Literal.head(3).unwrap();
        let good = [literal.as_slice(), b"abc"].concat();
        for (inside, is_good) in [
            (good.clone(), true),
            ([good.as_slice(), b"d"].concat(), false),
            ([good.as_slice(), &good].concat(), false),
            ([[0xC8, 0xFF, 0, 0, 0, 9].as_slice(), &[0; 9]].concat(), false),
            (vec![0xC8; 3], false),
            (Vec::new(), false),
        ] {
            let mut message = Vec::new();
            sealer.seal_message(&inside, &mut message).unwrap();
            assert_eq!(opened(&opener, &message).is_ok(), is_good, "{inside:x?}");
        }
    }
}

#[test]
fn a_hidden_recipient_can_open_the_message() {
    for profile in PROFILES {
        let (key, other) = (owner(profile), owner(profile));
        let message = sealed_to(&[&key], b"hidden");
        let envelope = Envelope::parse(&message).unwrap();
        let pkesk: Packet = match PKESK::from_bytes(envelope.recipients[0]).unwrap() {
            PKESK::V3(mut pkesk) => {
                pkesk.set_recipient(None);
                pkesk.into()
            }
            PKESK::V6(mut pkesk) => {
                pkesk.set_recipient(None);
                pkesk.into()
            }
            _ => unreachable!(),
        };
        let hidden = [pkesk.to_vec().unwrap().as_slice(), &message[envelope.pkesks.len()..]].concat();
        assert_eq!(opened(&Opener::new(key).unwrap(), &hidden).unwrap(), b"hidden");
        match opened(&Opener::new(other).unwrap(), &hidden) {
            Err(Error::NoKey { recipients, .. }) => assert_eq!(recipients, "a hidden recipient"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn another_implementation_opens_sealed_messages() {
    use pgp::composed::{Deserializable, Message, SignedSecretKey};
    for profile in PROFILES {
        let key = owner(profile);
        let theirs = key.to_armored().unwrap();
        let (theirs, _) = SignedSecretKey::from_armor_single(theirs.as_slice()).unwrap();
        for size in [0, 5000, 1 << 20] {
            let message = sealed_to(&[&key], &content(size));
            let message = Message::from_bytes(message.as_slice()).unwrap();
            let mut message = message.decrypt(&"".into(), &theirs).unwrap();
            assert!(message.as_data_vec().unwrap() == content(size), "{profile}, {size} bytes");
        }
    }
}
