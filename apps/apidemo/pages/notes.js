"use strict";

const main = document.querySelector("main");
const form = document.getElementById("add");
const text = document.getElementById("text");
const list = document.getElementById("notes");
const state = document.getElementById("state");

let socket;
let pause = 250;

function connect() {
  const url = new URL("ws", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(url);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.mt === "Notes") {
      pause = 250;
      state.textContent = main.dataset.live;
      show(message.notes);
    } else if (message.mt === "Error") {
      state.textContent = message.text;
    }
  };
  socket.onclose = () => {
    state.textContent = main.dataset.offline;
    setTimeout(connect, pause);
    pause = Math.min(2 * pause, 5000);
  };
}

// Elements of notes that stay are kept, and with them the keyboard's place.
function show(notes) {
  const old = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const items = notes.map((note) => old.get(String(note.id)) || element(note));
  const focused = document.activeElement;
  list.replaceChildren(...items);
  if (list.contains(focused)) {
    focused.focus();
  }
  document.getElementById("empty").hidden = notes.length > 0;
}

function element(note) {
  const item = document.createElement("li");
  item.dataset.id = note.id;
  const body = document.createElement("p");
  body.textContent = note.text;
  const time = document.createElement("time");
  time.dateTime = note.time;
  time.textContent = new Date(note.time).toLocaleString(document.documentElement.lang);
  body.append(time);
  const remove = document.createElement("button");
  remove.textContent = main.dataset.delete;
  remove.setAttribute("aria-label", main.dataset.delete + ": " + note.text.slice(0, 40));
  remove.onclick = () => {
    send({ mt: "Delete", id: note.id });
    text.focus();
  };
  item.append(body, remove);
  return item;
}

function send(message) {
  if (socket.readyState !== WebSocket.OPEN) {
    return false;
  }
  socket.send(JSON.stringify(message));
  return true;
}

form.onsubmit = (event) => {
  event.preventDefault();
  // What cannot be sent stays in the field.
  if (send({ mt: "Add", text: text.value })) {
    text.value = "";
  }
};

connect();
