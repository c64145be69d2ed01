//! What makes a host a manager at run time: Raft, its messages over the control port, and the
//! changes of role, which the facts order and each host carries out for itself.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use overlay_core::model::HostId;
use tokio::time::sleep;

use crate::control;
use crate::error::Error;
use crate::gossip;
use crate::node::Node;
use crate::pki;
use crate::state;
use crate::transport;
use crate::wire::{Answer, Request};

mod wire;

pub use wire::Wire;

/// Raft as this host runs it.
pub type Raft = overlay_raft::Raft;

/// A role that is not what the facts say is looked at again so soon.
const SOON: Duration = Duration::from_millis(200);
/// Certificates are looked at so often.
const SELDOM: Duration = Duration::from_secs(600);

/// Carries out what the facts say of this host: whether it is a manager, with a certificate that
/// says so, or no member at all. Renews the certificate, too.
pub async fn keep_role(node: Arc<Node>) {
    let mut changed = node.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let pause = match step(&node).await {
            Ok(true) => SELDOM,
            Ok(false) => SOON,
            Err(error) => {
                tracing::warn!(%error, "this host's role or certificate is not yet what it should be");
                5 * SOON
            }
        };
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// True when all is as it should be.
async fn step(node: &Arc<Node>) -> Result<bool, Error> {
    let (epoch, role) = node.facts(|facts| {
        let role = facts.host(node.me).map(|host| host.manager);
        (facts.version().epoch, role)
    });
    if role.is_none() {
        node.expel();
    }
    match node.raft() {
        None if role == Some(true) => promote(node).await?,
        None => {}
        Some(raft) => {
            // A restore made everything void that this store has and will ever have.
            let own = raft.read(|state| state.facts().version().epoch);
            let void = own.is_some_and(|own| own < epoch);
            if void || role != Some(true) && is_out(node, &raft).await {
                dismiss(node).await?;
            } else if role != Some(true) {
                return Ok(false);
            }
        }
    }
    let Some(manager) = role else {
        return Ok(true);
    };
    let (is_manager, due) = node.identity(|identity| (identity.is_manager(), identity.is_due()));
    if is_manager != manager || due {
        renew(node).await?;
    }
    Ok(true)
}

/// Whether the others agree without this host by now: until then they may need its vote.
async fn is_out(node: &Arc<Node>, raft: &Raft) -> bool {
    let status = raft.status();
    if !status.changing && !status.voters.contains(&node.me) {
        return true;
    }
    match control::voters(node).await {
        Ok(voters) => !voters.contains(&node.me),
        Err(error) => matches!(error, Error::Expelled),
    }
}

async fn promote(node: &Arc<Node>) -> Result<(), Error> {
    if !node.identity(pki::Identity::is_manager) {
        renew(node).await?;
    }
    // The store must never be taken for an old one after a crash.
    node.keep_facts().await?;
    let control = transport::bind(node.control_addr(), "--control-port")?;
    let wire = Wire::new();
    wire.serve(node);
    let raft = match open(&node.dir, node.me, wire).await {
        Ok(raft) => raft,
        Err(error) => {
            transport::close(control).await;
            return Err(error);
        }
    };
    node.set_raft(Some(raft));
    node.open_control(control)?;
    tracing::info!("this host is a manager now");
    Ok(())
}

/// Opens Raft's store below a state directory; a new one if there is none.
pub async fn open(state_dir: &Path, me: HostId, wire: Arc<Wire>) -> Result<Raft, Error> {
    let dir = state::raft_dir(state_dir);
    Raft::open(&dir, me, wire, overlay_raft::Timings::default())
        .await
        .map_err(|error| Error::Raft {
            path: dir,
            problem: error.to_string(),
        })
}

async fn dismiss(node: &Arc<Node>) -> Result<(), Error> {
    let raft = node.set_raft(None);
    node.close_control().await;
    if let Some(raft) = raft {
        raft.shutdown().await;
    }
    state::remove_raft(&node.dir)?;
    tracing::info!("this host is no manager any more");
    Ok(())
}

/// A new key and certificate, on disk before they are used. Connections that stand are not touched.
pub async fn renew(node: &Arc<Node>) -> Result<(), Error> {
    let (key, csr) = pki::new_request()?;
    let own = node.raft().and_then(|raft| {
        let known = raft.read(|state| {
            let me = state.facts().host(node.me);
            me.is_some_and(|me| me.manager)
        });
        known
            .unwrap_or(false)
            .then(|| control::certify_self(&raft, &csr, node.me))
            .flatten()
    });
    let cert = match own {
        Some(cert) => cert,
        None => match control::exchange(node, Request::Renew { csr }).await? {
            Answer::Renewed { cert } => cert,
            _ => return Err(Error::Crypto("a certificate was not renewed".into())),
        },
    };
    let ca = node.identity(|identity| identity.ca.clone());
    let identity = pki::Identity::new(ca, cert, key);
    identity.check(node.me)?;
    node.set_identity(identity).await
}

/// Takes what this manager's Raft applies, until it is no manager any more.
pub async fn follow(node: Arc<Node>, raft: Raft) {
    let mut applied = raft.applied();
    loop {
        applied.borrow_and_update();
        let have = node.version();
        if let Some(news) = raft.read(|state| state.since(have)) {
            gossip::take_news(&node, news);
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the managers this host's name and addresses whenever they are not what the facts say.
pub async fn announce(node: Arc<Node>) {
    let mut changed = node.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let mut pause = SOON;
        while let Some(info) = node.unknown_info() {
            if let Err(error) = control::ask(&node, Request::Update(info)).await {
                tracing::warn!(%error, "this host's new address is not known yet");
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Where a host's control port is.
pub fn control_addr(node: &Node, host: HostId) -> Option<SocketAddr> {
    node.facts(|facts| {
        let host = facts.host(host)?;
        Some(SocketAddr::new(host.vtep, host.control_port))
    })
}
