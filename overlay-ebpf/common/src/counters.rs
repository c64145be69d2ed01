//! Drop reasons and event counters: flat enums that index per-CPU arrays.

/// Declares an enum whose discriminants index a counter array, with a name and a meaning for each.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every one, in the order of their indices.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// How many there are: the size of the array they index.
            pub const COUNT: usize = Self::ALL.len();

            /// The name that `status` prints.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

counters! {
    /// Why a frame was dropped.
    DropReason {
        /// The frame ends inside a header that it must have.
        Truncated => "truncated",
        /// A container sent with a source MAC that is not its own.
        SpoofedMac => "spoofed-mac",
        /// A container sent from an IP address that is not its own.
        SpoofedIp => "spoofed-ip",
        /// A container announced, by ARP or neighbour advertisement, an address not its own.
        SpoofedNeighbour => "spoofed-neighbour",
        /// The inner frame has an 802.1Q or 802.1ad tag (RFC 7348 section 6.1).
        InnerVlan => "inner-vlan",
        /// The inner IP header contradicts itself, or its extensions hide what comes behind them.
        InnerHeader => "inner-header",
        /// The inner source MAC is a group address or zero.
        InnerSource => "inner-source",
        /// The destination is behind the port that the frame came from.
        Hairpin => "hairpin",
        /// The frame came in on a port the agent has not set up.
        UnknownPort => "unknown-port",
        /// The outer lengths contradict each other or the frame.
        OuterLength => "outer-length",
        /// The outer IPv4 header checksum is wrong.
        OuterChecksum => "outer-checksum",
        /// The VXLAN header has no valid VNI.
        VxlanFlags => "vxlan-flags",
        /// The outer source address is no VTEP of the cluster.
        UnknownVtep => "unknown-vtep",
        /// On VNI 0, but no echo request that can be answered, and no answer.
        MalformedEcho => "malformed-echo",
        /// This host has no endpoint in a network with that VNI.
        UnknownVni => "unknown-vni",
        /// The inner source MAC belongs to another VTEP, or to a local port.
        WrongVtep => "wrong-vtep",
        /// The inner source MAC belongs to no endpoint of the network.
        UnknownSource => "unknown-source",
        /// The inner destination MAC belongs to no endpoint of the network.
        UnknownDestination => "unknown-destination",
        /// A frame from one VTEP for an endpoint behind another one.
        NotLocal => "not-local",
        /// Congestion experienced outside, but the inner packet does not know ECN (RFC 6040).
        EcnIllegal => "ecn-illegal",
        /// The next hop to the VTEP is not known (yet).
        Unresolved => "unresolved-next-hop",
        /// The frame is larger than the punt link carries.
        PuntTooBig => "punt-too-big",
        /// A helper of the kernel refused to change or redirect the frame.
        Helper => "helper-failed",
        /// A frame on the punt link that neither the agent nor our programs sent.
        NotPunted => "not-punted",
        /// A frame for the agent while no agent runs.
        NoAgent => "no-agent",
        /// The agent had no free frame to send with.
        PuntQueueFull => "punt-queue-full",
        /// A frame in the clear for a network that is encrypted.
        ClearForEncrypted => "clear-for-encrypted",
        /// A frame that came sealed, for a network that is not encrypted.
        SealedForClear => "sealed-for-clear",
        /// A frame to be sealed for a VTEP with which no key is agreed (yet).
        NoKey => "no-key",
        /// An ESP packet with an SPI that this host has not given to its sender.
        UnknownSpi => "unknown-spi",
        /// An ESP packet that was not sealed with its SPI's key, or was changed since.
        BadIcv => "bad-icv",
        /// An ESP packet that came before, or too late to tell.
        Replay => "replay",
        /// An ESP packet that ends too early, or with something else than VXLAN inside.
        MalformedEsp => "malformed-esp",
        /// Multicast to a group that nobody else has joined.
        NoMember => "no-member",
        /// Broadcast or multicast on a network that carries none.
        MulticastOff => "multicast-off",
        /// More broadcast or multicast than one container may send.
        FloodLimit => "flood-limit",
        /// An IGMP or MLD message that is malformed, not a container's to send, or not its own.
        BadMembership => "bad-membership",
        /// A container joined more groups than there is room for.
        TooManyGroups => "too-many-groups",
        /// The policies of the endpoint that it is for do not let it in.
        Policy => "policy",
        /// A container sent more than its rate allows.
        RateLimit => "rate-limit",
    }
}

counters! {
    /// What the data path did.
    Stat {
        /// Frames taken from ports.
        PortFrames => "port-frames",
        /// Frames encapsulated and sent to a VTEP by the fast path.
        Encapsulated => "encapsulated",
        /// VXLAN frames taken from the uplink.
        UplinkFrames => "uplink-frames",
        /// Frames decapsulated and given to a port by the fast path.
        Decapsulated => "decapsulated",
        /// Frames given from one local port to another.
        Switched => "switched",
        /// ARP requests answered by the fast path.
        ArpReplies => "arp-replies",
        /// Neighbour solicitations answered by the fast path.
        NdReplies => "nd-replies",
        /// Frames handed to the agent.
        Punted => "punted",
        /// Frames the agent sent to ports.
        AgentToPort => "agent-to-port",
        /// Frames the agent sent to VTEPs.
        AgentToVtep => "agent-to-vtep",
        /// Echo requests of other VTEPs answered by the fast path.
        EchoReplies => "echo-replies",
        /// Frames for a service's own address that were given to one of its backends.
        Balanced => "balanced",
        /// Frames given to the host itself: on their way out of a network, or for the host.
        Routed => "routed",
        /// Frames of encrypted networks given to the crypt workers, on their way to a VTEP.
        ToSeal => "to-seal",
        /// ESP packets given to the crypt workers.
        ToOpen => "to-open",
        /// Frames that the crypt workers have opened.
        Opened => "opened",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        for (index, stat) in Stat::ALL.iter().enumerate() {
            assert_eq!(*stat as usize, index);
        }
    }
}
