//! The two architectures that guests come in, and all that differs between them.
//!
//! What always holds: the guest's console and its result lines are two serial lines on both.

use std::process::Command;

/// A guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// This machine's: agent and cases are those of the ordinary build.
    Amd64,
    /// A foreign one: agent and cases are cross-compiled, the tools are Debian's packages of it.
    Arm64,
}

impl Architecture {
    /// Debian's name.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Programs that guests of this architecture need on this machine, and the Debian packages that bring them.
    pub fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Amd64 => &[
                ("qemu-system-x86_64", "qemu-system-x86"),
                ("nft", "nftables"),
                ("conntrack", "conntrack"),
                ("ip", "iproute2"),
                ("tc", "iproute2"),
                ("busybox", "busybox-static"),
                ("strip", "binutils"),
                ("dnsmasq", "dnsmasq-base"),
                ("iperf3", "iperf3"),
                ("nc", "netcat-openbsd"),
            ],
            Self::Arm64 => &[
                ("qemu-system-aarch64", "qemu-system-arm"),
                ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
                // A library without a program of its own comes with its neighbour.
                ("aarch64-linux-gnu-gcc", "libc6-dev-arm64-cross"),
            ],
        }
    }

    /// qemu, up to but without kernel, file system and serial lines; and the name of the console's device.
    pub fn machine(self) -> (Command, &'static str) {
        match self {
            Self::Amd64 => {
                let mut qemu = Command::new("qemu-system-x86_64");
                qemu.args(["-cpu", "Nehalem"]);
                (qemu, "ttyS0")
            }
            Self::Arm64 => {
                let mut qemu = Command::new("qemu-system-aarch64");
                qemu.args(["-machine", "virt", "-cpu", "cortex-a57"]);
                (qemu, "ttyAMA0")
            }
        }
    }

    /// The second serial line, written to a character device called `results`.
    pub fn second_serial(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &["-serial", "chardev:results"],
            Self::Arm64 => &["-device", "pci-serial,chardev=results"],
        }
    }
}
