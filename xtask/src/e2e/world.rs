//! What lies beyond the pods: a host outside of the cluster with a DNS server, and a Service.
//!
//! In: the node. Out: a namespace that is linked to it, in which dnsmasq answers; questions to it; a Service whose address the node translates, as
//! kube-proxy, which is not there, would. Not here: who uses them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Context as _, ensure};

use super::mininode::{Mininode, until};
use super::stores::number;
use crate::netns::{Namespace, Process};
use crate::packages;

/// Of documentation's networks: names as `pub`.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
/// Nobody; what goes there for DNS is dropped by the node's rules.
pub const OTHER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 53));
pub const DOMAIN: &str = "api.example.org";
pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 80));

pub struct World {
    // In the order in which they end.
    dnsmasq: Process,
    _namespace: Namespace,
}

impl World {
    pub fn start(node: &Mininode) -> anyhow::Result<Self> {
        let namespace = Namespace::new("the world")?;
        node.namespace.link("world0", &namespace, "eth0")?;
        node.namespace.ip("addr add 203.0.113.1/24 dev world0\nlink set world0 up\n")?;
        namespace.ip(
            "link set lo up\naddr add 203.0.113.2/24 dev eth0\nlink set eth0 up\nroute add default via 203.0.113.1\n",
        )?;
        let out = File::create(node.at("dnsmasq.log"))?;
        let program = packages::find("dnsmasq").context("dnsmasq is gone")?;
        let domain = format!("--host-record={DOMAIN},{HOST}");
        let arguments = [
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--listen-address=203.0.113.2",
            "--local-ttl=300",
            &domain,
        ];
        let dnsmasq =
            namespace.start(program.as_os_str(), &arguments.map(AsRef::as_ref), out.try_clone()?, out)?;
        let world = Self { dnsmasq, _namespace: namespace };
        until("dnsmasq answers", || {
            ensure!(world.dnsmasq.is_running(), "dnsmasq has ended");
            Ok(ask(&node.namespace, 0).is_ok())
        })?;
        Ok(world)
    }
}

/// Asks the world's server for the domain's address.
pub fn ask(from: &Namespace, port: u16) -> anyhow::Result<()> {
    // One question, recursion desired; type A, class IN.
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in DOMAIN.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", port)))??;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    socket.send_to(&question, (HOST, 53))?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer)?;
    let answer = answer.get(..length).unwrap_or_default();
    ensure!(answer.ends_with(&[203, 0, 113, 2]), "not the answer: {answer:?}");
    Ok(())
}

/// A Service without a selector, its endpoint, and the translation of its address. The agent knows it at the end.
pub fn serve(node: &Mininode, endpoint: IpAddr) -> anyhow::Result<()> {
    let objects = || {
        number(&node.namespace, r#"sum(flowlogd_cluster_objects{kind=~"(?i)services?|endpoints?"})"#)
            .map(Option::unwrap_or_default)
    };
    let before = objects()?;
    node.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{clusterIP: {SERVICE}, ports: [{{name: talk, port: 80, targetPort: 8080, protocol: UDP}}]}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: web, namespace: shop}}\nsubsets: [{{addresses: [{{ip: {endpoint}}}], ports: [{{name: talk, port: 8080, protocol: UDP}}]}}]\n"
    ))?;
    let rules = format!(
        "table ip e2e-service {{\n  chain prerouting {{\n    type nat hook prerouting priority -100\n    ip daddr {SERVICE} udp dport 80 dnat to {endpoint}:8080\n  }}\n}}\n"
    );
    node.namespace.run("nft", &["-f", "-"], Some(&rules))?;
    until("the agent knows the Service", || Ok(objects()? >= before + 2.0))
}
