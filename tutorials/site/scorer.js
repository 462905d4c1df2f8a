// What stands first in a search: a name of the package, then definitions, then the course and texts; last solutions and
// figures. The numbers below `score` are Sphinx's own, which are needed where `score` is given.
var Scorer = {
  score: ([docname, title, anchor, descr, score, filename, kind]) => {
    if (kind === "object") return score + 12;
    if (/^tutorials\/(glossary|explain\/notation)$/.test(docname)) return score + 12;
    return /^(tutorials\/solutions|figures|CHANGELOG|CONTRIBUTING)/.test(docname) ? score - 3 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
