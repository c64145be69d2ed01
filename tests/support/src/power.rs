//! Hosts without power: what is only in their memory is gone, what is on their disk is not.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::lab::{Lab, connect};
use crate::remove::{VOLATILE, end_processes};

impl Lab {
    /// Takes host `number`'s power away, with whatever runs on it: processes, interfaces (those in
    /// containers, too), programs and maps. Its disk stays. Namespaces of containers are not the
    /// host's in this lab, so they stay, and are empty.
    ///
    /// # Errors
    /// When it has none.
    pub fn power_off(&self, number: usize) -> Result<()> {
        let host = self.host(number);
        // From this moment on it is silent; the rest is tidying.
        self.router()
            .run(&format!("ip link delete {}", host.router_port()))?;
        end_processes(host.ns.name());
        host.ns.delete()?;
        for dir in VOLATILE {
            let _ = fs::remove_dir_all(Path::new(dir).join(&host.instance));
        }
        Ok(())
    }

    /// Gives power back: the host is there, without an agent.
    ///
    /// # Errors
    /// When it has power.
    pub fn power_on(&self, number: usize) -> Result<()> {
        let host = self.host(number);
        host.ns.create_again()?;
        connect(self.router(), host, self.mtu())
    }
}
