//! Asking a server in a namespace, without a library that could repair what it answers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::Ns;

/// An answer.
pub struct Answer {
    pub status: u16,
    /// The whole head, in small letters.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body, of an answer that is no error.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status == 200, "{}\n{}", self.head, self.body);
        Ok(self.body)
    }
}

/// `GET path` at `address`.
pub fn get(ns: &Ns, address: &str, path: &str) -> Result<Answer> {
    ask(
        ns,
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    )
}

/// Sends a request as it is.
pub fn ask(ns: &Ns, address: &str, request: &str) -> Result<Answer> {
    let bytes = ns.within(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(request.as_bytes())?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        // Not every server closes the connection when it is asked to.
        while !is_whole(&bytes) {
            match stream.read(&mut chunk)? {
                0 => break,
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        }
        Ok(bytes)
    })?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let head = head.to_ascii_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer {
        status,
        body: match head.contains("transfer-encoding: chunked") {
            true => unchunked(body)?,
            false => body.to_owned(),
        },
        head,
    })
}

/// Whether an answer that tells its length is there.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| bytes.len() >= head.len() + 4 + length)
}

fn unchunked(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (length, behind) = rest.split_once("\r\n").context("no chunk")?;
        let length = usize::from_str_radix(length, 16)?;
        if length == 0 {
            return Ok(body);
        }
        body += behind.get(..length).context("a short chunk")?;
        rest = behind.get(length + 2..).context("a short chunk")?;
    }
}
