//! What to bind to and with how much memory.

use crate::error::XskError;
use crate::sys;

/// The kernel limits neither number; these keep a mistyped size from locking the machine's memory.
const MAX_FRAMES: u32 = 1 << 20;
const MAX_RING: u32 = 1 << 16;
/// Smallest UMEM chunk of the kernel (`XDP_UMEM_MIN_CHUNK_SIZE`).
const MIN_FRAME_SIZE: u32 = 2048;

/// How the kernel moves frames between the UMEM and the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindMode {
    /// By copying: works on every interface, and is all that a veth has.
    #[default]
    Copy,
    /// Zero-copy where the driver has it, else by copying.
    Auto,
}

/// Configuration of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XskConfig {
    /// The interface, in the network namespace of the calling thread.
    pub ifindex: u32,
    /// The queue of the interface.
    pub queue: u32,
    /// Frames of the UMEM; one half receives, the other sends. Even.
    pub frame_count: u32,
    /// Bytes of one frame, a power of two from 2048 to the page size. The kernel keeps the first
    /// 256 of a received frame for itself, so that the longest is `frame_size - 256` bytes.
    pub frame_size: u32,
    /// Descriptors in the RX ring, a power of two.
    pub rx_ring: u32,
    /// Descriptors in the TX ring, a power of two.
    pub tx_ring: u32,
    /// Copy or zero-copy.
    pub bind: BindMode,
}

impl XskConfig {
    /// 4096 frames of 4096 bytes (16 MiB), rings of 2048, copy mode.
    #[must_use]
    pub fn new(ifindex: u32, queue: u32) -> Self {
        Self {
            ifindex,
            queue,
            frame_count: 4096,
            frame_size: 4096,
            rx_ring: 2048,
            tx_ring: 2048,
            bind: BindMode::default(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), XskError> {
        let page = sys::page_size();
        let frame_size = self.frame_size as usize;
        if !self.frame_size.is_power_of_two()
            || self.frame_size < MIN_FRAME_SIZE
            || frame_size > page
        {
            return Err(XskError::Config(
                "frame_size must be a power of two from 2048 to the page size",
            ));
        }
        if !(2..=MAX_FRAMES).contains(&self.frame_count) || !self.frame_count.is_multiple_of(2) {
            return Err(XskError::Config(
                "frame_count must be an even number from 2 to 1048576",
            ));
        }
        if !(self.umem_len() / 2).is_multiple_of(page) {
            return Err(XskError::Config("half of the frames must fill whole pages"));
        }
        if [self.rx_ring, self.tx_ring]
            .iter()
            .any(|n| !n.is_power_of_two() || *n > MAX_RING)
        {
            return Err(XskError::Config(
                "ring sizes must be powers of two up to 65536",
            ));
        }
        Ok(())
    }

    /// Bytes of the whole UMEM.
    pub(crate) fn umem_len(&self) -> usize {
        self.frame_count as usize * self.frame_size as usize
    }

    /// Size of the fill and of the completion ring: room for every frame of a half.
    pub(crate) fn half_ring(&self) -> u32 {
        (self.frame_count / 2).next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_the_kernel_would_refuse_are_named() {
        let good = XskConfig::new(1, 0);
        assert!(good.validate().is_ok());
        assert_eq!(good.half_ring(), 2048);
        assert_eq!(
            XskConfig {
                frame_count: 6,
                ..good
            }
            .half_ring(),
            4
        );
        for bad in [
            XskConfig {
                frame_size: 0,
                ..good
            },
            XskConfig {
                frame_size: 1024,
                ..good
            },
            XskConfig {
                frame_size: 3000,
                ..good
            },
            XskConfig {
                frame_size: 1 << 31,
                ..good
            },
            XskConfig {
                frame_count: 0,
                ..good
            },
            XskConfig {
                frame_count: 4095,
                ..good
            },
            XskConfig {
                frame_count: u32::MAX - 1,
                ..good
            },
            XskConfig {
                frame_size: 2048,
                frame_count: 2,
                ..good
            },
            XskConfig { rx_ring: 0, ..good },
            XskConfig {
                tx_ring: 100,
                ..good
            },
            XskConfig {
                tx_ring: 1 << 31,
                ..good
            },
        ] {
            assert!(
                matches!(bad.validate(), Err(XskError::Config(_))),
                "{bad:?}"
            );
        }
    }
}
