//! The atoms of a line: strings, numbers and addresses as JSON, appended to a buffer.
//!
//! In: a value. Out: its bytes. What always holds: any text becomes a valid JSON string that reads back as the same
//! text, byte for byte what `serde_json` writes (a property). Written here, because the line is put together from
//! pieces (`key=value`, `index|tier|name|…`) that a serializer takes only after they have been joined in memory of
//! their own. Deliberately not here: anything that knows a field's name.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// What a byte becomes inside a string: 0 itself, `u` a `\u00XX`, otherwise a backslash and this.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = b'u';
        i += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// The inside of a JSON string, without quotation marks.
pub fn escaped(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    // Nearly all text is plain. Asked of all bytes at once, without a way out, the compiler makes it wide.
    if !rest.iter().fold(false, |any, byte| any | (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\')) {
        out.extend_from_slice(rest);
        return;
    }
    while let Some(at) = rest.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, tail)) = tail.split_first() else { return };
        match ESCAPES[usize::from(*byte)] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 0xf)]);
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// A JSON string.
pub fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escaped(text, out);
    out.push(b'"');
}

pub fn unsigned(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

pub fn signed(n: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// An address as a JSON string: dotted quad, or RFC 5952; v4-mapped is IPv4.
pub fn address(ip: IpAddr, out: &mut Vec<u8>) {
    out.push(b'"');
    match ip.to_canonical() {
        IpAddr::V4(ip) => dotted_quad(ip, out),
        IpAddr::V6(ip) => {
            // Writing to memory does not fail, and an address has nothing to escape.
            let written = write!(out, "{ip}");
            debug_assert!(written.is_ok());
        }
    }
    out.push(b'"');
}

fn dotted_quad(ip: Ipv4Addr, out: &mut Vec<u8>) {
    for (i, octet) in ip.octets().into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        unsigned(u64::from(octet), out);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_of_ascii_is_escaped_as_serde_json_does() {
        let all: String = (0u8..=127).map(char::from).collect();
        assert_eq!(text(|out| string(&all, out)), serde_json::to_string(&all).unwrap());
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(text(|out| address(mapped, out)), "\"10.1.2.3\"");
    }

    proptest! {
        #[test]
        fn strings_are_those_of_serde_json(s in any::<String>()) {
            prop_assert_eq!(text(|out| string(&s, out)), serde_json::to_string(&s).unwrap());
        }

        #[test]
        fn pieces_escape_as_their_whole(a in any::<String>(), b in any::<String>()) {
            let pieces = text(|out| { escaped(&a, out); escaped(&b, out) });
            prop_assert_eq!(pieces, text(|out| escaped(&format!("{a}{b}"), out)));
        }

        #[test]
        fn addresses_read_back(v4 in any::<u32>(), v6 in any::<u128>()) {
            let v4 = IpAddr::from(Ipv4Addr::from(v4));
            let v6 = IpAddr::from(Ipv6Addr::from(v6)).to_canonical();
            for ip in [v4, v6] {
                prop_assert_eq!(text(|out| address(ip, out)), format!("\"{}\"", ip));
            }
        }
    }
}
