"use strict";
// The page's plots and its latent browser. Everything comes from the two JSON scripts; text enters as text, never as HTML.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const data = read("data");
  const $ = (selector) => document.querySelector(selector);

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, of] of Object.entries(value)) made.style.setProperty(key, of);
      else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== undefined && child !== null));
    return made;
  }

  function number(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 1);
  }

  const fixed = (digits) => (value) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  // Plots

  const settings = { responsive: true, displayModeBar: false };
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  function draw(place) {
    const { data: traces, layout } = figures[place.dataset.figure];
    Plotly.newPlot(place, traces, layout, settings).then((plot) => {
      plot.on("plotly_click", ({ points: [point] }) => {
        if (Array.isArray(point.customdata)) location.hash = `latent=${point.customdata[0]}`;
      });
    });
  }
  // Each plot is drawn when it comes near the screen.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const place of document.querySelectorAll(".plot")) {
    place.style.minHeight = `${figures[place.dataset.figure].layout.height}px`;
    watcher.observe(place);
  }
  $("#theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
  });

  // Columns of the list

  const L = data.kind.length;
  const columns = data.columns;
  const every = Array.from({ length: L }, (_, latent) => latent);
  const texts = data.texts;
  const strongestText = (latent) => {
    const examples = data.examples[latent];
    return examples && examples.length ? texts[examples[0][2][examples[0][1]]] : "";
  };
  const silent = (latent) => data.counts[latent] === 0;
  const described = {
    latent: { label: "latent", width: "4.3rem", of: (latent) => latent, title: "number of the latent" },
    rho: { label: "ρ", width: "3.6rem", title: "relative decoder norm", show: fixed(3) },
    nu_error: { label: "νᵋ", width: "3.6rem", title: "latent scaling against the error, along the model it leans to", narrow: true, show: fixed(2) },
    nu_recon: { label: "νʳ", width: "3.6rem", title: "latent scaling against the reconstruction", narrow: true, show: fixed(2) },
    source: { label: "reads", width: "3.8rem", title: "the site that the latent reads", show: (value) => layer(data.reads[value]) },
    spread: { label: "spread", width: "4.2rem", title: "over how many sites its decoder norm is spread: exp of the entropy", narrow: true },
    norm: { label: "‖W‖", width: "4rem", title: "decoder norms, all sites added up", narrow: Boolean(columns.rho) },
    density: { label: "density", width: "4.8rem", title: "share of tokens it fires on", show: (share) => `${number(100 * share, 2)} %` },
    text: { label: "fires on", width: "minmax(4rem, 1fr)", title: "the token it fires on most", of: strongestText, text: true },
  };
  const heads = Object.keys(described).filter((name) => described[name].of || columns[name]);
  // The first order: those that differ most between models; it has no column.
  const differs = (latent) => (silent(latent) ? null : Math.abs(columns.rho[latent] - 0.5));
  const value = (name, latent) => (name === "differs" ? differs(latent) : described[name]?.of ? described[name].of(latent) : columns[name][latent]);
  function layer(hookpoint) {
    const found = /\d+/.exec(hookpoint);
    return found ? `layer ${found[0]}` : hookpoint;
  }
  const shown = (name, latent) => {
    const raw = value(name, latent);
    if (name === "latent") return String(raw);
    return described[name].show ? described[name].show(raw) : described[name].text ? visible(raw) : number(raw);
  };
  const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥");

  // State: what is asked for, and what follows from it

  const state = { kinds: new Set(), search: "", ranges: {}, sort: "latent", down: false, latent: null };
  let listed = every;

  const haystacks = new Map();
  function haystack(latent) {
    if (!haystacks.has(latent)) {
      const found = (data.examples[latent] || []).filter(([drawn]) => !drawn);
      haystacks.set(latent, found.map(([, at, tokens]) => texts[tokens[at]]).join("\n").toLowerCase());
    }
    return haystacks.get(latent);
  }

  function passes(latent) {
    if (state.kinds.size && !state.kinds.has(data.kind[latent])) return false;
    for (const [name, [least, most]] of Object.entries(state.ranges)) {
      const of = columns[name][latent];
      if ((least !== null && !(of >= least)) || (most !== null && !(of !== null && of <= most))) return false;
    }
    return !state.search || haystack(latent).includes(state.search);
  }

  function refresh() {
    listed = every.filter(passes);
    const key = (latent) => value(state.sort, latent);
    const sign = state.down ? -1 : 1;
    if (state.sort !== "latent" || state.down) {
      listed.sort((a, b) => {
        const [one, other] = [key(a), key(b)];
        if (one === other) return a - b;
        const none = (of) => of === null || of === "";
        if (none(one) || none(other)) return none(one) ? 1 : -1; // what is undefined comes last
        return (one < other ? -1 : 1) * sign;
      });
    }
    $("#shown").textContent = `${listed.length.toLocaleString("en")} of ${L.toLocaleString("en")} latents`;
    for (const head of document.querySelectorAll("#heads button")) {
      const sorted = head.dataset.name === state.sort;
      if (sorted) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.textContent = described[head.dataset.name].label + (sorted ? (state.down ? " ↓" : " ↑") : "");
    }
    $("#rows").style.height = `${listed.length * ROW}px`;
    $("#list").scrollTop = 0;
    paint();
  }

  // The list: only the rows on the screen exist

  const ROW = 28;
  const list = $("#list");
  const dot = (kind) => {
    const { colour, hollow } = data.kinds[kind];
    const style = colour === "none" ? {} : { color: themed(colour) };
    return element("i", { class: `dot${hollow ? " hollow" : ""}${colour === "none" ? " none" : ""}`, style });
  };
  const themed = (colour) => {
    const model = data.colours.indexOf(colour);
    return model < 0 ? "var(--muted)" : `var(--m${model % 4})`;
  };
  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 8);
    const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 8);
    const rows = [];
    for (let i = first; i < last; i++) {
      const latent = listed[i];
      const cells = heads.map((name, column) =>
        element("span", { class: classes(described[name]) }, ...(column ? [] : [dot(data.kind[latent])]), shown(name, latent)));
      rows.push(element("div", {
        class: "row", role: "option", "data-latent": latent, "aria-selected": String(latent === state.latent),
        title: data.kinds[data.kind[latent]].name, style: { top: `${i * ROW}px` },
      }, ...cells));
    }
    $("#rows").replaceChildren(...rows);
  }
  const classes = (of) => `${of.text ? "text" : ""}${of.narrow ? " narrow" : ""}`;
  list.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.latent));
  });

  function choose(latent, scroll = true) {
    state.latent = latent;
    const hash = `#latent=${latent}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
    const i = listed.indexOf(latent);
    if (scroll && i >= 0) {
      const top = i * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    paint();
    show(latent);
  }
  function move(by) {
    if (!listed.length) return;
    const i = listed.indexOf(state.latent);
    choose(listed[i < 0 ? 0 : Math.min(listed.length - 1, Math.max(0, i + by))]);
  }

  // One latent

  const figure = (name, text, title) => element("span", { title }, element("span", {}, name), text);
  const M = data.models.length;
  const P = data.hookpoints.length;
  const norm = (latent, m) => data.norms[latent].slice(m * P, (m + 1) * P).reduce((sum, of) => sum + of, 0);

  function show(latent) {
    const at = (name) => columns[name]?.[latent];
    const kind = data.kinds[data.kind[latent]];
    const counted = data.counts[latent];
    const parts = [
      element("h3", {}, `Latent ${latent}`,
        element("small", {}, dot(data.kind[latent]), kind.name, data.dead.includes(latent) ? ", dead in training" : "")),
      element("div", { class: "figures" },
        figure("fires on", `${number(100 * at("density"))} % of tokens (${counted.toLocaleString("en")})`),
        figure("strongest", number(at("max"))), figure("mean", number(at("mean"))),
        ...(columns.rho ? [figure("ρ", number(at("rho")), "relative decoder norm"), figure("Δ", number(at("delta")), "Minder et al.'s convention")] : []),
        ...(columns.nu_error ? [figure("cosine", number(at("cosine")), "of the directions in the two models"),
          figure("νᵋ", fixed(2)(at("nu_error"))), figure("νʳ", fixed(2)(at("nu_recon")))] : []),
        ...(at("verdict") ? [figure("verdict", at("verdict"), "of latent scaling: what makes this latent look exclusive")] : []),
        ...(columns.source ? [figure("reads", data.reads[at("source")])] : []),
        ...(listed.includes(latent) ? [] : [element("em", {}, "not in the list: the filters leave it out")])),
    ];
    const writes = element("div", {}, element("h4", {}, P > 1 || M > 1 ? "Writes to (decoder norm)" : "Decoder norm"), bars(latent));
    parts.push(element("div", { class: "halves" }, writes, counted ? histogram(latent) : undefined));
    if (data.logits[latent]) parts.push(...logits(latent));
    parts.push(...examples(latent));
    $("#latent").replaceChildren(...parts);
  }

  function bars(latent) {
    const norms = data.norms[latent];
    const most = Math.max(...norms, 1e-30);
    const rows = norms.flatMap((of, x) => {
      const [m, p] = [Math.floor(x / P), x % P];
      const label = [M > 1 ? data.models[m] : "", P > 1 || M === 1 ? data.hookpoints[p] : ""].filter(Boolean).join(" ");
      return [
        element("span", { class: "label" }, label),
        element("i", { style: { width: `${100 * of / most}%`, background: `var(--m${m % 4})` } }),
        element("span", {}, number(of)),
      ];
    });
    return element("div", { class: "bars" }, ...rows);
  }

  function histogram(latent) {
    const counts = data.histogram[latent];
    const tallest = Math.log1p(Math.max(...counts));
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${counts.length} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "histogram");
    const width = data.bin_width[latent];
    counts.forEach((count, i) => {
      const bar = document.createElementNS(space, "rect");
      const height = 100 * Math.log1p(count) / tallest;
      for (const [name, of] of Object.entries({ x: i + 0.06, y: 100 - height, width: 0.88, height, fill: "var(--link)" })) bar.setAttribute(name, of);
      const title = document.createElementNS(space, "title");
      title.textContent = `${number(i * width)} to ${number((i + 1) * width)}: ${count.toLocaleString("en")} tokens`;
      bar.append(title);
      svg.append(bar);
    });
    const most = Math.max(...counts).toLocaleString("en");
    return element("div", {}, element("h4", {}, `Activations (log scale, ${most} tokens in the highest bar)`), svg,
      element("div", { class: "axis" }, element("span", {}, "0"), element("span", {}, number(counts.length * width))));
  }

  const tokenOf = (text, attributes = {}) => element("span", { class: "token", ...attributes }, visible(text));

  function logits(latent) {
    const of = data.logits[latent];
    const halves = data.models.map((model, m) => {
      const ends = [of[2 * m], of[2 * m + 1]].map(([tokens, changes]) => element("ol", {},
        ...tokens.map((token, i) => element("li", {}, tokenOf(texts[token]), element("span", {}, (changes[i] > 0 ? "+" : "") + fixed(2)(changes[i]))))));
      return element("div", {}, M > 1 ? element("span", { class: `model m${m % 4}` }, model) : undefined, element("div", { class: "ends" }, ...ends));
    });
    return [element("h4", {}, "Adds to the logits (direct path)"), element("div", { class: "halves" }, ...halves)];
  }

  function examples(latent) {
    const found = data.examples[latent];
    if (!found || !found.length) {
      const why = data.counts[latent] ? "No examples were kept of this latent." : "It never fired on the tokens measured.";
      return [element("p", { class: "empty" }, why)];
    }
    const grid = element("div", { class: "examples", style: { "--models": M } });
    if (M > 1) data.models.forEach((model, m) => grid.append(element("div", { class: `head model m${m % 4}` }, model)));
    const norms = data.models.map((_, m) => norm(latent, m));
    const most = Math.max(...norms, 1e-30);
    const unit = columns.max[latent] / 99;
    found.forEach(([drawn, at, tokens, levels], k) => {
      if (drawn && (k === 0 || !found[k - 1][0])) grid.append(element("div", { class: "kind" }, "drawn at random"));
      norms.forEach((size, m) => {
        const spans = tokens.map((token, i) => {
          const strength = levels[i] * unit * size;
          const shade = levels[i] ? `${Math.round(8 + 62 * levels[i] / 99 * size / most)}%` : "0%";
          return tokenOf(texts[token], {
            class: `token${i === at ? " at" : ""}`, style: levels[i] ? { "--shade": shade } : { "--shade": "0%" },
            title: levels[i] ? `f ${number(levels[i] * unit)}, f·‖W‖ ${number(strength)}` : undefined,
          });
        });
        grid.append(element("div", { class: "example", "data-model": data.models[m], style: { "--colour": `var(--m${m % 4})` } },
          element("b", { title: "f · ‖W_dec‖ at the underlined token" }, number(levels[at] * unit * size)), ...spans));
      });
    });
    return [element("h4", {}, M > 1 ? "Where it fires, and how much of it each model gets" : "Where it fires"), grid];
  }

  // Filters, keys, links

  data.kinds.forEach((kind, k) => {
    const count = data.kind.filter((of) => of === k).length;
    if (!count) return;
    const button = element("button", {
      type: "button", "aria-pressed": "false", "data-kind": k,
      onclick: () => {
        const pressed = !state.kinds.has(k);
        state.kinds[pressed ? "add" : "delete"](k);
        button.setAttribute("aria-pressed", String(pressed));
        refresh();
      },
    }, dot(k), `${kind.name} ${count.toLocaleString("en")}`);
    $("#kinds").append(button);
  });
  const rangeNames = { density: "density", rho: "ρ", norm: "‖W‖", spread: "spread" };
  for (const [name, label] of Object.entries(rangeNames)) {
    if (!columns[name]) continue;
    const inputs = ["from", "to"].map((end, i) => element("input", {
      type: "number", step: "any", placeholder: end, "aria-label": `${label} ${end}`, "data-range": `${name}-${end}`,
      oninput: (event) => {
        const range = state.ranges[name] || [null, null];
        range[i] = event.target.value === "" ? null : Number(event.target.value);
        state.ranges[name] = range;
        refresh();
      },
    }));
    $("#ranges").append(element("div", { class: "range" }, element("span", {}, label), ...inputs));
  }
  let typing;
  $("#search").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state.search = event.target.value.toLowerCase();
      refresh();
    }, 120);
  });
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#reset").addEventListener("click", () => {
    $("#filters").reset();
    Object.assign(state, { kinds: new Set(), search: "", ranges: {} });
    for (const button of document.querySelectorAll("#kinds button")) button.setAttribute("aria-pressed", "false");
    refresh();
  });
  $("#copy").addEventListener("click", async (event) => {
    const names = ["kind", ...heads];
    const lines = listed.map((latent) =>
      [data.kinds[data.kind[latent]].name, ...heads.map((name) => value(name, latent) ?? "")].map((cell) => visible(String(cell))).join("\t"));
    const text = [names.join("\t"), ...lines].join("\n");
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", {});
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    event.target.textContent = `copied ${listed.length.toLocaleString("en")} rows`;
    setTimeout(() => { event.target.textContent = "copy table"; }, 1500);
  });

  for (const name of heads) {
    $("#heads").append(element("button", {
      type: "button", role: "columnheader", class: classes(described[name]), "data-name": name, title: `${described[name].title}; click to sort`,
      onclick: () => {
        state.down = state.sort === name ? !state.down : name !== "latent" && name !== "text" && name !== "source";
        state.sort = name;
        refresh();
      },
    }, described[name].label));
  }
  const tracks = () => {
    const narrow = matchMedia("(max-width: 560px)").matches;
    const widths = heads.filter((name) => !(narrow && described[name].narrow)).map((name) => described[name].width);
    $(".pane").style.setProperty("--tracks", widths.join(" "));
    paint();
  };
  addEventListener("resize", tracks);

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const page = Math.floor(list.clientHeight / ROW) - 1;
    const inList = document.activeElement === list;
    const moves = {
      j: 1, k: -1,
      ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -L, End: L } : {}),
    };
    if (event.key === "/") $("#search").focus();
    else if (event.key in moves) move(moves[event.key]);
    else return;
    event.preventDefault();
  });

  function follow() {
    const asked = /^#latent=(\d+)$/.exec(location.hash);
    if (!asked) return false;
    const latent = Number(asked[1]);
    if (latent >= L) {
      $("#latent").replaceChildren(element("p", { class: "empty" }, `There is no latent ${latent}: they are numbered 0 to ${L - 1}.`));
    } else choose(latent);
    $("#latents").scrollIntoView();
    return true;
  }
  addEventListener("hashchange", follow);

  Object.assign(state, { sort: columns.rho ? "differs" : "density", down: true });
  tracks();
  refresh();
  if (!follow() && listed.length) {
    [state.latent] = listed;
    paint();
    show(state.latent);
  }
})();
