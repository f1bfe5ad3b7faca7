// Renews what changes by itself, asks before something is deleted, follows logs and
// waits for a device that restarts. Every page works without it.
const $ = (selector, from = document) => from.querySelector(selector);
const get = url => fetch(url, { headers: { "X-Live": "1" }, cache: "no-store" });
const parse = async answer => new DOMParser().parseFromString(await answer.text(), "text/html");

// renew gets the page anew and replaces the parts of it that differ.
let renewing = false, again = false;
async function renew() {
  if (document.hidden || renewing) { again = true; return; }
  renewing = true; again = false;
  const answer = await get(document.body.dataset.live).catch(() => null);
  if (answer && answer.status == 401) location.reload();
  if (answer && answer.ok) {
    const page = await parse(answer);
    document.querySelectorAll("[data-part]").forEach(part => {
      const fresh = page.getElementById(part.id);
      if (!fresh || fresh.innerHTML == part.innerHTML) return;
      const focus = part.contains(document.activeElement) && document.activeElement;
      const key = focus && [...part.querySelectorAll("a,button,[tabindex]")].indexOf(focus);
      // The part itself stays: screen readers listen to it.
      part.replaceChildren(...fresh.childNodes);
      if (focus) {
        const all = [...part.querySelectorAll("a,button,[tabindex]")];
        (all.find(e => e.textContent == focus.textContent && e.getAttribute("href") == focus.getAttribute("href")) || all[key] || $("#main")).focus();
      }
    });
  }
  renewing = false;
  if (again) setTimeout(renew, 500);
}

function lost(yes) {
  let note = $("#lost");
  if (yes && !note) {
    note = document.createElement("div");
    note.id = "lost"; note.className = "note warning"; note.setAttribute("role", "status");
    note.textContent = document.body.dataset.lost;
    $("#main").prepend(note);
  } else if (!yes && note) note.remove();
}

// listen goes on when the manager was away: a browser does not try again by itself
// when somebody answers in its place.
function listen(url, on) {
  let events;
  const connect = () => {
    events = new EventSource(url);
    events.onopen = () => on.open?.();
    events.onmessage = event => on.message(event.data);
    events.onerror = () => {
      on.lost();
      if (events.readyState != EventSource.CLOSED) return;
      get("/manager/live").then(answer => answer.status == 401 && location.reload(), () => {});
      setTimeout(connect, 3000);
    };
  };
  connect();
  addEventListener("pagehide", () => events.close());
}

if (document.body.dataset.live) {
  let failed;
  // What has changed between the page and the stream, or while that was broken, is
  // told at once.
  listen("/manager/events?since=" + document.body.dataset.since, {
    open() { clearTimeout(failed); failed = 0; lost(false); },
    message: renew,
    // A short break is nobody's concern, nor is the absence that a page waits for.
    lost() { if (!$("[data-away]")) failed ||= setTimeout(lost, 3000, true); },
  });
  document.addEventListener("visibilitychange", () => again && renew());
}

// Links to a page that asks show its question in a dialog.
document.addEventListener("click", async event => {
  const link = event.target.closest("a[data-dialog]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const answer = await get(link.href).catch(() => null);
  const page = answer && answer.ok && await parse(answer);
  const ask = page && $(".confirm", page);
  if (!ask) { location = link.href; return; }
  const dialog = document.createElement("dialog");
  if (ask.tagName == "FORM") ask.action = link.href;
  const title = $("h1", ask), head = document.createElement("h2");
  head.id = "dialog-title"; head.textContent = title.textContent; title.replaceWith(head);
  dialog.setAttribute("aria-labelledby", head.id);
  dialog.append(ask);
  dialog.addEventListener("click", e => {
    if (e.target == dialog || e.target.closest("[data-cancel]")) { e.preventDefault(); dialog.close(); }
  });
  dialog.addEventListener("close", () => { dialog.remove(); link.isConnected && link.focus(); });
  document.body.append(dialog);
  typed(dialog);
  dialog.showModal();
});

// What must be typed lets the button be pressed.
function typed(where) {
  const field = $("[data-typed]", where);
  if (!field) return;
  const button = $("button.danger", field.form);
  const check = () => button.disabled = field.value.trim() != field.dataset.typed;
  field.addEventListener("input", check);
  check();
}
typed(document);

document.querySelectorAll("button[data-show]").forEach(button => button.addEventListener("click", event => {
  event.preventDefault();
  const field = document.getElementById(button.dataset.show);
  field.type = field.type == "password" ? "text" : "password";
  button.setAttribute("aria-pressed", field.type == "text");
}));

const atEnd = box => box.scrollTop + box.clientHeight > box.scrollHeight - 24;
const toEnd = box => box.scrollTop = box.scrollHeight;
document.querySelectorAll("pre.log").forEach(toEnd);

const log = $("[data-follow]");
if (log) {
  const state = $("#follow-state");
  listen(log.dataset.follow, {
    open() { log.textContent = ""; state.textContent = state.dataset.following; },
    lost() { state.textContent = state.dataset.lost; },
    message(text) {
      const end = atEnd(log);
      log.append(text + "\n");
      while (log.childNodes.length > 2000) log.firstChild.remove();
      if (end) toEnd(log);
    },
  });
}

// A device that restarts is away, then perhaps its ramdisk answers, then we do again,
// with another time of the start.
const away = $("[data-away]");
if (away) {
  const state = $("#away-state"), box = $("#away-log");
  const poll = async () => {
    const stop = new AbortController(), timer = setTimeout(() => stop.abort(), 8000);
    const answer = await fetch("/manager/ramdisk.log", { cache: "no-store", signal: stop.signal, headers: { Accept: "text/plain", "X-Live": "1" } }).catch(() => null);
    const started = answer && answer.headers.get("X-Started");
    if (started && started != away.dataset.started) {
      state.textContent = away.dataset.back;
      location = away.dataset.next;
      return;
    }
    if (!started) {
      state.textContent = away.dataset.gone;
      $("#away-job")?.setAttribute("hidden", "");
    }
    if (answer && answer.ok && !started) {
      const text = await answer.text().catch(() => "");
      if (text) { box.textContent = text; toEnd(box); }
    }
    clearTimeout(timer);
    setTimeout(poll, 2000);
  };
  setTimeout(poll, 2000);
}
