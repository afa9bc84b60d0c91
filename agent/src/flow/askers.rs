//! Which pod on the node's host network asks DNS servers from which port: lookups tell their client's address, and that
//! address is of all of these pods.
//!
//! In: the node's own ends of flows to port 53, with the pod of the process there; what their ports are translated to on
//! the way out. Out: the pod behind a lookup's client. Always: what was told last of an end holds, also that its process
//! is no pod's; what nobody tells again is forgotten at the flush after the next; both tables are bounded, what was told
//! longest ago gives way and is counted. Not here: which ends are the node's own (the pipeline asks the cluster).

use std::net::IpAddr;
use std::sync::Arc;

use lru::LruCache;

use crate::model::{Proto, canonical};

/// What DNS servers listen on.
pub const DNS_PORT: u16 = 53;

/// Ends, and translated ends, that are known at a time; fewer where there is no memory for more.
const MOST: usize = 4096;

/// One end of a flow.
type End = (Proto, IpAddr, u16);

#[derive(Debug)]
struct Told<T> {
    value: T,
    /// It has waited through a flush.
    old: bool,
}

/// By end, the one that was told last first.
#[derive(Debug)]
struct Table<T>(LruCache<End, Told<T>>);

#[derive(Debug)]
pub struct Askers {
    /// `None`: a process that is in no pod.
    pods: Table<Option<Arc<str>>>,
    /// As the server sees an end, and as the client has it.
    translated: Table<End>,
    most: usize,
    /// Ends that gave way before their time.
    pub forgotten: u64,
}

impl Askers {
    /// `limit`: of each table.
    pub fn new(limit: usize) -> Self {
        let (pods, translated) = (Table(LruCache::unbounded()), Table(LruCache::unbounded()));
        Self { pods, translated, most: limit.min(MOST), forgotten: 0 }
    }

    pub fn learn(&mut self, proto: Proto, ip: IpAddr, port: u16, pod_uid: Option<&Arc<str>>) {
        self.forgotten += self.pods.insert((proto, canonical(ip), port), pod_uid.cloned(), self.most);
    }

    /// Answers to what the client sends from `own` go to `seen`.
    pub fn learn_translation(&mut self, proto: Proto, own: (IpAddr, u16), seen: (IpAddr, u16)) {
        let [own, seen] = [own, seen].map(|(ip, port)| (proto, canonical(ip), port));
        if own == seen {
            // The port is its own again.
            self.translated.0.pop(&seen);
        } else {
            self.forgotten += self.translated.insert(seen, own, self.most);
        }
    }

    /// The uid of the pod that asks from this end, as its cgroup is named.
    pub fn pod(&self, proto: Proto, ip: IpAddr, port: u16) -> Option<&Arc<str>> {
        let seen = (proto, canonical(ip), port);
        let own = self.translated.0.peek(&seen).map_or(seen, |own| own.value);
        self.pods.0.peek(&own)?.value.as_ref()
    }

    pub fn close_window(&mut self) {
        self.pods.close_window();
        self.translated.close_window();
    }
}

impl<T> Table<T> {
    /// How many gave way.
    fn insert(&mut self, end: End, value: T, most: usize) -> u64 {
        self.0.put(end, Told { value, old: false });
        u64::from(self.0.len() > most && self.0.pop_lru().is_some())
    }

    fn close_window(&mut self) {
        // The oldest are the last.
        while self.0.peek_lru().is_some_and(|(_, told)| told.old) {
            self.0.pop_lru();
        }
        self.0.iter_mut().for_each(|(_, told)| told.old = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_last_process_of_an_end_holds_until_nobody_tells_of_it_any_more() {
        let mut askers = Askers::new(MOST);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        askers.learn(Proto::UDP, ip(1), 4000, Some(&a));
        assert_eq!(askers.pod(Proto::UDP, ip(1), 4000), Some(&a));
        assert_eq!(askers.pod(Proto::TCP, ip(1), 4000), None, "another socket");
        askers.learn(Proto::UDP, ip(1), 4000, Some(&b));
        askers.close_window();
        assert_eq!(askers.pod(Proto::UDP, ip(1), 4000), Some(&b));
        askers.learn(Proto::UDP, ip(1), 4000, None);
        assert_eq!(askers.pod(Proto::UDP, ip(1), 4000), None, "a process of no pod has the port now");
        askers.learn(Proto::UDP, ip(1), 4001, Some(&a));
        askers.close_window();
        askers.close_window();
        assert_eq!(askers.pod(Proto::UDP, ip(1), 4001), None);
        assert!(askers.pods.0.is_empty());
    }

    #[test]
    fn a_translated_port_leads_back_to_the_clients_own_whichever_is_told_first() {
        let mut askers = Askers::new(MOST);
        let a: Arc<str> = "a".into();
        askers.learn_translation(Proto::UDP, (ip(1), 4000), (ip(2), 555));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 555), None);
        askers.learn(Proto::UDP, ip(1), 4000, Some(&a));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 555), Some(&a));
        askers.close_window();
        askers.close_window();
        assert!(askers.translated.0.is_empty());
    }

    #[test]
    fn both_tables_are_bounded_and_keep_what_was_told_last() {
        let mut askers = Askers::new(MOST);
        let a: Arc<str> = "a".into();
        for port in 0..10_000 {
            askers.learn(Proto::UDP, ip(1), port, Some(&a));
            askers.learn_translation(Proto::UDP, (ip(1), port), (ip(2), port));
        }
        assert_eq!((askers.pods.0.len(), askers.translated.0.len()), (MOST, MOST));
        assert_eq!(askers.forgotten, 2 * (10_000 - MOST as u64));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 9_999), Some(&a));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 1), None);
    }

    #[test]
    fn a_port_that_is_not_translated_any_more_is_its_owners_again() {
        let mut askers = Askers::new(MOST);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        askers.learn_translation(Proto::UDP, (ip(1), 4000), (ip(1), 555));
        askers.learn(Proto::UDP, ip(1), 4000, Some(&a));
        assert_eq!(askers.pod(Proto::UDP, ip(1), 555), Some(&a));
        askers.learn_translation(Proto::UDP, (ip(1), 555), (ip(1), 555));
        askers.learn(Proto::UDP, ip(1), 555, Some(&b));
        assert_eq!(askers.pod(Proto::UDP, ip(1), 555), Some(&b));
    }
}
