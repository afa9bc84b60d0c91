//! What the pipeline counts besides the lines: every packet that is in no line is in one of these numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PolicyUse;
use crate::flow::JoinStats;
use crate::model::{Counters, Directional};

/// Distinct stages and drop reasons that are counted by name; the rest is counted as `other`.
const NAMES_LIMIT: usize = 256;

/// Totals since the start of the pipeline.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub connections_started: u64,
    pub connections_adopted: u64,
    pub connections_completed: u64,
    /// Traffic of connections with no local end.
    pub not_local: Counters,
    /// Filter drops with no local end.
    pub not_local_denied: Counters,
    /// Conntrack's counters of connections for which their drops speak.
    pub superseded: Counters,
    /// Connections that never entered the table and that no filter dropped.
    pub unconfirmed_other: u64,
    /// Connections refused by the full table; their final counters are still exported at their end.
    pub connection_table_full: u64,
    /// Drops for which the table of denied flows had no place: each went into its record at once, as a flow that is
    /// over.
    pub denied_overflow: Counters,
    /// Flows that were folded into an overflow record, because the window had no more records.
    pub window_overflow: u64,
    /// Flows whose names were settled before the flush, because too many had ended.
    pub settled_early: u64,
    /// Flows that may be counted twice in a window, because too many keys came again in it.
    pub not_remembered: u64,
    pub verdicts_forgotten: u64,
    /// Evaluations whose outcome cannot be told: a resource that could not be read, a rule that asks for more than a
    /// flow tells.
    pub evaluations_unknown: u64,
    /// Which rules decided, and what policies select.
    pub policy_use: PolicyUse,
    /// Records and traffic of the allowed or denied side while it is switched off.
    pub filtered_records: u64,
    pub filtered: Counters,
    /// Records of processes and TCP sockets that did not come to a line.
    pub joins: JoinStats,
    /// DNS answers of servers that are not believed.
    pub dns_untrusted: u64,
    /// Names of addresses that were forgotten for want of memory.
    pub domains_forgotten: u64,
    /// Process ids, names and arguments that a window had no memory for: the columns that count them tell too few.
    pub process_values_refused: u64,
    /// Records and traffic that the rules of `flowLogsFilters` left out, by the rule's place in the list.
    pub filtered_by_rule: Vec<(u64, Counters)>,
    /// Connections of the checkpoint that were gone when the agent came back.
    pub checkpoint_gone: u64,
    /// Packets dropped for other reasons than a filter.
    pub other_drops: BTreeMap<Arc<str>, u64>,
    /// Records that a stage is known to have lost.
    pub lost: BTreeMap<Arc<str>, u64>,
}

pub(super) fn sum(traffic: Directional) -> Counters {
    let mut sum = traffic.original;
    sum += traffic.reply;
    sum
}

/// Counts under a name, as long as there are not too many names.
pub(super) fn count_by_name(counts: &mut BTreeMap<Arc<str>, u64>, name: &Arc<str>, n: u64) {
    if let Some(count) = counts.get_mut(name) {
        *count = count.saturating_add(n);
    } else {
        let name = if counts.len() < NAMES_LIMIT { name.clone() } else { "other".into() };
        let count = counts.entry(name).or_default();
        *count = count.saturating_add(n);
    }
}
