//! Full maps and full ring buffers, and what an end of the agent in the middle leaves.
//!
//! What must hold: exported + counted as lost = what the kernel counted; and a file that every reader can read.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::{Agent, Options, counted, equal, lines, sums};
use crate::kinds::{compare, folder};
use crate::node::Node;
use crate::{Outcome, reference, traffic};

/// Far more connections than the kernel side may hold: ended ones are exact none the less, and each one that found no
/// place is counted.
pub fn map_full() -> Result<Outcome> {
    limited("map_full", &[("FLOWLOGD_TEST_CONNECTIONS", "64")], "overflow")
}

/// A ring buffer of one page: final records that found no place come with a later sweep, and are counted as delayed.
pub fn ring_full() -> Result<Outcome> {
    limited("ring_full", &[("FLOWLOGD_TEST_RING_BYTES", "4096")], "ring_full")
}

fn limited(case: &str, environment: &[(&str, &str)], stage: &str) -> Result<Outcome> {
    let node = Node::new()?;
    let agent = Agent::start(&folder(case), &Options { source: "auto", environment, ..Options::default() })?;
    if agent.chosen_source() != "ebpf" {
        return Ok(Outcome::Skipped(format!(
            "the source is {}, which has no such map",
            agent.chosen_source()
        )));
    }
    let (client, server) = (node.client(), node.server());
    let listener = traffic::listen(server, false, 8080)?;
    traffic::tcp(client, SocketAddr::new(server.ip(false), 8080), &listener, 400, 100, 100)?;
    let kernel = reference::list()?;
    reference::flush()?;
    let (lines, log) = agent.stop_with_log()?;
    let counted = counted(&log, stage);
    ensure!(counted > 0, "the limit was not reached: stage {stage} counted nothing");
    equal("allow lines", &sums(&lines, "allow")?, &reference::total(&kernel))?;
    Ok(Outcome::Pass(format!("{} connections equal, {stage} counted {counted}", kernel.len())))
}

/// SIGTERM and a new start: traffic of the pause is in, nothing is in twice.
pub fn restarted() -> Result<Outcome> {
    let node = Node::new()?;
    let place = folder("restarted");
    let options = Options { source: "auto", ..Options::default() };
    let agent = Agent::start(&place, &options)?;
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kept = traffic::Open::new(client, to, &listener)?;
    kept.exchange(1000, 2000)?;
    traffic::tcp(client, to, &listener, 2, 10, 10)?;
    agent.stop()?;
    kept.exchange(3000, 4000)?;
    let agent = Agent::start(&place, &options)?;
    kept.exchange(5000, 6000)?;
    kept.close()?;
    let kernel = reference::list()?;
    let lines = agent.stop()?;
    compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{} connections equal over two runs", kernel.len())))
}

/// SIGKILL and a new start: the file stays readable, what was flushed stays, what came in the pause is a baseline.
pub fn killed() -> Result<Outcome> {
    let node = Node::new()?;
    let place = folder("killed");
    let options = Options { source: "auto", ..Options::default() };
    let agent = Agent::start(&place, &options)?;
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kept = traffic::Open::new(client, to, &listener)?;
    kept.exchange(1000, 2000)?;
    let first = reference::total(&reference::list()?);
    agent
        .wait_lines(Duration::from_secs(20), |lines| sums(lines, "allow").is_ok_and(|sums| sums == first))?;
    agent.kill()?;
    kept.exchange(3000, 4000)?;
    let pause = reference::total(&reference::list()?);
    let agent = Agent::start(&place, &options)?;
    kept.exchange(5000, 6000)?;
    let last = reference::total(&reference::list()?);
    agent.stop()?;
    // Whatever the kill left, the file has whole lines only (`lines` would fail).
    let lines = lines(&place)?;
    let mut wanted = first;
    for (key, sums) in &mut wanted {
        let rest = last[key].since(&pause[key]);
        sums.add(&crate::reference::Sums { connections: 0, ..rest });
    }
    equal("allow lines", &sums(&lines, "allow")?, &wanted)?;
    Ok(Outcome::Pass("flushed before, baseline taken, exact after".to_owned()))
}
