//! Where the programs' copies come out.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Array, Map, MapData, PerfEventArray};
use overlay_common::capture::{Control, Header, Place};
use overlay_common::layout::names;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::time::{ClockId, clock_gettime};

use crate::bpf::Bpf;
use crate::instance::Instance;

/// Room for copies on each CPU, in pages: 2 MiB.
const PAGES: usize = 512;

/// A copy of a frame.
#[derive(Clone, Debug)]
pub struct Copy {
    /// What the program said of it.
    pub header: Header,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

impl Copy {
    fn new(head: &[u8], tail: &[u8]) -> Option<Copy> {
        let all = [head, tail].concat();
        let (header, rest) = all.split_first_chunk::<{ Header::LEN }>()?;
        let header = Header::from_bytes(header);
        // The kernel fills the record up to whole words.
        let bytes = rest.get(..usize::try_from(header.copied).ok()?)?.to_vec();
        Some(Copy { header, bytes })
    }

    /// Whether it was taken there.
    pub fn is(&self, place: Place) -> bool {
        self.header.place == place as u32
    }
}

/// The monotonic clock.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The open tap. Copying ends when it is dropped.
pub struct Tap {
    control: Array<MapData, Control>,
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    to_wall: Duration,
    _lock: OwnedFd,
}

impl Tap {
    /// Takes the one place where copies come out.
    ///
    /// # Errors
    /// When there is no data path here, or somebody else captures.
    pub fn open(instance: &Instance) -> Result<Tap> {
        let maps = Bpf::maps_dir(&instance.pin_dir());
        let pin = |name: &str| {
            MapData::from_pin(maps.join(name)).with_context(|| {
                format!(
                    "no data path that can be captured from runs here (instance '{}'): start one with 'overlay-dp attach \
                     --iface <uplink>'",
                    instance.name()
                )
            })
        };
        let control = Array::try_from(Map::Array(pin(names::CAPTURE)?))?;
        let captured = pin(names::CAPTURED)?;
        let lock = lock(instance)?;
        let mut captured = PerfEventArray::try_from(Map::PerfEventArray(captured))?;
        let cpus = aya::util::online_cpus().map_err(|(what, error)| {
            anyhow::anyhow!("can't tell which CPUs there are ({what}): {error}")
        })?;
        let mut buffers = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let opened = captured.open(cpu, Some(PAGES));
            buffers.push(opened.context("the kernel gives no buffer to capture to")?);
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Tap {
            control,
            buffers,
            to_wall: wall
                .unwrap_or_default()
                .saturating_sub(Duration::from_nanos(now_ns())),
            _lock: lock,
        })
    }

    /// Tells the programs what to copy.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, control: Control) -> Result<()> {
        Ok(self.control.set(0, control, 0)?)
    }

    /// What the monotonic clock lacks of the one on the wall.
    pub fn to_wall(&self) -> Duration {
        self.to_wall
    }

    /// What has come, in order of time, after that long or earlier; and how many were lost.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn read(&mut self, wait: Duration) -> Result<(Vec<Copy>, u64)> {
        let timeout = Timespec {
            tv_sec: wait.as_secs().cast_signed(),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let mut fds: Vec<PollFd<'_>> = self
            .buffers
            .iter()
            .map(|buffer| PollFd::new(buffer, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("can't wait for packets: {error}"),
        }
        let (mut copies, mut lost) = (Vec::new(), 0);
        for buffer in &mut self.buffers {
            buffer.for_each(|event| match event {
                PerfEvent::Sample { head, tail } => copies.extend(Copy::new(head, tail)),
                PerfEvent::Lost { count } => lost += count,
            });
        }
        copies.sort_by_key(|copy| copy.header.time_ns);
        Ok((copies, lost))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // What fails here ends by itself.
        let _ = self.set(Control::default());
    }
}

/// One at a time: the kernel has one place for each CPU where copies go.
fn lock(instance: &Instance) -> Result<OwnedFd> {
    let dir = instance.run_dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    let path = dir.join("capture.lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::from_raw_mode(0o600))
        .with_context(|| format!("can't open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another 'overlay-dp capture' runs here: end it first, or have it capture more")
        }
        Err(error) => Err(error).with_context(|| format!("can't lock {}", path.display())),
    }
}
