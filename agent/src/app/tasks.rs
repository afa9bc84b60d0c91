//! The asynchronous side of the process: the API server's watches, HTTP, the configuration's reload.
//!
//! In: futures. Out: they run on one thread of their own, beside the loop that owns source and pipeline, and tell it
//! what they know through what they share with it (the published world, metrics, settings), never by calling it.
//! What always holds: a task looks at [`Tasks::stopping`] and ends when it is cancelled; [`Tasks::stop`] waits for them, but
//! not longer than it is told. What the tasks do is deliberately not here: they are spawned in `daemon.rs`.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct Tasks {
    runtime: Runtime,
    running: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// # Errors
    /// The thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(4).thread_name("tasks").enable_all();
        Ok(Self {
            runtime: runtime.build()?,
            running: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn_on(task, self.runtime.handle());
    }

    /// Runs a future to its end, here.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Cancelled when the process stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancels all tasks and waits for them; `false` if some had not ended in time.
    pub fn stop(self, within: Duration) -> bool {
        self.stopping.cancel();
        self.running.close();
        let ended = self.runtime.block_on(async { tokio::time::timeout(within, self.running.wait()).await });
        self.runtime.shutdown_background();
        ended.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_stop_waits_for_tasks_that_listen_and_not_for_others() {
        let tasks = Tasks::start().unwrap();
        let cleaned = Arc::new(AtomicBool::new(false));
        let (stopping, flag) = (tasks.stopping(), cleaned.clone());
        tasks.spawn(async move {
            stopping.cancelled().await;
            flag.store(true, Ordering::SeqCst);
        });
        assert!(tasks.stop(Duration::from_secs(60)));
        assert!(cleaned.load(Ordering::SeqCst));

        let tasks = Tasks::start().unwrap();
        tasks.spawn(std::future::pending());
        assert!(!tasks.stop(Duration::ZERO));
    }
}
