//! Every configuration field, once: name, type, default, bounds, what it does, whether it changes live.
//!
//! Out of this table come [`Config`] with its defaults, the reader and printer of each field, `flowlogd config`,
//! the README's table and the schema of the FlowLogConfiguration resource.
//! Names and types are FelixConfiguration's where Felix has the field (the documentation of Calico Enterprise's
//! FelixConfiguration); the fields that are ours say so. Defaults are Felix's, but for those that turn the flow
//! log on and fill its columns.
//! Always: one row a field; nothing else in the package knows a field's default.
//! Not here: layers (`resolve.rs`), files and environment (`load.rs`).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::filter::Rules;

use super::value::{
    ClientAuth, DnsPolicyMode, FileFormat, FileMode, IdleFlows, Kind, Limits, Milliseconds, Notation,
    PolicyEvaluationMode, PolicyNameStyle, PolicyScope, PrivateNetworks, Setting, SourceKind, Switch,
};

/// When a changed value acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// At the next flush.
    Live,
    /// Now: what is listened on is closed and opened anew.
    AtOnce,
    /// When the agent is started again; until then the log says so.
    Restart,
    /// Never: accepted because Felix has it, of no meaning here (the row says why). Setting it is warned about.
    NoEffect,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::AtOnce => "at once",
            Self::Restart => "restart",
            Self::NoEffect => "no effect",
        }
    }
}

/// One row of the table.
pub struct Field {
    /// As in YAML: `flowLogsFlushInterval`.
    pub name: &'static str,
    /// The member of [`Config`].
    pub member: &'static str,
    pub kind: Kind,
    pub limits: Limits,
    pub change: Change,
    pub doc: &'static str,
    pub(super) set: fn(&mut Config, &Value, Notation, Limits) -> bool,
    get: fn(&Config) -> Value,
    problem: fn(&Value) -> Option<String>,
}

impl Field {
    /// The value as JSON; it can be read back.
    pub fn value(&self, config: &Config) -> Value {
        (self.get)(config)
    }

    pub fn default_value(&self) -> Value {
        (self.get)(&Config::default())
    }

    /// What may stand there.
    pub fn allowed(&self) -> String {
        self.kind.allowed(self.limits)
    }

    /// What may stand there, and what is wrong with this value, where that can be said.
    pub fn remedy(&self, raw: &Value) -> String {
        match (self.problem)(raw) {
            Some(problem) => format!("{} ({problem})", self.allowed()),
            None => self.allowed(),
        }
    }

    /// By its name in any case, as environment variables spell it.
    pub fn by_name_any_case(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name.eq_ignore_ascii_case(name))
    }

    pub fn by_name(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }
}

macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $member:ident $name:literal: $type:ty = $default:expr, $change:ident $(, $limits:expr)?;)+) => {
        /// The resolved configuration: one value a field.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config { $($(#[doc = $doc])+ pub $member: $type,)+ }

        impl Default for Config {
            fn default() -> Self {
                Self { $($member: $default,)+ }
            }
        }

        /// The table, in the order in which a person reads it.
        pub static FIELDS: &[Field] = &[$(Field {
            name: $name,
            member: stringify!($member),
            kind: <$type as Setting>::KIND,
            limits: fields!(@limits $($limits)?),
            change: Change::$change,
            doc: concat!($($doc),+),
            set: |config, raw, notation, limits| match <$type as Setting>::read(raw, notation, limits) {
                Some(value) => {
                    config.$member = value;
                    true
                }
                None => false,
            },
            get: |config| config.$member.show(),
            problem: <$type as Setting>::problem,
        }),+];
    };
    (@limits) => { Limits::None };
    (@limits $limits:expr) => { $limits };
}

const LEVEL: Limits = Limits::Integer(0, 3);
const PORT: Limits = Limits::Integer(0, 65_535);
const FILES: Limits = Limits::Integer(1, 1_000);
const MEGABYTES: Limits = Limits::Integer(1, 1_000_000);
/// What 32 bits hold.
const WORD: Limits = Limits::Integer(0, 4_294_967_295);
const CAP: Limits = Limits::Integer(0, 10_000);
const INTERVAL: Limits = Limits::Duration(Duration::from_millis(100), Duration::from_secs(24 * 3600));
const ANY_SPAN: Limits = Limits::Duration(Duration::ZERO, Duration::from_secs(365 * 24 * 3600));

fields! {
    /// Write the flow log file.
    flow_logs_file_enabled "flowLogsFileEnabled": bool = true, Live;
    /// Directory of `flows.log`, its rotated files, its lock and its checkpoint.
    flow_logs_file_directory "flowLogsFileDirectory": PathBuf = "/var/log/calico/flowlogs".into(), Live;
    /// Files kept in all, `flows.log` among them.
    flow_logs_file_max_files "flowLogsFileMaxFiles": u32 = 5, Live, FILES;
    /// Size in megabytes (1,000,000 bytes) that no file exceeds, unless a single line does.
    flow_logs_file_max_file_size_mb "flowLogsFileMaxFileSizeMB": u32 = 100, Live, MEGABYTES;
    /// Write lines of allowed flows.
    flow_logs_file_enabled_for_allowed "flowLogsFileEnabledForAllowed": bool = true, Live;
    /// Write lines of denied flows.
    flow_logs_file_enabled_for_denied "flowLogsFileEnabledForDenied": bool = true, Live;
    /// Fill `source_labels` and `dest_labels`.
    flow_logs_file_include_labels "flowLogsFileIncludeLabels": bool = true, Live;
    /// Fill `policies`, and split lines on distinct enforced traces.
    flow_logs_file_include_policies "flowLogsFileIncludePolicies": bool = true, Live;
    /// Fill `dest_service_*`, and split lines on them.
    flow_logs_file_include_service "flowLogsFileIncludeService": bool = true, Live;
    /// Aggregation level of allowed flows: 0 none, 1 source port, 2 and names, 3 and destination port.
    flow_logs_file_aggregation_kind_for_allowed "flowLogsFileAggregationKindForAllowed": u8 = 2, Live, LEVEL;
    /// Aggregation level of denied flows.
    flow_logs_file_aggregation_kind_for_denied "flowLogsFileAggregationKindForDenied": u8 = 1, Live, LEVEL;
    /// Most entries in `dest_domains`.
    flow_logs_file_domains_limit "flowLogsFileDomainsLimit": u32 = 5, Live, CAP;
    /// Most entries in `nat_outgoing_ports`.
    flow_logs_file_nat_outgoing_port_limit "flowLogsFileNatOutgoingPortLimit": u32 = 3, Live, CAP;
    /// Processes of one key that get a line of their own; the others share one named `*`.
    flow_logs_file_per_flow_process_limit "flowLogsFilePerFlowProcessLimit": u32 = 2, Live, CAP;
    /// Most entries in `process_args`.
    flow_logs_file_per_flow_process_args_limit "flowLogsFilePerFlowProcessArgsLimit": u32 = 5, Live, CAP;
    /// Time between two flushes: the window of a line.
    flow_logs_flush_interval "flowLogsFlushInterval": Duration = Duration::from_secs(300), Live, INTERVAL;
    /// Find the processes behind a connection: name, id, arguments.
    flow_logs_collect_process_info "flowLogsCollectProcessInfo": bool = false, Live;
    /// With process info: the full path of the executable in place of the name.
    flow_logs_collect_process_path "flowLogsCollectProcessPath": bool = false, Live;
    /// Collect statistics of TCP sockets.
    flow_logs_collect_tcp_stats "flowLogsCollectTcpStats": bool = false, Live;
    /// Log every observation, and every record of a window that is closed, whole, at debug level (`--log-level debug`).
    flow_logs_collector_debug_trace "flowLogsCollectorDebugTrace": bool = false, Live;
    /// Ours. Capture DNS for `dest_domains` alone; `dnsLogsFileEnabled` captures it too. It needs CAP_NET_RAW and costs other packets one run of a classic filter.
    flow_logs_collect_dest_domains "flowLogsCollectDestDomains": bool = false, Live;
    /// Attribute a domain to a destination only for the client that asked for it.
    flow_logs_dest_domains_by_client "flowLogsDestDomainsByClient": bool = true, Live;
    /// Raise the aggregation levels by one a flush, to 3 at most, while the shipper lags behind, and lower them by one a flush when it has caught up.
    flow_logs_dynamic_aggregation_enabled "flowLogsDynamicAggregationEnabled": bool = false, Live;
    /// Bytes by which the shipper may lag before the level is raised.
    flow_logs_aggregation_threshold_bytes "flowLogsAggregationThresholdBytes": u64 = 8192, Live;
    /// Position file of the shipper: Fluentd's `pos_file`, Fluent Bit's `DB`, or rsyslog's `workDirectory` (with `persistStateInterval` set).
    flow_logs_position_file_path "flowLogsPositionFilePath": PathBuf = "/var/log/calico/flows.log.pos".into(), Live;
    /// Write lines for host endpoints and for the node itself, and (with `flowLogsCollectProcessInfo`) by name for pods on its host network.
    flow_logs_enable_host_endpoint "flowLogsEnableHostEndpoint": bool = false, Live;
    /// Name addresses by the network sets that hold them.
    flow_logs_enable_network_sets "flowLogsEnableNetworkSets": bool = true, Live;
    /// Most entries in `original_source_ips`.
    flow_logs_max_original_ips_included "flowLogsMaxOriginalIPsIncluded": u32 = 50, Live, CAP;
    /// When staged policies are evaluated for `pending_policies`.
    flow_logs_policy_evaluation_mode "flowLogsPolicyEvaluationMode": PolicyEvaluationMode = PolicyEvaluationMode::Continuous, Live;
    /// Which policies a trace tells of. Calico's `AllPolicies` (transit policies) is not offered.
    flow_logs_policy_scope "flowLogsPolicyScope": PolicyScope = PolicyScope::EndpointPolicies, Live;

    /// Ours. `Extended` adds our fields at the end of a line; `Calico` writes exactly Calico's.
    flow_logs_file_format "flowLogsFileFormat": FileFormat = FileFormat::Extended, Live;
    /// Ours. What the field `cluster` of a line says; null if empty.
    flow_logs_cluster_name "flowLogsClusterName": Option<String> = None, Live;
    /// Ours. Most entries in `source_ips` and `dest_ips`.
    flow_logs_file_ips_limit "flowLogsFileIPsLimit": u32 = 5, Live, CAP;
    /// Ours. `Dotted` is Calico Enterprise's way to name a policy, `Kind` that of Calico 3.31 and later.
    flow_logs_policy_name_style "flowLogsPolicyNameStyle": PolicyNameStyle = PolicyNameStyle::Dotted, Live;
    /// Ours. Which addresses are `pvt`: `RFC1918`, or `Extended` with ULA, link-local, CGNAT and loopback.
    flow_logs_private_networks "flowLogsPrivateNetworks": PrivateNetworks = PrivateNetworks::Rfc1918, Live;
    /// Ours. Whether a live flow without traffic in the window makes a line with zero counters.
    flow_logs_file_idle_flows "flowLogsFileIdleFlows": IdleFlows = IdleFlows::Emit, Live;
    /// Ours. Which lines are not written: rules `drop FILTER` and `keep FILTER` in the language of `flowlogd observe`; the first that matches decides.
    flow_logs_filters "flowLogsFilters": Rules = Rules::default(), Live;
    /// Ours. Serve the live view that `flowlogd observe` shows, on a unix socket.
    flow_logs_live_enabled "flowLogsLiveEnabled": bool = true, AtOnce;
    /// Ours. That socket, of mode 0660. Who may connect sees the flows of every namespace.
    flow_logs_live_socket_path "flowLogsLiveSocketPath": PathBuf = "/var/run/flowlogd/live.sock".into(), AtOnce;
    /// Ours. The group, by name or number, whose members may connect; empty: root alone.
    flow_logs_live_socket_group "flowLogsLiveSocketGroup": Option<String> = None, AtOnce;
    /// Ours. Permission bits of `flows.log`, in octal.
    flow_logs_file_mode "flowLogsFileMode": FileMode = FileMode(0o600), Live;
    /// Ours. Megabytes (1,000,000 bytes) of lines kept in memory while the file cannot be written; beyond it the oldest windows are dropped and counted.
    flow_logs_file_buffer_mb "flowLogsFileBufferMB": u32 = 64, Live, MEGABYTES;
    /// Ours. Where connections are observed.
    flow_logs_source "flowLogsSource": SourceKind = SourceKind::Auto, Restart;
    /// Ours. Set `net.netfilter.nf_conntrack_acct` to 1 at start; without it the kernel counts no bytes of connections.
    flow_logs_set_conntrack_accounting "flowLogsSetConntrackAccounting": bool = true, Restart;

    /// Serve the agent's own metrics.
    prometheus_metrics_enabled "prometheusMetricsEnabled": bool = false, AtOnce;
    /// Address or host name on which they are served; empty: loopback (Felix: all addresses). All: `0.0.0.0` or `::`.
    prometheus_metrics_host "prometheusMetricsHost": String = String::new(), AtOnce, Limits::Host;
    /// Port on which they are served.
    prometheus_metrics_port "prometheusMetricsPort": u16 = 9091, AtOnce, PORT;
    /// Whether a client must show a certificate, where the metrics are served over TLS.
    prometheus_metrics_client_auth "prometheusMetricsClientAuth": ClientAuth = ClientAuth::RequireAndVerifyClientCert, AtOnce;
    /// Certificate authority of the clients.
    prometheus_metrics_ca_file "prometheusMetricsCAFile": Option<PathBuf> = None, AtOnce;
    /// Certificate of the metrics server.
    prometheus_metrics_cert_file "prometheusMetricsCertFile": Option<PathBuf> = None, AtOnce;
    /// Key of the metrics server.
    prometheus_metrics_key_file "prometheusMetricsKeyFile": Option<PathBuf> = None, AtOnce;
    /// Ours. Serve `/healthz` and `/readyz` (not Felix's `health*`: where Felix runs too, they are its own server's).
    flow_logs_health_enabled "flowLogsHealthEnabled": bool = true, AtOnce;
    /// Ours. Address or host name on which they are served; empty: loopback.
    flow_logs_health_host "flowLogsHealthHost": String = String::new(), AtOnce, Limits::Host;
    /// Ours. Port on which they are served.
    flow_logs_health_port "flowLogsHealthPort": u16 = 9097, AtOnce, PORT;
    /// Serve the metrics of policy rules (`cnx_policy_*`, which are among the agent's own metrics too) on a port of their own, on `prometheusMetricsHost`.
    prometheus_reporter_enabled "prometheusReporterEnabled": bool = false, AtOnce;
    /// Port on which they are served.
    prometheus_reporter_port "prometheusReporterPort": u16 = 9092, AtOnce, PORT;
    /// Certificate of that server.
    prometheus_reporter_cert_file "prometheusReporterCertFile": Option<PathBuf> = None, AtOnce;
    /// Key of that server.
    prometheus_reporter_key_file "prometheusReporterKeyFile": Option<PathBuf> = None, AtOnce;
    /// Certificate authority of its clients; where it is set, they must show a certificate.
    prometheus_reporter_ca_file "prometheusReporterCAFile": Option<PathBuf> = None, AtOnce;

    /// Write the DNS log file.
    dns_logs_file_enabled "dnsLogsFileEnabled": bool = false, Live;
    /// Directory of the DNS log.
    dns_logs_file_directory "dnsLogsFileDirectory": PathBuf = "/var/log/calico/dnslogs".into(), Live;
    /// Files of the DNS log kept in all.
    dns_logs_file_max_files "dnsLogsFileMaxFiles": u32 = 5, Live, FILES;
    /// Size in megabytes (1,000,000 bytes) that no file of the DNS log exceeds.
    dns_logs_file_max_file_size_mb "dnsLogsFileMaxFileSizeMB": u32 = 100, Live, MEGABYTES;
    /// 0: a line for each client pod; 1: for each common prefix of pod names.
    dns_logs_file_aggregation_kind "dnsLogsFileAggregationKind": u8 = 1, Live, Limits::Integer(0, 1);
    /// Write labels into the DNS log.
    dns_logs_file_include_labels "dnsLogsFileIncludeLabels": bool = true, Live;
    /// Most lines of a flush of the DNS log; 0: no limit.
    dns_logs_file_per_node_limit "dnsLogsFilePerNodeLimit": u32 = 0, Live, WORD;
    /// Time between two flushes of the DNS log.
    dns_logs_flush_interval "dnsLogsFlushInterval": Duration = Duration::from_secs(300), Live, INTERVAL;
    /// Measure the latency of DNS answers.
    dns_logs_latency "dnsLogsLatency": bool = true, Live;
    /// Where the addresses learnt from DNS are kept over a restart.
    dns_cache_file "dnsCacheFile": PathBuf = "/var/run/calico/felix-dns-cache.txt".into(), Restart;
    /// Time between two writes of that file.
    dns_cache_save_interval "dnsCacheSaveInterval": Duration = Duration::from_secs(60), Live, INTERVAL;
    /// A change of this number empties the cache.
    dns_cache_epoch "dnsCacheEpoch": u64 = 0, Live;
    /// Time by which an answer is kept longer than its own time to live.
    dns_extra_ttl "dnsExtraTTL": Duration = Duration::ZERO, Live, ANY_SPAN;
    /// Servers whose answers are believed: addresses, or `k8s-service:[namespace/]name[:port]` (in `kube-system` without a namespace). Ports are not looked at. Where no Service is known at all, an entry that names one lets every server be believed.
    dns_trusted_servers "dnsTrustedServers": Vec<String> = vec!["k8s-service:kube-dns".into()], Live;

    /// Felix's. The agent pushes nothing to Goldmane; it writes files and serves its own live view.
    flow_logs_goldmane_server "flowLogsGoldmaneServer": Option<String> = None, NoEffect;
    /// Felix's. The agent's live view needs no switch.
    flow_logs_local_reporter "flowLogsLocalReporter": Switch = Switch::Disabled, NoEffect;
    /// Felix's. The agent delays no packet: it enforces no policy.
    dns_policy_mode "dnsPolicyMode": DnsPolicyMode = DnsPolicyMode::DelayDeniedPacket, NoEffect;
    /// Felix's. The agent uses no packet queue.
    dns_policy_nfqueue_id "dnsPolicyNfqueueID": u16 = 100, NoEffect, PORT;
    /// Felix's. The agent uses no packet queue.
    dns_policy_nfqueue_size "dnsPolicyNfqueueSize": u32 = 255, NoEffect, WORD;
    /// Felix's. The agent uses no packet queue.
    dns_packets_nfqueue_id "dnsPacketsNfqueueID": u16 = 101, NoEffect, PORT;
    /// Felix's. The agent uses no packet queue.
    dns_packets_nfqueue_size "dnsPacketsNfqueueSize": u32 = 100, NoEffect, WORD;
    /// Felix's. The agent holds no packet.
    dns_packets_nfqueue_max_hold_duration "dnsPacketsNfqueueMaxHoldDuration": Milliseconds = Milliseconds(Duration::from_secs(3)), NoEffect, ANY_SPAN;
}

/// The README's table.
pub fn markdown_table() -> String {
    let mut table =
        String::from("| Field | Type | Default | Change | What it does |\n|---|---|---|---|---|\n");
    for field in FIELDS {
        let kind = match field.kind {
            Kind::Choice(names) => names.join(", "),
            Kind::Integer => match field.limits {
                Limits::Integer(low, high) => format!("integer {low} to {high}"),
                _ => "integer".to_owned(),
            },
            other => other.name().to_owned(),
        };
        let default = show_plain(&field.default_value());
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        table.push_str(&format!(
            "| `{}` | {kind} | {default} | {} | {} |\n",
            field.name,
            field.change.name(),
            field.doc.trim()
        ));
    }
    table
}

/// A value as a person writes it: no quotes, lists with commas, nothing for null.
pub fn show_plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(show_plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
