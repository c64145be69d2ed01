//! Full maps. Those that packets fill are LRU maps: the longest idle entry goes, and one that is used
//! stays, however many come. All others the agent alone fills, and a packet can't.

use overlay_common::layout::{EntranceEntry, FDB_ROUTER, FdbKey, FlowKey, names};
use overlay_common::wire::map_v4;

use super::checks::*;
use super::frames::*;
use super::object::{Object, UPLINK};
use super::world::*;

/// As many flows as the map has room for; the real one's is 131,072.
const ROOM: u32 = 1024;
/// So many others come.
const OTHERS: u32 = 20 * ROOM;

/// Flows from outside that come through another host's router: for each it is noted through which.
#[test]
fn a_flow_that_is_used_outlives_any_number_of_others() {
    let mut tables = tables();
    let network = tables.networks.get_mut(&VNI).unwrap();
    (network.net4, network.mask4) = ([10, 0, 0, 0], [255, 255, 255, 0]);
    let router = FdbKey::new(VNI, mac(R));
    let entry = tables.fdb.get_mut(&router).unwrap();
    *entry = entry.with(FDB_ROUTER);
    let from = |outside: [u8; 4], port: u16| {
        let segment = tcp(port, 80, b"hello");
        from_r(&eth(
            mac(A),
            mac(R),
            IP,
            &ipv4(outside, A, 0, TCP, &segment),
        ))
    };
    for hook in UPLINK {
        let Some(mut object) = Object::load_with(&tables, 0, &[(names::ENTRANCES, ROOM)]) else {
            return;
        };
        let live = ([203, 0, 113, 9], 40_000);
        object.run(hook, &from(live.0, live.1));
        for other in 0..OTHERS {
            let [_, a, b, c] = other.to_be_bytes();
            object.run(hook, &from([198, a, b, c], 1000));
            if other % 32 == 0 {
                object.run(hook, &from(live.0, live.1));
            }
        }
        let kept = object.keys::<FlowKey, EntranceEntry>(names::ENTRANCES);
        assert!(
            kept.len() <= ROOM as usize,
            "{hook:?}: {} flows",
            kept.len()
        );
        let of = |ip: [u8; 4], port: u16| {
            let outside = (map_v4(ip), port.to_be_bytes());
            let inside = (map_v4(A), 80_u16.to_be_bytes());
            kept.contains(&FlowKey::new(VNI, inside, outside, TCP))
        };
        assert!(
            of(live.0, live.1),
            "{hook:?}: the flow in use was forgotten"
        );
        // The first of all others has long been idle, and the last has only just come.
        assert!(
            !of([198, 0, 0, 0], 1000),
            "{hook:?}: the oldest is still there"
        );
        let [_, a, b, c] = (OTHERS - 1).to_be_bytes();
        assert!(
            of([198, a, b, c], 1000),
            "{hook:?}: the newest was not taken"
        );
    }
}
