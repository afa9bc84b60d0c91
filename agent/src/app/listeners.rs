//! What the agent listens on, as the configuration asks now: metrics, metrics by policy, health, the live view.
//!
//! In: the published configuration. Out: listeners. When its part of the configuration changes, a listener is closed and
//! opened as the new one says, at once; one that cannot be opened is tried again, and told until then: in the
//! log, in metrics, in readiness. Always: what was asked for and cannot be had is never replaced by something else
//! (plain text for TLS, another port). Not here: what is served (`outside.rs`), sockets (`http`, `sink/live.rs`).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::config::Config;
use crate::http::{Check, Listen, TlsFiles};
use crate::sink::live::LiveOptions;
use crate::telemetry::Metrics;

use super::Tasks;
use super::configuration::Configuration;

/// What one listener is asked to be: `None` is closed; an error says why what is asked for cannot be.
pub(super) type Wanted<T> = Result<Option<T>, String>;

/// Where one listens, or why it does not yet.
type State = Result<Vec<String>, String>;

/// How the listeners fare, by name.
#[derive(Clone)]
pub(super) struct Listening {
    states: Arc<Mutex<BTreeMap<&'static str, State>>>,
    metrics: Arc<Metrics>,
}

impl Listening {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { states: Arc::default(), metrics }
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self, name: &'static str) {
        self.states().remove(name);
        self.metrics.listening.remove([name]);
    }

    fn opening(&self, name: &'static str) {
        self.states().insert(name, Err("it is being opened".to_owned()));
        self.metrics.listening.set(name, 0);
    }

    /// One address more, or a try that failed.
    pub(super) fn tell(&self, name: &'static str, outcome: Result<String, &str>) {
        let mut states = self.states();
        match outcome {
            Ok(address) => {
                match states.get_mut(name) {
                    Some(Ok(addresses)) => addresses.push(address),
                    _ => drop(states.insert(name, Ok(vec![address]))),
                }
                self.metrics.listening.set(name, 1);
            }
            Err(why) => {
                states.insert(name, Err(why.to_owned()));
                self.metrics.listening.set(name, 0);
                self.metrics.listener_errors.add(name, 1);
            }
        }
    }

    /// One check for each that is asked for.
    pub(super) fn checks(&self) -> Vec<Check> {
        let check = |(name, state): (&&'static str, &State)| Check {
            name,
            passed: state.is_ok(),
            reason: match state {
                Ok(addresses) => format!("listens on {}", addresses.join(", ")),
                Err(why) => format!("does not listen: {why}"),
            },
        };
        self.states().iter().map(check).collect()
    }

    /// Keeps `serve` running with what `wanted` takes of the configuration; it is dropped and begun again when that changes.
    pub(super) fn follow<T, F>(
        &self,
        name: &'static str,
        tasks: &Tasks,
        configuration: &Configuration,
        wanted: fn(&Config) -> Wanted<T>,
        mut serve: impl FnMut(T) -> F + Send + 'static,
    ) where
        T: Clone + PartialEq + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        let (listening, stopping) = (self.clone(), tasks.stopping());
        let mut configuration = configuration.clone();
        tasks.spawn(async move {
            let mut now = wanted(&configuration.get().config);
            loop {
                let serving = async {
                    match now.clone() {
                        Ok(Some(asked)) => {
                            listening.opening(name);
                            serve(asked).await;
                        }
                        Ok(None) => listening.closed(name),
                        Err(why) => {
                            warn!(listener = name, %why, "does not listen");
                            listening.tell(name, Err(&why));
                        }
                    }
                    std::future::pending::<()>().await;
                };
                let next = tokio::select! {
                    () = stopping.cancelled() => return,
                    next = configuration.changed(&wanted, &now) => next,
                    () = serving => return,
                };
                info!(
                    listener = name,
                    "the configuration has changed: it is closed, and opened as the new one says"
                );
                now = next;
            }
        });
    }
}

pub(super) fn metrics_wanted(config: &Config) -> Wanted<Listen> {
    if !config.prometheus_metrics_enabled {
        return Ok(None);
    }
    let tls = TlsFiles::of_metrics(config)?;
    Ok(Some(Listen {
        host: config.prometheus_metrics_host.clone(),
        port: config.prometheus_metrics_port,
        tls,
    }))
}

pub(super) fn reporter_wanted(config: &Config) -> Wanted<Listen> {
    if !config.prometheus_reporter_enabled {
        return Ok(None);
    }
    let tls = TlsFiles::of_reporter(config)?;
    Ok(Some(Listen {
        host: config.prometheus_metrics_host.clone(),
        port: config.prometheus_reporter_port,
        tls,
    }))
}

pub(super) fn health_wanted(config: &Config) -> Wanted<Listen> {
    let listen =
        Listen { host: config.flow_logs_health_host.clone(), port: config.flow_logs_health_port, tls: None };
    Ok(config.flow_logs_health_enabled.then_some(listen))
}

pub(super) fn live_wanted(config: &Config) -> Wanted<LiveOptions> {
    let options = LiveOptions {
        path: config.flow_logs_live_socket_path.clone(),
        group: config.flow_logs_live_socket_group.clone(),
    };
    Ok(config.flow_logs_live_enabled.then_some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_told_by_name() {
        let metrics = Arc::new(Metrics::default());
        let listening = Listening::new(metrics.clone());
        listening.opening("health");
        listening.tell("health", Err("in use"));
        assert_eq!(listening.checks()[0].reason, "does not listen: in use");
        assert_eq!((metrics.listening.get("health"), metrics.listener_errors.get("health")), (0, 1));
        listening.tell("health", Ok("127.0.0.1:1".into()));
        listening.tell("health", Ok("[::1]:1".into()));
        let [check] = &listening.checks()[..] else { panic!("{:?}", listening.checks()) };
        assert!(check.passed && check.reason == "listens on 127.0.0.1:1, [::1]:1", "{check:?}");
        assert_eq!(metrics.listening.get("health"), 1);
        listening.closed("health");
        assert!(listening.checks().is_empty());
    }
}
