// Client-side behaviour: choosing photos by mouse and keyboard. Loaded before the page is built.
const fm = {
  grids: null,
  then: null,
  // the row of the photo that was chosen last
  row: null,
  // whether to focus the next photo, because a photo had the focus
  focused: false,

  // the grid of photos: `trigger` sends the chosen row to the server as the event `chosen`
  grid(element, trigger, watch, chosen) {
    fm.grids = element;
    const pick = (button) => {
      fm.current(button);
      fm.row = button.dataset.row;
      trigger(chosen, { row: Number(button.dataset.row) });
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-row]");
      if (!button) return;
      pick(button);
      // scroll to the photo if it is shown below the grid
      const detail = document.getElementById("fm-detail");
      if (detail && detail.offsetTop > element.offsetTop + 100) detail.scrollIntoView({ behavior: "smooth" });
    });
    element.addEventListener("keydown", (event) => {
      const button = event.target.closest("button[data-row]");
      const to = button && fm.neighbour(button, event.key);
      // past the first or last photo, `arrows` turns the page
      if (!to) return;
      event.preventDefault();
      event.stopPropagation();
      to.focus();
      pick(to);
    });
    watch("value", () => {
      const tiles = fm.tiles();
      // a late update, such as after a mark, may be for the previous photo
      const chosen = tiles.find((tile) => tile.dataset.row === fm.row);
      if (chosen) fm.current(chosen);
      else fm.row = tiles.find((tile) => tile.hasAttribute("aria-current"))?.dataset.row ?? null;
      if (fm.then === null) return;
      const button = fm.then < 0 ? tiles[tiles.length - 1] : tiles[0];
      fm.then = null;
      if (!button) return;
      pick(button);
      if (fm.focused) button.focus();
    });
    document.addEventListener("keydown", fm.arrows);
  },

  // the left and right keys change the photo, except in elements that use these keys
  arrows(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const own = "input, textarea, select, [contenteditable], [role=tab], [role=listbox], [role=slider], [role=dialog]";
    if (!fm.grids || !fm.grids.offsetParent || event.target.closest(own)) return;
    event.preventDefault();
    fm.step(by, event.repeat);
  },

  tiles: () => (fm.grids ? [...fm.grids.querySelectorAll("button[data-row]")] : []),

  current(button) {
    for (const tile of fm.tiles()) {
      tile.removeAttribute("aria-current");
      tile.tabIndex = -1;
    }
    button.setAttribute("aria-current", "true");
    button.tabIndex = 0;
  },

  // the photo that a key moves to
  neighbour(button, key) {
    const tiles = fm.tiles();
    const at = tiles.indexOf(button);
    const columns = Math.max(1, tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (key === "Home") return tiles[0];
    if (key === "End") return tiles[tiles.length - 1];
    return key in steps ? tiles[at + steps[key]] : undefined;
  },

  // show the previous or next photo, on another page if needed
  step(by, held = false) {
    const tiles = fm.tiles();
    const at = tiles.findIndex((tile) => tile.hasAttribute("aria-current"));
    const to = tiles[at + by];
    fm.focused = fm.grids !== null && fm.grids.contains(document.activeElement);
    if (to) {
      to.click();
      if (fm.focused) to.focus();
      return;
    }
    // a key that is held down stops at the end of a page
    if (held) return;
    const page = document.getElementById(by < 0 ? "fm-before" : "fm-after");
    const words = document.querySelector("#fm-where small");
    const [, number, pages] = (words && words.textContent.match(/(\d+) of (\d+)/)) || [];
    if (by < 0 ? Number(number) > 1 : Number(number) < Number(pages)) {
      fm.then = by;
      page.click();
    }
  },

  // the table of marks, each with a button to remove it
  marks(element, trigger, chosen) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-target]");
      if (button) trigger(chosen, { target_: JSON.parse(button.dataset.target) });
    });
  },
};
