//! The two QUIC sockets of a host.

use quinn::Endpoint;

use crate::error::Error;
use crate::pki::Identity;
use crate::transport::{self, CONTROL, GOSSIP};

/// None is there after a shutdown; the control socket only on managers.
#[derive(Default)]
pub struct Sockets {
    pub gossip: Option<Endpoint>,
    pub control: Option<Endpoint>,
}

impl Sockets {
    /// New connections get this certificate.
    pub fn certify(&self, identity: &Identity) -> Result<(), Error> {
        if let Some(gossip) = &self.gossip {
            certify_gossip(gossip, identity)?;
        }
        if let Some(control) = &self.control {
            certify_control(control, identity)?;
        }
        Ok(())
    }

    /// Says goodbye on all connections.
    pub async fn close(self) {
        let close = |socket: Option<Endpoint>| async {
            if let Some(socket) = socket {
                transport::close(socket).await;
            }
        };
        tokio::join!(close(self.gossip), close(self.control));
    }
}

pub fn certify_gossip(socket: &Endpoint, identity: &Identity) -> Result<(), Error> {
    let crypto = identity.server(GOSSIP, false)?;
    socket.set_server_config(Some(transport::gossip_server(crypto)));
    Ok(())
}

pub fn certify_control(socket: &Endpoint, identity: &Identity) -> Result<(), Error> {
    let crypto = identity.server(CONTROL, true)?;
    socket.set_server_config(Some(transport::control_server(crypto)));
    Ok(())
}
