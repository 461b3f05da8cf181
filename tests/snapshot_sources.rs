//! Backups from snapshots of file systems, which configured runs make and remove.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::machine::succeed;
use common::wait::{ended, send, until};
use common::{Run, Site, run, settle};
use rustix::process::Signal;
use serde_json::Value;

/// A site whose source is a mounted file system.
struct World {
    site: Site,
}

fn tool(command: &mut Command) {
    succeed(command.stdout(Stdio::null()).stderr(Stdio::null()));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl World {
    /// Mounts a new file system of this type.
    fn new(kind: &str) -> Self {
        let site = Site::new();
        let (image, source) = (site.path().join("image"), site.source());
        File::create(&image).unwrap().set_len(128 << 20).unwrap();
        tool(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&source));
        site.init();
        World { site }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.site.source().join(name)
    }

    fn subvolume(&self, name: &str) {
        tool(Command::new("btrfs").args(["subvolume", "create"]).arg(self.at(name)));
    }

    /// The names of the subvolumes.
    fn subvolumes(&self) -> Vec<String> {
        let output = Command::new("btrfs").args(["subvolume", "list"]).arg(self.site.source()).output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        listed.lines().map(|line| line.rsplit_once(' ').unwrap().1.to_owned()).collect()
    }

    fn configure(&self, source: &str, more: &str) {
        let repository = self.site.repo().display().to_string();
        let text =
            format!("[target.near]\nrepository = \"{repository}\"\n[source.s]\nto = [\"near\"]\n{source}\n{more}");
        fs::write(self.site.path().join("config.toml"), text).unwrap();
        fs::set_permissions(self.site.path().join("config.toml"), Permissions::from_mode(0o644)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_CONFIG", self.site.path().join("config.toml")).env_remove("BRACKFS_REPOSITORY");
        command
    }

    fn run(&self) -> Run {
        settle();
        run(self.command(&["run", "--only", "backup", "--json", "-v"]))
    }

    /// The outcome of the backup.
    fn backup(&self, code: i32) -> (Value, Run) {
        let run = self.run().code(code);
        let mut steps = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let step = steps.rfind(|step| step["step"] == "backup").unwrap_or_else(|| panic!("{run}"));
        (step, run)
    }

    /// Files below a path of the snapshot.
    fn names(&self, path: &str) -> Vec<String> {
        let listed = self.site.brackfs(&["ls", "-R", &format!("latest:{path}")]).ok().stdout;
        listed.lines().map(str::to_owned).collect()
    }

    fn cat(&self, path: &Path) -> String {
        self.site.brackfs(&["cat", &format!("latest:{}", path.strip_prefix("/").unwrap().display())]).ok().stdout
    }

    fn records(&self) -> usize {
        let entries = fs::read_dir(self.site.state().join("snapshots"));
        entries.map_or(0, |entries| entries.count())
    }

    /// A program that runs a script.
    fn script(&self, name: &str, script: &str) -> String {
        let path = self.site.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        text(&path).to_owned()
    }
}

/// `paths = [...]` of a source.
fn paths(paths: &[&Path]) -> String {
    format!("paths = {paths:?}\n")
}

#[test]
fn subvolumes_are_read_from_snapshots_as_if_in_place() {
    let world = World::new("btrfs");
    for name in ["home", "home/nested", "data"] {
        world.subvolume(name);
    }
    for name in ["home/me/one", "home/nested/two", "data/set/three", "data/other", "outside"] {
        fs::create_dir_all(world.at(name).parent().unwrap()).unwrap();
        fs::write(world.at(name), name).unwrap();
    }
    // Between the snapshot and the backup, files change.
    let change = world.script(
        "change",
        &format!(
            "echo changed > {0}/me/one; echo changed > {0}/nested/two; echo new > {0}/me/new",
            world.at("home").display()
        ),
    );
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{change}\"]\n");
    let wanted = [world.at("home"), world.at("data/set"), world.at("outside")];
    for kind in ["auto", "btrfs"] {
        for name in ["home/me/one", "home/nested/two"] {
            fs::write(world.at(name), name).unwrap();
        }
        let _ = fs::remove_file(world.at("home/me/new"));
        let content = paths(&wanted.each_ref().map(PathBuf::as_path));
        world.configure(&format!("{content}snapshot = \"{kind}\"\n"), &hook);
        let (step, run) = world.backup(0);
        assert_eq!(step["outcome"], "done", "{run}");
        assert_eq!(run.stderr, "");
        assert_eq!(world.cat(&world.at("home/me/one")), "home/me/one");
        assert_eq!(world.cat(&world.at("data/set/three")), "data/set/three");
        assert_eq!(world.cat(&world.at("outside")), "outside");
        // A nested subvolume is not in the snapshot, and read live.
        assert_eq!(world.cat(&world.at("home/nested/two")), "changed\n");
        let names = world.names(text(world.site.source().strip_prefix("/").unwrap()));
        assert!(!names.iter().any(|name| name.contains("new") || name.contains("brackfs")), "{names:?}");
        let listed = world.site.brackfs(&["snapshots", "--json"]).ok().stdout;
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed.last().unwrap()["paths"], serde_json::json!(wanted));
        assert_eq!((world.subvolumes().len(), world.records()), (3, 0));
    }
}

/// Fails if a file was new or changed.
#[track_caller]
fn assert_unread(run: &Run) {
    assert!(!run.stdout.contains("verbose_status"), "{run}");
}

#[test]
fn unchanged_files_in_snapshots_are_not_read_again() {
    let world = World::new("btrfs");
    world.subvolume("a");
    for name in ["a/one", "a/two", "b/three"] {
        fs::create_dir_all(world.at(name).parent().unwrap()).unwrap();
        fs::write(world.at(name), name).unwrap();
    }
    for wanted in [vec![world.site.source()], vec![world.at("a"), world.at("b")]] {
        let wanted: Vec<_> = wanted.iter().map(PathBuf::as_path).collect();
        world.configure(&format!("{}snapshot = \"auto\"\nskip-if-unchanged = true\n", paths(&wanted)), "");
        // The directory of snapshots is made by the first one.
        assert!(world.backup(0).1.stdout.contains("verbose_status"));
        assert_unread(&world.backup(0).1);
        // Live, and then from a snapshot again.
        let content = format!("{}skip-if-unchanged = true\nexclude = [\".brackfs-snapshots/\"]\n", paths(&wanted));
        for more in ["", "snapshot = \"auto\"\n"] {
            world.configure(&format!("{content}{more}"), "");
            assert_unread(&world.backup(0).1);
        }
    }
    assert_eq!((world.subvolumes().len(), world.records()), (1, 0));
}

#[test]
fn a_snapshot_of_a_killed_or_interrupted_run_is_removed() {
    let world = World::new("btrfs");
    fs::write(world.at("file"), "content").unwrap();
    let waiting = world.script("wait", &format!("touch {}/waits; exec sleep 1000", world.site.path().display()));
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{waiting}\"]\n");
    for (signal, left) in [(Signal::KILL, 1), (Signal::TERM, 0)] {
        world.configure(&format!("{}snapshot = \"btrfs\"\n", paths(&[&world.site.source()])), &hook);
        let flag = world.site.path().join("waits");
        let _ = fs::remove_file(&flag);
        let mut child = world.command(&["run"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        until("the hook to run", || flag.exists());
        // A snapshot of a run that lives is left alone.
        assert_eq!((world.subvolumes().len(), world.records()), (1, 1));
        world.configure(&format!("{}snapshot = \"btrfs\"\n", paths(&[&world.site.source()])), "");
        world.backup(0);
        assert_eq!((world.subvolumes().len(), world.records()), (1, 1));
        send(&child, signal);
        ended(&mut child);
        assert_eq!((world.subvolumes().len(), world.records()), (left, left), "{signal:?}");
        // Also if nothing is read from snapshots any more.
        world.configure(&paths(&[&world.site.source()]), "");
        world.backup(0);
        assert_eq!((world.subvolumes().len(), world.records()), (0, 0));
    }
}

#[test]
fn a_file_system_without_snapshots_is_read_live_or_refused_as_configured() {
    let world = World::new("ext4");
    fs::write(world.at("file"), "content").unwrap();
    world.configure(&format!("{}snapshot = \"auto\"\n", paths(&[&world.at("file")])), "");
    let (step, run) = world.backup(0);
    assert_eq!(step["outcome"], "done");
    assert_eq!(run.stderr.matches("without snapshots, and is read live").count(), 1, "{run}");
    for (kind, words) in [("btrfs", "not in a subvolume of btrfs"), ("zfs", "zfs"), ("lvm", "lvs")] {
        world.configure(&format!("{}snapshot = \"{kind}\"\n", paths(&[&world.at("file")])), "");
        let mut command = world.command(&["run", "--only", "backup", "--json"]);
        // No program is found.
        command.env("PATH", world.site.path());
        let run = common::run(command).code(1);
        assert!(run.stdout.contains(words), "{run}");
    }
    assert_eq!(world.records(), 0);
}

#[test]
fn no_snapshot_is_made_where_another_user_could_redirect_its_removal() {
    let world = World::new("btrfs");
    world.subvolume("home");
    fs::write(world.at("home/file"), "content").unwrap();
    chown(world.at("home"), Some(1234), Some(1234)).unwrap();
    for (kind, code) in [("btrfs", 1), ("auto", 0)] {
        world.configure(&format!("{}snapshot = \"{kind}\"\n", paths(&[&world.at("home")])), "");
        let run = world.run().code(code);
        let said = format!("another user can change {}", world.at("home").display());
        assert!([&run.stdout, &run.stderr].iter().any(|text| text.contains(&said)), "{run}");
        assert_eq!((world.subvolumes().len(), world.records()), (1, 0));
        assert!(!world.at("home/.brackfs-snapshots").exists());
    }
    assert_eq!(world.site.brackfs(&["cat", "latest:file"]).ok().stdout, "content");
    // The user could also make the folder first.
    chown(world.at("home"), Some(0), Some(0)).unwrap();
    symlink("/", world.at("home/.brackfs-snapshots")).unwrap();
    world.configure(&format!("{}snapshot = \"btrfs\"\n", paths(&[&world.at("home")])), "");
    world.run().code(1);
    assert_eq!((world.subvolumes().len(), world.records()), (1, 0));
}

#[test]
fn a_logical_volume_is_mounted_from_its_snapshot() {
    let world = World::new("ext4");
    let (image, log) = (world.site.path().join("image"), world.site.path().join("log"));
    fs::create_dir(world.at("d")).unwrap();
    fs::write(world.at("d/file"), "content").unwrap();
    // The programs of LVM, for one volume whose snapshots are copies.
    let programs = world.site.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let copies = world.site.path().join("copies");
    fs::create_dir(&copies).unwrap();
    let log_call = format!("echo \"${{0##*/}} $*\" >> {}", log.display());
    let (image, at, source) = (image.display(), copies.display(), world.site.source());
    let last = format!("for last; do :; done; copy={at}/${{last#vg/}}");
    for (name, script) in [
        ("lvs", format!("{last}; case $* in *vg_name*) echo '  vg/home  ';; *lv_path*) cat $copy.device;; esac")),
        (
            "lvcreate",
            format!(
                "while [ $# -gt 2 ]; do [ \"$1\" = --name ] && copy={at}/$2; shift; done\n\
                 sync -f {} && cp {image} $copy && losetup -f --show $copy > $copy.device",
                source.display()
            ),
        ),
        ("lvremove", format!("{last}; losetup -d $(cat $copy.device) && rm $copy $copy.device")),
    ] {
        world.script(&format!("programs/{name}"), &format!("{log_call}\n{script}"));
    }
    tool(Command::new("mount").args(["-o", "remount,nosuid,nodev,noexec"]).arg(&source));
    let mounts = world.site.path().join("mounts");
    let change = world.script(
        "change",
        &format!(
            "echo changed > {}; grep {}/snapshots/ /proc/self/mounts > {}",
            world.at("d/file").display(),
            world.site.state().display(),
            mounts.display()
        ),
    );
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{change}\"]\n");
    world.configure(
        &format!(
            "{}snapshot = \"lvm\"\nsnapshot-size = \"7%\"\n",
            paths(&[&world.at("d"), &world.site.source().join("lost+found")])
        ),
        &hook,
    );
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let backup = || {
        settle();
        let mut command = world.command(&["run", "--only", "backup", "--json"]);
        command.env("PATH", &path);
        run(command).ok()
    };
    let first = backup();
    assert_eq!(first.stderr, "");
    assert_eq!(world.cat(&world.at("d/file")), "content");
    // What the mount forbids, its snapshot forbids too.
    let mounted = fs::read_to_string(&mounts).unwrap();
    assert!(mounted.contains(" ro,nosuid,nodev,noexec,"), "{mounted}");
    let calls = fs::read_to_string(&log).unwrap();
    let calls: Vec<_> = calls.lines().collect();
    assert!(calls[1].starts_with("lvcreate --snapshot --quiet --extents 7%ORIGIN --name brackfs-"), "{calls:?}");
    assert!(calls[1].ends_with(" vg/home") && calls[3].starts_with("lvremove --yes --quiet vg/brackfs-"), "{calls:?}");
    assert_eq!((calls.len(), world.records(), fs::read_dir(&copies).unwrap().count()), (4, 0, 0));
    backup();
    assert_eq!(world.cat(&world.at("d/file")), "changed\n");
    // A failure is reported with the words of the program, and leaves nothing.
    world.script("programs/lvcreate", "echo '  insufficient free space (7 extents)' >&2; exit 5");
    let mut command = world.command(&["run", "--only", "backup", "--json"]);
    let failed = run({
        command.env("PATH", &path);
        command
    })
    .code(1);
    assert!(failed.stdout.contains("insufficient free space (7 extents)"), "{failed}");
    assert_eq!(world.records(), 0);
}

#[test]
fn a_dataset_is_read_below_its_directory_of_snapshots() {
    let world = World::new("ext4");
    let source = world.site.source();
    fs::write(world.at("file"), "content").unwrap();
    let programs = world.site.path().join("programs");
    fs::create_dir(&programs).unwrap();
    // A program of ZFS whose snapshots are copies.
    let device =
        String::from_utf8(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&source).output().unwrap().stdout)
            .unwrap();
    let folder = source.join(".zfs/snapshot");
    world.script(
        "programs/zfs",
        &format!(
            "name=${{2#*@}}; test \"${{2%@*}}\" = {} || exit 1; case $1 in\n\
             snapshot) mkdir -p {1}/$name && cp -a {2}/file {1}/$name;;\n\
             destroy) test -e {1}/$name || {{ echo 'could not find any snapshots to destroy' >&2; exit 1; }}; rm -r {1}/$name;;\n\
             esac",
            device.trim(),
            folder.display(),
            source.display()
        ),
    );
    let change = world.script("change", &format!("echo changed > {}", world.at("file").display()));
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{change}\"]\n");
    world.configure(&format!("{}snapshot = \"zfs\"\n", paths(&[&source])), &hook);
    let mut command = world.command(&["run", "--only", "backup", "--json"]);
    command.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
    let run = run(command).ok();
    assert_eq!(run.stderr, "");
    assert_eq!(world.site.brackfs(&["cat", "latest:file"]).ok().stdout, "content");
    assert_eq!((fs::read_dir(&folder).unwrap().count(), world.records()), (0, 0));
}

#[test]
fn a_link_above_what_is_read_live_is_not_followed() {
    let world = World::new("btrfs");
    world.subvolume("home");
    fs::create_dir(world.at("home/d")).unwrap();
    world.subvolume("home/d/nested");
    fs::write(world.at("home/d/nested/file"), "content").unwrap();
    fs::write(world.at("home/file"), "content").unwrap();
    let secret = world.site.path().join("secret");
    fs::create_dir_all(secret.join("nested")).unwrap();
    fs::write(secret.join("nested/file"), "secret").unwrap();
    fs::write(secret.join("nested/other"), "secret").unwrap();
    // After the snapshot, the directory is another one.
    let change = world
        .script("change", &format!("mv {0} {0}-old && ln -s {1} {0}", world.at("home/d").display(), text(&secret)));
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{change}\"]\n");
    world.configure(&format!("{}snapshot = \"btrfs\"\n", paths(&[&world.at("home")])), &hook);
    let (_, run) = world.backup(3);
    assert!(run.stderr.contains("d/nested"), "{run}");
    let names = world.names("");
    let has = |name: &str| names.iter().any(|listed| listed.ends_with(name));
    assert!(has("file") && !has("nested/file") && !has("nested/other"), "{names:?}");
}

#[test]
fn a_service_makes_snapshots_though_systemd_binds_directories_to_themselves() {
    let world = World::new("btrfs");
    world.subvolume("home");
    fs::create_dir_all(world.at("home/me/deep")).unwrap();
    for name in ["home/me/one", "home/me/deep/two"] {
        fs::write(world.at(name), "before").unwrap();
    }
    for name in ["home", "home/me", "home/me/deep"] {
        tool(Command::new("mount").arg("--bind").args([world.at(name), world.at(name)]));
    }
    let change = world
        .script("change", &format!("echo after > {0}/one; echo after > {0}/deep/two", world.at("home/me").display()));
    let hook = format!("[[hook]]\non = [\"snapshot\"]\nfor = [\"s\"]\nrun = [\"{change}\"]\n");
    world.configure(&format!("{}snapshot = \"btrfs\"\n", paths(&[&world.at("home/me")])), &hook);
    // It must be able to write to the subvolume.
    let printed = run(world.command(&["config", "unit"])).ok().stdout;
    assert!(printed.contains(&format!("ReadWritePaths=-{}\n", world.at("home").display())), "{printed}");
    world.backup(0);
    for name in ["one", "deep/two"] {
        assert_eq!(world.site.brackfs(&["cat", &format!("latest:{name}")]).ok().stdout, "before", "{name}");
    }
}

#[test]
fn file_systems_mounted_in_a_snapshot_are_still_backed_up() {
    let world = World::new("btrfs");
    fs::create_dir(world.at("disk")).unwrap();
    common::machine::mount_tmpfs(&world.at("disk"), c"mode=755");
    fs::write(world.at("disk/file"), "mounted").unwrap();
    fs::write(world.at("own"), "own").unwrap();
    let source = paths(&[&world.site.source()]);
    world.configure(&format!("{source}snapshot = \"auto\"\n"), "");
    world.backup(0);
    assert_eq!(world.names(""), ["disk/", "disk/file", "own"]);
    world.configure(&format!("{source}snapshot = \"auto\"\none-file-system = true\n"), "");
    world.backup(0);
    assert_eq!(world.names(""), ["disk/", "own"]);
}
