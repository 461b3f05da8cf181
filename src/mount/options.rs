//! Mount options, as in an fstab. `brackfs mount -o` and `mount.brackfs -o` use this one table.

use rustix::mount::MountFlags;

/// The effect of a mount option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionEffect {
    /// Ignored: it always applies, makes no difference for a read-only mount, or is for mount(8) or systemd.
    Nothing,
    /// Sets a flag.
    Flag(MountFlags),
    /// Clears a flag.
    Without(MountFlags),
    /// Passed to the kernel's FUSE driver.
    Word,
    /// The same as `--allow-other`.
    AllowOther,
    /// Not a mount option.
    Unknown,
}

/// Options without effect. A mount always has `ro`, `nosuid`, `nodev` and `noatime`. `rw`, `suid` and `dev` are accepted,
/// because mount(8) passes `rw` by default, and `suid` and `dev` from an fstab.
const NOTHING: &[&str] = &[
    "",
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "dirsync",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];
/// Prefixes of options without effect.
const NOTHING_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper=", "helper="];

/// Returns the effect of an option, or a message if its value is not valid or a mount cannot have it.
pub fn parse_option(option: &str) -> Result<OptionEffect, String> {
    match option {
        "noexec" => Ok(OptionEffect::Flag(MountFlags::NOEXEC)),
        "exec" => Ok(OptionEffect::Without(MountFlags::NOEXEC)),
        "nodiratime" => Ok(OptionEffect::Flag(MountFlags::NODIRATIME)),
        "diratime" => Ok(OptionEffect::Without(MountFlags::NODIRATIME)),
        "allow_other" => Ok(OptionEffect::AllowOther),
        "remount" => Err("cannot remount: a mount of brackfs cannot be changed; unmount it and mount it again".into()),
        _ if NOTHING.contains(&option) || NOTHING_PREFIXES.iter().any(|front| option.starts_with(front)) => {
            Ok(OptionEffect::Nothing)
        }
        _ => match option.strip_prefix("max_read=").map(str::parse::<u32>) {
            Some(Ok(_)) => Ok(OptionEffect::Word),
            Some(Err(_)) => Err(format!("the value of {option} is not a number of bytes")),
            None => Ok(OptionEffect::Unknown),
        },
    }
}

/// How to mount. Every mount also gets `default_permissions`, so that the kernel checks the stored permissions.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether other users have access, as far as the stored permissions allow.
    pub(super) allow_other: bool,
    pub(super) flags: MountFlags,
    pub(super) words: Vec<String>,
}

impl Options {
    /// Parses options. The last of two contradictory ones applies.
    pub fn parse(options: &[String]) -> Result<Options, String> {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let mut read = Options { allow_other: false, flags, words: Vec::new() };
        for option in options {
            match parse_option(option)? {
                OptionEffect::Nothing => {}
                OptionEffect::Flag(flag) => read.flags |= flag,
                OptionEffect::Without(flag) => read.flags -= flag,
                OptionEffect::Word => read.words.push(option.clone()),
                OptionEffect::AllowOther => read.allow_other = true,
                OptionEffect::Unknown => {
                    return Err(format!("unknown mount option {option}; `brackfs mount --help` lists those that work"));
                }
            }
        }
        Ok(read)
    }

    /// Also gives other users access if `allow` is set.
    #[must_use]
    pub fn allowing_other(self, allow: bool) -> Options {
        Options { allow_other: self.allow_other || allow, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[&str]) -> Result<Options, String> {
        Options::parse(&list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_an_fstab_are_parsed() {
        let options = read(&["defaults", "noexec", "max_read=4096", "nofail", "x-systemd.automount", "ro"]).unwrap();
        assert!(options.flags.contains(MountFlags::NOEXEC | MountFlags::RDONLY | MountFlags::NOSUID));
        assert_eq!((options.words.as_slice(), options.allow_other), (["max_read=4096".to_owned()].as_slice(), false));
    }

    #[test]
    fn the_last_of_contradictory_options_applies() {
        let is_noexec = |list: &[&str]| read(list).unwrap().flags.contains(MountFlags::NOEXEC);
        assert!(!is_noexec(&["noexec", "exec"]));
        assert!(is_noexec(&["exec", "noexec"]));
        assert!(!read(&["nodiratime", "diratime"]).unwrap().flags.contains(MountFlags::NODIRATIME));
    }

    #[test]
    fn a_mount_is_always_read_only_without_set_id_bits_and_devices() {
        let options = read(&["rw", "suid", "dev"]).unwrap();
        assert_eq!(options.flags, read(&["ro", "nosuid", "nodev"]).unwrap().flags);
        assert!(options.flags.contains(MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV));
    }

    #[test]
    fn allow_other_is_not_a_word_for_the_kernel() {
        let options = read(&["allow_other"]).unwrap();
        assert!(options.allow_other && options.words.is_empty());
        assert!(read(&[]).unwrap().allowing_other(true).allow_other);
        assert!(options.allowing_other(false).allow_other);
    }

    #[test]
    fn other_options_are_refused() {
        let refused = ["remount", "uid=0", "allow_root", "fd=3", "rootmode=40755", "user_id=0"];
        for option in refused.into_iter().chain(["fsname=x", "subtype=x", "nonempty", "max_read=x", "max_read"]) {
            assert!(
                read(&["noexec", option]).unwrap_err().contains(option.split('=').next().unwrap())
                    || option == "remount"
            );
        }
    }
}
