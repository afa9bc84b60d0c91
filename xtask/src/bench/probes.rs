//! Does the agent answer while it works? Its health check is asked and its live socket is read, all the time.
//!
//! In: a site with an agent, its folder. Out: the slowest answer of `/healthz`, and the longest time without an event on the live socket
//! while flows began all the time. What always holds: flows begin every [`PAUSE`], so that an event is due every [`PAUSE`].

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use flowlogd::wire::live::Request;

use super::load::Flows;
use super::site::Site;
use super::watchers::{HEALTH_PORT, PATIENCE, ask, socket};

pub const PAUSE: Duration = Duration::from_millis(5);

pub struct Answers {
    pub slowest_health: Duration,
    pub health_asked: u64,
    pub longest_gap: Duration,
    pub events: u64,
}

/// Looks for `time`, while `flows` begin.
pub fn look(site: &Site, folder: &Path, flows: &mut Flows, time: Duration) -> anyhow::Result<Answers> {
    let stop = AtomicBool::new(false);
    let mut stream = UnixStream::connect(socket(folder)).context("cannot connect to the live socket")?;
    let request = Request { flows: true, follow: true, ..Request::default() };
    stream.write_all(&request.encode())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let health = scope.spawn(|| -> anyhow::Result<(Duration, u64)> {
            let (mut slowest, mut asked) = (Duration::ZERO, 0);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                ask(site, HEALTH_PORT, "/healthz")?;
                slowest = slowest.max(began.elapsed());
                asked += 1;
                thread::sleep(PAUSE);
            }
            Ok((slowest, asked))
        });
        let reader = scope.spawn(|| -> anyhow::Result<(Duration, u64)> {
            let (mut longest, mut events) = (Duration::ZERO, 0);
            let mut lines = BufReader::new(stream);
            let (mut line, mut last) = (String::new(), None::<Instant>);
            while !stop.load(Ordering::Relaxed) {
                line.clear();
                ensure!(lines.read_line(&mut line)? > 0, "the live socket was closed");
                ensure!(!line.contains("{\"told\":{\"error\""), "the live socket: {line}");
                // The first comes when it comes.
                longest = longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
                last = Some(Instant::now());
                events += 1;
            }
            Ok((longest, events))
        });
        let until = Instant::now() + time;
        let mut outcome = Ok(());
        while Instant::now() < until && outcome.is_ok() {
            outcome = flows.begin(1);
            thread::sleep(PAUSE);
        }
        stop.store(true, Ordering::Relaxed);
        // One more event, so that the reader sees the end.
        outcome = outcome.and_then(|()| flows.begin(1));
        let joined = health.join().map_err(|_| anyhow!("a thread panicked"))?.context("/healthz");
        let read = reader.join().map_err(|_| anyhow!("a thread panicked"))?.context("the live socket");
        outcome?;
        let ((slowest_health, health_asked), (longest_gap, events)) = (joined?, read?);
        Ok(Answers { slowest_health, health_asked, longest_gap, events })
    })
}
