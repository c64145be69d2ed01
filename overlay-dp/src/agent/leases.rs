//! The addresses that this host's containers have from the manager.
//!
//! A lease is named by network and endpoint, and the manager gives the same one again to whoever
//! asks again from here. So a name that is taken anew while its lease is on the way back must wait
//! for that, and one whose lease is still here just keeps it.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use overlay_cluster::{Cluster, Error, Lease, LeaseSpec};
use overlay_core::model::Vni;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Network and name.
type Key = (Vni, String);

/// The leases of this host.
pub struct Leases {
    cluster: Cluster,
    state: Mutex<State>,
    /// A release has ended, well or not.
    released: Notify,
}

#[derive(Default)]
struct State {
    /// What has a lease, or is about to have one.
    used: HashSet<Key>,
    /// What is to be given back. When the manager can't be told now, that is tried again.
    pending: VecDeque<(Key, IpAddr)>,
    /// What is being given back: one after the other.
    releasing: Option<Key>,
}

impl Leases {
    /// None in use yet.
    pub fn new(cluster: Cluster) -> Arc<Leases> {
        Arc::new(Leases {
            cluster,
            state: Mutex::default(),
            released: Notify::new(),
        })
    }

    /// Notes that a container which an earlier agent attached has its lease.
    pub fn keep(&self, vni: Vni, name: &str) {
        self.state.lock().used.insert((vni, name.to_owned()));
    }

    /// Leases an address.
    ///
    /// # Errors
    /// When a container of this host has the name, or the manager refuses or does not answer.
    pub async fn take(&self, spec: LeaseSpec) -> Result<Lease> {
        let key = (spec.vni, spec.endpoint.clone());
        loop {
            let released = self.released.notified();
            {
                let mut state = self.state.lock();
                if state.used.contains(&key) {
                    bail!(
                        "the name '{0}' is taken on that network by a container of this host: \
                         choose another, or remove it with 'overlay-dp container rm {0}'",
                        spec.endpoint
                    );
                }
                if state.releasing.as_ref() != Some(&key) {
                    state.pending.retain(|(pending, _)| *pending != key);
                    state.used.insert(key.clone());
                    break;
                }
            }
            released.await;
        }
        let lease = self.cluster.lease(spec).await;
        if lease.is_err() {
            self.state.lock().used.remove(&key);
        }
        Ok(lease?)
    }

    /// Gives an address back, in the background: the container is gone whether or not the manager
    /// can be told now.
    pub fn give_back(self: &Arc<Self>, vni: Vni, name: &str, ip: IpAddr) {
        let key = (vni, name.to_owned());
        let mut state = self.state.lock();
        state.used.remove(&key);
        state.pending.push_back((key, ip));
        drop(state);
        self.retry();
    }

    /// Goes on with what is to be given back.
    pub fn retry(self: &Arc<Self>) {
        let state = self.state.lock();
        if state.releasing.is_none() && !state.pending.is_empty() {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.release_all().await });
        }
    }

    /// Waits until all is given back, but not longer than `deadline`: the rest is given back at
    /// the next start.
    pub async fn drain(&self, deadline: Duration) {
        let all = async {
            loop {
                let released = self.released.notified();
                if self.is_idle() {
                    return;
                }
                released.await;
            }
        };
        let _ = tokio::time::timeout(deadline, all).await;
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.releasing.is_none() && state.pending.is_empty()
    }

    async fn release_all(&self) {
        while let Some((key, ip)) = self.next() {
            let (vni, name) = &key;
            let done = self.cluster.release(*vni, ip, name).await;
            let mut state = self.state.lock();
            state.releasing = None;
            self.released.notify_waiters();
            if let Err(error) = done {
                if matches!(error, Error::ManagerUnreachable { .. }) {
                    tracing::debug!(container = name, %ip, %error, "its address is given back later");
                    state.pending.push_front((key, ip));
                    return;
                }
                tracing::warn!(container = name, %ip, %error, "its address is not given back");
            }
        }
    }

    fn next(&self) -> Option<(Key, IpAddr)> {
        let mut state = self.state.lock();
        if state.releasing.is_some() {
            return None;
        }
        let next = state.pending.pop_front()?;
        state.releasing = Some(next.0.clone());
        Some(next)
    }

    /// Gives back, in the background, the addresses whose containers a crash took away before this
    /// host could.
    pub fn give_back_lost(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let leases = match this.cluster.leases().await {
                Ok(leases) => leases,
                Err(error) => {
                    return tracing::warn!(%error, "can't look for addresses to give back");
                }
            };
            for lease in leases {
                let key = (lease.vni, lease.endpoint.clone());
                let lost = !this.state.lock().used.contains(&key);
                if lost {
                    this.give_back(lease.vni, &lease.endpoint, lease.ip);
                }
            }
        });
    }
}
