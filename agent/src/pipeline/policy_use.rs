//! Which rules the traffic used: packets, bytes and connections by rule and direction, and what each policy selects.
//!
//! In: the records of a window, before a filter leaves one out, but without the action that is not written and with the
//! policies that are (`flowLogsFileEnabledForAllowed`, `...ForDenied`, `...IncludePolicies`); the evaluator. Out: totals since the start. Always: no
//! more than [`MOST_RULES`] rules are told apart, the rest is counted as one; a connection is counted once per rule
//! of its enforced trace, in the window in which it started. Names of metrics are `telemetry`'s.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::model::{Counters, Direction, FlowLog, Hit, PolicyKind, Reporter};

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
    pub fn count(&mut self, log: &FlowLog) {
        let Some(policies) = &log.policies else { return };
        let direction = match log.reporter {
            Reporter::Src => Direction::Egress,
            Reporter::Dst => Direction::Ingress,
        };
        for hit in policies.enforced.0.iter() {
            let rule = UsedRule { hit: hit.clone(), direction };
            let is_full = self.rules.len() >= MOST_RULES && !self.rules.contains_key(&rule);
            let used = if is_full { &mut self.other } else { self.rules.entry(rule).or_default() };
            used.inbound += log.incoming;
            used.outbound += log.outgoing;
            used.connections = used.connections.saturating_add(log.num_flows_started);
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
    use super::*;
    use crate::model::{Action, EndpointKind, FlowEnd, Policies, ProcessColumns, Proto, TcpColumns, Trace};

    fn log(rule: i32) -> FlowLog {
        let hit = Hit {
            tier: "default".into(),
            kind: PolicyKind::KubernetesNetworkPolicy,
            namespace: Some("shop".into()),
            name: "web".into(),
            action: Action::Allow,
            rule,
        };
        FlowLog {
            policies: Some(Policies { enforced: Trace([hit].into()), ..Policies::default() }),
            incoming: Counters::new(2, 120),
            outgoing: Counters::new(1, 60),
            num_flows_started: 1,
            source: end(),
            dest: end(),
            nat_outgoing_ports: Vec::new(),
            service: None,
            hide_service_port_name: false,
            dest_domains: Vec::new(),
            proto: Proto::TCP,
            action: Action::Allow,
            reporter: Reporter::Dst,
            num_flows: 1,
            num_flows_completed: 0,
            process: ProcessColumns::default(),
            tcp: TcpColumns::default(),
            drop_reasons: Vec::new(),
            policy_mismatch: Some(false),
        }
    }

    fn end() -> FlowEnd {
        FlowEnd {
            kind: EndpointKind::Wep,
            namespace: None,
            name: None,
            name_aggr: "web-*".into(),
            ip: None,
            port: None,
            labels: None,
            ips: Vec::new(),
        }
    }

    #[test]
    fn rules_are_bounded_and_no_count_is_lost() {
        let mut used = PolicyUse::default();
        for rule in 0..3000 {
            used.count(&log(rule));
            used.count(&log(0));
        }
        assert_eq!(used.rules().count(), MOST_RULES);
        assert_eq!(used.other().connections, 1000);
        let all: u64 = used.rules().map(|(_, rule)| rule.connections).sum();
        assert_eq!(all, 5000);
        let first = used.rules().find(|(rule, _)| rule.hit.rule == 0).map(|(_, used)| *used);
        let traffic = |n: u64| [Counters::new(2 * n, 120 * n), Counters::new(n, 60 * n)];
        assert_eq!(first.map(|used| [used.inbound, used.outbound]), Some(traffic(3001)));
    }
}
