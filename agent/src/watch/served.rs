//! What the API server serves, looked up again and again.
//!
//! In: a client. Out: for each kind that is wanted the group and version in which it is served, or that it is not.
//! A CRD that is installed later is seen at the next look. What always holds: what was served stays so until a look
//! that succeeded says otherwise; a group whose look failed (an aggregated API server that is down) counts as before,
//! so that nothing that is known is forgotten for it. Only `/apis` and the groups that are asked for are read, those
//! that a server has built in only once: thousands of agents ask the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::follow::{Resource, Timing};
use super::kinds::Wanted;

/// Groups whose versions do not change while a server runs.
const BUILT_IN: [&str; 2] = ["discovery.k8s.io", "networking.k8s.io"];

/// Group, version and plural of what is served; of the groups that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served(BTreeMap<(String, String), BTreeSet<String>>);

impl Served {
    fn has(&self, group: &str, version: &str, plural: &str) -> bool {
        let key = (group.to_owned(), version.to_owned());
        group.is_empty() || self.0.get(&key).is_some_and(|plurals| plurals.contains(plural))
    }

    /// Where to watch this kind.
    pub fn find(&self, wanted: &Wanted) -> Option<Resource> {
        if wanted.unless.is_some_and(|(group, version, plural)| self.has(group, version, plural)) {
            return None;
        }
        let plural = wanted.plural;
        let &(group, version) =
            wanted.served.iter().find(|(group, version)| self.has(group, version, plural))?;
        Some(Resource { group, version, plural })
    }
}

/// Looks for ever, and sends what it finds when it changes. The first is sent when a look succeeds.
pub(super) async fn look(
    client: Client,
    timing: Timing,
    groups: BTreeSet<&'static str>,
    send: watch::Sender<Option<Arc<Served>>>,
) {
    let mut known = Served::default();
    let mut failed = false;
    loop {
        let wait = match timeout(timing.idle, look_once(&client, &groups, &known)).await {
            Ok(Ok(served)) => {
                if std::mem::take(&mut failed) {
                    info!("the API server tells again what it serves");
                }
                let first = send.borrow().is_none();
                if first || served != known {
                    debug!(?served, "the API server serves");
                    known = served;
                    send.send_replace(Some(Arc::new(known.clone())));
                }
                timing.discovery.mul_f64(1.0 + fastrand::f64() / 2.0)
            }
            other => {
                let problem = match other {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it does not answer".to_owned(),
                };
                if !std::mem::replace(&mut failed, true) {
                    warn!(%problem, "the API server does not tell what it serves: trying again");
                }
                timing.backoff.mul_f64(1.0 + fastrand::f64()).min(timing.backoff_most)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = send.closed() => return,
        }
    }
}

async fn look_once(
    client: &Client,
    groups: &BTreeSet<&'static str>,
    known: &Served,
) -> Result<Served, kube::Error> {
    let mut served = Served::default();
    for group in client.list_api_groups().await?.groups {
        if !groups.contains(group.name.as_str()) {
            continue;
        }
        for version in group.versions {
            let key = (group.name.clone(), version.version);
            if BUILT_IN.contains(&key.0.as_str())
                && let Some(before) = known.0.get(&key)
            {
                served.0.insert(key, before.clone());
                continue;
            }
            match client.list_api_group_resources(&version.group_version).await {
                Ok(list) => {
                    let plurals = list.resources.into_iter().map(|resource| resource.name);
                    served.0.insert(key, plurals.filter(|name| !name.contains('/')).collect());
                }
                Err(error) => {
                    debug!(%error, api = version.group_version, "does not tell what it serves");
                    if let Some(before) = known.0.get(&key) {
                        served.0.insert(key, before.clone());
                    }
                }
            }
        }
    }
    Ok(served)
}
