//! The addresses that this host's containers have.
//!
//! The managers lease ranges of addresses to hosts; which container has which of them is this
//! host's own business ([`Holdings`]), so that a container can be attached while no manager
//! answers. A task of its own gives back what is not used and keeps a few addresses in hand.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use overlay_cluster::{Cluster, Error};
use overlay_core::facts::{Facts, Refusal};
use overlay_core::holdings::{GiveBack, Holdings, Need, Surplus};
use overlay_core::model::{Endpoint, HostId, MacAddr, Network, Vni};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::state::JsonFile;

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
    /// One from the end of the range rather than the next free one.
    pub last: bool,
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
    /// What is being given back must be known again after a crash: it may not be used.
    file: JsonFile<Holdings>,
    /// Something is to be given back or asked for.
    work: Notify,
    /// The task has done what there was.
    idle: Notify,
}

struct State {
    holdings: Holdings,
    /// What has an address, or is about to have one.
    names: HashMap<Key, Option<Held>>,
    /// How often it was asked to look for what is to be given back …
    asked: u64,
    /// … and up to which of these times that has been done.
    done: u64,
}

/// What an endpoint has.
#[derive(Clone, Copy)]
struct Held {
    offset: u32,
    /// A MAC that does not go with the address.
    mac: Option<MacAddr>,
}

impl Addresses {
    /// Nothing is in use yet. With `resume`, goes on with what an earlier agent was giving back;
    /// otherwise that was another cluster's.
    ///
    /// # Errors
    /// When the file in `dir` can't be read.
    pub fn load(cluster: Cluster, dir: &Path, resume: bool) -> Result<Arc<Addresses>> {
        let file: JsonFile<Holdings> = JsonFile::new(dir, "addresses.json")?;
        let holdings = if resume {
            file.load()?
        } else {
            Holdings::new()
        };
        Ok(Arc::new(Addresses {
            me: cluster.me().id,
            cluster,
            state: Mutex::new(State {
                holdings,
                names: HashMap::new(),
                asked: 1,
                done: 0,
            }),
            file,
            work: Notify::new(),
            idle: Notify::new(),
        }))
    }

    /// Notes that a container which an earlier agent attached has its address.
    pub fn keep(&self, endpoint: &Endpoint) {
        let vni = endpoint.vni;
        let network = self.cluster.facts(|facts| facts.network(vni).cloned());
        let held = network.and_then(|network| {
            let mut ips = endpoint.ips.iter();
            let offset = ips.find_map(|ip| network.offset_of(*ip))?;
            let mac = Some(endpoint.mac).filter(|mac| network.mac_at(offset) != *mac);
            Some(Held { offset, mac })
        });
        let mut state = self.state.lock();
        if let Some(held) = held {
            state.holdings.keep(vni, held.offset);
            if let Some(mac) = held.mac {
                state.holdings.keep_mac(vni, mac);
            }
        }
        state.names.insert((vni, endpoint.name.clone()), held);
    }

    /// Notes that `name` has had an offset of a network since before the start.
    pub fn keep_offset(&self, vni: Vni, name: &str, offset: u32, mac: Option<MacAddr>) {
        let mut state = self.state.lock();
        state.holdings.keep(vni, offset);
        if let Some(mac) = mac {
            state.holdings.keep_mac(vni, mac);
        }
        let held = Some(Held { offset, mac });
        state.names.insert((vni, name.to_owned()), held);
    }

    /// Finds a MAC for what has its address already.
    ///
    /// # Errors
    /// When somebody has it, and when no manager can be asked for it.
    pub async fn take_mac(&self, network: &Network, name: &str, mac: MacAddr) -> Result<()> {
        let (vni, key) = (network.vni, (network.vni, name.to_owned()));
        let held = self.state.lock().names.get(&key).copied().flatten();
        let Some(held) = held else {
            bail!("'{name}' has no address");
        };
        if held.mac == Some(mac) || network.mac_at(held.offset) == mac {
            return Ok(());
        }
        let take =
            |holdings: &mut Holdings, facts: &Facts, me| holdings.take_mac(facts, me, vni, mac);
        self.ask(vni, take, |_, _, _| None).await.inspect_err(|_| {
            self.state.lock().holdings.gave_up_mac(vni, mac);
        })?;
        let held = Some(Held {
            mac: Some(mac),
            ..held
        });
        let before = self.state.lock().names.insert(key, held);
        if let Some(before) = before.flatten().and_then(|before| before.mac) {
            self.state.lock().holdings.free_mac(vni, before);
        }
        self.tidy();
        Ok(self.cluster.keep_facts().await?)
    }

    /// Finds an address for an endpoint.
    ///
    /// # Errors
    /// When a container of this host has the name, when the wish can't be met, and when an
    /// address must be asked for and no manager answers.
    pub async fn take(&self, wish: Wish) -> Result<Given> {
        let key = (wish.network.vni, wish.name.clone());
        match self.state.lock().names.entry(key.clone()) {
            Entry::Occupied(_) => bail!(
                "the name '{0}' is taken on that network by a container of this host: choose \
                 another, or remove it with 'overlay-dp container rm {0}'",
                wish.name
            ),
            Entry::Vacant(entry) => entry.insert(None),
        };
        let found = self.find(&wish).await;
        {
            let names = &mut self.state.lock().names;
            match &found {
                Ok(held) => names.insert(key, Some(*held)),
                Err(_) => names.remove(&key),
            };
        }
        self.tidy();
        let held = found?;
        // After a crash the network must be known, else the address would be given back.
        if let Err(error) = self.cluster.keep_facts().await {
            self.give_back(wish.network.vni, &wish.name);
            return Err(error.into());
        }
        let network = &wish.network;
        Ok(Given {
            ips: network.address_at(held.offset),
            mac: held.mac.unwrap_or_else(|| network.mac_at(held.offset)),
        })
    }

    async fn find(&self, wish: &Wish) -> Result<Held> {
        let vni = wish.network.vni;
        let take = |holdings: &mut Holdings, facts: &Facts, me| match wish.last {
            true => holdings.take_last(facts, me, vni),
            false => holdings.take(facts, me, vni, wish.ip),
        };
        // What is kept in hand is for when nothing is granted.
        let spare = |holdings: &mut Holdings, facts: &Facts, me| match wish.ip {
            Some(_) => None,
            None => holdings.take_spare(facts, me, vni),
        };
        let offset = self.ask(vni, take, spare).await.inspect_err(|_| {
            let holdings = &mut self.state.lock().holdings;
            self.cluster
                .facts(|facts| holdings.gave_up(facts, vni, wish.ip));
        })?;
        let own = |mac: &MacAddr| wish.network.mac_at(offset) != *mac;
        let mac = wish.mac.filter(own);
        if let Some(mac) = mac {
            let take =
                |holdings: &mut Holdings, facts: &Facts, me| holdings.take_mac(facts, me, vni, mac);
            self.ask(vni, take, |_, _, _| None).await.inspect_err(|_| {
                let holdings = &mut self.state.lock().holdings;
                holdings.gave_up_mac(vni, mac);
                holdings.free(vni, offset);
            })?;
        }
        Ok(Held { offset, mac })
    }

    /// Takes something, asking the managers for it as often as is needed; `else_take` is tried
    /// when they grant nothing.
    async fn ask<T>(
        &self,
        vni: Vni,
        mut take: impl FnMut(&mut Holdings, &Facts, HostId) -> Result<T, Need>,
        mut else_take: impl FnMut(&mut Holdings, &Facts, HostId) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + RECLAIM;
        let mut waited = false;
        let taken = loop {
            let changed = self.cluster.facts_changed();
            let want = match self.with(&mut take) {
                Ok(taken) => break Ok(taken),
                Err(Need::Ask(want)) => want,
                Err(other) => break Err(other.into()),
            };
            // Who can't grant need not be asked: that takes seconds.
            if !self.cluster.control().quorum
                && let Some(taken) = self.with(&mut else_take)
            {
                break Ok(taken);
            }
            let error = match self.cluster.grant(vni, want).await {
                Ok(_) if Instant::now() < deadline => continue,
                Ok(_) => {
                    break Err(anyhow!(
                        "a manager granted it, but that is not known here yet: try again"
                    ));
                }
                Err(error) => error,
            };
            let may_come = matches!(
                error,
                Error::Refused(Refusal::Exhausted { .. } | Refusal::Taken { .. })
            );
            if (may_come || matches!(error, Error::NoManager { .. }))
                && let Some(taken) = self.with(&mut else_take)
            {
                break Ok(taken);
            }
            // Other hosts see that something is wanted, and give back what they don't use.
            waited |= may_come;
            let left = deadline.saturating_duration_since(Instant::now());
            if !may_come || left.is_zero() || timeout(left, changed).await.is_err() {
                break Err(error.into());
            }
        };
        if waited && let Err(error) = self.cluster.unwant(vni).await {
            tracing::debug!(%error, "what was wanted stays wanted");
        }
        taken
    }

    fn with<R>(&self, act: &mut impl FnMut(&mut Holdings, &Facts, HostId) -> R) -> R {
        let holdings = &mut self.state.lock().holdings;
        self.cluster.facts(|facts| act(holdings, facts, self.me))
    }

    /// The container is gone: its address can be used again.
    pub fn give_back(&self, vni: Vni, name: &str) {
        let mut state = self.state.lock();
        if let Some(Some(held)) = state.names.remove(&(vni, name.to_owned())) {
            state.holdings.free(vni, held.offset);
            if let Some(mac) = held.mac {
                state.holdings.free_mac(vni, mac);
            }
        }
        drop(state);
        self.tidy();
    }

    /// Looks at once for what is to be given back or asked for.
    pub fn tidy(&self) {
        self.state.lock().asked += 1;
        self.work.notify_one();
    }

    /// Waits until nothing is to be given back any more, but not longer than `deadline`, and not
    /// while nobody takes it: the rest is given back at the next start.
    pub async fn settle(&self, deadline: Duration) {
        if !self.cluster.control().quorum {
            return;
        }
        let all = async {
            loop {
                let idle = self.idle.notified();
                let (asked, done) = {
                    let state = self.state.lock();
                    (state.asked, state.done)
                };
                if done == asked {
                    return;
                }
                idle.await;
            }
        };
        let _ = timeout(deadline, all).await;
    }

    /// Addresses that are leased to this host, not in use, and no spares to keep in hand.
    pub fn unused(&self) -> Vec<Surplus> {
        let state = self.state.lock();
        self.cluster
            .facts(|facts| state.holdings.surplus(facts, self.me))
    }

    /// Addresses in use that the facts give to another host.
    pub fn lost(&self) -> Vec<(Vni, u32)> {
        let state = self.state.lock();
        self.cluster
            .facts(|facts| state.holdings.lost(facts, self.me))
    }

    /// Gives back and asks for, as long as the agent runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let changed = self.cluster.facts_changed();
            let asked = self.state.lock().asked;
            let pause = match self.work_off().await {
                Ok(()) => {
                    self.state.lock().done = asked;
                    self.idle.notify_waiters();
                    PERIOD
                }
                Err(error) => {
                    tracing::debug!("addresses are given back later: {error:#}");
                    RETRY
                }
            };
            tokio::select! {
                () = self.work.notified() => {}
                () = changed => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn work_off(&self) -> Result<()> {
        // What is being given back can't be used: not while nobody takes it.
        if !self.cluster.control().quorum {
            bail!("the managers can't agree on anything now");
        }
        let returns = {
            let holdings = &mut self.state.lock().holdings;
            self.cluster.facts(|facts| holdings.returns(facts, self.me))
        };
        if !returns.is_empty() {
            // What these facts show gone is forgotten: a restart must not be with older ones, by
            // which it could be used again.
            self.cluster.keep_facts().await?;
            self.file.save(&self.state.lock().holdings)?;
        }
        for back in returns {
            let GiveBack {
                vni,
                ranges,
                macs,
                seen,
            } = back.clone();
            match self.cluster.give_back(vni, ranges, macs, seen).await {
                Ok(()) => {}
                Err(Error::Refused(refusal)) => {
                    tracing::debug!(%refusal, "an address is not taken back");
                    self.state.lock().holdings.return_failed(&back);
                }
                // It may have been done all the same: it is said again.
                Err(error) => return Err(error.into()),
            }
        }
        let wants = {
            let state = self.state.lock();
            self.cluster
                .facts(|facts| state.holdings.wants(facts, self.me))
        };
        for (vni, want) in wants {
            match self.cluster.grant(vni, want).await {
                Ok(_) => {}
                Err(error @ Error::NoManager { .. }) => return Err(error.into()),
                Err(error) => tracing::debug!(%vni, ?want, %error, "not granted"),
            }
        }
        for vni in self.stale_wishes() {
            self.cluster.unwant(vni).await?;
        }
        Ok(())
    }

    /// The networks where the others still give back for this host, although nobody waits here: a
    /// crash, or a lost answer, has left that.
    fn stale_wishes(&self) -> Vec<Vni> {
        let state = self.state.lock();
        let waits = |vni| {
            state
                .names
                .iter()
                .any(|((v, _), held)| *v == vni && held.is_none())
        };
        self.cluster.facts(|facts| {
            let networks = facts.networks().map(|network| network.vni);
            let wished = |vni: &Vni| facts.wanted(*vni).iter().any(|wish| wish.host == self.me);
            networks.filter(wished).filter(|vni| !waits(*vni)).collect()
        })
    }
}
