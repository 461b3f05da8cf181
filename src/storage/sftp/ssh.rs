//! Starts the ssh program and interprets its messages.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::address::Address;
use super::failure::Failure;
use crate::storage::error::ErrorKind;

/// Options that are added to the user's own, so that ssh asks no questions and forwards no ports.
const OPTIONS: [&str; 6] = [
    "-oBatchMode=yes",
    "-oClearAllForwardings=yes",
    "-oForwardX11=no",
    "-oPermitLocalCommand=no",
    "-oRemoteCommand=none",
    "-oRequestTTY=no",
];

/// Bytes of ssh's messages that are kept: more than it writes about a changed host key.
pub(super) const WORDS: usize = 8 << 10;

/// Characters of ssh's messages that the error of a closed connection repeats.
const LAST_WORDS: usize = 400;

/// A server, and the program that connects to it.
#[derive(Debug)]
pub(super) struct Ssh {
    /// The program, and options before those of [`OPTIONS`].
    program: Vec<String>,
    address: Address,
}

impl Ssh {
    pub(super) fn new(program: Vec<String>, address: Address) -> Self {
        Ssh { program, address }
    }

    /// The directory on the server.
    pub(super) fn path(&self) -> &str {
        &self.address.path
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = self.program.iter().skip(1).cloned().collect();
        arguments.extend(OPTIONS.map(str::to_owned));
        let Address { user, host, port, .. } = &self.address;
        if let Some(port) = port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        arguments.extend(["-s".to_owned(), "--".to_owned(), host.clone(), "sftp".to_owned()]);
        arguments
    }

    /// Starts ssh in a process group of its own, so that Ctrl-C in the terminal ends brackfs in order, and not ssh under it.
    pub(super) fn start(&self) -> Result<Child, Failure> {
        let program = self.program.first().map_or("ssh", String::as_str);
        let mut command = Command::new(program);
        command.args(self.arguments()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|error| {
            let help = match error.kind() {
                io::ErrorKind::NotFound => "; install the package openssh-client",
                _ => "",
            };
            Failure::Lost(ErrorKind::Other, format!("cannot start {program}: {error}{help}"))
        })
    }

    /// The command that a user can try.
    fn command(&self) -> String {
        let Address { user, host, port, .. } = &self.address;
        let port = port.map(|port| format!("-p {port} ")).unwrap_or_default();
        let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        format!("ssh {port}{user}{host}")
    }

    /// The name of the server in ssh's list of known hosts.
    fn known_as(&self) -> String {
        let Address { host, port, .. } = &self.address;
        port.filter(|port| *port != 22).map_or_else(|| host.clone(), |port| format!("'[{host}]:{port}'"))
    }

    /// Why the connection ended, according to ssh's messages.
    pub(super) fn explain(&self, words: &[u8]) -> Failure {
        let text = String::from_utf8_lossy(words);
        // Frames around warnings, and carriage returns, carry no meaning.
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('@'));
        let said = lines.collect::<Vec<_>>().join("\n");
        let has = |part: &str| text.contains(part);
        if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            let why = format!(
                "the server's host key is not the one that ssh knows; it may be another machine. ssh says:\n{said}\nIf \
                 the server has a new key, compare its fingerprint, and then run: ssh-keygen -R {}; {}",
                self.known_as(),
                self.command()
            );
            return Failure::Lost(ErrorKind::Refused, why);
        }
        if has("is marked as revoked") {
            let why = format!("the server's host key is revoked; do not use the server. ssh says:\n{said}");
            return Failure::Lost(ErrorKind::Refused, why);
        }
        if has("Host key verification failed") || has("host key is known for") {
            let why = format!(
                "ssh does not trust the server's host key yet; run `{}` once and compare the fingerprint. ssh says:\n{said}",
                self.command()
            );
            return Failure::Lost(ErrorKind::Refused, why);
        }
        if has("Permission denied (") || has("Too many authentication failures") {
            let why = format!(
                "the server refuses the login ({said}); ssh needs a key that works without a question: try `{}`",
                self.command()
            );
            return Failure::Lost(ErrorKind::Refused, why);
        }
        if has("Unable to negotiate with") {
            return Failure::Lost(
                ErrorKind::Refused,
                format!("ssh and the server have no algorithm in common ({said})"),
            );
        }
        if has("subsystem request failed") {
            return Failure::Lost(ErrorKind::Refused, format!("the server does not offer SFTP ({said})"));
        }
        // ssh gives the reason last.
        let first = said.char_indices().rev().nth(LAST_WORDS - 1).map_or(0, |(first, _)| first);
        let why = match said.get(first..).unwrap_or_default() {
            "" => "the connection to the server was closed".to_owned(),
            said => format!("the connection to the server was closed ({})", said.replace('\n', "; ")),
        };
        Failure::Lost(ErrorKind::Unavailable, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(url: &str) -> Ssh {
        Ssh::new(vec!["ssh".into(), "-Fconfig".into()], Address::parse(url).unwrap())
    }

    #[test]
    fn users_and_hosts_are_arguments_that_cannot_be_options() {
        let arguments = ssh("sftp://-oProxyCommand=x@host:2222/repo").arguments();
        let tail: Vec<_> = arguments.iter().skip(1 + OPTIONS.len()).map(String::as_str).collect();
        assert_eq!(tail, ["-p", "2222", "-l", "-oProxyCommand=x", "-s", "--", "host", "sftp"]);
        assert_eq!(arguments[0], "-Fconfig");
    }

    #[test]
    fn refusals_are_told_from_broken_connections() {
        let explained = |words: &str| match ssh("sftp://me@host:2222/repo").explain(words.as_bytes()) {
            Failure::Lost(kind, why) => (kind, why),
            other => panic!("{other:?}"),
        };
        let changed = "@@@@@@@@@@@@\r\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\n@@@@@@@@@@@@\r\nThe \
                       fingerprint is SHA256:abc.\r\nHost key verification failed.\r\n";
        let (kind, why) = explained(changed);
        assert_eq!(kind, ErrorKind::Refused);
        assert!(
            why.contains("SHA256:abc")
                && why.contains("ssh-keygen -R '[host]:2222'")
                && !why.contains('@'.to_string().repeat(4).as_str()),
            "{why}"
        );
        let revoked = "@ WARNING: REVOKED HOST KEY DETECTED! @\r\nThe ED25519 host key for host is marked as revoked.\r\nHost \
                       key verification failed.\r\n";
        let (kind, why) = explained(revoked);
        assert!(kind == ErrorKind::Refused && why.contains("do not use the server"), "{why}");
        let (kind, why) = explained("Unable to negotiate with host port 2222: no matching host key type found.\r\n");
        assert!(kind == ErrorKind::Refused && why.contains("no matching host key type"), "{why}");
        let (kind, why) = explained("Host key verification failed.\r\n");
        assert!(kind == ErrorKind::Refused && why.contains("ssh -p 2222 me@host"), "{why}");
        let (kind, why) = explained("me@host: Permission denied (publickey).\r\n");
        assert!(kind == ErrorKind::Refused && why.contains("me@host: Permission denied (publickey)."), "{why}");
        let (kind, why) = explained("ssh: connect to host host port 2222: Connection refused\r\n");
        assert!(
            kind == ErrorKind::Unavailable
                && why.ends_with("(ssh: connect to host host port 2222: Connection refused)"),
            "{why}"
        );
        assert_eq!(explained("").0, ErrorKind::Unavailable);
    }
}
