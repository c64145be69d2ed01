//! Detaching a container while its agent is away.

use std::path::Path;

use overlay_host::{Error, Host, Netns, NetnsRef};

use crate::instance::Instance;

/// Deletes a container's interface if it is the agent's. The next agent finds that the port is gone,
/// and tells the cluster. A namespace that has gone has taken it along.
///
/// # Errors
/// When the kernel refuses.
pub async fn detach(instance: &Instance, netns: &Path, ifname: &str) -> Result<(), Error> {
    let Ok(inside) = Netns::open(&NetnsRef::Path(netns.to_owned())) else {
        return Ok(());
    };
    let host = Host::new()?;
    let link = host.container_link(&inside, ifname).await?;
    let Some(peer) = link.and_then(|link| link.peer_index) else {
        return Ok(());
    };
    let ours = host.links_owned_by(&instance.owner()).await?;
    if ours.iter().any(|link| link.index == peer) {
        host.delete_container_link(&inside, ifname).await?;
    }
    Ok(())
}
