//! Keys and certificates: usable for their purpose, or refused with the right message.

use std::time::{Duration, SystemTime};

use sequoia_openpgp::Cert;
use sequoia_openpgp::cert::{CertBuilder, CipherSuite, SubkeyRevocationBuilder};
use sequoia_openpgp::packet::Tag;
use sequoia_openpgp::packet::signature::SignatureBuilder;
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::{HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};

use super::{PROFILES, host, opened, owner, sealed_to, secret_key};
use crate::crypt::{Certificate, Error, KeyPurpose, Opener, Passphrase, Profile, Sealer, SecretKey, Signer};
use crate::failure::Failure;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn passphrase(text: &str) -> Passphrase {
    Passphrase::from(text.to_owned())
}

/// A user with a key created two days ago.
fn alice() -> CertBuilder<'static> {
    CertBuilder::new().add_userid("Alice").set_creation_time(SystemTime::now() - 2 * DAY)
}

fn certificate(cert: &Cert) -> Certificate {
    Certificate::parse(&cert.to_vec().unwrap()).unwrap()
}

fn refusal(cert: &Cert) -> String {
    let certificate = certificate(cert);
    let error = certificate.check_recipient().unwrap_err();
    assert_eq!(Sealer::new(&[certificate]).unwrap_err().to_string(), error.to_string());
    error.to_string().replace(&cert.fingerprint().to_hex(), "FINGERPRINT")
}

#[test]
fn generated_keys_are_usable_for_their_purpose() {
    for (profile, digits) in PROFILES.into_iter().zip([64, 40]) {
        for purpose in [KeyPurpose::Owner, KeyPurpose::Host] {
            let key = SecretKey::generate(profile, "Olga <olga@example.org>", purpose, None).unwrap();
            let certificate = key.certificate();
            assert_eq!(certificate.fingerprint().to_string().len(), digits);
            assert_eq!(certificate.user_id().as_deref(), Some("Olga <olga@example.org>"));
            certificate.check_recipient().unwrap();
            assert_eq!(certificate.supports_aead(), profile == Profile::Rfc9580);
            assert!(key.has_encryption_secret() && !key.is_locked());
            let policy = sequoia_openpgp::policy::StandardPolicy::new();
            let valid = certificate.cert().with_policy(&policy, None).unwrap();
            assert!(valid.keys().all(|key| key.key_expiration_time().is_none()));
            match purpose {
                KeyPurpose::Owner => assert!(matches!(Signer::new(key), Err(Error::NoSigningKey { .. }))),
                KeyPurpose::Host => assert_eq!(Signer::new(key).unwrap().fingerprint(), certificate.fingerprint()),
            }
        }
    }
}

#[test]
fn keys_and_certificates_can_be_written_and_parsed_again() {
    for profile in PROFILES {
        let key = owner(profile);
        let certificate = key.certificate();
        for bytes in [certificate.to_bytes().unwrap(), certificate.to_armored().unwrap(), key.to_armored().unwrap()] {
            let parsed = Certificate::parse(&bytes).unwrap();
            assert_eq!(parsed.fingerprint(), certificate.fingerprint());
            // The secret part of a secret key is dropped.
            assert_eq!(parsed.to_bytes().unwrap(), certificate.to_bytes().unwrap());
        }
        let again = SecretKey::parse(&key.to_armored().unwrap()).unwrap();
        assert_eq!(opened(&Opener::new(again).unwrap(), &sealed_to(&[&key], b"hello")).unwrap(), b"hello");
    }
}

#[test]
fn a_locked_key_is_unlocked_only_by_its_passphrase() {
    for profile in PROFILES {
        let secret = passphrase("correct horse");
        let key = SecretKey::generate(profile, "Olga", KeyPurpose::Owner, Some(&secret)).unwrap();
        let message = sealed_to(&[&key], b"hello");
        let key = SecretKey::parse(&key.to_armored().unwrap()).unwrap();
        assert!(key.is_locked() && key.has_encryption_secret());
        let locked = Opener::new(key.clone()).unwrap_err();
        assert!(matches!(locked, Error::Locked { .. }) && locked.is_key_problem());
        let wrong = key.clone().unlock(&passphrase("battery staple")).unwrap_err();
        assert!(matches!(wrong, Error::WrongPassphrase { .. }) && wrong.is_key_problem());
        assert!(wrong.to_string().starts_with("the passphrase is wrong for ") && wrong.to_string().ends_with("(Olga)"));
        let open = key.unlock(&secret).unwrap();
        assert!(!open.is_locked());
        assert_eq!(opened(&Opener::new(open.clone()).unwrap(), &message).unwrap(), b"hello");
        // Unlocking it again succeeds with any passphrase.
        open.unlock(&passphrase("any")).unwrap();
    }
}

/// Keys exported by GnuPG 2.4.7. The passphrase is "secret", with a fast key derivation to keep the tests fast.
const OF_GNUPG: [(&str, &[u8]); 8] = [
    ("curve25519", include_bytes!("gnupg-2.4/curve25519.asc")),
    ("nistp256", include_bytes!("gnupg-2.4/nistp256.asc")),
    ("nistp384", include_bytes!("gnupg-2.4/nistp384.asc")),
    ("nistp521", include_bytes!("gnupg-2.4/nistp521.asc")),
    ("brainpoolP256r1", include_bytes!("gnupg-2.4/brainpoolP256r1.asc")),
    ("brainpoolP384r1", include_bytes!("gnupg-2.4/brainpoolP384r1.asc")),
    ("brainpoolP512r1", include_bytes!("gnupg-2.4/brainpoolP512r1.asc")),
    ("rsa2048", include_bytes!("gnupg-2.4/rsa2048.asc")),
];

#[test]
fn locked_keys_exported_by_gnupg_can_be_unlocked() {
    for (name, armored) in OF_GNUPG {
        let key = SecretKey::parse(armored).unwrap();
        key.certificate().check_recipient().unwrap();
        assert!(key.is_locked() && key.has_encryption_secret(), "{name}");
        let message = sealed_to(&[&key], b"hello");
        let wrong = key.clone().unlock(&passphrase("secrets")).unwrap_err();
        assert!(matches!(wrong, Error::WrongPassphrase { .. }), "{name}: {wrong}");
        let key = key.unlock(&passphrase("secret")).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Written again, the key is in the standard encoding.
        let again = SecretKey::parse(&key.to_armored().unwrap()).unwrap();
        for key in [key, again] {
            assert_eq!(opened(&Opener::new(key.clone()).unwrap(), &message).unwrap(), b"hello", "{name}");
            assert!(key.signing_pair().is_ok(), "{name}");
        }
    }
}

#[test]
fn an_unlocked_key_exported_by_gnupg_opens_messages() {
    let key = SecretKey::parse(include_bytes!("gnupg-2.4/curve25519-open.asc")).unwrap();
    assert!(!key.is_locked());
    let message = sealed_to(&[&key], b"hello");
    assert_eq!(opened(&Opener::new(key).unwrap(), &message).unwrap(), b"hello");
}

#[test]
fn unsupported_keys_of_gnupg_are_reported_as_such() {
    let error = Certificate::parse(include_bytes!("gnupg-2.4/ed448.asc")).unwrap_err();
    assert!(matches!(error, Error::KeyVersion { version: 5 }), "{error}");
    let secp256k1 = Certificate::parse(include_bytes!("gnupg-2.4/secp256k1.asc")).unwrap();
    let error = secp256k1.check_recipient().unwrap_err().to_string();
    assert!(
        error.ends_with(": the algorithm of its primary key (ECDSA on the curve secp256k1) is not supported"),
        "{error}"
    );
}

#[test]
fn a_locked_host_key_does_not_sign() {
    let secret = passphrase("correct horse");
    let key = SecretKey::generate(Profile::Rfc9580, "host", KeyPurpose::Host, Some(&secret)).unwrap();
    assert!(matches!(Signer::new(key.clone()), Err(Error::Locked { .. })));
    Signer::new(key.unlock(&secret).unwrap()).unwrap();
}

#[test]
fn a_certificate_instead_of_a_secret_key_is_an_error() {
    let certificate = owner(Profile::Rfc9580).certificate();
    let error = SecretKey::parse(&certificate.to_armored().unwrap()).unwrap_err();
    assert!(error.is_key_problem());
    assert_eq!(
        error.to_string(),
        format!(
            "{} (Olga Owner) is only a public certificate; give the file with the secret key",
            certificate.fingerprint()
        )
    );
}

#[test]
fn a_signing_key_does_not_open_messages() {
    let (cert, _) = alice().add_signing_subkey().generate().unwrap();
    let key = secret_key(&cert);
    assert!(!key.has_encryption_secret());
    assert!(matches!(Opener::new(key), Err(Error::NoDecryptionKey { .. })));
    // An RSA key could decrypt, but lacks the flag.
    let (cert, _) = alice().set_cipher_suite(CipherSuite::RSA2k).add_signing_subkey().generate().unwrap();
    assert!(!secret_key(&cert).has_encryption_secret());
}

#[test]
fn several_keys_or_none_are_an_error() {
    let (one, two) = (owner(Profile::Rfc9580).certificate(), owner(Profile::Rfc4880).certificate());
    let binary = [one.to_bytes().unwrap(), two.to_bytes().unwrap()].concat();
    let text = [one.to_armored().unwrap(), two.to_armored().unwrap()].concat();
    for several in [binary, text] {
        assert!(matches!(Certificate::parse(&several), Err(Error::SeveralKeys)));
        assert!(matches!(SecretKey::parse(&several), Err(Error::SeveralKeys)));
    }
    let message = sealed_to(&[&owner(Profile::Rfc9580)], b"no key");
    for none in [b"".as_slice(), b"hello", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nxxx", &[0x99], &message] {
        let error = Certificate::parse(none).unwrap_err();
        assert!(error.to_string().starts_with("cannot parse the OpenPGP certificate: "), "{error}");
        assert!(matches!(SecretKey::parse(none), Err(Error::NotAKey { .. })));
    }
}

#[test]
fn parsing_damaged_keys_does_not_panic() {
    let bytes = owner(Profile::Rfc4880).certificate().to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        if let Ok(certificate) = Certificate::parse(&flipped) {
            let _ = (certificate.check_recipient(), certificate.supports_aead(), certificate.user_id());
        }
        let _ = Certificate::parse(&bytes[..at]).map(|certificate| certificate.check_recipient());
    }
}

#[test]
fn a_user_id_is_safe_to_print() {
    let (cert, _) = CertBuilder::new().add_userid("evil\x1b[2J\n").generate().unwrap();
    assert_eq!(certificate(&cert).user_id().unwrap(), "evil\u{FFFD}[2J\u{FFFD}");
}

#[test]
fn an_expired_certificate_is_refused() {
    let (cert, _) = alice().set_validity_period(DAY).add_storage_encryption_subkey().generate().unwrap();
    let text = refusal(&cert);
    let (begin, end) = text.split_once("20").unwrap();
    assert_eq!(begin, "cannot encrypt to FINGERPRINT (Alice): its certificate expired on ");
    assert_eq!(&end[8..], "; ask its owner for a renewed certificate and run `brackfs recipients update`");
}

#[test]
fn an_expired_encryption_key_is_refused() {
    let (cert, _) = alice().add_subkey(KeyFlags::empty().set_storage_encryption(), DAY, None).generate().unwrap();
    let text = refusal(&cert);
    assert!(text.starts_with("cannot encrypt to FINGERPRINT (Alice): its encryption key expired on 20"), "{text}");
}

#[test]
fn the_error_for_a_certificate_from_the_future_has_both_times() {
    let later = SystemTime::now() + DAY;
    let from = |time| CertBuilder::new().add_userid("Alice").set_creation_time(time);
    // First the whole certificate is from the future, then only its encryption key.
    let (whole, _) = from(later).add_storage_encryption_subkey().generate().unwrap();
    let (cert, _) = alice().generate().unwrap();
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let (other, _) = from(later).add_storage_encryption_subkey().generate().unwrap();
    let subkey = other.keys().subkeys().next().unwrap().key().clone();
    let binding = SignatureBuilder::new(SignatureType::SubkeyBinding)
        .set_key_flags(KeyFlags::empty().set_storage_encryption())
        .unwrap()
        .set_signature_creation_time(later)
        .unwrap();
    let binding = subkey.bind(&mut primary, &cert, binding).unwrap();
    let (part, _) = cert.insert_packets([sequoia_openpgp::Packet::from(subkey), binding.into()]).unwrap();
    for (cert, what) in [(whole, "certificate"), (part, "encryption key")] {
        let text = refusal(&cert);
        let begin = format!("cannot encrypt to FINGERPRINT (Alice): its {what} is not valid before 20");
        assert!(text.starts_with(&begin) && text.contains("this machine's clock says 20"), "{text}");
    }
}

#[test]
fn a_certificate_with_weak_or_missing_self_signatures_is_refused() {
    let (cert, _) = alice().add_storage_encryption_subkey().generate().unwrap();
    let naked = cert.clone().retain_userids(|_| false).into_packets().filter(|packet| packet.tag() != Tag::Signature);
    let naked = Cert::from_packets(naked.collect::<Vec<_>>().into_iter()).unwrap();
    assert!(refusal(&naked).contains("its self-signatures are missing or invalid"));
    // With SHA-1, like old versions of gpg.
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let user_id = cert.userids().next().unwrap().userid().clone();
    let weak = SignatureBuilder::new(SignatureType::PositiveCertification).set_hash_algo(HashAlgorithm::SHA1);
    let weak = user_id.bind(&mut primary, &cert, weak).unwrap();
    let key = cert.primary_key().key().clone();
    let weak = Cert::from_packets([key.into(), user_id.into(), weak.into()].into_iter()).unwrap();
    let text = refusal(&weak);
    assert!(text.contains("too weak (SHA-1)"), "{text}");
}

#[test]
fn a_certificate_expires_with_its_last_encryption_key() {
    let storage = || KeyFlags::empty().set_storage_encryption();
    let made = SystemTime::now() - 2 * DAY;
    let days = |cert: CertBuilder<'_>| {
        let (cert, _) = cert.set_creation_time(made).generate().unwrap();
        let expiry = certificate(&cert).expiry()?;
        Some((expiry.duration_since(made).unwrap().as_secs() + 1) / DAY.as_secs())
    };
    assert_eq!(days(alice().add_subkey(storage(), None, None)), None);
    assert_eq!(days(alice().add_subkey(storage(), 5 * DAY, None).add_subkey(storage(), 9 * DAY, None)), Some(9));
    assert_eq!(days(alice().add_subkey(storage(), 5 * DAY, None).add_subkey(storage(), None, None)), None);
    let ends = alice().set_validity_period(7 * DAY);
    assert_eq!(days(ends.add_subkey(storage(), 9 * DAY, None)), Some(7));
    assert_eq!(days(alice().add_subkey(storage(), DAY, None)), None);
}

#[test]
fn a_renewed_certificate_is_merged_with_the_old_one() {
    let storage = KeyFlags::empty().set_storage_encryption();
    let (cert, _) = alice().set_validity_period(DAY).add_subkey(storage, 90 * DAY, None).generate().unwrap();
    let old = certificate(&cert);
    assert!(matches!(old.check_recipient(), Err(Error::Expired { .. })));
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let policy = sequoia_openpgp::policy::StandardPolicy::new();
    let (then, end) = (SystemTime::now() - 2 * DAY + DAY / 2, SystemTime::now() + 30 * DAY);
    let renewal = cert.set_expiration_time(&policy, then, &mut primary, Some(end)).unwrap();
    let (renewed, _) = cert.clone().insert_packets(renewal).unwrap();
    let renewed = certificate(&renewed);
    let merged = old.merged_with(&renewed).unwrap();
    merged.check_recipient().unwrap();
    // Merging is commutative and idempotent.
    let bytes = merged.to_bytes().unwrap();
    assert_eq!(renewed.merged_with(&old).unwrap().to_bytes().unwrap(), bytes);
    assert_eq!(merged.merged_with(&renewed).unwrap().to_bytes().unwrap(), bytes);
    assert!(merged.merged_with(&owner(Profile::Rfc4880).certificate()).is_err());
}

#[test]
fn a_revoked_certificate_is_refused_and_its_key_still_opens_messages() {
    let (cert, revocation) = alice().add_storage_encryption_subkey().generate().unwrap();
    let message = sealed_to(&[&secret_key(&cert)], b"before");
    let (cert, _) = cert.insert_packets(revocation).unwrap();
    assert_eq!(
        refusal(&cert),
        "cannot encrypt to FINGERPRINT (Alice): its certificate was revoked; ask its owner for a new one"
    );
    assert_eq!(opened(&Opener::new(secret_key(&cert)).unwrap(), &message).unwrap(), b"before");
}

#[test]
fn a_revoked_encryption_key_is_refused_and_still_opens_messages() {
    let (cert, _) = alice().add_storage_encryption_subkey().generate().unwrap();
    let message = sealed_to(&[&secret_key(&cert)], b"before");
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let subkey = cert.keys().subkeys().next().unwrap();
    let revocation = SubkeyRevocationBuilder::new()
        .set_reason_for_revocation(ReasonForRevocation::KeyCompromised, b"lost")
        .unwrap()
        .build(&mut primary, &cert, subkey.key(), None)
        .unwrap();
    let (cert, _) = cert.insert_packets(revocation).unwrap();
    assert_eq!(
        refusal(&cert),
        "cannot encrypt to FINGERPRINT (Alice): its encryption key was revoked; ask its owner for a new one"
    );
    assert_eq!(opened(&Opener::new(secret_key(&cert)).unwrap(), &message).unwrap(), b"before");
}

#[test]
fn a_signing_certificate_is_refused() {
    let (cert, _) = alice().add_signing_subkey().generate().unwrap();
    assert_eq!(
        refusal(&cert),
        "cannot encrypt to FINGERPRINT (Alice): it has no encryption key (is it for signing only?)"
    );
}

#[test]
fn a_weak_encryption_key_is_refused() {
    use sequoia_openpgp::packet::Key;
    use sequoia_openpgp::packet::key::{Key4, SecretParts, SubordinateRole};
    let (cert, _) = alice().generate().unwrap();
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let weak: Key<SecretParts, SubordinateRole> = Key4::generate_rsa(1024).unwrap().into();
    let binding = SignatureBuilder::new(SignatureType::SubkeyBinding)
        .set_key_flags(KeyFlags::empty().set_storage_encryption())
        .unwrap();
    let binding = weak.bind(&mut primary, &cert, binding).unwrap();
    let packets = [sequoia_openpgp::Packet::from(weak), binding.into()];
    let (cert, _) = cert.insert_packets(packets).unwrap();
    assert_eq!(
        refusal(&cert),
        "cannot encrypt to FINGERPRINT (Alice): the algorithm of its encryption key (RSA with 1024 bits) is not supported"
    );
}

#[test]
fn the_newest_encryption_key_is_used() {
    let storage = || KeyFlags::empty().set_storage_encryption();
    let (cert, _) = alice().add_subkey(storage(), None, None).generate().unwrap();
    let old = certificate(&cert).encryption_key().unwrap().fingerprint();
    let (newer, _) = CertBuilder::new().add_subkey(storage(), None, None).generate().unwrap();
    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let subkey = newer.keys().subkeys().next().unwrap().key().clone();
    let binding = SignatureBuilder::new(SignatureType::SubkeyBinding).set_key_flags(storage()).unwrap();
    let binding = subkey.bind(&mut primary, &cert, binding).unwrap();
    let (cert, _) = cert.insert_packets([sequoia_openpgp::Packet::from(subkey.clone()), binding.into()]).unwrap();
    let newest = certificate(&cert).encryption_key().unwrap().fingerprint();
    assert!(newest == subkey.fingerprint() && newest != old);
}

#[test]
fn secrets_are_never_shown() {
    let key = host(Profile::Rfc9580);
    let shown = format!("{:?} {:?} {:?}", key, key.certificate(), passphrase("hunter2"));
    assert!(shown.contains("(host)") && !shown.contains("hunter2"), "{shown}");
    assert!("rfc4880".parse::<Profile>().unwrap() == Profile::Rfc4880 && "x".parse::<Profile>().is_err());
    PROFILES.iter().for_each(|profile| assert_eq!(profile.to_string().parse::<Profile>().unwrap(), *profile));
}
