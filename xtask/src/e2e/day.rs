//! The day itself: what an operator does, and what traffic does meanwhile.
//!
//! In: a node on which the chart's pod and the stores run. Out: a row of the table for each thing that was looked at. What always holds: what was
//! sent is known from its sender and from the kernel, never from the agent.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::agent::{Chart, WINDOW};
use super::lines::{self, Sum};
use super::mininode::{Mininode, NODE, until};
use super::stores::{Stores, number};
use super::table::Table;
use super::traffic::{BYTES, datagrams, questions, scatter, sink};
use super::watched::{Moment, alerts, health};
use super::{shipped, world};
use crate::dashboards::description::Log;
use crate::demo::kernel;
use crate::netns::Namespace;

const ROTATIONS: usize = 10;
/// Connections whose lines, of both ends, are less than a file.
const BATCH: u16 = 300;
/// The same while the shipper is away.
const AWAY: u16 = 10;
/// More tuples than the kernel's table of drops holds between two collections (16,384).
const FLOOD: std::ops::RangeInclusive<u16> = 20_000..=40_000;
const FLOODED: u16 = 9999;

pub struct Day<'n> {
    pub node: &'n Mininode,
    pub chart: Chart<'n>,
    pub stores: Stores<'n>,
    pub flowlogs: PathBuf,
}

/// A connection whose traffic the kernel has told: packets and bytes, there and back.
struct Known {
    what: &'static str,
    port: u16,
    sums: [Sum; 2],
}

/// Two pods of the shop.
struct Pods {
    client: Namespace,
    server: Namespace,
    address: IpAddr,
    _listening: UdpSocket,
}

impl Pods {
    fn find(node: &Mininode, server: &str) -> anyhow::Result<Self> {
        let address = node.address("shop", server)?;
        let (client, server) = (node.inside("shop", "client-1")?, node.inside("shop", server)?);
        let _listening = sink(&server, 8080)?;
        Ok(Self { client, server, address, _listening })
    }
}

impl Day<'_> {
    pub fn live(&mut self, table: &mut Table) -> anyhow::Result<()> {
        let node = self.node;
        let pods = Pods::find(node, "server-1")?;
        let first = pods.address;
        let mut known = Vec::new();

        table.need("helm upgrade under traffic", || {
            known.extend(self.rolled(&pods, [5001, 5003], |chart| {
                chart.upgrade(&["config.flowLogsClusterName=day", "podAnnotations.rolled=once"])
            })?);
            let (revision, state) = self.chart.revision()?;
            ensure!((revision, state.as_str()) == (2, "deployed"), "revision {revision} is {state}");
            let template = self.chart.template()?;
            ensure!(template["metadata"]["annotations"]["rolled"] == "once", "the template is the old one");
            Ok(((), format!("revision {revision} {state}; {}", told(&known[..2]))))
        })?;
        table.check("the status of the configuration object", || self.status());
        table.need("helm rollback under traffic", || {
            known.extend(self.rolled(&pods, [5011, 5013], |chart| chart.rollback(1))?);
            let (revision, state) = self.chart.revision()?;
            ensure!((revision, state.as_str()) == (3, "deployed"), "revision {revision} is {state}");
            ensure!(self.chart.template()?["metadata"]["annotations"].is_null(), "the template is the newer");
            Ok(((), format!("revision {revision} {state}; {}", told(&known[2..]))))
        })?;

        let flowlogs = self.flowlogs.clone();
        let read = || lines::read(&flowlogs);
        let (moment, _) = Moment::quiet(node, &read)?;
        let denied = scatter(&pods.client, 6000..=6009, first, 9090, false)?;
        // Against what the cluster's policies say of a client that none selects.
        let mismatched = scatter(&pods.server, 6100..=6104, node.address("shop", "client-1")?, 7070, false)?;

        // The pod goes, another comes: names are those of the time.
        drop(pods);
        node.remove("shop", "server-1")?;
        node.apply(&super::pods().replace("name: server-1", "name: server-2"))?;
        node.ready("shop", "server-2")?;
        let pods = Pods::find(node, "server-2")?;
        let second = pods.address;
        scatter(&pods.client, 6200..=6209, second, 8080, false)?;
        world::serve(node, second)?;
        let rules = ruleset(node)?;
        // To a Service; out of the cluster, after a question and without leave.
        scatter(&pods.client, 6300..=6304, world::SERVICE, 80, false)?;
        world::ask(&pods.client, 6400)?;
        scatter(&pods.client, 6401..=6404, world::HOST, 8443, false)?;
        scatter(&node.inside("shop", "crawler-1")?, 6500..=6502, world::OTHER_DNS, 53, false)?;
        table.need("ten rotations, rsyslog restarted among them", || self.rotations(&pods))?;
        table.check("Prometheus' counters are those of the lines", || {
            moment.equal(node, &read).map(|figures| ((), figures))
        });
        table.check("the agents' dashboard and alert rules", || health(node).map(|figures| ((), figures)));
        table.check("a mismatch makes its alert wait, a rollout none", || {
            let mut now = alerts(node)?;
            until("the alert waits", || {
                now = alerts(node)?;
                Ok(now.contains_key("FlowlogdPolicyMismatch"))
            })?;
            ensure!(now.len() == 1, "these too: {now:?}");
            Ok(((), format!("{now:?}, all others inactive")))
        });

        let killed = table.need("kill -9 under traffic", || self.killed(&pods))?;
        let lost = table.need("an injected loss fires its alert", || self.loss(&pods))?;

        Moment::quiet(node, &read)?;
        self.chart.end()?;
        let lines = read()?;
        table.check("sums over upgrade and rollback are the kernel's", || exact(&lines, &known));
        table.check("what kill -9 takes", || killed.check(&lines));
        table.check("what was injected is in lines or counted", || flooded(node, &lines, lost));
        table.check("names", || {
            let (to_first, to_second) =
                (lines::all(&lines, 5001..=5013, &pair("server-1", first))?, lines::all(&lines, 6200..=6209, &pair("server-2", second))?);
            let to_service = lines::all(&lines, 6300..=6304, &json!({
                "source_name": "client-1", "dest_name": "server-2", "dest_service_namespace": "shop",
                "dest_service_name": "web", "dest_service_port": "talk", "dest_service_port_num": 80, "action": "allow",
            }))?;
            let beyond = lines::all(&lines, 6401..=6404, &json!({
                "source_name": "client-1", "dest_type": "net", "dest_name_aggr": "pub", "dest_domains": [world::DOMAIN], "action": "allow", "reporter": "src",
            }))?;
            let clusters = lines.iter().filter(|line| line["cluster"] == "day").count();
            ensure!(clusters > 0 && clusters < lines.len(), "{clusters} lines of the cluster `day`");
            Ok(((), format!("{to_first} lines to server-1 at {first}, {to_second} to its successor at {second}, {to_service} to the Service, {beyond} to {}; {clusters} lines with the upgrade's cluster name", world::DOMAIN)))
        });
        table.check("denied and mismatched flows", || {
            dropped(node, &lines, &[("denied", 9090, denied), ("mismatched", 7070, mismatched)])
        });
        table.check("every line is in the store exactly once", || {
            shipped::all(node, &lines).map(|figures| ((), figures))
        });
        table.check("the flow dashboards' queries", || {
            shipped::panels(node, Log::Flows, &lines).map(|figures| ((), figures))
        });
        table.check("the DNS log dashboard's queries", || {
            shipped::panels(node, Log::Dns, &shipped::dns(node)?).map(|figures| ((), figures))
        });
        table.check("the agents change no rule", || {
            ensure!(ruleset(node)? == rules, "rules have changed");
            Ok(((), "nftables and routing rules unchanged, from the install to its first agent's readiness and from the last pod to here".to_owned()))
        });
        Ok(())
    }

    /// Changes the release while two connections never rest, and gives what the kernel counted of them.
    fn rolled(
        &mut self,
        pods: &Pods,
        [udp, tcp]: [u16; 2],
        change: impl FnOnce(&Chart<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Known>> {
        let stream = datagrams(&pods.client, udp, SocketAddr::new(pods.address, 8080))?;
        // Each its own listener.
        let talk = questions(&pods.client, tcp, &pods.server, SocketAddr::new(pods.address, tcp + 3000))?;
        thread::sleep(Duration::from_secs(WINDOW + 1));
        change(&self.chart)?;
        self.chart.roll()?;
        thread::sleep(Duration::from_secs(WINDOW + 1));
        let sent = stream.end()?.len() as u64;
        let asked = talk.end()?.context("the TCP connection broke")?;
        let mut known = Vec::new();
        for connection in kernel::table(&self.node.namespace)? {
            let what = match (connection.proto.as_str(), connection.original.src_port) {
                ("udp", Some(port)) if port == udp => "UDP",
                ("tcp", Some(port)) if port == tcp => "TCP",
                _ => continue,
            };
            let [there, back] = connection.counts.context("conntrack does not count")?;
            let sums = [(there.packets, there.bytes), (back.packets, back.bytes)];
            if what == "UDP" {
                ensure!(
                    sums == [(sent, sent * BYTES), (0, 0)],
                    "{sent} datagrams sent, the kernel says {sums:?}"
                );
            } else {
                ensure!(
                    there.bytes > asked && back.bytes > asked,
                    "{asked} bytes each way, the kernel says {sums:?}"
                );
            }
            known.push(Known { what, port: if what == "UDP" { udp } else { tcp }, sums });
        }
        ensure!(known.len() == 2, "conntrack shows {} of two connections", known.len());
        Ok(known)
    }

    /// The agent has put its word on the object that the upgrade made.
    fn status(&self) -> anyhow::Result<((), String)> {
        let mut accepted = Value::Null;
        until("a condition on the object", || {
            let text = self.node.kubectl(&["get", "flowlogconfigurations", "default", "-o", "json"], None)?;
            let object: Value = serde_json::from_str(&text)?;
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            accepted = all.into_iter().find(|of| of["type"] == "Accepted").unwrap_or_default();
            Ok(!accepted.is_null())
        })?;
        ensure!(accepted["status"] == "True", "{accepted}");
        Ok((
            (),
            "FlowLogConfiguration default: Accepted True, by the account's right to patch its status"
                .to_owned(),
        ))
    }

    /// No more than a file's worth at a time: what is filled and rotated before the shipper has opened it is missed by whoever follows one name.
    fn rotations(&mut self, pods: &Pods) -> anyhow::Result<((), String)> {
        let flowlogs = self.flowlogs.clone();
        let rotated = |number: usize| flowlogs.join(format!("flows.log.{number}")).exists();
        let (mut port, mut is_restarted, mut lag, mut rotations) = (10_000, false, 0, 0);
        while !rotated(ROTATIONS) {
            ensure!(port < 20_000, "no ten rotations after {} connections", port - 10_000);
            let due = lines::size(&self.flowlogs)? + u64::from(BATCH) * 2 * 1300;
            scatter(&pods.client, port..=port + BATCH - 1, pods.address, 8080, false)?;
            until("lines of both ends", || Ok(lines::size(&self.flowlogs)? >= due))?;
            port += BATCH;
            if rotated(rotations + 1) {
                rotations += 1;
                // It has opened the new file before the next one comes.
                until("the shipper has caught up", || {
                    Ok(shipped::stored(self.node, Log::Flows)? >= lines::count(&self.flowlogs)?)
                })?;
            }
            // It may be away while nothing is rotated: a file that comes and goes meanwhile is none of its own.
            let room = 1_000_000_u64.saturating_sub(fs::metadata(self.flowlogs.join("flows.log"))?.len());
            if rotated(ROTATIONS / 2) && !is_restarted && room > 100_000 {
                lag = self.away(pods, port)?;
                port += AWAY;
                is_restarted = true;
            }
        }
        ensure!(is_restarted, "no moment to restart the shipper among them");
        Ok((
            (),
            format!(
                "{} connections, {:.1} MB; while rsyslog was away the agent told a lag of {lag} bytes by its state file, all of them",
                port - 10_000,
                lines::size(&self.flowlogs)? as f64 / 1e6
            ),
        ))
    }

    /// Restarts the shipper; the lines that were written meanwhile are its lag, and are shipped when it is back. Gives their bytes.
    fn away(&mut self, pods: &Pods, port: u16) -> anyhow::Result<u64> {
        let (_, before) = Moment::quiet(self.node, &|| lines::read(&self.flowlogs))?;
        shipped::arrived(self.node, Log::Flows, before.len())?;
        self.stores.stop_shipper()?;
        let shipped = lines::size(&self.flowlogs)?;
        scatter(&pods.client, port..=port + AWAY - 1, pods.address, 8080, false)?;
        let (mut written, mut told) = (0, None);
        let is_equal = until("the agent tells the shipper's lag", || {
            written = lines::size(&self.flowlogs)? - shipped;
            told = number(&self.node.namespace, "flowlogd_shipper_lag_bytes")?;
            Ok(written > u64::from(AWAY) * 2 * 1300 && told == Some(written as f64))
        });
        is_equal.with_context(|| {
            format!("{written} bytes written while rsyslog was away, the agent says {told:?}")
        })?;
        self.stores.ship()?;
        shipped::arrived(self.node, Log::Flows, before.len() + usize::from(AWAY) * 2)?;
        Ok(written)
    }

    fn killed(&self, pods: &Pods) -> anyhow::Result<(Killed, String)> {
        let stream = datagrams(&pods.client, 5021, SocketAddr::new(pods.address, 8080))?;
        thread::sleep(Duration::from_secs(2 * WINDOW));
        let at = now();
        self.chart.kill()?;
        thread::sleep(Duration::from_secs(2 * WINDOW));
        let port = stream.port;
        let sent = stream.end()?;
        let figures = format!("{} datagrams, kubelet had it back and ready", sent.len());
        Ok((Killed { port, sent, at }, figures))
    }

    /// The agent stands still while more tuples are dropped than the kernel's table holds. Gives how many packets it is known to lack.
    fn loss(&self, pods: &Pods) -> anyhow::Result<(u64, String)> {
        let crawler = self.node.inside("shop", "crawler-1")?;
        self.chart.signal(Signal::STOP)?;
        let sent = scatter(&crawler, FLOOD, pods.address, FLOODED, true);
        self.chart.signal(Signal::CONT)?;
        let sent = sent?;
        let ask = |query: &str| number(&self.node.namespace, query);
        until("the alert fires", || {
            Ok(ask(r#"ALERTS{alertname="FlowlogdLosesEvents", alertstate="firing", stage="drops_full"}"#)?
                .is_some())
        })?;
        let lost =
            ask(r#"flowlogd_lost_events_total{stage="drops_full"}"#)?.context("no loss in Prometheus")?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a counter's small value"
        )]
        let lost = lost as u64;
        Ok((
            lost,
            format!(
                "FlowlogdLosesEvents fires for drops_full: {lost} of {sent} dropped packets found no room"
            ),
        ))
    }
}

/// What was sent while the agent was killed.
struct Killed {
    port: u16,
    sent: Vec<f64>,
    at: f64,
}

impl Killed {
    /// Missing is at most what was sent between the last window that was written and the next start.
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
    fn check(&self, lines: &[Value]) -> anyhow::Result<((), String)> {
        let mut figures = String::new();
        for (reporter, direction) in [("src", 0), ("dst", 1)] {
            let mine = || {
                lines.iter().filter(|line| line["source_port"] == self.port && line["reporter"] == reporter)
            };
            let times =
                |name: &'static str| mine().filter_map(move |line| line[name].as_i64()).map(|at| at as f64);
            let written = times("end_time").filter(|end| *end <= self.at).fold(f64::MIN, f64::max);
            let again = times("start_time")
                .filter(|start| *start >= written && *start >= self.at.floor())
                .fold(f64::MAX, f64::min);
            ensure!(written > 0.0 && again < f64::MAX, "{reporter}: no lines before, or none after the kill");
            let (packets, bytes) = lines::sums(lines, self.port, reporter)[direction];
            let sent = self.sent.len() as u64;
            ensure!(
                packets <= sent && bytes == packets * BYTES,
                "{reporter}: {sent} sent, {packets} in lines"
            );
            let lost = sent - packets;
            // Times of lines are whole seconds, cut.
            let between = self.sent.iter().filter(|at| (written..again + 2.0).contains(*at)).count() as u64;
            ensure!(
                lost <= between,
                "{reporter}: {lost} in no line, {between} sent from the last window that was written to the next start"
            );
            if reporter == "src" {
                figures = format!(
                    "{lost} of {sent} datagrams are in no line, of the {between} from the last window written ({:.1} s before the kill) to the next start ({:.1} s after it); none twice",
                    self.at - written,
                    again - self.at
                );
            }
        }
        Ok(((), figures))
    }
}

/// What a line from the shop's client to its server says.
fn pair(server: &str, address: IpAddr) -> Value {
    json!({
        "host": NODE, "source_namespace": "shop", "source_name": "client-1", "source_name_aggr": "client-*", "source_type": "wep",
        "dest_namespace": "shop", "dest_name": server, "dest_name_aggr": "server-*", "dest_type": "wep", "dest_ip": address, "action": "allow",
    })
}

fn told(known: &[Known]) -> String {
    let of = |known: &Known| format!("{} {} and {} packets", known.what, known.sums[0].0, known.sums[1].0);
    known.iter().map(of).collect::<Vec<_>>().join(", ")
}

fn exact(lines: &[Value], known: &[Known]) -> anyhow::Result<((), String)> {
    for Known { what, port, sums } in known {
        for reporter in ["src", "dst"] {
            let [out, back] = lines::sums(lines, *port, reporter);
            let as_kernel = if reporter == "src" { [out, back] } else { [back, out] };
            ensure!(
                as_kernel == *sums,
                "{what} from port {port}: the kernel counted {sums:?}, {reporter} reports {as_kernel:?}"
            );
        }
    }
    let (packets, bytes) = known
        .iter()
        .flat_map(|known| known.sums)
        .fold((0, 0), |(packets, bytes), sum| (packets + sum.0, bytes + sum.1));
    Ok(((), format!("{} connections, {packets} packets, {bytes} bytes, at both ends", known.len())))
}

/// Each was sent, counted by the rule that dropped it, and is in the lines of both ends.
fn dropped(node: &Mininode, lines: &[Value], all: &[(&str, u16, u64)]) -> anyhow::Result<((), String)> {
    let counters = kernel::counters(&node.namespace)?;
    let mut figures = Vec::new();
    for (name, port, sent) in all {
        let counted = counters.get(*name).context("no counter")?.packets;
        for (reporter, direction) in [("src", "out"), ("dst", "in")] {
            let mine: Vec<_> = lines
                .iter()
                .filter(|line| line["dest_port"] == *port && line["reporter"] == reporter)
                .collect();
            let (packets, bytes) = mine.iter().fold((0, 0), |sum, line| lines::add(sum, line, direction));
            let flows: u64 = mine.iter().filter_map(|line| line["num_flows_started"].as_u64()).sum();
            ensure!(
                (counted, packets, bytes, flows) == (*sent, *sent, sent * BYTES, *sent),
                "{name}: {sent} sent, {counted} counted by nftables, {packets} packets and {flows} flows reported by {reporter}"
            );
            // Nothing forbids them to leave their pod: only the end at which they were to arrive tells that they were dropped.
            let is_right = |line: &Value| match reporter {
                "src" => line["action"] == "allow",
                _ => {
                    line["action"] == "deny"
                        // Once more when it is over, without packets.
                        && (line["packets_in"] == 0 || line["drop_reasons"] == json!(["NETFILTER_DROP"]))
                        && line["policy_mismatch"] == (*name == "mismatched")
                }
            };
            if let Some(wrong) = mine.into_iter().find(|line| !is_right(line)) {
                bail!("{name}: {wrong}");
            }
        }
        figures.push(format!("{name} {sent} of {sent}"));
    }
    Ok(((), figures.join(", ")))
}

fn flooded(node: &Mininode, lines: &[Value], lost: u64) -> anyhow::Result<((), String)> {
    let counted = kernel::counters(&node.namespace)?.get("flooded").context("no counter")?.packets;
    // What its own pod's policy denies has no other end.
    let mine = || lines.iter().filter(|line| line["dest_port"] == FLOODED);
    let (told, _) = mine().fold((0, 0), |sum, line| lines::add(sum, line, "out"));
    ensure!(told + lost == counted, "{counted} dropped by nftables, {told} in lines, {lost} counted as lost");
    for line in mine() {
        ensure!(
            line["reporter"] == "src" && line["action"] == "deny" && line["policy_mismatch"] == false,
            "not denied by the crawler's policy: {line}"
        );
    }
    ensure!(
        mine().any(|line| line["lost_events"].as_u64().is_some_and(|told| told >= lost)),
        "no line tells the loss"
    );
    Ok(((), format!("{counted} dropped by nftables, {told} in the lines, {lost} in lost_events")))
}

pub fn ruleset(node: &Mininode) -> anyhow::Result<String> {
    let run = |program: &str, arguments: &[&str]| node.namespace.run(program, arguments, None);
    Ok(run("nft", &["--stateless", "list", "ruleset"])?
        + &run("ip", &["rule"])?
        + &run("ip", &["-6", "rule"])?)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
