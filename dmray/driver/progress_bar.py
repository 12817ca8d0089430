"""A progress bar in a notebook, by the display of IPython alone: no widgets are needed."""

from __future__ import annotations

import sys
from html import escape
from typing import Any

from dmray.progress.summary import Summary
from dmray.progress.summary_view import line


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookBar:
    """One bar with a line of text beside it. Raises an ImportError outside of IPython."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display(self._content(0, 1, ""), raw=True, display_id=True)

    def show(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total` parts, in the place of what was shown."""
        self._handle.update(self._content(done, total, text), raw=True)

    def show_sweep(self, summary: Summary) -> None:
        """Show how far a sweep is."""
        self.show(summary.steps, max(summary.total_steps, 1), line(summary))

    @staticmethod
    def _content(done: int, total: int, text: str) -> dict[str, str]:
        return {
            "text/plain": text,
            "text/html": f'<progress value="{done}" max="{total}"></progress> <span>{escape(text)}</span>',
        }
