//! What can go wrong, in one line each, with what to do next.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

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
    /// The manager said no.
    #[error("{0}")]
    Refused(String),
    /// The manager does not answer.
    #[error(
        "the manager at {addr}/udp does not answer ({problem}): networks and new addresses wait for it; containers, their traffic and the other hosts' tables go on"
    )]
    ManagerUnreachable {
        /// Where it should be.
        addr: SocketAddr,
        /// What went wrong.
        problem: String,
    },
    /// The manager has left for good.
    #[error(
        "the manager {0} has left this cluster, so networks and leases can't change any more: leave, and join a new one"
    )]
    ManagerLeft(HostId),
    /// This host has left for good, but the manager does not know it.
    #[error(
        "this host has left, but the manager at {addr}/udp could not be told ({problem}): its address leases stay until another host takes its VTEP address"
    )]
    LeftUntold {
        /// Where the manager should be.
        addr: SocketAddr,
        /// What went wrong.
        problem: String,
    },
    /// An endpoint of a network that there isn't.
    #[error("there is no network with VNI {0}: create it first")]
    NoNetwork(Vni),
    /// An endpoint that its network can't have.
    #[error("endpoint '{name}' can't be published: {problem}")]
    Endpoint {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
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
