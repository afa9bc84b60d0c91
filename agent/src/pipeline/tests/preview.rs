//! What somebody who watches is shown of a flow before its line: what the pipeline knows of it by then.

use std::net::Ipv4Addr;

use super::*;
use crate::model::{Direction, DnsAnswer, DnsRecord, Hit, PolicyKind, VerdictRecord, VerdictSet};

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
