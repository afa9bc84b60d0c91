//! What the agent listens on follows its configuration while it runs: the real binary, a file that is changed.
//!
//! One agent on a node of its own (`faults/agent.rs`); each step changes the file, and is over when the new listener answers
//! and the old one does not. Needs what those tests need; where it is missing the test says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(dead_code, reason = "the node is shared with the tests of faults, which use more of it")]

#[path = "faults/agent.rs"]
mod agent;
mod node;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use agent::{Agent, Node};
use node::{OBSERVES, until};

/// The readiness check of this name: whether it passed, and why.
fn check(node: &Node, port: u16, name: &str) -> Option<(bool, String)> {
    let answer = node.namespace.get(port, "readyz")?;
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let found = body["checks"].as_array()?.iter().find(|check| check["name"] == name)?;
    Some((found["passed"].as_bool()?, found["reason"].as_str()?.to_owned()))
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    until(what, || condition().then_some(()));
}

struct File<'a> {
    path: &'a Path,
    folder: &'a Path,
}

impl File<'_> {
    /// The fields that stay, and these.
    fn write(&self, fields: &str) {
        let base = format!(
            "flowLogsFlushInterval: 200ms\nflowLogsFileDirectory: {0}/logs\nflowLogsLiveSocketPath: {0}/live.sock\n",
            self.folder.display()
        );
        let without_own = base.lines().filter(|line| !fields.contains(line.split(':').next().unwrap()));
        let text = without_own.chain(fields.lines()).map(|line| format!("{line}\n")).collect::<String>();
        let aside = self.path.with_extension("new");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.path).unwrap();
    }
}

#[test]
fn every_listener_follows_the_configuration() {
    let Some(node) = Node::make("listeners that follow the configuration") else { return };
    let folder = node.folder.path();
    let path = folder.join("config.yaml");
    let file = File { path: &path, folder };
    file.write("");
    let agent = Agent::launch(&node, "exec \"$@\"", [], &["--config".as_ref(), path.as_os_str()]);
    agent.told(OBSERVES);

    // As it begins: health and the live view, no metrics.
    wait("health", || check(&node, 9097, "health").is_some_and(|(passed, _)| passed));
    assert!(node.namespace.get(9091, "metrics").is_none());
    assert_eq!(check(&node, 9097, "metrics"), None);

    // Metrics on, and then elsewhere.
    file.write("prometheusMetricsEnabled: true");
    wait("metrics", || {
        node.namespace.metric(9091, "flowlogd_listening{listener=\"metrics\"}").as_deref() == Some("1")
    });
    file.write("prometheusMetricsEnabled: true\nprometheusMetricsPort: 9191");
    wait("metrics elsewhere", || node.namespace.metric(9191, "flowlogd_flushes_total").is_some());
    assert!(node.namespace.get(9091, "metrics").is_none(), "the old one is closed");

    // A port that another has: told everywhere, tried again, had when it is free.
    let other = node.namespace.enter(|| TcpListener::bind("127.0.0.1:9291")).unwrap();
    file.write("prometheusMetricsEnabled: true\nprometheusMetricsPort: 9191\nflowLogsHealthPort: 9291");
    let failing = "flowlogd_listening{listener=\"health\"}";
    wait("a health port that is taken", || node.namespace.metric(9191, failing).as_deref() == Some("0"));
    assert!(node.namespace.get(9097, "readyz").is_none(), "the old one is closed");
    agent.told("not served; trying again");
    drop(other);
    wait("health where it was taken", || check(&node, 9291, "health").is_some_and(|(passed, _)| passed));
    assert_eq!(node.namespace.metric(9191, failing).unwrap(), "1");
    assert_ne!(
        node.namespace.metric(9191, "flowlogd_listener_errors_total{listener=\"health\"}").unwrap(),
        "0"
    );

    // The same of metrics is a reason to be unready, and so is TLS that cannot be had: never plain text instead.
    let health = "flowLogsHealthPort: 9291\nprometheusMetricsEnabled: true\n";
    let other = node.namespace.enter(|| TcpListener::bind("127.0.0.1:9391")).unwrap();
    file.write(&format!("{health}prometheusMetricsPort: 9391"));
    wait("a reason", || {
        check(&node, 9291, "metrics").is_some_and(|(passed, why)| !passed && why.contains("in use"))
    });
    drop(other);
    wait("metrics where it was taken", || node.namespace.get(9391, "metrics").is_some());
    file.write(&format!("{health}prometheusMetricsPort: 9391\nprometheusMetricsCertFile: /nowhere"));
    wait("TLS that lacks a key", || {
        check(&node, 9291, "metrics").is_some_and(|(passed, why)| !passed && why.contains("TLS needs"))
    });
    assert!(node.namespace.get(9391, "metrics").is_none());
    // The same port again, at once.
    file.write(&format!("{health}prometheusMetricsPort: 9391\nprometheusReporterEnabled: true"));
    wait("metrics again", || node.namespace.get(9391, "metrics").is_some());
    let of_policies = until("metrics of policies", || node.namespace.get(9092, "metrics"));
    assert!(!of_policies.contains("flowlogd_"), "{of_policies}");

    // The live view: moved, of another group, closed, opened.
    let (first, second) = (folder.join("live.sock"), folder.join("run/other.sock"));
    let mut reader = UnixStream::connect(&first).unwrap();
    reader.write_all(b"{\"lines\":true,\"follow\":true}\n").unwrap();
    file.write(&format!(
        "{health}flowLogsLiveSocketPath: {}\nflowLogsLiveSocketGroup: '4711'",
        second.display()
    ));
    wait("the live view elsewhere", || UnixStream::connect(&second).is_ok());
    let meta = fs::metadata(&second).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!((meta.gid(), meta.mode() & 0o777), (4711, 0o660));
    assert!(!first.exists(), "the old one is closed");
    let mut rest = String::new();
    reader.set_read_timeout(Some(node::PATIENCE)).unwrap();
    match reader.read_to_string(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "its reader is not let go"),
    }
    file.write(&format!("{health}flowLogsLiveEnabled: false"));
    wait("no live view", || !second.exists() && check(&node, 9291, "live").is_none());
    file.write(health);
    wait("the live view again", || UnixStream::connect(&first).is_ok());

    // Off, and nothing waits for a restart.
    assert_eq!(node.namespace.metric(9091, "flowlogd_configuration_waiting_for_restart").unwrap(), "0");
    file.write("flowLogsHealthEnabled: false");
    wait("silence", || {
        node.namespace.get(9291, "readyz").is_none() && node.namespace.get(9091, "metrics").is_none()
    });
    let (status, log) = agent.stop();
    assert!(status.success(), "{log}");
}
