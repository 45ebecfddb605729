"""A Diff as one HTML page that needs nothing else: its data, style and script are inside, and it fetches nothing."""

from .data import Roofs
from .write import render_page, save_page

__all__ = ["Roofs", "render_page", "save_page"]
