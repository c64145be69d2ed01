//! What can go wrong, each in one line that says what to do next.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use rtnetlink::packet_core::ErrorMessage;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate. Whatever the failed call had made is undone when it returns.
///
/// The message says it all, with what the kernel said: [`std::error::Error::source`] is always
/// `None`, so that a report of the whole chain does not say that twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A namespace name without a file in `/run/netns`.
    #[error("no network namespace '{0}': make it with 'ip netns add {0}', or give --pid or a path")]
    NoNamespace(String),
    /// Not a name `ip netns` could have made.
    #[error("'{0}' can't name a network namespace: give a name without '/', a path, or --pid")]
    NamespaceName(String),
    /// A process that does not exist, or has ended.
    #[error("no process {0}: give the PID of a process that runs in the container")]
    NoProcess(u32),
    /// A path with nothing behind it.
    #[error(
        "no network namespace at {}: give a path like /run/netns/NAME or /proc/PID/ns/net", .0.display()
    )]
    NoNamespacePath(PathBuf),
    /// A file that is something else.
    #[error(
        "{} is not a network namespace: give a path like /run/netns/NAME or /proc/PID/ns/net", .0.display()
    )]
    NotANamespace(PathBuf),
    /// The namespace was there when it was opened.
    #[error("the network namespace of {0} is gone: remove the container and add it again")]
    NamespaceGone(String),
    /// The host's own namespace in a container's place.
    #[error("{0} is in the host's own network namespace: give the container one of its own")]
    HostNamespace(String),
    /// The kernel does not let us in.
    #[error("cannot enter the network namespace of {name}: {cause}; run as root")]
    Enter {
        /// What the user called it.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },

    /// Not an interface name.
    #[error("'{0}' can't name an interface: use 1 to 15 characters without space, '/', ':' or '%'")]
    InterfaceName(String),
    /// The host has such an interface already.
    #[error("the host has an interface '{0}' already: delete it with 'ip link del {0}'")]
    TakenOnHost(String),
    /// The host has such an interface, and it does not carry our mark.
    #[error(
        "interface '{name}' is {}: rename or delete that one if nobody needs it; it was left as it is",
        whose(.alias.as_deref())
    )]
    NotOurs {
        /// The interface.
        name: String,
        /// Its alias.
        alias: Option<String>,
    },
    /// The container has such an interface already.
    #[error(
        "the container has an interface '{0}' already: choose another with --ifname, or remove that one"
    )]
    TakenInContainer(String),
    /// No such interface.
    #[error("no interface '{name}': {}", there_are(.known))]
    NoInterface {
        /// The one asked for.
        name: String,
        /// Those that could have been meant.
        known: Vec<String>,
    },
    /// Its administrative state is down.
    #[error("interface {0} is down: bring it up with 'ip link set {0} up'")]
    Down(String),
    /// It has no usable address.
    #[error(
        "interface {0} has no address to be reached at: add one with 'ip address add ADDRESS/LEN dev {0}'"
    )]
    NoAddress(String),
    /// A link-local address was to be advertised.
    #[error("{0} is valid on its own link only: advertise a global or unique local address")]
    LinkLocal(IpAddr),
    /// IPv6 address configuration has not finished with it, or is through with it.
    #[error(
        "{address} on interface {name} can't be used: it is tentative, deprecated or a duplicate \
         (see 'ip -6 address show dev {name}')"
    )]
    UnusableAddress {
        /// The advertised address.
        address: IpAddr,
        /// The uplink.
        name: String,
    },
    /// The advertised address belongs to some other interface, or to none.
    #[error("{address} is not an address of interface {name}: {name} has {}", list(.has))]
    NotAddressOf {
        /// The advertised address.
        address: IpAddr,
        /// The uplink.
        name: String,
        /// Its addresses.
        has: Vec<String>,
    },
    /// Not an Ethernet interface.
    #[error("interface {0} is not an Ethernet interface: choose another one")]
    NotEthernet(String),
    /// The hosts could not talk to each other over it.
    #[error(
        "the MTU of {name} is {mtu}, and QUIC between the hosts needs {}: \
         raise it with 'ip link set {name} mtu 1500'",
        crate::uplink::MIN_UPLINK_MTU
    )]
    MtuTooSmall {
        /// The uplink.
        name: String,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// The kernel has no IPv6 on interfaces with so small an MTU, or was booted without IPv6.
    #[error(
        "interface {name} can't have IPv6 address {address} with an MTU of {mtu}: \
         IPv6 needs an MTU of 1280 and a kernel that has it enabled"
    )]
    NoIpv6 {
        /// The container's interface.
        name: String,
        /// The address asked for.
        address: IpAddr,
        /// The MTU of the container's interface, in bytes.
        mtu: u32,
    },
    /// The gateway cannot be reached directly.
    #[error("gateway {0} is in no subnet of the container's addresses: give one that is")]
    GatewayOffLink(IpAddr),

    /// No route.
    #[error("no route to {0}: add one with 'ip route add {0} via GATEWAY', or check the uplink")]
    NoRoute(IpAddr),
    /// A route that leads back here.
    #[error("{0} is an address of this host: a VTEP must be another host's")]
    LocalDestination(IpAddr),
    /// The source address is not ours any more.
    #[error("{0} is not an address of this host: advertise one that is")]
    NotOurAddress(IpAddr),

    /// A driver that ignores a setting.
    #[error("interface {name} can't turn {what} {}: its driver does not allow it", on_off(*.on))]
    Offload {
        /// The interface.
        name: String,
        /// The offload.
        what: &'static str,
        /// What was asked for.
        on: bool,
    },

    /// Missing capabilities.
    #[error("missing {}: run as root, or give the program these capabilities", list(.0))]
    Privileges(Vec<String>),
    /// Kernel too old.
    #[error("kernel {}.{} is too old: use Linux {}.{} or newer", .have.0, .have.1, .need.0, .need.1)]
    KernelTooOld {
        /// This kernel.
        have: (u32, u32),
        /// The oldest one that will do.
        need: (u32, u32),
    },
    /// bpffs is not there, and cannot be mounted.
    #[error(
        "cannot mount a BPF file system at {}: {cause}; run as root, or \
         'mount -t bpf bpf {}' beforehand", .path.display(), .path.display()
    )]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },

    /// Any other refusal of the kernel's.
    #[error("cannot {doing}: {cause}{}", advice(.cause))]
    Kernel {
        /// What was being done, as in "set the MTU of eth0".
        doing: String,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>, cause: impl Into<io::Error>) -> Error {
        Error::Kernel {
            doing: doing.into(),
            cause: cause.into(),
        }
    }

    pub(crate) fn netlink(doing: impl Into<String>, cause: rtnetlink::Error) -> Error {
        Error::kernel(doing, io_error(cause))
    }

    /// The errno behind it, if it came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { cause, .. }
            | Error::Bpffs { cause, .. }
            | Error::Enter { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}

/// The errno of a netlink refusal, `None` for an error of the library's.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(_), .. }) => {
            // An ACK would have no code, so this one is an errno.
            io::Error::from_raw_os_error(errno(&error).unwrap_or_default())
        }
        other => io::Error::other(other.to_string()),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::ReadOnlyFilesystem => "; mount /proc/sys writable",
        _ => "",
    }
}

fn there_are(names: &[String]) -> String {
    match names {
        [] => "there is none; add one first".to_owned(),
        [one] => format!("there is {one}"),
        many => format!("there are {}", list(many)),
    }
}

fn whose(alias: Option<&str>) -> String {
    match alias {
        Some(alias) => format!("'{alias}', another agent's or a user's"),
        None => "not one that this agent made".to_owned(),
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(", ")
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_and_say_what_to_do() {
        let none = Error::NoInterface {
            name: "eth9".into(),
            known: vec!["eth0".into(), "eth1".into()],
        };
        assert_eq!(
            none.to_string(),
            "no interface 'eth9': there are eth0, eth1"
        );
        let small = Error::MtuTooSmall {
            name: "eth0".into(),
            mtu: 500,
        };
        assert_eq!(
            small.to_string(),
            "the MTU of eth0 is 500, and QUIC between the hosts needs 1280: \
             raise it with 'ip link set eth0 mtu 1500'"
        );
        let denied = Error::kernel("add x", io::Error::from_raw_os_error(libc::EPERM));
        assert!(denied.to_string().ends_with("; run as root"), "{denied}");
        assert_eq!(denied.errno(), Some(libc::EPERM));
    }

    #[test]
    fn the_cause_is_told_once() {
        use std::error::Error as _;
        let cause = || io::Error::from_raw_os_error(libc::EINVAL);
        for error in [
            Error::kernel("add x", cause()),
            Error::Enter {
                name: "c".into(),
                cause: cause(),
            },
            Error::Bpffs {
                path: "/x".into(),
                cause: cause(),
            },
        ] {
            assert!(error.to_string().contains("Invalid argument"), "{error}");
            assert!(error.source().is_none(), "{error}");
        }
    }
}
