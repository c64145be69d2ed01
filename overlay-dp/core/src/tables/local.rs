//! This host's own changes.

use std::net::IpAddr;

use overlay_common::wire::Ip16;

use super::vtep::vtep_key;
use super::{Error, MapUpdate, Tables};

impl Tables {
    /// This host's tunnel address is another one now: the outer source of all that it sends.
    /// Returns it as the programs' configuration has it.
    ///
    /// # Errors
    /// When it can't be a VTEP, is another host's, or of another family than it was.
    pub fn set_vtep(&mut self, ip: IpAddr) -> Result<Ip16, Error> {
        let key = vtep_key(ip)?;
        self.check_family(ip, &key)?;
        if self.vteps.get(&key).is_some_and(|vtep| vtep.is_known()) {
            return Err(Error::OthersVtep(ip));
        }
        self.local.vtep = ip;
        self.config.vtep = key;
        for (ip, vtep) in &mut self.vteps {
            vtep.entry.src_ip = key;
            if vtep.is_known() {
                self.updates.push(MapUpdate::SetVtep(*ip, vtep.entry));
            }
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{Local, NextHop};

    #[test]
    fn every_vtep_is_reached_from_the_new_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut tables = Tables::new(Local {
            vtep: ip("192.0.2.1"),
            data_port: 4789,
            esp_port: 4500,
            mtu: 1450,
        })
        .unwrap();
        for vtep in ["192.0.2.2", "192.0.2.3"] {
            tables.vtep_add(ip(vtep)).unwrap();
        }
        let hop = NextHop {
            ifindex: 2,
            src_mac: [2; 6],
            dst_mac: [4; 6],
            mtu: 1450,
        };
        tables.next_hop(ip("192.0.2.2"), Some(hop));
        while tables.poll_update().is_some() {}
        assert_eq!(
            tables.set_vtep(ip("192.0.2.3")),
            Err(Error::OthersVtep(ip("192.0.2.3")))
        );
        assert!(tables.poll_update().is_none());

        assert_eq!(
            tables.set_vtep(ip("2001:db8::9")),
            Err(Error::OtherFamily(ip("2001:db8::9"), ip("192.0.2.1")))
        );
        let key = tables.set_vtep(ip("192.0.2.9")).unwrap();
        assert_eq!(tables.local().vtep, ip("192.0.2.9"));
        let mut told = 0;
        while let Some(update) = tables.poll_update() {
            assert!(matches!(update, MapUpdate::SetVtep(_, entry) if entry.src_ip == key));
            told += 1;
        }
        assert_eq!(told, 2);
        // One that is added later, too, and the next hop stays.
        tables.vtep_add(ip("192.0.2.4")).unwrap();
        assert!(
            tables
                .snapshot()
                .vteps
                .values()
                .all(|entry| entry.src_ip == key)
        );
        let known = tables.vteps().find(|row| row.ip == ip("192.0.2.2"));
        assert_eq!(known.and_then(|row| row.next_hop), Some(hop));
        assert_eq!(
            tables.vtep_add(ip("192.0.2.9")),
            Err(Error::OwnVtep(ip("192.0.2.9")))
        );
    }
}
