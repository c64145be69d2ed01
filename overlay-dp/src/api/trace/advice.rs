//! What to do about a drop.

use overlay_common::counters::DropReason;

use crate::agent::Judgement;

/// What a step says of a frame that is dropped.
pub fn dropped(reason: &str, judgement: &Judgement) -> String {
    match &judgement.policy {
        Some(policy) if reason == DropReason::Policy.name() => {
            format!("dropped: {reason} ({policy})")
        }
        _ => format!("dropped: {reason}"),
    }
}

/// In one line, by the name of the reason for a drop or for a frame's way to the agent.
pub fn about(reason: &str) -> &'static str {
    match reason {
        "spoofed-mac" | "spoofed-ip" | "spoofed-neighbour" => {
            "a container may send only from the MAC and addresses that 'overlay-dp container ls' shows: undo what was changed inside it, or add it again with --ip or --mac-address"
        }
        "inner-vlan" => {
            "VLAN tags are not carried inside the overlay: remove the VLAN interface in the container"
        }
        "inner-header" | "truncated" | "inner-source" => {
            "the packet contradicts itself: 'overlay-dp capture' shows it as it is sent"
        }
        "hairpin" => {
            "it is sent to the container's own MAC: check its static neighbours ('ip neigh')"
        }
        "unknown-port" => "the agent does not know this port: 'overlay-dp verify --repair'",
        "unknown-vtep" => {
            "the receiving host does not know the sending one as a member: 'overlay-dp host ls' there; for a VTEP that is no host, 'overlay-dp fdb add'"
        }
        "unknown-vni" => {
            "the receiving host has no container on this network: 'overlay-dp container ls --local' there"
        }
        "wrong-vtep" => {
            "the receiving host knows the sender's MAC behind another VTEP: is the same MAC in use twice? 'overlay-dp fdb show' there"
        }
        "unknown-source" => {
            "the receiving host has not heard of the sender yet: gossip between the two is late or blocked (7946/udp); 'overlay-dp host ls' there"
        }
        "unknown-destination" => {
            "no endpoint of the network has this MAC: clear the container's neighbour table ('ip neigh flush dev eth0') if it was another's before"
        }
        "not-local" => {
            "the receiving host knows the receiver elsewhere: the sender's news are old, see 'overlay-dp fdb show' on both"
        }
        "ecn-illegal" => {
            "a router on the way marks congestion on packets that do not allow it (RFC 6040)"
        }
        "unresolved-next-hop" => {
            "the next hop to the VTEP does not answer: 'ip route get' and 'ip neigh' for its address on the sending host"
        }
        "outer-length" | "outer-checksum" | "vxlan-flags" | "malformed-echo" => {
            "something on the way changes packets of the tunnel: a middlebox that knows VXLAN?"
        }
        "punt-too-big" => {
            "broadcasts and tunnels of more than 3498 bytes are not carried: use a smaller MTU inside"
        }
        "helper-failed" => {
            "the kernel refused to change or redirect the packet: 'overlay-dp verify' on this host"
        }
        "clear-for-encrypted" => {
            "somebody sends in the clear for an encrypted network: a host of another version, or an attacker that uses a VTEP's address"
        }
        "sealed-for-clear" => {
            "the other host has sealed a frame of a network that is not encrypted here: are both of the same version?"
        }
        "no-key" => {
            "the two hosts' agents have not agreed on a key (yet): 'overlay-dp key ls' on both, and 'overlay-dp host ls' says whether they talk"
        }
        "unknown-spi" | "bad-icv" | "replay" | "malformed-esp" => {
            "ESP packets come that no host of the cluster has sealed for this one now: old ones that are sent again, or another user of the ESP port (see --esp-port)"
        }
        "no-member" => {
            "nobody else has joined the group: 'overlay-dp mdb show' on both hosts; a program joins with IP_ADD_MEMBERSHIP or IPV6_JOIN_GROUP"
        }
        "multicast-off" => {
            "the network carries no broadcast and multicast: 'overlay-dp network inspect' says why, 'network create --multicast snoop' makes one that does"
        }
        "flood-limit" => {
            "a container sends more broadcast or multicast than it may: see 'attach --flood-limit'"
        }
        "bad-membership" | "too-many-groups" => {
            "a container sends IGMP or MLD that is wrong, a query, or joins more than 128 groups: 'overlay-dp capture' shows it"
        }
        "policy" => {
            "the receiver's policies do not let it in: 'overlay-dp policy ls', and 'overlay-dp policy add' for what is to be reached"
        }
        "rate-limit" => {
            "the container sends more than its --rate: 'overlay-dp container ls --json' shows it"
        }
        "no-agent" | "punt-queue-full" | "not-punted" => {
            "see whether the agent runs and keeps up: 'overlay-dp status'"
        }
        _ => "'overlay-dp verify' on this host looks for what differs",
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::counters::DropReason;

    use super::about;

    #[test]
    fn every_reason_for_a_drop_has_advice_of_its_own() {
        for reason in DropReason::ALL {
            assert_ne!(about(reason.name()), about("?"), "{}", reason.name());
        }
    }
}
