//! Every metric of the agent: name, kind, labels, meaning, in this one list.
//!
//! In: what the stages count (they add to members, or hand their totals over at a flush). Out:
//! [`Metrics::snapshot`], the values that an endpoint serves, and the generated table in `deploy/metrics.md`.
//! Always: names follow Prometheus' conventions (`flowlogd_`, base units, `_total` of what only grows); labels have
//! few values, and a family that meets more of them than it may counts the rest under `other`.
//! Not here: what a kind of number is (`metric.rs`).

use crate::model::{Counters, Direction, Fill, PolicyKind, Unit};
use crate::pipeline::{PolicyUse, RuleUse, Stats, UsedRule};
use crate::sink::SinkStats;
use crate::watch::{Phase, Status};

use super::metric::{Counter, Families, Family, Family2, Gauge, Histogram, Seconds, metrics};

/// Policy rules that are told apart.
type RuleFamily = Families<7, 4096>;
type SelectedFamily = Families<3, 2048>;

metrics! {
    /// Every metric of the agent.
    pub struct Metrics;

    /// Connections that a source has shown.
    connections_seen: Gauge(Counter) = "flowlogd_connections_seen_total";
    /// Connections open now.
    connections_open: Gauge(Gauge) = "flowlogd_connections_open";
    /// Bytes of connections and drops without a local end, which make no line.
    not_local: Gauge(Counter) = "flowlogd_not_local_bytes_total";
    /// Bytes that conntrack counted of connections for which their drops speak.
    superseded: Gauge(Counter) = "flowlogd_superseded_bytes_total";
    /// Flows folded into an overflow record because the window had no more records; their counters are in its line.
    window_overflow: Gauge(Counter) = "flowlogd_window_overflow_flows_total";
    /// Bytes of filter drops that went to their line at once because the table of denied flows was full.
    denied_overflow: Gauge(Counter) = "flowlogd_denied_overflow_bytes_total";
    /// What was told of sockets and came to no line: no flow found, too many waiting, cut to its bound.
    unjoined: Family(Counter) = "flowlogd_unjoined_records_total" ["what"];
    /// What the DNS capture saw and did, by event: packets, lookups, copies, what was dropped, malformed or unanswered.
    dns_events: Family(Counter) = "flowlogd_dns_events_total" ["event"];
    /// Lines of the DNS log.
    dns_lines: Counter(Counter) = "flowlogd_dns_lines_total";
    /// Lookups that had no line of the DNS log, because of its limit or of memory.
    dns_unlogged: Counter(Counter) = "flowlogd_dns_unlogged_total";
    /// Connections that never were confirmed, without a filter's drop, which make no line.
    unconfirmed_other: Gauge(Counter) = "flowlogd_connections_unconfirmed_total";
    /// What the kernel's side counted, by event: left out as of another network namespace, found a map full, and so on.
    kernel_events: Family(Counter) = "flowlogd_kernel_events_total" ["event"];
    /// Entries of tables and of the kernel's maps at the last flush, as the sweep found them; of `drops` the most that a second brought.
    table_entries: Family(Gauge) = "flowlogd_table_entries" ["table"];
    /// Entries that they have room for.
    table_capacity: Family(Gauge) = "flowlogd_table_capacity_entries" ["table"];
    /// Bytes that were found at once in ring buffers, and queued behind a dump of netlink: the most between the last two flushes.
    queue_bytes: Family(Gauge) = "flowlogd_queue_bytes" ["queue"];
    /// Bytes that they have room for.
    queue_capacity: Family(Gauge) = "flowlogd_queue_capacity_bytes" ["queue"];
    /// 1 while connection tracking is set not to count (net.netfilter.nf_conntrack_acct): connections that begin tell no packets and bytes.
    accounting_off: Gauge(Gauge) = "flowlogd_conntrack_accounting_off";
    /// Packets dropped by a filter.
    filter_drop_packets: Family(Counter) = "flowlogd_filter_drop_packets_total" ["reason"];
    /// Packets dropped for another reason than a filter, which make no line.
    other_drop_packets: Family(Counter) = "flowlogd_other_drop_packets_total" ["reason"];
    /// Observations that a stage is known to have lost.
    lost_events: Family(Counter) = "flowlogd_lost_events_total" ["stage"];
    /// Lines by action.
    lines: Family(Counter) = "flowlogd_lines_total" ["action"];
    /// Lines whose `policy_mismatch` is true: what happened contradicts the cluster's policies.
    mismatch_lines: Counter(Counter) = "flowlogd_policy_mismatch_lines_total";
    /// Records that the configuration keeps from being lines, by what: `disabled` (a side that is switched off), or a rule of `flowLogsFilters` by its place.
    filtered_records: Family(Counter) = "flowlogd_filtered_records_total" ["by"];
    /// Packets in them, as their reporters see them.
    filtered_packets: Family(Counter) = "flowlogd_filtered_packets_total" ["by"];
    /// Bytes in them.
    filtered_bytes: Family(Counter) = "flowlogd_filtered_bytes_total" ["by"];
    /// Packets in lines, by what the line says; traffic between two pods of this node is told by both.
    line_packets: Family2(Counter) = "flowlogd_line_packets_total" ["action", "reporter"];
    /// Bytes in lines, likewise.
    line_bytes: Family2(Counter) = "flowlogd_line_bytes_total" ["action", "reporter"];
    /// 1 while what the configuration asks to be listened on is, 0 while it cannot be: `metrics`, `policy metrics`, `health`, `live`.
    listening: Family(Gauge) = "flowlogd_listening" ["listener"];
    /// Times that it could not be listened on.
    listener_errors: Family(Counter) = "flowlogd_listener_errors_total" ["listener"];
    /// Readers of the live view.
    live_readers: Gauge(Gauge) = "flowlogd_live_readers";
    /// Lines and events of the live view that readers were too slow for. No line of the file is among them.
    live_lost: Gauge(Counter) = "flowlogd_live_lost_total";
    /// Packets by the policy rule that decided about them, as Calico's policy metrics name it; a pass counts too. Of flows without a line too, but not without `flowLogsFileIncludePolicies`.
    policy_rule_packets: RuleFamily(Counter) = "cnx_policy_rule_packets" ["action", "tier", "namespace", "policy", "rule_index", "rule_direction", "traffic_direction"];
    /// Bytes of them.
    policy_rule_bytes: RuleFamily(Counter) = "cnx_policy_rule_bytes" ["action", "tier", "namespace", "policy", "rule_index", "rule_direction", "traffic_direction"];
    /// Connections by the policy rule that decided about them when they began.
    policy_rule_connections: RuleFamily(Counter) = "cnx_policy_rule_connections" ["action", "tier", "namespace", "policy", "rule_index", "rule_direction", "traffic_direction"];
    /// Endpoints of this node that the policy selects.
    policy_selected_endpoints: SelectedFamily(Gauge) = "flowlogd_policy_selected_endpoints" ["tier", "namespace", "policy"];
    /// Evaluations whose outcome cannot be told: an object that could not be read, or a rule that asks for more than a flow tells.
    policy_evaluations_unknown: Gauge(Counter) = "flowlogd_policy_evaluations_unknown_total";
    /// When the last window was closed, with lines or without, since 1970; before the first one, when the agent began.
    last_flush: Seconds(Gauge) = "flowlogd_last_flush_timestamp_seconds";
    /// flowLogsFlushInterval as it acts now.
    flush_interval: Seconds(Gauge) = "flowlogd_flush_interval_seconds";
    /// Windows flushed.
    flushes: Counter(Counter) = "flowlogd_flushes_total";
    /// Time in which a window is closed: from the last counters read to the records made.
    flush_duration: Histogram(Histogram) = "flowlogd_flush_duration_seconds";
    /// Time of one look at all connections of the kernel's table or map.
    sweep_duration: Histogram(Histogram) = "flowlogd_sweep_duration_seconds";
    /// CPU time of the longest run of a sweep's eBPF program between the last two flushes, of connections or of sockets: for so long a kernel without preemption gives that CPU to nobody else. 0 where no such program sweeps.
    sweep_longest_run: Seconds(Gauge) = "flowlogd_sweep_longest_run_seconds";
    /// 1, with the version of this program and what it was built for.
    build_info: Family2(Gauge) = "flowlogd_build_info" ["version", "arch"];
    /// Times that the clock went backwards.
    clock_steps_back: Counter(Counter) = "flowlogd_clock_steps_back_total";
    /// Objects of the cluster that could not be used.
    cluster_objects_refused: Family(Counter) = "flowlogd_cluster_objects_refused_total" ["kind"];
    /// Objects of the cluster that are known, by kind.
    cluster_objects: Family(Gauge) = "flowlogd_cluster_objects" ["kind"];
    /// 1 for the state in which the watch of a kind is.
    watch_state: Family2(Gauge) = "flowlogd_watch_state" ["kind", "state"];
    /// 1 when all kinds have been known once: names are taken from the cluster.
    watch_synced: Gauge(Gauge) = "flowlogd_watch_synced";
    /// Seconds since the API server last said something of a kind that is watched.
    watch_silent: Family(Gauge) = "flowlogd_watch_silent_seconds" ["kind"];
    /// Requests and watches of the API server that failed.
    watch_errors: Family2(Counter) = "flowlogd_watch_errors_total" ["kind", "reason"];
    /// Times that all objects of a kind were asked for.
    watch_relists: Family(Counter) = "flowlogd_watch_relists_total" ["kind"];
    /// Events of watches.
    watch_events: Family(Counter) = "flowlogd_watch_events_total" ["kind"];
    /// Events that were older than what was known already.
    watch_stale_events: Family(Counter) = "flowlogd_watch_stale_events_total" ["kind"];
    /// Bytes of the API server's answers.
    watch_bytes: Family(Counter) = "flowlogd_watch_bytes_total" ["kind"];
    /// Lines written before the cluster was known: they name their ends by address only.
    lines_by_address_only: Counter(Counter) = "flowlogd_lines_by_address_only_total";
    /// Configuration values that were not allowed, by layer.
    bad_configuration_values: Family(Counter) = "flowlogd_bad_configuration_values_total" ["layer"];
    /// Configuration values that are not allowed now, by layer: lower layers' values hold.
    configuration_refused: Family(Gauge) = "flowlogd_configuration_refused_values" ["layer"];
    /// Configuration fields that were changed and act only when the agent is started again.
    configuration_waiting: Gauge(Gauge) = "flowlogd_configuration_waiting_for_restart";
    /// How often the configuration has changed since the start.
    configuration_generation: Counter(Gauge) = "flowlogd_configuration_generation";
    /// Bytes of the flow log that the shipper has not read, by its position file (flowLogsDynamicAggregationEnabled).
    shipper_lag: Gauge(Gauge) = "flowlogd_shipper_lag_bytes";
    /// Levels by which aggregation is raised because the shipper lags.
    aggregation_raised: Gauge(Gauge) = "flowlogd_aggregation_raised_levels";
    /// Times that the shipper's position file could not be read or understood.
    position_errors: Counter(Counter) = "flowlogd_shipper_position_errors_total";
    /// Checkpoints that were refused at the start.
    checkpoints_refused: Counter(Counter) = "flowlogd_checkpoints_refused_total";
    /// Windows written to the file.
    sink_written_windows: Gauge(Counter) = "flowlogd_sink_written_windows_total";
    /// Records written to the file.
    sink_written_records: Gauge(Counter) = "flowlogd_sink_written_records_total";
    /// Bytes written to the file.
    sink_written_bytes: Gauge(Counter) = "flowlogd_sink_written_bytes_total";
    /// Rotations of the file.
    sink_rotations: Gauge(Counter) = "flowlogd_sink_rotations_total";
    /// Windows of which records were dropped because the file could not be written and the buffer was full.
    sink_dropped_windows: Gauge(Counter) = "flowlogd_sink_dropped_windows_total";
    /// Records dropped so.
    sink_dropped_records: Gauge(Counter) = "flowlogd_sink_dropped_records_total";
    /// Bytes dropped so.
    sink_dropped_bytes: Gauge(Counter) = "flowlogd_sink_dropped_bytes_total";
    /// Records waiting in memory for the file.
    sink_buffered_records: Gauge(Gauge) = "flowlogd_sink_buffered_records";
    /// Bytes waiting in memory for the file.
    sink_buffered_bytes: Gauge(Gauge) = "flowlogd_sink_buffered_bytes";
    /// Times that writing the file began to fail.
    sink_faults: Gauge(Counter) = "flowlogd_sink_faults_total";
    /// 1 while the file cannot be written.
    sink_failing: Gauge(Gauge) = "flowlogd_sink_failing";
    /// Lines taken out that a killed writer had left torn.
    sink_torn_lines: Gauge(Counter) = "flowlogd_sink_torn_lines_total";
}

impl Metrics {
    /// What does not change while the process runs.
    pub fn set_build(&self) {
        self.build_info.set_to([env!("CARGO_PKG_VERSION"), std::env::consts::ARCH], 1);
    }

    /// Takes over what the pipeline counts itself.
    pub fn set_pipeline(&self, stats: &Stats, open: u64) {
        self.connections_seen.set(stats.connections_started + stats.connections_adopted);
        self.connections_open.set(open);
        self.not_local.set(stats.not_local.bytes.saturating_add(stats.not_local_denied.bytes));
        self.superseded.set(stats.superseded.bytes);
        self.window_overflow.set(stats.window_overflow);
        self.denied_overflow.set(stats.denied_overflow.bytes);
        self.unconfirmed_other.set(stats.unconfirmed_other);
        for (what, total) in [
            ("process_without_flow", stats.joins.process_unmatched),
            ("tcp_without_flow", stats.joins.tcp_unmatched),
            ("socket_table_full", stats.joins.overflow),
            ("process_cut", stats.joins.process_truncated),
            ("process_values_beyond_memory", stats.process_values_refused),
        ] {
            self.unjoined.set(what, total);
        }
        self.policy_evaluations_unknown.set(stats.evaluations_unknown);
        self.set_policy_use(&stats.policy_use);
        let filtered = |by: &str, records: u64, traffic: Counters| {
            if records > 0 {
                self.filtered_records.set(by, records);
                self.filtered_packets.set(by, traffic.packets);
                self.filtered_bytes.set(by, traffic.bytes);
            }
        };
        filtered("disabled", stats.filtered_records, stats.filtered);
        for (place, (records, traffic)) in (1..).zip(&stats.filtered_by_rule) {
            filtered(&format!("rule {place}"), *records, *traffic);
        }
    }

    /// Takes over how full everything is that is bounded; what is not among them is there no more.
    pub fn set_fills(&self, fills: &[Fill]) {
        let of = |unit: Unit, value: fn(&Fill) -> u64| {
            fills.iter().filter(move |fill| fill.unit == unit).map(move |fill| ([fill.name], value(fill)))
        };
        self.table_entries.replace(of(Unit::Entries, |fill| fill.used));
        self.table_capacity.replace(of(Unit::Entries, |fill| fill.capacity));
        self.queue_bytes.replace(of(Unit::Bytes, |fill| fill.used));
        self.queue_capacity.replace(of(Unit::Bytes, |fill| fill.capacity));
    }

    /// Takes over how the watch of the cluster fares.
    pub fn set_watch(&self, status: &Status) {
        self.watch_synced.set(u64::from(status.is_synced()));
        self.set_kinds(status);
    }

    /// Takes over how kinds fare, whatever is made of them.
    pub fn set_kinds(&self, status: &Status) {
        for kind in &status.kinds {
            let name = kind.kind;
            for phase in Phase::ALL {
                self.watch_state.set_to([name, phase.name()], u64::from(kind.phase() == phase));
            }
            if matches!(kind.phase(), Phase::Unknown | Phase::NotServed) {
                // What is served no longer has neither objects nor an age.
                self.cluster_objects.remove([name]);
                self.watch_silent.remove([name]);
                continue;
            }
            self.cluster_objects.set(name, kind.objects());
            self.watch_silent.set(name, kind.silent().as_secs());
            self.cluster_objects_refused.set(name, kind.refused());
            self.watch_relists.set(name, kind.relists());
            self.watch_events.set(name, kind.events());
            self.watch_stale_events.set(name, kind.stale_events());
            self.watch_bytes.set(name, kind.bytes());
            for (reason, errors) in kind.errors() {
                self.watch_errors.set_to([name, reason], errors);
            }
        }
    }

    /// Takes over what the DNS capture counts itself.
    pub fn set_dns(&self, capture: impl Iterator<Item = (&'static str, u64)>, stats: &Stats) {
        for (event, total) in capture {
            self.dns_events.set(event, total);
        }
        self.dns_events.set("untrusted_server", stats.dns_untrusted);
        self.dns_events.set("name_forgotten", stats.domains_forgotten);
    }

    fn set_policy_use(&self, policy_use: &PolicyUse) {
        let set = |labels: [&str; 6], used: &RuleUse| {
            let [action, tier, namespace, policy, rule, direction] = labels;
            let of = |traffic| [action, tier, namespace, policy, rule, direction, traffic];
            for (traffic, counters) in [("inbound", used.inbound), ("outbound", used.outbound)] {
                self.policy_rule_packets.set_to(of(traffic), counters.packets);
                self.policy_rule_bytes.set_to(of(traffic), counters.bytes);
            }
            let traffic = if direction == "egress" { "outbound" } else { "inbound" };
            self.policy_rule_connections.set_to(of(traffic), used.connections);
        };
        for (UsedRule { hit, direction }, used) in policy_use.rules() {
            let direction = match direction {
                Direction::Egress => "egress",
                Direction::Ingress => "ingress",
            };
            let policy = policy_label(&hit.tier, hit.kind, &hit.name);
            let namespace = hit.namespace.as_deref().unwrap_or_default();
            let rule = hit.rule.to_string();
            set([hit.action.name(), &hit.tier, namespace, &policy, &rule, direction], used);
        }
        if *policy_use.other() != RuleUse::default() {
            set(["other"; 6], policy_use.other());
        }
        self.policy_selected_endpoints.replace(policy_use.selected.iter().map(|selected| {
            let policy = policy_label(&selected.tier, selected.kind, &selected.name);
            let namespace = selected.namespace.as_deref().unwrap_or_default();
            ([&*selected.tier, namespace, &*policy].map(Box::<str>::from), selected.endpoints)
        }));
    }

    /// Takes over what the file sink counts itself.
    pub fn set_sink(&self, stats: &SinkStats) {
        self.sink_written_windows.set(stats.written_windows);
        self.sink_written_records.set(stats.written_records);
        self.sink_written_bytes.set(stats.written_bytes);
        self.sink_rotations.set(stats.rotations);
        self.sink_dropped_windows.set(stats.dropped_windows);
        self.sink_dropped_records.set(stats.dropped_records);
        self.sink_dropped_bytes.set(stats.dropped_bytes);
        self.sink_buffered_records.set(stats.buffered_records);
        self.sink_buffered_bytes.set(stats.buffered_bytes);
        self.sink_faults.set(stats.faults);
        self.sink_failing.set(u64::from(stats.failing));
        self.sink_torn_lines.set(stats.torn_lines);
    }
}

/// The policy as Calico's metrics and flow logs name it, without its namespace.
fn policy_label(tier: &str, kind: PolicyKind, name: &str) -> String {
    let staged = if kind.is_staged() { "staged:" } else { "" };
    let tier = match kind {
        PolicyKind::KubernetesNetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => "knp.default",
        _ if name.strip_prefix(tier).is_some_and(|rest| rest.starts_with('.')) => {
            return format!("{staged}{name}");
        }
        _ => tier,
    };
    format!("{staged}{tier}.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{MetricKind, Value};

    #[test]
    fn names_are_unique_and_of_their_kind() {
        let mut seen = std::collections::BTreeSet::new();
        for description in Metrics::DESCRIPTIONS {
            assert!(seen.insert(description.name), "{description:?}");
            // Names that Calico gave do without our conventions.
            if description.name.starts_with("cnx_policy_") {
                continue;
            }
            assert!(description.name.starts_with("flowlogd_"));
            assert_eq!(
                description.name.ends_with("_total"),
                description.kind == MetricKind::Counter,
                "{description:?}"
            );
            assert!(description.help.ends_with('.') && !description.help.starts_with(' '), "{description:?}");
        }
    }

    #[test]
    fn what_is_switched_off_has_no_fill_any_more() {
        let metrics = Metrics::default();
        metrics.set_fills(&[Fill::entries("drops", 3, 8), Fill::bytes("ends", 100, 4096)]);
        assert_eq!((metrics.table_entries.get("drops"), metrics.table_capacity.get("drops")), (3, 8));
        assert_eq!((metrics.queue_bytes.get("ends"), metrics.queue_capacity.get("ends")), (100, 4096));
        assert_eq!(metrics.table_entries.sum(), 3);
        metrics.set_fills(&[Fill::entries("drops", 1, 8)]);
        assert_eq!((metrics.table_entries.get("drops"), metrics.queue_capacity.sum()), (1, 0));
    }

    #[test]
    fn a_snapshot_has_every_metric_in_the_order_of_the_list() {
        let metrics = Metrics::default();
        metrics.lines.add("allow", 2);
        metrics.lines.add("deny", 3);
        metrics.lines.add("allow", 5);
        let snapshot = metrics.snapshot();
        let names: Vec<&str> = snapshot.iter().map(|metric| metric.description.name).collect();
        let described: Vec<&str> = Metrics::DESCRIPTIONS.iter().map(|description| description.name).collect();
        assert_eq!(names, described);
        let lines = snapshot.iter().find(|metric| metric.description.name == "flowlogd_lines_total").unwrap();
        assert_eq!(lines.description.labels, ["action"]);
        assert_eq!(lines.series.len(), 2);
        assert_eq!(lines.series[0].labels, ["allow".into()]);
        assert_eq!(lines.series[0].value, Value::Whole(7));
    }
}
