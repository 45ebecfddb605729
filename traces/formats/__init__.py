"""Other people's trace files: one module or folder a format. What is sound is read, the rest is counted."""
