// The status page. Whatever the agent tells is put into the page as text, never as HTML.
'use strict';

const EVERY_MS = 2000;
const MOST_ROWS = 500;
const SVG = document.getElementById("topology").namespaceURI;
const byId = (id) => document.getElementById(id);

let last = null;      // the overview before, for rates
let now = null;       // the one that is shown
let seen = null;      // endpoints that were there before
let failing = 0;

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = String(text);
  if (className) element.className = className;
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== undefined) element.textContent = String(text);
  return element;
}

function fill(id, header, rows) {
  const head = make('tr');
  for (const title of header) head.append(make('th', title));
  const body = rows.length ? rows : [row(['nothing yet'])];
  byId(id).replaceChildren(head, ...body);
}

function row(cells) {
  const line = make('tr');
  for (const cell of cells) line.append(cell instanceof Node ? cell : make('td', cell ?? '-'));
  return line;
}

function number(text, className) {
  return make('td', text, 'number' + (className ? ' ' + className : ''));
}

function milliseconds(us) {
  return us < 10000 ? (us / 1000).toFixed(2) + ' ms' : (us / 1000).toFixed(0) + ' ms';
}

function rate(bytesPerSecond) {
  let bits = bytesPerSecond * 8;
  for (const unit of ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s']) {
    if (bits < 1000 || unit === 'Gbit/s') return bits.toFixed(bits < 10 && bits > 0 ? 1 : 0) + ' ' + unit;
    bits /= 1000;
  }
}

function duration(seconds) {
  if (seconds < 120) return seconds + ' s';
  if (seconds < 7200) return Math.floor(seconds / 60) + ' min';
  if (seconds < 172800) return Math.floor(seconds / 3600) + ' h';
  return Math.floor(seconds / 86400) + ' days';
}

function showFacts(o) {
  const s = o.status;
  const alive = o.hosts.filter((host) => host.state === 'alive').length;
  const leader = o.hosts.find((host) => host.leader);
  const drops = Object.values(s.drops).reduce((a, b) => a + b, 0);
  const facts = [
    ['Hosts alive', alive + ' of ' + o.hosts.length, alive === o.hosts.length ? 'good' : 'bad'],
    ['Managers', o.cluster.managers.length + (o.cluster.quorum ? ', can agree' : ', can NOT agree'), o.cluster.quorum ? 'good' : 'bad'],
    ['Leader', leader ? leader.name : 'not known'],
    ['Networks', o.networks.length],
    ['Endpoints', o.containers.length],
    ['Uplink', s.uplink.interface + ' ' + s.uplink.address],
    ['MTU of containers', s.uplink.inner_mtu],
    ['Data path', s.datapath],
    ['Drops here', drops, drops ? 'warn' : ''],
    ['Agent', s.version + ', up ' + duration(s.uptime_s)],
  ];
  byId('facts').replaceChildren(...facts.map(([name, value, className]) => {
    const fact = make('div');
    fact.append(make('dt', name), make('dd', value, className));
    return fact;
  }));
  byId('host').textContent = s.host_name;
  document.title = s.host_name + ' - overlay-dp';
  const problems = [];
  if (s.uplink.problem) problems.push('Uplink: ' + s.uplink.problem);
  for (const hook of s.hooks) {
    if (hook.attached === 'MISSING') problems.push('The program on ' + hook.interface + ' was removed: restart the agent, which attaches it anew');
  }
  byId('problems').hidden = problems.length === 0;
  byId('problems').textContent = problems.join(' · ');
}

/** What one host measures of another one. */
function way(o, from, to) {
  const measured = o.latency.find((entry) => entry.host === from);
  return measured && measured.vteps.find((vtep) => vtep.host === to);
}

function quality(vtep) {
  if (!vtep || vtep.data_path === 'unknown') return '';
  if (vtep.data_path === 'silent') return 'bad';
  return vtep.loss_percent > 1 ? 'warn' : 'good';
}

function showTopology(o) {
  const hosts = o.hosts.slice(0, 24);
  const [width, height, boxWidth] = [900, hosts.length > 6 ? 560 : hosts.length > 2 ? 360 : 160, 168];
  const place = hosts.map((_, i) => {
    const angle = Math.PI + (2 * Math.PI * i) / hosts.length;
    return [width / 2 + Math.cos(angle) * (width / 2 - 110), height / 2 + Math.sin(angle) * (height / 2 - 75)];
  });
  const parts = [];
  for (let a = 0; a < hosts.length; a++) {
    for (let b = a + 1; b < hosts.length; b++) {
      const vtep = way(o, hosts[a].id, hosts[b].id) || way(o, hosts[b].id, hosts[a].id);
      const [[x1, y1], [x2, y2]] = [place[a], place[b]];
      parts.push(draw('line', { x1, y1, x2, y2, class: quality(vtep) }));
      if (vtep && vtep.latency && hosts.length <= 8) {
        const at = { x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 5, class: 'soft', 'text-anchor': 'middle' };
        parts.push(draw('text', at, milliseconds(vtep.latency.average_us)));
      }
    }
  }
  hosts.forEach((host, i) => {
    const [x, y] = [place[i][0] - boxWidth / 2, place[i][1] - 48];
    const own = o.containers.filter((container) => container.host === host.id);
    const shown = own.slice(0, 3).map((container) => container.name + ' ' + (container.ip ?? ''));
    if (own.length > 3) shown.push('… ' + (own.length - 3) + ' more');
    parts.push(draw('rect', { x, y, width: boxWidth, height: 96, rx: 7, class: host.state + (host.this ? ' me' : '') }));
    parts.push(draw('text', { x: x + 9, y: y + 19, class: 'title' }, host.name.slice(0, 20) + (host.leader ? ' ★' : '')));
    parts.push(draw('text', { x: x + 9, y: y + 34, class: 'soft' }, host.vtep + (host.manager ? ', manager' : '')));
    shown.forEach((line, n) => parts.push(draw('text', { x: x + 9, y: y + 51 + 13 * n, class: 'soft' }, line.slice(0, 26))));
  });
  const svg = byId('topology');
  svg.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
  svg.replaceChildren(...parts);
}

function showLatency(o) {
  const hosts = o.hosts;
  const rows = o.latency.map((from) => {
    const cells = [make('th', from.host_name)];
    for (const host of hosts) {
      if (host.id === from.host) { cells.push(number('·')); continue; }
      const vtep = from.vteps.find((entry) => entry.host === host.id);
      const cell = number(vtep && vtep.latency ? milliseconds(vtep.latency.average_us) : '-', quality(vtep));
      if (from.problem) cell.title = from.problem;
      if (vtep && vtep.latency) {
        cell.append(make('small', 'p99 ' + milliseconds(vtep.latency.p99_us) + ', ' + (vtep.loss_percent ?? 0).toFixed(0) + ' %'));
      } else if (from.problem) {
        cell.append(make('small', 'not told'));
      }
      cells.push(cell);
    }
    return row(cells);
  });
  fill('latency', ['', ...hosts.map((host) => host.name)], rows);
}

/** Bytes per second of each local container: what it receives, what it sends. */
function rates(o) {
  const result = new Map();
  const seconds = last ? (o.at_ms - last.at_ms) / 1000 : 0;
  if (seconds <= 0) return result;
  const before = new Map(last.traffic.map((t) => [t.port, t]));
  for (const t of o.traffic) {
    const old = before.get(t.port);
    if (!old || t.rx_bytes < old.rx_bytes || t.tx_bytes < old.tx_bytes) continue;
    result.set(t.network + '/' + t.container, [(t.rx_bytes - old.rx_bytes) / seconds, (t.tx_bytes - old.tx_bytes) / seconds]);
  }
  return result;
}

function showEndpoints(o) {
  const speed = rates(o);
  const wanted = byId('filter').value.toLowerCase();
  const text = (c) => [c.name, c.network, c.host_name, c.mac, c.service ?? '', ...c.aliases, ...c.ips].join(' ').toLowerCase();
  const found = o.containers.filter((c) => !wanted || text(c).includes(wanted));
  const keys = new Set();
  const rows = found.slice(0, MOST_ROWS).map((c) => {
    const key = c.network + '/' + c.name;
    keys.add(key);
    const [rx, tx] = speed.get(key) ?? [];
    const line = row([c.name, c.network, c.ips.join(' '), c.host_name, c.service, c.mac,
      number(rx === undefined ? '-' : rate(rx)), number(tx === undefined ? '-' : rate(tx))]);
    if (seen && !seen.has(key)) line.className = 'new';
    return line;
  });
  if (!wanted) seen = keys;
  fill('endpoints', ['Name', 'Network', 'Addresses', 'Host', 'Service', 'MAC', 'Receives', 'Sends'], rows);
  byId('count').textContent = '(' + (found.length > MOST_ROWS ? 'the first ' + MOST_ROWS + ' of ' : '') + found.length + ')';
}

function showTables(o) {
  fill('networks', ['Name', 'VNI', 'Subnets', 'Gateway', 'Hosts', 'Endpoints', 'Here'], o.networks.map((n) => row([
    n.name, n.vni, n.ipv6 ? n.subnet + ' ' + n.ipv6.subnet : n.subnet, n.gateway, n.hosts,
    o.containers.filter((c) => c.vni === n.vni).length, n.attached ? 'yes' : 'no'])));
  const changed = (values, before) => Object.entries(values).filter(([, n]) => n > 0)
    .sort((a, b) => b[1] - a[1])
    .map(([name, n]) => {
      const seconds = last ? (o.at_ms - last.at_ms) / 1000 : 0;
      const more = before && seconds > 0 ? Math.max(0, n - (before[name] ?? 0)) / seconds : 0;
      return row([name, number(n.toLocaleString()), number(more > 0 ? more.toFixed(1) + '/s' : '')]);
    });
  fill('drops', ['Reason', 'Frames', 'Now'], changed(o.status.drops, last && last.status.drops));
  fill('counters', ['What', 'Frames', 'Now'], changed(o.status.stats, last && last.status.stats));
}

function show() {
  showFacts(now);
  showTopology(now);
  showLatency(now);
  showEndpoints(now);
  showTables(now);
}

async function look() {
  try {
    const answer = await fetch('api/overview', { signal: AbortSignal.timeout(10000) });
    const overview = await answer.json();
    if (!answer.ok) throw new Error(overview.error ?? answer.status);
    if (!now || overview.at_ms !== now.at_ms) { last = now; now = overview; show(); }
    failing = 0;
    byId('live').textContent = 'live, ' + new Date(now.at_ms).toLocaleTimeString();
    byId('live').className = '';
  } catch (error) {
    failing += 1;
    byId('live').textContent = 'the agent does not answer' + (now ? ' since ' + new Date(now.at_ms).toLocaleTimeString() : '') + ': ' + error.message;
    byId('live').className = 'stale';
  }
}

async function forever() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, EVERY_MS * Math.min(1 + failing, 5)));
  }
}

byId('filter').addEventListener('input', () => { if (now) showEndpoints(now); });
forever();
