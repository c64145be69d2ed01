//! Ports of the host that a runtime wants to lead into a container.

use std::net::IpAddr;

use serde::Deserialize;

use crate::api::Publish;

/// As CNI writes it (`hostPort`), and as netavark does (`host_port`).
#[derive(Clone, Debug, Deserialize)]
pub struct PortMapping {
    #[serde(alias = "hostPort")]
    host_port: u16,
    #[serde(alias = "containerPort")]
    container_port: u16,
    /// Empty for TCP; several may be joined by commas.
    #[serde(default)]
    protocol: String,
    /// Empty for all addresses.
    #[serde(default, alias = "hostIP")]
    host_ip: String,
    /// How many ports follow each other.
    #[serde(default)]
    range: Option<u16>,
}

impl PortMapping {
    /// One for each port and protocol; none when no port of the host is meant.
    ///
    /// # Errors
    /// When something of it is no port, address or protocol that can be published.
    pub fn publish(&self) -> Result<Vec<Publish>, String> {
        if self.host_port == 0 {
            return Ok(Vec::new());
        }
        let host_ip = Some(self.host_ip.as_str()).filter(|ip| !ip.is_empty());
        let parse = |ip: &str| ip.parse().map_err(|_| format!("'{ip}' is no IP address"));
        let host_ip: Option<IpAddr> = host_ip.map(parse).transpose()?;
        let names = match self.protocol.as_str() {
            "" => "tcp",
            names => names,
        };
        let mut all = Vec::new();
        for name in names.split(',') {
            for step in 0..self.range.unwrap_or(1).max(1) {
                let [host_port, port] = [self.host_port, self.container_port].map(|port| {
                    let sum = port.checked_add(step).filter(|sum| *sum != 0);
                    sum.ok_or_else(|| format!("{port} and {step} more is no port"))
                });
                // The protocol is read as the command line's is.
                let text = format!("{}:{}/{}", host_port?, port?, name.to_lowercase());
                let publish: Publish = text.parse().map_err(|e| format!("{e:#}"))?;
                all.push(Publish { host_ip, ..publish });
            }
        }
        Ok(all)
    }
}

/// All of them.
///
/// # Errors
/// As [`PortMapping::publish`].
pub fn published(mappings: &[PortMapping]) -> Result<Vec<Publish>, String> {
    let each = mappings.iter().map(PortMapping::publish);
    Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<String, String> {
        let mappings: Vec<PortMapping> = serde_json::from_str(json).unwrap();
        let all = published(&mappings)?;
        Ok(all.iter().map(|p| format!("{p} ")).collect())
    }

    #[test]
    fn both_spellings_are_read() {
        let cni = r#"[{"hostPort":8080,"containerPort":80,"protocol":"TCP","hostIP":"127.0.0.1"},
                      {"hostPort":0,"containerPort":81}]"#;
        assert_eq!(of(cni).unwrap(), "127.0.0.1:8080:80/tcp ");
        let netavark = r#"[{"host_ip":"","host_port":53,"container_port":1053,"protocol":"tcp,udp","range":2}]"#;
        assert_eq!(
            of(netavark).unwrap(),
            "53:1053/tcp 54:1054/tcp 53:1053/udp 54:1054/udp "
        );
        for bad in [
            r#"[{"host_port":80,"container_port":80,"protocol":"sctp"}]"#,
            r#"[{"host_port":80,"container_port":0}]"#,
            r#"[{"host_port":65535,"container_port":80,"range":2}]"#,
            r#"[{"host_port":80,"container_port":80,"host_ip":"x"}]"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
