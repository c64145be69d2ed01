//! `overlay-dp top` on a real terminal, and in a pipe.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use overlay_lab::{Host, LabSpec, Load, Overlay, iperf3, test, wait_until};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use crate::BIN;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn top_shows_rates_and_obeys_keys() {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, "")?;
        let host = lab.host(1);
        once_is_for_pipes(host)?;
        let mut terminal = Terminal::start(host, "top --interval 0.5")?;
        terminal.wait("the endpoints are shown", |screen| {
            [
                "test.1",
                "test.2",
                "uber-net",
                "host2",
                "192.168.1.5",
                "2 of 2 hosts alive",
            ]
            .iter()
            .all(|word| screen.contains(word))
        })?;
        let (from, to) = (overlay.c(1).clone(), overlay.c(2).clone());
        let sending =
            std::thread::spawn(move || iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 5).map(drop));
        let fast = terminal.wait("a rate is shown", |screen| {
            let line = screen.lines().find(|line| line.starts_with("test.1"));
            line.is_some_and(|line| line.contains("Gbit/s") || line.contains("Mbit/s"))
        });
        sending.join().map_err(|_| anyhow!("iperf3"))??;
        fast?;
        terminal.press("/test.2\r")?;
        terminal.wait("the filter leaves one", |screen| {
            screen.contains("with 'test.2'")
                && !screen.lines().any(|line| line.starts_with("test.1"))
        })?;
        terminal.press("q")?;
        terminal.ends_well()?;
        // Told to end, it puts the terminal right as well.
        let mut terminal = Terminal::start(host, "top")?;
        terminal.wait("it runs", |screen| screen.contains("test.1"))?;
        terminal.terminate()?;
        terminal.ends_well()?;
        Ok(overlay)
    });
}

fn once_is_for_pipes(host: &Host) -> Result<()> {
    // The tests' output is a pipe: both are the same.
    for line in ["top --interval 0.3", "top --once --interval 0.3"] {
        let text = host.overlay(line)?;
        ensure!(
            text.contains("endpoints:") && text.contains("test.1") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
    let json = host.overlay_json("top --once --interval 0.3 --filter test.1")?;
    ensure!(
        json["endpoints"]
            .as_array()
            .is_some_and(|all| all.len() == 1),
        "{json:#}"
    );
    ensure!(
        json["endpoints"][0]["rates"]["rx_bits"].is_number(),
        "{json:#}"
    );
    ensure!(
        json["vteps"][0]["latency"]["average_us"].is_number(),
        "{json:#}"
    );
    ensure!(!host.overlay_any("top --interval 0")?.status.success());
    Ok(())
}

/// A program on a terminal of 80 columns and 24 lines.
struct Terminal {
    child: Box<dyn portable_pty::Child + Send + Sync>,
    keys: Box<dyn std::io::Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn start(host: &Host, line: &str) -> Result<Terminal> {
        let size = PtySize {
            rows: 24,
            cols: 80,
            pixel_width: 0,
            pixel_height: 0,
        };
        let pty = native_pty_system().openpty(size)?;
        let real = host.overlay_cmd(line);
        let mut command = CommandBuilder::new(real.get_program());
        command.args(real.get_args());
        for (name, value) in real.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.env("TERM", "xterm-256color");
        let child = pty.slave.spawn_command(command)?;
        drop(pty.slave);
        let (mut output, keys) = (pty.master.try_clone_reader()?, pty.master.take_writer()?);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let seen = Arc::clone(&screen);
        let master = pty.master;
        std::thread::spawn(move || {
            let _master = master;
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                if let Ok(mut screen) = seen.lock() {
                    screen.process(&bytes[..n]);
                }
            }
        });
        Ok(Terminal {
            child,
            keys,
            screen,
        })
    }

    fn text(&self) -> String {
        self.screen
            .lock()
            .map_or_else(|_| String::new(), |screen| screen.screen().contents())
    }

    fn wait(&mut self, what: &str, yes: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, SOON, || yes(&self.text())).with_context(|| self.text())
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    fn terminate(&self) -> Result<()> {
        let id = self
            .child
            .process_id()
            .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        // It is our unreaped child: its PID can't be another process's.
        Ok(rustix::process::kill_process(
            id.context("no process")?,
            rustix::process::Signal::TERM,
        )?)
    }

    /// It ends, and has left the other screen and shown the cursor again.
    fn ends_well(mut self) -> Result<()> {
        let mut status = None;
        wait_until("top ends", SOON, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "{}",
            self.text()
        );
        wait_until("the terminal is as it was", SOON, || {
            self.screen.lock().is_ok_and(|screen| {
                let screen = screen.screen();
                !screen.alternate_screen() && !screen.hide_cursor()
            })
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
