//! What changes on a node during a soak: its configuration, and on a real API server pods and policies.
//!
//! In: a server. Out: changes, counted. What always holds: at most [`PODS`] pods and one policy are there at once; each pod talks
//! from an address of its own, so that its flows are named, or are of no pod here once it is gone.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::bench::load::Flows;
use crate::bench::site::{CLIENT, NODE_NAME, SERVER, Site};
use crate::workspace::root;

const PODS: usize = 10;
/// Between two changes of pods and policies, and of the configuration.
const POD_PAUSE: Duration = Duration::from_secs(3);
const CONFIGURATION_PAUSE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);
/// Last parts of the client's more addresses.
const FIRST: u8 = 100;
const ADDRESSES: u8 = 100;
const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: soak, namespace: bench}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP}, {protocol: TCP}]}]}\n";

#[derive(Debug, Default)]
pub struct Changes {
    pods: u64,
    policies: u64,
    configurations: u64,
    served: bool,
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} configurations, ", self.configurations)?;
        if self.served {
            write!(f, "{} pods and {} policies on a real API server", self.pods, self.policies)
        } else {
            write!(f, "SKIPPED pods and policies: KUBEBUILDER_ASSETS names no API server")
        }
    }
}

/// The file of the agent's configuration.
pub struct Configuration {
    pub path: PathBuf,
}

impl Configuration {
    pub fn write(folder: &Path) -> anyhow::Result<Self> {
        let configuration = Self { path: folder.join("flowlogd.yaml") };
        configuration.change(0)?;
        Ok(configuration)
    }

    /// Another interval, another level; collectors come and go.
    fn change(&self, number: u64) -> anyhow::Result<()> {
        let on = number % 2 == 1;
        let (interval, level) = (if on { 10 } else { 5 }, if number % 3 == 2 { 1 } else { 2 });
        let text = format!(
            "flowLogsFlushInterval: {interval}s\nflowLogsFileAggregationKindForAllowed: {level}\nflowLogsCollectTcpStats: {on}\n\
             flowLogsCollectProcessInfo: {}\n",
            number % 4 > 1
        );
        // As editors and mounted ConfigMaps do it: never half a file.
        let next = self.path.with_extension("next");
        fs::write(&next, text)?;
        fs::rename(&next, &self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Pods of the API server.
pub struct World<'a> {
    server: &'a ApiServer,
    pods: Mutex<VecDeque<(String, Ipv4Addr)>>,
    next: AtomicU64,
}

impl<'a> World<'a> {
    pub fn begin(server: &'a ApiServer, site: &Site) -> anyhow::Result<Self> {
        let more: String =
            (FIRST..FIRST + ADDRESSES).map(|last| format!("addr add 10.1.0.{last}/24 dev up0\n")).collect();
        site.client.ip(&more)?;
        server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: bench}\n")?;
        // The agent has the rights that the chart gives, and no more.
        let base = root().join("deploy/base");
        for file in ["namespace", "serviceaccount", "rbac", "flowlogconfigurations.flowlogd.dev"] {
            server.apply(&fs::read_to_string(base.join(format!("{file}.yaml")))?)?;
        }
        server.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE_NAME}}}\n"))?;
        let world = Self { server, pods: Mutex::default(), next: AtomicU64::new(0) };
        world.add("client-7d4b9c-x2x4p", CLIENT, NODE_NAME)?;
        world.add("server-7d4b9c-x2x4p", SERVER, "elsewhere")?;
        world.turn()?;
        Ok(world)
    }

    /// The server takes a pod's status only after the pod.
    fn add(&self, name: &str, address: Ipv4Addr, node: &str) -> anyhow::Result<()> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "generateName": name.trim_end_matches(|c| c != '-'), "namespace": "bench", "labels": {"app": "soak"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
        });
        self.server.apply(&pod.to_string())?;
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        let path = format!("/api/v1/namespaces/bench/pods/{name}/status");
        self.server.kubectl(&["replace", "--raw", &path, "-f", "-"], Some(&pod.to_string())).map(drop)
    }

    /// One pod comes, and the oldest goes.
    fn turn(&self) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let last = FIRST + u8::try_from(number % u64::from(ADDRESSES))?;
        let (name, address) = (format!("soak-7d4b9c-{number}"), Ipv4Addr::new(10, 1, 0, last));
        self.add(&name, address, NODE_NAME)?;
        let oldest = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            pods.push_back((name, address));
            if pods.len() > PODS { pods.pop_front() } else { None }
        };
        if let Some((name, _)) = oldest {
            let delete =
                ["-n", "bench", "delete", "pod", &name, "--wait=false", "--grace-period=0", "--force"];
            self.server.kubectl(&delete, None)?;
        }
        Ok(())
    }

    /// A few flows of every pod that is there. Says how many.
    pub fn talk(&self, site: &Site) -> anyhow::Result<u64> {
        thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });
        let addresses: Vec<Ipv4Addr> = self
            .pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(_, address)| *address)
            .collect();
        const EACH: u32 = 5;
        let from = NEXT.get();
        NEXT.set(from.wrapping_add(EACH));
        for address in &addresses {
            Flows::of(site, *address, from)?.begin(EACH.into())?;
        }
        Ok(addresses.len() as u64 * u64::from(EACH))
    }
}

/// Until the end.
pub fn run(
    world: Option<&World<'_>>,
    configuration: &Configuration,
    ended: &AtomicBool,
) -> anyhow::Result<Changes> {
    let mut changes = Changes { served: world.is_some(), ..Changes::default() };
    let now = Instant::now();
    let (mut next_pod, mut next_configuration) = (now + POD_PAUSE, now + CONFIGURATION_PAUSE);
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
        if Instant::now() >= next_configuration {
            next_configuration += CONFIGURATION_PAUSE;
            changes.configurations += 1;
            configuration.change(changes.configurations)?;
        }
        let Some(world) = world else { continue };
        if Instant::now() >= next_pod {
            // A machine that is too slow for this pace gets a slower one.
            next_pod = Instant::now() + POD_PAUSE;
            world.turn()?;
            changes.pods += 1;
            if changes.pods.is_multiple_of(2) {
                if changes.policies.is_multiple_of(2) {
                    world.server.apply(POLICY)?;
                } else {
                    world.server.kubectl(&["-n", "bench", "delete", "networkpolicy", "soak"], None)?;
                }
                changes.policies += 1;
            }
        }
    }
    Ok(changes)
}
