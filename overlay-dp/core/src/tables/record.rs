//! One endpoint's claims: its MAC and addresses, each with its place in the order of claims.

use std::net::IpAddr;

use overlay_common::wire::{Ip16, ip16};

use super::Error;
use crate::model::{Endpoint, MacAddr};

/// More addresses than this for one endpoint are refused.
pub const MAX_IPS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub mac: MacAddr,
    pub mac_seq: u64,
    /// In the order given, each once.
    pub ips: Box<[(Ip16, u64)]>,
    /// The service that it is a backend of.
    pub service: Option<Box<str>>,
    /// It is a host, and no container.
    pub router: bool,
    /// A task that others are preferred to.
    pub unready: bool,
}

impl Record {
    /// The record of an endpoint whose addresses are valid ([`check`]). What `old` claimed already
    /// keeps its place.
    pub fn new(mac: MacAddr, ips: &[IpAddr], old: Option<&Record>, seq: &mut u64) -> Record {
        let mut next = || {
            *seq += 1;
            *seq
        };
        let mac_seq = match old {
            Some(old) if old.mac == mac => old.mac_seq,
            _ => next(),
        };
        let mut claims: Vec<(Ip16, u64)> = Vec::with_capacity(ips.len());
        for ip in ips {
            let ip = ip16(*ip);
            if claims.iter().all(|(have, _)| *have != ip) {
                let seq = old.and_then(|old| old.seq_of(ip)).unwrap_or_else(&mut next);
                claims.push((ip, seq));
            }
        }
        Record {
            mac,
            mac_seq,
            ips: claims.into(),
            service: None,
            router: false,
            unready: false,
        }
    }

    /// The record of an endpoint; see [`Record::new`].
    pub fn of_endpoint(endpoint: &Endpoint, old: Option<&Record>, seq: &mut u64) -> Record {
        Record {
            service: endpoint.service.as_deref().map(Into::into),
            router: endpoint.router,
            unready: endpoint.unready,
            ..Record::new(endpoint.mac, &endpoint.ips, old, seq)
        }
    }

    /// True when that is what the endpoint claims.
    pub fn is_of(&self, endpoint: &Endpoint) -> bool {
        self.is(endpoint.mac, &endpoint.ips)
            && self.service.as_deref() == endpoint.service.as_deref()
            && self.router == endpoint.router
            && self.unready == endpoint.unready
    }

    /// The same claims at the end of the order.
    pub fn renewed(&self, seq: &mut u64) -> Record {
        let mut renewed = self.clone();
        *seq += 1;
        renewed.mac_seq = *seq;
        for (_, place) in &mut renewed.ips {
            *seq += 1;
            *place = *seq;
        }
        renewed
    }

    /// True when it claims just these.
    pub fn is(&self, mac: MacAddr, ips: &[IpAddr]) -> bool {
        self.mac == mac
            && ips.len() <= MAX_IPS
            && ips.iter().all(|ip| self.seq_of(ip16(*ip)).is_some())
            && self
                .ips
                .iter()
                .all(|(have, _)| ips.iter().any(|ip| ip16(*ip) == *have))
    }

    pub fn seq_of(&self, ip: Ip16) -> Option<u64> {
        let claim = self.ips.iter().find(|(have, _)| *have == ip);
        claim.map(|(_, seq)| *seq)
    }
}

/// Whether an endpoint can have these addresses.
pub(super) fn check(mac: MacAddr, ips: &[IpAddr]) -> Result<(), Error> {
    if !mac.is_unicast() {
        return Err(Error::Mac(mac));
    }
    if ips.len() > MAX_IPS {
        return Err(Error::TooManyAddresses(ips.len()));
    }
    match ips.iter().find(|ip| !is_one_hosts(**ip)) {
        Some(ip) => Err(Error::Ip(*ip)),
        None => Ok(()),
    }
}

/// True for an address that one host can have on a network.
pub(super) fn is_one_hosts(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}
