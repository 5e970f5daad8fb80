"""What all pages of a site share: their names, how they are rendered, and where their menu leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..findings.files import file_names
from ..templates.rendering import environment

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX, READING, RUNS, ENTRIES = "index.html", "reading.html", "runs.html", "entries.html"
# The small build of plotly, which has everything but scenes in three dimensions, and the whole one.
PLOTLY, PLOTLY_3D = "plotly-cartesian.min.js", "plotly.min.js"
# Systems that have devices of these names open them in place of a file.
_DEVICES = ("con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10)))


@dataclass(frozen=True)
class MenuItem:
    """An entry of the menu: its words, and its page from the site's folder."""

    text: str
    path: str


@dataclass
class Pages:
    """The pages of a site as they are made, by path from its folder.

    Attributes:
        title: the site's.
        menu: of every page.
        made: the pages.
        scripts: builds of plotly that a page loads.
    """

    title: str
    menu: Sequence[MenuItem]
    made: dict[str, str] = field(default_factory=dict)
    scripts: set[str] = field(default_factory=set)

    @property
    def top(self) -> Environment:
        """The templates of pages in the site's folder."""
        return environment()

    @property
    def below(self) -> Environment:
        """The templates of pages in a folder of the site."""
        return environment("../")

    def add(self, path: str, template: str, plotted: str = "", **context: object) -> None:
        """Render a page.

        Args:
            path: from the site's folder, of one folder at most.
            template: file name of the template.
            plotted: the build of plotly that it loads, if it has such figures.
            context: what the template shows.
        """
        templates = self.below if "/" in path else self.top
        if plotted:
            self.scripts.add(plotted)
        place, _, name = path.rpartition("/")
        here = f"{place}/{INDEX}" if place else name
        self.made[path] = templates.get_template(template).render(
            menu=self.menu, here=here, plotted=plotted, site_title=self.title, **context
        )


def page_names(folder: str, labels: Iterable[str]) -> Mapping[str, str]:
    """Return a page for each different label, as :func:`page_paths` names them."""
    known = list(dict.fromkeys(labels))
    return dict(zip(known, page_paths(folder, known), strict=True))


def page_paths(folder: str, titles: Sequence[str]) -> list[str]:
    """Return a page for each title, in a folder of the site: no two on one file, on any file system.

    Titles may come from an untrusted source: a page's name has letters, digits, hyphens and underscores alone, and none
    is the list of the folder's pages.
    """
    taken = [f"{name}.html" for name in ("index", *_DEVICES)]
    return [f"{folder}/{name}" for name in file_names(titles, ".html", taken)]
