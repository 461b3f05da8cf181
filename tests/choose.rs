//! Selection of the files to back up: exclusions, lists, pipes, and file systems that are never entered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::machine::{copy, mount_tmpfs, succeed};
use common::wait::{ended, send, until};
use common::{Run, Site, age, content, noise, number, run, settle, tree};
use rustix::process::Signal;
use serde_json::Value;

const MIB: usize = 1 << 20;
const CACHE: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# a cache\n";

/// A site with these files and a repository, not backed up yet.
fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site
}

/// A site with files whose content is their name.
fn with_names(names: &[&str]) -> Site {
    ready(&names.iter().map(|name| (*name, *name)).collect::<Vec<_>>())
}

/// Backs up the source and returns the summary.
#[track_caller]
fn backup(site: &Site, extra: &[&str]) -> Value {
    site.backup(extra).ok().json()
}

/// Backs up with these arguments instead of the source.
#[must_use = "it may have failed: say .ok() or .code(n)"]
fn backup_of(site: &Site, arguments: &[&str]) -> Run {
    site.brackfs(&[&["backup", "--json"], arguments].concat())
}

/// The names that `ls -R` shows, in its order.
#[track_caller]
fn names(site: &Site, what: &str) -> Vec<String> {
    let run = site.brackfs(&["ls", "-R", what]).ok();
    run.stdout.lines().map(str::to_owned).collect()
}

/// The names below the site's own directory in a snapshot whose root is `/`.
#[track_caller]
fn names_in_site(site: &Site) -> Vec<String> {
    names(site, &format!("latest:{}", site.path().strip_prefix("/").unwrap().display()))
}

#[track_caller]
fn cat(site: &Site, path: &str) -> String {
    site.brackfs(&["cat", path]).ok().stdout
}

#[track_caller]
fn snapshots(site: &Site) -> Vec<Value> {
    let run = site.brackfs(&["snapshots", "--json"]).ok();
    let Ok(Value::Array(list)) = serde_json::from_str(&run.stdout) else { panic!("no array\n{run}") };
    list
}

#[track_caller]
fn says(run: &Run, words: &str) {
    assert!(run.stderr.contains(words), "it does not say {words:?}\n{run}");
}

/// Everything in the repository, by path.
fn objects(site: &Site) -> Vec<PathBuf> {
    tree(&site.repo()).into_keys().collect()
}

/// Writes a file next to the source.
fn write_next_to_source(site: &Site, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = site.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

// --- patterns in files ---

#[test]
fn patterns_in_files_precede_those_of_flags() {
    let site = with_names(&["a.o", "keep.o", "x.tmp", "top", "d/top", "#odd", "d/b.log"]);
    let one = write_next_to_source(&site, "one", "# not this: top\n*.o\n\n/top   \n\\#odd\n");
    let two = write_next_to_source(&site, "two", "*.tmp\r\n*.log\r\n!b.log\r\n");
    // --exclude takes precedence at any position.
    backup(&site, &["--exclude", "!keep.o", "--exclude-from", &one, "--exclude-from", &two]);
    assert_eq!(names(&site, "latest"), ["d/", "d/b.log", "d/top", "keep.o"]);
    // Among files, the last one does.
    backup(&site, &["--exclude-from", &two, "--exclude-from", &write_next_to_source(&site, "three", "*.log\n")]);
    assert_eq!(names(&site, "latest"), ["#odd", "a.o", "d/", "d/top", "keep.o", "top"]);
}

#[test]
fn an_invalid_rule_is_a_usage_error_and_changes_nothing() {
    let site = with_names(&["a"]);
    let before = objects(&site);
    let bad = write_next_to_source(&site, "bad", "*.o\n# fine\n[a\n");
    let run = site.backup(&["--exclude-from", &bad]).code(2);
    says(&run, &format!(" in {bad}, line 3,"));
    let binary = write_next_to_source(&site, "binary", b"a\n\n\xff\xfe\n");
    let run = site.backup(&["--exclude-from", &binary]).code(2);
    says(&run, &binary);
    says(&run, "line 3");
    let missing = text(&site.path().join("missing")).to_owned();
    says(&site.backup(&["--exclude-from", &missing]).code(2), &missing);
    says(&site.backup(&["--exclude", "z[b-a]"]).code(2), "z[b-a]");
    for name in ["", ".", "a/b"] {
        // The message is in an object of JSON.
        let quoted = format!("{name:?}").replace('"', "\\\"");
        says(&site.backup(&["--exclude-if-present", name]).code(2), &quoted);
    }
    assert_eq!(objects(&site), before, "the repository was changed");
}

// --- directories and files that are marked for exclusion ---

#[test]
fn only_the_directory_and_the_tag_of_a_cache_are_kept() {
    let site = ready(&[
        ("c/CACHEDIR.TAG", CACHE),
        ("c/data", "x"),
        ("c/deep/data", "x"),
        ("no-cache/CACHEDIR.TAG", "Signature: of something else, and long enough to be one"),
        ("no-cache/data", "x"),
        ("plain/data", "x"),
    ]);
    backup(&site, &["--exclude-caches"]);
    let rest = ["no-cache/", "no-cache/CACHEDIR.TAG", "no-cache/data", "plain/", "plain/data"];
    assert_eq!(names(&site, "latest"), [&["c/", "c/CACHEDIR.TAG"][..], &rest].concat());
    // Without the flag it is a file like any other.
    backup(&site, &[]);
    assert_eq!(names(&site, "latest").len(), 2 + 3 + rest.len());
    // The tag may be left out by a pattern, and still counts.
    backup(&site, &["--exclude-caches", "--exclude", "/c/CACHEDIR.TAG"]);
    assert_eq!(names(&site, "latest"), [&["c/"][..], &rest].concat());
}

#[test]
fn exclude_if_present_keeps_only_the_named_entry() {
    let site = with_names(&["a/.nobackup", "a/b/c", "a/d", "git/.git/config", "git/work", "z/nobackup"]);
    backup(&site, &["--exclude-if-present", ".nobackup", "--exclude-if-present", ".git"]);
    let expected = ["a/", "a/.nobackup", "git/", "git/.git/", "git/.git/config", "z/", "z/nobackup"];
    assert_eq!(names(&site, "latest"), expected);
    // This also applies to the root of the snapshot.
    site.write(".nobackup", "");
    backup(&site, &["--exclude-if-present", ".nobackup"]);
    assert_eq!(names(&site, "latest"), [".nobackup"]);
}

#[test]
fn files_with_the_nodump_attribute_are_excluded_on_request() {
    let site = with_names(&["a", "file", "d/b", "z"]);
    let mut chattr = Command::new("chattr");
    chattr.arg("+d").arg(site.source().join("file")).arg(site.source().join("d"));
    run(chattr).ok();
    settle();
    backup(&site, &["--exclude-nodump"]);
    assert_eq!(names(&site, "latest"), ["a", "z"]);
    let all = backup(&site, &[]);
    assert_eq!(number(&all, "files_read"), 2, "{all}");
    assert_eq!(names(&site, "latest"), ["a", "d/", "d/b", "file", "z"]);
}

#[test]
fn after_a_change_of_rules_the_next_snapshot_is_correct_and_only_new_files_are_read() {
    let mut files: Vec<String> = (0..40).map(|number| format!("d/e/file-{number:02}")).collect();
    files.extend(["a".into(), "d/one.o".into(), "d/two.o".into(), "z".into()]);
    let site = with_names(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let flags = ["--exclude-caches", "--exclude-if-present", ".skip"];
    let with = |extra: &[&str]| backup(&site, &[&flags[..], extra].concat());
    let all = names_with_directories(&files);
    assert_eq!(number(&with(&[]), "files_read"), 44);

    // A pattern is added and removed.
    let second = with(&["--exclude", "*.o"]);
    assert_eq!(number(&second, "files_read"), 0, "{second}");
    assert_eq!(names(&site, "latest"), without(&all, |name| name.ends_with(".o")));
    let third = with(&[]);
    assert_eq!(number(&third, "files_read"), 2, "{third}");
    assert_eq!(number(&third, "data_packs"), 0, "{third}");
    assert_eq!(names(&site, "latest"), all);

    // A tag is added and removed.
    for (tag, content) in [("d/e/CACHEDIR.TAG", CACHE), ("d/e/.skip", "")] {
        let tag_file = site.write(tag, content);
        age(&tag_file);
        settle();
        let tagged = with(&[]);
        assert_eq!(number(&tagged, "files_read"), 1, "{tagged}");
        let mut expected = without(&all, |name| name.starts_with("d/e/file"));
        expected.insert(expected.iter().position(|name| name == "d/e/").unwrap() + 1, tag.into());
        assert_eq!(names(&site, "latest"), expected);
        let again = with(&[]);
        assert_eq!((number(&again, "files_read"), number(&again, "stored_bytes")), (0, 0), "{again}");

        fs::remove_file(tag_file).unwrap();
        let untagged = with(&[]);
        assert_eq!(number(&untagged, "files_read"), 40, "{untagged}");
        assert_eq!(number(&untagged, "data_packs"), 0, "{untagged}");
        assert_eq!(names(&site, "latest"), all);
    }
    let last = with(&[]);
    assert_eq!((number(&last, "files_read"), number(&last, "stored_bytes")), (0, 0), "{last}");
    site.brackfs(&["check", "--read-data"]).ok();
}

/// The output of `ls -R` for these files.
fn names_with_directories(files: &[String]) -> Vec<String> {
    let mut names = files.to_vec();
    for file in files {
        let above = Path::new(file).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        names.extend(above.map(|path| format!("{}/", path.display())));
    }
    names.sort();
    names.dedup();
    names
}

fn without(names: &[String], is_out: impl Fn(&str) -> bool) -> Vec<String> {
    names.iter().filter(|name| !is_out(name)).cloned().collect()
}

// --- borders ---

/// A file system of its own below the source; unmounted when dropped.
struct OtherFileSystem(PathBuf);

impl OtherFileSystem {
    fn mount(path: PathBuf) -> OtherFileSystem {
        fs::create_dir_all(&path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1m", "brackfs-test"]).arg(&path);
        run(command).ok();
        OtherFileSystem(path)
    }
}

impl Drop for OtherFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn each_of_several_paths_has_its_own_file_system() {
    let site = with_names(&["one/a", "one/below/covered", "z"]);
    let _below = OtherFileSystem::mount(site.source().join("one/below"));
    let _other = OtherFileSystem::mount(site.source().join("other"));
    for file in ["one/below/inner/x", "one/below/y", "other/b", "other/deep/c"] {
        site.write(file, file);
    }
    let _nested = OtherFileSystem::mount(site.source().join("other/nested"));
    site.write("other/nested/far", "far");
    let [one, other, inner] = ["one", "other", "one/below/inner"].map(|name| site.source().join(name));
    backup_of(&site, &[text(&one), text(&other), "-x"]).ok();
    let mut expected: Vec<_> = ["one/", "one/a", "one/below/", "other/", "other/b", "other/deep/", "other/deep/c"]
        .into_iter()
        .chain(["other/nested/"])
        .map(|name| format!("source/{name}"))
        .collect();
    expected.insert(0, "source/".into());
    assert_eq!(names_in_site(&site), expected);
    // A path on a mount below another path is stored, and nothing else of that mount.
    backup_of(&site, &[text(&inner), text(&one), "-x"]).ok();
    let expected = ["", "one/", "one/a", "one/below/", "one/below/inner/", "one/below/inner/x"];
    assert_eq!(names_in_site(&site), expected.map(|name| format!("source/{name}")));
    // Without the flag, everything is.
    backup_of(&site, &[text(&inner), text(&one)]).ok();
    let found = names_in_site(&site);
    assert_eq!(found[..found.len() - 1], expected.map(|name| format!("source/{name}")));
    assert_eq!(found[found.len() - 1], "source/one/below/y");
}

#[test]
fn an_empty_mount_point_keeps_the_metadata_of_the_mount() {
    let site = with_names(&["a"]);
    let below = site.source().join("below");
    let _mount = OtherFileSystem::mount(below.clone());
    fs::set_permissions(&below, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    site.write("below/x", "x");
    backup(&site, &["-x"]);
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
    assert_eq!(fs::metadata(out.join("below")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_dir(out.join("below")).unwrap().count(), 0);
}

/// A site whose repository and state lie below the source.
fn with_own_files_below() -> Site {
    let site = Site::with_files(&[("a", "one"), ("back/up/b", "beside it")]);
    site.init();
    fs::rename(site.repo(), site.source().join("back/up/repo")).unwrap();
    fs::rename(site.state(), site.source().join("state")).unwrap();
    site
}

/// The command for such a site.
fn there(site: &Site, arguments: &[&str]) -> Run {
    let mut command = site.command(arguments);
    command.env("BRACKFS_REPOSITORY", site.source().join("back/up/repo"));
    command.env("BRACKFS_STATE_DIR", site.source().join("state"));
    run(command)
}

#[test]
fn repository_and_state_below_the_source_are_stored_empty() {
    let site = with_own_files_below();
    let source = site.source();
    let expected = ["a", "back/", "back/up/", "back/up/b", "back/up/repo/", "state/"];
    for _ in 0..2 {
        let run = there(&site, &["backup", text(&source), "--json", "-v"]).ok();
        for own in ["back/up/repo", "state"] {
            says(&run, &format!("{} belongs to brackfs itself", source.join(own).display()));
        }
        let found: Vec<_> = there(&site, &["ls", "-R", "latest"]).ok().stdout.lines().map(str::to_owned).collect();
        assert_eq!(found, expected);
    }
    // A list cannot include them either.
    let pack = source.join("back/up/repo/brackfs.toml");
    let list = write_next_to_source(&site, "list", format!("{}\n{}\n", pack.display(), source.join("a").display()));
    there(&site, &["backup", "--files-from", &list]).ok();
    let below = format!("latest:{}", source.strip_prefix("/").unwrap().display());
    let found = there(&site, &["ls", "-R", &below]).ok().stdout;
    assert_eq!(found.lines().collect::<Vec<_>>(), ["a", "back/", "back/up/", "back/up/repo/"]);
}

#[test]
fn a_source_inside_the_repository_or_the_state_is_refused() {
    let site = with_names(&["a"]);
    let before = objects(&site);
    symlink(site.repo().join("keys"), site.path().join("detour")).unwrap();
    let [repo, keys, state, detour] = ["repo", "repo/keys", "state", "detour/"].map(|name| site.path().join(name));
    for path in [&repo, &keys, &state, &detour] {
        says(&backup_of(&site, &[text(path)]).code(2), "can't be backed up here");
        says(&backup_of(&site, &[text(&site.source()), text(path)]).code(2), "can't be backed up here");
    }
    assert_eq!(objects(&site), before, "the repository was changed");
}

#[test]
fn a_link_given_as_path_is_stored_and_followed_only_with_a_slash() {
    let site = with_names(&["private/secret", "other"]);
    let link = site.path().join("project");
    symlink("source/private", &link).unwrap();
    let target = |what: &str| site.brackfs(&["ls", "-l", what]).ok().stdout;
    let inside = link.strip_prefix("/").unwrap().display().to_string();
    for others in [&[][..], &[text(&site.source().join("other")).to_owned()]] {
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        let run = backup_of(&site, &[&["--source", "project", text(&link)], others.as_slice()].concat()).ok();
        says(&run, &format!("{} is a symbolic link to source/private and stored as a link", link.display()));
        assert!(target(&format!("latest:{inside}")).contains("-> source/private"));
        assert!(!names(&site, "latest").iter().any(|name| name.contains("secret")));
    }
    for end in ["/", "/."] {
        let given = format!("{}{end}", link.display());
        let run = backup_of(&site, &["--source", "project", &given]).ok();
        let led = site.source().join("private");
        says(&run, &format!("{given} is a symbolic link: {} is backed up", led.display()));
        assert_eq!(names(&site, "latest"), ["secret"]);
    }
}

#[test]
fn a_path_that_is_not_utf8_needs_a_source_name() {
    let site = with_names(&["a"]);
    let [one, other] = [b"bad\xff", b"bad\xfe"].map(|name| site.source().join(std::ffi::OsStr::from_bytes(name)));
    for path in [&one, &other] {
        fs::create_dir(path).unwrap();
        let mut arguments = vec!["backup".into(), path.clone().into_os_string()];
        let refused = site.brackfs(&arguments).code(2);
        says(&refused, "is not UTF-8");
        says(&refused, "--source");
        arguments.extend(["--source".into(), "bad".into()]);
        site.brackfs(&arguments).ok();
    }
    assert_eq!(snapshots(&site).len(), 2);
}

#[test]
fn no_snapshot_is_made_of_a_source_that_became_empty() {
    let site = with_names(&["a", "d/b"]);
    backup(&site, &[]);
    let away = site.path().join("away");
    fs::rename(site.source(), &away).unwrap();
    fs::create_dir(site.source()).unwrap();
    for (arguments, is_first) in
        [(&["--dry-run"][..], true), (&[], true), (&[], false), (&["--skip-if-unchanged"], false)]
    {
        let run = site.backup(arguments).code(3);
        assert_eq!(run.stderr.contains("it is empty, but was not in the last backup (entries: 3)"), is_first, "{run}");
        says(&run, "the last snapshot has 2 files, and now there are 0; no snapshot was made");
        let summary = run.json();
        assert!(summary["snapshot_id"].is_null() && summary["shrunk"] == true, "{run}");
        assert_eq!(snapshots(&site).len(), 1);
    }
    // When the files are back, they are as they were.
    fs::remove_dir(site.source()).unwrap();
    fs::rename(&away, site.source()).unwrap();
    let back = backup(&site, &[]);
    assert_eq!((number(&back, "files_unmodified"), back["shrunk"] == false), (2, true), "{back}");
    fs::remove_dir_all(site.source()).unwrap();
    fs::create_dir(site.source()).unwrap();
    let allowed = site.backup(&["--allow-shrink"]).code(3).json();
    assert!(allowed["snapshot_id"].is_string() && names(&site, "latest").is_empty(), "{allowed}");
    // The last snapshot is empty, too.
    backup(&site, &[]);
    site.brackfs(&["check", "--read-data"]).ok();
    site.brackfs(&["catalog", "verify"]).ok();
}

#[test]
fn a_source_may_lose_only_a_part_of_its_files() {
    let all: Vec<_> = (0..30).map(|number| format!("d/{number}")).collect();
    let site = with_names(&all.iter().map(String::as_str).collect::<Vec<_>>());
    backup(&site, &[]);
    let remove = |numbers: std::ops::Range<usize>| {
        numbers.for_each(|number| fs::remove_file(site.source().join(&all[number])).unwrap());
    };
    // A new file of a refused backup is not stored again.
    site.write("new", noise("new", 3 * MIB));
    remove(0..15);
    says(&site.backup(&["--max-shrink", "40%"]).code(3), "the last snapshot has 30 files, and now there are 16");
    let half = backup(&site, &[]);
    assert_eq!((number(&half, "files"), number(&half, "data_packs")), (16, 0), "{half}");
    site.write("new", "x");
    backup(&site, &["--allow-shrink"]);
    // Of fewer than 20 files, all but one may go.
    remove(15..30);
    backup(&site, &[]);
    for wrong in [&["--max-shrink", "101%"][..], &["--max-shrink", "x"], &["--max-shrink", "5%", "--allow-shrink"]] {
        site.backup(wrong).code(2);
    }
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn the_first_backup_of_a_source_without_files_is_noted() {
    let site = with_names(&[]);
    let first = site.backup(&[]).ok();
    says(&first, "it has no files; if it should have some, check that its file system is mounted");
    assert_eq!(site.backup(&[]).ok().stderr, "");
}

#[test]
fn excluding_everything_does_not_count_as_an_empty_directory() {
    let site = with_names(&["a", "d/b"]);
    let paths = ["a", "d"].map(|name| site.source().join(name).display().to_string());
    backup(&site, &[]);
    for extra in [&["--dry-run", "--exclude", "*"][..], &["--exclude", "*"]] {
        let run = site.backup(extra).code(3);
        says(&run, "everything in it is excluded, but was not in the last backup (entries: 3); check the patterns");
        assert!(!run.stderr.contains("is a file system not mounted"), "{run}");
    }
    // The same for a directory that is one of several paths, which is read before the walk.
    let several = |extra: &[&str]| {
        let mut arguments: Vec<_> = vec!["backup", "--source", "several"];
        arguments.extend(paths.iter().map(String::as_str).chain(extra.iter().copied()));
        site.brackfs(&arguments)
    };
    several(&[]).ok();
    says(&several(&["--exclude", "b"]).code(3), "everything in it is excluded, but was not in the last backup");
}

#[test]
fn one_of_several_paths_that_became_empty_is_a_problem() {
    let site = with_names(&["a/1", "b/2", "never/x"]);
    fs::remove_file(site.source().join("never/x")).unwrap();
    let paths = ["a", "b", "never"].map(|name| text(&site.source().join(name)).to_owned());
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    backup_of(&site, &paths).ok();
    fs::remove_file(site.source().join("b/2")).unwrap();
    let run = backup_of(&site, &paths).code(3);
    says(&run, paths[1]);
    says(&run, "(entries: 1)");
    assert_eq!(run.stderr.matches("it is empty").count(), 1, "{run}");
    backup_of(&site, &paths).ok();
}

#[test]
fn a_path_whose_file_system_is_no_longer_mounted_is_a_problem() {
    let site = with_names(&["disk/stray"]);
    let disk = site.source().join("disk");
    let mounted = |content: &str| {
        mount_tmpfs(&disk, c"mode=755");
        fs::write(disk.join("precious"), content).unwrap();
    };
    let unmount = || rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).unwrap();
    let other = text(&site.source().join("other")).to_owned();
    fs::write(&other, "beside it").unwrap();
    for paths in [&[text(&disk)][..], &[text(&disk), other.as_str()]] {
        mounted("one");
        backup_of(&site, paths).ok();
        backup_of(&site, paths).ok();
        unmount();
        says(&backup_of(&site, paths).code(3), "another file system was here in the last backup");
        backup_of(&site, paths).ok();
        // The mount may return, or be another one.
        mounted("two");
        backup_of(&site, paths).ok();
        unmount();
        mounted("three");
        backup_of(&site, paths).ok();
        unmount();
    }
}

/// Mounts a new btrfs over the source.
fn mount_btrfs(site: &Site) -> PathBuf {
    let (image, source) = (site.path().join("image"), site.source());
    File::create(&image).unwrap().set_len(128 << 20).unwrap();
    tool(Command::new("mkfs.btrfs").arg("-q").arg(&image));
    tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&source));
    source
}

fn tool(command: &mut Command) {
    succeed(command.stdout(Stdio::null()));
}

#[test]
fn one_file_system_includes_unmounted_subvolumes() {
    let site = with_names(&["a"]);
    let source = mount_btrfs(&site);
    for name in ["home", "home/nested", "mounted"] {
        tool(Command::new("btrfs").args(["subvolume", "create"]).arg(source.join(name)));
        fs::write(source.join(name).join("file"), name).unwrap();
    }
    // A subvolume that is mounted at another path is a separate mount.
    fs::create_dir(source.join("place")).unwrap();
    let bind = rustix::mount::mount_bind(source.join("mounted"), source.join("place"));
    bind.unwrap();
    site.backup(&["-x"]).ok();
    let found = names(&site, "latest");
    for name in ["home/file", "home/nested/file", "mounted/file", "place/"] {
        assert!(found.iter().any(|found| found == name), "{name} is missing: {found:?}");
    }
    assert!(!found.iter().any(|name| name == "place/file"), "{found:?}");
}

// --- other paths ---

/// A btrfs with the subvolume `live`, of which `snapshot` makes read-only snapshots.
struct Volume {
    site: Site,
    at: PathBuf,
}

impl Volume {
    fn new() -> Self {
        let site = with_names(&[]);
        let at = mount_btrfs(&site);
        tool(Command::new("btrfs").args(["subvolume", "create"]).arg(at.join("live")));
        let volume = Volume { site, at };
        for name in ["home/me/one", "home/me/sub/two", "home/me/sub/three", "var/four", "var/five", "var/skip.o"] {
            volume.write(name, name);
        }
        fs::hard_link(volume.at.join("live/var/four"), volume.at.join("live/var/link")).unwrap();
        volume
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.at.join("live").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Makes a snapshot with this name, and returns the path of a directory in it.
    fn snapshot(&self, name: &str) -> impl Fn(&str) -> String + use<> {
        settle();
        let at = self.at.join(name);
        tool(Command::new("btrfs").args(["subvolume", "snapshot", "-r"]).arg(self.at.join("live")).arg(&at));
        move |path| text(&at.join(path)).to_owned()
    }
}

#[test]
fn directories_in_file_system_snapshots_are_backed_up_under_their_own_paths() {
    let volume = Volume::new();
    let site = &volume.site;
    for paths in [&["/home"][..], &["/home", "/var"], &["/nowhere/a/home", "/nowhere/b/var"]] {
        let mut last: Option<Vec<String>> = None;
        let source = format!("s{}", paths.concat().replace('/', "-"));
        for run in 0..4 {
            // Another device each time, and so another place.
            let snapshot = volume.snapshot(&format!("{source}-{run}"));
            let placed: Vec<_> = paths.iter().map(|path| (path, snapshot(path.rsplit('/').next().unwrap()))).collect();
            let mut arguments = vec!["--source", &source, "--exclude", "skip.o"];
            let placed: Vec<_> = placed.iter().map(|(path, from)| format!("{path}={from}")).collect();
            placed.iter().for_each(|placed| arguments.extend(["--as", placed]));
            let summary = backup_of(site, &arguments).ok().json();
            let read = number(&summary, "bytes_read");
            match run {
                0 => assert!(read > 0),
                1 => assert_eq!((read, number(&summary, "files_unmodified")), (0, number(&summary, "files"))),
                2 => assert_eq!(read, "changed 2".len() as u64, "{summary}"),
                // A directory was moved.
                _ => assert_eq!(read, 0, "{summary}"),
            }
            let names = names(site, &format!("{source}/latest"));
            assert!(!names.iter().any(|name| name.contains("skip.o") || name.contains("source")), "{names:?}");
            if run < 3 {
                assert!(last.as_ref().is_none_or(|last| *last == names), "{names:?}");
            }
            last = Some(names);
            match run {
                1 => volume.write("home/me/one", "changed 2"),
                2 => fs::rename(volume.at.join("live/home/me/sub"), volume.at.join("live/home/me/moved")).unwrap(),
                _ => {}
            }
        }
        fs::rename(volume.at.join("live/home/me/moved"), volume.at.join("live/home/me/sub")).unwrap();
        volume.write("home/me/one", "home/me/one");
        let listed = snapshots(site);
        let own: Vec<_> = listed.iter().filter(|snapshot| snapshot["source"] == source.as_str()).collect();
        assert!(own.len() == 4 && own.iter().all(|snapshot| snapshot["paths"] == serde_json::json!(paths)), "{own:?}");
    }
    assert_eq!(cat(site, "s-nowhere-a-home-nowhere-b-var/latest:nowhere/b/var/link"), "var/four");
    assert_eq!(cat(site, "s-home/latest:me/moved/two"), "home/me/sub/two");
}

#[test]
fn a_snapshot_follows_backups_of_the_live_directory() {
    let volume = Volume::new();
    let live = text(&volume.at.join("live")).to_owned();
    drop(volume.snapshot("unused"));
    let paths = [format!("{live}/home"), format!("{live}/var")];
    for count in 1..=2 {
        let paths: Vec<_> = paths.iter().take(count).map(String::as_str).collect();
        let again = |name: &str| {
            let snapshot = volume.snapshot(name);
            let placed = paths
                .iter()
                .map(|path| format!("{path}={}", snapshot(path.strip_prefix(&live).unwrap().trim_start_matches('/'))));
            placed.collect::<Vec<_>>()
        };
        let source = ["--source", ["one", "two"][count - 1]];
        let first = backup_of(&volume.site, &[&source[..], &paths].concat()).ok().json();
        assert!(number(&first, "bytes_read") > 0);
        for name in ["a", "b"] {
            let placed = again(&format!("{name}{count}"));
            let placed: Vec<_> = placed.iter().flat_map(|placed| ["--as", placed]).collect();
            let summary = backup_of(&volume.site, &[&source[..], &placed].concat()).ok().json();
            // Files with several names are looked up by the number of the device.
            assert!(number(&summary, "bytes_read") <= "var/four".len() as u64, "{summary}");
        }
    }
}

#[test]
fn the_only_path_can_have_another_one() {
    let site = with_names(&["a", "d/b"]);
    let source = text(&site.source()).to_owned();
    let parent = text(site.path()).to_owned();
    backup_of(&site, &[&source, "--as", "/srv/shop", "--exclude", "/d"]).ok();
    assert_eq!(names(&site, "shop/latest"), ["a"]);
    assert_eq!(snapshots(&site)[0]["paths"], serde_json::json!(["/srv/shop"]));
    // Problems are reported with the new path.
    fs::create_dir(site.source().join("e")).unwrap();
    let run = run(site.command_as_nobody(&["backup", &source, "--as", "/srv/shop", "--dry-run", "-v"]));
    assert!(!run.stderr.contains(&source) && !run.stdout.contains(&source), "{run}");
    for (arguments, words) in [
        (&[&*source, "--as", "srv"][..], "absolute path"),
        (&[&*source, "--as", "/srv/../x"], "absolute path without .."),
        (&[&*source, &parent, "--as", "/srv"], "exactly one path"),
        (&[&*source, "--as", "/srv", "--as", "/x"], "exactly one path"),
        (&["--as", "/srv"], "exactly one path"),
        (&["--as", "/srv="], "no directory"),
        (&["--as", &format!("{source}/x={source}"), &source], "is the same as another path, or above or below it"),
        (&["--as", &format!("{parent}={source}"), &source], "is the same as another path, or above or below it"),
        (&["--as", &format!("/x={source}"), "--as", &format!("/x={parent}")], "is the same as another path"),
    ] {
        says(&backup_of(&site, arguments).code(2), words);
    }
    says(&backup_of(&site, &["--as", "/x=/absent"]).code(1), "/absent");
    let file = format!("/x={source}/a");
    says(&backup_of(&site, &["--as", &file]).code(1), "Not a directory");
    let one_missing = backup_of(&site, &["--as", "/x=/absent", "--as", &format!("/y={source}")]).code(3);
    says(&one_missing, "/absent");
    assert!(names(&site, "root/latest").iter().any(|name| name == "y/a"));
}

#[test]
fn own_files_are_left_out_of_a_file_system_snapshot() {
    let volume = Volume::new();
    let (site, live) = (&volume.site, volume.at.join("live"));
    for (from, to) in [(site.repo(), live.join("repo")), (site.state(), live.join("state"))] {
        copy(&from, &to);
    }
    let placed = format!("{}={}", text(&live), volume.snapshot("snap")("."));
    let mut command = site.command(&["backup", "--as", &placed, "--source", "s", "-v"]);
    command.env("BRACKFS_REPOSITORY", live.join("repo")).env("BRACKFS_STATE_DIR", live.join("state"));
    says(&run(command).ok(), "belongs to brackfs itself");
    let mut list = site.command(&["ls", "-R", "latest"]);
    list.env("BRACKFS_REPOSITORY", live.join("repo"));
    let found = run(list).ok().stdout;
    assert!(found.contains("repo/\n") && found.contains("state/\n") && !found.contains("brackfs.toml"), "{found}");
}

#[test]
fn a_cache_tag_of_another_user_is_reported_and_ignored() {
    let site = with_names(&["shared/file", "own/file", "roots/file"]);
    let own = Some(12_345);
    for (directory, owner, tag_owner) in [("shared", Some(0), own), ("own", own, own), ("roots", own, Some(0))] {
        let directory = site.source().join(directory);
        std::os::unix::fs::chown(&directory, owner, None).unwrap();
        for tag in ["CACHEDIR.TAG", ".nobackup"] {
            fs::write(directory.join(tag), CACHE).unwrap();
            std::os::unix::fs::chown(directory.join(tag), tag_owner, None).unwrap();
        }
    }
    for rule in [&["--exclude-caches"][..], &["--exclude-if-present", ".nobackup"]] {
        let run = site.backup(rule).ok();
        let tag = if rule.len() == 1 { "CACHEDIR.TAG" } else { ".nobackup" };
        says(&run, &format!("{} belongs neither to root", site.source().join("shared").join(tag).display()));
        assert_eq!(run.stderr.matches("belongs neither").count(), 1, "{run}");
        let found = names(&site, "latest");
        let files: Vec<_> = found.iter().filter(|name| name.ends_with("/file")).collect();
        assert_eq!(files, ["shared/file"], "{rule:?}");
    }
}

#[test]
fn a_brackfs_mount_is_backed_up_only_if_it_is_the_given_path() {
    let site = with_names(&["a", "d/b"]);
    backup(&site, &[]);
    let mounted = site.mount(&[]);
    // Below the path.
    let run = backup_of(&site, &[text(site.path()), "--exclude", "/keys", "--source", "all", "-v"]).ok();
    says(&run, &format!("{} belongs to brackfs itself", mounted.path().display()));
    assert_eq!(
        names(&site, "all/latest"),
        ["mnt/", "repo/", "source/", "source/a", "source/d/", "source/d/b", "state/"]
    );
    // As the path: to another repository, where it is an ordinary file system.
    let (other, owner) = (site.path().join("other"), site.keys().join("owner.pub"));
    site.brackfs(&["init", text(&other), "--recipient", text(&owner)]).ok();
    // New snapshots appear after a moment.
    until("the second snapshot appears", || fs::read_dir(mounted.path()).unwrap().count() >= 3);
    let latest = mounted.latest();
    let into_other = ["--repo", text(&other), "--ignore-inode", "--ignore-ctime"];
    let copy = |paths: &[&str]| backup_of(&site, &[paths, &into_other[..]].concat()).ok().json();
    assert_eq!(number(&copy(&[text(mounted.path()), "--source", "whole"]), "files"), 4, "two snapshots");
    for extra in [None, Some("-x")] {
        let paths: Vec<_> = [text(&latest)].into_iter().chain(extra).chain(["--source", "copy"]).collect();
        copy(&paths);
        let out = site.path().join(if extra.is_some() { "out-x" } else { "out" });
        site.brackfs(&["restore", "copy/latest", "--repo", text(&other), "--to", text(&out)]).ok();
        assert_eq!(tree(&out), tree(&site.source()));
    }
    // Also among several paths; unchanged files in it are recognized.
    let [file, folder] = [latest.join("a"), latest.join("d")];
    assert_eq!(number(&copy(&[text(&file), text(&folder), "--source", "parts"]), "files"), 2);
    let again = copy(&[text(&file), text(&folder), "--source", "parts"]);
    assert_eq!((number(&again, "files"), number(&again, "files_read")), (2, 0), "{again}");
}

// --- lists ---

#[test]
fn listed_paths_are_backed_up_with_their_parents() {
    let site = with_names(&["a", "d/b", "d/c", "e/deep/f", "e/g", "not", " blank ", "#odd"]);
    symlink("d", site.source().join("to-d")).unwrap();
    let absolute = site.source().join("a");
    let list =
        format!("{}\n\nsource/d/b\nsource/e\nsource/to-d\nsource/ blank \nsource/#odd\nsource/e/g\n", text(&absolute));
    let list = write_next_to_source(&site, "list", list);
    let summary = backup_of(&site, &["--files-from", &list]).ok().json();
    assert_eq!(summary["source"], "root");
    let expected = ["", " blank ", "#odd", "a", "d/", "d/b", "e/", "e/deep/", "e/deep/f", "e/g", "to-d"];
    assert_eq!(names_in_site(&site), expected.map(|name| format!("source/{name}")));
    let again = backup_of(&site, &["--files-from", &list]).ok().json();
    assert_eq!((number(&again, "files_read"), number(&again, "data_packs")), (0, 0), "{again}");
    // A snapshot does not record a list.
    assert_eq!(snapshots(&site)[0]["paths"], serde_json::json!([]));
}

#[test]
fn a_list_of_one_directory_keeps_the_root_as_root() {
    let site = with_names(&["d/b"]);
    let list = write_next_to_source(&site, "list", "source/d\n");
    backup_of(&site, &["--files-from", &list]).ok();
    assert_eq!(names_in_site(&site), ["source/", "source/d/", "source/d/b"]);
}

#[test]
fn lists_add_to_paths_and_exclusions_apply() {
    let site = with_names(&["a.o", "b", "c/d", "c/e.o", "f", "g/h", "g/i"]);
    let one = write_next_to_source(&site, "one", "source/a.o\nsource/b\n");
    let two = write_next_to_source(&site, "two", "source/c\nsource/g/h\n");
    let file = site.source().join("f");
    let lists = ["--files-from", &one, "--files-from", &two, text(&file)];
    backup_of(&site, &[&lists[..], &["--exclude", "*.o", "--exclude", "g/"]].concat()).ok();
    assert_eq!(names_in_site(&site), ["", "b", "c/", "c/d", "f"].map(|name| format!("source/{name}")));
    assert_eq!(snapshots(&site)[0]["paths"], serde_json::json!([file]));
}

#[test]
fn a_list_may_be_separated_by_nuls_and_read_from_a_pipe() {
    let site = with_names(&["two\nlines", "b", "not"]);
    let mut command = site.command(&["backup", "--files-from", "-"]);
    run(fed(&mut command, b"source/two\nlines\0source/b\0".to_vec())).ok();
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
    let found = tree(&out.join(site.source().strip_prefix("/").unwrap()));
    let found: Vec<_> = found.keys().map(|path| text(path)).collect();
    assert_eq!(found, ["", "b", "two\nlines"]);
}

#[test]
fn missing_paths_of_a_list_are_reported_and_the_others_backed_up() {
    let site = with_names(&["a", "b"]);
    let list = write_next_to_source(&site, "list", "source/a\nsource/gone\nnowhere/at/all\nsource/b\n");
    let run = backup_of(&site, &["--files-from", &list]).code(3);
    says(&run, "source/gone");
    says(&run, "nowhere/at/all");
    assert_eq!(number(&run.json(), "problems"), 2);
    assert_eq!(names_in_site(&site), ["source/", "source/a", "source/b"]);
    // The root stays the same.
    let [here, gone] = ["source", "gone"].map(|name| site.path().join(name));
    let run = backup_of(&site, &[text(&here), text(&gone)]).code(3);
    assert_eq!(run.json()["source"], "root");
    assert_eq!(names_in_site(&site), ["source/", "source/a", "source/b"]);
}

#[test]
fn an_empty_list_is_an_error_and_makes_no_snapshot() {
    let site = with_names(&["a"]);
    let source = site.source();
    let before = objects(&site);
    let empty = write_next_to_source(&site, "empty", "\n\n");
    says(&backup_of(&site, &["--files-from", &empty]).code(2), &empty);
    // Also next to a path: the program that made the list failed.
    says(&backup_of(&site, &[text(&source), "--files-from", &empty]).code(2), &empty);
    says(&backup_of(&site, &["--files-from", "-"]).code(2), "is empty");
    let missing = text(&site.path().join("missing")).to_owned();
    says(&backup_of(&site, &["--files-from", &missing]).code(2), &missing);
    let gone = write_next_to_source(&site, "gone", "nowhere\nnothing\n");
    says(&backup_of(&site, &["--files-from", &gone]).code(1), "none of the paths");
    assert_eq!(objects(&site), before, "the repository was changed");
}

// --- a pipe ---

/// Gives a command a pipe with `bytes` as its standard input. Returns it.
fn fed(command: &mut Command, bytes: Vec<u8>) -> Command {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // It may end before it has read everything.
    thread::spawn(move || _ = writer.write_all(&bytes));
    command.stdin(reader);
    std::mem::replace(command, Command::new("true"))
}

fn dump_command(site: &Site, extra: &[&str]) -> Command {
    site.command(&[&["backup", "--json", "--stdin-filename", "db.sql"], extra].concat())
}

/// Backs these bytes up as `db.sql`.
#[track_caller]
fn dump(site: &Site, bytes: &[u8], extra: &[&str]) -> Value {
    run(fed(&mut dump_command(site, extra), bytes.to_vec())).ok().json()
}

#[test]
fn standard_input_becomes_the_only_file_of_a_snapshot() {
    let site = ready::<&str>(&[]);
    let started = std::time::SystemTime::now();
    for bytes in [b"small".to_vec(), noise("piped", 5 * MIB + 17), vec![0; 2 * MIB]] {
        let summary = dump(&site, &bytes, &[]);
        assert_eq!(summary["source"], "db.sql");
        assert_eq!((number(&summary, "files"), number(&summary, "bytes")), (1, bytes.len() as u64));
        assert_eq!((number(&summary, "files_read"), number(&summary, "problems")), (1, 0));
        let out = site.path().join(format!("out-{}", bytes.len()));
        site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
        assert_eq!(names(&site, "latest"), ["db.sql"]);
        let file = out.join("db.sql");
        assert!(fs::read(&file).unwrap() == bytes, "{} bytes are others", bytes.len());
        let stat = fs::metadata(&file).unwrap();
        let me = fs::metadata(site.path()).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o600, me.uid(), me.gid()));
        assert!(stat.modified().unwrap() + Duration::from_secs(1) >= started, "{stat:?}");
    }
    assert_eq!(snapshots(&site)[0]["paths"], serde_json::json!(["db.sql"]));
    // With little memory, chunk borders are the same, also for a file.
    let frugal = dump(&site, &noise("piped", 5 * MIB + 17), &["--low-memory"]);
    assert_eq!((number(&frugal, "bytes"), number(&frugal, "data_packs")), (5 * MIB as u64 + 17, 0), "{frugal}");
    site.write("same", noise("piped", 5 * MIB + 17));
    assert_eq!(number(&backup(&site, &[]), "data_packs"), 0);
    assert_eq!(dump(&site, b"x", &["--source", "shop"])["source"], "shop");
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn an_empty_pipe_makes_no_snapshot_unless_it_may() {
    let site = ready::<&str>(&[]);
    let refused = run(fed(&mut dump_command(&site, &[]), Vec::new())).code(1);
    says(&refused, "there were no bytes to back up");
    assert!(snapshots(&site).is_empty());
    run(fed(&mut dump_command(&site, &["--allow-empty"]), Vec::new())).ok();
    assert_eq!(names(&site, "latest"), ["db.sql"]);
    assert_eq!(cat(&site, "latest:db.sql"), "");
}

#[test]
fn a_small_change_of_a_dump_stores_little_data() {
    let site = ready::<&str>(&[]);
    let mut bytes = noise("dump", 40 * MIB);
    let extra = ["--chunk-size", "16KiB"];
    assert!(number(&dump(&site, &bytes, &extra), "data_bytes") >= 40 * MIB as u64);
    bytes.splice(20 * MIB..20 * MIB, *b"INSERT INTO everything VALUES (1);");
    let second = dump(&site, &bytes, &extra);
    assert_eq!((number(&second, "files_changed"), number(&second, "files_read")), (1, 1), "{second}");
    assert!(number(&second, "data_bytes") < 256 << 10, "{second}");
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
    assert_eq!(content(&out.join("db.sql")).unwrap(), blake3::hash(&bytes));
}

#[test]
fn skip_if_unchanged_makes_no_snapshot_of_an_unchanged_pipe() {
    let site = ready::<&str>(&[]);
    let large = noise("same", 3 * MIB);
    let mut count = 0;
    for (bytes, is_new) in [
        (&large[..], true),
        (&large, false),
        (&large, false),
        (b"other", true),
        (b"other", false),
        (&large, true),
        (b"", true),
        (b"", false),
    ] {
        let summary = dump(&site, bytes, &["--skip-if-unchanged", "--allow-empty"]);
        assert_eq!(summary["snapshot_id"].is_string(), is_new, "{summary}");
        count += usize::from(is_new);
        assert_eq!(snapshots(&site).len(), count);
    }
    // Under another name, it is another file.
    let mut command = site.command(&[
        "backup",
        "--stdin-filename",
        "x",
        "--source",
        "db.sql",
        "--skip-if-unchanged",
        "--json",
        "--allow-empty",
    ]);
    let summary = run(fed(&mut command, Vec::new())).ok().json();
    assert!(summary["snapshot_id"].is_string(), "{summary}");
    assert_eq!(names(&site, "latest"), ["x"]);
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn input_from_a_pipe_without_a_snapshot_is_not_skipped() {
    let site = ready::<&str>(&[]);
    let skip = ["--skip-if-unchanged"];
    dump(&site, b"first", &skip);
    let closed = OtherFileSystem::mount(site.repo().join("snapshots"));
    let mut command = Command::new("mount");
    command.args(["-o", "remount,ro"]).arg(&closed.0);
    run(command).ok();
    says(&run(fed(&mut dump_command(&site, &skip), b"second".to_vec())).code(1), "read-only");
    drop(closed);
    let next = dump(&site, b"second", &skip);
    assert!(next["snapshot_id"].is_string(), "{next}");
    assert_eq!(cat(&site, "latest:db.sql"), "second");
}

#[test]
fn a_source_may_change_from_a_pipe_to_a_directory() {
    let site = with_names(&["d/e/f", "db.sql"]);
    let as_source = ["--source", "source"];
    backup(&site, &[]);
    dump(&site, b"db.sql", &as_source);
    assert_eq!(names(&site, "latest"), ["db.sql"]);
    backup(&site, &[]);
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
    assert_eq!(tree(&out), tree(&site.source()));
    dump(&site, b"last", &as_source);
    assert_eq!(cat(&site, "latest:db.sql"), "last");
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_file_is_never_taken_for_input_from_a_pipe() {
    let site = ready::<&str>(&[]);
    // Then all compared fields are equal.
    let lax = ["--ignore-inode", "--ignore-ctime"];
    dump(&site, b"through a pipe", &[&["--source", "source"], &lax[..]].concat());
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", text(&out)]).ok();
    let file = site.write("db.sql", b"from the disk.");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let time = fs::metadata(out.join("db.sql")).unwrap().modified().unwrap();
    OpenOptions::new().write(true).open(&file).unwrap().set_modified(time).unwrap();
    let second = backup(&site, &lax);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    assert_eq!(cat(&site, "latest:db.sql"), "from the disk.");
}

#[test]
fn an_unreadable_pipe_makes_no_snapshot() {
    let site = ready::<&str>(&[]);
    // A directory can be the standard input, but cannot be read.
    let mut command = dump_command(&site, &[]);
    command.stdin(File::open(site.path()).unwrap());
    says(&run(command).code(1), "cannot read standard input");
    let mut command = dump_command(&site, &[]);
    command.stdin(OpenOptions::new().write(true).open("/dev/null").unwrap());
    says(&run(command).code(1), "cannot read standard input");
    assert!(snapshots(&site).is_empty());
    // This does no harm.
    dump(&site, b"now it works", &[]);
    assert_eq!(cat(&site, "latest:db.sql"), "now it works");
}

#[test]
fn an_interrupt_while_a_pipe_is_open_makes_no_snapshot_and_keeps_stored_data() {
    let site = ready::<&str>(&[]);
    let bytes = noise("interrupted", 24 * MIB);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut command = dump_command(&site, &["--chunk-size", "16KiB"]);
    let mut child = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    writer.write_all(&bytes).unwrap();
    // The pipe stays open, as if more data could come.
    send(&child, Signal::INT);
    let status = ended(&mut child);
    drop(writer);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(snapshots(&site).is_empty());
    let second = dump(&site, &bytes, &["--chunk-size", "16KiB"]);
    assert!(number(&second, "data_bytes") < 4 * MIB as u64, "{second}");
}

#[test]
fn memory_does_not_grow_with_the_length_of_a_pipe() {
    let site = ready::<&str>(&[]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut command = dump_command(&site, &[]);
    let mut child = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut stream = blake3::Hasher::new().update(b"long").finalize_xof();
    let mut piece = vec![0; MIB];
    for _ in 0..300 {
        stream.fill(&mut piece);
        writer.write_all(&piece).unwrap();
    }
    // The memory in use after all but the last few MiB, before the end of the pipe.
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(writer);
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(peak < 150 << 10, "{peak} KiB");
}

#[test]
fn a_pipe_excludes_paths_and_rules_and_needs_a_plain_name() {
    let site = with_names(&["a"]);
    let before = objects(&site);
    let source = site.source();
    let with_path = ["--stdin-filename", "x", text(&source)];
    let wrong: [&[&str]; 12] = [
        &with_path,
        &["--stdin-filename", "x", "--files-from", "-"],
        &["--stdin-filename", "x", "--exclude", "y"],
        &["--stdin-filename", "x", "-x"],
        &["--stdin-filename", "a/b"],
        &["--stdin-filename", ".."],
        &["--stdin-filename", ""],
        &["--stdin-filename", "latest"],
        &["--stdin-filename", "x", "--stdin-from-command"],
        &["--stdin-from-command", "--", "true"],
        &["--allow-empty", text(&source)],
        &["--stdin-filename", "x", "--stdin-from-command", "-n", "--", "true"],
    ];
    for arguments in wrong {
        let run = backup_of(&site, arguments).code(2);
        assert!(!run.stderr.is_empty(), "{run}");
    }
    assert_eq!(objects(&site), before, "the repository was changed");
}

// --- the output of commands ---

fn command_backup(site: &Site, extra: &[&str], script: &str) -> Command {
    let before = ["backup", "--json", "--stdin-filename", "db.sql", "--stdin-from-command"];
    site.command(&[&before, extra, &["--", "sh", "-c", script]].concat())
}

#[test]
fn the_output_of_a_command_that_succeeds_becomes_a_snapshot() {
    let site = ready::<&str>(&[]);
    let script = "echo begun >&2; head -c 3000000 /dev/zero; sleep 0.3; echo end";
    let run = run(command_backup(&site, &[], script)).ok();
    says(&run, "begun");
    let summary = run.json();
    assert_eq!((number(&summary, "bytes"), &summary["source"]), (3_000_004, &"db.sql".into()));
    assert!(cat(&site, "latest:db.sql").ends_with("\0end\n"));
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn a_command_that_fails_or_prints_nothing_makes_no_snapshot() {
    let site = ready::<&str>(&[]);
    for (script, why) in [
        ("echo part; exit 7", "sh failed (exit status: 7)"),
        ("echo part; kill -9 $$", "sh failed (signal: 9"),
        ("exit 1", "sh failed (exit status: 1)"),
        // It closes its output long before it fails.
        ("echo part; exec >&-; sleep 0.3; exit 3", "sh failed (exit status: 3)"),
        ("true", "there were no bytes to back up"),
    ] {
        says(&run(command_backup(&site, &[], script)).code(1), why);
        assert!(snapshots(&site).is_empty(), "{script}");
    }
    let missing = site.command(&["backup", "--stdin-filename", "x", "--stdin-from-command", "--", "no-such-program"]);
    says(&run(missing).code(1), "cannot run no-such-program");
    assert!(snapshots(&site).is_empty());
    run(command_backup(&site, &["--allow-empty"], "true")).ok();
    assert_eq!(cat(&site, "latest:db.sql"), "");
}

/// A script whose processes ignore SIGTERM if `stubborn`, and write their numbers to a file before they wait.
fn waiting_script(site: &Site, stubborn: bool) -> String {
    let trap = if stubborn { "trap '' TERM; " } else { "" };
    let path = site.path().join("processes");
    format!("{trap}echo part; (echo $$; exec sleep 1000) >&2 & echo $! > {0}; echo $$ >> {0}; wait", text(&path))
}

/// The numbers of the processes of the script, once it has written them.
fn processes(site: &Site) -> Vec<String> {
    let path = site.path().join("processes");
    let lines = || fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    until("the command runs", || lines().len() == 2);
    lines()
}

fn is_running(process: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

#[test]
fn an_interrupt_ends_the_command_and_all_that_it_started() {
    for (signal, stubborn) in [(Signal::INT, false), (Signal::TERM, true)] {
        let site = ready::<&str>(&[]);
        let mut command = command_backup(&site, &[], &waiting_script(&site, stubborn));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let processes = processes(&site);
        send(&child, signal);
        assert_eq!(ended(&mut child).code(), Some(130));
        until("the command's processes end", || !processes.iter().any(|process| is_running(process)));
        assert!(snapshots(&site).is_empty());
    }
}

#[test]
fn a_command_ends_with_a_killed_backup() {
    let site = ready::<&str>(&[]);
    let mut command = command_backup(&site, &[], &waiting_script(&site, false));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let processes = processes(&site);
    send(&child, Signal::KILL);
    ended(&mut child);
    until("the command ends", || !is_running(&processes[1]));
    // What it started is on its own.
    run({
        let mut command = Command::new("kill");
        command.arg(&processes[0]);
        command
    })
    .ok();
}

// --- tags ---

#[test]
fn tags_are_shown_once_in_the_given_order() {
    let site = with_names(&["a"]);
    backup(&site, &["--tag", "weekly", "--tag", "before upgrade", "--tag", "weekly"]);
    assert_eq!(snapshots(&site)[0]["tags"], serde_json::json!(["weekly", "before upgrade"]));
    let shown = site.brackfs(&["snapshots"]).ok().stdout;
    assert!(shown.trim_end().ends_with("[weekly, before upgrade]"), "{shown}");
    // A reader that has only the key sees them, too.
    let key = site.keys().join("owner");
    let shown = site.brackfs(&["snapshots", "--json", "--key", text(&key)]).ok().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["tags"], serde_json::json!(["weekly", "before upgrade"]));
}

#[test]
fn an_ambiguous_tag_is_refused() {
    let site = with_names(&["a"]);
    for tag in ["", " ", "a,b", "two\nlines", "tab\there", " front", "behind "] {
        says(&site.backup(&["--tag", tag]).code(2), "tag");
    }
    assert!(snapshots(&site).is_empty());
}
