//! How many small datagrams one core carries, from a socket to a socket.
//!
//! One thread sends some and takes them out at the other end. The kernel's way between is done
//! in the same calls, so the time is all of the way's and nobody's scheduling.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::bed::Bed;
use crate::run::{Carried, Probe};

const MESSAGE: [u8; 64] = [0x5a; 64];
/// Sent before any is taken out: fewer than the queues between hold.
const BURST: u64 = 32;
/// Enough for a burst of frames that each take a page.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Whatever comes later is lost.
const LATE: Duration = Duration::from_millis(20);

pub struct UdpRate {
    from: UdpSocket,
    to: UdpSocket,
    sent: u64,
}

impl UdpRate {
    pub fn open(bed: &Bed) -> Result<UdpRate> {
        let to = bed.c2().within(|| Ok(UdpSocket::bind((bed.to, 0))?))?;
        set_socket_recv_buffer_size_force(&to, RECEIVE_BUFFER)?;
        to.set_nonblocking(true)?;
        let address = to.local_addr()?;
        let from = bed.c1().within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        let mut rate = UdpRate { from, to, sent: 0 };
        // Neighbours are found.
        rate.burst()?;
        rate.drain(BURST)?;
        rate.warm_up()?;
        Ok(rate)
    }

    fn burst(&mut self) -> Result<()> {
        for _ in 0..BURST {
            self.from.send(&MESSAGE)?;
        }
        self.sent += BURST;
        Ok(())
    }

    /// Takes out so many, or fewer when no more come. What has not come with the calls that sent
    /// it is ksoftirqd's to do, which needs this CPU.
    fn drain(&self, sent: u64) -> Result<u64> {
        let mut message = [0; 2 * MESSAGE.len()];
        let mut received = 0;
        let mut waiting_since = None;
        while received < sent {
            match self.to.recv(&mut message) {
                Ok(len) => {
                    ensure!(message[..len] == MESSAGE, "another's datagram");
                    received += 1;
                    waiting_since = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let since = *waiting_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > LATE {
                        break;
                    }
                    thread::yield_now();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(received)
    }
}

impl Probe for UdpRate {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        let (before, mut received) = (self.sent, 0);
        let start = Instant::now();
        while start.elapsed() < length {
            self.burst()?;
            received += self.drain(BURST)?;
        }
        let rate = received as f64 / start.elapsed().as_secs_f64();
        let sent = self.sent - before;
        ensure!(received * 2 > sent, "of {sent} only {received} came");
        let lost = sent.saturating_sub(received) as f64 / sent as f64;
        Ok(vec![rate / 1e3, lost * 100.0])
    }

    fn carried(&self) -> Carried {
        Carried::Encapsulated(self.sent - BURST)
    }
}
