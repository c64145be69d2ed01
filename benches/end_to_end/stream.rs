//! How much one TCP connection carries, and what of the machine that takes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::bed::Bed;
use crate::cpu::IdleTime;
use crate::run::{Carried, Probe};
use crate::support::pin_to_cpu;

const CHUNK: usize = 128 << 10;
const STUCK: Duration = Duration::from_secs(5);
/// The largest super-packet.
const LARGEST: u64 = 64 << 10;

pub struct Stream {
    from: TcpStream,
    to: TcpStream,
    /// Of who sends, of who receives.
    cpus: [usize; 2],
    /// How much a slice carries; 0 until that is known.
    chunks: u64,
    carried: u64,
}

impl Stream {
    pub fn open(bed: &Bed, cpus: &[usize]) -> Result<Stream> {
        let listener = bed.c2().within(|| Ok(TcpListener::bind((bed.to, 0))?))?;
        let address = listener.local_addr()?;
        let from = bed
            .c1()
            .within(|| Ok(TcpStream::connect_timeout(&address, STUCK)?))?;
        let (to, _) = listener.accept()?;
        from.set_write_timeout(Some(STUCK))?;
        to.set_read_timeout(Some(STUCK))?;
        let (first, last) = cpus
            .first()
            .zip(cpus.last())
            .context("no CPU for streams")?;
        Ok(Stream {
            from,
            to,
            cpus: [*first, *last],
            chunks: 0,
            carried: 0,
        })
    }

    /// Carries so many chunks from end to end.
    fn carry(&mut self, chunks: u64) -> Result<Duration> {
        let (mut from, mut to) = (&self.from, &self.to);
        let [sender, receiver] = self.cpus;
        let start = Instant::now();
        let took = thread::scope(|scope| {
            let sending = scope.spawn(move || {
                pin_to_cpu(sender);
                let chunk = vec![0x5a; CHUNK];
                (0..chunks).try_for_each(|_| from.write_all(&chunk))
            });
            let receiving = scope.spawn(move || {
                pin_to_cpu(receiver);
                let mut chunk = vec![0; CHUNK];
                (0..chunks).try_for_each(|_| to.read_exact(&mut chunk))?;
                std::io::Result::Ok(start.elapsed())
            });
            let died = |_| anyhow!("an end of the stream panicked");
            sending.join().map_err(died)?.context("sending")?;
            receiving.join().map_err(died)?.context("receiving")
        })?;
        self.carried += chunks * CHUNK as u64;
        Ok(took)
    }

    /// Finds out how much takes about that long; the windows open meanwhile.
    fn calibrate(&mut self, length: Duration) -> Result<()> {
        self.chunks = 8;
        for _ in 0..8 {
            let took = self.carry(self.chunks)?;
            let factor = length.as_secs_f64() / took.as_secs_f64();
            self.chunks = ((self.chunks as f64 * factor.min(8.0)) as u64).max(1);
            if factor < 1.5 {
                break;
            }
        }
        Ok(())
    }
}

impl Probe for Stream {
    fn slice(&mut self, length: Duration) -> Result<Vec<f64>> {
        if self.chunks == 0 {
            self.calibrate(length)?;
        }
        let idle = IdleTime::now()?;
        let took = self.carry(self.chunks)?;
        let busy = idle.busy_since()?;
        let bytes = (self.chunks * CHUNK as u64) as f64;
        Ok(vec![
            bytes * 8.0 / took.as_secs_f64() / 1e9,
            busy.as_secs_f64() / (bytes / 1e9),
        ])
    }

    fn carried(&self) -> Carried {
        Carried::Encapsulated(self.carried / LARGEST)
    }
}
