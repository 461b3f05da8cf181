//! Garage, a server for S3 of one or more nodes.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use brackfs::storage::{Credentials, Location, Remote};
use tempfile::TempDir;

use crate::common::http_proxy::Proxy;
use crate::common::remote::{MIB, RemoteServer, RemoteSite, borrowed, many};
use crate::common::sftp::{free_port, listening};
use crate::common::wait::until;
use crate::common::{noise, run};

/// Built by `scripts/setup --soak`.
const GARAGE: &str = "/var/cache/brackfs-tests/garage/bin/garage";

/// Running nodes with the bucket `backups`. With three, each object is on all of them, and two are enough to write. They end
/// with this.
pub struct Garage {
    folder: TempDir,
    nodes: Vec<Node>,
    /// Requests go through it to the first node, or to the one that [`Garage::lead_to`] names.
    pub proxy: Proxy,
    /// Key and secret of the account that may do everything.
    writer: (String, String),
    /// Key and secret of the account that may only read.
    reader: (String, String),
}

struct Node {
    configuration: PathBuf,
    /// Of its S3 interface.
    port: u16,
    /// `None` while it is stopped.
    child: Option<Child>,
}

impl Node {
    fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let messages = self.configuration.with_extension("log");
        let log = File::options().create(true).append(true).open(&messages).expect("log");
        let mut garage = Command::new(GARAGE);
        garage.arg("-c").arg(&self.configuration).arg("server").env("RUST_LOG", "garage=warn");
        garage.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let read = || fs::read_to_string(&messages).unwrap_or_default();
        self.child = Some(listening(&mut garage, self.port, read));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it is connected to this many nodes, itself included.
    fn sees(&self, nodes: usize) -> bool {
        let said = self.ask(&["status"]).unwrap_or_default();
        // A node that has not told its name yet has a question mark.
        let healthy = said.split("FAILED NODES").next().unwrap_or_default();
        healthy.lines().filter(|line| line.contains("127.0.0.1:") && !line.contains(" ? ")).count() == nodes
    }

    /// Runs a command of Garage's. Returns its output.
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut garage = Command::new(GARAGE);
        let done = garage.arg("-c").arg(&self.configuration).args(arguments).output().expect("garage");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }
}

impl Garage {
    /// Starts one node.
    pub fn start() -> Garage {
        Garage::with_nodes(1)
    }

    /// Starts nodes that keep each object as often as there are nodes.
    pub fn with_nodes(count: usize) -> Garage {
        assert!(Path::new(GARAGE).exists(), "{GARAGE} is missing: run scripts/setup --soak, which builds it");
        let folder = TempDir::with_prefix("brackfs-garage-").expect("temporary directory");
        let mut secret = [0; 32];
        openssl::rand::rand_bytes(&mut secret).expect("random bytes");
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let nodes = (0..count).map(|at| {
            let [port, rpc] = [(); 2].map(|()| free_port());
            let configuration = folder.path().join(format!("node-{at}.toml"));
            let text = format!(
                "metadata_dir = \"{folder}/meta-{at}\"\ndata_dir = \"{folder}/data-{at}\"\ndb_engine = \"sqlite\"\n\
                 replication_factor = {count}\nrpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
                 rpc_secret = \"{secret}\"\n[s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{port}\"\n",
                folder = folder.path().display()
            );
            fs::write(&configuration, text).expect("configuration");
            // Garage refuses secrets that others can read.
            fs::set_permissions(&configuration, fs::Permissions::from_mode(0o600)).expect("mode");
            let mut node = Node { configuration, port, child: None };
            node.start();
            node
        });
        let nodes: Vec<_> = nodes.collect();
        let ask = |arguments: &[&str]| nodes[0].ask(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let mut assign =
            vec!["layout".to_owned(), "assign".into(), "-z".into(), "here".into(), "-c".into(), "10G".into()];
        for (at, node) in nodes.iter().enumerate() {
            let id = node.ask(&["node", "id", "-q"]).expect("the id of a node");
            if at > 0 {
                ask(&["node", "connect", id.trim()]);
            }
            assign.push(id.split('@').next().expect("an id").to_owned());
        }
        ask(&assign.iter().map(String::as_str).collect::<Vec<_>>());
        ask(&["layout", "apply", "--version", "1"]);
        until("the nodes work together", || nodes.iter().all(|node| node.sees(count)));
        until("a bucket can be made", || nodes[0].ask(&["bucket", "create", "backups"]).is_ok());
        let key = |name: &str| {
            let said = ask(&["key", "create", name]);
            let value = |label: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(label));
                line.unwrap_or_else(|| panic!("{label}: {said}")).trim_start_matches(':').trim().to_owned()
            };
            (value("Key ID"), value("Secret key"))
        };
        let (writer, reader) = (key("writer"), key("reader"));
        ask(&["bucket", "allow", "--read", "--write", "--owner", "backups", "--key", "writer"]);
        ask(&["bucket", "allow", "--read", "backups", "--key", "reader"]);
        let garage = Garage { proxy: Proxy::start(nodes[0].port), folder, nodes, writer, reader };
        garage.log_in_as(&garage.writer);
        garage
    }

    /// Kills a node, as a power cut does.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node, and waits until all nodes know each other again. Before that, no two of them may.
    pub fn start_node(&mut self, node: usize) {
        self.nodes[node].start();
        until("the nodes work together", || self.nodes.iter().all(|node| node.sees(self.nodes.len())));
    }

    /// Lets new connections lead to this node, and cuts all others, as a load balancer does.
    pub fn lead_to(&self, node: usize) {
        self.proxy.lead_to(self.nodes[node].port);
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    fn log_in_as(&self, (id, secret): &(String, String)) {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\nregion = garage\n");
        fs::write(self.file(), text).expect("credentials");
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    /// The URL of a node, without the proxy.
    pub fn endpoint_of(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[node].port)
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy.port())
    }
}

impl RemoteServer for Garage {
    fn repository(&self) -> Location {
        let location: Location = "s3://backups/repo".parse().expect("location");
        let (endpoint, credentials) = (Some(self.endpoint()), Some(Credentials::in_file(self.file())));
        location.with_remote(Remote { endpoint, credentials, ..Remote::default() })
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_ENDPOINT", self.endpoint()).env("BRACKFS_CREDENTIALS", self.file());
    }

    fn stop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        self.proxy.cut();
    }

    fn start_again(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
    }

    fn is_receiving(&self) -> bool {
        self.proxy.is_receiving("PUT", "/packs/")
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

promises!(super::Garage::start);

#[test]
#[ignore = "scripts/soak runs it"]
fn no_secret_is_shown_and_refusals_say_what_to_do() {
    let remote = RemoteSite::ready(Garage::start(), &borrowed(&many(1)));
    let (id, secret) = remote.server.writer.clone();
    remote.no_secret_is_shown(&[&id, &secret, "Signature="]);
    let refused = |variables: &[(&str, &str)], code: i32, words: &str| {
        let mut command = remote.command(&["snapshots"]);
        command.envs(variables.iter().copied());
        let refused = run(command).code(code);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{words}: {refused}");
        assert!(!refused.stderr.contains(&secret), "{refused}");
    };
    refused(&[("AWS_REGION", "us-east-1")], 1, "set AWS_REGION=garage");
    refused(&[("BRACKFS_REPOSITORY", "s3://missing/repo")], 10, "the bucket does not exist");
    refused(&[("BRACKFS_REPOSITORY", "s3://backups/other")], 10, "");
    let unknown = format!("GK{}", "0".repeat(24));
    remote.server.log_in_as(&(unknown, secret.clone()));
    refused(&[], 1, "check AWS_ACCESS_KEY_ID");
    remote.server.log_in_as(&(id, format!("{}{}", if secret.starts_with('0') { '1' } else { '0' }, &secret[1..])));
    refused(&[], 1, "check AWS_SECRET_ACCESS_KEY");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_read_only_key_can_restore_and_not_back_up() {
    let remote = RemoteSite::ready(Garage::start(), &[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.log_in_as(&remote.server.reader);
    remote.can_be_read_and_not_written("the server denies access");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_used_up_quota_ends_a_backup_at_once() {
    let remote = RemoteSite::ready(Garage::start(), &borrowed(&many(4)));
    let quota = |size: &str| {
        remote.server.nodes[0].ask(&["bucket", "set-quotas", "--max-size", size, "backups"]).expect("a quota");
    };
    quota("20M");
    let full = remote.backup(&[]).code(1);
    assert!(full.stderr.contains("the server has no more room") && !full.stderr.contains("waiting for"), "{full}");
    quota("none");
    remote.backup(&[]).ok();
    remote.is_whole();
}
