"""Graphs × System → Result: what every operator costs, when it runs, and what memory it takes.

`table` a graph at one shape in columns · `costs` what one operator takes · `lower` operators to nodes on streams ·
`engine` when each node runs · `footprint` memory over time · `attribution` where the time goes · `result` all of it ·
`events` the predicted trace · `parallel` the replay of a plan · `render` tables for the terminal.
"""

from .lower import EXECUTIONS
from .result import Memory, Result
from .run import replay_graph

__all__ = ["EXECUTIONS", "Memory", "Result", "replay_graph"]
