//! Networks that every host's Docker is to have: this one's gets them, and loses them when the
//! cluster does. It is an agreed fact, so that hosts which were away or join later have them, too.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::Plugin;
use super::create::create;
use super::network::short;

/// How often Docker is asked again for what it did not do.
const PERIOD: Duration = Duration::from_secs(5);

/// Follows the facts as long as the agent runs.
pub async fn run(plugin: Arc<Plugin>) {
    loop {
        let changed = plugin.ctx.cluster.facts_changed();
        if let Err(error) = plugin.follow_facts().await {
            tracing::debug!("Docker does not follow yet: {error:#}");
        }
        tokio::select! {
            () = changed => {}
            () = sleep(PERIOD) => {}
        }
    }
}

impl Plugin {
    async fn follow_facts(&self) -> Result<()> {
        let cluster = &self.ctx.cluster;
        let wanted = cluster.facts(|facts| {
            let networks = facts.networks();
            let everywhere = networks.filter(|network| facts.is_everywhere(network.vni));
            everywhere.cloned().collect::<Vec<_>>()
        });
        let (missing, gone) = self.store.read(|book| {
            let has = |name: &str| book.has_network(name);
            let mut missing = wanted.clone();
            missing.retain(|network| !has(&network.name) && !book.declined.contains(&network.vni));
            let lasts = |name: &str| wanted.iter().any(|network| network.name == name);
            let follows = book.networks.iter().filter(|(_, network)| network.follows);
            let gone = follows.filter(|(_, network)| !lasts(&network.name));
            let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
            (missing, gone)
        });
        for id in gone {
            self.client.remove_network(&id).await?;
            tracing::info!(docker = %short(&id), "Docker's network went with the cluster's");
        }
        for network in missing {
            create(&self.client, &network, true).await?;
            tracing::info!(network = %network.name, "Docker has the network, as every host's");
        }
        if self.store.read(|book| !book.declined.is_empty()) {
            self.store.change(|book| {
                book.declined
                    .retain(|vni| wanted.iter().any(|network| network.vni == *vni));
                Ok(())
            })?;
        }
        Ok(())
    }
}
