//! Signing and verifying.

use std::time::{Duration, SystemTime};

use sequoia_openpgp::Cert;
use sequoia_openpgp::cert::CertBuilder;
use sequoia_openpgp::types::{KeyFlags, ReasonForRevocation};

use super::{PROFILES, host, owner, secret_key};
use crate::crypt::{Certificate, Error, Profile, Signer, verify};
use crate::failure::Failure;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A host with a key created ten days ago.
fn old_host() -> CertBuilder<'static> {
    CertBuilder::new()
        .add_userid("old host")
        .set_primary_key_flags(KeyFlags::empty().set_certification().set_signing())
        .set_creation_time(SystemTime::now() - 10 * DAY)
}

fn certificate(cert: &Cert) -> Certificate {
    secret_key(cert).certificate()
}

#[test]
fn a_signed_document_of_any_size_verifies() {
    for profile in PROFILES {
        let key = host(profile);
        let known = [owner(profile).certificate(), key.certificate()];
        let signer = Signer::new(key).unwrap();
        for size in [0, 1, 200, 9000, 1 << 20] {
            let document = super::content(size);
            let message = signer.sign(&document).unwrap();
            let (found, by) = verify(&message, &known).unwrap();
            assert!(found == document && by == signer.fingerprint());
        }
    }
}

#[test]
fn the_error_names_an_unknown_signer() {
    for profile in PROFILES {
        let signer = Signer::new(host(profile)).unwrap();
        let message = signer.sign(b"document").unwrap();
        for known in [vec![], vec![host(profile).certificate()]] {
            match verify(&message, &known) {
                Err(Error::UnknownSigner { signer: claimed }) => {
                    assert_eq!(claimed, signer.fingerprint().to_string())
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_one_pass_packet_must_match_the_signature() {
    for profile in PROFILES {
        let key = host(profile);
        let signed = Signer::new(key.clone()).unwrap().sign(b"document").unwrap();
        // The bytes of the one-pass signature packet after its header.
        for at in 2..2 + usize::from(signed[1]) {
            let mut changed = signed.clone();
            changed[at] ^= 1;
            assert!(matches!(verify(&changed, &[key.certificate()]), Err(Error::Refused { .. })), "byte {at}");
        }
    }
}

#[test]
fn a_replaced_document_is_detected() {
    for profile in PROFILES {
        let key = host(profile);
        let signer = Signer::new(key.clone()).unwrap();
        let (one, two) = (signer.sign(b"document 1").unwrap(), signer.sign(b"document 2").unwrap());
        let at = one.windows(10).position(|window| window == b"document 1").unwrap();
        let mut swapped = one.clone();
        swapped[at..at + 10].copy_from_slice(b"document 2");
        assert!(matches!(verify(&swapped, &[key.certificate()]), Err(Error::BadSignature { .. })));
        let mixed = [&one[..at + 10], &two[at + 10..]].concat();
        // The one-pass packet of version 6 has a salt, so it does not match either.
        let refused = verify(&mixed, &[key.certificate()]);
        assert!(matches!(refused, Err(Error::BadSignature { .. } | Error::Refused { .. })), "{refused:?}");
        let error = verify(&swapped, &[key.certificate()]).unwrap_err();
        assert!(error.to_string().starts_with(&format!("bad signature by {}: ", signer.fingerprint())), "{error}");
        assert!(!error.is_key_problem());
    }
}

#[test]
fn damage_never_yields_another_document() {
    for profile in PROFILES {
        let key = host(profile);
        let known = [key.certificate()];
        let message = Signer::new(key).unwrap().sign(b"document").unwrap();
        for at in 0..message.len() {
            assert!(verify(&message[..at], &known).is_err());
            for bit in 0..8 {
                let mut flipped = message.clone();
                flipped[at] ^= 1 << bit;
                if let Ok((document, _)) = verify(&flipped, &known) {
                    assert_eq!(document, b"document");
                }
            }
        }
        assert!(verify(&[message.as_slice(), &message].concat(), &known).is_err());
        assert!(verify(&[message.as_slice(), &[0]].concat(), &known).is_err());
        assert!(verify(b"document", &known).is_err());
    }
}

#[test]
fn a_signature_stays_valid_after_its_key_expired() {
    let (cert, _) = old_host().generate().unwrap();
    let signer = Signer::new(secret_key(&cert)).unwrap();
    let then = signer.sign_at(b"then", SystemTime::now() - 9 * DAY).unwrap();
    let now = signer.sign(b"now").unwrap();
    assert!(verify(&now, &[certificate(&cert)]).is_ok());

    let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let policy = sequoia_openpgp::policy::StandardPolicy::new();
    let expiry = SystemTime::now() - 5 * DAY;
    let signatures = cert.set_expiration_time(&policy, expiry - DAY, &mut primary, Some(expiry)).unwrap();
    let (cert, _) = cert.insert_packets(signatures).unwrap();
    let known = [certificate(&cert)];
    assert!(verify(&then, &known).is_ok());
    match verify(&now, &known) {
        Err(Error::BadSignature { why, .. }) => assert!(why.contains("not valid for signing"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(Signer::new(secret_key(&cert)), Err(Error::NoSigningKey { .. })));
}

#[test]
fn signatures_of_a_retired_key_verify_and_those_of_a_compromised_key_do_not() {
    for (reason, verifies) in [(ReasonForRevocation::KeyRetired, true), (ReasonForRevocation::KeyCompromised, false)] {
        let (cert, _) = old_host().generate().unwrap();
        let message = Signer::new(secret_key(&cert)).unwrap().sign_at(b"old", SystemTime::now() - 2 * DAY).unwrap();
        let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
        let revocation = cert.revoke(&mut primary, reason, b"").unwrap();
        let (cert, _) = cert.insert_packets(revocation).unwrap();
        assert_eq!(verify(&message, &[certificate(&cert)]).is_ok(), verifies, "{reason}");
    }
}

#[test]
fn a_key_without_the_signing_flag_does_not_verify() {
    // The same key with and without the flag.
    let (with, _) = old_host().generate().unwrap();
    let message = Signer::new(secret_key(&with)).unwrap().sign(b"document").unwrap();
    let mut primary = with.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
    let bare = Cert::from_packets(vec![with.primary_key().key().clone().into()].into_iter()).unwrap();
    let binding =
        sequoia_openpgp::packet::signature::SignatureBuilder::new(sequoia_openpgp::types::SignatureType::DirectKey)
            .set_signature_creation_time(SystemTime::now() - 10 * DAY)
            .unwrap()
            .set_key_flags(KeyFlags::empty().set_certification())
            .unwrap()
            .sign_direct_key(&mut primary, with.primary_key().key())
            .unwrap();
    let (without, _) = bare.insert_packets(binding).unwrap();
    let known = Certificate::new(without);
    assert!(matches!(verify(&message, &[known]), Err(Error::BadSignature { .. })));
}

#[test]
fn a_signature_older_than_its_key_does_not_verify() {
    let key = host(Profile::Rfc9580);
    let signer = Signer::new(key.clone()).unwrap();
    let early = signer.sign_at(b"early", SystemTime::now() - 10 * DAY).unwrap();
    assert!(matches!(verify(&early, &[key.certificate()]), Err(Error::BadSignature { .. })));
}
