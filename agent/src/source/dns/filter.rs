//! The classic filter of the capture: what is not port 53 ends here, after a few instructions.
//!
//! In: a packet from its network header on (`SOCK_DGRAM`). Out: the packet whole, or nothing. IPv4: no options are
//! assumed, of fragments only the first. IPv6: one extension header is walked (hop-by-hop, routing, destination
//! options, or a first fragment); what hides deeper is not seen. Always: no other way through than port 53 of UDP or
//! TCP, so nothing else is ever copied to the agent.
//! Own code: these are the kernel's own instructions, and libraries that make them need libpcap.

use socket2::SockFilter;

// linux/bpf_common.h
const LDB_ABS: u16 = 0x30;
const LDH_ABS: u16 = 0x28;
const LDH_IND: u16 = 0x48;
/// X = 4 * (the low half of the byte at k): the length of an IPv4 header.
const LDX_MSH: u16 = 0xb1;
const LDX_IMM: u16 = 0x01;
const TAX: u16 = 0x07;
const ADD: u16 = 0x04;
const LSH: u16 = 0x64;
const AND: u16 = 0x54;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const RET: u16 = 0x06;

/// Where jumps go; numbers are only known when all is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    V6,
    Extension,
    Fragment,
    Transport,
    Ports,
    Accept,
    Reject,
}

#[derive(Clone, Copy)]
struct Step {
    code: u16,
    k: u32,
    yes: To,
    no: To,
    label: To,
}

fn step(code: u16, k: u32) -> Step {
    Step { code, k, yes: To::Next, no: To::Next, label: To::Next }
}

fn test(code: u16, k: u32, yes: To, no: To) -> Step {
    Step { code, k, yes, no, label: To::Next }
}

fn at(label: To, step: Step) -> Step {
    Step { label, ..step }
}

const TCP: u32 = 6;
const UDP: u32 = 17;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION: u32 = 60;

fn steps(port: u32) -> Vec<Step> {
    use To::{Accept, Extension, Fragment, Next, Ports, Reject, Transport, V6};
    vec![
        // Version.
        step(LDB_ABS, 0),
        step(AND, 0xf0),
        test(JEQ, 0x60, V6, Next),
        test(JEQ, 0x40, Next, Reject),
        // IPv4: fragments but the first have no ports.
        step(LDH_ABS, 6),
        test(JSET, 0x1fff, Reject, Next),
        step(LDX_MSH, 0),
        step(LDB_ABS, 9),
        test(JA, 0, Transport, Next),
        // IPv6.
        at(V6, step(LDX_IMM, 40)),
        step(LDB_ABS, 6),
        test(JEQ, UDP, Ports, Next),
        test(JEQ, TCP, Ports, Next),
        test(JEQ, FRAGMENT, Fragment, Next),
        test(JEQ, HOP_BY_HOP, Extension, Next),
        test(JEQ, ROUTING, Extension, Next),
        test(JEQ, DESTINATION, Extension, Reject),
        // 40 + 8 * (its length + 1)
        at(Extension, step(LDB_ABS, 41)),
        step(LSH, 3),
        step(ADD, 48),
        step(TAX, 0),
        step(LDB_ABS, 40),
        test(JA, 0, Transport, Next),
        at(Fragment, step(LDH_ABS, 42)),
        test(JSET, 0xfff8, Reject, Next),
        step(LDX_IMM, 48),
        step(LDB_ABS, 40),
        at(Transport, test(JEQ, UDP, Ports, Next)),
        test(JEQ, TCP, Ports, Reject),
        at(Ports, step(LDH_IND, 0)),
        test(JEQ, port, Accept, Next),
        step(LDH_IND, 2),
        test(JEQ, port, Accept, Reject),
        at(Accept, step(RET, u32::MAX)),
        at(Reject, step(RET, 0)),
    ]
}

/// The program.
pub fn program(port: u16) -> Vec<SockFilter> {
    laid_out(port).into_iter().map(|(code, yes, no, k)| SockFilter::new(code, yes, no, k)).collect()
}

fn laid_out(port: u16) -> Vec<(u16, u8, u8, u32)> {
    let steps = steps(port.into());
    let place = |from: usize, to: To| match to {
        To::Next => 0,
        to => steps.iter().position(|step| step.label == to).map_or(0, |place| place - from - 1),
    };
    let distance = |from: usize, to: To| u8::try_from(place(from, to)).unwrap_or(u8::MAX);
    steps
        .iter()
        .enumerate()
        .map(|(from, step)| match step.code {
            JA => (JA, 0, 0, place(from, step.yes) as u32),
            code => (code, distance(from, step.yes), distance(from, step.no), step.k),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    /// What the kernel does with the program (Documentation/networking/filter.rst): an access beyond the packet rejects.
    fn runs(packet: &[u8]) -> bool {
        let program = laid_out(53);
        let load = |at: u32, bytes: usize| {
            let at = at as usize;
            let slice = packet.get(at..at.checked_add(bytes)?)?;
            Some(slice.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)))
        };
        let (mut a, mut x, mut pc) = (0_u32, 0_u32, 0_usize);
        loop {
            let (code, yes, no, k) = program[pc];
            pc += 1;
            let loaded = match code {
                LDB_ABS => load(k, 1),
                LDH_ABS => load(k, 2),
                LDH_IND => load(x.wrapping_add(k), 2),
                LDX_MSH => load(k, 1),
                _ => Some(0),
            };
            let Some(loaded) = loaded else { return false };
            match code {
                LDB_ABS | LDH_ABS | LDH_IND => a = loaded,
                LDX_MSH => x = 4 * (loaded & 0xf),
                LDX_IMM => x = k,
                TAX => x = a,
                ADD => a = a.wrapping_add(k),
                LSH => a <<= k,
                AND => a &= k,
                JEQ => pc += usize::from(if a == k { yes } else { no }),
                JSET => pc += usize::from(if a & k != 0 { yes } else { no }),
                JA => pc += k as usize,
                RET => return k != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn udp(v6: bool, from: u16, to: u16) -> Vec<u8> {
        let ip = if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut packet = Vec::new();
        ip.udp(from, to).write(&mut packet, b"xx").unwrap();
        packet
    }

    fn extended(next: u8, length: u8) -> Vec<u8> {
        let mut packet = udp(true, 40_000, 53);
        let mut header = vec![17, length];
        header.resize(8 * (usize::from(length) + 1), 0);
        packet[6] = next;
        packet.splice(40..40, header);
        packet
    }

    #[test]
    fn port_53_passes_both_ways_and_nothing_else() {
        for v6 in [false, true] {
            assert!(runs(&udp(v6, 40_000, 53)));
            assert!(runs(&udp(v6, 53, 40_000)));
            assert!(!runs(&udp(v6, 40_000, 5353)));
        }
        let mut tcp = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(53, 40_000, 1, 1)
            .write(&mut tcp, b"")
            .unwrap();
        assert!(runs(&tcp));
        let mut icmp = Vec::new();
        let echo = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).icmpv4_echo_request(53, 53);
        echo.write(&mut icmp, &[0, 53, 0, 53]).unwrap();
        assert!(!runs(&icmp));
    }

    #[test]
    fn one_extension_header_is_walked_and_of_fragments_the_first_passes() {
        assert!(runs(&extended(0, 0)) && runs(&extended(60, 2)) && runs(&extended(43, 1)));
        assert!(!runs(&extended(51, 0)));
        assert!(runs(&extended(44, 0)));
        let mut later = extended(44, 0);
        later[42] = 1;
        assert!(!runs(&later));
        let mut first = udp(false, 40_000, 53);
        first[6] = 0x20;
        assert!(runs(&first));
        first[7] = 1;
        assert!(!runs(&first));
    }

    #[test]
    fn jumps_stay_in_the_program() {
        let program = laid_out(53);
        for (from, (code, yes, no, k)) in program.iter().enumerate() {
            let far = match *code {
                JA => *k as usize,
                JEQ | JSET => usize::from(*yes.max(no)),
                _ => 0,
            };
            assert!(from + 1 + far < program.len() || *code == RET);
        }
    }

    proptest! {
        /// What passes is what user space finds a port 53 in, as far as the filter walks.
        #[test]
        fn what_passes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..80), first in any::<bool>()) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = if first { 0x45 } else { 0x60 };
            }
            let _ = runs(&bytes);
        }
    }
}
