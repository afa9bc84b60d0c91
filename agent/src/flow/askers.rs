//! Which pod on the node's host network asks DNS servers from which port: lookups tell their client's address, and that
//! address is of all of these pods.
//!
//! In: the node's own ends of flows to port 53, with the pod of the process there; what their ports are translated to on
//! the way out. Out: the pod behind a lookup's client. Always: what was told last of an end holds, also that its process
//! is no pod's; what nobody tells again is forgotten at the flush after the next; both tables are bounded, what does not
//! fit is not known. Not here: which ends are the node's own (the pipeline asks the cluster).

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::model::{Proto, canonical};

/// What DNS servers listen on.
pub const DNS_PORT: u16 = 53;

/// Ends, and translated ends, that are known at a time.
const MOST: usize = 4096;

/// One end of a flow.
type End = (Proto, IpAddr, u16);

#[derive(Debug)]
struct Told<T> {
    value: T,
    /// It has waited through a flush.
    old: bool,
}

#[derive(Debug, Default)]
pub struct Askers {
    /// `None`: a process that is in no pod.
    pods: HashMap<End, Told<Option<Arc<str>>>, RandomState>,
    /// As the server sees an end, and as the client has it.
    translated: HashMap<End, Told<End>, RandomState>,
}

impl Askers {
    pub fn learn(&mut self, proto: Proto, ip: IpAddr, port: u16, pod_uid: Option<&Arc<str>>) {
        insert(&mut self.pods, (proto, canonical(ip), port), pod_uid.cloned());
    }

    /// Answers to what the client sends from `own` go to `translated`.
    pub fn learn_translation(&mut self, proto: Proto, own: (IpAddr, u16), translated: (IpAddr, u16)) {
        let [own, translated] = [own, translated].map(|(ip, port)| (proto, canonical(ip), port));
        insert(&mut self.translated, translated, own);
    }

    /// The uid of the pod that asks from this end, as its cgroup is named.
    pub fn pod(&self, proto: Proto, ip: IpAddr, port: u16) -> Option<&Arc<str>> {
        let seen = (proto, canonical(ip), port);
        let own = self.translated.get(&seen).map_or(seen, |own| own.value);
        self.pods.get(&own)?.value.as_ref()
    }

    pub fn close_window(&mut self) {
        self.pods.retain(|_, told| !std::mem::replace(&mut told.old, true));
        self.translated.retain(|_, told| !std::mem::replace(&mut told.old, true));
    }
}

fn insert<T>(table: &mut HashMap<End, Told<T>, RandomState>, end: End, value: T) {
    if table.len() < MOST || table.contains_key(&end) {
        table.insert(end, Told { value, old: false });
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
        let mut askers = Askers::default();
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
        assert!(askers.pods.is_empty());
    }

    #[test]
    fn a_translated_port_leads_back_to_the_clients_own_whichever_is_told_first() {
        let mut askers = Askers::default();
        let a: Arc<str> = "a".into();
        askers.learn_translation(Proto::UDP, (ip(1), 4000), (ip(2), 555));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 555), None);
        askers.learn(Proto::UDP, ip(1), 4000, Some(&a));
        assert_eq!(askers.pod(Proto::UDP, ip(2), 555), Some(&a));
        askers.close_window();
        askers.close_window();
        assert!(askers.translated.is_empty());
    }

    #[test]
    fn both_tables_are_bounded() {
        let mut askers = Askers::default();
        let a: Arc<str> = "a".into();
        for port in 0..10_000 {
            askers.learn(Proto::UDP, ip(1), port, Some(&a));
            askers.learn_translation(Proto::UDP, (ip(1), port), (ip(2), port));
        }
        assert_eq!((askers.pods.len(), askers.translated.len()), (MOST, MOST));
    }
}
