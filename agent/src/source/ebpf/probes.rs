//! The probes on the functions of connection tracking, and what becomes of them when its modules go and come.
//!
//! In: the loaded object. Out: which functions have a probe; whether connection tracking went since they have. What always
//! holds: a probe that this kernel refuses is an error only where connections cannot be told without it; a function
//! that is not there yet is none. Not here: what the programs do, and what is told of existing connections
//! (`connections`).

use aya::Ebpf;
use aya::programs::kprobe::KProbeLinkId;

use super::super::privilege;
use super::kernel::has_symbol;
use super::load::{self, OpenError};
use super::modules::{Gone, Modules};

/// Program, function, and what it is for.
const KPROBES: [(&str, &str, Purpose); 7] = [
    // The end first: whatever is seen to start is then seen to end.
    ("conntrack_free", "nf_conntrack_free", Purpose::Needed),
    ("conntrack_confirm", "__nf_conntrack_confirm", Purpose::Needed),
    ("conntrack_insert", "nf_conntrack_hash_check_insert", Purpose::Extra),
    ("conntrack_dump", "ctnetlink_fill_info", Purpose::Adopt),
    // Where the compiler has split or inlined the one above: these are exported, or called by pointer only.
    ("conntrack_dump_tuple", "nf_ct_port_tuple_to_nlattr", Purpose::AdoptByTuple),
    ("conntrack_dump_tuple", "icmp_tuple_to_nlattr", Purpose::AdoptByTuple),
    ("conntrack_dump_tuple", "icmpv6_tuple_to_nlattr", Purpose::AdoptByTuple),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Needed,
    /// Entries that no packet made.
    Extra,
    Adopt,
    AdoptByTuple,
}

impl Purpose {
    fn is_of_dump(self) -> bool {
        matches!(self, Self::Adopt | Self::AdoptByTuple)
    }
}

/// A program on a function.
struct Probe {
    program: &'static str,
    function: &'static str,
    purpose: Purpose,
    link: KProbeLinkId,
}

pub(super) struct Probes {
    attached: Vec<Probe>,
    /// What was loaded at the last look.
    modules: Modules,
}

impl Probes {
    /// Loads the programs, attaches none.
    pub fn load(bpf: &mut Ebpf) -> Result<Self, OpenError> {
        for (program, _, purpose) in KPROBES {
            match load::load_kprobe(bpf, program) {
                Ok(()) => {}
                Err(error) if purpose == Purpose::Needed => return Err(error),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(Self { attached: Vec::new(), modules: Modules::now() })
    }

    /// Attaches what is not attached yet; true when everything that is needed is.
    pub fn attach(&mut self, bpf: &mut Ebpf) -> Result<bool, OpenError> {
        if !load::has_kprobes() {
            return Err(OpenError::NoKprobes(
                "neither the kprobe event source nor tracefs offers them".into(),
            ));
        }
        for (program, function, purpose) in KPROBES {
            let has_better = purpose == Purpose::AdoptByTuple && self.is_probed("ctnetlink_fill_info");
            if self.is_probed(function) || has_better {
                continue;
            }
            let probe = load::kprobe(bpf, program)?;
            if probe.fd().is_err() {
                continue; // one of the others, which the kernel refused
            }
            let mut attached = probe.attach(function, 0);
            if attached.is_err() && purpose == Purpose::Needed && has_symbol(function) {
                // It may have come with a module that was loaded just now.
                attached = probe.attach(function, 0);
                if let Err(error) = &attached {
                    let why = format!("{function}: {}", load::chain(error));
                    return Err(if privilege::kprobes_need_sys_admin() {
                        OpenError::KprobesDenied(why)
                    } else {
                        OpenError::NoKprobes(why)
                    });
                }
            }
            match attached {
                Ok(link) => self.attached.push(Probe { program, function, purpose, link }),
                Err(error) => {
                    tracing::debug!("no probe on {function} yet: {}", load::chain(&error));
                    if purpose == Purpose::Needed {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether connection tracking went since the last look. Its probes, which are dead, are taken away then, and
    /// [`Self::attach`] is due; probes of the dump alone are renewed at once.
    pub fn look_at_modules(&mut self, bpf: &mut Ebpf) -> Result<bool, OpenError> {
        let was = std::mem::replace(&mut self.modules, Modules::now());
        let Some(gone) = was.gone(self.modules) else { return Ok(false) };
        let _raised = privilege::raise();
        let dead = |probe: &mut Probe| gone == Gone::Conntrack || probe.purpose.is_of_dump();
        for probe in self.attached.extract_if(.., dead) {
            let detached = load::kprobe(bpf, probe.program)?.detach(probe.link);
            if let Err(error) = detached {
                tracing::debug!("a probe of {} that went: {}", probe.function, load::chain(&error));
            }
        }
        if gone == Gone::Ctnetlink {
            self.attach(bpf)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// All that are needed.
    pub fn are_attached(&self) -> bool {
        let needed = |purpose: &Purpose| *purpose == Purpose::Needed;
        KPROBES.iter().all(|(_, function, purpose)| !needed(purpose) || self.is_probed(function))
    }

    /// A dump tells the programs of what exists.
    pub fn can_adopt(&self) -> bool {
        self.attached.iter().any(|probe| probe.purpose.is_of_dump())
    }

    pub fn functions(&self) -> Vec<&'static str> {
        self.attached.iter().map(|probe| probe.function).collect()
    }

    fn is_probed(&self, function: &str) -> bool {
        self.attached.iter().any(|probe| probe.function == function)
    }
}
