// The story of the page.

function showTheme() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const button = document.getElementById("theme");
  const set = (isDark) => {
    root.dataset.theme = isDark ? "dark" : "light";
    button.textContent = isDark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page ${isDark ? "light" : "dark"}`);
  };
  button.addEventListener("click", () => set(root.dataset.theme !== "dark"));
  dark.addEventListener("change", (event) => set(event.matches));
  set(dark.matches);
}

function showNotes(section) {
  if (DATA.notes.length) {
    section.append(element("details", {}, element("summary", {}, `${DATA.notes.length} thing${DATA.notes.length > 1 ? "s" : ""} could not be shown`),
      ...DATA.notes.map((one) => note(one))));
  }
}

showTheme();
document.getElementById("made").textContent = `${DATA.runs.map((run) => run.name).join(", ") || "Scores and pseudo-labels"} · written ${DATA.made.at.replace("T", " ").replace(/\+00:00$/, " UTC")}`;
const PARTS = { notes: showNotes, runs: showRuns, "one-class": showClass, rounds: showRounds, gallery: showGallery, curves: showCurves, settings: showSettings };
for (const [id, show] of Object.entries(PARTS)) show(document.getElementById(id));
