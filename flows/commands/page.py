"""`fantrans page`: one page of all data sets, caches, runs and tables."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Open, refuse_ignored
from flows.commands.output import open_page, print_line


def page(
    context: typer.Context,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve it and the pages that it links to, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0 is any free one.")] = 8000,
    opens: Open = False,
) -> None:
    """Write the start page: data sets, caches, runs and tables, with links to their pages.

    Writes index.html below the runs root and prints its path. Commands that change something write it again. With
    --serve, browsers of this machine can open it, made again for each visit; other machines cannot.
    """
    if not serve:
        refuse_ignored(context, ["port"], when="without --serve")
    from pipeline.catalog import load_catalog
    from pipeline.report.start_page import write_start_page

    catalog = load_catalog()
    path = write_start_page(catalog).absolute()
    if not serve:
        if opens:
            open_page(path)
        print_line(f"page: {path}")
        return
    from flows.page_server import PageServer

    with PageServer(catalog, port) as server:
        print_line(f"page: {path}")
        print_line(f"serving {server.address} until Ctrl-C")
        if opens:
            open_page(server.address)
        server.serve_forever()
