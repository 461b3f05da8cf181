//! Packages: the version and commit that the program names, the files of the crate, and the package for Debian.
//!
//! `scripts/package --check` and `--try` test what takes longer: whether builds are reproducible, and the use of packages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Site;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_version_names_openssl() {
    let site = Site::new();
    let short = site.brackfs(&["-V"]).ok().stdout;
    assert!(short.starts_with(&format!("brackfs {}", env!("CARGO_PKG_VERSION"))), "{short}");
    assert_eq!(short.lines().count(), 1, "{short}");
    let long = site.brackfs(&["--version"]).ok().stdout;
    assert_eq!(long.lines().next(), Some(short.trim_end()));
    assert!(long.lines().nth(1).unwrap().starts_with("OpenSSL 3."), "{long}");
}

/// Runs the build script as cargo does.
struct BuildScript {
    folder: tempfile::TempDir,
}

impl BuildScript {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        compiler.args(["--edition=2024", "-o"]).arg(folder.path().join("script")).arg(project("build.rs"));
        assert!(compiler.status().expect("rustc").success());
        fs::create_dir(folder.path().join("crate")).unwrap();
        Self { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("crate")
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut git = Command::new("git");
        git.current_dir(self.root()).args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]);
        let output = git.args(arguments).output().expect("git");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The version that the script sets, and whether it looks at more than the environment when it runs again.
    fn version(&self, variables: &[(&str, &str)]) -> (String, bool) {
        let mut script = Command::new(self.folder.path().join("script"));
        script.current_dir(self.root()).env("CARGO_PKG_VERSION", "1.2.3").env("PROFILE", "release");
        let output = script.env_remove("BRACKFS_COMMIT").envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=BRACKFS_VERSION="));
        (version.expect("a version").to_owned(), text.contains("rerun-if-changed"))
    }
}

#[test]
fn the_commit_is_known_from_a_variable_the_crate_or_git() {
    let script = BuildScript::new();
    assert_eq!(script.version(&[]), ("1.2.3".into(), false));
    assert_eq!(script.version(&[("BRACKFS_COMMIT", "")]), ("1.2.3".into(), false));
    assert_eq!(script.version(&[("BRACKFS_COMMIT", "abc")]), ("1.2.3 (abc)".into(), false));

    script.git(&["init", "-q"]);
    assert_eq!(script.version(&[]), ("1.2.3".into(), true), "no commit yet");
    fs::write(script.root().join("file"), "one").unwrap();
    script.git(&["add", "file"]);
    script.git(&["commit", "-q", "-m", "one"]);
    let commit = script.git(&["rev-parse", "--short=12", "HEAD"]).trim().to_owned();
    assert_eq!(script.version(&[]), (format!("1.2.3 ({commit})"), true));
    assert_eq!(script.version(&[("PROFILE", "debug")]), ("1.2.3".into(), false));
    assert_eq!(script.version(&[("PATH", "")]), ("1.2.3".into(), false));
    fs::write(script.root().join("file"), "two").unwrap();
    assert_eq!(script.version(&[]), (format!("1.2.3 ({commit}-dirty)"), true));

    let crate_info = |dirty| {
        let text = "{\n  \"git\": {\n    \"sha1\": \"0123456789abcdef0123\"";
        format!("{text}{dirty}\n  }},\n  \"path_in_vcs\": \"\"\n}}")
    };
    let path = script.root().join(".cargo_vcs_info.json");
    fs::write(&path, crate_info("")).unwrap();
    assert_eq!(script.version(&[]), ("1.2.3 (0123456789ab)".into(), false));
    fs::write(&path, crate_info(",\n    \"dirty\": true")).unwrap();
    assert_eq!(script.version(&[]), ("1.2.3 (0123456789ab-dirty)".into(), false));
    fs::write(&path, "{}").unwrap();
    assert_eq!(script.version(&[("PROFILE", "debug")]), ("1.2.3".into(), false));
}

#[test]
fn a_copy_in_another_repository_does_not_take_its_commit() {
    let script = BuildScript::new();
    script.git(&["init", "-q"]);
    script.git(&["commit", "-q", "--allow-empty", "-m", "one"]);
    fs::rename(script.root().join(".git"), script.folder.path().join(".git")).unwrap();
    assert_eq!(script.version(&[]), ("1.2.3".into(), false));
}

#[test]
fn the_crate_has_what_a_build_needs_and_no_more() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(project("")).args(["package", "--list", "--allow-dirty", "--offline"]);
    let output = cargo.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).unwrap();
    let files: Vec<_> = list.lines().collect();
    for needed in ["build.rs", "Cargo.lock", "src/main.rs", "src/repository/FORMAT.txt", "man/brackfs.1", "LICENSE-MIT"]
    {
        assert!(files.contains(&needed), "{needed} is not in {list}");
    }
    assert!(!files.iter().any(|file| file.starts_with("tests/") || file.starts_with("scripts/")), "{list}");
}

#[test]
fn the_scripts_of_packages_are_valid() {
    let scripts = ["postinst", "prerm", "postrm"].map(|name| format!("packaging/debian/{name}"));
    for script in
        scripts.iter().map(String::as_str).chain(["packaging/cron.daily/brackfs", "scripts/package", "scripts/day"])
    {
        let output = Command::new("shellcheck").arg(project(script)).output().expect("shellcheck");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn the_package_for_debian_has_no_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = Command::new(project("scripts/package"));
    script.arg("--with").arg(env!("CARGO_BIN_EXE_brackfs")).arg(folder.path());
    let output = script.env("TMPDIR", folder.path()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");

    let mut entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let package = entries.find(|path| path.extension().is_some_and(|extension| extension == "deb")).expect(&text);
    let list = Command::new("dpkg-deb").arg("--contents").arg(&package).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let pages = fs::read_dir(project("man")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages = pages.map(|page| format!("/man{}/{page}.gz", page.rsplit('.').next().unwrap()));
    let others = [
        "./usr/bin/brackfs",
        "./usr/sbin/mount.brackfs -> ../bin/brackfs",
        "./usr/lib/systemd/system/brackfs.timer",
        "./usr/lib/systemd/user/brackfs-failed@.service",
        "./usr/lib/sysusers.d/brackfs.conf",
        "./etc/cron.daily/brackfs",
        "/completions/brackfs",
        "/_brackfs",
        "/brackfs.fish",
        "/copyright",
        "/changelog.gz",
        "/examples/config.toml",
        "/schemas/backup.json",
        "/contrib/import-restic",
        "/contrib/brackfs_import.py",
    ];
    for file in pages.chain(others.map(str::to_owned)) {
        assert!(list.lines().any(|line| line.ends_with(&file)), "{file} is not in {list}");
    }
    let depends = Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends").output().unwrap();
    let depends = String::from_utf8(depends.stdout).unwrap();
    assert!(depends.contains("libssl3") && depends.contains("libc6 "), "{depends}");
}
