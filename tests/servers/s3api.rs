//! The S3 interface of Swift.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use brackfs::storage::{Credentials, Location, Remote};

use crate::common::remote::{MIB, RemoteServer, RemoteSite, borrowed, many};
use crate::common::swift::{self, READER, WRITER};
use crate::common::{noise, run};

/// A Swift that is used through its S3 interface.
pub struct S3Api {
    swift: swift::Server,
}

impl S3Api {
    pub fn start() -> S3Api {
        let server = S3Api { swift: swift::Server::start() };
        server.log_in_as(WRITER);
        server
    }

    fn log_in_as(&self, (user, key): (&str, &str)) {
        let text = format!("[default]\naws_access_key_id = {user}\naws_secret_access_key = {key}\n");
        fs::write(self.file(), text).expect("credentials");
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    fn file(&self) -> PathBuf {
        self.swift.file().with_file_name("credentials")
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.swift.proxy.port())
    }
}

impl std::ops::Deref for S3Api {
    type Target = swift::Server;

    fn deref(&self) -> &swift::Server {
        &self.swift
    }
}

impl RemoteServer for S3Api {
    fn repository(&self) -> Location {
        let location: Location = "s3://backups/repo".parse().expect("location");
        let (endpoint, credentials) = (Some(self.endpoint()), Some(Credentials::in_file(self.file())));
        location.with_remote(Remote { endpoint, credentials, ..Remote::default() })
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_ENDPOINT", self.endpoint()).env("BRACKFS_CREDENTIALS", self.file());
    }

    fn stop(&mut self) {
        self.swift.stop();
    }

    fn start_again(&mut self) {
        self.swift.start_again();
    }

    fn is_receiving(&self) -> bool {
        self.swift.is_receiving()
    }
}

promises!(super::S3Api::start);

#[test]
#[ignore = "scripts/soak runs it"]
fn no_secret_is_shown_and_refusals_say_what_to_do() {
    let remote = RemoteSite::ready(S3Api::start(), &borrowed(&many(1)));
    remote.no_secret_is_shown(&[WRITER.0, WRITER.1, "Signature="]);
    let refused = |variables: &[(&str, &str)], code: i32, words: &str| {
        let mut command = remote.command(&["snapshots"]);
        command.envs(variables.iter().copied());
        let refused = run(command).code(code);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{words}: {refused}");
    };
    refused(&[("AWS_REGION", "elsewhere")], 1, "set AWS_REGION=us-east-1");
    refused(&[("BRACKFS_REPOSITORY", "s3://missing/repo")], 10, "the bucket does not exist");
    refused(&[("BRACKFS_REPOSITORY", "s3://backups/other")], 10, "");
    remote.server.log_in_as((WRITER.0, "hunter2"));
    refused(&[], 1, "check AWS_SECRET_ACCESS_KEY");
    // Swift does not tell an unknown user from a wrong key.
    remote.server.log_in_as(("test:nobody", WRITER.1));
    refused(&[], 1, "check AWS_");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_user_that_may_only_read_can_restore_and_not_back_up() {
    let remote = RemoteSite::ready(S3Api::start(), &[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.log_in_as(READER);
    remote.can_be_read_and_not_written("the server denies access");
}
