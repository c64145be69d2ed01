//! This host's part of address management: which of the addresses granted to it are in use.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::facts::{Command, Facts, Range, Refusal, Version, Want};
use crate::model::{HostId, MacAddr, Vni};

/// What stands in the way of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// The managers have to be asked; then, with the facts that grant it, try again.
    #[error("a manager has to grant it")]
    Ask(Want),
    /// It can't be had.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An endpoint of this host has it.
    #[error("{0} is in use on this host: choose another")]
    InUse(String),
}

/// What to give back in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBack {
    /// The network.
    pub vni: Vni,
    /// Offsets.
    pub ranges: Vec<Range>,
    /// Claimed MAC addresses.
    pub macs: Vec<MacAddr>,
    /// The version of the facts by which it was decided.
    pub seen: Version,
}

impl GiveBack {
    /// The command that does it.
    pub fn command(self, host: HostId) -> Command {
        Command::Return {
            host,
            vni: self.vni,
            ranges: self.ranges,
            macs: self.macs,
            seen: self.seen,
        }
    }
}

/// The addresses in use on this host, and those that it is giving back.
///
/// A return that was sent may take effect at any later time, so what is being returned is used no
/// more until the facts show it gone. A restart must not forget it: save this (it is `serde`
/// state) before sending what [`Holdings::returns`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {}

impl Holdings {
    /// Nothing in use.
    pub fn new() -> Holdings {
        Holdings::default()
    }

    /// Takes an offset for an endpoint of this host, `me`: that of `ip`, or any that is granted,
    /// unused and no spare.
    ///
    /// # Errors
    /// [`Need::Ask`] when a manager has to grant one first.
    pub fn take(
        &mut self,
        _facts: &Facts,
        _me: HostId,
        _vni: Vni,
        _ip: Option<IpAddr>,
    ) -> Result<u32, Need> {
        todo!()
    }

    /// Takes any offset that is granted and unused, also a spare: for when no manager can be
    /// asked, or none is free for them to give.
    pub fn take_spare(&mut self, _facts: &Facts, _me: HostId, _vni: Vni) -> Option<u32> {
        todo!()
    }

    /// Takes a MAC address that is not the one of the endpoint's own offset.
    ///
    /// # Errors
    /// [`Need::Ask`] when a manager has to grant it first.
    pub fn take_mac(
        &mut self,
        _facts: &Facts,
        _me: HostId,
        _vni: Vni,
        _mac: MacAddr,
    ) -> Result<(), Need> {
        todo!()
    }

    /// Takes over an endpoint's offset after a restart, granted or not.
    pub fn keep(&mut self, _vni: Vni, _offset: u32) {
        todo!()
    }

    /// Takes over an endpoint's MAC address after a restart.
    pub fn keep_mac(&mut self, _vni: Vni, _mac: MacAddr) {
        todo!()
    }

    /// An endpoint is gone.
    pub fn free(&mut self, _vni: Vni, _offset: u32) {
        todo!()
    }

    /// An endpoint with a MAC of its own is gone.
    pub fn free_mac(&mut self, _vni: Vni, _mac: MacAddr) {
        todo!()
    }

    /// What to give back now: everything of a network without endpoints, what is more than needed
    /// soon, and everything unused while somebody waits for an address there. It is not usable
    /// any more until the facts show it gone; it is said again until then.
    pub fn returns(&mut self, _facts: &Facts, _me: HostId) -> Vec<GiveBack> {
        todo!()
    }

    /// A manager refused a return, or it was never sent: what it named is usable again. Not for a
    /// return whose outcome is unknown: it is repeated instead.
    pub fn return_failed(&mut self, _back: &GiveBack) {
        todo!()
    }

    /// What to ask for in advance: spares, offsets in use that the facts do not (or no longer)
    /// grant, and spares in use, which become ordinary.
    pub fn wants(&self, _facts: &Facts, _me: HostId) -> Vec<(Vni, Want)> {
        todo!()
    }

    /// Offsets in use which are another's by the facts: their endpoints must go.
    pub fn lost(&self, _facts: &Facts, _me: HostId) -> Vec<(Vni, u32)> {
        todo!()
    }
}
