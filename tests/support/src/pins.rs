//! What an agent has pinned: its maps and links, for tests that look behind its back, or change
//! something there.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::Host;

impl Host {
    /// The pins below this host's agent whose name matches, as `find -name` does it.
    ///
    /// # Errors
    /// When there are no pins.
    pub fn pins(&self, name: &str) -> Result<Vec<PathBuf>> {
        let pins = format!("/sys/fs/bpf/overlay-dp/{}", self.instance);
        let found = self.ns.run(&format!("find {pins} -name {name}"))?;
        Ok(found.lines().map(PathBuf::from).collect())
    }

    /// The one pin of that name.
    ///
    /// # Errors
    /// When there is none, or another one.
    pub fn pin(&self, name: &str) -> Result<PathBuf> {
        let mut pins = self.pins(name)?;
        ensure!(pins.len() == 1, "pins of {name}: {pins:?}");
        pins.pop().context("no pin")
    }

    /// `bpftool map <verb> pinned <map> <rest>`, and what it prints as JSON.
    ///
    /// # Errors
    /// When it fails.
    pub fn bpf_map(&self, verb: &str, map: &str, rest: &str) -> Result<String> {
        let pin = self.pin(map)?;
        self.ns.run(&format!(
            "bpftool -j map {verb} pinned {} {rest}",
            pin.display()
        ))
    }

    /// An entry's value, for `value hex` of [`Host::bpf_map`].
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn bpf_value(&self, map: &str, key: &str) -> Result<String> {
        let text = self.bpf_map("lookup", map, &format!("key hex {key}"))?;
        let entry: Value = serde_json::from_str(&text)?;
        let bytes = entry["value"].as_array();
        let bytes = bytes.with_context(|| format!("no value: {entry}"))?.iter();
        let digits = |byte: &Value| Some(byte.as_str()?.trim_start_matches("0x").to_owned());
        let digits: Option<Vec<String>> = bytes.map(digits).collect();
        Ok(digits.context("not bytes")?.join(" "))
    }

    /// The ifindex of the port of a container on this host.
    ///
    /// # Errors
    /// When it has none.
    pub fn port_ifindex(&self, container: &str) -> Result<u64> {
        let rows = self.overlay_json("container ls --local")?;
        let mut rows = rows.as_array().into_iter().flatten();
        let row = rows.find(|row| row["name"] == container);
        let index = row.and_then(|row| row["local"]["port_ifindex"].as_u64());
        index.with_context(|| format!("no port of {container}"))
    }
}

/// Bytes as `bpftool … hex` takes them.
pub fn hex(bytes: impl IntoIterator<Item = u8>) -> String {
    let digits: Vec<String> = bytes.into_iter().map(|b| format!("{b:02x}")).collect();
    digits.join(" ")
}
