//! Logging in, with version 1 or with version 3 (Keystone): a token, and the URL of the account.

use std::io::Read;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Request;

use super::account::{Account, Name, Named, Secret, check};
use super::failure::{Failure, said};
use crate::storage::error::ErrorKind;
use crate::storage::http::{Answer, Client};

/// Bytes of an answer, which lists all services.
const LONGEST_ANSWER: u64 = 4 << 20;
/// A token is renewed so long before it expires, or when half of its time is over if that is short.
const MARGIN: Duration = Duration::from_secs(120);
/// How long a token is used if its time is not told.
const UNTOLD: Duration = Duration::from_secs(3600);

/// The longest time that is believed.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The result of a login.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    /// The URL of the account, without a slash at its end.
    pub(super) url: String,
    /// When to log in again.
    pub(super) until: Instant,
}

/// The answer of Keystone.
#[derive(Debug, Deserialize)]
struct Document {
    token: Details,
}

#[derive(Debug, Deserialize)]
struct Details {
    #[serde(default)]
    issued_at: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    interface: String,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    region_id: Option<String>,
    url: String,
}

impl Token {
    /// Logs in.
    pub(super) fn get(client: &Client, account: &Account) -> Result<Token, Failure> {
        match &account.secret {
            Secret::Key { user, key } => first_version(client, account, user, key),
            secret => third_version(client, account, secret),
        }
    }

    fn new(text: &str, url: &str, lifetime: Option<Duration>) -> Result<Token, Failure> {
        let wrong = |why: &str| Failure::new(ErrorKind::Other, format!("the answer to the login is not valid: {why}"));
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it has no token"));
        }
        check(url).map_err(|_| wrong("it has no URL of an account"))?;
        // Longer than any run, and short enough for the clock.
        let lifetime = lifetime.unwrap_or(UNTOLD).min(LONGEST);
        let until = Instant::now() + lifetime.saturating_sub(MARGIN).max(lifetime / 2);
        Ok(Token { text: text.to_owned(), url: url.trim_end_matches('/').to_owned(), until })
    }
}

/// The failure of a refused login. Keystone does not tell a wrong password from an unknown user or project.
fn refused(answer: &mut Answer<'_>, secret: &Secret) -> Failure {
    if matches!(answer.status, 408 | 429 | 498 | 500..) {
        return Failure::of(answer);
    }
    let mut text = Vec::new();
    // The status remains.
    let _ = answer.read(64 << 10, &mut text);
    let said = said(answer.status, &String::from_utf8_lossy(&text));
    let settings = match secret {
        Secret::Key { .. } => "ST_USER and ST_KEY",
        Secret::Password { .. } => "OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME and the domains of user and project",
        Secret::Application { .. } => "OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET",
    };
    let why = match answer.status {
        401 | 403 => format!("the server refuses the login ({said}); check {settings}"),
        _ => format!("the server does not answer logins at this URL ({said}); check ST_AUTH or OS_AUTH_URL"),
    };
    Failure::new(ErrorKind::Refused, why)
}

fn first_version(client: &Client, account: &Account, user: &str, key: &str) -> Result<Token, Failure> {
    let request = Request::get(&account.url).header("x-auth-user", user).header("x-auth-key", key).body(());
    let request = request.map_err(|_| Failure::new(ErrorKind::Refused, "ST_AUTH, ST_USER or ST_KEY is not valid"))?;
    let mut answer = client.send(request)?;
    if !(200..300).contains(&answer.status) {
        return Err(refused(&mut answer, &account.secret));
    }
    let header = |name: &str| answer.header(name).unwrap_or_default();
    let lifetime = header("x-auth-token-expires").trim().parse().ok().map(Duration::from_secs);
    let token = Token::new(header("x-auth-token"), header("x-storage-url"), lifetime);
    let _ = answer.read(LONGEST_ANSWER, &mut Vec::new());
    token
}

fn third_version(client: &Client, account: &Account, secret: &Secret) -> Result<Token, Failure> {
    let question = question(secret).to_string();
    let request = Request::post(format!("{}/auth/tokens", account.url))
        .header("content-type", "application/json")
        .header("content-length", question.len())
        .body(());
    let request = request.map_err(|_| Failure::new(ErrorKind::Refused, "OS_AUTH_URL is not valid"))?;
    let body: &mut dyn Read = &mut question.as_bytes();
    let mut answer = client.send_body(request, body)?;
    if !(200..300).contains(&answer.status) {
        return Err(refused(&mut answer, secret));
    }
    let text = answer.header("x-subject-token").unwrap_or_default().to_owned();
    let mut document = Vec::new();
    let is_all = answer.read(LONGEST_ANSWER, &mut document)?;
    let wrong = || Failure::new(ErrorKind::Other, "the answer to the login is not one of Keystone; check OS_AUTH_URL");
    let document: Document = serde_json::from_slice(&document).ok().filter(|_| is_all).ok_or_else(wrong)?;
    let Details { issued_at, expires_at, catalog } = document.token;
    // Only the difference counts: the clocks of the server and of this machine may differ.
    let time = |text: Option<String>| text?.parse::<Timestamp>().ok();
    let lifetime = time(expires_at).zip(time(issued_at)).map(|(end, start)| end.duration_since(start));
    let lifetime = lifetime.map(|lifetime| Duration::try_from(lifetime).unwrap_or_default());
    Token::new(&text, &place(account, &catalog)?, lifetime)
}

/// The URL of the account.
fn place(account: &Account, catalog: &[Service]) -> Result<String, Failure> {
    let stores = catalog.iter().filter(|service| service.kind == "object-store");
    let is_there = |endpoint: &&Endpoint| {
        let region = [&endpoint.region, &endpoint.region_id];
        account.region.is_none() || region.contains(&&account.region)
    };
    let mut endpoints = stores.flat_map(|service| &service.endpoints).filter(is_there);
    let found = endpoints.find(|endpoint| endpoint.interface.trim_end_matches("URL") == account.interface);
    found.map(|endpoint| endpoint.url.clone()).ok_or_else(|| {
        let why = match &account.region {
            Some(_) => "the login has no object store in the region; check OS_REGION_NAME and OS_INTERFACE",
            None => "the login has no object store; check OS_PROJECT_NAME and OS_INTERFACE",
        };
        Failure::new(ErrorKind::Refused, why)
    })
}

/// The body of a login.
fn question(secret: &Secret) -> Value {
    let domain = |domain: &Named| match domain {
        Named::Id(id) => json!({ "id": id }),
        Named::Name(name, _) => json!({ "name": name }),
    };
    let named = |name: &Name| match name {
        Name::Id(id) => json!({ "id": id }),
        Name::In { domain: within, name } => json!({ "name": name, "domain": domain(within) }),
    };
    match secret {
        Secret::Key { .. } => Value::Null,
        Secret::Password { user, password, project } => {
            let mut user = named(user);
            if let Some(user) = user.as_object_mut() {
                user.insert("password".to_owned(), json!(password));
            }
            let mut auth = json!({ "identity": { "methods": ["password"], "password": { "user": user } } });
            if let (Some(auth), Some(project)) = (auth.as_object_mut(), project) {
                auth.insert("scope".to_owned(), json!({ "project": named(project) }));
            }
            json!({ "auth": auth })
        }
        Secret::Application { id, secret } => {
            let credential = match id {
                Named::Id(id) => json!({ "id": id, "secret": secret }),
                Named::Name(name, user) => {
                    json!({ "name": name, "user": user.as_deref().map(named), "secret": secret })
                }
            };
            json!({ "auth": { "identity": {
                "methods": ["application_credential"], "application_credential": credential
            } } })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_asked_for_as_documented() {
        let text = |text: &str| text.to_owned();
        let user = Name::In { domain: Named::Name(text("Default"), None), name: text("me") };
        let project = Name::In { domain: Named::Id(text("default")), name: text("p") };
        let password = Secret::Password { user: user.clone(), password: text("x"), project: Some(project) };
        let expected = json!({ "auth": {
            "identity": { "methods": ["password"], "password": {
                "user": { "name": "me", "domain": { "name": "Default" }, "password": "x" } } },
            "scope": { "project": { "name": "p", "domain": { "id": "default" } } },
        } });
        assert_eq!(question(&password), expected);
        let unscoped = Secret::Password { user: Name::Id(text("7")), password: text("x"), project: None };
        let expected = json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": { "id": "7", "password": "x" } } } } });
        assert_eq!(question(&unscoped), expected);
        for (id, expected) in [
            (Named::Id(text("c")), json!({ "id": "c", "secret": "s" })),
            (
                Named::Name(text("c"), Some(Box::new(user))),
                json!({ "name": "c", "user": { "name": "me", "domain": { "name": "Default" } }, "secret": "s" }),
            ),
        ] {
            let asked = question(&Secret::Application { id, secret: text("s") });
            assert_eq!(asked["auth"]["identity"]["application_credential"], expected);
        }
    }

    #[test]
    fn the_account_is_that_of_the_region_and_the_interface() {
        let catalog: Vec<Service> = serde_json::from_value(json!([
            { "type": "identity", "endpoints": [{ "interface": "public", "region": "a", "url": "https://no" }] },
            { "type": "object-store", "name": "swift", "endpoints": [
                { "interface": "admin", "region": "a", "region_id": "a", "url": "https://admin" },
                { "interface": "public", "region": "a", "region_id": "a", "url": "https://a" },
                { "interface": "public", "region_id": "b", "url": "https://b" },
            ] },
        ]))
        .unwrap();
        let account = |region: Option<&str>, interface: &str| Account {
            url: String::new(),
            secret: Secret::Key { user: String::new(), key: String::new() },
            region: region.map(str::to_owned),
            interface: interface.to_owned(),
            is_exposed: false,
        };
        let found = |region, interface| place(&account(region, interface), &catalog).map_err(|failure| failure.why);
        assert_eq!(found(None, "public").unwrap(), "https://a");
        assert_eq!(found(Some("b"), "public").unwrap(), "https://b");
        assert_eq!(found(Some("a"), "admin").unwrap(), "https://admin");
        assert!(found(Some("c"), "public").unwrap_err().contains("OS_REGION_NAME"));
        assert!(found(None, "internal").unwrap_err().contains("no object store"));
    }

    #[test]
    fn tokens_are_renewed_before_they_expire_and_hostile_ones_are_refused() {
        let left = |seconds: u64| {
            let token = Token::new("token", "https://h/v1/AUTH_x/", Some(Duration::from_secs(seconds))).unwrap();
            assert_eq!(token.url, "https://h/v1/AUTH_x");
            token.until.saturating_duration_since(Instant::now()).as_secs_f64().round()
        };
        assert_eq!([left(0), left(4), left(200), left(3600)], [0.0, 2.0, 100.0, 3480.0]);
        for (text, url) in
            [("", "https://h"), ("a\r\nb", "https://h"), ("a", ""), ("a", "file:///x"), ("a", "https://u:p@h/x")]
        {
            assert!(Token::new(text, url, None).is_err(), "{text} {url}");
        }
        assert!(Token::new("a", "https://h", Some(Duration::MAX)).is_ok());
    }
}
