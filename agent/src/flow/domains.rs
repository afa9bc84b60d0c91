//! Which names an address was asked by: what DNS answers taught, for a time, bounded by bytes.
//!
//! In: answers of servers that are believed. Out: the asked names behind an address, for one client or for all.
//! Always: a name is the one that was asked (CNAME chains lead back to it), in lower case and without its last dot;
//! it is kept for the least time to live on its chain, at least [`TTL_FLOOR`], and `dnsExtraTTL` beyond; where the
//! memory ends, the address learnt longest ago is forgotten, and counted. A flow keeps the names it has taken; that is
//! the flow's (`connection.rs`). Not here: which servers are believed, files.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use crate::model::{DnsRecord, KnownDomain, Timestamp, canonical, domain_name};

/// A client may use an answer for a moment even where its time to live is 0.
pub const TTL_FLOOR: Duration = Duration::from_secs(10);

/// CNAMEs between the asked name and its address.
const CHAIN: usize = 16;
/// Names of one address and client; beyond it the one that ends first is forgotten.
const NAMES_OF_ONE: usize = 64;
/// What an address costs beside its names, and a name beside its text.
const ADDRESS_BYTES: usize = 160;
const NAME_BYTES: usize = 48;

/// `[::]` stands for all clients.
type Key = (IpAddr, IpAddr);

#[derive(Clone, Debug, Default)]
struct Names(Vec<(Arc<str>, Timestamp)>);

impl Names {
    fn bytes(&self) -> usize {
        ADDRESS_BYTES + self.0.iter().map(|(name, _)| NAME_BYTES + name.len()).sum::<usize>()
    }
}

pub struct Domains {
    by_address: LruCache<Key, Names>,
    bytes: usize,
    limit: usize,
    by_client: bool,
    extra: Duration,
    epoch: u64,
    /// Names forgotten because there was no more memory. A total.
    pub forgotten: u64,
}

impl Domains {
    /// `limit`: bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            by_address: LruCache::unbounded(),
            bytes: 0,
            limit,
            by_client: true,
            extra: Duration::ZERO,
            epoch: 0,
            forgotten: 0,
        }
    }

    /// `by_client`: names are those that the client itself asked for. A change of it, or of `epoch`, empties the cache.
    pub fn configure(&mut self, by_client: bool, extra: Duration, epoch: u64) {
        if (self.by_client, self.epoch) != (by_client, epoch) {
            self.by_address.clear();
            self.bytes = 0;
        }
        self.by_client = by_client;
        self.extra = extra;
        self.epoch = epoch;
    }

    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Addresses, each once a client.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn key(&self, client: IpAddr, ip: IpAddr) -> Key {
        let client = if self.by_client { canonical(client) } else { IpAddr::from([0_u8; 16]) };
        (client, canonical(ip))
    }

    pub fn observe(&mut self, record: &DnsRecord, at: Timestamp) {
        if !record.rcode.eq_ignore_ascii_case("noerror") {
            return;
        }
        let Some(asked) = domain_name(&record.question) else { return };
        // The asked name, and what it is an alias of, each with the least time to live up to there.
        let mut chain: Vec<(Arc<str>, u32)> = vec![(asked.clone(), u32::MAX)];
        while let Some((name, ttl)) = chain.last().cloned().filter(|_| chain.len() <= CHAIN) {
            let alias = record
                .answers
                .iter()
                .find(|answer| answer.kind.eq_ignore_ascii_case("cname") && is_same(&answer.name, &name));
            let Some(alias) = alias else { break };
            let Some(target) = domain_name(&alias.data) else { break };
            if chain.iter().any(|(known, _)| *known == target) {
                break; // a loop
            }
            chain.push((target, ttl.min(alias.ttl_s)));
        }
        for answer in &record.answers {
            let is_address =
                answer.kind.eq_ignore_ascii_case("a") || answer.kind.eq_ignore_ascii_case("aaaa");
            let Some(ip) = answer.data.parse().ok().filter(|_| is_address) else { continue };
            let Some((_, ttl)) = chain.iter().find(|(name, _)| is_same(&answer.name, name)) else { continue };
            let ttl = Duration::from_secs(answer.ttl_s.min(*ttl).into()).max(TTL_FLOOR);
            self.learn(record.client, ip, &asked, at.plus(ttl).plus(self.extra));
        }
    }

    fn learn(&mut self, client: IpAddr, ip: IpAddr, name: &Arc<str>, expires: Timestamp) {
        let key = self.key(client, ip);
        let names = self.by_address.get_or_insert_mut(key, || {
            self.bytes += ADDRESS_BYTES;
            Names::default()
        });
        if let Some((_, known)) = names.0.iter_mut().find(|(known, _)| known == name) {
            *known = expires.max(*known);
        } else {
            if names.0.len() >= NAMES_OF_ONE
                && let Some(first) = names.0.iter().enumerate().min_by_key(|(_, (_, expires))| *expires)
            {
                let (name, _) = names.0.remove(first.0);
                self.bytes = self.bytes.saturating_sub(NAME_BYTES + name.len());
                self.forgotten += 1;
            }
            self.bytes += NAME_BYTES + name.len();
            names.0.push((name.clone(), expires));
        }
        while self.bytes > self.limit
            && let Some((_, over)) = self.by_address.pop_lru()
        {
            self.bytes = self.bytes.saturating_sub(over.bytes());
            self.forgotten += over.0.len() as u64;
        }
    }

    /// The names that held for a flow of `client` to `ip` that `began` then.
    pub fn of(&self, client: IpAddr, ip: IpAddr, began: Timestamp) -> Option<Arc<[Arc<str>]>> {
        if self.by_address.is_empty() {
            return None;
        }
        let names = self.by_address.peek(&self.key(client, ip))?;
        let held: Vec<_> =
            names.0.iter().filter(|(_, expires)| *expires >= began).map(|(name, _)| name.clone()).collect();
        (!held.is_empty()).then(|| held.into())
    }

    /// Forgets what no flow that begins from `now` on may be named by.
    pub fn expire(&mut self, now: Timestamp) {
        let mut over = Vec::new();
        for (key, names) in self.by_address.iter_mut() {
            names.0.retain(|(name, expires)| {
                let keep = *expires >= now;
                if !keep {
                    self.bytes = self.bytes.saturating_sub(NAME_BYTES + name.len());
                }
                keep
            });
            if names.0.is_empty() {
                over.push(*key);
            }
        }
        for key in over {
            self.by_address.pop(&key);
            self.bytes = self.bytes.saturating_sub(ADDRESS_BYTES);
        }
    }

    /// What there is, learnt longest ago first: for the file that outlives the agent.
    pub fn known(&self) -> impl Iterator<Item = KnownDomain> {
        self.by_address.iter().rev().flat_map(|((client, ip), names)| {
            names.0.iter().map(|(name, expires)| KnownDomain {
                client: *client,
                ip: *ip,
                name: name.clone(),
                expires: *expires,
            })
        })
    }

    /// What an earlier agent knew.
    pub fn restore(&mut self, known: impl IntoIterator<Item = KnownDomain>) {
        for KnownDomain { client, ip, name, expires } in known {
            if let Some(name) = domain_name(&name) {
                self.learn(client, ip, &name, expires);
            }
        }
    }
}

/// The same name, whatever its case and whether it ends with a dot. `name` is normal already.
fn is_same(written: &str, name: &str) -> bool {
    written.strip_suffix('.').unwrap_or(written).eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DnsAnswer;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, last])
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    fn answer(question: &str, answers: &[(&str, &str, &str, u32)]) -> DnsRecord {
        DnsRecord {
            client_port: None,
            client: CLIENT,
            server: ip(53),
            question: question.into(),
            qtype: None,
            qclass: None,
            rcode: "NOERROR".into(),
            latency_us: 0,
            answers: answers
                .iter()
                .map(|(name, kind, data, ttl_s)| DnsAnswer {
                    name: (*name).into(),
                    kind: (*kind).into(),
                    data: (*data).into(),
                    ttl_s: *ttl_s,
                })
                .collect(),
        }
    }

    fn names(domains: &Domains, last: u8, began: i64) -> Vec<String> {
        let names = domains.of(CLIENT, ip(last), at(began));
        names.iter().flat_map(|names| names.iter()).map(|name| name.to_string()).collect()
    }

    #[test]
    fn the_asked_name_stands_for_the_end_of_its_chain() {
        let mut domains = Domains::new(1 << 20);
        domains.observe(
            &answer(
                "WWW.Example.com.",
                &[
                    ("edge.example.net", "A", "203.0.113.1", 300),
                    ("cdn.example.net", "CNAME", "Edge.example.NET.", 60),
                    ("www.example.com", "CNAME", "cdn.example.net", 300),
                    ("other.example.org", "A", "203.0.113.2", 300),
                ],
            ),
            at(0),
        );
        assert_eq!(names(&domains, 1, 60), ["www.example.com"]);
        assert!(names(&domains, 1, 61).is_empty(), "the least time to live of the chain counts");
        assert!(names(&domains, 2, 0).is_empty(), "not an answer to what was asked");
    }

    #[test]
    fn loops_end_and_failures_teach_nothing() {
        let mut domains = Domains::new(1 << 20);
        let looped = [("a", "CNAME", "b", 9), ("b", "CNAME", "a", 9), ("b", "A", "203.0.113.1", 9)];
        domains.observe(&answer("a", &looped), at(0));
        assert_eq!(names(&domains, 1, 0), ["a"]);
        let mut failed = answer("x", &[("x", "A", "203.0.113.9", 9)]);
        failed.rcode = "NXDOMAIN".into();
        domains.observe(&failed, at(0));
        assert!(names(&domains, 9, 0).is_empty());
        domains
            .observe(&answer("y", &[("y", "A", "not an address", 9), ("y", "TXT", "203.0.113.9", 9)]), at(0));
        assert_eq!(domains.len(), 1);
    }

    #[test]
    fn times_to_live_have_a_floor_and_an_extra() {
        let mut domains = Domains::new(1 << 20);
        domains.observe(&answer("a", &[("a", "A", "203.0.113.1", 0)]), at(0));
        assert_eq!(names(&domains, 1, 10).len(), 1);
        assert!(names(&domains, 1, 11).is_empty());
        domains.configure(true, Duration::from_secs(100), 0);
        domains.observe(&answer("a", &[("a", "A", "203.0.113.1", 50)]), at(0));
        assert_eq!(names(&domains, 1, 150).len(), 1);
        domains.expire(at(151));
        assert_eq!((domains.len(), domains.bytes()), (0, 0));
    }

    #[test]
    fn by_client_or_not_and_an_epoch_empties() {
        let mut domains = Domains::new(1 << 20);
        let told = answer("a", &[("a", "A", "203.0.113.1", 50)]);
        domains.observe(&told, at(0));
        assert!(domains.of(ip(7), ip(1), at(0)).is_none());
        domains.configure(false, Duration::ZERO, 0);
        assert!(domains.is_empty());
        domains.observe(&told, at(0));
        assert!(domains.of(ip(7), ip(1), at(0)).is_some());
        domains.configure(false, Duration::ZERO, 1);
        assert!(domains.is_empty() && domains.bytes() == 0);
    }

    #[test]
    fn what_is_known_is_restored() {
        let mut domains = Domains::new(1 << 20);
        domains.observe(&answer("a", &[("a", "A", "203.0.113.1", 50)]), at(0));
        let mut again = Domains::new(1 << 20);
        again.restore(domains.known());
        assert_eq!(names(&again, 1, 50), ["a"]);
        assert_eq!(again.bytes(), domains.bytes());
    }

    #[test]
    fn a_million_answers_are_bounded_by_bytes() {
        let mut domains = Domains::new(100_000);
        let mut told = answer("x", &[("x", "A", "", 3600)]);
        for n in 0..1_000_000_u32 {
            let name: Arc<str> = format!("host-{n}.example.com").into();
            told.question = name.clone();
            told.answers[0].name = name;
            told.answers[0].data = IpAddr::from(n.to_be_bytes()).to_string().into();
            domains.observe(&told, at(0));
        }
        assert!(domains.bytes() <= 100_000, "{}", domains.bytes());
        assert!(domains.len() > 300);
        assert_eq!(domains.forgotten + domains.len() as u64, 1_000_000);
    }

    #[test]
    fn one_address_of_very_many_names_keeps_some() {
        let mut domains = Domains::new(1 << 20);
        for n in 0..1000 {
            let name = format!("n{n}");
            domains.observe(&answer(&name, &[(&name, "A", "203.0.113.1", 60 + n)]), at(0));
        }
        assert_eq!(names(&domains, 1, 0).len(), NAMES_OF_ONE);
        assert_eq!(names(&domains, 1, 0).last().map(String::as_str), Some("n999"));
    }
}
