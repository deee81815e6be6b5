// The confusion matrix of a report: zoom, counts under the pointer, and the mistakes behind a cell.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const { names, totals, cells, mistakes } = JSON.parse(at("confusion-data").textContent);
  const count = names.length;
  const canvas = at("confusion"), tip = at("tip"), hint = at("hint"), context = canvas.getContext("2d");
  const counts = new Map(cells.map(([i, j, n]) => [i * count + j, n]));
  // What is seen: the first row and column, and how many of each.
  const view = { row: 0, column: 0, side: count };
  let plot = { left: 0, size: 1, cell: 1 };

  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  function shortened(name, width) {
    if (context.measureText(name).width <= width) return name;
    const letters = Array.from(name);
    let low = 0, high = letters.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      const fits = context.measureText(letters.slice(0, middle).join("") + "…").width <= width;
      if (fits) low = middle; else high = middle - 1;
    }
    return letters.slice(0, low).join("") + "…";
  }

  function draw() {
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    const margin = Math.min(width * 0.28, 150), hasNames = (width - margin) / view.side >= 9;
    const left = hasNames ? margin : 0, size = width - left, cell = size / view.side;
    plot = { left, size, cell };
    const height = size + left;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.save();
    context.beginPath();
    context.rect(left, 0, size, size);
    context.clip();
    context.fillStyle = color("--raised");
    context.fillRect(left, 0, size, size);
    // Cells smaller than a pixel are drawn large and dark enough to be seen.
    const drawn = Math.max(cell - (cell > 6 ? 1 : 0), 2.5), faintest = cell < 3 ? 0.6 : 0.2;
    const fonts = "system-ui, sans-serif", [right, wrong] = [color("--right"), color("--wrong")];
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [i, j, n] of cells) {
      const x = left + (j - view.column) * cell, y = (i - view.row) * cell;
      if (x + cell < left || x > left + size || y + cell < 0 || y > size) continue;
      const share = n / totals[i];
      context.globalAlpha = faintest + (1 - faintest) * share;
      context.fillStyle = i === j ? right : wrong;
      context.fillRect(x, y, drawn, drawn);
      if (cell >= 26) {
        context.globalAlpha = 1;
        context.fillStyle = color(share > 0.4 ? "--ground" : "--text");
        context.font = `12px ${fonts}`;
        context.fillText(n, x + cell / 2, y + cell / 2);
      }
    }
    context.restore();
    context.fillStyle = color("--text");
    if (hasNames) {
      context.font = `${clamp(cell * 0.8, 8, 13)}px ${fonts}`;
      context.textAlign = "right";
      context.textBaseline = "middle";
      for (let k = 0; k < count; k++) {
        const y = (k - view.row + 0.5) * cell, x = left + (k - view.column + 0.5) * cell;
        const label = y > 0 && y < size || x > left && x < left + size ? shortened(names[k], left - 8) : "";
        if (y > 0 && y < size) context.fillText(label, left - 5, y);
        if (x > left && x < left + size) {
          context.save();
          context.translate(x, size + 5);
          context.rotate(-Math.PI / 2);
          context.fillText(label, 0, 0);
          context.restore();
        }
      }
    }
    hint.textContent = "Rows are true classes, columns what they are taken for. "
      + (hasNames ? "" : "Names appear when you zoom in. ") + "A click shows the mistakes.";
    canvas.style.touchAction = view.side < count ? "none" : "pan-y pinch-zoom";
  }

  function look(row, column, side) {
    view.side = clamp(side, Math.min(5, count), count);
    view.row = clamp(row, 0, count - view.side);
    view.column = clamp(column, 0, count - view.side);
    tip.hidden = true;
    draw();
  }

  function zoom(factor, row = view.row + view.side / 2, column = view.column + view.side / 2) {
    const side = clamp(view.side * factor, Math.min(5, count), count), kept = side / view.side;
    look(row - (row - view.row) * kept, column - (column - view.column) * kept, side);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    return {
      x, y, row: view.row + y / plot.cell, column: view.column + (x - plot.left) / plot.cell,
      isInside: x >= plot.left && y >= 0 && y < plot.size,
    };
  }

  // The cell under the pointer; where cells are too small to be hit, the nearest that isn't empty.
  function cellAt({ row, column, isInside }) {
    if (!isInside) return null;
    const i = clamp(Math.floor(row), 0, count - 1), j = clamp(Math.floor(column), 0, count - 1);
    if (plot.cell >= 8 || counts.has(i * count + j)) return [i, j];
    let nearest = [i, j], least = 6 / plot.cell;
    for (const [k, l] of cells) {
      const distance = Math.hypot(k + 0.5 - row, l + 0.5 - column);
      if (distance < least) [nearest, least] = [[k, l], distance];
    }
    return nearest;
  }

  function say(event) {
    const there = place(event), cell = cellAt(there);
    tip.hidden = !cell;
    if (!cell) return;
    const [i, j] = cell, n = counts.get(i * count + j) || 0;
    const share = totals[i] ? ` (${(100 * n / totals[i]).toFixed(1)}%)` : "";
    const what = i === j ? `\u2068${names[i]}\u2069, right` : `\u2068${names[i]}\u2069, taken for \u2068${names[j]}\u2069`;
    tip.textContent = `${what}: ${n} of ${totals[i]}${share}`;
    const room = canvas.clientWidth - tip.offsetWidth;
    tip.style.left = `${clamp(there.x + 14, 0, Math.max(room, 0))}px`;
    tip.style.top = `${there.y + 18}px`;
  }

  // --- the mistakes behind a cell
  const cards = [...document.querySelectorAll("#cards > li")];
  const listed = at("listed"), filter = at("filter");

  function show(pair) {
    let hidden = 0, shown = 0;
    for (const card of cards) {
      card.hidden = pair !== null && card.dataset.pair !== pair;
      if (card.hidden) hidden++; else shown++;
    }
    listed.replaceChildren();
    filter.hidden = pair === null;
    if (pair === null) return;
    const [i, j] = pair.split(",").map(Number), n = counts.get(i * count + j) || 0;
    at("filtered").textContent = `\u2068${names[i]}\u2069, taken for \u2068${names[j]}\u2069: ${n} `
      + (n === 1 ? "mistake" : "mistakes");
    const more = mistakes.filter(([k, l]) => k === i && l === j);
    for (const [, , confidence, key, address] of more) {
      const item = document.createElement("li"), name = document.createElement(address ? "a" : "bdi");
      name.textContent = key;
      if (address) Object.assign(name, { href: address, target: "_blank", rel: "noreferrer" });
      item.append(`${confidence.toFixed(4)} `, name);
      listed.append(item);
    }
    const rest = n - shown - more.length;
    if (rest > 0) {
      const item = document.createElement("li");
      item.textContent = `and ${rest} more, which this page leaves out`;
      listed.append(item);
    }
    at("mistakes").scrollIntoView({ behavior: "smooth" });
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-pair]");
    if (!link) return;
    event.preventDefault();
    show(link.dataset.pair);
  });
  at("all").addEventListener("click", () => show(null));

  // --- moving about
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { ...place(event), hasMoved: false, first: { ...view } };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return say(event);
    const there = place(event), dx = there.x - held.x, dy = there.y - held.y;
    if (Math.hypot(dx, dy) > 5) held.hasMoved = true;
    if (held.hasMoved && view.side < count)
      look(held.first.row - dy / plot.cell, held.first.column - dx / plot.cell, view.side);
  });
  canvas.addEventListener("pointerup", (event) => {
    const cell = held && !held.hasMoved ? cellAt(place(event)) : null;
    held = null;
    if (!cell) return;
    say(event);
    const [i, j] = cell;
    if (i !== j && counts.has(i * count + j)) show(`${i},${j}`);
  });
  canvas.addEventListener("pointercancel", () => { held = null; });
  canvas.addEventListener("pointerleave", () => { if (!held) tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;  // the page scrolls
    event.preventDefault();
    const { row, column } = place(event);
    zoom(event.deltaY > 0 ? 1.25 : 0.8, row, column);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = view.side / 10;
    const act = {
      "+": () => zoom(0.5), "-": () => zoom(2), "0": () => look(0, 0, count),
      ArrowUp: () => look(view.row - step, view.column, view.side),
      ArrowDown: () => look(view.row + step, view.column, view.side),
      ArrowLeft: () => look(view.row, view.column - step, view.side),
      ArrowRight: () => look(view.row, view.column + step, view.side),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  at("closer").addEventListener("click", () => zoom(0.5));
  at("farther").addEventListener("click", () => zoom(2));
  at("whole").addEventListener("click", () => look(0, 0, count));
  at("find").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase();
    if (!words) return look(0, 0, count);
    const lower = names.map((name) => name.toLowerCase());
    let k = lower.findIndex((name) => name.startsWith(words));
    if (k < 0) k = lower.findIndex((name) => name.includes(words));
    if (k >= 0) look(k - 10, k - 10, Math.min(21, count));
  });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  at("matrix").hidden = false;
  draw();
})();
