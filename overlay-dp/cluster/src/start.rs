//! How a host comes into its cluster: by making one, by joining, or by going on.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use overlay_core::facts::{Secrets, StateMachine};
use overlay_core::model::{HostId, check_name};
use quinn::Endpoint;
use rand::RngExt;
use tokio::sync::mpsc;

use crate::api::{Config, Event, Start};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::gossip::{self, Gossip};
use crate::managers::{self, Raft, Wire};
use crate::node::{self, Node, Parts};
use crate::state::{self, Store, Stored};
use crate::token::new_secret;
use crate::{control, pki, transport};

/// The agent should take events at once; so many wait for it without any delay.
const EVENTS: usize = 1024;

impl Cluster {
    /// Starts this host's part of the cluster. When anything but [`Start::Resume`] fails, this
    /// host has kept nothing.
    ///
    /// # Errors
    /// When a port is taken, the state directory, token or backup can't be used, or the managers
    /// say no or nothing.
    pub async fn start(
        config: Config,
        start: Start,
    ) -> Result<(Cluster, mpsc::Receiver<Event>), Error> {
        check_name(&config.host_name)?;
        let dir = config.state_dir.clone();
        let kept = state::load(&dir)?;
        if kept.is_some() && !matches!(start, Start::Resume) {
            return Err(Error::AlreadyMember(state::path(&dir)));
        }
        // Ports are taken first, so that nobody hears of a host that can't run.
        let info = config.info();
        let gossip_addr = SocketAddr::new(info.vtep, info.gossip_port);
        let gossip = transport::bind(gossip_addr, "--gossip-port")?;
        let wire = Wire::new();
        let resumes = kept.is_some();
        let restored = matches!(start, Start::Restore(_));
        let beginning = match (kept, start) {
            (Some(stored), _) => resume(&dir, stored, &wire).await,
            (None, Start::Resume) => Err(Error::NoCluster(state::path(&dir))),
            (None, start) => begin(&config, start, &gossip, &wire).await,
        };
        let started = match beginning {
            Ok(beginning) => run(config, beginning, restored, &gossip, &wire).await,
            Err(error) => Err(error),
        };
        if started.is_err() {
            transport::close(gossip).await;
            if !resumes {
                // Raft's store is of no use without the rest.
                let _ = state::remove_raft(&dir);
            }
        }
        started
    }
}

/// What a host is when it starts: member and perhaps manager.
struct Beginning {
    stored: Stored,
    raft: Option<Raft>,
}

async fn resume(dir: &Path, mut stored: Stored, wire: &Arc<Wire>) -> Result<Beginning, Error> {
    let raft = match state::has_raft(dir) {
        true => Some(managers::open(dir, stored.id, wire.clone()).await?),
        false => None,
    };
    // The state file may be a second behind.
    let newer = raft.as_ref().and_then(|raft| {
        let facts = raft.read(|machine| machine.facts().clone());
        facts.filter(|facts| facts.version() > stored.facts.version())
    });
    stored.facts = newer.unwrap_or(stored.facts);
    // A manager can mend it itself.
    if raft.is_none() && !stored.identity.is_valid(stored.id) {
        return Err(Error::Expired);
    }
    Ok(Beginning { stored, raft })
}

/// Without a state file, nothing is worth keeping.
async fn begin(
    config: &Config,
    start: Start,
    gossip: &Endpoint,
    wire: &Arc<Wire>,
) -> Result<Beginning, Error> {
    let dir = &config.state_dir;
    state::remove_raft(dir)?;
    let raft_dir = state::raft_dir(dir);
    let info = config.info();
    let problem = |error: overlay_raft::OpenError| Error::Raft {
        path: raft_dir.clone(),
        problem: error.to_string(),
    };
    let me = HostId(rand::rng().random_range(1..=u64::MAX));
    let timings = overlay_raft::Timings::default();
    let raft = match start {
        Start::Join { addr, token } => {
            // If it is to be a manager, it becomes one when it runs.
            let joined = control::join(gossip, &addr, &token, &info).await?;
            let stored = Stored::new(joined.id, joined.identity, joined.facts);
            return Ok(Beginning { stored, raft: None });
        }
        Start::Restore(backup) => {
            let host = info.host(me, true);
            Raft::restore(&raft_dir, host, &backup, wire.clone(), timings).await
        }
        Start::New | Start::Resume => {
            let authority = pki::Authority::new()?;
            let secrets = Secrets {
                ca_cert: authority.cert,
                ca_key: authority.key,
                worker_token: new_secret().to_vec(),
                manager_token: new_secret().to_vec(),
            };
            let mut ula: [u8; 6] = rand::rng().random();
            ula[0] = 0xfd;
            let machine = StateMachine::new(info.host(me, true), secrets, ula, 1);
            Raft::bootstrap(&raft_dir, me, machine, wire.clone(), timings).await
        }
    };
    let raft = raft.map_err(problem)?;
    let (key, csr) = pki::new_request()?;
    let certified = raft.read(|machine| {
        let secrets = machine.secrets();
        let authority = pki::Authority {
            cert: secrets.ca_cert.clone(),
            key: secrets.ca_key.clone(),
        };
        let cert = authority.certify(&csr, me, true)?;
        let identity = pki::Identity::new(authority.cert, cert, key);
        Ok::<_, Error>((identity, machine.facts().clone()))
    });
    let (identity, facts) =
        certified.ok_or_else(|| Error::Crypto("Raft's store is empty".into()))??;
    Ok(Beginning {
        stored: Stored::new(me, identity, facts),
        raft: Some(raft),
    })
}

async fn run(
    config: Config,
    beginning: Beginning,
    restored: bool,
    gossip: &Endpoint,
    wire: &Arc<Wire>,
) -> Result<(Cluster, mpsc::Receiver<Event>), Error> {
    let Beginning { mut stored, raft } = beginning;
    let info = config.info();
    let control = match &raft {
        Some(_) => {
            let addr = SocketAddr::new(info.vtep, info.control_port);
            Some(transport::bind(addr, "--control-port")?)
        }
        None => None,
    };
    stored.incarnation = wall_clock().max(stored.incarnation + 1);
    let store = Store::create(&config.state_dir, stored.clone())?;
    let (events, mut pending) = mpsc::unbounded_channel();
    let (out, receiver) = mpsc::channel(EVENTS);
    let backlog = Arc::new(AtomicUsize::new(0));
    let node = Node::new(Parts {
        me: stored.id,
        dir: config.state_dir,
        info,
        identity: stored.identity,
        store,
        restored,
        gossip: Gossip::new(
            stored.id,
            stored.facts,
            stored.incarnation,
            config.retention,
        ),
        events,
        backlog: backlog.clone(),
    })?;
    node.spawn(async move {
        while let Some(event) = pending.recv().await {
            if out.send(event).await.is_err() {
                pending.close();
            }
            backlog.fetch_sub(1, Ordering::Relaxed);
        }
    });
    // What is known already comes first.
    node.book(|_| ());
    wire.serve(&node);
    node.set_raft(raft);
    node.open_gossip(gossip.clone())?;
    if let Some(control) = control {
        node.open_control(control)?;
    }
    node.spawn(gossip::dial_all(node.clone()));
    node.spawn(gossip::run_timers(node.clone()));
    node.spawn(gossip::run_clock(node.clone()));
    node.spawn(managers::keep_role(node.clone()));
    node.spawn(managers::announce(node.clone()));
    node.spawn(node::keep(node.clone()));
    Ok((Cluster { node }, receiver))
}

/// Microseconds since 1970.
fn wall_clock() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// What is in a backup, for people.
///
/// # Errors
/// When it can't be restored.
pub fn describe_backup(backup: &[u8]) -> Result<String, Error> {
    let facts =
        overlay_raft::facts_of_backup(backup).map_err(|error| Error::Backup(error.to_string()))?;
    let (hosts, networks) = (facts.hosts().count(), facts.networks().count());
    let managers: Vec<&str> = facts.managers().map(|host| host.name.as_str()).collect();
    Ok(format!(
        "{hosts} hosts, {networks} networks; its managers were {}",
        managers.join(", ")
    ))
}
