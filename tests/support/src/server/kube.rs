use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use ::kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
};
use http::Request;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::Namespace,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{EtcdServer, Kind, LIMIT, POLL, Server, folder};

/// A Kubernetes API server and its etcd, which take seconds to start. There are no controllers:
/// garbage, service accounts and deleted namespaces are left alone.
///
/// The server speaks TLS with its own certificate for 127.0.0.1, which is therefore valid behind a
/// proxy as well.
#[derive(Debug)]
pub struct KubeServer {
    /// The API server, to be killed, paused and restarted. Its data is in etcd, so
    /// [`forget`](Server::forget) does nothing.
    pub api: Server<Kube>,
    /// Its etcd, to be killed, paused and restarted.
    pub etcd: EtcdServer,
}

impl KubeServer {
    /// Starts both, with the administrator as the only user. Returns when the API server is ready.
    pub async fn start() -> Self {
        Self::start_with::<&str>([]).await
    }

    /// Like [`start`](Self::start), with users of these names. They have no rights until
    /// [`allow`](Self::allow) grants some.
    pub async fn start_with<U: Into<String>>(users: impl IntoIterator<Item = U>) -> Self {
        // Where all tests are built together, rustls has two providers, and clients must not guess.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let etcd = match assets().map(|assets| assets.join("etcd")).filter(|etcd| etcd.exists()) {
            Some(etcd) => EtcdServer::start_program(etcd).await,
            None => EtcdServer::start().await,
        };
        let mut users: Vec<_> = users.into_iter().map(Into::into).collect();
        users.push(ADMINISTRATOR.into());
        let api = Server::launch(Kube { etcd: etcd.endpoint(), users, folder: folder() }).await;
        Self { api, etcd }
    }

    /// Returns a client with all rights and kube's default settings: it retries up to 15 times
    /// after the answers 429, 503 and 504.
    pub fn administrator(&self) -> Client {
        self.user(ADMINISTRATOR)
    }

    /// Returns the client of a user.
    pub fn user(&self, name: &str) -> Client {
        client(self.config(name, self.api.address()))
    }

    /// Returns the configuration of this user, or of [`ADMINISTRATOR`], for the address of the
    /// server or of a proxy to it.
    pub fn config(&self, user: &str, address: SocketAddr) -> Config {
        self.api.kind.config(user, address)
    }

    /// Writes the configuration to a file, for other programs. Returns its path.
    pub fn kubeconfig(&self, user: &str, address: SocketAddr) -> PathBuf {
        let kind = &self.api.kind;
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{address}"),
                "certificate-authority": kind.certificate(),
            } }],
            "users": [{ "name": user, "user": { "token": kind.token(user) } }],
        });
        let path = kind.folder.path().join(format!("{user}-{}.kubeconfig", address.port()));
        // JSON is YAML.
        fs::write(&path, text.to_string()).expect("the kubeconfig can be written");
        path
    }

    /// Creates a namespace.
    pub async fn create_namespace(&self, name: &str) {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let made = Api::all(self.administrator()).create(&PostParams::default(), &namespace).await;
        made.expect("a namespace can be made");
    }

    /// Grants the user these verbs on these resources in all namespaces: `allow("ada", "",
    /// &["configmaps"], &["get"])`. The group of the core resources is empty.
    pub async fn allow(&self, user: &str, group: &str, resources: &[&str], verbs: &[&str]) {
        let client = self.administrator();
        let metadata = || ObjectMeta { generate_name: Some(format!("{user}-")), ..ObjectMeta::default() };
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let rule = PolicyRule {
            api_groups: Some(strings(&[group])),
            resources: Some(strings(resources)),
            verbs: strings(verbs),
            ..PolicyRule::default()
        };
        let role = ClusterRole { metadata: metadata(), rules: Some(vec![rule]), aggregation_rule: None };
        let roles = Api::<ClusterRole>::all(client.clone());
        let role = roles.create(&PostParams::default(), &role).await.expect("a role can be made");
        let binding = ClusterRoleBinding {
            metadata: metadata(),
            role_ref: RoleRef {
                api_group: RBAC.into(),
                kind: "ClusterRole".into(),
                name: role.metadata.name.expect("the server named it"),
            },
            subjects: Some(vec![Subject {
                api_group: Some(RBAC.into()),
                kind: "User".into(),
                name: user.into(),
                namespace: None,
            }]),
        };
        let bindings = Api::<ClusterRoleBinding>::all(client.clone());
        bindings.create(&PostParams::default(), &binding).await.expect("a role can be bound");

        // The server learns of the role and the binding from its own watches.
        let (resource, subresource) = resources[0].split_once('/').unzip();
        let attributes = ResourceAttributes {
            group: Some(group.into()),
            resource: Some(resource.unwrap_or(resources[0]).into()),
            subresource: subresource.map(Into::into),
            verb: Some(verbs[0].into()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.into()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(client);
        let started = Instant::now();
        loop {
            let answer = reviews.create(&PostParams::default(), &review).await.expect("an answer");
            if answer.status.expect("a verdict").allowed {
                break;
            }
            assert!(started.elapsed() < LIMIT, "{user} still may not {verbs:?} {resources:?}");
            sleep(POLL).await;
        }
    }
}

#[derive(Debug)]
pub struct Kube {
    /// The endpoint of etcd.
    etcd: String,
    users: Vec<String>,
    /// The files that the server reads and creates.
    folder: TempDir,
}

impl Kube {
    fn config(&self, user: &str, address: SocketAddr) -> Config {
        let mut config = Config::new(format!("https://{address}").parse().expect("a URL"));
        config.root_cert_file = Some(self.certificate());
        config.auth_info.token = Some(self.token(user).into());
        config
    }

    fn token(&self, user: &str) -> String {
        assert!(self.users.iter().any(|known| known == user), "{user} is none of the users {:?}", self.users);
        format!("token-of-{user}")
    }

    fn certificates(&self) -> PathBuf {
        self.folder.path().join("certificates")
    }

    /// Returns the file with the certificate of the server, and of the authority that it created to
    /// sign it.
    fn certificate(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }
}

impl Kind for Kube {
    const PROGRAM: &'static str = "kube-apiserver";
    const PORTS: usize = 1;

    fn program(&self) -> PathBuf {
        if let Some(assets) = assets() {
            return assets.join(Self::PROGRAM);
        }
        // The path that scripts/kube-apiserver writes to.
        let cache = match env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()) {
            Some(cache) => PathBuf::from(cache),
            None => Path::new(&env::var_os("HOME").expect("a home")).join(".cache"),
        };
        cache.join("writerlease/kube-apiserver-1.20.2")
    }

    fn missing(&self) -> String {
        let program = self.program();
        format!(
            "there is no {}: run scripts/kube-apiserver, which builds one in minutes, or set KUBEBUILDER_ASSETS to a \
             folder that has one",
            program.display()
        )
    }

    fn arguments(&self, command: &mut Command, _: &Path, ports: &[u16]) {
        let tokens = self.folder.path().join("tokens.csv");
        let lines = self.users.iter().map(|user| {
            let groups = if user == ADMINISTRATOR { "system:masters" } else { "" };
            format!("{},{user},{user},{groups}\n", self.token(user))
        });
        fs::write(&tokens, lines.collect::<String>()).expect("the tokens can be written");
        command.args(["--bind-address", "127.0.0.1", "--secure-port", &ports[0].to_string()]);
        // The default is the address of the default route, which a machine need not have.
        command.args(["--advertise-address", "127.0.0.1"]);
        command.args(["--etcd-servers", &self.etcd]);
        command.arg("--token-auth-file").arg(tokens).args(["--authorization-mode", "RBAC"]);
        // Service accounts need a key. The tests use none, so the key of the certificate suffices:
        // the server has created it by the time it reads this setting.
        let key = self.certificates().join("apiserver.key");
        command.arg("--cert-dir").arg(self.certificates());
        command
            .arg("--service-account-key-file")
            .arg(&key)
            .arg("--service-account-signing-key-file")
            .arg(&key);
        command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        command.args(["--disable-admission-plugins", "ServiceAccount"]);
        if assets().is_none() {
            // The beta APIs take a quarter of the start of 1.20. Newer servers do not know the
            // gate.
            command.args(["--runtime-config", "api/beta=false"]);
            command.args(["--feature-gates", "APIPriorityAndFairness=false"]);
        }
        // Otherwise it would try for ever to make a loopback address the endpoint of a service.
        command.args(["--endpoint-reconciler-type", "none"]);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        let mut config = self.config(ADMINISTRATOR, address);
        // A server that is not ready may answer with a code that makes kube wait.
        config.default_retry = false;
        let request = Request::get("/readyz").body(Vec::new()).expect("a request");
        timeout(PATIENCE, client(config).request_text(request)).await.is_ok_and(|answer| answer.is_ok())
    }
}

fn client(config: Config) -> Client {
    Client::try_from(config).expect("the server created a certificate")
}

/// Returns the folder with envtest's programs, if it is set.
fn assets() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").filter(|assets| !assets.is_empty()).map(PathBuf::from)
}

/// The user with all rights.
pub const ADMINISTRATOR: &str = "administrator";
/// The first bytes of a request or an answer on an open connection: a record of TLS. The proxy,
/// which cannot read more, finds requests by them.
pub const RECORD: [u8; 3] = [0x17, 3, 3];
/// The longest wait for one answer of a server that starts.
const PATIENCE: Duration = Duration::from_secs(4);
const RBAC: &str = "rbac.authorization.k8s.io";
