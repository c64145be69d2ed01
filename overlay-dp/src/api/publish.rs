//! Ports that are published: `[HOSTIP:]HOSTPORT:PORT[/PROTOCOL]`, as Docker writes them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
pub use overlay_core::model::Protocol;
use serde::{Deserialize, Serialize};

/// What comes to a port of the host goes to a port of the container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address; each of its addresses when absent.
    #[serde(default)]
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
}

impl Publish {
    /// Whether nobody can have both.
    pub fn conflicts_with(&self, other: &Publish) -> bool {
        let any = |ip: &Option<IpAddr>| ip.filter(|ip| !ip.is_unspecified()).is_none();
        let same_ip = match (any(&self.host_ip), any(&other.host_ip)) {
            (false, false) => self.host_ip == other.host_ip,
            _ => true,
        };
        same_ip && (self.host_port, self.protocol) == (other.host_port, other.protocol)
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        write!(
            f,
            "{}:{}/{}",
            self.host_port,
            self.port,
            self.protocol.name()
        )
    }
}

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Publish> {
        let bad = || {
            format!("'{text}' publishes nothing: write [HOSTIP:]HOSTPORT:PORT[/udp], as in 8080:80")
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => bail!("'{other}' can't be published: only tcp and udp can"),
        };
        let number = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0);
        let (front, port) = ports.rsplit_once(':').with_context(bad)?;
        let (host_ip, host_port) = match front.rsplit_once(':') {
            None => (None, front),
            Some((ip, host_port)) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
                (
                    Some(bare.unwrap_or(ip).parse().ok().with_context(bad)?),
                    host_port,
                )
            }
        };
        Ok(Publish {
            host_ip,
            host_port: number(host_port).with_context(bad)?,
            port: number(port).with_context(bad)?,
            protocol,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["8080:80/tcp", "127.0.0.1:53:5353/udp", "[::1]:1:65535/tcp"] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), text);
        }
        let short: Publish = "8080:80".parse().unwrap();
        assert_eq!(short, "8080:80/tcp".parse().unwrap());
        for bad in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "x:80:80",
            "80:80/sctp",
            "-1:80",
            "1:2:3:4",
        ] {
            let error = bad.parse::<Publish>().unwrap_err().to_string();
            assert!(
                error.contains("write [HOSTIP:]") || error.contains("only tcp and udp"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn conflicts() {
        let conflict = |a: &str, b: &str| {
            let (a, b): (Publish, Publish) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.conflicts_with(&b), b.conflicts_with(&a));
            a.conflicts_with(&b)
        };
        assert!(conflict("80:1", "80:2"));
        assert!(conflict("10.0.0.1:80:1", "80:2"));
        assert!(conflict("0.0.0.0:80:1", "10.0.0.1:80:2"));
        assert!(!conflict("10.0.0.1:80:1", "10.0.0.2:80:2"));
        assert!(!conflict("80:1/udp", "80:1/tcp"));
    }
}
