//! What the agent serves over HTTP: `/metrics`, `/healthz`, `/readyz`.
//!
//! In: where to listen (configuration), the lists of metrics, what the stages say of themselves. Out: the text that
//! Prometheus reads; whether the agent lives and is ready, with the reasons as JSON.
//! Always: a client, however slow or many, costs a bounded number of sockets for a bounded time, and no stage of the
//! data path ever waits for one; nothing is listened on beyond loopback unless the configuration says so; TLS that
//! was asked for and cannot be had means no service, said in the log, never plain text.
//! Not here: what is counted (`telemetry`), what readiness depends on (`app`).

mod exposition;
mod listen;
mod routes;
mod tls;

#[cfg(test)]
mod tests;

pub use exposition::{Format, exposition};
pub use listen::{Limits, Listen, serve};
pub use routes::{Ask, Check, Health, health_routes, metrics_routes};
pub use tls::TlsFiles;
