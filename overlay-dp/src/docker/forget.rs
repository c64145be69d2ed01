//! What Docker has forgotten, because an agent or a daemon was away when it went, is given back.

use anyhow::Result;

use super::Plugin;
use super::ipam::pool_id;
use super::names::Watch;
use super::wire::OfNetwork;

impl Plugin {
    pub(super) async fn forget_endpoint(&self, id: &str) -> Result<()> {
        let endpoint = self.store.read(|book| book.endpoints.get(id).cloned());
        self.delete_endpoint(id).await?;
        let Some(endpoint) = endpoint else {
            return Ok(());
        };
        let network = self.network_of(&endpoint.network).await?;
        for ip in &endpoint.ips {
            if let Some(offset) = network.offset_of(*ip) {
                self.release(&network, offset, ip.is_ipv4())?;
            }
        }
        Ok(())
    }

    pub(super) async fn forget_network(&self, id: &str) -> Result<()> {
        let endpoints = self.store.read(|book| {
            let here = book
                .endpoints
                .iter()
                .filter(|(_, endpoint)| endpoint.network == id);
            here.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        });
        for endpoint in endpoints {
            self.forget_endpoint(&endpoint).await?;
        }
        self.store.change(|book| {
            if let Some(network) = book.networks.get(id).cloned() {
                for subnet in network.spec.subnets {
                    if let Some(pool) = book.pools.get_mut(&pool_id(subnet)) {
                        pool.count = pool.count.saturating_sub(1);
                    }
                }
                book.pools.retain(|_, pool| pool.count > 0);
            }
            Ok(())
        })?;
        self.delete_network(&OfNetwork {
            network_id: id.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Addresses that no endpoint came for, or whose release went unheard.
    pub(super) fn forget_addresses(&self, watch: &mut Watch) -> Result<()> {
        let networks = self.ctx.cluster.networks();
        for network in networks {
            let lost = self.store.read(|book| {
                let held = book.held.get(&network.name).into_iter().flatten();
                let held = held.filter(|(_, held)| !held.reserved);
                held.map(|(offset, held)| {
                    (
                        *offset,
                        held.key(),
                        book.endpoint_at(&network, *offset).is_none(),
                    )
                })
                .collect::<Vec<_>>()
            });
            for (offset, key, is_lost) in lost {
                if watch.is_forgotten(&key, is_lost) {
                    tracing::info!(network = %network.name, offset, "Docker has forgotten an address");
                    self.release(&network, offset, true)?;
                    self.release(&network, offset, false)?;
                    watch.missing.remove(&key);
                }
            }
        }
        Ok(())
    }
}
