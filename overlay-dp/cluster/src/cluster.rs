//! The agent's handle.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use overlay_core::facts::{
    Facts, NetworkSpec, PolicySpec, Range, Refusal, Reply, ServiceSpec, Version, Want,
};
use overlay_core::model::{Endpoint, Host, HostId, MacAddr, Network, Service, Vni};
use overlay_core::multicast::Group;
use overlay_core::policy::Policy;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::api::{ControlStatus, Counters, Member, MemberState};
use crate::control::{self, ask};
use crate::error::Error;
use crate::node::Node;
use crate::peers::{self, PeerAsk};
use crate::pki::{self, Identity};
use crate::state;
use crate::token::Token;
use crate::transport;
use crate::wire::Request;

/// A look at what other hosts know waits so long for them.
const LOOK: Duration = Duration::from_secs(1);
/// A host that changes its role has so long for it.
const ROLE_CHANGE: Duration = Duration::from_secs(20);
/// What is agreed on reaches a manager's own Raft in this time, if at all.
const CATCH_UP: Duration = Duration::from_secs(2);
/// The last words of a host that leaves are on their way for so long.
const FAREWELL: Duration = Duration::from_millis(200);

/// A running member of a cluster: a handle that is cheap to clone. Dropping it stops nothing; see
/// [`Cluster::shutdown`].
#[derive(Clone)]
pub struct Cluster {
    pub(crate) node: Arc<Node>,
}

impl Cluster {
    /// This host.
    pub fn me(&self) -> Host {
        self.node.host()
    }

    /// All hosts of the cluster, this one among them.
    pub fn members(&self) -> Vec<Member> {
        self.node.gossip.members(self.node.me)
    }

    /// What was turned away.
    pub fn counters(&self) -> Counters {
        self.node.counters()
    }

    /// Reads what all hosts agree on, as far as this one knows.
    pub fn facts<R>(&self, look: impl FnOnce(&Facts) -> R) -> R {
        self.node.facts(look)
    }

    /// Returns when the facts that this host knows now are on disk. Otherwise that is so after a
    /// second: a start after a crash may be with older ones.
    ///
    /// # Errors
    /// When they can't be written.
    pub async fn keep_facts(&self) -> Result<(), Error> {
        self.node.keep_facts().await
    }

    /// Is ready when the facts change after this call.
    pub fn facts_changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut changed = self.node.changed.subscribe();
        async move {
            if changed.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// When a host's certificate ends, in seconds since 1970: this host's own, and of another one the
    /// certificate that it showed on the newest connection with it. It may have a newer one since.
    pub fn certificate_end(&self, host: HostId) -> Option<u64> {
        if host == self.node.me {
            return self.node.identity(Identity::end);
        }
        let link = self.node.gossip.link(host)?;
        pki::end_of(&transport::certificate(&link)?)
    }

    /// As [`Cluster::control`]; a host that is no manager asks one who leads.
    pub async fn control_now(&self) -> ControlStatus {
        if self.node.raft().is_none() {
            let asked = timeout(LOOK, control::leader(&self.node)).await;
            self.node.set_leader(asked.ok().and_then(Result::ok));
        }
        self.control()
    }

    /// How those who agree on the facts are.
    pub fn control(&self) -> ControlStatus {
        let (version, managers) = self.facts(|facts| {
            let managers: Vec<HostId> = facts.managers().map(|host| host.id).collect();
            (facts.version(), managers)
        });
        let (leader, quorum) = match self.node.raft() {
            Some(raft) => {
                let status = raft.status();
                (status.leader, status.quorum)
            }
            None => {
                let members = self.members();
                let alive = |id: &&HostId| {
                    let member = members.iter().find(|member| member.host.id == **id);
                    member.is_some_and(|member| member.state != MemberState::Down)
                };
                let alive = managers.iter().filter(alive).count();
                (self.node.leader(), 2 * alive > managers.len())
            }
        };
        ControlStatus {
            leader,
            managers,
            quorum,
            version,
        }
    }

    /// All networks.
    pub fn networks(&self) -> Vec<Network> {
        self.facts(|facts| facts.networks().cloned().collect())
    }

    /// Finds a network by its name, at a manager if it is not known here: somebody may have made
    /// it on another host just now.
    ///
    /// # Errors
    /// When it is not known here and no manager answers.
    pub async fn network(&self, name: &str) -> Result<Option<Network>, Error> {
        let find = || self.facts(|facts| facts.network_named(name).cloned());
        if find().is_none() {
            self.refresh().await?;
        }
        Ok(find())
    }

    /// Asks a manager for what is agreed on: [`Cluster::facts`] has it when this returns.
    ///
    /// # Errors
    /// When no manager answers, or they can't agree.
    pub async fn refresh(&self) -> Result<(), Error> {
        ask(&self.node, Request::Facts).await.map(|_| ())
    }

    /// Makes a network, which [`Cluster::facts`] has when this returns. `avoid` are this host's
    /// routes: subnets that it must not overlap.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn network_create(
        &self,
        spec: NetworkSpec,
        avoid: Vec<IpNetwork>,
    ) -> Result<Network, Error> {
        let wanted = spec.clone();
        let request = Request::NetworkCreate { spec, avoid };
        match ask(&self.node, request).await? {
            Reply::Network(network) => Ok(network),
            // There is one, and an answer was lost: was it to this request?
            _ => {
                let found = self.network(&wanted.name).await?;
                let fits = |network: &Network| {
                    let has = |subnet: &IpNetwork| {
                        network.subnets().any(|family| family.subnet == *subnet)
                    };
                    wanted.subnets.iter().all(has)
                        && wanted.vni.is_none_or(|vni| network.vni == vni)
                        && wanted.multicast == network.multicast
                };
                let exists = Error::Refused(Refusal::NetworkExists(wanted.name.clone()));
                found.filter(fits).ok_or(exists)
            }
        }
    }

    /// Removes a network in which no host holds an address.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn network_remove(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        ask(&self.node, Request::NetworkRemove { name })
            .await
            .map(|_| ())
    }

    /// Has every host's container engine get a network, also those that join later.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn network_everywhere(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        ask(&self.node, Request::NetworkEverywhere { name })
            .await
            .map(|_| ())
    }

    /// Makes a service, which [`Cluster::facts`] has when this returns. With `leave`, its address
    /// in the spec may be granted to this host, which has it no more then.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn service_create(&self, spec: ServiceSpec, leave: bool) -> Result<Service, Error> {
        let wanted = spec.clone();
        match ask(&self.node, Request::ServiceCreate { spec, leave }).await? {
            Reply::Service(service) => Ok(service),
            // There is one, and an answer was lost: was it to this request?
            _ => {
                let found = self.facts(|facts| {
                    let service = facts.service(&wanted.name)?.clone();
                    let network = facts.network(service.vni)?;
                    let has = |ip| {
                        service
                            .vip
                            .is_some_and(|vip| network.offset_of(ip) == Some(vip))
                    };
                    let fits = network.name == wanted.network
                        && service.publish == wanted.publish
                        && service.mode() == wanted.mode
                        && service.check == wanted.check
                        && wanted.ip.is_none_or(has);
                    fits.then_some(service)
                });
                found.ok_or(Error::Refused(Refusal::ServiceExists(wanted.name)))
            }
        }
    }

    /// Removes a service; its tasks stay.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn service_remove(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        ask(&self.node, Request::ServiceRemove { name })
            .await
            .map(|_| ())
    }

    /// Adds a policy, which [`Cluster::facts`] has when this returns.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn policy_add(&self, spec: PolicySpec) -> Result<Policy, Error> {
        let wanted = spec.clone();
        match ask(&self.node, Request::PolicyAdd { spec }).await? {
            Reply::Policy(policy) => Ok(policy),
            // There is one, and an answer was lost: was it to this request?
            _ => {
                let found = self.facts(|facts| {
                    let policy = facts.policy(&wanted.name)?;
                    let network = facts.network(policy.vni)?;
                    let fits = network.name == wanted.network && policy.rule == wanted.rule;
                    fits.then(|| policy.clone())
                });
                found.ok_or(Error::Refused(Refusal::PolicyExists(wanted.name)))
            }
        }
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn policy_remove(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        ask(&self.node, Request::PolicyRemove { name })
            .await
            .map(|_| ())
    }

    /// Says what becomes in a network of what no policy is about.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn policy_default(&self, network: &str, deny: bool) -> Result<(), Error> {
        let network = network.to_owned();
        ask(&self.node, Request::PolicyDefault { network, deny })
            .await
            .map(|_| ())
    }

    /// Asks for addresses or a MAC address for this host. What is granted is in
    /// [`Cluster::facts`] when this returns.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn grant(&self, vni: Vni, want: Want) -> Result<Vec<Range>, Error> {
        match ask(&self.node, Request::Grant { vni, want }).await? {
            Reply::Granted(ranges) => Ok(ranges),
            _ => Ok(Vec::new()),
        }
    }

    /// Gives back what this host holds, but nothing that it got after version `seen` of the facts,
    /// by which the caller decided: another container may have that already.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn give_back(
        &self,
        vni: Vni,
        ranges: Vec<Range>,
        macs: Vec<MacAddr>,
        seen: Version,
    ) -> Result<(), Error> {
        let request = Request::Return {
            vni,
            ranges,
            macs,
            seen,
        };
        ask(&self.node, request).await.map(|_| ())
    }

    /// Does not wait any longer for what could not be granted.
    ///
    /// # Errors
    /// When the managers refuse or do not answer.
    pub async fn unwant(&self, vni: Vni) -> Result<(), Error> {
        ask(&self.node, Request::Unwant { vni }).await.map(|_| ())
    }

    /// Tells all hosts of an endpoint of this one, or of what has changed about it.
    ///
    /// # Errors
    /// When the others would not believe it, by the facts as they are known here.
    pub fn publish(&self, endpoint: Endpoint) -> Result<(), Error> {
        self.node.publish(|book| {
            let fault = |problem: String| Error::Endpoint {
                name: endpoint.name.clone(),
                problem,
            };
            if book.facts().network(endpoint.vni).is_none() {
                return Err(Error::NoNetwork(endpoint.vni));
            }
            let checked = book.facts().check(self.node.me, &endpoint);
            checked.map_err(|error| fault(error.to_string()))?;
            if book.own.is_full() {
                return Err(fault("this host has too many".into()));
            }
            book.own.publish(endpoint);
            Ok(())
        })
    }

    /// Tells all hosts that an endpoint of this one is gone.
    pub fn withdraw(&self, vni: Vni, name: &str) {
        self.node.publish(|book| book.own.withdraw(vni, name));
    }

    /// Tells all hosts which multicast groups have members among this host's endpoints of a network.
    /// Until it is said for the first time, what was said before a restart counts.
    pub fn set_groups(&self, vni: Vni, groups: &BTreeSet<Group>) {
        self.node.publish(|book| book.own.set_groups(vni, groups));
    }

    /// What [`Cluster::set_groups`] has told last.
    pub fn own_groups(&self, vni: Vni) -> BTreeSet<Group> {
        self.node.book(|book| book.own.groups(vni).collect())
    }

    /// The networks of which it has told that groups have members.
    pub fn networks_with_groups(&self) -> Vec<Vni> {
        self.node
            .book(|book| book.own.networks_with_groups().collect())
    }

    /// What the other hosts have told of their groups in a network of [`Cluster::set_interest`].
    pub fn groups(&self, vni: Vni) -> Vec<(HostId, BTreeSet<Group>)> {
        self.node.book(|book| book.groups(vni))
    }

    /// Says that after a restart all endpoints are published again: what this host had before and
    /// has not now goes. Without it that happens after five seconds.
    pub fn settled(&self) {
        self.node.publish(|book| book.own.settle());
    }

    /// Which networks' endpoints there are events of: those attached here. Endpoints of networks
    /// that are no longer among them go down.
    pub fn set_interest(&self, networks: BTreeSet<Vni>) {
        self.node.publish(|book| book.set_interest(networks));
    }

    /// The endpoints of a network of [`Cluster::set_interest`] on all hosts, this one among them.
    pub fn endpoints(&self, vni: Vni) -> Vec<(HostId, Endpoint)> {
        self.node.book(|book| book.endpoints(vni))
    }

    /// The hosts that may have endpoints in a network of [`Cluster::set_interest`], and have not
    /// told yet.
    pub fn unheard(&self, vni: Vni) -> Vec<HostId> {
        self.node.book(|book| book.unheard(vni))
    }

    /// The endpoints of any network on all hosts, this one among them: those of hosts that can be
    /// reached, within a second.
    pub async fn look_up(&self, vni: Vni) -> Vec<(HostId, Endpoint)> {
        let look = self.node.look(vni);
        look.all(Instant::now() + LOOK).await
    }

    /// The host that has the endpoint of this name in any network; waits as [`Cluster::look_up`]
    /// does, but what it costs does not grow with the number of endpoints.
    pub async fn whose_name(&self, vni: Vni, name: &str) -> Option<HostId> {
        let look = self.node.look(vni);
        look.whose_name(name, Instant::now() + LOOK).await
    }

    /// Asks another host's agent, which takes the question from its [`Cluster::peer_asks`].
    ///
    /// # Errors
    /// When there is no connection with that host, or its agent does not answer in time: one of
    /// another version may not know such questions.
    pub async fn ask_host(
        &self,
        host: HostId,
        question: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, Error> {
        peers::ask(&self.node, host, question, patience).await
    }

    /// What other hosts' agents ask this one from now on; whoever took them before gets no more.
    pub fn peer_asks(&self) -> mpsc::Receiver<PeerAsk> {
        self.node.peers.open()
    }

    /// Withdraws the endpoints of a host at once, whose data path is dead, too. They come back
    /// with it.
    pub fn forget_host(&self, host: HostId) {
        self.node.publish(|book| book.forget(host));
    }

    /// Removes a host from the cluster: it is cut off at once, and what it holds is free.
    ///
    /// # Errors
    /// When this host is no manager, when the managers refuse or do not answer.
    pub async fn host_remove(&self, id: HostId) -> Result<(), Error> {
        ask(&self.node, Request::HostRemove { id })
            .await
            .map(|_| ())
    }

    /// Makes a host a manager, or a worker again. Returns when it really is one.
    ///
    /// # Errors
    /// When this host is no manager, when the managers refuse or do not answer, and
    /// [`Error::RolePending`] when the host itself does not answer.
    pub async fn set_role(&self, id: HostId, manager: bool) -> Result<(), Error> {
        ask(&self.node, Request::SetRole { id, manager }).await?;
        let deadline = Instant::now() + ROLE_CHANGE;
        loop {
            let problem = match control::voters(&self.node).await {
                Ok(voters) if voters.contains(&id) == manager => return Ok(()),
                Ok(_) => "it does not answer yet".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let role = if manager { "manager" } else { "worker" };
                return Err(Error::RolePending { id, role, problem });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What lets other hosts join, as managers or as workers.
    ///
    /// # Errors
    /// When this host is no manager.
    pub async fn token(&self, manager: bool) -> Result<Token, Error> {
        self.catch_up().await;
        self.secret(|secrets| {
            let secret = match manager {
                true => &secrets.manager_token,
                false => &secrets.worker_token,
            };
            Token::of(&secrets.ca_cert, secret)
        })?
        .ok_or_else(|| Error::Crypto("the token is not one".into()))
    }

    /// Replaces a token: the one before lets nobody in any more. Returns the new one.
    ///
    /// # Errors
    /// When this host is no manager, and when the managers do not answer.
    pub async fn token_rotate(&self, manager: bool) -> Result<Token, Error> {
        ask(&self.node, Request::TokenRotate { manager }).await?;
        self.token(manager).await
    }

    /// Everything that the managers agree on, with their secrets, for [`Start::Restore`].
    ///
    /// [`Start::Restore`]: crate::Start::Restore
    ///
    /// # Errors
    /// When this host is no manager.
    pub async fn backup(&self) -> Result<Vec<u8>, Error> {
        self.catch_up().await;
        let raft = self.node.raft().ok_or_else(|| self.not_manager())?;
        raft.backup().map_err(|error| Error::Raft {
            path: state::raft_dir(&self.node.dir),
            problem: error.to_string(),
        })
    }

    /// Waits for what was agreed on before, if anything can be agreed on now.
    async fn catch_up(&self) {
        if let Some(raft) = self.node.raft()
            && let Ok(Err(error)) = timeout(CATCH_UP, raft.ensure_linear()).await
        {
            tracing::debug!(%error, "what is known here may be old");
        }
    }

    fn secret<R>(&self, look: impl FnOnce(&overlay_core::facts::Secrets) -> R) -> Result<R, Error> {
        let raft = self.node.raft();
        let read = raft.and_then(|raft| raft.read(|state| look(state.secrets())));
        read.ok_or_else(|| self.not_manager())
    }

    fn not_manager(&self) -> Error {
        let names = self.facts(|facts| {
            let names = facts.managers().map(|host| host.name.clone());
            names.collect::<Vec<_>>().join(", ")
        });
        Error::NotManager(names)
    }

    /// This host's address is another one from now on: moves its sockets there, and tells the
    /// managers.
    ///
    /// # Errors
    /// When the sockets can't be had there: then nothing has changed. When no manager answers the
    /// sockets have moved, and the managers are told as soon as they do.
    pub async fn set_vtep(&self, vtep: IpAddr) -> Result<(), Error> {
        let node = &self.node;
        let info = node.info();
        if info.vtep == vtep {
            return Ok(());
        }
        let gossip = transport::bind(SocketAddr::new(vtep, info.gossip_port), "--gossip-port")?;
        let control = match node.raft() {
            Some(_) => {
                let addr = SocketAddr::new(vtep, info.control_port);
                Some(transport::bind(addr, "--control-port")?)
            }
            None => None,
        };
        node.set_info(|info| info.vtep = vtep);
        let mut old = vec![node.open_gossip(gossip)?];
        if let Some(control) = control {
            old.push(node.open_control(control)?);
        }
        for socket in old.into_iter().flatten() {
            transport::close(socket).await;
        }
        ask(node, Request::Update(node.info())).await.map(|_| ())
    }

    /// Leaves for good: what this host holds is free, the others withdraw its endpoints at once,
    /// and the state here goes. A manager first becomes a worker, when there are others; the last
    /// one takes the cluster's secrets with it: whether other hosts are left is for the caller to
    /// ask before.
    ///
    /// # Errors
    /// Also then this host has left; the error says what remains elsewhere.
    pub async fn leave(self) -> Result<(), Error> {
        let node = &self.node;
        let others = self.facts(|facts| facts.managers().any(|host| host.id != node.me));
        let told = match others {
            true => self.say_farewell().await,
            false => Ok(()),
        };
        node.leaves();
        sleep(FAREWELL).await;
        let (dir, deleted) = (node.dir.clone(), node.forget_all().await);
        self.shutdown().await;
        deleted?;
        state::remove_raft(&dir)?;
        match told {
            Err(Error::NoManager { problem }) => Err(Error::LeftUntold { problem }),
            Err(Error::Expelled) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn say_farewell(&self) -> Result<(), Error> {
        let node = &self.node;
        if node.raft().is_some() && node.is_manager(node.me) {
            self.set_role(node.me, false).await?;
        }
        node.leaves();
        ask(node, Request::Leave).await.map(|_| ())
    }

    /// Stops all tasks and closes the sockets. The state stays for [`Start::Resume`]; the others
    /// see this host go down in a second or two, and keep its endpoints.
    ///
    /// [`Start::Resume`]: crate::Start::Resume
    pub async fn shutdown(self) {
        self.node.shut_down().await;
    }
}
