//! TCP statistics of a share: means, minima and maxima over the sockets of the window's connections.
//!
//! In: one sample a socket and window (its last gauges, and what its totals grew by). Out: [`TcpColumns`].
//! Always: sums are exact (128 bits), means are floored, totals saturate; a share without samples is all zeros.

use crate::model::{TcpColumns, TcpSample};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TcpSums {
    sockets: u64,
    sums: [u128; 4],
    /// Congestion window and MSS by their minimum, the two round-trip times by their maximum.
    extremes: TcpColumns,
}

impl TcpSums {
    pub(super) fn add(&mut self, sample: &TcpSample) {
        let TcpSample { send_cwnd, srtt_us, min_rtt_us, mss, retransmits, lost, unrecovered_rto } = *sample;
        let one = Self {
            sockets: 1,
            sums: [send_cwnd, srtt_us, min_rtt_us, mss].map(u128::from),
            extremes: TcpColumns {
                min_send_congestion_window: send_cwnd,
                max_smooth_rtt: srtt_us,
                max_min_rtt: min_rtt_us,
                min_mss: mss,
                total_retransmissions: retransmits,
                lost_packets: lost,
                unrecovered_to: unrecovered_rto,
                ..TcpColumns::default()
            },
        };
        self.merge(&one);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.sockets == 0 {
            *self = *other;
            return;
        }
        if other.sockets == 0 {
            return;
        }
        self.sockets = self.sockets.saturating_add(other.sockets);
        for (sum, more) in self.sums.iter_mut().zip(other.sums) {
            *sum = sum.saturating_add(more);
        }
        let (a, b) = (&mut self.extremes, &other.extremes);
        a.min_send_congestion_window = a.min_send_congestion_window.min(b.min_send_congestion_window);
        a.max_smooth_rtt = a.max_smooth_rtt.max(b.max_smooth_rtt);
        a.max_min_rtt = a.max_min_rtt.max(b.max_min_rtt);
        a.min_mss = a.min_mss.min(b.min_mss);
        a.total_retransmissions = a.total_retransmissions.saturating_add(b.total_retransmissions);
        a.lost_packets = a.lost_packets.saturating_add(b.lost_packets);
        a.unrecovered_to = a.unrecovered_to.saturating_add(b.unrecovered_to);
    }

    pub(super) fn columns(&self) -> TcpColumns {
        let mean = |sum: u128| {
            let mean = sum.checked_div(u128::from(self.sockets)).unwrap_or(0);
            u64::try_from(mean).unwrap_or(u64::MAX)
        };
        let [cwnd, srtt, min_rtt, mss] = self.sums.map(mean);
        TcpColumns {
            mean_send_congestion_window: cwnd,
            mean_smooth_rtt: srtt,
            mean_min_rtt: min_rtt,
            mean_mss: mss,
            ..self.extremes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_minima_maxima_and_totals() {
        let mut sums = TcpSums::default();
        assert_eq!(sums.columns(), TcpColumns::default());
        let sample = |n: u64| TcpSample {
            send_cwnd: 10 * n,
            srtt_us: 100 * n,
            min_rtt_us: 50 * n,
            mss: 1000 + n,
            retransmits: n,
            lost: 1,
            unrecovered_rto: 0,
        };
        sums.add(&sample(2));
        sums.add(&sample(1));
        sums.add(&sample(4));
        let columns = sums.columns();
        assert_eq!((columns.mean_send_congestion_window, columns.min_send_congestion_window), (23, 10));
        assert_eq!((columns.mean_smooth_rtt, columns.max_smooth_rtt), (233, 400));
        assert_eq!((columns.mean_min_rtt, columns.max_min_rtt), (116, 200));
        assert_eq!((columns.mean_mss, columns.min_mss), (1002, 1001));
        assert_eq!((columns.total_retransmissions, columns.lost_packets, columns.unrecovered_to), (7, 3, 0));
    }

    #[test]
    fn hostile_numbers_neither_wrap_nor_panic() {
        let huge = TcpSample {
            send_cwnd: u64::MAX,
            srtt_us: u64::MAX,
            min_rtt_us: u64::MAX,
            mss: u64::MAX,
            retransmits: u64::MAX,
            lost: u64::MAX,
            unrecovered_rto: u64::MAX,
        };
        let mut sums = TcpSums::default();
        sums.add(&huge);
        sums.add(&huge);
        assert_eq!(sums.columns().mean_smooth_rtt, u64::MAX);
        assert_eq!(sums.columns().total_retransmissions, u64::MAX);
    }
}
