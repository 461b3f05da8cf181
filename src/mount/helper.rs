//! Runs fusermount3, which mounts and unmounts for users other than root.
//!
//! Its working directory is the mount point or its parent: a path could refer to another directory by the time it is used.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const PROGRAM: &str = "fusermount3";

/// Mounts on `directory` and returns the FUSE device.
pub(super) fn mount(directory: &Path, options: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = command(directory);
    command.args(["-o", options, "--", "."]).env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    let child = command.spawn().map_err(missing)?;
    // Closes our copy of the other end, so that reading ends when the helper exits.
    drop(command);
    let device = receive(&ours)?;
    let output = child.wait_with_output()?;
    match device {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(refusal(&output)),
    }
}

/// Unmounts `name` in `parent`.
pub(super) fn unmount(parent: &Path, name: &OsStr, lazy: bool) -> io::Result<()> {
    let mut command = command(parent);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(name).stdin(Stdio::null());
    let output = command.output().map_err(missing)?;
    if output.status.success() { Ok(()) } else { Err(refusal(&output)) }
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    // `refusal` parses its messages.
    command.env("LC_ALL", "C").current_dir(directory).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Receives the descriptor from the helper; `None` if it exited without sending one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let read =
        || rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut messages, RecvFlags::CMSG_CLOEXEC);
    rustix::io::retry_on_intr(read)?;
    let mut descriptors = messages.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.find_map(|mut descriptors| descriptors.next()))
}

fn missing(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::NotFound,
            format!("{PROGRAM} is missing, which mounts for users other than root; install the package fuse3"),
        ),
        kind => io::Error::new(kind, format!("cannot run {PROGRAM}: {error}")),
    }
}

/// Converts the helper's message to an error, with a kind for the causes that get a hint.
fn refusal(output: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fusermount3:").trim();
    let kind = match said {
        "" => return io::Error::other(format!("{PROGRAM} failed ({})", output.status)),
        _ if said.contains("user_allow_other") => io::ErrorKind::PermissionDenied,
        _ if said.contains("busy") => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, said.to_owned())
}
