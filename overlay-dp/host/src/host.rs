//! The netlink connection: one for the host's namespace, short-lived ones inside containers'.

use std::future::Future;
use std::io;

use rtnetlink::Handle;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::Connection;

use crate::{Error, Netns, Result};

/// The network namespace that this was made in: its links, addresses, routes and neighbours.
///
/// Its calls that write `/proc/sys` act on the namespace of the thread that polls them, so all
/// threads of the runtime must be in the one where [`Host::new`] was called.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) handle: Handle,
}

impl Host {
    /// Opens a netlink socket in the calling thread's namespace, and spawns the task that serves
    /// it; the task ends with the last clone of the host.
    ///
    /// # Errors
    /// When the kernel gives no socket, or outside a tokio runtime.
    pub fn new() -> Result<Host> {
        let runtime = runtime()?;
        let (connection, handle) = connect()?;
        runtime.spawn(connection);
        Ok(Host { handle })
    }

    /// A host for the inside of `netns`, and the connection that must be driven for it.
    pub(crate) fn inside(netns: &Netns) -> Result<(Host, Connection<RouteNetlinkMessage>)> {
        let runtime = runtime()?;
        let (connection, handle) = netns.run(|| {
            let _entered = runtime.enter();
            connect()
        })??;
        Ok((Host { handle }, connection))
    }
}

/// Does `work`, which uses `connection`'s host, and closes the connection: its socket would keep
/// the container's namespace alive.
pub(crate) async fn drive<T>(
    connection: Connection<RouteNetlinkMessage>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = connection => Err(Error::kernel(
            "talk to the kernel",
            io::Error::from(io::ErrorKind::ConnectionAborted),
        )),
    }
}

fn connect() -> Result<(Connection<RouteNetlinkMessage>, Handle)> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| Error::kernel("open a netlink socket", e))?;
    Ok((connection, handle))
}

fn runtime() -> Result<tokio::runtime::Handle> {
    tokio::runtime::Handle::try_current()
        .map_err(|e| Error::kernel("open a netlink socket", io::Error::other(e)))
}
