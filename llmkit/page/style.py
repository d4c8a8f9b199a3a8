"""How tokens look: the page's own CSS, and white space that can be seen."""

STYLE = """<style>
.stMainBlockContainer { padding-top: 4.5rem; padding-bottom: 3rem; }
[data-testid="stCaptionContainer"] { color: inherit; opacity: 0.8; }
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
.row { display: flex; gap: 0.5rem; align-items: center; justify-content: flex-end; }
.row code { flex: 0 0 9rem; overflow: hidden; text-overflow: ellipsis; white-space: pre;
  color: #f5f5f5; background: none; }
.lens { overflow-x: auto; } .lens table { border-collapse: collapse; font-size: 0.85rem; }
.lens th, .lens td { padding: 0.25rem 0.5rem; white-space: pre; text-align: center; }
.lens th { font-weight: 600; } .lens tr > :first-child { text-align: right; }
.lens td { background: rgb(255 140 0 / calc(var(--p) * 0.5)); }
.row.chosen code { font-weight: bold; text-decoration: underline; }
.row i { flex: 1; height: 0.6rem; border-radius: 2px;
  background: linear-gradient(#ffa94d, #ffa94d) no-repeat 0 / calc(var(--w) * 100%) 100%; }
.top .note { display: block; margin-bottom: 0.4rem; }
</style>"""


def visible(text: str) -> str:
    """A token's text, in which white space and nothing can be seen."""
    return text.replace("\n", "⏎").replace(" ", "␣") or "∅"
