//! Requests to rclone. Objects are stored and read by the protocol of restic's REST server, which streams; all else is done
//! by rclone's remote control, which tells reasons and can list folders.

use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Value, json};
use ureq::http::{Method, Request};

use super::failure::Failure;
use super::process::Process;
use crate::storage::error::ErrorKind;
use crate::storage::http::{Answer, Client};
use crate::storage::remote::Remote;
use crate::storage::url::encode;

/// Bytes of an answer to a command, except for listings.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Bytes from which on rclone is asked before a body is sent. An error then costs no upload.
const ASK: u64 = 128 << 10;
/// The connection decides where a request goes.
const HOST: &str = "http://localhost";

/// rclone and the connections to it.
#[derive(Debug)]
pub(super) struct Rclone {
    objects: Client,
    commands: Client,
    /// As rclone takes it.
    remote: String,
    process: Process,
}

/// What a remote can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features {
    /// A file can be seen while it is stored.
    pub(super) shows_partial_files: bool,
    /// Files can be renamed without a copy.
    pub(super) renames: bool,
    /// A folder without files exists. Elsewhere, folders are only parts of names.
    pub(super) keeps_empty_folders: bool,
}

/// A file or a folder in a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    /// Relative to the remote and its path.
    pub(super) path: String,
    size: i64,
    pub(super) is_dir: bool,
    #[serde(default)]
    pub(super) mod_time: String,
}

impl Item {
    /// The size of a file in bytes.
    pub(super) fn length(&self) -> Result<u64, Failure> {
        let unknown = |_| Failure::new(ErrorKind::Other, format!("the remote does not tell the size of {}", self.path));
        u64::try_from(self.size).map_err(unknown)
    }
}

impl Rclone {
    /// Starts nothing yet.
    pub(super) fn new(target: &str, remote: &Remote) -> Result<Self, Failure> {
        let process = Process::new(remote.rclone.clone(), target.to_owned(), remote.stall)?;
        let objects = Client::on_socket(process.objects(), remote);
        let commands = Client::on_socket(process.commands(), remote);
        Ok(Rclone { objects, commands, remote: target.to_owned(), process })
    }

    /// The maximum number of connections.
    pub(super) fn lanes(&self) -> usize {
        self.objects.most()
    }

    /// The failure of a request that got no answer, and why rclone ended, if it did.
    fn lost(&self, failure: Failure, place: u64) -> Failure {
        if !self.process.has_ended() {
            return failure;
        }
        let said = self.process.message("", place).map(|said| format!(" ({})", super::failure::shown(&said)));
        Failure::new(ErrorKind::Unavailable, format!("rclone has ended{}", said.unwrap_or_default()))
    }

    /// Makes a command. The answer's status is that of success.
    fn command(&self, command: &str, parameters: &Value) -> Result<Answer<'_>, Failure> {
        let place = self.process.ensure()?;
        let body = parameters.to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{HOST}/{command}"))
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .body(())
            .map_err(|e| Failure::new(ErrorKind::Other, format!("cannot make the request: {e}")))?;
        let mut answer = self.commands.send_body(request, &mut body.as_bytes());
        let mut answer = match &mut answer {
            Ok(_) => answer?,
            Err(lost) => return Err(self.lost(lost.clone().into(), place)),
        };
        if answer.status == 200 {
            return Ok(answer);
        }
        let mut text = Vec::new();
        answer.read(LONGEST_ANSWER, &mut text)?;
        let said = serde_json::from_slice::<Value>(&text).ok();
        let said = said.as_ref().and_then(|said| said.get("error")?.as_str());
        match said {
            Some(said) => Err(Failure::said(said)),
            None => Err(Failure::new(ErrorKind::Other, format!("rclone answers with status {}", answer.status))),
        }
    }

    /// Makes a command that returns little.
    fn ask(&self, command: &str, parameters: &Value) -> Result<Value, Failure> {
        let mut answer = self.command(command, parameters)?;
        let mut text = Vec::new();
        answer.read(LONGEST_ANSWER, &mut text)?;
        serde_json::from_slice(&text).map_err(|_| malformed())
    }

    pub(super) fn features(&self) -> Result<Features, Failure> {
        let about = self.ask("operations/fsinfo", &json!({ "fs": self.remote }))?;
        let features = about.get("Features").ok_or_else(malformed)?;
        let has = |name: &str| features.get(name).and_then(Value::as_bool).unwrap_or_default();
        Ok(Features {
            shows_partial_files: has("PartialUploads"),
            renames: has("Move"),
            keeps_empty_folders: has("CanHaveEmptyDirectories"),
        })
    }

    /// A file; `None` if it is missing, or is a folder.
    pub(super) fn file(&self, path: &str) -> Result<Option<Item>, Failure> {
        self.stat(path, true)
    }

    /// A file or a folder; `None` if it is missing. Lists the whole folder around a path that is not a file.
    pub(super) fn entry(&self, path: &str) -> Result<Option<Item>, Failure> {
        self.stat(path, false)
    }

    fn stat(&self, path: &str, files_only: bool) -> Result<Option<Item>, Failure> {
        let parameters = json!({ "fs": self.remote, "remote": path, "opt": { "filesOnly": files_only } });
        let mut answer = self.ask("operations/stat", &parameters)?;
        match answer.get_mut("item").map(Value::take) {
            None => Err(malformed()),
            Some(Value::Null) => Ok(None),
            Some(item) => serde_json::from_value(item).map(Some).map_err(|_| malformed()),
        }
    }

    pub(super) fn remove(&self, path: &str) -> Result<(), Failure> {
        self.ask("operations/deletefile", &json!({ "fs": self.remote, "remote": path })).map(drop)
    }

    /// Gives a file another name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let parameters = json!({ "srcFs": self.remote, "srcRemote": from, "dstFs": self.remote, "dstRemote": to });
        self.ask("operations/movefile", &parameters).map(drop)
    }

    pub(super) fn make_root(&self) -> Result<(), Failure> {
        self.ask("operations/mkdir", &json!({ "fs": self.remote, "remote": "" })).map(drop)
    }

    /// Removes empty folders, and the root itself if it is not kept.
    pub(super) fn remove_empty_folders(&self, keeps_root: bool) -> Result<(), Failure> {
        let parameters = json!({ "fs": self.remote, "remote": "", "leaveRoot": keeps_root });
        self.ask("operations/rmdirs", &parameters).map(drop)
    }

    /// Calls `found` with all entries of a folder, and of folders in it if it is `deep`. A missing folder is
    /// [`ErrorKind::NotFound`], but so is a folder in it that vanishes during a deep listing.
    pub(super) fn list(&self, folder: &str, deep: bool, found: &mut dyn FnMut(Item)) -> Result<(), Failure> {
        let options = json!({ "recurse": deep, "noModTime": true, "noMimeType": true });
        let parameters = json!({ "fs": self.remote, "remote": folder, "opt": options });
        let mut answer = self.command("operations/list", &parameters)?;
        let mut body = BufReader::new(answer.body());
        let listed = {
            let mut parser = serde_json::Deserializer::from_reader(&mut body);
            parser.deserialize_map(Listing(found)).and_then(|()| parser.end())
        };
        listed.map_err(|error| match error.is_io() {
            true => Failure::new(ErrorKind::Unavailable, "rclone did not send the whole list"),
            false => malformed(),
        })
    }

    /// Stores a file of this length.
    pub(super) fn store(&self, path: &str, length: u64, body: &mut dyn Read) -> Result<(), Failure> {
        let place = self.process.ensure()?;
        let mut request = object(Method::POST, path).header("content-length", length);
        if length >= ASK {
            request = request.header("expect", "100-continue");
        }
        let request = request.body(());
        let request = request.map_err(|e| Failure::new(ErrorKind::Other, format!("cannot make the request: {e}")))?;
        let stored = self.objects.send_body(request, body).and_then(|mut answer| {
            answer.read(LONGEST_ANSWER, &mut Vec::new())?;
            Ok(answer.status)
        });
        if let Ok(200..300) = stored {
            return Ok(());
        }
        // The reason is only in the log. rclone may close the connection before it has all bytes.
        if let Some(said) = self.process.message(path, place) {
            return Err(Failure::said(&said));
        }
        Err(match stored {
            Ok(status) => Failure::new(ErrorKind::Other, format!("rclone answers with status {status}")),
            Err(lost) => self.lost(lost.into(), place),
        })
    }

    /// Asks for a range of a file. An answer without it has another status than 206, or a range that does not fit.
    pub(super) fn get(&self, path: &str, range: &str) -> Result<Answer<'_>, Failure> {
        let place = self.process.ensure()?;
        let request = object(Method::GET, path).header("range", range).body(());
        let request = request.map_err(|e| Failure::new(ErrorKind::Other, format!("cannot make the request: {e}")))?;
        self.objects.send(request).map_err(|lost| self.lost(lost.into(), place))
    }
}

fn object(method: Method, path: &str) -> ureq::http::request::Builder {
    Request::builder().method(method).uri(format!("{HOST}/{}", encode(path, true)))
}

fn malformed() -> Failure {
    Failure::new(ErrorKind::Other, "rclone's answer is not understood; brackfs is made for rclone 1.75")
}

/// Hands out the items of a listing one by one, so that its length takes no memory.
struct Listing<'f>(&'f mut dyn FnMut(Item));

impl<'de> Visitor<'de> for Listing<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a listing")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut is_there = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "list" {
                is_there = true;
                map.next_value_seed(Items(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if is_there { Ok(()) } else { Err(de::Error::missing_field("list")) }
    }
}

struct Items<'f>(&'f mut dyn FnMut(Item));

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }

    /// An empty list.
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<(String, i64, bool)>, serde_json::Error> {
        let mut items = Vec::new();
        let mut parser = serde_json::Deserializer::from_reader(text.as_bytes());
        let mut found = |item: Item| items.push((item.path, item.size, item.is_dir));
        parser.deserialize_map(Listing(&mut found)).and_then(|()| parser.end())?;
        Ok(items)
    }

    #[test]
    fn listings_are_complete_or_an_error() {
        let text = r#"{"x":[1],"list":[{"Path":"a/b","Name":"b","Size":5,"ModTime":"","IsDir":false},{"Path":"c","Size":-1,"IsDir":true}]}"#;
        assert_eq!(list(text).unwrap(), [("a/b".to_owned(), 5, false), ("c".to_owned(), -1, true)]);
        assert_eq!(list(r#"{"list":null}"#).unwrap(), []);
        for text in ["", "{}", r#"{"list":{}}"#, r#"{"list":[{"Path":"a"}]}"#, &text[..60], r#"{"list":[]}x"#] {
            list(text).unwrap_err();
        }
    }
}
