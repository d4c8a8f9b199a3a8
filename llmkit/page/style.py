"""The page's own CSS: text tinted by probability, and the panel of a token."""

STYLE = """<style>
.stMainBlockContainer { padding-top: 4.5rem; padding-bottom: 3rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
.token { background: rgb(255 140 0 / calc((1 - var(--p)) * 0.5)); border-radius: 3px; }
.token[tabindex] { cursor: pointer; }
.token:focus { outline: 2px solid currentColor; }
.token.differs { border-bottom: 3px double #e5484d; }
.token .top { display: none; }
.token:focus .top {
  display: block; position: fixed; z-index: 1000; left: 50%; bottom: 1rem;
  transform: translateX(-50%); width: min(26rem, calc(100vw - 2rem)); padding: 0.75rem 1rem;
  border-radius: 8px; font-size: 0.9rem; line-height: 1.4; color: #f5f5f5; background: #1f2430;
  box-shadow: 0 4px 24px rgb(0 0 0 / 0.4); white-space: normal; cursor: default;
}
.top .row { display: flex; gap: 0.5rem; align-items: center; }
.top .row code { flex: 0 0 9rem; overflow: hidden; text-overflow: ellipsis; white-space: pre;
  color: #f5f5f5; background: none; }
.top .row.chosen code { font-weight: bold; text-decoration: underline; }
.top .bar { flex: 1; } .top .bar i { display: block; height: 0.6rem; border-radius: 2px;
  background: #ffa94d; }
.lens { overflow-x: auto; } .lens table { border-collapse: collapse; font-size: 0.85rem; }
.lens th, .lens td { padding: 0.25rem 0.5rem; white-space: pre; text-align: center; }
.lens th { font-weight: 600; } .lens tr > :first-child { text-align: right; }
.lens td { background: rgb(255 140 0 / calc(var(--p) * 0.5)); }
.top .note { margin: 0 0 0.4rem; }
</style>"""
