//! Any record: what the properties of the line run on. Hostile text included; only what the model's types allow.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::model::{
    Action, Counters, EndpointKind, FlowEnd, FlowLog, Hit, Labels, Policies, PolicyKind, ProcessColumns,
    Proto, Reporter, ServiceName, TcpColumns, Timestamp, Trace,
};

use super::{LineFormat, NameStyle, Window};

/// Any text, with a liking for what JSON escapes.
pub fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9.-]{0,12}",
        "[\\x00-\\x1f\"\\\\/|=\\x7f\u{2028}]{0,6}",
        Just(String::from("projectcalico.org/x")),
    ]
    .prop_map(Arc::from)
}

pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical()),
        // Long runs of zeros, where the short form has its rules.
        any::<(u16, u16)>().prop_map(|(a, b)| IpAddr::from([a, 0, 0, b, 0, 0, 0, 1])),
    ]
}

pub fn hit() -> impl Strategy<Value = Hit> {
    (text(), 0..PolicyKind::ALL.len(), option::of(text()), text(), 0..3usize, -2..i32::MAX).prop_map(
        |(tier, kind, namespace, name, action, rule)| Hit {
            tier,
            kind: PolicyKind::ALL[kind],
            namespace,
            name,
            action: [Action::Allow, Action::Deny, Action::Pass][action],
            rule,
        },
    )
}

pub fn trace() -> impl Strategy<Value = Trace> {
    vec(hit(), 0..4).prop_map(|hits| Trace(hits.into()))
}

fn end() -> impl Strategy<Value = FlowEnd> {
    (
        0..4usize,
        option::of(text()),
        option::of(text()),
        text(),
        option::of(address()),
        option::of(any::<u16>()),
        option::of(vec((text(), text()), 0..60).prop_map(Labels::new)),
        vec(address(), 0..4),
    )
        .prop_map(|(kind, namespace, name, name_aggr, ip, port, labels, ips)| FlowEnd {
            kind: [EndpointKind::Wep, EndpointKind::Hep, EndpointKind::Ns, EndpointKind::Net][kind],
            namespace,
            name,
            name_aggr,
            ip,
            port,
            labels,
            ips,
        })
}

fn counters() -> impl Strategy<Value = Counters> {
    any::<(u64, u64)>().prop_map(|(packets, bytes)| Counters { packets, bytes })
}

fn tcp() -> impl Strategy<Value = TcpColumns> {
    any::<[u64; 11]>().prop_map(|n| TcpColumns {
        mean_send_congestion_window: n[0],
        min_send_congestion_window: n[1],
        mean_smooth_rtt: n[2],
        max_smooth_rtt: n[3],
        mean_min_rtt: n[4],
        max_min_rtt: n[5],
        mean_mss: n[6],
        min_mss: n[7],
        total_retransmissions: n[8],
        lost_packets: n[9],
        unrecovered_to: n[10],
    })
}

fn process() -> impl Strategy<Value = ProcessColumns> {
    (option::of(text()), option::of(text()), vec(text(), 0..3), any::<[u64; 3]>()).prop_map(
        |(name, id, args, n)| ProcessColumns {
            name,
            num_names: n[0],
            id,
            num_ids: n[1],
            args,
            num_args: n[2],
        },
    )
}

pub fn flow_log() -> impl Strategy<Value = FlowLog> {
    let service = (text(), text(), text(), any::<u16>()).prop_map(|(namespace, name, port_name, port)| {
        Arc::new(ServiceName { namespace, name, port_name, port })
    });
    let policies = (trace(), option::of(trace()), trace()).prop_map(|(enforced, pending, all)| Policies {
        enforced,
        pending,
        all,
    });
    let who = (end(), end(), vec(any::<u16>(), 0..4), option::of(service), any::<bool>(), vec(text(), 0..3));
    let what = (any::<u8>(), any::<bool>(), any::<bool>(), option::of(policies), counters(), counters());
    let rest = (any::<[u64; 3]>(), process(), tcp(), vec(text(), 0..3), option::of(any::<bool>()));
    (who, what, rest).prop_map(|(who, what, rest)| {
        let (source, dest, nat_outgoing_ports, service, hide_service_port_name, dest_domains) = who;
        let (proto, denied, at_dest, policies, incoming, outgoing) = what;
        let (num, process, tcp, drop_reasons, policy_mismatch) = rest;
        FlowLog {
            source,
            dest,
            nat_outgoing_ports,
            service,
            hide_service_port_name,
            dest_domains,
            proto: Proto(proto),
            action: if denied { Action::Deny } else { Action::Allow },
            reporter: if at_dest { Reporter::Dst } else { Reporter::Src },
            policies,
            incoming,
            outgoing,
            num_flows: num[0],
            num_flows_started: num[1],
            num_flows_completed: num[2],
            process,
            tcp,
            drop_reasons,
            policy_mismatch,
        }
    })
}

pub fn window() -> impl Strategy<Value = Window> {
    any::<(i64, i64, u64)>().prop_map(|(start, end, lost_events)| Window {
        start: Timestamp(start),
        end: Timestamp(end),
        lost_events,
    })
}

pub fn format() -> impl Strategy<Value = LineFormat> {
    (any::<bool>(), any::<bool>(), text(), option::of(text())).prop_map(|(extended, kind, host, cluster)| {
        LineFormat {
            extended,
            name_style: if kind { NameStyle::Kind } else { NameStyle::Dotted },
            host,
            cluster,
        }
    })
}
