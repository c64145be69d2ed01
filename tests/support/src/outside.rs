//! Somebody outside of the overlay: a machine behind the lab's router, which knows of the hosts'
//! addresses and of nothing else.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Host, Lab};
use crate::ns::Ns;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine.
#[derive(Debug)]
pub struct Outside {
    /// Its namespace.
    pub ns: Ns,
    /// Its address.
    pub ip: IpAddr,
    /// Its IPv6 address, once [`Outside::with_ipv6`] was called.
    pub ip6: IpAddr,
}

impl Outside {
    /// Connects it to the router.
    ///
    /// # Errors
    /// When a command fails.
    pub fn connect(lab: &Lab) -> Result<Outside> {
        let ns = lab.add_container("outside")?;
        let router = lab.router();
        ns.run(&format!(
            "ip link add eth0 type veth peer name to-outside netns {}",
            router.name()
        ))?;
        ns.run("ip link set lo up")?;
        ns.run("ip addr add 203.0.113.9/24 dev eth0")?;
        router.run("ip addr add 203.0.113.1/24 dev to-outside")?;
        router.run("ethtool -K to-outside gro on")?;
        router.run("ip link set to-outside up")?;
        ns.run("ip link set eth0 up")?;
        ns.run("ip route add default via 203.0.113.1")?;
        Ok(Outside {
            ns,
            ip: Ipv4Addr::new(203, 0, 113, 9).into(),
            ip6: Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 9).into(),
        })
    }

    /// Gives it, the router and these hosts IPv6 addresses: host n has `2001:db8:0:n::5`.
    ///
    /// # Errors
    /// When a command fails.
    pub fn with_ipv6(&self, lab: &Lab) -> Result<()> {
        let router = lab.router();
        router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
        router.run("ip addr add 2001:db8:0:9::1/64 dev to-outside nodad")?;
        self.ns
            .run("ip addr add 2001:db8:0:9::9/64 dev eth0 nodad")?;
        self.ns.run("ip route add default via 2001:db8:0:9::1")?;
        for (number, host) in (1..).zip(lab.hosts()) {
            let port = format!("to-{}", host.ns.label());
            router.run(&format!(
                "ip addr add 2001:db8:0:{number}::1/64 dev {port} nodad"
            ))?;
            host.ns.run(&format!(
                "ip addr add 2001:db8:0:{number}::5/64 dev eth0 nodad"
            ))?;
            host.ns
                .run(&format!("ip route add default via 2001:db8:0:{number}::1"))?;
        }
        Ok(())
    }
}

/// A server that tells who it is, and whom it sees: over TCP a line for each connection, then what
/// it gets back; over UDP a datagram for each.
#[derive(Debug)]
pub struct Teller;

impl Teller {
    /// Serves in a namespace, on all its addresses, until this process ends.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(ns: &Ns, port: u16, name: &str) -> Result<Teller> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (tcp, udp) = ns.within(|| Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)))?;
        let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let name = tcp_name.clone();
                std::thread::spawn(move || tell(stream, &name));
            }
        });
        std::thread::spawn(move || {
            let mut room = [0; 2048];
            while let Ok((_, from)) = udp.recv_from(&mut room) {
                let _ = udp.send_to(format!("{udp_name} {}", seen(from)).as_bytes(), from);
            }
        });
        Ok(Teller)
    }
}

fn seen(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

fn tell(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let from = seen(stream.peer_addr()?);
    stream.write_all(format!("{name} {from}\n").as_bytes())?;
    let mut room = vec![0; 65536];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&room[..len])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connection with a [`Teller`].
#[derive(Debug)]
pub struct Told {
    /// Which server it is.
    pub server: String,
    /// Whom it sees.
    pub client: IpAddr,
    stream: BufReader<TcpStream>,
}

impl Told {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// When nobody tells anything in time.
    pub fn connect(from: &Ns, to: impl Into<SocketAddr>) -> Result<Told> {
        let to = to.into();
        let connect = || Ok(TcpStream::connect_timeout(&to, PATIENCE)?);
        let stream = from
            .within(connect)
            .with_context(|| format!("{} to {to}", from.label()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream
            .read_line(&mut line)
            .with_context(|| format!("{} to {to}: nothing is told", from.label()))?;
        let (server, client) = parse(&line)?;
        Ok(Told {
            server,
            client,
            stream,
        })
    }

    /// Sends so many bytes there and back.
    ///
    /// # Errors
    /// When they do not come back, or others do.
    pub fn echo(&mut self, len: usize) -> Result<()> {
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let mut back = vec![0; len];
        let mut writer = self.stream.get_ref().try_clone()?;
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| writer.write_all(&bytes));
            let got = self.stream.read_exact(&mut back);
            got.context("what was sent does not come back")?;
            Ok::<_, anyhow::Error>(sent.join().expect("no panic")?)
        })?;
        ensure!(back == bytes, "other bytes come back");
        Ok(())
    }
}

/// Asks a [`Teller`] over UDP: which server it is, and whom it sees.
///
/// # Errors
/// When no answer comes from the asked address in time.
pub fn ask_udp(from: &Ns, to: impl Into<SocketAddr>) -> Result<(String, IpAddr)> {
    let to = to.into();
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = from.within(|| Ok(UdpSocket::bind((any, 0))?))?;
    // A connected socket takes nothing from another address.
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut room = [0; 2048];
    let len = socket
        .recv(&mut room)
        .with_context(|| format!("{} asks {to} over UDP", from.label()))?;
    parse(std::str::from_utf8(&room[..len])?)
}

fn parse(line: &str) -> Result<(String, IpAddr)> {
    let told = line.trim().split_once(' ');
    let (server, client) = told.with_context(|| format!("'{line}' tells nothing"))?;
    Ok((server.to_owned(), client.parse()?))
}

impl Host {
    /// This host's own address in a network, that of its router port.
    ///
    /// # Errors
    /// When it has none.
    pub fn router_ip(&self, vni: u32) -> Result<IpAddr> {
        let text = self.ns.run(&format!("ip -4 -o addr show dev ovr-{vni}"))?;
        let mut words = text.split_whitespace();
        let ip = words.find_map(|word| word.split_once('/')?.0.parse().ok());
        ip.with_context(|| format!("no address: {text}"))
    }
}
