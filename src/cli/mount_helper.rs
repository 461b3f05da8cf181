//! `mount.brackfs`: the helper that mount(8) runs for `mount -t brackfs` and for lines of an fstab.
//!
//! The helper is a symbolic link to the program. It translates the arguments of mount(8) into a command line of
//! `brackfs mount`, and returns the exit codes of mount(8).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{exit, mount, output, show};
use crate::failure::FailureKind;
use crate::mount::{OptionEffect, parse_option};

/// Called by this name, the program is the helper.
const NAME: &str = "mount.brackfs";

/// Exit code of mount(8): wrong usage, or not permitted.
const WRONG_CALL: u8 = 1;
/// Exit code of mount(8): nothing was mounted.
const NOT_MOUNTED: u8 = 32;

/// A parsed call of the helper.
#[derive(Debug, PartialEq, Eq)]
enum HelperCall {
    /// Run the program with these arguments and environment variables.
    Mount { arguments: Vec<OsString>, environment: Vec<(&'static str, OsString)> },
    /// Do nothing (`mount -f`).
    Fake,
}

/// Whether the program was called as the helper.
pub(super) fn is_called(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    name == Some(OsStr::new(NAME))
}

/// Runs the helper. The first argument is the name of the program.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let print_error = |text: &str| output::error(format_args!("{NAME}: {}", show::printable(text)));
    let call = match parse(arguments.get(1..).unwrap_or_default()) {
        Ok(call) => call,
        Err(why) => {
            print_error(&why);
            return ExitCode::from(WRONG_CALL);
        }
    };
    let HelperCall::Mount { arguments, environment } = call else { return ExitCode::SUCCESS };
    match mount::start_in_background(&arguments, &environment) {
        Ok(0) => ExitCode::SUCCESS,
        // It has printed the reason.
        Ok(code) if code == exit::code(FailureKind::Usage) => ExitCode::from(WRONG_CALL),
        Ok(_) => ExitCode::from(NOT_MOUNTED),
        Err(error) => {
            print_error(&exit::text(&error));
            ExitCode::from(NOT_MOUNTED)
        }
    }
}

/// Parses the arguments of mount(8): `SPEC DIR [-sfnv] [-o OPTIONS] [-t TYPE]`, in any order.
fn parse(arguments: &[OsString]) -> Result<HelperCall, String> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let (mut sloppy, mut fake) = (false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flags) = argument.as_bytes().strip_prefix(b"-").filter(|flags| !flags.is_empty()) else {
            places.push(argument.clone());
            continue;
        };
        let mut flags = flags.iter();
        while let Some(flag) = flags.next() {
            match flag {
                b's' => sloppy = true,
                b'f' => fake = true,
                b'n' | b'v' => {}
                b'o' | b't' => {
                    let value = match flags.as_slice() {
                        [] => rest.next().map(|value| value.as_bytes()),
                        attached => Some(attached),
                    };
                    let value = value.ok_or_else(|| format!("-{} needs a value", char::from(*flag)))?;
                    if *flag == b'o' {
                        options.extend(split(value));
                    }
                    break;
                }
                other => return Err(format!("unknown option -{}", char::from(*other))),
            }
        }
    }
    let [repository, mountpoint] = <[OsString; 2]>::try_from(places)
        .map_err(|_| format!("usage: {NAME} REPO MOUNTPOINT [-sfnv] [-o OPTIONS]; see mount.brackfs(8)"))?;
    let call = translate(repository, mountpoint, &options, sloppy)?;
    Ok(if fake { HelperCall::Fake } else { call })
}

/// Translates a call into a command line of `brackfs mount`.
fn translate(
    repository: OsString,
    mountpoint: OsString,
    options: &[Vec<u8>],
    sloppy: bool,
) -> Result<HelperCall, String> {
    let mut arguments = vec!["mount".into(), joined("--repo", repository.as_bytes())];
    let (mut environment, mut snapshot) = (Vec::new(), None);
    for option in options {
        let text = String::from_utf8_lossy(option);
        let name = text.split('=').next().unwrap_or_default();
        let value = option.get(name.len() + 1..).filter(|value| !value.is_empty());
        let value = || value.ok_or_else(|| format!("the option {name} needs a value"));
        match name {
            "key" => arguments.push(joined("--key", value()?)),
            "signer" => arguments.push(joined("--signer", value()?)),
            "cache_size" => arguments.push(joined("--cache-size", value()?)),
            "state_dir" => arguments.push(joined("--state-dir", value()?)),
            "passphrase_file" => environment.push(("BRACKFS_PASSPHRASE_FILE", OsString::from_vec(value()?.to_vec()))),
            "snapshot" => snapshot = Some(OsString::from_vec(value()?.to_vec())),
            "owner_me" => arguments.push("--owner-me".into()),
            "map_owner" => arguments.push(joined("--map-owner", value()?)),
            "map_group" => arguments.push(joined("--map-group", value()?)),
            _ => match parse_option(&text)? {
                OptionEffect::Nothing => {}
                OptionEffect::Unknown if sloppy => {}
                OptionEffect::Unknown => return Err(format!("unknown option {text}; see mount.brackfs(8)")),
                _ => arguments.push(joined("-o", option)),
            },
        }
    }
    arguments.extend(snapshot);
    // An absolute path can't be taken for an option. `--` would end the options, but some follow.
    arguments.push(std::path::absolute(&mountpoint).map_or(mountpoint, PathBuf::into));
    Ok(HelperCall::Mount { arguments, environment })
}

/// An option and its value as one argument, so that the value can begin with a hyphen.
fn joined(option: &str, value: &[u8]) -> OsString {
    let equals: &[u8] = if option.starts_with("--") { b"=" } else { b"" };
    OsString::from_vec([option.as_bytes(), equals, value].concat())
}

/// Splits options at commas, except within double quotes. The quotes are removed.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut quoted) = (vec![Vec::new()], false);
    for byte in options {
        match (byte, all.last_mut()) {
            (b'"', _) => quoted = !quoted,
            (b',', _) if !quoted => all.push(Vec::new()),
            (byte, Some(last)) => last.push(*byte),
            (_, None) => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    fn command(line: &[&str]) -> Result<String, String> {
        match parse(&words(line))? {
            HelperCall::Mount { arguments, .. } => Ok(arguments.join(OsStr::new(" ")).into_string().unwrap()),
            HelperCall::Fake => Ok("fake".into()),
        }
    }

    #[test]
    fn the_name_of_the_program_makes_it_the_helper() {
        assert!(is_called(&words(&["/sbin/mount.brackfs", "repo"])) && is_called(&words(&["mount.brackfs"])));
        assert!(!is_called(&words(&["brackfs", "mount.brackfs"])) && !is_called(&[]));
    }

    #[test]
    fn arguments_of_mount_become_a_command_line() {
        assert_eq!(command(&["/repo", "/mnt", "-o", "rw"]).unwrap(), "mount --repo=/repo /mnt");
        assert_eq!(command(&["-n", "-o", "ro", "/repo", "/mnt"]).unwrap(), "mount --repo=/repo /mnt");
        let options = "rw,noexec,nosuid,user=me,_netdev,x-systemd.automount,X-mount.mkdir,nofail,key=/k,allow_other";
        assert_eq!(
            command(&["/repo", "/mnt", "-vo", options, "-t", "brackfs"]).unwrap(),
            "mount --repo=/repo -onoexec --key=/k -oallow_other /mnt"
        );
        let options = "-ocache_size=1G,snapshot=home/latest:a=\"b,c\",signer=ab,state_dir=/s,key=";
        assert_eq!(command(&["-r", "-m", options]), Err("unknown option -r".into()));
        assert_eq!(command(&["/r", "/m", options]), Err("the option key needs a value".into()));
        assert_eq!(
            command(&["/r", "/m", options.trim_end_matches(",key=")]).unwrap(),
            "mount --repo=/r --cache-size=1G --signer=ab --state-dir=/s home/latest:a=b,c /m"
        );
        assert_eq!(command(&["/r", "/m", "-f"]).unwrap(), "fake");
        let call = parse(&words(&["/r", "/m", "-o", "passphrase_file=/p"])).unwrap();
        let HelperCall::Mount { environment, .. } = call else { panic!("{call:?}") };
        assert_eq!(environment, [("BRACKFS_PASSPHRASE_FILE", "/p".into())]);
    }

    #[test]
    fn unknown_options_are_refused_unless_mount_is_sloppy() {
        assert!(command(&["/r", "/m", "-o", "uid=0"]).unwrap_err().contains("uid=0"));
        assert_eq!(command(&["/r", "/m", "-s", "-o", "uid=0"]).unwrap(), "mount --repo=/r /m");
        for line in [&["/r"][..], &["/r", "/m", "/n"], &[], &["/r", "/m", "-o"], &["/r", "/m", "-o", "remount,ro"]] {
            assert!(command(line).is_err(), "{line:?}");
        }
    }
}
