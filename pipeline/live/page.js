"use strict";

const POLL_MS = 700;
const byId = (id) => document.getElementById(id);
const STATES = { live: "live", lost: "source lost", starting: "starting", ended: "ended" };
let state = null;
let failures = 0;
let sureUntil = 0;
let noteUntil = 0;

function note(text, ms) {
  byId("note").textContent = text;
  byId("note").hidden = !text;
  noteUntil = text ? Date.now() + ms : 0;
}

function whole(value) {
  return Number(value).toLocaleString("en", { maximumFractionDigits: 0 });
}

function duration(seconds) {
  const s = Math.floor(seconds);
  const pad = (n) => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}`;
}

// Rows are written as text: nothing that the server sends is ever read as HTML.
function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const td = document.createElement("td");
      if (cell instanceof Node) { td.className = "bar"; td.append(cell); } else { td.textContent = cell; }
      row.append(td);
    }
    return row;
  }));
}

function meter(value, most) {
  const bar = document.createElement("meter");
  bar.max = most || 1;
  bar.value = value;
  return bar;
}

function showBadge() {
  const badge = byId("state");
  let kind = state.state;
  let text = STATES[kind] || kind;
  if (kind === "live" && state.controls.mode === "slate") { kind = "paused"; text = "paused"; }
  if (kind === "live" && state.controls.mode === "mosaic") { kind = "mosaic"; text = "mosaic only"; }
  badge.className = `badge ${kind}`;
  badge.textContent = text;
}

function showControls() {
  const controls = state.controls;
  const press = (id, on) => byId(id).setAttribute("aria-pressed", String(on));
  press("panic", controls.is_panic);
  press("pause", controls.is_paused);
  press("boxes", controls.shows_boxes);
  byId("pause").textContent = controls.is_paused ? "Go on" : "Pause";
  byId("panic").querySelector("strong").textContent =
    controls.is_panic ? "Everybody is mosaicked" : "Mosaic everybody";
  byId("panic").querySelector("span").textContent =
    controls.is_panic ? "press again for virtual faces" : "no virtual faces, from the next frame on";
  const rotate = byId("rotate");
  rotate.disabled = !state.can_rotate || controls.is_rotating;
  rotate.textContent = controls.is_rotating ? "Changing…" : "Next key";
  rotate.title = state.can_rotate ? `${controls.rotations} changes so far` : "no key is in use";
  const quality = byId("quality");
  if (quality.options.length !== controls.quality_steps + 1) {
    for (let step = 0; step < controls.quality_steps; step += 1) {
      const last = controls.quality_steps - 1;
      const name = step === 0 ? "Quality: best" : step === last ? "Quality: fastest" : `Quality: step ${step}`;
      quality.add(new Option(name, String(step)));
    }
  }
  const step = state.report ? state.report.quality : 0;
  quality.options[0].textContent = step ? `Quality: automatic, now step ${step}` : "Quality: automatic";
  if (document.activeElement !== quality) {
    quality.value = controls.quality === null ? "" : String(controls.quality);
  }
}

function showFigures() {
  const report = state.report;
  byId("fps-in").textContent = state.rates.fps_in.toFixed(1);
  byId("fps-out").textContent = state.rates.fps_out.toFixed(1);
  byId("faces").textContent = state.faces;
  if (!report) { return; }
  byId("age-p50").textContent = whole(report.age.p50_ms);
  byId("age-p95").textContent = whole(report.age.p95_ms);
  byId("mosaics").textContent = whole(report.redacted_frames);
  byId("dropped").textContent = whole(report.dropped);
  byId("reconnects").textContent = whole(report.reconnects);
  byId("reconnects").className = report.reconnects ? "off" : "";
  byId("uptime").textContent = `up ${duration(report.wall_s)}`;
  const stages = Object.entries(report.stages).filter(([name]) => name !== "source");
  const most = Math.max(...stages.map(([, times]) => times.p95_ms), 1);
  fill(byId("stages"), stages.map(([name, times]) => [
    name, meter(times.p50_ms, most), `${times.p50_ms.toFixed(1)} ms`, `${times.p95_ms.toFixed(1)} ms`,
    whole(report.faults[name] || 0),
  ]));
  fill(byId("sinks"), (report.outputs || []).map((sink) => [
    sink.problem || sink.name, sink.state, whole(sink.written), whole(sink.dropped),
  ]));
  fill(byId("reasons"), Object.entries(report.redacted).map(([why, n]) => [why.replaceAll("_", " "), whole(n)]));
}

function show() {
  byId("source").textContent = state.source;
  showBadge();
  showControls();
  showFigures();
  if (state.state === "lost" && state.problem) {
    note(state.problem, 2000);
  } else if (Date.now() > noteUntil) {
    note("", 0);
  }
  for (const id of ["panic", "pause", "boxes", "end"]) { byId(id).disabled = state.state === "ended"; }
  if (Date.now() > sureUntil) {
    byId("end").textContent = "End the stream";
    byId("end").classList.remove("sure");
  }
}

function showGone() {
  const badge = byId("state");
  badge.className = "badge gone";
  badge.textContent = state && (state.state === "ended" || state.controls.wants_end) ? "ended" : "not connected";
  for (const button of document.querySelectorAll("button, select")) { button.disabled = true; }
  watch(false);
}

async function poll() {
  try {
    const answer = await fetch("state.json", { cache: "no-store" });
    if (!answer.ok) { throw new Error(String(answer.status)); }
    state = await answer.json();
    if (failures > 2) { for (const one of document.querySelectorAll("button, select")) { one.disabled = false; } }
    failures = 0;
    show();
    watch(!document.hidden && state.state !== "ended");
  } catch {
    failures += 1;
    if (failures > 2) { showGone(); }
  }
  setTimeout(poll, failures > 2 ? 3000 : POLL_MS);
}

// The moving picture is asked for only while somebody can see it.
function watch(wanted) {
  const picture = byId("picture");
  if (wanted === picture.hasAttribute("src")) { return; }
  if (wanted) {
    picture.src = `stream.mjpeg?${Date.now()}`;
  } else {
    picture.removeAttribute("src");
    picture.hidden = true;
    byId("no-picture").hidden = false;
    byId("no-picture").textContent = "No picture.";
  }
}

async function act(action, value) {
  try {
    const answer = await fetch("control", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ action, value }),
    });
    const body = await answer.json();
    if (answer.ok) { state = body; show(); } else { note(body.error, 8000); }
  } catch {
    note("The stream could not be reached.", 4000);
  }
}

function askToEnd() {
  if (Date.now() < sureUntil) { act("end"); return; }
  sureUntil = Date.now() + 4000;
  byId("end").textContent = "Press again to end the stream";
  byId("end").classList.add("sure");
}

const toggles = {
  panic: () => act("panic", !state.controls.is_panic),
  pause: () => act("pause", !state.controls.is_paused),
  boxes: () => act("boxes", !state.controls.shows_boxes),
  rotate: () => act("rotate"),
};
const KEYS = { m: "panic", " ": "pause", b: "boxes", k: "rotate" };

for (const [id, turn] of Object.entries(toggles)) {
  byId(id).addEventListener("click", () => { if (state) { turn(); } });
}
byId("end").addEventListener("click", askToEnd);
byId("quality").addEventListener("change", (event) => {
  const value = event.target.value;
  act("quality", value === "" ? null : Number(value));
  event.target.blur();
});
document.addEventListener("keydown", (event) => {
  const id = KEYS[event.key];
  const isField = ["BUTTON", "SELECT"].includes(event.target.tagName) && event.key === " ";
  if (!id || !state || isField || event.ctrlKey || event.altKey || event.metaKey || event.repeat) { return; }
  event.preventDefault();
  if (!byId(id).disabled) { toggles[id](); }
});
byId("picture").addEventListener("load", () => {
  byId("picture").hidden = false;
  byId("no-picture").hidden = true;
});
byId("picture").addEventListener("error", () => {
  byId("picture").hidden = true;
  byId("no-picture").hidden = false;
  byId("no-picture").textContent = "No picture. Perhaps too many are watching.";
  setTimeout(() => byId("picture").removeAttribute("src"), 2000);
});
document.addEventListener("visibilitychange", () => {
  if (state) { watch(!document.hidden && state.state !== "ended"); }
});
poll();
