//! Collectors of flows that Debian has, as people run them without Kubernetes.
//!
//! In: a [`Site`], a folder. Out: a collector that watches the node, and what it has counted when it has ended. What always holds: the
//! configuration is written here, into the folder; buffers are larger than their defaults where a default is
//! for a small link, so that what a collector misses is not our neglect.
//! pmacctd and softflowd copy packets of the device towards the client; ulogd2 reads connection tracking, as flowlogd does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use rustix::net::sockopt;
use rustix::process::Signal;

use super::site::Site;
use super::watchers::{Seen, Watcher, Watching};
use crate::netns::Process;
use crate::packages::{self, Needed};
use crate::usage::Usage;

/// Of the node, towards the client.
const DEVICE: &str = "client";
/// softflowd's records go there.
const NETFLOW_PORT: u16 = 9995;
const START: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Collector {
    Pmacct,
    Softflowd,
    Ulogd,
}

impl Collector {
    pub fn needed(self) -> Needed {
        match self {
            Self::Pmacct => ("pmacctd", "pmacct"),
            Self::Softflowd => ("softflowd", "softflowd"),
            Self::Ulogd => ("ulogd", "ulogd2"),
        }
    }

    fn output(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Pmacct => "pmacct.csv",
            Self::Softflowd => "netflow",
            Self::Ulogd => "ulogd.txt",
        })
    }

    /// Flags; what configuration they name is written.
    fn configure(self, folder: &Path) -> anyhow::Result<Vec<String>> {
        let config = folder.join("collector.conf");
        let (output, at) = (self.output(folder), folder.display());
        let (text, flags) = match self {
            Self::Pmacct => (
                format!(
                    "daemonize: false\npcap_interface: {DEVICE}\nplugins: print\naggregate: src_host, dst_host, src_port, dst_port, proto\n\
                     plugin_pipe_size: 67108864\nplugin_buffer_size: 65536\nprint_cache_entries: 131071\nprint_refresh_time: 10\nprint_output: csv\n\
                     print_output_file: {}\nprint_output_file_append: true\n",
                    output.display()
                ),
                vec!["-f".into(), config.display().to_string()],
            ),
            Self::Softflowd => (
                String::new(),
                [
                    "-d",
                    "-i",
                    DEVICE,
                    "-v",
                    "5",
                    "-n",
                    &format!("127.0.0.1:{NETFLOW_PORT}"),
                    "-m",
                    "1000000",
                    "-t",
                    "expint=1",
                    "-t",
                    "udp=2",
                    "-t",
                    "tcp.rst=1",
                    "-c",
                    &format!("{at}/control"),
                    "-p",
                    &format!("{at}/pid"),
                ]
                .map(str::to_owned)
                .into(),
            ),
            Self::Ulogd => {
                let plugins = format!("/usr/lib/{}-linux-gnu/ulogd", std::env::consts::ARCH);
                let plugin = |name: &str| format!("plugin=\"{plugins}/ulogd_{name}.so\"\n");
                (
                    format!(
                        "[global]\nlogfile=\"{at}/ulogd.log\"\nloglevel=5\n{}{}{}stack=ct1:NFCT,ip2str1:IP2STR,gp1:GPRINT\n\n\
                         [ct1]\nhash_enable=1\nhash_buckets=65536\nhash_max_entries=1048576\nnetlink_socket_buffer_size=67108864\n\
                         netlink_socket_buffer_maxsize=134217728\n\n[gp1]\nfile=\"{}\"\n",
                        plugin("inpflow_NFCT"),
                        plugin("filter_IP2STR"),
                        plugin("output_GPRINT"),
                        output.display(),
                    ),
                    vec!["-c".into(), config.display().to_string()],
                )
            }
        };
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(flags)
    }
}

impl Watcher for Collector {
    fn name(&self) -> String {
        match self {
            Self::Pmacct => "pmacctd, pcap",
            Self::Softflowd => "softflowd, pcap",
            Self::Ulogd => "ulogd2, NFCT",
        }
        .into()
    }

    fn start(&self, site: &Site, folder: &Path) -> anyhow::Result<Box<dyn Watching>> {
        // Without it ulogd2 has no counters; the others do not look at it.
        site.set_accounting(*self == Self::Ulogd)?;
        let (name, _) = self.needed();
        let program = packages::find(name).with_context(|| format!("{name} is gone"))?;
        let flags = self.configure(folder)?;
        let flags: Vec<&OsStr> = flags.iter().map(AsRef::as_ref).collect();
        let exports = (*self == Self::Softflowd).then(|| Exports::listen(site)).transpose()?;
        let said = folder.join("collector.log");
        let log = File::create(&said)?;
        let process = site.node.start(program.as_os_str(), &flags, log.try_clone()?, log)?;
        // None of them says that it observes.
        thread::sleep(START);
        ensure!(process.is_running(), "{name} ended at its start: {}", fs::read_to_string(&said)?.trim());
        Ok(Box::new(Running { collector: *self, process, output: self.output(folder), exports }))
    }
}

struct Running {
    collector: Collector,
    process: Process,
    output: PathBuf,
    exports: Option<Exports>,
}

impl Watching for Running {
    fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.process.id())
    }

    fn stop(mut self: Box<Self>) -> anyhow::Result<Seen> {
        self.process.stop(Signal::INT, PATIENCE)?;
        if let Some(exports) = self.exports.take() {
            return exports.finish();
        }
        let read = || fs::read_to_string(&self.output).unwrap_or_default();
        match self.collector {
            Collector::Pmacct => {
                wait_until_at_rest(&self.output);
                Ok(Seen::sum(read().lines().filter_map(pmacct_row)))
            }
            Collector::Ulogd => Ok(Seen::sum(read().lines().filter_map(ulogd_row))),
            Collector::Softflowd => Err(anyhow!("softflowd without exports")),
        }
    }
}

/// pmacctd's writer is another process, which may end later.
fn wait_until_at_rest(file: &Path) {
    let size = || fs::metadata(file).map_or(0, |file| file.len());
    let until = Instant::now() + PATIENCE;
    let mut last = size();
    loop {
        thread::sleep(Duration::from_millis(1500));
        let now = size();
        if now == last || Instant::now() > until {
            return;
        }
        last = now;
    }
}

/// `…,PACKETS,BYTES`; the heading has no numbers.
fn pmacct_row(row: &str) -> Option<Seen> {
    let mut fields = row.rsplit(',');
    let (bytes, packets) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Seen { flows: 1, packets, bytes })
}

/// `orig.raw.pktlen=92,orig.raw.pktcount=1,reply.raw.pktlen=0,…`
fn ulogd_row(row: &str) -> Option<Seen> {
    let sum = |suffix: &str| -> u64 {
        let values = row.split(',').filter_map(|field| field.split_once('='));
        values
            .filter(|(name, _)| name.ends_with(suffix))
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum()
    };
    row.contains("raw.pktcount=").then(|| Seen {
        flows: 1,
        packets: sum("raw.pktcount"),
        bytes: sum("raw.pktlen"),
    })
}

/// NetFlow 5 that arrives on the node's loopback.
struct Exports {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Exports {
    fn listen(site: &Site) -> anyhow::Result<Self> {
        let socket = site.node.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, NETFLOW_PORT)))??;
        sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = thread::spawn(move || {
            let (mut seen, mut buffer) = (Seen::default(), [0; 2048]);
            loop {
                match socket.recv(&mut buffer) {
                    Ok(size) => seen += netflow(buffer.get(..size).unwrap_or_default()),
                    // Asked to end, and nothing more comes.
                    Err(_) if flag.load(Ordering::Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, thread })
    }

    fn finish(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen =
            self.thread.join().map_err(|_| anyhow!("the thread that receives NetFlow panicked"))?;
        // A record a direction; here flows without answers have one, those with answers two.
        seen.flows = seen.flows.min(seen.packets);
        Ok(seen)
    }
}

/// A datagram of NetFlow 5: 24 bytes of header, records of 48 bytes with packets at 16 and bytes at 20.
fn netflow(datagram: &[u8]) -> Seen {
    let number = |record: &[u8], at: usize| {
        let bytes = record.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        u64::from(u32::from_be_bytes(bytes))
    };
    let records = datagram.get(24..).unwrap_or_default().chunks_exact(48);
    Seen::sum(records.map(|record| Seen { flows: 1, packets: number(record, 16), bytes: number(record, 20) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_collectors_write_is_read() {
        let row = pmacct_row("10.1.0.2,10.99.0.1,4000,1000,udp,3,276").unwrap();
        assert_eq!((row.flows, row.packets, row.bytes), (1, 3, 276));
        assert!(pmacct_row("SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,PACKETS,BYTES").is_none());
        let row = "orig.ip.saddr=1.2.3.4,orig.raw.pktlen=92,orig.raw.pktcount=1,reply.raw.pktlen=8,reply.raw.pktcount=2";
        let row = ulogd_row(row).unwrap();
        assert_eq!((row.flows, row.packets, row.bytes), (1, 3, 100));
        let mut datagram = vec![0; 24 + 2 * 48];
        (datagram[24 + 19], datagram[24 + 23], datagram[24 + 48 + 19]) = (5, 200, 1);
        let seen = netflow(&datagram);
        assert_eq!((seen.flows, seen.packets, seen.bytes), (2, 6, 200));
    }
}
