// Draws the plots of a page anew where scripts run: the same bars, with the
// figures of the one under the pointer. The page has all of it without.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

const height = 190;
const units = ["", "K", "M", "G", "T", "P", "E"];

// size writes bytes as the page does, with three digits, or without zeros that
// say nothing.
function size(n, short = false) {
  let at = 0;
  while (n >= 1023.5 && at < units.length - 1) {
    n /= 1024;
    at++;
  }
  const digits = at === 0 || n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2;
  const text = n.toFixed(digits);
  return `${short ? Number(text) : text} ${at === 0 ? "B" : units[at] + "iB"}`;
}

// nice is the next number of bytes that people find round.
function nice(n) {
  let unit = 1;
  while (n / unit > 1024) unit *= 1024;
  for (let ten = 1; ten < 1024; ten *= 10) {
    for (const of of [1, 2, 3, 4, 6, 8]) {
      if (of * ten < 1024 && of * ten * unit >= n) return of * ten * unit;
    }
  }
  return 1024 * unit;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// readout is a small box beside the pointer.
function readout(words, data) {
  const box = document.createElement("div");
  box.className = "readout";
  box.hidden = true;
  const when = box.appendChild(document.createElement("b"));
  const list = box.appendChild(document.createElement("dl"));
  const values = words.map((word) => {
    list.appendChild(document.createElement("dt")).textContent = word;
    return list.appendChild(document.createElement("dd"));
  });
  return {
    hooks: {
      init: (u) => u.over.appendChild(box),
      setCursor: (u) => {
        const at = u.cursor.idx;
        box.hidden = at == null || u.cursor.left < 0;
        if (box.hidden) return;
        when.textContent = data.labels[at];
        [data.in[at], data.out[at], data.in[at] + data.out[at]].forEach((n, i) => (values[i].textContent = size(n)));
        const gap = 12;
        const right = u.cursor.left + gap + box.offsetWidth <= u.over.clientWidth;
        const left = right ? u.cursor.left + gap : u.cursor.left - gap - box.offsetWidth;
        box.style.transform = `translate(${Math.max(0, left)}px, 4px)`;
      },
    },
  };
}

// joined adds up steps until a bar is wide enough to be seen by itself.
function joined(data, width) {
  const least = 2.5;
  const each = [1, 3, 6].find((n) => (width * n) / data.labels.length >= least) || 12;
  if (each === 1 || data.labels.length < 100) return data;
  const sum = (list) => Array.from({ length: Math.ceil(list.length / each) }, (_, i) => list.slice(i * each, (i + 1) * each).reduce((a, b) => a + b, 0));
  return { ...data, each: data.joined[each], labels: data.labels.filter((_, i) => i % each === 0), ticks: data.ticks.map((at) => at / each), in: sum(data.in), out: sum(data.out) };
}

// spaced leaves out names of ticks for which there is no room, seen from the last.
function spaced(data, width, font) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = font;
  const gap = 10;
  const wanted = Math.max(0, ...data.names.map((name) => pen.measureText(name).width)) + gap;
  const apart = ((data.ticks[1] - data.ticks[0]) * width) / data.labels.length;
  const every = Math.max(1, Math.ceil(wanted / apart)) || 1;
  return new Map(data.ticks.map((at, i) => [at, (data.ticks.length - 1 - i) % every ? "" : data.names[i]]));
}

function draw(canvas, all, words) {
  const side = 62;
  const right = 24;
  const width = canvas.clientWidth - side - right;
  const data = joined(all, width);
  const count = data.labels.length;
  const most = Math.max(0, ...data.in.map((n, i) => n + data.out[i]));
  const top = nice(Math.max(1, most));
  const sizes = most ? [0, top / 2, top] : [0];
  canvas.closest("figure").querySelector("small").textContent = data.each;
  const bars = uPlot.paths.bars({ size: [0.8, 64] });
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const names = spaced(data, width, font);
  const bar = (fill) => ({ paths: bars, fill, width: 0, points: { show: false } });
  const quiet = colour("--quiet");
  const line = { stroke: colour("--line"), width: 1 };
  return new uPlot(
    {
      width: canvas.clientWidth,
      height,
      padding: [10, right, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: [-0.5, count - 0.5] }, y: { range: [0, top] } },
      series: [{}, bar(colour("--out")), bar(colour("--in"))],
      axes: [
        {
          stroke: quiet, font, size: 28, gap: 6, grid: { show: false }, ticks: { show: false },
          splits: () => data.ticks,
          values: (_, at) => at.map((i) => names.get(i)),
        },
        { stroke: quiet, font, size: side, gap: 8, grid: line, ticks: { show: false }, splits: () => sizes, values: (_, at) => at.map((n) => (n ? size(n, true) : "0")) },
      ],
      plugins: [readout(words, data)],
    },
    // What came in is drawn over the sum of both.
    [data.labels.map((_, i) => i), data.in.map((n, i) => n + data.out[i]), data.in],
    canvas,
  );
}

function start(canvas) {
  const data = JSON.parse(canvas.querySelector("script").textContent);
  const words = [...canvas.closest("figure").querySelectorAll("thead th")].slice(1).map((th) => th.textContent);
  const drawn = canvas.querySelector(".drawn");
  let plot;
  const again = () => {
    plot?.destroy();
    plot = draw(canvas, data, words);
  };
  again();
  // It stays for those who do not see.
  drawn.classList.add("replaced");
  new ResizeObserver(() => {
    if (canvas.clientWidth !== plot.width) again();
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

document.querySelectorAll(".canvas").forEach(start);
