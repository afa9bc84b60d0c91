//! The watch of a cluster, from outside.
//!
//! `scripted.rs`: an API server that does what a real one cannot be told to do, and what comes of it in the published
//! world. `real.rs`: a real kube-apiserver and etcd (found through `KUBEBUILDER_ASSETS`), pods as network namespaces,
//! real traffic between them, and the lines of the agent. Waiting is for conditions, never for time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "node/apiserver.rs"]
mod apiserver;
mod node;
#[path = "kube/real.rs"]
mod real;
#[path = "kube/scripted.rs"]
mod scripted;
#[path = "kube/server.rs"]
mod server;
