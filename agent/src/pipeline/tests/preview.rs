//! What somebody who watches is shown of a flow before its line: what the pipeline knows of it by then.

use std::net::Ipv4Addr;

use super::*;
use crate::aggregate::PendingPolicies;
use crate::cluster::{NetworkSet, Node, Service, ServicePort};
use crate::model::{
    Direction, DnsAnswer, DnsRecord, Hit, PolicyKind, TcpColumns, TrustedServer, VerdictRecord, VerdictSet,
};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34));

fn tuple(dst: IpAddr) -> FiveTuple {
    FiveTuple { proto: Proto::TCP, addresses: Addresses { src: ip(1), src_port: 4000, dst, dst_port: 443 } }
}

fn connection(dst: IpAddr, event: ConnectionEvent, bytes: u64) -> Observation {
    let FiveTuple { proto, addresses } = tuple(dst);
    let each = Counters::new(u64::from(bytes > 0), bytes);
    Observation::Connection(ConnectionRecord {
        event,
        proto,
        original: addresses,
        reply: addresses.reversed(),
        counters: Directional { original: each, reply: each },
        icmp: None,
        tcp_state: None,
        zone: 0,
    })
}

fn process(dst: IpAddr, name: &str) -> Observation {
    Observation::Process(ProcessRecord {
        tuple: tuple(dst),
        side: FlowSide::Src,
        pid: 77,
        name: name.into(),
        args: ["curl", "-s", "x"].map(Into::into).into(),
        pod_uid: None,
        container: None,
    })
}

fn verdict(dst: IpAddr, direction: Direction, action: Action) -> Observation {
    let hit = Hit {
        tier: "default".into(),
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("ns".into()),
        name: "default.p".into(),
        action,
        rule: 0,
    };
    Observation::Verdict(VerdictRecord {
        tuple: tuple(dst),
        direction,
        set: VerdictSet::Enforced,
        hits: Trace([hit].into()),
    })
}

struct Watched {
    pipeline: Pipeline,
    previewer: Previewer,
    snapshot: Snapshot,
    now: i64,
}

impl Watched {
    fn new() -> Self {
        let settings = Settings { process_args_limit: 2, domains_limit: 1, ..settings(Level::None) };
        Self {
            pipeline: Pipeline::new(settings.clone(), Limits::default(), Timestamp(0)),
            previewer: Previewer::new(settings, Vec::new()),
            snapshot: snapshot(),
            now: 0,
        }
    }

    fn see(&mut self, observation: &Observation) -> Option<FlowLog> {
        self.now += 1_000_000_000;
        let at = Timestamp(self.now);
        self.pipeline.step(Input::Observation(observation), at, &self.snapshot);
        let known = self.pipeline.known(observation);
        self.previewer.preview(observation, at, &known, &self.snapshot).map(|(_, log)| log)
    }
}

#[test]
fn a_start_has_its_policies_and_domains_and_an_end_its_process_too() {
    let mut watched = Watched::new();
    watched.see(&Observation::Dns(DnsRecord {
        client: ip(1),
        client_port: None,
        server: ip(9),
        question: "a.example".into(),
        qtype: None,
        qclass: None,
        rcode: "NoError".into(),
        latency_us: 1,
        answers: vec![DnsAnswer {
            name: "a.example".into(),
            kind: "A".into(),
            data: SERVER.to_string().into(),
            ttl_s: 600,
        }],
    }));
    watched.see(&verdict(SERVER, Direction::Egress, Action::Allow));
    let start = watched.see(&connection(SERVER, ConnectionEvent::New, 0)).unwrap();
    assert_eq!(start.dest_domains, ["a.example".into()]);
    assert_eq!(start.policies.unwrap().enforced.0.len(), 1);
    assert_eq!((start.policy_mismatch, start.process.name), (Some(false), None));
    assert!(watched.see(&process(SERVER, "curl")).is_none());
    let end = watched.see(&connection(SERVER, ConnectionEvent::End { confirmed: true }, 100)).unwrap();
    assert_eq!(end.process.name.as_deref(), Some("curl"));
    assert_eq!((end.process.id.as_deref(), end.process.num_args), (Some("77"), 3));
    assert_eq!(end.process.args.len(), 2, "no more than the configuration says");
    assert_eq!(end.dest_domains.len(), 1);

    // Watching changed no line.
    let line = |watch: bool| {
        let mut watched = Watched::new();
        for observation in [
            connection(SERVER, ConnectionEvent::New, 0),
            process(SERVER, "curl"),
            connection(SERVER, ConnectionEvent::End { confirmed: true }, 100),
        ] {
            if watch {
                watched.see(&observation);
            } else {
                watched.now += 1_000_000_000;
                watched.pipeline.step(
                    Input::Observation(&observation),
                    Timestamp(watched.now),
                    &watched.snapshot,
                );
            }
        }
        let flushed = watched.pipeline.step(Input::Flush, Timestamp(9_000_000_000), &watched.snapshot);
        format!("{:?}", flushed.unwrap().records)
    };
    assert_eq!(line(true), line(false));
}

#[test]
fn a_drop_is_shown_by_the_end_whose_policies_deny_it() {
    for (denies, reporter) in [(Direction::Egress, Reporter::Src), (Direction::Ingress, Reporter::Dst)] {
        let mut watched = Watched::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let action = if direction == denies { Action::Deny } else { Action::Allow };
            watched.see(&verdict(ip(2), direction, action));
        }
        let drop = Observation::Drop(DropRecord {
            tuple: tuple(ip(2)),
            original: None,
            icmp: None,
            packets: 1,
            bytes: 60,
            reason: "NETFILTER_DROP".into(),
        });
        let log = watched.see(&drop).unwrap();
        assert_eq!((log.action, log.reporter), (Action::Deny, reporter));
        assert_eq!(log.policy_mismatch, Some(false));
        assert!(log.policies.unwrap().enforced.has_deny());
    }
    // A connection whose packets are dropped is told by its drops alone, also where it is over.
    let mut watched = Watched::new();
    watched.see(&connection(ip(2), ConnectionEvent::New, 0)).unwrap();
    let Observation::Connection(mut ended) = connection(ip(2), ConnectionEvent::End { confirmed: true }, 60)
    else {
        unreachable!()
    };
    ended.counters.reply = Counters::default();
    let drop = |packets| {
        Observation::Drop(DropRecord {
            tuple: tuple(ip(2)),
            original: None,
            icmp: None,
            packets,
            bytes: 60 * packets,
            reason: "NETFILTER_DROP".into(),
        })
    };
    assert_eq!(watched.see(&drop(1)).unwrap().action, Action::Deny);
    assert!(watched.see(&Observation::Connection(ended)).is_none(), "as its lines: none of them allows it");
    // Nobody denies it: what came furthest tells, and that it contradicts the policies.
    let mut watched = Watched::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        watched.see(&verdict(ip(2), direction, Action::Allow));
    }
    let drop = Observation::Drop(DropRecord {
        tuple: tuple(ip(2)),
        original: None,
        icmp: None,
        packets: 1,
        bytes: 60,
        reason: "NETFILTER_DROP".into(),
    });
    let log = watched.see(&drop).unwrap();
    assert_eq!((log.reporter, log.policy_mismatch), (Reporter::Dst, Some(true)));
}

/// 1 and 2 are pods of this node, 3 one of another's, 4 nobody's, 5 the node itself, with pods on its host network, 6 is
/// in a network set; 7 is a service.
fn world() -> Snapshot {
    let mut cluster = Cluster::new("n1".into());
    let mut apply = |object| cluster.apply(object, Timestamp::MIN);
    for (name, node, last) in [("pod-1", "n1", 1), ("pod-2", "n1", 2), ("pod-3", "n2", 3)] {
        apply(pod(name, node, last));
    }
    apply(Object::Node(Node { name: "n1".into(), labels: Labels::default(), addresses: vec![ip(5)] }));
    for name in ["proxy", "exporter"] {
        apply(Object::Pod(Pod {
            namespace: "system".into(),
            name: name.into(),
            uid: Some(name.into()),
            node: Some("n1".into()),
            host_network: true,
            labels: Labels::new([("app".into(), name.into())]),
            ..Pod::default()
        }));
    }
    apply(Object::NetworkSet(NetworkSet {
        namespace: None,
        name: "partners".into(),
        labels: Labels::default(),
        nets: vec!["10.0.0.6/32".parse().unwrap()],
    }));
    apply(Object::Service(Service {
        namespace: "ns".into(),
        name: "web".into(),
        ips: vec![ip(7)],
        ports: vec![ServicePort { name: Some("web".into()), proto: Proto::TCP, port: 443, node_port: None }],
    }));
    Snapshot::new(&cluster)
}

/// What is told of a flow beside itself.
#[derive(Clone, Debug)]
enum Told {
    Process { source: bool, translated: bool, pod: usize },
    Verdict { egress: bool, pending: bool, denies: bool },
    Lookup { name: u8 },
}

fn told(enforced: bool) -> impl Strategy<Value = Vec<Told>> {
    let process = (any::<bool>(), any::<bool>(), 0..4usize)
        .prop_map(|(source, translated, pod)| Told::Process { source, translated, pod });
    let verdict = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(egress, pending, denies)| {
        Told::Verdict { egress, pending: pending || !enforced, denies }
    });
    let lookup = (0..4u8).prop_map(|name| Told::Lookup { name });
    prop::collection::vec(prop_oneof![3 => process, 2 => verdict, 1 => lookup], 0..6)
}

/// One flow, from its beginning to what is previewed.
#[derive(Clone, Debug)]
struct Story {
    ends: (u8, u8),
    proto: Proto,
    to_service: bool,
    snat: bool,
    counters: [u8; 4],
    before: Vec<Told>,
    event: PreviewEvent,
    /// Between the beginning of a connection and its end.
    between: Vec<Told>,
    settings: Settings,
}

fn story() -> impl Strategy<Value = Story> {
    let proto = prop_oneof![3 => Just(Proto::TCP), 1 => Just(Proto::UDP), 1 => Just(Proto::ICMP)];
    let event = prop_oneof![Just(PreviewEvent::Start), Just(PreviewEvent::End), Just(PreviewEvent::Drop)];
    let pending = prop_oneof![
        Just(PendingPolicies::Continuous),
        Just(PendingPolicies::OnNewConnection),
        Just(PendingPolicies::None)
    ];
    let settings =
        (any::<[bool; 3]>(), pending, 0..3usize).prop_map(|(switches, pending_policies, limit)| {
            let mut settings = Settings {
                host_endpoints: switches[0],
                include_policies: switches[1],
                network_sets: switches[2],
                pending_policies,
                domains_limit: limit,
                process_args_limit: limit,
                ..settings(Level::None)
            };
            settings.dns.trusted_servers = [TrustedServer::Address(ip(3))].into();
            settings
        });
    let flow = ((1..7u8, 1..7u8), proto, any::<bool>(), any::<bool>(), any::<[u8; 4]>());
    (flow, told(true), event, told(false), settings).prop_map(
        |((ends, proto, to_service, snat, counters), before, event, between, settings)| Story {
            ends,
            proto,
            to_service,
            snat,
            counters,
            before,
            event,
            between,
            settings,
        },
    )
}

impl Story {
    /// After DNAT, and before it.
    fn tuples(&self) -> [FiveTuple; 2] {
        let (src, dst) = self.ends;
        let mut addresses = addresses(src, dst, 4000, self.proto);
        let reported = FiveTuple { proto: self.proto, addresses };
        if self.to_service {
            addresses.dst = ip(7);
            addresses.dst_port = if self.proto.has_ports() { 443 } else { 0 };
        }
        [reported, FiveTuple { proto: self.proto, addresses }]
    }

    fn connection(&self, event: ConnectionEvent) -> Observation {
        let [reported, original] = self.tuples().map(|tuple| tuple.addresses);
        let mut reply = reported.reversed();
        if self.snat && self.proto.has_ports() {
            (reply.dst, reply.dst_port) = (ip(8), 34_567);
        }
        let [a, b, c, d] = self.counters.map(u64::from);
        Observation::Connection(ConnectionRecord {
            event,
            proto: self.proto,
            original,
            reply,
            icmp: self.proto.is_icmp().then_some(Icmp { kind: 8, code: 0, id: 1 }),
            zone: 0,
            counters: Directional { original: Counters::new(a, b), reply: Counters::new(c, d) },
            tcp_state: None,
        })
    }

    fn told(&self, told: &Told) -> Observation {
        let [reported, original] = self.tuples();
        match *told {
            Told::Process { source, translated, pod } => Observation::Process(ProcessRecord {
                tuple: if translated { reported } else { original },
                side: if source { FlowSide::Src } else { FlowSide::Dst },
                pid: 70 + pod as u32,
                name: format!("process-{pod}").into(),
                args: ["z", "a", "z", "b"].map(Into::into).into(),
                pod_uid: ["proxy", "exporter", "unknown"].get(pod).map(|uid| (*uid).into()),
                container: None,
            }),
            Told::Verdict { egress, pending, denies } => {
                let direction = if egress { Direction::Egress } else { Direction::Ingress };
                let action = if denies { Action::Deny } else { Action::Allow };
                let Observation::Verdict(told) = verdict(ip(4), direction, action) else { unreachable!() };
                let set = if pending { VerdictSet::Pending } else { VerdictSet::Enforced };
                Observation::Verdict(VerdictRecord { tuple: reported, set, ..told })
            }
            Told::Lookup { name } => {
                Observation::Dns(domains::lookup(self.ends.0, self.ends.1.min(4), name, 200))
            }
        }
    }

    /// The last one is previewed.
    fn observations(&self) -> Vec<Observation> {
        let before = self.before.iter().map(|told| self.told(told));
        let between = self.between.iter().map(|told| self.told(told));
        let begins = self.connection(ConnectionEvent::New);
        match self.event {
            PreviewEvent::Start => before.chain([begins]).collect(),
            PreviewEvent::End => {
                let ends = self.connection(ConnectionEvent::End { confirmed: true });
                before.chain([begins]).chain(between).chain([ends]).collect()
            }
            PreviewEvent::Drop => {
                let [tuple, original] = self.tuples();
                let drop = Observation::Drop(DropRecord {
                    tuple,
                    original: self.to_service.then_some(original.addresses),
                    icmp: self.proto.is_icmp().then_some(Icmp { kind: 8, code: 0, id: 1 }),
                    packets: self.counters[0].into(),
                    bytes: self.counters[1].into(),
                    reason: "NETFILTER_DROP".into(),
                });
                before.chain([drop]).collect()
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Where nothing more is told until the flush, the preview is the line: every column but TCP statistics, and but for
    /// the start of a flow, which its own preview has told.
    #[test]
    fn a_preview_is_the_line_that_the_flow_gets(story in story()) {
        let mut watched = Watched {
            pipeline: Pipeline::new(story.settings.clone(), Limits::default(), Timestamp(0)),
            previewer: Previewer::new(story.settings.clone(), Vec::new()),
            snapshot: world(),
            now: 0,
        };
        let mut preview = None;
        for observation in story.observations() {
            preview = watched.see(&observation);
        }
        let flushed = watched.pipeline.step(Input::Flush, Timestamp(watched.now + 1), &watched.snapshot);
        let records = flushed.unwrap().records;
        let Some(mut preview) = preview else {
            prop_assert!(records.is_empty(), "{records:?}");
            return Ok(());
        };
        let of_preview =
            |log: &&FlowLog| (log.reporter, log.action) == (preview.reporter, preview.action);
        let mut line = records.iter().find(of_preview).unwrap().clone();
        line.tcp = TcpColumns::default();
        if story.event == PreviewEvent::End {
            prop_assert_eq!((line.num_flows_started, preview.num_flows_started), (1, 0));
            preview.num_flows_started = 1;
        }
        prop_assert_eq!(format!("{preview:?}"), format!("{line:?}"));
    }
}

#[test]
fn the_nodes_own_end_has_the_name_of_the_pod_whose_process_is_there() {
    for (host_endpoints, end) in [(true, Some("proxy")), (false, None)] {
        let settings = Settings { host_endpoints, ..settings(Level::None) };
        let mut watched = Watched {
            pipeline: Pipeline::new(settings.clone(), Limits::default(), Timestamp(0)),
            previewer: Previewer::new(settings, Vec::new()),
            snapshot: world(),
            now: 0,
        };
        let mut own = tuple(SERVER);
        own.addresses.src = ip(5);
        let connection = |event| match connection(SERVER, event, 60) {
            Observation::Connection(mut record) => {
                (record.original, record.reply) = (own.addresses, own.addresses.reversed());
                Observation::Connection(record)
            }
            other => other,
        };
        let start = watched.see(&connection(ConnectionEvent::New));
        let start = start.map(|log| log.source.name_aggr.to_string());
        assert_eq!(start.as_deref(), host_endpoints.then_some("n1"), "no process has been told");
        let Observation::Process(told) = process(SERVER, "proxy") else { unreachable!() };
        let pod_uid = Some("proxy".into());
        watched.see(&Observation::Process(ProcessRecord { tuple: own, pod_uid, ..told }));
        let told = watched.see(&connection(ConnectionEvent::End { confirmed: true })).map(|log| log.source);
        assert_eq!(told.as_ref().and_then(|end| end.name.as_deref()), end);
        let Some(told) = told else { continue };
        assert_eq!((told.kind, told.namespace.as_deref()), (EndpointKind::Hep, Some("system")));
        assert_eq!(told.labels.unwrap().get("app").map(|value| &**value), Some("proxy"));
    }
}
