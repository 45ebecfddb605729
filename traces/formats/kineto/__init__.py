"""Kineto and Chrome trace JSON, of any version and vendor.

`document` the text, block by block · `events` the fields that are read · `columns` many events as few arrays ·
`read` one file as a Trace · `ranks` a folder of them.
"""

from .ranks import is_folder, read_folder
from .read import NoEventsError, read_json, read_source

__all__ = ["NoEventsError", "is_folder", "read_folder", "read_json", "read_source"]
