//! Policies: what was agreed goes into the tables. Each host judges what its own containers get.

use std::collections::{BTreeMap, BTreeSet};

use overlay_core::facts::Facts;
use overlay_core::model::Vni;
use overlay_core::tables::NetPolicies;

use super::Agent;

/// As they were agreed, by network.
fn agreed(facts: &Facts) -> BTreeMap<Vni, NetPolicies> {
    let mut all: BTreeMap<Vni, NetPolicies> = BTreeMap::new();
    for policy in facts.policies() {
        let its = all.entry(policy.vni).or_default();
        its.policies.push(policy.clone());
    }
    for network in facts.networks().filter(|network| facts.denies(network.vni)) {
        all.entry(network.vni).or_default().deny = true;
    }
    all
}

impl Agent {
    /// The tables follow what was agreed.
    pub(super) fn fit_policies(&mut self) {
        let agreed = self.cluster.facts(agreed);
        for vni in self.differing(&agreed) {
            let policies = agreed.get(&vni).cloned().unwrap_or_default();
            let (count, deny) = (policies.policies.len(), policies.deny);
            tracing::info!(%vni, count, deny, "policies of a network");
            self.tables.write().policies_set(vni, policies);
        }
    }

    /// The networks whose policies are not as they were agreed, for `verify`.
    pub(super) fn wrong_policies(&self) -> BTreeSet<Vni> {
        self.differing(&self.cluster.facts(agreed))
    }

    fn differing(&self, agreed: &BTreeMap<Vni, NetPolicies>) -> BTreeSet<Vni> {
        let tables = self.tables.read();
        let told: BTreeMap<Vni, &NetPolicies> = tables.policies().collect();
        let all = agreed.keys().chain(told.keys()).copied();
        all.filter(|vni| agreed.get(vni) != told.get(vni).copied())
            .collect()
    }
}
