//! Who gets a certificate.

use std::sync::Arc;
use std::time::Duration;

use overlay_core::facts::{self, Command, FactsNews};
use overlay_core::model::{HostId, check_name};
use rand::RngExt;
use subtle::ConstantTimeEq;
use tokio::time::sleep;

use super::server::{No, denied, is_manager, read};
use crate::managers::Raft;
use crate::node::Node;
use crate::pki::Authority;
use crate::token::Secret;
use crate::wire::{Answer, HostInfo};

/// Each wrong secret costs its sender so much time.
const PENALTY: Duration = Duration::from_secs(1);

fn authority(raft: &Raft) -> Result<Authority, No> {
    read(raft, |state| {
        let secrets = state.secrets();
        Authority {
            cert: secrets.ca_cert.clone(),
            key: secrets.ca_key.clone(),
        }
    })
}

fn certify(raft: &Raft, csr: &[u8], id: HostId, manager: bool) -> Result<Vec<u8>, No> {
    authority(raft)?
        .certify(csr, id, manager)
        .map_err(|_| denied("the certificate request is malformed"))
}

/// A new certificate for a member, of the role that it has by now.
pub(super) fn renew(raft: &Raft, host: HostId, csr: &[u8]) -> Result<Answer, No> {
    let cert = certify(raft, csr, host, is_manager(raft, host)?)?;
    Ok(Answer::Renewed { cert })
}

/// A manager certifies itself: it has all that it takes, even when nobody else is there.
pub fn certify_self(raft: &Raft, csr: &[u8], me: HostId) -> Option<Vec<u8>> {
    certify(raft, csr, me, true).ok()
}

/// Lets a host in, as what its token says.
pub(super) async fn join(
    node: &Arc<Node>,
    raft: &Raft,
    secret: &Secret,
    csr: &[u8],
    info: HostInfo,
) -> Result<Answer, No> {
    // Only the leader knows for sure what the tokens are.
    raft.ensure_linear().await?;
    let (worker, manager) = read(raft, |state| {
        let same = |token: &[u8]| bool::from(token.ct_eq(secret));
        let secrets = state.secrets();
        (same(&secrets.worker_token), same(&secrets.manager_token))
    })?;
    if !worker && !manager {
        sleep(PENALTY).await;
        return Err(denied(
            "the token's secret is not this cluster's: copy the whole token from a manager again",
        ));
    }
    check_info(&info)?;
    let id = HostId(rand::rng().random_range(1..=u64::MAX));
    // A bad request must not leave a host behind that can't talk.
    let cert = certify(raft, csr, id, manager)?;
    let same_vtep = |state: &facts::StateMachine| {
        let mut hosts = state.facts().hosts();
        hosts
            .find(|host| host.vtep == info.vtep)
            .map(|host| host.id)
    };
    // The same machine, set up anew without leaving first: nobody else can have its address.
    let replace = read(raft, same_vtep)?
        .filter(|other| *other != node.me && !node.gossip.live().contains(other));
    let host = info.host(id, manager);
    raft.propose(Command::HostAdd { host, replace }).await?;
    let news = read(raft, |state| FactsNews::Snapshot(state.facts().clone()))?;
    Ok(Answer::Joined { id, cert, news })
}

/// What is wrong with what a host says of itself; the rest is for the facts to say.
pub(super) fn check_info(info: &HostInfo) -> Result<(), No> {
    check_name(&info.name).map_err(|error| denied(error.to_string()))?;
    let HostInfo {
        data_port,
        esp_port,
        control_port,
        gossip_port,
        ..
    } = *info;
    if [data_port, esp_port, control_port, gossip_port].contains(&0) {
        return Err(denied("a port can't be 0"));
    }
    Ok(())
}
