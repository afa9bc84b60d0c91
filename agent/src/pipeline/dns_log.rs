//! The window of the DNS log: lookups of local clients, by who asked what and what was answered.
//!
//! In: DNS observations with the cluster at that time. Out: at its own flush, sorted [`DnsLogs`]. Always: a lookup is
//! in exactly one record, or in `unlogged`; servers of one record are merged, labels intersected; records, their
//! answers and their memory are bounded. Kind 0 keeps clients apart by pod, kind 1 by the prefix of their names.
//! Lookups by clients that are not this node's make no line, like flows; where there is no cluster all do. The node's own
//! are of the pod on its host network that asked, where its process is known by the time of the answer.
//! Not here: capture, JSON, files.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::cluster::{Cluster, private_or_public};
use crate::model::{
    DnsEnd, DnsLatency, DnsLog, DnsLogs, DnsRecord, Endpoint, EndpointKind, RrSets, Timestamp, canonical,
    domain_name,
};

use super::ends::host_pod;

/// What of the configuration the DNS log needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLogSettings {
    /// `dnsLogsFileAggregationKind: 0`.
    pub by_pod: bool,
    pub include_labels: bool,
    /// Lines of a flush; 0 is no limit.
    pub limit: usize,
    pub latency: bool,
    /// `flowLogsEnableHostEndpoint`: lookups of the node itself too.
    pub host_endpoints: bool,
    /// `flowLogsPrivateNetworks: Extended`.
    pub private_extended: bool,
}

/// Records of a window, whatever the limit.
const RECORDS: usize = 256 << 10;
/// Bytes of a window's records.
const BYTES: usize = 64 << 20;
/// What a record costs beside its text.
const RECORD_BYTES: usize = 512;
/// Values of one record's answers; what is beyond is left out of the line.
const VALUES: usize = 256;
/// Servers of one record.
const SERVERS: usize = 16;

/// Its order is the order of lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    namespace: Option<Arc<str>>,
    name_aggr: Arc<str>,
    /// Kind 0.
    pod: Option<(Arc<str>, IpAddr)>,
    question: Arc<str>,
    class: Arc<str>,
    kind: Arc<str>,
    rcode: Arc<str>,
    rrsets: RrSets,
}

struct Record {
    count: u64,
    client: DnsEnd,
    servers: Vec<DnsEnd>,
    measured: u64,
    sum: u128,
    max: u64,
}

pub struct DnsWindow {
    settings: DnsLogSettings,
    next_settings: Option<DnsLogSettings>,
    records: HashMap<Key, Record, RandomState>,
    bytes: usize,
    bytes_limit: usize,
    unlogged: u64,
    /// Lookups of clients that are not this node's. A total.
    pub not_local: u64,
    start: Timestamp,
}

impl DnsWindow {
    /// The first window begins at `start`.
    pub fn new(settings: DnsLogSettings, start: Timestamp) -> Self {
        Self {
            settings,
            next_settings: None,
            records: HashMap::default(),
            bytes: 0,
            bytes_limit: BYTES,
            unlogged: 0,
            not_local: 0,
            start,
        }
    }

    /// Acts after the next flush: a window's lines have one form.
    pub fn reconfigure(&mut self, settings: DnsLogSettings) {
        self.next_settings = Some(settings);
    }

    /// `asker`: the pod that the client's process runs in, where that is known.
    pub fn observe(
        &mut self,
        record: &DnsRecord,
        at: Timestamp,
        cluster: &Cluster,
        asker: Option<&Arc<str>>,
    ) {
        let client = cluster.endpoint_at(record.client, at, self.settings.host_endpoints);
        let is_local = match client {
            Some(client) => {
                cluster.is_local(client) && (client.kind == EndpointKind::Wep || self.settings.host_endpoints)
            }
            None => cluster.is_empty(),
        };
        if !is_local {
            self.not_local += 1;
            return;
        }
        let client = client.map(|client| host_pod(cluster, client, asker, at).unwrap_or(client));
        let client = self.end(client.map(|client| &**client), record.client, !self.settings.by_pod);
        let key = Key {
            namespace: client.namespace.clone(),
            name_aggr: client.name_aggr.clone(),
            pod: client.ip.map(|ip| (client.name.clone().unwrap_or_else(|| "-".into()), ip)),
            question: domain_name(&record.question).unwrap_or_else(|| ".".into()),
            class: record.qclass.clone().unwrap_or_else(|| "IN".into()),
            kind: record.qtype.clone().unwrap_or_else(|| kind_of(record)),
            rcode: rcode(&record.rcode),
            rrsets: rrsets(record),
        };
        let is_full = self.records.len() >= RECORDS || self.bytes >= self.bytes_limit;
        if is_full && !self.records.contains_key(&key) {
            self.unlogged += 1;
            return;
        }
        let server = cluster.endpoint_at(record.server, at, true);
        let server = self.end(server.map(|server| &**server), record.server, false);
        let bytes = &mut self.bytes;
        let known = self.records.entry(key).or_insert_with_key(|key| {
            *bytes += size_of_key(key);
            Record { count: 0, client: client.clone(), servers: Vec::new(), measured: 0, sum: 0, max: 0 }
        });
        known.count += 1;
        if let (Some(labels), Some(more)) = (&mut known.client.labels, &client.labels) {
            *labels = labels.intersection(more);
        }
        if !known.servers.contains(&server) && known.servers.len() < SERVERS {
            known.servers.push(server);
        }
        if self.settings.latency && record.latency_us > 0 {
            let nanoseconds = record.latency_us.saturating_mul(1000);
            known.measured += 1;
            known.sum = known.sum.saturating_add(nanoseconds.into());
            known.max = known.max.max(nanoseconds);
        }
    }

    fn end(&self, endpoint: Option<&Endpoint>, ip: IpAddr, aggregate: bool) -> DnsEnd {
        let ip = canonical(ip);
        let private = || private_or_public(ip, self.settings.private_extended).into();
        let include = self.settings.include_labels;
        DnsEnd {
            name: endpoint.filter(|_| !aggregate).map(|endpoint| endpoint.name.clone()),
            name_aggr: endpoint.map_or_else(private, |endpoint| endpoint.name_aggr.clone()),
            namespace: endpoint.and_then(|endpoint| endpoint.namespace.clone()),
            ip: (!aggregate).then_some(ip),
            labels: include.then(|| endpoint.map(|endpoint| endpoint.labels.clone()).unwrap_or_default()),
        }
    }

    /// Closes the window at `end`.
    pub fn flush(&mut self, end: Timestamp) -> DnsLogs {
        let mut records: Vec<(Key, Record)> = self.records.drain().collect();
        self.bytes = 0;
        records.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut unlogged = std::mem::take(&mut self.unlogged);
        if self.settings.limit > 0 && records.len() > self.settings.limit {
            // Those that were asked for most stay.
            records.sort_by_key(|(_, record)| std::cmp::Reverse(record.count));
            let over = records.split_off(self.settings.limit);
            unlogged += over.iter().map(|(_, record)| record.count).sum::<u64>();
            records.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let records = records
            .into_iter()
            .map(|(key, mut record)| {
                record.servers.sort_by_key(|server| server.ip);
                let mean = record.sum.checked_div(record.measured.into()).unwrap_or(0);
                DnsLog {
                    count: record.count,
                    client: record.client,
                    servers: record.servers,
                    question: key.question,
                    class: key.class,
                    kind: key.kind,
                    rcode: key.rcode,
                    rrsets: key.rrsets,
                    latency: DnsLatency {
                        count: record.measured,
                        mean: u64::try_from(mean).unwrap_or(u64::MAX),
                        max: record.max,
                    },
                }
            })
            .collect();
        if let Some(settings) = self.next_settings.take() {
            self.settings = settings;
        }
        let start = std::mem::replace(&mut self.start, end);
        DnsLogs { start, end, records, unlogged }
    }
}

/// Recordings need not say what was asked for: then the answer tells.
fn kind_of(record: &DnsRecord) -> Arc<str> {
    let answer = record.answers.iter().find(|answer| !answer.kind.eq_ignore_ascii_case("cname"));
    answer.or(record.answers.first()).map_or_else(|| "A".into(), |answer| answer.kind.clone())
}

/// In Calico's spelling.
fn rcode(text: &str) -> Arc<str> {
    const NAMES: [&str; 11] = [
        "NoError", "FormErr", "ServFail", "NXDomain", "NotImp", "Refused", "YXDomain", "YXRRSet", "NXRRSet",
        "NotAuth", "NotZone",
    ];
    NAMES
        .iter()
        .find(|name| name.eq_ignore_ascii_case(text))
        .map_or_else(|| text.into(), |name| Arc::from(*name))
}

fn rrsets(record: &DnsRecord) -> RrSets {
    let mut sets = RrSets::new();
    for answer in record.answers.iter().take(VALUES) {
        let name = domain_name(&answer.name).unwrap_or_else(|| ".".into());
        let data = sets.entry((name, "IN".into(), answer.kind.clone())).or_default();
        if let Err(place) = data.binary_search(&answer.data) {
            data.insert(place, answer.data.clone());
        }
    }
    sets
}

fn size_of_key(key: &Key) -> usize {
    let values = key.rrsets.iter().map(|((name, _, _), data)| {
        64 + name.len() + data.iter().map(|value| 32 + value.len()).sum::<usize>()
    });
    RECORD_BYTES + key.question.len() + values.sum::<usize>()
}
