//! Going on from a data path of another layout, which an agent of another version left.
//!
//! Its programs read its maps, which this agent can't write. So they run on as they are, while our
//! maps are filled with what the cluster tells anew. Then each of our programs takes the old one's
//! place behind the same link, without a gap, and the old maps go. What programs have noted
//! themselves is in maps that both use: it can't be told again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{MapData, MapInfo};
use overlay_common::layout::{EntranceEntry, FlowKey, names};
use overlay_common::service::Peer;

use super::hooks::{HookKind, Site};
use super::{Bpf, LAYOUT_VERSION, LINKS, MAPS};

/// Maps that programs write, with the sizes of keys and values. They are shared by name: a change
/// of the layout of one of them must change its name.
const NOTES: [(&str, usize, usize); 3] = [
    (
        names::ENTRANCES,
        size_of::<FlowKey>(),
        size_of::<EntranceEntry>(),
    ),
    (names::FLOWS, size_of::<FlowKey>(), size_of::<Peer>()),
    (names::BEGUN, size_of::<FlowKey>(), size_of::<u32>()),
];

/// A hook where a program of another layout runs until ours is to take its place.
pub(super) struct Late {
    pub site: Site,
    pub kind: HookKind,
    pub interface: String,
    pub ifindex: u32,
}

/// The directories of other layouts' pins.
///
/// # Errors
/// When there is no `root`.
pub(super) fn others(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root).with_context(|| format!("no {}", root.display()))?;
    let mut others = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name() != LAYOUT_VERSION {
            others.push(entry.path());
        }
    }
    Ok(others)
}

/// Has us use the maps of notes that another layout's programs use.
///
/// # Errors
/// When one can't be pinned.
pub(super) fn share_notes(others: &[PathBuf], maps: &Path) -> Result<()> {
    for (name, key_size, value_size) in NOTES {
        let ours = maps.join(name);
        if ours.exists() {
            continue;
        }
        let fits = |theirs: &PathBuf| {
            MapInfo::from_pin(theirs).is_ok_and(|map| {
                (map.key_size() as usize, map.value_size() as usize) == (key_size, value_size)
            })
        };
        let theirs = others.iter().map(|other| other.join(MAPS).join(name));
        if let Some(theirs) = theirs.into_iter().find(fits) {
            MapData::from_pin(&theirs)?
                .pin(&ours)
                .with_context(|| format!("can't pin {}", ours.display()))?;
        }
    }
    Ok(())
}

impl Bpf {
    /// Whether an agent of another layout has left something, which [`Bpf::swap`] removes.
    pub fn has_other_layouts(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether programs of another layout still carry traffic.
    pub fn has_late_hooks(&self) -> bool {
        !self.late.is_empty()
    }

    /// Puts our programs in the place of those of other layouts, and removes the pins of these.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn swap(&mut self) -> Result<()> {
        for late in std::mem::take(&mut self.late) {
            let Late {
                site,
                kind,
                interface,
                ifindex,
            } = late;
            if let Err(error) = self.attach_now(site, kind, &interface, ifindex) {
                tracing::error!(%interface, "can't take the place of another version's program: {error:#}");
            }
        }
        for other in std::mem::take(&mut self.others) {
            Bpf::unpin_all(&other)?;
        }
        Ok(())
    }

    /// The pins of other layouts for a link that we call `name`.
    pub(super) fn other_pins(&self, name: &Path) -> impl Iterator<Item = PathBuf> + use<'_> {
        let name = name.file_name().map(PathBuf::from).unwrap_or_default();
        let pins = self
            .others
            .iter()
            .map(move |other| other.join(LINKS).join(&name));
        pins.filter(|pin| pin.exists())
    }

    /// Makes another layout's link ours, if there is one: which program it runs is another matter.
    pub(super) fn adopt(&self, pin: &Path) -> Result<()> {
        if pin.exists() {
            return Ok(());
        }
        match self.other_pins(pin).next() {
            Some(old) => fs::rename(&old, pin)
                .with_context(|| format!("can't make {} {}", old.display(), pin.display())),
            None => Ok(()),
        }
    }
}
