//! What the agent tells people to type.

use overlay_core::model::HostId;

use super::*;

#[test]
fn the_join_command_has_the_ports_that_are_not_the_usual_ones() {
    let me = |data_port, esp_port, control_port| ClusterHost {
        id: HostId(1),
        name: "host1".to_owned(),
        vtep: [172, 31, 1, 5].into(),
        data_port,
        esp_port,
        control_port,
        gossip_port: 7946,
        manager: true,
    };
    let command =
        |rest: &str| format!("overlay-dp attach --iface <uplink> --join 172.31.1.5{rest}");
    for (me, wanted) in [
        (me(4789, 4500, 2377), " --token T"),
        (me(4790, 4500, 2377), " --token T --data-port 4790"),
        (me(4789, 4501, 2378), ":2378 --token T --esp-port 4501"),
        (
            me(4790, 4501, 2377),
            " --token T --data-port 4790 --esp-port 4501",
        ),
    ] {
        assert_eq!(join_command(&me, "T"), command(wanted));
    }
}
