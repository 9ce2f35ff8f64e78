// What a chart is saved as besides its picture: its numbers as CSV, and the text that makes it in a notebook.

/** A row for each point, bar or cell: its series, its numbers by the titles of axes and colour bar, the ends of its
 * interval. What only marks other points is left out. `meta` of a trace names columns of its customdata to be shown too.
 */
function table(plot) {
    const rows = plot._fullData.flatMap((trace, number) => {
        const marks = trace.hoverinfo === "skip" && !trace.showlegend;
        if (trace.visible !== true || marks || !(trace.x || trace.z)) return [];
        const series = bare(plot.data[number].name ?? "");
        return [...(trace.z ? cells : points)(trace, plot)].map((columns) => ({ series, ...columns }));
    });
    const filled = rows.flatMap((row) => Object.keys(row).filter((name) => written(row[name]) !== ""));
    const names = [...new Set(filled)];
    return [names, ...rows.map((row) => names.map((name) => row[name]))]
        .map((line) => line.map(written).join(",") + "\r\n").join("");
}

function* cells(trace, plot) {
    const [across, up] = axes(trace, plot), places = (axis, values, count, at) =>
        axis.hidden || !values || values.length !== count ? at + 1 : axis.read(values[at]);
    const colour = bare((plot._fullLayout[trace.coloraxis] ?? trace).colorbar?.title?.text ?? "") || "value";
    for (let row = 0; row < trace.z.length; row++) for (let column = 0; column < trace.z[row].length; column++) yield {
        [up.hidden ? "row" : up.name]: places(up, trace.y, trace.z.length, row),
        [across.hidden ? "column" : across.name]: places(across, trace.x, trace.z[row].length, column),
        [colour]: trace.z[row][column],
        ...named(trace, trace.customdata?.[row]?.[column]),
    };
}

function* points(trace, plot) {
    const [across, up] = axes(trace, plot), shaded = trace.marker?.showscale && trace.marker.color;
    const colour = shaded && (bare(trace.marker.colorbar?.title?.text ?? "") || "value");
    for (let at = 0; at < trace.x.length; at++) {
        const point = {};
        for (const [letter, axis] of [["x", across], ["y", up]]) {
            if (axis.hidden) continue;
            point[axis.name] = axis.read(trace[letter][at]);
            const { visible, array, arrayminus } = trace[`error_${letter}`] ?? {};
            if (!visible || !array) continue;
            point[`${axis.name}, lower`] = trace[letter][at] - (arrayminus ?? array)[at];
            point[`${axis.name}, upper`] = trace[letter][at] + array[at];
        }
        if (Array.isArray(trace.text)) point.text = bare(trace.text[at]);
        if (shaded) point[colour] = trace.marker.color[at];
        yield { ...point, ...named(trace, trace.customdata?.[at]) };
    }
}

/** The two of a trace: what they are called, and what stands at a place of them. */
function axes(trace, { layout, _fullLayout: full }) {
    return ["x", "y"].map((letter) => {
        const name = trace[`${letter}axis`].replace(letter, `${letter}axis`), axis = full[name];
        // Of panels in a row, one alone may have the title. Plotly's own of an axis without one is no name.
        const alike = Object.keys(layout).filter((other) => other.startsWith(`${letter}axis`));
        const titles = [name, ...alike].map((one) => bare(layout[one]?.title?.text ?? ""));
        const places = axis.ticktext ? [...axis.tickvals] : [];
        // Points of several series lie beside the tick that names them.
        const names = places.length && places.every((place, at) => !at || Math.abs(place - places[at - 1]) === 1);
        const read = (value) => {
            if (typeof value === "string") return bare(value);
            const at = places.findIndex((place) => place === value || (names && Math.abs(place - value) < 0.5));
            return at < 0 ? value : bare(axis.ticktext[at]);
        };
        return { name: titles.find((title) => title) ?? letter, hidden: axis.visible === false, read };
    });
}

function named({ meta }, custom) {
    return Object.fromEntries(Object.entries(meta ?? {}).map(([name, place]) => [name, custom?.[place]]));
}

/** Text without the HTML that plotly knows. */
function bare(html) {
    return new DOMParser().parseFromString(String(html).replaceAll("<br>", " "), "text/html").body.textContent.trim();
}

/** One value of a line: numbers with the eight digits that float32 has, nothing for what is unknown. */
function written(value) {
    if (typeof value === "number") return Number.isFinite(value) ? String(Number(value.toPrecision(8))) : "";
    const text = String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
}

/** To the clipboard; also where the page has no right to it, as over http by another name than localhost. */
async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}
