//! The addresses that this host's containers have.
//!
//! The managers lease ranges of addresses to hosts; which container has which of them is this
//! host's own business ([`Holdings`]), so that a container can be attached while no manager
//! answers. A task of its own gives back what is not used and keeps a few addresses in hand.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use overlay_cluster::{Cluster, Error};
use overlay_core::facts::{Refusal, Want};
use overlay_core::holdings::{Holdings, Need};
use overlay_core::model::{Endpoint, HostId, MacAddr, Network, Vni};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// How long an attach waits for other hosts to give back what they don't use.
const RECLAIM: Duration = Duration::from_secs(3);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is held is looked at when nothing happens.
const PERIOD: Duration = Duration::from_secs(5);

/// Network and name.
type Key = (Vni, String);

/// What an endpoint asks for; the rest is chosen.
pub struct Wish {
    /// The network.
    pub network: Network,
    /// The endpoint's name.
    pub name: String,
    /// Its address, in either family; the next free one when absent.
    pub ip: Option<IpAddr>,
    /// Its MAC; 02:42 and the IPv4 address when absent.
    pub mac: Option<MacAddr>,
}

/// What it gets.
pub struct Given {
    /// An address of each family, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Its MAC.
    pub mac: MacAddr,
}

/// The addresses of this host.
pub struct Addresses {
    cluster: Cluster,
    me: HostId,
    state: Mutex<State>,
    /// Something is to be given back or asked for.
    work: Notify,
    /// The task has done what there was.
    idle: Notify,
}

#[derive(Default)]
struct State {
    holdings: Holdings,
    /// What has an address, or is about to have one; with its offset when it has.
    used: HashMap<Key, Option<(u32, MacAddr)>>,
    /// The task is at work, or has failed and waits to try again.
    busy: bool,
}

impl Addresses {
    /// None in use yet.
    pub fn new(cluster: Cluster) -> Arc<Addresses> {
        Arc::new(Addresses {
            me: cluster.me().id,
            cluster,
            state: Mutex::default(),
            work: Notify::new(),
            idle: Notify::new(),
        })
    }

    /// Notes that a container which an earlier agent attached has its address. Without the
    /// network, the address is noted when it is known again.
    pub fn keep(&self, endpoint: &Endpoint) {
        let mut state = self.state.lock();
        let key = (endpoint.vni, endpoint.name.clone());
        let network = self
            .cluster
            .facts(|facts| facts.network(endpoint.vni).cloned());
        let offset =
            network.and_then(|network| endpoint.ips.iter().find_map(|ip| network.offset_of(*ip)));
        if let Some(offset) = offset {
            state.holdings.keep(endpoint.vni, offset);
        }
        state
            .used
            .insert(key, offset.map(|offset| (offset, endpoint.mac)));
    }

    /// Finds an address for an endpoint.
    ///
    /// # Errors
    /// When a container of this host has the name, when the wish can't be met, and when an
    /// address must be asked for and no manager answers.
    pub async fn take(&self, wish: Wish) -> Result<Given> {
        let key = (wish.network.vni, wish.name.clone());
        {
            let mut state = self.state.lock();
            if state.used.contains_key(&key) {
                bail!(
                    "the name '{0}' is taken on that network by a container of this host: choose \
                     another, or remove it with 'overlay-dp container rm {0}'",
                    wish.name
                );
            }
            state.used.insert(key.clone(), None);
        }
        let found = self.find(&wish).await;
        let mut state = self.state.lock();
        match &found {
            Ok((offset, given)) => state.used.insert(key, Some((*offset, given.mac))),
            Err(_) => state.used.remove(&key).flatten().map(Some),
        };
        drop(state);
        self.work.notify_one();
        found.map(|(_, given)| given)
    }

    async fn find(&self, wish: &Wish) -> Result<(u32, Given)> {
        let network = &wish.network;
        if let Some(mac) = wish.mac {
            self.cluster.grant(network.vni, Want::Mac(mac)).await?;
        }
        let offset = self
            .find_offset(wish)
            .await
            .inspect_err(|_| self.work.notify_one())?;
        let mac = wish.mac.or_else(|| network.mac_at(offset));
        let mac = mac.ok_or_else(|| anyhow!("the network has no such address"))?;
        let ips = network.address_at(offset);
        Ok((offset, Given { ips, mac }))
    }

    async fn find_offset(&self, wish: &Wish) -> Result<u32> {
        let vni = wish.network.vni;
        let deadline = Instant::now() + RECLAIM;
        loop {
            let changed = self.cluster.facts_changed();
            let held = {
                let mut state = self.state.lock();
                let take = |facts: &_| state.holdings.take(facts, self.me, vni, wish.ip);
                self.cluster.facts(take)
            };
            let want = match held {
                Ok(offset) => return Ok(offset),
                Err(Need::Refused(refusal)) => bail!(refusal),
                Err(Need::Ask(want)) => want,
            };
            match self.cluster.grant(vni, want).await {
                Ok(_) => {}
                // Other hosts see that something is wanted, and give back what they don't use.
                Err(Error::Refused(refusal)) if may_be_given_back(&refusal) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || timeout(left, changed).await.is_err() {
                        if let Err(error) = self.cluster.unwant(vni).await {
                            tracing::debug!(%error, "what is wanted stays wanted");
                        }
                        bail!(refusal);
                    }
                }
                Err(error @ Error::NoManager { .. }) => {
                    let mut state = self.state.lock();
                    let take = |facts: &_| state.holdings.take_spare(facts, self.me, vni, wish.ip);
                    return self.cluster.facts(take).map_err(|_| error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The container is gone: its address can be used again.
    pub fn give_back(&self, vni: Vni, name: &str) {
        let mut state = self.state.lock();
        if let Some(Some((offset, _))) = state.used.remove(&(vni, name.to_owned())) {
            state.holdings.free(vni, offset);
        }
        state.busy = true;
        drop(state);
        self.work.notify_one();
    }

    /// Looks at once for what is to be given back or asked for.
    pub fn tidy(&self) {
        self.state.lock().busy = true;
        self.work.notify_one();
    }

    /// Waits until nothing is to be given back any more, but not longer than `deadline`: the rest
    /// is given back at the next start.
    pub async fn settle(&self, deadline: Duration) {
        let all = async {
            loop {
                let idle = self.idle.notified();
                if !self.state.lock().busy {
                    return;
                }
                idle.await;
            }
        };
        let _ = timeout(deadline, all).await;
    }

    /// How many addresses of each network are leased to this host, without use, and not on their
    /// way back.
    pub fn unused(&self) -> BTreeMap<Vni, u64> {
        let state = self.state.lock();
        let unused = self
            .cluster
            .facts(|facts| state.holdings.surplus(facts, self.me));
        let count = |ranges: Vec<overlay_core::facts::Range>| -> u64 {
            ranges.iter().map(|r| u64::from(r.last - r.first) + 1).sum()
        };
        unused
            .into_iter()
            .map(|(vni, ranges)| (vni, count(ranges)))
            .collect()
    }

    /// Gives back and asks for, as long as the agent runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let done = self.work_off().await;
            let pause = match done {
                Ok(()) => {
                    self.state.lock().busy = false;
                    self.idle.notify_waiters();
                    PERIOD
                }
                Err(error) => {
                    tracing::debug!(%error, "addresses are given back later");
                    sleep(RETRY).await;
                    continue;
                }
            };
            let changed = self.cluster.facts_changed();
            tokio::select! {
                () = self.work.notified() => {}
                () = changed => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn work_off(&self) -> Result<(), Error> {
        let returns = {
            let mut state = self.state.lock();
            self.cluster
                .facts(|facts| state.holdings.returns(facts, self.me))
        };
        for (vni, ranges) in returns {
            let done = self
                .cluster
                .give_back(vni, ranges.clone(), Vec::new())
                .await;
            if let Err(error) = done {
                // It may have been done all the same: the facts will tell.
                self.state.lock().holdings.return_failed(vni, &ranges);
                if !matches!(error, Error::Refused(_)) {
                    return Err(error);
                }
            }
        }
        for (vni, mac) in self.idle_macs() {
            self.cluster.give_back(vni, Vec::new(), vec![mac]).await?;
        }
        for (vni, ip) in self.lost() {
            if let Err(error) = self.cluster.grant(vni, Want::Ip(ip)).await {
                tracing::error!(%ip, %error, "an address in use is not leased to this host");
            }
        }
        let wants = {
            let state = self.state.lock();
            self.cluster
                .facts(|facts| state.holdings.wants(facts, self.me))
        };
        for (vni, want) in wants {
            if let Err(error) = self.cluster.grant(vni, want).await {
                tracing::debug!(%vni, %error, "no addresses to keep in hand");
            }
        }
        Ok(())
    }

    /// MACs that were claimed for containers which are gone.
    fn idle_macs(&self) -> Vec<(Vni, MacAddr)> {
        let state = self.state.lock();
        let used = |vni, mac| {
            let mut used = state.used.iter();
            // One that is being attached has claimed its MAC before it has an address.
            used.any(|((v, _), have)| *v == vni && have.is_none_or(|(_, m)| m == mac))
        };
        self.cluster.facts(|facts| {
            let claimed = facts.networks_of(self.me).into_iter().flat_map(|vni| {
                let macs = facts.claimed_macs(self.me, vni).into_iter();
                macs.map(move |mac| (vni, mac))
            });
            claimed.filter(|(vni, mac)| !used(*vni, *mac)).collect()
        })
    }

    /// Addresses in use which the facts do not give to this host: those of a restored backup are
    /// older than the container.
    fn lost(&self) -> Vec<(Vni, IpAddr)> {
        let state = self.state.lock();
        self.cluster.facts(|facts| {
            let offsets = state
                .used
                .iter()
                .filter_map(|((vni, _), have)| Some((*vni, (*have)?.0)));
            let lost = offsets.filter(|(vni, offset)| facts.owner(*vni, *offset) != Some(self.me));
            lost.filter_map(|(vni, offset)| {
                let ip = facts.network(vni)?.address_at(offset).first().copied()?;
                Some((vni, ip))
            })
            .collect()
        })
    }
}

/// Whether other hosts may help by giving back what they don't use.
fn may_be_given_back(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Exhausted { .. } | Refusal::Taken { .. })
}
