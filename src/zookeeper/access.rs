//! Access to ZooKeeper: addresses, credentials, permissions, and the translation of errors.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use rand::RngExt;
use zookeeper_client::{Acl, Acls, Client, Connector, CreateMode, CreateOptions, Error};

use crate::store::{StoreError, unavailable};

/// The way in: the credentials of a client or its connector, and the ACL of the nodes that it creates.
#[derive(Clone)]
pub struct ZookeeperAccess {
    connector: Option<Arc<dyn Fn() -> Connector + Send + Sync>>,
    auth: Option<(String, Vec<u8>)>,
    acl: Option<Vec<Acl>>,
}

impl ZookeeperAccess {
    /// Connects without credentials. Every client may read and write the nodes.
    pub fn open() -> Self {
        Self { connector: None, auth: None, acl: None }
    }

    /// Authenticates as a user with a password. Only this user may read and write the nodes.
    ///
    /// The password travels in plain text, unless the connection has TLS. ZooKeeper accepts the
    /// connection of a client with a wrong password and then denies its requests.
    pub fn digest(user: &str, password: &str) -> Self {
        Self::auth("digest", format!("{user}:{password}"))
    }

    /// Authenticates by a scheme of the servers. Only clients with the same identity may read and
    /// write the nodes.
    pub fn auth(scheme: &str, credential: impl Into<Vec<u8>>) -> Self {
        Self { auth: Some((scheme.to_owned(), credential.into())), ..Self::open() }
    }

    /// Sets the ACL of the nodes that the client creates, in place of the default of the
    /// constructor.
    #[must_use]
    pub fn with_acl(self, acl: Vec<Acl>) -> Self {
        Self { acl: Some(acl), ..self }
    }

    /// Begins each session by a connector of the user's own, with TLS or SASL for example. The store
    /// or elector adds the session timeout and the credential of the constructor.
    ///
    /// `connector` is called for each new session, so it may return another password each time. It
    /// must neither block nor wait for the store or elector. TLS and SASL are features of
    /// `zookeeper-client` 0.11: name the ones that you need in your own `Cargo.toml`. The addresses
    /// of servers with TLS are `tcp+tls://host:port`.
    ///
    /// With its feature `tls`, `zookeeper-client` brings rustls' provider `aws-lc-rs`. A program that has
    /// another one as well, such as that of feature `kube`, calls `CryptoProvider::install_default` first.
    ///
    /// From ZooKeeper 3.9.6 on, servers accept passwords by SASL (DIGEST-MD5) only with
    /// `fips-mode=false` in their settings. Otherwise a server that requires SASL refuses each session:
    /// [`StoreError::Denied`].
    ///
    /// The nodes are open to all, unless the constructor or [`with_acl`](Self::with_acl) says
    /// otherwise; `AuthId::authed()` stands for whoever created the node.
    ///
    /// ```
    /// use writerlease::zookeeper::ZookeeperAccess;
    /// use zookeeper_client::{Acl, AuthId, Client, Permission};
    ///
    /// let access = ZookeeperAccess::open()
    ///     .with_connector(|| Client::connector()) // `.with_tls(options)`, `.with_sasl(options)`
    ///     .with_acl(vec![Acl::new(Permission::ALL, AuthId::authed())]);
    /// ```
    #[must_use]
    pub fn with_connector(self, connector: impl Fn() -> Connector + Send + Sync + 'static) -> Self {
        Self { connector: Some(Arc::new(connector)), ..self }
    }

    /// Returns the rule that a list of servers breaks. The client checks the addresses themselves.
    pub(crate) fn broken_rule(&self, servers: &str) -> Option<&'static str> {
        let addresses = servers.split(',').map(|server| match server.strip_prefix("tcp+tls://") {
            Some(address) => (true, address),
            None => (false, server.strip_prefix("tcp://").unwrap_or(server)),
        });
        let last = servers.split(',').count() - 1;
        for (index, (tls, address)) in addresses.enumerate() {
            let (host, root) = address.find('/').map_or((address, ""), |slash| address.split_at(slash));
            if host.is_empty() || (index < last && !root.is_empty()) || !(root.len() < 2 || is_base(root)) {
                return Some("host:port, separated by commas, perhaps with a root path at the end");
            }
            if tls && self.connector.is_none() {
                return Some("without tcp+tls://, unless the access has a connector with TLS");
            }
        }
        None
    }

    /// Returns the bytes that the credential or the ACL adds to a request.
    pub(crate) fn size(&self) -> usize {
        let auth = self.auth.iter().map(|(scheme, credential)| scheme.len() + credential.len());
        let acl = self.acl.iter().flatten().map(|acl| acl.scheme().len() + acl.id().len() + ACL_OVERHEAD);
        auth.chain(acl).sum()
    }

    /// Begins a session.
    pub(crate) async fn connect(
        &self,
        servers: &str,
        session_timeout: Duration,
    ) -> Result<Client, StoreError> {
        // The client would replace zero by its own default, and a long timeout would overflow.
        let session_timeout = session_timeout.clamp(*SESSION_TIMEOUTS.start(), *SESSION_TIMEOUTS.end());
        let connector = self.connector.as_ref().map_or_else(Client::connector, |connector| connector());
        let connector = connector.with_session_timeout(session_timeout).with_fail_eagerly();
        let connector = match &self.auth {
            Some((scheme, credential)) => connector.with_auth(scheme, credential),
            None => connector,
        };
        connector.connect(servers).await.map_err(store_error)
    }

    pub(crate) fn options(&self, mode: CreateMode) -> CreateOptions<'_> {
        mode.with_acls(match (&self.acl, &self.auth) {
            (Some(acl), _) => Acls::new(acl),
            (None, Some(_)) => Acls::creator_all(),
            (None, None) => Acls::anyone_all(),
        })
    }
}

/// Creates the base path.
pub(crate) async fn create_base(
    client: &Client,
    base: &str,
    options: &CreateOptions<'_>,
) -> Result<(), StoreError> {
    match client.mkdir(base, options).await {
        Err(Error::NoNode) => Err(unavailable(format!("the root path {:?} does not exist", client.path()))),
        created => created.map_err(store_error),
    }
}

/// Returns whether the text is a path that can be the parent of the store's or elector's nodes.
pub(crate) fn is_base(path: &str) -> bool {
    // As in ZooKeeper's `PathUtils`, which also refuses all that takes two units of UTF-16.
    let is_refused = |char: char| char.is_control() || !matches!(char, ..'\u{e000}' | '\u{f900}'..'\u{fff0}');
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(is_refused);
    let Some(names) = path.strip_prefix('/') else { return false };
    path.len() <= LONGEST_BASE
        && names.split('/').all(is_name)
        && names.split('/').next() != Some("zookeeper")
}

/// Checks that the servers accept a request of this many bytes. They would close the connection
/// of a client that sends a larger one. Returns the reason if it is too large.
pub(crate) fn fits(size: usize) -> Result<(), String> {
    match size.saturating_add(OVERHEAD) {
        size if size > LARGEST => {
            Err(format!("the request has {size} bytes, but must have at most {LARGEST} (jute.maxbuffer)"))
        }
        _ => Ok(()),
    }
}

/// Omits the credential, which may be a password.
impl fmt::Debug for ZookeeperAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.auth.as_ref().map(|(scheme, _)| scheme);
        f.debug_struct("ZookeeperAccess").field("scheme", &scheme).field("acl", &self.acl).finish()
    }
}

/// Translates an error of the client.
pub(crate) fn store_error(error: Error) -> StoreError {
    let (reason, denied) = (error.to_string(), matches!(error, Error::NoAuth | Error::AuthFailed));
    let invalid =
        matches!(error, Error::BadArguments(_) | Error::InvalidAcl | Error::NoChildrenForEphemerals);
    let source = Some(error.into());
    match (denied, invalid) {
        (true, _) => StoreError::Denied { reason, source },
        (_, true) => StoreError::Invalid { reason, source },
        _ => StoreError::Unavailable { reason, source },
    }
}

/// Returns a random text of 32 letters for the name of a new node.
#[expect(
    clippy::disallowed_methods,
    reason = "it must differ between processes, which a seed would not make it"
)]
pub(crate) fn random_name() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// The backend's name in the fences of ZooKeeper's elector.
pub(crate) const ENGINE: &str = "zookeeper";
/// The session timeouts that work. With a shorter one the client may give up before it is
/// connected. ZooKeeper counts the milliseconds in 32 bits, which sets the upper limit.
pub(crate) const SESSION_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_millis(i32::MAX as u64);
/// The largest request in bytes: the servers' default of `jute.maxbuffer`.
const LARGEST: usize = 0xfffff;
/// An upper bound, in bytes, of the parts of a request besides paths, values and ACL.
const OVERHEAD: usize = 512;
/// The bytes of an entry of an ACL besides its texts.
const ACL_OVERHEAD: usize = 12;
/// The longest base path in bytes, so that most of a request is left for keys and values.
const LONGEST_BASE: usize = 0xffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_servers_break_named_rules() {
        let (open, tls) =
            (ZookeeperAccess::open(), ZookeeperAccess::open().with_connector(Client::connector));
        for servers in ["a", "a:1", "a:1,b:2", "tcp://a:1,b", "[::1]:2181", "a:1/", "a:1,b:2/app/one"] {
            assert_eq!(open.broken_rule(servers), None, "{servers}");
        }
        for servers in ["", ",", "a,", "/app", "a/x,b", "a/x/", "a//x", "tcp://", "a/zookeeper", "a/.."] {
            assert!(open.broken_rule(servers).is_some_and(|rule| rule.starts_with("host")), "{servers}");
        }
        for servers in ["tcp+tls://a:1", "a,tcp+tls://b/app"] {
            assert!(open.broken_rule(servers).is_some_and(|rule| rule.contains("TLS")), "{servers}");
            assert_eq!(tls.broken_rule(servers), None, "{servers}");
        }
    }

    #[test]
    fn only_paths_that_zookeeper_accepts_are_bases() {
        for base in ["/a", "/a/b", "/ä €", "/zookeeper2", "/a/zookeeper", "/a/..."] {
            assert!(is_base(base), "{base}");
        }
        let long = format!("/{}", "x".repeat(LONGEST_BASE));
        for base in
            ["", "/", "a", "/a/", "/a//b", "/./a", "/zookeeper", "/zookeeper/x", "/😀", "/\u{f8ff}", &long]
        {
            assert!(!is_base(base), "{base:.50}");
        }
    }
}
