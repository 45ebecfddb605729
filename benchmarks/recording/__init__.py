"""Recording measured traces and operator tables of this machine: what, on which system, and one model at a time."""
