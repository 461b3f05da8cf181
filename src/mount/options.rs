//! Options as they stand in an fstab: the one place that says which there are, and what each means.

use rustix::mount::MountFlags;

/// What an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionEffect {
    /// It holds in any case, makes no difference to a file system that never changes, or is for mount(8) or systemd.
    Nothing,
    /// A flag to set.
    Flag(MountFlags),
    /// A flag to clear.
    Without(MountFlags),
    /// A word that FUSE in the kernel understands.
    Word,
    /// The same as `--allow-other`.
    AllowOther,
    /// There is no such option.
    Unknown,
}

/// Options that mean nothing.
const NOTHING: &[&str] = &[
    "",
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
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
    "silent",
    "strictatime",
    "sync",
    "user",
    "users",
];
/// The same, with anything after.
const NOTHING_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper=", "helper="];

/// What an option means, or why it is refused.
pub fn meaning(option: &str) -> Result<OptionEffect, String> {
    match option {
        "noexec" => Ok(OptionEffect::Flag(MountFlags::NOEXEC)),
        "exec" => Ok(OptionEffect::Without(MountFlags::NOEXEC)),
        "nodiratime" => Ok(OptionEffect::Flag(MountFlags::NODIRATIME)),
        "allow_other" => Ok(OptionEffect::AllowOther),
        "rw" | "suid" | "dev" => Err(format!("a mount of brackfs is never {option}")),
        "remount" => Err("a mount of brackfs cannot be changed; unmount it, and mount it again".into()),
        _ if NOTHING.contains(&option) || NOTHING_PREFIXES.iter().any(|front| option.starts_with(front)) => {
            Ok(OptionEffect::Nothing)
        }
        _ => match option.strip_prefix("max_read=").map(str::parse::<u32>) {
            Some(Ok(_)) => Ok(OptionEffect::Word),
            Some(Err(_)) => Err(format!("{option}: a number of bytes is needed")),
            None => Ok(OptionEffect::Unknown),
        },
    }
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Let other users in. The permissions that were backed up decide what they may read.
    pub(super) allow_other: bool,
    pub(super) flags: MountFlags,
    pub(super) words: Vec<String>,
}

impl Options {
    /// Reads a list of options.
    pub fn read(options: &[String]) -> Result<Options, String> {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let mut read = Options { allow_other: false, flags, words: Vec::new() };
        for option in options {
            match meaning(option)? {
                OptionEffect::Nothing => {}
                OptionEffect::Flag(flag) => read.flags |= flag,
                OptionEffect::Without(flag) => read.flags -= flag,
                OptionEffect::Word => read.words.push(option.clone()),
                OptionEffect::AllowOther => read.allow_other = true,
                OptionEffect::Unknown => return Err(format!("there is no option {option}")),
            }
        }
        Ok(read)
    }

    /// The same, which lets other users in if `allow` is set.
    #[must_use]
    pub fn allowing_other(self, allow: bool) -> Options {
        Options { allow_other: self.allow_other || allow, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[&str]) -> Result<Options, String> {
        Options::read(&list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_an_fstab_are_understood() {
        let options = read(&["defaults", "noexec", "max_read=4096", "nofail", "x-systemd.automount", "ro"]).unwrap();
        assert!(options.flags.contains(MountFlags::NOEXEC | MountFlags::RDONLY | MountFlags::NOSUID));
        assert_eq!((options.words.as_slice(), options.allow_other), (["max_read=4096".to_owned()].as_slice(), false));
        assert!(!read(&["noexec", "exec"]).unwrap().flags.contains(MountFlags::NOEXEC));
    }

    #[test]
    fn allow_other_is_no_word_for_the_kernel() {
        let options = read(&["allow_other"]).unwrap();
        assert!(options.allow_other && options.words.is_empty());
        assert!(read(&[]).unwrap().allowing_other(true).allow_other);
        assert!(options.allowing_other(false).allow_other);
    }

    #[test]
    fn other_options_are_refused() {
        let refused = ["rw", "suid", "dev", "remount", "uid=0", "allow_root", "fd=3", "rootmode=40755", "user_id=0"];
        for option in refused.into_iter().chain(["fsname=x", "subtype=x", "nonempty", "max_read=x", "max_read"]) {
            assert!(
                read(&["noexec", option]).unwrap_err().contains(option.split('=').next().unwrap())
                    || option == "remount"
            );
        }
    }
}
