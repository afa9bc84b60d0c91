//! The modules whose functions are probed, and whether they are still those that were probed.
//!
//! A kprobe on a function of a module dies with the module without a word, and one that comes later under the same name
//! has none (`kprobes_module_callback`). In: `/sys/module`. Out: whether a module went, or went and came. What always
//! holds: a module is told from its successor by the inode of its folder, which kernfs never gives twice while it runs;
//! what is built into the kernel never changes.

use std::os::unix::fs::MetadataExt as _;

const CONNTRACK: &str = "/sys/module/nf_conntrack";
const CTNETLINK: &str = "/sys/module/nf_conntrack_netlink";

/// What is loaded at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    conntrack: Option<u64>,
    ctnetlink: Option<u64>,
}

/// Whose probes are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Connection tracking itself: no connection is left.
    Conntrack,
    /// Only what dumps it.
    Ctnetlink,
}

impl Modules {
    pub fn now() -> Self {
        let inode = |path| std::fs::metadata(path).ok().map(|folder| folder.ino());
        Self { conntrack: inode(CONNTRACK), ctnetlink: inode(CTNETLINK) }
    }

    /// What of `self` is not there in `now`; what came anew is no loss.
    pub fn gone(self, now: Self) -> Option<Gone> {
        let went = |was: Option<u64>, is: Option<u64>| was.is_some() && was != is;
        if went(self.conntrack, now.conntrack) {
            Some(Gone::Conntrack)
        } else if went(self.ctnetlink, now.ctnetlink) {
            Some(Gone::Ctnetlink)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_came_anew_under_its_name_is_another() {
        let of = |conntrack, ctnetlink| Modules { conntrack, ctnetlink };
        let both = of(Some(1), Some(2));
        assert_eq!(both.gone(both), None);
        assert_eq!(of(None, None).gone(both), None);
        assert_eq!(of(Some(1), None).gone(both), None);
        assert_eq!(both.gone(of(Some(3), Some(4))), Some(Gone::Conntrack));
        assert_eq!(both.gone(of(None, None)), Some(Gone::Conntrack));
        assert_eq!(both.gone(of(Some(1), Some(4))), Some(Gone::Ctnetlink));
        assert_eq!(both.gone(of(Some(1), None)), Some(Gone::Ctnetlink));
    }
}
