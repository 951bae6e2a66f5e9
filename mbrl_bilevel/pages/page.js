"use strict";
// Draws the plots of the page with Plotly, shows and hides lines, sorts tables, changes the theme.
(() => {
  const root = document.documentElement;
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const probe = document.createElement("span");
  document.body.append(probe);

  // A colour of the style sheet as it is now, light or dark: "rgb(…)".
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const faint = (rgb, alpha) => rgb.replace("rgb(", "rgba(").replace(")", `, ${alpha})`);
  // Plotly reads text as a kind of HTML: what a run calls its methods must stay text.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (value) =>
    typeof value === "number" ? String(Number(value.toPrecision(4))) : plain(value);

  const hover = (line, i) => {
    const low = line.low[i], high = line.high[i], n = line.n[i];
    const interval = low === null ? "" : ` [${short(low)}, ${short(high)}]`;
    return `${plain(line.name)}<br>${short(line.y[i])}${interval}<br>at ${short(line.x[i])}, n = ${n}`;
  };

  // The area between the ends of the intervals, in one piece for each stretch that has them.
  const band = (line, log) => {
    const x = [], y = [];
    let from = 0;
    const has = (i) => line.low[i] !== null && line.high[i] !== null;
    while (from < line.x.length) {
      if (!has(from)) { from += 1; continue; }
      let to = from;
      while (to + 1 < line.x.length && has(to + 1)) to += 1;
      const inside = Array.from({ length: to - from + 1 }, (_, k) => from + k);
      const floor = (i) => (log ? Math.max(line.low[i], line.y[i] * 1e-2) : line.low[i]);
      x.push(...inside.map((i) => line.x[i]), ...inside.reverse().map((i) => line.x[i]), null);
      y.push(...inside.map((i) => line.high[i]).reverse(), ...inside.map(floor), null);
      from = to + 1;
    }
    return { x, y };
  };

  const bars = (line, low, high, values, tint) => ({
    type: "data",
    symmetric: false,
    array: values.map((v, i) => (high[i] === null || v === null ? 0 : Math.max(0, high[i] - v))),
    arrayminus: values.map((v, i) => (low[i] === null || v === null ? 0 : Math.max(0, v - low[i]))),
    color: tint,
    thickness: 1.5,
    width: 3,
  });

  const traces = (plot, shown) => {
    const found = [];
    plot.lines.forEach((line, place) => {
      if (!shown[place]) return;
      const tint = colour(`m${line.colour}`);
      const alone = !plot.joined || line.x.length === 1;
      if (!alone && line.low.some((v) => v !== null)) {
        found.push({
          ...band(line, plot.logY), type: "scatter", mode: "lines", fill: "toself", hoverinfo: "skip",
          fillcolor: faint(tint, 0.12), line: { width: 0 }, showlegend: false,
        });
      }
      const trace = {
        x: line.x, y: line.y, type: "scatter", mode: plot.joined ? "lines+markers" : "markers",
        text: line.x.map((_, i) => hover(line, i)), hoverinfo: "text", showlegend: false, cliponaxis: false,
        line: { color: tint, dash: line.dash, width: 2 },
        marker: { color: tint, symbol: line.marker, size: plot.joined ? 6 : 9 },
      };
      if (alone) {
        trace.error_y = bars(line, line.low, line.high, line.y, tint);
        if (line.xLow) trace.error_x = bars(line, line.xLow, line.xHigh, line.x, tint);
      }
      if (typeof line.x[0] === "string") trace.x = line.x.map(plain);
      found.push(trace);
    });
    return found;
  };

  // Points alone: Plotly would begin at zero, and differences would be too small to see.
  const around = (plot) => {
    const ends = plot.lines.flatMap((line) => [...line.y, ...line.low, ...line.high]);
    const known = [...ends, ...plot.references.map(([, value]) => value)].filter((v) => v !== null);
    if (known.length === 0) return undefined;
    const low = Math.min(...known), high = Math.max(...known);
    const margin = 0.08 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  };
  // A few whole numbers along the axis: no ticks between them.
  const counted = (plot) => {
    const xs = plot.lines.flatMap((line) => line.x);
    const whole = plot.joined && !plot.logX && xs.length > 0 && xs.every(Number.isInteger);
    return whole && Math.max(...xs) - Math.min(...xs) <= 12;
  };

  const layout = (plot) => {
    const ink = colour("ink"), quiet = colour("quiet"), rule = colour("rule");
    const axis = (title, log) => ({
      title: { text: plain(title), standoff: 8 }, type: log ? "log" : undefined, automargin: true,
      gridcolor: rule, linecolor: rule, zeroline: false, tickfont: { size: 12 },
      ...(log ? { tickformat: "~g", nticks: 6 } : {}),
    });
    const shapes = plot.references.map(([, value]) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value,
      line: { color: quiet, dash: "dash", width: 1.5 },
    }));
    if (plot.diagonal) {
      shapes.push({ type: "line", x0: 0, y0: 0, x1: 1, y1: 1, line: { color: quiet, dash: "dot", width: 1.5 } });
    }
    // Names of lines that are near each other must not meet: they take turns.
    const sides = [["right", 1], ["left", 0], ["center", 0.5]];
    const annotations = plot.references.map(([name, value], i) => ({
      text: `${plain(name)}: ${short(value)}`, xref: "paper", x: sides[i % 3][1], xanchor: sides[i % 3][0],
      y: plot.logY ? Math.log10(value) : value, yanchor: "bottom", showarrow: false,
      font: { size: 11, color: quiet }, bgcolor: faint(colour("card"), 0.7),
    }));
    const x = axis(plot.x, plot.logX), y = axis(plot.y, plot.logY);
    y.range = plot.range ?? (plot.joined || plot.logY ? undefined : around(plot));
    const places = [...new Set(plot.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    if (plot.logX && places.length <= 8) Object.assign(x, { tickvals: places, ticktext: places.map(short) });
    if (counted(plot)) x.dtick = 1;
    if (plot.diagonal) x.range = [0, 1];
    return {
      xaxis: x, yaxis: y, shapes, annotations, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 }, margin: { l: 50, r: 16, t: 30, b: plot.x ? 44 : 24 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: quiet, activecolor: ink },
      hovermode: "closest", scattermode: plot.joined ? "overlay" : "group",
      // A finger on a phone scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
  };

  const config = {
    responsive: true, displaylogo: false, doubleClick: "reset+autosize",
    modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };

  const buttons = (id) => [...document.querySelectorAll(`button[data-of="${id}"]`)];
  const draw = (number) => {
    const id = `plot-${number + 1}`;
    const shown = buttons(id).map((button) => button.getAttribute("aria-pressed") === "true");
    return Plotly.react(id, traces(plots[number], shown), layout(plots[number]), config);
  };
  const drawAll = async () => {
    let drawn = 0;
    for (let number = 0; number < plots.length; number += 1) {
      try {
        await draw(number);
        drawn += 1;
      } catch (error) {
        console.error(error);
      }
      if (number === 0) root.dataset.firstPlotMs = Math.round(performance.now());
      // Let the page answer between two plots.
      if (number % 4 === 3) await new Promise((done) => setTimeout(done));
    }
    root.dataset.drawn = `${drawn} of ${plots.length}`;
  };

  document.addEventListener("click", (event) => {
    const toggle = event.target.closest("button[data-of]");
    if (toggle) {
      toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") !== "true"));
      draw(Number(toggle.dataset.of.slice(5)) - 1);
    }
    const head = event.target.closest("table.sortable th");
    if (head) sort(head);
  });

  // Numbers by value, names by the alphabet; what has no value stays at the end.
  const sort = (head) => {
    const table = head.closest("table"), body = table.tBodies[0], place = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => {
      const cell = row.cells[place], value = Number(cell.dataset.value ?? NaN);
      return { value, text: cell.textContent.trim(), none: "value" in cell.dataset && Number.isNaN(value) };
    };
    const order = (a, b) => {
      const p = key(a), q = key(b);
      const lost = (k) => k.none || (Number.isNaN(k.value) && k.text === "–");
      if (lost(p) !== lost(q)) return lost(p) ? 1 : -1;
      const both = !Number.isNaN(p.value) && !Number.isNaN(q.value);
      const apart = both ? p.value - q.value : p.text.localeCompare(q.text, "en", { numeric: true });
      return up ? apart : -apart;
    };
    body.append(...[...body.rows].sort(order));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const said = `sorted by ${head.textContent.trim()}, ${up ? "ascending" : "descending"}`;
    document.getElementById("status").textContent = said;
  };

  document.getElementById("theme").addEventListener("change", (event) => {
    if (event.target.value) root.dataset.theme = event.target.value;
    else delete root.dataset.theme;
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  drawAll();
})();
