"use strict";
// Values under the pointer, read back from the curves that are drawn.
for (const figure of document.querySelectorAll("figure[data-x1]")) {
  const plot = figure.querySelector(".plot");
  const number = name => Number(figure.dataset[name]);
  const [x0, x1, y0, y1] = ["x0", "x1", "y0", "y1"].map(number);
  const log = "log" in figure.dataset;
  const value = y => log ? y0 * Math.pow(y1 / y0, 1 - y / 1000) : y1 + (y0 - y1) * y / 1000;
  let curves;
  const read = () => Array.from(plot.querySelectorAll("path[data-name]"), path => ({
    name: path.dataset.name,
    colour: Array.from(path.classList).find(name => /^c\d/.test(name)),
    points: path.getAttribute("d").slice(1).split("L").map(point => point.split(" ").map(Number)),
  }));
  const show = n => {
    if (!isFinite(n)) return "";
    const size = Math.abs(n);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return n.toExponential(2);
    return n.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 5 : 4 });
  };
  const hair = document.createElement("div"), box = document.createElement("div");
  hair.className = "hair";
  box.className = "readout";
  const hide = () => { hair.remove(); box.remove(); };
  const move = event => {
    curves = curves || read();
    const frame = plot.getBoundingClientRect();
    const at = Math.min(1000, Math.max(0, (event.clientX - frame.left) / frame.width * 1000));
    const near = curves.map(curve => curve.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    if (!near.length) return;
    const x = near.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)[0];
    const title = document.createElement("b");
    title.textContent = figure.dataset.x + " " + Math.round(x0 + (x1 - x0) * x / 1000).toLocaleString("en");
    box.replaceChildren(title);
    curves.forEach((curve, i) => {
      // A curve that has no point near here has nothing to say.
      if (Math.abs(near[i][0] - x) > 15) return;
      const line = document.createElement("div"), mark = document.createElement("i");
      const name = document.createElement("span"), amount = document.createElement("b");
      mark.className = curve.colour;
      name.textContent = curve.name;
      amount.textContent = show(value(near[i][1])) + figure.dataset.unit;
      line.append(mark, name, amount);
      box.append(line);
    });
    hair.style.left = x / 10 + "%";
    plot.append(hair, box);
    const room = frame.width - box.offsetWidth;
    const left = x / 1000 * frame.width;
    box.style.left = Math.max(Math.min(0, room), left > room - 14 ? left - box.offsetWidth - 14 : left + 14) + "px";
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", hide);
}
// Commands are copied by a click, where the browser lets a page do that.
if (navigator.clipboard) {
  for (const command of document.querySelectorAll(".command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.querySelector("code").textContent);
        button.textContent = "copied";
      } catch {
        button.textContent = "select it";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1600);
    });
    command.append(button);
  }
}
// Paper cannot be unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details.text:not([open]), details.more:not([open])"));
  unfolded.forEach(part => { part.open = true; });
});
addEventListener("afterprint", () => unfolded.forEach(part => { part.open = false; }));
