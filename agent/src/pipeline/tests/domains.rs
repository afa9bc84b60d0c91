//! DNS and the lines: what is learnt fills `dest_domains` and changes nothing else; no lookup is lost in the DNS log.

use super::*;
use crate::model::{DnsAnswer, DnsRecord};

/// Answered with an address (the fifth says that there is none), in part through another name.
pub(super) fn lookup(client: u8, answer: u8, name: u8, ttl_s: u8) -> DnsRecord {
    let question: Arc<str> = format!("n{name}.example").into();
    let edge: Arc<str> = "edge.example".into();
    let through = name % 2 == 1;
    let mut answers = Vec::new();
    if through {
        answers.push(DnsAnswer {
            name: question.clone(),
            kind: "CNAME".into(),
            data: edge.clone(),
            ttl_s: ttl_s.into(),
        });
    }
    if answer < 5 {
        let owner = if through { edge } else { question.clone() };
        answers.push(DnsAnswer {
            name: owner,
            kind: "A".into(),
            data: ip(answer).to_string().into(),
            ttl_s: ttl_s.into(),
        });
    }
    DnsRecord {
        client: ip(client),
        client_port: None,
        server: ip(3),
        question,
        qtype: Some("A".into()),
        qclass: None,
        rcode: if answer < 5 { "NoError" } else { "NXDomain" }.into(),
        latency_us: u64::from(ttl_s),
        answers,
    }
}

proptest! {
    /// Whatever was looked up, the lines are those without it, but for `dest_domains`.
    #[test]
    fn domains_change_no_other_field(events in events(), flush_every in 1..40usize) {
        let trusting = |level| {
            let mut settings = settings(level);
            settings.dns.trusted_servers = [crate::model::TrustedServer::Address(ip(3))].into();
            settings
        };
        for level in LEVELS {
            let windows = |with: bool| -> Vec<FlowLogs> {
                let snapshot = snapshot();
                let mut pipeline = Pipeline::new(trusting(level), Limits::default(), Timestamp(0));
                let mut closed = Vec::new();
                for (n, window) in events.chunks(flush_every).enumerate() {
                    let at = Timestamp(n as i64 * 1_000_000_000);
                    for event in window.iter().filter(|event| with || !matches!(event, Event::Dns { .. })) {
                        pipeline.step(Input::Observation(&observation(event)), at, &snapshot);
                    }
                    closed.extend(pipeline.step(Input::Flush, at, &snapshot));
                }
                assert_eq!(pipeline.stats().dns_untrusted, 0);
                closed
            };
            let (mut told, plain) = (windows(true), windows(false));
            for log in told.iter_mut().flat_map(|window| &mut window.records) {
                let may_have = log.reporter == Reporter::Src && log.dest.kind == crate::model::EndpointKind::Net;
                prop_assert!(log.dest_domains.is_empty() || may_have);
                log.dest_domains = Default::default();
            }
            prop_assert_eq!(format!("{told:?}"), format!("{plain:?}"));
        }
    }

    /// A lookup is in one record, or counted: as not logged, or as not of this node; also with the smallest limit.
    #[test]
    fn lookups_are_conserved(
        lookups in prop::collection::vec((1..5u8, 1..6u8, 0..4u8, any::<u8>()), 0..60),
        flush_every in 1..20usize,
        limit in 0..3usize,
        by_pod: bool,
    ) {
        let settings = DnsLogSettings {
            by_pod,
            include_labels: true,
            limit,
            latency: true,
            host_endpoints: false,
            private_extended: false,
        };
        let snapshot = snapshot();
        let mut window = DnsWindow::new(settings, Timestamp(0));
        let (mut logged, mut unlogged) = (0, 0);
        let mut close = |window: &mut DnsWindow| {
            let logs = window.flush(Timestamp(1));
            assert!(limit == 0 || logs.records.len() <= limit);
            logged += logs.records.iter().map(|log| log.count).sum::<u64>();
            unlogged += logs.unlogged;
        };
        for (n, (client, answer, name, ttl_s)) in lookups.iter().enumerate() {
            window.observe(&lookup(*client, *answer, *name, *ttl_s), Timestamp(0), &snapshot.cluster, None);
            if n % flush_every == 0 {
                close(&mut window);
            }
        }
        close(&mut window);
        let own = lookups.iter().filter(|(client, ..)| *client < 3).count() as u64;
        prop_assert_eq!((logged + unlogged, window.not_local), (own, lookups.len() as u64 - own));
    }
}
