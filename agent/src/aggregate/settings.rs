//! What of the configuration the pure path needs; resolved, valid, without layers.

use std::sync::Arc;
use std::time::Duration;

use super::Level;
use crate::filter::Rules;
use crate::model::TrustedServer;

/// `flowLogsFileIdleFlows`: live flows without traffic in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleFlows {
    /// A record with zero counters (Calico's behaviour).
    #[default]
    Emit,
    Suppress,
}

/// `flowLogsPrivateNetworks`: what is `pvt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateNetworks {
    /// 10/8, 172.16/12, 192.168/16 (Calico's rule; all IPv6 is `pub`).
    #[default]
    Rfc1918,
    /// Also ULA, link-local, CGNAT and loopback.
    Extended,
}

/// `flowLogsPolicyEvaluationMode`: when what is pending is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PendingPolicies {
    /// Again while the flow lives.
    #[default]
    Continuous,
    /// Once.
    OnNewConnection,
    /// Never: the pending policies are null.
    None,
}

/// How names are learnt from DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// `flowLogsDestDomainsByClient`.
    pub by_client: bool,
    pub trusted_servers: Arc<[TrustedServer]>,
    pub extra_ttl: Duration,
    /// A change of it empties what was learnt.
    pub cache_epoch: u64,
}

impl Default for DnsSettings {
    fn default() -> Self {
        let kube_dns = TrustedServer::Service { namespace: "kube-system".into(), name: "kube-dns".into() };
        Self {
            by_client: true,
            trusted_servers: [kube_dns].into(),
            extra_ttl: Duration::ZERO,
            cache_epoch: 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub level_for_allowed: Level,
    pub level_for_denied: Level,
    pub enabled_for_allowed: bool,
    pub enabled_for_denied: bool,
    pub include_labels: bool,
    pub include_policies: bool,
    pub include_service: bool,
    pub network_sets: bool,
    /// `flowLogsEnableHostEndpoint`.
    pub host_endpoints: bool,
    pub pending_policies: PendingPolicies,
    pub private_networks: PrivateNetworks,
    pub idle_flows: IdleFlows,
    /// `source_ips` and `dest_ips` at levels 2 and 3.
    pub ips_limit: usize,
    pub nat_outgoing_ports_limit: usize,
    pub domains_limit: usize,
    /// Processes of one key that get a record of their own.
    pub process_limit: usize,
    pub process_args_limit: usize,
    /// `flowLogsFilters`: which records are left out.
    pub filters: Rules,
    pub dns: DnsSettings,
}

impl Default for Settings {
    /// The contract's defaults.
    fn default() -> Self {
        Self {
            level_for_allowed: Level::NamePrefix,
            level_for_denied: Level::SourcePort,
            enabled_for_allowed: true,
            enabled_for_denied: true,
            include_labels: true,
            include_policies: true,
            include_service: true,
            network_sets: true,
            host_endpoints: false,
            pending_policies: PendingPolicies::Continuous,
            private_networks: PrivateNetworks::Rfc1918,
            idle_flows: IdleFlows::Emit,
            ips_limit: 5,
            nat_outgoing_ports_limit: 3,
            domains_limit: 5,
            process_limit: 2,
            process_args_limit: 5,
            filters: Rules::default(),
            dns: DnsSettings::default(),
        }
    }
}
