//! Addresses, ports and protocols of one packet direction, as conntrack knows them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::str::FromStr;

/// IP protocol number (IANA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proto(pub u8);

impl Proto {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const DCCP: Self = Self(33);
    pub const ICMP6: Self = Self(58);
    pub const SCTP: Self = Self(132);
    pub const UDPLITE: Self = Self(136);

    /// The names that Calico's flow logs print; every other protocol is printed as its decimal number.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "icmp",
            4 => "ipip",
            6 => "tcp",
            17 => "udp",
            50 => "esp",
            58 => "icmp6",
            132 => "sctp",
            _ => return None,
        })
    }

    /// tcp, udp, udplite, dccp and sctp; ports of all others are `null` in a line and never in a key.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::UDPLITE | Self::DCCP | Self::SCTP)
    }

    pub fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMP6)
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Proto {
    type Err = String;

    /// The output's names, in any case, or a decimal number 0 to 255.
    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        let number = match lower.as_str() {
            "icmp" => 1,
            "ipip" => 4,
            "tcp" => 6,
            "udp" => 17,
            "esp" => 50,
            "icmp6" => 58,
            "sctp" => 132,
            other => other.parse::<u8>().map_err(|_| {
                format!(
                    "protocol {s:?} is neither one of icmp ipip tcp udp esp icmp6 sctp nor a number 0 to 255"
                )
            })?,
        };
        Ok(Self(number))
    }
}

/// v4-mapped IPv6 addresses are IPv4 addresses.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// One direction of a connection: who sends to whom. Ports are 0 for protocols without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addresses {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

/// By whole words: what is derived feeds a hasher byte slices with their lengths, which costs several times as much.
impl Hash for Addresses {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                state.write_u64(u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits()));
            }
            (src, dst) => {
                for ip in [src, dst] {
                    state.write_u128(match ip {
                        IpAddr::V4(ip) => u128::from(ip.to_bits()),
                        IpAddr::V6(ip) => ip.to_bits(),
                    });
                }
            }
        }
        state.write_u32(u32::from(self.src_port) << 16 | u32::from(self.dst_port));
    }
}

impl Addresses {
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    pub proto: Proto,
    pub addresses: Addresses,
}

/// TCP state of a conntrack entry: `enum tcp_conntrack` of the kernel (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    #[default]
    None = 0,
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    SynSent2,
}

impl TcpState {
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// From the kernel's number; what a newer kernel may add reads as `None`.
    pub fn from_kernel(n: u8) -> Self {
        Self::ALL.get(usize::from(n)).copied().unwrap_or(Self::None)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }

    pub fn from_name(s: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == s)
    }

    /// A flow in one of these states has completed, though its entry lives on.
    pub fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close)
    }
}
