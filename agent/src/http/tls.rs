//! TLS of the metrics' server, as Felix configures it.
//!
//! In: certificate, key, authority of the clients, whether a client must show a certificate. Out: encrypted
//! connections. Always: files that cannot be used are an error that says which and why; files that change are read
//! again within [`LOOK_AGAIN`], and those that are broken then leave the old ones in use, said in the log.
//! rustls with ring, as the API client has it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::config::{ClientAuth, Config};

/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Authority of the clients.
    pub authority: Option<PathBuf>,
    pub client_auth: ClientAuth,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("{path}: {error}: it must hold PEM that this user may read", path = .path.display())]
    File { path: PathBuf, error: rustls::pki_types::pem::Error },
    #[error("{path}: there is no certificate in it", path = .path.display())]
    Empty { path: PathBuf },
    #[error(
        "clients are to be verified, and prometheusMetricsCAFile is not set: set it, or set prometheusMetricsClientAuth to NoClientCert"
    )]
    NoAuthority,
    #[error("{path}: {error}", path = .path.display())]
    Authority { path: PathBuf, error: String },
    #[error("{certificate} and {key} do not serve: {error}", certificate = .certificate.display(), key = .key.display())]
    Pair { certificate: PathBuf, key: PathBuf, error: rustls::Error },
}

impl TlsFiles {
    /// `None`: plain text was asked for. An error says what is missing of what was asked for.
    pub fn of_metrics(config: &Config) -> Result<Option<Self>, String> {
        let files = [
            &config.prometheus_metrics_cert_file,
            &config.prometheus_metrics_key_file,
            &config.prometheus_metrics_ca_file,
        ];
        Self::of("prometheusMetrics", files, config.prometheus_metrics_client_auth)
    }

    /// The same for metrics of policies, whose clients are verified where there is an authority to do it by.
    pub fn of_reporter(config: &Config) -> Result<Option<Self>, String> {
        let files = [
            &config.prometheus_reporter_cert_file,
            &config.prometheus_reporter_key_file,
            &config.prometheus_reporter_ca_file,
        ];
        let client_auth = match config.prometheus_reporter_ca_file {
            Some(_) => ClientAuth::RequireAndVerifyClientCert,
            None => ClientAuth::NoClientCert,
        };
        Self::of("prometheusReporter", files, client_auth)
    }

    fn of(
        fields: &str,
        [certificate, key, authority]: [&Option<PathBuf>; 3],
        client_auth: ClientAuth,
    ) -> Result<Option<Self>, String> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Self {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
                client_auth,
            })),
            (None, None) if authority.is_none() => Ok(None),
            _ => Err(format!(
                "TLS needs {fields}CertFile and {fields}KeyFile: set both, or none of them and no {fields}CAFile"
            )),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.authority).map(PathBuf::as_path)
    }

    fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::File { path: self.key.clone(), error })?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| self.pair(error))?;
        let builder = match self.verifier(&provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| self.pair(error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn pair(&self, error: rustls::Error) -> TlsError {
        TlsError::Pair { certificate: self.certificate.clone(), key: self.key.clone(), error }
    }

    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let may_lack = match self.client_auth {
            ClientAuth::NoClientCert => return Ok(None),
            ClientAuth::RequireAnyClientCert => {
                return Ok(Some(Arc::new(AnyCertificate(provider.signature_verification_algorithms))));
            }
            ClientAuth::VerifyClientCertIfGiven => true,
            ClientAuth::RequireAndVerifyClientCert => false,
        };
        let Some(path) = &self.authority else { return Err(TlsError::NoAuthority) };
        let unusable = |error: String| TlsError::Authority { path: path.clone(), error };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let builder = if may_lack { builder.allow_unauthenticated() } else { builder };
        builder
            .build()
            .map(Some)
            .map_err(|error| unusable(error.to_string()))
            .map(|verifier| verifier.map(|one| one as _))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |error| TlsError::File { path: path.to_owned(), error };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(file)?.collect::<Result<_, _>>().map_err(file)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

/// Go's `RequireAnyClientCert`: the client holds the key of the certificate that it shows, whoever signed it.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// What the files were when they were read.
type Times = Vec<Option<SystemTime>>;

pub struct Acceptor {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    times: Times,
    looked: Instant,
}

impl Acceptor {
    pub fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let times = times(files);
        let config = Arc::new(files.load()?);
        Ok(Self {
            files: files.clone(),
            current: Mutex::new(Current { config, times, looked: Instant::now() }),
        })
    }

    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config(LOOK_AGAIN)).accept(stream).await
    }

    /// Of files that are read again if they changed and were not looked at for `look_again`.
    fn config(&self, look_again: Duration) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= look_again {
            current.looked = Instant::now();
            let now = times(&self.files);
            if now != current.times {
                current.times = now;
                match self.files.load() {
                    Ok(config) => {
                        current.config = Arc::new(config);
                        info!(certificate = %self.files.certificate.display(), "TLS files read again");
                    }
                    Err(error) => warn!(%error, "changed TLS files are of no use: the old ones stay"),
                }
            }
        }
        current.config.clone()
    }
}

fn times(files: &TlsFiles) -> Times {
    files.paths().map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok()).collect()
}
