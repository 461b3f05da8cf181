//! Signs requests with AWS Signature Version 4, in headers. The signature covers the hash of the body, so the server also
//! finds bytes that changed on the way.

use std::fmt;
use std::io::{self, Read};

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sha::{Sha256, sha256};
use openssl::sign::Signer;

/// Bytes read at a time.
const PIECE: usize = 64 << 10;

/// The keys of an account.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct AccessKey {
    pub(super) id: String,
    pub(super) secret: String,
    /// For keys that are valid for a while.
    pub(super) token: Option<String>,
}

/// The parts of a request that are signed.
#[derive(Debug)]
pub(super) struct Signed<'r> {
    pub(super) method: &'r str,
    /// As in the header.
    pub(super) host: &'r str,
    /// Encoded, as it is sent.
    pub(super) path: &'r str,
    /// Encoded and sorted, as it is sent.
    pub(super) query: &'r str,
    /// The hash of the body.
    pub(super) hash: &'r str,
    /// The time, such as `20130524T000000Z`.
    pub(super) time: &'r str,
}

impl AccessKey {
    /// The value of the header Authorization. The request must also have the headers `x-amz-content-sha256`, `x-amz-date`, and
    /// `x-amz-security-token` if there is a token.
    pub(super) fn authorization(&self, region: &str, request: &Signed<'_>) -> Result<String, ErrorStack> {
        let Signed { method, host, path, query, hash, time } = request;
        let mut headers = format!("host:{host}\nx-amz-content-sha256:{hash}\nx-amz-date:{time}\n");
        let mut names = "host;x-amz-content-sha256;x-amz-date".to_owned();
        if let Some(token) = &self.token {
            headers.push_str(&format!("x-amz-security-token:{token}\n"));
            names.push_str(";x-amz-security-token");
        }
        let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{hash}");
        let day = time.split('T').next().unwrap_or_default();
        let scope = format!("{day}/{region}/s3/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in [day, region, "s3", "aws4_request"] {
            key = mac(&key, part.as_bytes())?;
        }
        let signature = hex(&mac(&key, text.as_bytes())?);
        Ok(format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", self.id))
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").finish_non_exhaustive()
    }
}

/// The hash of a body, as the header has it.
pub(super) fn hash(body: &mut dyn Read) -> io::Result<String> {
    let (mut state, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(hex(&state.finish())),
            read => state.update(piece.get(..read).unwrap_or_default()),
        }
    }
}

fn mac(key: &[u8], text: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let key = PKey::hmac(key)?;
    Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Amazon's documentation of listings: its keys, time and signature.
    #[test]
    fn the_documented_example_is_signed_as_documented() {
        let key = AccessKey {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        let request = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/",
            query: "max-keys=2&prefix=J",
            hash: &hash(&mut &b""[..]).unwrap(),
            time: "20130524T000000Z",
        };
        let header = key.authorization("us-east-1", &request).unwrap();
        assert!(
            header.ends_with("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
            "{header}"
        );
        assert!(!format!("{key:?}").contains("EXAMPLE"));
        let with_token = AccessKey { token: Some("token".into()), ..key };
        let header = with_token.authorization("us-east-1", &request).unwrap();
        assert!(header.contains("x-amz-date;x-amz-security-token,"), "{header}");
    }
}
