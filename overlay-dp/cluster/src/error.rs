//! What can go wrong, in one line each, with what to do next.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use overlay_core::facts::Refusal;
use overlay_core::model::{HostId, ModelError, Vni};

use crate::token::TokenError;

/// Why a call failed. Unless it says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A local socket can't be had.
    #[error("{}", bind_text(*addr, flag, source))]
    Bind {
        /// The wanted address.
        addr: SocketAddr,
        /// The option that chooses the port.
        flag: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state directory or file can't be used.
    #[error("{}: {problem}", path.display())]
    State {
        /// What it is about.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// There is nothing to resume.
    #[error("{} holds no cluster to resume: start a new one or join one", .0.display())]
    NoCluster(PathBuf),
    /// There is a cluster already.
    #[error("{} says that this host is in a cluster already: leave it first", .0.display())]
    AlreadyMember(PathBuf),
    /// A malformed token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A name or number against the rules.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The host to join can't be found.
    #[error("can't find '{addr}': {problem}; give the first host's address to --join")]
    Resolve {
        /// As given.
        addr: String,
        /// What went wrong.
        problem: String,
    },
    /// The host to join belongs to another cluster. The secret was not sent.
    #[error(
        "the host at {0} belongs to another cluster than the token (or someone is in between): the secret was not sent; copy --join and --token from the same host"
    )]
    OtherCluster(SocketAddr),
    /// Nobody answers there, or not as a manager does.
    #[error(
        "can't join at {addr}/udp: {problem}; check that the first host runs and that no firewall drops its control port"
    )]
    Join {
        /// Where.
        addr: SocketAddr,
        /// What went wrong.
        problem: String,
    },
    /// The managers agreed that this can't be.
    #[error(transparent)]
    Refused(Refusal),
    /// A manager said no.
    #[error("{0}")]
    Denied(String),
    /// No manager can be reached, or they can't agree.
    #[error(
        "the cluster's managers can't agree on anything now ({problem}): networks and new addresses wait for it; traffic, attaches from leased addresses and the tables go on"
    )]
    NoManager {
        /// What went wrong.
        problem: String,
    },
    /// Something that only a manager has.
    #[error("this host is no manager: run it on one ({0})")]
    NotManager(String),
    /// Somebody has removed this host from the cluster.
    #[error("this host was removed from its cluster: leave it here, too, and join again")]
    Expelled,
    /// This host was away for too long.
    #[error(
        "this host's certificate has expired, so no other host talks with it: leave, and join again with a token"
    )]
    Expired,
    /// A role takes its time.
    #[error(
        "host {id} is to be a {role}, but is not yet ({problem}): it becomes one as soon as that is mended"
    )]
    RolePending {
        /// Which host.
        id: HostId,
        /// Of which role.
        role: &'static str,
        /// What is known.
        problem: String,
    },
    /// This host has left for good, but no manager knows it.
    #[error(
        "this host has left, but no manager could be told ({problem}): its addresses stay taken until it is removed there with `overlay-dp host rm`"
    )]
    LeftUntold {
        /// What went wrong.
        problem: String,
    },
    /// A backup that can't be restored.
    #[error("{0}")]
    Backup(String),
    /// The store of what managers agree on can't be used.
    #[error("{}: {problem}", path.display())]
    Raft {
        /// Where it is.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Another host's agent could not be asked.
    #[error("host '{name}' does not answer: {problem}")]
    HostSilent {
        /// The host.
        name: String,
        /// What went wrong.
        problem: String,
    },
    /// An endpoint of a network that there isn't.
    #[error("there is no network with VNI {0}: create it first")]
    NoNetwork(Vni),
    /// An endpoint that the others would not believe.
    #[error("endpoint '{name}' can't be published: {problem}")]
    Endpoint {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Keys or certificates don't work.
    #[error("{0}; this is a bug or a damaged state file")]
    Crypto(String),
}

fn bind_text(addr: SocketAddr, flag: &str, source: &io::Error) -> String {
    let (port, ip): (u16, IpAddr) = (addr.port(), addr.ip());
    match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port}/udp on {ip} is taken: stop the program that has it (`ss -ulpn`) or choose another with {flag}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{ip} is no address of this host: choose another interface or VTEP address")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "port {port}/udp on {ip} needs privileges: run as root or choose another with {flag}"
            )
        }
        _ => {
            format!("can't listen on port {port}/udp of {ip}: {source}; choose another with {flag}")
        }
    }
}
