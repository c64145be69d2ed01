//! Chromium without a window, in a host's namespace, told what to do over its DevTools protocol.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_lab::{Background, Lab, Ns, wait_until};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::http::get;

const PATIENCE: Duration = Duration::from_secs(30);

/// A page that is open. The browser ends with it.
pub struct Page {
    socket: WebSocket<TcpStream>,
    number: u64,
    /// What the page has complained of: errors, and what its policy forbade.
    pub complaints: Vec<String>,
    _browser: Background,
}

impl Page {
    /// Opens `url` in a new browser.
    pub fn open(lab: &Lab, ns: &Ns, chromium: &Path, url: &str, size: [u32; 2]) -> Result<Page> {
        let profile = lab
            .dir()
            .join(format!("chromium-{}-{}", ns.label(), size[0]));
        let browser = ns.start(&format!(
            "{} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions \
             --disable-background-networking --disable-component-update --remote-debugging-port=0 --window-size={},{} \
             --user-data-dir={} about:blank",
            chromium.display(),
            size[0],
            size[1],
            profile.display(),
        ))?;
        let port_file = profile.join("DevToolsActivePort");
        let mut port = None;
        wait_until("chromium listens", PATIENCE, || {
            let text = fs::read_to_string(&port_file).unwrap_or_default();
            port = text
                .lines()
                .next()
                .and_then(|line| line.parse::<u16>().ok());
            port.is_some()
        })?;
        let at = format!("127.0.0.1:{}", port.context("no port")?);
        let mut target = None;
        wait_until("chromium has a page", PATIENCE, || {
            let list = get(ns, &at, "/json/list")
                .and_then(|answer| Ok(serde_json::from_str::<Value>(&answer.body)?));
            let pages = list
                .ok()
                .and_then(|list| list.as_array().cloned())
                .unwrap_or_default();
            let page = pages.iter().find(|target| target["type"] == "page");
            target = page.and_then(|page| page["webSocketDebuggerUrl"].as_str().map(str::to_owned));
            target.is_some()
        })?;
        let target = target.context("no page")?;
        let socket = ns.within(|| {
            let stream = TcpStream::connect(&at)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (socket, _) = tungstenite::client(&target, stream)
                .map_err(|error| anyhow::anyhow!("DevTools: {error}"))?;
            Ok(socket)
        })?;
        let mut page = Page {
            socket,
            number: 0,
            complaints: Vec::new(),
            _browser: browser,
        };
        for domain in ["Page", "Runtime", "Log"] {
            page.call(&format!("{domain}.enable"), json!({}))?;
        }
        page.call("Page.navigate", json!({ "url": url }))?;
        Ok(page)
    }

    /// Has the browser do something.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.number += 1;
        let id = self.number;
        let request = json!({ "id": id, "method": method, "params": params });
        self.socket.send(Message::text(request.to_string()))?;
        loop {
            let Message::Text(text) = self.socket.read()? else {
                continue;
            };
            let message: Value = serde_json::from_str(&text)?;
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"].to_string())
                }
                Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(message["params"]["entry"].to_string());
                }
                _ => {}
            }
            if message["id"] == id {
                ensure!(message["error"].is_null(), "{method}: {message}");
                return Ok(message["result"].clone());
            }
        }
    }

    /// The value of a JavaScript expression.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params)?;
        if !result["exceptionDetails"].is_null() {
            bail!("{expression}: {result}");
        }
        Ok(result["result"]["value"].clone())
    }

    /// Waits until a JavaScript expression is true.
    pub fn wait(&mut self, what: &str, expression: &str) -> Result<()> {
        let mut last = Ok(Value::Null);
        let waited = wait_until(what, PATIENCE, || {
            last = self.value(expression);
            last.as_ref().is_ok_and(|value| *value == true)
        });
        waited.with_context(|| {
            let text = self.value("document.body.innerText").unwrap_or_default();
            format!(
                "{last:?}; complaints: {:?}; the page: {text}",
                self.complaints
            )
        })
    }
}
