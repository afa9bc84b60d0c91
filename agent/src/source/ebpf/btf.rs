//! A small reader of BTF: where the running kernel keeps the fields that the programs read.
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux` (they come from the kernel, and are still checked at each step). Out:
//! offsets of members by path, sizes, enum values, the number of a tracepoint's arguments. What always holds: nothing is
//! decoded that is not asked for, so a lookup costs one pass over the types and a few hundred kB that are freed with the
//! reader. Written here because aya keeps its own BTF types private. Not here: which fields matter (`kernel.rs`).
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::collections::HashMap;

const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// What cannot be found is named, so that the message says what this kernel lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("the kernel's BTF is malformed: {0}")]
    Malformed(&'static str),
    #[error("the kernel's BTF has no {0}")]
    Missing(String),
}

pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Byte offset in `types` of each type; index 0 is void.
    index: Vec<u32>,
    /// Structs, unions, enums and typedefs by kind and name; the first of a name wins, as in the kernel.
    names: HashMap<(u32, &'a str), u32>,
}

struct Type<'a> {
    kind: u32,
    /// Of a bitfield struct: member offsets carry a size in their upper byte.
    kind_flag: bool,
    count: usize,
    size_or_type: u32,
    rest: &'a [u8],
}

/// A member: its byte offset from the start of the outermost struct, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub offset: u64,
    type_id: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let raw = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(raw.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// `wanted` are the names to index.
    pub fn parse(data: &'a [u8], wanted: &[&str]) -> Result<Self, BtfError> {
        const SHORT: BtfError = BtfError::Malformed("it ends early");
        let magic = data.get(..2).ok_or(SHORT)?;
        if magic != 0xEB9F_u16.to_ne_bytes() {
            return Err(BtfError::Malformed("wrong magic number or byte order"));
        }
        let header = word(data, 4).ok_or(SHORT)? as usize;
        let section = |at: usize| -> Result<&'a [u8], BtfError> {
            let offset = word(data, at).ok_or(SHORT)? as usize;
            let length = word(data, at + 4).ok_or(SHORT)? as usize;
            let start = header.checked_add(offset).ok_or(SHORT)?;
            data.get(start..start.checked_add(length).ok_or(SHORT)?).ok_or(SHORT)
        };
        let types = section(8)?;
        let strings = section(16)?;
        let mut btf = Self { types, strings, index: vec![0], names: HashMap::new() };
        let mut at = 0_usize;
        while at < types.len() {
            let id = btf.index.len() as u32;
            btf.index.push(u32::try_from(at).map_err(|_| SHORT)?);
            let (name, kind, length) = btf.extent(at).ok_or(SHORT)?;
            if matches!(kind, KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_TYPEDEF)
                && let Some(name) = btf.string(name)
                && wanted.contains(&name)
            {
                btf.names.entry((kind, name)).or_insert(id);
            }
            at = at.checked_add(length).ok_or(SHORT)?;
        }
        Ok(btf)
    }

    /// Name offset, kind and length in bytes of the type at a byte offset.
    fn extent(&self, at: usize) -> Option<(u32, u32, usize)> {
        let name = word(self.types, at)?;
        let info = word(self.types, at + 4)?;
        let kind = (info >> 24) & 0x1f;
        let count = (info & 0xffff) as usize;
        let extra = match kind {
            1 | 14 | 17 => 4, // int, var, decl_tag
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION => count * 12,
            KIND_ENUM => count * 8,
            KIND_FUNC_PROTO => count * 8,
            15 => count * 12, // datasec
            KIND_ENUM64 => count * 12,
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
            | 16 | KIND_TYPE_TAG => 0,
            _ => return None,
        };
        Some((name, kind, 12 + extra))
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let tail = self.strings.get(offset as usize..)?;
        let end = tail.iter().position(|&b| b == 0)?;
        std::str::from_utf8(tail.get(..end)?).ok()
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        let at = *self.index.get(id as usize)? as usize;
        if id == 0 {
            return None;
        }
        let info = word(self.types, at + 4)?;
        Some(Type {
            kind: (info >> 24) & 0x1f,
            kind_flag: info >> 31 != 0,
            count: (info & 0xffff) as usize,
            size_or_type: word(self.types, at + 8)?,
            rest: self.types.get(at + 12..)?,
        })
    }

    /// Through typedefs and qualifiers, bounded: BTF could be a ring of them.
    fn resolve(&self, mut id: u32) -> Option<(u32, Type<'a>)> {
        for _ in 0..32 {
            let ty = self.get(id)?;
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.size_or_type
                }
                _ => return Some((id, ty)),
            }
        }
        None
    }

    fn named(&self, kind: u32, name: &str) -> Option<u32> {
        self.names.get(&(kind, name)).copied()
    }

    fn missing(what: &str) -> BtfError {
        BtfError::Missing(what.to_owned())
    }

    /// Size in bytes of a struct.
    pub fn size_of(&self, name: &str) -> Result<u64, BtfError> {
        let id = self.named(KIND_STRUCT, name).ok_or_else(|| Self::missing(&format!("struct {name}")))?;
        let ty = self.get(id).ok_or(BtfError::Malformed("a type number out of range"))?;
        Ok(u64::from(ty.size_or_type))
    }

    /// A member by its path from a named struct; members of anonymous structs and unions belong to the outer one.
    pub fn member(&self, name: &str, path: &[&str]) -> Result<Member, BtfError> {
        let lacks = || Self::missing(&format!("struct {name} with a member {}", path.join(".")));
        let mut at = Member {
            offset: 0,
            type_id: self.named(KIND_STRUCT, name).ok_or_else(|| Self::missing(&format!("struct {name}")))?,
        };
        for step in path {
            let inner = self.find(at.type_id, step, 0).ok_or_else(lacks)?;
            at = Member { offset: at.offset.saturating_add(inner.offset), type_id: inner.type_id };
        }
        Ok(at)
    }

    pub fn offset_of(&self, name: &str, path: &[&str]) -> Result<u64, BtfError> {
        Ok(self.member(name, path)?.offset)
    }

    fn find(&self, type_id: u32, name: &str, depth: u32) -> Option<Member> {
        let (_, ty) = self.resolve(type_id)?;
        if depth > 8 || !matches!(ty.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for i in 0..ty.count {
            let member_name = word(ty.rest, i * 12)?;
            let member_type = word(ty.rest, i * 12 + 4)?;
            let mut bits = word(ty.rest, i * 12 + 8)?;
            if ty.kind_flag {
                if bits >> 24 != 0 {
                    continue; // a bitfield: none of ours is one
                }
                bits &= 0x00ff_ffff;
            }
            let offset = u64::from(bits / 8);
            if member_name != 0 && self.string(member_name) == Some(name) {
                return Some(Member { offset, type_id: member_type });
            }
            if self.string(member_name).is_none_or(str::is_empty)
                && let Some(inner) = self.find(member_type, name, depth + 1)
            {
                return Some(Member { offset: offset + inner.offset, type_id: inner.type_id });
            }
        }
        None
    }

    /// Offset of a member of element `n` of an array member.
    pub fn element_member(&self, array: Member, n: u64, path: &str) -> Result<u64, BtfError> {
        let lacks = || Self::missing(&format!("an array whose elements have a member {path}"));
        let (_, ty) = self.resolve(array.type_id).ok_or_else(lacks)?;
        if ty.kind != KIND_ARRAY {
            return Err(lacks());
        }
        let (_, element) = word(ty.rest, 0).and_then(|id| self.resolve(id)).ok_or_else(lacks)?;
        let inner = word(ty.rest, 0).and_then(|id| self.find(id, path, 0)).ok_or_else(lacks)?;
        Ok(array.offset + n * u64::from(element.size_or_type) + inner.offset)
    }

    /// The variants of an enum, in order, without values that do not fit 32 bits.
    pub fn variants(&self, name: &str) -> Result<Vec<(&'a str, u32)>, BtfError> {
        let lacks = || Self::missing(&format!("enum {name}"));
        let id = self.named(KIND_ENUM, name).or_else(|| self.named(KIND_ENUM64, name)).ok_or_else(lacks)?;
        let ty = self.get(id).ok_or_else(lacks)?;
        let step = if ty.kind == KIND_ENUM64 { 12 } else { 8 };
        (0..ty.count)
            .map(|i| {
                let name = word(ty.rest, i * step).and_then(|at| self.string(at)).ok_or_else(lacks)?;
                let value = word(ty.rest, i * step + 4).ok_or_else(lacks)?;
                Ok((name, value))
            })
            .collect()
    }

    /// How many arguments the tracepoint `name` passes to a raw tracepoint program.
    pub fn tracepoint_arguments(&self, name: &str) -> Result<usize, BtfError> {
        let lacks = || Self::missing(&format!("tracepoint {name}"));
        let typedef = self.named(KIND_TYPEDEF, &format!("btf_trace_{name}")).ok_or_else(lacks)?;
        let (_, pointer) = self.resolve(typedef).ok_or_else(lacks)?;
        if pointer.kind != KIND_PTR {
            return Err(lacks());
        }
        let (_, prototype) = self.resolve(pointer.size_or_type).ok_or_else(lacks)?;
        if prototype.kind != KIND_FUNC_PROTO {
            return Err(lacks());
        }
        // The first is the tracepoint's own data.
        Ok(prototype.count.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { u32 a; struct { u32 b; } ; }; enum e { X = 7 }` by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0e\0X\0int\0";
        let mut types = Vec::<u32>::new();
        types.extend([11, 1 << 24, 4, 32]); // 1: int
        types.extend([0, (4 << 24) | 1, 4, 5, 1, 0]); // 2: struct { int b; }
        types.extend([1, (4 << 24) | 2, 8, 3, 1, 0, 0, 2, 32]); // 3: struct s
        types.extend([7, (6 << 24) | 1, 4, 9, 7]); // 4: enum e
        let mut out = Vec::new();
        out.extend(0xEB9F_u16.to_ne_bytes());
        out.extend([1, 0]);
        for n in [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32] {
            out.extend(n.to_ne_bytes());
        }
        types.iter().for_each(|n| out.extend(n.to_ne_bytes()));
        out.extend(strings);
        out
    }

    #[test]
    fn members_are_found_through_anonymous_structs() {
        let data = sample();
        let btf = Btf::parse(&data, &["s", "e"]).unwrap();
        assert_eq!(btf.offset_of("s", &["a"]), Ok(0));
        assert_eq!(btf.offset_of("s", &["b"]), Ok(4));
        assert_eq!(btf.size_of("s"), Ok(8));
        assert_eq!(btf.variants("e").unwrap(), [("X", 7)]);
        assert_eq!(btf.offset_of("s", &["c"]), Err(BtfError::Missing("struct s with a member c".into())));
        assert!(btf.variants("nothing").is_err());
    }

    #[test]
    fn damaged_bytes_are_errors_not_panics() {
        let good = sample();
        for cut in 0..good.len() {
            if let Ok(btf) = Btf::parse(&good[..cut], &["s", "e"]) {
                let _ = btf.offset_of("s", &["b"]);
            }
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(btf) = Btf::parse(&bad, &["s", "e"]) {
                    let _ = btf.offset_of("s", &["b"]);
                    let _ = btf.variants("e");
                }
            }
        }
    }
}
