//! Listening sockets and the connections they accept.
//!
//! In: host, port, perhaps TLS; routes. Out: answers, one request a connection. Always: at most
//! [`Limits::connections`] at once, each for [`Limits::lifetime`] at most; a header comes soon and is small; when all places
//! are taken, new connections wait in the kernel. An address that cannot be bound is tried again, for its holder may
//! leave. `axum::serve` has none of these bounds, so that connections are driven by hyper here.
//! Not here: paths (`routes.rs`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::tls::{Acceptor, TlsFiles};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// An address or a host name; empty is loopback.
    pub host: String,
    pub port: u16,
    pub tls: Option<TlsFiles>,
}

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// From the connection to the end of its request's header, TLS included.
    pub header: Duration,
    /// Of a whole connection.
    pub lifetime: Duration,
    /// Between two tries to bind an address, and after an error of accepting.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            header: Duration::from_secs(3),
            lifetime: Duration::from_secs(10),
            retry: Duration::from_secs(5),
        }
    }
}

/// Bytes of a request's header.
const HEADER_BYTES: usize = 16 << 10;

/// Serves `routes` until it is dropped. `what` names it in the log; `tell` hears of each address that is listened on, and
/// why none can be, each time that it was tried.
pub async fn serve(
    what: &'static str,
    listen: Listen,
    routes: Router,
    limits: Limits,
    tell: impl Fn(Result<SocketAddr, &str>),
) {
    let mut told = String::new();
    let (listeners, acceptor) = loop {
        let opened = match &listen.tls {
            None => bind(&listen).await.map(|listeners| (listeners, None)).map_err(|error| error.to_string()),
            Some(files) => match Acceptor::open(files) {
                Ok(acceptor) => bind(&listen)
                    .await
                    .map(|listeners| (listeners, Some(Arc::new(acceptor))))
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
        };
        match opened {
            Ok(opened) => break opened,
            Err(error) => {
                tell(Err(&error));
                // Once for each reason, not each time.
                if told != error {
                    warn!(what, host = %listen.host, port = listen.port, %error, "not served; trying again");
                    told = error;
                }
                sleep(limits.retry).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(limits.connections));
    // Of this task, not spawned: when it is dropped, the addresses are free at once for whoever comes next.
    let accepting = listeners.into_iter().map(|listener| {
        if let Ok(address) = listener.local_addr() {
            info!(what, %address, tls = acceptor.is_some(), "served");
            tell(Ok(address));
        }
        accept(listener, acceptor.clone(), routes.clone(), limits, places.clone())
    });
    futures::future::join_all(accepting).await;
}

/// All addresses of the host that can be had; none is an error.
async fn bind(listen: &Listen) -> io::Result<Vec<TcpListener>> {
    let addresses: Vec<SocketAddr> = match listen.host.as_str() {
        // Without asking a resolver: a container may have no /etc/hosts.
        "" | "localhost" => [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
            .into_iter()
            .map(|ip| SocketAddr::new(ip, listen.port))
            .collect(),
        host => tokio::net::lookup_host((host, listen.port)).await?.collect(),
    };
    let (mut listeners, mut failed) = (Vec::new(), None);
    for mut address in addresses {
        // Port 0 is one that is free, and then the same one for all.
        if let Some(first) = listeners.first().and_then(|first: &TcpListener| first.local_addr().ok()) {
            address.set_port(first.port());
        }
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            // A host may be without IPv6, or without IPv4.
            Err(error) if is_no_address(&error) => failed = failed.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match (listeners.is_empty(), failed) {
        (false, _) => Ok(listeners),
        (true, Some(error)) => Err(error),
        (true, None) => Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address")),
    }
}

fn is_no_address(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::AddrNotAvailable || errno == Some(rustix::io::Errno::AFNOSUPPORT)
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    routes: Router,
    limits: Limits,
    places: Arc<Semaphore>,
) {
    // Dropped with this future: nobody is served after the end.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                connections.spawn(async move {
                    let _place = place;
                    if timeout(limits.lifetime, connection(stream, acceptor, routes, limits)).await.is_err() {
                        debug!(%peer, "connection took too long");
                    }
                });
            }
            Err(error) => {
                debug!(%error, "cannot accept");
                sleep(limits.retry.min(Duration::from_secs(1))).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: Option<Arc<Acceptor>>, routes: Router, limits: Limits) {
    match acceptor {
        None => answer(stream, routes, limits).await,
        Some(acceptor) => match timeout(limits.header, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => answer(stream, routes, limits).await,
            Ok(Err(error)) => debug!(%error, "no TLS with this client"),
            Err(_) => debug!("TLS took too long"),
        },
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Router,
    limits: Limits,
) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .keep_alive(false)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        debug!(%error, "request not answered");
    }
}
