//! Access to ZooKeeper: addresses, credentials, and the meaning of its errors.

use std::{fmt, ops::RangeInclusive, time::Duration};

use zookeeper_client::{Acl, Acls, Client, Connector, CreateMode, CreateOptions, Error};

use crate::store::StoreError;

/// Who a store is, and who may read and write what it creates.
#[derive(Clone)]
pub struct ZookeeperAccess {
    auth: Option<(String, Vec<u8>)>,
    acl: Option<Vec<Acl>>,
}

impl ZookeeperAccess {
    /// Everybody who reaches the servers may do everything.
    pub fn open() -> Self {
        Self { auth: None, acl: None }
    }

    /// This user, and nobody else. (The password travels in plain text; ZooKeeper doesn't tell whether it is right, but
    /// denies what the right one may do.)
    pub fn digest(user: &str, password: &str) -> Self {
        Self::auth("digest", format!("{user}:{password}"))
    }

    /// Authenticates by a scheme of the servers; only who does likewise has access.
    pub fn auth(scheme: &str, credential: impl Into<Vec<u8>>) -> Self {
        Self { auth: Some((scheme.to_owned(), credential.into())), acl: None }
    }

    /// Creates nodes with these permissions instead.
    #[must_use]
    pub fn with_acl(self, acl: Vec<Acl>) -> Self {
        Self { acl: Some(acl), ..self }
    }

    pub(crate) fn connector(&self, session_timeout: Duration) -> Connector {
        // The client would take zero for a default of its own, and wrap what is too long.
        let session_timeout = session_timeout.clamp(*SESSION_TIMEOUTS.start(), *SESSION_TIMEOUTS.end());
        let connector = Client::connector().with_session_timeout(session_timeout).with_fail_eagerly();
        match &self.auth {
            Some((scheme, credential)) => connector.with_auth(scheme, credential),
            None => connector,
        }
    }

    pub(crate) fn options(&self, mode: CreateMode) -> CreateOptions<'_> {
        mode.with_acls(match (&self.acl, &self.auth) {
            (Some(acl), _) => Acls::new(acl),
            (None, Some(_)) => Acls::creator_all(),
            (None, None) => Acls::anyone_all(),
        })
    }
}

/// Whether it may be a list of servers; the client knows more of them than how a path looks.
pub(crate) fn are_servers(servers: &str) -> bool {
    !servers.is_empty() && !servers.contains('/')
}

/// Whether it is a path below which nodes of ours may be.
pub(crate) fn is_base(path: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(char::is_control);
    path.strip_prefix('/').is_some_and(|names| names.split('/').all(is_name)) && path != "/zookeeper"
}

/// Without the credential.
impl fmt::Debug for ZookeeperAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.auth.as_ref().map(|(scheme, _)| scheme);
        f.debug_struct("ZookeeperAccess").field("scheme", &scheme).field("acl", &self.acl).finish()
    }
}

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

/// Of the fences that can be checked here.
pub(crate) const ENGINE: &str = "zookeeper";
/// With less the client may give up before it is connected; and ZooKeeper counts milliseconds in 32 bits.
pub(crate) const SESSION_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_millis(i32::MAX as u64);
