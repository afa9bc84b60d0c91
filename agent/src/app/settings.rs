//! From the resolved configuration to what the pure path and the line need.

use std::sync::Arc;

use crate::aggregate::{DnsSettings, IdleFlows, Level, PendingPolicies, PrivateNetworks, Settings};
use crate::config::{self, Config, FileFormat, PolicyEvaluationMode, PolicyNameStyle};
use crate::pipeline::DnsLogSettings;
use crate::wire::flow_log::{LineFormat, NameStyle};

pub fn settings(config: &Config) -> Settings {
    // The configuration is validated: a level beyond 3 does not come here, and would be the coarsest.
    let level = |n: u8| Level::from_number(n.into()).unwrap_or(Level::NoDestinationPort);
    Settings {
        level_for_allowed: level(config.flow_logs_file_aggregation_kind_for_allowed),
        level_for_denied: level(config.flow_logs_file_aggregation_kind_for_denied),
        enabled_for_allowed: config.flow_logs_file_enabled_for_allowed,
        enabled_for_denied: config.flow_logs_file_enabled_for_denied,
        include_labels: config.flow_logs_file_include_labels,
        include_policies: config.flow_logs_file_include_policies,
        include_service: config.flow_logs_file_include_service,
        network_sets: config.flow_logs_enable_network_sets,
        host_endpoints: config.flow_logs_enable_host_endpoint,
        pending_policies: match config.flow_logs_policy_evaluation_mode {
            PolicyEvaluationMode::Continuous => PendingPolicies::Continuous,
            PolicyEvaluationMode::OnNewConnection => PendingPolicies::OnNewConnection,
            PolicyEvaluationMode::None => PendingPolicies::None,
        },
        private_networks: match config.flow_logs_private_networks {
            config::PrivateNetworks::Rfc1918 => PrivateNetworks::Rfc1918,
            config::PrivateNetworks::Extended => PrivateNetworks::Extended,
        },
        idle_flows: match config.flow_logs_file_idle_flows {
            config::IdleFlows::Emit => IdleFlows::Emit,
            config::IdleFlows::Suppress => IdleFlows::Suppress,
        },
        ips_limit: config.flow_logs_file_ips_limit as usize,
        nat_outgoing_ports_limit: config.flow_logs_file_nat_outgoing_port_limit as usize,
        domains_limit: config.flow_logs_file_domains_limit as usize,
        process_limit: config.flow_logs_file_per_flow_process_limit as usize,
        process_args_limit: config.flow_logs_file_per_flow_process_args_limit as usize,
        filters: config.flow_logs_filters.clone(),
        dns: DnsSettings {
            by_client: config.flow_logs_dest_domains_by_client,
            // What is none of these is told when the capture starts.
            trusted_servers: config
                .dns_trusted_servers
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
            extra_ttl: config.dns_extra_ttl,
            cache_epoch: config.dns_cache_epoch,
        },
    }
}

pub fn dns_log_settings(config: &Config) -> DnsLogSettings {
    DnsLogSettings {
        by_pod: config.dns_logs_file_aggregation_kind == 0,
        include_labels: config.dns_logs_file_include_labels,
        limit: config.dns_logs_file_per_node_limit as usize,
        latency: config.dns_logs_latency,
        host_endpoints: config.flow_logs_enable_host_endpoint,
        private_extended: config.flow_logs_private_networks == config::PrivateNetworks::Extended,
    }
}

pub fn line_format(config: &Config, node: &str) -> LineFormat {
    LineFormat {
        extended: config.flow_logs_file_format == FileFormat::Extended,
        name_style: match config.flow_logs_policy_name_style {
            PolicyNameStyle::Dotted => NameStyle::Dotted,
            PolicyNameStyle::Kind => NameStyle::Kind,
        },
        host: Arc::from(node),
        cluster: config.flow_logs_cluster_name.as_deref().map(Arc::from),
    }
}
