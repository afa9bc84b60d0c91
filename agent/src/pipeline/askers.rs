//! Who asks DNS servers from the node's own addresses: what is learnt of it on the way of processes and connections.
//!
//! In: processes and connections with port 53 at their other end. Out: the pod on the host network behind a lookup.
//! Always: only ends of the node itself are kept, and only where it has pods on its host network that lines name, with the
//! DNS log or without: elsewhere it costs the look at a port. Not here: the table (`flow/askers.rs`), the DNS log (`dns_log.rs`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::flow::DNS_PORT;
use crate::model::{Addresses, ConnectionRecord, DnsRecord, FlowSide, ProcessRecord};
use crate::snapshot::Snapshot;

use super::Pipeline;

impl Pipeline {
    pub(super) fn observe_process(&mut self, record: &ProcessRecord, snapshot: &Snapshot) {
        let Addresses { src, src_port, dst, dst_port } = record.tuple.addresses;
        // Of the original tuple, or of the reply's.
        let asks = match (src_port, dst_port) {
            (_, DNS_PORT) => Some((src, src_port)),
            (DNS_PORT, _) => Some((dst, dst_port)),
            _ => None,
        };
        if let Some((ip, port)) = asks.filter(|_| record.side == FlowSide::Src)
            && self.is_own(ip, &snapshot.cluster)
        {
            self.joins.askers.learn(record.tuple.proto, ip, port, record.pod_uid.as_ref());
        }
        self.joins.observe_process(record);
    }

    pub(super) fn observe_translation(&mut self, record: &ConnectionRecord, snapshot: &Snapshot) {
        let ConnectionRecord { original, reply, .. } = record;
        if original.dst_port != DNS_PORT {
            return;
        }
        let (own, seen) = ((original.src, original.src_port), (reply.dst, reply.dst_port));
        if self.is_own(own.0, &snapshot.cluster) {
            self.joins.askers.learn_translation(record.proto, own, seen);
        }
    }

    /// An end there may be that of a pod on the node's host network.
    fn is_own(&self, ip: IpAddr, cluster: &Cluster) -> bool {
        self.window.settings().host_endpoints
            && cluster.has_host_pods()
            && cluster.endpoint_at(ip, self.at, true).is_some_and(|end| end.is_bare_node)
    }

    /// The uid of the pod on the node's host network that looked this up, where its process has been told.
    pub fn asker(&self, record: &DnsRecord) -> Option<&Arc<str>> {
        let (proto, port) = record.client_port?;
        self.joins.askers.pod(proto, record.client, port)
    }
}
