//! Readers of the live socket, good and bad, against the real thing.

use std::os::unix::fs::MetadataExt as _;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::task::JoinHandle;

use super::*;
use crate::wire::live::TOLD;

struct Serving {
    live: Live,
    dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Serving {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let live = Live::default();
        let options = LiveOptions { path: dir.path().join("run/live.sock"), group: None };
        let serving = live.clone();
        let task =
            tokio::spawn(
                async move { serving.serve(&options, Duration::from_millis(10), bind, |_| {}).await },
            );
        Self { live, dir, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("run/live.sock")
    }

    /// Connected as soon as somebody listens.
    async fn connect(&self) -> UnixStream {
        loop {
            match UnixStream::connect(self.path()).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn ask(&self, request: &[u8]) -> Lines<BufReader<UnixStream>> {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        BufReader::new(stream).lines()
    }

    /// Registered: the first thing that it is told is that there is nothing.
    async fn follow(&self, request: Request) -> Lines<BufReader<UnixStream>> {
        let mut lines = self.ask(&Request { follow: true, ..request }.encode()).await;
        assert!(matches!(Told::parse(&next(&mut lines).await), Ok(Told::Caught(true))));
        lines
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(lines: &mut Lines<BufReader<UnixStream>>) -> String {
    lines.next_line().await.unwrap().expect("more is told")
}

fn lines() -> Request {
    Request { lines: true, ..Request::default() }
}

#[tokio::test]
async fn the_socket_is_for_root_and_a_group() {
    let serving = Serving::start().await;
    drop(serving.connect().await);
    let metadata = fs::metadata(serving.path()).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o660);
    assert!(fs::read_dir(serving.dir.path().join("run")).unwrap().count() == 1, "nothing is left beside it");

    let options =
        |group: &str| LiveOptions { path: serving.dir.path().join("other"), group: Some(group.into()) };
    assert!(
        bind(&options("no-such-group-here")).unwrap_err().to_string().contains("flowLogsLiveSocketGroup")
    );
    if rustix::process::geteuid().is_root() {
        drop(bind(&options("12345")).unwrap());
        assert_eq!(fs::metadata(serving.dir.path().join("other")).unwrap().gid(), 12345);
    }
    assert_eq!(group_id("root").unwrap(), 0);
}

#[tokio::test]
async fn what_is_in_the_way_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.sock");
    let options = LiveOptions { path: path.clone(), group: None };
    fs::write(&path, "somebody's").unwrap();
    assert!(bind(&options).unwrap_err().to_string().contains("no socket"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
    fs::remove_file(&path).unwrap();

    let listening = bind(&options).unwrap();
    assert!(bind(&options).unwrap_err().to_string().contains("another agent"));
    drop(listening);
    // What a killed agent left behind is no agent.
    assert!(path.exists());
    bind(&options).unwrap();
}

#[tokio::test]
async fn lines_come_as_they_are_after_those_that_were_there() {
    let serving = Serving::start().await;
    serving.live.lines(b"{\"a\":1}\n{\"a\":2}\n");
    let past = Request { past: true, ..lines() };
    let mut once = serving.ask(&past.encode()).await;
    assert_eq!([next(&mut once).await, next(&mut once).await], ["{\"a\":1}", "{\"a\":2}"]);
    assert!(next(&mut once).await.starts_with(TOLD));
    assert!(once.next_line().await.unwrap().is_none(), "it did not ask for more");

    let mut following = serving.ask(&Request { follow: true, ..past }.encode()).await;
    for _ in 0..3 {
        next(&mut following).await;
    }
    serving.live.lines(b"{\"a\":3}\n");
    assert_eq!(next(&mut following).await, "{\"a\":3}");
}

#[tokio::test]
async fn a_stalled_reader_loses_lines_that_are_counted_and_nobody_waits() {
    let serving = Serving::start().await;
    let mut stalled = serving.follow(lines()).await;
    let mut good = serving.follow(lines()).await;
    let line = [&[b'x'; 1023][..], b"\n"].concat();
    let window = line.repeat(1024);
    let (mut read, mut given) = (0u64, 0u64);
    for _ in 0..64 {
        // Returns at once, whoever reads or does not: this thread is the runtime's only one.
        serving.live.lines(&window);
        given += 1024;
        while read < given {
            let text = next(&mut good).await;
            read += u64::from(!text.starts_with(TOLD));
            assert!(!text.contains("lost"), "{text}");
        }
    }
    assert!(serving.live.lost() > 0);
    let (mut got, mut lost) = (0, 0);
    while got + lost < given {
        let text = next(&mut stalled).await;
        match Told::parse(&text) {
            Ok(Told::Lost(n)) => lost += n,
            Ok(_) => {}
            Err(_) => got += 1,
        }
    }
    assert_eq!(lost, serving.live.lost());
    assert!(got > 0 && lost > 0);
}

#[tokio::test]
async fn a_window_beyond_the_queue_is_cut_at_a_line() {
    let serving = Serving::start().await;
    let mut reader = serving.follow(lines()).await;
    let line = [&[b'x'; 99_999][..], b"\n"].concat();
    let window = line.repeat(200);
    serving.live.lines(&window);
    let (mut got, mut lost) = (0, 0);
    while got + lost < 200 {
        let text = next(&mut reader).await;
        match Told::parse(&text) {
            Ok(Told::Lost(n)) => lost += n,
            Ok(_) => {}
            Err(_) => {
                assert_eq!(text.len(), 99_999);
                got += 1;
            }
        }
    }
    assert_eq!(got, (QUEUE / 100_000) as u64);
}

#[tokio::test]
async fn bad_readers_are_refused_and_good_ones_served() {
    let serving = Serving::start().await;
    let mut long = vec![b'x'; REQUEST as usize];
    long.push(b'\n');
    let filter = Request { flows: true, follow: true, filter: "port=http".into(), ..Request::default() };
    for (hostile, words) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not a request"),
        (b"{}\n", "missing field"),
        (b"{\"flows\":true,\"lines\":true,\"past\":true,\"follow\":true,\"more\":1}\n", "unknown field"),
        (&long, "not a request"),
        (&filter.encode(), "column 6"),
    ] {
        let mut answered = serving.ask(hostile).await;
        let text = next(&mut answered).await;
        let Ok(Told::Error(error)) = Told::parse(&text) else { panic!("{text}") };
        assert!(error.contains(words), "{error}");
    }
    // Connected and silent: it holds no reader's place.
    let silent = serving.connect().await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(serving.follow(lines()).await);
    }
    let mut beyond = serving.ask(&Request { follow: true, ..lines() }.encode()).await;
    assert!(next(&mut beyond).await.contains("readers are connected already"));
    assert_eq!(serving.live.readers(), READERS);
    drop((silent, readers.pop()));
    while serving.live.readers() == READERS {
        tokio::task::yield_now().await;
    }
    readers.push(serving.follow(lines()).await);
}

#[test]
fn cuts_are_at_lines() {
    let text = b"one\ntwo\nthree\n";
    assert_eq!(
        (head(text, 100), head(text, 9), head(text, 8), head(text, 2)),
        (&text[..], &text[..8], &text[..8], &b""[..])
    );
    assert_eq!(
        (tail(text, 100), tail(text, 10), tail(text, 9), tail(text, 2)),
        (&text[..], &text[4..], &text[8..], &b""[..])
    );
}
