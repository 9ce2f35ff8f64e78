// Keys of all pages. Each clicks what is on the page, so that a key does nothing where there is nothing to click. And the
// open tab is kept in sight, where not all of them fit.

const TAKES_TEXT = "input, textarea, select, [contenteditable], [role=dialog], [data-testid=stDataFrame]";
const TAKES_ARROWS = "[role=tablist], [role=radiogroup], [role=listbox], [role=menu], [role=slider]";
const PAGES = ".st-key-page > * > [role=tablist] > [role=tab]";
const STEPS = { ArrowRight: ".st-key-next button", ArrowLeft: ".st-key-previous button" };
const FIND = ".st-key-find input";

let tabbed = false;  // whether what has the focus was reached by keys, and not by a click

export default function ({ parentElement }) {
    const dialog = parentElement.querySelector("dialog");
    parentElement.querySelector(".open").onclick = () => dialog.showModal();
    const end = new AbortController(), first = { capture: true, signal: end.signal };
    document.addEventListener("pointerdown", () => { tabbed = false; }, first);
    document.addEventListener("keydown", (event) => pressed(event, dialog), first);
    const changes = new MutationObserver(reveal);
    changes.observe(document.body, { subtree: true, childList: true, attributeFilter: ["aria-selected"] });
    reveal();
    return () => {
        end.abort();
        changes.disconnect();
    };
}

function pressed(event, dialog) {
    const at = event.composedPath()[0];
    tabbed ||= event.key === "Tab";
    if (dialog.open) event.stopPropagation();  // nor do N and P anything meanwhile
    if (dialog.open || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || !at.closest) return;
    if (event.key === "Escape" && at.matches(FIND)) at.blur();
    if (at.closest(TAKES_TEXT)) return;
    // Tabs and choices have arrows of their own.
    if (event.key.startsWith("Arrow") && tabbed && at.closest(TAKES_ARROWS)) return;
    if (!act(event.key, dialog)) return;
    event.preventDefault();
    event.stopPropagation();
}

/** Whether the key is one of ours, and does something on this page. */
function act(key, dialog) {
    if (key === "?") {
        dialog.showModal();
        return true;
    }
    if (key === "/") return find();
    const there = STEPS[key] ? document.querySelector(STEPS[key]) : document.querySelectorAll(PAGES)[Number(key) - 1];
    there?.click();
    if (there && !STEPS[key]) document.querySelector("[data-testid=stMain]").scrollTo(0, 0);
    return Boolean(there);
}

const open = new WeakMap();  // tabs -> the one of them that was last scrolled to
let due = false;

/** Scrolls tabs sideways to the one that is open, once it is. */
function reveal() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
        due = false;
        for (const tab of document.querySelectorAll(".stTabs [role=tab][aria-selected=true]")) {
            const tabs = tab.closest("[role=tablist]");
            if (open.get(tabs) === tab) continue;
            open.set(tabs, tab);
            const { left, width } = tab.getBoundingClientRect(), of = tabs.getBoundingClientRect();
            tabs.scrollBy({ left: left + width / 2 - of.left - of.width / 2, behavior: "instant" });
        }
    });
}

/** Moves to the field of the search; opens the sidebar for it where that is closed. */
function find() {
    const field = document.querySelector(FIND);
    if (!field) return false;
    document.querySelector("[data-testid=stExpandSidebarButton]")?.click();
    const focus = (left) => {
        field.focus();
        if (document.activeElement !== field && left) requestAnimationFrame(() => focus(left - 1));
        else field.select();
    };
    focus(60);
    return true;
}
