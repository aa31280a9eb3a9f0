// The admin page: asks /sessions every two seconds, follows /tap, and draws both.
// Whatever a client or the configuration chose reaches the page through textContent alone.
"use strict";

const SHOWN = 100; // requests in the table
const SESSIONS_SHOWN = 500; // rows; the count above the table tells the rest
const WINDOW = 30_000; // ms that rates and latencies look back

const $ = (id) => document.getElementById(id);
const opened = performance.now();
let recent = []; // { at, status, duration, overhead } of the window
let events = null;

function cell(text, tone) {
  const td = document.createElement("td");
  td.textContent = text;
  if (tone) td.className = tone;
  return td;
}

function row(...cells) {
  const tr = document.createElement("tr");
  tr.append(...cells);
  return tr;
}

const toneOf = { live: "good", avoided: "bad", empty: "quiet" };
const number = (n) => (n === null ? "shared" : n.toLocaleString("en"));

function drawSession(name, { state, source, endpoints, requests, errors }) {
  const addresses = endpoints.map((e) => [
    e.address, e.pod && `(${e.pod})`, e.state !== "good" && "(avoided)",
  ].filter(Boolean).join(" "));
  return row(
    cell(name),
    cell(state, toneOf[state]),
    cell(source ?? "–", "quiet"),
    cell(addresses.join(", ") || "none"),
    cell(number(requests)),
    cell(number(errors), errors ? "bad" : "quiet"),
  );
}

// Only one who speaks for several proxies has targets.
function drawTargets(targets) {
  $("targets").hidden = !targets;
  $("pods").replaceChildren(...(targets ?? []).map((t) => row(
    cell(t.pod),
    cell(t.state, { live: "good", waiting: "quiet", starting: "quiet", ending: "quiet" }[t.state] ?? "bad"),
    cell(t.since.slice(0, 19).replace("T", " "), "quiet"),
    cell(number(t.restarts), t.restarts ? "" : "quiet"),
    cell(t.message),
  )));
}

function drawSessions({ readiness, targets, sessions, baselines, discovery, lastReload }) {
  drawTargets(targets);
  $("state").textContent = readiness;
  $("state").className = readiness === "ready" ? "good" : "bad";
  $("count").textContent = sessions.length > SESSIONS_SHOWN
    ? `${SESSIONS_SHOWN} of ${sessions.length}` : `${sessions.length}`;
  $("sessions").replaceChildren(
    ...sessions.slice(0, SESSIONS_SHOWN).map((s) => drawSession(s.name, s)),
    ...baselines.map((b) => drawSession(`baseline of ${b.listener}`, b)),
  );
  const failed = lastReload.result !== "ok";
  $("reload").hidden = !failed && lastReload.problems.length === 0;
  $("reload").textContent = [
    failed ? `configuration refused at ${lastReload.at}; the one before is in force`
      : `configuration of ${lastReload.at} is in force, but:`,
    ...lastReload.problems,
  ].join("\n");
  $("discovery").hidden = !discovery || discovery.up;
  $("discovery").textContent = discovery ? `the cluster is out of reach since ${discovery.lastSync ?? "the start"};`
    + ` the sessions of app ${discovery.app} in namespace ${discovery.namespace} are those known then` : "";
}

async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch("sessions");
    if (!response.ok) throw new Error(`status ${response.status}`);
    drawSessions(await response.json());
  } catch (error) {
    $("state").textContent = `no answer (${error.message})`;
    $("state").className = "bad";
  }
  drawFigures();
}

function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null;
}

function drawFigures() {
  const now = performance.now();
  recent = recent.filter((r) => r.at > now - WINDOW);
  const seconds = Math.min(WINDOW, now - opened) / 1000;
  const perSecond = (n) => (n / seconds).toFixed(1);
  const ms = (value) => (value === null ? "–" : `${value.toFixed(1)} ms`);
  $("rate").textContent = perSecond(recent.length);
  $("errors").textContent = perSecond(recent.filter((r) => r.status >= 500).length);
  $("p50").textContent = ms(quantile(recent.map((r) => r.duration), 0.5));
  $("p95").textContent = ms(quantile(recent.map((r) => r.duration), 0.95));
  const overhead = quantile(recent.map((r) => r.overhead), 0.5);
  $("overhead").textContent = overhead === null ? "–" : `${overhead} µs`;
}

function drawRequest(line) {
  const table = $("requests");
  table.prepend(row(
    cell(line.time.slice(11, 23), "quiet"),
    cell(`${line.method} ${line.target}`),
    cell(line.session ?? "–"),
    cell(line.pod ? `${line.route} (${line.pod})` : line.route),
    cell(line.error ? `${line.reason}; ${line.error}` : line.reason, line.error ? "bad" : "quiet"),
    cell(line.status, line.status >= 500 ? "bad" : line.status < 400 ? "good" : ""),
    cell(line.duration_ms.toFixed(1)),
  ));
  while (table.rows.length > SHOWN) table.deleteRow(-1);
}

// Being listened to costs the proxy a little for each request: nobody listens for a hidden page.
function follow() {
  events?.close();
  events = null;
  if (document.hidden) return;
  const query = new URLSearchParams(new FormData($("filter"))).toString().replaceAll("+", "%20");
  events = new EventSource(`tap?${query}`);
  events.onmessage = ({ data }) => {
    const line = JSON.parse(data);
    recent.push({
      at: performance.now(), status: line.status, duration: line.duration_ms, overhead: line.overhead_us,
    });
    drawRequest(line);
  };
}

$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  recent = [];
  $("requests").replaceChildren();
  follow();
});
document.addEventListener("visibilitychange", () => { follow(); refresh(); });
setInterval(refresh, 2000);
refresh();
follow();
