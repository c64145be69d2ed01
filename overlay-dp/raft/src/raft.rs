//! The handle that the rest of the agent has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use overlay_core::facts::{Command, Reply, StateMachine, Version};
use overlay_core::model::{Host, HostId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backup;
use crate::error::{BackupError, OpenError, ProposeError};
use crate::file::{RaftFile, Seed, encode};
use crate::log::Log;
use crate::machine::{Applied, Machine, join, meta};
use crate::members::Members;
use crate::network::{Call, Peers, Sender, Transport};
use crate::serve::Incoming;
use crate::timings::Timings;
use crate::types::{
    Logged, Membership, Metrics, Outcome, Proposal, Store, StoredMembership, Types, Vote, log_id,
};
use crate::wire::{MAX_COMMAND, Request, Response};

/// A manager's part in agreeing on the facts. Clones are the same one; it ends with
/// [`Raft::shutdown`], or without a word when the last clone goes.
#[derive(Clone)]
pub struct Raft {
    pub(crate) core: Arc<Core>,
    /// What runs until the last handle is gone.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What the handle and its tasks share.
pub(crate) struct Core {
    pub me: HostId,
    pub timings: Timings,
    pub raft: openraft::Raft<Types>,
    pub file: Arc<RaftFile>,
    pub applied: Arc<RwLock<Applied>>,
    pub versions: watch::Receiver<Version>,
    pub peers: Arc<Peers>,
    pub call: Arc<dyn Call>,
    /// When the leader was last heard of, and whether it leads a majority by its own word.
    pub heard: Mutex<Option<(Instant, bool)>>,
    pub incoming: Mutex<Option<Incoming>>,
    /// When there last was a leader with a majority, and who: the facts here were fresh then.
    pub led: Mutex<Option<(Instant, HostId)>>,
}

/// How agreement stands, as far as this manager knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// Who leads a majority.
    pub leader: Option<HostId>,
    /// Rises with each election.
    pub term: u64,
    /// The log's index up to which this manager has applied.
    pub last_applied: u64,
    /// Who has a say, now and when a change that is under way is done.
    pub voters: BTreeSet<HostId>,
    /// Who follows without that: on the way to be a voter, or to be none.
    pub learners: BTreeSet<HostId>,
    /// Whether a change of the voters is under way: until it is done a majority of the old ones
    /// and one of the new ones are needed.
    pub changing: bool,
    /// Whether a leader with a majority was heard of within an election time.
    pub quorum: bool,
    /// Why Raft has stopped on this manager.
    pub stopped: Option<String>,
}

impl Raft {
    /// Makes a cluster of one manager, with `machine` as the first facts, and starts it. `dir` is
    /// made, for root only, unless it exists.
    ///
    /// # Errors
    /// [`OpenError::Exists`] when there is one already, and all that [`Raft::open`] can fail with.
    pub async fn bootstrap<T: Transport>(
        dir: &Path,
        me: HostId,
        machine: StateMachine,
        transport: Arc<T>,
        timings: Timings,
    ) -> Result<Raft, OpenError> {
        seed(dir, me, &machine, 1)?;
        Raft::open(dir, me, transport, timings).await
    }

    /// Goes on with what is in `dir`. When there is nothing this is a new manager: it has no facts
    /// until the leader has made it a member, which it does when the facts call it a manager.
    ///
    /// # Errors
    /// The file can't be used: see [`OpenError`].
    pub async fn open<T: Transport>(
        dir: &Path,
        me: HostId,
        transport: Arc<T>,
        timings: Timings,
    ) -> Result<Raft, OpenError> {
        let config = timings.config()?;
        let file = {
            let dir = dir.to_owned();
            let opened = tokio::task::spawn_blocking(move || RaftFile::open(&dir, me)).await;
            Arc::new(opened.map_err(|error| OpenError::Stopped(error.to_string()))??)
        };
        let machine = Machine::load(file.clone()).map_err(OpenError::Stopped)?;
        let (applied, versions) = (machine.applied(), machine.versions());
        let sender = Sender {
            me,
            transport,
            applied: applied.clone(),
            peers: Arc::new(Peers::default()),
            timeout: timings.call(),
            backoff: timings.heartbeat * 2,
        };
        let peers = sender.peers.clone();
        let log = Log(file.clone());
        let raft = openraft::Raft::new(me.0, config, sender.clone(), log, machine).await;
        let raft = raft.map_err(|error| OpenError::Stopped(error.to_string()))?;
        let core = Arc::new(Core {
            me,
            timings,
            raft,
            file,
            applied,
            versions,
            peers,
            call: Arc::new(sender),
            heard: Mutex::default(),
            incoming: Mutex::default(),
            led: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(core.clone().watch_leadership());
        tasks.spawn(Members::new(core.clone()).run());
        core.lead_at_once().await;
        Ok(Raft {
            core,
            tasks: Arc::new(Mutex::new(tasks)),
        })
    }

    /// Makes a cluster of one manager, `host`, with the facts of a backup, and starts it. The
    /// epoch is another then: what the former managers agreed on afterwards is void, and they are
    /// managers no more.
    ///
    /// # Errors
    /// [`OpenError::Backup`] when it is none, and all that [`Raft::bootstrap`] can fail with.
    pub async fn restore<T: Transport>(
        dir: &Path,
        host: Host,
        backup: &[u8],
        transport: Arc<T>,
        timings: Timings,
    ) -> Result<Raft, OpenError> {
        let (machine, last) = backup::read(backup)?;
        let me = host.id;
        let index = last.max(machine.facts().version().index);
        // By the clock, so that the same backup restored once more gives another epoch. What a
        // wrong clock says is no harm: each restore is later than its backup.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        seed(dir, me, &machine.restored_at(host, now), index + 1)?;
        Raft::open(dir, me, transport, timings).await
    }

    /// Has a command agreed on and applied. The version is one that shows what it did.
    ///
    /// # Errors
    /// After [`Timings::propose`] at the latest. All but [`ProposeError::Unknown`] are certain:
    /// nothing has changed, and nothing will.
    pub async fn propose(&self, command: Command) -> Result<(Version, Reply), ProposeError> {
        let size = encode(&command).len();
        if size > MAX_COMMAND {
            return Err(ProposeError::TooLarge(size));
        }
        let deadline = Instant::now() + self.core.timings.propose;
        loop {
            self.core.await_leadership(deadline).await?;
            let logged = Logged::default();
            let proposal = Proposal {
                command: command.clone(),
                logged: logged.clone(),
            };
            let written = timeout_at(deadline, self.core.raft.client_write(proposal)).await;
            return match written {
                Ok(Ok(done)) => match done.data {
                    Outcome::Command(version, result) => Ok((version, result?)),
                    Outcome::Internal => Err(ProposeError::Unknown),
                },
                // It is on its way to the log, or in it.
                Err(_) => Err(ProposeError::Unknown),
                Ok(Err(_)) if logged.get() => Err(ProposeError::Unknown),
                Ok(Err(RaftError::Fatal(error))) => Err(ProposeError::Stopped(error.to_string())),
                // Not the leader any more: see who is.
                Ok(Err(RaftError::APIError(
                    ClientWriteError::ForwardToLeader(_)
                    | ClientWriteError::ChangeMembershipError(_),
                ))) => {
                    sleep(self.core.timings.heartbeat / 4).await;
                    continue;
                }
            };
        }
    }

    /// Reads what is applied here: not older than anything read here before, but what another
    /// manager has just agreed on may be missing. None while a new manager has no facts yet.
    pub fn read<R>(&self, read: impl FnOnce(&StateMachine) -> R) -> Option<R> {
        self.core.applied.read().machine.as_ref().map(read)
    }

    /// Returns when [`Raft::read`] gives everything that any manager's [`Raft::propose`] had
    /// returned for before this call.
    ///
    /// # Errors
    /// After [`Timings::propose`] at the latest: [`ProposeError::NoQuorum`], or
    /// [`ProposeError::Stopped`].
    pub async fn ensure_linear(&self) -> Result<(), ProposeError> {
        let deadline = Instant::now() + self.core.timings.propose;
        loop {
            let attempt = timeout_at(deadline, self.core.read_index()).await;
            match attempt.map_err(|_| ProposeError::NoQuorum)?? {
                Some(index) => return self.core.await_applied(index, deadline).await,
                None if Instant::now() >= deadline => return Err(ProposeError::NoQuorum),
                None => sleep(self.core.timings.heartbeat / 2).await,
            }
        }
    }

    /// The version of the facts here; also tells of each later one.
    pub fn applied(&self) -> watch::Receiver<Version> {
        self.core.versions.clone()
    }

    /// Who leads a majority, as far as this manager knows.
    pub fn leader(&self) -> Option<HostId> {
        self.core.leader()
    }

    /// How agreement stands.
    pub fn status(&self) -> RaftStatus {
        let metrics = self.core.raft.metrics().borrow().clone();
        let membership = self.core.applied.read().membership.membership().clone();
        let configs = membership.get_joint_config();
        let votes = |id: &u64| !configs.is_empty() && configs.iter().all(|c| c.contains(id));
        let members = || membership.nodes().map(|(id, _)| *id);
        let leader = self.core.leader();
        RaftStatus {
            leader,
            term: metrics.current_term,
            last_applied: metrics.last_applied.map_or(0, |id| id.index),
            voters: members().filter(votes).map(HostId).collect(),
            learners: members().filter(|id| !votes(id)).map(HostId).collect(),
            changing: configs.len() > 1,
            quorum: leader.is_some(),
            stopped: metrics.running_state.err().map(|error| error.to_string()),
        }
    }

    /// Waits until the voters are the managers that the facts here name. The leader sees to it by
    /// itself, also without a call of this.
    ///
    /// Returns false when `within` is over before: a manager to be can't be reached, or there is
    /// no quorum.
    pub async fn reconcile(&self, within: Duration) -> bool {
        let settled = async {
            while !self.core.settled() {
                sleep(self.core.timings.heartbeat / 4).await;
            }
        };
        tokio::time::timeout(within, settled).await.is_ok()
    }

    /// All that is agreed on, as it is here: see [`Raft::ensure_linear`]. It has the cluster's
    /// secrets in it.
    ///
    /// # Errors
    /// [`BackupError::Empty`]
    pub fn backup(&self) -> Result<Vec<u8>, BackupError> {
        let applied = self.core.applied.read();
        let machine = applied.machine.as_ref().ok_or(BackupError::Empty)?;
        Ok(backup::write(
            machine,
            applied.last.map_or(0, |id| id.index),
        ))
    }

    /// Answers another manager's call. `from` is who it is by its certificate; the caller has
    /// checked that it belongs to this cluster. `request` can be anything.
    pub async fn handle(&self, from: HostId, request: &[u8]) -> Vec<u8> {
        self.core.handle(from, request).await
    }

    /// Ends it: writes what is pending and lets go of the file.
    pub async fn shutdown(&self) {
        self.tasks.lock().abort_all();
        // An error says that it has ended already.
        let _ = self.core.raft.shutdown().await;
        self.core.close();
    }
}

impl Drop for Raft {
    fn drop(&mut self) {
        if Arc::strong_count(&self.tasks) == 1 {
            self.core.close();
        }
    }
}

impl Core {
    fn close(&self) {
        self.file.close();
    }

    pub fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    /// A single voter need not wait for anybody.
    async fn lead_at_once(&self) {
        let alone = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
            voters == [self.me.0] && self.may_lead(&metrics)
        };
        if alone {
            // It fails when Raft has stopped; then status() says so.
            let _ = self.raft.trigger().elect().await;
        }
    }

    /// An old snapshot can name this manager as it was before it lost its file, even as the only
    /// voter: that one's vote is not its own.
    fn may_lead(&self, metrics: &Metrics) -> bool {
        let membership = metrics.membership_config.membership();
        membership.get_node(&self.me.0) == Some(&self.file.store())
    }

    /// Whether this manager leads a majority.
    pub fn leads(&self) -> bool {
        leads(&self.raft.metrics().borrow(), &self.timings)
    }

    pub fn leader(&self) -> Option<HostId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.running_state.is_err() {
            return None;
        }
        let leader = metrics.current_leader?;
        let known = if leader == self.me.0 {
            leads(&metrics, &self.timings)
        } else {
            let window = self.timings.quorum_window();
            let heard = *self.heard.lock();
            heard.is_some_and(|(when, leads)| leads && when.elapsed() < window)
        };
        known.then_some(HostId(leader))
    }

    pub fn epoch(&self) -> u64 {
        let applied = self.applied.read();
        applied
            .machine
            .as_ref()
            .map_or(0, |machine| machine.facts().version().epoch)
    }

    /// Keeps what the messages say about this manager's leadership current.
    async fn watch_leadership(self: Arc<Self>) {
        let mut metrics = self.raft.metrics();
        loop {
            let (leads, may_lead) = {
                let metrics = metrics.borrow_and_update();
                (leads(&metrics, &self.timings), self.may_lead(&metrics))
            };
            self.raft.runtime_config().elect(may_lead);
            self.peers.leads.store(leads, Ordering::Relaxed);
            if leads {
                *self.led.lock() = Some((Instant::now(), self.me));
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    async fn await_leadership(&self, deadline: Instant) -> Result<(), ProposeError> {
        loop {
            if self.leads() {
                return Ok(());
            }
            if let Err(error) = &self.metrics().running_state {
                return Err(ProposeError::Stopped(error.to_string()));
            }
            if let Some(leader) = self.leader()
                && leader != self.me
            {
                return Err(ProposeError::NotLeader(Some(leader)));
            }
            let pause = self.timings.heartbeat / 4;
            if Instant::now() + pause >= deadline {
                return Err(ProposeError::NoQuorum);
            }
            sleep(pause).await;
        }
    }

    /// Up to where a reader must wait, from the leader. None when there is no answer right now.
    async fn read_index(&self) -> Result<Option<u64>, ProposeError> {
        if let Err(error) = &self.metrics().running_state {
            return Err(ProposeError::Stopped(error.to_string()));
        }
        match self.leader() {
            None => Ok(None),
            Some(me) if me == self.me => Ok(self.own_read_index().await),
            Some(leader) => {
                let store = self.store_of(leader);
                let request = Request::ReadIndex;
                match self.call.call(leader.0, store, request).await {
                    Ok(Response::ReadIndex(index)) => Ok(index),
                    _ => Ok(None),
                }
            }
        }
    }

    /// The leader's answer: a majority has confirmed just now that it leads.
    pub async fn own_read_index(&self) -> Option<u64> {
        match self.raft.get_read_log_id().await {
            Ok((index, _)) => Some(index.map_or(0, |id| id.index)),
            Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            ))
            | Err(RaftError::Fatal(_)) => None,
        }
    }

    async fn await_applied(&self, index: u64, deadline: Instant) -> Result<(), ProposeError> {
        let mut metrics = self.raft.metrics();
        let reached = metrics.wait_for(|m| m.last_applied.is_some_and(|id| id.index >= index));
        match timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::Stopped("it was shut down".to_owned())),
            Err(_) => Err(ProposeError::NoQuorum),
        }
    }

    pub fn store_of(&self, host: HostId) -> Store {
        let metrics = self.raft.metrics();
        let config = metrics.borrow().membership_config.clone();
        config
            .membership()
            .get_node(&host.0)
            .copied()
            .unwrap_or_default()
    }

    fn settled(&self) -> bool {
        let membership = self.applied.read().membership.membership().clone();
        membership.get_joint_config().len() == 1
            && membership.voter_ids().collect::<BTreeSet<_>>() == self.managers()
    }

    /// Who the facts say should be voters.
    pub fn managers(&self) -> BTreeSet<u64> {
        let applied = self.applied.read();
        let machine = applied.machine.as_ref();
        machine.map_or_else(BTreeSet::new, |m| {
            m.facts().managers().map(|h| h.id.0).collect()
        })
    }
}

fn leads(metrics: &Metrics, timings: &Timings) -> bool {
    metrics.running_state.is_ok()
        && metrics.state == ServerState::Leader
        && metrics
            .millis_since_quorum_ack
            .is_some_and(|millis| u128::from(millis) < timings.quorum_window().as_millis())
}

/// Makes the file of a cluster whose only voter is `me`.
fn seed(dir: &Path, me: HostId, machine: &StateMachine, index: u64) -> Result<(), OpenError> {
    let store = Store(rand::random());
    let last = log_id(1, me.0, index);
    let voters = BTreeSet::from([me.0]);
    let membership = Membership::new(vec![voters], BTreeMap::from([(me.0, store)]));
    let membership = StoredMembership::new(Some(last), membership);
    let seed = Seed {
        store,
        vote: Vote::new(1, me.0),
        last,
        snapshot: join(&meta(Some(last), membership), &encode(machine)),
    };
    RaftFile::create(dir, me, &seed)
}
