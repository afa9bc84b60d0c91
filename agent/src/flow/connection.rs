//! One connection of the kernel's conntrack table, as user space remembers it (about 200 bytes).
//!
//! Counters are kept twice: as last seen (`last`) and as already exported (`base`); their difference is what the
//! next fold reports. All arithmetic wraps, so that a counter that went down (a reset: the new absolute value is
//! the delta) only moves `base`. The ends are those that owned the addresses when the flow began.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::TcpEnd;
use crate::model::{
    Addresses, ConnectionRecord, Counters, Directional, Endpoint, Evaluation, FiveTuple, Labels, Process,
    Proto, ServiceName, TcpState, Timestamp,
};

/// What makes a connection one and the same: (zone, proto, original tuple, icmp id).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionKey {
    pub original: Addresses,
    pub zone: u16,
    pub icmp_id: u16,
    pub proto: Proto,
}

impl Hash for ConnectionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.original.hash(state);
        let rest = u64::from(self.zone) << 32 | u64::from(self.icmp_id) << 16 | u64::from(self.proto.0);
        state.write_u64(rest);
    }
}

impl ConnectionKey {
    pub fn of(record: &ConnectionRecord) -> Self {
        let icmp_id = if record.proto.is_icmp() { record.icmp.map_or(0, |icmp| icmp.id) } else { 0 };
        Self { original: record.original, zone: record.zone, icmp_id, proto: record.proto }
    }
}

/// State bits of a connection; `SRC` and `DST` bits stand for the reporter at that end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// Names, service and locality are final.
    pub const SETTLED: Self = Self(1);
    pub const LOCAL_SRC: Self = Self(1 << 1);
    pub const LOCAL_DST: Self = Self(1 << 2);
    /// From the node itself to a pod of the same node: not policed.
    pub const UNPOLICED_DST: Self = Self(1 << 3);
    /// A start that no record has counted yet.
    pub const STARTED_SRC: Self = Self(1 << 4);
    pub const STARTED_DST: Self = Self(1 << 5);
    /// The flow is over (TIME_WAIT, CLOSE or the end of the entry), but not counted as such yet.
    pub const COMPLETED: Self = Self(1 << 6);
    pub const COMPLETION_COUNTED: Self = Self(1 << 7);
    /// Observed in this window.
    pub const TOUCHED: Self = Self(1 << 8);
    /// The key was open more than once in this window: flows are counted through the window's set of keys.
    pub const REOPENED: Self = Self(1 << 9);
    /// No reply, and its packets are dropped: the drops speak for it.
    pub const WITHHELD: Self = Self(1 << 10);
    /// A record has counted it.
    pub const REPORTED: Self = Self(1 << 11);
    /// The evaluation is of the cluster's policies, not a dataplane's own verdict.
    pub const JUDGED_SRC: Self = Self(1 << 13);
    pub const JUDGED_DST: Self = Self(1 << 14);
    /// ICMP type and code are known.
    pub const ICMP: Self = Self(1 << 15);

    /// It existed before the agent.
    pub const ADOPTED: Self = Self(1 << 12);

    pub const STARTED: Self = Self(Self::STARTED_SRC.0 | Self::STARTED_DST.0);

    pub fn has(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    pub fn set(&mut self, bits: Self) {
        self.0 |= bits.0;
    }

    pub fn clear(&mut self, bits: Self) {
        self.0 &= !bits.0;
    }
}

/// What few connections have.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Labels that an end carried earlier in this window, before it was relabelled: `[source, destination]`.
    pub earlier_labels: [Option<Labels>; 2],
    /// Counters when the connection was last withheld.
    pub withheld_at: Option<Directional>,
    /// Who holds the sockets, `[source's, destination's]`, where it was told.
    pub processes: [Option<Arc<Process>>; 2],
    /// The sockets' statistics, `[source's, destination's]`.
    pub tcp: [TcpEnd; 2],
    /// What the policies say now, where it is not what they said at the beginning.
    pub pending: [Option<Arc<Evaluation>>; 2],
    /// The names by which the source may have found the destination.
    pub domains: Option<Arc<[Arc<str>]>>,
}

#[derive(Clone, Debug)]
pub struct Connection {
    pub key: ConnectionKey,
    /// After DNAT.
    pub dst: IpAddr,
    pub dst_port: u16,
    /// After SNAT; 0 where the source was not translated.
    pub snat_port: u16,
    /// Where answers go, as IPv6 octets (a tag would cost as much as eight of them).
    reply_dst: [u8; 16],
    pub began: Timestamp,
    last: Directional,
    base: Directional,
    /// `[source, destination]`: who owned the address when the flow began, once known.
    pub ends: [Option<Arc<Endpoint>>; 2],
    pub service: Option<Arc<ServiceName>>,
    /// `[egress at the source, ingress at the destination]`.
    pub evaluations: [Option<Arc<Evaluation>>; 2],
    /// The records that count this flow, `[source's, destination's]`; `u32::MAX` is none.
    pub records: [u32; 2],
    pub records_epoch: u16,
    pub flags: Flags,
    pub tcp_state: TcpState,
    pub icmp_kind: u8,
    pub icmp_code: u8,
    pub labels_epoch: u32,
    /// State of the world's policies at which the pending policies were asked.
    pub judged_at: u32,
    /// Place in the order in which flows began.
    pub first_seen: u32,
    pub extra: Option<Box<Extra>>,
}

impl Connection {
    pub const NO_RECORD: u32 = u32::MAX;

    /// `base`: what is already exported; zero for a connection that is seen from its start.
    pub fn new(record: &ConnectionRecord, base: Directional, began: Timestamp) -> Self {
        let snat = record.proto.has_ports()
            && (record.reply.dst != record.original.src || record.reply.dst_port != record.original.src_port);
        let icmp = record.icmp.unwrap_or_default();
        let mut flags = Flags::default();
        if record.icmp.is_some() {
            flags.set(Flags::ICMP);
        }
        Self {
            key: ConnectionKey::of(record),
            dst: record.reply.src,
            dst_port: record.reply.src_port,
            snat_port: if snat { record.reply.dst_port } else { 0 },
            reply_dst: match record.reply.dst {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            },
            began,
            last: record.counters,
            base,
            ends: [None, None],
            service: None,
            evaluations: [None, None],
            records: [Self::NO_RECORD; 2],
            records_epoch: 0,
            flags,
            tcp_state: record.tcp_state.unwrap_or_default(),
            icmp_kind: icmp.kind,
            icmp_code: icmp.code,
            labels_epoch: 0,
            judged_at: 0,
            first_seen: 0,
            extra: None,
        }
    }

    /// New absolute counters.
    pub fn count(&mut self, counters: Directional) {
        let directions = [
            (&mut self.last.original, &mut self.base.original, counters.original),
            (&mut self.last.reply, &mut self.base.reply, counters.reply),
        ];
        for (last, base, now) in directions {
            if now.packets < last.packets || now.bytes < last.bytes {
                // A reset: what was counted until then is still to be exported, and all of `now` with it.
                base.packets = base.packets.wrapping_sub(last.packets);
                base.bytes = base.bytes.wrapping_sub(last.bytes);
            }
            *last = now;
        }
    }

    /// Counted, and not exported yet.
    pub fn pending(&self) -> Directional {
        let since = |last: Counters, base: Counters| {
            Counters::new(last.packets.wrapping_sub(base.packets), last.bytes.wrapping_sub(base.bytes))
        };
        Directional {
            original: since(self.last.original, self.base.original),
            reply: since(self.last.reply, self.base.reply),
        }
    }

    /// Takes what is pending: the next fold begins from here.
    pub fn take(&mut self) -> Directional {
        let pending = self.pending();
        self.base = self.last;
        pending
    }

    /// Forgets (as exported by others) what was counted up to `counters`; returns it.
    pub fn take_up_to(&mut self, counters: Directional) -> Directional {
        let later = self.last;
        self.last = counters;
        let taken = self.take();
        self.last = later;
        taken
    }

    /// The absolute counters as last seen.
    pub fn counters(&self) -> Directional {
        self.last
    }

    /// The absolute counters that are already exported: the baseline of a checkpoint.
    pub fn exported(&self) -> Directional {
        self.base
    }

    pub fn is_replied(&self) -> bool {
        self.last.reply.packets > 0
    }

    pub fn is_dnat(&self) -> bool {
        self.dst != self.key.original.dst || self.dst_port != self.key.original.dst_port
    }

    /// Addresses as packets have them inside the node: after DNAT, before SNAT.
    pub fn reported(&self) -> FiveTuple {
        let original = self.key.original;
        FiveTuple {
            proto: self.key.proto,
            addresses: Addresses { dst: self.dst, dst_port: self.dst_port, ..original },
        }
    }

    /// The addresses of answers: what a socket of the destination has.
    pub fn reply(&self) -> Addresses {
        let original = self.key.original;
        let dst = IpAddr::from(self.reply_dst).to_canonical();
        let dst_port = if self.snat_port == 0 { original.src_port } else { self.snat_port };
        Addresses { src: self.dst, src_port: self.dst_port, dst, dst_port }
    }

    /// Whether the evaluation at a side is of the cluster's policies; if not, they say nothing of what is pending.
    pub fn set_judged(&mut self, side: usize, judged: bool) {
        let bit = if side == 0 { Flags::JUDGED_SRC } else { Flags::JUDGED_DST };
        if judged {
            self.flags.set(bit);
        } else {
            self.flags.clear(bit);
            self.set_pending(side, None);
        }
    }

    /// `None`: what is pending is what the evaluation says.
    pub fn set_pending(&mut self, side: usize, evaluation: Option<Arc<Evaluation>>) {
        if evaluation.is_some() || self.extra.is_some() {
            let [source, dest] = &mut self.extra().pending;
            *(if side == 0 { source } else { dest }) = evaluation;
        }
    }

    /// Type and code, where they are known.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        self.flags.has(Flags::ICMP).then_some((self.icmp_kind, self.icmp_code))
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(counters: Directional) -> ConnectionRecord {
        let original = Addresses {
            src: IpAddr::from([10, 0, 0, 1]),
            dst: IpAddr::from([10, 0, 0, 2]),
            src_port: 1000,
            dst_port: 80,
        };
        ConnectionRecord {
            event: crate::model::ConnectionEvent::New,
            proto: Proto::TCP,
            original,
            reply: original.reversed(),
            icmp: None,
            zone: 0,
            counters,
            tcp_state: None,
        }
    }

    fn directional(values: [u32; 4]) -> Directional {
        let [a, b, c, d] = values.map(u64::from);
        Directional { original: Counters::new(a, b), reply: Counters::new(c, d) }
    }

    #[test]
    fn a_connection_fits_its_budget() {
        // Half of the 400 bytes a connection may cost in all (the kernel's map has the other half).
        assert!(size_of::<Connection>() <= 232, "{}", size_of::<Connection>());
        assert_eq!(size_of::<Option<Connection>>(), size_of::<Connection>());
    }

    #[test]
    fn snat_is_seen_in_the_reply_tuple() {
        let mut r = record(Directional::default());
        assert_eq!(Connection::new(&r, Directional::default(), Timestamp(0)).snat_port, 0);
        r.reply.dst_port = 34567;
        r.reply.dst = IpAddr::from([192, 0, 2, 1]);
        let connection = Connection::new(&r, Directional::default(), Timestamp(0));
        assert_eq!(connection.snat_port, 34567);
        assert_eq!(connection.reply(), r.reply);
    }

    proptest! {
        /// Whatever the order of counts, resets and takes: the sum of what is taken is the sum of the kernel's
        /// increments, where a counter that goes down begins again from zero.
        #[test]
        fn taken_is_counted(steps in prop::collection::vec((any::<[u32; 4]>(), any::<bool>()), 1..40)) {
            let mut connection = Connection::new(&record(Directional::default()), Directional::default(), Timestamp(0));
            let (mut last, mut kernel, mut taken) = (Directional::default(), Directional::default(), Directional::default());
            for (values, take) in steps {
                let now = directional(values);
                for (sum, last, now) in [
                    (&mut kernel.original, last.original, now.original),
                    (&mut kernel.reply, last.reply, now.reply),
                ] {
                    let reset = now.packets < last.packets || now.bytes < last.bytes;
                    *sum += if reset { now } else { Counters::new(now.packets - last.packets, now.bytes - last.bytes) };
                }
                last = now;
                connection.count(now);
                if take {
                    taken += connection.take();
                }
            }
            taken += connection.take();
            prop_assert_eq!(taken, kernel);
        }
    }
}
