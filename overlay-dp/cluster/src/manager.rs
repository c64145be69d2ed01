//! What only the manager does: letting hosts in and out, and agreeing on networks and leases.
//! Sans-IO: a request goes in, the changed state and the reply come out; [`crate::control`] does
//! the rest.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_core::ipam::{self, Ipam};
use overlay_core::model::{HostId, check_name};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::hex;
use crate::pki::Authority;
use crate::state::Stored;
use crate::token::{Secret, Token, same_secret};
use crate::wire::{Facts, HostInfo, Reply, Request};

/// More hosts than this are refused: all of them together must fit one message.
pub const MAX_HOSTS: usize = 1000;

/// The manager's part of the durable state.
#[derive(Clone, Serialize, Deserialize)]
pub struct Manager {
    pub authority: Authority,
    #[serde(with = "hex")]
    secret: Vec<u8>,
    pub ipam: Ipam,
}

impl Manager {
    pub fn new(authority: Authority, secret: Secret) -> Manager {
        Manager {
            authority,
            secret: secret.to_vec(),
            ipam: Ipam::default(),
        }
    }

    /// `None` when the state file was tampered with.
    pub fn token(&self) -> Option<Token> {
        let secret = self.secret.as_slice().try_into().ok()?;
        Some(Token::new(&self.authority.cert, secret))
    }

    pub fn admits(&self, secret: &Secret) -> bool {
        self.token()
            .is_some_and(|token| same_secret(&token.secret, secret))
    }
}

fn refused(text: impl Into<String>) -> Error {
    Error::Refused(text.into())
}

impl From<ipam::Error> for Error {
    fn from(error: ipam::Error) -> Error {
        refused(error.to_string())
    }
}

/// What a request needs to know besides the state.
pub struct Context<'a> {
    /// Rises, and is larger than any version given out before: the wall clock, in microseconds.
    pub now: u64,
    /// Random, for a new host.
    pub new_id: HostId,
    /// Whether a host is alive.
    pub live: &'a dyn Fn(HostId) -> bool,
}

/// Lets a host in. Its secret has been checked.
pub fn join(
    state: &mut Stored,
    csr: &[u8],
    info: &HostInfo,
    context: &Context<'_>,
) -> Result<Reply, Error> {
    check_info(info)?;
    check_data_port(&state.facts, info)?;
    let Stored {
        facts,
        manager: Some(manager),
        ..
    } = state
    else {
        return Err(not_manager());
    };
    if let Some(other) = facts
        .hosts
        .iter()
        .find(|host| host.vtep == info.vtep)
        .cloned()
    {
        if other.manager || (context.live)(other.id) {
            return Err(vtep_taken(info.vtep, &other.name, other.id));
        }
        // The same machine, set up anew without leaving first: nobody else can have its address.
        facts.hosts.retain(|host| host.id != other.id);
        manager.ipam.release_host(other.id);
    }
    if facts.hosts.len() >= MAX_HOSTS {
        return Err(refused(format!(
            "the cluster has {MAX_HOSTS} hosts already"
        )));
    }
    let id = context.new_id;
    if id == HostId(0) || facts.host(id).is_some() {
        return Err(refused("the new host's random id was taken: try again"));
    }
    let cert = manager
        .authority
        .certify(csr, id, false)
        .map_err(|_| refused("the certificate request is malformed"))?;
    facts.hosts.push(info.host(id, false));
    changed(facts, context);
    Ok(Reply::Joined {
        id,
        cert,
        facts: facts.clone(),
    })
}

/// Handles any other request of a member, whose id is from its certificate.
pub fn handle(
    state: &mut Stored,
    from: HostId,
    request: &Request,
    context: &Context<'_>,
) -> Result<Reply, Error> {
    let Stored {
        facts,
        manager: Some(manager),
        ..
    } = state
    else {
        return Err(not_manager());
    };
    if facts.host(from).is_none() {
        if let Request::Leave = request {
            return Ok(Reply::Done);
        }
        return Err(refused(format!(
            "host {from} is no member of this cluster: join it again"
        )));
    }
    match request {
        Request::Join { .. } => Err(refused("this host is a member already")),
        Request::Update(info) => {
            check_info(info)?;
            check_data_port(facts, info)?;
            let taken = |host: &&overlay_core::model::Host| host.vtep == info.vtep;
            if let Some(other) = facts
                .hosts
                .iter()
                .filter(taken)
                .find(|host| host.id != from)
            {
                return Err(vtep_taken(info.vtep, &other.name, other.id));
            }
            for host in facts.hosts.iter_mut().filter(|host| host.id == from) {
                *host = info.host(from, host.manager);
            }
            changed(facts, context);
            Ok(Reply::Done)
        }
        Request::NetworkCreate { spec, avoid } => {
            let mut avoid = avoid.clone();
            avoid.extend(facts.hosts.iter().map(|host| IpNetwork::from(host.vtep)));
            let network = manager.ipam.create(spec, &avoid)?;
            facts.networks.push(network.clone());
            changed(facts, context);
            Ok(Reply::Network {
                network,
                facts: facts.clone(),
            })
        }
        Request::NetworkRemove { name } => {
            let network = manager.ipam.remove(name)?;
            facts.networks.retain(|other| other.vni != network.vni);
            changed(facts, context);
            Ok(Reply::Network {
                network,
                facts: facts.clone(),
            })
        }
        Request::Lease(spec) => Ok(Reply::Lease(manager.ipam.lease(from, spec)?)),
        Request::Release { vni, ip, endpoint } => {
            manager.ipam.release(from, *vni, *ip, endpoint)?;
            Ok(Reply::Done)
        }
        Request::Leases => {
            let own = manager.ipam.leases(None).filter(|lease| lease.host == from);
            Ok(Reply::Leases(own.cloned().collect()))
        }
        Request::Facts { have } => Ok(Reply::Facts((facts.version > *have).then(|| facts.clone()))),
        Request::Leave => {
            manager.ipam.release_host(from);
            facts.hosts.retain(|host| host.id != from);
            changed(facts, context);
            Ok(Reply::Done)
        }
    }
}

fn changed(facts: &mut Facts, context: &Context<'_>) {
    facts.version = context.now.max(facts.version + 1);
}

fn check_info(info: &HostInfo) -> Result<(), Error> {
    check_name(&info.name).map_err(|e| refused(e.to_string()))?;
    let usable = match info.vtep {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    if !usable {
        return Err(refused(format!(
            "{} can't be a VTEP: give a host's own address",
            info.vtep
        )));
    }
    if [info.data_port, info.control_port, info.gossip_port].contains(&0) {
        return Err(refused("a port can't be 0"));
    }
    Ok(())
}

/// VTEPs with different ports would lose each other's frames without a word.
fn check_data_port(facts: &Facts, info: &HostInfo) -> Result<(), Error> {
    match facts.host(facts.manager) {
        Some(manager) if manager.data_port != info.data_port => Err(refused(format!(
            "this cluster's data port is {0}/udp on all hosts: attach with --data-port {0}",
            manager.data_port
        ))),
        _ => Ok(()),
    }
}

fn not_manager() -> Error {
    refused("this host is no manager: ask the first host")
}

fn vtep_taken(vtep: IpAddr, name: &str, id: HostId) -> Error {
    refused(format!(
        "VTEP {vtep} belongs to host {name} ({id}): give this host its own address, or let {name} leave first"
    ))
}

#[cfg(test)]
mod tests;
