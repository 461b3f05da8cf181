//! Configurations as users write them, with and without mistakes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::{Config, Error, Missing, Moment, OnFailure};
use crate::backup::StreamSource;
use crate::retention::{Count, Period, Policy, Rule};
use crate::secret::Secret;
use crate::storage::Credentials;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }
    folder
}

fn load(folder: &TempDir) -> Result<Config, Error> {
    Config::load(&folder.path().join("config.toml"))
}

/// The mistakes of a file, without its folder.
fn mistakes(text: &str) -> Vec<String> {
    let folder = folder(&[("config.toml", text)]);
    match load(&folder).unwrap_err() {
        Error::Mistakes(mistakes) => {
            let prefix = format!("{}/", folder.path().display());
            mistakes.iter().map(|mistake| mistake.to_string().replace(&prefix, "")).collect()
        }
        other => panic!("{other}"),
    }
}

const WHOLE: &str = r#"
version = 1

[defaults]
exclude-caches = true
exclude = ["*.tmp"]
keep = { last = 3, daily = 7, yearly = "all" }

[target.nas]
repository = "/mnt/nas/brackfs"
require-mount = "/mnt/nas"
when-missing = "skip"
prune = { every = "3d", max-waste = "10%", grace = 0 }

[target.offsite]
repository = "s3://bucket/web1"
credentials = "s3.credentials"
limit-upload = "2MiB/s"
when = { ac-power = true, metered = false }

[source.system]
paths = ["/etc", "/home"]
to = ["nas", "offsite"]
exclude-also = ["/home/*/.cache"]

[source.photos]
inherit = "system"
paths = ["/srv/photos"]
to = ["nas"]
exclude = []
keep = { within = "1y6m", tags = ["best"] }

[source.shop-db]
command = ["pg_dump", "-Fc", "shop"]
user = "postgres"
filename = "shop.dump"
to = ["nas"]

[[hook]]
on = ["before"]
for = ["system"]
run = ["/etc/brackfs/quiesce"]
timeout = "5m"
on-failure = "warn"

[report]
metrics = "/var/lib/node-exporter/brackfs.prom"
ping = { url = { credential = "healthchecks" } }
"#;

#[test]
fn a_whole_file_is_read() {
    let folder = folder(&[("config.toml", WHOLE)]);
    let config = load(&folder).unwrap();
    let nas = config.target("nas").unwrap();
    assert_eq!(nas.location.to_string(), "/mnt/nas/brackfs");
    assert_eq!((nas.conditions.mount.as_deref(), nas.conditions.missing), (Some(Path::new("/mnt/nas")), Missing::Skip));
    assert_eq!((nas.prune.every.as_secs(), nas.prune.options.grace), (259_200, Duration::ZERO));
    let offsite = config.target("offsite").unwrap();
    let login = Credentials::in_file(folder.path().join("s3.credentials"));
    assert_eq!(offsite.location.remote().credentials, Some(login));
    assert_eq!(offsite.rates.upload.unwrap().get(), 2 << 20);
    assert!(offsite.conditions.ac_power && offsite.conditions.unmetered);

    let system = config.source("system").unwrap();
    assert_eq!(system.to, ["nas", "offsite"]);
    let selection = &system.options.selection;
    assert_eq!(selection.source.as_deref(), Some("system"));
    assert_eq!(selection.exclude, ["*.tmp", "/home/*/.cache"]);
    assert!(selection.exclude_caches && !selection.one_file_system);
    let each = |period, count| Rule::Each(period, count);
    let rules = vec![Rule::Last(3.into()), each(Period::Day, 7.into()), each(Period::Year, Count::UNLIMITED)];
    assert_eq!(system.keep, Some(Policy::new(rules).unwrap()));

    // Lists and tables replace those that are inherited; only exclude-also adds to them.
    let photos = config.source("photos").unwrap();
    assert_eq!(photos.options.selection.paths, [Path::new("/srv/photos")]);
    assert_eq!(photos.options.selection.exclude, ["/home/*/.cache"]);
    let rules = vec![Rule::Within("1y6m".parse().unwrap()), Rule::Tag("best".into())];
    assert_eq!(photos.keep, Some(Policy::new(rules).unwrap()));
    assert_eq!((&photos.to[..], photos.options.selection.exclude_caches), (&["nas".to_owned()][..], true));

    let dump = config.source("shop-db").unwrap();
    let stream = dump.options.selection.stream.as_ref().unwrap();
    let words = ["runuser", "-u", "postgres", "--", "pg_dump", "-Fc", "shop"].map(Into::into).to_vec();
    assert_eq!((stream.filename.to_str(), &stream.source), (Some("shop.dump"), &StreamSource::Command(words)));
    let hook = &config.hooks[0];
    assert_eq!((&hook.on[..], hook.timeout.as_secs(), hook.on_failure), (&[Moment::Before][..], 300, OnFailure::Warn));
    assert_eq!(config.report.ping.unwrap().url, Secret::Credential("healthchecks".into()));
}

#[test]
fn the_login_of_a_server_is_one_secret_or_parts() {
    let with = |repository: &str, credentials: &str| {
        let target = format!("[target.far]\nrepository = \"{repository}\"\ncredentials = {credentials}\n");
        folder(&[("config.toml", &target)])
    };
    let (s3, dav) = ("s3://bucket", "webdavs://host/folder");
    let read = |repository: &str, credentials: &str| {
        let at = with(repository, credentials);
        (load(&at).unwrap().targets.remove(0).location.remote().credentials.clone().unwrap(), at)
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    for text in ["\"login\"", "{ file = \"login\" }"] {
        let (found, at) = read(dav, text);
        assert_eq!(found, Credentials::in_file(at.path().join("login")));
    }
    for (repository, text, secret) in [
        (s3, "{ env = \"LOGIN\" }", Secret::Variable("LOGIN".into())),
        ("swift://container", "{ command = [\"pass\", \"far\"] }", Secret::Command(words(&["pass", "far"]))),
        (dav, "{ credential = \"far\" }", Secret::Credential("far".into())),
    ] {
        assert_eq!(read(repository, text).0, Credentials::Document(secret));
    }
    let command = Secret::Command(words(&["pass"]));
    let parts = read(s3, "{ access-key = \"AK\", secret-key = { command = [\"pass\"] } }").0;
    assert_eq!(parts, Credentials::AccessKey { id: Secret::Plain("AK".into()), secret: command.clone(), token: None });
    let (id, secret, token) = ("{ credential = \"id\" }", "{ credential = \"key\" }", "{ env = \"TOKEN\" }");
    let parts = read(s3, &format!("{{ access-key = {id}, secret-key = {secret}, session-token = {token} }}")).0;
    assert_eq!(parts.secrets().iter().filter_map(|secret| secret.credential()).collect::<Vec<_>>(), ["id", "key"]);
    assert_eq!(
        read(dav, "{ user = \"me\", password = { command = [\"pass\"] } }").0,
        Credentials::Password { user: Some(Secret::Plain("me".into())), password: command }
    );

    let none_of = "credentials: write one of file, env, command and credential";
    let outside = "secrets do not belong in this file; write where it is, such as { file = \"PATH\" }";
    for (repository, wrong, why) in [
        (s3, "{ }", &format!("{none_of}, or access-key and secret-key")),
        (s3, "{ access-key = \"AK\" }", &format!("{none_of}, or access-key and secret-key")),
        (s3, "{ env = \"A\", file = \"b\" }", &format!("{none_of}, or access-key and secret-key")),
        (dav, "{ user = \"me\" }", &format!("{none_of}, or user and password")),
        (dav, "{ user = \"me\", password = \"hunter2\" }", &format!("credentials.password: {outside}")),
        (dav, "{ access-key = \"AK\", secret-key = { env = \"A\" } }", &"access-key: unknown key".to_owned()),
        (dav, "{ user = \"me\", command = [\"pass\"] }", &format!("{none_of}, or user and password")),
        (dav, "{ password = { env = \"A\" }, file = \"x\" }", &format!("{none_of}, or user and password")),
        (s3, "{ access-key = \"AK\", file = \"x\" }", &format!("{none_of}, or access-key and secret-key")),
        (s3, "{ session-token = { env = \"A\" }, file = \"x\" }", &format!("{none_of}, or access-key and secret-key")),
        (dav, "{ user = 5, password = { env = \"A\" } }", &"credentials.user: write a string in quotes, or".to_owned()),
        (dav, "{ user = \"\", password = { env = \"A\" } }", &"credentials.user: write a string in".to_owned()),
        ("sftp://host/folder", "{ }", &none_of.to_owned()),
        ("sftp://host/folder", "{ file = \"x\", user = \"me\" }", &"credentials.user: unknown key".to_owned()),
    ] {
        let Error::Mistakes(found) = load(&with(repository, wrong)).unwrap_err() else { panic!("{wrong}") };
        assert!(found[0].to_string().contains(why.as_str()), "{wrong}: {found:?}");
        assert!(!format!("{found:?}").contains("hunter2"));
    }
}

#[test]
fn each_setting_has_the_place_it_comes_from() {
    let folder = folder(&[("config.toml", WHOLE)]);
    let config = load(&folder).unwrap();
    let of = |key| {
        let used = &config.source("photos").unwrap().used;
        let used: Vec<_> = used.iter().filter(|used| used.key == key).collect();
        let [used] = used[..] else { panic!("{key}: {used:?}") };
        (used.value.clone(), used.place.line)
    };
    assert_eq!(of("paths"), ("[\"/srv/photos\"]".into(), 28));
    assert_eq!(of("exclude-also"), ("[\"/home/*/.cache\"]".into(), 24));
    assert_eq!(of("exclude-caches"), ("true".into(), 5));
    assert_eq!(of("keep"), ("{ within = \"1y6m\", tags = [\"best\"] }".into(), 31));
}

#[test]
fn the_files_in_conf_d_belong_to_it() {
    let target = "[target.nas]\nrepository = \"/mnt\"\n";
    let files = [
        ("config.toml", "[source.one]\npaths = [\"/a\"]\nto = [\"nas\"]\n"),
        ("conf.d/20-more.toml", "[source.two]\ninherit = \"one\"\n"),
        ("conf.d/10-target.toml", target),
        ("conf.d/.10-target.toml.swp", "not TOML"),
        ("conf.d/README", "not TOML"),
    ];
    let config = load(&folder(&files)).unwrap();
    assert_eq!(config.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(config.sources[1].options.selection.paths, [Path::new("/a")]);
    // The same target twice, and two tables of defaults.
    let defaults = "[defaults]\nlow-memory = true\n";
    let twice = folder(&[
        ("config.toml", defaults),
        ("conf.d/a.toml", target),
        ("conf.d/b.toml", &format!("{target}{defaults}")),
    ]);
    let said = load(&twice).unwrap_err().to_string();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("conf.d/b.toml:1:9: target.nas: already defined at "), "{said}");
    assert!(lines[0].ends_with("conf.d/a.toml:1:9") && lines[1].contains("conf.d/b.toml:3:1: defaults"), "{said}");
}

/// Files with a mistake, and what is said about it.
const WRONG: &[(&str, &str)] = &[
    ("[source.home\n", "config.toml:1:13: unclosed table, expected `]`"),
    ("a = \n", "config.toml:1:5: string values must be quoted"),
    ("version = 2\n", "config.toml:1:11: version: not supported; write 1"),
    ("[targt.nas]\n", "config.toml:1:2: targt: unknown key (did you mean target?)"),
    ("source = 1\n", "config.toml:1:10: source: expected a table, found a number"),
    (
        "[target.NAS]\nrepository = \"/x\"\n",
        "config.toml:1:9: target.NAS: \"NAS\" is not a name: write a lowercase letter, then lowercase letters, digits, _ and -",
    ),
    (
        "[target.nas]\n",
        "config.toml:1:9: target.nas: repository is missing; write the path or the URL of the repository",
    ),
    ("[target.nas]\nrepository = \"backup\"\n", "config.toml:2:14: repository: write an absolute path, or a URL"),
    ("[target.nas]\nrepository = \"s3:x\"\n", "config.toml:2:14: repository: "),
    (
        "[target.nas]\nrepository = \"/x\"\nlimit-uplod = 1\n",
        "config.toml:3:1: limit-uplod: unknown key (did you mean limit-upload?)",
    ),
    ("[target.nas]\nrepository = \"/x\"\nconnections = 0\n", "config.toml:3:15: connections: write a number from 1 on"),
    (
        "[target.nas]\nrepository = \"/x\"\nwhen-missing = \"skp\"\n",
        "config.toml:3:16: when-missing: \"skp\" is none of fail, skip (did you mean skip?)",
    ),
    (
        "[target.nas]\nrepository = \"/x\"\nprune = { evry = \"1d\" }\n",
        "config.toml:3:11: prune.evry: unknown key (did you mean every?)",
    ),
    (
        "[target.nas]\nrepository = \"/x\"\nprune = \"1d\"\n",
        "config.toml:3:9: prune: expected a table, such as { key = \"value\" }, found a string",
    ),
    ("[source.home]\nto = [\"x\"]\npaths = [\"/\"]\n", "config.toml:2:7: to: there is no target.x"),
    (
        "[source.home]\npaths = [\"/\"]\n",
        "config.toml:1:9: source.home: to is missing; write the names of targets, such as to = [\"nas\"]",
    ),
    ("[source.home]\npaths = [\"/\"]\nto = []\n", "config.toml:3:6: to: names no target"),
    (
        "[defaults]\nexclude = \"*.o\"\n",
        "config.toml:2:11: exclude: expected a list, such as [\"one\", \"two\"], found a string",
    ),
    ("[defaults]\nexclude = [1]\n", "config.toml:2:12: exclude: expected a string in quotes, found a number"),
    ("[defaults]\npaths = [\"/\"]\n", "config.toml:2:9: paths: belongs in a source"),
    ("[defaults]\nlow-memory = \"yes\"\n", "config.toml:2:14: low-memory: expected true or false, found a string"),
    ("[defaults]\ncompression = 20\n", "config.toml:2:15: compression: write a level from 1 to 19"),
    (
        "[defaults]\nsettle-max = \"5 parsecs\"\n",
        "config.toml:2:14: settle-max: not a duration; write a number with ms, s, m, h, d or w",
    ),
    ("[defaults]\ntags = [\"a,b\"]\n", "config.toml:2:9: tags: a tag can't have a comma"),
    ("[defaults]\nkeep = { dayly = 7 }\n", "config.toml:2:10: keep.dayly: unknown key (did you mean daily?)"),
    ("[defaults]\nkeep = { daily = \"some\" }\n", "config.toml:2:18: keep.daily: write a number, or unlimited"),
    ("[defaults]\nkeep = { last = 0 }\n", "config.toml:2:8: keep: keeps no snapshot"),
    ("[hook]\non = [\"before\"]\n", "config.toml:1:1: hook: write [[hook]], with two pairs of brackets"),
    (
        "[[hook]]\non = [\"befor\"]\nrun = [\"x\"]\n",
        "config.toml:2:7: on: \"befor\" is none of before, snapshot, success, warning, failure, finally (did you mean before?)",
    ),
    ("[[hook]]\non = [\"before\"]\n", "config.toml:1:1: hook: run is missing; write run = [\"/path/of/program\"]"),
    ("[report]\nping = { url = { command = [] } }\n", "config.toml:2:28: ping.url.command: names no program"),
    ("[[hook]]\non = [\"before\"]\nrun = [\"\", \"x\"]\n", "config.toml:3:7: run: names no program"),
    ("[[hook]]\non = [\"before\"]\nrun = [\"x\"]\ntimeout = \"0s\"\n", "config.toml:4:11: timeout: must not be 0"),
    (
        "[[hook]]\non = [\"before\"]\nrun = [\"x\"]\nfor = []\n",
        "config.toml:4:7: for: names no source; without this key, the hook runs once",
    ),
    ("[[hook]]\non = [\"before\"]\nrun = [\"x\"]\nfor = [\"hme\"]\n", "config.toml:4:8: for: there is no source.hme"),
    (
        "[report]\nping = { url = \"https://x\" }\n",
        "config.toml:2:16: ping.url: secrets do not belong in this file; write where it is, such as { file = \"PATH\" }",
    ),
    (
        "[report]\nping = { url = { file = \"a\", env = \"B\" } }\n",
        "config.toml:2:16: ping.url: write one of file, env, command and credential",
    ),
    ("[report]\nmetrics = \"x.prom\"\n", "config.toml:2:11: metrics: write an absolute path"),
];

#[test]
fn each_mistake_is_named_with_its_place() {
    let mut wrong = Vec::new();
    for (text, expected) in WRONG {
        let said = mistakes(text);
        if said.len() != 1 || !said[0].starts_with(expected) {
            wrong.push(format!("{text:?}\nexpected {expected}\nsaid     {said:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn checks_and_snapshots_have_defaults() {
    let source = "[target.nas]\nrepository = \"/x\"\n[source.home]\nto = [\"nas\"]\npaths = [\"/home\"]\n";
    let of = |text: &str| load(&folder(&[("config.toml", &format!("{source}{text}"))])).unwrap();
    assert_eq!(of("").check, None);
    let standard = of("[check]\n").check.unwrap();
    assert_eq!((standard.every.as_secs(), standard.read_data), (7 * 24 * 60 * 60, 0.02));
    let other = of("[check]\nevery = \"1d\"\nread-data = \"50%\"\n").check.unwrap();
    assert_eq!((other.every.as_secs(), other.read_data), (24 * 60 * 60, 0.5));
    let snapshot = |text: &str| of(text).source("home").unwrap().snapshot;
    assert_eq!(snapshot("").or(snapshot("snapshot = \"none\"\n")), None);
    assert_eq!(snapshot("snapshot = \"auto\"\n"), Some(crate::config::FileSystemSnapshot { kind: None, size: 10 }));
    let lvm = crate::config::FileSystemSnapshot { kind: Some(crate::config::SnapshotKind::Lvm), size: 25 };
    assert_eq!(snapshot("snapshot = \"lvm\"\nsnapshot-size = \"25%\"\n"), Some(lvm));
    for (text, expected) in [
        (
            "snapshot = \"btfs\"\n",
            "6:12: snapshot: \"btfs\" is none of none, auto, btrfs, zfs, lvm (did you mean btrfs?)",
        ),
        ("snapshot-size = \"0%\"\n", "6:17: snapshot-size: write a percentage"),
        ("[check]\nread-data = \"101%\"\n", "7:13: read-data: expected 0% to 100%"),
        ("[[hook]]\non = [\"snapshot\"]\nrun = [\"x\"]\n", "7:6: on: snapshots are made for a source"),
    ] {
        let said = mistakes(&format!("{source}{text}"));
        assert!(said[0].contains(expected), "{text:?}: {said:?}");
    }
}

#[test]
fn directories_may_be_placed_under_other_paths() {
    let (target, to) = ("[target.nas]\nrepository = \"/x\"\n", "to = [\"nas\"]\n");
    let text = format!(
        "{target}[source.one]\n{to}paths = [\"/s\"]\nas = [\"/home\"]\n\
         [source.two]\n{to}paths = [\"/etc\"]\nas = [\"/home=/s/home\", \"/var=/s/var\"]\n\
         [source.three]\ninherit = \"two\"\npaths = [\"/etc\"]\n\
         [source.four]\ninherit = \"one\"\nas = [\"/home=/t\"]\n"
    );
    let config = load(&folder(&[("config.toml", &text)])).unwrap();
    let of = |name: &str| {
        let selection = config.source(name).unwrap().options.selection.clone();
        let placed =
            selection.placed.iter().map(|placed| format!("{}={}", placed.path.display(), placed.from.display()));
        (selection.paths.len(), placed.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of("one"), (0, "/home=/s".into()));
    assert_eq!(of("two"), (1, "/home=/s/home /var=/s/var".into()));
    assert_eq!(of("three"), (1, String::new()));
    assert_eq!(of("four"), (0, "/home=/t".into()));
}

#[test]
fn mistakes_of_what_a_source_needs_are_named() {
    let target = "[target.nas]\nrepository = \"/x\"\n[source.home]\nto = [\"nas\"]\n";
    for (text, expected) in [
        ("", "3:9: source.home: paths is missing; write what to back up"),
        ("paths = []\n", "5:9: paths: the list is empty"),
        ("paths = [\"home\"]\n", "5:10: paths: write an absolute path"),
        ("as = [\"/home=/s\", \"/x\"]\n", "5:6: as: write NEW=OLD"),
        ("as = [\"/home=s\"]\n", "5:6: as: s is not an absolute path"),
        ("as = []\n", "5:6: as: the list is empty"),
        ("command = []\nfilename = \"x\"\n", "5:11: command: names no program"),
        ("command = [\"\"]\nfilename = \"x\"\n", "5:11: command: names no program"),
        ("as = [\"/home=/s\"]\nuser = \"x\"\n", "6:8: user: belongs to a command"),
        ("paths = [\"/\"]\nuser = \"x\"\n", "6:8: user: belongs to a command"),
        ("paths = [\"/\"]\ncommand = [\"x\"]\n", "3:9: paths: write either paths or command"),
        ("command = [\"x\"]\n", "3:9: source.home: filename is missing"),
        ("command = [\"x\"]\nfilename = \"a/b\"\n", "6:12: filename: write the name of a file, without slashes"),
        ("paths = [\"/\"]\ninherit = \"hme\"\n", "6:11: inherit: there is no source.hme (did you mean home?)"),
        ("paths = [\"/\"]\ninherit = \"home\"\n", "6:11: inherit: home inherits from itself"),
        ("paths = [\"/\"]\ninherit = 7\n", "6:11: inherit: expected the name of a source, found a number"),
    ] {
        let said = mistakes(&format!("{target}{text}"));
        assert!(said.len() == 1 && said[0].starts_with(&format!("config.toml:{expected}")), "{text:?}\n{said:#?}");
    }
}

#[test]
fn what_every_backup_would_refuse_is_a_mistake() {
    let source = |name: &str, text: &str| {
        let said = mistakes(&format!("[target.nas]\nrepository = \"/x\"\n[source.{name}]\nto = [\"nas\"]\n{text}"));
        let [one] = &said[..] else { panic!("{text}: {said:#?}") };
        one.clone()
    };
    let many: Vec<_> = (0..2000).map(|number| format!("\"{number}\"")).collect();
    for (name, text, expected) in [
        ("latest", "paths = [\"/\"]\n".to_owned(), "3:9: source.latest: \"latest\" can't name a source: a name has"),
        ("a", "paths = [\"/\"]\nexclude = [\"[z-a\"]\n".to_owned(), "6:12: exclude: the pattern \"[z-a\" is not"),
        (
            "a",
            "paths = [\"/\"]\nexclude-also = [\"*.o\",\n  \"\"]\n".to_owned(),
            "7:3: exclude-also: the pattern \"\" is not valid: it is empty",
        ),
        (
            "a",
            "paths = [\"/\"]\nexclude-if-present = [\"a/b\"]\n".to_owned(),
            "6:23: exclude-if-present: \"a/b\" can't be",
        ),
        ("a", "command = [\"x\"]\nfilename = \"..\"\n".to_owned(), "6:12: filename: write the name of a file"),
        ("a", format!("paths = [\"/\"]\ntags = [{}]\n", many.join(", ")), "3:9: source.a: 2000 tags are too many"),
        (
            "a",
            "paths = [\"/\"]\nguard = { max-shrink = 0.5 }\n".to_owned(),
            "6:24: guard.max-shrink: expected a string",
        ),
        ("a", "paths = [\"/\"]\nmax-age = 0\n".to_owned(), "6:11: max-age: must not be 0"),
        ("a", "paths = [\"/\"]\nmax-age = \"soon\"\n".to_owned(), "6:11: max-age: not a duration"),
        ("a", "paths = [\"/\"]\nnice = 20\n".to_owned(), "6:8: nice: write a whole number from 0 to 19"),
        ("a", "paths = [\"/\"]\nio = \"best-effort 8\"\n".to_owned(), "6:6: io: write \"idle\", \"best-effort\""),
        ("a", "paths = [\"/\"]\nio = \"realtime\"\n".to_owned(), "6:6: io: write \"idle\""),
        ("a", "paths = [\"/\"]\nallow-empty = true\n".to_owned(), "6:15: allow-empty: belongs to a command"),
    ] {
        let said = source(name, &text);
        assert!(said.starts_with(&format!("config.toml:{expected}")), "{expected}\n{said}");
    }
}

#[test]
fn numbers_may_be_written_in_any_base() {
    let text = WHOLE.replace("exclude-caches = true", "retries = 0x10\nlow-memory = false\nexclude-caches = true");
    let config = load(&folder(&[("config.toml", &text)])).unwrap();
    assert_eq!(config.source("system").unwrap().options.reading.retries, 16);
    assert_eq!(mistakes("[defaults]\nretries = 99999999999999999999\n").len(), 1);
}

#[test]
fn a_command_has_no_guard_but_may_be_allowed_to_print_nothing() {
    let text = WHOLE.replace("filename = \"shop.dump\"", "filename = \"shop.dump\"\nallow-empty = true");
    let text = text.replace("exclude-caches = true", "exclude-caches = true\nguard = { min-files = 2 }");
    let config = load(&folder(&[("config.toml", &text)])).unwrap();
    let dump = &config.source("shop-db").unwrap().options;
    assert!(dump.policy.guard.is_none() && dump.selection.stream.as_ref().unwrap().allow_empty);
    assert_eq!(config.source("system").unwrap().options.policy.guard.as_ref().unwrap().min_files, 2);
}

#[test]
fn a_link_in_conf_d_that_leads_nowhere_is_an_error_about_the_link() {
    let folder = folder(&[("config.toml", ""), ("conf.d/a.toml", "")]);
    std::os::unix::fs::symlink("/nonexistent", folder.path().join("conf.d/b.toml")).unwrap();
    let error = load(&folder).unwrap_err();
    assert!(matches!(&error, Error::Read { path, .. } if path.ends_with("conf.d/b.toml")), "{error}");
}

#[test]
fn an_inherited_mistake_is_named_once_and_all_are_named_together() {
    let text = "[target.nas]\nrepository = \"/x\"\n[source.a]\npaths = [\"/\"]\nto = [\"nas\", \"nas\"]\nretries = -1\n\
                [source.b]\ninherit = \"a\"\nqux = 1\n[source.c]\ninherit = \"b\"\n";
    assert_eq!(
        mistakes(text),
        [
            "config.toml:5:14: to: nas is listed twice",
            "config.toml:6:11: retries: write a whole number",
            "config.toml:9:1: qux: unknown key",
        ]
    );
}

#[test]
fn a_file_that_others_can_change_is_refused() {
    let folder = folder(&[("config.toml", ""), ("conf.d/a.toml", "")]);
    for name in ["config.toml", "conf.d/a.toml"] {
        let path = folder.path().join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        let error = load(&folder).unwrap_err();
        assert!(matches!(&error, Error::Exposed { path: it } if *it == path), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    load(&folder).unwrap();
}

#[test]
fn files_that_are_no_text_are_errors() {
    let folder = folder(&[]);
    let file = folder.path().join("config.toml");
    assert!(matches!(load(&folder), Err(Error::Missing { .. })));
    fs::write(&file, b"a = \"\xff\"").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(load(&folder), Err(Error::NotText { .. })));
    fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(matches!(load(&folder), Err(Error::TooLarge { .. })));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(load(&folder), Err(Error::Read { .. } | Error::Exposed { .. })));
}

#[test]
fn names_that_are_unknown_get_a_suggestion() {
    let config = load(&folder(&[("config.toml", WHOLE)])).unwrap();
    assert_eq!(
        config.source("photo").unwrap_err().to_string(),
        "the configuration has no source photo (did you mean photos?)"
    );
    assert_eq!(config.target("x").unwrap_err().to_string(), "the configuration has no target x");
}
