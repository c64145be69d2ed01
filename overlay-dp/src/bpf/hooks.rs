//! Attaching programs. A link's pin is its owner: the agent holds no link open, so that a dead
//! agent detaches nothing, and a new one replaces the program behind the pin without a gap.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
};
use overlay_common::layout::names;
use overlay_host::XdpAttachment;
use serde::{Deserialize, Serialize};

use super::Bpf;
use super::layouts::Late;

/// Priority and handle of our filters where tcx does not exist (kernels before 6.6).
const TC_PRIORITY: u16 = 1;
const TC_HANDLE: TcHandle = TcHandle::new(0, 0x4f56);
/// How hooks say what they are.
const XDP: &str = "xdp native";
/// See [`XDP`].
const TCX: &str = "tcx ingress";

/// A place where one of our programs is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// A container's port.
    Port,
    /// The underlay interface.
    Uplink,
    /// The near end of the punt link: frames that the agent sends.
    PuntNear,
    /// The far end of the punt link: frames for the agent.
    PuntFar,
    /// The near end of the crypt link: frames that were sealed or opened.
    CryptNear,
    /// The far end of the crypt link: frames to be sealed or opened.
    CryptFar,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookKind {
    /// Native XDP.
    Xdp,
    /// tcx ingress, or clsact ingress on kernels before 6.6.
    Tcx,
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HookKind::Xdp => "xdp",
            HookKind::Tcx => "tcx",
        })
    }
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// On this interface.
    pub interface: String,
    /// Its ifindex.
    pub ifindex: u32,
    /// What it is: `port`, `uplink`, `punt-near`, `punt-far`, `crypt-near` or `crypt-far`.
    pub site: String,
    /// The program's name.
    pub program: String,
    /// `xdp native`, `tcx ingress` or `clsact ingress`.
    pub attached: String,
    /// Why this hook and not the other.
    pub why: String,
}

impl Hook {
    /// `None` for clsact's filters, which have no link, and for what is missing.
    fn kind(&self) -> Option<HookKind> {
        match self.attached.as_str() {
            XDP => Some(HookKind::Xdp),
            TCX => Some(HookKind::Tcx),
            _ => None,
        }
    }
}

impl Site {
    const ALL: [Site; 6] = [
        Site::Port,
        Site::Uplink,
        Site::PuntNear,
        Site::PuntFar,
        Site::CryptNear,
        Site::CryptFar,
    ];

    fn named(name: &str) -> Option<Site> {
        Site::ALL.into_iter().find(|site| site.name() == name)
    }

    /// The name of the program that is attached there.
    pub fn program(self, kind: HookKind) -> &'static str {
        match (self, kind) {
            (Site::Port, HookKind::Xdp) => names::PORT_XDP,
            (Site::Port, HookKind::Tcx) => names::PORT_TC,
            (Site::Uplink, HookKind::Xdp) => names::UPLINK_XDP,
            (Site::Uplink, HookKind::Tcx) => names::UPLINK_TC,
            (Site::PuntNear | Site::CryptNear, _) => names::AGENT_TC,
            (Site::PuntFar | Site::CryptFar, _) => names::PUNT_XDP,
        }
    }

    /// How `status` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Site::Port => "port",
            Site::Uplink => "uplink",
            Site::PuntNear => "punt-near",
            Site::PuntFar => "punt-far",
            Site::CryptNear => "crypt-near",
            Site::CryptFar => "crypt-far",
        }
    }
}

impl Bpf {
    /// Attaches the program for `site` to an interface, or replaces the one that an earlier agent
    /// left there; a program of the other kind on the same site goes after. Where one of another
    /// layout carries traffic, it goes on with that until [`Bpf::swap`].
    ///
    /// # Errors
    /// When the kernel refuses: for XDP, mostly because the driver has no native XDP or another
    /// program is attached.
    pub fn attach(
        &mut self,
        site: Site,
        kind: HookKind,
        interface: &str,
        ifindex: u32,
        why: &str,
    ) -> Result<Hook> {
        let program = site.program(kind);
        let pin = self.pin_path(site, kind, ifindex);
        let is_old = matches!(site, Site::Port | Site::Uplink)
            && !pin.exists()
            && self.other_pins(&pin).next().is_some();
        let attached = if is_old {
            let interface = interface.to_owned();
            self.late.push(Late {
                site,
                kind,
                interface,
                ifindex,
            });
            match kind {
                HookKind::Xdp => XDP,
                HookKind::Tcx => TCX,
            }
        } else {
            self.attach_now(site, kind, interface, ifindex)?
        };
        Ok(Hook {
            interface: interface.to_owned(),
            ifindex,
            site: site.name().to_owned(),
            program: program.to_owned(),
            attached: attached.to_owned(),
            why: why.to_owned(),
        })
    }

    /// Attaches it, and says how.
    pub(super) fn attach_now(
        &mut self,
        site: Site,
        kind: HookKind,
        interface: &str,
        ifindex: u32,
    ) -> Result<&'static str> {
        let program = site.program(kind);
        let pin = self.pin_path(site, kind, ifindex);
        let attached = match kind {
            HookKind::Xdp => {
                self.attach_program::<Xdp>(program, &pin, interface, ifindex)?;
                XDP
            }
            HookKind::Tcx if overlay_host::kernel::tcx_supported()? => {
                self.attach_program::<SchedClassifier>(program, &pin, interface, ifindex)?;
                TCX
            }
            HookKind::Tcx => {
                self.attach_filter(program, interface)?;
                "clsact ingress"
            }
        };
        let other = if kind == HookKind::Xdp {
            HookKind::Tcx
        } else {
            HookKind::Xdp
        };
        self.detach_kind(site, other, interface, ifindex)?;
        Ok(attached)
    }

    /// Loads the program for `site` before it is attached anywhere, so that what the kernel has
    /// against it is said at the start.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn prepare(&mut self, site: Site, kind: HookKind) -> Result<()> {
        let name = site.program(kind);
        match kind {
            HookKind::Xdp => loaded::<Xdp>(&mut self.ebpf, name).map(drop),
            HookKind::Tcx => loaded::<SchedClassifier>(&mut self.ebpf, name).map(drop),
        }
    }

    /// Detaches our program from an interface, which may be gone already.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn detach(&mut self, site: Site, interface: &str, ifindex: u32) -> Result<()> {
        self.detach_kind(site, HookKind::Xdp, interface, ifindex)?;
        self.detach_kind(site, HookKind::Tcx, interface, ifindex)
    }

    /// Whether what a hook says is still so, on an interface that has this XDP program. Of clsact's
    /// filters nothing can be told.
    pub fn is_attached(&self, hook: &Hook, xdp: Option<XdpAttachment>) -> bool {
        let Some(kind) = hook.kind() else {
            return true;
        };
        let pin = format!("{}-{}-{kind}", hook.site, hook.ifindex);
        let pin = self.links.join(pin);
        // Until an upgrade's swap it may be another layout's.
        let pin = self.other_pins(&pin).next().unwrap_or(pin);
        // A link that was detached by force keeps its pin and its program.
        let info = match pinned(&pin) {
            Ok(Some(link)) => link.info(),
            Ok(None) | Err(_) => return false,
        };
        let Ok(program) = info.map(|info| info.program_id()) else {
            return false;
        };
        match kind {
            HookKind::Xdp => xdp.is_some_and(|xdp| {
                xdp.mode == overlay_host::XdpMode::Multiple || xdp.prog_id == program
            }),
            HookKind::Tcx => {
                let all = SchedClassifier::query_tcx(&hook.interface, TcAttachType::Ingress);
                all.is_ok_and(|(_, all)| all.iter().any(|other| other.id() == program))
            }
        }
    }

    /// Attaches anew what a hook says, in the place of what may be left of it.
    ///
    /// # Errors
    /// As [`Bpf::attach`].
    pub fn attach_again(&mut self, hook: &Hook) -> Result<()> {
        let Some((site, kind)) = Site::named(&hook.site).zip(hook.kind()) else {
            return Ok(());
        };
        self.attach(site, kind, &hook.interface, hook.ifindex, &hook.why)
            .map(drop)
    }

    /// Detaches our programs from uplinks other than this one, left by an agent that used another
    /// interface.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn detach_other_uplinks(&mut self, ifindex: u32) -> Result<()> {
        self.late
            .retain(|late| late.site != Site::Uplink || late.ifindex == ifindex);
        let (site, this) = (format!("{}-", Site::Uplink.name()), ifindex.to_string());
        for entry in std::fs::read_dir(&self.links)? {
            let entry = entry?;
            let name = entry.file_name();
            let other = name
                .to_str()
                .and_then(|n| n.strip_prefix(&site))
                .and_then(|n| n.split_once('-'));
            if other.is_some_and(|(index, _)| index != this) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn detach_kind(
        &mut self,
        site: Site,
        kind: HookKind,
        interface: &str,
        ifindex: u32,
    ) -> Result<()> {
        let pin = self.pin_path(site, kind, ifindex);
        self.late
            .retain(|late| (late.site, late.kind, late.ifindex) != (site, kind, ifindex));
        for pin in self.other_pins(&pin).chain([pin]) {
            match std::fs::remove_file(&pin) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("can't remove the pin {}", pin.display()));
                }
                _ => {}
            }
        }
        if kind == HookKind::Tcx {
            detach_filter_of(site, interface)?;
        }
        Ok(())
    }

    fn pin_path(&self, site: Site, kind: HookKind, ifindex: u32) -> PathBuf {
        self.links.join(format!("{}-{ifindex}-{kind}", site.name()))
    }

    fn attach_program<P: Linked>(
        &mut self,
        name: &str,
        pin: &Path,
        interface: &str,
        ifindex: u32,
    ) -> Result<()>
    where
        for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        self.adopt(pin)?;
        let program = loaded::<P>(&mut self.ebpf, name)?;
        if let Some(old) = pinned(pin)? {
            match program.replace(old) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::debug!(interface, %error, "the pinned link is stale, attaching anew");
                    std::fs::remove_file(pin)?;
                }
            }
        }
        let link = program.attach_new(interface, ifindex)?;
        link.pin(pin)
            .with_context(|| format!("can't pin {}", pin.display()))?;
        Ok(())
    }

    /// clsact filters have no link: they stay until they are removed by name.
    fn attach_filter(&mut self, name: &str, interface: &str) -> Result<()> {
        let program = loaded::<SchedClassifier>(&mut self.ebpf, name)?;
        // That it is there already is fine.
        let _ = tc::qdisc_add_clsact(interface);
        let options = NlOptions {
            priority: TC_PRIORITY,
            handle: TC_HANDLE,
            ..NlOptions::default()
        };
        let new = TcAttachOptions::Netlink(options);
        let id = match program.attach_with_options(interface, TcAttachType::Ingress, new) {
            Ok(id) => id,
            Err(_) => {
                let old = SchedClassifierLink::attached(
                    interface,
                    TcAttachType::Ingress,
                    TC_PRIORITY,
                    TC_HANDLE,
                    None,
                )?;
                program
                    .attach_to_link(old)
                    .with_context(|| format!("can't attach a tc filter to {interface}"))?
            }
        };
        // Dropping it would detach; the filter is to outlive the agent.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    }
}

/// A program whose attachment is a link that can be pinned, and given another program.
trait Linked: Sized {
    fn is_loaded(&self) -> bool;
    fn load_it(&mut self) -> Result<(), ProgramError>;
    /// Puts this program in the place of the one behind `old`, without a gap.
    fn replace(&mut self, old: FdLink) -> Result<()>;
    fn attach_new(&mut self, interface: &str, ifindex: u32) -> Result<FdLink>;
}

impl Linked for Xdp {
    fn is_loaded(&self) -> bool {
        self.fd().is_ok()
    }

    fn load_it(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn replace(&mut self, old: FdLink) -> Result<()> {
        let id = self.attach_to_link(old.try_into()?)?;
        // The pin holds it.
        drop(self.take_link(id)?);
        Ok(())
    }

    fn attach_new(&mut self, interface: &str, ifindex: u32) -> Result<FdLink> {
        let id = self.attach_to_if_index(ifindex, XdpMode::Driver).with_context(|| {
            format!(
                "can't attach native XDP to {interface} (its driver may have none, or another XDP \
                 program is there: see 'ip link show {interface}'); use --datapath tcx"
            )
        })?;
        Ok(self.take_link(id)?.try_into()?)
    }
}

impl Linked for SchedClassifier {
    fn is_loaded(&self) -> bool {
        self.fd().is_ok()
    }

    fn load_it(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn replace(&mut self, old: FdLink) -> Result<()> {
        let id = self.attach_to_link(old.try_into()?)?;
        drop(self.take_link(id)?);
        Ok(())
    }

    fn attach_new(&mut self, interface: &str, _ifindex: u32) -> Result<FdLink> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = self
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .with_context(|| format!("can't attach a tcx program to {interface}"))?;
        Ok(self.take_link(id)?.try_into()?)
    }
}

/// The program of that name, loaded into the kernel. The verifier's many lines are for the debug
/// log.
fn loaded<'a, P: Linked>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program: &mut P = program
        .with_context(|| format!("the BPF object has no program {name}"))?
        .try_into()?;
    if program.is_loaded() {
        return Ok(program);
    }
    match program.load_it() {
        Ok(()) => Ok(program),
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            tracing::debug!("the verifier on {name}: {verifier_log}");
            bail!("the kernel refused the program {name}: {io_error} (RUST_LOG=debug shows why)")
        }
        Err(other) => bail!("the kernel refused the program {name}: {other}"),
    }
}

/// Removes our filter from an interface where the kernel has no tcx: nothing else holds it.
///
/// # Errors
/// When the kernel's release can't be told.
pub fn detach_filter_of(site: Site, interface: &str) -> Result<()> {
    if !overlay_host::kernel::tcx_supported()? {
        detach_filter(site, interface);
    }
    Ok(())
}

/// Removes our clsact filter, which has no link and no pin. That it is not there is fine.
fn detach_filter(site: Site, interface: &str) {
    let program = site.program(HookKind::Tcx);
    if let Err(error) = tc::qdisc_detach_program(interface, TcAttachType::Ingress, program) {
        tracing::debug!(interface, %error, "no filter of ours to remove");
    }
}

fn pinned(pin: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("can't open the pin {}", pin.display())),
    }
}
