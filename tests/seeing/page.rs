//! The status page in a real browser.

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Lab, LabSpec, Load, Overlay, iperf3, test};
use serde_json::json;

use crate::browser::Page;
use crate::{BIN, WEB, need};

#[test]
fn the_status_page_shows_the_cluster_and_follows_it() {
    let Some(chromium) = need("chromium") else {
        return;
    };
    let spec = LabSpec {
        containers: 2,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let overlay = Overlay::start(lab, &format!("--metrics {WEB}"))?;
        let shown = lab.host(1).overlay("status")?;
        ensure!(shown.contains(&format!("http://{WEB}/")), "{shown}");
        let url = format!("http://{WEB}/");
        let mut page = Page::open(lab, &lab.host(1).ns, &chromium, &url, [1280, 900])?;
        shows_endpoints_and_hosts(&mut page, &overlay)?;
        shows_the_whole_latency_matrix(&mut page)?;
        follows_containers(&mut page, lab)?;
        shows_rates(&mut page, &overlay)?;
        text_stays_text(&mut page)?;
        fits_a_phone(&mut page)?;
        ensure!(page.complaints.is_empty(), "{:?}", page.complaints);
        follows_the_agent_through_a_restart(&mut page, lab, overlay)
    });
}

/// Whether a table has a row with all these words.
fn has_row(table: &str, words: &[&str]) -> String {
    format!(
        "[...document.querySelectorAll('#{table} tr')].some(r => {}.every(w => r.innerText.includes(w)))",
        json!(words)
    )
}

fn shows_endpoints_and_hosts(page: &mut Page, overlay: &Overlay) -> Result<()> {
    for (container, host) in [(overlay.c(1), "host1"), (overlay.c(2), "host2")] {
        let ip = container.ip.to_string();
        let words = [&container.name, "uber-net", &ip, host, &container.mac];
        page.wait("an endpoint is shown", &has_row("endpoints", &words))?;
    }
    page.wait(
        "the network is shown",
        &has_row("networks", &["uber-net", "10.0.0.0/24", "4096"]),
    )?;
    let boxes = "[...document.querySelectorAll('#topology text.title')].map(t => t.textContent.replace(' ★', '')).join()";
    page.wait(
        "the topology is shown",
        &format!("{boxes} === 'host1,host2'"),
    )?;
    page.wait("the name is shown", "document.title.includes('host1')")
}

/// Host 1's page has host 2's measurements as well.
fn shows_the_whole_latency_matrix(page: &mut Page) -> Result<()> {
    let cells = "[...document.querySelectorAll('#latency tr')].slice(1).flatMap((r, i) => \
                 [...r.querySelectorAll('td')].filter((_, j) => i !== j).map(c => c.innerText))";
    let told =
        format!("{cells}.length === 2 && {cells}.every(t => / ms/.test(t) && /p99/.test(t))");
    page.wait("both rows have latencies", &told)
}

/// Nobody reloads it.
fn follows_containers(page: &mut Page, lab: &Lab) -> Result<()> {
    page.value("window.stillTheSame = true")?;
    let ns = lab.add_container("later")?;
    let later = Container::add(lab, 2, &ns, "later.1")?;
    let ip = later.ip.to_string();
    page.wait(
        "a new container appears",
        &has_row("endpoints", &["later.1", &ip, "host2"]),
    )?;
    later.detach(lab.host(2))?;
    page.wait(
        "it goes again",
        &format!("!{}", has_row("endpoints", &["later.1"])),
    )?;
    ensure!(page.value("window.stillTheSame === true")? == true);
    Ok(())
}

fn shows_rates(page: &mut Page, overlay: &Overlay) -> Result<()> {
    let (from, to) = (overlay.c(1).clone(), overlay.c(2).clone());
    let sending =
        std::thread::spawn(move || iperf3(&from.ns, &to.ns, to.ip, Load::Tcp, 8).map(drop));
    let row =
        "[...document.querySelectorAll('#endpoints tr')].find(r => r.innerText.includes('test.1'))";
    let rate = format!("/[MG]bit/.test({row}.innerText)");
    let seen = page.wait("the container's rate is shown", &rate);
    sending.join().ok().context("iperf3")??;
    seen
}

/// The agent's words are never HTML, whatever they are.
fn text_stays_text(page: &mut Page) -> Result<()> {
    let hostile = "now.containers[0].name = '<img src=x onerror=\"window.broken=1\">'; showEndpoints(now); showTopology(now); \
                   document.querySelectorAll('main img').length === 0 && window.broken === undefined";
    ensure!(page.value(hostile)? == true);
    // Nor would the policy let such a thing run.
    let inline = "(() => { const s = document.createElement('script'); s.textContent = 'window.broken = 2'; \
                  document.body.append(s); s.remove(); return window.broken === undefined; })()";
    ensure!(page.value(inline)? == true);
    ensure!(!page.complaints.is_empty(), "the policy forbade nothing");
    page.complaints.clear();
    Ok(())
}

/// 360 pixels wide: tables scroll by themselves, the page does not.
fn fits_a_phone(page: &mut Page) -> Result<()> {
    page.call(
        "Emulation.setDeviceMetricsOverride",
        json!({ "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true }),
    )?;
    page.wait(
        "the page is as wide as the screen",
        "document.documentElement.scrollWidth <= 360 && window.innerWidth === 360",
    )?;
    for scheme in ["dark", "light"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        page.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        )?;
        let brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)";
        let brightness = page.value(brightness)?.as_f64().context("no colour")?;
        ensure!(
            (brightness > 380.0) == (scheme == "light"),
            "{scheme}: {brightness}"
        );
    }
    if let Some(dir) = std::env::var_os("OVERLAY_DP_SCREENSHOTS") {
        for (name, width, mobile) in [("phone", 360, true), ("desktop", 1280, false)] {
            page.call(
                "Emulation.setDeviceMetricsOverride",
                json!({ "width": width, "height": 1100, "deviceScaleFactor": 1, "mobile": mobile }),
            )?;
            let shot = page.call("Page.captureScreenshot", json!({ "format": "png" }))?;
            let path = std::path::Path::new(&dir).join(format!("{name}.base64"));
            std::fs::write(path, shot["data"].as_str().unwrap_or_default())?;
        }
    }
    Ok(())
}

fn follows_the_agent_through_a_restart(
    page: &mut Page,
    lab: &Lab,
    mut overlay: Overlay,
) -> Result<Overlay> {
    overlay.agents.remove(0).stop()?;
    page.wait(
        "the page says so",
        "document.querySelector('#live.stale')?.innerText.includes('does not answer')",
    )?;
    overlay
        .agents
        .push(lab.start_agent(1, &format!("--metrics {WEB}"))?);
    page.wait(
        "the page is live again",
        "document.querySelector('#live:not(.stale)')?.innerText.startsWith('live')",
    )?;
    Ok(overlay)
}
