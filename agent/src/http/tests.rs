//! Real clients, polite and not, against real sockets on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::{ClientAuth, Config};
use crate::telemetry::Metrics;

const LONG: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits { connections: 4, header: LONG, lifetime: LONG, retry: Duration::from_millis(10) }
}

fn listen(host: &str) -> Listen {
    Listen { host: host.into(), port: 0, tls: None }
}

struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(listen: Listen, limits: Limits) -> Server {
    let metrics = Arc::new(Metrics::default());
    metrics.lines.add("allow", 3);
    let (tell, mut hear) = mpsc::unbounded_channel();
    let routes = metrics_routes(move || metrics.snapshot());
    let task = tokio::spawn(async move {
        serve("test", listen, routes, limits, move |outcome| {
            if let Ok(address) = outcome {
                let _ = tell.send(address);
            }
        })
        .await;
    });
    Server { address: hear.recv().await.unwrap(), task }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

async fn scrape(address: SocketAddr) -> String {
    ask(TcpStream::connect(address).await.unwrap(), SCRAPE).await
}

#[tokio::test]
async fn metrics_are_served_on_loopback_by_default() {
    let server = start(listen(""), limits()).await;
    assert!(server.address.ip().is_loopback());
    let answer = scrape(server.address).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("\nflowlogd_lines_total{action=\"allow\"} 3\n"), "{answer}");
    let open = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n";
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), open).await;
    assert!(answer.contains("# EOF"), "{answer}");
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), "GET /else HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_had_when_it_is_free() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let waiting = tokio::spawn(start(Listen { port, ..listen("127.0.0.1") }, limits()));
    // It has tried, and failed, at least once: the accept queue of the holder is not ours.
    tokio::task::yield_now().await;
    drop(holder);
    let server = waiting.await.unwrap();
    assert_eq!(server.address.port(), port);
    assert!(scrape(server.address).await.contains("200 OK"));
}

#[tokio::test]
async fn slow_clients_hold_their_places_no_longer_than_they_may() {
    let limits = Limits { header: Duration::from_millis(50), ..limits() };
    let server = start(listen("127.0.0.1"), limits).await;
    let mut slow = Vec::new();
    for n in 0..50 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Some say nothing, some begin and go on for ever.
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await.unwrap();
        }
        slow.push(stream);
    }
    let answer = scrape(server.address).await;
    assert!(answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let limits = Limits { connections: 1, lifetime: Duration::from_millis(50), ..limits() };
    let server = start(listen("127.0.0.1"), limits).await;
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(&SCRAPE.as_bytes()[..20]).await.unwrap();
    assert!(scrape(server.address).await.contains("200 OK"));
}

#[tokio::test]
async fn what_is_not_http_or_too_large_is_refused_and_the_next_one_is_served() {
    let server = start(listen("127.0.0.1"), limits()).await;
    let large = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    for hostile in ["\0\u{1}\u{2}\r\n\r\n", "GET\r\n\r\n", "GET /metrics HTTP/9.9\r\n\r\n", &large] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _ = stream.write_all(hostile.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    let posted = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc";
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), posted).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(scrape(server.address).await.contains("200 OK"));
}

#[tokio::test]
async fn health_is_told_with_its_reasons() {
    let good = Arc::new(AtomicBool::new(true));
    let flag = good.clone();
    let check = move |passed| Check { name: "cluster", passed, reason: "of \"pods\"".into() };
    let health = Health {
        live: Arc::new(move || vec![check(true)]),
        ready: Arc::new(move || vec![check(flag.load(Ordering::SeqCst))]),
    };
    let (tell, mut hear) = mpsc::unbounded_channel();
    let task = tokio::spawn(serve(
        "health",
        listen("localhost"),
        health_routes(&health),
        limits(),
        move |outcome| {
            let _ = tell.send(outcome.unwrap());
        },
    ));
    let address = hear.recv().await.unwrap();
    let get = |path: &'static str| async move {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = ask(TcpStream::connect(address).await.unwrap(), &request).await;
        let (header, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = header.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str::<serde_json::Value>(body).unwrap())
    };
    let passed = serde_json::json!({"passed": true, "checks": [{"name": "cluster", "passed": true, "reason": "of \"pods\""}]});
    assert_eq!(get("/readyz").await, (200, passed.clone()));
    good.store(false, Ordering::SeqCst);
    let (status, body) = get("/readiness").await;
    assert_eq!((status, &body["passed"], &body["checks"][0]["passed"]), (503, &false.into(), &false.into()));
    assert_eq!(get("/healthz").await, (200, passed.clone()));
    assert_eq!(get("/liveness").await, (200, passed));
    task.abort();
}

/// An authority with a server's and a client's certificate, and a client certificate of somebody else.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = || {
            let mut parameters = CertificateParams::new(vec![]).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, other) = (issuer(), issuer());
        std::fs::write(folder.path().join("ca"), ours.pem()).unwrap();
        for (name, issuer) in [("server", &ours), ("client", &ours), ("stranger", &other)] {
            let key = KeyPair::generate().unwrap();
            let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let certificate = parameters.signed_by(&key, issuer).unwrap();
            std::fs::write(folder.path().join(format!("{name}.crt")), certificate.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn files(&self, client_auth: ClientAuth) -> TlsFiles {
        TlsFiles {
            certificate: self.path().join("server.crt"),
            key: self.path().join("server.key"),
            authority: Some(self.path().join("ca")),
            client_auth,
        }
    }

    async fn scrape(&self, address: SocketAddr, client: Option<&str>) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path().join("ca")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let file = |kind: &str| self.path().join(format!("{name}.{kind}"));
                let certificate = CertificateDer::from_pem_file(file("crt")).unwrap();
                let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
            Ok(mut stream) => {
                let _ = stream.write_all(SCRAPE.as_bytes()).await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                String::from_utf8_lossy(&answer).into_owned()
            }
            Err(error) => error.to_string(),
        }
    }
}

#[tokio::test]
async fn client_certificates_are_demanded_as_configured() {
    use ClientAuth::{
        NoClientCert, RequireAndVerifyClientCert, RequireAnyClientCert, VerifyClientCertIfGiven,
    };
    let authority = Authority::make();
    // Whether a client without, with a good, with a stranger's certificate is served.
    for (auth, served) in [
        (NoClientCert, [true, true, true]),
        (VerifyClientCertIfGiven, [true, true, false]),
        (RequireAnyClientCert, [false, true, true]),
        (RequireAndVerifyClientCert, [false, true, false]),
    ] {
        let listen = Listen { tls: Some(authority.files(auth)), ..listen("127.0.0.1") };
        let server = start(listen, limits()).await;
        for (client, served) in [None, Some("client"), Some("stranger")].into_iter().zip(served) {
            let answer = authority.scrape(server.address, client).await;
            assert_eq!(answer.starts_with("HTTP/1.1 200"), served, "{auth:?} {client:?}: {answer}");
        }
        let plain = ask(TcpStream::connect(server.address).await.unwrap(), "GET / HTTP/1.1\r\n\r\n").await;
        assert!(!plain.contains("200"), "{plain}");
    }
}

#[test]
fn tls_that_is_half_asked_for_is_refused() {
    let mut config = Config::default();
    assert_eq!(TlsFiles::of_metrics(&config), Ok(None));
    config.prometheus_metrics_ca_file = Some("ca".into());
    assert!(TlsFiles::of_metrics(&config).unwrap_err().contains("prometheusMetricsKeyFile"));
    config.prometheus_metrics_cert_file = Some("crt".into());
    assert!(TlsFiles::of_metrics(&config).is_err());
    config.prometheus_metrics_key_file = Some("key".into());
    assert!(TlsFiles::of_metrics(&config).unwrap().is_some());
}

#[test]
fn files_that_do_not_serve_say_why() {
    let authority = Authority::make();
    let good = authority.files(ClientAuth::RequireAndVerifyClientCert);
    let error = |files: &TlsFiles| tls::Acceptor::open(files).err().unwrap().to_string();
    let lacking = TlsFiles { authority: None, ..good.clone() };
    assert!(error(&lacking).contains("prometheusMetricsCAFile is not set"));
    let absent = TlsFiles { key: authority.path().join("none"), ..good.clone() };
    assert!(error(&absent).contains("none: "), "{}", error(&absent));
    let other = TlsFiles { key: authority.path().join("client.key"), ..good.clone() };
    assert!(error(&other).contains("do not serve"), "{}", error(&other));
    std::fs::write(authority.path().join("ca"), "no certificate").unwrap();
    assert!(error(&good).contains("there is no certificate in it"), "{}", error(&good));
}
