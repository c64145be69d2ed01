//! Maps that stand for the BPF maps and notice what no update may do.

use overlay_core::tables::{MapContents, MapUpdate, Tables};

/// Carries out all updates that wait, and compares the result with the snapshot. Returns them.
pub fn drain(tables: &mut Tables, maps: &mut MapContents) -> Vec<MapUpdate> {
    let updates: Vec<MapUpdate> = std::iter::from_fn(|| tables.poll_update()).collect();
    for update in &updates {
        apply(maps, update.clone());
        check_references(maps, update);
    }
    assert_eq!(*maps, tables.snapshot());
    updates
}

/// An update always changes something.
fn apply(maps: &mut MapContents, update: MapUpdate) {
    let changed = match update {
        MapUpdate::SetPort(key, entry) => maps.ports.insert(key, entry) != Some(entry),
        MapUpdate::DelPort(key) => maps.ports.remove(&key).is_some(),
        MapUpdate::SetNetwork(key, entry) => maps.networks.insert(key, entry) != Some(entry),
        MapUpdate::DelNetwork(key) => maps.networks.remove(&key).is_some(),
        MapUpdate::SetFdb(key, entry) => maps.fdb.insert(key, entry) != Some(entry),
        MapUpdate::DelFdb(key) => maps.fdb.remove(&key).is_some(),
        MapUpdate::SetNeighbour(key, entry) => maps.neighbours.insert(key, entry) != Some(entry),
        MapUpdate::DelNeighbour(key) => maps.neighbours.remove(&key).is_some(),
        MapUpdate::SetVtep(key, entry) => maps.vteps.insert(key, entry) != Some(entry),
        MapUpdate::DelVtep(key) => maps.vteps.remove(&key).is_some(),
        MapUpdate::SetSlot(key, peer) => maps.slots.insert(key, peer) != Some(peer),
        MapUpdate::DelSlot(key) => maps.slots.remove(&key).is_some(),
        MapUpdate::SetPolicy(key, ref entry) => maps.policies.insert(key, **entry) != Some(**entry),
        MapUpdate::DelPolicy(key) => maps.policies.remove(&key).is_some(),
    };
    assert!(changed, "{update:?} changes nothing");
}

/// At no moment does an entry refer to something that is not there.
fn check_references(maps: &MapContents, update: &MapUpdate) {
    // Who is policed has policies.
    let policed = |ifindex| maps.policies.contains_key(&ifindex);
    if let Some((ifindex, _)) = maps
        .ports
        .iter()
        .find(|(i, p)| p.is_policed() && !policed(**i))
    {
        panic!("port {ifindex} has no policies after {update:?}");
    }
    let mut places = maps.fdb.values().filter(|entry| entry.is_policed());
    assert!(
        places.all(|entry| entry.port().is_some_and(policed)),
        "a MAC has no policies after {update:?}"
    );
    // Only these can break a reference.
    if matches!(
        update,
        MapUpdate::SetFdb(..) | MapUpdate::DelVtep(_) | MapUpdate::DelPort(_)
    ) {
        for (key, entry) in &maps.fdb {
            match entry.port() {
                Some(ifindex) => assert!(
                    maps.ports
                        .get(&ifindex)
                        .is_some_and(|port| port.vni == key.vni()),
                    "no port for {key:?} after {update:?}"
                ),
                None if entry.is_service() => {}
                None => assert!(
                    maps.vteps.contains_key(entry.vtep()),
                    "no VTEP for {key:?} after {update:?}"
                ),
            }
        }
    }
}
