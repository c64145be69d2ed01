//! The addresses that this host's containers have from the manager.
//!
//! A lease is named by network and endpoint, and the manager gives the same one again to whoever
//! asks again from here. So a name that is released while it is being taken anew must keep its
//! lease: requests go one after the other, and a release looks once more before it is sent.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail};
use overlay_cluster::{Cluster, Lease, LeaseSpec};
use overlay_core::model::Vni;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// The leases of this host.
pub struct Leases {
    cluster: Cluster,
    /// Network and name of what has a lease, or is about to have one.
    used: Mutex<HashSet<(Vni, String)>>,
    /// One request at a time.
    gate: tokio::sync::Mutex<()>,
}

impl Leases {
    /// None in use yet.
    pub fn new(cluster: Cluster) -> Arc<Leases> {
        Arc::new(Leases {
            cluster,
            used: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
        })
    }

    /// Notes that a container which an earlier agent attached has its lease.
    pub fn keep(&self, vni: Vni, name: &str) {
        self.used.lock().insert((vni, name.to_owned()));
    }

    /// Leases an address.
    ///
    /// # Errors
    /// When a container of this host has the name, or the manager refuses or does not answer.
    pub async fn take(&self, spec: LeaseSpec) -> Result<Lease> {
        let key = (spec.vni, spec.endpoint.clone());
        if !self.used.lock().insert(key.clone()) {
            bail!(
                "the name '{}' is taken on that network by a container of this host: choose another, or remove it \
                 with 'overlay-dp container rm {}'",
                spec.endpoint,
                spec.endpoint
            );
        }
        let _one = self.gate.lock().await;
        let lease = self.cluster.lease(spec).await;
        if lease.is_err() {
            self.used.lock().remove(&key);
        }
        Ok(lease?)
    }

    /// Gives an address back, in the background: the container is gone whether or not the manager
    /// can be told now.
    pub fn give_back(self: &Arc<Self>, vni: Vni, name: &str, ip: IpAddr) -> JoinHandle<()> {
        self.used.lock().remove(&(vni, name.to_owned()));
        let (this, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move { this.release(vni, &name, ip).await })
    }

    async fn release(&self, vni: Vni, name: &str, ip: IpAddr) {
        let _one = self.gate.lock().await;
        if self.used.lock().contains(&(vni, name.to_owned())) {
            return;
        }
        if let Err(error) = self.cluster.release(vni, ip, name).await {
            tracing::warn!(container = name, %ip, %error, "its address is not given back");
        }
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
                this.release(lease.vni, &lease.endpoint, lease.ip).await;
            }
        });
    }
}
