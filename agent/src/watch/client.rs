//! Where the API server is, and the client to it.
//!
//! In: `--kubeconfig`, the environment. Out: a [`Server`], a client. Order: the flag, `KUBECONFIG`, the service account
//! that a pod is given; else there is no API server. What always holds: a kubeconfig that is named and cannot be used
//! is an error, never a reason to look elsewhere. Waiting for an API server that does not answer is deliberately not
//! here: making a client asks nothing of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// How long a connection to the API server may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// The token by which a pod is known to the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// `--kubeconfig`
    Kubeconfig(PathBuf),
    /// `KUBECONFIG`: a file, or several with colons between
    Environment,
    /// The pod's service account
    InCluster,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(path) => write!(f, "kubeconfig {}", path.display()),
            Self::Environment => f.write_str("the kubeconfig of KUBECONFIG"),
            Self::InCluster => f.write_str("the service account of this pod"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Exit code 66.
    #[error(
        "{server}: cannot be read: {source}: give a kubeconfig with --kubeconfig or KUBECONFIG, or manifests with --cluster"
    )]
    NotFound { server: Server, source: std::io::Error },
    /// Exit code 65.
    #[error("{server}: cannot be used: {problem}: correct it, or give another with --kubeconfig")]
    Malformed { server: Server, problem: String },
}

/// `None`: there is no API server.
pub fn locate(kubeconfig: Option<&Path>) -> Option<Server> {
    let variable = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if let Some(path) = kubeconfig {
        Some(Server::Kubeconfig(path.to_owned()))
    } else if variable("KUBECONFIG") {
        Some(Server::Environment)
    } else if variable("KUBERNETES_SERVICE_HOST") && Path::new(SERVICE_ACCOUNT).exists() {
        Some(Server::InCluster)
    } else {
        None
    }
}

/// A client; nothing is asked of the server yet. Must be called in the runtime that will use it.
///
/// # Errors
/// A kubeconfig or service account that cannot be used.
pub async fn connect(server: &Server) -> Result<Client, ConnectError> {
    let malformed = |problem: String| ConnectError::Malformed { server: server.clone(), problem };
    let refused = |error: KubeconfigError| match error {
        KubeconfigError::ReadConfig(source, _) => ConnectError::NotFound { server: server.clone(), source },
        error => malformed(error.to_string()),
    };
    let read = match server {
        Server::Kubeconfig(path) => Some(Kubeconfig::read_from(path).map_err(refused)?),
        Server::Environment => {
            let read = Kubeconfig::from_env().map_err(refused)?;
            Some(read.ok_or_else(|| malformed("it names no file".to_owned()))?)
        }
        Server::InCluster => None,
    };
    let mut config = match read {
        Some(read) => {
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(refused)?
        }
        None => Config::incluster().map_err(|error| malformed(error.to_string()))?,
    };
    config.connect_timeout = Some(CONNECT);
    // We wait ourselves: with jitter, counted by kind, and as long as the server asks.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kubeconfig_that_is_named_is_used_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let server = Server::Kubeconfig(path.clone());
        assert_eq!(locate(Some(&path)), Some(server.clone()));
        let Err(missing) = connect(&server).await else { panic!("there is no such file") };
        assert!(matches!(missing, ConnectError::NotFound { .. }), "{missing}");
        std::fs::write(&path, "clusters: 7\n").unwrap();
        let Err(malformed) = connect(&server).await else { panic!("that is no kubeconfig") };
        assert!(matches!(malformed, ConnectError::Malformed { .. }), "{malformed}");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
            clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
            users: [{name: u, user: {}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n";
        std::fs::write(&path, text).unwrap();
        assert!(connect(&server).await.is_ok());
    }
}
