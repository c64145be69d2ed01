//! Keys for encrypted networks: agreed with other hosts' agents, given to the crypt workers.
//!
//! What is to be said to whom is `overlay-esp`'s; here it is said, over the connections that the
//! hosts have with each other anyway, on which both have shown their certificates. Keys are in
//! memory only. None of this waits in the agent's loop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use overlay_common::wire::ip16;
use overlay_core::model::HostId;
use overlay_esp::keys::{Answer, Keys, Row, Talk, Timing};
use overlay_esp::secret::Secret;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::crypt::Shared;

/// Hosts that are asked at a time.
const AT_ONCE: usize = 16;

/// What is agreed, and who uses it.
pub struct KeyBook {
    keys: Mutex<Keys>,
    /// Something may be due.
    notify: Notify,
    crypt: Arc<Shared>,
    begin: Instant,
}

impl KeyBook {
    /// Nothing is agreed yet.
    pub fn new(crypt: Arc<Shared>, lifetime: Duration) -> Arc<KeyBook> {
        Arc::new(KeyBook {
            keys: Mutex::new(Keys::new(Timing::new(lifetime))),
            notify: Notify::new(),
            crypt,
            begin: Instant::now(),
        })
    }

    /// Whether this host has a container in an encrypted network.
    pub fn set_active(&self, active: bool) {
        self.change(|keys| keys.set_active(active));
    }

    /// There is a host with this VTEP, or it is back.
    pub fn set_peer(&self, host: HostId, vtep: IpAddr) {
        self.change(|keys| keys.set_peer(host, ip16(vtep)));
    }

    /// That host is one no more.
    pub fn remove_peer(&self, host: HostId) {
        self.change(|keys| keys.remove_peer(host));
    }

    /// All keys are to be others.
    pub fn rotate(&self) {
        self.change(Keys::rotate);
    }

    /// What is in use.
    pub fn rows(&self) -> Vec<Row> {
        self.keys.lock().rows(self.begin.elapsed()).collect()
    }

    /// Another host's agent asks.
    ///
    /// # Errors
    /// When it is not known here yet.
    pub fn asked(&self, from: HostId, talk: &Talk) -> Result<Answer> {
        let now = self.begin.elapsed();
        let answer = self.change(|keys| keys.asked(from, talk, now, &mut draw));
        answer.ok_or_else(|| anyhow!("this host does not know of the host that asks yet"))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> T {
        let mut keys = self.keys.lock();
        let result = change(&mut keys);
        self.publish(&mut keys);
        drop(keys);
        self.notify.notify_one();
        result
    }

    /// The workers know of a key before anybody who may use it.
    fn publish(&self, keys: &mut Keys) {
        if keys.take_changed() {
            self.crypt.set_sas(keys.sas());
        }
    }

    /// Asks whom there is to ask, with `ask`, as long as the agent runs.
    pub async fn run<F>(self: Arc<Self>, ask: impl Fn(HostId, Talk) -> F)
    where
        F: Future<Output = Result<Answer>> + Send + 'static,
    {
        let mut asking = JoinSet::new();
        loop {
            let (due, wake_at) = self.due(AT_ONCE - asking.len());
            for (host, talk) in due {
                let answer = ask(host, talk);
                asking.spawn(async move { (host, answer.await) });
            }
            let full = asking.len() >= AT_ONCE;
            let wake_at = wake_at.filter(|_| !full);
            let sleep = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until((self.begin + at).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.notify.notified() => {}
                () = sleep => {}
                Some(done) = asking.join_next() => {
                    if let Ok((host, answer)) = done {
                        self.heard(host, answer);
                    }
                }
            }
        }
    }

    fn due(&self, most: usize) -> (Vec<(HostId, Talk)>, Option<Duration>) {
        let mut keys = self.keys.lock();
        let now = self.begin.elapsed();
        let mut due = Vec::new();
        while due.len() < most
            && let Some(next) = keys.poll(now, &mut draw)
        {
            due.push(next);
        }
        self.publish(&mut keys);
        (due, keys.wake_at())
    }

    fn heard(&self, host: HostId, answer: Result<Answer>) {
        let now = self.begin.elapsed();
        let mut keys = self.keys.lock();
        match answer {
            Ok(answer) => keys.answered(host, &answer, now),
            Err(error) => {
                tracing::debug!(%host, "no keys are agreed: {error:#}");
                keys.failed(host, now);
            }
        }
        self.publish(&mut keys);
    }
}

/// A secret from the system's generator.
fn draw() -> Option<Secret> {
    let secret = Secret::draw();
    if secret.is_err() {
        tracing::error!("the system gives no random numbers: no keys can be made");
    }
    secret.ok()
}
