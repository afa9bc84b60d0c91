//! Questions and answers become lookups: each once, though a packet is seen on several devices.
//!
//! In: messages with who sent them and when. Out: a [`DnsRecord`] a lookup. Always: copies of one message (before and
//! after NAT, on the pod's device, a bridge, the node's own) share identifier and question, and the client's end or the
//! server's; the first copy of an answer has the server that gave it, the last one the client that asked, so a lookup
//! is told a moment after its answer ([`HOLD`]); latency is from the first copy of the question to the last of the
//! answer. Tables are bounded; what was not answered or did not fit is counted. Time is an argument.
//! Not here: sockets, parsing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::packet::Message;
use crate::model::{DnsRecord, Proto, Timestamp};

/// How long copies of an answer are waited for.
pub const HOLD: Duration = Duration::from_millis(50);
/// A copy that comes later than this is another lookup.
const REMEMBER: Duration = Duration::from_secs(2);
/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Questions, and answers, that are kept.
const LIMIT: usize = 32 << 10;

/// Messages with one identifier and question: more of them are no chance, and looking through them would cost.
const ALIKE: usize = 32;

/// What all copies of a message share, as a fingerprint.
type Key = u64;

#[derive(Debug)]
struct Question {
    key: Key,
    at: Timestamp,
    client: SocketAddr,
    server: SocketAddr,
    answered: bool,
}

#[derive(Debug)]
struct Answer {
    key: Key,
    first: Timestamp,
    last: Timestamp,
    client: SocketAddr,
    last_server: SocketAddr,
    told: bool,
    record: DnsRecord,
}

/// Totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatchStats {
    pub lookups: u64,
    /// Copies of messages that another device had shown.
    pub copies: u64,
    pub unanswered: u64,
    /// Answers to questions that were not seen.
    pub unasked: u64,
    /// Messages for which the tables had no place.
    pub overflow: u64,
}

#[derive(Debug, Default)]
pub struct Matcher {
    hasher: RandomState,
    /// In the order of their times, each counted from the first that ever was.
    questions: VecDeque<Question>,
    questions_gone: u64,
    answers: VecDeque<Answer>,
    answers_gone: u64,
    /// By key: the last of each.
    asked: HashMap<Key, Vec<u64>, RandomState>,
    given: HashMap<Key, Vec<u64>, RandomState>,
    pub stats: MatchStats,
}

impl Matcher {
    fn key(&self, message: &Message) -> Key {
        use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
        let mut hasher = self.hasher.build_hasher();
        message.id.hash(&mut hasher);
        message.kind.hash(&mut hasher);
        for byte in message.question.bytes() {
            hasher.write_u8(byte.to_ascii_lowercase());
        }
        hasher.finish()
    }

    pub fn message(
        &mut self,
        proto: Proto,
        from: SocketAddr,
        to: SocketAddr,
        message: Message,
        at: Timestamp,
    ) {
        let key = self.key(&message);
        if message.is_answer {
            self.answer(key, proto, (to, from), message, at);
        } else {
            self.question(key, from, to, at);
        }
    }

    fn question(&mut self, key: Key, client: SocketAddr, server: SocketAddr, at: Timestamp) {
        let gone = self.questions_gone;
        let places = self.asked.get(&key).map(Vec::as_slice).unwrap_or_default();
        if places.len() >= ALIKE {
            self.stats.overflow += 1;
            return;
        }
        for place in places {
            let Some(known) = self.questions.get_mut(place.wrapping_sub(gone) as usize) else { continue };
            if !known.answered && (known.client == client || known.server == server) {
                // The same question elsewhere, or asked again: its first time counts.
                self.stats.copies += 1;
                known.server = server;
                return;
            }
        }
        if self.questions.len() >= LIMIT {
            self.stats.overflow += 1;
            return;
        }
        self.asked.entry(key).or_default().push(gone + self.questions.len() as u64);
        self.questions.push_back(Question { key, at, client, server, answered: false });
    }

    fn answer(
        &mut self,
        key: Key,
        proto: Proto,
        (client, server): (SocketAddr, SocketAddr),
        message: Message,
        at: Timestamp,
    ) {
        let gone = self.answers_gone;
        if self.given.get(&key).is_some_and(|places| places.len() >= ALIKE) {
            self.stats.overflow += 1;
            return;
        }
        for place in self.given.get(&key).into_iter().flatten() {
            let Some(known) = self.answers.get_mut(place.wrapping_sub(gone) as usize) else { continue };
            if known.client == client || known.last_server == server {
                self.stats.copies += 1;
                if !known.told {
                    // Closer to the client.
                    known.client = client;
                    known.last_server = server;
                    known.last = at.max(known.last);
                }
                return;
            }
        }
        if self.answers.len() >= LIMIT {
            self.stats.overflow += 1;
            return;
        }
        self.given.entry(key).or_default().push(gone + self.answers.len() as u64);
        let record = DnsRecord {
            client: client.ip(),
            client_port: Some((proto, client.port())),
            server: server.ip(),
            question: message.question,
            qtype: Some(message.kind),
            qclass: Some(message.class),
            rcode: message.rcode,
            latency_us: 0,
            answers: message.answers,
        };
        self.answers.push_back(Answer {
            key,
            first: at,
            last: at,
            client,
            last_server: server,
            told: false,
            record,
        });
    }

    /// An answer waits to be told.
    pub fn is_holding(&self) -> bool {
        self.answers.back().is_some_and(|answer| !answer.told)
    }

    /// Tells the lookups whose answers have waited long enough; `all`: every one.
    pub fn tell(&mut self, now: Timestamp, all: bool, mut told: impl FnMut(Timestamp, DnsRecord)) {
        // Told in their order: what was told stays in front for a while.
        let told_before = self.answers.partition_point(|answer| answer.told);
        for answer in self.answers.iter_mut().skip(told_before) {
            if !all && !is_over(answer.first, HOLD, now) {
                break;
            }
            answer.told = true;
            let mut asked: Option<Timestamp> = None;
            for place in self.asked.get(&answer.key).into_iter().flatten() {
                let Some(question) = self.questions.get_mut(place.wrapping_sub(self.questions_gone) as usize)
                else {
                    continue;
                };
                let is_its = question.client == answer.client
                    || question.server == answer.last_server
                    || question.server.ip() == answer.record.server;
                if is_its && !question.answered && question.at <= answer.last {
                    question.answered = true;
                    asked = Some(asked.map_or(question.at, |asked| asked.min(question.at)));
                }
            }
            let latency = asked.map(|asked| answer.last - asked);
            self.stats.unasked += u64::from(latency.is_none());
            let empty = DnsRecord { answers: Vec::new(), ..answer.record.clone() };
            let mut record = std::mem::replace(&mut answer.record, empty);
            record.client = answer.client.ip();
            record.client_port = record.client_port.map(|(proto, _)| (proto, answer.client.port()));
            // 0 says that it was not measured.
            record.latency_us =
                latency.map_or(0, |latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
            self.stats.lookups += 1;
            told(answer.first, record);
        }
        self.forget(now, all);
    }

    #[cfg(test)]
    pub fn remembers_nothing(&self) -> bool {
        self.asked.is_empty() && self.given.is_empty()
    }

    fn forget(&mut self, now: Timestamp, all: bool) {
        while let Some(question) = self.questions.front()
            && (all || question.answered || is_over(question.at, PATIENCE, now))
        {
            self.stats.unanswered += u64::from(!question.answered);
            unlink(&mut self.asked, question.key, self.questions_gone);
            self.questions.pop_front();
            self.questions_gone += 1;
        }
        while let Some(answer) = self.answers.front()
            && answer.told
            && (all || is_over(answer.first, REMEMBER, now))
        {
            unlink(&mut self.given, answer.key, self.answers_gone);
            self.answers.pop_front();
            self.answers_gone += 1;
        }
    }
}

/// That much time has gone since; or the clock was set back, and nobody can tell how much.
fn is_over(since: Timestamp, wait: Duration, now: Timestamp) -> bool {
    now >= since.plus(wait) || since > now.plus(wait)
}

fn unlink(index: &mut HashMap<Key, Vec<u64>, RandomState>, key: Key, place: u64) {
    if let Some(places) = index.get_mut(&key) {
        places.retain(|known| *known != place);
        if places.is_empty() {
            index.remove(&key);
        }
    }
}
