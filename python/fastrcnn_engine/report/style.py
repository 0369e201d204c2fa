"""The look of the report."""

from __future__ import annotations

CSS = """
:root { --ink: #0f172a; --soft: #475569; --faint: #94a3b8; --line: #e2e8f0; --paper: #fff;
  --ground: #f1f5f9; --accent: #2563eb; --right: #15803d; --wrong: #dc2626; --missed: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 20px 16px 56px; }
header, section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 24px; margin-bottom: 16px; }
header { border: 0; color: #fff; background: linear-gradient(135deg, #0f172a, #1e3a8a); }
.brand { margin: 0; font: 600 12px/1 ui-monospace, Menlo, Consolas, monospace; color: #93c5fd; }
h1 { margin: 8px 0 4px; font-size: 26px; line-height: 1.25; letter-spacing: -.01em; }
h2 { margin: 0 0 14px; font-size: 18px; letter-spacing: -.01em; }
h3 { margin: 20px 0 10px; font-size: 14px; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 0; list-style: none;
  color: #cbd5e1; font-size: 14px; }
.facts b { color: #fff; font-weight: 600; overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; gap: 20px 32px; align-items: center; margin-top: 22px; }
.score { display: flex; align-items: center; gap: 14px; }
.score b { font-size: 60px; line-height: 1; letter-spacing: -.03em; }
.score span { font-size: 14px; color: #bfdbfe; }
.cards { flex: 1 1 380px; display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fit, minmax(124px, 1fr)); }
.cards div { background: rgba(255, 255, 255, .09); border-radius: 10px; padding: 10px 12px; }
.cards b, .cards span { display: block; }
.cards b { font-size: 19px; line-height: 1.3; }
.cards span { font-size: 12px; line-height: 1.35; color: #bfdbfe; }
.notes { background: #fffbeb; border-color: #fde68a; font-size: 14px; padding: 14px 24px; }
.notes ul { margin: 8px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-size: 12px; font-weight: 600; color: var(--soft); text-align: right; padding: 0 10px 8px;
  white-space: nowrap; }
td { text-align: right; padding: 8px 10px; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tfoot td { border-top: 2px solid var(--line); font-weight: 600; }
.bar { width: 30%; min-width: 90px; }
.bar i { display: block; height: 8px; min-width: 2px; border-radius: 4px;
  background: var(--accent); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
.time td:first-child { width: 30%; } .time .bar { width: 55%; }
.hint { margin: 14px 0 0; font-size: 13px; color: var(--soft); }
.grid { display: grid; gap: 16px; }
.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.small figure { max-width: 340px; }
.large { grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px;
  padding: 6px 2px; font-size: 13px; color: var(--soft); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
figcaption small { font-size: 12px; }
.cuts { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); }
.hint + .grid { margin-top: 14px; }
.cuts img { aspect-ratio: 1; object-fit: contain; background: var(--ground); }
.cuts figcaption { flex-direction: column; line-height: 1.35; }
.pooling figcaption { justify-content: flex-start; }
.cuts em, .pooling em { margin-left: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; align-items: start; }
.filter { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px; }
.filter > .grid { flex: 0 0 100%; margin-top: 8px; }
.filter input { position: absolute; opacity: 0; }
.filter label { padding: 7px 14px; border: 1px solid var(--line); border-radius: 18px;
  font-size: 14px; cursor: pointer; }
.filter label span { color: var(--soft); }
.filter input:checked + label { background: var(--ink); border-color: var(--ink); color: #fff; }
.filter input:checked + label span { color: #cbd5e1; }
.filter input:focus-visible + label { outline: 2px solid var(--accent); outline-offset: 2px; }
#kind-1:checked ~ .cuts > :not(.kind-1), #kind-2:checked ~ .cuts > :not(.kind-2),
#kind-3:checked ~ .cuts > :not(.kind-3), #kind-4:checked ~ .cuts > :not(.kind-4) {
  display: none; }
em { font-style: normal; font-weight: 600; margin-left: 8px; }
em.right { color: var(--right); } em.wrong { color: var(--wrong); }
em.missed { color: var(--missed); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 0; list-style: none;
  font-size: 14px; }
.legend i { display: inline-block; width: 20px; height: 13px; margin-right: 7px; border-radius: 2px;
  border: 3px solid; vertical-align: -1px; }
i.right { border-color: var(--right); } i.wrong { border-color: var(--wrong); }
i.missed { border: 3px dashed var(--missed); }
i.other { border-color: #64748b; } i.roi { border-color: #0ea5e9; }
.legend i.bins { border: 1px solid var(--faint);
  background: linear-gradient(90deg, transparent 47%, var(--faint) 47% 53%, transparent 53%); }
.legend i.heat { width: 70px; border: 0; margin-left: 5px;
  background: linear-gradient(90deg, #333, #be1e1e 10%, #fa8c14 50%, #ffe150); }
i.truth { border: 2px dashed var(--faint); }
.settings { columns: 290px; column-gap: 36px; }
.settings > div { margin-bottom: 18px; } .settings h3 { margin: 0 0 8px; break-after: avoid; }
dl { margin: 0; font-size: 13px; }
dl div { display: flex; justify-content: space-between; gap: 18px; padding: 3px 0;
  border-bottom: 1px solid var(--ground); break-inside: avoid; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; text-align: right; }
pre { margin: 0 0 16px; padding: 14px 16px; border-radius: 10px; background: #0f172a;
  color: #e2e8f0; overflow-x: auto; font: 13px/1.6 ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 560px) {
  main { padding: 0 0 32px; } header, section { border-radius: 0; padding: 20px 16px;
  margin-bottom: 8px; border-left: 0; border-right: 0; }
  h1 { font-size: 22px; } .score b { font-size: 52px; } .classes .bar { display: none; }
  td, th { padding-left: 7px; padding-right: 7px; }
  .small, .cuts { grid-template-columns: 1fr 1fr; gap: 10px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
