// One chart, on an element that stays: a figure is drawn over the one before it, once, when it differs from that and is
// in sight. A chart that leaves the page is put aside, and is there as it was when the page is opened again. See chart.py,
// which sends the figures.

const DRAWN_BY = new URL("plotly.min.js", document.baseURI); // served by server.py

const plotly = new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = DRAWN_BY;
    script.onload = () => done(window.Plotly);
    script.onerror = () => failed(new Error(`${DRAWN_BY} cannot be loaded`));
    document.head.append(script);
});

const aside = new Map();  // name -> chart that is on no page, the one that left last at the end
const MOST_ASIDE = 32;

const picked = {};  // chart -> its points that were clicked with Shift; a chart may move on the page, and be a new one

export default function ({ data, parentElement, setTriggerValue }) {
    const chart = (parentElement.chart ??= (aside.get(data.name) ?? new Chart()).start(parentElement, data.name));
    chart.tell = setTriggerValue;
    chart.show(data);
    const turn = ++chart.turn;
    return () => { if (turn === chart.turn) chart.end(); };  // an older one's end may come after a newer one's start
}

// Charts that are due at the same time are drawn in one go: after each by itself the browser would lay out the page.
let due = [];
function together(draw) {
    if (due.push(draw) > 1) return;
    requestAnimationFrame(() => {
        const all = due;
        due = [];
        for (const one of all) one();
    });
}

class Chart {
    turn = 0;
    shown = "";  // what is drawn, or will be when it is in sight
    due = null;  // draws it

    constructor() {
        this.sizes = new ResizeObserver(() => this.fit());
        // A page's charts below the window would take as long as those in it.
        const near = { rootMargin: "200px", scrollMargin: "200px" };
        this.sight = new IntersectionObserver((entries) => this.see(entries.at(-1).isIntersecting), near);
        this.fill = () => this.fit();
    }

    start(parent, name) {
        aside.delete(name);
        const place = parent.querySelector(".chart");
        if (this.element) place.replaceWith(this.element);
        this.parent = parent;
        this.element ??= place;
        this.sizes.observe(this.element);
        this.sight.observe(this.element);
        document.addEventListener("fullscreenchange", this.fill);
        return this;
    }

    show(data) {
        const theme = themed(this.parent);
        const shown = JSON.stringify([data, theme]);
        if (shown === this.shown) return;
        this.shown = shown;
        this.name = data.name;
        const figure = JSON.parse(data.figure);
        this.tall(figure.layout.height);
        this.element.setAttribute("role", "figure");
        this.element.setAttribute("aria-label", data.alt);
        this.due = () => plotly.then((Plotly) => this.draw(Plotly, figure, data, theme)).catch((error) => {
            this.element.textContent = String(error);
            this.element.removeAttribute("aria-busy");
        });
        this.see(this.seen);
    }

    see(seen) {
        this.seen = seen;
        if (!seen || !this.due) return;
        this.element.setAttribute("aria-busy", "true");
        together(this.due);
        this.due = null;
    }

    async draw(Plotly, figure, data, theme) {
        this.Plotly = Plotly;
        this.name = data.name;
        this.clicks = data.clicks;
        this.again = () => this.draw(Plotly, figure, data, theme);
        const fit = this.narrow() ? fitted(figure.layout, this.size().width, theme.font.family) : figure.layout;
        this.tall(fit.height);
        const layout = { ...fit, ...this.size(), template: { layout: theme } };
        if (data.areas || data.clicks) {
            layout.dragmode ??= data.areas ? "lasso" : "pan";
            layout.hovermode ??= "closest";
        }
        const config = {
            displaylogo: false,
            displayModeBar: true,
            showSendToCloud: false,
            modeBarButtonsToRemove: data.areas ? AWAY : [...AWAY, "select2d", "lasso2d"],
            modeBarButtonsToAdd: this.buttons(data.code),
        };
        await Plotly.react(this.element, figure.data, layout, config);
        this.element.removeAttribute("aria-busy");
        if (this.listens) return;
        this.listens = true;
        this.element.on("plotly_click", (event) => this.click(event));
        this.element.on("plotly_selected", (event) => this.select(event));
        if (data.areas) this.element.on("plotly_deselect", () => this.tell("area", []));
    }

    click({ points, event }) {
        if (!this.clicks) return;
        const before = event.shiftKey ? (picked[this.name] ?? []) : [];
        this.tell("clicked", (picked[this.name] = [...before, ...points.map(told)]));
    }

    select(event) {
        if (!event?.range && !event?.lassoPoints) return;
        this.shown = "";  // the outline goes with the next figure, also where that is the same
        this.tell("area", event.points.map(told));
    }

    buttons(code) {
        const picture = (format) => this.Plotly.downloadImage(this.element, { format, filename: this.name, scale: 2 });
        const made = [
            ["Copy as notebook code", CODE, (_, { currentTarget: button }) => copy(code).then(() => {
                button.dataset.title = "Copied";
                button.addEventListener("pointerleave", () => { button.dataset.title = "Copy as notebook code"; });
            })],
            ["Download as PNG", PICTURE, () => picture("png")],
            ["Download as SVG", SHAPES, () => picture("svg")],
            ["Download data as CSV", GRID, () => save(table(this.element), `${this.name}.csv`)],
            ["Fullscreen", LARGER, () => this.enlarge()],
        ];
        return made.map(([name, path, click]) => ({ name, title: name, icon: { width: 24, height: 24, path }, click }));
    }

    size() {
        const full = document.fullscreenElement === this.element;
        return { width: Math.max(150, this.element.clientWidth), height: full ? innerHeight : this.height };
    }

    fit() {
        const drawn = this.element._fullLayout, { width, height } = this.size();
        if (!drawn || !this.element.clientWidth || (drawn.width === width && drawn.height === height)) return;
        if (drawn.width !== width && (this.narrow() || drawn.width < NARROW)) this.again();
        else this.Plotly.relayout(this.element, { width, height });
    }

    narrow() {
        return this.size().width < NARROW;
    }

    /** Sets its height, and that of its place on the page, which Python gave another. */
    tall(height) {
        this.height = height;
        this.element.style.height = `${height}px`;
        const place = this.element.closest("[data-testid=stElementContainer]");
        if (place) place.style.height = place.style.flexBasis = `${height}px`;
    }

    enlarge() {
        if (document.fullscreenElement) document.exitFullscreen();
        else this.element.requestFullscreen();
    }

    end() {
        this.sizes.disconnect();
        this.sight.disconnect();
        document.removeEventListener("fullscreenchange", this.fill);
        this.seen = false;
        delete this.parent.chart;
        aside.get(this.name)?.leave();
        aside.set(this.name, this);
        if (aside.size > MOST_ASIDE) aside.values().next().value.leave();
    }

    leave() {
        aside.delete(this.name);
        this.Plotly?.purge(this.element);
    }
}

/** What the server is told of a point. */
function told({ x, y, customdata }) {
    return { x, y, customdata: ArrayBuffer.isView(customdata) ? [...customdata] : customdata };
}

/** The layout of a narrow chart: lines that are too long for it are broken, and it is as much higher. Plotly puts the
 * middle of a title and of what is under it at places that do not go by their numbers of lines.
 */
function fitted(layout, width, family) {
    const text = broken(layout.title.text.replaceAll("<br>", " "), `bold 16px ${family}`, width - 16);
    const under = broken(layout.title.subtitle?.text ?? "", `13px ${family}`, width - 16);
    const n = text.split("<br>").length, m = under.split("<br>").length;
    const subtitle = { ...layout.title.subtitle, text: "<br>".repeat(Math.max(0, m - 2)) + under };
    const title = { ...layout.title, text, subtitle, y: 1, yanchor: "top", pad: { l: 4, t: 26 + 10.5 * n } };
    const top = 66 + 20.5 * n + 17.4 * (m - 1) + (layout.annotations ? 26 : 8);
    const margin = { ...layout.margin, t: Math.max(layout.margin.t, Math.ceil(top)) };
    const axes = Object.entries(layout).filter(([name, axis]) => name.startsWith("xaxis") && axis.title?.text);
    for (const [name, axis] of axes) {
        const [left, right] = axis.domain ?? [0, 1], most = (right - left) * (width - margin.l - margin.r) - 8;
        layout = { ...layout, [name]: { ...axis, title: { ...axis.title, text: broken(axis.title.text, `14px ${family}`, most) } } };
    }
    return { ...layout, title, margin, height: layout.height + margin.t - layout.margin.t };
}

/** HTML as plotly has it, broken between words into lines of at most so many pixels. */
function broken(text, font, most) {
    const pen = document.createElement("canvas").getContext("2d"), plain = document.createElement("textarea");
    pen.font = font;
    const fits = (line) => {
        plain.innerHTML = line.replace(/<[^>]*>/g, "");
        return pen.measureText(plain.value).width <= most;
    };
    return text.split("<br>").flatMap((line) => line.split(" ").reduce((lines, word) => {
        const longer = lines.length ? `${lines.pop()} ${word}` : word, last = longer.slice(0, -word.length - 1);
        return !last || fits(longer) ? [...lines, longer] : [...lines, last, word];
    }, [])).join("<br>");
}

/** Fonts and colours of the page, light or dark, as a template for plotly. */
function themed(element) {
    const style = getComputedStyle(element), of = (name) => style.getPropertyValue(`--st-${name}`);
    const family = of("font"), text = of("text-color"), quiet = of("gray-text-color"), paper = of("background-color");
    const lines = of("border-color-light");
    const axis = (standoff) => ({
        title: { font: { color: quiet, size: 14 }, standoff }, tickfont: { color: quiet, size: 12 }, tickcolor: lines,
        gridcolor: lines, zerolinecolor: lines, automargin: true,
    });
    const subtitle = { font: { color: quiet, size: 13 } };
    return {
        font: { family, color: quiet, size: 12 },
        title: { font: { family, size: 16, color: text, weight: 700 }, subtitle, pad: { l: 4 } },
        paper_bgcolor: paper, plot_bgcolor: paper,
        colorway: of("chart-categorical-colors").split(","),
        legend: { font: { size: 12, color: text } },
        xaxis: { ...axis(20), showgrid: false, zeroline: false },
        yaxis: axis(24),
        hoverlabel: { bgcolor: paper, bordercolor: of("border-color"), font: { family, color: text, size: 12 } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: quiet, activecolor: text },
        margin: { pad: 8 },
    };
}

const NARROW = 520;  // pixels: in charts that are wider, titles as Python breaks them fit

// Buttons of plotly's bar that no chart has.
const AWAY = ["toImage", "sendChartToCloud", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
// Icons of 24 by 24.
const LARGER = "M7 14H5v5h5v-2H7v-3zm-2-4h2V7h3V5H5v5zm12 7h-3v2h5v-5h-2v3zM14 5v2h3v3h2V5h-5z";
const CODE = "M9.4 16.6 4.8 12l4.6-4.6L8 6l-6 6 6 6 1.4-1.4zm5.2 0 4.6-4.6-4.6-4.6L16 6l6 6-6 6-1.4-1.4z";
const PICTURE = "M3 3h18v18H3zM5 18h14l-4.5-6-3.5 4.5-2.5-3z";
const SHAPES = "M15 16v1.3l-6-3v-3.2L11.7 8H16V2h-6v4.9L7.3 10H3v6h5l7 3.5V22h6v-6h-6z";
const GRID = "M3 3v18h18V3H3zm8 16H5v-6h6v6zm0-8H5V5h6v6zm8 8h-6v-6h6v6zm0-8h-6V5h6v6z";
