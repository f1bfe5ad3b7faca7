// Renews the part of the page that changes by itself. Without this script the
// page shows the state at the time it was loaded.
const live = document.getElementById("live");
const bottom = pre => pre.scrollTop = pre.scrollHeight;
if (live) {
  live.querySelectorAll("pre").forEach(bottom);
  setInterval(async () => {
    if (document.hidden || !document.getSelection().isCollapsed) return;
    const answer = await fetch("live?page=" + live.dataset.page).catch(() => null);
    if (!answer || !answer.ok) return;
    const at = [...live.querySelectorAll("pre")].map(pre =>
      pre.scrollTop + pre.clientHeight > pre.scrollHeight - 20 ? -1 : pre.scrollTop);
    live.innerHTML = await answer.text();
    live.querySelectorAll("pre").forEach((pre, i) => at[i] < 0 ? bottom(pre) : pre.scrollTop = at[i]);
  }, 1500);
}
