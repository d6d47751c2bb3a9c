"""A Sphinx extension that folds long tables, under a line that says what they hold."""

from __future__ import annotations

import html
from typing import Any

IN_CHAPTERS, ON_PAGES = 10, 25  # rows that lie open; some pages are about their tables


def setup(app: Any) -> dict[str, bool]:
    """Have it called by Sphinx, which names it in `_config.yml`."""
    app.connect("doctree-resolved", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fold(app: Any, tree: Any, page: str) -> None:
    """Wrap each long table of a page that is not in something folded already."""
    from docutils import nodes
    from sphinx_design.dropdown import dropdown_main

    most = IN_CHAPTERS if str(app.env.doc2path(page)).endswith(".ipynb") else ON_PAGES
    for table in [*tree.findall(nodes.table)]:
        rows = sum(len(body.children) for body in table.findall(nodes.tbody))
        around, inside = table.parent, False
        while around is not None and not inside:
            inside = isinstance(around, dropdown_main) or "dropdown" in around.get("classes", ())
            around = around.parent
        if rows <= most or inside:
            continue
        heads = [cell.astext() for head in table.findall(nodes.thead) for cell in head[0]]
        said = html.escape(f"{rows} rows: {', '.join(filter(None, heads))}")
        opening = f'<details class="long-table"><summary>{said}</summary>'
        at = table.parent.index(table)
        table.parent.insert(at + 1, nodes.raw("", "</details>", format="html"))
        table.parent.insert(at, nodes.raw("", opening, format="html"))
