//! Which rules the traffic used: packets, bytes and connections by rule and direction, and what each policy selects.
//!
//! In: the records of a window, also those that are not written (`flowLogsFileEnabledForAllowed`, `...ForDenied`,
//! filters), as long as records have traces (`flowLogsFileIncludePolicies`); the evaluator. Out: totals since the start.
//! Always: no more than [`MOST_RULES`] rules are told apart, the rest is counted as one; a connection is counted once per
//! rule of its enforced trace, in the window in which it started. Names of metrics are `telemetry`'s.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::aggregate::Decided;
use crate::model::{Counters, Direction, Hit, PolicyKind, Reporter};

/// Distinct rules, actions and directions.
const MOST_RULES: usize = 2000;

/// A rule that decided, and of which direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UsedRule {
    pub hit: Hit,
    pub direction: Direction,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleUse {
    /// Toward the endpoint that is judged, and from it.
    pub inbound: Counters,
    pub outbound: Counters,
    pub connections: u64,
}

/// How many endpoints of this node a policy selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedBy {
    pub tier: Arc<str>,
    pub kind: PolicyKind,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub endpoints: u64,
}

#[derive(Clone, Debug, Default)]
pub struct PolicyUse {
    rules: HashMap<UsedRule, RuleUse, RandomState>,
    /// Of the rules that had no place.
    other: RuleUse,
    pub selected: Vec<SelectedBy>,
}

impl PolicyUse {
    pub fn count(&mut self, decided: &Decided<'_>) {
        let direction = match decided.reporter {
            Reporter::Src => Direction::Egress,
            Reporter::Dst => Direction::Ingress,
        };
        for hit in decided.enforced.0.iter() {
            let rule = UsedRule { hit: hit.clone(), direction };
            let is_full = self.rules.len() >= MOST_RULES && !self.rules.contains_key(&rule);
            let used = if is_full { &mut self.other } else { self.rules.entry(rule).or_default() };
            used.inbound += decided.incoming;
            used.outbound += decided.outgoing;
            used.connections = used.connections.saturating_add(decided.started);
        }
    }

    pub fn rules(&self) -> impl Iterator<Item = (&UsedRule, &RuleUse)> {
        self.rules.iter()
    }

    /// Of the rules beyond those that are told apart.
    pub fn other(&self) -> &RuleUse {
        &self.other
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::aggregate::{Contribution, Report, Settings, Window};
    use crate::model::{
        Action, Addresses, Endpoint, EndpointKind, Evaluation, Labels, Proto, Timestamp, Trace,
    };

    fn trace(rule: i32) -> Trace {
        let hit = Hit {
            tier: "default".into(),
            kind: PolicyKind::KubernetesNetworkPolicy,
            namespace: Some("shop".into()),
            name: "web".into(),
            action: Action::Allow,
            rule,
        };
        Trace([hit].into())
    }

    fn traffic(n: u64) -> [Counters; 2] {
        [Counters::new(2 * n, 120 * n), Counters::new(n, 60 * n)]
    }

    fn count(used: &mut PolicyUse, rule: i32) {
        let ([incoming, outgoing], reporter) = (traffic(1), Reporter::Dst);
        used.count(&Decided { reporter, enforced: &trace(rule), incoming, outgoing, started: 1 });
    }

    #[test]
    fn what_is_not_written_is_counted_too() {
        let end = Arc::new(Endpoint {
            kind: EndpointKind::Wep,
            namespace: None,
            name: "web-1".into(),
            name_aggr: "web-*".into(),
            labels: Labels::default(),
            node: None,
            uid: None,
            created: None,
            is_bare_node: false,
            policed: Default::default(),
        });
        let settings = Settings { enabled_for_allowed: false, ..Settings::default() };
        let mut window = Window::new(settings, Timestamp(0), 10);
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let evaluation = Evaluation::of_hits(&trace(3));
        let record = window.attach(&Report {
            reporter: Reporter::Dst,
            action: Action::Allow,
            proto: Proto::TCP,
            addresses: Addresses { src: ip(1), dst: ip(2), src_port: 40_000, dst_port: 80 },
            source: &end,
            dest: &end,
            service: None,
            evaluation: Some(&evaluation),
        });
        let [incoming, outgoing] = traffic(1);
        let flow = Contribution { incoming, outgoing, seen: true, started: true, ..Contribution::default() };
        window.fold(record, &flow);
        let mut used = PolicyUse::default();
        let (logs, _) = window.flush(Timestamp(1), 0, |decided| used.count(&decided));
        assert!(logs.records.is_empty());
        let all: Vec<_> = used.rules().map(|(rule, used)| (rule.hit.rule, rule.direction, *used)).collect();
        let [inbound, outbound] = traffic(1);
        assert_eq!(all, [(3, Direction::Ingress, RuleUse { inbound, outbound, connections: 1 })]);
    }

    #[test]
    fn rules_are_bounded_and_no_count_is_lost() {
        let mut used = PolicyUse::default();
        for rule in 0..3000 {
            count(&mut used, rule);
            count(&mut used, 0);
        }
        assert_eq!(used.rules().count(), MOST_RULES);
        assert_eq!(used.other().connections, 1000);
        let all: u64 = used.rules().map(|(_, rule)| rule.connections).sum();
        assert_eq!(all, 5000);
        let first = used.rules().find(|(rule, _)| rule.hit.rule == 0).map(|(_, used)| *used);
        assert_eq!(first.map(|used| [used.inbound, used.outbound]), Some(traffic(3001)));
    }
}
